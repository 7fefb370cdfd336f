"""Bytes are counted while tensors live, in the window they fall in, and views cost nothing."""

import torch
from torch import nn

from workbench.plan.live import BACKWARD, FORWARD, Live
from workbench.plan.skeleton import Dataless


def test_bytes_come_and_go():
    with Dataless().mode, Live(0, packs=False) as live:
        one = torch.empty(100)
        view = one[10:].view(9, 10)
        assert live.bytes == 400
        two = one + 1
        assert live.bytes == 800
        del two
        assert (live.bytes, live.peaks[FORWARD]) == (400, 800)
        del one, view
        assert live.bytes == 0


def test_weights_that_are_there_already_are_not_counted():
    dataless = Dataless()
    with torch.device("meta"):
        layer = nn.Linear(10, 20, bias=False)
    dataless.take([layer])
    with dataless.mode, Live(0, packs=False) as live:
        live.leave_out([layer])
        given = torch.empty(3, 10)
        found = layer(given)
        assert live.bytes == 4 * 3 * (10 + 20)
        del found


def test_the_second_window_begins_when_the_gradient_reaches_a_layer():
    with torch.device("meta"):
        first, second = nn.Linear(4, 400), nn.Linear(400, 4)
    dataless = Dataless()
    dataless.take([first, second])
    with dataless.mode, Live(0, packs=False) as live:
        live.watch_layer(second)
        loss = second(first(torch.empty(50, 4)).relu()).sum()
        assert live.window == FORWARD
        loss.backward()
        assert live.window == BACKWARD
    assert live.peaks[FORWARD] >= 4 * 50 * 400
    assert live.peaks[BACKWARD] > 0


def test_what_would_be_read_from_data_is_told():
    with Dataless().mode, Live(7, packs=True):
        rows = torch.zeros(12, dtype=torch.long)
        assert int(torch.bincount(rows, minlength=3).max()) == 7
