import time

import pytest
from sqlalchemy import select

from tests.ui.samples import NOON, PASSWORD, campaign, fill, minutes, ranking_rows
from ui.accounts import add_user, change_user
from ui.assignment import left, next_assignment, shown
from ui.campaigns import create_campaign
from ui.errors import Refused
from ui.schedule import MOST_LEFT, RECENT, drawn_order
from ui.schema import Answer, Assignment, Campaign, Event, Item
from ui.settings import CampaignSettings
from ui.store import Store
from ui.votes import record_vote, undo_last
from workbench.errors import UserError


def ask(store, rater, now=NOON, name="test"):
    return next_assignment(store, name, rater, now)


def vote(store, rater, choice="a", now=NOON):
    """Take the next item and vote; return what was shown."""
    given = ask(store, rater, now)
    record_vote(store, rater, given.assignment_id, choice, seconds=1, now=now)
    return given


def row(store, table, **values):
    with store.reading() as session:
        return session.scalars(select(table).filter_by(**values)).one()


def test_a_rater_is_shown_prompt_and_texts_in_the_drawn_order(store):
    campaign(store)
    given = ask(store, "ann")
    kept = row(store, Assignment, id=given.assignment_id)
    item = row(store, Item, id=kept.item_id)
    ids = [row(store, Answer, item_id=item.id, model=model).id for model in ("good", "poor")]
    assert kept.order == drawn_order(row(store, Campaign, name="test"), 0, "ann", ids)
    assert given.answers == [row(store, Answer, id=answer_id).text for answer_id in kept.order]
    assert sorted(given.answers) == ["Right 0.", "Wrong 0."]
    assert (given.prompt, given.mode, given.left) == ("Question 0?", "pair", 4)
    assert given.expires == minutes(30) == kept.expires
    assert (kept.created, kept.purpose, kept.status) == (NOON, "normal", "leased")


def test_what_is_shown_tells_no_model(store):
    campaign(store, items=20, gold=20, gold_share=0.3, swap_share=0.3)
    for _ in range(30):
        text = repr(vote(store, "ann"))
        for word in ("good", "poor", "gold", "swap", "repeat", "normal"):
            assert word not in text
    with store.reading() as session:
        ids = session.scalars(select(Assignment.id)).all()
        purposes = set(session.scalars(select(Assignment.purpose)))
    assert all(len(found) == 32 for found in ids)
    assert purposes == {"normal", "gold", "swap"}


def test_a_reload_shows_the_same_and_gives_more_time(store):
    campaign(store)
    first, again = ask(store, "ann"), ask(store, "ann", minutes(29))
    assert again.assignment_id == first.assignment_id
    assert again.answers == first.answers
    assert again.expires == minutes(59)
    assert ask(store, "ann", minutes(58)).assignment_id == first.assignment_id


def test_everybody_rates_every_item_once_and_then_nothing_is_left(store):
    campaign(store, items=5, raters_per_item=2)
    for rater in ("ann", "bob"):
        prompts = [vote(store, rater).prompt for _ in range(5)]
        assert prompts == [f"Question {number}?" for number in range(5)]
        assert ask(store, rater) is None
        assert left(store, "test", rater) == 0


def test_an_item_gets_no_more_raters_than_wanted(store):
    campaign(store, items=3, raters_per_item=1)
    assert [ask(store, rater).prompt for rater in ("ann", "bob")] == ["Question 0?", "Question 1?"]
    vote(store, "ann")
    vote(store, "ann")
    assert ask(store, "ann") is None


def test_items_with_the_fewest_raters_come_first(store):
    campaign(store, items=4, raters_per_item=3, raters=("ann", "bob", "eve"))
    vote(store, "ann")
    vote(store, "ann")
    assert vote(store, "bob").prompt == "Question 2?"
    assert ask(store, "eve").prompt == "Question 3?"
    assert [vote(store, "bob").prompt for _ in range(3)] == [
        "Question 0?",
        "Question 1?",
        "Question 3?",
    ]


def test_a_lease_that_ran_out_goes_to_somebody_else(store):
    campaign(store, items=1, raters_per_item=1)
    lost = ask(store, "ann")
    assert ask(store, "bob", minutes(29.9)) is None
    found = ask(store, "bob", minutes(30))
    assert found.prompt == lost.prompt
    assert found.assignment_id != lost.assignment_id
    assert row(store, Assignment, id=lost.assignment_id).status == "expired"
    assert row(store, Item).taken == 1
    assert ask(store, "ann", minutes(31)) is None
    event = row(store, Event, what="expire")
    assert event.detail == {"campaign": "test", "assignments": [lost.assignment_id]}


def test_a_rater_who_comes_back_too_late_is_lent_the_same_again(store):
    campaign(store, items=1, raters_per_item=1)
    lost = ask(store, "ann")
    again = ask(store, "ann", minutes(500))
    assert (again.assignment_id, again.answers) == (lost.assignment_id, lost.answers)
    assert again.expires == minutes(530)
    assert row(store, Assignment).created == minutes(500)
    assert row(store, Item).taken == 1


def test_a_skipped_item_goes_to_others_and_does_not_come_back(store):
    campaign(store, items=2, raters_per_item=1)
    assert vote(store, "ann", "skip").prompt == "Question 0?"
    assert vote(store, "ann", "a").prompt == "Question 1?"
    assert ask(store, "ann") is None
    assert ask(store, "bob").prompt == "Question 0?"


def test_gold_questions_come_once_each_about_as_often_as_asked(store):
    campaign(store, items=60, gold=40, gold_share=0.25, raters_per_item=1)
    shown = []
    while (given := ask(store, "ann")) is not None:
        shown.append(row(store, Assignment, id=given.assignment_id))
        record_vote(store, "ann", given.assignment_id, "a", seconds=1, now=NOON)
    gold = [found.item_id for found in shown if found.purpose == "gold"]
    assert len(gold) == len(set(gold))
    assert 8 <= len(gold) <= 35  # 20 expected
    assert len(shown) == 60 + len(gold)
    assert [found.purpose for found in shown][-1] == "normal"  # nobody waits for more gold
    with store.reading() as session:
        kinds = dict(session.execute(select(Item.id, Item.kind)).all())
        assert not any(session.scalars(select(Item.taken).where(Item.kind == "gold")))
    assert all(kinds[found.item_id] == found.purpose for found in shown)


def test_gold_runs_out_and_the_rest_goes_on(store):
    campaign(store, items=10, gold=1, gold_share=0.9, raters_per_item=1)
    count = 0
    while ask(store, "ann") is not None:
        vote(store, "ann")
        count += 1
    assert count == 11


def test_earlier_items_come_again_with_the_sides_swapped(store):
    campaign(store, items=60, swap_share=0.3, raters_per_item=1)
    votes = []
    while (given := ask(store, "ann")) is not None:
        kept = row(store, Assignment, id=given.assignment_id)
        if kept.repeat_of is not None:
            first = row(store, Assignment, id=kept.repeat_of)
            assert kept.purpose == "swap"
            assert kept.order == first.order[::-1]
            assert kept.item_id == first.item_id
            # Neither a recent one nor one that came again already.
            normal = [found.id for found in votes if found.purpose == "normal"]
            asked = {found.repeat_of for found in votes}
            assert first.id in [found for found in normal if found not in asked][:-RECENT]
        record_vote(store, "ann", given.assignment_id, "a", seconds=1, now=NOON)
        votes.append(kept)
    swaps = sum(found.purpose == "swap" for found in votes)
    assert len(votes) == 60 + swaps
    assert 12 <= swaps <= 40  # 25 expected
    with store.reading() as session:
        assert set(session.scalars(select(Item.taken))) == {1}


def test_skipped_items_are_not_asked_again(store):
    campaign(store, items=40, swap_share=0.5, raters_per_item=1)
    for _ in range(30):
        vote(store, "ann", "skip")
    with store.reading() as session:
        assert set(session.scalars(select(Assignment.purpose))) == {"normal"}


def test_the_number_left_goes_down_by_one_and_tells_nothing(store):
    campaign(store, items=40, gold=30, gold_share=0.3, swap_share=0.3, raters_per_item=1)
    numbers, purposes = [], []
    while (given := ask(store, "ann")) is not None:
        numbers.append(given.left)
        purposes.append(row(store, Assignment, id=given.assignment_id).purpose)
        assert left(store, "test", "ann") == given.left
        record_vote(store, "ann", given.assignment_id, "tie", seconds=1, now=NOON)
    assert set(purposes) == {"normal", "gold", "swap"}
    assert numbers == list(range(len(numbers), 0, -1))


def test_the_number_left_is_there_before_one_begins(store):
    campaign(store, items=4, raters_per_item=1)
    assert left(store, "test", "ann") == 4
    vote(store, "bob")
    assert left(store, "test", "ann") == 3
    assert left(store, "test", "nobody") == 0


def test_nobody_needs_to_know_how_many_thousands_are_left(store):
    campaign(store, items=MOST_LEFT + 20)
    assert ask(store, "ann").left == MOST_LEFT


def test_answers_to_rank_are_all_shown(store):
    add_user(store, "ann", PASSWORD)
    create_campaign(store, "test", ranking_rows(2, 9), CampaignSettings(mode="ranking", seed=1))
    given = ask(store, "ann")
    assert sorted(given.answers) == [f"Answer {place}." for place in range(9)]
    assert given.answers != sorted(given.answers)
    assert given.prompt == [{"role": "user", "content": "Question 0?"}]
    assert given.mode == "ranking"


def test_an_item_opened_again_comes_before_the_one_that_followed(store):
    campaign(store)
    first = vote(store, "ann")
    second = ask(store, "ann")
    undone = undo_last(store, "ann", "test", minutes(1))
    assert undone.assignment_id == first.assignment_id
    assert ask(store, "ann", minutes(2)).assignment_id == first.assignment_id
    record_vote(store, "ann", first.assignment_id, "b", seconds=1, now=minutes(3))
    assert ask(store, "ann", minutes(3)).assignment_id == second.assignment_id


def test_campaigns_do_not_mix(store):
    campaign(store, "one", items=1, raters_per_item=1)
    campaign(store, "two", items=1, raters_per_item=1, raters=())
    one, two = (ask(store, "ann", name=name) for name in ("one", "two"))
    assert one.assignment_id != two.assignment_id
    assert ask(store, "bob", minutes(60), "two") is not None
    assert row(store, Assignment, id=one.assignment_id).status == "leased"


def test_who_may_not_rate_is_refused(store):
    campaign(store)
    change_user(store, "bob", active=False)
    for rater, reason in (("nobody", "unknown"), ("bob", "inactive")):
        with pytest.raises(Refused) as caught:
            ask(store, rater)
        assert caught.value.reason == reason
    with pytest.raises(UserError, match=r"campaign 'tset': .* did you mean test"):
        ask(store, "ann", name="tset")


def test_a_shown_item_can_be_read_again(store):
    campaign(store)
    given = ask(store, "ann")
    assert shown(store, given.assignment_id) == given


def test_the_next_item_costs_as_little_among_many_votes(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/ratings.db")
    campaign(store, items=60, raters=("ann",))

    def median():
        times = []
        for _ in range(9):
            start = time.thread_time()  # SQLite works in this thread; waiting does not count
            vote(store, "ann")
            undo_last(store, "ann", "test", NOON)
            vote(store, "ann")
            times.append(time.thread_time() - start)
        return sorted(times)[4]

    few = median()
    fill(store, "test", items=20_000, raters=5)
    assert median() < 2 * few
    store.close()
