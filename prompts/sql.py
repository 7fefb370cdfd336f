"""SQL: read-only queries on a database in memory, with bounded work, and rows compared."""

import re
from collections.abc import Iterable
from typing import Any

from workbench.errors import UserError

MAX_STEPS = 2_000_000  # instructions of SQLite's virtual machine: well under a second
TICK = 1_000  # instructions between two looks at the count
MAX_ROWS = 10_000
MAX_SIZE = 10_000_000  # characters and bytes of all rows together
MAX_VALUE = 1_000_000  # longest value that a schema may insert, in bytes
MAX_PAGES = 10_000  # of 4 KiB: the largest database that a schema may build
MAX_TEXT = 20_000  # longest query and longest value, in bytes


def read_rows(schema: str, query: str) -> list[tuple[Any, ...]] | str:
    """Run one read-only query on a fresh database.

    Args:
        schema: SQL that builds the database.
        query: the query; it may not write, attach files or work without end.

    Returns:
        The rows, or in words why there are none.

    Raises:
        UserError: when the schema does not run.
    """
    import sqlite3

    actions = {sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA}
    reading = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}

    def building(action: int, _: str | None, name: str | None, *__: object) -> int:
        refused = action in actions or name == "load_extension"
        return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

    def querying(action: int, _: str | None, name: str | None, *__: object) -> int:
        allowed = action in reading or (
            action == sqlite3.SQLITE_FUNCTION and name != "load_extension"
        )
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    ticks = iter(range(MAX_STEPS // TICK))
    database = sqlite3.connect(":memory:")
    try:
        database.execute(f"PRAGMA max_page_count = {MAX_PAGES}")
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
        database.set_progress_handler(lambda: next(ticks, None) is None, TICK)
        database.set_authorizer(building)
        try:
            database.executescript(schema)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise UserError(f"the field schema does not run as SQL ({error}); mend it") from None
        database.set_authorizer(querying)
        # A single instruction can build a gigabyte of text, or match patterns without end.
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_TEXT)
        database.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, MAX_TEXT)
        database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000)
        try:
            return _fetched(database.execute(query))
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            return str(error)
    finally:
        database.close()


def _fetched(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]] | str:
    fetched: list[tuple[Any, ...]] = []
    size = 0
    for row in rows:
        fetched.append(row)
        size += sum(len(value) if isinstance(value, str | bytes) else 1 for value in row)
        if len(fetched) > MAX_ROWS:
            return f"more than {MAX_ROWS} rows"
        if size > MAX_SIZE:
            return f"rows of more than {MAX_SIZE:,} characters"
    return fetched


def same_rows(a: list[tuple[Any, ...]], b: list[tuple[Any, ...]], *, ordered: bool) -> bool:
    """Return whether two results are equal, floats to nine digits.

    Args:
        a: rows.
        b: rows.
        ordered: whether their order counts.
    """
    if len(a) != len(b):
        return False
    # Sums of floats differ in the last digits with the order of summation.
    left, right = ([tuple(map(_rounded, row)) for row in rows] for rows in (a, b))
    return left == right if ordered else sorted(left, key=repr) == sorted(right, key=repr)


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    near = float(f"{value:.9g}")
    return int(near) if near.is_integer() else near


def is_ordered(query: str) -> bool:
    """Return whether the outermost query has ORDER BY; one in quotes or parentheses is inner."""
    text = re.sub(r"'(?:[^']|'')*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/", " ", query, flags=re.DOTALL)
    previous = ""
    while text != previous:
        previous, text = text, re.sub(r"\([^()]*\)", " ", text)
    return re.search(r"\border\s+by\b", text, re.IGNORECASE) is not None
