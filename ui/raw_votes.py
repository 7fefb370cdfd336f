"""Raw votes: a campaign's votes and items as they are stored, in arrays; known ones are kept."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar, get_args
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from sqlalchemy import BigInteger, String, Text, case, cast, func, select
from sqlalchemy.orm import Session

from ui.schema import Answer, Assignment, Choice, Item, Vote
from ui.store import Store

T = TypeVar("T")
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# The last is a comparison that follows from a ranking.
CHOICES: tuple[str, ...] = (*get_args(Choice), "ranked")
_WEEK = 7 * 24 * 3600.0  # seconds
_MOST_NEW = 20_000  # votes that are added to known ones row by row
_MOST_KEPT = 2  # campaigns; a million votes take some 60 MB


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
class RawVotes:
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
class RawItems:
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


class _Kept(NamedTuple):
    """What was read of a campaign.

    Attributes:
        stamp: how many items there were, and the newest of them.
        mark: assignment of the newest vote, a random id: the same votes begin where it is found.
    """

    stamp: tuple[int, ...]
    mark: str
    items: "RawItems"
    votes: "RawVotes"


_kept: "WeakKeyDictionary[Store, dict[int, _Kept]]" = WeakKeyDictionary()


def read_raw(
    store: Store, session: Session, campaign: int, models: Sequence[str]
) -> "tuple[RawItems, RawVotes]":
    """Read the items and votes of a campaign; of one that is known, only what is new.

    Args:
        store: of ratings.
        session: an open reading session of it.
        campaign: its id.
        models: in the campaign's order.
    """
    count = select(func.count(), func.max(Item.id)).where(Item.campaign_id == campaign)
    stamp = tuple(session.execute(count).one())
    kept = _kept.setdefault(store, {})
    known = kept.pop(campaign, None)
    items = votes = None
    if known is not None and known.stamp == stamp and _mark(session, known.votes) == known.mark:
        items, votes = known.items, _appended(session, campaign, known.votes)
    if items is None or votes is None:
        items, votes = _read_all(store, session, campaign, models)
    mark = _mark(session, votes)
    if mark is not None:
        kept[campaign] = _Kept(stamp, mark, items, votes)
    while len(kept) > _MOST_KEPT:
        del kept[next(iter(kept))]
    return items, votes


def _mark(session: Session, votes: "RawVotes") -> str | None:
    newest = int(votes.id.max(initial=0))
    return session.scalar(select(Vote.assignment_id).where(Vote.id == newest))


def _appended(session: Session, campaign: int, known: "RawVotes") -> "RawVotes | None":
    """Return known votes with those that have come since; None when others have gone."""
    own = Vote.campaign_id == campaign
    newest = int(known.id.max(initial=0))
    left, swap = Assignment.order[0].as_integer(), Assignment.purpose == "swap"
    rows = session.execute(
        select(
            Vote.id, Vote.user_id, Assignment.item_id, Vote.choice, left, swap, Vote.seconds,
            Assignment.order, Vote.ranks,
        )
        .join_from(Vote, Assignment)
        .where(own, Vote.id > newest)
        .order_by(Vote.id)
        .limit(_MOST_NEW)
    ).all()  # fmt: skip
    # Votes are added or taken back, never changed: where the number is right, so are all the rest.
    if session.scalar(select(func.count()).where(own)) != len(known.id) + len(rows):
        return None
    if not rows:
        return known
    number, user, item, choice, first, repeat, seconds, orders, ranks = zip(*rows, strict=True)
    ranking = [place for place, given in enumerate(ranks) if given is not None]
    added = RawVotes(
        orders=[orders[place] for place in ranking],
        ranks=[ranks[place] for place in ranking],
        id=np.array(number),
        user=np.array(user),
        item=np.array(item),
        choice=np.array([CHOICES.index(name or "ranked") for name in choice]),
        left=np.array(first),
        repeat=np.array(repeat, dtype=bool),
        seconds=np.array([round(min(float(value), _WEEK) * 1000) / 1000 for value in seconds]),
    )
    joined: dict[str, Any] = {}
    for field in fields(RawVotes):
        before, after = getattr(known, field.name), getattr(added, field.name)
        whole = isinstance(before, list)
        joined[field.name] = [*before, *after] if whole else np.concatenate([before, after])
    return RawVotes(**joined)


def _read_all(
    store: Store, session: Session, campaign: int, models: Sequence[str]
) -> "tuple[RawItems, RawVotes]":
    mine = _condition(session, campaign)
    with ThreadPoolExecutor(2) as pool:

        def beside(read: Callable[..., T], *given: Any) -> Callable[[], T]:
            def alone() -> T:
                with store.reading() as other:
                    return read(other, *given)

            # SQLite: this session sees the moment of its first statement, and the others a later
            # one. Elsewhere a statement sees its own, and the others must wait for the votes.
            return pool.submit(alone).result if store.sqlite else lambda: read(session, *given)

        # After the votes: a lease or an item that comes in between is known then.
        read_leases = beside(_read_leases, mine)
        read_items = beside(_read_items, campaign, models)
        votes = _read_votes(session, campaign, mine, read_leases)
        return read_items(), votes


def _read_leases(session: Session, mine: Callable[[Any], Any]) -> list[npt.NDArray[Any]]:
    left, swap = Assignment.order[0].as_integer(), case((Assignment.purpose == "swap", 1), else_=0)
    of_lease = (Assignment.id, Assignment.item_id, left, swap)
    return _columns(session, mine(Assignment.campaign_id), *of_lease)


def _read_votes(
    session: Session,
    campaign: int,
    mine: Callable[[Any], Any],
    leases: Callable[[], list[npt.NDArray[Any]]],
) -> RawVotes:
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
    return RawVotes(orders, ranks, *(column[by_time] for column in columns))


def _condition(session: Session, campaign: int) -> Callable[[Any], Any]:
    """Return the condition that a column names the campaign, as it is quickest for this one."""
    own = session.scalar(select(func.count()).where(Vote.campaign_id == campaign)) or 0
    newest = session.scalar(select(func.max(Vote.id))) or 0
    # A sum keeps SQLite from its index, which would fetch the rows one by one, all over the file.
    return lambda column: (column + 0 if 4 * own > newest else column) == campaign


def _read_items(session: Session, campaign: int, models: Sequence[str]) -> RawItems:
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
    place = places(number, item)
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
        length = counted[by_id][places(ids[by_id], answer)]
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
    return RawItems(
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


def places(known: IntArray, ids: IntArray) -> IntArray:
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
