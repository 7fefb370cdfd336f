"""Leaderboard: who wins, how sure that is, how many more votes it takes and what they cost."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import special
from scipy.sparse.csgraph import connected_components

from ui.agreement import RESAMPLES, blocks, interval
from ui.logistic import fit_logistic, fit_strengths
from ui.outcomes import BoolArray, FloatArray, IntArray, Outcomes
from workbench.statistics import Estimate, Interval, binomial_interval, win_tie_loss

ALPHA = 1e-6  # choix's own regularisation: nothing beside the half votes, but keeps it from zero
RIDGE = 0.1  # precision of the Gaussian prior on the effects of length and side
MOST_VOTES = 100_000  # to tell two models apart; beyond this they are called equal
POWER = 0.8
FEWEST_DECISIVE = 6  # the exact sign test finds nothing at 5 % in five votes


@dataclass(frozen=True)
class WinRate:
    """How often one model beat another; a tie, and both bad, is half a win.

    Votes on one prompt are not independent. The interval is the exact one (Clopper & Pearson 1934)
    for as many independent votes as theirs are worth (Korn & Graubard 1998, Survey Methodology
    24:193): the variance between prompts tells how many, and with one vote a prompt it is all.

    Attributes:
        model: the one that won more, or comes first of two equals.
        opponent: the other.
        wins: votes for `model`; `ties` are for neither, `losses` for `opponent`.
        both_bad: those of the ties that called both answers bad.
        prompts: different ones.
        effective: independent votes that these are worth.
        win_rate: (wins + ties / 2) / votes.
        ci95: its exact interval.
        p_sign: exact two-sided sign test over prompts: on how many did most votes go which way.
    """

    model: str
    opponent: str
    wins: int
    ties: int
    losses: int
    both_bad: int
    prompts: int
    effective: int
    win_rate: float
    ci95: Interval
    p_sign: float

    @property
    def votes(self) -> int:
        """All votes on the two."""
        return self.wins + self.ties + self.losses

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out one half."""
        return self.ci95.low > 0.5


@dataclass(frozen=True)
class Strength:
    """A model's place among all: its Bradley-Terry strength.

    Attributes:
        strength: log odds; 0 is the mean of the models it can be compared with.
        ci95: its interval, from resampling prompts.
        win_rate: expected against one of those, taken at random.
        votes: comparisons with other models.
    """

    model: str
    strength: float
    ci95: Interval
    win_rate: float
    win_rate_ci95: Interval
    votes: int


@dataclass(frozen=True)
class BradleyTerry:
    """The models' strengths.

    Attributes:
        strengths: of the models that were compared with others, best first.
        connected: every two models are compared, be it through others; if not, the strengths of
            each group stand for themselves.
        separated: some models never lost to others, so only the prior bounds how much better
            they are; read the win rates.
    """

    strengths: tuple[Strength, ...]
    connected: bool
    separated: bool


@dataclass(frozen=True)
class ControlledWinRate:
    """The win rate of `WinRate`, as it would be with answers of one length and without sides.

    Attributes:
        length_effect: log odds won by an answer that is longer than the other by far.
        side_effect: log odds won by standing on the left rather than on the right.
    """

    model: str
    opponent: str
    win_rate: Estimate
    length_effect: Estimate
    side_effect: Estimate


@dataclass(frozen=True)
class VotesNeeded:
    """How many votes on two models it takes to tell them apart, and how many of them are to come.

    Both are None when that cannot be said; `why` says in words what they rest on.
    """

    total: int | None
    more: int | None
    why: str


@dataclass(frozen=True)
class Cost:
    """What the votes cost, in dollars.

    Attributes:
        labels: votes so far, with gold questions and re-shows and without skips.
        spent: on these.
        labels_to_finish: votes to come until every item has its raters.
        to_finish: for these.
    """

    labels: int
    spent: float
    labels_to_finish: int
    to_finish: float


def win_rates(outcomes: Outcomes) -> list[WinRate]:
    """Return the win rate of every two models that were compared, in the models' order."""
    return [_win_rate(outcomes.models, pair) for pair in _pairs(outcomes)]


def bradley_terry(outcomes: Outcomes, *, resamples: int = RESAMPLES, seed: int = 0) -> BradleyTerry:
    """Return the models' strengths (Bradley & Terry 1952), ties as half wins.

    Half a vote each way between any two models that met keeps them finite when one wins every
    time. The intervals are from the Bayesian bootstrap over prompts (Rubin 1981), in which these
    half votes have random weights as well: Gamma(1/2), in units of an independent vote. For two
    models with one vote a prompt that is Jeffreys' interval; it has a width under complete
    separation, where votes drawn again and again are all the same.

    Args:
        outcomes: of a campaign.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    count, given = len(outcomes.models), outcomes.counted
    first, second = outcomes.duels.first[given.duel], outcomes.duels.second[given.duel]
    block = blocks(outcomes.duels.prompt[given.duel], seed)
    size = (int(block.max(initial=0)) + 1, count, count)
    tally = np.zeros(size)
    for ends, sign in (((first, second), 1), ((second, first), -1)):
        cell = np.ravel_multi_index((block, *ends), size)
        won = (sign * np.sign(given.value) + 1) / 2
        tally += np.bincount(cell, won, math.prod(size)).reshape(size)
    tally *= 1 - np.eye(count)  # nothing follows from a model against itself
    wins = tally.sum(axis=0)
    worth = np.zeros((count, count))
    for pair in _pairs(outcomes):
        worth[pair.model, pair.opponent] = len(pair.score) / pair.effective
    worth += worth.T
    rng = np.random.default_rng(seed)
    drawn = rng.standard_gamma(0.5, (resamples, count, count)) * worth
    drawn += np.tensordot(rng.standard_exponential((resamples, size[0])), tally, axes=1)
    found, group = connected_components(worth > 0, directed=False)
    groups = [np.flatnonzero(group == number) for number in range(found)]
    groups = [models for models in groups if len(models) > 1]
    names, units = outcomes.models, size[0]
    strengths = [s for models in groups for s in _strengths(names, models, wins, drawn, units)]
    loops, _ = connected_components(wins > 0, connection="strong")
    return BradleyTerry(
        strengths=tuple(sorted(strengths, key=lambda model: -model.strength)),
        connected=len(groups) <= 1,
        separated=loops > found,
    )


def controlled_win_rates(outcomes: Outcomes) -> list[ControlledWinRate]:
    """Return the win rates with the effects of length and side taken out.

    Logistic regression of a vote on an intercept, tanh(difference in length / its standard
    deviation) as in AlpacaEval 2.0 (Dubois et al. 2024), and the side; ties are half wins. Votes
    weigh what independent ones would (`WinRate.effective`), half a win and half a loss without
    differences in length and side keep the intercept finite, and a ridge the two effects.

    Args:
        outcomes: of a campaign.

    Returns:
        In the order of `win_rates`; intervals are Wald's on the scale of log odds.
    """
    return [_controlled(outcomes.models, pair) for pair in _pairs(outcomes)]


def sign_test_size(win_rate: float, power: float = POWER) -> float:
    """Return how many votes, without ties, the sign test at 5 % needs to tell two models apart.

    Normal approximation: ((z(0.975) / 2 + z(power) √(p (1 - p))) / (p - 1/2))².

    Args:
        win_rate: p, the share of the votes without ties that the better model wins.
        power: probability that the test finds a difference of this size.

    Returns:
        At least 6, with which the exact test can succeed at all; infinity for two equals.
    """
    if win_rate == 0.5:
        return math.inf
    spread = math.sqrt(win_rate * (1 - win_rate))
    root = (special.ndtri(0.975) / 2 + special.ndtri(power) * spread) / (win_rate - 0.5)
    return max(float(root) ** 2, FEWEST_DECISIVE)


def votes_needed(rate: WinRate, most: int = MOST_VOTES) -> VotesNeeded:
    """Return how many votes it takes to tell two models apart, if they are as they seem now.

    The share of wins is drawn to one half by half a vote each way: three wins of three promise
    less than thirty of thirty. This is a plan and no rule to stop by: who looks after every vote
    and stops at the first success finds differences that are not there.

    Args:
        rate: the two models as they stand.
        most: beyond this many they are called equal.
    """
    if rate.told_apart:
        return VotesNeeded(rate.votes, 0, f"{rate.model} is better already")
    decisive = rate.wins + rate.losses
    if not decisive:
        return VotesNeeded(None, None, "every vote so far is a tie")
    share = rate.effective / rate.votes
    better = (rate.wins * share + 0.5) / (decisive * share + 1)
    needed = sign_test_size(better) * rate.votes / (decisive * share)
    if needed > most:
        why = f"they look equal: it would take more than {most:,} votes to tell them apart"
        return VotesNeeded(None, None, why)
    total = max(math.ceil(needed), rate.votes + 1)
    return VotesNeeded(total, total - rate.votes, "if they are as far apart as it seems now")


def cost(outcomes: Outcomes, price: float | None = None) -> Cost:
    """Return what the votes of a campaign cost so far and to the end.

    Args:
        outcomes: of all raters.
        price: in dollars per label; None for the campaign's own.
    """
    price = outcomes.price_per_label if price is None else price
    votes = outcomes.verdicts.heads()
    labels = int((~votes.skipped).sum())
    missing = max(outcomes.wanted - len(outcomes.counted.heads()), 0)
    to_come = math.ceil(missing / (1 - outcomes.extra))
    return Cost(labels, labels * price, to_come, to_come * price)


@dataclass(frozen=True)
class _Pair:
    """The votes on two models, seen from the better one; arrays have one entry per vote."""

    model: int
    opponent: int
    prompt: IntArray
    score: FloatArray  # 1, ½ for a tie, 0
    both_bad: BoolArray
    side: FloatArray  # ½ when `model` stood left, else -½
    longer: FloatArray  # by how much its answer was longer

    @cached_property
    def effective(self) -> int:
        """Independent votes that these are worth (Korn & Graubard 1998), at least 1."""
        n, rate = len(self.score), float(self.score.mean())
        size = np.bincount(self.prompt)
        excess = np.bincount(self.prompt, self.score)[size > 0] - rate * size[size > 0]
        prompts = len(excess)
        # Without a difference anywhere, votes on one prompt may well be one and the same.
        if prompts == 1 or np.ptp(self.score) == 0:
            return prompts
        variance = prompts / (prompts - 1) * float(excess @ excess) / n**2
        freedom = special.stdtrit([n - 1, prompts - 1], 0.975)
        ratio = rate * (1 - rate) / (n - 1) / max(variance, 1e-300)
        worth = n * min(ratio, 1.0) * float(freedom[0] / freedom[1]) ** 2
        return max(math.floor(worth + 1e-9), 1)


def _pairs(outcomes: Outcomes) -> Iterator[_Pair]:
    given, duels, count = outcomes.counted, outcomes.duels, len(outcomes.models)
    first, second = duels.first[given.duel], duels.second[given.duel]
    code = first * count + second
    for number in np.flatnonzero(np.bincount(code)).tolist():
        one, other = divmod(number, count)
        if one == other:
            continue
        rows = np.flatnonzero(code == number)
        duel, winner = given.duel[rows], np.sign(given.value[rows])
        sign = 1 if winner.sum() >= 0 else -1
        yield _Pair(
            model=one if sign == 1 else other,
            opponent=other if sign == 1 else one,
            prompt=duels.prompt[duel],
            score=(sign * winner + 1) / 2,
            both_bad=given.both_bad[rows],
            side=sign * np.where(given.first_left[rows], 0.5, -0.5),
            longer=sign * (duels.first_length[duel] - duels.second_length[duel]),
        )


def _win_rate(models: Sequence[str], pair: _Pair) -> WinRate:
    net = np.bincount(pair.prompt, pair.score - 0.5)[np.bincount(pair.prompt) > 0]
    rate = float(pair.score.mean())
    return WinRate(
        model=models[pair.model],
        opponent=models[pair.opponent],
        wins=int((pair.score == 1).sum()),
        ties=int((pair.score == 0.5).sum()),
        losses=int((pair.score == 0).sum()),
        both_bad=int(pair.both_bad.sum()),
        prompts=len(net),
        effective=pair.effective,
        win_rate=rate,
        ci95=binomial_interval(rate * pair.effective, pair.effective),
        p_sign=win_tie_loss(net, np.zeros_like(net)).p_sign,
    )


def _strengths(
    names: Sequence[str], models: IntArray, wins: FloatArray, drawn: FloatArray, units: int
) -> Iterator[Strength]:
    """Fit models that were compared with one another; the draws have the half votes in them."""
    import choix

    inside = np.ix_(models, models)
    own = wins[inside]
    met = (own + own.T) > 0
    found = choix.ilsr_pairwise_dense(own + 0.5 * met, alpha=ALPHA, max_iter=10_000)
    resampled = fit_strengths(drawn[:, models[:, None], models] * met)
    fitted = np.concatenate([[found - found.mean()], resampled])
    for place, model in enumerate(models.tolist()):
        ahead = fitted[:, [place]] - np.delete(fitted, place, axis=1)
        (strength, *_), (rate, *_) = fitted[:, place], special.expit(ahead).mean(axis=1)
        yield Strength(
            model=names[model],
            strength=float(strength),
            ci95=interval(fitted[1:, place], float(strength), units),
            win_rate=float(rate),
            win_rate_ci95=interval(special.expit(ahead[1:]).mean(axis=1), float(rate), units),
            votes=round(float((own + own.T)[place].sum())),
        )


def _controlled(models: Sequence[str], pair: _Pair) -> ControlledWinRate:
    # One same difference everywhere has no spread: then its size is the scale.
    scale = float(pair.longer.std()) or float(abs(pair.longer[0])) or 1.0
    # Votes that are alike in all three are put together: lengths are whole numbers.
    longer, code = np.unique(pair.longer, return_inverse=True)
    cell = (code * 2 + (pair.side > 0)) * 3 + np.rint(2 * pair.score).astype(np.int64)
    votes = np.bincount(cell)
    there = np.flatnonzero(votes)
    weights = np.append(votes[there] * (pair.effective / len(pair.score)), 1.0)
    score = np.append(there % 3 / 2, 0.5)  # the half win and half loss; a tie is half of each
    design = np.zeros((len(score), 3))
    design[:, 0] = 1
    design[:-1, 1], design[:-1, 2] = np.tanh(longer[there // 6] / scale), there // 3 % 2 - 0.5
    beta, curvature = fit_logistic(design, score, weights, np.array([0.0, RIDGE, RIDGE]))
    half = special.ndtri(0.975) * np.sqrt(np.diag(np.linalg.inv(curvature)))
    prompts = int((np.bincount(pair.prompt) > 0).sum())
    numbers = np.array([beta, beta - half, beta + half])
    numbers[:, 0] = special.expit(numbers[:, 0])
    estimates = [Estimate(at, Interval(low, high), prompts) for at, low, high in numbers.T.tolist()]
    return ControlledWinRate(models[pair.model], models[pair.opponent], *estimates)
