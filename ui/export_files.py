"""Files of exported pairs: JSON lines, parquet, CSV and `datasets` folders, whole or absent."""

import csv
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from workbench.errors import UserError
from workbench.files import atomic_folder, write_text

Format = Literal["jsonl", "parquet", "datasets", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
Row = dict[str, Any]

# What makes a spreadsheet run a cell, with the signs' full-width forms; an apostrophe before it
# makes the cell a text, and one that stood there already gets another, so that it can be undone.
# https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile(r"'*\s*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]")
# A text in CSV cannot say true or false in a way that training would read.
_NOT_IN_CSV = ("chosen_finished", "rejected_finished")


def is_formula(cell: str) -> bool:
    """Return whether a spreadsheet might run a cell, or would if its apostrophes were gone."""
    return _FORMULA.match(cell) is not None


def neutralised(cell: str) -> str:
    """Return a text as a spreadsheet cell that is never run as a formula."""
    return f"'{cell}" if is_formula(cell) else cell


def restored(cell: str) -> str:
    """Return the text that `neutralised` made a cell of."""
    return cell[1:] if cell.startswith("'") and is_formula(cell) else cell


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV; texts are neutralised, lists and messages written as JSON."""
    buffer = io.StringIO()
    # RFC 4180's line ends: with "\n" alone, Python would not quote a cell that holds "\r".
    writer = csv.writer(buffer, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return buffer.getvalue()


def write_rows(rows: Sequence[Row], out: Path, form: Format, card: str) -> None:
    """Write exported pairs.

    A file holds all splits, told apart by the column `split`; a `datasets` folder keeps them apart
    and describes itself in a README.

    Args:
        rows: with the same keys each, and at least one.
        out: the file, or the folder.
        form: of the output.
        card: the README.

    Raises:
        UserError: for a place that holds something else.
    """
    if form == "datasets":
        _write_folder(rows, out, card)
        return
    if out.is_dir():
        raise UserError(f"{out}: a folder is there; name a file, or use --format datasets")
    if form == "parquet":
        _write_parquet(rows, out)
    elif form == "csv":
        names = [name for name in rows[0] if name not in _NOT_IN_CSV]
        write_text(out, csv_text(names, ([row[name] for name in names] for row in rows)))
    else:
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def form_of(out: Path) -> Format:
    """Return the form a file's name asks for; a name without a suffix asks for a folder."""
    return next((form for form in FORMATS if out.suffix.lower() == f".{form}"), "datasets")


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return neutralised(value)
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | Mapping) else value


def _write_parquet(rows: Sequence[Row], out: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            pq.write_table(pa.Table.from_pylist(list(rows)), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def _write_folder(rows: Sequence[Row], out: Path, card: str) -> None:
    from datasets import Dataset, DatasetDict

    from workbench.logs import quiet_transformers

    quiet_transformers()
    ours = (out / "dataset_dict.json").is_file()
    if out.exists() and not ours and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: holds something else; name a new folder, or remove it")
    # One table first, so that all splits have the same types of columns.
    table = Dataset.from_list(list(rows))
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row["split"], []).append(place)
    with atomic_folder(out) as folder:
        DatasetDict(
            {
                split: table.select(places[split]).remove_columns("split")
                for split in sorted(places, reverse=True)
            }
        ).save_to_disk(str(folder))
        write_text(folder / "README.md", card)
