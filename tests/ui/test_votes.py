import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from tests.ui.samples import NOON, PASSWORD, campaign, minutes, outcome, pair_rows, ranking_rows
from ui.accounts import add_user, change_user
from ui.assignment import next_assignment
from ui.campaigns import close_campaign, create_campaign, find_campaign, pause_campaign
from ui.errors import Refused
from ui.schema import Answer, Assignment, Event, Item, User, Vote
from ui.settings import CampaignSettings
from ui.votes import CHOICES, FLAGS, record_vote, reveal, undo_last


def ask(store, rater="ann", now=NOON):
    return next_assignment(store, "test", rater, now)


def vote(store, shown, choice="a", rater="ann", now=NOON, **values):
    return record_vote(
        store, rater, shown.assignment_id, choice, **{"seconds": 2.5, "now": now, **values}
    )


def refused(reason, action, *arguments, **values):
    with pytest.raises(Refused) as caught:
        action(*arguments, **values)
    assert caught.value.reason == reason, caught.value
    assert "\n" not in str(caught.value)


def votes(store):
    with store.reading() as session:
        return session.scalars(select(Vote).order_by(Vote.id)).all()


def status(store, shown):
    with store.reading() as session:
        return session.get_one(Assignment, shown.assignment_id).status


def events(store):
    with store.reading() as session:
        return [(e.what, e.detail) for e in session.scalars(select(Event).order_by(Event.id))]


@pytest.mark.parametrize("choice", CHOICES)
def test_a_vote_is_kept_as_given(shared_store, choice):
    name = f"kept {choice}"
    create_campaign(shared_store, name, pair_rows(1))
    rater = f"rater-{choice}"
    add_user(shared_store, rater, PASSWORD)
    shown = next_assignment(shared_store, name, rater, NOON)
    flags = [["hallucination", "identity", "hallucination"], []]
    kept = vote(shared_store, shown, choice, rater, minutes(1), flags=flags, comment="So\0 so…")
    with shared_store.reading() as session:
        again = session.scalars(select(Vote).where(Vote.id == kept.id)).one()
        user = session.scalars(select(User).where(User.name == rater)).one()
        assignment = session.get_one(Assignment, shown.assignment_id)
    assert (again.choice, again.ranks, again.comment) == (choice, None, "So\ufffd so…")
    assert again.flags == {str(assignment.order[0]): ["hallucination", "identity"]}
    assert (again.seconds, again.created, again.updated) == (2.5, minutes(1), minutes(1))
    assert (again.user_id, again.assignment_id) == (user.id, shown.assignment_id)
    assert assignment.status == ("skipped" if choice == "skip" else "voted")
    what = "skip" if choice == "skip" else "vote"
    assert events(shared_store)[-1] == (what, {"assignment": shown.assignment_id})


def test_ranks_are_kept_dense_in_the_order_shown(store):
    add_user(store, "ann", PASSWORD)
    create_campaign(store, "test", ranking_rows(2), CampaignSettings(mode="ranking"))
    shown = ask(store)
    kept = vote(store, shown, None, ranks=[4, 1, 4, 2])
    assert (kept.choice, kept.ranks) == (None, [3, 1, 3, 2])
    assert vote(store, shown, None, ranks=[3, 1, 3, 2]).id == kept.id
    assert vote(store, ask(store), "skip").ranks is None
    assert [row.ranks for row in votes(store)] == [[3, 1, 3, 2], None]


def test_the_same_vote_again_changes_nothing(store):
    campaign(store)
    shown = ask(store)
    first = vote(store, shown, "b", flags=[[], ["opinion"]], comment="x", seconds=3)
    for now, seconds in ((NOON, 3), (minutes(500), 99)):
        said = {"flags": [[], ["opinion"]], "comment": "x", "seconds": seconds}
        again = vote(store, shown, "b", now=now, **said)
        assert (again.id, again.seconds, again.created) == (first.id, 3, NOON)
    close_campaign(store, "test")
    assert vote(store, shown, "b", flags=[[], ["opinion"]], comment="x").id == first.id
    assert len(votes(store)) == 1
    assert [what for what, _ in events(store)].count("vote") == 1


@pytest.mark.parametrize(
    "change", [{"choice": "b"}, {"comment": "no"}, {"flags": [["opinion"], []]}, {"choice": "skip"}]
)
def test_another_vote_is_refused_until_the_first_is_undone(store, change):
    campaign(store)
    shown = ask(store)
    vote(store, shown, "a")
    refused("already_voted", vote, store, shown, **{"choice": "a", **change})
    assert [row.choice for row in votes(store)] == ["a"]
    undo_last(store, "ann", "test", NOON)
    vote(store, shown, **{"choice": "a", **change})
    assert len(votes(store)) == 1


def test_a_vote_after_the_lease_is_refused(store):
    campaign(store, items=1, raters_per_item=1)
    late = ask(store)
    refused("expired", vote, store, late, now=minutes(30))
    assert votes(store) == []
    vote(store, ask(store, "bob", minutes(31)), rater="bob", now=minutes(32))
    refused("expired", vote, store, late, now=minutes(33))
    refused("expired", vote, store, late)  # not even with an old clock: it was given away
    assert len(votes(store)) == 1


def test_a_vote_on_anothers_assignment_is_refused(store):
    campaign(store)
    shown = ask(store)
    refused("not_yours", vote, store, shown, rater="bob")
    vote(store, shown)
    refused("not_yours", vote, store, shown, rater="bob")
    assert len(votes(store)) == 1


@pytest.mark.parametrize(
    "assignment_id", ["", "0" * 32, "x" * 32, "a\0b", "' OR 1=1 --", "é" * 9999]
)
def test_a_vote_on_nothing_is_refused(shared_store, assignment_id):
    with shared_store.reading() as session:
        known = session.scalar(select(func.count()).where(User.name == "solo"))
    if not known:
        add_user(shared_store, "solo", PASSWORD)
    refused("unknown", record_vote, shared_store, "solo", assignment_id, "a", seconds=1, now=NOON)


def test_who_may_not_rate_is_refused(store):
    campaign(store)
    shown = ask(store)
    vote(store, shown)
    change_user(store, "ann", active=False)
    for rater, reason in (("ann", "inactive"), ("nobody", "unknown")):
        refused(reason, vote, store, shown, rater=rater)
        refused(reason, undo_last, store, rater, "test", NOON)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choice": "c"}, "choice 'c': choose one of a_much, a, tie"),
        ({"choice": None}, "takes a choice and no ranks"),
        ({"ranks": [1, 2]}, "takes a choice and no ranks"),
        ({"flags": [["opinion"]]}, "flags for 1 answers; 2 shown"),
        ({"flags": [["rude"], []]}, "flag 'rude': choose from instruction"),
        ({"comment": "x" * 2001}, "a comment of 2001 characters; 2000 at most"),
        ({"seconds": -1}, "seconds=-1: not a time"),
        ({"seconds": float("nan")}, "seconds=nan: not a time"),
    ],
)
def test_a_vote_that_does_not_fit_is_refused(store, values, message):
    campaign(store)
    shown = ask(store)
    with pytest.raises(Refused, match=message) as caught:
        vote(store, shown, **values)
    assert caught.value.reason == "invalid"
    assert votes(store) == []
    assert status(store, shown) == "leased"


@pytest.mark.parametrize(
    ("choice", "ranks"),
    [
        ("a", None),
        (None, None),
        (None, [1, 2, 3]),
        (None, [0, 1, 2, 3]),
        (None, [1, 2, 3, 5]),
        (None, [1, 2, 3, 4.0]),
        (None, [True, 2, 3, 4]),
        ("skip", [1, 2, 3, 4]),
    ],
)
def test_a_ranking_that_does_not_fit_is_refused(store, choice, ranks):
    add_user(store, "ann", PASSWORD)
    create_campaign(store, "test", ranking_rows(1), CampaignSettings(mode="ranking"))
    refused("invalid", vote, store, ask(store), choice, ranks=ranks)


def test_an_undo_opens_the_item_again_in_the_same_order(store):
    campaign(store)
    shown = ask(store)
    vote(store, shown, "a_much", flags=[["opinion"], []], comment="oh", now=minutes(3))
    undone = undo_last(store, "ann", "test", minutes(100))
    assert (undone.assignment_id, undone.answers) == (shown.assignment_id, shown.answers)
    assert undone.expires == minutes(130)
    assert undone.left == shown.left
    assert votes(store) == []
    assert status(store, shown) == "leased"
    vote(store, shown, "tie", now=minutes(129))
    assert [row.choice for row in votes(store)] == ["tie"]
    _, detail = next(found for found in events(store) if found[0] == "undo")
    assert detail.pop("flags").popitem()[1] == ["opinion"]
    assert detail == {
        "assignment": shown.assignment_id, "choice": "a_much", "ranks": None, "comment": "oh",
        "seconds": 2.5, "voted": "2026-11-20T12:03:00+00:00",
    }  # fmt: skip


def test_undo_goes_back_vote_by_vote(store):
    campaign(store, items=3)
    shown = []
    for choice in ("a", "skip", "b"):
        shown.append(ask(store))
        vote(store, shown[-1], choice)
    back = [undo_last(store, "ann", "test", minutes(n)).assignment_id for n in range(3)]
    assert back == [given.assignment_id for given in reversed(shown)]
    refused("unknown", undo_last, store, "ann", "test", NOON)


def test_undo_touches_ones_own_votes_of_that_campaign_only(store):
    campaign(store)
    campaign(store, "other", raters=())
    vote(store, ask(store, "bob"), rater="bob")
    elsewhere = next_assignment(store, "other", "ann", NOON)
    vote(store, elsewhere)
    refused("unknown", undo_last, store, "ann", "test", NOON)
    assert len(votes(store)) == 2


def test_a_skipped_item_comes_back_unless_others_have_filled_it(store):
    campaign(store, items=1, raters_per_item=1)
    shown = ask(store)
    vote(store, shown, "skip")
    undo_last(store, "ann", "test", NOON)
    assert ask(store, "bob") is None  # the place is taken again
    vote(store, shown, "skip")
    other = ask(store, "bob")
    refused("taken", undo_last, store, "ann", "test", NOON)
    assert status(store, shown) == "skipped"
    vote(store, other, rater="bob")
    assert [row.choice for row in votes(store)] == ["skip", "a"]


def test_an_undone_vote_that_is_not_cast_again_expires(store):
    campaign(store, items=1, raters_per_item=1)
    vote(store, ask(store))
    undo_last(store, "ann", "test", NOON)
    assert ask(store, "bob", minutes(29)) is None
    vote(store, ask(store, "bob", minutes(31)), rater="bob", now=minutes(31))
    with store.reading() as session:
        assert session.scalars(select(Item.taken)).one() == 1


def test_undo_in_a_paused_campaign_is_let_and_in_a_closed_one_not(store):
    campaign(store)
    vote(store, ask(store))
    pause_campaign(store, "test")
    shown = undo_last(store, "ann", "test", NOON)
    vote(store, shown, "b")
    close_campaign(store, "test")
    refused("closed", undo_last, store, "ann", "test", NOON)
    assert [row.choice for row in votes(store)] == ["b"]


def test_names_are_shown_after_the_vote_in_the_arena_and_then_it_stays(store):
    campaign(store, mode="arena")
    shown = ask(store)
    refused("invalid", reveal, store, "ann", shown.assignment_id)
    vote(store, shown)
    models = reveal(store, "ann", shown.assignment_id)
    words = {"good": "Right 0.", "poor": "Wrong 0."}
    assert [words[model] for model in models] == shown.answers
    refused("not_yours", reveal, store, "bob", shown.assignment_id)
    refused("unknown", reveal, store, "nobody", shown.assignment_id)
    refused("unknown", reveal, store, "ann", "0" * 32)
    refused("revealed", undo_last, store, "ann", "test", NOON)
    skipped = ask(store)
    vote(store, skipped, "skip")
    refused("invalid", reveal, store, "ann", skipped.assignment_id)


def test_names_are_never_shown_in_a_blind_campaign(store):
    campaign(store)
    shown = ask(store)
    vote(store, shown)
    refused("invalid", reveal, store, "ann", shown.assignment_id)


def test_the_flags_are_those_of_instructgpt_and_identity():
    assert len(FLAGS) == 12
    assert {"instruction", "hallucination", "harm", "identity"} <= set(FLAGS)


RATERS = ("ann", "bob", "eve")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["lease", "vote", "vote", "vote", "skip", "undo", "again", "late"]),
        st.sampled_from(RATERS),
        st.sampled_from([0, 1, 40]),  # minutes that pass; a lease lasts 30
    ),
    max_size=40,
)
SHAPES = st.tuples(st.integers(1, 6), st.integers(0, 2), st.integers(1, 3))


@pytest.fixture(scope="module")
def raters_of(shared_store):
    for rater in RATERS:
        add_user(shared_store, rater, PASSWORD)
    return shared_store


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, shape=SHAPES)
def test_whatever_raters_do_nothing_is_lost_or_taken_twice(raters_of, steps, shape):
    store, (items, gold, wanted), clock = raters_of, shape, 0
    with store.reading() as session:
        name = f"any {session.scalar(select(func.count()).select_from(Item))} {len(steps)} {shape}"
    name = "".join(letter for letter in name if letter.isalnum() or letter == " ")
    given_settings = CampaignSettings(
        raters_per_item=wanted, gold_share=0.2 if gold else 0, swap_share=0.3, seed=5
    )
    create_campaign(store, name, pair_rows(items, gold), given_settings)
    standing: dict[str, str] = {}  # the votes there must be, by assignment
    order: dict[str, list[str]] = {rater: [] for rater in RATERS}

    def step(what, rater):
        now = minutes(clock)
        if what == "undo":
            if not order[rater]:
                refused("unknown", undo_last, store, rater, name, now)
                return
            last = order[rater][-1]
            undone = outcome(undo_last, store, rater, name, now)
            if isinstance(undone, Refused):
                assert (undone.reason, standing[last]) == ("taken", "skip")
                return
            assert undone.assignment_id == order[rater].pop()
            del standing[last]
            return
        if what == "again":
            if order[rater]:
                last = order[rater][-1]
                record_vote(store, rater, last, standing[last], seconds=9, now=now)
            return
        shown = next_assignment(store, name, rater, now)
        if shown is None or what == "lease":
            return
        if what == "late":
            record = (store, rater, shown.assignment_id, "a")
            refused("expired", record_vote, *record, seconds=1, now=minutes(clock + 30))
            return
        choice = "skip" if what == "skip" else "b"
        record_vote(store, rater, shown.assignment_id, choice, seconds=1, now=now)
        standing[shown.assignment_id] = choice
        order[rater].append(shown.assignment_id)

    for what, rater, passed in steps:
        clock += passed
        step(what, rater)
        check(store, name, wanted, standing)
    # In the end everybody rates what is left, and every item is full or seen by everybody.
    for _ in range(2):
        clock += 31
        for rater in RATERS:
            while next_assignment(store, name, rater, minutes(clock)) is not None:
                step("vote", rater)
    for item, seen in check(store, name, wanted, standing).items():
        if item.kind == "normal":
            voted = [status for status in seen if status == "voted"]
            assert len(voted) == wanted or len(seen) == len(RATERS)
            assert "leased" not in seen
            assert "expired" not in seen or len(voted) == wanted


def check(store, name, wanted, standing):
    """Assert what must hold at any moment; return each item with its assignments' status."""
    with store.reading() as session:
        test = find_campaign(session, name)
        items = session.scalars(select(Item).where(Item.campaign_id == test.id)).all()
        lent = session.scalars(select(Assignment).where(Assignment.campaign_id == test.id)).all()
        cast = session.scalars(select(Vote).where(Vote.campaign_id == test.id)).all()
        answers = dict(session.execute(select(Answer.id, Answer.item_id)).all())
    assert {row.assignment_id: row.choice for row in cast} == standing
    by_id = {row.id: row for row in lent}
    for row in cast:
        assert by_id[row.assignment_id].user_id == row.user_id
    for row in lent:
        done = {"voted": {"a", "b"}, "skipped": {"skip"}}.get(row.status, {None})
        assert standing.get(row.id) in done
        assert {answers[answer] for answer in row.order} == {row.item_id}
        assert len(set(row.order)) == 2
        if row.repeat_of is not None:
            first = by_id[row.repeat_of]
            assert (first.item_id, first.user_id, first.purpose) == (
                row.item_id, row.user_id, "normal",
            )  # fmt: skip
            assert first.order == row.order[::-1]
    seen = {}
    for item in items:
        first = [row for row in lent if row.item_id == item.id and row.repeat_of is None]
        assert len({row.user_id for row in first}) == len(first)
        held = sum(row.status in ("leased", "voted") for row in first)
        assert item.taken == (held if item.kind == "normal" else 0) <= wanted
        seen[item] = [row.status for row in first]
    return seen
