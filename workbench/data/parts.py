"""The two parts of a stage's data: rows to train on, and rows held out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from workbench.data.formats import Kind
from workbench.data.loading import load
from workbench.data.splits import split_by_prompt


class PartsSettings(Protocol):
    """What every stage's `data` section says about where its rows come from."""

    train: str
    train_split: str | None
    test: str | None
    test_split: str | None
    test_fraction: float
    limit: int | None
    skip_bad_rows: bool
    streaming: bool


class Parts(NamedTuple):
    """Checked rows of one stage.

    Attributes:
        train, held_out: no prompt of a single source is in both.
        skipped: bad rows left out, one `file:line: why` each.
    """

    train: Sequence[dict[str, Any]]
    held_out: Sequence[dict[str, Any]]
    skipped: tuple[str, ...]


def load_parts(data: PartsSettings, accept: Sequence[Kind], seed: int, folder: Path) -> Parts:
    """Load what a stage trains on, and hold out what `data.test` or `data.test_fraction` says.

    Args:
        data: the stage's section.
        accept: the kinds of rows it can use.
        seed: of the split.
        folder: for rows on disk, with `data.streaming`.

    Raises:
        UserError: as `load` and `split_by_prompt` do.
    """
    spool = folder if data.streaming else None
    options: dict[str, Any] = {
        "limit": data.limit, "skip_bad_rows": data.skip_bad_rows, "spool": spool,
    }  # fmt: skip
    loaded = load(data.train, accept, split=data.train_split, **options)
    if data.test is None:
        train, held_out = split_by_prompt(loaded.rows, data.test_fraction, seed)
        return Parts(train, held_out, loaded.skipped)
    other = load(data.test, accept, split=data.test_split, **options)
    return Parts(loaded.rows, other.rows, (*loaded.skipped, *other.skipped))
