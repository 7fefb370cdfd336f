"""Checkpoints of PPO: whole or absent, finite, verified by hash before they are trusted."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from workbench.errors import UserError
from workbench.files import atomic_folder, damage
from workbench.logs import console

WEIGHTS, STATE = "weights.safetensors", "state.pt"
UNCHECKED = {"identity", "random"}  # settings, of which one may be infinite; and many integers


def save(folder: Path, update: int, state: dict[str, Any], keep: int = 2) -> None:
    """Write the state after `update` updates, then remove all but the newest `keep` checkpoints.

    Args:
        folder: of all checkpoints.
        update: updates done.
        state: tensors and plain values; `state["weights"]` is a mapping of tensors.
        keep: checkpoints to leave, this one included.

    Raises:
        UserError: when a number in it is NaN or infinite; nothing is written then.
    """
    path = _path(folder, update)
    bad = not_finite({name: value for name, value in state.items() if name not in UNCHECKED})
    if bad is not None:
        raise UserError(
            f"{path}: not written, since {bad} is NaN or infinite; lower ppo.learning_rate or "
            "ppo.value_learning_rate"
        )
    rest = {name: value for name, value in state.items() if name != "weights"}
    with atomic_folder(path) as temporary:
        weights = {name: weight.contiguous() for name, weight in state["weights"].items()}
        save_file(weights, temporary / WEIGHTS)
        torch.save(rest, temporary / STATE)
    # Newer ones were not fit to go on from, and are of another course.
    stale = [old for old in _sorted(folder) if _update(old) > update]
    for old in [*stale, *[old for old in _sorted(folder) if _update(old) <= update][keep:]]:
        shutil.rmtree(old, ignore_errors=True)


def load(path: Path) -> dict[str, Any]:
    """Return a checkpoint's state; nothing in its files can run code."""
    state: dict[str, Any] = torch.load(path / STATE, weights_only=True, map_location="cpu")
    return state | {"weights": load_file(path / WEIGHTS)}


def load_newest(folder: Path) -> dict[str, Any] | None:
    """Return the newest whole checkpoint's state, or None; damaged ones are named and skipped."""
    found = _sorted(folder)
    for path in found:
        problem = damage(path)
        if problem is None:
            state = load(path)
            console.print(f"ppo: continuing from {path}", markup=False)
            return state
        console.print(f"{path}: not used, {problem}", markup=False, style="yellow")
    if found:
        console.print(
            f"ppo: no checkpoint in {folder} is whole, starting anew from update 0",
            markup=False,
            style="yellow",
        )
    return None


def newest(folder: Path) -> int | None:
    """Return the update of the newest checkpoint, by its name, or None."""
    found = _sorted(folder)
    return _update(found[0]) if found else None


def not_finite(value: Any, name: str = "") -> str | None:
    """Return where in nested mappings and lists a number is NaN or infinite, or None."""
    if isinstance(value, torch.Tensor):
        whole = not value.is_floating_point() or bool(torch.isfinite(value).all())
        return None if whole else name
    if isinstance(value, float):
        return None if math.isfinite(value) else name
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    found = (not_finite(inner, f"{name}.{key}" if name else str(key)) for key, inner in items)
    return next((place for place in found if place is not None), None)


def _path(folder: Path, update: int) -> Path:
    return folder / f"update-{update:06d}"


def _update(path: Path) -> int:
    number = path.name.removeprefix("update-")
    return int(number) if number.isdecimal() else -1


def _sorted(folder: Path) -> list[Path]:
    return sorted(folder.glob("update-*"), key=_update, reverse=True)
