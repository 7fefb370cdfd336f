"""Two cells set side by side: their common items, and the p-value of what is tested."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from prompts.results import Cell, FloatArray
from prompts.significance import (
    detectable,
    mcnemar,
    mcnemar_power,
    sign_flip,
    sign_flip_power,
)
from workbench.errors import UserError

Number = TypeVar("Number", bound=np.generic)

GRID = 100  # graded scores are tested to the percent: then every sign pattern can be counted


@dataclass(frozen=True)
class Pair:
    """A cell before and after, cut to the items and repeats that both have, items by id.

    Means of unequal numbers of repeats do not differ symmetrically even where nothing changed, and
    the sign flips would find something up to five times too often; so both are cut to the first
    repeats of the larger. Every pair of values is (before, after).

    Attributes:
        before: the baseline's cell.
        after: the run's cell.
        items: the n common ids.
        places: where they stand in each cell.
        repeats: answers an item in both.
    """

    before: Cell
    after: Cell
    items: tuple[str, ...]
    places: tuple[list[int], list[int]]
    repeats: int

    @classmethod
    def of(cls, before: Cell, after: Cell) -> "Pair":
        """Match two cells by item id.

        Raises:
            UserError: when they share no item, or an item has another suite or target.
        """
        place = {item: index for index, item in enumerate(after.items)}
        common = sorted(set(before.items) & set(place))
        if not common:
            raise UserError(
                f"{before.name} has no item in common with the run's {after.name} "
                f"({len(before.items)} and {len(after.items)} items); compare runs of the same data"
            )
        start = {item: index for index, item in enumerate(before.items)}
        pair = cls(
            before,
            after,
            items=tuple(common),
            places=([start[item] for item in common], [place[item] for item in common]),
            repeats=min(before.repeats, after.repeats),
        )
        pair.check_targets()
        return pair

    def check_targets(self) -> None:
        """Refuse to compare answers to different questions.

        Raises:
            UserError: when the rows are of different suites, or an item has another target.
        """
        if not self.before.rows or not self.after.rows:
            return
        for item, i, j in zip(self.items, *self.places, strict=True):
            old, new = self.before.rows[i][0], self.after.rows[j][0]
            if old.suite != new.suite:
                raise UserError(
                    f"the baseline is of suite {old.suite} and the run of {new.suite}; compare "
                    "runs of one suite"
                )
            if old.target != new.target:
                raise UserError(
                    f"{self.after.name}, item {item}: the target is {old.target} in the baseline "
                    f"and {new.target} in the run; give a changed item a new id, or bless a new "
                    "baseline"
                )

    @property
    def n(self) -> int:
        """Return the number of common items."""
        return len(self.items)

    @cached_property
    def passes(self) -> tuple[FloatArray, FloatArray]:
        """Share of the repeats that passed, each of shape (n,)."""
        before, after = self._cut(self.before.passed, self.after.passed)
        return before.mean(axis=1), after.mean(axis=1)

    @cached_property
    def scores(self) -> tuple[FloatArray, FloatArray]:
        """Mean score over the repeats, each of shape (n,)."""
        before, after = self._cut(self.before.score, self.after.score)
        # Rounded, so that repeats of one score have that score as their mean.
        return before.mean(axis=1).round(9), after.mean(axis=1).round(9)

    @cached_property
    def unparsed(self) -> tuple[float, float]:
        """Share of answers that could not be read."""
        before, after = self._cut(self.before.parsed, self.after.parsed)
        return float((~before).mean()), float((~after).mean())

    @property
    def unstable(self) -> float:
        """Share of items on which the baseline's own repeats, all of them, disagree."""
        share = self.before.passed[self.places[0]].mean(axis=1)
        return float(((share > 0) & (share < 1)).mean())

    @cached_property
    def graded(self) -> bool:
        """Whether some score is neither 0 nor 1; else the score says no more than passing does."""
        scores = self._cut(self.before.score, self.after.score)
        return any(bool(((score > 0) & (score < 1)).any()) for score in scores)

    @cached_property
    def p_passed(self) -> float:
        """McNemar's p-value for single answers, that of the sign flips for repeats."""
        before, after = self.passes
        if self.repeats == 1:
            return mcnemar(int((after < before).sum()), int((after > before).sum()))
        return sign_flip(np.rint((after - before) * self.repeats).astype(np.int64))

    @cached_property
    def p_score(self) -> float:
        """The sign flips' p-value of the mean scores."""
        before, after = self.scores
        return sign_flip(np.rint((after - before) * GRID).astype(np.int64))

    @property
    def p_values(self) -> list[float]:
        """The p-values of the outcomes that are tested: passing, and scores where graded."""
        return [self.p_passed, self.p_score] if self.graded else [self.p_passed]

    def detectable_passes(self, level: float) -> float | None:
        """Return the smallest drop of the pass rate that a test at `level` finds 4 times in 5."""
        before, after = self.passes
        churn = float((after - before).var())
        if self.repeats > 1:
            return detectable(lambda drop: sign_flip_power(self.n, churn, drop, level), 1.0)
        # For single answers the variance is about the share of items that change by chance, as many
        # one way as the other.
        return detectable(
            lambda drop: mcnemar_power(self.n, churn / 2 + drop, churn / 2, level), 1 - churn
        )

    def detectable_scores(self, level: float) -> float | None:
        """Return the smallest drop of the mean score that a test at `level` finds 4 times in 5."""
        before, after = self.scores
        churn = float((after - before).var())
        return detectable(lambda drop: sign_flip_power(self.n, churn, drop, level), 1.0)

    def _cut(
        self, before: npt.NDArray[Number], after: npt.NDArray[Number]
    ) -> tuple[npt.NDArray[Number], npt.NDArray[Number]]:
        old, new = self.places
        return before[old, : self.repeats], after[new, : self.repeats]
