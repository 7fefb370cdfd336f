"""The suite file: which templates answer which items, how they are scored and what must hold."""

import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from prompts.assertions import Assertion
from prompts.documents import FieldError, Source, nearest, read_yaml, validated
from prompts.items import Item
from prompts.library import Library
from prompts.metrics import METRICS
from prompts.template import Settings, Template
from workbench.errors import UserError

SUITES = Path(__file__).parent / "suites"
LIKELIHOOD_METRICS = ("acc", "acc_norm")  # of templates that rank choices
PLAIN_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$"  # folders are named after it


class Thresholds(Settings):
    """Limits that a cell must keep to."""

    pass_rate: float = Field(
        default=0.0, ge=0, le=1, description="least share of answers that pass"
    )
    unparsed_rate: float = Field(
        default=1.0, ge=0, le=1, description="largest share of answers without a readable answer"
    )


def _by_template(value: Any) -> Any:
    """Sort `{pass_rate: 0.3, task/variant: {pass_rate: 0.5}}` into the general and the special."""
    if not isinstance(value, dict):
        return value
    general = {key: limit for key, limit in value.items() if not isinstance(limit, dict)}
    return {"": general} | {key: limit for key, limit in value.items() if key not in general}


class SuiteFile(Settings):
    """A suite as its YAML file says."""

    suite: str = Field(pattern=PLAIN_NAME, description="name, as folders of baselines have it")
    description: str = Field("", description="one sentence")
    templates: list[str] = Field(
        min_length=1, description="names in the library (name@label too), or .yaml files"
    )
    data: str = Field(description="file of items, relative to the suite file")
    target: str | None = Field(
        "answer", description="item field of the right answer; a list means any of them"
    )
    repeats: int = Field(1, ge=1, description="answers per item; greedy ones collapse to one")
    seed: int = Field(0, ge=0, description="of sampling, together with item and repeat")
    limit: int | None = Field(None, ge=1, description="only the first so many items")
    metrics: list[str] | None = Field(None, description="default: those of each template")
    score: str | None = Field(None, description="primary metric; default the first")
    pass_at: float = Field(1.0, ge=0, le=1, description="least primary score of an answer to pass")
    assertions: list[Assertion] = Field([], description="what must hold of every answer")
    assertion_threshold: float = Field(
        1.0, ge=0, le=1, description="weighted share of the assertions that must hold"
    )
    thresholds: Annotated[dict[str, Thresholds], BeforeValidator(_by_template)] = Field(
        {}, description="limits of every cell, and of a template under its name"
    )

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """Return the JSON Schema of suite files, for editors."""
        schema = cls.model_json_schema()
        limits = schema["$defs"]["Thresholds"]["properties"]
        schema["properties"]["thresholds"]["properties"] = limits
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for number, name in enumerate(self.metrics or []):
            if name not in METRICS and name not in LIKELIHOOD_METRICS:
                raise FieldError(f"unknown metric; {nearest(name, METRICS)}", "metrics", number)
        if self.score is None:
            return self
        if self.metrics is not None and self.score not in (*self.metrics, *LIKELIHOOD_METRICS):
            raise FieldError(
                f"is not among the metrics; {nearest(self.score, self.metrics)}", "score"
            )
        if self.metrics is None and self.score not in (*METRICS, *LIKELIHOOD_METRICS):
            raise FieldError(f"unknown metric; {nearest(self.score, METRICS)}", "score")
        return self


@dataclass(frozen=True)
class Entry:
    """A template of a suite under the name that results give it.

    Attributes:
        name: the template's name; with label or version where the suite asks for one.
        template: the template.
        metrics: names of its metrics; the likelihood metrics where it ranks choices.
        score: the primary one; None where only assertions decide.
        thresholds: limits of its cells.
    """

    name: str
    template: Template
    metrics: tuple[str, ...]
    score: str | None
    thresholds: Thresholds


@dataclass(frozen=True)
class Suite:
    """A checked suite with its templates.

    Attributes:
        path: its file.
        settings: the file's content.
        entries: its templates, in the file's order.
        library: where templates of judges are looked up.
    """

    path: Path
    settings: SuiteFile
    entries: tuple[Entry, ...]
    library: Library

    @property
    def name(self) -> str:
        """Its name."""
        return self.settings.suite

    @property
    def data(self) -> Path:
        """The file of its items."""
        # Without `..`, since messages and run.json show it.
        return Path(os.path.normpath(self.path.parent / self.settings.data))

    @property
    def thresholds(self) -> dict[str, dict[str, float]]:
        """The limits of each template's cells, by the template's name in results."""
        return {entry.name: entry.thresholds.model_dump() for entry in self.entries}


def find_suite(name: str | Path) -> Path:
    """Return the file of a suite: a path as given, or the name of a starter suite.

    Raises:
        UserError: when there is neither; names the nearest starter suite.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = SUITES / f"{str(name).removesuffix('.yaml').removeprefix('prompts/suites/')}.yaml"
    if packaged.is_file():
        return packaged
    known = [suite.stem for suite in SUITES.glob("*.yaml")]
    raise UserError(f"{name}: no such suite file; {nearest(path.stem, known)}")


def load_suite(path: Path, library: Library) -> Suite:
    """Read and check a suite and the templates it names.

    Args:
        path: the YAML file.
        library: where names of templates are looked up.

    Raises:
        UserError: names file, line and key, what is wrong and how to mend it.
    """
    source = read_yaml(path)
    settings = validated(source, SuiteFile)
    entries: dict[str, Entry] = {}
    for number, reference in enumerate(settings.templates):
        entry = _entry(source, settings, library, number, reference)
        if entry.name in entries:
            raise source.error(f"'{entry.name}' stands twice; remove one", "templates", number)
        entries[entry.name] = entry
    for name in settings.thresholds:
        if name and name not in entries:
            raise source.error(f"no such template; {nearest(name, entries)}", "thresholds", name)
    if not (path.parent / settings.data).is_file():
        raise source.error(f"no such file: {path.parent / settings.data}", "data")
    for number, assertion in enumerate(settings.assertions):
        if assertion.template is not None:
            try:
                library.get(assertion.template)
            except UserError as error:
                raise source.error(str(error), "assertions", number, "template") from None
    return Suite(path, settings, tuple(entries.values()), library)


def targets_of(suite: Suite, items: list[Item], data: Path) -> list[list[str]]:
    """Return the accepted answers of every item, as texts.

    Numbers and truth values are written as in JSON. Without the setting `target` every list is
    empty.

    Args:
        suite: says which field holds them.
        items: N items.
        data: the items' file, for messages.

    Raises:
        UserError: for an item that lacks the field or has no text, number or truth value there.
    """
    field = suite.settings.target
    if field is None:
        return [[] for _ in items]
    return [_target(item, field, f"{data}:{item.line}") for item in items]


def _target(item: Item, field: str, where: str) -> list[str]:
    if field not in item.fields:
        raise UserError(
            f"{where}: item {item.id} has no field '{field}', the target; "
            f"{nearest(field, item.fields)}"
        )
    value = item.fields[field]
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(one, str | int | float) for one in values):
        raise UserError(
            f"{where}: {field} is {value!r}; a target is a text, a number, true, false or a list "
            "of them, any of which is right"
        )
    return [_as_text(one) for one in values]


def _as_text(value: str | float) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _entry(
    source: Source, settings: SuiteFile, library: Library, number: int, reference: str
) -> Entry:
    is_file = reference.endswith(".yaml")
    try:
        template = library.get(str(source.path.parent / reference) if is_file else reference)
    except UserError as error:
        raise source.error(str(error), "templates", number) from None
    name = reference if "@" in reference and not is_file else template.name
    limits = settings.thresholds
    special = limits[name].model_dump(exclude_unset=True) if name in limits else {}
    thresholds = limits.get("", Thresholds()).model_copy(update=special)
    score = settings.score
    if template.scoring == "likelihood":
        ranked = score if score in LIKELIHOOD_METRICS else "acc_norm"
        return Entry(name, template, LIKELIHOOD_METRICS, ranked, thresholds)
    named = template.metrics if settings.metrics is None else settings.metrics
    metrics = [metric for metric in named if metric not in LIKELIHOOD_METRICS]
    if score is not None and score not in (*metrics, *LIKELIHOOD_METRICS):
        metrics.append(score)
    for metric in metrics:
        if metric not in METRICS:
            raise source.error(
                f"{name}: unknown metric '{metric}'; {nearest(metric, METRICS)}",
                "templates",
                number,
            )
        if METRICS[metric].needs_target and settings.target is None:
            raise source.error(f"is null, but {metric} needs a target", "target")
    primary = score if score in metrics else None
    return Entry(
        name, template, tuple(metrics), primary or (metrics[0] if metrics else None), thresholds
    )
