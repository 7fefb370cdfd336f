"""Configuration: dataclasses with help, filled from YAML and `key=value` overrides, and checked."""

import dataclasses
import difflib
import json
import math
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from workbench.errors import UserError
from workbench.passwords import masked_tree

C = TypeVar("C")


def option(default: Any, help: str, **extra: Any) -> Any:  # noqa: A002 - the dataclass world calls it help
    """Return a dataclass field with a default and a help text; a list or dict default is copied.

    With `free=True` the setting changes no result, but for rounding: it is no part of a run's
    identity, and may change while an interrupted run goes on.
    """
    metadata = {"help": help, **extra}
    if isinstance(default, list | dict) or (
        dataclasses.is_dataclass(default) and isinstance(default, type)
    ):
        factory = default if isinstance(default, type) else default.copy
        return dataclasses.field(default_factory=factory, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Setting:
    """One documented setting: its dotted key, type as written, default and help text.

    Attributes:
        free: whether it may change while an interrupted run goes on.
    """

    key: str
    type: str
    default: Any
    help: str
    free: bool = False


def find_config(path: str | Path) -> Path:
    """Return the file a `--config` names: as given, or among the configs packaged with the project.

    Raises:
        UserError: when neither exists; names the nearest packaged config.
    """
    given = Path(path)
    if given.is_file():
        return given
    packaged = Path(str(files("configs")))
    name = str(path).removeprefix("configs/")
    if (packaged / name).is_file():
        return packaged / name
    known = sorted(str(Path("configs") / p.relative_to(packaged)) for p in packaged.rglob("*.yaml"))
    near = difflib.get_close_matches(str(path), known, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]}?" if near else f"packaged configs: {', '.join(known)}"
    raise UserError(f"{path}: no such config file; {hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping.

    Raises:
        UserError: when the file is not UTF-8 YAML or not a mapping; names the line.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(
            f"{path}: expected a mapping of sections at the top, found {type(value).__name__}"
        )
    return value


def load_config(cls: type[C], path: str | Path | None = None, overrides: Iterable[str] = ()) -> C:
    """Build a config from its defaults, then a YAML file, then `section.key=value` overrides.

    Args:
        cls: the config dataclass; its fields may be dataclasses (sections).
        path: a YAML file, or a packaged one such as `configs/ppo/demo.yaml`.
        overrides: texts such as `ppo.kl_coef=0.1`; the value is read as YAML.

    Raises:
        UserError: for an unknown key, a wrong type or an impossible combination (`validate()` of a
            section); names the source, the key, the value and the nearest valid key.
    """
    tree: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if path is not None:
        found = find_config(path)
        _merge(cls, tree, read_yaml(found), str(found), origin)
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise UserError(
                f"command line: '{text}' is not an override; "
                "write section.key=value, e.g. run.seed=1"
            )
        try:
            value = yaml.safe_load(raw) if raw else ""
        except yaml.YAMLError:
            value = raw
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(cls, tree, nested, "command line", origin)
    return from_tree(cls, tree, origin)


def from_tree(cls: type[C], tree: Mapping[str, Any], origin: Mapping[str, str] | None = None) -> C:
    """Build and validate a config from a nested mapping whose keys are already known to exist."""
    config = _build(cls, tree, "", origin or {})
    _validate(config, "", origin or {})
    return config


def to_tree(config: Any) -> dict[str, Any]:
    """Return a config as plain nested dictionaries, ready for YAML or JSON, without passwords."""
    tree: dict[str, Any] = masked_tree(dataclasses.asdict(config))
    return tree


def dump_yaml(config: Any) -> str:
    """Return a config as YAML text, sections in the order they are declared."""
    return yaml.safe_dump(to_tree(config), sort_keys=False, allow_unicode=True, width=100)


def settings(cls: type[Any], prefix: str = "") -> list[Setting]:
    """List every setting of a config dataclass, sections flattened to dotted keys."""
    hints, rows = get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        key = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            rows += settings(hints[field.name], f"{key}.")
            continue
        missing = dataclasses.MISSING
        default = field.default if field.default is not missing else None
        if field.default_factory is not missing:
            default = field.default_factory()
        said, free = field.metadata.get("help", ""), bool(field.metadata.get("free"))
        rows.append(Setting(key, type_name(hints[field.name]), default, said, free))
    return rows


def type_name(hint: Any) -> str:
    """Return a type as users write it: `int`, `float or null`, `one of a, b`."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join("null" if a is type(None) else type_name(a) for a in get_args(hint))
    if str(origin) == "typing.Literal":
        return "one of " + ", ".join(str(a) for a in get_args(hint))
    if origin is not None:
        inner = ", ".join(type_name(a) for a in get_args(hint))
        return f"{origin.__name__}[{inner}]"
    return getattr(hint, "__name__", str(hint))


def _merge(
    cls: type[Any],
    tree: dict[str, Any],
    new: Any,
    source: str,
    origin: dict[str, str],
    prefix: str = "",
) -> None:
    hints = get_type_hints(cls)
    for key, value in new.items():
        dotted = f"{prefix}{key}"
        if key not in hints:
            raise UserError(
                f"{source}: unknown key '{dotted}' (value {value!r})"
                f"{_nearest(str(key), hints, prefix)}"
            )
        if dataclasses.is_dataclass(hints[key]):
            section = hints[key]
            if value is None:
                continue
            if not isinstance(value, dict):
                keys = ", ".join(f"{dotted}.{f.name}" for f in dataclasses.fields(section)[:3])  # type: ignore[arg-type]
                raise UserError(
                    f"{source}: '{dotted}' is a section, not a value ({value!r}); set e.g. {keys}"
                )
            _merge(section, tree.setdefault(key, {}), value, source, origin, f"{dotted}.")  # type: ignore[arg-type]
        else:
            tree[key] = value
            origin[dotted] = source


def _nearest(key: str, hints: Mapping[str, Any], prefix: str) -> str:
    near = difflib.get_close_matches(key, list(hints), n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{prefix}{near[0]}'?"
    return f"; valid keys: {', '.join(prefix + name for name in hints)}"


def _build(cls: type[C], tree: Mapping[str, Any], prefix: str, origin: Mapping[str, str]) -> C:
    hints, values = get_type_hints(cls), {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        key, hint = f"{prefix}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            values[field.name] = _build(hint, tree.get(field.name, {}), f"{key}.", origin)  # type: ignore[arg-type]
        elif field.name in tree:
            values[field.name] = _check(tree[field.name], hint, key, origin.get(key, "config"))
    return cls(**values)


def _check(value: Any, hint: Any, key: str, source: str) -> Any:
    # YAML 1.1 reads 1e-5 as a string; lax pydantic mends that. It would also take true for 1, which
    # nobody means.
    if isinstance(value, bool) and "bool" not in type_name(hint):
        raise UserError(f"{source}: {key}={value!r} is not {type_name(hint)}")
    try:
        checked = TypeAdapter(hint).validate_python(value)
    except ValidationError:
        raise UserError(f"{source}: {key}={value!r} is not {type_name(hint)}") from None
    # NaN passes every `x <= 0` of a validate(), and then spoils the weights.
    if isinstance(checked, float) and math.isnan(checked):
        raise UserError(f"{source}: {key}={value!r} is not {type_name(hint)}")
    return checked


def _shown(value: Any) -> str:
    # As it is written in YAML, where Python has other words.
    return json.dumps(value) if value is None or isinstance(value, bool) else repr(value)


def _validate(config: Any, prefix: str, origin: Mapping[str, str]) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _validate(value, f"{prefix}{field.name}.", origin)
    check = getattr(type(config), "validate", None)
    if check is None:
        return
    problem = check(config)
    if problem is None:
        return
    key, reason = problem
    dotted = f"{prefix}{key}"
    value = config
    for part in key.split("."):
        value = getattr(value, part)
    raise UserError(f"{origin.get(dotted, 'default')}: {dotted}={_shown(value)}: {reason}")


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config's tree under dotted names, as trackers take it: no lists and no null."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            found |= flat(value, f"{name}.")
        elif value is None:
            found[name] = "null"
        else:
            found[name] = str(value) if isinstance(value, list) else value
    return found
