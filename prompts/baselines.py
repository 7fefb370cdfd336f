"""Baselines: what a model answered when somebody said that it was good, kept as text."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from prompts.results import Cell, Row, grouped, read_record, read_results, reason, row_of
from prompts.suite import PLAIN_NAME
from workbench.errors import UserError
from workbench.files import write_text

# Shared by all answers of an item, and written once.
SHARED = {"suite", "model", "template", "version", "item", "repeat", "target"}
# A time, or a log-probability to the last digit, says nothing on another machine.
MACHINE = {"seconds", "share", "choices"}
PROVENANCE = ("seed", "started", "git_commit", "versions")


class _Line(BaseModel):
    """One item of one template: a line of the file."""

    model_config = ConfigDict(strict=True, extra="forbid")

    template: str
    item: str
    target: list[str]
    answers: list[dict[str, Any]]


class _File(BaseModel):
    """The file as it stands on disk."""

    model_config = ConfigDict(strict=True, extra="forbid")

    suite: str
    model: str
    by: str
    note: str
    at: str
    templates: dict[str, str]
    run: dict[str, Any]
    items: list[_Line]


@dataclass(frozen=True)
class Baseline:
    """The blessed results of one suite and model.

    Attributes:
        suite: name of the suite.
        model: name of the model.
        by: who blessed it.
        note: why.
        at: when, in UTC.
        templates: the version of every template.
        run: how the blessed run was made: its model, seed, date, commit and library versions.
        cells: the results, without times and log-probabilities.
    """

    suite: str
    model: str
    by: str
    note: str
    at: str
    templates: dict[str, str]
    run: dict[str, Any]
    cells: list[Cell]


def bless(run: Path, model: str, baselines: Path, by: str, note: str = "") -> Path:
    """Make one model's results of a run the baseline of its suite.

    Nothing else ever changes a baseline. The file holds one item a line in a fixed order, so that a
    version control system shows which items a new baseline changes.

    Args:
        run: the run folder.
        model: the model's name in the run.
        baselines: folder of the baselines; the file becomes `<suite>/<model>.json` in it.
        by: who blesses.
        note: why, for whoever reads the history.

    Returns:
        the file written.

    Raises:
        UserError: when the run is not whole, has no such model, or nobody blesses.
    """
    if not by.strip():
        raise UserError("bless: say who blesses the run, with --by NAME")
    record, cells = read_record(run), read_results(run)
    models = sorted({cell.model for cell in cells})
    if model not in models:
        raise UserError(f"{run}: no results of model '{model}'; it has {', '.join(models)}")
    rows = sorted(
        (row for cell in cells if cell.model == model for own in cell.rows for row in own),
        key=lambda row: (row.template, row.item, row.repeat),
    )
    other = sorted({row.suite for row in rows} - {record.suite})
    if other:
        raise UserError(f"{run}: run.json is of suite {record.suite}, the results of {other[0]}")
    path = _path(baselines, record.suite, model)
    known = record.model_dump()
    head = {
        "suite": record.suite,
        "model": model,
        "by": by.strip(),
        "note": note.strip(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "templates": {row.template: row.version for row in rows},
        "run": {
            "model": record.models.get(model, {}),
            **{key: known[key] for key in PROVENANCE if key in known},
        },
    }
    lines = [
        {
            "template": template,
            "item": item,
            "target": answers[0].target,
            "answers": [answer.model_dump(exclude=SHARED | MACHINE) for answer in answers],
        }
        for (template, item), group in groupby(rows, key=lambda row: (row.template, row.item))
        if (answers := list(group))
    ]
    text = [f"{json.dumps(key)}: {_json(value)},\n" for key, value in head.items()]
    body = ",\n".join(_json(line) for line in lines)
    try:
        write_text(path, "{\n" + "".join(text) + '"items": [\n' + body + "\n]\n}\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another folder with --baselines"
        ) from None
    return path


def load_baseline(baselines: Path, suite: str, model: str) -> Baseline:
    """Read the baseline of a suite and model.

    Args:
        baselines: folder of the baselines.
        suite: name of the suite.
        model: name of the model when it was blessed.

    Raises:
        UserError: when there is none, or its file is damaged.
    """
    path = _path(baselines, suite, model)
    try:
        file = _File.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        known = sorted(other.stem for other in path.parent.glob("*.json"))
        there = f"; there are baselines of {', '.join(known)}" if known else ""
        raise UserError(
            f"{path}: no such baseline{there}; bless a run with `rlhf prompts bless RUN --model "
            f"{model}`"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except ValidationError as error:
        raise UserError(
            f"{path}: {reason(error)}; the file is damaged, take it from version control or bless "
            "a run again"
        ) from None
    rows = [
        row
        for number, line in enumerate(file.items, start=1)
        for row in _rows(file, line, f"{path}: item {number} ({line.item})")
    ]
    if not rows:
        raise UserError(f"{path}: holds no items; bless a run again")
    return Baseline(
        suite=file.suite,
        model=file.model,
        by=file.by,
        note=file.note,
        at=file.at,
        templates=file.templates,
        run=file.run,
        cells=[
            grouped(list(own), str(path)) for _, own in groupby(rows, key=lambda row: row.template)
        ],
    )


def _rows(file: _File, line: _Line, place: str) -> list[Row]:
    if line.template not in file.templates:
        raise UserError(f"{place}: template {line.template} has no version; bless a run again")
    shared = {
        "suite": file.suite,
        "model": file.model,
        "template": line.template,
        "version": file.templates[line.template],
        "item": line.item,
        "target": line.target,
    }
    return [
        row_of({**answer, **shared, "repeat": repeat}, place)
        for repeat, answer in enumerate(line.answers)
    ]


def _path(baselines: Path, suite: str, model: str) -> Path:
    for what, name in (("suite", suite), ("model", model)):
        if not re.search(PLAIN_NAME, name):
            raise UserError(
                f"{what} '{name}' cannot name a file of the baselines; use letters, digits, '.', "
                "'_' and '-' only"
            )
    return baselines / suite / f"{model}.json"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
