import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prompts.cached_model import CachedModel
from prompts.results import read_results
from prompts.runner import run_folder, run_suite
from tests.prompts.gulls import ITEMS, TEMPLATES, library_in, run, suite_of, write_rows
from workbench.errors import UserError
from workbench.files import damage


@pytest.fixture
def home(tmp_path):
    return library_in(tmp_path)


def test_a_run_is_one_row_per_template_model_item_and_repeat(home, tiny_llama, tiny_gpt2):
    suite = suite_of(home, "sampled", "greedy", more="repeats: 2\n")
    models = {"b": str(tiny_llama), "a": str(tiny_gpt2)}
    result = run_suite(suite, models, home / "out", cache=home / "known.sqlite", precision="fp32")
    rows = [json.loads(line) for line in (home / "out" / "results.jsonl").open()]
    assert [(r["template"], r["model"], r["item"], r["repeat"]) for r in rows] == [
        (template, model, item["id"], repeat)
        for template, repeats in (("t/sampled", 2), ("t/greedy", 1))  # greedy repeats are one
        for model in models
        for item in ITEMS
        for repeat in range(repeats)
    ]
    assert result.generated == len(rows) == 30
    assert list(rows[0]) == [
        "suite", "template", "version", "model", "item", "repeat", "output", "rationale", "strict",
        "flexible", "target", "parsed", "finished", "prompt_tokens", "tokens", "seconds", "share",
        "scores", "assertions", "score", "passed", "choices",
    ]  # fmt: skip
    assert rows[0]["target"] == ["0"]
    assert rows[0]["prompt_tokens"] > 10
    assert 1 <= rows[0]["tokens"] <= 8
    assert rows[0]["flexible"] == rows[0]["output"]
    cells = read_results(home / "out")
    assert [(cell.template, cell.model, cell.passed.shape) for cell in cells] == [
        ("t/sampled", "b", (5, 2)), ("t/sampled", "a", (5, 2)),
        ("t/greedy", "b", (5, 1)), ("t/greedy", "a", (5, 1)),
    ]  # fmt: skip
    assert damage(home / "out") is None


def test_the_record_says_what_was_run(home, tiny_llama):
    suite = suite_of(home, "few", "greedy", more="seed: 3\n")
    result, _ = run(home, suite, tiny_llama)
    record = json.loads((result.path / "run.json").read_text())
    assert record["suite"] == "gulls"
    assert record["suite_file"]["path"] == str(home / "gulls.yaml")
    assert record["data"]["items"] == 5
    assert record["models"]["tiny"]["source"] == str(tiny_llama)
    assert record["models"]["tiny"]["dtype"] == "float32"
    assert len(record["models"]["tiny"]["content_hash"]) == 16
    assert record["templates"]["t/few"]["excluded_exemplars"] == 1  # "… on 3 gates?"
    assert len(record["templates"]["t/few"]["version"]) == 12
    assert (record["seed"], record["repeats"], record["generated"], record["cached"]) == (
        3,
        1,
        10,
        0,
    )
    assert {"torch", "transformers", "rlhf-workbench"} <= set(record["versions"])
    assert record["thresholds"]["t/greedy"] == {"pass_rate": 0.0, "unparsed_rate": 1.0}


def test_a_second_run_generates_nothing_and_says_the_same(home, tiny_llama, monkeypatch):
    suite = suite_of(home, *(name.removeprefix("t/") for name in TEMPLATES if name != "t/judge"),
                     more="repeats: 2\ntarget: right\n")  # fmt: skip
    first, rows = run(home, suite, tiny_llama)
    assert first.generated > 60
    # The votes of self-consistency begin with the samples of the same prompt that are known.
    assert first.cached == 10
    monkeypatch.setattr("workbench.generation.generate", None)
    monkeypatch.setattr("workbench.likelihood.answer_logprobs", None)
    again, same = run(home, suite, tiny_llama, "again")
    assert (again.generated, again.cached) == (0, first.generated + first.cached)
    assert same == rows


def test_foreign_data_are_mapped_to_the_fields_of_the_templates(home, tiny_llama):
    foreign = [
        {"prompt": [{"role": "user", "content": item["question"]}], "good": "two", "bad": "none"}
        for item in ITEMS
    ]
    data = write_rows(home / "foreign.jsonl", foreign)
    fields = {"question": "prompt[0].content", "options": "[bad, good]", "answer": "bad"}
    suite = suite_of(home, "greedy", "ranked")
    result, rows = run(home, suite, tiny_llama, data=data, fields=fields, target="good")
    assert [row["item"] for row in rows] == [str(n) for n in range(1, 6)] * 2
    assert all(row["target"] == ["two"] for row in rows)
    assert [[each["text"] for each in row["choices"]] for row in rows[5:]] == [["none", "two"]] * 5
    _, own = run(home, suite_of(home, "greedy"), tiny_llama, "own")
    assert [row["output"] for row in rows[:5]] == [row["output"] for row in own]
    record = json.loads((result.path / "run.json").read_text())
    assert (record["fields"], record["target"]) == (fields, "good")
    _, rows = run(home, suite, tiny_llama, data=data, fields=fields)
    assert all(row["target"] == ["none"] for row in rows)
    with pytest.raises(UserError, match=r"foreign.jsonl:1: item 1 has no field 'goo', the target"):
        run(home, suite, tiny_llama, data=data, fields=fields, target="goo")


def test_an_answer_passes_when_score_and_assertions_do(home, tiny_llama):
    suite = suite_of(home, "greedy")
    _, rows = run(home, suite, tiny_llama)
    right = [{**item, "answer": row["output"]} for item, row in zip(ITEMS, rows, strict=True)]
    right[2]["answer"] = "x " + rows[2]["output"]
    data = write_rows(home / "right.jsonl", right)
    _, rows = run(home, suite, tiny_llama, data=data)
    assert [row["passed"] for row in rows] == [True, True, False, True, True]
    assert [row["scores"] for row in rows] == [{"exact_match": row["score"]} for row in rows]
    never = suite_of(home, "greedy", more="assertions: [{type: contains, value: zebra}]\n")
    _, rows = run(home, never, tiny_llama, data=data)
    assert not any(row["passed"] for row in rows)
    fuzzy = suite_of(home, "greedy", more="metrics: [rougeL, exact_match]\npass_at: 0.3\n")
    _, rows = run(home, fuzzy, tiny_llama, data=data)
    assert list(rows[2]["scores"]) == ["rougeL", "exact_match"]
    assert rows[2]["score"] == rows[2]["scores"]["rougeL"] > 0.3
    assert rows[2]["passed"]


def test_an_interrupted_run_leaves_no_folder_and_goes_on_where_it_was(
    home, tiny_llama, monkeypatch
):
    suite = suite_of(home, "greedy", "sampled")
    compute, calls = CachedModel._generate, []

    def interrupted(self, batch, *settings):
        calls.append(len(batch))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return compute(self, batch, *settings)

    monkeypatch.setattr(CachedModel, "_generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(home, suite, tiny_llama, batch_size=2)
    assert not (home / "out").exists()
    monkeypatch.setattr(CachedModel, "_generate", compute)
    result, rows = run(home, suite, tiny_llama, batch_size=2)
    assert (result.generated, result.cached) == (5, 5)
    assert len(rows) == 10


def test_a_run_replaces_only_a_run_of_its_own_suite(home, tiny_llama):
    suite = suite_of(home, "greedy")
    run(home, suite, tiny_llama)
    run(home, suite, tiny_llama)
    with pytest.raises(UserError, match=r"out: holds a run of suite gulls; choose another"):
        run(home, suite_of(home, "greedy", name="other"), tiny_llama)
    (home / "mine").mkdir()
    run(home, suite, tiny_llama, "mine")
    (home / "photos").mkdir()
    (home / "photos" / "gull.jpg").write_text("…")
    with pytest.raises(UserError, match=r"photos: holds something else"):
        run(home, suite, tiny_llama, "photos")
    with pytest.raises(UserError, match=r"items.jsonl: holds something else"):
        run(home, suite, tiny_llama, "items.jsonl")
    assert (home / "photos" / "gull.jpg").exists()


def test_runs_are_named_after_suite_and_time_or_name():
    assert run_folder("gulls", "nightly") == Path("runs/prompts/gulls-nightly")
    stamp = run_folder("gulls").name.removeprefix("gulls-")
    assert abs(time.mktime(time.strptime(stamp, "%Y%m%d-%H%M%S")) - time.time()) < 60
    with pytest.raises(UserError, match=r"run name '\.\./x'"):
        run_folder("gulls", "../x")


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "no models"),
        ({"a/b": "x"}, "model name 'a/b'"),
        ({"": "x"}, "model name ''"),
        ({"m": "runs/nowhere/model"}, "runs/nowhere/model: no such folder"),
    ],
)
def test_wrong_models_are_refused_before_anything_is_computed(home, models, message):
    with pytest.raises(UserError, match=message):
        run_suite(suite_of(home, "greedy"), models, home / "out", cache=None)
    assert not (home / "out").exists()


@pytest.mark.parametrize(
    ("change", "template", "message"),
    [
        ({"options": "one"}, "ranked", r"item i2 \(line 3\): field 'options' is 'one'"),
        ({"options": ["one"]}, "ranked", "give at least two, all different"),
        ({"options": ["a", "a"]}, "ranked", "give at least two, all different"),
        ({"options": ["a", ""]}, "ranked", "a list of texts, none empty"),
        (
            {"right": "five"},
            "ranked",
            r"odd.jsonl:3: item i2: target 'five' is none of the choices",
        ),
        ({"right": 3}, "ranked", r"odd.jsonl:3: item i2: target '3' is none of the choices"),
        ({"question": 5}, "greedy", "'i2'"),
        ({"right": None}, "greedy", r"odd.jsonl:3: right is None"),
        ({"assert": [{"type": "x"}]}, "greedy", r"odd.jsonl:3: assert.0.type: unknown assertion"),
    ],
)
def test_a_wrong_item_names_its_line_and_writes_nothing(
    home, tiny_llama, change, template, message
):
    rows = [dict(item) for item in ITEMS]
    rows[2] |= change
    data = write_rows(home / "odd.jsonl", rows)
    with pytest.raises(UserError, match=message):
        run(home, suite_of(home, template, more="target: right\n"), tiny_llama, data=data)
    assert not (home / "out").exists()
    assert not (home / "known.sqlite").exists(), "found before anything is computed"


@pytest.mark.parametrize("options", [{"repeats": 0}, {"batch_size": 0}, {"limit": 0}])
def test_impossible_numbers_are_refused(home, tiny_llama, options):
    with pytest.raises(UserError, match=r"at least 1|leaves no items"):
        run(home, suite_of(home, "greedy"), tiny_llama, **options)


def test_a_fully_cached_run_of_1000_items_ends_in_seconds_with_its_imports(home, tiny_llama):
    rows = [{**ITEMS[0], "id": f"i{n}", "question": f"Gulls on {n}?"} for n in range(1_000)]
    data = write_rows(home / "many.jsonl", rows)
    suite = suite_of(home, "short", more="metrics: [exact_match, rougeL, bleu]\n")
    first, _ = run(home, suite, tiny_llama, data=data, batch_size=250, precision="bf16")
    assert first.generated == 1_000
    script = f"""
from pathlib import Path
from prompts.library import Library
from prompts.runner import run_suite
from prompts.suite import load_suite
home = Path({str(home)!r})
suite = load_suite(home / "gulls.yaml", Library(home / "library"))
models = {{"tiny": {str(tiny_llama)!r}}}
print(run_suite(suite, models, home / "again", cache=home / "known.sqlite",
                data=home / "many.jsonl").cached)
"""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    after = os.times()
    assert (done.stdout.strip(), done.returncode) == ("1000", 0), done.stderr
    # Processor time of the child, so that a busy machine does not fail it.
    used = after.children_user + after.children_system
    assert used - before.children_user - before.children_system < 5
