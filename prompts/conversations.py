"""The conversations of a template: one an item, with its exemplars and passages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prompts.exemplars import Selector
from prompts.items import Item, load_items
from prompts.rendering import Message, compile_template
from prompts.template import Template
from workbench.errors import UserError


@dataclass(frozen=True)
class Prompts:
    """The conversations of one template, one an item.

    Attributes:
        template: the template.
        name: what results and messages call it.
        items: N items.
        messages: N conversations.
        excluded: exemplars left out because they repeat the item they were meant for.
    """

    template: Template
    name: str
    items: Sequence[Item]
    messages: list[list[Message]]
    excluded: int = 0


def render_all(template: Template, items: Sequence[Item], name: str | None = None) -> Prompts:
    """Render a template for every item, with its exemplars and passages.

    Args:
        template: the template.
        items: N items.
        name: what to call it; default its own name.
    """
    compiled = compile_template(template)
    exemplars: list[tuple[Item, ...]] = [() for _ in items]
    excluded = 0
    if template.exemplars is not None and template.pool_path is not None:
        pool = load_items(template.pool_path)
        selector = Selector(template.exemplars, pool, template.pool_path)
        selections = selector.select_all(items)
        exemplars = [selection.exemplars for selection in selections]
        excluded = sum(len(selection.excluded) for selection in selections)
    passages: list[list[Any]] = [[] for _ in items]
    if template.documents is not None:
        from prompts.retrieval import DocumentFolder

        documents = DocumentFolder(template.documents, template.path.parent)
        passages = documents.search_all([_search_text(template, item) for item in items])
    messages = [
        compiled.render(item, shown, found)
        for item, shown, found in zip(items, exemplars, passages, strict=True)
    ]
    return Prompts(template, name or template.name, items, messages, excluded)


def _search_text(template: Template, item: Item) -> str:
    field = template.documents.query if template.documents else ""
    value = item.fields.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(
            f"{template.path}: item {item.id} (line {item.line}): field '{field}', which "
            f"documents.query names, is {value!r}; it must be a text"
        )
    return value
