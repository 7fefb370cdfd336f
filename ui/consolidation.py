"""Consolidation: one winner out of the several votes on a pair of answers, and how sure it is."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ui.outcomes import FloatArray, IntArray, Outcomes

if TYPE_CHECKING:
    import pandas as pd

Method = Literal["majority", "dawid-skene"]
METHODS: tuple[Method, ...] = ("majority", "dawid-skene")
WINNERS = (1, 0, -1)  # the first answer, neither (a tie or both bad), the second
ITERATIONS = 100


@dataclass(frozen=True)
class Consolidation:
    """One winner for each pair of answers with votes; arrays have one entry per pair.

    Attributes:
        method: how the votes were put together.
        duel: place in `Outcomes.duels`.
        winner: 1 for the first answer, -1 for the second, 0 for neither.
        confidence: probability of the winner (Dawid-Skene), or its share of the votes (majority).
        votes: without skips.
        both_bad: how many of them called both answers bad.
        value: mean of the votes, -2 … 2, positive for the first answer.
        confusion: of each rater, shape (3, 3): the chance to say the winner of the column when that
            of the row is true, in the order of `WINNERS`; only from Dawid-Skene.
    """

    method: Method
    duel: IntArray
    winner: IntArray
    confidence: FloatArray
    votes: IntArray
    both_bad: IntArray
    value: FloatArray
    confusion: Mapping[str, FloatArray] = field(default_factory=dict)

    def table(self, outcomes: Outcomes) -> "pd.DataFrame":
        """Return one row per pair of answers with names for numbers; `winner` is a model or tie."""
        import pandas as pd

        duels, models = outcomes.duels, np.array(outcomes.models, dtype=object)
        first, second = models[duels.first[self.duel]], models[duels.second[self.duel]]
        return pd.DataFrame(
            {
                "item": outcomes.items[duels.item[self.duel]],
                "prompt_id": np.array(outcomes.prompts, dtype=object)[duels.prompt[self.duel]],
                "first": first,
                "second": second,
                "winner": np.choose(self.winner + 1, [second, "tie", first]),
                "confidence": self.confidence,
                "votes": self.votes,
                "both_bad": self.both_bad,
                "value": self.value,
            }
        )


def consolidate(outcomes: Outcomes, method: Method = "dawid-skene") -> Consolidation:
    """Return one winner for each pair of answers that has a vote.

    Args:
        outcomes: of a campaign.
        method: `majority`: the outcome with most votes, a tie when two have as many;
            `dawid-skene`: each vote weighs by how its rater errs (Dawid & Skene 1979).
    """
    winner, confidence, confusion = (_majority if method == "majority" else _dawid_skene)(outcomes)
    given = outcomes.counted
    size = len(outcomes.duels.item)
    votes = np.bincount(given.duel, minlength=size)
    duel = np.flatnonzero(votes)
    return Consolidation(
        method=method,
        duel=duel,
        winner=winner[duel],
        confidence=confidence[duel],
        votes=votes[duel],
        both_bad=np.bincount(given.duel[given.both_bad], minlength=size)[duel],
        value=np.bincount(given.duel, given.value, minlength=size)[duel] / votes[duel],
        confusion=confusion,
    )


def _majority(outcomes: Outcomes) -> tuple[IntArray, FloatArray, dict[str, FloatArray]]:
    given, size = outcomes.counted, len(outcomes.duels.item)
    cell = 3 * given.duel + 1 - np.sign(given.value)
    counts = np.bincount(cell, minlength=3 * size).reshape(size, 3)
    most = counts.max(axis=1, keepdims=True)
    contested = (counts == most).sum(axis=1) > 1
    winner = np.where(contested, 0, np.array(WINNERS)[counts.argmax(axis=1)])
    return winner, most[:, 0] / np.maximum(counts.sum(axis=1), 1), {}


def _dawid_skene(outcomes: Outcomes) -> tuple[IntArray, FloatArray, dict[str, FloatArray]]:
    """Run Dawid & Skene's EM, with gold questions as known truth and a prior for each rater.

    The prior counts every rater as having said each outcome once for each true one, and the true
    one twice. Without it a rater with few votes is either perfect or hopeless, and the winners come
    out far surer than they are right.
    """
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    given, duels = outcomes.verdicts, outcomes.duels
    given = given.where(~given.skipped & ~given.repeat)
    size, raters = len(duels.item), np.flatnonzero(np.bincount(given.rater))
    winner, confidence = np.zeros(size, dtype=np.int64), np.zeros(size)
    if not len(given):
        return winner, confidence, {}
    prior = [(true, said) for true in WINNERS for said in WINNERS] + [(w, w) for w in WINNERS]
    task = np.repeat(-1 - np.arange(len(prior)), len(raters))
    data = pd.DataFrame(
        {
            "task": np.concatenate([given.duel, task]),
            "worker": np.concatenate([given.rater, np.tile(raters, len(prior))]),
            "label": np.concatenate(
                [np.sign(given.value), np.repeat([said for _, said in prior], len(raters))]
            ),
        }
    )
    known = np.flatnonzero(duels.best)
    truth = pd.Series(
        np.concatenate([duels.best[known], [true for true, _ in prior]]),
        index=np.concatenate([known, -1 - np.arange(len(prior))]),
    )
    with warnings.catch_warnings():
        # crowd-kit passes pandas arguments that have lost their meaning.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="crowdkit")
        model: Any = DawidSkene(n_iter=ITERATIONS).fit(data, truth)
    chances = model.probas_.reindex(columns=list(WINNERS)).sort_index()
    chances = chances[chances.index >= 0]
    winner[chances.index] = np.array(WINNERS)[chances.to_numpy().argmax(axis=1)]
    confidence[chances.index] = chances.to_numpy().max(axis=1)
    said = model.errors_.reindex(columns=list(WINNERS))
    confusion = {
        outcomes.raters[rater]: said.loc[rater].reindex(list(WINNERS)).to_numpy().T
        for rater in raters.tolist()
    }
    return winner, confidence, confusion
