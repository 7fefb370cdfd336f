"""Passwords in database addresses: used, and never written down."""

import re
from typing import Any

MASK = "***"

# As SQLAlchemy reads an address, and a password with a bare @ in it as its owner meant it.
_IN_ADDRESS = re.compile(
    r"\b((?:postgres|mysql|mariadb|oracle|mssql)[a-z]*(?:\+\w+)?://[^\s:/@]*:)(?:[^\s/]*@|[^@]*@)"
)
_IN_QUERY = re.compile(r"([?&](?:ssl)?password=)[^&#\s]*")


def masked(text: str) -> str:
    """Return a text with `***` for the password of every database address in it.

    The address can be used again where the password comes from elsewhere, for PostgreSQL from
    PGPASSWORD or ~/.pgpass.
    """
    if "://" not in text:
        return text
    return _IN_QUERY.sub(rf"\1{MASK}", _IN_ADDRESS.sub(rf"\1{MASK}@", text))


def masked_tree(value: Any) -> Any:
    """Return JSON-able values with `masked` texts, at any depth."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: masked_tree(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked_tree(inner) for inner in value)
    return value
