"""Conversations that a rater has with two models at once, stored turn by turn."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import SystemRandom

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from ui.assignment import lock_user
from ui.display import storable
from ui.errors import Refused
from ui.leaks import find_leak
from ui.schedule import own_assignments
from ui.schema import Answer, Assignment, Campaign, Item, Turn, User
from ui.store import Store, log_event
from workbench.files import digest

LONGEST_PROMPT = 4000  # characters
MOST_TURNS = 20


@dataclass(frozen=True)
class Reply:
    """What one model has answered.

    Attributes:
        text: the answer.
        tokens: its length.
        finished: False when it was cut at the token limit.
    """

    text: str
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Chat:
    """A conversation that is not voted on yet.

    Attributes:
        assignment_id: to vote with.
        models: who answers, left and right; never for the browser.
        turns: what the rater wrote, and the answers, left and right.
    """

    assignment_id: str
    models: tuple[str, str]
    turns: list[tuple[str, tuple[str, str]]]


def checked_text(text: str) -> str:
    """Return what a rater wrote, if it can be asked.

    Raises:
        Refused: `invalid`, when it is empty or too long.
    """
    text = storable(text).strip()
    if not text:
        raise Refused("invalid", "write something first")
    if len(text) > LONGEST_PROMPT:
        raise Refused("invalid", f"{len(text)} characters; {LONGEST_PROMPT} at most")
    return text


def draw_models(campaign: Campaign) -> tuple[str, str]:
    """Return two of a campaign's models, on sides drawn by chance."""
    left, right = SystemRandom().sample(sorted(campaign.models), 2)
    return left, right


def current_chat(store: Store, campaign: Campaign, user: str, now: datetime) -> Chat | None:
    """Return the conversation that a rater is in, or None."""
    with store.reading() as session:
        rater = session.scalar(select(User).where(User.name == user))
        found = None if rater is None else _open_chat(session, campaign, rater, now)
        return None if found is None else _read(session, found)


def save_turn(
    store: Store,
    campaign: Campaign,
    user: str,
    chat: Chat | None,
    text: str,
    models: tuple[str, str],
    replies: tuple[Reply, Reply],
    now: datetime,
) -> Chat:
    """Store a turn; the first one of a conversation makes its item and lends it to the rater.

    Args:
        store: of ratings.
        campaign: a live one.
        user: the rater's name.
        chat: the conversation so far; None for a new one, which gives up one that is still open.
        text: what the rater wrote.
        models: names of who answered, left and right.
        replies: the answers, left and right.
        now: this moment, with a time zone.

    Raises:
        Refused: `closed`, `paused`, `inactive`; `expired` when the conversation is over meanwhile.
    """

    def work(session: Session) -> Chat:
        rater = lock_user(session, user)
        status = session.scalars(select(Campaign.status).where(Campaign.id == campaign.id)).one()
        if status == "closed":
            raise Refused("closed", f"campaign {campaign.name}: it is closed; thank you")
        if status == "paused" and chat is None:
            raise Refused("paused", f"campaign {campaign.name}: it is paused; come back later")
        found = _open_chat(session, campaign, rater, now)
        if chat is None:
            if found is not None:
                found.status = "expired"
            found = _new_chat(session, campaign, rater, text, models, now)
        elif found is None or found.id != chat.assignment_id:
            raise Refused("expired", "this conversation is over; begin another")
        _add_turn(session, campaign, found, text, replies, now)
        return _read(session, found)

    return store.run(work)


def _open_chat(
    session: Session, campaign: Campaign, rater: User, now: datetime
) -> Assignment | None:
    live = (Assignment.purpose == "live", Assignment.status == "leased", Assignment.expires > now)
    query = select(Assignment).where(*own_assignments(campaign, rater), *live)
    return session.scalar(query.order_by(Assignment.expires.desc()).limit(1))


def _new_chat(
    session: Session,
    campaign: Campaign,
    rater: User,
    text: str,
    models: tuple[str, str],
    now: datetime,
) -> Assignment:
    # Two conversations that begin at once want different positions.
    session.execute(select(Campaign.id).where(Campaign.id == campaign.id).with_for_update())
    last = session.scalar(select(func.max(Item.position)).where(Item.campaign_id == campaign.id))
    item = Item(
        campaign_id=campaign.id,
        position=0 if last is None else last + 1,
        prompt_id=digest(text),
        prompt=text,
        kind="live",
    )
    session.add(item)
    session.flush()
    answers = [Answer(item_id=item.id, model=model, text="") for model in models]
    session.add_all(answers)
    session.flush()
    assignment = Assignment(
        id=secrets.token_hex(16),
        campaign_id=campaign.id,
        item_id=item.id,
        user_id=rater.id,
        purpose="live",
        order=[answer.id for answer in answers],
        created=now,
        expires=now,
    )
    session.add(assignment)
    log_event(session, "chat", user_id=rater.id, at=now, assignment=assignment.id)
    return assignment


def _add_turn(
    session: Session,
    campaign: Campaign,
    assignment: Assignment,
    text: str,
    replies: Sequence[Reply],
    now: datetime,
) -> None:
    session.flush()
    own = Turn.assignment_id == assignment.id
    number = session.scalars(select(func.count()).select_from(Turn).where(own)).one()
    if number >= MOST_TURNS:
        raise Refused("invalid", f"{MOST_TURNS} turns are enough; vote, and begin another")
    names = [*campaign.models, *(where for where in campaign.models.values() if where)]
    texts = {}
    for answer_id, reply in zip(assignment.order, replies, strict=True):
        answer = session.get_one(Answer, answer_id)
        answer.text = texts[str(answer_id)] = storable(reply.text)
        answer.tokens, answer.finished = reply.tokens, reply.finished
        answer.leak = answer.leak or find_leak(reply.text, names)
    session.add(
        Turn(assignment_id=assignment.id, number=number, text=text, answers=texts, created=now)
    )
    expires = now + timedelta(seconds=campaign.lease_seconds)
    session.execute(
        update(Assignment).where(Assignment.id == assignment.id).values(expires=expires)
    )
    session.flush()


def _read(session: Session, assignment: Assignment) -> Chat:
    of_item = select(Answer.id, Answer.model).where(Answer.item_id == assignment.item_id)
    models = dict(session.execute(of_item).all())
    turns = session.scalars(
        select(Turn).where(Turn.assignment_id == assignment.id).order_by(Turn.number)
    )
    left, right = assignment.order
    return Chat(
        assignment.id,
        (models[left], models[right]),
        [(turn.text, (turn.answers[str(left)], turn.answers[str(right)])) for turn in turns],
    )
