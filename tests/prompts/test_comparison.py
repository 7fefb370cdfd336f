import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts.comparison import compare_cells, compare_runs, false_alarm_rate
from prompts.pairs import Pair
from prompts.significance import POWER
from tests.prompts.synthetic import cell, full_cell, row
from workbench.errors import UserError

FINDINGS = {"regression": "improvement", "improvement": "regression"}


def outcomes(both, fell, rose, neither=0):
    """Pass vectors before and after of a 2 × 2 table."""
    before = [True] * both + [True] * fell + [False] * rose + [False] * neither
    after = [True] * both + [False] * fell + [True] * rose + [False] * neither
    return cell(before), cell(after)


@st.composite
def pairs(draw, graded=False):
    """Two cells of the same items; with repeats, and with partial scores where graded."""
    n, r = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rates = rng.beta(1, 1, (2, n, 1))
    cells = []
    for rate in rates:
        passed = rng.random((n, r)) < rate
        score = rng.integers(0, 5, (n, r)) / 4 if graded else None
        cells.append(cell(passed, score=score, parsed=rng.random((n, r)) < 0.9))
    return cells


@pytest.mark.parametrize(
    ("table", "verdict", "p"),
    [
        ((20, 8, 0), "regression", 2 / 2**8),
        ((20, 0, 8), "improvement", 2 / 2**8),
        ((20, 5, 0), "no evidence", 2 / 2**5),
        ((20, 8, 2), "no evidence", 2 * 56 / 2**10),
        ((20, 10, 1), "regression", 2 * 12 / 2**11),
        ((20, 0, 0), "no evidence", 1.0),
    ],
)
def test_a_table_of_passes_is_judged_by_mcnemar(table, verdict, p):
    found = compare_cells(*outcomes(*table, neither=4))
    assert found.verdict == verdict
    assert found.p == pytest.approx(p)
    assert found.p_holm == pytest.approx(p)
    both, fell, rose = table
    n = both + fell + rose + 4
    assert (found.n, found.passed.fell, found.passed.rose) == (n, fell, rose)
    assert found.passed.before == pytest.approx((both + fell) / n)
    assert found.passed.after == pytest.approx((both + rose) / n)
    assert found.passed.difference.value == pytest.approx((rose - fell) / n)


def test_repeats_are_averaged_within_an_item_first():
    # Eight items fall from 3 of 3 to 2 of 3: eight answers in all, yet eight items point one way.
    before = cell([[1, 1, 1]] * 24)
    after = cell([[1, 1, 0]] * 8 + [[1, 1, 1]] * 16)
    found = compare_cells(before, after)
    assert found.verdict == "regression"
    assert found.p == pytest.approx(2 / 2**8)
    assert found.passed.difference.value == pytest.approx(-8 / 72)
    assert [(pair.passes, pair.repeats) for pair in found.changed()] == [((3, 2), 3)] * 8
    # Two items that fall from 4 of 4 to none are eight answers too, but only two items.
    found = compare_cells(cell([[1] * 4] * 24), cell([[0] * 4] * 2 + [[1] * 4] * 22))
    assert found.p == pytest.approx(0.5)
    assert found.verdict == "no evidence"


def test_unequal_repeats_are_compared_on_the_first_ones():
    before = cell([[1]] * 20)
    after = cell([[1, 0, 0]] * 20)
    found = compare_cells(before, after)
    assert (found.p, found.repeats) == (1.0, (1, 3))
    assert found.passed.after == 1.0
    assert {pair.repeats for pair in found.items} == {1}
    assert compare_cells(after, before).passed.before == 1.0


def test_graded_scores_are_tested_too_and_share_the_correction():
    never = [False] * 20
    before = cell(never, score=[0.8] * 20)
    after = cell(never, score=[0.5] * 12 + [0.8] * 8)
    found = compare_cells(before, after)
    assert found.graded
    assert found.verdict == "regression"
    assert (found.passed.p, found.score.p) == (1.0, pytest.approx(2 / 2**12))
    assert found.score.p_holm == pytest.approx(2 * 2 / 2**12)
    assert found.score.difference.value == pytest.approx(-0.18)
    assert [pair.change for pair in found.changed()] == ["score fell"] * 12
    assert compare_runs([before], [after]).tests == 2


def test_scores_of_right_and_wrong_are_not_tested_twice():
    before, after = outcomes(20, 8, 0)
    assert compare_runs([before], [after]).tests == 1
    # An assertion may fail a right answer: the score stays, the pass is lost, and that counts.
    found = compare_cells(before, replace(after, score=before.score))
    assert (found.graded, found.verdict) == (False, "regression")
    assert found.score.difference.value == 0
    assert found.score.p_holm is None


def test_a_fall_outweighs_a_rise_in_the_same_cell():
    before = cell([True] * 20, score=[0.5] * 20)
    after = cell([False] * 15 + [True] * 5, score=[0.9] * 20)
    assert compare_cells(before, after).verdict == "regression"


def test_holm_runs_over_the_whole_matrix():
    # p = 2/2^7 = 0.0156 alone; four cells make it 0.0625.
    before, after = outcomes(20, 7, 0)
    names = [{"template": t, "model": m} for t in ("a", "b") for m in ("x", "y")]
    baseline = [replace(before, **name) for name in names]
    run = [replace(after, **names[0]), *(replace(before, **name) for name in names[1:])]
    found = compare_runs(baseline, run)
    assert found.tests == 4
    assert found.cells[0].p_holm == pytest.approx(4 * 2 / 2**7)
    assert [c.verdict for c in found.cells] == ["no evidence"] * 4
    assert not found.regressed
    assert compare_runs(baseline, run, alpha=0.07).regressed
    assert compare_runs(baseline[:1], run[:1]).regressed


def test_too_few_items_are_said_and_not_tested():
    nine = compare_cells(cell([True] * 9), cell([False] * 9))
    assert (nine.verdict, nine.p, nine.p_holm) == ("insufficient data", 2 / 2**9, None)
    assert nine.passed.detectable is None
    assert compare_cells(cell([True] * 10), cell([False] * 10)).verdict == "regression"
    # Ten items reach 2/2^10 = 0.00195: enough for 0.002, not for 0.0019.
    pair = cell([True] * 10), cell([False] * 10)
    assert compare_cells(*pair, alpha=0.002).verdict == "regression"
    assert compare_cells(*pair, alpha=0.0019).verdict == "insufficient data"


def test_a_cell_that_is_too_small_takes_nothing_from_the_others():
    before, after = outcomes(20, 7, 0)
    small = cell([True] * 5, template="small")
    found = compare_runs([before, small], [after, small])
    assert found.tests == 1
    assert [c.verdict for c in found.cells] == ["regression", "insufficient data"]


def test_one_item_has_the_widest_interval():
    found = compare_cells(cell([[1, 0]]), cell([[0, 0]]))
    assert (found.score.difference.ci95.low, found.score.difference.ci95.high) == (-1, 1)


def test_a_baseline_that_contradicts_itself_is_unreliable():
    flaky = cell([[1, 0, 1]] * 7 + [[1, 1, 1]] * 13)
    assert compare_cells(flaky, flaky).verdict == "unreliable baseline"
    assert compare_cells(flaky, flaky).unstable == 0.35
    steady = cell([[1, 0, 1]] * 6 + [[1, 1, 1]] * 14)
    assert compare_cells(steady, steady).verdict == "no evidence"


def test_a_baseline_that_cannot_be_read_is_unreliable():
    mute = cell([False] * 20, parsed=[False] * 11 + [True] * 9)
    assert compare_cells(mute, mute).verdict == "unreliable baseline"
    assert compare_cells(mute, mute).unparsed == (0.55, 0.55)
    half = cell([False] * 20, parsed=[False] * 10 + [True] * 10)
    assert compare_cells(half, half).verdict == "no evidence"


def test_a_collapse_is_a_regression_even_against_an_unreliable_baseline():
    flaky = cell([[1, 0, 1]] * 20)
    assert compare_cells(flaky, cell([[0, 0, 0]] * 20)).verdict == "regression"


def test_a_baseline_with_nothing_to_lose_is_blind():
    never = cell([False] * 40)
    assert compare_cells(never, never).blind
    assert not compare_cells(cell([True] * 40), never).blind


def test_items_in_one_run_only_are_listed():
    before = cell([True] * 12, items=[f"i{k:02d}" for k in range(12)])
    after = cell([True] * 12, items=[f"i{k:02d}" for k in range(2, 14)])
    found = compare_cells(before, after)
    assert found.n == 10
    assert (found.baseline_only, found.candidate_only) == (("i00", "i01"), ("i12", "i13"))


def test_cells_in_one_run_only_are_listed():
    a, b, c = (cell([True] * 10, template=name) for name in "abc")
    found = compare_runs([a, b], [b, c])
    assert [each.templates for each in found.cells] == [("b", "b")]
    assert (found.baseline_only, found.candidate_only) == (("a with m",), ("c with m",))


def test_one_model_may_be_set_against_another():
    base, aligned = cell([True] * 10, model="base"), cell([True] * 10, model="aligned")
    assert compare_runs([base], [aligned]).cells[0].models == ("base", "aligned")
    with pytest.raises(
        UserError, match=r"\(t with base, u with x\) and the run \(t with aligned\)"
    ):
        compare_runs([base, cell([True], template="u", model="x")], [aligned])


def test_another_version_of_the_template_is_what_is_compared():
    found = compare_cells(cell([True] * 10, version="old"), cell([True] * 10, version="new"))
    assert found.versions == ("old", "new")


def test_runs_of_other_items_are_refused():
    with pytest.raises(UserError, match="no item in common"):
        compare_cells(cell([True], items=["a"]), cell([True], items=["b"]))


def test_another_target_for_the_same_item_is_refused():
    before = full_cell([row("a01"), row("a02")])
    after = full_cell([row("a01"), row("a02", target=["13"])])
    with pytest.raises(UserError, match=r"item a02: the target is \['12'\] in the baseline and"):
        compare_cells(before, after)


def test_another_suite_is_refused():
    other = full_cell([row("a01", suite="sentiment")])
    with pytest.raises(UserError, match="suite arithmetic and the run of sentiment"):
        compare_cells(full_cell([row("a01")]), other)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1, float("nan")])
def test_alpha_is_a_probability(alpha):
    with pytest.raises(UserError, match="alpha must lie between 0 and 1"):
        compare_cells(cell([True]), cell([True]), alpha=alpha)


@settings(deadline=None, max_examples=20)
@given(st.booleans().flatmap(pairs))
def test_swapping_the_runs_mirrors_everything(cells):
    one, other = compare_cells(*cells), compare_cells(*reversed(cells))
    for mine, theirs in ((one.passed, other.passed), (one.score, other.score)):
        assert mine.p == theirs.p
        assert mine.p_holm == theirs.p_holm
        assert mine.detectable == theirs.detectable
        assert (mine.fell, mine.rose) == (theirs.rose, theirs.fell)
        assert mine.difference.value == pytest.approx(-theirs.difference.value, abs=1e-12)
        low, high = theirs.difference.ci95.low, theirs.difference.ci95.high
        assert mine.difference.ci95.low == pytest.approx(-high, abs=1e-12)
        assert mine.difference.ci95.high == pytest.approx(-low, abs=1e-12)
    if one.verdict in FINDINGS or other.verdict in FINDINGS:
        assert other.verdict == FINDINGS[one.verdict]


@settings(deadline=None, max_examples=20)
@given(st.booleans().flatmap(pairs), st.randoms(use_true_random=False))
def test_the_order_of_the_items_does_not_matter(cells, random):
    before, after = cells
    order = list(range(len(after.items)))
    random.shuffle(order)
    shuffled = replace(
        after,
        items=[after.items[i] for i in order],
        passed=after.passed[order],
        score=after.score[order],
        parsed=after.parsed[order],
    )
    assert compare_cells(before, shuffled) == compare_cells(before, after)


@settings(deadline=None, max_examples=20)
@given(st.booleans().flatmap(pairs))
def test_a_run_against_itself_shows_nothing(cells):
    found = compare_cells(cells[0], cells[0])
    assert (found.passed.p, found.score.p) == (1.0, 1.0)
    assert found.verdict not in FINDINGS
    assert found.changed() == []
    if found.n >= 10 and found.unstable <= 0.3 and found.unparsed[0] <= 0.5:
        assert found.verdict == "no evidence"


def test_the_same_comparison_gives_the_same_numbers():
    rng = np.random.default_rng(3)
    scores = rng.random((2, 30))
    cells = [cell(s > 0.5, score=s) for s in scores]
    assert compare_cells(*cells) == compare_cells(*cells)
    other = compare_cells(*cells, seed=1).score.difference
    assert other.ci95 != compare_cells(*cells).score.difference.ci95


def test_changed_items_are_listed_losses_first():
    before = cell(
        [[1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]],
        score=[[1, 1, 1], [0, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0.5], [0.4, 0.2, 0]],
    )
    after = cell(
        [[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]],
        score=[[1, 1, 0], [0, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 0], [0.6, 0.2, 0]],
    )
    changed = compare_cells(before, after).changed()
    assert [(pair.item, pair.change) for pair in changed] == [
        ("i0002", "lost"),
        ("i0000", "lost"),
        ("i0004", "score fell"),
        ("i0001", "gained"),
        ("i0005", "score rose"),
    ]


def test_the_json_holds_every_item_and_no_answer():
    before = full_cell([row(f"a{k:02d}") for k in range(12)])
    after = full_cell([row(f"a{k:02d}", passed=k > 8) for k in range(12)])
    found = json.loads(json.dumps(compare_runs([before], [after]).as_dict(), allow_nan=False))
    assert found["regressed"]
    (only,) = found["cells"]
    assert only["verdict"] == "regression"
    assert only["p_holm"] == pytest.approx(2 / 2**9)
    assert only["passed"]["difference"]["ci95"]["high"] < 0
    first = {"item": "a00", "change": "lost", "passes": [1, 0], "repeats": 1, "scores": [1.0, 0.0]}
    assert only["items"][0] == first
    assert "The answer is" not in json.dumps(found)


def matrix(rng, rates, r, graded):
    """A 3 × 2 matrix of cells under a seed; the items' rates stay."""
    cells = []
    for index, rate in enumerate(rates):
        passed = rng.random((len(rate), r)) < rate[:, None]
        score = None
        if graded:
            score = np.clip(rate[:, None] + rng.normal(0, 0.2, passed.shape), 0, 1)
        name, model = "abc"[index // 2], "xy"[index % 2]
        cells.append(cell(passed, score=score, template=name, model=model))
    return cells


@pytest.mark.parametrize(("r", "graded"), [(1, False), (3, False), (1, True)])
def test_the_gate_keeps_its_false_alarm_rate(r, graded):
    # Items of all difficulties, the cells' answers independent: the hardest case for Holm.
    rng = np.random.default_rng(7)
    rates = rng.beta(0.7, 0.7, (6, 40))
    alarms = [
        false_alarm_rate([matrix(rng, rates, r, graded) for _ in range(2)], alpha=0.05).value
        for _ in range(400)
    ]
    # Three standard errors of a rate of 5 % in 400 simulations are 3.3 points.
    assert np.mean(alarms) <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_the_false_alarm_rate_shows_a_gate_that_is_too_loose():
    rng = np.random.default_rng(0)
    rates = np.full((6, 40), 0.5)
    runs = [matrix(rng, rates, 1, graded=False) for _ in range(20)]
    loose = false_alarm_rate(runs, alpha=0.9)
    assert loose.value > 0.4
    assert loose.n == 10
    assert loose.ci95.low < loose.value < loose.ci95.high
    assert false_alarm_rate(runs, alpha=0.01).value <= 0.05


def test_greedy_runs_never_alarm():
    run = [cell([True, False] * 10)]
    rate = false_alarm_rate([run] * 4)
    assert (rate.value, rate.n, rate.ci95.low) == (0.0, 2, 0.0)
    assert rate.ci95.high == pytest.approx(1 - 0.025**0.5)  # Clopper-Pearson of 0 in 2


def test_a_false_alarm_rate_needs_comparable_runs():
    run = [cell([True] * 20)]
    with pytest.raises(UserError, match="at least two runs"):
        false_alarm_rate([run])
    with pytest.raises(UserError, match="u with m is not in every run"):
        false_alarm_rate([run, [*run, cell([True] * 20, template="u")]])
    with pytest.raises(UserError, match="no cell has enough items"):
        false_alarm_rate([[cell([True] * 9)]] * 2)


def unsteady(rng, n, r, churn, drop=0.0):
    """Two cells whose items change by chance where they are unsteady, and break where steady."""
    steady = rng.random(n) >= churn
    passed = np.ones((2, n, r), dtype=bool)
    passed[:, ~steady] = rng.random((2, int((~steady).sum()), r)) < 0.5
    passed[1, steady & (rng.random(n) < drop / (1 - churn))] = False
    return Pair.of(cell(passed[0]), cell(passed[1]))


def found_drops(rng, drop, level, **items):
    """How often a drop is found."""
    found = 0
    for _ in range(400):
        pair = unsteady(rng, drop=drop, **items)
        found += pair.p_passed <= level and pair.passes[1].mean() < pair.passes[0].mean()
    return found / 400


@pytest.mark.parametrize(("r", "churn"), [(1, 0.0), (1, 0.2), (3, 0.2)])
def test_the_detectable_drop_is_found_four_times_in_five(r, churn):
    rng, level = np.random.default_rng(11), 0.05 / 6
    items = {"n": 100, "r": r, "churn": churn}
    # What a comparison states in which nothing but chance is at work.
    stated = [unsteady(rng, **items).detectable_passes(level) for _ in range(20)]
    drop = float(np.mean(stated))
    # Three standard errors of a power of 80 % in 400 simulations are 6 points.
    assert found_drops(rng, drop, level, **items) == pytest.approx(POWER, abs=0.06)
    assert found_drops(rng, drop / 2, level, **items) < 0.5


def test_the_detectable_drop_of_scores_is_found_four_times_in_five():
    # A drop that all items share is found at least as often as one of few whole items.
    rng, n, level = np.random.default_rng(5), 60, 0.05
    found, stated = 0, []
    for _ in range(20):
        scores = rng.normal(0.5, 0.1, (2, n)).clip(0, 1)
        pair = Pair.of(cell(np.ones(n), score=scores[0]), cell(np.ones(n), score=scores[1]))
        stated.append(pair.detectable_scores(level))
    drop = float(np.mean(stated))
    for _ in range(100):
        scores = rng.normal(0.5, 0.1, (2, n))
        pair = Pair.of(
            cell(np.ones(n), score=scores[0].clip(0, 1)),
            cell(np.ones(n), score=(scores[1] - drop).clip(0, 1)),
        )
        found += pair.p_score <= level and pair.scores[1].mean() < pair.scores[0].mean()
    assert found / 100 >= POWER
