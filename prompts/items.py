"""Items: the rows a template is filled with, and the exemplars of a pool."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompts.expressions import Expressions
from workbench.data.conversations import RowError, shorten
from workbench.data.reading import read_rows
from workbench.errors import UserError


@dataclass(frozen=True)
class Item:
    """One row of an item file or of an exemplar pool.

    Attributes:
        id: its name in results, unique within the file.
        fields: the other values of the row, by name; JSON values only.
        line: where it stands in its file, from 1 (in parquet files, the row).
    """

    id: str
    fields: dict[str, Any]
    line: int


def load_items(
    path: Path, limit: int | None = None, fields: Mapping[str, str] | None = None
) -> list[Item]:
    """Load the rows of a `.jsonl`, `.json`, `.csv` or `.parquet` file.

    A row's `id` is a text or a whole number; a row without one is named by its number, from 1. A
    CSV cell is text, but for a JSON list of texts such as `["yes", "no"]`, which is that list.

    Args:
        path: the file.
        limit: at most this many rows, from the start; later ones are not read.
        fields: new fields by name, each a Jinja expression over the row's columns, such as
            `{"question": "prompt[0].content"}`; the columns stay, but for one of the same name.

    Raises:
        UserError: for a file that cannot be read or has no rows, a bad row, an id given twice, a
            limit below 1, or an expression that is wrong, refused or finds nothing; names file and
            line.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{path}: limit={limit} leaves no items; use 1 or more, or no limit")
    extended = Expressions(fields or {})
    is_csv = path.suffix.lower() == ".csv"
    items: list[Item] = []
    lines: dict[str, int] = {}
    for where, row in read_rows(path):
        if isinstance(row, RowError):
            raise UserError(f"{where}: {row}")
        line = int(where.rpartition(":")[2])
        try:
            item = _item(extended(_with_lists(row) if is_csv else row), len(items) + 1, line)
        except RowError as error:
            raise UserError(f"{where}: {error}") from None
        if item.id in lines:
            raise UserError(
                f"{where}: id {shorten(item.id)} was already given in line {lines[item.id]}; "
                "give every item an id of its own"
            )
        lines[item.id] = line
        items.append(item)
        if len(items) == limit:
            break
    if not items:
        raise UserError(f"{path}: no items; write at least one row")
    return items


def _item(row: dict[str, Any], number: int, line: int) -> Item:
    name = row.get("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        raise RowError(f"'id' is {shorten(name)}; write a text or a whole number, or leave it out")
    # What a prompt shows goes into the results as JSON in UTF-8; parquet may hold dates or bytes.
    for key, value in row.items():
        try:
            json.dumps({key: value}, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, UnicodeEncodeError):
            raise RowError(
                f"'{key}' is {shorten(value)}, which JSON cannot hold; write texts, finite "
                "numbers, true, false, null, lists or objects"
            ) from None
    return Item(str(name), {key: value for key, value in row.items() if key != "id"}, line)


def _with_lists(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _list_or_text(value) for key, value in row.items()}


def _list_or_text(cell: Any) -> Any:
    if not isinstance(cell, str) or not cell.lstrip().startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    texts = isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)
    return value if texts else cell
