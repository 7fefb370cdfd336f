import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, select, text
from sqlalchemy.exc import IntegrityError, StatementError

from ui.schema import Base, Event, User
from ui.store import Store, log_event
from workbench.errors import UserError


def user(name="ann", **values):
    return User(**{"name": name, "role": "rater", "password_hash": "-", **values})


def names(store):
    with store.reading() as session:
        return sorted(session.scalars(select(User.name)))


def test_the_migrations_make_what_the_schema_says(store):
    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        found = inspect(connection)
        for table in Base.metadata.tables.values():
            # compare_metadata looks at neither of these.
            named = {c["name"] for c in found.get_check_constraints(table.name)}
            wanted = {c.name for c in table.constraints if c.name and c.name.startswith("ck_")}
            assert named == wanted, table.name
            indexes = {i["name"]: bool(i["unique"]) for i in found.get_indexes(table.name)}
            assert indexes.items() >= {i.name: bool(i.unique) for i in table.indexes}.items()


def test_a_store_opened_again_holds_what_was_put_in(url):
    first = Store(url)
    with first.session() as session:
        session.add(user())
    first.close()
    second = Store(url)
    assert names(second) == ["ann"]
    second.close()


def test_many_that_open_a_new_database_at_once_make_it_once(url):
    errors = []

    def opened():
        try:
            Store(url).close()
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=opened) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == []


def test_an_error_rolls_everything_back(store):
    def work(session):
        session.add(user())
        session.flush()
        return 1 / 0

    with pytest.raises(ZeroDivisionError), store.session() as session:
        work(session)
    with pytest.raises(ZeroDivisionError):
        store.run(work)
    assert names(store) == []


def test_moments_are_in_utc_and_know_it(store):
    there = datetime(2026, 1, 1, 3, 30, tzinfo=timezone(timedelta(hours=5)))
    with store.session() as session:
        log_event(session, "login", at=there, address="::1")
    with store.reading() as session:
        event = session.scalars(select(Event)).one()
    assert event.at == there
    assert event.at.tzinfo is UTC
    assert event.at.hour == 22
    assert event.detail == {"address": "::1"}


def test_a_moment_without_a_zone_is_refused(store):
    with pytest.raises(StatementError, match="has no time zone"), store.session() as session:
        log_event(session, "login", at=datetime(2026, 1, 1))


@pytest.mark.parametrize("values", [{"role": "queen"}, {"name": "ann"}])
def test_the_database_itself_refuses_what_must_not_be(store, values):
    with store.session() as session:
        session.add(user())
    with pytest.raises(IntegrityError), store.session() as session:
        session.add(user(**{"name": "bob", **values}))


def test_a_reference_to_nobody_is_refused(store):
    with pytest.raises(IntegrityError), store.session() as session:
        log_event(session, "vote", user_id=99)


def test_readers_and_a_writer_do_not_wait_for_each_other(store):
    with store.session() as writing:
        writing.add(user())
        writing.flush()
        assert names(store) == []  # would hang, if it waited
    with store.reading() as reading:
        assert reading.scalars(select(User.name)).all() == ["ann"]
        with store.session() as writing:
            writing.add(user("bob"))
    assert names(store) == ["ann", "bob"]


def test_work_that_competes_is_repeated_until_it_succeeds(store):
    """Two transfers in opposite order: a deadlock on PostgreSQL, a queue on SQLite."""
    with store.session() as session:
        session.add_all([user("ann", password_hash="0"), user("bob", password_hash="0")])
    meeting, calls = threading.Barrier(2), []

    def transfer(first, second):
        def work(session):
            calls.append(first)
            for name in (first, second):
                row = session.scalars(select(User).where(User.name == name).with_for_update()).one()
                if name == first and len(calls) <= 2 and store.engine.dialect.name != "sqlite":
                    meeting.wait(timeout=20)
                row.password_hash = str(int(row.password_hash) + 1)
                session.flush()

        store.run(work)

    threads = [
        threading.Thread(target=transfer, args=names) for names in (("ann", "bob"), ("bob", "ann"))
    ]
    [thread.start() for thread in threads]
    [thread.join(timeout=60) for thread in threads]
    with store.reading() as session:
        assert session.scalars(select(User.password_hash)).all() == ["2", "2"]
    assert len(calls) == (2 if store.engine.dialect.name == "sqlite" else 3)


def test_sqlite_keeps_a_log_and_checks_references(tmp_path):
    store = Store(f"sqlite:///{tmp_path}/deep/er/ratings.db")
    with store.engine.connect() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert found == ["wal", 1, 1, 30_000]


KILLED = """
import os, signal, sys
from ui.schema import User
from ui.store import Store
store = Store(sys.argv[1])
for name in ("ann", "bob"):
    with store.session() as session:
        session.add(User(name=name, role="rater", password_hash="-"))
with store.session() as session:
    session.add(User(name="cut off", role="rater", password_hash="-"))
    session.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_committed_outlives_a_kill(url):
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, url],
        check=False,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.returncode == -9
    store = Store(url)
    assert names(store) == ["ann", "bob"]
    store.close()


def test_a_newer_database_is_left_alone(url):
    Store(url).close()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(UserError, match=r"version 9999.*update rlhf-workbench"):
        Store(url)


def test_somebody_elses_tables_are_left_alone(url):
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE campaigns (coupon TEXT)"))
    with pytest.raises(UserError, match="already exists"):
        Store(url)
    with engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["campaigns"]
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ratings.db", "is not a database URL; write e.g. sqlite:///runs/ui/ratings.db"),
        ("sqlite://", "ratings in memory are lost"),
        ("sqlite:///:memory:", "ratings in memory are lost"),
        ("mysql://root:secret@localhost/x", r"mysql://root:\*\*\*@localhost/x: databases of this"),
        ("postgresql+asyncpg://localhost/x", "databases of this kind are not served"),
        ("postgresql://a:secret@127.0.0.1:1/x", r"psycopg://a:\*\*\*@127.0.0.1:1/x: the database"),
        ("sqlite:////dev/null/x/ratings.db", "cannot make the folder /dev/null/x"),
        ("sqlite:////dev", "does not serve us .unable to open database file"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(url, message):
    with pytest.raises(UserError, match=message) as caught:
        Store(url)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    path = tmp_path / "ratings.db"
    path.write_text("Dear diary, " * 100, encoding="utf-8")
    with pytest.raises(UserError, match="not a database"):
        Store(f"sqlite:///{path}")
    assert path.read_text(encoding="utf-8").startswith("Dear diary")


def test_a_missing_driver_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'psycopg\[binary\]'"):
        Store("postgresql://localhost/x")


def test_trouble_in_the_middle_is_one_line(store):
    def work(session):
        session.execute(text("SELECT * FROM users" if calls else "SELECT 1"))

    calls: list[int] = []
    store.run(work)
    if store.engine.dialect.name == "sqlite":
        with store.session() as session:
            session.execute(text("DROP TABLE turns"))
        with pytest.raises(
            UserError, match=r"the database does not serve us .no such table: turns"
        ):
            store.run(lambda session: session.execute(text("SELECT * FROM turns")))
        return
    with pytest.raises(UserError, match="the database does not serve us"):
        # As when the server is restarted in the middle of a request.
        store.run(
            lambda session: session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        )
    store.run(work)  # the next request has a connection again
