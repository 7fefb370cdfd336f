"""Splits by prompt: all rows of one prompt stay on one side, whatever the order of the rows."""

import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from workbench.data.conversations import Text
from workbench.data.spool import pick
from workbench.errors import UserError
from workbench.files import digest

Row = dict[str, Any]


def group_key(row: Mapping[str, Any]) -> str:
    """Return a stable hash of a row's prompt; rows with the same prompt share it.

    White space and Unicode composition do not count, and a conversation of one user message is
    the same prompt as the plain string. A language-modelling row is its own prompt, without the
    last answer where it is a conversation.

    Args:
        row: a checked row of any kind.
    """
    return digest(_canonical(_prompt(row)))


def split_by_prompt(
    rows: Sequence[Row], fraction: float, seed: int
) -> tuple[Sequence[Row], Sequence[Row]]:
    """Split rows into (train, held out) such that no prompt is on both sides.

    The prompts are ordered by a hash with the seed and the first ones held out, so the result
    depends on neither the order of the rows nor the number of rows of a prompt.

    Args:
        rows: checked rows of any kind, in memory or on disk.
        fraction: share of the distinct prompts to hold out, from 0 (none) to below 1. Rounded,
            but at least one prompt is held out and at least one kept.
        seed: another seed gives another split.

    Returns:
        The two, each in the order of `rows`, and where these are.

    Raises:
        UserError: for a fraction out of range, or fewer than two prompts to divide.
    """
    if not 0 <= fraction < 1:
        raise UserError(f"held-out fraction {fraction}: write a number from 0 to below 1")
    if fraction == 0:
        return rows, []
    # One number of 64 bits a row: there may be millions of them.
    places = array("Q", (int(digest(seed, group_key(row)), 16) for row in rows))
    order = sorted(set(places))
    if len(order) < 2:
        raise UserError(
            f"held-out fraction {fraction}: {len(order)} distinct prompt cannot be divided; "
            "add prompts, or name held-out data (data.test)"
        )
    count = min(max(round(fraction * len(order)), 1), len(order) - 1)
    bound = order[count]
    kept = array("Q", (index for index, place in enumerate(places) if place >= bound))
    held = array("Q", (index for index, place in enumerate(places) if place < bound))
    return pick(rows, kept), pick(rows, held)


def _prompt(row: Mapping[str, Any]) -> Text:
    if "prompt" in row:
        prompt: Text = row["prompt"]
        return prompt
    if "messages" in row:
        messages: Text = row["messages"][:-1]
        return messages
    text: str = row["text"]
    return text


def _canonical(prompt: Text) -> str | list[list[str]]:
    if isinstance(prompt, str):
        return _normal(prompt)
    if len(prompt) == 1 and prompt[0]["role"] == "user":
        return _normal(prompt[0]["content"])
    return [[message["role"], _normal(message["content"])] for message in prompt]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
