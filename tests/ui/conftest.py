"""A ratings store on each database: SQLite in a file, and a PostgreSQL server of the tests' own."""

import getpass
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from ui.schema import Base
from ui.store import Store

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a database on a private PostgreSQL server, reached through a socket in a folder."""
    initdb = _program("initdb")
    if initdb is None:
        pytest.skip("PostgreSQL is not installed: the store is tested on SQLite only")
    folder = Path(tempfile.mkdtemp(prefix="rlhf-postgres-"))
    options: dict[str, Any] = {"cwd": folder, "env": {"PATH": os.defpath, "LC_ALL": "C"}}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        options |= {"user": "postgres", "group": "postgres", "extra_groups": []}
    superuser = "postgres" if os.geteuid() == 0 else getpass.getuser()
    data, log = folder / "data", folder / "log"
    try:
        subprocess.run(
            [initdb, "-D", data, "-A", "trust", "-E", "UTF8", "-U", superuser, "--no-sync"],
            check=True, capture_output=True, **options,
        )  # fmt: skip
        with log.open("wb") as file:
            server = subprocess.Popen(
                [_program("postgres"), "-D", data, "-k", folder, "-c", "listen_addresses=",
                 "-c", "fsync=off", "-c", "deadlock_timeout=100ms"],
                stdout=file, stderr=file, **options,
            )  # fmt: skip
        try:
            _wait_until_ready(server, folder, superuser, log)
            yield f"postgresql+psycopg://{superuser}@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing here is kept
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ratings.db"
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file with empty tables; copying it is quicker than migrating."""
    path = tmp_path_factory.mktemp("template") / "ratings.db"
    Store(f"sqlite:///{path}").close()  # the last connection folds the log into the file
    return path


@pytest.fixture(scope="session")
def postgres_store(postgres: str) -> Iterator[Store]:
    """The one store on PostgreSQL; emptied for each test, as a new database takes longer."""
    opened = Store(new_database(postgres))
    yield opened
    opened.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store on each database."""
    yield from _empty_store(request, tmp_path)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """A store on each database for the tests of a module that make a campaign each."""
    yield from _empty_store(request, tmp_path_factory.mktemp("shared"))


def _empty_store(request: pytest.FixtureRequest, folder: Path) -> Iterator[Store]:
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_template"), folder / "ratings.db")
        opened = Store(f"sqlite:///{folder}/ratings.db")
        yield opened
        opened.close()
        return
    opened = request.getfixturevalue("postgres_store")
    with opened.session() as session:
        names = ", ".join(Base.metadata.tables)
        session.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
    yield opened


def new_database(postgres: str) -> str:
    """Make an empty database on the server and return its URL."""
    import psycopg

    name = f"ratings_{next(_numbers)}"
    with psycopg.connect(postgres.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.replace("/postgres?", f"/{name}?")


def _program(name: str) -> str | None:
    # Debian keeps the server's programs off the path, one folder per version.
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda f: int(f.parent.name))
    return shutil.which(name, path=os.pathsep.join([*map(str, reversed(folders)), os.defpath]))


def _wait_until_ready(server: Any, folder: Path, superuser: str, log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(host=str(folder), user=superuser, dbname="postgres").close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(log.read_text(encoding="utf-8")) from None
            time.sleep(0.05)
        else:
            return
