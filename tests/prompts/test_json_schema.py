import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.json_schema import JsonSchema
from workbench.errors import UserError


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": ["string", "null"]}, [None, "x"], [1, [], False]),
        ({"type": "integer"}, [1, 1.0, 10**400], [1.5, True, "1", float("inf")]),
        ({"type": "number"}, [1, 1.5], [True, "1"]),
        ({"enum": [1, "a", None]}, [1.0, "a", None], [True, "b"]),
        ({"enum": [[1, {"x": 0}]]}, [[1, {"x": 0}]], [[1, {"x": False}], [1]]),
        ({"const": False}, [False], [0, None]),
        ({"const": None}, [None], [0, False]),
        ({"anyOf": [{"type": "string"}, {"minimum": 5}]}, ["x", 5], [4]),
        ({"required": ["a", "b"]}, [{"a": 1, "b": 2}, "no object"], [{"a": 1}]),
        ({"properties": {"a": {"type": "null"}}}, [{"a": None}, {"b": 1}, {}], [{"a": 1}]),
        (
            {"properties": {"a": {}}, "additionalProperties": False},
            [{"a": 1}, {}],
            [{"a": 1, "b": 2}],
        ),
        ({"additionalProperties": {"type": "string"}}, [{"a": "x"}], [{"a": 1}]),
        (
            {"items": {"type": "string"}, "minItems": 1, "maxItems": 2},
            [["a"]],
            [[], [1], ["a"] * 3],
        ),
        ({"minLength": 2, "maxLength": 3, "pattern": "^a"}, ["ab", 7], ["a", "abcd", "ba"]),
        ({"minimum": 1, "maximum": 2}, [1, 2, "x"], [0, 3, float("inf")]),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 2}, [1.5, "x"], [1, 2]),
        ({}, [1, None, {}, float("inf")], []),
    ],
)
def test_json_schema_by_the_standard(schema, good, bad):
    checked = JsonSchema.model_validate(schema)
    assert [value for value in good if not checked.accepts(value)] == []
    assert [value for value in bad if checked.accepts(value)] == []


def test_a_pattern_that_explodes_is_stopped():
    schema = JsonSchema.model_validate({"type": "string", "pattern": "(.*?,){25}P"})
    with pytest.raises(UserError, match=r"JSON Schema: pattern '.*' searched 6000 characters for"):
        schema.accepts(",1" * 3000)
    assert not schema.accepts("a")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(json_values)
def test_any_json_value_fits_its_own_const_and_exactly_its_types(value):
    value = json.loads(json.dumps(value))
    assert JsonSchema.model_validate({"const": value}).accepts(value)
    assert not JsonSchema.model_validate({"const": [value]}).accepts(value)
    names = ["object", "array", "string", "boolean", "null", "number"]
    fitting = [name for name in names if JsonSchema.model_validate({"type": name}).accepts(value)]
    assert len(fitting) == 1
