"""Rows of a campaign: a prompt and the answers to compare, checked and stored."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from sqlalchemy import insert, update
from sqlalchemy.orm import Session

from ui.display import storable
from ui.leaks import find_leak
from ui.schema import Answer, Item, Mode
from workbench.chat import Prompt
from workbench.data.conversations import RowError
from workbench.data.formats import check_row
from workbench.errors import UserError
from workbench.files import digest

# How many answers an item has, by mode; Ouyang et al. 2022 §3.4 rank 4 to 9.
ANSWERS: dict[Mode, tuple[int, int]] = {"pair": (2, 2), "arena": (2, 2), "ranking": (4, 9)}


def _clean(value: Any) -> Any:
    """Return what every database takes, at any depth; what is no text is left for the checks."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items()}
    return value


_Cleaned = BeforeValidator(_clean)
_Label = Annotated[str, _Cleaned, Field(min_length=1, max_length=128)]


class AnswerRow(BaseModel):
    """One answer as a row gives it."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: Annotated[str, _Cleaned, Field(min_length=1, max_length=256)]
    text: Annotated[str, _Cleaned]
    tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    finished: bool = True


class Row(BaseModel):
    """One item as a row gives it; `gold_best` is the model whose answer must be preferred."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: Annotated[Any, _Cleaned]
    answers: list[AnswerRow]
    prompt_id: _Label | None = None
    category: _Label | None = None
    gold_best: Annotated[str, _Cleaned] | None = None


def checked_row(where: str, raw: Mapping[str, Any], mode: Mode) -> Row:
    """Check a row and return it with a `prompt_id`, a hash of the prompt where none is given.

    Args:
        where: names the row in an error.
        raw: the row.
        mode: of the campaign; decides how many answers there must be.

    Raises:
        UserError: for a missing, unknown or impossible value.
    """
    if mode not in ANSWERS:
        raise UserError(f"{where}: a {mode} campaign takes no rows; its raters write the prompts")
    try:
        row = Row.model_validate(dict(raw) if isinstance(raw, Mapping) else raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{where}: {key or 'row'}: {first['msg']}") from None
    row.prompt = checked_prompt(where, row.prompt)
    row.prompt_id = row.prompt_id or digest(row.prompt)
    fewest, most = ANSWERS[mode]
    if not fewest <= len(row.answers) <= most:
        wanted = str(most) if fewest == most else f"{fewest} to {most}"
        raise UserError(f"{where}: {len(row.answers)} answers; in {mode} mode an item has {wanted}")
    if row.gold_best is not None and [a.model for a in row.answers].count(row.gold_best) != 1:
        raise UserError(f"{where}: gold_best={row.gold_best!r} is not the model of one answer")
    return row


def checked_prompt(where: str, prompt: Any) -> Prompt:
    """Return a prompt that is a text or messages ending with the user's.

    Raises:
        UserError: when it is neither, or empty.
    """
    try:
        checked: Prompt = check_row({"prompt": prompt}, "prompt_only")["prompt"]
    except RowError as error:
        raise UserError(f"{where}: {error}") from None
    return checked


def insert_rows(
    session: Session, campaign_id: int, rows: Sequence[Row], names: Sequence[str]
) -> int:
    """Insert the items and answers of a campaign.

    Args:
        session: of the store.
        campaign_id: the campaign.
        rows: checked ones; their order is the order of the items.
        names: what may give a model away.

    Returns:
        How many answers give their model away.
    """
    items = session.scalars(
        insert(Item).returning(Item.id, sort_by_parameter_order=True),
        [
            {
                "campaign_id": campaign_id,
                "position": position,
                "prompt_id": row.prompt_id,
                "prompt": row.prompt,
                "category": row.category,
                "kind": "normal" if row.gold_best is None else "gold",
            }
            for position, row in enumerate(rows)
        ],
    ).all()
    values = [
        {**answer.model_dump(), "item_id": item_id, "leak": find_leak(answer.text, names)}
        for item_id, row in zip(items, rows, strict=True)
        for answer in row.answers
    ]
    ids = session.scalars(
        insert(Answer).returning(Answer.id, sort_by_parameter_order=True), values
    ).all()
    is_best = [answer.model == row.gold_best for row in rows for answer in row.answers]
    gold = [
        {"id": value["item_id"], "gold_best": answer_id}
        for value, answer_id, best in zip(values, ids, is_best, strict=True)
        if best
    ]
    if gold:
        session.execute(update(Item), gold)
    return sum(value["leak"] is not None for value in values)
