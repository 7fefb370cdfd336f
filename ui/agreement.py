"""Agreement: how far raters agree with one another, and how good each of them is."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.sparse import csr_array

from ui.outcomes import FloatArray, IntArray, Outcomes, Verdicts
from workbench.statistics import Estimate, Interval, binomial_interval

RESAMPLES = 1_000
BLOCKS = 4_096  # units resampled one by one; more are first put together
VALUES = 5  # -2 … 2
TOO_FAST = 1 / 3  # of the median rater's time: the usual line for speeders in surveys
FEWEST_SECONDS = 1.0  # nobody reads two answers in less
LEAST_GOLD = 0.7
LEAST_P = 0.05


@dataclass(frozen=True)
class Agreement:
    """How far raters agree on the pairs of answers that two or more of them judged.

    Attributes:
        duels: pairs of answers with two or more votes.
        votes: on these.
        percent: chance that two raters of a pair name the same winner, or both a tie.
        fleiss_kappa: the same beyond what chance gives (Fleiss 1971; raters per pair may differ, as
            in Gwet 2014, ch. 2); None where everybody always says the same one thing.
        krippendorff_alpha: over -2 … 2 as ordered values (Krippendorff 2011); None likewise.
    """

    duels: int
    votes: int
    percent: Estimate | None
    fleiss_kappa: Estimate | None
    krippendorff_alpha: Estimate | None


@dataclass(frozen=True)
class RaterQuality:
    """What the votes of one rater tell about them; None where there is nothing to tell it by.

    Attributes:
        rater: by name.
        votes: without skips; gold questions and re-shows are among them.
        skips: items passed.
        both_bad: votes that both answers are bad.
        median_seconds: for one vote.
        gold: share of the gold questions answered right; a tie is wrong.
        left: share of the votes for a side that went to the left; of a ranking, that put the
            leftmost answer before the rightmost.
        position_p: exact two-sided binomial test that sides do not matter, multiplied by the number
            of raters it is made for (Bonferroni).
        consistency: share of the re-shows on which the same answer won.
        with_others: share of other raters' votes on the same answers with the same winner.
        problems: what a researcher should look at, in words.
    """

    rater: str
    votes: int
    skips: int
    both_bad: int
    median_seconds: float | None
    gold: Estimate | None
    left: Estimate | None
    position_p: float | None
    consistency: Estimate | None
    with_others: float | None
    problems: tuple[str, ...]


def agreement(outcomes: Outcomes, *, resamples: int = RESAMPLES, seed: int = 0) -> Agreement:
    """Return how far raters agree, with intervals from resampling the items.

    The intervals are from the Bayesian bootstrap over items (Rubin 1981), to which two items of
    random weight, Gamma(1/2), are added: one on which all agree, and one on which no two do. For
    two raters' percent agreement that is Jeffreys' interval. Without them, perfect agreement on
    three items would look certain.

    Args:
        outcomes: of a campaign; gold questions, re-shows and skips are not looked at.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    given, count = outcomes.counted, len(outcomes.duels.item)
    cell = given.duel * VALUES + given.value + 2
    counts = np.bincount(cell, minlength=count * VALUES).reshape(count, VALUES).astype(float)
    judged = np.flatnonzero(counts.sum(axis=1) >= 2)
    if not len(judged):
        return Agreement(0, 0, None, None, None)
    counts = counts[judged]
    tally = _tally(counts)
    block = blocks(outcomes.duels.item[judged], seed)
    ones, rows = np.ones(len(block)), np.arange(len(block))
    by_block = csr_array((ones, (block, rows))) @ tally
    total = by_block.sum(axis=0)
    items = int(np.count_nonzero(np.bincount(outcomes.duels.item[judged])))
    rng = np.random.default_rng(seed)
    drawn = rng.standard_exponential((resamples, len(by_block))) @ by_block
    drawn += rng.standard_gamma(0.5, (resamples, 2)) @ _prior(total) / items
    drawn *= total[0] / drawn[:, :1]
    found = _coefficients(total[None])[0]
    replicates = _coefficients(drawn)
    return Agreement(
        len(judged),
        int(counts.sum()),
        *(
            None
            if math.isnan(value)
            else Estimate(float(value), interval(column, float(value), items), items)
            for value, column in zip(found, replicates.T, strict=True)
        ),
    )


def rater_quality(
    outcomes: Outcomes, *, least_gold: float = LEAST_GOLD, too_fast: float = TOO_FAST
) -> list[RaterQuality]:
    """Return the quality of every rater.

    Args:
        outcomes: of a campaign.
        least_gold: accuracy on gold questions; a rater fails whose interval ends below it.
        too_fast: share of the median rater's time; who takes less, or under a second, is too fast.

    Returns:
        In the order of `outcomes.raters`; also those who only skipped.
    """
    raters, votes = len(outcomes.raters), outcomes.verdicts.heads()
    given = votes.where(~votes.skipped)
    number = np.bincount(given.rater, minlength=raters)
    skips = np.bincount(votes.rater[votes.skipped], minlength=raters)
    both_bad = np.bincount(given.rater[given.both_bad], minlength=raters)
    gold, left = _gold(outcomes), _left(given, raters)
    again, others = _again(outcomes), _others(outcomes)
    by_rater = np.split(given.seconds[np.argsort(given.rater, kind="stable")], np.cumsum(number))
    medians = [float(np.median(seconds)) if len(seconds) else None for seconds in by_rater[:raters]]
    known = [seconds for seconds in medians if seconds is not None]
    least_seconds = max(too_fast * float(np.median(known or [0])), FEWEST_SECONDS)
    tests = int((left[:, 1] > 0).sum())
    found = []
    for place, name in enumerate(outcomes.raters):
        accuracy, side = _share(*gold[place]), _share(*left[place])
        p = None
        if side is not None:
            rarer = min(left[place, 0], side.n - left[place, 0])
            p = min(1.0, 2 * float(special.bdtr(rarer, side.n, 0.5)) * tests)
        seconds = medians[place]
        problems = []
        if seconds is not None and seconds < least_seconds:
            problems.append("too fast")
        if accuracy is not None and accuracy.ci95.high < least_gold:
            problems.append("fails gold questions")
        if side is not None and p is not None and p < LEAST_P:
            problems.append(f"favours the {'left' if side.value > 0.5 else 'right'}")
        found.append(
            RaterQuality(
                rater=name,
                votes=int(number[place]),
                skips=int(skips[place]),
                both_bad=int(both_bad[place]),
                median_seconds=seconds,
                gold=accuracy,
                left=side,
                position_p=p,
                consistency=_share(*again[place]),
                with_others=float(others[place, 0] / others[place, 1])
                if others[place, 1]
                else None,
                problems=tuple(problems),
            )
        )
    return found


def blocks(units: IntArray, seed: int) -> IntArray:
    """Return the block of each entry: its unit, or a group of units when there are too many.

    Whole blocks are resampled then. Units are put together at random, so the variance between
    blocks estimates that of single units; nothing is left out.

    Args:
        units: the unit (a prompt, an item) of each entry.
        seed: of the grouping.

    Returns:
        Numbers from 0, below `BLOCKS`.
    """
    there = np.flatnonzero(np.bincount(units))
    number = np.zeros(int(units.max(initial=0)) + 1, dtype=np.int64)
    number[there] = np.arange(len(there))
    if len(there) > BLOCKS:
        number[there] = np.random.default_rng(seed).permutation(len(there)) % BLOCKS
    return number[units]


def interval(replicates: FloatArray, value: float, units: int) -> Interval:
    """Return the 95 % interval of a Bayesian bootstrap, stretched to hold the value.

    Its replicates vary by (units - 1) / (units + 1) too little; the percentiles make up for that.
    """
    reach = special.ndtri(0.975) * math.sqrt((units + 1) / max(units - 1, 1))
    low, high = np.quantile(replicates, special.ndtr([-reach, reach]))
    return Interval(min(float(low), value), max(float(high), value))


def _share(count: float, of: float) -> Estimate | None:
    if not of:
        return None
    return Estimate(float(count / of), binomial_interval(float(count), int(of)), int(of))


def _counts(rater: IntArray, hit: FloatArray, raters: int) -> FloatArray:
    """Return per rater the sum of hits and the number of entries."""
    hits = np.bincount(rater, hit, minlength=raters)
    return np.stack([hits, np.bincount(rater, minlength=raters)], axis=1)


def _gold(outcomes: Outcomes) -> FloatArray:
    given = outcomes.verdicts
    best = outcomes.duels.best[given.duel]
    asked = given.where((best != 0) & ~given.skipped & ~given.repeat)
    wrong = np.sign(asked.value) != outcomes.duels.best[asked.duel]
    missed = np.bincount(asked.vote, wrong)  # of a ranking: any answer put before the best
    heads = asked.heads()
    return _counts(heads.rater, 1.0 * (missed[heads.vote] == 0), len(outcomes.raters))


def _left(given: Verdicts, raters: int) -> FloatArray:
    # Of a ranking, two answers that were fixed before their places were drawn.
    sided = given.where((given.value != 0) & ~given.repeat)
    return _counts(sided.rater, 1.0 * ((sided.value > 0) == sided.first_left), raters)


def _again(outcomes: Outcomes) -> FloatArray:
    given = outcomes.verdicts.where(~outcomes.verdicts.skipped)
    shown = np.zeros(len(outcomes.duels.item), dtype=bool)
    shown[given.duel[given.repeat]] = True
    given = given.where(shown[given.duel])
    key = given.rater * len(shown) + given.duel
    again, before = np.flatnonzero(given.repeat), np.flatnonzero(~given.repeat)
    _, one, other = np.intersect1d(key[again], key[before], return_indices=True)
    again, before = again[one], before[other]
    same = np.sign(given.value[again]) == np.sign(given.value[before])
    # A ranking counts once, by the share of its pairs that stand in the same order.
    votes, head = np.unique(given.vote[again], return_index=True)
    alike = np.bincount(given.vote[again], same)[votes] / np.bincount(given.vote[again])[votes]
    return _counts(given.rater[again[head]], alike, len(outcomes.raters))


def _others(outcomes: Outcomes) -> FloatArray:
    given = outcomes.counted
    winner = np.sign(given.value) + 1
    cell = given.duel * 3 + winner
    alike = np.bincount(cell)[cell] - 1
    others = np.bincount(given.duel)[given.duel] - 1
    sums = (np.bincount(given.rater, of, len(outcomes.raters)) for of in (alike, others))
    return np.stack(list(sums), axis=1)


def _tally(counts: FloatArray) -> FloatArray:
    """Return for each pair of answers what the coefficients are made of, to be summed up.

    Args:
        counts: shape (pairs, 5), how many raters gave each value; two or more each.

    Returns:
        Shape (pairs, 30): 1, agreement of two raters on the winner, shares of the three outcomes,
        and the 25 coincidences of values (Krippendorff 2011, step B), which sum to the raters.
    """
    winners = np.stack([counts[:, :2].sum(1), counts[:, 2], counts[:, 3:].sum(1)], axis=1)
    raters = counts.sum(axis=1, keepdims=True)
    alike = (winners * (winners - 1)).sum(axis=1, keepdims=True) / (raters * (raters - 1))
    tally = np.empty((len(counts), 5 + VALUES**2))
    tally[:, :1], tally[:, 1:2], tally[:, 2:5] = 1, alike, winners / raters
    both = tally[:, 5:]
    np.multiply(counts[:, :, None], counts[:, None, :], out=both.reshape(-1, VALUES, VALUES))
    both[:, :: VALUES + 1] -= counts
    both /= raters - 1
    return tally


def _prior(total: FloatArray) -> FloatArray:
    """Return the summed tallies as they were if all raters agreed on all, and if no two did."""
    pairs, shares, values = total[0], total[2:5], total[5:].reshape(VALUES, VALUES).sum(axis=0)
    apart = np.outer(values, values) * (1 - np.eye(VALUES))
    apart *= values.sum() / max(apart.sum(), 1)
    agreeing = [pairs, pairs, *shares, *np.diag(values).ravel()]
    disagreeing = [pairs, 0, *shares, *apart.ravel()]
    return np.array([agreeing, disagreeing])


def _coefficients(tallies: FloatArray) -> FloatArray:
    """Return percent agreement, Fleiss' κ and ordinal Krippendorff's α of summed tallies.

    Args:
        tallies: shape (n, 30).

    Returns:
        Shape (n, 3); not a number where chance alone would agree always.
    """
    alike = tallies[:, 1] / tallies[:, 0]
    shares = tallies[:, 2:5] / tallies[:, :1]
    chance = (shares**2).sum(axis=1)
    o = tallies[:, 5:].reshape(-1, VALUES, VALUES)
    n = o.sum(axis=1)
    # Krippendorff's ordinal distance: the values from one rank to the other, the ends half.
    below = np.cumsum(n, axis=1) - n / 2
    distance = (below[:, :, None] - below[:, None, :]) ** 2
    observed = (o * distance).sum(axis=(1, 2))
    expected = (n[:, :, None] * n[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        kappa = (alike - chance) / (1 - chance)
        alpha = 1 - (n.sum(axis=1) - 1) * observed / expected
    return np.stack([alike, kappa, alpha], axis=1)
