"""Campaigns to test with."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import select, text

from ui.accounts import add_user
from ui.campaigns import create_campaign
from ui.errors import Refused
from ui.schema import Campaign
from ui.settings import CampaignSettings
from ui.store import Store

T = TypeVar("T")
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
PASSWORD = "correct horse"


def minutes(count: float) -> datetime:
    """Return the moment so many minutes after noon."""
    return NOON + timedelta(minutes=count)


def outcome(action: Callable[..., T], *arguments: Any, **values: Any) -> T | Refused:
    """Return what an action returns, or how it is refused."""
    try:
        return action(*arguments, **values)
    except Refused as refused:
        return refused


def pair_rows(count: int, gold: int = 0) -> list[dict[str, Any]]:
    """Return rows of two answers; the last `gold` of them are gold questions, best by `good`."""
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"Question {number}?",
            "answers": [
                {"model": "good", "text": f"Right {number}.", "tokens": 3},
                {"model": "poor", "text": f"Wrong {number}.", "tokens": 4, "finished": False},
            ],
        }
        for number in range(count + gold)
    ]
    for row in rows[count:]:
        row["gold_best"] = "good"
    return rows


def ranking_rows(count: int, answers: int = 4) -> list[dict[str, Any]]:
    """Return rows of several answers each."""
    return [
        {
            "prompt": [{"role": "user", "content": f"Question {number}?"}],
            "answers": [
                {"model": f"model {place}", "text": f"Answer {place}."} for place in range(answers)
            ],
        }
        for number in range(count)
    ]


def campaign(
    store: Store,
    name: str = "test",
    items: int = 4,
    gold: int = 0,
    raters: tuple[str, ...] = ("ann", "bob"),
    **settings: Any,
) -> str:
    """Make a campaign of pairs and its raters, and return its name."""
    for rater in raters:
        add_user(store, rater, PASSWORD)
    given = CampaignSettings(**{"seed": 7, **settings})
    create_campaign(store, name, pair_rows(items, gold), given)
    return name


# Numbers from 1 to :count, and 32 hexadecimal digits that differ in the first 16, as those of the
# real, random ids do, in the words of each database.
_NUMBERS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)"
_DIGITS = {
    "sqlite": "printf('%08x%08x%016x', items.id, users.id, 0)",
    "postgresql": "rpad(lpad(to_hex(items.id), 8, '0') || lpad(to_hex(users.id), 8, '0'), 32, '0')",
}


def fill(store: Store, name: str, items: int, raters: int) -> None:
    """Add items to a campaign that so many raters (r1, r2, …) have voted on, by plain SQL.

    They come after the campaign's own items, which nobody has seen yet.
    """
    sqlite = store.engine.dialect.name == "sqlite"
    digits, json = _DIGITS[store.engine.dialect.name], "TEXT" if sqlite else "JSON"
    now = f"{NOON:%Y-%m-%d %H:%M:%S.%f}" if sqlite else NOON
    with store.session() as session:
        made = session.scalars(select(Campaign).where(Campaign.name == name)).one()
        made.raters_per_item = raters + 1
        session.flush()
        given = {"campaign": made.id, "now": now, "raters": raters}
        for count, statement in (
            (
                raters,
                f"""INSERT INTO users (name, role, password_hash, active, created)
                {_NUMBERS} SELECT 'r' || i, 'rater', '-', true, :now FROM n""",
            ),
            (
                items,
                f"""INSERT INTO items
                (campaign_id, position, prompt_id, prompt, category, kind, taken)
                {_NUMBERS} SELECT :campaign, 1000000 + i, 'p' || i, '"?"', 'c' || (i % 7),
                'normal', :raters FROM n""",
            ),
            (
                2,
                f"""INSERT INTO answers (item_id, model, text, tokens, finished)
                {_NUMBERS} SELECT items.id, CASE n.i WHEN 1 THEN 'good' ELSE 'poor' END,
                'text', 5, true FROM items, n WHERE position > 1000000 ORDER BY items.id, n.i""",
            ),
            (
                0,
                f"""INSERT INTO assignments (id, campaign_id, item_id, user_id, purpose,
                answer_order, status, created, expires)
                SELECT {digits}, :campaign, items.id, users.id, 'normal',
                CAST('[' || min(answers.id) || ', ' || max(answers.id) || ']' AS {json}),
                'voted', :now, :now
                FROM users, items JOIN answers ON answers.item_id = items.id
                WHERE position > 1000000 AND users.name LIKE 'r%'
                GROUP BY items.id, users.id""",
            ),
            (
                0,
                """INSERT INTO votes (assignment_id, campaign_id, user_id, choice, flags, comment,
                seconds, created, updated)
                SELECT id, campaign_id, user_id,
                CASE (item_id + user_id) % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'b' ELSE 'tie' END,
                '{}', '', 5.0, :now, :now FROM assignments WHERE expires = :now""",
            ),
        ):
            session.execute(text(statement), {**given, "count": count})
