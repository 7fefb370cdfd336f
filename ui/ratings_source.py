"""Databases of ratings as sources of training data: `ratings:URL[#campaign]`."""

from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from ui.exporting import Filters, pairs
from ui.store import Store
from workbench.errors import UserError
from workbench.passwords import MASK, masked


def open_store(url: str) -> Store:
    """Open a database of ratings that must be there; `Store` alone would make a new, empty one.

    Args:
        url: of the database. `***` in the place of a password, as configs and messages show it, is
            no password: PostgreSQL's library then looks into PGPASSWORD and ~/.pgpass.

    Raises:
        UserError: when there is none.
    """
    parsed = _parse(url)
    file = parsed.database if parsed.get_backend_name() == "sqlite" else None
    if file and not Path(file).is_file():
        raise UserError(f"{url}: no such file; `rlhf ui --db {url}` makes it")
    if parsed.password == MASK:
        url = parsed._replace(password=None).render_as_string(hide_password=False)
    return Store(url)


def source_rows(source: str) -> list[dict[str, Any]]:
    """Return the votes of a `ratings:` source as preference rows: by majority, nothing filtered.

    The same votes give the same rows: they do not say when they were read.

    Args:
        source: `URL` or `URL#campaign`; all campaigns when none is named.

    Raises:
        UserError: for a database or campaign that is not there, and when there is no pair.
    """
    url, _, campaign = source.partition("#")
    store = open_store(url)
    try:
        rows = pairs(store, campaign or None, Filters()).rows
    finally:
        store.close()
    return [{k: v for k, v in row.items() if k not in ("exported_at", "split")} for row in rows]


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the second for a port that is no number
        parsed = None
    # What follows a bare @ or # in a password would pass for the host, and be shown.
    if parsed is None or "@" in (parsed.host or ""):
        shown = masked(url) if "@" in url else "ratings" if "//" in url else repr(url)
        raise UserError(
            f"{shown}: not a database URL; write sqlite:///runs/ui/ratings.db or postgresql+"
            "psycopg://user@host/name, and @ : / # in a name or password as %40 %3A %2F %23"
        )
    return parsed
