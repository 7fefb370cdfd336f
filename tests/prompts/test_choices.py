from pathlib import Path

import pytest

from prompts.choices import choices_of, likeliest, right_choices
from prompts.items import Item
from prompts.template import Template
from workbench.errors import UserError

DATA = Path("data.jsonl")


def template(choices: str | list[str]) -> Template:
    return Template(
        name="t/ranked",
        strategy="zero_shot",
        template="?",
        scoring="likelihood",
        choices=choices,
    )


def right(choices: list[str], *targets: str) -> set[int]:
    (places,) = right_choices(
        template("options"), [Item("i1", {"options": choices}, 7)], [targets], DATA
    )
    return places


def test_choices_are_those_of_the_item_or_of_the_template():
    item = Item("i1", {"options": ["a", "b"]}, 1)
    assert choices_of(template("options"), item) == ["a", "b"]
    assert choices_of(template(["x", "y", "z"]), item) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (None, "a list of texts, none empty"),
        ("ab", "a list of texts, none empty"),
        (["a", 2], "a list of texts, none empty"),
        (["a", ""], "a list of texts, none empty"),
        ([], "give at least two, all different"),
        (["a"], "give at least two, all different"),
        (["a", "b", "a"], "give at least two, all different"),
    ],
)
def test_other_choices_are_refused(choices, message):
    with pytest.raises(UserError, match=rf"t/ranked.yaml: item i1 \(line 7\): .*{message}"):
        right(choices, "a")


def test_the_likeliest_choice_by_sum_and_by_byte():
    choices = [{"logprob": -6.0, "bytes": 2}, {"logprob": -8.0, "bytes": 4}]
    assert likeliest(choices, "acc") == 0
    assert likeliest(choices, "acc_norm") == 1
    assert likeliest([choices[1], dict(choices[1])], "acc") == 0  # ties go to the first


@pytest.mark.parametrize(
    ("choices", "targets", "places"),
    [
        (["red", "blue"], ["blue"], {1}),
        (["red", "blue", "navy"], ["navy", "blue"], {1, 2}),
        (["red", "blue"], ["azure", "blue"], {1}),  # another form of the answer is no choice
        (["red", "blue"], ["1"], {1}),
        (["red", "blue", "navy"], ["A", "C"], {0, 2}),
        (["red", "blue"], ["0", "B"], {0, 1}),
        # A choice's own text comes before numbers and letters.
        (["B", "A"], ["A"], {1}),
        (["1", "0"], ["1"], {0}),
        (["one", "two", "three"], ["2", "two"], {1}),
    ],
)
def test_a_target_is_a_text_else_a_number_or_letter(choices, targets, places):
    assert right(choices, *targets) == places


@pytest.mark.parametrize("target", ["green", "2", "-1", "1.0", "C", "a", "AB", "²", ""])
def test_a_target_that_names_no_choice_is_an_error(target):
    with pytest.raises(UserError, match=r"data.jsonl:7: item i1: target .* is none of the choices"):
        right(["red", "blue"], target)


def test_an_item_without_a_target_is_an_error():
    with pytest.raises(UserError, match=r"target \(none\) is none of the choices"):
        right(["red", "blue"])
