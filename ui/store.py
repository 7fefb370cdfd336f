"""The database of ratings: SQLite or PostgreSQL, brought up to date when it is opened."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy import text as sql
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    InterfaceError,
    OperationalError,
)
from sqlalchemy.orm import Session

from ui.errors import Trouble
from ui.schema import Event, utc_now
from workbench.errors import UserError
from workbench.passwords import masked

T = TypeVar("T")

WAIT_SECONDS = 30
ATTEMPTS = 8
# Serialisation failure, deadlock: PostgreSQL rolled back, and the same work can succeed next time.
_PASSING = {"40001", "40P01"}
_MIGRATION_LOCK = 4_070_518_123  # any number; the same for every process that migrates
_EXAMPLES = "sqlite:///runs/ui/ratings.db or postgresql+psycopg://user:password@host/name"


class Store:
    """A database of ratings, made or migrated when opened, and safe to use from many threads."""

    def __init__(self, url: str) -> None:
        """Open the database.

        `sqlite` says afterwards which of the two kinds it is, and `url` names it without password.

        Args:
            url: `sqlite:///path/to/file.db` or `postgresql+psycopg://user:password@host/name`.

        Raises:
            UserError: for a URL of another kind, a missing driver, a database that cannot be opened
                and one made by a newer version.
        """
        parsed = _parse(url)
        self.url = masked(parsed.render_as_string(hide_password=True))
        self.sqlite = parsed.get_backend_name() == "sqlite"
        # SQLite lets one writer in at a time, and those that wait poll; a lock serves them in turn.
        self._writer = threading.Lock() if self.sqlite else None
        self.engine = _engine(parsed, self.url)
        self._reader = self.engine.execution_options(reading=True)
        try:
            self._migrate()
        except DatabaseError as error:  # no server, no database, or tables of somebody else
            raise UserError(_trouble(self.url, error)) from None

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a session in one transaction that is committed at the end, or rolled back.

        On SQLite it holds the write lock from its beginning: keep it short. What it yields cannot
        be repeated; work that competes with others goes through `run`.
        """
        with self._turn(), _explained(self.url), self._begun(self.engine) as session:
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Yield a session that only reads; it neither waits for writers nor stops them."""
        with _explained(self.url), self._begun(self._reader) as session:
            yield session

    def run(self, work: Callable[[Session], T]) -> T:
        """Return what `work` returns, done in one transaction; repeated when others got in its way.

        Args:
            work: may be called several times, each time in a fresh transaction.
        """
        patience = time.monotonic() + WAIT_SECONDS  # a lock was waited for as long already
        for attempt in range(ATTEMPTS):
            try:
                with self._turn(), self._begun(self.engine) as session:
                    return work(session)
            except OperationalError as error:
                over = attempt == ATTEMPTS - 1 or time.monotonic() > patience
                if over or not _passing(error):
                    raise Trouble(_trouble(self.url, error)) from None
            except InterfaceError as error:
                raise Trouble(_trouble(self.url, error)) from None
            time.sleep(random.uniform(0, 0.01 * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    @contextmanager
    def _begun(self, engine: Engine) -> Iterator[Session]:
        with Session(engine, expire_on_commit=False) as session, session.begin():
            session.connection()  # begins here, so that a wait for the lock comes before any work
            yield session

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._writer is None:
            yield
            return
        if not self._writer.acquire(timeout=WAIT_SECONDS):
            raise Trouble(f"{self.url}: another request has held the database for too long")
        try:
            yield
        finally:
            self._writer.release()

    def _migrate(self) -> None:
        from alembic import command
        from alembic.config import Config
        from alembic.migration import MigrationContext
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", "ui:migrations")
        script = ScriptDirectory.from_config(config)
        known = {revision.revision for revision in script.walk_revisions()}
        with self._turn() if self.sqlite else nullcontext(), self.engine.begin() as connection:
            if not self.sqlite:  # SQLite's transaction holds the write lock already
                connection.execute(
                    sql("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK}
                )
            found = MigrationContext.configure(connection).get_current_heads()
            if not set(found) <= known:
                raise UserError(
                    f"{self.url}: its tables are of version {', '.join(found)}, which this program "
                    "does not know; update rlhf-workbench, or name another database"
                )
            if set(found) != set(script.get_heads()):
                config.attributes["connection"] = connection
                command.upgrade(config, "head")


def log_event(
    session: Session,
    what: str,
    *,
    user_id: int | None = None,
    at: datetime | None = None,
    **detail: Any,
) -> None:
    """Add an entry to the audit log, in the session's transaction.

    Args:
        session: of the store.
        what: one word: login, vote, undo, close, export, …
        user_id: who did it; None for the command line.
        at: when; None for now.
        detail: JSON-able facts; no passwords and no texts of answers.
    """
    session.add(Event(at=at or utc_now(), user_id=user_id, what=what, detail=detail))


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the second for a port that is no number
        raise UserError(f"{url!r} is not a database URL; write e.g. {_EXAMPLES}") from None
    shown = parsed.render_as_string(hide_password=True)
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise UserError(f"{shown}: databases of this kind are not served; write e.g. {_EXAMPLES}")
    if parsed.get_backend_name() == "sqlite":
        if parsed.database in (None, "", ":memory:"):
            raise UserError(f"{shown}: ratings in memory are lost; name a file, e.g. {_EXAMPLES}")
        folder = Path(str(parsed.database)).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{shown}: cannot make the folder {folder} ({error})") from None
    return parsed


def _engine(url: URL, shown: str) -> Engine:
    if url.get_backend_name() == "sqlite":
        engine = create_engine(
            url, pool_size=16, max_overflow=64, connect_args={"timeout": WAIT_SECONDS}
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        return create_engine(
            url,
            pool_size=10,
            max_overflow=20,
            pool_pre_ping=True,  # a restarted server costs no error
            connect_args={"connect_timeout": 10},
        )
    except ImportError:
        raise UserError(
            f"{shown}: PostgreSQL needs its driver; pip install 'psycopg[binary]'"
        ) from None


def _prepare_sqlite(connection: Any, record: object) -> None:  # noqa: ARG001 - SQLAlchemy's event
    # Python's own transaction control begins too late, with the first write.
    connection.isolation_level = None
    # Readers and a writer side by side; a killed process loses nothing that was committed.
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads first and then writes could find the lock taken, with no way on.
    reading = connection.get_execution_options().get("reading", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


@contextmanager
def _explained(url: str) -> Iterator[None]:
    # Other database errors are mistakes in our own statements.
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise Trouble(_trouble(url, error)) from None


def _trouble(url: str, error: DBAPIError) -> str:
    lines = [line.strip() for line in str(error.orig).splitlines() if line.strip()]
    why = lines[0] if lines else type(error.orig).__name__
    return f"{url}: the database does not serve us ({why[:300]}); check that it is there and ours"


def _passing(error: OperationalError) -> bool:
    if "database is locked" in str(error.orig):
        return True
    return str(getattr(error.orig, "sqlstate", None)) in _PASSING
