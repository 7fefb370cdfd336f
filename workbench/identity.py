"""The identity of a run: what its result depends on, and what differs between two of them."""

import json
from typing import Any

from workbench import __version__
from workbench.config import settings, to_tree
from workbench.files import digest


def identity(stage: str, config: Any, inputs: dict[str, str]) -> dict[str, Any]:
    """Return what a run's result depends on, with a fingerprint of it.

    The whole configuration is recorded; the fingerprint leaves out what changes no result: where
    the run is written, who watches it, and settings marked `free` (`workbench.config.option`).

    Args:
        stage: `sft`, `reward` or `ppo`.
        config: the stage's config dataclass.
        inputs: name to content fingerprint of everything the stage reads.
    """
    tree = to_tree(config)
    tree["run"] = {"seed": tree["run"]["seed"]}
    bound = _without(tree, free_settings(type(config)))
    known = digest(stage, __version__, bound, inputs)
    return {"fingerprint": known, "version": __version__, "config": tree, "inputs": inputs}


def free_settings(cls: type[Any]) -> set[str]:
    """Return the dotted keys of settings that may change while a run goes on."""
    return {setting.key for setting in settings(cls) if setting.free}


def differences(before: dict[str, Any], now: dict[str, Any], free: set[str]) -> list[str]:
    """Return what differs between two identities, as `ppo.kl_coef: 0.05 → 0.1`.

    Args:
        before: the recorded one.
        now: the one that is asked for.
        free: settings that do not count.
    """
    old, new = flat_tree(before["config"]), flat_tree(now["config"])
    rows = [
        f"{key}: {_shown(old, key)} → {_shown(new, key)}"
        for key in {**old, **new}
        if key not in free and old.get(key) != new.get(key)
    ]
    read = {**before["inputs"], **now["inputs"]}
    rows += [
        f"input '{name}' changed"
        for name in read
        if before["inputs"].get(name) != now["inputs"].get(name)
    ]
    if before.get("version", now["version"]) != now["version"]:
        rows.append(f"rlhf-workbench: {before['version']} → {now['version']}")
    return rows


def flat_tree(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flat_tree(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _without(tree: dict[str, Any], keys: set[str], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without(value, keys, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in tree.items()
        if f"{prefix}{key}" not in keys
    }


def _shown(flat: dict[str, Any], key: str) -> str:
    """Return a value as it is written on the command line."""
    value = flat.get(key)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
