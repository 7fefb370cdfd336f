"""Every starter template as rendered for its first item, so that a change of one shows in review.

`pytest tests/prompts/test_snapshots.py --snapshot-update` accepts what is rendered now.
"""

from functools import cache
from pathlib import Path

import pytest

from prompts.conversations import render_all
from prompts.display import conversation
from prompts.items import Item, load_items
from prompts.library import Library
from prompts.rendering import continuation
from prompts.suite import SUITES, load_suite

LIBRARY = Library()
# Those that no suite measures: their items come from users.
ITEMS = {
    "annotate/label": {"text": "The lamp hums.", "labels": ["praise", "blame"], "question": None},
    "annotate/paraphrase": {"text": "The ferry leaves at 9."},
    "annotate/preference": {
        "prompt": "Why do leaves fall?",
        "answer_a": "Trees save water that way.",
        "answer_b": "They are tired.",
    },
}


@cache
def data_of() -> dict[str, Path]:
    """Return the items of every template that a starter suite lists."""
    suites = [load_suite(path, LIBRARY) for path in sorted(SUITES.glob("*.yaml"), reverse=True)]
    return {entry.name: suite.data for suite in suites for entry in suite.entries}


@pytest.mark.parametrize("name", LIBRARY.names())
def test_the_prompt_is_the_one_that_was_reviewed(name, snapshot):
    template = LIBRARY.get(name)
    if name in ITEMS:
        item = Item("example", ITEMS[name], 1)
    else:
        (item,) = load_items(data_of()[name], limit=1)
    messages = render_all(template, [item]).messages[0]
    shown = [conversation(messages)]
    if template.strategy == "zero_shot_cot":
        second = continuation(messages, "(its reasoning)", template.answer_trigger)
        shown.append(f"--- second pass\n{conversation(second[-1:])}")
    if template.choices is not None:
        choices = template.choices
        texts = item.fields[choices] if isinstance(choices, str) else choices
        shown.append("--- choices\n" + "\n".join(texts))
    if template.stop:
        shown.append("--- stop\n" + "\n".join(map(repr, template.stop)))
    assert "\n\n".join(shown) == snapshot


def test_every_template_has_an_item():
    assert set(LIBRARY.names()) == {*data_of(), *ITEMS}
