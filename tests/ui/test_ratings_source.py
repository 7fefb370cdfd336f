import shutil
import subprocess
import sys

import pytest

from tests.ui.ballots import add_raters, make, question, vote
from tests.ui.samples import pair_rows
from ui.campaigns import create_campaign
from ui.exporting import Filters, pairs
from ui.ratings_source import open_store
from ui.settings import CampaignSettings
from ui.store import Store
from workbench.data import KINDS, load, splits_of
from workbench.data.check import check
from workbench.errors import UserError


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
    with pytest.raises(UserError, match="is not a database URL"):
        load("ratings:", KINDS)
    with pytest.raises(UserError, match="is not a database URL"):
        open_store("ratings.db")
    with pytest.raises(UserError, match=r"mysql.*not served"):
        open_store("mysql://host/name")


def test_an_unknown_campaign(store):
    with pytest.raises(UserError, match=r"campaign 'frist': .*did you mean first"):
        load(f"ratings:{store.url}#frist", KINDS)


def test_a_password_is_refused_before_a_run_writes_it_down():
    with pytest.raises(UserError, match=r"holds a password.*PGPASSWORD") as raised:
        load("ratings:postgresql+psycopg://me:sesame@host/name", KINDS)
    assert "sesame" not in str(raised.value)


def test_loading_other_data_loads_no_database():
    code = (
        "import sys\n"
        "from workbench.data import load\n"
        "load('demo:prompts', ('prompt_only',))\n"
        "print(sorted(name for name in sys.modules if name in ('sqlalchemy', 'ui')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
