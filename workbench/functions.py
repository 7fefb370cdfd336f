"""Functions of the user's own, named `module:function` or `file.py:function` in a config."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.errors import UserError
from workbench.files import sha256

_NAMED = re.compile(r"[^:]+:\w+")


def names_function(source: str) -> bool:
    """Tell whether a text names a function rather than a folder or a hub id."""
    # `owner/name:config` is a hub id, `C:\\model` a folder; a dotted module has no slash.
    if not _NAMED.fullmatch(source):
        return False
    module = source.rpartition(":")[0]
    return module.endswith(".py") or re.fullmatch(r"[\w.]+", module) is not None


def load_function(source: str, where: str, base: Path = Path()) -> Callable[..., Any]:
    """Import a function by name.

    Args:
        source: `module:function`, or `file.py:function` with the file relative to `base`.
        where: the setting or row it stands in, for messages.
        base: also where modules are looked for first.

    Raises:
        UserError: when there is no such module, file or function, or importing it fails.
    """
    module_name, _, name = source.rpartition(":")
    try:
        if module_name.endswith(".py"):
            path = (base / module_name).resolve()
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None:
                raise ImportError(f"{path} is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            # The `rlhf` command, unlike `python -m`, does not look in the current folder.
            sys.path.insert(0, str(base.resolve()))
            try:
                module = importlib.import_module(module_name)
            finally:
                sys.path.remove(str(base.resolve()))
    except Exception as error:  # noqa: BLE001 - a user's module may fail in any way
        raise UserError(
            f"{where}: {source}: cannot be imported ({type(error).__name__}: {error})"
        ) from None
    function = vars(module).get(name)
    if not callable(function):
        raise UserError(f"{where}: {source}: there is no function {name} in {module_name}")
    found: Callable[..., Any] = function
    return found


def function_digest(source: str) -> str:
    """Return a content hash of the file in which a named function is written, 16 characters."""
    module_name = source.rpartition(":")[0]
    if module_name.endswith(".py"):
        path = Path(module_name)
    else:
        path = Path(*module_name.split(".")).with_suffix(".py")
        if not path.is_file():
            try:
                spec = importlib.util.find_spec(module_name)
            except (ImportError, ValueError):
                spec = None
            path = Path(spec.origin) if spec is not None and spec.origin else path
    return sha256(path)[:16] if path.is_file() else "missing"
