"""What a comparison found: outcomes, items and the verdict of every cell, as frozen dataclasses."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from prompts.results import Row
from workbench.statistics import Estimate

Verdict = Literal[
    "regression", "improvement", "no evidence", "insufficient data", "unreliable baseline"
]
Change = Literal["lost", "score fell", "gained", "score rose", "same"]
VERDICTS: tuple[Verdict, ...] = (
    "regression",
    "improvement",
    "no evidence",
    "unreliable baseline",
    "insufficient data",
)
CHANGES: tuple[Change, ...] = ("lost", "score fell", "gained", "score rose", "same")


@dataclass(frozen=True)
class Outcome:
    """One thing that is compared; repeats are averaged within an item first.

    Attributes:
        before: mean over items in the baseline.
        after: mean over items in the run.
        difference: after minus before, with its 95 % interval (Bonett and Price's for single
            passes, else the paired bootstrap), which is not corrected for the number of tests.
        fell: items on which it fell.
        rose: items on which it rose.
        p: exact two-sided p-value, McNemar's or that of the sign flips.
        p_holm: the same corrected over the whole comparison; None where it was not tested.
        detectable: the smallest drop that is found with a power of 80 % at the first, strictest
            step of Holm's correction; None where no drop would be, or nothing was tested.
    """

    before: float
    after: float
    difference: Estimate
    fell: int
    rose: int
    p: float
    p_holm: float | None
    detectable: float | None


@dataclass(frozen=True)
class ItemPair:
    """One item in both runs; every pair of values is (baseline, run).

    Attributes:
        item: its id.
        passes: how many of the repeats passed (k).
        repeats: of how many repeats (n); where one run has more, only its first are compared.
        scores: mean score.
        rows: the answers, empty where only the numbers are known.
    """

    item: str
    passes: tuple[int, int]
    repeats: int
    scores: tuple[float, float]
    rows: tuple[Sequence[Row], Sequence[Row]]

    @property
    def change(self) -> Change:
        """Return what became of the item; passing counts before the score."""
        if self.passes[0] != self.passes[1]:
            return "lost" if self.passes[1] < self.passes[0] else "gained"
        if self.scores[0] != self.scores[1]:
            return "score fell" if self.scores[1] < self.scores[0] else "score rose"
        return "same"


@dataclass(frozen=True)
class CellComparison:
    """One cell of the run against its baseline; every pair of values is (baseline, run).

    Attributes:
        templates: names of the template, mostly the same.
        versions: its content hashes.
        models: names of the model.
        repeats: answers an item; where they differ, the first of the larger are compared.
        verdict: what may be concluded.
        passed: the pass rate.
        score: the mean score; tested only where scores are graded.
        graded: whether some score is neither 0 nor 1.
        unparsed: share of answers that could not be read.
        unstable: share of items on which the baseline's own repeats disagree.
        items: the items of both, by id.
        baseline_only: ids of items that only the baseline has; they are not compared.
        candidate_only: ids of items that only the run has.
    """

    templates: tuple[str, str]
    versions: tuple[str, str]
    models: tuple[str, str]
    repeats: tuple[int, int]
    verdict: Verdict
    passed: Outcome
    score: Outcome
    graded: bool
    unparsed: tuple[float, float]
    unstable: float
    items: tuple[ItemPair, ...]
    baseline_only: tuple[str, ...]
    candidate_only: tuple[str, ...]

    @property
    def n(self) -> int:
        """Return the number of items in both."""
        return len(self.items)

    @property
    def tested(self) -> tuple[Outcome, ...]:
        """Return the outcomes that the verdict rests on."""
        return (self.passed, self.score) if self.graded else (self.passed,)

    @property
    def p(self) -> float:
        """Return the smallest p-value, not corrected."""
        return min(outcome.p for outcome in self.tested)

    @property
    def p_holm(self) -> float | None:
        """Return the smallest corrected p-value, None where nothing was tested."""
        return min((o.p_holm for o in self.tested if o.p_holm is not None), default=None)

    @property
    def blind(self) -> bool:
        """Return whether no drop could be found, since too little is right in the baseline."""
        return all(o.detectable is None or o.detectable > o.before for o in self.tested)

    def changed(self) -> list[ItemPair]:
        """Return the items that changed: first what was right and is wrong, largest drop first."""
        moved = [pair for pair in self.items if pair.change != "same"]
        return sorted(moved, key=_by_change)


@dataclass(frozen=True)
class Comparison:
    """A run against a baseline.

    Attributes:
        alpha: the chance of any false finding that was asked for.
        tests: how many hypotheses share it.
        cells: one comparison for every cell that both have.
        baseline_only: names of cells that only the baseline has.
        candidate_only: names of cells that only the run has.
    """

    alpha: float
    tests: int
    cells: tuple[CellComparison, ...]
    baseline_only: tuple[str, ...] = ()
    candidate_only: tuple[str, ...] = ()

    @property
    def regressed(self) -> bool:
        """Return whether any cell regressed: exit code 1."""
        return any(cell.verdict == "regression" for cell in self.cells)

    def as_dict(self) -> dict[str, Any]:
        """Return the comparison ready for JSON, without the answers themselves."""
        return {
            "alpha": self.alpha,
            "tests": self.tests,
            "regressed": self.regressed,
            "cells": [_cell_dict(cell) for cell in self.cells],
            "baseline_only": list(self.baseline_only),
            "candidate_only": list(self.candidate_only),
        }


def _by_change(pair: ItemPair) -> tuple[int, int, float, str]:
    return (
        CHANGES.index(pair.change),
        -abs(pair.passes[1] - pair.passes[0]),
        -abs(pair.scores[1] - pair.scores[0]),
        pair.item,
    )


def _cell_dict(cell: CellComparison) -> dict[str, Any]:
    return {
        "templates": list(cell.templates),
        "versions": list(cell.versions),
        "models": list(cell.models),
        "repeats": list(cell.repeats),
        "verdict": cell.verdict,
        "n": cell.n,
        "p": cell.p,
        "p_holm": cell.p_holm,
        "graded": cell.graded,
        "passed": asdict(cell.passed),
        "score": asdict(cell.score),
        "unparsed": list(cell.unparsed),
        "unstable": cell.unstable,
        "items": [
            {
                "item": pair.item,
                "change": pair.change,
                "passes": list(pair.passes),
                "repeats": pair.repeats,
                "scores": list(pair.scores),
            }
            for pair in cell.items
        ],
        "baseline_only": list(cell.baseline_only),
        "candidate_only": list(cell.candidate_only),
    }
