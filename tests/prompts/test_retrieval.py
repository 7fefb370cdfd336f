import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.items import Item
from prompts.retrieval import (
    DocumentFolder,
    average_precision,
    evaluate_retrieval,
    passages,
    recall_at,
)
from prompts.template import DocumentSettings
from workbench.embedding import embed
from workbench.errors import UserError
from workbench.statistics import bootstrap_mean

LEAVE = """# Leave

Every employee has twenty-eight days of paid holiday a year.

Up to five days may be carried over into the next year.

## Illness

Call your manager before ten o'clock if you are ill.
"""
TRAVEL = "Train tickets are booked by the office.\n\nHotels may cost up to 120 euros a night.\n"
ROWS = Path("labelled.jsonl")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "documents" / "handbook"
    (folder / "more").mkdir(parents=True)
    (folder / "leave.md").write_text(LEAVE)
    (folder / "more" / "travel.txt").write_text(TRAVEL)
    return tmp_path


def opened(base: Path, k: int = 2, words: int = 12) -> DocumentFolder:
    settings = DocumentSettings(folder="documents/handbook", query="question", k=k, words=words)
    return DocumentFolder(settings, base)


def asked(*rows: Mapping[str, object]) -> list[Item]:
    return [Item(str(line), dict(row), line) for line, row in enumerate(rows, start=1)]


# Passages


def test_passages_are_named_by_file_and_number(base: Path) -> None:
    assert opened(base).texts == {
        "leave.md#1": "# Leave\n\nEvery employee has twenty-eight days of paid holiday a year.",
        "leave.md#2": "Up to five days may be carried over into the next year.",
        "leave.md#3": "## Illness\n\nCall your manager before ten o'clock if you are ill.",
        "more/travel.txt#1": "Train tickets are booked by the office.",
        "more/travel.txt#2": "Hotels may cost up to 120 euros a night.",
    }


def test_paragraphs_are_put_together_while_they_fit() -> None:
    assert list(passages("a b\n\nc d e\n  \nf\n\n\ng", 5)) == ["a b\n\nc d e", "f\n\ng"]
    assert list(passages("a b\n\nc d e f", 5)) == ["a b", "c d e f"]


def test_a_heading_begins_a_passage_with_the_headings_below_it() -> None:
    text = "# One\n\n## Part\n\ntext\n\n# Two\nmore\n\nend\n\n#hashtag"
    assert list(passages(text, 50)) == [
        "# One\n\n## Part\n\ntext",
        "# Two\nmore\n\nend\n\n#hashtag",
    ]


def test_a_long_paragraph_is_cut_between_sentences() -> None:
    text = 'One two three. "Four five!" Six seven eight\nnine? Ten.'
    assert list(passages(text, 5)) == [
        'One two three. "Four five!"',
        "Six seven eight\nnine? Ten.",
    ]


def test_a_long_list_or_table_is_cut_between_its_lines() -> None:
    text = "- one two three\n- four five\n  six\n- seven"
    assert list(passages(text, 5)) == ["- one two three", "- four five\n  six", "- seven"]
    table = "| a | b |\n| - | - |\n| 1 | 2 |\n"
    assert list(passages(table, 10)) == ["| a | b |\n| - | - |", "| 1 | 2 |"]


def test_a_long_sentence_is_cut_between_words() -> None:
    assert list(passages("a b c d e f g. h", 3)) == ["a b c", "d e f", "g. h"]


@given(
    st.lists(st.sampled_from(["a", "b.", "# c", "\n\n", "\n", "- d", "e?"]), max_size=60),
    st.integers(1, 12),
)
@settings(deadline=None)
def test_passages_hold_every_word_once_in_order_and_are_never_too_long(
    pieces: list[str], words: int
) -> None:
    text = " ".join(pieces)
    found = list(passages(text, words))
    assert " ".join(found).split() == text.split()
    assert all(0 < len(passage.split()) <= words for passage in found)
    assert all(passage == passage.strip() for passage in found)
    for paragraph in text.replace(" \n \n ", "\n\n").split("\n\n"):
        if paragraph.strip() and len(paragraph.split()) <= words:
            assert any(" ".join(paragraph.split()) in " ".join(p.split()) for p in found)


def test_hidden_files_are_passed_over_and_other_files_are_named(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = base / "documents" / "handbook"
    (folder / ".notes.md").write_text("hidden")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.md").write_text("hidden")
    with caplog.at_level(logging.WARNING):
        assert len(opened(base).texts) == 5
        assert not caplog.records
        (folder / "scan.pdf").write_bytes(b"%PDF")
        assert len(opened(base).texts) == 5
    assert "1 files are neither .md nor .txt (such as scan.pdf) and are not searched" in caplog.text


def test_a_byte_order_mark_is_no_text(base: Path) -> None:
    (base / "documents" / "handbook" / "bom.md").write_bytes("\ufeff# Title\n\nText".encode())
    assert opened(base).texts["bom.md#1"] == "# Title\n\nText"


def test_folders_without_text_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "documents" / "handbook"
    with pytest.raises(UserError, match="handbook: no such folder"):
        opened(tmp_path)
    folder.mkdir(parents=True)
    with pytest.raises(UserError, match=r"handbook: no \.md or \.txt files"):
        opened(tmp_path)
    (folder / "a.md").write_text("\n \n")
    with pytest.raises(UserError, match="handbook: the documents hold no text"):
        opened(tmp_path)
    (folder / "a.md").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.md: not UTF-8"):
        opened(tmp_path)


# Search


def test_search_finds_the_passage_that_answers(base: Path) -> None:
    found = opened(base).search("What is the limit for a hotel room?")
    assert found[0].source == "more/travel.txt#2"
    assert found[0].text == "Hotels may cost up to 120 euros a night."
    assert len(found) == 2
    assert 1 >= found[0].score >= found[1].score


def test_scores_are_exact_cosines_in_falling_order(base: Path) -> None:
    folder = opened(base)
    query = "How many days off do I get?"
    cosines = embed(list(folder.texts.values())) @ embed([query])[0]
    found = folder.search(query, k=99)
    expected = sorted(zip(cosines, folder.texts, strict=True), reverse=True)
    assert [passage.source for passage in found] == [source for _, source in expected]
    assert [passage.score for passage in found] == pytest.approx(
        [cosine for cosine, _ in expected], abs=1e-5
    )
    assert folder.search("I shall be ill", k=1)[0].source == "leave.md#3"


def test_a_passage_finds_itself_with_a_score_of_one(base: Path) -> None:
    folder = opened(base)
    for (source, text), found in zip(
        folder.texts.items(), folder.search_all(list(folder.texts.values()), 1), strict=True
    ):
        assert (found[0].source, found[0].text) == (source, text)
        assert found[0].score == pytest.approx(1, abs=1e-4)


def test_queries_at_once_or_one_by_one_find_the_same(base: Path) -> None:
    folder = opened(base, k=3)
    queries = ["Hotels?", "How long is the holiday of an employee who has been here a year?"]
    assert folder.search_all(queries) == [folder.search(query) for query in queries]
    assert folder.search_all([]) == []


def test_an_empty_query_is_an_error(base: Path) -> None:
    with pytest.raises(UserError, match=r"documents\.query: 'question' is empty"):
        opened(base).search(" ")


# Measures


@pytest.mark.parametrize(
    ("relevant", "ranked", "expected"),
    [
        ("a", "abc", 1),
        ("b", "abc", 1 / 2),
        ("ab", "abc", 1),
        ("ac", "abc", (1 + 2 / 3) / 2),
        ("bc", "abc", (1 / 2 + 2 / 3) / 2),
        ("ax", "abc", 1 / 2),
        ("x", "abc", 0),
        ("x", "", 0),
    ],
)
def test_average_precision(relevant: str, ranked: str, expected: float) -> None:
    assert average_precision(list(relevant), list(ranked)) == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=30).filter(any))
@settings(deadline=None)
def test_average_precision_is_that_of_scikit_learn(hits: list[bool]) -> None:
    from sklearn.metrics import average_precision_score

    ranked = [str(n) for n in range(len(hits))]
    relevant = [source for source, hit in zip(ranked, hits, strict=True) if hit]
    expected = average_precision_score(hits, -np.arange(len(hits)))
    assert average_precision(relevant, ranked) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("k", "relevant", "expected"),
    [(1, "a", 1), (1, "b", 0), (2, "b", 1), (1, "ab", 1 / 2), (3, "abx", 2 / 3), (9, "c", 1)],
)
def test_recall(k: int, relevant: str, expected: float) -> None:
    assert recall_at(k, list(relevant), list("abc")) == pytest.approx(expected)


def test_measures_refuse_what_they_cannot_mean() -> None:
    with pytest.raises(ValueError, match="relevant must be a collection"):
        average_precision([], ["a"])
    with pytest.raises(ValueError, match="relevant must be a collection"):
        average_precision("leave.md#1", ["a"])
    with pytest.raises(ValueError, match="names a source twice"):
        recall_at(1, ["a"], ["a", "a"])
    with pytest.raises(ValueError, match="k must be at least 1"):
        recall_at(0, ["a"], ["a"])


def test_evaluation_averages_over_queries_with_intervals(base: Path) -> None:
    folder = opened(base, k=2)
    rows = asked(
        {"question": "What may a hotel cost?", "relevant": "more/travel.txt#2"},
        {"question": "Whom do I call when I am ill?", "relevant": ["leave.md#3"]},
        {"question": "Who books train tickets?", "relevant": ["leave.md#1", "more/travel.txt#1"]},
    )
    measured = evaluate_retrieval(folder, rows, ROWS, ks=(1, 5))
    assert list(measured) == ["map", "recall@1", "recall@2", "recall@5"]
    ranked = [each.source for each in folder.search("Who books train tickets?", 5)]
    third = (1 + 2 / (1 + ranked.index("leave.md#1"))) / 2
    assert ranked[0] == "more/travel.txt#1"
    assert measured["map"] == bootstrap_mean([1, 1, third])
    assert measured["recall@1"] == bootstrap_mean([1, 1, 1 / 2])
    assert measured["recall@5"].value == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"relevant": ["leave.md#1"]}, r"labelled\.jsonl:2: 'question' is None"),
        ({"question": " ", "relevant": ["leave.md#1"]}, r"labelled\.jsonl:2: 'question' is ' '"),
        ({"question": "x"}, r"labelled\.jsonl:2: 'relevant' is None"),
        ({"question": "x", "relevant": []}, r"labelled\.jsonl:2: 'relevant' is \[\]"),
        (
            {"question": "x", "relevant": ["leave.md#9"]},
            r"labelled\.jsonl:2: .*no passage 'leave\.md#9' \(passages of 12 words\); did you mean",
        ),
    ],
)
def test_rows_that_are_no_labelled_queries(
    base: Path, row: dict[str, object], message: str
) -> None:
    good = {"question": "Hotels?", "relevant": "more/travel.txt#2"}
    with pytest.raises(UserError, match=message):
        evaluate_retrieval(opened(base), asked(good, row), ROWS)
    with pytest.raises(UserError, match=r"labelled\.jsonl: 1 labelled queries give no interval"):
        evaluate_retrieval(opened(base), asked(good), ROWS)
