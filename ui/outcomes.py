"""Outcomes: the votes of a campaign resolved to models, in arrays ready for statistics."""

import json
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from sqlalchemy import BigInteger, String, Text, case, cast, func, select
from sqlalchemy.orm import Session

from ui.campaigns import find_campaign
from ui.schema import Answer, Assignment, Choice, Item, Mode, User, Vote
from ui.store import Store

T = TypeVar("T")
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# The last is a comparison that follows from a ranking.
CHOICES: tuple[str, ...] = (*get_args(Choice), "ranked")
_VALUES = {"a_much": 2, "a": 1, "b": -1, "b_much": -2}  # for the left answer; ties and others 0
_POINTS = 400
_WEEK = 7 * 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Duels:
    """Pairs of answers to one prompt; one to an item, or K(K-1)/2 to a ranking of K answers.

    Each array has one entry per duel. The answer whose model comes first in `Outcomes.models` is
    the first of the duel, so that values of all duels of two models point the same way.

    Attributes:
        item: place in `Outcomes.items`, as `prompt` and `category` are in theirs.
        first: place in `Outcomes.models`, as is `second`; the same where one model wrote both.
        first_length: in `Outcomes.length_unit`, as is `second_length`.
        best: of a gold question, 1 when the first answer must win, -1 when the second must, 0 for
            two others of a ranking; of normal items 0.
        gold: belongs to a gold question.
    """

    item: IntArray
    prompt: IntArray
    category: IntArray
    first: IntArray
    second: IntArray
    first_length: FloatArray
    second_length: FloatArray
    best: IntArray
    gold: BoolArray


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
    with store.reading() as session, ThreadPoolExecutor(2) as pool:
        asked = find_campaign(session, campaign)
        mine = _condition(session, asked.id)

        def beside(read: Callable[..., T], *given: Any) -> Callable[[], T]:
            def alone() -> T:
                with store.reading() as other:
                    return read(other, *given)

            # SQLite: this session sees the moment of its first statement, and the others a later
            # one. Elsewhere a statement sees its own, and the others must wait for the votes.
            return pool.submit(alone).result if store.sqlite else lambda: read(session, *given)

        # After the votes: a lease or an item that comes in between is known then.
        read_leases = beside(_read_leases, mine)
        read_items = beside(_read_items, asked.id, list(asked.models))
        votes = _read_votes(session, asked.id, mine, read_leases)
        items = read_items()
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
            verdicts=_resolved(items, votes, _places(users, votes.user)),
            wanted=int((~items.gold).sum()) * asked.raters_per_item,
            price_per_label=asked.price_per_label,
            extra=asked.gold_share + asked.swap_share,
            curve=_curve(session, votes.id[votes.choice != CHOICES.index("skip")]),
        )


@dataclass(frozen=True)
class _Votes:
    """The votes as stored, in their order."""

    orders: list[list[int]]  # of each ranking, the answer ids as shown
    ranks: list[list[int]]
    id: IntArray
    user: IntArray
    item: IntArray  # ids in the database
    choice: IntArray
    left: IntArray  # id of the answer shown first
    repeat: BoolArray
    seconds: FloatArray


@dataclass(frozen=True)
class _Items:
    """The items of a campaign, their answers by item and then by model, and their duels."""

    id: IntArray  # ascending
    models: tuple[str, ...]
    prompts: tuple[str, ...]
    categories: tuple[str, ...]
    length_unit: str
    gold: BoolArray
    answer: IntArray  # ids
    answer_start: IntArray  # of each item, the place of its first answer
    duel_start: IntArray
    duels: Duels
    duel_answer: IntArray  # id of the first answer


def _read_leases(session: Session, mine: Callable[[Any], Any]) -> list[npt.NDArray[Any]]:
    left, swap = Assignment.order[0].as_integer(), case((Assignment.purpose == "swap", 1), else_=0)
    of_lease = (Assignment.id, Assignment.item_id, left, swap)
    return _columns(session, mine(Assignment.campaign_id), *of_lease)


def _read_votes(
    session: Session,
    campaign: int,
    mine: Callable[[Any], Any],
    leases: Callable[[], list[npt.NDArray[Any]]],
) -> _Votes:
    # The two tables are joined here: a million probes of an index by a random key take a database
    # file longer than reading both from end to end.
    known = case({name: place for place, name in enumerate(CHOICES)}, value=Vote.choice)
    choice = func.coalesce(known, CHOICES.index("ranked"))
    # In whole milliseconds, up to a week: printing fractions takes as long as all the rest.
    capped = case((Vote.seconds < _WEEK, Vote.seconds), else_=_WEEK)
    lent, number, user, chosen, milliseconds = _columns(
        session, mine(Vote.campaign_id), Vote.assignment_id, Vote.id, Vote.user_id, choice,
        cast(func.round(capped * 1000), BigInteger),
    )  # fmt: skip
    key, item, first, repeat = leases()
    by_key, by_lent = np.argsort(key), np.argsort(lent)
    found = np.empty_like(by_lent)
    found[by_lent] = by_key[np.searchsorted(key[by_key], lent[by_lent])]
    orders: list[list[int]] = []
    ranks: list[list[int]] = []
    if (chosen == CHOICES.index("ranked")).any():
        of_ranking = select(Assignment.order, Vote.ranks).join_from(Vote, Assignment)
        rankings = of_ranking.where(Vote.campaign_id == campaign, Vote.ranks.is_not(None))
        for order, given in session.execute(rankings.order_by(Vote.id)):
            orders.append(order)
            ranks.append(given or [])
    columns: tuple[npt.NDArray[Any], ...] = (
        number,
        user,
        item[found],
        chosen,
        first[found],
        repeat[found] == 1,
        milliseconds / 1000,
    )
    by_time = np.argsort(number)
    return _Votes(orders, ranks, *(column[by_time] for column in columns))


def _condition(session: Session, campaign: int) -> Callable[[Any], Any]:
    """Return the condition that a column names the campaign, as it is quickest for this one."""
    own = session.scalar(select(func.count()).where(Vote.campaign_id == campaign)) or 0
    newest = session.scalar(select(func.max(Vote.id))) or 0
    # A sum keeps SQLite from its index, which would fetch the rows one by one, all over the file.
    return lambda column: (column + 0 if 4 * own > newest else column) == campaign


def _read_items(session: Session, campaign: int, models: Sequence[str]) -> _Items:
    here = Item.campaign_id == campaign
    number, best_answer = _columns(session, here, Item.id, func.coalesce(Item.gold_best, -1))
    by_number = np.argsort(number)
    number, best_answer = number[by_number], best_answer[by_number]
    prompts, prompt_code = _coded(_texts(session, here, Item.id, Item.prompt_id))
    categories, category_code = _coded(_texts(session, here, Item.id, Item.category))
    span = Answer.item_id.between(int(number.min(initial=0)), int(number.max(initial=0)))
    code = case({name: place for place, name in enumerate(models)}, value=Answer.model, else_=-1)
    tokens = func.coalesce(Answer.tokens, -1)
    answer, item, model_code, length = _columns(
        session, span, Answer.id, Answer.item_id, code, tokens
    )
    place = _places(number, item)
    own = place >= 0  # items of other campaigns may lie between one's own
    answer, place, model_code, length = answer[own], place[own], model_code[own], length[own]
    if (model_code < 0).any():
        others = select(Answer.model).distinct().join(Item, Item.id == Answer.item_id)
        named = others.where(Item.campaign_id == campaign, Answer.model.not_in(models))
        return _read_items(session, campaign, [*models, *sorted(session.scalars(named))])
    unit = "tokens"
    if (length < 0).any():
        unit = "characters"
        ids, counted = _columns(session, span, Answer.id, func.length(Answer.text))
        by_id = np.argsort(ids)
        length = counted[by_id][_places(ids[by_id], answer)]
    order = np.lexsort((answer, model_code, place))
    answer, place, model_code, length = (x[order] for x in (answer, place, model_code, length))
    size = np.bincount(place, minlength=len(number))
    pairs = size * (size - 1) // 2
    answer_start, duel_start = np.cumsum(size) - size, np.cumsum(pairs) - pairs
    of_duel = np.repeat(np.arange(len(number)), pairs)
    left, right = np.empty((2, len(of_duel)), dtype=np.int64)
    for count in np.unique(size[size > 1]).tolist():
        of_size = np.flatnonzero(size == count)[:, None]
        one, other = np.triu_indices(count, 1)
        at = duel_start[of_size] + np.arange(len(one))
        left[at], right[at] = answer_start[of_size] + one, answer_start[of_size] + other
    best_here = best_answer[of_duel]
    return _Items(
        id=number,
        models=tuple(models),
        prompts=prompts,
        categories=categories,
        length_unit=unit,
        gold=best_answer >= 0,
        answer=answer,
        answer_start=answer_start,
        duel_start=duel_start,
        duel_answer=answer[left],
        duels=Duels(
            item=of_duel,
            prompt=prompt_code[of_duel],
            category=category_code[of_duel],
            first=model_code[left],
            second=model_code[right],
            first_length=length[left].astype(float),
            second_length=length[right].astype(float),
            best=(answer[left] == best_here).astype(np.int64) - (answer[right] == best_here),
            gold=best_here >= 0,
        ),
    )


def _resolved(items: _Items, votes: _Votes, rater: IntArray) -> Verdicts:
    item = _places(items.id, votes.item)
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
        places = np.flatnonzero(ranked)[rows]
        answers = items.answer[items.answer_start[item[places]][:, None] + np.arange(count)]
        shown = (order[:, None, :] == answers[:, :, None]).argmax(axis=2)
        rank = np.take_along_axis(ranks, shown, axis=1)
        one, other = np.triu_indices(count, 1)
        at = start[places][:, None] + np.arange(len(one))
        value[at] = np.sign(rank[:, other] - rank[:, one])
        first_left[at] = shown[:, one] < shown[:, other]
    choice, repeat, seconds = votes.choice[vote], votes.repeat[vote], votes.seconds[vote]
    return Verdicts(vote, rater[vote], duel, choice, value, first_left, repeat, seconds)


def _curve(session: Session, labels: IntArray) -> tuple[tuple[datetime, int], ...]:
    if not len(labels):
        return ()
    places = np.unique(np.linspace(0, len(labels) - 1, _POINTS).round().astype(np.int64))
    chosen = labels[places].tolist()
    of_vote = select(Vote.id, Vote.created).where(Vote.id.in_(chosen))
    when = dict(session.execute(of_vote).all())
    return tuple(
        (when[vote], place + 1) for vote, place in zip(chosen, places.tolist(), strict=True)
    )


def _texts(session: Session, condition: Any, order: Any, column: Any) -> list[str]:
    """Return a column of texts, "" for null, quicker than row by row."""
    sqlite = session.get_bind().dialect.name == "sqlite"
    listed = (
        select(func.coalesce(column, "").label("x")).where(condition).order_by(order).subquery()
    )
    joined = func.json_group_array(listed.c.x) if sqlite else func.json_agg(listed.c.x)
    found: list[str] = json.loads(session.scalar(select(cast(joined, Text))) or "[]")
    return found


def _coded(values: Sequence[str]) -> tuple[tuple[str, ...], IntArray]:
    """Return the different values, as they come, and the place of each value among them."""
    place = {name: i for i, name in enumerate(dict.fromkeys(values))}
    return tuple(place), np.fromiter(map(place.__getitem__, values), np.int64, len(values))


def _places(known: IntArray, ids: IntArray) -> IntArray:
    """Return each id's place among the known ones, which ascend; -1 for others."""
    table = np.full(max(known.max(initial=0), ids.max(initial=0)) + 1, -1)
    table[known] = np.arange(len(known))
    return table[ids]


def _columns(session: Session, condition: Any, *columns: Any) -> list[npt.NDArray[Any]]:
    """Return columns as arrays of numbers; of random ids of 32 digits, the first 64 bits.

    The database joins each column into one text (of 1 GB at most: 30 million ids), which takes
    half the time of making objects of its rows. Ids are random in every bit (`secrets.token_hex`,
    or BLAKE2 of an id from elsewhere): two of n begin alike with a chance of n² / 2⁶⁵, which for a
    million votes is 3e-8 and for thirty million 2e-5.
    """
    tokens = [isinstance(column.type, String) for column in columns]
    joined = [
        func.aggregate_strings(cast(column, Text), "" if token else ",")
        for column, token in zip(columns, tokens, strict=True)
    ]
    texts = session.execute(select(*joined).where(condition)).one()
    return [
        np.frombuffer(bytes.fromhex(text or ""), dtype=np.uint64)[::2]
        if token
        else np.fromstring(text or "", sep=",", dtype=np.int64)
        for text, token in zip(texts, tokens, strict=True)
    ]
