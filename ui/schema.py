"""The tables of the ratings store: who rated what, what was shown where, and what came of it."""

from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    CheckConstraint,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Role = Literal["rater", "researcher"]
Mode = Literal["pair", "ranking", "chat", "arena"]
CampaignStatus = Literal["open", "paused", "closed"]
Kind = Literal["normal", "gold", "live"]
Purpose = Literal["normal", "gold", "swap", "live"]
AssignmentStatus = Literal["leased", "voted", "skipped", "expired"]
Choice = Literal["a_much", "a", "tie", "b", "b_much", "both_bad", "skip"]


class UTCDateTime(TypeDecorator[datetime]):
    """A moment in UTC: timezone-aware in Python on every database (SQLite itself keeps no zone)."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Convert to UTC; a moment without a zone is a mistake of the caller."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use datetime.now(UTC)")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(
        self,
        value: datetime | None,
        dialect: Dialect,  # noqa: ARG002 - as SQLAlchemy calls it
    ) -> datetime | None:
        """Return the moment with its zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def utc_now() -> datetime:
    """Return this moment, in UTC."""
    return datetime.now(UTC)


def one_of(column: str, values: Any) -> CheckConstraint:
    """Return the constraint that a text column holds one of a Literal's values, or null."""
    listed = ", ".join(f"'{value}'" for value in values.__args__)
    return CheckConstraint(f"{column} IN ({listed})", name=f"{column}_known")


class Base(DeclarativeBase):
    """All tables; constraints have names, so that a migration can change them on any database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own name for it
        datetime: UTCDateTime,
        Role: String(16),
        Mode: String(16),
        CampaignStatus: String(16),
        Kind: String(16),
        Purpose: String(16),
        AssignmentStatus: String(16),
        Choice: String(16),
    }


class User(Base):
    """A person who rates or who runs campaigns; never deleted, only made inactive."""

    __tablename__ = "users"
    __table_args__ = (one_of("role", Role),)

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[Role]
    password_hash: Mapped[str] = mapped_column(Text)
    active: Mapped[bool] = mapped_column(default=True)
    created: Mapped[datetime] = mapped_column(default=utc_now)


class Campaign(Base):
    """One comparison of models by raters.

    Attributes:
        models: name of each model to where it is loaded from (null for answers from elsewhere).
        raters_per_item: votes wanted for each normal item.
        seed: of sides, gold questions and re-shows; secret, as it would tell which side is whose.
        lease_seconds: a shown item that is not voted on by then is given to somebody else.
        gold_share: share of the items shown that are gold questions.
        swap_share: share that are one's own earlier items with the order turned round.
        blind: model names are never revealed, not even after the vote.
        markdown: answers are shown as sanitised markdown rather than plain text.
        price_per_label: in dollars.
    """

    __tablename__ = "campaigns"
    __table_args__ = (
        one_of("mode", Mode),
        one_of("status", CampaignStatus),
        CheckConstraint("raters_per_item >= 1", name="raters_per_item_positive"),
        CheckConstraint("lease_seconds >= 1", name="lease_seconds_positive"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    mode: Mapped[Mode]
    models: Mapped[dict[str, str | None]] = mapped_column(JSON)
    guidelines: Mapped[str] = mapped_column(Text, default="")
    raters_per_item: Mapped[int] = mapped_column(default=3)
    status: Mapped[CampaignStatus] = mapped_column(default="open")
    seed: Mapped[int]
    lease_seconds: Mapped[int] = mapped_column(default=1800)
    gold_share: Mapped[float] = mapped_column(default=0.0)
    swap_share: Mapped[float] = mapped_column(default=0.0)
    blind: Mapped[bool] = mapped_column(default=True)
    markdown: Mapped[bool] = mapped_column(default=False)
    price_per_label: Mapped[float] = mapped_column(default=0.012)
    created: Mapped[datetime] = mapped_column(default=utc_now)


class Item(Base):
    """A prompt with answers to compare.

    Attributes:
        position: place in the campaign, from 0.
        kind: `live` items are chats; each belongs to the rater who wrote the prompt.
        prompt: a string or a list of messages; in a chat, its first turn.
        gold_best: id of the answer a careful rater must prefer; null except for gold questions.
        taken: live leases and votes of a normal item, without re-shows and skips; at most the
            campaign's `raters_per_item`.
    """

    __tablename__ = "items"
    __table_args__ = (
        one_of("kind", Kind),
        CheckConstraint("taken >= 0", name="taken_not_negative"),
        UniqueConstraint("campaign_id", "position"),
        # The next item is the first entry of this index that one has not seen.
        Index(None, "campaign_id", "kind", "taken", "position"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    position: Mapped[int]
    prompt_id: Mapped[str] = mapped_column(String(128))
    prompt: Mapped[Any] = mapped_column(JSON)
    category: Mapped[str | None] = mapped_column(String(128))
    gold_best: Mapped[int | None]  # no foreign key: the answers point here already
    kind: Mapped[Kind] = mapped_column(default="normal")
    taken: Mapped[int] = mapped_column(default=0)


class Answer(Base):
    """What one model wrote: two to a pair, four to nine to a ranking.

    Attributes:
        text: the answer; in a chat, that of the last turn.
        tokens: its length; null when unknown.
        finished: False when it was cut at the token limit.
        leak: words in the text that give the model away, or null.
    """

    __tablename__ = "answers"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"), index=True)
    model: Mapped[str] = mapped_column(String(256))
    text: Mapped[str] = mapped_column(Text)
    tokens: Mapped[int | None]
    finished: Mapped[bool] = mapped_column(default=True)
    leak: Mapped[str | None] = mapped_column(Text)


class Assignment(Base):
    """An item lent to a rater for a while, and the order it was shown in.

    A lease that ran out goes back to the same rater, if at all, in the same row and order.

    Attributes:
        id: random, 32 hexadecimal digits; tells nothing.
        purpose: `swap` is a re-show of one's own earlier item; only `normal` ones fill the item.
        order: ids of the answers as shown, left (a) to right.
        repeat_of: the rater's own earlier assignment that this one shows again, order turned round.
    """

    __tablename__ = "assignments"
    __table_args__ = (
        one_of("status", AssignmentStatus),
        one_of("purpose", Purpose),
        # No item twice for one rater, but for the one re-show that `repeat_of` allows.
        Index(
            "uq_assignments_item_id_user_id",
            "item_id",
            "user_id",
            unique=True,
            sqlite_where=text("repeat_of IS NULL"),
            postgresql_where=text("repeat_of IS NULL"),
        ),
        Index(None, "campaign_id", "status", "expires"),
        Index(None, "campaign_id", "user_id", "purpose", "status"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    item_id: Mapped[int] = mapped_column(ForeignKey("items.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    purpose: Mapped[Purpose] = mapped_column(default="normal")
    order: Mapped[list[int]] = mapped_column("answer_order", JSON)
    repeat_of: Mapped[str | None] = mapped_column(ForeignKey("assignments.id"), unique=True)
    status: Mapped[AssignmentStatus] = mapped_column(default="leased")
    created: Mapped[datetime]
    expires: Mapped[datetime]


class Vote(Base):
    """What a rater said about an assignment; an undone vote is deleted and stays in the events.

    Attributes:
        choice: of a pair; a is the left answer as shown, b the right one. Null for a ranking.
        ranks: of a ranking, one rank per answer in the order shown; 1 is best, ties share a rank.
        flags: answer id (a string, as JSON has it) to the flags set on that answer.
        seconds: from showing to voting.
    """

    __tablename__ = "votes"
    __table_args__ = (
        one_of("choice", Choice),
        CheckConstraint("choice IS NOT NULL OR ranks IS NOT NULL", name="choice_or_ranks"),
        Index(None, "campaign_id", "user_id", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignments.id"), unique=True)
    campaign_id: Mapped[int] = mapped_column(ForeignKey("campaigns.id"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    choice: Mapped[Choice | None]
    ranks: Mapped[list[int] | None] = mapped_column(JSON(none_as_null=True))
    flags: Mapped[dict[str, list[str]]] = mapped_column(JSON)
    comment: Mapped[str] = mapped_column(Text, default="")
    seconds: Mapped[float]
    created: Mapped[datetime]
    updated: Mapped[datetime]


class Turn(Base):
    """One turn of a chat: what the rater wrote and what each model answered.

    Attributes:
        number: from 0; the first turn's text is the item's prompt.
        answers: answer id (a string, as JSON has it) to the text of this turn.
    """

    __tablename__ = "turns"
    __table_args__ = (UniqueConstraint("assignment_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    assignment_id: Mapped[str] = mapped_column(ForeignKey("assignments.id"))
    number: Mapped[int]
    text: Mapped[str] = mapped_column(Text)
    answers: Mapped[dict[str, str]] = mapped_column(JSON)
    created: Mapped[datetime]


class Event(Base):
    """An entry of the audit log: only ever added.

    Attributes:
        user_id: who did it; null for the command line and the program itself.
        what: login, vote, skip, undo, expire, create, pause, resume, close, export, …
    """

    __tablename__ = "events"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    what: Mapped[str] = mapped_column(String(32))
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)
