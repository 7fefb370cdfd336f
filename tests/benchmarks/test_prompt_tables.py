import json
import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import prompt_tables
from benchmarks.prompt_tables import (
    accuracies,
    accuracy_table,
    alignment_tax,
    effect_table,
    effects,
    read_runs,
    strategy_effects,
    stratified_interval,
)
from prompts.comparison import compare_cells
from tests.prompts.synthetic import cell, row, write_run
from workbench.errors import UserError


def cells_of(**tasks):
    """Cells from `suite__variant__model=passes`."""
    found = {}
    for name, passed in tasks.items():
        suite, variant, model = name.split("__")
        template = f"{suite}/{variant}"
        found[suite, template, model] = cell(passed, template=template, model=model)
    return found


def run_of(folder, suite, model, passed, variant="few_shot", **changes):
    rows = [
        row(f"{suite}{n:02}", bool(p), suite=suite, template=f"{suite}/{variant}", model=model,
            **changes)
        for n, p in enumerate(passed)
    ]  # fmt: skip
    return write_run(folder, rows)


# Accuracy


def test_the_table_has_a_row_per_task_and_strategy_and_two_columns_per_model(tmp_path):
    folders = [
        run_of(tmp_path / "a", "arithmetic", "base", [1] * 3 + [0] * 7),
        run_of(tmp_path / "b", "arithmetic", "aligned", [1] * 5 + [0] * 5, parsed=False),
        run_of(tmp_path / "c", "entailment", "base", [1] * 4, variant="zero_shot"),
    ]
    table = accuracy_table(read_runs(folders)).splitlines()
    assert table[0] == (
        "| task | strategy | n | base | base: unparsed | aligned | aligned: unparsed |"
    )
    # Wilson of 3 in 10 is 10.8 to 60.3, of 5 in 10 23.7 to 76.3, of 4 in 4 51.0 to 100.
    assert table[2].replace("\u00a0", " ") == (
        "| arithmetic | few_shot | 10 | 30.0 % (11–60 %) | 0.0 % | 50.0 % (24–76 %) | 100.0 % |"
    )
    assert table[3].replace("\u00a0", " ") == (
        "| entailment | zero_shot | 4 | 100.0 % (51–100 %) | 0.0 % |  |  |"
    )
    assert len(table) == 4
    assert table[1].count("|") == table[2].count("|") == table[3].count("|")


def test_graded_scores_stand_behind_the_pass_rate(tmp_path):
    run = run_of(tmp_path / "a", "summarisation", "base", [0] * 4, score=0.25)
    assert "0.0\u00a0% (0–49\u00a0%), score 0.250 |" in accuracy_table(read_runs([run]))
    assert accuracies(read_runs([run]))[0]["task"] == "summarisation"


def test_a_cell_that_stands_in_two_runs_is_an_error(tmp_path):
    run = run_of(tmp_path / "a", "arithmetic", "base", [1, 0])
    with pytest.raises(UserError, match=r"a: arithmetic/few_shot with base stands already in .*a;"):
        read_runs([run, run])


# Effects


def test_one_task_is_what_compare_says():
    before, after = [1] * 12 + [0] * 18, [0] * 8 + [1] * 4 + [1] * 1 + [0] * 17
    cells = cells_of(a__x__base=before, a__x__aligned=after)
    (effect,) = alignment_tax(cells, "base", "aligned")
    found = compare_cells(cells["a", "a/x", "base"], cells["a", "a/x", "aligned"]).passed
    assert effect.task == "a"
    assert (effect.before, effect.after) == pytest.approx((found.before, found.after))
    assert (effect.fell, effect.rose) == (8, 1) == (found.fell, found.rose)
    assert effect.p == effect.p_holm == pytest.approx(found.p) == pytest.approx(20 / 512)
    assert effect.difference == found.difference


def test_all_tasks_weigh_every_item_the_same_and_holm_corrects_the_single_ones():
    cells = cells_of(
        a__x__base=[1] * 10, a__x__aligned=[0] * 8 + [1] * 2,
        b__x__base=[0] * 30, b__x__aligned=[1] * 1 + [0] * 29,
    )  # fmt: skip
    whole, a, b = alignment_tax(cells, "base", "aligned")
    assert [whole.task, a.task, b.task] == ["all tasks", "a", "b"]
    assert whole.difference.value == pytest.approx((-8 + 1) / 40)
    assert whole.difference.n == 40
    assert (whole.before, whole.after) == pytest.approx((10 / 40, 3 / 40))
    assert whole.p == whole.p_holm == pytest.approx(20 / 512)
    assert (a.p, a.p_holm) == (2 / 2**8, 4 / 2**8)
    assert (b.p, b.p_holm) == (1.0, 1.0)
    # Strata: 10 items with variance 0.16 · 10/9, 30 with 29/900 · 30/29.
    variance = (10 / 40) ** 2 * (0.16 * 10 / 9) / 10 + (30 / 40) ** 2 * (29 / 900 * 30 / 29) / 30
    half = (whole.difference.ci95.high - whole.difference.ci95.low) / 2
    assert 1.96 < half / math.sqrt(variance) < 2.2
    assert whole.difference.ci95.low + half == pytest.approx(whole.difference.value)


def test_an_item_counts_once_however_many_templates_asked_it():
    cells = cells_of(
        a__x__base=[1, 1, 0, 0] * 5, a__x__aligned=[0, 1, 0, 0] * 5,
        a__y__base=[1, 1, 0, 0] * 5, a__y__aligned=[1, 1, 1, 0] * 5,
        a__z__base=[1] * 20,  # not answered by both
    )  # fmt: skip
    (effect,) = alignment_tax(cells, "base", "aligned")
    assert effect.difference.n == 20
    assert (effect.fell, effect.rose) == (5, 5)
    assert effect.difference.value == 0
    assert effect.p == 1
    assert effect.before == 0.5
    ci = effect.difference.ci95
    assert -0.25 < ci.low < 0 < ci.high < 0.25


def test_models_that_say_the_same_still_have_an_interval():
    cells = cells_of(a__x__base=[1, 0] * 10, a__x__aligned=[1, 0] * 10,
                     b__x__base=[0] * 20, b__x__aligned=[0] * 20)  # fmt: skip
    for effect in alignment_tax(cells, "base", "aligned"):
        assert effect.difference.value == 0
        assert effect.difference.ci95.low < 0 < effect.difference.ci95.high
        assert effect.p == 1


def test_models_without_a_common_template_are_an_error():
    with pytest.raises(UserError, match="no template was answered by both base and aligned"):
        alignment_tax(cells_of(a__x__base=[1], b__x__aligned=[1]), "base", "aligned")


def test_strategies_are_compared_within_a_model():
    cells = cells_of(
        a__zero_shot__base=[1] * 15, a__chain_of_thought__base=[0] * 12 + [1] * 3,
        a__zero_shot__aligned=[1] * 15, a__chain_of_thought__aligned=[1] * 15,
        b__zero_shot__base=[0] * 15, b__few_shot__base=[1] * 15,
    )  # fmt: skip
    (effect,) = strategy_effects(cells, "base", "chain_of_thought", "zero_shot")
    assert (effect.task, effect.fell, effect.rose) == ("a", 12, 0)
    assert effect.difference.value == pytest.approx(-0.8)
    (effect,) = strategy_effects(cells, "aligned", "chain_of_thought", "zero_shot")
    assert effect.difference.value == 0
    assert strategy_effects(cells, "base", "zero_shot_cot", "zero_shot") == []
    (effect,) = strategy_effects(cells, "base", "few_shot", "zero_shot")
    assert (effect.task, effect.rose) == ("b", 15)


def test_the_table_says_what_was_found():
    found = effects({"a": (np.ones(12), np.zeros(12)), "b": (np.zeros(12), np.zeros(12))})
    table = effect_table("aligned against base", found).replace("\u00a0", " ").splitlines()
    assert table[0] == "aligned against base, pass rate item by item:"
    assert table[4].startswith("| all tasks | 24 | 50.0 % | 0.0 % | −50.0 (")
    assert table[4].endswith("| 12 / 0 | < 0.001 |  | worse |")
    assert table[5].endswith("| 12 / 0 | < 0.001 | < 0.001 | worse |")
    assert table[6] == "| b | 12 | 0.0 % | 0.0 % | 0.0 (−19.8 to 19.8) | 0 / 0 | 1.000 | 1.000 |  |"
    assert {line.count("|") for line in table[2:]} == {10}


@given(st.lists(st.lists(st.integers(-2, 2), min_size=2, max_size=9), min_size=1, max_size=4))
def test_the_stratified_interval_holds_its_mean(values):
    strata = [np.array(each, dtype=float) for each in values]
    mean = np.concatenate(strata).mean()
    interval = stratified_interval(strata)
    assert interval.low <= mean + 1e-9
    assert interval.high >= mean - 1e-9
    if len(strata) == 1 and strata[0].std():
        from scipy import stats

        n = len(strata[0])
        low, high = stats.t.interval(0.95, n - 1, mean, stats.sem(strata[0]))
        assert (interval.low, interval.high) == pytest.approx((low, high))


def test_constant_strata_have_no_width():
    assert stratified_interval([np.ones(3), np.zeros(3)]) == prompt_tables.Interval(0.5, 0.5)


# The command


def test_main_prints_the_tables_and_writes_the_numbers(tmp_path, monkeypatch, capsys):
    runs = []
    for model, more in (("base", 1), ("ppo", 3)):
        for variant, passes in (("zero_shot", 4), ("chain_of_thought", 2)):
            passed = [1] * (passes * more) + [0] * (12 - passes * more)
            runs.append(
                run_of(tmp_path / f"{model}-{variant}", "arithmetic", model, passed, variant)
            )
    out = tmp_path / "numbers.json"
    argv = ["prompt_tables.py", *map(str, runs), "--aligned", "ppo", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", argv)
    prompt_tables.main()
    printed = capsys.readouterr().out
    assert "| arithmetic | zero_shot | 12 |" in printed
    for title in ("ppo against base", "base: chain_of_thought against zero_shot",
                  "ppo: chain_of_thought against zero_shot"):  # fmt: skip
        assert f"{title}, pass rate item by item:" in printed
    numbers = json.loads(out.read_text())
    assert len(numbers["accuracy"]) == 4
    assert numbers["alignment_tax"][0]["difference"]["value"] == pytest.approx(6 / 12)
    monkeypatch.setattr(sys, "argv", [*argv[:2], str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"prompt_tables.py: error: .*nowhere: no such folder"):
        prompt_tables.main()
