"""Choices that a model ranks by likelihood: which they are, which is likeliest, which is right."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prompts.items import Item
from prompts.template import Template
from workbench.errors import UserError


def choices_of(template: Template, item: Item) -> list[str]:
    """Return the texts that a template ranks for an item.

    Raises:
        UserError: for an item without at least two texts, all different.
    """
    field = template.choices
    texts = item.fields.get(field) if isinstance(field, str) else field
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise UserError(
            f"{template.path}: item {item.id} (line {item.line}): field '{field}' is {texts!r}; "
            "choices are a list of texts, none empty"
        )
    if len(set(texts)) < max(2, len(texts)):
        raise UserError(
            f"{template.path}: item {item.id} (line {item.line}): choices {texts!r}; give at least "
            "two, all different"
        )
    return texts


def likeliest(choices: Sequence[Mapping[str, Any]], metric: str) -> int:
    """Return the place of the likeliest choice: by its sum (acc), or per byte (acc_norm)."""
    values = [
        choice["logprob"] / (choice["bytes"] if metric == "acc_norm" else 1) for choice in choices
    ]
    return values.index(max(values))


def right_choices(
    template: Template, items: Sequence[Item], targets: Sequence[Sequence[str]], data: Path
) -> list[set[int]]:
    """Return the places of every item's right choices.

    Right are the choices whose text is a target. Where none is, a target may be a choice's number,
    from 0, or its letter, from A.

    Args:
        template: says what the choices are.
        items: N items.
        targets: N lists of accepted answers.
        data: the items' file, for messages.

    Raises:
        UserError: for an item without choices, or none of whose targets is one.
    """
    return [
        _right(choices_of(template, item), target, f"{data}:{item.line}: item {item.id}")
        for item, target in zip(items, targets, strict=True)
    ]


def _right(texts: Sequence[str], targets: Sequence[str], where: str) -> set[int]:
    places = {texts.index(target) for target in targets if target in texts}
    if not places:
        named = [int(target) for target in targets if re.fullmatch("[0-9]{1,9}", target)]
        named += [ord(target) - ord("A") for target in targets if re.fullmatch("[A-Z]", target)]
        places = {place for place in named if place < len(texts)}
    if not places:
        listed = " or ".join(map(repr, targets)) or "(none)"
        raise UserError(
            f"{where}: target {listed} is none of the choices {texts!r}, nor the number (from 0) "
            "or letter (from A) of one"
        )
    return places
