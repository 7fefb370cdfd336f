import csv
import html
import re
import shutil
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.ui.samples import NOON, campaign, minutes, pair_rows, ranking_rows
from ui.accounts import verify
from ui.assignment import next_assignment
from ui.campaigns import close_campaign, create_campaign, progress
from ui.display import harmless
from ui.mturk import export_batch, import_results
from ui.schema import Answer, Assignment, Event, Item, User, Vote
from ui.settings import CampaignSettings
from ui.store import Store
from ui.votes import record_vote
from workbench.errors import UserError


def sheet(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def results(path: Path, *rows: dict[str, str]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def result(sent: dict[str, str], number: int, worker: str, **cells: str) -> dict[str, str]:
    return {
        "HITId": "3ABC",
        "AssignmentId": f"ASSIGN{number}",
        "WorkerId": worker,
        "AssignmentStatus": "Submitted",
        "WorkTimeInSeconds": "21",
        **{f"Input.{name}": cell for name, cell in sent.items()},
        "Answer.choice": "a",
        **{name.replace("_", ".", 1): cell for name, cell in cells.items()},
    }


def everything(store) -> list[tuple[object, ...]]:
    """All that an import may touch, in a form that can be compared."""
    with store.reading() as session:
        found = [
            session.execute(select(*table.__table__.columns).order_by(*table.__table__.primary_key))
            for table in (User, Item, Assignment, Vote, Event)
        ]
        return [tuple(row) for rows in found for row in rows]


@pytest.fixture
def sent(store, tmp_path) -> list[dict[str, str]]:
    """The rows of a batch of three items, sent from the campaign `test`."""
    campaign(store, items=3, raters=())
    export_batch(store, "test", tmp_path / "batch.csv")
    return sheet(tmp_path / "batch.csv")


@pytest.fixture
def sqlite_sent(sqlite_template, tmp_path):
    """The same on SQLite only, with its store."""
    shutil.copy(sqlite_template, tmp_path / "sent.db")
    store = Store(f"sqlite:///{tmp_path}/sent.db")
    campaign(store, items=3, raters=())
    export_batch(store, "test", tmp_path / "batch.csv")
    yield store, sheet(tmp_path / "batch.csv")
    store.close()


# out


def test_a_batch_holds_each_item_once_with_sides_drawn_and_nothing_that_tells(store, tmp_path):
    campaign(store, items=30, gold=4, raters=())
    batch = export_batch(store, "test", tmp_path / "batch.csv")
    rows = sheet(batch.path)
    assert (batch.items, batch.raters) == (34, 3)
    assert batch.answer == "choice = a_much, a, tie, b, b_much, both_bad, skip"
    assert list(rows[0]) == ["item", "prompt", "answer_a", "answer_b"]
    assert {row["prompt"] for row in rows} == {f"Question {n}?" for n in range(34)}
    right = [row["answer_a"].startswith("Right") for row in rows]
    assert 8 < sum(right) < 26
    text = batch.path.read_text("utf-8")
    assert not re.search(r"good|poor|gold|test", text)
    # Gold questions are made last; in a drawn order of 34 they do not all come last.
    assert {row["prompt"] for row in rows[-4:]} != {f"Question {n}?" for n in range(30, 34)}
    export_batch(store, "test", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text("utf-8") == text


def test_items_that_have_their_raters_are_not_sent(store, tmp_path):
    campaign(store, items=2, raters_per_item=1, raters=("ann",))
    shown = next_assignment(store, "test", "ann", NOON)
    record_vote(store, "ann", shown.assignment_id, "a", seconds=3, now=minutes(1))
    assert export_batch(store, "test", tmp_path / "batch.csv").items == 1
    shown = next_assignment(store, "test", "ann", minutes(2))
    record_vote(store, "ann", shown.assignment_id, "a", seconds=3, now=minutes(3))
    with pytest.raises(UserError, match=r"^campaign test: no item wants more raters"):
        export_batch(store, "test", tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()


def test_a_live_campaign_has_no_batch(store, tmp_path):
    settings = CampaignSettings(mode="chat")
    create_campaign(store, "talk", [], settings, models={"one": None, "two": None})
    with pytest.raises(UserError, match=r"^campaign talk: a chat campaign is live; no batch"):
        export_batch(store, "talk", tmp_path / "batch.csv")


HOSTILE = "=HYPERLINK(\"http://x\")\n<script>alert('x')</script> & \u202egnp.exe \U0001f600"


def test_texts_are_html_that_neither_runs_nor_calculates(store, tmp_path):
    rows = pair_rows(1)
    rows[0]["prompt"] = HOSTILE
    rows[0]["answers"][0]["text"] = "- one\n- two"
    rows[0]["answers"][1]["text"] = "\t'quoted'"
    create_campaign(store, "test", rows, CampaignSettings(seed=7))
    (row,) = sheet(export_batch(store, "test", tmp_path / "batch.csv").path)
    for cell in row.values():
        assert not re.match(r"[=+\-@\t\r']", cell)
        assert not re.search("[<>](?!br>)", cell.replace("<br>", ""))
        assert max(map(ord, cell)) < 0x10000
    assert html.unescape(row["prompt"].replace("<br>", "\n")) == harmless(HOSTILE)
    assert "&#45; one<br>- two" in row.values()
    # What was sent is known again when it comes back.
    path = results(tmp_path / "results.csv", result(row, 1, "W1"))
    assert import_results(store, "test", path).votes == 1


# in


def test_results_become_raters_and_votes(store, sent, tmp_path):
    path = results(
        tmp_path / "results.csv",
        result(sent[0], 1, "W1", Answer_choice="b_much", Answer_comment="Clear."),
        result(sent[0], 2, "W2", AssignmentStatus="Approved", WorkTimeInSeconds="7.5"),
        result(sent[1], 3, "W1", Answer_choice=" Tie "),
        result(sent[1], 4, "W3", Answer_choice="skip"),
        result(sent[2], 5, "W2", AssignmentStatus="Rejected", Answer_choice=""),
    )
    done = import_results(store, "test", path, now=NOON)
    assert (done.votes, done.unchanged, done.raters, done.rejected) == (4, 0, 3, 1)
    assert (done.withdrawn, done.bad) == (0, ())
    with store.reading() as session:
        texts = dict(session.execute(select(Answer.id, Answer.text)).all())
        votes = session.execute(
            select(User.name, Vote, Assignment, Item)
            .join(Assignment, Assignment.id == Vote.assignment_id)
            .join(User, User.id == Vote.user_id)
            .join(Item, Item.id == Assignment.item_id)
            .order_by(Vote.id)
        ).all()
    assert [(name, v.choice, v.seconds, v.comment, v.created) for name, v, _, _ in votes] == [
        ("mturk-W1", "b_much", 21, "Clear.", NOON),
        ("mturk-W2", "a", 7.5, "", NOON),
        ("mturk-W1", "tie", 21, "", NOON),
        ("mturk-W3", "skip", 21, "", NOON),
    ]
    for row, (_, _, lent, item) in zip((0, 0, 1, 1), votes, strict=True):
        assert sent[row]["prompt"] == item.prompt
        shown = [sent[row]["answer_a"], sent[row]["answer_b"]]
        assert [texts[answer] for answer in lent.order] == shown
    assert [lent.status for _, _, lent, _ in votes] == ["voted", "voted", "voted", "skipped"]
    assert {item.prompt: item.taken for _, _, _, item in votes} == {
        sent[0]["prompt"]: 2,
        sent[1]["prompt"]: 1,
    }
    assert progress(store, "test", NOON).done == 3
    assert verify(store, "mturk-W1", "!") is None


def test_the_same_file_again_changes_nothing(store, sent, tmp_path):
    path = results(
        tmp_path / "results.csv",
        *(result(row, n, f"W{n}") for n, row in enumerate(sent)),
        result(sent[0], 7, "W9", AssignmentStatus="Rejected"),
    )
    assert import_results(store, "test", path).votes == 3
    before = everything(store)
    done = import_results(store, "test", path, now=minutes(9))
    assert (done.votes, done.unchanged, done.raters, done.rejected) == (0, 3, 0, 1)
    assert everything(store) == before


def test_a_later_rejection_takes_the_vote_back_and_its_reversal_returns_it(store, sent, tmp_path):
    row = result(sent[0], 1, "W1")
    import_results(store, "test", results(tmp_path / "a.csv", row))
    rejected = results(tmp_path / "b.csv", row | {"AssignmentStatus": "Rejected"})
    done = import_results(store, "test", rejected)
    assert (done.votes, done.withdrawn, done.rejected) == (0, 1, 0)
    with store.reading() as session:
        assert session.scalar(select(func.count()).select_from(Vote)) == 0
        assert session.scalar(select(func.sum(Item.taken))) == 0
    assert import_results(store, "test", tmp_path / "a.csv").votes == 1
    with store.reading() as session:
        assert session.scalars(select(Assignment.status)).all() == ["voted"]
        assert session.scalar(select(func.sum(Item.taken))) == 1


def test_gold_questions_are_votes_of_their_own_purpose(store, tmp_path):
    campaign(store, items=1, gold=1, raters=())
    rows = sheet(export_batch(store, "test", tmp_path / "batch.csv").path)
    path = results(tmp_path / "r.csv", *(result(row, n, "W1") for n, row in enumerate(rows)))
    import_results(store, "test", path)
    with store.reading() as session:
        assert set(session.scalars(select(Assignment.purpose))) == {"normal", "gold"}
        assert sorted(session.scalars(select(Item.taken))) == [0, 1]


def test_rankings_go_out_and_come_back(store, tmp_path):
    rows = ranking_rows(1) + ranking_rows(1, answers=5)
    create_campaign(store, "rank", rows, CampaignSettings(mode="ranking", seed=1))
    batch = export_batch(store, "rank", tmp_path / "batch.csv")
    assert batch.answer == "rank_a … rank_e = 1 (best) to 5, or choice = skip"
    sent = sheet(batch.path)
    assert {row["prompt"] for row in sent} == {"User: Question 0?"}
    short = next(row for row in sent if not row["answer_e"])
    ranks = {f"Answer_rank_{x}": rank for x, rank in zip("abcd", "4114", strict=True)}
    row = result(short, 1, "W1", Answer_choice="", **ranks)
    import_results(store, "rank", results(tmp_path / "r.csv", row))
    with store.reading() as session:
        (vote,) = session.scalars(select(Vote)).all()
    assert (vote.choice, vote.ranks) == (None, [2, 1, 1, 2])
    for bad in ("", "5", "0", "1.0"):
        path = results(tmp_path / "bad.csv", row | {"Answer.rank_b": bad, "AssignmentId": "X"})
        with pytest.raises(UserError, match=r"bad.csv:2: .*(Answer.rank_b|another assignment)"):
            import_results(store, "rank", path)


BAD = {
    "Answer.choice is 'A is better'; it must be one of a_much, a, tie": {
        "Answer_choice": "A is better"
    },
    "Input.item 'nowhere' is not of campaign test": {"Input_item": "nowhere"},
    "Input.answer_a is not the text that was sent": {"Input_answer_a": "Something else"},
    "WorkTimeInSeconds is 'soon': input should be a valid number": {"WorkTimeInSeconds": "soon"},
    "WorkTimeInSeconds is 'nan': input should be": {"WorkTimeInSeconds": "nan"},
    "WorkTimeInSeconds is '-1': input should be greater": {"WorkTimeInSeconds": "-1"},
    "AssignmentStatus is 'Pending': input should be": {"AssignmentStatus": "Pending"},
    "WorkerId is 'a b': string should match": {"WorkerId": "a b"},
    "AssignmentId is '': string should match": {"AssignmentId": ""},
    "Answer.comment is 'xxx.*: string should have at most 2000": {"Answer_comment": "x" * 2001},
}


@pytest.mark.parametrize(("message", "cells"), BAD.items(), ids=lambda value: str(value)[:20])
def test_a_bad_row_stops_everything_and_is_named_by_its_line(sqlite_sent, message, cells, tmp_path):
    store, sent = sqlite_sent
    path = results(tmp_path / "r.csv", result(sent[0], 1, "W1"), result(sent[1], 2, "W2", **cells))
    before = everything(store)
    with pytest.raises(UserError, match=f"r.csv:3: {message}.*nothing was imported"):
        import_results(store, "test", path)
    assert everything(store) == before


def test_bad_rows_can_be_left_out_and_are_listed(sqlite_sent, tmp_path):
    store, sent = sqlite_sent
    path = results(
        tmp_path / "r.csv",
        result(sent[0], 1, "W1", Answer_choice="?"),
        result(sent[0], 2, "W2"),
        result(sent[0], 3, "W2", Answer_choice="b"),  # a second assignment for one item
        result(sent[0], 2, "W2", Answer_choice="b"),  # the same assignment, another answer
    )
    with path.open("a") as file:
        file.write("too,few\n")
    with pytest.raises(UserError, match=r"r.csv:2: .* \(and 3 more bad rows\); nothing was"):
        import_results(store, "test", path)
    done = import_results(store, "test", path, skip_bad_rows=True)
    assert (done.votes, done.raters) == (1, 1)
    assert [re.sub(".*r.csv", "", line)[:60] for line in done.bad] == [
        ":2: Answer.choice is '?'; it must be one of a_much, a, tie, ",
        ":4: worker W2 has rated this item in another assignment",
        ":5: assignment ASSIGN2 was imported with another answer",
        ":6: 2 cells under 10 columns; quote texts that contain a com",
    ]


def test_files_that_are_no_results(sqlite_sent, tmp_path):
    store, _ = sqlite_sent
    (tmp_path / "other.csv").write_text("prompt,answer\nx,y\n")
    (tmp_path / "empty.csv").write_text("AssignmentId\n")
    for name, message in {
        "other.csv": "no column AssignmentId, WorkerId, AssignmentStatus, WorkTimeInSeconds, Input",
        "empty.csv": "no rows; nothing was imported",
        "none.csv": "no such file",
        "r.json": "results of Mechanical Turk are a .csv file",
    }.items():
        with pytest.raises(UserError, match=f"{name}: {message}"):
            import_results(store, "test", tmp_path / name)


def test_a_closed_campaign_takes_no_results(sqlite_sent, tmp_path):
    store, sent = sqlite_sent
    close_campaign(store, "test")
    with pytest.raises(UserError, match=r"^campaign test: it is closed and takes no more votes"):
        import_results(store, "test", results(tmp_path / "r.csv", result(sent[0], 1, "W1")))


def test_a_comment_loses_the_apostrophe_of_a_spreadsheet(sqlite_sent, tmp_path):
    store, sent = sqlite_sent
    row = result(sent[0], 1, "W1", Answer_comment="'=1+1")
    import_results(store, "test", results(tmp_path / "r.csv", row))
    with store.reading() as session:
        assert session.scalars(select(Vote.comment)).all() == ["=1+1"]
