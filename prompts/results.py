"""Results of a suite: the rows of results.jsonl, checked and grouped into cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from workbench.data.reading import read_rows
from workbench.errors import UserError

RESULTS, RECORD = "results.jsonl", "run.json"

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]


def _encodable(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"lone surrogate at character {error.start + 1}") from None
    return value


Text = Annotated[str, AfterValidator(_encodable)]
"""A string that a text file can hold."""


class Assertion(BaseModel):
    """What one assertion said about one answer."""

    model_config = ConfigDict(frozen=True, strict=True)

    type: str
    passed: bool
    score: float = 1.0
    weight: float = 1.0


class Row(BaseModel):
    """One answer: a line of results.jsonl (docs/formats.md). Unknown keys are let pass.

    `seconds` is what somebody waited, `share` the answer's part of its batches' time. Both are None
    in a baseline: a time says nothing on another machine.
    """

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    suite: Text
    template: Text
    version: Text
    model: Text
    item: Text
    repeat: int = Field(ge=0)
    output: Text
    rationale: Text | None = None
    strict: Text | None
    flexible: Text | None
    target: list[Text]
    parsed: bool
    finished: bool
    prompt_tokens: int = Field(ge=0)
    tokens: int = Field(ge=0)
    seconds: float | None = Field(default=None, ge=0)
    share: float | None = Field(default=None, ge=0)
    scores: dict[str, float]
    assertions: list[Assertion] = []
    score: float = Field(ge=0, le=1)
    passed: bool
    choices: list[dict[str, Any]] | None = None


class Record(BaseModel):
    """How a run was made: run.json (docs/formats.md). Further keys are kept.

    Attributes:
        suite: name of the suite.
        models: source, content hash and type of every model by its name.
        thresholds: limits of every template's cells.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    suite: str
    models: dict[str, dict[str, Any]]
    thresholds: dict[str, dict[str, float]] = {}


@dataclass(frozen=True)
class Cell:
    """One template with one model: n items, each answered r times.

    Attributes:
        template: its name.
        version: content hash of the template.
        model: its name in the run.
        items: the n item ids, all different.
        passed: shape (n, r), whether the answer passed.
        score: shape (n, r), the primary score in [0, 1].
        parsed: shape (n, r), whether an answer could be extracted.
        rows: the n × r rows, or empty where only the numbers are known.
    """

    template: str
    version: str
    model: str
    items: list[str]
    passed: BoolArray
    score: FloatArray
    parsed: BoolArray
    rows: Sequence[Sequence[Row]] = ()

    def __post_init__(self) -> None:
        shape = self.passed.shape
        if len(shape) != 2 or len(self.items) != shape[0] or not all(shape):
            raise ValueError(f"{len(self.items)} items do not fit outcomes of shape {shape}")
        if self.score.shape != shape or self.parsed.shape != shape:
            raise ValueError(
                f"passed, score and parsed differ in shape: {shape}, {self.score.shape}, "
                f"{self.parsed.shape}"
            )
        if len(set(self.items)) != len(self.items):
            raise ValueError("an item id occurs twice")

    @classmethod
    def of(cls, rows: Sequence[Sequence[Row]]) -> "Cell":
        """Return the cell of n lists of r rows, one list an item."""
        first = rows[0][0]
        return cls(
            template=first.template,
            version=first.version,
            model=first.model,
            items=[repeats[0].item for repeats in rows],
            passed=np.array([[row.passed for row in repeats] for repeats in rows], dtype=np.bool_),
            score=np.array([[row.score for row in repeats] for repeats in rows], dtype=np.float64),
            parsed=np.array([[row.parsed for row in repeats] for repeats in rows], dtype=np.bool_),
            rows=rows,
        )

    @property
    def name(self) -> str:
        """Return what messages call it: `arithmetic/few_shot with base`."""
        return f"{self.template} with {self.model}"

    @property
    def repeats(self) -> int:
        """Return r."""
        return int(self.passed.shape[1])


def read_results(folder: Path) -> list[Cell]:
    """Read the cells of a run in the order of its results.jsonl.

    Args:
        folder: the run folder.

    Raises:
        UserError: when the file is missing or empty, a row is damaged or given twice, an item lacks
            a repeat, or a cell mixes versions of its template.
    """
    path = folder / RESULTS
    if not path.is_file():
        raise UserError(f"{path}: not found; give the folder of a `rlhf prompts run`")
    places: dict[tuple[str, str, str, int], str] = {}
    cells: dict[tuple[str, str], list[Row]] = {}
    for place, raw in read_rows(path):
        if isinstance(raw, Exception):
            raise UserError(f"{place}: {raw}")
        row = row_of(raw, place)
        key = (row.template, row.model, row.item, row.repeat)
        if key in places:
            raise UserError(
                f"{place}: item {row.item}, repeat {row.repeat} of {row.template} with {row.model} "
                f"stands already at {places[key]}; remove one of the two"
            )
        places[key] = place
        cells.setdefault((row.template, row.model), []).append(row)
    if not cells:
        raise UserError(f"{path}: holds no results; run the suite again")
    return [grouped(rows, str(path)) for rows in cells.values()]


def row_of(raw: Mapping[str, Any], place: str) -> Row:
    """Return the checked row, or say where which key is wrong.

    Raises:
        UserError: when a key is missing or has a wrong value.
    """
    try:
        return Row.model_validate(raw)
    except ValidationError as error:
        raise UserError(
            f"{place}: {reason(error)}; the file is damaged or something else wrote it, run the "
            "suite again"
        ) from None


def grouped(rows: Sequence[Row], path: str) -> Cell:
    """Return the cell of rows that share template and model, whatever their order.

    Raises:
        UserError: when they are not of one version and suite, or an item lacks a repeat or has two
            targets.
    """
    first = rows[0]
    items: dict[str, list[Row]] = {}
    for row in rows:
        for what, mine, other in (
            ("version", first.version, row.version),
            ("suite", first.suite, row.suite),
        ):
            if mine != other:
                raise UserError(
                    f"{path}: {row.template} with {row.model} has rows of {what} {mine} and {other}"
                    "; run the suite again into a new folder"
                )
        items.setdefault(row.item, []).append(row)
    repeats = max(row.repeat for row in rows) + 1
    for item, own in items.items():
        own.sort(key=lambda row: row.repeat)
        if [row.repeat for row in own] != list(range(repeats)):
            raise UserError(
                f"{path}: item {item} of {first.template} with {first.model} has {len(own)} of "
                f"{repeats} repeats; the run was not finished, start it again"
            )
        if any(row.target != own[0].target for row in own):
            raise UserError(
                f"{path}: item {item} of {first.template} with {first.model} has two targets; run "
                "the suite again into a new folder"
            )
    return Cell.of(list(items.values()))


def read_record(folder: Path) -> Record:
    """Return run.json of a run folder: how the run was made.

    Raises:
        UserError: when it is missing or damaged.
    """
    path = folder / RECORD
    try:
        return Record.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if not folder.is_dir():
            what = "no such folder; give the folder of a `rlhf prompts run`"
            raise UserError(f"{folder}: {what}") from None
        raise UserError(
            f"{path}: not found; the run was not finished, or the folder is none of a run"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except ValidationError as error:
        raise UserError(f"{path}: {reason(error)}; the file is damaged, run it again") from None


def reason(error: ValidationError) -> str:
    """Return the first thing pydantic found wrong, as `key: what`."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    text = (first["msg"][:1].lower() + first["msg"][1:]).removeprefix("value error, ")
    return f"{key}: {text}" if key else text
