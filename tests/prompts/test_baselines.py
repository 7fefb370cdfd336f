import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prompts.baselines import bless, load_baseline
from prompts.comparison import compare_runs
from prompts.items import load_items
from prompts.library import Library
from prompts.results import read_results
from prompts.suite import find_suite, load_suite, targets_of
from prompts.versions import content_hash
from tests.prompts.synthetic import row, write_run
from workbench.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    rows = [
        row(
            item,
            passed=item != "a02",
            template=template,
            model=model,
            repeat=repeat,
            rationale="Count them.\nThen add." if template == "arithmetic/zero_shot_cot" else None,
            choices=[{"text": "12", "logprob": -1.25, "bytes": 2}],
            assertions=[{"type": "finished", "passed": True, "score": 1.0, "weight": 2.0}],
        )
        for template in ("arithmetic/zero_shot_cot", "arithmetic/few_shot")
        for model in ("base", "aligned")
        for item in ("a03", "a01", "a02")
        for repeat in (0, 1)
    ]
    return write_run(tmp_path / "run", rows)


def test_the_committed_baseline_is_of_the_suite_as_it_is():
    suite = load_suite(find_suite("smoke"), Library())
    found = load_baseline(ROOT / "prompts" / "baselines", suite.name, "base")
    again = "run the suite and bless a new baseline"
    versions = {entry.name: content_hash(entry.template) for entry in suite.entries}
    assert found.templates == versions, again
    items = load_items(suite.data)
    accepted = targets_of(suite, items, suite.data)
    targets = {item.id: target for item, target in zip(items, accepted, strict=True)}
    for cell in found.cells:
        assert {rows[0].item: rows[0].target for rows in cell.rows} == targets, again
        # With much less right, no drop could be found among twelve.
        assert cell.passed.sum() >= 11


def test_a_fall_can_be_found_in_the_committed_baseline_and_rounding_is_none():
    cells = load_baseline(ROOT / "prompts" / "baselines", "smoke", "base").cells

    def verdict(lost: int) -> str:
        passed = cells[0].passed.copy()
        passed[:lost] = False
        fallen = [replace(cells[0], passed=passed, score=passed.astype(float)), *cells[1:]]
        return compare_runs(cells, fallen).cells[0].verdict

    assert [verdict(lost) for lost in (0, 1, 3, 6)] == ["no evidence"] * 4
    assert [verdict(lost) for lost in (7, 9, 12)] == ["regression"] * 3


def test_what_was_blessed_is_what_is_loaded(run, tmp_path):
    path = bless(run, "base", tmp_path / "baselines", by="Ada", note="first one")
    assert path == tmp_path / "baselines" / "arithmetic" / "base.json"
    found = load_baseline(tmp_path / "baselines", "arithmetic", "base")
    assert (found.suite, found.model, found.by, found.note) == (
        "arithmetic",
        "base",
        "Ada",
        "first one",
    )
    assert found.at.endswith("+00:00")
    assert found.templates == dict.fromkeys(
        ["arithmetic/few_shot", "arithmetic/zero_shot_cot"], "0123456789ab"
    )
    assert found.run["model"] == {"source": "models/base"}
    assert found.run["git_commit"] == "f" * 40
    blessed = {c.template: c for c in read_results(run) if c.model == "base"}
    assert [c.template for c in found.cells] == sorted(blessed)
    for cell in found.cells:
        original = blessed[cell.template]
        order = [original.items.index(item) for item in cell.items]
        assert cell.items == ["a01", "a02", "a03"]
        assert (cell.version, cell.model) == (original.version, "base")
        np.testing.assert_array_equal(cell.passed, original.passed[order])
        np.testing.assert_array_equal(cell.score, original.score[order])
        np.testing.assert_array_equal(cell.parsed, original.parsed[order])
        for mine, index in zip(cell.rows, order, strict=True):
            lean = {"seconds": None, "share": None, "choices": None}
            assert list(mine) == [r.model_copy(update=lean) for r in original.rows[index]]


def test_a_run_does_not_differ_from_its_own_baseline(run, tmp_path):
    bless(run, "aligned", tmp_path, by="Ada")
    cells = [cell for cell in read_results(run) if cell.model == "aligned"]
    found = compare_runs(load_baseline(tmp_path, "arithmetic", "aligned").cells, cells)
    assert [(c.p, c.changed()) for c in found.cells] == [(1.0, [])] * 2
    assert (found.baseline_only, found.candidate_only) == ((), ())


def test_the_file_is_text_with_one_item_a_line(run, tmp_path):
    text = bless(run, "base", tmp_path, by="Ada").read_text(encoding="utf-8")
    lines = text.splitlines()
    places = [n for n, line in enumerate(lines) if line.startswith('{"template"')]
    assert len(places) == 6
    assert places == list(range(places[0], places[0] + 6))
    names = [json.loads(lines[n].rstrip(",")) for n in places]
    keys = [(line["template"], line["item"]) for line in names]
    assert keys == sorted(keys)
    assert text.endswith("]\n}\n")
    # What differs from machine to machine, or says where somebody works, stays out.
    for word in ("seconds", "share", "logprob", "/home/"):
        assert word not in text


def test_blessing_again_changes_only_the_date(run, tmp_path):
    first = bless(run, "base", tmp_path, by="Ada").read_text().splitlines()
    second = bless(run, "base", tmp_path, by="Ada").read_text().splitlines()
    assert {a.partition(":")[0] for a, b in zip(first, second, strict=True) if a != b} <= {'"at"'}


def test_a_changed_answer_changes_one_line(run, tmp_path):
    first = bless(run, "base", tmp_path, by="Ada").read_text().splitlines()
    results = run / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    rows[0]["output"] = "Twelve, it is."
    write_run(run, rows)
    second = bless(run, "base", tmp_path, by="Ada").read_text().splitlines()
    changed = [b for a, b in zip(first, second, strict=True) if a != b and '"at"' not in a]
    assert len(changed) == 1
    assert "Twelve, it is." in changed[0]


def test_nobody_blesses_by_accident(run, tmp_path):
    with pytest.raises(UserError, match="say who blesses the run, with --by NAME"):
        bless(run, "base", tmp_path, by=" ")
    with pytest.raises(UserError, match="no results of model 'bass'; it has aligned, base"):
        bless(run, "bass", tmp_path, by="Ada")
    assert not (tmp_path / "arithmetic").exists()


def test_a_run_of_two_suites_is_refused(run, tmp_path):
    write_run(run, [row()], suite="sentiment")
    with pytest.raises(UserError, match=r"run.json is of suite sentiment, the results of arith"):
        bless(run, "base", tmp_path, by="Ada")


def test_an_unfinished_run_is_not_blessed(run, tmp_path):
    (run / "run.json").unlink()
    with pytest.raises(UserError, match="the run was not finished"):
        bless(run, "base", tmp_path, by="Ada")


@pytest.mark.parametrize("name", ["../base", "a/b", "", ".hidden", "a b"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"cannot name a file of the baselines"):
        load_baseline(tmp_path, "arithmetic", name)
    with pytest.raises(UserError, match=r"suite '.*' cannot name a file"):
        load_baseline(tmp_path, name, "base")
    run = write_run(tmp_path / "run", [row(model=name)])
    with pytest.raises(UserError, match=r"model '.*' cannot name a file"):
        bless(run, name, tmp_path / "baselines", by="Ada")


def test_a_missing_baseline_names_those_there_are(run, tmp_path):
    with pytest.raises(UserError, match=r"base.json: no such baseline; bless a run with `rlhf"):
        load_baseline(tmp_path, "arithmetic", "base")
    bless(run, "aligned", tmp_path, by="Ada")
    with pytest.raises(UserError, match="no such baseline; there are baselines of aligned; bless"):
        load_baseline(tmp_path, "arithmetic", "base")


def test_a_folder_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"base.json: cannot be written .* --baselines"):
        bless(run, "base", tmp_path / "file", by="Ada")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"suite"', '"sweet"', "base.json: .*; the file is damaged, take it from version control"),
        ('{\n"suite"', '"suite"', "base.json: invalid JSON"),
        (
            '"score": 1.0, "passed"',
            '"score": 7, "passed"',
            r"item 1 \(a01\): .*score: .* less than or equal to 1",
        ),
        ('"strict": "12"', '"strict": 12', r"item 1 \(a01\): strict: input should be a valid str"),
        (
            '"arithmetic/few_shot": "0123456789ab", ',
            "",
            r"template arithmetic/few_shot has no vers",
        ),
        ('"item": "a02"', '"item": "a01"', "has 4 of 2 repeats"),
    ],
)
def test_a_damaged_baseline_is_named(run, tmp_path, old, new, message):
    path = bless(run, "base", tmp_path, by="Ada")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        load_baseline(tmp_path, "arithmetic", "base")


def test_an_empty_baseline_is_refused(run, tmp_path):
    path = bless(run, "base", tmp_path, by="Ada")
    path.write_text(path.read_text().partition('"items"')[0] + '"items": []}')
    with pytest.raises(UserError, match="holds no items"):
        load_baseline(tmp_path, "arithmetic", "base")
