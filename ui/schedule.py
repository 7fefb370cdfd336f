"""What a rater is to see at each step, drawn from the campaign's seed: sides, gold, re-shows."""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Any

from sqlalchemy import Select, exists, func, select
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
    return Random(_digest(campaign, user, what))


def open_items(campaign: Campaign, rater: User) -> Select[int]:
    """Return the query of normal items that still want raters and that this one has not seen."""
    return select(Item.id).where(
        Item.campaign_id == campaign.id,
        Item.kind == "normal",
        Item.taken < campaign.raters_per_item,
        ~_has_seen(campaign, rater),
    )


def unseen_gold(campaign: Campaign, rater: User) -> Select[int]:
    """Return the query of gold questions that the rater has not seen."""
    gold = (Item.campaign_id == campaign.id, Item.kind == "gold")
    return select(Item.id).where(*gold, ~_has_seen(campaign, rater)).order_by(Item.position)


def _has_seen(campaign: Campaign, rater: User) -> Any:
    return exists().where(
        *own_assignments(campaign, rater),
        Assignment.item_id == Item.id,
        Assignment.repeat_of.is_(None),
        Assignment.status != "expired",
    )


def own_assignments(campaign: Campaign, rater: User) -> tuple[Any, ...]:
    """Return the conditions for a rater's assignments in a campaign."""
    return Assignment.campaign_id == campaign.id, Assignment.user_id == rater.id


def seen_so_far(session: Session, campaign: Campaign, rater: User) -> Counter[str]:
    """Return how many items of each purpose the rater has been shown; expired ones do not count."""
    rows = session.execute(
        select(Assignment.purpose, func.count())
        .where(*own_assignments(campaign, rater), Assignment.status != "expired")
        .group_by(Assignment.purpose)
    )
    return Counter(dict(rows.all()))


def items_left(session: Session, campaign: Campaign, rater: User) -> int:
    """Return how many items are left for a rater, as `ui.assignment.left` has it."""
    held = (*own_assignments(campaign, rater), Assignment.status == "leased")
    count = session.scalar(select(func.count()).select_from(Assignment).where(*held)) or 0
    some = open_items(campaign, rater).limit(MOST_LEFT).subquery()
    free = session.scalar(select(func.count()).select_from(some)) or 0
    gold = 0
    if campaign.gold_share:
        gold = len(session.scalars(unseen_gold(campaign, rater)).all())
    seen = seen_so_far(session, campaign, rater)
    step, askable = sum(seen.values()), seen["normal"] - seen["swap"]
    while free and count < MOST_LEFT:
        wanted = wish(campaign, rater.name, step)
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
    if not campaign.gold_share and not campaign.swap_share:
        return "normal"
    drawn = _digest(campaign, user, f"step {step}") / 2**64
    if drawn < campaign.gold_share:
        return "gold"
    return "swap" if drawn < campaign.gold_share + campaign.swap_share else "normal"


def _digest(campaign: Campaign, user: str, what: str) -> int:
    """Return 64 bits that look random to whoever does not know the campaign's seed."""
    text = f"{campaign.seed}\0{user}\0{what}"
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest())
