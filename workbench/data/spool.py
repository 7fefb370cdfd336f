"""Rows on disk: sequences that are read where they are asked for, however many rows they have."""

import json
import os
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from workbench.data.conversations import RowError
from workbench.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
T = TypeVar("T")


class Spool(Sequence[Row]):
    """Rows in a file of its own that nobody else sees: it is gone with the process.

    Memory holds 8 bytes a row. Several threads and forked processes may read at once.
    """

    def __init__(self, folder: Path) -> None:
        """Open an empty one.

        Args:
            folder: where there is room for the rows; made if missing.

        Raises:
            OSError: when nothing can be written there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name from the start: however the process ends, no file is left behind.
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as it is used
        self._starts, self._end = array("Q"), 0

    def append(self, row: Row) -> None:
        """Write a row to the end.

        Raises:
            RowError: when it holds what JSON cannot.
        """
        try:
            line = json.dumps(row, ensure_ascii=False).encode("utf-8", errors="surrogatepass")
        except (TypeError, ValueError) as error:
            raise RowError(
                f"cannot be kept on disk ({error}); remove the column, or set data.streaming=false"
            ) from None
        self._starts.append(self._end)
        self._end += self._file.write(line + b"\n")

    def select(self, indices: Iterable[int]) -> "Spool":
        """Return some of the rows, in the order of `indices`; they share the file."""
        part = Spool.__new__(Spool)
        part._file, part._end = self._file, self._end
        part._starts = array("Q", (self._starts[index] for index in indices))
        return part

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> "Spool": ...
    def __getitem__(self, index: int | slice) -> "Row | Spool":
        """Read a row, or select some."""
        if isinstance(index, slice):
            return self.select(range(*index.indices(len(self))))
        self._file.flush()
        start, size, line = self._starts[index], 1 << 13, b""
        while not line.endswith(b"\n"):
            piece = os.pread(self._file.fileno(), size, start + len(line))
            line += piece[: piece.find(b"\n") + 1] if b"\n" in piece else piece
            size *= 2
        row: Row = json.loads(line.decode("utf-8", errors="surrogatepass"))
        return row

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))


class Mapped(Sequence[T], Generic[T]):
    """A sequence whose items are made from a spool's rows anew each time they are asked for."""

    def __init__(self, rows: Spool, make: Callable[[Row], T]) -> None:
        self._rows, self._make = rows, make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "Mapped[T]": ...
    def __getitem__(self, index: int | slice) -> "T | Mapped[T]":
        """Make an item, or select some."""
        if isinstance(index, slice):
            return Mapped(self._rows[index], self._make)
        return self._make(self._rows[index])


def pick(rows: Sequence[Row], indices: Sequence[int]) -> Sequence[Row]:
    """Return some of the rows in the order of `indices`: on disk where they are, else a list."""
    if isinstance(rows, Spool):
        return rows.select(indices)
    return [rows[index] for index in indices]


def as_dataset(rows: Iterable[Row], folder: Path | None) -> "Dataset":
    """Return rows as a `datasets.Dataset`.

    Args:
        rows: of equal columns, at least one.
        folder: for a table on disk that is mapped, not read, into memory; what was there is
            removed. None keeps the table in memory.

    Raises:
        UserError: as `rows` raises it.
    """
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    if folder is None:
        return Dataset.from_list(list(rows))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        # Without a fingerprint it would pickle the generator to get one.
        return Dataset.from_generator(
            lambda: iter(rows), cache_dir=str(folder), fingerprint=folder.name
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError | OSError):
            raise error.__cause__ from None
        raise
