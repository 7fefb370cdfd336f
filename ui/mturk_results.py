"""Result rows of a Mechanical Turk batch, as their file has them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ui.export_files import restored
from ui.schema import Choice, Mode
from ui.votes import CHOICES, LONGEST_COMMENT
from workbench.data.conversations import RowError, shorten
from workbench.data.reading import read_rows
from workbench.errors import UserError

LETTERS = "abcdefghi"


class Result(BaseModel):
    """One row of a results file; `Input.answer_…` and `Answer.rank_…` are among the extra cells."""

    model_config = ConfigDict(extra="allow")
    assignment: Annotated[str, Field(alias="AssignmentId", pattern=r"^[\w-]{1,64}$")]
    worker: Annotated[str, Field(alias="WorkerId", pattern=r"^\w{1,58}$")]
    status: Annotated[Literal["Submitted", "Approved", "Rejected"], Field(alias="AssignmentStatus")]
    seconds: Annotated[float, Field(alias="WorkTimeInSeconds", ge=0, lt=1e8)]
    item: Annotated[str, Field(alias="Input.item")]
    choice: Annotated[str, Field(alias="Answer.choice")] = ""
    comment: Annotated[str, Field(alias="Answer.comment", max_length=LONGEST_COMMENT)] = ""

    def cell(self, name: str) -> str | None:
        """Return a cell of a column that not every file has."""
        value = (self.model_extra or {}).get(name)
        return None if value is None else str(value)


def answer_of(row: Result, mode: Mode, count: int) -> tuple[Choice | None, list[int] | None]:
    """Return the choice or the ranks of a row; ranks are dense: 1, 2, 2, 3.

    Args:
        row: of a results file.
        mode: of the campaign.
        count: answers of the item.

    Raises:
        RowError: for a value that is neither.
    """
    said = row.choice.strip().lower()
    choice = next((known for known in CHOICES if known == said), None)
    if mode != "ranking":
        if choice is None:
            raise RowError(
                f"Answer.choice is {shorten(row.choice)}; it must be one of {', '.join(CHOICES)}"
            )
        return choice, None
    if choice == "skip":
        return choice, None
    ranks = []
    for letter in LETTERS[:count]:
        rank = (row.cell(f"Answer.rank_{letter}") or "").strip()
        if rank not in map(str, range(1, count + 1)):
            raise RowError(
                f"Answer.rank_{letter} is {shorten(rank)}; a rank is a number from 1 to {count}"
            )
        ranks.append(int(rank))
    dense = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return None, [dense[rank] for rank in ranks]


def read_results(path: Path) -> dict[str, Result | RowError]:
    """Return the rows of a results file, or what is wrong with them, by their place in it.

    Raises:
        UserError: when it is not a file of results, or has no rows.
    """
    if path.suffix.lower() != ".csv":
        raise UserError(f"{path}: results of Mechanical Turk are a .csv file; name that")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    names = {field.alias: field.is_required() for field in Result.model_fields.values()}
    rows: dict[str, Result | RowError] = {}
    for where, raw in read_rows(path):
        if isinstance(raw, RowError):
            rows[where] = raw
            continue
        missing = [str(name) for name, required in names.items() if required and name not in raw]
        if missing:
            raise UserError(
                f"{path}: no column {', '.join(missing)}; download the batch's results and name "
                "that file"
            )
        cells = {
            name: restored(cell) if isinstance(cell, str) else cell for name, cell in raw.items()
        }
        try:
            rows[where] = Result.model_validate(cells)
        except ValidationError as error:
            first = error.errors()[0]
            rows[where] = RowError(
                f"{first['loc'][0]} is {shorten(first['input'])}: {first['msg'].lower()}"
            )
    if not rows:
        raise UserError(f"{path}: no rows; nothing was imported")
    return rows
