"""Sampled answers of a run: the files they are kept in, and one of them as a table."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from workbench.errors import UserError
from workbench.logs import console as messages
from workbench.logs import unbarred
from workbench.runs import plain, safe_text

TEXTS = ("prompt", "completion")
CELL = 300  # characters of a text that are shown
NAME = 22  # of the name of a number, in a line
NUMBERED = re.compile(r"(?:update|step)_(\d+)\.(?:parquet|jsonl)")


def samples(
    where: Annotated[
        Path,
        typer.Argument(metavar="WHERE", help="a stage's folder, e.g. runs/demo/ppo, or a file"),
    ],
    update: Annotated[
        int | None, typer.Option(min=0, help="of this update; the newest by default")
    ] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="answers of an evaluation, not of the training")
    ] = False,
    sort: Annotated[
        str | None, typer.Option(help="column to sort by, highest first; -NAME lowest first")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="rows")] = 10,
) -> None:
    """Show answers that a run sampled, with what each was worth.

    Example: `rlhf samples runs/demo/ppo --update 12 --sort advantage --limit 5`
    """
    path = find_file(where, update, held_out=held_out)
    rows = read_rows(path)
    shown = ordered(rows, sort, str(path))[:limit]
    console = Console(highlight=False, markup=False)
    console.print(samples_table(shown))
    console.print(safe_text(f"{len(shown)} of {len(rows)} answers in {path}"), style="dim")


def update_file(update: int) -> str:
    """Return the name of the file with an update's answers."""
    return f"update_{update:06d}.parquet"


def find_file(where: Path, update: int | None = None, *, held_out: bool = False) -> Path:
    """Return the file of samples that is meant.

    Args:
        where: the file itself, a stage's folder, or its `samples/`.
        update: number of the update; None takes the newest there is.
        held_out: the answers of an evaluation; where a stage keeps no others they are taken anyway.

    Raises:
        UserError: when there is none; names the nearest number.
    """
    if where.is_file():
        return where
    folder = where / "samples" if (where / "samples").is_dir() else where
    if not folder.is_dir():
        raise UserError(f"{where}: no such file or folder; name a stage's, e.g. runs/demo/ppo")
    found = {number(path): path for path in sorted(folder.glob("step_*.jsonl"))}
    trained = {number(path): path for path in sorted(folder.glob("update_*.parquet"))}
    if trained and not held_out:
        found = trained
    if not found:
        raise UserError(f"{where}: no samples here; name a stage's folder, e.g. runs/demo/ppo")
    if update is None:
        return found[max(found)]
    if update not in found:
        near = min(found, key=lambda known: abs(known - update))
        raise UserError(
            f"--update {update}: {folder} has no such samples; the nearest are of {near}"
        )
    return found[update]


def number(path: Path) -> int:
    """Return the update that a file of samples belongs to; -1 for other files."""
    match = NUMBERED.fullmatch(path.name)
    return int(match[1]) if match else -1


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file of samples.

    Raises:
        UserError: when it holds none.
    """
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            rows: list[Any] = parquet.read_table(path).to_pylist()
        else:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as samples ({reason})") from None
    if not rows or not all(isinstance(row, dict) and "completion" in row for row in rows):
        raise UserError(f"{path}: holds no samples; they are rows with a completion")
    return rows


def ordered(rows: Sequence[dict[str, Any]], sort: str | None, source: str) -> list[dict[str, Any]]:
    """Return rows in the order of a column of numbers, highest first; lowest first for `-NAME`.

    Raises:
        UserError: when there is no such column of numbers.
    """
    flat = [flattened(row) for row in rows]
    if sort is None:
        return flat
    name = sort.removeprefix("-")
    columns = [key for key, value in flat[0].items() if isinstance(value, int | float)]
    if name not in columns:
        raise UserError(f"--sort {sort}: {source} has no such numbers; use {', '.join(columns)}")
    known = [row for row in flat if row.get(name) is not None]
    known.sort(key=lambda row: float(row[name]), reverse=not sort.startswith("-"))
    return known + [row for row in flat if row.get(name) is None]


def flattened(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in which what is nested (`scores`, `held_out`) stands beside the rest."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{key}/{inner}": inside for inner, inside in value.items()}
        else:
            flat[key] = value
    return flat


def samples_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return flat rows as a table: the texts, and beside them every number, one below another."""
    table = Table(show_lines=True, header_style="dim")
    for name in TEXTS:
        table.add_column(name, ratio=1)
    table.add_column("")
    for row in rows:
        texts = [safe_text(_short(row.get(name, ""))) for name in TEXTS]
        numbers = Table.grid(padding=(0, 1, 0, 0))
        numbers.add_column(max_width=NAME, overflow="fold", style="dim")
        numbers.add_column(justify="right", no_wrap=True)
        for name, value in row.items():
            if name not in TEXTS:
                numbers.add_row(safe_text(name), plain(_number(value)))
        table.add_row(*texts, numbers)
    return table


def print_samples(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print rows as a table among a run's messages."""
    table = samples_table([flattened(row) for row in rows])
    with unbarred():
        messages.print(title, markup=False)
        messages.print(table, soft_wrap=False)


def _short(text: Any) -> str:
    if isinstance(text, list):  # a conversation
        text = "\n".join(f"{turn.get('role')}: {turn.get('content')}" for turn in text)
    return str(text) if len(str(text)) <= CELL else f"{str(text)[: CELL - 1]}…"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
