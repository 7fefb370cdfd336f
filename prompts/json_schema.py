"""JSON Schema: whether a JSON value has the form that a schema asks for."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic.alias_generators import to_camel

from prompts.answers import MAX_SECONDS, compile_pattern
from workbench.errors import UserError

JsonType = Literal["object", "array", "string", "boolean", "null", "number", "integer"]


class JsonSchema(BaseModel):
    """The part of JSON Schema 2020-12 that `json-schema` knows; another keyword is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)

    title: str = ""
    description: str = ""
    type: JsonType | list[JsonType] = []
    enum: list[Any] = []
    const: Any = None
    any_of: list[Self] = []
    properties: dict[str, Self] = {}
    required: list[str] = []
    additional_properties: bool | Self = True
    items: Self | None = None
    min_items: int | None = None
    max_items: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str = ""
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | None = None
    exclusive_maximum: float | None = None

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        compile_pattern(pattern)
        return pattern

    def accepts(self, value: Any) -> bool:
        """Return whether a JSON value is valid.

        Raises:
            UserError: when `pattern` searches for too long.
        """
        given = self.model_fields_set
        types = self.type if isinstance(self.type, list) else [self.type]
        if "type" in given and not any(_has_type(value, name) for name in types):
            return False
        if "enum" in given and not any(_equal(value, option) for option in self.enum):
            return False
        if "const" in given and not _equal(value, self.const):
            return False
        if "any_of" in given and not any(part.accepts(value) for part in self.any_of):
            return False
        if isinstance(value, dict):
            return self._accepts_object(value)
        if isinstance(value, list):
            inside = self.items is None or all(map(self.items.accepts, value))
            return inside and _within(len(value), self.min_items, self.max_items)
        if isinstance(value, str):
            fits = _within(len(value), self.min_length, self.max_length)
            return fits and _found(self.pattern, value)
        if _is_number(value):
            below = self.exclusive_maximum is None or value < self.exclusive_maximum
            above = self.exclusive_minimum is None or value > self.exclusive_minimum
            return below and above and _within(value, self.minimum, self.maximum)
        return True

    def _accepts_object(self, value: dict[str, Any]) -> bool:
        other = self.additional_properties
        for name, part in value.items():
            if name in self.properties:
                if not self.properties[name].accepts(part):
                    return False
            elif other is False or (isinstance(other, JsonSchema) and not other.accepts(part)):
                return False
        return all(name in value for name in self.required)


def _found(pattern: str, text: str) -> bool:
    try:
        return compile_pattern(pattern).search(text, timeout=MAX_SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"JSON Schema: pattern {pattern!r} searched {len(text)} characters for over "
            f"{MAX_SECONDS:g} s; repeats within repeats, such as (a+)+, explode: rewrite them"
        ) from None


def _has_type(value: Any, name: JsonType) -> bool:
    match name:
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "number":
            return _is_number(value)
    return _is_number(value) and (isinstance(value, int) or value.is_integer())


def _within(size: float, least: float | None, most: float | None) -> bool:
    return (least is None or size >= least) and (most is None or size <= most)


def _equal(a: Any, b: Any) -> bool:
    """Compare JSON values: 1 and 1.0 are one number, 1 and true are not."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return bool(a == b)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
