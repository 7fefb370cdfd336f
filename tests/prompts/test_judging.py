import json

import pytest

from prompts.cache import Cache
from prompts.cached_model import CachedModel
from prompts.conversations import render_all
from prompts.judging import grade
from prompts.library import Library
from prompts.replies import answer_all
from tests.prompts.gulls import ITEMS, library_in, run, suite_items, suite_of, write_rows


@pytest.fixture
def home(tmp_path):
    return library_in(tmp_path)


def test_assertions_of_suite_and_item_share_the_verdict(home, tiny_llama):
    items = [dict(item) for item in ITEMS]
    items[1]["assert"] = [{"type": "max-tokens", "value": 1, "weight": 3.0}]
    data = write_rows(home / "more.jsonl", items)
    more = "metrics: []\nassertions: [{type: not-contains, value: zebra}]\n"
    suite = suite_of(home, "greedy", more=more)
    _, rows = run(home, suite, tiny_llama, data=data)
    assert [row["passed"] for row in rows] == [True, False, True, True, True]
    assert [row["score"] for row in rows] == [1.0, 0.25, 1.0, 1.0, 1.0]
    assert rows[1]["assertions"] == [
        {"type": "not-contains", "passed": True, "score": 1.0, "weight": 1.0},
        {"type": "max-tokens", "passed": False, "score": 0.0, "weight": 3.0},
    ]
    lenient = suite_of(home, "greedy", more=f"{more}assertion_threshold: 0.25\n")
    _, rows = run(home, lenient, tiny_llama, data=data)
    assert all(row["passed"] for row in rows)


def test_a_judge_reads_the_output_with_a_model_of_its_own(home, tiny_llama, tiny_gpt2):
    more = f"assertions: [{{type: judge, template: t/judge, model: {tiny_gpt2}}}]\n"
    suite = suite_of(home, "greedy", more=more)
    result, rows = run(home, suite, tiny_llama)
    # A random model says neither yes nor no: nothing is supported.
    assert [row["assertions"][0]["passed"] for row in rows] == [False] * 5
    record = json.loads((result.path / "run.json").read_text())
    assert list(record["judges"]) == [str(tiny_gpt2)]
    assert result.generated == 10
    judge = Library(home / "library").get("t/judge")
    model = CachedModel("j", str(tiny_gpt2), Cache(home / "known.sqlite"), precision="fp32")
    read = [type(item)(item.id, {"output": row["output"]}, item.line)
            for item, row in zip(suite_items(suite), rows, strict=True)]  # fmt: skip
    answer_all(model, render_all(judge, read), 1, 0)
    assert model.generated == 0, "the judge should have read these very outputs"


def test_a_judge_may_be_a_model_of_the_run(home, tiny_llama):
    more = "assertions: [{type: judge, template: t/judge, model: tiny}]\n"
    result, _ = run(home, suite_of(home, "greedy", more=more), tiny_llama)
    assert json.loads((result.path / "run.json").read_text())["judges"] == {}
    assert result.generated == 10


@pytest.mark.parametrize(
    ("answer", "number"),
    [("yes", 1.0), ("No", 0.0), ("true", 1.0), ("7.5", 7.5), ("maybe", None), (None, None),
     ("nan", None), ("inf", None)],
)  # fmt: skip
def test_what_a_judge_says_as_a_number(answer, number):
    assert grade(answer) == number
