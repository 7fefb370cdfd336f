import re

import pytest

from tests.ui.samples import NOON, campaign, minutes, pair_rows
from ui.assignment import next_assignment
from ui.campaigns import create_campaign
from ui.dashboard import read_dashboard
from ui.settings import CampaignSettings
from ui.votes import record_vote, undo_last


@pytest.fixture
def rated(store) -> str:
    """Ann prefers the right answer always, Bob on three of four, and Cat is too quick."""
    name = campaign(store, items=4, raters=("ann", "bob", "cat"), raters_per_item=3)
    for rater, wins in (("ann", 4), ("bob", 3), ("cat", 0)):
        for number in range(4):
            item = next_assignment(store, name, rater, NOON)
            right = item.answers[0].startswith("Right") == (number < wins)
            seconds = 0.2 if rater == "cat" else 12.0
            choice = "a" if right else "b"
            record_vote(store, rater, item.assignment_id, choice, seconds=seconds, now=minutes(1))
    return name


def test_the_numbers_of_a_campaign(store, rated):
    board = read_dashboard(store, rated)
    (rate,) = board.rates
    assert (rate.model, rate.wins, rate.losses) == ("good", 7, 5)
    assert board.failed == ("cat",)
    assert board.left_out == ()
    assert board.cost.spent == pytest.approx(12 * 0.012)
    assert "12</b>" in board.numbers()
    assert board.results().count("<figure") == 4
    assert board.people().count("<figure") == 1
    assert re.search(r'class="problem".*cat', board.people(), re.DOTALL)


def test_raters_who_failed_can_be_left_out(store, rated):
    board = read_dashboard(store, rated, drop_failed=True)
    (rate,) = board.rates
    assert (rate.wins, rate.losses) == (7, 1)
    assert len(board.raters) == 3  # they are still looked at
    assert board.cost.labels == 12  # and were paid
    assert "Left out: cat." in board.numbers()


def test_one_category_alone(store, rated):
    answers = [{"model": "good", "text": "x"}, {"model": "poor", "text": "y"}]
    rows = [{"prompt": f"{c}?", "category": c, "answers": answers} for c in ("odd", "even")]
    create_campaign(store, "sorted", rows, CampaignSettings(raters_per_item=1))
    for number in range(2):
        item = next_assignment(store, "sorted", "ann", NOON)
        choice = "a" if (item.answers[0] == "x") == (item.prompt == "odd?") else "b"
        record_vote(store, "ann", item.assignment_id, choice, seconds=number + 5.0, now=NOON)
    for category, winner in (("odd", "good"), ("even", "poor")):
        (rate,) = read_dashboard(store, "sorted", category=category).rates
        assert (rate.model, rate.votes) == (winner, 1)
    assert read_dashboard(store, "sorted", category="none").rates == []


@pytest.mark.parametrize("mode", ["pair", "chat"])
def test_a_campaign_without_votes(store, mode):
    models = {"a": None, "b": None}
    rows = [] if mode == "chat" else [
        {"prompt": "p", "answers": [{"model": name, "text": name} for name in models]}
    ]  # fmt: skip
    create_campaign(store, "empty", rows, CampaignSettings(mode=mode), models=models)
    board = read_dashboard(store, "empty")
    assert "No votes on two models yet." in board.results()
    assert "Nobody has voted yet." in board.people()
    assert "0</b>" in board.numbers()


def test_it_is_worked_out_again_after_a_vote_and_after_an_undo(store, rated):
    create_campaign(store, "other", pair_rows(2), CampaignSettings(seed=7))
    before = read_dashboard(store, "other")
    assert read_dashboard(store, "other") is before
    assert read_dashboard(store, "other", drop_failed=True) is not before
    item = next_assignment(store, "other", "ann", NOON)
    assert read_dashboard(store, "other") is before  # nothing was said yet
    record_vote(store, "ann", item.assignment_id, "a", seconds=9, now=NOON)
    voted = read_dashboard(store, "other")
    assert [rate.votes for rate in voted.rates] == [1]
    undo_last(store, "ann", "other", NOON)
    assert read_dashboard(store, "other").rates == []
    record_vote(store, "ann", item.assignment_id, "skip", seconds=9, now=NOON)
    assert [rater.skips for rater in read_dashboard(store, "other").raters] == [1]
    assert read_dashboard(store, rated) is not voted


def test_only_the_dashboards_asked_for_last_are_kept(store, rated):
    first = read_dashboard(store, rated)
    for category in "abcdef":
        read_dashboard(store, rated, category=category)
    assert read_dashboard(store, rated) is not first
