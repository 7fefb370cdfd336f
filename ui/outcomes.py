"""Outcomes: the votes of a campaign resolved to models, in arrays ready for statistics."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import select
from sqlalchemy.orm import Session

from ui.campaigns import find_campaign
from ui.raw_votes import (
    CHOICES,
    BoolArray,
    Duels,
    FloatArray,
    IntArray,
    RawItems,
    RawVotes,
    places,
    read_raw,
)
from ui.schema import Mode, User, Vote
from ui.store import Store

__all__ = [
    "CHOICES", "BoolArray", "Duels", "FloatArray", "IntArray", "Outcomes", "Verdicts",
    "read_outcomes",
]  # fmt: skip

_VALUES = {"a_much": 2, "a": 1, "b": -1, "b_much": -2}  # for the left answer; ties and others 0
_POINTS = 400


@dataclass(frozen=True)
class Verdicts:
    """What raters said about duels, one entry per vote and duel, in the order of the votes.

    Attributes:
        vote: number of the vote, from 0; a ranking's comparisons share it.
        rater: place in `Outcomes.raters`.
        duel: place in `Outcomes.duels`; of a skipped ranking, its first.
        choice: place in `CHOICES`, as shown: a is the left answer.
        value: -2 … 2, positive for the first answer; 0 for a tie, for both bad and for a skip.
        first_left: the first answer stood left of the second.
        repeat: a re-show of what the rater had judged before, in the other order.
        seconds: from showing to voting.
    """

    vote: IntArray
    rater: IntArray
    duel: IntArray
    choice: IntArray
    value: IntArray
    first_left: BoolArray
    repeat: BoolArray
    seconds: FloatArray

    def __len__(self) -> int:
        return len(self.vote)

    @property
    def both_bad(self) -> BoolArray:
        """Whether the rater called both answers bad; a tie for who wins, but kept apart."""
        chosen: BoolArray = self.choice == CHOICES.index("both_bad")
        return chosen

    @property
    def skipped(self) -> BoolArray:
        """Whether the rater passed; that is no vote."""
        chosen: BoolArray = self.choice == CHOICES.index("skip")
        return chosen

    def where(self, chosen: npt.NDArray[Any]) -> "Verdicts":
        """Return those that a mask or places choose."""
        return Verdicts(**{name: column[chosen] for name, column in vars(self).items()})

    def heads(self) -> "Verdicts":
        """Return the first verdict of each vote: the votes themselves, rankings counted once."""
        return self.where(np.diff(self.vote, prepend=-1) != 0)


@dataclass(frozen=True)
class Outcomes:
    """The votes of a campaign, resolved to models.

    Attributes:
        campaign: its name; `mode` and `price_per_label` (in dollars) are its own.
        models: in the campaign's order, then others by name.
        raters: who voted, by name.
        items: their ids in the database.
        prompts: ids of the prompts.
        categories: of the items; "" for none.
        length_unit: tokens, or characters where the tokens of an answer are not known.
        duels: what could be compared.
        verdicts: what was said.
        wanted: votes the normal items want.
        extra: share of what is shown that is a gold question or a re-show.
        curve: moments, and the labels (votes without skips) there were by then; every vote is
            counted, some hundred moments are kept.
    """

    campaign: str
    mode: Mode
    models: tuple[str, ...]
    raters: tuple[str, ...]
    items: IntArray
    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    length_unit: str
    duels: Duels
    verdicts: Verdicts
    wanted: int
    price_per_label: float
    extra: float
    curve: tuple[tuple[datetime, int], ...]

    @cached_property
    def counted(self) -> Verdicts:
        """The verdicts that compare models: without skips, gold questions and re-shows."""
        given = self.verdicts
        return given.where(~given.skipped & ~given.repeat & ~self.duels.gold[given.duel])

    def only(self, category: str) -> "Outcomes":
        """Return the outcomes of one category of items; the curve, the plan and names stay."""
        inside = np.array([name == category for name in self.categories], dtype=bool)
        chosen = inside[self.duels.category[self.verdicts.duel]]
        return replace(self, verdicts=self.verdicts.where(chosen))

    def without(self, raters: Collection[str]) -> "Outcomes":
        """Return the outcomes without some raters' votes; the curve, the plan and names stay."""
        out = np.array([name in raters for name in self.raters], dtype=bool)
        return replace(self, verdicts=self.verdicts.where(~out[self.verdicts.rater]))


def read_outcomes(store: Store, campaign: str) -> Outcomes:
    """Read the votes of a campaign.

    Args:
        store: of ratings.
        campaign: its name.

    Raises:
        UserError: when there is no campaign of that name.
    """
    with store.reading() as session:
        asked = find_campaign(session, campaign)
        items, votes = read_raw(store, session, asked.id, list(asked.models))
        users = np.flatnonzero(np.bincount(votes.user))
        names = dict(session.execute(select(User.id, User.name)).all())
        return Outcomes(
            campaign=asked.name,
            mode=asked.mode,
            models=items.models,
            raters=tuple(names[user] for user in users.tolist()),
            items=items.id,
            prompts=items.prompts,
            categories=items.categories,
            length_unit=items.length_unit,
            duels=items.duels,
            verdicts=_resolved(items, votes, places(users, votes.user)),
            wanted=int((~items.gold).sum()) * asked.raters_per_item,
            price_per_label=asked.price_per_label,
            extra=asked.gold_share + asked.swap_share,
            curve=_curve(session, votes.id[votes.choice != CHOICES.index("skip")]),
        )


def _resolved(items: RawItems, votes: RawVotes, rater: IntArray) -> Verdicts:
    item = places(items.id, votes.item)
    ranked = votes.choice == CHOICES.index("ranked")
    pairs = np.ones(len(item), dtype=np.int64)
    size = np.fromiter(map(len, votes.orders), np.int64, len(votes.orders))
    pairs[ranked] = size * (size - 1) // 2
    start = np.cumsum(pairs) - pairs
    vote = np.repeat(np.arange(len(item)), pairs)
    duel = items.duel_start[item][vote] + np.arange(len(vote)) - start[vote]
    first_left = items.duel_answer[duel] == votes.left[vote]
    of_choice = np.array([_VALUES.get(name, 0) for name in CHOICES])
    value = of_choice[votes.choice][vote] * np.where(first_left, 1, -1)
    for count in np.unique(size).tolist():
        rows = np.flatnonzero(size == count)
        order = np.array([votes.orders[row] for row in rows.tolist()])
        ranks = np.array([votes.ranks[row] for row in rows.tolist()])
        votes_here = np.flatnonzero(ranked)[rows]
        answers = items.answer[items.answer_start[item[votes_here]][:, None] + np.arange(count)]
        shown = (order[:, None, :] == answers[:, :, None]).argmax(axis=2)
        rank = np.take_along_axis(ranks, shown, axis=1)
        one, other = np.triu_indices(count, 1)
        at = start[votes_here][:, None] + np.arange(len(one))
        value[at] = np.sign(rank[:, other] - rank[:, one])
        first_left[at] = shown[:, one] < shown[:, other]
    choice, repeat, seconds = votes.choice[vote], votes.repeat[vote], votes.seconds[vote]
    return Verdicts(vote, rater[vote], duel, choice, value, first_left, repeat, seconds)


def _curve(session: Session, labels: IntArray) -> tuple[tuple[datetime, int], ...]:
    if not len(labels):
        return ()
    kept = np.unique(np.linspace(0, len(labels) - 1, _POINTS).round().astype(np.int64))
    chosen = labels[kept].tolist()
    of_vote = select(Vote.id, Vote.created).where(Vote.id.in_(chosen))
    when = dict(session.execute(of_vote).all())
    return tuple((when[vote], place + 1) for vote, place in zip(chosen, kept.tolist(), strict=True))
