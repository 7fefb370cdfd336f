import stat
from types import SimpleNamespace

import pytest

from tests.ui.samples import PASSWORD
from ui.accounts import add_user, change_user
from ui.sessions import LIFETIME, Sessions, secret_of
from ui.store import Store
from workbench.errors import UserError

SECRET = b"a secret of at least 32 bytes ..."


@pytest.fixture
def clock():
    return SimpleNamespace(now=1_000_000.0)


@pytest.fixture
def opened(store, clock):
    return Sessions(store, SECRET, clock=lambda: clock.now)


@pytest.fixture
def ann(store):
    return add_user(store, "ann", PASSWORD)


def test_a_session_knows_its_account(opened, ann):
    found = opened.find(opened.begin(ann))
    assert (found.id, found.name, found.role) == (ann.id, "ann", "rater")


def test_a_session_ends_after_a_working_day(opened, ann, clock):
    cookie = opened.begin(ann)
    clock.now += LIFETIME - 1
    assert opened.find(cookie) is not None
    clock.now += 1
    assert opened.find(cookie) is None


def test_a_cookie_cannot_be_changed(opened, ann, store):
    rita = add_user(store, "rita", PASSWORD, "researcher")
    user_id, ends, signature = opened.begin(ann).split(".")
    for forged in (
        f"{rita.id}.{ends}.{signature}",
        f"{user_id}.{int(ends) + 1}.{signature}",
        f"{user_id}.{ends}.{'0' * 64}",
        f"{user_id}.{ends}.{signature.upper()}",
        f"{user_id}.{ends}",
        f"999.{ends}.{signature}",
        f"{'9' * 18}.{ends}.{signature}",
        f"{user_id}.{ends}.{signature}\n",
        "",
        None,
        "..",
    ):
        assert opened.find(forged) is None


def test_another_secret_knows_nobody(opened, ann, store, clock):
    other = Sessions(store, SECRET[::-1], clock=lambda: clock.now)
    assert other.find(opened.begin(ann)) is None


def test_what_changes_at_the_account_shows_within_a_second(opened, ann, store, clock):
    cookie = opened.begin(ann)
    assert opened.find(cookie).role == "rater"
    change_user(store, "ann", role="researcher")
    clock.now += 1
    assert opened.find(cookie).role == "researcher"
    change_user(store, "ann", active=False)
    clock.now += 1
    assert opened.find(cookie) is None
    change_user(store, "ann", active=True, password="a longer password")
    clock.now += 1
    assert opened.find(cookie) is None


def test_the_secret_stands_beside_the_file_for_our_eyes_only(tmp_path):
    url = f"sqlite:///{tmp_path}/ratings.db"
    secret = secret_of(url)
    path = tmp_path / "ratings.db.secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(secret) == 64
    path.chmod(0o644)
    assert secret_of(url) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert secret_of(f"sqlite:///{tmp_path}/other.db") != secret


def test_the_secret_of_a_server_is_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path))
    url = "postgresql+psycopg://someone@db.example/ratings"
    assert secret_of(url) == secret_of(url)
    (path,) = tmp_path.glob("ui/*.secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_secret_that_is_none_is_reported(tmp_path):
    (tmp_path / "ratings.db.secret").write_text("short")
    with pytest.raises(UserError, match="not a secret of sessions; delete it"):
        secret_of(f"sqlite:///{tmp_path}/ratings.db")
    (tmp_path / "folder.db.secret").mkdir()
    with pytest.raises(UserError, match="cannot keep the secret"):
        secret_of(f"sqlite:///{tmp_path}/folder.db")


def test_sessions_survive_a_restart(tmp_path, sqlite_template):
    url = f"sqlite:///{tmp_path}/ratings.db"
    (tmp_path / "ratings.db").write_bytes(sqlite_template.read_bytes())
    first = Store(url)
    cookie = Sessions(first, secret_of(url)).begin(add_user(first, "ann", PASSWORD))
    first.close()
    again = Store(url)
    assert Sessions(again, secret_of(url)).find(cookie).name == "ann"
    again.close()
