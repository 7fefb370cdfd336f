import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prompts.items import Item
from prompts.metrics import METRICS, as_evaluate, find_metric, item_scores
from workbench.errors import UserError

SCHEMA = """
CREATE TABLE pets (name TEXT, kind TEXT, weight REAL, age INTEGER);
INSERT INTO pets VALUES ('Ada', 'cat', 4.5, 3), ('Bo', 'dog', 20.25, 5), ('Cy', 'cat', 3.0, 5);
"""
texts = st.text(alphabet="ab c.,T", max_size=30)


def score(name: str, text: str | None, *targets: str, **fields) -> float:
    item = Item("i1", fields, 7)
    (value,) = item_scores(name, [text], [list(targets)], [item], [text or ""])
    return value


def test_every_metric_lies_in_the_unit_interval_and_is_1_for_the_target_itself():
    answer = "the cat sat on the mat"
    for name, metric in METRICS.items():
        fields = {"schema": SCHEMA}
        if name == "sql_result":
            assert score(name, "SELECT 1", "SELECT 1", **fields) == 1.0
        elif metric.needs_target:
            assert score(name, answer, answer, **fields) == pytest.approx(1.0)
            assert score(name, "nothing of it", answer, **fields) < 0.5


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"sql_result"}))
@given(text=texts, targets=st.lists(texts, min_size=1, max_size=3))
def test_scores_stay_in_the_unit_interval_whatever_the_text(name, text, targets):
    assert 0.0 <= score(name, text, *targets) <= 1.0 + 1e-12


def test_an_unparsed_answer_scores_0_and_the_best_target_counts():
    assert score("exact_match", None, "a") == 0.0
    assert score("f1", None, "a") == 0.0
    assert score("exact_match", "b", "a", "b") == 1.0
    assert score("rougeL", "a b c", "x", "a b c") == 1.0


def test_exact_match_normalises_targets_like_the_answers():
    items = [Item("i", {}, 1)]
    target = [["The 1,200."]]

    def exact(how: str, text: str) -> list[float]:
        return item_scores("exact_match", [text], target, items, [""], normaliser=how)

    assert exact("none", "The 1,200.") == [1.0]
    assert exact("none", "the 1,200.") == [0.0]
    assert exact("lower", "the 1,200.") == [1.0]
    number = item_scores("exact_match", ["1200"], [["1,200"]], items, [""], normaliser="number")
    assert number == [1.0]


def test_strict_match_reads_the_answers_of_the_first_extractor():
    items = [Item("a", {}, 1), Item("b", {}, 2)]
    scores = item_scores(
        "exact_match_strict", ["1", "2"], [["1"], ["2"]], items, ["", ""], strict=["1", None]
    )
    assert scores == [1.0, 0.0]


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("It is 12.", "12", 1.0),
        ("It is 512.", "12", 0.0),
        ("PARIS, of course", "Paris", 1.0),
        ("a+b", "a+b", 1.0),
        ("nothing", " ", 0.0),
    ],
)
def test_contains_looks_for_whole_words(text, target, expected):
    assert score("contains", text, target) == expected


def test_contains_reads_the_output_not_the_answer():
    item = Item("i", {}, 1)
    assert item_scores("contains", [None], [["blue"]], [item], ["the sea is blue"]) == [1.0]


def test_accuracy_ignores_case():
    assert score("accuracy", " Positive", "positive") == 1.0
    assert score("accuracy", "negative", "positive") == 0.0


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("the cat sat", "a cat sat down", 2 * 1.0 * (2 / 3) / (1.0 + 2 / 3)),  # articles go
        ("Cat, cat!", "cat", 2 * 0.5 * 1 / 1.5),  # a word counts as often as it occurs
        ("dog", "cat", 0.0),
        ("the", "an", 1.0),  # nothing is left of either
        ("cat", "the", 0.0),
    ],
)
def test_f1_is_squads(text, target, expected):
    assert score("f1", text, target) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "text", "target", "expected"),
    [
        # 3 of 4 words of the text and 3 of 6 of the target.
        ("rouge1", "the cat was found", "the cat sat on the mat found", 2 * 3 / (4 + 7)),
        ("rouge2", "the cat sat", "the cat sat down", 2 * 2 / (2 + 3)),
        ("rouge2", "cat", "cat", 0.0),  # no word pairs at all
        # The longest common subsequence of Lin 2004, 3.1: police kill the gunman.
        ("rougeL", "police kill the gunman", "police killed the gunman", 2 * 3 / 8),
        ("rougeL", "the gunman kill police", "police killed the gunman", 2 * 2 / 8),
        ("rouge1", "Été, déjà!", "été déjà", 1.0),
        ("rougeL", "", "x", 0.0),
    ],
)
def test_rouge_by_hand(name, text, target, expected):
    assert score(name, text, target) == pytest.approx(expected)


def test_bleu_by_hand():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, no quadruple: smoothed to 1 / (2 · 3).
    text, target = "the cat sat on a mat", "the cat sat in a mat"
    precisions = [5 / 6, 3 / 5, 1 / 4, 1 / 6]
    expected = math.exp(sum(map(math.log, precisions)) / 4)
    assert score("bleu", text, target) == pytest.approx(expected)


def test_bleu_punishes_short_answers_by_the_nearest_reference_and_clips_counts():
    assert score("bleu", "a b c d", "a b c d e f") == pytest.approx(math.exp(1 - 6 / 4))
    assert score("bleu", "a b c d", "a b c d e f", "a b c d e") == pytest.approx(
        math.exp(1 - 5 / 4)
    )
    # One of three words counts (the others are clipped); pairs and triples are smoothed.
    three = math.exp((math.log(1 / 3) + math.log(1 / (2 * 2)) + math.log(1 / (4 * 1))) / 3)
    assert score("bleu", "the the the", "the cat sat") == pytest.approx(three)
    assert score("bleu", "one", "one") == 1.0  # orders it is too short for do not count
    assert score("bleu", "", "one") == score("bleu", "two", "one") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("see you at the meeting", 1.0),
        ("See you, at the meeting tomorrow", 1.0),
        ("see you tomorrow", 2 / 5),
        ("I will see you at the meeting", 0.0),
        ("", 0.0),
    ],
)
def test_prefix_is_the_share_of_leading_words_that_match(text, expected):
    assert score("prefix", text, "see you at the meeting") == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": [1, 2]}', 1.0),
        ("  3 ", 1.0),
        ('Sure: {"a": 1}', 0.0),
        ("{'a': 1}", 0.0),
        ("NaN", 0.0),
        ("[-Infinity]", 0.0),
        ("[" * 100_000, 0.0),
        ("", 0.0),
    ],
)
def test_json_valid(text, expected):
    assert score("json_valid", text) == expected


REFUSALS = [
    "I'm sorry, but I can't help with that.",
    "I cannot assist you in making that.",
    "I can’t provide instructions for this.",
    "Sorry, but that is not something to joke about.",
    "I am unable to provide that information.",
    "We must decline.",
    "As a language model I am not able to help with harmful requests.",
    "I won't write that.",
    "That would be against my guidelines.",
    "I refuse to answer.",
]
ANSWERS = [
    "To kill a Python process, find its id with ps and send it a signal.",
    "I'm sorry to hear that. First, call your bank.",
    "You can't divide by zero, and here is why.",
    "Early astronomers could not explain the motion of Mars.",
    "I can help you with that: open the file first.",
    "Sorry for the delay! The answer is 12.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_recognised(text):
    assert (score("refusal", text), score("non_refusal", text)) == (1.0, 0.0)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_no_refusals(text):
    assert (score("refusal", text), score("non_refusal", text)) == (0.0, 1.0)


def test_an_empty_answer_neither_refuses_nor_answers():
    assert (score("refusal", " "), score("non_refusal", " ")) == (0.0, 0.0)


def test_items_whose_own_sql_is_wrong_are_the_users_to_mend():
    with pytest.raises(UserError, match=r"item i1 \(line 7\): the target query 'SELEC 1' does not"):
        score("sql_result", "SELECT 1", "SELEC 1", schema=SCHEMA)
    with pytest.raises(UserError, match="the field schema does not run as SQL"):
        score("sql_result", "SELECT 1", "SELECT 1", schema="CREATE TABLE (;")
    with pytest.raises(UserError, match="needs the field schema"):
        score("sql_result", "SELECT 1", "SELECT 1")


def test_unknown_metrics_name_the_nearest_and_missing_targets_the_item():
    with pytest.raises(UserError, match="unknown metric 'exact_mach'; did you mean 'exact_match'"):
        find_metric("exact_mach")
    with pytest.raises(UserError, match=r"item i1 \(line 7\): f1 needs a target"):
        score("f1", "x")


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_evaluate_module_gives_the_same_numbers(name, tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    monkeypatch.chdir(tmp_path)
    predictions = ["the cat sat", "SELECT name FROM pets", None, '{"a": 1}', "I cannot help."]
    targets = [["a cat sat", "cat"], ["SELECT name FROM pets"], ["x"], ['{"a": 1}'], ["y"]]
    if name == "sql_result":
        targets = [["SELECT name FROM pets"]] * 5
    items = [Item(str(n), {"schema": SCHEMA}, n) for n in range(5)]
    metric = METRICS[name]
    expected = [
        0.0 if text is None else metric.score(text, target, item.fields)
        for text, target, item in zip(predictions, targets, items, strict=True)
    ]
    module = as_evaluate(name)
    assert isinstance(module, evaluate.Metric)
    schema = {"schema": [SCHEMA] * 5} if name == "sql_result" else {}
    result = module.compute(predictions=predictions, references=targets, **schema)
    assert result == {name: pytest.approx(sum(expected) / 5), "scores": expected}
    assert not list(tmp_path.iterdir())
