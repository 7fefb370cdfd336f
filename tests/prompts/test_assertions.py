from pathlib import Path

import pytest
from pydantic import ValidationError

from prompts.assertions import (
    KINDS,
    Assertion,
    Checked,
    Output,
    check,
    item_assertions,
    share_passed,
)
from prompts.items import Item
from workbench.errors import UserError


def output(text: str, *, tokens: int = 3, finished: bool = True) -> Output:
    return Output(text, "12", tokens, finished, Item("i1", {"q": "?"}, 4), ["12", "twelve"])


def no_judge(assertion, outputs):
    raise AssertionError("no judge was asked for")


def outcome(text: str, base: Path = Path(), *, tokens: int = 3, finished=True, **keys) -> Checked:
    assertion = Assertion.model_validate(keys)
    given = output(text, tokens=tokens, finished=finished)
    (checked,) = check(assertion, [given], base=base, judge=no_judge)
    return checked


SCHEMA = {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}}
CASES = [
    ("equals", "Paris", " Paris\n", "Paris!"),
    ("contains", "Par", "in Paris", "in paris"),
    ("icontains", "PAR", "in Paris", "in Rome"),
    ("regex", r"\d{2}$", "it is 12", "12 it is"),
    ("starts-with", "Yes", " Yes, it is", "Oh, Yes"),
    ("is-json", None, '{"a": 1}', "{a: 1}"),
    ("json-schema", SCHEMA, '{"a": 1}', '{"a": "1"}'),
    ("json-schema", SCHEMA, '{"a": 1.0}', "no JSON"),
    ("rouge", "the cat sat on the mat", "The cat sat on a mat.", "a dog"),
]


@pytest.mark.parametrize(("kind", "value", "good", "bad"), CASES)
def test_each_type_holds_fails_and_is_negated(kind, value, good, bad):
    assert outcome(good, type=kind, value=value).passed
    assert not outcome(bad, type=kind, value=value).passed
    assert not outcome(good, type=f"not-{kind}", value=value).passed
    assert outcome(bad, type=f"not-{kind}", value=value).passed


def test_tokens_and_the_end_of_an_answer():
    assert outcome("x", type="max-tokens", value=3).passed
    assert not outcome("x", type="max-tokens", value=2).passed
    assert outcome("x", type="finished").passed
    assert not outcome("x", type="finished", finished=False).passed
    assert outcome("x", type="not-finished", finished=False).passed


def test_scores_thresholds_and_negation_of_a_graded_assertion():
    text, value = "the cat sat", "the cat sat on mats"  # rougeL: 2 · 3 / (3 + 5) = 0.75
    assert outcome(text, type="rouge", value=value) == Checked("rouge", True, 0.75, 1.0)
    assert not outcome(text, type="rouge", value=value, threshold=0.8).passed
    turned = outcome(text, type="not-rouge", value=value, weight=2.0)
    assert turned == Checked("not-rouge", False, 0.25, 2.0)


def test_a_pattern_that_explodes_is_an_error_that_says_so():
    with pytest.raises(UserError, match=r"assertion regex: '\(a\|aa\)\+\$' searched 61 characters"):
        outcome("a" * 60 + "b", type="regex", value="(a|aa)+$")


@pytest.mark.slow
def test_similarity_is_about_meaning():
    value = "The weather will be sunny tomorrow."
    close = outcome("Tomorrow it will be sunny.", type="similarity", value=value)
    far = outcome("Bake the bread for an hour.", type="similarity", value=value)
    assert close.passed
    assert close.score > 0.8
    assert not far.passed
    assert 0.0 <= far.score < 0.4
    assertion = Assertion(type="similarity", value=value)
    assert check(assertion, [], base=Path(), judge=no_judge) == []


FUNCTIONS = """
def short(output, context):
    return len(output) < 5


def graded(output, context):
    assert context == {"id": "i1", "fields": {"q": "?"}, "target": ["12", "twelve"],
                       "answer": "12", "tokens": 3, "finished": True}, context
    return 0.4


def broken(output, context):
    return 1 / 0


def wrong(output, context):
    return "yes"

number = 3
"""


@pytest.fixture
def functions(tmp_path):
    (tmp_path / "checks_of_mine.py").write_text(FUNCTIONS)
    return tmp_path


@pytest.mark.parametrize("source", ["checks_of_mine.py", "checks_of_mine"])
def test_a_python_function_from_a_file_or_a_module(functions, source):
    assert outcome("tiny", functions, type="python", value=f"{source}:short").passed
    assert not outcome("a long text", functions, type="python", value=f"{source}:short").passed
    graded = {"type": "python", "value": f"{source}:graded"}
    assert outcome("x", functions, **graded) == Checked("python", False, 0.4, 1.0)
    assert outcome("x", functions, **graded, threshold=0.4).passed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("checks_of_mine.py:missing", "there is no function missing in checks_of_mine.py"),
        ("checks_of_mine.py:number", "there is no function number in checks_of_mine.py"),
        ("nowhere.py:f", "cannot be imported"),
        ("no_such_module_here:f", "cannot be imported .ModuleNotFoundError"),
        ("checks_of_mine.py:broken", "item i1: ZeroDivisionError: division by zero"),
        ("checks_of_mine.py:wrong", "item i1: returned 'yes'; return True, False or a score"),
    ],
)
def test_a_python_function_that_is_missing_or_fails_is_named(functions, value, message):
    with pytest.raises(UserError, match=message):
        outcome("x", functions, type="python", value=value)


def test_importing_a_users_module_leaves_the_path_as_it_was(functions):
    import sys

    before = list(sys.path)
    assert outcome("tiny", functions, type="python", value="checks_of_mine:short").passed
    assert sys.path == before


def judged(grades, **keys) -> list[Checked]:
    assertion = Assertion.model_validate({"template": "t", "model": "m", **keys})
    outputs = [output(str(grade)) for grade in grades]
    return check(assertion, outputs, base=Path(), judge=lambda *_: grades)


def test_a_judges_number_is_held_against_the_threshold():
    rows = judged([1.0, 0.0, None], type="judge")
    assert [(row.passed, row.score) for row in rows] == [(True, 1.0), (False, 0.0), (False, 0.0)]
    ten = judged([7.0, 5.0], type="judge", threshold=6)
    assert [row.passed for row in ten] == [True, False]
    assert all(0 <= row.score <= 1 for row in ten)


def test_an_unreadable_judge_supports_neither_an_assertion_nor_its_negation():
    rows = judged([1.0, 0.0, None], type="not-judge")
    assert [(row.passed, row.score) for row in rows] == [(False, 0.0), (True, 1.0), (False, 0.0)]


def test_the_share_that_holds_is_weighted():
    rows = [Checked("a", True, 1.0, 3.0), Checked("b", False, 0.0, 1.0)]
    assert share_passed(rows) == 0.75
    assert share_passed([]) == 1.0
    assert share_passed([Checked("a", False, 0.0, 0.0)]) == 1.0  # weight 0 only informs


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"type": "equal", "value": "x"}, "unknown assertion 'equal'; did you mean 'equals'"),
        ({"type": "contains"}, "contains needs a text"),
        ({"type": "contains", "value": ""}, "contains needs a text"),
        ({"type": "regex", "value": "("}, "not a regular expression"),
        (
            {"type": "json-schema", "value": {"properties": {"a": {"pattern": "("}}}},
            "JSON Schema: properties.a.pattern: not a regular expression",
        ),
        ({"type": "max-tokens", "value": 0}, "whole number from 1"),
        ({"type": "max-tokens", "value": True}, "whole number from 1"),
        ({"type": "finished", "value": True}, "takes no value"),
        ({"type": "is-json", "threshold": 0.5}, "is-json holds or not"),
        ({"type": "python", "value": "function"}, "module:function"),
        ({"type": "judge", "model": "m"}, "a judge is a template and a model"),
        ({"type": "judge", "template": "t"}, "a judge is a template and a model"),
        ({"type": "finished", "model": "m"}, "is for a judge only"),
        ({"type": "json-schema", "value": {"typ": "object"}}, "JSON Schema: typ: Extra inputs"),
        ({"type": "json-schema", "value": {"type": "text"}}, "JSON Schema: type"),
        ({"type": "json-schema", "value": {"pattern": "("}}, "not a regular expression"),
        ({"type": "json-schema", "value": "object"}, "JSON Schema: schema"),
    ],
)
def test_impossible_assertions_are_refused(keys, message):
    with pytest.raises(ValidationError, match=message):
        Assertion.model_validate(keys)


def test_negative_weights_are_refused():
    with pytest.raises(ValidationError, match="weight"):
        Assertion(type="finished", weight=-1.0)


def test_an_item_may_carry_assertions_of_its_own():
    rows = [{"type": "contains", "value": "x"}, {"type": "finished", "weight": 2.0}]
    found = item_assertions(Item("i", {"assert": rows}, 3), Path("data.jsonl"))
    assert found == [Assertion(type="contains", value="x"), Assertion(type="finished", weight=2.0)]
    assert item_assertions(Item("i", {}, 3), Path("data.jsonl")) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("finished", r"data.jsonl:3: assert: .*list"),
        ([{"type": "regex", "value": "("}], r"data.jsonl:3: assert.0.value: not a regular"),
        ([{"type": "finished", "wight": 2.0}], r"data.jsonl:3: assert.0.wight: .*'weight'"),
        ([{"value": "x"}], r"data.jsonl:3: assert.0.type: is missing"),
    ],
)
def test_wrong_assertions_of_an_item_name_its_line(rows, message):
    with pytest.raises(UserError, match=message):
        item_assertions(Item("i", {"assert": rows}, 3), Path("data.jsonl"))


def test_the_documented_kinds_are_all_there():
    assert set(KINDS) == {kind for kind, *_ in CASES} | {
        "similarity", "max-tokens", "finished", "python", "judge",
    }  # fmt: skip
