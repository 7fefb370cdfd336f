"""The load measurement in small, with a server that is killed, and that its check finds faults."""

from dataclasses import replace

import pytest
from sqlalchemy import delete, update

from benchmarks import ui_load, ui_million
from benchmarks.ui_load import Load, Record
from tests.ui.samples import NOON, campaign
from ui.assignment import next_assignment
from ui.schema import Item, Vote
from ui.store import Store
from ui.votes import record_vote
from workbench.errors import UserError


def test_no_vote_is_lost_or_double_when_the_server_is_killed(tmp_path):
    measured = ui_load.run(Load(raters=8, votes=200, kills=1, seed=3), tmp_path)
    assert (measured["votes"], measured["kills"]) == (200, 1)
    assert measured["sent_again"] > 0  # the kill was felt
    assert 0 < measured["p50_ms"] <= measured["p95_ms"] <= measured["worst_ms"]


@pytest.fixture
def voted(tmp_path):
    """A database with two votes, and the record of them."""
    store, record = Store(f"sqlite:///{tmp_path}/ratings.db"), Record()
    campaign(store, raters=("ann",))
    for choice in ("a", "tie"):
        shown = next_assignment(store, "test", "ann", NOON)
        record_vote(store, "ann", shown.assignment_id, choice, seconds=1, now=NOON)
        record.sent[shown.assignment_id] = record.acknowledged[shown.assignment_id] = choice
    yield store, record
    store.close()


def test_a_database_that_holds_what_was_acknowledged_passes(voted):
    store, record = voted
    ui_load.check(store.url, record)
    (last,) = list(record.acknowledged)[1:]
    del record.acknowledged[last]  # the server was killed before it could say so
    ui_load.check(store.url, record)


def test_a_vote_that_is_missing_changed_or_made_up_is_found(voted):
    store, record = voted
    first, second = record.acknowledged
    other = {first: "b", second: "tie"}
    for wrong in (
        replace(record, acknowledged=record.acknowledged | {"0" * 32: "a"}),
        replace(record, acknowledged=other, sent=other),
    ):
        with pytest.raises(UserError, match=r"1 votes lost or changed"):
            ui_load.check(store.url, wrong)
    with pytest.raises(UserError, match="1 that nobody sent"):
        ui_load.check(store.url, replace(record, acknowledged={}, sent={first: "a"}))
    with store.session() as session:
        session.execute(delete(Vote).where(Vote.assignment_id == first))
    with pytest.raises(UserError, match="1 votes lost or changed, 0 that nobody sent, 0 double"):
        ui_load.check(store.url, record)


def test_an_item_that_miscounts_its_raters_is_found(voted):
    store, record = voted
    with store.session() as session:
        session.execute(update(Item).where(Item.position == 3).values(taken=1))
    with pytest.raises(UserError, match="1 items count their raters wrongly"):
        ui_load.check(store.url, record)


def test_the_dashboard_of_a_filled_database_is_opened_over_http(tmp_path):
    measured = ui_million.measure(tmp_path, 600)
    assert measured["votes"] == 600
    for name in ("cold", "warm", "warm again", "after a vote"):
        assert measured[name]["all_s"] >= measured[name]["results_s"] > 0
    store = Store(f"sqlite:///{tmp_path}/ratings.db")
    with store.reading() as session:
        assert session.query(Vote).count() == 601
    store.close()
