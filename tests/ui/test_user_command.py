import re

import pytest

from ui.accounts import list_users, verify
from ui.command import app
from ui.store import Store
from ui.user_command import new_password
from workbench.cli import guarded


@pytest.fixture
def url(tmp_path, sqlite_template) -> str:
    (tmp_path / "ratings.db").write_bytes(sqlite_template.read_bytes())
    return f"sqlite:///{tmp_path}/ratings.db"


@pytest.fixture
def store(url):
    opened = Store(url)
    yield opened
    opened.close()


@pytest.fixture
def user(url, capsys):
    def run(*words: str) -> tuple[int, str, str]:
        line = ["user", *words, "--db", url]
        code = guarded(lambda: app(line, standalone_mode=False))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def password_in(err: str) -> str:
    return re.search(r"shown this once: (\S+)", err)[1]


def test_accounts_are_made_with_a_password_that_is_shown_once(user, store):
    code, out, err = user("add", "ann")
    assert (code, out) == (0, "")
    assert verify(store, "ann", password_in(err)).role == "rater"
    code, _, err = user("add", "rita", "--role", "researcher")
    assert verify(store, "rita", password_in(err)).role == "researcher"


def test_a_password_can_be_typed(user, store, monkeypatch):
    typed = iter(["correct horse", "correct horse", "another horse", "another horse"])
    monkeypatch.setattr("getpass.getpass", lambda *_, **__: next(typed))
    monkeypatch.setattr("typer._click.termui.hidden_prompt_func", lambda _: next(typed))
    code, _, err = user("add", "ann", "--ask")
    assert code == 0
    assert "horse" not in err
    assert verify(store, "ann", "correct horse")
    assert user("password", "ann", "--ask")[0] == 0
    assert verify(store, "ann", "another horse")


def test_accounts_are_listed(user):
    user("add", "ann")
    user("add", "rita", "--role", "researcher")
    user("disable", "ann")
    code, out, _ = user("list")
    assert code == 0
    header, *rows = [line.split() for line in out.splitlines() if line.strip()]
    assert header == ["name", "role", "active", "since"]
    assert [row[:3] for row in rows] == [["ann", "rater", "no"], ["rita", "researcher", "yes"]]


def test_a_new_password_replaces_the_old(user, store):
    old = password_in(user("add", "ann")[2])
    new = password_in(user("password", "ann")[2])
    assert verify(store, "ann", old) is None
    assert verify(store, "ann", new)


def test_roles_and_access_can_be_changed(user, store):
    password = password_in(user("add", "ann")[2])
    assert "ann is a researcher" in user("role", "ann", "researcher")[2]
    assert verify(store, "ann", password).role == "researcher"
    assert "ann cannot log in" in user("disable", "ann")[2]
    assert verify(store, "ann", password) is None
    assert "ann can log in" in user("enable", "ann")[2]
    assert verify(store, "ann", password)
    assert len(list_users(store)) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["add", "a b"], "a name is 1 to 64 letters"),
        (["add", "ann"], "there is one of that name already"),
        (["add", "bob", "--role", "king"], "king"),
        (["password", "an"], "there is no such account; did you mean ann?"),
        (["role", "ann", "king"], "king"),
        (["disable", "bob"], "there is no such account"),
        (["enable", "bob"], "there is no such account"),
    ],
)
def test_a_mistake_is_one_line(user, words, message):
    user("add", "ann")
    code, out, err = user(*words)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"rlhf: error: [^\n]*\n", err)
    assert message in err


def test_passwords_are_long_and_differ():
    made = {new_password() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch("([a-hj-km-np-z2-9]{4}-){2}[a-hj-km-np-z2-9]{4}", p) for p in made)
