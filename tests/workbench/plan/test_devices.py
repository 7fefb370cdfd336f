"""Devices as they are written, their rates, and the measurement of this machine."""

import pytest
import torch

from workbench.errors import UserError
from workbench.plan.devices import SHEETS, Devices, known_rates, measured_rates, read_devices

GB = 10**9


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("8x80GB", Devices(8, 80 * GB, cpu=False)),
        ("1x24gb", Devices(1, 24 * GB, cpu=False)),
        ("2x22.5GiB", Devices(2, int(22.5 * 2**30), cpu=False)),
        ("cpu:24GB", Devices(1, 24 * GB, cpu=True)),
    ],
)
def test_devices_are_read(text, devices):
    assert read_devices(text) == devices


@pytest.mark.parametrize(
    "text", ["80GB", "8x80", "x80GB", "8 x 80GB", "cpu", "2xcpu:8GB", "-1x8GB"]
)
def test_other_writings_are_refused(text):
    with pytest.raises(UserError, match="write COUNTxSIZE"):
        read_devices(text)


def test_impossible_devices_are_refused():
    with pytest.raises(UserError, match="number of devices must be 1 to"):
        read_devices("0x80GB")
    with pytest.raises(UserError, match="at least 1 GB"):
        read_devices("1x0.5GB")


def test_rates_are_found_by_name_or_by_size():
    eight = read_devices("8x80GB")
    assert [rates.name for rates in known_rates(eight, None)] == ["h100", "a100"]
    assert [rates.name for rates in known_rates(eight, "L4")] == ["l4"]
    assert known_rates(read_devices("1x7GB"), None) == ()
    assert known_rates(read_devices("cpu:80GB"), None) == ()
    with pytest.raises(UserError, match=r"--device h9: .* only those of h200, h100"):
        known_rates(eight, "h9")
    assert all("NVIDIA" in rates.source for rates in SHEETS.values())


def test_this_machine_is_measured():
    rates = measured_rates(torch.float32, "cpu")
    assert 1e8 < rates.flops < 1e15
    assert 1e7 < rates.bandwidth < 1e13
    assert "measured here" in rates.source
