"""Votes to test with, put into the database as they are."""

from uuid import uuid4

from sqlalchemy import select

from tests.ui.samples import NOON, minutes
from ui.accounts import find_user
from ui.campaigns import create_campaign, find_campaign
from ui.schema import Answer, Assignment, Item, User, Vote
from ui.settings import CampaignSettings

MIRROR = {"a_much": "b_much", "a": "b", "b": "a", "b_much": "a_much"}


def vote(store, rater, said, name="test", again=()):
    """Put a rater's votes into the database.

    Args:
        said: question to a choice, as if the answer of the first model stood left; where it stands
            changes from vote to vote.
        again: questions that are shown once more, on other sides, with the same answer.
    """
    with store.session() as session:
        user = find_user(session, rater)
        campaign = find_campaign(session, name)
        items = session.scalars(select(Item).where(Item.campaign_id == campaign.id)).all()
        answers = session.execute(select(Answer.item_id, Answer.id).order_by(Answer.id)).all()
        for item in items:
            order = [answer for of, answer in answers if of == item.id]
            choice = said.get(item.prompt)
            earlier = None
            for purpose in ("first", "swap") if item.prompt in again else ("first",):
                if choice is None:
                    break
                turned = (item.position + user.id + (purpose == "swap")) % 2
                lent = Assignment(
                    id=uuid4().hex,
                    campaign_id=campaign.id,
                    item_id=item.id,
                    user_id=user.id,
                    purpose=purpose if purpose == "swap" else item.kind,
                    order=order[::-1] if turned else order,
                    repeat_of=earlier,
                    status="skipped" if choice == "skip" else "voted",
                    created=NOON,
                    expires=minutes(30),
                )
                session.add(lent)
                session.flush()
                earlier = lent.id
                session.add(
                    Vote(
                        assignment_id=lent.id,
                        campaign_id=campaign.id,
                        user_id=user.id,
                        choice=MIRROR.get(choice, choice) if turned else choice,
                        ranks=None,
                        flags={},
                        seconds=20,
                        created=NOON,
                        updated=NOON,
                    )
                )


def add_raters(store, *names):
    """Make accounts without the work of hashing passwords."""
    with store.session() as session:
        session.add_all(User(name=name, role="rater", password_hash="!") for name in names)


def make(store, rows, raters=("ann", "bob", "cid"), name="test", **settings):
    add_raters(store, *raters)
    given = CampaignSettings(**{"seed": 7, "raters_per_item": len(raters), **settings})
    create_campaign(store, name, rows, given)


def question(*choices):
    return {f"Question {number}?": choice for number, choice in enumerate(choices)}
