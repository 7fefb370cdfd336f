"""Tests of paired outcomes: McNemar, sign flips, Holm, an interval and the power. Pure functions.

The unit is the item everywhere: the repeats of an item are averaged before anything is tested.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from workbench.statistics import Interval

POWER = 0.8
Z95 = float(special.ndtri(0.975))


@cache
def mcnemar(fell: int, rose: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (McNemar 1947).

    Args:
        fell: Items right before and wrong after.
        rose: Items wrong before and right after.

    Returns:
        The binomial test of `fell` among `fell + rose` against a half; 1 when no item changed.
    """
    changed = fell + rose
    return float(stats.binomtest(fell, changed, 0.5).pvalue) if changed else 1.0


def sign_flip(differences: npt.ArrayLike) -> float:
    """Return the exact two-sided p-value of the sign-flip permutation test (Fisher 1935).

    Where before and after are alike, every item's difference is as likely as its negative. All 2^n
    sign patterns are counted, by adding one item after the other to the distribution of the sum.
    With differences of -1, 0 and 1 this is McNemar's exact test.

    Args:
        differences: Shape (n,), whole numbers: after minus before, in any common unit.

    Returns:
        The share of sign patterns whose sum is at least as far from 0 as the one observed.
    """
    values = np.asarray(differences)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"differences must be whole numbers, but their type is {values.dtype}")
    sizes = np.abs(values[values != 0])
    chance = np.ones(1)  # of every sum of the differences that are taken with a plus
    for size in np.sort(sizes):
        chance = (np.pad(chance, (0, size)) + np.pad(chance, (size, 0))) / 2
    total = int(sizes.sum())
    far = np.abs(2 * np.arange(total + 1) - total) >= abs(int(values.sum()))
    return min(1.0, float(chance[far].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979), in the order given.

    Rejecting what is at most alpha keeps the chance of any false rejection at most alpha, however
    the tests depend on each other.
    """
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def difference_interval(fell: int, rose: int, n: int) -> Interval:
    """Return the 95 % interval of the change of a pass rate (Bonett & Price 2012).

    Wald's interval after one item was added to each kind of change. Unlike a bootstrap it has a
    width where no item changed.

    Args:
        fell: Items right before and wrong after.
        rose: Items wrong before and right after.
        n: All items, at least 1.

    Returns:
        Bounds of the pass rate after minus that before, within [-1, 1].
    """
    down, up = (fell + 1) / (n + 2), (rose + 1) / (n + 2)
    margin = Z95 * math.sqrt((down + up - (up - down) ** 2) / (n + 2))
    return Interval(max(-1.0, up - down - margin), min(1.0, up - down + margin))


def mcnemar_power(n: int, fall: float, rise: float, level: float) -> float:
    """Return the chance that McNemar's exact test finds a drop.

    Args:
        n: Items.
        fall: Probability that an item goes from right to wrong.
        rise: Probability that an item goes from wrong to right; `fall + rise` is at most 1.
        level: The p-value at which a drop is found.
    """
    changing = fall + rise
    if changing <= 0:
        return 0.0
    changed = np.arange(n + 1)
    # The most risen items that a finding allows, given how many changed; -1 where none is few
    # enough.
    most = stats.binom.ppf(level / 2, changed, 0.5)
    most = np.where(stats.binom.cdf(most, changed, 0.5) <= level / 2, most, most - 1)
    found = stats.binom.cdf(most, changed, rise / changing)
    return float(stats.binom.pmf(changed, n, min(1.0, changing)) @ found)


def sign_flip_power(n: int, variance: float, drop: float, level: float) -> float:
    """Return about the chance that the sign-flip test finds a drop, by the normal approximation.

    The drop is taken to be whole items lost, the most uneven a drop of that mean can be, and so
    the hardest to find. As for McNemar's test (Connor 1987), but with any differences beneath.

    Args:
        n: Items.
        variance: Variance of the differences between runs that are alike.
        drop: Mean drop, in [0, 1].
        level: The p-value at which a drop is found.
    """
    critical = -float(special.ndtri(level / 2)) * math.sqrt(n * (variance + drop))
    spread = math.sqrt(n * (variance + drop - drop**2))
    if spread == 0:
        return float(n * drop >= critical and drop > 0)
    return float(special.ndtr((n * drop - critical) / spread))


def detectable(power: Callable[[float], float], most: float) -> float | None:
    """Return the smallest effect found with a power of 80 %, or None where no effect is.

    Args:
        power: The power at an effect; it does not fall as the effect grows.
        most: The largest effect there can be.
    """
    if most <= 0 or power(most) < POWER:
        return None
    low, high = 0.0, most
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
