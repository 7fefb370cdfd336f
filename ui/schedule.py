"""What a rater is to see at each step, drawn from the campaign's seed: sides, gold, re-shows."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Any

from sqlalchemy import Select, bindparam, exists, func, select
from sqlalchemy.orm import Session

from ui.schema import Assignment, Campaign, Item, Purpose, User

MOST_LEFT = 500  # counting further would take longer than anybody needs to know
# Items of one's own between an item and its re-show, so that one does not simply remember.
RECENT = 5


def drawn_order(campaign: Campaign, position: int, user: str, answers: Sequence[int]) -> list[int]:
    """Return the order in which a rater is shown the answers, drawn from the campaign's seed."""
    order = list(answers)
    drawn_numbers(campaign, user, f"order {position}").shuffle(order)
    return order


def drawn_numbers(campaign: Campaign, user: str, what: str) -> Random:
    """Return a generator that depends on the campaign's seed, the rater and what it is for."""
    return Random(_digest(campaign.seed, user, what))


def own_assignments(campaign: Campaign, rater: User) -> tuple[Any, ...]:
    """Return the conditions for a rater's assignments in a campaign."""
    return Assignment.campaign_id == campaign.id, Assignment.user_id == rater.id


# Putting a statement together takes longer than running it, so those of every vote are made once;
# `bound` gives their parameters.
OWN = (Assignment.campaign_id == bindparam("campaign"), Assignment.user_id == bindparam("rater"))
_HAS_SEEN = exists().where(
    *OWN,
    Assignment.item_id == Item.id,
    Assignment.repeat_of.is_(None),
    Assignment.status != "expired",
)
# Normal items that still want raters and that this one has not seen.
OPEN_ITEMS: Select[int] = select(Item.id).where(
    Item.campaign_id == bindparam("campaign"),
    Item.kind == "normal",
    Item.taken < bindparam("raters_per_item"),
    ~_HAS_SEEN,
)
# Gold questions that the rater has not seen.
UNSEEN_GOLD: Select[int] = (
    select(Item.id)
    .where(Item.campaign_id == bindparam("campaign"), Item.kind == "gold", ~_HAS_SEEN)
    .order_by(Item.position)
)
_SEEN = (
    select(Assignment.purpose, func.count())
    .where(*OWN, Assignment.status != "expired")
    .group_by(Assignment.purpose)
)
_HELD = select(func.count()).select_from(Assignment).where(*OWN, Assignment.status == "leased")
_FREE = select(func.count()).select_from(OPEN_ITEMS.limit(MOST_LEFT).subquery())


def bound(campaign: Campaign, rater: User) -> dict[str, Any]:
    """Return the parameters of the statements above."""
    return {
        "campaign": campaign.id,
        "rater": rater.id,
        "raters_per_item": campaign.raters_per_item,
    }


def seen_so_far(session: Session, campaign: Campaign, rater: User) -> Counter[str]:
    """Return how many items of each purpose the rater has been shown; expired ones do not count."""
    return Counter(dict(session.execute(_SEEN, bound(campaign, rater)).all()))


def items_left(session: Session, campaign: Campaign, rater: User) -> int:
    """Return how many items are left for a rater, as `ui.assignment.left` has it."""
    given = bound(campaign, rater)
    count = session.scalar(_HELD, given) or 0
    free = session.scalar(_FREE, given) or 0
    gold = 0
    if campaign.gold_share:
        gold = len(session.scalars(UNSEEN_GOLD, given).all())
    seen = seen_so_far(session, campaign, rater)
    step, askable = sum(seen.values()), seen["normal"] - seen["swap"]
    plan = campaign.seed, campaign.gold_share, campaign.swap_share, rater.name
    while free and count < MOST_LEFT:
        wanted = _wish(*plan, step)
        if wanted == "gold" and gold:
            gold -= 1
        elif wanted == "swap" and askable > RECENT:
            askable -= 1
        else:
            free -= 1
            askable += 1
        step, count = step + 1, count + 1
    return min(count, MOST_LEFT)


def wish(campaign: Campaign, user: str, step: int) -> Purpose:
    """Return what a rater's item number `step` is to be, if there is one of that kind."""
    return _wish(campaign.seed, campaign.gold_share, campaign.swap_share, user, step)


@lru_cache(maxsize=200_000)  # what is left is counted after every vote, step by step
def _wish(seed: int, gold_share: float, swap_share: float, user: str, step: int) -> Purpose:
    if not gold_share and not swap_share:
        return "normal"
    drawn = _digest(seed, user, f"step {step}") / 2**64
    if drawn < gold_share:
        return "gold"
    return "swap" if drawn < gold_share + swap_share else "normal"


def _digest(seed: int, user: str, what: str) -> int:
    """Return 64 bits that look random to whoever does not know the campaign's seed."""
    text = f"{seed}\0{user}\0{what}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
