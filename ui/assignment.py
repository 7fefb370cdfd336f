"""Which item a rater is shown next, on which sides: leases that expire, gold and re-shows."""

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session, aliased

from ui.campaigns import find_campaign
from ui.errors import Refused
from ui.schedule import (
    OPEN_ITEMS,
    OWN,
    RECENT,
    UNSEEN_GOLD,
    bound,
    drawn_numbers,
    drawn_order,
    items_left,
    own_assignments,
    seen_so_far,
    wish,
)
from ui.schema import Answer, Assignment, Campaign, Item, Mode, Purpose, User, Vote
from ui.store import Store, log_event
from workbench.chat import Prompt

_MOST_GIVEN_BACK = 500
# The statements of every vote, made once (see `ui.schedule`).
# FOR NO KEY UPDATE: others may go on referring to the row.
_RATER = select(User).where(User.name == bindparam("name")).with_for_update(key_share=True)
# The last one lent: after an undo that is the item that was opened again.
_LENT = (
    select(Assignment.id)
    .where(*OWN, Assignment.status == "leased")
    .order_by(Assignment.expires.desc())
    .limit(1)
)
_EXPIRED = (
    select(Assignment.id, Assignment.item_id, Assignment.purpose)
    .where(
        Assignment.campaign_id == bindparam("campaign"),
        Assignment.status == "leased",
        Assignment.expires <= bindparam("now"),
    )
    .order_by(Assignment.item_id)  # everybody locks in the same order
    .limit(_MOST_GIVEN_BACK)
    # Waits for others who give the same back: what they free would not be seen otherwise.
    .with_for_update()
)
_SHOWN = (
    select(Assignment, Item, Campaign, User)
    .join(Item, Item.id == Assignment.item_id)
    .join(Campaign, Campaign.id == Assignment.campaign_id)
    .join(User, User.id == Assignment.user_id)
    .where(Assignment.id == bindparam("assignment"))
)
_TEXTS = select(Answer.id, Answer.text).where(Answer.item_id == bindparam("item"))
_ANSWERS = select(Answer.id).where(Answer.item_id == bindparam("item")).order_by(Answer.id)
_POSITION = select(Item.position).where(Item.id == bindparam("item"))
_TAKE = (
    update(Item)
    .where(Item.id == bindparam("item"), Item.taken < bindparam("most"))
    .values(taken=Item.taken + 1)
    .returning(Item.id)
    .execution_options(synchronize_session=False)
)
# A lease of one's own that ran out: the same row again, in the same order.
_RENEW = (
    update(Assignment)
    .where(
        Assignment.item_id == bindparam("item"),
        Assignment.user_id == bindparam("rater"),
        Assignment.repeat_of.is_(None),
    )
    .values(status="leased", created=bindparam("now"), expires=bindparam("until"))
    .returning(Assignment.id)
    .execution_options(synchronize_session=False)
)
_NEXT_OPEN = OPEN_ITEMS.order_by(Item.taken, Item.position).limit(1)
# Items that others are taking at this moment are passed over, and waited for only if there are no
# others. (SQLite has one writer and knows no such locks.)
_NEXT_LOCKED = tuple(
    _NEXT_OPEN.with_for_update(skip_locked=skip_locked, of=Item) for skip_locked in (True, False)
)


@dataclass(frozen=True)
class Shown:
    """What a rater sees: nothing here tells a model, a gold question or a re-show.

    Attributes:
        assignment_id: to vote with.
        prompt: text or messages.
        answers: their texts, left to right.
        left: items left for this rater, this one included; at most `MOST_LEFT`.
        mode: of the campaign.
        expires: after this, the item goes to somebody else.
    """

    assignment_id: str
    prompt: Prompt
    answers: list[str]
    left: int
    mode: Mode
    expires: datetime


def next_assignment(store: Store, campaign: str, user: str, now: datetime) -> Shown | None:
    """Lend a rater the next item, or show again the one that is already lent.

    Leases that ran out are given back first. Among the items that still want raters, those with
    the fewest come first; in between, by the campaign's shares, come gold questions and the rater's
    own earlier items in the other order. What is drawn depends on the campaign's seed, the item's
    position and the rater's name only.

    Args:
        store: of ratings.
        campaign: its name.
        user: the rater's name.
        now: this moment, with a time zone.

    Returns:
        The item, or None when nothing is left for this rater.

    Raises:
        Refused: `closed`, `paused`, `inactive`.
        UserError: for an unknown campaign or user.
    """

    def work(session: Session) -> str | None:
        rater, asked = lock_user(session, user), find_campaign(session, campaign)
        if asked.status == "closed":
            raise Refused("closed", f"campaign {campaign}: it is closed; thank you")
        _give_back_expired(session, asked, now)
        expires = now + timedelta(seconds=asked.lease_seconds)
        lent = session.scalar(_LENT, bound(asked, rater))
        if lent is not None:
            extended = update(Assignment).where(Assignment.id == lent).values(expires=expires)
            session.execute(extended)
            return lent
        if asked.status == "paused":
            raise Refused("paused", f"campaign {campaign}: it is paused; come back later")
        return _lend(session, asked, rater, now, expires)

    assignment_id = store.run(work)
    return None if assignment_id is None else shown(store, assignment_id)


def left(store: Store, campaign: str, user: str) -> int:
    """Return how many items are left for a rater, those before them included.

    Gold questions and re-shows to come are counted: they are drawn ahead, so that the number goes
    down by one with every vote and never tells them from the rest.
    """
    with store.reading() as session:
        rater = session.scalar(select(User).where(User.name == user))
        return 0 if rater is None else items_left(session, find_campaign(session, campaign), rater)


def shown(store: Store, assignment_id: str) -> Shown:
    """Return an assignment as its rater sees it."""
    with store.reading() as session:
        found = session.execute(_SHOWN, {"assignment": assignment_id})
        assignment, item, campaign, rater = found.one()
        texts = dict(session.execute(_TEXTS, {"item": item.id}).all())
        return Shown(
            assignment_id=assignment.id,
            prompt=item.prompt,
            answers=[texts[answer_id] for answer_id in assignment.order],
            left=items_left(session, campaign, rater),
            mode=campaign.mode,
            expires=assignment.expires,
        )


def lock_user(session: Session, name: str) -> User:
    """Return the account of a rater; what one rater does is done one after the other.

    Raises:
        Refused: `unknown` or `inactive`.
    """
    rater = session.scalar(_RATER, {"name": name})
    if rater is None:
        raise Refused("unknown", f"user {name!r}: there is no such account")
    if not rater.active:
        raise Refused("inactive", f"user {name}: the account is not active")
    return rater


def take_place(session: Session, item_id: int, raters_per_item: int) -> bool:
    """Take a rater's place at a normal item, and return whether there was one."""
    return session.scalar(_TAKE, {"item": item_id, "most": raters_per_item}) is not None


def give_place_back(session: Session, item_id: int, count: int = 1) -> None:
    """Free places at a normal item."""
    given = update(Item).where(Item.id == item_id).values(taken=Item.taken - count)
    session.execute(given.execution_options(synchronize_session=False))


def _lend(
    session: Session, campaign: Campaign, rater: User, now: datetime, expires: datetime
) -> str | None:
    step = sum(seen_so_far(session, campaign, rater).values())
    wanted = wish(campaign, rater.name, step)
    drawn = drawn_numbers(campaign, rater.name, f"which {step}")
    if wanted == "swap" and (earlier := _earlier(session, campaign, rater)):
        again = session.get_one(Assignment, drawn.choice(earlier))
        return _insert(
            session,
            campaign,
            rater,
            (now, expires),
            item_id=again.item_id,
            order=again.order[::-1],
            purpose="swap",
            repeat_of=again.id,
        )
    if wanted == "gold" and (unseen := session.scalars(UNSEEN_GOLD, bound(campaign, rater)).all()):
        return _lease(session, campaign, rater, (now, expires), drawn.choice(unseen), "gold")
    item_id = _free_item(session, campaign, rater)
    if item_id is None:
        return None
    return _lease(session, campaign, rater, (now, expires), item_id, "normal")


def _lease(
    session: Session,
    campaign: Campaign,
    rater: User,
    times: tuple[datetime, datetime],
    item_id: int,
    purpose: Purpose,
) -> str:
    now, expires = times
    mine = {"item": item_id, "rater": rater.id, "now": now, "until": expires}
    renewed: str | None = session.scalar(_RENEW, mine)
    if renewed is not None:
        return renewed
    position = session.scalars(_POSITION, mine).one()
    answers = session.scalars(_ANSWERS, mine).all()
    order = drawn_order(campaign, position, rater.name, answers)
    return _insert(session, campaign, rater, times, item_id=item_id, order=order, purpose=purpose)


def _insert(
    session: Session,
    campaign: Campaign,
    rater: User,
    times: tuple[datetime, datetime],
    **values: Any,
) -> str:
    assignment_id = secrets.token_hex(16)
    now, expires = times
    row = {"id": assignment_id, "campaign_id": campaign.id, "user_id": rater.id, "created": now}
    session.execute(insert(Assignment), [{**row, "expires": expires, **values}])
    return assignment_id


def _free_item(session: Session, campaign: Campaign, rater: User) -> int | None:
    """Take a place at a normal item that the rater has not seen, and return the item's id."""
    given = bound(campaign, rater)
    while True:
        for locked in _NEXT_LOCKED:
            found = session.scalar(locked, given)
            if found is not None and take_place(session, found, campaign.raters_per_item):
                return found
        # What we waited for may have been filled meanwhile, while others are still free.
        if session.scalar(_NEXT_OPEN, given) is None:
            return None


def _earlier(session: Session, campaign: Campaign, rater: User) -> Sequence[str]:
    """Return the rater's votes that can be asked again, without the most recent ones."""
    again = aliased(Assignment)
    voted = session.scalars(
        select(Assignment.id)
        .join(Vote, Vote.assignment_id == Assignment.id)
        .outerjoin(again, again.repeat_of == Assignment.id)
        .where(
            *own_assignments(campaign, rater),
            Assignment.purpose == "normal",
            Assignment.status == "voted",
            again.id.is_(None),
        )
        .order_by(Vote.id)
    ).all()
    return voted[:-RECENT]


def _give_back_expired(session: Session, campaign: Campaign, now: datetime) -> None:
    rows = session.execute(_EXPIRED, {"campaign": campaign.id, "now": now}).all()
    if not rows:
        return
    ids = [row.id for row in rows]
    session.execute(update(Assignment).where(Assignment.id.in_(ids)).values(status="expired"))
    places = Counter(row.item_id for row in rows if row.purpose == "normal")
    for item_id, count in places.items():
        give_place_back(session, item_id, count)
    log_event(session, "expire", at=now, campaign=campaign.name, assignments=ids)
