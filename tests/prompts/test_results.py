import json

import numpy as np
import pytest

from prompts.results import RECORD, RESULTS, Cell, read_record, read_results
from tests.prompts.synthetic import cell, row, write_run
from workbench.errors import UserError


def test_rows_become_cells_in_the_order_of_the_file(tmp_path):
    rows = [
        row(item, item == "b" or repeat == 1, template=template, model=model, repeat=repeat)
        for template in ("t/zero_shot", "t/few_shot")
        for model in ("base", "aligned")
        for item in ("b", "a")
        for repeat in (0, 1)
    ]
    rows[0]["parsed"] = False
    rows[0]["score"] = 0.25
    cells = read_results(write_run(tmp_path, rows))
    assert [(c.template, c.model) for c in cells] == [
        ("t/zero_shot", "base"),
        ("t/zero_shot", "aligned"),
        ("t/few_shot", "base"),
        ("t/few_shot", "aligned"),
    ]
    first = cells[0]
    assert (first.items, first.version, first.repeats) == (["b", "a"], "0123456789ab", 2)
    assert first.name == "t/zero_shot with base"
    assert first.passed.tolist() == [[True, True], [False, True]]
    assert first.score.tolist() == [[0.25, 1.0], [0.0, 1.0]]
    assert first.parsed.tolist() == [[False, True], [True, True]]
    assert [[r.repeat for r in own] for own in first.rows] == [[0, 1], [0, 1]]
    assert first.rows[1][0].output == "The answer is 11."


def test_rows_may_stand_in_any_order(tmp_path):
    rows = [row("a", repeat=1, passed=False), row("a", repeat=0)]
    (found,) = read_results(write_run(tmp_path, rows))
    assert found.passed.tolist() == [[True, False]]


def test_further_keys_are_let_pass(tmp_path):
    (found,) = read_results(write_run(tmp_path, [row(votes=["12", "12"])]))
    assert found.items == ["a01"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": 1.5}, r"results.jsonl:2: score: input should be less than or equal to 1; the"),
        ({"score": "1"}, r"results.jsonl:2: score: input should be a valid number; the file"),
        ({"passed": 1}, r"results.jsonl:2: passed: input should be a valid boolean; the file"),
        ({"target": "12"}, r"results.jsonl:2: target: input should be a valid list; the file"),
        ({"repeat": -1}, r"results.jsonl:2: repeat: input should be greater than or equal to 0"),
        ({"assertions": [{"type": "finished"}]}, r"results.jsonl:2: assertions.0.passed: field"),
        ({"output": "a\ud800"}, r"results.jsonl:2: output: lone surrogate at character 2; the"),
        ({"version": "fedcba987654"}, "rows of version 0123456789ab and fedcba987654; run the"),
        ({"suite": "other"}, "rows of suite arithmetic and other; run the suite again into a new"),
        ({"item": "a01"}, r"results.jsonl:2: item a01, repeat 0 of .* stands already at .*:1;"),
        ({"repeat": 1}, "item a01 of arithmetic/few_shot with base has 1 of 2 repeats; the run"),
        ({"item": "a01", "repeat": 1, "target": ["13"]}, "item a01 of .* has two targets; run"),
    ],
)
def test_a_damaged_row_is_named(tmp_path, change, message):
    run = write_run(tmp_path, [row("a01"), row("a02") | change])
    with pytest.raises(UserError, match=message):
        read_results(run)


def test_a_missing_key_is_named(tmp_path):
    broken = row()
    del broken["flexible"]
    with pytest.raises(UserError, match=r"results.jsonl:1: flexible: field required"):
        read_results(write_run(tmp_path, [broken]))


def test_broken_json_is_named(tmp_path):
    run = write_run(tmp_path, [row()])
    with (run / RESULTS).open("a") as file:
        file.write('{"suite": \n')
    with pytest.raises(UserError, match=r"results.jsonl:2: broken JSON"):
        read_results(run)
    (run / RESULTS).write_text(json.dumps(row()).replace("0.4", "NaN") + "\n")
    with pytest.raises(UserError, match=r"results.jsonl:1: NaN is not JSON"):
        read_results(run)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"results.jsonl: not found; give the folder of a `rlhf"):
        read_results(tmp_path)
    with pytest.raises(UserError, match=r"results.jsonl: holds no results"):
        read_results(write_run(tmp_path, []))


def test_the_record_keeps_what_it_does_not_know(tmp_path):
    record = read_record(write_run(tmp_path, [row()], batch_size=32))
    assert (record.suite, record.models) == ("arithmetic", {"base": {"source": "models/base"}})
    assert record.model_dump()["batch_size"] == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"run.json: invalid JSON"),
        ("[]", r"run.json: .*object"),
        ('{"suite": "a"}', r"run.json: models: field required; the file is damaged, run it again"),
        (
            '{"suite": "a", "models": {}, "thresholds": {"t": 1}}',
            r"run.json: thresholds.t: input should be",
        ),
    ],
)
def test_a_damaged_record_is_named(tmp_path, text, message):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=message):
        read_record(tmp_path)


def test_a_run_without_a_record_was_not_finished(tmp_path):
    with pytest.raises(UserError, match=r"run.json: not found; the run was not finished"):
        read_record(tmp_path)


def test_a_cell_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="2 items do not fit"):
        cell([True], items=["a", "b"])
    with pytest.raises(ValueError, match="0 items"):
        Cell("t", "v", "m", [], *(np.zeros((0, 1)) for _ in range(3)))
    with pytest.raises(ValueError, match="an item id occurs twice"):
        cell([True, False], items=["a", "a"])
    with pytest.raises(ValueError, match="differ in shape"):
        Cell("t", "v", "m", ["a"], np.ones((1, 2), bool), np.ones((1, 1)), np.ones((1, 2), bool))
