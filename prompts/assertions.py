"""Assertions: what must hold of an output, each with a threshold and a weight."""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prompts.answers import MAX_SECONDS, compile_pattern
from prompts.documents import FieldError, Key, Source, nearest, validated
from prompts.items import Item
from prompts.json_schema import JsonSchema
from prompts.metrics import json_valid, rouge_l
from workbench.errors import UserError
from workbench.functions import load_function

Kind = Literal[
    "equals", "contains", "icontains", "regex", "starts-with", "is-json", "json-schema", "rouge",
    "similarity", "max-tokens", "finished", "python", "judge",
]  # fmt: skip
KINDS: tuple[str, ...] = get_args(Kind)
TEXT_KINDS = {"equals", "contains", "icontains", "regex", "starts-with", "rouge", "similarity"}
GRADED = {"rouge": 0.75, "similarity": 0.75, "python": 0.5, "judge": 0.5}  # default thresholds
NEGATION = "not-"


class Assertion(BaseModel):
    """One assertion of a suite or of an item, as its YAML says."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    type: str = Field(description=f"one of {', '.join(KINDS)}, each also as not-…")
    value: Any = Field(None, description="what the output is held against")
    threshold: float | None = Field(
        None, description="least score: rouge, similarity 0.75; python, judge 0.5"
    )
    weight: float = Field(1.0, ge=0, description="share in the verdict; 0 only informs")
    template: str | None = Field(None, description="judge: template that reads `output`")
    model: str | None = Field(None, description="judge: a model of the run, or a source")

    @property
    def kind(self) -> str:
        """The type without `not-`."""
        return self.type.removeprefix(NEGATION)

    @property
    def negated(self) -> bool:
        """Whether it must not hold."""
        return self.type.startswith(NEGATION)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kind = self.kind
        if kind not in KINDS:
            raise FieldError(f"unknown assertion '{self.type}'; {nearest(kind, KINDS)}", "type")
        if self.threshold is not None and kind not in GRADED:
            raise FieldError(f"is for {', '.join(GRADED)}; {kind} holds or not", "threshold")
        if (self.template is None or self.model is None) and kind == "judge":
            missing = "template" if self.template is None else "model"
            raise FieldError("is missing; a judge is a template and a model", missing)
        for key in ("template", "model"):
            if kind != "judge" and key in self.model_fields_set:
                raise FieldError("is for a judge only; remove it", key)
        self._check_value()
        return self

    def _check_value(self) -> None:
        value, kind = self.value, self.kind
        if kind in {"is-json", "finished", "judge"}:
            if value is not None:
                raise FieldError(f"{kind} takes no value; remove it", "value")
        elif kind in TEXT_KINDS:
            if not isinstance(value, str) or not value:
                raise FieldError(f"{kind} needs a text (is {value!r})", "value")
        elif kind == "max-tokens":
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise FieldError(f"max-tokens needs a whole number from 1 (is {value!r})", "value")
        elif kind == "python" and not re.fullmatch(r"[^:]+:\w+", str(value)):
            raise FieldError("python needs module:function or file.py:function", "value")
        try:
            if kind == "regex":
                compile_pattern(value)
            elif kind == "json-schema":
                JsonSchema.model_validate(value)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            at = ".".join(map(str, fault["loc"][-6:])) or "schema"
            reason = fault["msg"].removeprefix("Value error, ")
            raise FieldError(f"JSON Schema: {at}: {reason}", "value") from None
        except ValueError as error:
            raise FieldError(str(error), "value") from None


class ItemAssertions(BaseModel):
    """The assertions of one item, in its field `assert`."""

    assertions: list[Assertion] = Field(alias="assert")


@dataclass(frozen=True)
class Output:
    """What assertions look at: one output and where it comes from.

    Attributes:
        text: the output, stop text removed.
        answer: the extracted answer, if any.
        tokens: its length.
        finished: whether the model ended it.
        item: the item it answers.
        target: the accepted answers.
    """

    text: str
    answer: str | None
    tokens: int
    finished: bool
    item: Item
    target: list[str]


@dataclass(frozen=True)
class Checked:
    """The outcome of one assertion on one output; a `not-` has turned score and verdict round."""

    type: str
    passed: bool
    score: float
    weight: float


Judge = Callable[[Assertion, Sequence[Output]], Sequence[float | None]]


def check(
    assertion: Assertion, outputs: Sequence[Output], *, base: Path, judge: Judge
) -> list[Checked]:
    """Check one assertion on many outputs.

    Args:
        assertion: what must hold.
        outputs: N outputs.
        base: folder that `python` files are relative to.
        judge: scores outputs by a judge's template and model, None where its answer is unreadable.

    Raises:
        UserError: when a user's function is missing, fails or returns no score.
    """
    scores = _scores(assertion, outputs, base, judge)
    threshold = assertion.threshold
    if threshold is None:
        threshold = GRADED.get(assertion.kind, 1.0)
    rows = []
    for score in scores:
        # A judge that cannot be read supports neither the assertion nor its negation.
        passed = score is not None and (score >= threshold) != assertion.negated
        unit = min(1.0, max(0.0, score)) if score is not None else 0.0
        if assertion.negated and score is not None:
            unit = 1.0 - unit
        rows.append(Checked(assertion.type, passed, unit, assertion.weight))
    return rows


def share_passed(checked: Sequence[Checked]) -> float:
    """Return the weighted share of assertions that hold; 1 when none has weight."""
    total = math.fsum(row.weight for row in checked)
    return math.fsum(row.weight for row in checked if row.passed) / total if total else 1.0


def item_assertions(item: Item, path: Path) -> list[Assertion]:
    """Return the assertions an item carries in its field `assert`.

    Raises:
        UserError: `file:line: assert: what was wrong`.
    """
    lines: dict[Key, int] = {("assert",): item.line}
    source = Source(path, {"assert": item.fields.get("assert", [])}, lines)
    return validated(source, ItemAssertions).assertions


def _scores(
    assertion: Assertion, outputs: Sequence[Output], base: Path, judge: Judge
) -> Sequence[float | None]:
    value = assertion.value
    match assertion.kind:
        case "judge":
            return judge(assertion, outputs)
        case "similarity":
            from workbench.embedding import embed

            if not outputs:
                return []
            wanted = embed([value])[0]
            return [float(score) for score in embed([output.text for output in outputs]) @ wanted]
        case "python":
            function = load_function(value, "assertion python", base)
            return [_called(value, function, output) for output in outputs]
    return [_score(assertion.kind, value, output) for output in outputs]


def _score(kind: str, value: Any, output: Output) -> float:
    text = output.text
    match kind:
        case "equals":
            return float(text.strip() == value.strip())
        case "contains":
            return float(value in text)
        case "icontains":
            return float(value.casefold() in text.casefold())
        case "regex":
            return _found(value, text)
        case "starts-with":
            return float(text.lstrip().startswith(value))
        case "is-json":
            return json_valid(text, [], {})
        case "json-schema":
            schema = JsonSchema.model_validate(value)
            return float(json_valid(text, [], {}) == 1 and schema.accepts(json.loads(text)))
        case "rouge":
            return rouge_l(text, [value], {})
        case "max-tokens":
            return float(output.tokens <= value)
    return float(output.finished)


def _found(pattern: str, text: str) -> float:
    try:
        return float(compile_pattern(pattern).search(text, timeout=MAX_SECONDS) is not None)
    except TimeoutError:
        raise UserError(
            f"assertion regex: {pattern!r} searched {len(text)} characters for over "
            f"{MAX_SECONDS:g} s; repeats within repeats, such as (a+)+, explode: rewrite them"
        ) from None


def _called(value: str, function: Callable[[str, dict[str, Any]], Any], output: Output) -> float:
    context = {
        "id": output.item.id,
        "fields": dict(output.item.fields),
        "target": list(output.target),
        "answer": output.answer,
        "tokens": output.tokens,
        "finished": output.finished,
    }
    where = f"assertion python: {value}: item {output.item.id}"
    try:
        result = function(output.text, context)
    except Exception as error:  # noqa: BLE001 - so may a user's function
        raise UserError(f"{where}: {type(error).__name__}: {error}") from None
    if not isinstance(result, bool | int | float) or not 0 <= result <= 1:
        raise UserError(f"{where}: returned {result!r}; return True, False or a score from 0 to 1")
    return float(result)
