import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.exemplars import Selection, Selector
from prompts.items import Item
from prompts.template import ExemplarSettings
from workbench.embedding import embed
from workbench.errors import UserError

POOL = Path("pool.jsonl")
TOPICS = [
    "How long should bread dough rise before baking?",
    "How many minutes does bread dough need to rise before it is baked?",
    "Which team won the football match last night?",
    "What is the fastest train from the airport to the city?",
    "How do I sort a list of numbers in Python?",
    "Is it going to rain in the mountains tomorrow?",
]


def rows(*values: Any, field: str = "question", **more: Any) -> list[Item]:
    return [
        Item(
            f"{field[0]}{n}", {field: value, **{key: each[n - 1] for key, each in more.items()}}, n
        )
        for n, value in enumerate(values, start=1)
    ]


def selector(pool: list[Item], **keys: Any) -> Selector:
    return Selector(ExemplarSettings.model_validate({"pool": "pool.jsonl", **keys}), pool, POOL)


def ids(selection: Selection) -> list[str]:
    return [exemplar.id for exemplar in selection.exemplars]


def item(**fields: Any) -> Item:
    return Item("asked", fields, 9)


ASKED = item(question="Who painted the ceiling of the old chapel?")
POOL_ROWS = rows(*TOPICS, answer=["1 h", "1 h", "ours", "express", "sorted", "no"])


# Selectors


def test_first_n_takes_the_first() -> None:
    assert ids(selector(POOL_ROWS, k=2).select(ASKED)) == ["q1", "q2"]


def test_fixed_takes_the_ids_in_their_order() -> None:
    assert ids(selector(POOL_ROWS, selector="fixed", ids=["q4", "q1"]).select(ASKED)) == [
        "q4",
        "q1",
    ]


def test_random_is_the_same_for_an_item_wherever_it_comes() -> None:
    items = [Item(f"i{n}", {"question": f"Question number {n} of many?"}, n) for n in range(50)]
    choose = selector(POOL_ROWS, selector="random", k=3, seed=1)
    selected = choose.select_all(items)
    assert choose.select_all(items[::-1]) == selected[::-1]
    assert [choose.select(each) for each in items] == selected
    assert len({tuple(ids(each)) for each in selected}) > 20
    other = selector(POOL_ROWS, selector="random", k=3, seed=2).select_all(items)
    assert [ids(each) for each in other] != [ids(each) for each in selected]


def test_random_gives_the_numbers_it_always_gave() -> None:
    assert ids(selector(POOL_ROWS, selector="random", k=3).select(ASKED)) == ["q5", "q2", "q6"]


def test_random_prefers_no_exemplar() -> None:
    items = [Item(str(n), {"question": f"Question number {n} of many?"}, n) for n in range(3_000)]
    chosen = selector(POOL_ROWS, selector="random", k=2).select_all(items)
    counts = Counter(name for each in chosen for name in ids(each))
    # 1,000 expected of each; the standard deviation is 26.
    assert all(abs(count - 1_000) < 130 for count in counts.values())
    first = Counter(ids(each)[0] for each in chosen)
    assert all(abs(count - 500) < 100 for count in first.values())


def test_random_leaves_a_leak_out_and_keeps_the_others() -> None:
    choose = selector(POOL_ROWS, selector="random", k=5, by="question")
    clean = ids(choose.select(ASKED))
    leaking = choose.select(item(question=TOPICS[int(clean[1][1]) - 1]))
    assert leaking.excluded == (clean[1],)
    assert ids(leaking)[:4] == [clean[0], *clean[2:]]


@given(
    labels=st.lists(st.sampled_from("abc"), min_size=1, max_size=12),
    data=st.data(),
    seed=st.integers(0, 5),
)
@settings(deadline=None)
def test_balanced_takes_equally_many_of_each_class(
    labels: list[str], data: st.DataObject, seed: int
) -> None:
    k = data.draw(st.integers(1, len(labels)))
    pool = rows(*[f"Text number {n} of this long pool" for n in range(len(labels))], label=labels)
    chosen = selector(pool, selector="balanced", label="label", k=k, seed=seed).select(ASKED)
    there, taken = Counter(labels), Counter(each.fields["label"] for each in chosen.exemplars)
    assert taken.total() == k
    for label in there:
        for other in there:
            # A class gives way to another only where it has no row left.
            assert taken[label] >= taken[other] - 1 or taken[label] == there[label]


def test_balanced_shows_every_class_to_somebody_when_k_is_smaller() -> None:
    pool = rows(*[f"Text number {n} of this pool" for n in range(4)], label=["a", "b", "c", "d"])
    items = [Item(str(n), {"question": f"Question number {n}?"}, n) for n in range(100)]
    chosen = selector(pool, selector="balanced", label="label", k=2).select_all(items)
    pairs = {tuple(sorted(each.fields["label"] for each in one.exemplars)) for one in chosen}
    assert len(pairs) == 6


def test_knn_takes_the_nearest_in_meaning_first() -> None:
    choose = selector(POOL_ROWS, selector="knn", by="question", k=2)
    baking = item(question="When has my loaf of bread risen enough to go into the oven?")
    sports = item(question="What was the score of yesterday's football game?")
    selected = choose.select_all([baking, sports])
    assert sorted(ids(selected[0])) == ["q1", "q2"]
    assert ids(selected[1])[0] == "q3"
    similar = embed([baking.fields["question"], *TOPICS])
    nearest = np.argsort(-(similar[1:] @ similar[0]))
    assert ids(selected[0]) == [f"q{n + 1}" for n in nearest[:2]]


def test_nearest_last_turns_the_order_round() -> None:
    keys: dict[str, Any] = {"selector": "knn", "by": "question", "k": 4}
    first = ids(selector(POOL_ROWS, **keys).select(ASKED))
    assert ids(selector(POOL_ROWS, **keys, order="nearest_last").select(ASKED)) == first[::-1]


def test_mmr_is_carbonell_and_goldsteins_formula() -> None:
    query = "When has my loaf of bread risen enough to go into the oven?"
    vectors = embed([query, *TOPICS])
    asked, pool = vectors[0], vectors[1:]
    chosen: list[int] = []
    while len(chosen) < 4:
        left = [n for n in range(len(pool)) if n not in chosen]
        scores = [
            0.5 * pool[n] @ asked - 0.5 * max((pool[n] @ pool[m] for m in chosen), default=0)
            for n in left
        ]
        chosen.append(left[int(np.argmax(scores))])
    keys: dict[str, Any] = {"selector": "mmr", "by": "question", "k": 4}
    assert ids(selector(POOL_ROWS, **keys).select(item(question=query))) == [
        f"q{n + 1}" for n in chosen
    ]
    # The two questions about dough say the same, so that only one of them is shown early.
    assert {"q1", "q2"} - set(ids(selector(POOL_ROWS, **keys).select(item(question=query)))[:2])
    last = ids(selector(POOL_ROWS, **keys, order="nearest_last").select(item(question=query)))
    assert last == [f"q{n + 1}" for n in sorted(chosen, key=lambda n: pool[n] @ asked)]


@pytest.mark.parametrize("name", ["knn", "mmr"])
def test_embedding_one_by_one_or_at_once_selects_the_same(name: str) -> None:
    choose = selector(POOL_ROWS, selector=name, by="question", k=3)
    items = [item(question=text) for text in ("Rain?", ASKED.fields["question"], "x " * 300)]
    assert choose.select_all(items) == [choose.select(each) for each in items]
    assert choose.select_all([]) == []


def test_order_random_is_seeded_and_shows_the_same_exemplars() -> None:
    items = [Item(str(n), {"question": f"Question number {n}?"}, n) for n in range(40)]
    choose = selector(POOL_ROWS, k=3, order="random")
    selected = [ids(each) for each in choose.select_all(items)]
    assert all(sorted(each) == ["q1", "q2", "q3"] for each in selected)
    assert len({tuple(each) for each in selected}) == 6
    assert [ids(choose.select(each)) for each in items] == selected


# Leaks


@pytest.mark.parametrize(
    "text",
    [
        TOPICS[0],
        TOPICS[0].upper(),
        TOPICS[0].rstrip("?") + " …",
        "  How  long should bread dough rise,\nbefore baking?",
    ],
)
def test_an_item_never_sees_itself(text: str) -> None:
    for name in ("first_n", "random", "knn", "mmr"):
        for by in ("question",) if name in {"knn", "mmr"} else ("question", None):
            choose = selector(POOL_ROWS, selector=name, by=by, k=5)
            selection = choose.select(item(question=text))
            assert selection.excluded == ("q1",), (name, by)
            assert sorted(ids(selection)) == ["q2", "q3", "q4", "q5", "q6"]


@pytest.mark.parametrize(("words", "excluded"), [(11, ("q1",)), (10, ())])
def test_near_duplicates_share_four_fifths_of_their_three_grams(
    words: int, excluded: tuple[str, ...]
) -> None:
    # Another last word: n - 3 of n - 1 different 3-grams are shared, 8/10 and 7/9.
    text = [f"w{n}" for n in range(words)]
    pool = rows(" ".join(text), "quite another text", "and one more")
    assert selector(pool, k=1).select(item(question=" ".join([*text[:-1], "x"]))).excluded == (
        excluded
    )


@pytest.mark.parametrize(
    ("one", "other", "leak"),
    [
        ("What is 2 + 3 ?", "What is 2 - 3 ?", False),
        ("What is 2 + 3 ?", "what is 2+3", True),
        ("It costs 3.5", "It costs 35", False),
        ("ｆｕｌｌ width letters here", "full width letters here", True),
        ("昨日の夜、私は駅の前で長い間待った", "昨日の夜、私は駅の前で長い間待ったか", True),
        ("昨日の夜、私は駅の前で長い間待った", "今朝、彼は学校で休みます", False),
        ("Great phone", "great phone!", True),
        ("Great phone", "great camera", False),
        ("!!!", "???", False),
    ],
)  # fmt: skip
def test_what_counts_as_the_same_text(one: str, other: str, leak: bool) -> None:
    pool = rows(one, "something else entirely", "and one more text")
    assert (selector(pool, k=1).select(item(question=other)).excluded == ("q1",)) is leak


def test_a_field_that_does_not_tell_rows_apart_is_no_leak() -> None:
    schema = "CREATE TABLE city (name TEXT, country TEXT, inhabitants INTEGER)"
    pool = rows(*TOPICS, schema=[schema] * 6, label=["a", "b"] * 3)
    asked = item(question="How many cities have more than a million inhabitants?", schema=schema)
    assert selector(pool, k=6).select(asked).excluded == ()
    assert selector(pool, k=5).select(item(question=TOPICS[2], schema=schema)).excluded == ("q3",)


def test_a_field_that_tells_rows_apart_is_a_leak_even_under_another_question() -> None:
    passages = [f"In the year {n} the river rose by {n} feet and took the bridge" for n in range(6)]
    pool = rows(*TOPICS, passage=passages)
    asked = item(question="What did the river take?", passage=passages[4])
    assert selector(pool, k=2).select(asked).excluded == ("q5",)
    # Named, the question alone counts.
    assert selector(pool, k=2, by="question").select(asked).excluded == ()


def test_an_equal_answer_is_no_leak() -> None:
    pool = rows(*TOPICS, answer=[1, 2, 3, 4, 5, 6])
    asked = item(question="How many legs has a common spider got?", answer=6)
    assert selector(pool, k=6).select(asked).excluded == ()


def test_short_fields_count_together() -> None:
    pool = [Item(str(n), {"a": n, "b": 2 * n, "tags": ["sum"]}, n) for n in range(1, 7)]
    assert selector(pool, k=3).select(item(a=3, b=6)).excluded == ("3",)
    assert selector(pool, k=3).select(item(a=3, b=4)).excluded == ()
    assert selector(pool, k=3).select(item(a=None)).excluded == ()


def test_leaks_leave_fewer_exemplars_and_say_so() -> None:
    choose = selector(POOL_ROWS, selector="fixed", ids=["q2", "q3", "q1"])
    selection = choose.select(item(question=TOPICS[2]))
    assert (ids(selection), selection.excluded) == (["q2", "q1"], ("q3",))
    # An exemplar that would not be shown anyway is not counted.
    assert choose.select(item(question=TOPICS[4])).excluded == ()


def test_an_item_that_every_exemplar_repeats_is_an_error() -> None:
    with pytest.raises(
        UserError, match=r"pool\.jsonl: every exemplar repeats item 'asked' \(line 9"
    ):
        selector(rows(TOPICS[0]), k=1).select(item(question=TOPICS[0]))


def test_every_leak_is_found_that_comparing_all_pairs_finds() -> None:
    generator = random.Random(0)
    texts = []
    for _ in range(40):
        words = [generator.choice("abcdefgh") for _ in range(30)]
        for changes in range(3):
            copy = list(words)
            for _ in range(changes):
                copy[generator.randrange(30)] = generator.choice("xyz")
            texts.append(copy)

    def grams(words: list[str]) -> set[tuple[str, ...]]:
        return set(zip(words, words[1:], words[2:], strict=False))

    pool = rows(*[" ".join(words) for words in texts])
    choose = selector(pool, k=1)
    found = 0
    for words in texts:
        expected = {
            f"q{n}"
            for n, other in enumerate(texts, start=1)
            if len(grams(words) & grams(other)) / len(grams(words) | grams(other)) >= 0.8
        }
        found += len(expected) - 1
        assert set(choose.select(item(question=" ".join(words))).excluded) == expected
    assert found > 10


# Errors


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"k": 7}, r"pool\.jsonl: has 6 exemplars but exemplars\.k is 7"),
        ({"selector": "fixed", "ids": ["q1", "q9"]}, r"no exemplar 'q9', .* did you mean 'q6'\?"),
        (
            {"selector": "balanced", "label": "answers"},
            r"pool\.jsonl:1: no 'answers', which exemplars\.label names; did you mean 'answer'\?",
        ),
        (
            {"selector": "knn", "by": "text"},
            r"pool\.jsonl:1: no 'text' \(.*\), which exemplars\.by names; it must be a text",
        ),
    ],
)
def test_a_pool_that_does_not_fit_the_settings(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        selector(POOL_ROWS, **keys)


@pytest.mark.parametrize("value", [None, 3, " ", ["a"]])
def test_what_is_embedded_must_be_a_text(value: Any) -> None:
    with pytest.raises(UserError, match=r"pool\.jsonl:2: 'question' is .*exemplars\.by names"):
        selector(rows("a text", value), selector="knn", by="question", k=1)
    choose = selector(POOL_ROWS, selector="knn", by="question")
    with pytest.raises(UserError, match=r"item 'asked' \(line 9\): 'question' is"):
        choose.select(item(question=value))
