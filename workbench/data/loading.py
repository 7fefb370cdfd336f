"""Loading: one source, local or on the hub, as checked rows of one kind."""

import difflib
import importlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.data.conversations import RowError, shorten
from workbench.data.formats import COLUMNS, KINDS, Kind, check_row, detect_kind, is_conversational
from workbench.data.reading import SUFFIXES, Located, read_rows
from workbench.data.spool import Spool
from workbench.errors import UserError
from workbench.passwords import masked

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DEMO = ("prompts", "demonstrations")

_SPLIT_NAMES = ("train", "test", "validation", "valid", "val", "dev", "eval", "heldout", "held_out")
_SHARD = re.compile(r"[-_.]\d+(-of-\d+)?$")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")
_VOTERS = 100
_ALIASES = {
    "instruction": "prompt",
    "question": "prompt",
    "query": "prompt",
    "input": "prompt",
    "response": "completion",
    "output": "completion",
    "answer": "completion",
    "demonstration": "completion",
    "conversations": "messages",
    "conversation": "messages",
    "content": "text",
}


@dataclass(frozen=True)
class _Piece:
    """One file, or one split of a saved or hub data set, whose rows are of one kind."""

    label: str
    read: Callable[[], Iterator[Located]]


_Splits = dict[str, list[_Piece]]


@dataclass(frozen=True)
class Loaded:
    """The checked rows of one source.

    Attributes:
        kind: what every row is.
        rows: the rows, in the order of the source, extra columns kept; a list, or on disk.
        source: where they come from, as messages and reports name it.
        skipped: the rows left out by `skip_bad_rows`, one `file:line: why` each.
    """

    kind: Kind
    rows: Sequence[dict[str, Any]]
    source: str
    skipped: tuple[str, ...]


def load(
    source: str,
    accept: Sequence[Kind],
    *,
    split: str | None = None,
    limit: int | None = None,
    skip_bad_rows: bool = False,
    spool: Path | None = None,
) -> Loaded:
    """Load and check the rows of a file, a folder, the demo's data, human votes or a hub data set.

    Args:
        source: a `.jsonl`, `.json`, `.csv` or `.parquet` file; a folder of such files (`train.*`
            and `test.*` are its splits) or one written by `datasets.save_to_disk`;
            `demo:prompts` or `demo:demonstrations`; `ratings:URL[#campaign]`, the votes in a
            database of `rlhf ui` as preferences; else a hub id `owner/name[:config]`. A password
            in a URL is used and not shown again.
        accept: the kinds the caller can use.
        split: the split to load. None takes `train` where a source has several splits, and
            everything where it has none. For a single file, the rows whose `split` column
            has this value.
        limit: at most this many rows, from the start.
        skip_bad_rows: list bad rows in `Loaded.skipped` rather than stop at the first.
        spool: folder to keep the rows in rather than in memory; a hub data set is then read while
            it arrives, and no further than `limit`. None keeps them in memory.

    Raises:
        UserError: for a source that cannot be read, a kind that is not accepted, the first bad
            row (unless skipped) or when no row is left.
    """
    if limit is not None and limit < 1:
        raise UserError(f"{source}: limit={limit} leaves no rows; use 1 or more, or no limit")
    splits = _open(source, streaming=spool is not None)
    label, pieces, wanted = _choose(masked(source), splits, split)
    sink = _Sink(wanted, limit, skip_bad_rows, [] if spool is None else Spool(spool))
    for piece in pieces:
        if not sink.full:
            sink.take(piece, accept)
    if sink.kind is None or not sink.rows:
        if sink.skipped:
            bad = f"all {len(sink.skipped)} rows are bad; the first, {sink.skipped[0]}"
            raise UserError(f"{label}: no usable row, {bad}")
        with_split = f" with split '{wanted}'" if wanted is not None else ""
        raise UserError(f"{label}: no rows{with_split}; write at least one")
    return Loaded(sink.kind, sink.rows, label, tuple(sink.skipped))


def splits_of(source: str) -> tuple[str, ...]:
    """Return the names of the splits a source has, or nothing when it is one undivided set.

    Raises:
        UserError: when the source does not exist or cannot be opened.
    """
    return tuple(name for name in _open(source) if name)


def _choose(
    source: str, splits: _Splits, split: str | None
) -> tuple[str, list[_Piece], str | None]:
    """Return the label, the pieces to read, and the value of the `split` column to keep, if any."""
    if "" in splits:
        return (source if split is None else f"{source} ({split})"), splits[""], split
    if split is None:
        # Merging a source's splits would train on its test rows.
        split = "train" if "train" in splits or len(splits) > 1 else next(iter(splits))
    if split not in splits:
        raise UserError(f"{source}: no split '{split}'; it has {', '.join(sorted(splits))}")
    return f"{source} ({split})", splits[split], None


class _Sink:
    """Collects checked rows of one kind and one form from one piece after another."""

    def __init__(
        self,
        wanted: str | None,
        limit: int | None,
        skip: bool,
        rows: "list[dict[str, Any]] | Spool",
    ) -> None:
        self.kind: Kind | None = None
        self.rows = rows
        self.skipped: list[str] = []
        self._wanted, self._limit, self._skip = wanted, limit, skip
        self._first_piece = ""
        self._first_row: tuple[str, bool] | None = None

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return len(self.rows) == self._limit

    def take(self, piece: _Piece, accept: Sequence[Kind]) -> None:
        """Add the rows of a piece."""
        stream = piece.read()
        head = _read_head(stream)
        rows = [row for _, row in head if isinstance(row, dict)]
        # Where no row is readable all are bad, whatever their kind was meant to be.
        kind = _vote(piece.label, rows, accept) if rows else self.kind or accept[0]
        if rows and self.kind is None:
            self.kind, self._first_piece = kind, piece.label
        if kind != (self.kind or kind):
            raise UserError(
                f"{piece.label}: holds {kind} rows, but {self._first_piece} holds {self.kind} "
                "rows; load them one by one"
            )
        for where, raw in chain(head, stream):
            try:
                row = self._check(where, raw, kind)
                if row is not None:
                    self.rows.append(row)
            except RowError as error:
                if not self._skip:
                    raise UserError(f"{where}: {error}") from None
                self.skipped.append(f"{where}: {error}")
                continue
            if self.full:
                return

    def _check(
        self, where: str, raw: dict[str, Any] | RowError, kind: Kind
    ) -> dict[str, Any] | None:
        if isinstance(raw, RowError):
            raise raw
        if self._wanted is not None and not _in_split(raw, self._wanted):
            return None
        row = check_row(raw, kind)
        conversational = is_conversational(row)
        if self._first_row is None:
            self._first_row = where, conversational
        elif conversational != self._first_row[1]:
            # One table column cannot hold both; it would fail much later and say less.
            forms = ("a list of messages", "plain text")
            has, had = forms if conversational else forms[::-1]
            raise RowError(
                f"the row is {has}, but {self._first_row[0]} is {had}; write all rows the same way"
            )
        return row


def _read_head(stream: Iterator[Located]) -> list[Located]:
    """Read on until enough readable rows were seen to tell the kind."""
    head, readable = [], 0
    for item in stream:
        head.append(item)
        readable += isinstance(item[1], dict)
        if readable == _VOTERS:
            break
    return head


def _vote(label: str, rows: list[dict[str, Any]], accept: Sequence[Kind]) -> Kind:
    """Return the kind most of the first rows have, so that one odd row does not decide."""
    columns = [{name for name, value in row.items() if value is not None} for row in rows]
    votes = Counter(detect_kind(names) for names in columns)
    wanted = " or ".join(f"{name} ({COLUMNS[name]})" for name in accept)
    kind = max(KINDS, key=lambda name: votes[name])
    if not votes[kind]:
        found = list(rows[0])
        renames = [f"'{name}' to '{_ALIASES[name]}'" for name in found if name in _ALIASES]
        hint = f"rename {', '.join(renames)}" if renames else "rename the columns"
        names = ", ".join(shorten(name) for name in found[:8]) or "nothing"
        raise UserError(f"{label}: no known column among {names}; wanted {wanted}; {hint}")
    if kind not in accept:
        raise UserError(
            f"{label}: holds {kind} rows ({COLUMNS[kind]}), wanted {wanted}; "
            "name another source or add the columns"
        )
    return kind


def _in_split(row: dict[str, Any], wanted: str) -> bool:
    value = row.get("split")
    if value is None:
        raise RowError(
            f"split '{wanted}' was asked for, but the row has no 'split'; add the column, or name "
            "a folder with train.* and test.* files"
        )
    return bool(value == wanted)


def _open(source: str, *, streaming: bool = False) -> _Splits:
    """Return the pieces of each split; the single key `""` stands for an undivided source."""
    if not source.strip():
        raise UserError("the data source is empty; name a file, a folder or a hub id")
    if source.startswith("demo:"):
        return {"": [_file(_demo(source))]}
    if source.startswith("ratings:"):
        return {"": [_Piece(masked(source), partial(_ratings, source))]}
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _folder(path)
        if path.exists():
            return {"": [_file(path)]}
    except (OSError, ValueError) as error:
        # A name too long, or with a NUL character in it.
        raise UserError(f"{shorten(source)}: not a usable path ({error})") from None
    if _looks_local(source, path):
        raise UserError(f"{source}: no such file or folder{_nearest(path)}")
    return _hub(source, streaming)


def _file(path: Path) -> _Piece:
    return _Piece(str(path), partial(read_rows, path))


def _part(label: str, dataset: "Dataset") -> _Piece:
    return _Piece(label, partial(_dataset_rows, dataset, label))


def _demo(source: str) -> Path:
    name = source.removeprefix("demo:")
    if name not in DEMO:
        known = " or ".join(f"demo:{known}" for known in DEMO)
        raise UserError(f"{source}: no such demo data; use {known}")
    path = Path(str(files("workbench"))) / "demo_data" / f"{name}.jsonl"
    if not path.is_file():
        raise UserError(f"{source}: {path} is missing; install the package again")
    return path


def _ratings(source: str) -> Iterator[Located]:
    shown = masked(source)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            f"{shown}: several processes would read it one after the other, and people may vote in "
            "between; write a file with `rlhf ratings export` and train on that"
        )
    # By name: this package knows no other, and the database's libraries load only when asked for.
    rows = importlib.import_module("ui.ratings_source").source_rows(source.removeprefix("ratings:"))
    return ((f"{shown}:{number}", row) for number, row in enumerate(rows, start=1))


def _folder(path: Path) -> _Splits:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path)
    found = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and file.is_file() and not file.name.startswith(".")
    )
    if not found:
        raise UserError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file; name another")
    splits: _Splits = {}
    for file in found:
        splits.setdefault(_SHARD.sub("", file.stem), []).append(_file(file))
    if not any(name in _SPLIT_NAMES for name in splits):
        return {"": list(chain.from_iterable(splits.values()))}
    return splits


def _saved(path: Path) -> _Splits:
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: a damaged saved data set ({error}); save it again") from None
    if isinstance(saved, Dataset):
        return {"": [_part(str(path), saved)]}
    return {name: [_part(f"{path} ({name})", part)] for name, part in saved.items()}


def _dataset_rows(dataset: "Dataset", label: str) -> Iterator[Located]:
    for number, row in enumerate(dataset, start=1):
        yield f"{label}:{number}", row


def _arriving(dataset: "IterableDataset", label: str) -> Iterator[Located]:
    from datasets.exceptions import DatasetsError

    number = 0
    try:
        for number, row in enumerate(dataset, start=1):
            yield f"{label}:{number}", row
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(
            f"{label}: stopped arriving after row {number} ({shorten(str(error), 160)}); check the "
            "network and start again"
        ) from None


def _looks_local(source: str, path: Path) -> bool:
    if not _HUB_ID.fullmatch(source) or path.suffix.lower() in SUFFIXES:
        return True
    return source.startswith((".", "~")) or path.parent.is_dir()


def _nearest(path: Path) -> str:
    """Return a hint with the existing name nearest to a path that does not exist."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    try:
        names = sorted(entry.name for entry in missing.parent.iterdir())
    except OSError:
        names = []
    near = difflib.get_close_matches(missing.name, names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {missing.parent / near[0]}?"
    return f"; nothing in {missing.parent} has a like name (a hub id is owner/name)"


def _hub(source: str, streaming: bool) -> _Splits:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, config = source.partition(":")
    try:
        loaded = load_dataset(name, config or None, streaming=streaming)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise UserError(
            f"{source}: not a local file, and not loadable from the hub ({shorten(str(error), 160)}"
            "); check the name and the network, or name a local file or folder, demo:prompts or "
            "demo:demonstrations"
        ) from None
    if not streaming:
        return {split: [_part(f"{source} ({split})", part)] for split, part in loaded.items()}
    labels = {split: f"{source} ({split})" for split in loaded}
    return {
        split: [_Piece(labels[split], partial(_arriving, part, labels[split]))]
        for split, part in loaded.items()
    }
