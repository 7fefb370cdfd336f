import os
import subprocess
import sys

import pytest

from workbench import process
from workbench.process import keep_freed_memory, prepare


def test_threads_sleep_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    prepare()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_elsewhere_than_linux_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(process.sys, "platform", "darwin")
    assert keep_freed_memory() is False


FAULTS = """
import resource, sys
from workbench.process import prepare
if sys.argv[1] == "prepared":
    prepare()
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(12_000_000)  # 48 MB, above the size that malloc maps on its own
before = faults()
for _ in range(20):
    torch.ones(12_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_freed_memory_is_taken_again_without_new_pages():
    plain, prepared = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
            ).stdout
        )
        for how in ("plain", "prepared")
    )
    if not keep_freed_memory():
        pytest.skip("another libc than glibc")
    assert prepared < plain / 4
