import csv
import json
import shutil

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from tests.ui.ballots import make, question, vote
from tests.ui.samples import pair_rows
from ui.campaigns import create_campaign
from ui.ratings_command import app
from ui.schema import Event
from ui.settings import CampaignSettings
from ui.store import Store
from workbench.data import load
from workbench.errors import UserError


@pytest.fixture
def store(sqlite_template, tmp_path):
    """An empty store on SQLite."""
    shutil.copy(sqlite_template, tmp_path / "ratings.db")
    opened = Store(f"sqlite:///{tmp_path}/ratings.db")
    yield opened
    opened.close()


@pytest.fixture
def voted(store):
    """A campaign with the votes of three raters, one of whom fails the gold questions."""
    make(store, pair_rows(6, gold=8))
    right = {f"Question {number}?": "a" for number in range(14)}
    vote(store, "ann", {**right, **question("a", "a", "b", "a_much", "tie", "both_bad")})
    vote(store, "bob", {**right, **question("a", "a", "b", "a", "tie", "skip")})
    vote(store, "cid", dict.fromkeys(right, "b"))
    return store


def run(*arguments):
    return CliRunner(env={"COLUMNS": "120"}).invoke(app, list(map(str, arguments)))


def rated(store, *arguments):
    result = run(*arguments, "--db", store.url)
    if result.exception is not None:
        raise result.exception
    return result


@pytest.mark.parametrize("command", ["import", "export", "stats", "consolidate"])
def test_help_has_an_example_and_needs_no_database(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: `rlhf ratings {command}" in " ".join(result.stdout.split())


@pytest.mark.parametrize("command", ["export", "stats", "consolidate", "import"])
def test_a_database_must_be_there(command, tmp_path):
    more = {"export": ["--out", tmp_path / "x.jsonl"], "import": [tmp_path / "x.csv"]}
    result = run(command, *more.get(command, []), "--db", f"sqlite:///{tmp_path}/none.db")
    assert isinstance(result.exception, UserError)
    assert "none.db: no such file" in str(result.exception)
    assert list(tmp_path.iterdir()) == []


# export


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ([], 4),
        (["--min-raters", "3"], 4),
        (["--min-agreement", "0.7"], 1),
        (["--drop-failed-raters"], 4),
        (["--min-gold-accuracy", "0.5"], 4),
        (["--min-gold-accuracy", "0.5", "--min-raters", "2"], 4),
        (["--consolidate", "none"], 14),
        (["--test-fraction", "0.4"], 4),
    ],
)
def test_every_option_of_export(voted, tmp_path, options, kept):
    out = tmp_path / "pairs.jsonl"
    result = rated(voted, "export", "--campaign", "test", "--out", out, *options)
    rows = load(str(out), ("preference",)).rows
    assert len(rows) == kept
    said = " ".join(result.stderr.split())
    assert said.startswith(f"{kept} pairs from 42 votes in {out}")
    assert "left out: " in said
    assert ("raters left out: cid" in said) == ("drop" in str(options) or "gold" in str(options))
    held = sum(row["split"] == "test" for row in rows)
    assert (f", {held} of them held out" in said) == ("--test-fraction" in options) == (held > 0)
    with voted.reading() as session:
        (event,) = session.scalars(select(Event).where(Event.what == "export"))
    assert event.detail == {"campaign": "test", "form": "jsonl", "pairs": kept}


def test_the_name_or_the_option_tells_the_form(voted, tmp_path):
    for name, form in (("a.parquet", None), ("folder", None), ("a.csv", None), ("b.x", "parquet")):
        out = tmp_path / name
        result = rated(voted, "export", "--out", out, *(["--format", form] if form else []))
        assert out.is_dir() == (name == "folder")
        assert ("csv is for spreadsheets" in " ".join(result.stderr.split())) == (name == "a.csv")
    assert (tmp_path / "b.x").read_bytes()[:4] == b"PAR1"
    assert "# Preferences" in (tmp_path / "folder" / "README.md").read_text("utf-8")


def test_dawid_skene_from_the_command(voted, tmp_path):
    rated(voted, "export", "--out", tmp_path / "a.jsonl", "--consolidate", "dawid-skene")
    rows = load(str(tmp_path / "a.jsonl"), ("preference",)).rows
    assert len({row["confidence"] for row in rows} - {row["agreement"] for row in rows}) > 0


def test_campaigns_are_pooled_or_named(store, tmp_path):
    make(store, pair_rows(2), raters=("ann",), name="first")
    create_campaign(store, "second", pair_rows(2), CampaignSettings(seed=1))
    for name in ("first", "second"):
        vote(store, "ann", question("a", "a"), name=name)
    rated(store, "export", "--out", tmp_path / "all.jsonl")
    assert len(load(str(tmp_path / "all.jsonl"), ("preference",)).rows) == 4
    rated(store, "export", "--out", tmp_path / "one.jsonl", "--campaign", "second")
    one = load(str(tmp_path / "one.jsonl"), ("preference",)).rows
    assert {row["campaign"] for row in one} == {"second"}
    for command in ("stats", "consolidate"):
        with pytest.raises(UserError, match=r"^--campaign: choose one of second, first$"):
            rated(store, command)


def test_no_campaign_at_all(store):
    with pytest.raises(UserError, match=r"^--campaign: .*ratings.db holds none$"):
        rated(store, "stats")


def test_an_impossible_filter_writes_nothing(voted, tmp_path):
    with pytest.raises(UserError, match=r"^--min-agreement 2.0: must be from 0 to 1"):
        rated(voted, "export", "--out", tmp_path / "a.jsonl", "--min-agreement", "2")
    assert not (tmp_path / "a.jsonl").exists()
    assert run("export", "--out", "x", "--min-raters", "0").exit_code == 2
    assert run("export", "--out", "x", "--format", "xml").exit_code == 2


# Mechanical Turk, there and back


def test_a_batch_goes_out_and_comes_back(store, tmp_path):
    make(store, pair_rows(2), raters=("ann",))
    batch = tmp_path / "batch.csv"
    said = " ".join(rated(store, "export", "--format", "mturk", "--out", batch).stderr.split())
    assert said.startswith(f"2 items in {batch}: upload it with 1 assignments per item")
    assert "${prompt}" in said
    assert "choice = a_much, a, tie" in said
    with batch.open(encoding="utf-8", newline="") as file:
        sent = list(csv.DictReader(file))
    back = tmp_path / "results.csv"
    names = ["AssignmentId", "WorkerId", "AssignmentStatus", "WorkTimeInSeconds", "Input.item"]
    with back.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "Answer.choice"])
        writer.writerow(["A1", "W1", "Approved", "12", sent[0]["item"], "a"])
        writer.writerow(["A2", "W2", "Approved", "12", sent[1]["item"], "neither"])
    with pytest.raises(UserError, match=r"results.csv:3: Answer.choice is 'neither'"):
        rated(store, "import", back)
    result = rated(store, "import", back, "--campaign", "test", "--skip-bad-rows")
    said = " ".join(result.stderr.split())
    assert said.startswith("test: 1 votes imported, 1 new raters, 0 rows known already, 0 rejected")
    assert "1 bad rows left out" in said
    assert "results.csv:3: Answer.choice is 'neither'" in said
    with pytest.raises(UserError, match=r"Mechanical Turk takes .csv files"):
        rated(store, "export", "--format", "mturk", "--out", tmp_path / "batch.jsonl")


# stats


def test_stats_as_json(voted):
    facts = json.loads(rated(voted, "stats", "--json").stdout)
    assert (facts["campaign"], facts["mode"]) == ("test", "pair")
    assert (facts["votes"], facts["skips"]) == (41, 1)
    (rate,) = facts["win_rates"]
    # ann 3 wins of 6, bob 3 of 5, cid 0 of 6; ann's tie and both bad, bob's tie.
    wins = {"good": (6, 3, 8), "poor": (8, 3, 6)}
    assert (rate["wins"], rate["ties"], rate["losses"]) == wins[rate["model"]]
    assert rate["votes"] == 17
    assert rate["ci95"]["low"] < rate["win_rate"] < rate["ci95"]["high"]
    assert rate["controlled"]["win_rate"]["value"] == pytest.approx(rate["win_rate"], abs=0.2)
    assert set(rate["votes_needed"]) == {"total", "more", "why"}
    assert facts["agreement"]["percent"]["value"] < 1
    assert [rater["rater"] for rater in facts["raters"]] == ["ann", "bob", "cid"]
    assert "fails gold questions" in facts["raters"][2]["problems"]
    assert facts["cost"]["spent"] == pytest.approx(41 * 0.012)
    left = json.loads(rated(voted, "stats", "--json", "--drop-failed-raters").stdout)
    assert (left["left_out"], left["win_rates"][0]["votes"]) == (["cid"], 11)


def test_stats_as_tables(voted):
    text = rated(voted, "stats").stdout
    assert text.startswith("test: 41 votes of 3 raters, 1 skips; $0.49 so far, $")
    for part in ("who wins", "agreement on 6 comparisons", "Fleiss κ", "Krippendorff α", "raters"):
        assert part in text
    (line,) = [line for line in text.splitlines() if line.startswith("cid")]
    assert "fails gold questions" in line
    assert " 0% " in line
    assert max(map(len, text.splitlines())) <= 120
    assert "raters left out: cid" in rated(voted, "stats", "--drop-failed-raters").stdout


def test_stats_of_several_models_have_strengths(store):
    rows = pair_rows(3)
    for row, names in zip(rows, (("x", "y"), ("y", "z"), ("z", "x")), strict=True):
        for answer, name in zip(row["answers"], names, strict=True):
            answer["model"] = name
    make(store, rows, raters=("ann",))
    text = rated(store, "stats").stdout  # nobody has voted yet
    assert text.startswith("test: 0 votes of 0 raters")
    vote(store, "ann", question("a", "a", "a"))
    assert "Bradley-Terry strengths" in rated(store, "stats").stdout
    facts = json.loads(rated(store, "stats", "--json").stdout)
    assert {each["model"] for each in facts["bradley_terry"]["strengths"]} == {"x", "y", "z"}


# consolidate


def test_consolidate_names_a_winner_of_each_comparison(voted, tmp_path):
    out = tmp_path / "winners.jsonl"
    result = rated(voted, "consolidate", "--method", "majority", "--out", out, "--json")
    facts = json.loads(result.stdout)
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert lines == facts["winners"]
    assert (facts["method"], facts["confusion"]) == ("majority", {})
    # cid says the second every time, and the last has one vote for neither, one for the second.
    assert [row["winner"] for row in lines] == ["good", "good", "poor", "good", "tie", "tie"]
    assert [row["votes"] for row in lines] == [3, 3, 3, 3, 3, 2]
    fewer = rated(voted, "consolidate", "--method", "majority", "--min-raters", "3", "--json")
    assert len(json.loads(fewer.stdout)["winners"]) == 5
    with pytest.raises(UserError, match="no comparison has 4 votes"):
        rated(voted, "consolidate", "--min-raters", "4")


def test_consolidate_tells_how_raters_err(voted, tmp_path):
    out = tmp_path / "winners.csv"
    text = rated(voted, "consolidate", "--out", out).stdout
    assert text.startswith("test: 6 comparisons by dawid-skene, mean confidence ")
    assert "names the other" in text
    confusion = json.loads(rated(voted, "consolidate", "--json").stdout)["confusion"]
    assert confusion["ann"][0][0] > 0.7 > 0.3 > confusion["cid"][0][0]
    with out.open(encoding="utf-8", newline="") as file:
        assert [row["prompt_id"] != "" for row in csv.DictReader(file)] == [True] * 6
    dropped = rated(voted, "consolidate", "--drop-failed-raters", "--json").stdout
    assert "cid" not in json.loads(dropped)["confusion"]
    least = rated(voted, "consolidate", "--min-gold-accuracy", "0.5", "--json").stdout
    assert "cid" not in json.loads(least)["confusion"]
    with pytest.raises(UserError, match=r"winners.txt: winners are written as .jsonl or .csv"):
        rated(voted, "consolidate", "--out", tmp_path / "winners.txt")


def test_hostile_names_do_nothing_to_the_terminal(store):
    rows = pair_rows(1)
    rows[0]["answers"][0]["model"] = "[red]x\x1b[31m\n"
    make(store, rows, raters=("ann",))
    vote(store, "ann", question("a"))
    text = rated(store, "stats").stdout
    assert "\x1b" not in text
    assert "[red]x" in text
