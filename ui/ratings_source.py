"""Databases of ratings as sources of training data: `ratings:URL[#campaign]`."""

from pathlib import Path
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from ui.exporting import Filters, pairs
from ui.store import Store
from workbench.errors import UserError


def open_store(url: str) -> Store:
    """Open a database of ratings that must be there; `Store` alone would make a new, empty one.

    Raises:
        UserError: when there is none.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        return Store(url)  # which says what is wrong
    file = parsed.database if parsed.get_backend_name() == "sqlite" else None
    if file and not Path(file).is_file():
        raise UserError(f"{url}: no such file; `rlhf ui --db {url}` makes it")
    return Store(url)


def source_rows(source: str) -> list[dict[str, Any]]:
    """Return the votes of a `ratings:` source as preference rows: by majority, nothing filtered.

    The same votes give the same rows: they do not say when they were read.

    Args:
        source: `URL` or `URL#campaign`; all campaigns when none is named.

    Raises:
        UserError: for a URL with a password, a database or campaign that is not there, and when
            there is no pair.
    """
    url, _, campaign = source.partition("#")
    try:
        secret = make_url(url).password
    except ArgumentError:
        secret = None
    if secret is not None:
        raise UserError(
            "ratings: the URL holds a password, and a run writes its settings down; leave it out "
            "and set PGPASSWORD, or keep it in ~/.pgpass"
        )
    store = open_store(url)
    try:
        rows = pairs(store, campaign or None, Filters()).rows
    finally:
        store.close()
    return [{k: v for k, v in row.items() if k not in ("exported_at", "split")} for row in rows]
