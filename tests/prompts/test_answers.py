import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.answers import (
    MAX_CHARACTERS,
    Extracted,
    Extraction,
    compile_pattern,
    majority,
    normalise,
)
from prompts.template import AnswerSettings
from workbench.errors import UserError

EXTRACTORS = [
    {"type": "regex", "pattern": r"is\s+(\S+)"},
    "choice",
    "number",
    {"type": "json", "path": "answer"},
    "yes_no",
    {"type": "label", "labels": ["yes", "not sure"]},
    "first_line",
    "last_line",
    "code_block",
    "all",
]


def extraction(*extract: Any, how: str = "none") -> Extraction:
    return Extraction(AnswerSettings.model_validate({"extract": list(extract), "normalise": how}))


def found(text: str, *extract: Any, how: str = "none") -> str | None:
    return extraction(*extract, how=how)(text).strict


# The chain


def test_strict_is_the_first_extractor_and_flexible_the_first_that_finds() -> None:
    chain = extraction({"type": "regex", "pattern": r"answer is (\w+)"}, "number", "last_line")
    assert chain("2 and 3, so the answer is 5") == Extracted("5", "5")
    assert chain("that makes 5") == Extracted(None, "5")
    assert chain("five\nI believe") == Extracted(None, "I believe")
    assert chain(" \n") == Extracted(None, None)


def test_both_are_normalised_and_an_answer_of_nothing_is_unparsed() -> None:
    chain = extraction("first_line", "last_line", how="text")
    assert chain("The Cat!\nA dog.") == Extracted("cat", "cat")
    assert chain("The.\nA dog.") == Extracted(None, "dog")


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=str)
@pytest.mark.parametrize("text", ["", "   ", "\n\n\t"])
def test_nothing_is_found_in_nothing(extractor: Any, text: str) -> None:
    assert found(text, extractor) is None


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=str)
@given(text=st.text(st.characters(codec="utf-8"), max_size=200))
@settings(deadline=None)
def test_any_text_gives_a_stripped_answer_or_none(extractor: Any, text: str) -> None:
    answer = found(text, extractor)
    assert answer is None or (answer == answer.strip() != "")


@pytest.mark.parametrize("extractor", EXTRACTORS, ids=str)
@pytest.mark.parametrize(
    "piece",
    [" ", "\n", "a", "A ", "1", "1,", "1/", "9e9", "*", "(", "[", '{"a":', "```\n", "yes or ",
     "no ", "not ", "answer is ", "answer:  ", "- "],
)  # fmt: skip
def test_degenerate_outputs_take_no_time(extractor: Any, piece: str) -> None:
    text = piece * (30_000 // len(piece))
    start = time.process_time()
    found(f"answer: {text}", extractor)
    assert time.process_time() - start < 1


# regex


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pattern": r"is (\d)"}, "3"),
        ({"pattern": r"is (\d)", "which": "first"}, "1"),
        ({"pattern": r"(x) is (\d)", "group": 2}, "3"),
        ({"pattern": r"\d", "group": 0, "which": "first"}, "1"),
        ({"pattern": r"X IS (\d)"}, None),
        ({"pattern": r"X IS (\d)", "flags": "i"}, "3"),
        ({"pattern": r"^(x.*)$", "which": "first"}, None),
        ({"pattern": r"^(x.*)$", "which": "first", "flags": "m"}, "x is 1"),
        ({"pattern": r"^(.*)$", "flags": "s"}, "x is 1\nx is 2\nx is 3"),
        ({"pattern": r"X (IS) # the verb", "flags": "xi"}, None),
        ({"pattern": r"X\ (IS) # the verb", "flags": "xi"}, "is"),
        ({"pattern": r"is (\d)|(nothing)"}, "3"),
        ({"pattern": r"x( *)is"}, None),
    ],
)
def test_regex(settings: dict[str, Any], expected: str | None) -> None:
    assert found("x is 1\nx is 2\nx is 3", {"type": "regex", **settings}) == expected


def test_regex_skips_matches_whose_group_took_no_part() -> None:
    assert found("answer 4, or not", {"type": "regex", "pattern": r"answer (\d)|not"}) == "4"


def test_regex_looks_at_a_bounded_part_at_the_end_it_reads() -> None:
    text = "<1>" + "x" * MAX_CHARACTERS + "<2>"
    for which, expected in (("first", "1"), ("last", "2")):
        assert found(text, {"type": "regex", "pattern": "<(.)>", "which": which}) == expected
    between = "x" * MAX_CHARACTERS + "<3>" + "x" * MAX_CHARACTERS
    for which in ("first", "last"):
        assert found(between, {"type": "regex", "pattern": "<(.)>", "which": which}) is None


def test_an_exploding_pattern_is_an_error_and_does_not_hang() -> None:
    start = time.process_time()
    with pytest.raises(UserError, match=r"answer\.extract: pattern .* for over 1 s; repeats"):
        found("a" * 60 + "?", {"type": "regex", "pattern": "((a|a)*)$"})
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("(a", r"not a regular expression \(missing \)"),
        ("*", "not a regular expression"),
        ("((a{999}){999}){999}", "counted repeats multiply to more than 100,000"),
        ("(a{3,99999999999})", "counted repeats multiply"),
        ("((a{999,}){999,})", "counted repeats multiply"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(pattern: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        compile_pattern(pattern)


def test_counted_repeats_are_bounded_because_compiling_them_fills_the_memory() -> None:
    # Refused when the template is read, where file and line are known.
    with pytest.raises(ValueError, match="repeats multiply"):
        extraction({"type": "regex", "pattern": "((a{999}){999}){999}"})
    assert compile_pattern(r"(\d{1,4}) (\w{2}){0,9}\{7\}").groups == 2


# number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It costs 1,234.50 dollars", "1234.50"),
        ("1,234,567", "1234567"),
        ("-3", "-3"),
        ("−3", "-3"),
        ("x = -3", "-3"),
        ("10 - 3", "3"),
        ("5-3", "3"),
        ("between 3-5", "5"),
        ("(7)-4", "4"),
        ("$5", "5"),
        ("-$5.20", "-5.20"),
        ("$-5", "-5"),
        ("€1,000", "1000"),
        ("50%", "50"),
        ("The answer is 12.", "12"),
        ("12.5.", "12.5"),
        (".5", ".5"),
        ("3/4", "3/4"),
        ("about 3/4.", "3/4"),
        ("on 5/10/2020", None),
        ("version 3.11.2", None),
        ("the 3rd", None),
        ("the 22nd of 7", "7"),
        ("12cm", "12"),
        ("gpt2", None),
        ("covid-19", None),
        ("1,2,3", "3"),
        ("3,5", "5"),
        ("12,3456", "3456"),
        ("6.02e23", "6.02e23"),
        ("**42**", "42"),
        (r"\boxed{42}", "42"),
        ("#### 72", "72"),
        ("3 + 4 = 7", "7"),
        ("7\n\n", "7"),
        ("seven", None),
        ("٣", None),
    ],
)
def test_number(text: str, expected: str | None) -> None:
    assert found(text, "number") == expected


def test_number_first_or_last() -> None:
    text = "2 apples and 3 pears are 5"
    assert found(text, {"type": "number", "which": "first"}) == "2"
    assert found(text, {"type": "number", "which": "last"}) == "5"


@given(st.integers(-(10**12), 10**12))
@settings(deadline=None)
def test_number_reads_what_python_writes(value: int) -> None:
    for text in (f"so {value}.", f"so {value:,}!", f"**{value}**", f"${value}"):
        assert found(text, "number", how="number") == str(value)


# choice


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B", "B"),
        (" b.\n", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("B) a red house", "B"),
        ("B. a red house", "B"),
        ("B: a red house", "B"),
        ("B\n\nBecause it is red.", "B"),
        ("The answer is B", "B"),
        ("The answer is (B).", "B"),
        ("The answer is: **B**", "B"),
        ("**Answer:** C", "C"),
        ("Answer: option D", "D"),
        ("answer: c", "C"),
        ("The correct answer is B because it is red", "B"),
        ("The answer is B blue", "B"),
        ("The answer is A because it is red", "A"),
        ("The answer is A.", "A"),
        (r"The answer is \boxed{B}", "B"),
        ("I choose (D), the last", "D"),
        ("I would go with C", "C"),
        ("So B is correct.", "B"),
        ("(B) is the right answer", "B"),
        ("It must be (B), I think", "B"),
        # The last statement counts, and recited choices do not.
        ("The answer is A? No, the answer is B.", "B"),
        ("A) red\nB) blue\nC) green\nThe answer is C.", "C"),
        ("A) red\nB) blue\nC) green\n\nC", "C"),
        ("(B) blue, since (A) is red", "B"),
    ],
)
def test_choice(text: str, expected: str) -> None:
    assert found(text, "choice") == expected


@pytest.mark.parametrize(
    "text",
    [
        "A dog barks.",
        "A dog.\nA cat.",
        "The answer is A dog",
        "The answer is a dog",
        "Answer: a dog, of course",
        "I choose a dog",
        "Vitamin C is the best",
        "Dogs bark. I like dogs",
        "BAD",
        "Every Cat Does Bark",
        "The answer is Blue",
        "The answer is C++",
        "The answer is D-Day",
        "The answer is B's father",
        "The answer is not B",
        "The answer is B or C",
        "The answer is A and B",
        "Option B is wrong",
        "Option: A is not right",
        "(A) red (B) blue (C) green",
        "A) red\nB) blue\nC) green",
        "e.g. this",
        "F",
        "(F)",
        "Plan B",
    ],
)
def test_choice_is_not_a_capital_letter_in_prose(text: str) -> None:
    assert found(text, "choice") is None


def test_choice_knows_only_its_letters() -> None:
    assert found("The answer is F", {"type": "choice", "letters": "EFG"}) == "F"
    assert found("The answer is B", {"type": "choice", "letters": "EFG"}) is None
    # I is a word as much as A is.
    letters = {"type": "choice", "letters": "ABCDEFGHI"}
    assert found("The answer is I", letters) == "I"
    assert found("The answer is I think", letters) is None


def test_choice_is_fooled_by_a_line_that_begins_like_one() -> None:
    assert found("E. coli is a bacterium", "choice") == "E"


# json


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ('{"answer": "blue"}', "answer", "blue"),
        ('Sure! Here it is: {"answer": " blue "} Hope it helps {x}.', "answer", "blue"),
        ('```json\n{"answer": "blue"}\n```', "answer", "blue"),
        ('{"answer": {"items": [{"x": 1}, {"x": 2.50}]}}', "answer.items.1.x", "2.5"),
        ('{"answer": true}', "answer", "true"),
        ('{"answer": ["a", "é"]}', "answer", '["a", "é"]'),
        ('{"answer": {"b": 1}}', "answer", '{"b": 1}'),
        ('["x", "y"]', "1", "y"),
        ('See [1] and {"other": 2}. {"answer": 3}', "answer", "3"),
        ('{"answer": 1} {"answer": 2}', "answer", "1"),
        ('Braces {like these} or [these, {"answer": "in"}', "answer", "in"),
        ('{"answer": null}', "answer", None),
        ('{"answer": ""}', "answer", None),
        ('{"answers": 1}', "answer", None),
        ('{"answer": [1]}', "answer.1", None),
        ('{"answer": "text"}', "answer.0", None),
        ("{'answer': 1}", "answer", None),
        ('{"answer": "cut o', "answer", None),
        ("[" * 5_000 + '{"answer": 1}', "answer", None),
        ("no JSON", "answer", None),
    ],
)
def test_json(text: str, path: str, expected: str | None) -> None:
    assert found(text, {"type": "json", "path": path}) == expected


# yes_no


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Yes", "yes"),
        ("NO.", "no"),
        ("**No**", "no"),
        ("No, it is not.", "no"),
        ("No it is not", "no"),
        ("No because it rains", "no"),
        ("The answer is no\nbecause it rains", "no"),
        ("It is, so yes", "yes"),
        ("Is it? Yes or no? No", "no"),
        # What only looks like an answer.
        ("There is no evidence", None),
        ("No doubt about it", None),
        ("No-one knows", None),
        ("See no. 5", None),
        ("I do not know", None),
        ("Yesterday, nobody", None),
        ("Answer yes or no", None),
        ("yes/no", None),
        ("neither yes nor no", None),
        ("The answer is not yes", None),
        ("It isn't yes", None),
        # Without either word nothing is guessed, however clear the sentence.
        ("It is not", None),
        ("That is correct", None),
    ],
)
def test_yes_no(text: str, expected: str | None) -> None:
    assert found(text, "yes_no") == expected


def test_yes_no_first_or_last() -> None:
    text = "Yes, it seems. But no, it is not."
    assert found(text, {"type": "yes_no", "which": "first"}) == "yes"
    assert found(text, {"type": "yes_no", "which": "last"}) == "no"


# label


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("entailment", "entailment"),
        ("This is not_entailment.", "not_entailment"),
        ("not entailment", "not_entailment"),
        ("NOT-ENTAILMENT", "not_entailment"),
        ("Highly\nuseful!", "highly useful"),
        ("useful", "useful"),
        ("it is highly  useful", "highly useful"),
        ("highly and useful", "useful"),
        ("-1", "-1"),
        ("C++", "C++"),
        ("first useful, then neutral", "Neutral"),
        ("usefulness", None),
        ("unuseful", None),
        ("nothing", None),
        # A label is found, not understood.
        ("surely not neutral", "Neutral"),
    ],
)
def test_label(text: str, expected: str | None) -> None:
    labels = ["entailment", "not_entailment", "Neutral", "useful", "highly useful", "-1", "C++"]
    for order in (labels, labels[::-1]):
        assert found(text, {"type": "label", "labels": order}) == expected


# lines, code, all


def test_lines_are_the_first_and_last_that_hold_text() -> None:
    text = "\n  one \n\ntwo\n three\n \n"
    assert found(text, "first_line") == "one"
    assert found(text, "last_line") == "three"
    assert found(text, "all") == "one \n\ntwo\n three"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here:\n```sql\nSELECT 1\n```\nDone", "SELECT 1"),
        ("```\nSELECT 1\nFROM t\n```", "SELECT 1\nFROM t"),
        ("  ```\n  x\n  ```", "x"),
        # Cut off by the token limit, or by a stop string that is the fence.
        ("```sql\nSELECT 1", "SELECT 1"),
        ("```\na\n```\nor\n```\nb\n```", "a"),
        ("```\n\n```\nor\n```\nb\n```", "b"),
        ("```\n```", None),
        ("SELECT 1", None),
        ("use `SELECT 1`", None),
    ],
)
def test_code_block(text: str, expected: str | None) -> None:
    assert found(text, "code_block") == expected


# Normalisers and the vote


@pytest.mark.parametrize(
    ("how", "text", "expected"),
    [
        ("none", " A b ", " A b "),
        ("strip", " A b\n", "A b"),
        ("lower", " A B\n", "a b"),
        ("text", "The  cat's, an Apple!", "cats apple"),
        ("text", "theatre", "theatre"),
        ("text", "U.S.A.", "usa"),
        ("text", "An apple-pie (hot)", "applepie hot"),
        ("text", "a—b", "—b"),
        ("number", "1,234.50", "1234.5"),
        ("number", "$1,200.00", "1200"),
        ("number", "12.0", "12"),
        ("number", "+7", "7"),
        ("number", "-0.0", "0"),
        ("number", ".50", "0.5"),
        ("number", "100", "100"),
        ("number", "1e3", "1000"),
        ("number", "0.00", "0"),
        ("number", "12 apples.", "12"),
        ("number", "12 and 12.0", "12"),
        ("number", "50%", "50"),
        ("number", "3/4", "3/4"),
        ("number", " 2 or 3 ", "2 or 3"),
        ("number", " twelve ", "twelve"),
        ("boolean", "Yes.", "true"),
        ("boolean", "FALSE", "false"),
        ("boolean", "0", "false"),
        ("boolean", " maybe ", "maybe"),
    ],
)
def test_normalise(how: str, text: str, expected: str) -> None:
    assert normalise(text, how) == expected


@given(st.text(max_size=60), st.sampled_from(["none", "strip", "text", "number", "boolean"]))
@settings(deadline=None)
def test_normalising_twice_changes_nothing(text: str, how: str) -> None:
    once = normalise(text, how)
    assert normalise(once, how) == once


def test_a_huge_exponent_stays_short() -> None:
    assert len(normalise("1e9999", "number")) < 10


def test_an_unknown_normaliser_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="no normaliser 'upper'"):
        normalise("x", "upper")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["a", "b", "b"], "b"),
        (["b", "a", "a", "b"], "b"),
        (["a", "b", "c"], "a"),
        ([None, None, "c"], "c"),
        ([None, None], None),
        ([], None),
    ],
)
def test_majority(answers: list[str | None], expected: str | None) -> None:
    assert majority(answers) == expected
