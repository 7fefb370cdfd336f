"""A cache: JSON values by key in an SQLite file."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from workbench.errors import UserError

CHUNK = 500  # keys in one SELECT


class Cache:
    """JSON values by key in an SQLite file that several processes may share."""

    def __init__(self, path: Path | None) -> None:
        """Open or create the file; None keeps the values in memory, for this run only.

        Raises:
            UserError: when the file is no cache, or cannot be written.
        """
        self.path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path or ":memory:", timeout=60)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise self._unusable(error) from None

    def get(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Return the values of those keys that are known."""
        wanted = list(keys)
        found: dict[str, dict[str, Any]] = {}
        try:
            for start in range(0, len(wanted), CHUNK):
                chunk = wanted[start : start + CHUNK]
                marks = ",".join("?" * len(chunk))
                rows = self._connection.execute(
                    f"SELECT key, value FROM answers WHERE key IN ({marks})", chunk
                )
                found.update((key, json.loads(value)) for key, value in rows)
        except (sqlite3.Error, ValueError) as error:
            raise self._unusable(error) from None
        return found

    def put(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Store values, all or none; what another process stored meanwhile is replaced."""
        rows = [(key, json.dumps(value, allow_nan=False)) for key, value in values.items()]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _unusable(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path}: the cache cannot be used ({error}); delete the file, name another, or "
            "run without a cache"
        )
