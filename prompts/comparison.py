"""The paired comparison: a run against a baseline, item by item, with one verdict a cell.

Every hypothesis of a comparison (a cell's pass rate, and its mean score where scores are graded)
goes through Holm's correction together, so that the chance of any false finding among all of them
is at most alpha.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

from prompts.pairs import Pair
from prompts.results import Cell, FloatArray
from prompts.significance import difference_interval, holm
from prompts.verdicts import CellComparison, Comparison, ItemPair, Outcome, Verdict
from workbench.errors import UserError
from workbench.statistics import Estimate, Interval, binomial_interval, paired_bootstrap

Judged = tuple[Verdict, list[float]]  # with a corrected p-value for every outcome that was tested

LEAST_ITEMS = 10
MOST_UNSTABLE = 0.3  # share of items on which the baseline's own repeats disagree
MOST_UNPARSED = 0.5  # share of the baseline's answers that could not be read


def compare_cells(
    baseline: Cell, candidate: Cell, *, alpha: float = 0.05, seed: int = 0
) -> CellComparison:
    """Compare two cells on the items that both have, whatever their templates and models.

    Args:
        baseline: the cell before.
        candidate: the cell after.
        alpha: the chance of a false finding.
        seed: of the bootstrap intervals.

    Raises:
        UserError: when they share no item, or an item has another target.
    """
    return _compared([Pair.of(baseline, candidate)], alpha, seed).cells[0]


def compare_runs(
    baseline: Sequence[Cell], candidate: Sequence[Cell], alpha: float = 0.05, seed: int = 0
) -> Comparison:
    """Compare two runs cell by cell.

    Cells belong together by template and model. Where each run has a single model, they do by
    template alone, so that one model can be set against another.

    Args:
        baseline: the cells before.
        candidate: the cells after.
        alpha: the chance of any false finding among all cells.
        seed: of the bootstrap intervals.

    Raises:
        UserError: when no cells belong together, or two that do share no item or differ in a
            target.
    """
    pairs, before, after = _matched(baseline, candidate)
    return _compared(pairs, alpha, seed, before, after)


def false_alarm_rate(runs: Sequence[Sequence[Cell]], alpha: float = 0.05) -> Estimate:
    """Measure how often the comparison finds something between runs that differ by seed alone.

    Every run is compared with every other. The pairs are not independent, but their mean varies no
    more than that of half as many disjoint pairs as there are runs (Hoeffding 1963, section 5), so
    the exact interval is taken at that count.

    Args:
        runs: the cells of one suite and model under k >= 2 seeds.
        alpha: as in `compare_runs`.

    Returns:
        The share of comparisons with any regression or improvement; it should not exceed alpha.
        The gate fails on regressions alone, so about half as often.

    Raises:
        UserError: when there are fewer than two runs, or their cells differ or have too few items.
    """
    if len(runs) < 2:
        raise UserError("a false-alarm rate needs at least two runs under different seeds")
    alarms = []
    for one, other in combinations(runs, 2):
        pairs, before, after = _matched(one, other)
        if before or after:
            raise UserError(
                f"{(before + after)[0]} is not in every run; a false-alarm rate needs runs that "
                "differ by seed alone"
            )
        verdicts = [verdict for verdict, _ in _judged(pairs, alpha)[0]]
        if set(verdicts) == {"insufficient data"}:
            raise UserError(f"no cell has enough items for a false-alarm rate at alpha {alpha:g}")
        alarms.append("regression" in verdicts or "improvement" in verdicts)
    rate, independent = sum(alarms) / len(alarms), len(runs) // 2
    return Estimate(rate, binomial_interval(rate * independent, independent), independent)


def _matched(
    baseline: Sequence[Cell], candidate: Sequence[Cell]
) -> tuple[list[Pair], tuple[str, ...], tuple[str, ...]]:
    """Return what belongs together, and the names of cells that only one side has."""
    models = {cell.model for cell in baseline}, {cell.model for cell in candidate}
    by_template = len(models[0]) == len(models[1]) == 1

    def key(cell: Cell) -> tuple[str, str]:
        return cell.template, "" if by_template else cell.model

    before, after = ({key(cell): cell for cell in cells} for cells in (baseline, candidate))
    shared = [name for name in before if name in after]
    if not shared:
        raise UserError(
            f"the baseline ({_names(baseline)}) and the run ({_names(candidate)}) have no "
            "template and model in common; compare runs of one suite"
        )
    return (
        [Pair.of(before[name], after[name]) for name in shared],
        tuple(cell.name for name, cell in before.items() if name not in after),
        tuple(cell.name for name, cell in after.items() if name not in before),
    )


def _names(cells: Sequence[Cell]) -> str:
    return ", ".join(cell.name for cell in cells) or "empty"


def _judged(pairs: Sequence[Pair], alpha: float) -> tuple[list[Judged], int]:
    """Return verdict and corrected p-values of every pair, and how many hypotheses were tested.

    Which pairs are tested depends on their number of items only, never on what was found, or the
    correction would not hold.
    """
    if not 0 < alpha < 1:
        raise UserError(f"alpha must lie between 0 and 1 (is {alpha:g})")
    count = sum(len(pair.p_values) for pair in pairs if pair.n >= LEAST_ITEMS)
    # The smallest p-value of n items is that of all falling: 2 · 2^-n.
    enough = [pair.n >= LEAST_ITEMS and 2.0 ** (1 - pair.n) * count <= alpha for pair in pairs]
    family = [
        p for pair, tested in zip(pairs, enough, strict=True) if tested for p in pair.p_values
    ]
    corrected = iter(holm(family))
    judged: list[Judged] = []
    for pair, tested in zip(pairs, enough, strict=True):
        own = [next(corrected) for _ in pair.p_values] if tested else []
        judged.append((_verdict(pair, own, alpha), own))
    return judged, len(family)


def _verdict(pair: Pair, corrected: Sequence[float], alpha: float) -> Verdict:
    if not corrected:
        return "insufficient data"
    outcomes = (pair.passes, pair.scores)[: len(corrected)]
    found = [
        float((after - before).sum())
        for (before, after), p in zip(outcomes, corrected, strict=True)
        if p <= alpha
    ]
    # A finding stands on a shaky baseline too, since the test reckons with its noise; what must not
    # be concluded from one is that nothing changed.
    if found:
        return "regression" if min(found) < 0 else "improvement"
    if pair.unstable > MOST_UNSTABLE or pair.unparsed[0] > MOST_UNPARSED:
        return "unreliable baseline"
    return "no evidence"


def _compared(
    pairs: Sequence[Pair],
    alpha: float,
    seed: int,
    baseline_only: tuple[str, ...] = (),
    candidate_only: tuple[str, ...] = (),
) -> Comparison:
    judged, tests = _judged(pairs, alpha)
    level = alpha / max(1, tests)
    cells = [
        _cell(pair, verdict, corrected, level, seed)
        for pair, (verdict, corrected) in zip(pairs, judged, strict=True)
    ]
    return Comparison(alpha, tests, tuple(cells), baseline_only, candidate_only)


def _cell(
    pair: Pair, verdict: Verdict, corrected: list[float], level: float, seed: int
) -> CellComparison:
    both = pair.before, pair.after
    common = set(pair.items)
    passes, scores = bool(corrected), len(corrected) == 2
    return CellComparison(
        templates=(both[0].template, both[1].template),
        versions=(both[0].version, both[1].version),
        models=(both[0].model, both[1].model),
        repeats=(both[0].repeats, both[1].repeats),
        verdict=verdict,
        passed=_outcome(
            pair.passes,
            pair.p_passed,
            corrected[0] if passes else None,
            pair.detectable_passes(level) if passes else None,
            seed,
            closed_form=pair.repeats == 1,
        ),
        score=_outcome(
            pair.scores,
            pair.p_score,
            corrected[1] if scores else None,
            pair.detectable_scores(level) if scores else None,
            seed,
        ),
        graded=pair.graded,
        unparsed=pair.unparsed,
        unstable=pair.unstable,
        items=tuple(_items(pair)),
        baseline_only=tuple(item for item in both[0].items if item not in common),
        candidate_only=tuple(item for item in both[1].items if item not in common),
    )


def _outcome(
    values: tuple[FloatArray, FloatArray],
    p: float,
    p_holm: float | None,
    drop: float | None,
    seed: int,
    *,
    closed_form: bool = False,
) -> Outcome:
    before, after = values
    n, mean = len(before), float((after - before).mean())
    fell, rose = int((after < before).sum()), int((after > before).sum())
    if closed_form:
        difference = Estimate(mean, difference_interval(fell, rose, n), n)
    elif n > 1:
        difference = paired_bootstrap(after, before, seed=seed)
    else:
        difference = Estimate(mean, Interval(-1.0, 1.0), n)
    return Outcome(
        float(before.mean()), float(after.mean()), difference, fell, rose, p, p_holm, drop
    )


def _items(pair: Pair) -> Iterator[ItemPair]:
    counts = [np.rint(share * pair.repeats).astype(int).tolist() for share in pair.passes]
    scores = [score.tolist() for score in pair.scores]
    for place, (item, i, j) in enumerate(zip(pair.items, *pair.places, strict=True)):
        yield ItemPair(
            item=item,
            passes=(counts[0][place], counts[1][place]),
            repeats=pair.repeats,
            scores=(scores[0][place], scores[1][place]),
            rows=(
                pair.before.rows[i][: pair.repeats] if pair.before.rows else (),
                pair.after.rows[j][: pair.repeats] if pair.after.rows else (),
            ),
        )
