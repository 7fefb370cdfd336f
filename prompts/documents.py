"""YAML documents that remember on which line each key stands, and errors that say so."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from workbench.errors import UserError

M = TypeVar("M", bound=BaseModel)
Key = tuple[str | int, ...]

MAX_BYTES = 200_000
MAX_VALUES = 50_000  # aliases count each time they are used: a few lines can stand for billions
MAX_DEPTH = 30
MOST_NAMED = 20  # names that a message lists
# What PyYAML raises, beside its own errors, for tagged values such as `!!bool maybe`.
UNREADABLE = (
    yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError,
)  # fmt: skip


class FieldError(ValueError):
    """A rule between several keys is broken; raised inside pydantic validators.

    Attributes:
        keys: the path, below the model that raises it, of the key to be named.
    """

    def __init__(self, message: str, *keys: str | int) -> None:
        super().__init__(message)
        self.keys = keys


@dataclass(frozen=True)
class Source:
    """A parsed YAML file.

    Attributes:
        path: the file.
        tree: its content, a mapping.
        lines: the line of every key and list element, by its path from the top.
        blocks: paths of the texts written as `|` blocks, which begin one line below their key.
    """

    path: Path
    tree: dict[str, Any]
    lines: Mapping[Key, int]
    blocks: frozenset[Key] = frozenset()

    def line(self, *keys: str | int) -> int:
        """Return the line of a key, or of its deepest parent that the file has; 1 for the file."""
        for end in range(len(keys), 0, -1):
            if keys[:end] in self.lines:
                return self.lines[keys[:end]]
        return 1

    def error(self, message: str, *keys: str | int, within: int = 0) -> UserError:
        """Return the error `file:line: key: message`.

        Args:
            message: what is wrong and how to mend it.
            keys: the path of the key.
            within: the line, from 1, inside the key's text; known for `|` blocks only.
        """
        line = self.line(*keys) + (within if keys in self.blocks else 0)
        name = ".".join(map(str, keys))
        return UserError(f"{self.path}:{line}: {name + ': ' if name else ''}{message}")


def read_yaml(path: Path) -> Source:
    """Read a YAML file whose top level is a mapping.

    Raises:
        UserError: when it cannot be read, is not YAML, no mapping, too large (also by aliases that
            multiply), or names a key twice; names the line.
    """
    node, loader = _compose(path, _read_text(path))
    lines: dict[Key, int] = {}
    blocks: set[Key] = set()
    _survey(path, node, (), lines, blocks)
    try:
        tree = loader.construct_document(node)
    except UNREADABLE as error:
        raise _yaml_error(path, error) from None
    return Source(path, tree, lines, frozenset(blocks))


def validated(source: Source, model: type[M]) -> M:
    """Check a document against a pydantic model.

    Raises:
        UserError: `file:line: key: what was wrong`, for the first of its faults; an unknown key
            names the nearest valid one.
    """
    try:
        return model.model_validate(source.tree)
    except ValidationError as error:
        faults = error.errors(include_url=False)
        # A misspelt key also leaves the right one missing: the spelling is the thing to mend.
        fault = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")
        keys = _present(source.tree, fault["loc"])
        if fault["type"] == "missing":
            keys = (*keys, fault["loc"][-1])
        context = fault.get("ctx", {})
        if isinstance(context.get("error"), FieldError):
            keys = (*keys, *context["error"].keys)
        if fault["type"].startswith("union_tag"):
            keys = (*keys, context["discriminator"].strip("'"))
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise source.error(f"{_reason(fault, model)}{more}", *keys) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or the known names, the first of many, when none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"did you mean '{near[0]}'?"
    if not names:
        return "there are none"
    more = len(names) - MOST_NAMED
    some = f"{', '.join(names[:MOST_NAMED])} and {more} more" if more > 1 else ", ".join(names)
    return f"there are: {some}"


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{path}: larger than {MAX_BYTES:,} bytes; move data into a data file")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from None


def _compose(path: Path, text: str) -> tuple[yaml.Node, yaml.SafeLoader]:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
    except UNREADABLE as error:
        raise _yaml_error(path, error) from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; at most {MAX_DEPTH} levels") from None
    if not isinstance(node, yaml.MappingNode):
        found = "nothing" if node is None else f"a {_kind(node)}"
        raise UserError(f"{path}:1: expected a mapping (`key: value` lines), found {found}")
    return node, loader


def _yaml_error(path: Path, error: Exception) -> UserError:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return UserError(
            f"{path}:{error.problem_mark.line + 1}: not valid YAML ({error.problem!s:.200}); "
            "check indentation and quotes"
        )
    return UserError(f"{path}: not valid YAML ({error!s:.200})")


def _kind(node: yaml.Node) -> str:
    return "list" if isinstance(node, yaml.SequenceNode) else "mapping or value"


def _survey(path: Path, top: yaml.Node, at: Key, lines: dict[Key, int], blocks: set[Key]) -> None:
    """Note the line of every key; refuse double keys, keys that are no text, and alias bombs."""
    waiting: list[tuple[yaml.Node, Key]] = [(top, at)]
    seen = 0
    while waiting:
        node, keys = waiting.pop()
        seen += 1
        where = f"{path}:{node.start_mark.line + 1}"
        if seen > MAX_VALUES:
            raise UserError(f"{path}: more than {MAX_VALUES:,} values, aliases (*name) counted")
        if len(keys) > MAX_DEPTH:
            raise UserError(f"{where}: nested too deeply; at most {MAX_DEPTH} levels")
        if isinstance(node, yaml.ScalarNode):
            if node.style == "|":
                blocks.add(keys)
            if any("\ud800" <= character <= "\udfff" for character in node.value):
                raise UserError(f"{where}: half a character (\\ud800 to \\udfff); write it whole")
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[*keys, index] = value.start_mark.line + 1
                waiting.append((value, (*keys, index)))
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                waiting.append((value, _noted(path, key, keys, lines)))


def _noted(path: Path, key: yaml.Node, at: Key, lines: dict[Key, int]) -> Key:
    line = key.start_mark.line + 1
    if key.tag == "tag:yaml.org,2002:merge":
        return (*at, "<<")
    if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
        shown = key.value if isinstance(key, yaml.ScalarNode) else f"a {_kind(key)}"
        raise UserError(f"{path}:{line}: key {shown!r} is not a text for YAML; put it in quotes")
    keys = (*at, key.value)
    if keys in lines:
        raise UserError(
            f"{path}:{line}: key '{key.value}' stands twice (first on line {lines[keys]}); "
            "remove one"
        )
    lines[keys] = line
    return keys


def _present(tree: Any, loc: Key) -> Key:
    """Drop from a pydantic location what is no key of the file: the tags of union members."""
    keys: list[str | int] = []
    for part in loc:
        inside = (isinstance(tree, dict) and part in tree) or (
            isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        )
        if inside:
            tree = tree[part]
            keys.append(part)
    return tuple(keys)


def _reason(fault: Mapping[str, Any], model: type[BaseModel]) -> str:
    value, context = fault["input"], fault.get("ctx", {})
    shown = _shown(value)
    match fault["type"]:
        case "missing" | "union_tag_not_found":
            return "is missing; add it"
        case "extra_forbidden":
            name = str(fault["loc"][-1])
            return f"unknown key; {nearest(name, _valid_keys(model, fault['loc'][:-1]))}"
        case "literal_error" | "union_tag_invalid":
            wanted = context.get("expected") or context["expected_tags"]
            given = context.get("tag", value)
            names = [name.strip(" '") for name in wanted.replace(" or ", ", ").split(",")]
            return f"must be one of {', '.join(names)} (is {given!r}); {nearest(str(given), names)}"
        case "value_error":
            return str(context["error"])
        case "greater_than_equal":
            return f"must be at least {context['ge']} (is {shown})"
        case "less_than_equal":
            return f"must be at most {context['le']} (is {shown})"
        case "string_type" if isinstance(value, bool):
            return f"must be a text (YAML reads yes, no, on, off as {shown}); put it in quotes"
        case "string_type":
            return f"must be a text (is {shown}); put it in quotes"
        case "float_type" if isinstance(value, str):
            return f"must be a number (YAML reads {shown} as a text); write it as 0.1"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a mapping of keys to values (is {shown})"
    message = str(fault["msg"]).removeprefix("Input ").removeprefix("should ")
    return f"{'must ' if 'should' in fault['msg'] else ''}{message} (is {shown})"


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _valid_keys(model: type[BaseModel], loc: Key) -> list[str]:
    """Return the keys a model knows at a pydantic location, read from its JSON schema."""
    top = model.model_json_schema()
    schema: dict[str, Any] = top
    for part in (None, *loc):
        if isinstance(part, int):
            schema = schema["items"]
        elif part is not None and part in schema.get("properties", {}):
            schema = schema["properties"][part]
        elif part is not None and "discriminator" in schema:
            schema = {"$ref": schema["discriminator"]["mapping"][part]}
        elif part is not None and isinstance(schema.get("additionalProperties"), dict):
            schema = schema["additionalProperties"]
        options = schema.get("anyOf", [])
        schema = next((option for option in options if option.get("type") != "null"), schema)
        if "$ref" in schema:
            schema = top["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return list(schema.get("properties", {}))
