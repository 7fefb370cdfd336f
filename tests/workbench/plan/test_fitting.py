"""The largest batches that fit, each device's share, and the cheapest change where none fits."""

from dataclasses import replace

import pytest
import torch

from workbench.errors import UserError
from workbench.plan.devices import Devices
from workbench.plan.fitting import alternatives, cheapest, fit, placed
from workbench.plan.memory import Part, Request, StageMemory
from workbench.plan.skeleton import Counts

GB = 10**9
COUNTS = Counts(100, 80, 10, 20, 8, 4, depth=8, uniform=True)


class Some(StageMemory):
    """Holds 10 GB, less as an adapter; a row takes 1 GB to learn from and 0.1 GB to sample."""

    phases = ("rollout", "update")

    def __init__(self, request: Request) -> None:
        super().__init__(request)
        if request.sharding == "fsdp2" and request.layout == "separate":
            raise UserError("not sharded")
        held = {"separate": 10 * GB, "lora": 4 * GB, "shared_trunk": 6 * GB}[request.layout]
        self.parts, self.trained = (Part("policy", "weights", held),), held // 4
        self.gathered = {"rollout": 2 * GB, "update": GB}
        self.asked = []

    def peaks(self, phase, rows):
        self.asked.append((phase, rows))
        return {"forward": rows * (GB if phase == "update" else GB // 10), "backward": 5}

    def kept(self, rows):
        return rows * 1000

    def most(self, rows):
        return rows // 8

    def settings(self, rows, micro, sampled, passes):
        return {}


def some(layout="separate", **changes) -> Some:
    found = Request(
        None, COUNTS, layout, None, 4, 8, 8, torch.bfloat16, cpu=False, devices=1, sharding="none"
    )
    return Some(replace(found, **changes))


def gpu(size: float, count: int = 1) -> Devices:
    return Devices(count, int(size * GB), cpu=False)


def test_the_largest_batches_that_fit_are_found():
    found = fit(some(), gpu(18), 512)
    # 1.1 × (10 + 4) + 1 fits into 18, and with 8 rows no longer; 64 × 0.1 as rollouts does not.
    assert (found.fits, found.micro_batch, found.rollout_batch) == (True, 4, 32)
    assert found.peak == int((10 * GB + 512_000 + 4 * GB) * 1.1) + GB
    assert found.held == 10 * GB
    assert found.phases == {"rollout": 32 * GB // 10, "update": 4 * GB}


def test_small_batches_are_not_counted_where_larger_ones_fit():
    memory = some()
    assert fit(memory, gpu(18), 512).micro_batch == 4
    assert {rows for phase, rows in memory.asked if phase == "update"} == {4, 8}


def test_a_whole_reward_model_may_become_an_adapter():
    lora = some("lora").request
    words = [said for said, _ in alternatives(lora)]
    assert words[0] == "--reward adapter"
    assert "--reward adapter" not in [
        said for said, _ in alternatives(replace(lora, reward="adapter"))
    ]


def test_no_more_rows_than_are_of_use():
    found = fit(some(), gpu(500), 48)
    assert (found.micro_batch, found.rollout_batch) == (6, 48)


def test_many_rows_are_told_by_few():
    memory = some()
    fit(memory, gpu(500), 4096)
    assert max(rows for _, rows in memory.asked) <= 8
    assert memory.work("update", 100) == 100 * GB


def test_devices_share_what_is_held_and_gather_what_they_need():
    memory = some("lora", devices=4, sharding="fsdp2")
    found = placed(memory, gpu(80, 4), 8, 1, 1)
    assert found.held == GB
    assert found.gathered == {"rollout": 2 * GB, "update": GB}
    assert found.peak == int((GB + 8000 + GB // 10 + 2 * GB) * 1.1) + int(1.5 * GB)


def test_a_cpu_keeps_what_a_phase_has_freed():
    both = placed(some(), Devices(1, 80 * GB, cpu=True), 8, 2, 10)
    assert both.work == 2 * GB + GB
    assert placed(some(), gpu(80), 8, 2, 10).work == 2 * GB


def test_what_does_not_fit_says_so():
    found = fit(some(), gpu(9), 512)
    assert not found.fits
    assert (found.micro_batch, found.rollout_batch) == (1, 1)


@pytest.mark.parametrize(
    ("size", "count", "words"),
    [
        (9, 1, "--layout lora"),
        (9, 2, "--layout lora"),
        (6.5, 2, "--layout lora --sharding fsdp2"),
        (1, 1, None),
    ],
)
def test_the_cheapest_change_is_named(size, count, words):
    memory = some(devices=count)
    assert cheapest(memory.request, gpu(size, count), 512, Some) == words


def test_a_cpu_is_offered_no_further_devices():
    request = some().request
    assert cheapest(request, Devices(1, 2 * GB, cpu=True), 8, Some) is None
    assert cheapest(request, Devices(1, 7 * GB, cpu=True), 8, Some) == "--layout lora"


def test_an_adapter_is_offered_with_what_leads_to_it_where_there_is_a_reward_model():
    for layout in ("separate", "shared_trunk", "lora"):
        request = some(layout, devices=2).request
        for scored in (True, False):
            offered = dict(alternatives(request, scored=scored))
            adapters = {words for words, each in offered.items() if each.reward == "adapter"}
            assert adapters == {words for words in offered if "--reward adapter" in words}
            assert bool(adapters) == scored
            assert all(offered[words].layout == "lora" for words in adapters)


def test_alternatives_change_something():
    request = some(devices=2).request
    words = [said for said, _ in alternatives(request)]
    assert words[0] == "--sharding fsdp2"
    assert len(words) == len(set(words))
    assert all(each != request for _, each in alternatives(request))
