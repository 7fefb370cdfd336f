import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

from workbench.errors import UserError
from workbench.locks import lock, writer

HOLD = "import sys; from pathlib import Path; from workbench.locks import lock\n"
HOLD += "held = lock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"


@contextmanager
def held_elsewhere(folder):
    """Another process writes a folder until the block ends, or until it is killed in it."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.stdin.close()


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path):
    folder = tmp_path / "demo" / "sft"
    with held_elsewhere(folder) as process:
        assert writer(folder) == f"process {process.pid}"
        with pytest.raises(UserError, match=f"is being written by process {process.pid}; wait"):
            lock(folder)
    assert writer(folder) is None
    lock(folder).release()
    assert list(tmp_path.rglob("*")) == [tmp_path / "demo"]  # nothing is left behind


def test_a_killed_process_holds_nothing(tmp_path):
    with held_elsewhere(tmp_path / "sft") as process:
        process.kill()
        process.wait()
        assert (tmp_path / ".sft.lock").is_file()
        assert writer(tmp_path / "sft") is None
        lock(tmp_path / "sft").release()
    assert not (tmp_path / ".sft.lock").exists()


def test_the_same_process_goes_on_under_the_same_lock(tmp_path):
    first = lock(tmp_path / "sft")
    assert lock(tmp_path / "sft") is first
    assert writer(tmp_path / "sft") == f"process {os.getpid()}"
    assert writer(tmp_path / "ppo") is None
    first.release()
    first.release()
    assert writer(tmp_path / "sft") is None


def test_a_lock_goes_with_the_object_that_has_it(tmp_path):
    held = lock(tmp_path / "sft")
    assert writer(tmp_path / "sft") is not None
    del held
    assert writer(tmp_path / "sft") is None


def test_a_released_lock_is_not_taken_for_one_that_is_held(tmp_path):
    old = lock(tmp_path / "sft")
    old.release()
    new = lock(tmp_path / "sft")
    assert new is not old
    assert writer(tmp_path / "sft") is not None


def test_a_forked_child_leaves_the_lock_to_its_parent(tmp_path):
    held = lock(tmp_path / "sft")
    child = os.fork()
    if child == 0:
        held.release()
        os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / ".sft.lock").is_file()
    assert writer(tmp_path / "sft") is not None


def test_a_removed_folder_can_be_locked_again(tmp_path):
    folder = tmp_path / "demo" / "sft"
    first = lock(folder)
    (folder.parent / ".sft.lock").unlink()
    first.release()
    assert not (folder.parent / ".sft.lock").exists()
    lock(folder).release()
