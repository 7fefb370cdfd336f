"""Checkpoints are whole or absent, and a damaged one is named and passed over."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from ppo import checkpoint
from workbench.errors import UserError


def some_state(update: int) -> dict:
    return {
        "update": update,
        "kl_coef": 0.05 / update,
        "weights": {"policy.w": torch.randn(3, 4), "value.b": torch.tensor([-0.0, 1e-40])},
        "optimizer": {"state": {0: {"step": torch.tensor(4.0)}}, "param_groups": [{"lr": 1e-3}]},
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_comes_back_bit_for_bit(tmp_path, capsys):
    states = {update: some_state(update) for update in (1, 2, 3)}
    for update, state in states.items():
        checkpoint.save(tmp_path, update, state)
    assert names(tmp_path) == ["update-000002", "update-000003"]  # two are kept
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert same(found, states[3])
    assert f"continuing from {tmp_path / 'update-000003'}" in capsys.readouterr().err


def test_updates_beyond_six_digits_and_hundreds_sort_by_number(tmp_path):
    for update in (9, 10, 99, 100):
        checkpoint.save(tmp_path, update, some_state(update))
    assert names(tmp_path) == ["update-000099", "update-000100"]
    for update in (999_999, 1_000_000):
        checkpoint.save(tmp_path, update, some_state(update))
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found["update"] == 1_000_000


def test_no_checkpoint_is_no_state(tmp_path):
    assert checkpoint.load_newest(tmp_path / "nowhere") is None
    (tmp_path / "update-000007").mkdir()
    assert checkpoint.load_newest(tmp_path) is None


def test_the_same_update_is_replaced(tmp_path):
    checkpoint.save(tmp_path, 4, some_state(1))
    second = some_state(2)
    checkpoint.save(tmp_path, 4, second)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert same(found, second)


@pytest.mark.parametrize("file", [checkpoint.STATE, checkpoint.WEIGHTS])
@pytest.mark.parametrize("how", ["cut", "flipped", "missing", "no manifest", "empty manifest"])
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path, capsys, how, file):
    for update in (1, 2):
        checkpoint.save(tmp_path, update, some_state(update))
    damage(tmp_path / "update-000002", how, file)
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found["update"] == 1
    printed = capsys.readouterr().err
    named = file if how in {"cut", "flipped", "missing"} else "manifest.json"
    assert (
        f"{tmp_path / 'update-000002'}: not used, {tmp_path / 'update-000002' / named}" in printed
    )
    assert f"continuing from {tmp_path / 'update-000001'}" in printed
    assert "anew" not in printed


def test_when_all_are_damaged_the_run_starts_anew_and_says_so(tmp_path, capsys):
    for update in (4, 6):
        checkpoint.save(tmp_path, update, some_state(update))
        damage(tmp_path / f"update-{update:06d}", "flipped", checkpoint.WEIGHTS)
    assert checkpoint.load_newest(tmp_path) is None
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        str(tmp_path / "update-000006"), str(tmp_path / "update-000004"), "ppo"
    ]  # fmt: skip
    assert lines[2] == (f"ppo: no checkpoint in {tmp_path} is whole, starting anew from update 0")
    checkpoint.save(tmp_path, 2, some_state(2))  # the new course: what was damaged makes room
    assert names(tmp_path) == ["update-000002"]


@pytest.mark.parametrize("limit", [1, 3])
def test_as_many_are_kept_as_asked_for(tmp_path, limit):
    for update in range(1, 6):
        checkpoint.save(tmp_path, update, some_state(update), limit)
    assert names(tmp_path) == [f"update-{u:06d}" for u in range(6 - limit, 6)]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weights.value.b", "optimizer.state.0.exp_avg", "kl_coef"])
def test_no_nan_is_ever_written(tmp_path, number, where):
    checkpoint.save(tmp_path, 1, some_state(1))
    state = some_state(2)
    if where == "kl_coef":
        state["kl_coef"] = number
    elif where.startswith("weights"):
        state["weights"]["value.b"][1] = number
    else:
        state["optimizer"]["state"][0]["exp_avg"] = torch.tensor([1.0, number])
    with pytest.raises(UserError) as error:
        checkpoint.save(tmp_path, 2, state)
    assert f"update-000002: not written, since {where} is NaN or infinite" in str(error.value)
    assert names(tmp_path) == ["update-000001"]


def test_a_setting_may_be_infinite(tmp_path):
    settings = {"identity": {"config": {"ppo": {"cliprange_value": float("inf")}}}}
    checkpoint.save(tmp_path, 1, some_state(1) | settings)
    assert checkpoint.load(tmp_path / "update-000001")["identity"] == settings["identity"]


@pytest.mark.parametrize("file", [checkpoint.STATE, checkpoint.WEIGHTS, "manifest.json"])
def test_every_file_is_on_the_disk_before_the_folder_has_its_name(tmp_path, monkeypatch, file):
    """A power cut keeps names and loses contents, unless those were synced first."""
    events = []
    sync, rename = os.fsync, Path.rename

    def synced(handle):
        events.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        sync(handle)

    def renamed(self, target):
        events.append(("rename", str(target)))
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    checkpoint.save(tmp_path, 1, some_state(1))
    moved = events.index(("rename", str(tmp_path / "update-000001")))
    before = [Path(path) for kind, path in events[:moved] if kind == "sync"]
    # The manifest goes through a temporary file of its own.
    assert any(path.name == file or path.name.startswith(f".{file}.") for path in before)
    assert any(path.parent == tmp_path and path.name.startswith(".update-") for path in before)
    assert ("sync", str(tmp_path)) in events[moved:]


def damage(folder: Path, how: str, file: str) -> None:
    state = folder / file
    manifest = folder / "manifest.json"
    data = state.read_bytes()
    if how == "cut":
        state.write_bytes(data[:-100])
    elif how == "flipped":
        middle = len(data) // 2
        state.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "missing":
        state.unlink()
    elif how == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("")


def test_an_interrupted_save_leaves_what_was_there(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, some_state(1))

    def interrupted(state, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, 2, some_state(2))
    assert names(tmp_path) == ["update-000001"]
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found["update"] == 1


def test_leftovers_of_a_killed_save_are_not_checkpoints(tmp_path):
    checkpoint.save(tmp_path, 1, some_state(1))
    (tmp_path / ".update-000002.x1").mkdir()
    (tmp_path / ".update-000002.x1" / checkpoint.STATE).write_bytes(b"half")
    found = checkpoint.load_newest(tmp_path)
    assert found is not None
    assert found["update"] == 1


class Prank:
    """Would touch a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_cannot_run_code(tmp_path):
    checkpoint.save(tmp_path / "run", 1, some_state(1) | {"extra": Prank(tmp_path / "touched")})
    with pytest.raises(pickle.UnpicklingError):
        checkpoint.load_newest(tmp_path / "run")
    assert not (tmp_path / "touched").exists()
