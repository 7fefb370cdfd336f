"""Votes that are read a second time: the same numbers as read anew, whatever happened between."""

import dataclasses

import numpy as np
import pytest

from tests.ui.samples import campaign, fill, minutes, pair_rows, ranking_rows
from ui import raw_votes
from ui.assignment import next_assignment
from ui.campaigns import create_campaign, find_campaign
from ui.dashboard import preload
from ui.raw_votes import read_raw
from ui.settings import CampaignSettings
from ui.votes import record_vote, undo_last
from workbench.errors import UserError


@pytest.fixture
def whole_reads(monkeypatch):
    """The campaigns that were read from the first vote on, in the order they were read."""
    seen, real = [], raw_votes._read_all

    def spy(store, session, campaign, models):
        seen.append(campaign)
        return real(store, session, campaign, models)

    monkeypatch.setattr(raw_votes, "_read_all", spy)
    return seen


def read(store, name: str = "test"):
    with store.reading() as session:
        asked = find_campaign(session, name)
        return read_raw(store, session, asked.id, list(asked.models))


def plain(raw) -> dict[str, list]:
    found = {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
    return {key: np.asarray(value, dtype=object).tolist() for key, value in found.items()}


def same_as_anew(store, name: str = "test") -> None:
    items, votes = read(store, name)
    raw_votes._kept.pop(store)
    again, anew = read(store, name)
    assert plain(votes) == plain(anew)
    assert (items.id == again.id).all()


def vote(store, choice="a", at=0, name="test", **given) -> None:
    item = next_assignment(store, name, "ann", minutes(at))
    assert item is not None
    record_vote(store, "ann", item.assignment_id, choice, seconds=9.25, now=minutes(at), **given)


def test_only_new_votes_are_read_again(store, whole_reads):
    campaign(store, items=6, raters=("ann",))
    read(store)  # nothing to keep yet
    whole_reads.clear()
    vote(store)
    read(store)
    for at, choice in enumerate(("b_much", "tie", "skip"), start=1):
        vote(store, choice, at)
    _, votes = read(store)
    assert len(votes.id) == 4
    assert len(whole_reads) == 1
    same_as_anew(store)


def test_with_no_new_vote_nothing_is_read(store, whole_reads):
    campaign(store, items=2, raters=("ann",))
    vote(store)
    _, votes = read(store)
    assert read(store)[1] is votes
    assert len(whole_reads) == 1


def test_rankings_are_added_too(store, whole_reads):
    campaign(store, raters=("ann",))
    settings = CampaignSettings(mode="ranking", raters_per_item=1)
    create_campaign(store, "ranked", ranking_rows(4), settings)
    vote(store, None, 0, "ranked", ranks=[1, 2, 3, 4])
    read(store, "ranked")
    for at, ranks in enumerate(([2, 1, 3, 3], [1, 1, 1, 2], [4, 3, 2, 1]), start=1):
        vote(store, None, at, "ranked", ranks=ranks)
    _, votes = read(store, "ranked")
    assert len(votes.ranks) == 4
    assert len(whole_reads) == 1
    same_as_anew(store, "ranked")


def test_a_vote_that_was_taken_back_is_gone(store, whole_reads):
    campaign(store, items=4, raters=("ann",))
    vote(store, "a", 0)
    vote(store, "b", 1)
    read(store)
    undo_last(store, "ann", "test", minutes(2))
    _, votes = read(store)
    assert len(votes.id) == 1
    assert len(whole_reads) == 2
    vote(store, "tie", 3)  # one gone and one come: the number is the same, the votes are not
    vote(store, "tie", 4)
    undo_last(store, "ann", "test", minutes(5))
    same_as_anew(store)


def test_many_new_votes_are_read_as_a_whole(store, whole_reads, monkeypatch):
    campaign(store, items=6, raters=("ann",))
    vote(store)
    read(store)
    monkeypatch.setattr(raw_votes, "_MOST_NEW", 2)
    for at in range(1, 4):
        vote(store, "a", at)
    assert len(read(store)[1].id) == 4
    assert len(whole_reads) == 2


def test_campaigns_do_not_mix_and_few_are_kept(store, whole_reads):
    campaign(store, items=2, raters=("ann",))
    for name in ("two", "three"):
        create_campaign(store, name, pair_rows(2), CampaignSettings(raters_per_item=1))
    for name in ("test", "two", "three"):
        vote(store, "a", 0, name)
        assert len(read(store, name)[1].id) == 1
    assert len(raw_votes._kept[store]) == 2
    assert len(read(store)[1].id) == 1
    assert len(whole_reads) == 4


def test_preloading_works_out_campaigns_of_many_votes(store, whole_reads, monkeypatch):
    campaign(store, raters=())
    fill(store, "test", items=30, raters=4)
    preload(store)
    assert whole_reads == []  # 120 votes are quick enough
    monkeypatch.setattr("ui.dashboard._WORTH_PRELOADING", 100)
    preload(store)
    assert len(whole_reads) == 1
    read(store)
    assert len(whole_reads) == 1


def test_preloading_leaves_trouble_to_those_who_ask(store, monkeypatch):
    def broken(*_):
        raise UserError("gone")

    campaign(store, raters=())
    fill(store, "test", items=30, raters=4)
    monkeypatch.setattr("ui.dashboard._WORTH_PRELOADING", 1)
    monkeypatch.setattr("ui.dashboard.read_outcomes", broken)
    preload(store)
