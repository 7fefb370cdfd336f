from pathlib import Path

import pytest

from prompts.baselines import bless
from prompts.gate import false_alarms, judge
from tests.prompts.synthetic import row, write_run
from workbench.errors import UserError
from workbench.statistics import Estimate

NONE = Path("nowhere")


def rows(passed, *, model="base", template="t", repeats=1, flaky=False):
    """Twenty items of which the first `passed` pass; flaky ones in their even repeats only."""
    return [
        row(f"i{n:02d}", n < passed and not (flaky and repeat % 2), model=model, template=template,
            repeat=repeat)
        for n in range(20)
        for repeat in range(repeats)
    ]  # fmt: skip


def test_every_blessed_model_has_its_own_baseline(tmp_path):
    old = write_run(tmp_path / "old", [*rows(18, model="a"), *rows(4, model="b")])
    bless(old, "a", tmp_path / "kept", "ann")
    bless(old, "b", tmp_path / "kept", "ann")
    new = write_run(
        tmp_path / "new", [*rows(4, model="a"), *rows(4, model="b"), *rows(4, model="c")]
    )
    report = judge(new, tmp_path / "kept").report
    found = {cell.models[1]: cell.verdict for cell in report.compared}
    assert found == {"a": "regression", "b": "no evidence"}
    assert report.failed
    # What was not blessed is said, not passed over.
    verdict = judge(new, tmp_path / "kept")
    assert "Only in this run, and not compared: t with c." in verdict.notes
    assert {summary.model for summary in report.summaries} == {"a", "b", "c"}


def test_a_baseline_may_be_another_model_or_another_run(tmp_path):
    old = write_run(tmp_path / "old", rows(18, model="a"))
    bless(old, "a", tmp_path / "kept", "ann")
    new = write_run(tmp_path / "new", rows(4, model="b"))
    by_name = judge(new, tmp_path / "kept", baseline="a").report
    by_folder = judge(new, NONE, baseline=str(old)).report
    for report in (by_name, by_folder):
        (cell,) = report.compared
        assert (cell.models, cell.verdict) == (("a", "b"), "regression")


def test_one_model_of_a_run_can_be_compared_alone(tmp_path):
    old = write_run(tmp_path / "old", rows(4))
    new = write_run(tmp_path / "new", [*rows(4), *rows(18, model="b")])
    (cell,) = judge(new, NONE, baseline=str(old), model="b").report.compared
    assert (cell.models, cell.verdict) == (("base", "b"), "improvement")


@pytest.mark.parametrize("models", ["abc", "a"])
def test_against_needs_one_other_model(tmp_path, models):
    run = write_run(tmp_path / "run", [each for model in models for each in rows(4, model=model)])
    with pytest.raises(UserError, match="--against a sets one other model against it"):
        judge(run, NONE, against="a")


def test_against_itself_is_refused(tmp_path):
    run = write_run(tmp_path / "run", [*rows(4, model="a"), *rows(4, model="b")])
    with pytest.raises(UserError, match="--against a sets one other"):
        judge(run, NONE, against="a", model="a")


def test_repeats_of_a_run_are_runs_under_seeds_of_their_own(tmp_path):
    # Ten items pass in even repeats only: of the 6 pairs of 4 repeats, 4 differ on ten items.
    run = write_run(tmp_path / "run", rows(10, repeats=4, flaky=True))
    rate = false_alarms(run)
    assert isinstance(rate, Estimate)
    assert rate.value == pytest.approx(4 / 6)


def test_greedy_cells_take_part_and_never_differ(tmp_path):
    both = [*rows(6, repeats=2, flaky=True), *rows(10, template="greedy")]
    alone, together = (
        false_alarms(write_run(tmp_path / name, content))
        for name, content in (("alone", rows(6, repeats=2, flaky=True)), ("both", both))
    )
    assert isinstance(alone, Estimate)
    assert isinstance(together, Estimate)
    assert (alone.value, together.value) == (1.0, 0.0)  # p = 1/32, and twice that


def test_controls_are_compared_with_the_run_and_each_other(tmp_path):
    run = write_run(tmp_path / "run", rows(0), seed=0)
    one = write_run(tmp_path / "one", rows(20), seed=1)
    two = write_run(tmp_path / "two", rows(20), seed=2)
    rate = false_alarms(run, [one, two])
    assert isinstance(rate, Estimate)
    assert rate.value == pytest.approx(2 / 3)
    verdict = judge(run, NONE, baseline=str(run), controls=[one, two])
    assert verdict.unmeasured is None
    assert verdict.report.false_alarms == rate


def test_what_cannot_be_measured_is_said(tmp_path):
    greedy = write_run(tmp_path / "greedy", rows(4))
    said = false_alarms(greedy)
    assert isinstance(said, str)
    assert "greedy answers do not vary with the seed" in said
    few = write_run(tmp_path / "few", [each for each in rows(4, repeats=2) if each["item"] < "i04"])
    said = false_alarms(few)
    assert isinstance(said, str)
    assert "no cell has enough items" in said
    assert said in judge(few, NONE, baseline=str(few)).notes
