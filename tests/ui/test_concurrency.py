"""Many raters at once, in threads, on a real database."""

import threading
from collections import Counter
from random import Random

from sqlalchemy import select

from tests.ui.samples import NOON, campaign, minutes, outcome
from ui.assignment import next_assignment
from ui.campaigns import progress
from ui.errors import Refused
from ui.schema import Assignment, Item, Vote
from ui.store import Store
from ui.votes import record_vote, undo_last

RATERS = tuple(f"rater-{number}" for number in range(16))


def together(work, arguments):
    """Run work(argument) in a thread each, all starting at once; return results, or raise."""
    start, results, errors = threading.Barrier(len(arguments)), {}, []

    def run(number, argument):
        try:
            start.wait(timeout=30)
            results[number] = work(argument)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=numbered, daemon=True)
        for numbered in enumerate(arguments)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=100)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(arguments))]


def test_sixteen_raters_at_once_fill_every_item_and_no_more(store):
    wanted = 3
    campaign(
        store, items=25, gold=4, gold_share=0.1, swap_share=0.1, raters_per_item=wanted,
        raters=RATERS,
    )  # fmt: skip
    counted = Counter()

    def rate(rater):
        """Vote until nothing is left; now and then skip, undo, or leave an item lying."""
        chance, cast = Random(rater), {}
        while (shown := next_assignment(store, "test", rater, NOON)) is not None:
            luck = chance.random()
            if luck < 0.08 and len(cast) > 2:
                return cast  # leaves with an item before them
            choice = "skip" if luck < 0.14 else chance.choice(["a", "b", "tie"])
            record_vote(store, rater, shown.assignment_id, choice, seconds=1, now=NOON)
            cast[shown.assignment_id] = choice
            counted[rater] += 1
            if luck > 0.9:
                undone = outcome(undo_last, store, rater, "test", NOON)
                if isinstance(undone, Refused):
                    assert undone.reason == "taken"
                else:
                    del cast[undone.assignment_id]
        return cast

    answered = together(rate, RATERS)
    check(store, wanted, answered)
    # Those who stayed come back when the leases have run out.
    later = [dict(cast) for cast in answered]
    for number, rater in enumerate(RATERS):
        while (shown := next_assignment(store, "test", rater, minutes(31))) is not None:
            record_vote(store, rater, shown.assignment_id, "a", seconds=1, now=minutes(31))
            later[number][shown.assignment_id] = "a"
    items = check(store, wanted, later)
    assert [item.taken for item in items] == [wanted] * 25
    done = progress(store, "test", minutes(32))
    assert (done.items, done.wanted, done.done, done.leased) == (25, 75, 75, 0)
    assert min(counted.values()) > 0


def check(store, wanted, answered):
    """Assert that every vote is there once, nobody rated twice, and nothing is over-assigned."""
    with store.reading() as session:
        votes = session.scalars(select(Vote)).all()
        lent = session.scalars(select(Assignment)).all()
        items = session.scalars(select(Item).where(Item.kind == "normal")).all()
    assert {vote.assignment_id: vote.choice for vote in votes} == {
        assignment: choice for cast in answered for assignment, choice in cast.items()
    }
    assert len(votes) == sum(map(len, answered))
    first = [row for row in lent if row.repeat_of is None]
    assert len({(row.item_id, row.user_id) for row in first}) == len(first)
    held = Counter(row.item_id for row in first if row.status in ("leased", "voted"))
    assert all(item.taken == held[item.id] <= wanted for item in items)
    cast = {vote.assignment_id for vote in votes}
    assert {row.status for row in lent if row.id in cast} <= {"voted", "skipped"}
    return items


def test_the_last_place_is_given_once(store):
    campaign(store, items=1, raters_per_item=1, raters=RATERS)
    shown = together(lambda rater: next_assignment(store, "test", rater, NOON), RATERS)
    assert sum(given is not None for given in shown) == 1


def test_nobody_is_sent_away_while_items_are_left(store):
    campaign(store, items=16, raters_per_item=1, raters=RATERS)
    shown = together(lambda rater: next_assignment(store, "test", rater, NOON), RATERS)
    assert len({given.prompt for given in shown}) == 16


def test_a_rater_with_many_windows_holds_one_item(store):
    campaign(store, items=20, raters=("ann",))
    shown = together(lambda _: next_assignment(store, "test", "ann", NOON), range(12))
    assert len({given.assignment_id for given in shown}) == 1


def test_the_same_vote_from_many_windows_is_one_vote(store):
    campaign(store, raters=("ann",))
    shown = next_assignment(store, "test", "ann", NOON)
    votes = together(
        lambda _: record_vote(store, "ann", shown.assignment_id, "a", seconds=1, now=NOON),
        range(12),
    )
    assert len({vote.id for vote in votes}) == 1


def test_of_different_votes_at_once_one_stands(store):
    campaign(store, raters=("ann",))
    shown = next_assignment(store, "test", "ann", NOON)

    def vote(choice):
        said = (store, "ann", shown.assignment_id, choice)
        return outcome(record_vote, *said, seconds=1, now=NOON)

    answers = together(vote, ["a", "b", "tie", "skip"] * 3)
    standing = [answer for answer in answers if isinstance(answer, Vote)]
    others = [answer.reason for answer in answers if isinstance(answer, Refused)]
    assert set(others) == {"already_voted"}
    assert len(standing) + len(others) == 12
    assert len({vote.id for vote in standing}) == 1
    assert len({vote.choice for vote in standing}) == 1
    with store.reading() as session:
        assert session.scalars(select(Vote.choice)).all() == [standing[0].choice]


def test_an_undo_at_once_from_many_windows_goes_back_step_by_step(store):
    campaign(store, items=6, raters=("ann",))
    cast = []
    for _ in range(4):
        shown = next_assignment(store, "test", "ann", NOON)
        record_vote(store, "ann", shown.assignment_id, "a", seconds=1, now=NOON)
        cast.append(shown.assignment_id)
    undone = together(lambda _: undo_last(store, "ann", "test", NOON).assignment_id, range(3))
    assert set(undone) == set(cast[1:])


def test_a_vote_and_the_end_of_its_lease_do_not_meet(store):
    """Either the vote is refused, or nobody else is given the place; never both or neither."""
    campaign(store, items=8, raters_per_item=1, raters=RATERS)
    shown = {rater: next_assignment(store, "test", rater, NOON) for rater in RATERS[:8]}

    def act(rater):
        if rater in shown:  # their clocks say that it is not too late yet
            said = (store, rater, shown[rater].assignment_id, "a")
            answer = outcome(record_vote, *said, seconds=1, now=minutes(29))
            if isinstance(answer, Refused):
                assert answer.reason == "expired"
            return isinstance(answer, Vote)
        given = next_assignment(store, "test", rater, minutes(31))
        return given is not None

    assert sum(together(act, RATERS)) == 8
    with store.reading() as session:
        assert set(session.scalars(select(Item.taken))) == {1}


def test_two_stores_share_one_database(store):
    """As two processes do: no lock in memory is common to both."""
    other = Store(store.engine.url.render_as_string(hide_password=False))
    campaign(store, items=10, raters_per_item=1, raters=RATERS[:8])
    stores = {rater: (store, other)[number % 2] for number, rater in enumerate(RATERS[:8])}

    def rate(rater):
        count = 0
        while (shown := next_assignment(stores[rater], "test", rater, NOON)) is not None:
            record_vote(stores[rater], rater, shown.assignment_id, "a", seconds=1, now=NOON)
            count += 1
        return count

    assert sum(together(rate, RATERS[:8])) == 10
    other.close()
