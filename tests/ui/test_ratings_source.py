import re
import shutil
import subprocess
import sys

import pytest
from sqlalchemy import delete

from tests.ui.ballots import add_raters, make, question, vote
from tests.ui.conftest import new_database
from tests.ui.samples import pair_rows
from ui.accounts import find_user
from ui.campaigns import create_campaign
from ui.exporting import Filters, pairs
from ui.ratings_source import open_store
from ui.schema import Vote
from ui.settings import CampaignSettings
from ui.store import Store
from workbench.data import KINDS, load, splits_of
from workbench.data.check import check
from workbench.errors import UserError
from workbench.run import fingerprint


@pytest.fixture
def store(sqlite_template, tmp_path):
    """Votes of one rater in two campaigns."""
    shutil.copy(sqlite_template, tmp_path / "ratings.db")
    opened = Store(f"sqlite:///{tmp_path}/ratings.db")
    make(opened, pair_rows(3), raters=("ann",), name="first")
    create_campaign(opened, "the second", pair_rows(2), CampaignSettings(seed=1))
    vote(opened, "ann", question("a_much", "b", "tie"), name="first")
    vote(opened, "ann", question("a", "a"), name="the second")
    yield opened
    opened.close()


def test_votes_are_a_source_of_preferences(store):
    loaded = load(f"ratings:{store.url}#first", ("preference", "ranking"))
    assert (loaded.kind, loaded.source) == ("preference", f"ratings:{store.url}#first")
    told = [(row["chosen"], row["rejected"], row["margin"]) for row in loaded.rows]
    assert told == [("Right 0.", "Wrong 0.", 2.0), ("Wrong 1.", "Right 1.", 1.0)]
    exported = pairs(store, "first", Filters()).rows
    kept = loaded.rows[0].keys()
    assert loaded.rows == [{key: row[key] for key in kept} for row in exported]
    assert exported[0].keys() - kept == {"exported_at", "split"}


def test_a_source_without_a_name_is_all_campaigns(store):
    loaded = load(f"ratings:{store.url}", KINDS)
    assert [row["campaign"] for row in loaded.rows] == ["first"] * 2 + ["the second"] * 2
    assert len(load(f"ratings:{store.url}#the second", KINDS).rows) == 2
    assert len(load(f"ratings:{store.url}", KINDS, limit=3).rows) == 3
    assert splits_of(f"ratings:{store.url}") == ()


def test_the_same_votes_are_the_same_rows_and_new_ones_are_not(store):
    source = f"ratings:{store.url}#first"
    before = load(source, KINDS).rows
    assert load(source, KINDS).rows == before
    add_raters(store, "bob")
    vote(store, "bob", question("a", "a", "a"), name="first")
    assert load(source, KINDS).rows != before


def test_data_check_takes_votes(store):
    report = check(f"ratings:{store.url}#first")
    assert [(part.kind, part.rows, part.identical_pairs) for part in report.parts] == [
        ("preference", 2, 0)
    ]


def test_what_is_not_there_is_not_made(tmp_path):
    url = f"sqlite:///{tmp_path}/no/ratings.db"
    with pytest.raises(UserError, match=f"^{url}: no such file; `rlhf ui --db {url}` makes it$"):
        load(f"ratings:{url}", KINDS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"^'': not a database URL; write sqlite:///"):
        load("ratings:", KINDS)
    with pytest.raises(UserError, match=r"^'ratings.db': not a database URL"):
        open_store("ratings.db")
    with pytest.raises(UserError, match=r"mysql.*not served"):
        open_store("mysql://host/name")


def test_an_unknown_campaign(store):
    with pytest.raises(UserError, match=r"campaign 'frist': .*did you mean first"):
        load(f"ratings:{store.url}#frist", KINDS)


def test_a_password_is_used_and_not_shown(postgres):
    url = new_database(postgres).replace("@/", ":open%20sesame@/")
    store = Store(url)
    make(store, pair_rows(2), raters=("ann",), name="first")
    vote(store, "ann", question("a", "b"), name="first")
    store.close()
    loaded = load(f"ratings:{url}#first", KINDS)
    assert [row["chosen"] for row in loaded.rows] == ["Right 0.", "Wrong 1."]
    shown = url.replace("open%20sesame", "***")
    assert loaded.source == f"ratings:{shown}#first"
    assert "sesame" not in str(loaded) + str(check(f"ratings:{url}"))
    opened = open_store(url)
    assert opened.engine.url.password == "open sesame"
    assert "***@/" in opened.url
    opened.close()
    # What a config shows can be given again: the password comes from PGPASSWORD then.
    votes = load(f"ratings:{shown}#first", KINDS).rows
    assert [row | {"database": ""} for row in votes] == [
        row | {"database": ""} for row in loaded.rows
    ]
    again = open_store(shown)
    assert again.engine.url.password is None
    again.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:se#same@host/name",
        "postgresql+psycopg://me:ses@ame@host/name",
        "postgresql+psycopg://me:sesame@host:port/name",
        "postgresql+psycopg://me:sesame@localhost:1/name",
        "postgresql+psycopg://me@localhost:1/name?password=sesame",
        "mysql://me:sesame@host/name",
        "frostgresql://me:sesame@host/name",
    ],
)
def test_no_mistake_shows_a_password(url):
    for source in (f"ratings:{url}", f"ratings:{url}#first"):
        with pytest.raises(UserError) as raised:
            load(source, KINDS)
        assert not {"se", "ses", "same", "ame", "sesame"} & set(re.split(r"\W+", str(raised.value)))


def test_several_processes_would_not_read_the_same(store, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"ratings.db#first: several processes .* ratings export"):
        load(f"ratings:{store.url}#first", KINDS)


def test_a_run_knows_votes_by_what_they_say(store):
    source = f"ratings:{store.url}#first"
    before = fingerprint(source)
    assert fingerprint(source) == before != fingerprint(f"ratings:{store.url}#the second")
    add_raters(store, "bob")
    assert fingerprint(source) == before
    vote(store, "bob", question("a"), name="first")
    after = fingerprint(source)
    with store.session() as session:
        session.execute(delete(Vote).where(Vote.user_id == find_user(session, "bob").id))
    assert before == fingerprint(source) != after


def test_loading_other_data_loads_no_database():
    code = (
        "import sys\n"
        "from workbench.data import load\n"
        "load('demo:prompts', ('prompt_only',))\n"
        "print(sorted(name for name in sys.modules if name in ('sqlalchemy', 'ui')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
