"""Preferences by a model: which of two answers is better, asked in both orders of the two.

Models favour a place (Zheng et al. 2023, §3.4). The mean of the log-odds of both orders is free of
any constant favour (Wang et al. 2023, "balanced position calibration"). The choice is read from the
likelihoods of the two letters, which works where a small model's own words could not be read.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

from prompts.annotate import Annotation
from prompts.conversations import render_all
from prompts.items import Item
from prompts.replies import answer_all
from prompts.served_model import Model
from prompts.template import Template
from workbench.data.conversations import RowError, Text
from workbench.data.formats import check_row
from workbench.errors import UserError
from workbench.statistics import binomial_interval

Disagreement = Literal["drop", "tie", "average"]
ORDERS_DISAGREE, SAME_ANSWERS, NO_FAVOURITE = "orders disagree", "same answers", "no favourite"


@dataclass(frozen=True)
class Preferences(Annotation):
    """Preference pairs and how consistent the annotator was.

    Attributes:
        agreed: pairs with the same favourite in both orders.
        first: pairs whose answer A was the favourite both times, whichever answer that was.
        second: the same of answer B.
    """

    agreed: int
    first: int
    second: int

    def __str__(self) -> str:
        """Return one line for the terminal."""
        compared = self.asked - self.dropped[SAME_ANSWERS]
        if not compared:
            return super().__str__()
        bounds = binomial_interval(self.agreed, compared)
        return (
            f"{super().__str__()}; both orders agree on {self.agreed} of {compared} pairs "
            f"({self.agreed / compared:.0%}, 95 % interval {bounds.low:.0%} to {bounds.high:.0%}), "
            f"{self.first} times A was preferred in both, {self.second} times B"
        )


@dataclass(frozen=True)
class Verdict:
    """What two orders of the same two answers say.

    Attributes:
        margin: mean log-odds in favour of the first given answer, nats; below 0 of the other.
        favourite: 1 or -1 where both orders agree on the first or the other answer, else 0.
        place: 1 or -1 where both orders prefer answer A or answer B, else 0.
    """

    margin: float
    favourite: int
    place: int


def verdict(first: float, swapped: float) -> Verdict:
    """Settle what an annotator said about two answers in both orders.

    Args:
        first: log p(A) - log p(B) with the first answer as A, nats.
        swapped: log p(A) - log p(B) with the first answer as B, nats.
    """
    direct, turned = _sign(first), -_sign(swapped)
    return Verdict(
        margin=(first - swapped) / 2,
        favourite=direct if direct == turned else 0,
        place=direct if direct == -turned else 0,
    )


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def prefer(
    model: Model,
    template: Template,
    items: Sequence[Item],
    data: Path,
    *,
    disagreement: Disagreement = "drop",
) -> Preferences:
    """Let a model say which of the answers to a prompt is better, for every pair of them.

    The rows are TRL's explicit-prompt preference format. `margin` is the mean log-odds over both
    orders, in nats, never below 0; `weight` is that of the item over C(K, 2), as in a ranking.

    Args:
        model: the annotator.
        template: reads prompt, answer_a and answer_b; ranks two choices by likelihood, of which the
            first stands for answer_a.
        items: rows with prompt and completions (two or more), perhaps with a `finished` flag each.
        data: their file, for messages.
        disagreement: pairs whose orders disagree are flagged `position_bias`, and: drop leaves them
            out; tie gives both directions half of the weight, as Bradley-Terry counts a tie;
            average goes by the sign of the mean.

    Raises:
        UserError: for a template that does not fit, or a wrong row; names file and line.
    """
    if disagreement not in get_args(Disagreement):
        raise UserError(
            f"disagreement='{disagreement}': use one of {', '.join(get_args(Disagreement))}"
        )
    if not isinstance(template.choices, list) or len(template.choices) != 2:
        raise UserError(
            f"{template.path}: a preference is read from two choices; set `scoring: likelihood` "
            "and `choices: [A, B]`"
        )
    checked = [_checked(item, data) for item in items]
    pairs = [
        (item, row, i, j)
        for item, row in zip(items, checked, strict=True)
        for i, j in combinations(range(len(row["completions"])), 2)
    ]
    asked = [pair for pair in pairs if not _same(pair[1]["completions"], *pair[2:])]
    odds = iter(_log_odds(model, template, asked))
    verdicts = [verdict(next(odds), next(odds)) for _ in asked]
    rows: list[dict[str, Any]] = []
    dropped = {ORDERS_DISAGREE: 0, SAME_ANSWERS: len(pairs) - len(asked), NO_FAVOURITE: 0}
    for (item, row, i, j), found in zip(asked, verdicts, strict=True):
        agree = found.favourite != 0
        if not agree and disagreement == "drop":
            dropped[ORDERS_DISAGREE] += 1
            continue
        tie = not agree and disagreement == "tie"
        if not tie and found.margin == 0:
            dropped[NO_FAVOURITE] += 1
            continue
        ordered = [(i, j), (j, i)] if tie else [(i, j) if found.margin > 0 else (j, i)]
        weight = row.get("weight", 1.0) / math.comb(len(row["completions"]), 2) / len(ordered)
        for better, worse in ordered:
            rows.append(
                _sides(item, row, better, worse)
                | {
                    "margin": 0.0 if tie else abs(found.margin),
                    "weight": weight,
                    "annotator": model.name,
                    "orders_agree": agree,
                    "position_bias": not agree,
                    "tie": tie,
                }
            )
    places = Counter(found.place for found in verdicts)
    agreed = sum(found.favourite != 0 for found in verdicts)
    return Preferences(rows, len(pairs), dropped, agreed, places[1], places[-1])


def _checked(item: Item, data: Path) -> dict[str, Any]:
    completions = item.fields.get("completions")
    if not isinstance(completions, list):
        raise UserError(
            f"{data}:{item.line}: completions is {completions!r:.60}; write the answers to be "
            "compared as a list"
        )
    try:
        row = check_row({**item.fields, "ranks": [1] * len(completions)}, "ranking")
    except RowError as error:
        raise UserError(f"{data}:{item.line}: {error}") from None
    finished = row.get("finished")
    if finished is not None and (
        not isinstance(finished, list)
        or len(finished) != len(row["completions"])
        or not all(isinstance(flag, bool) for flag in finished)
    ):
        raise UserError(
            f"{data}:{item.line}: 'finished' is {finished!r:.60}; write true or false for each of "
            f"the {len(row['completions'])} completions"
        )
    return row


def _same(completions: Sequence[Text], i: int, j: int) -> bool:
    return _shown(completions[i]).strip() == _shown(completions[j]).strip()


def _sides(item: Item, row: Mapping[str, Any], better: int, worse: int) -> dict[str, Any]:
    """Return what a preference row takes from its item."""
    own = {"completions", "ranks", "finished", "prompt", "weight", "margin", "gold"}
    sides = {
        "id": f"{item.id}-{better}-{worse}",
        "prompt": row["prompt"],
        "chosen": row["completions"][better],
        "rejected": row["completions"][worse],
    }
    if row.get("finished") is not None:
        sides["chosen_finished"] = row["finished"][better]
        sides["rejected_finished"] = row["finished"][worse]
    return {name: value for name, value in row.items() if name not in own} | sides


def _log_odds(
    model: Model,
    template: Template,
    pairs: Sequence[tuple[Item, dict[str, Any], int, int]],
) -> list[float]:
    """Return log p(A) - log p(B) of each pair as given, then turned round, 2N numbers."""
    questions = [
        Item(
            f"{item.id}-{a}-{b}",
            {
                **item.fields,
                "prompt": _shown(row["prompt"]),
                "answer_a": _shown(row["completions"][a]),
                "answer_b": _shown(row["completions"][b]),
            },
            item.line,
        )
        for item, row, i, j in pairs
        for a, b in ((i, j), (j, i))
    ]
    found = []
    for (reply,) in answer_all(model, render_all(template, questions), 1, 0):
        first, second = reply.choices or []
        found.append(first["logprob"] - second["logprob"])
    return found


def _shown(text: Text) -> str:
    """Return a prompt or completion as the annotator reads it; of several turns, with roles."""
    if isinstance(text, str):
        return text
    if len(text) == 1:
        return str(text[0]["content"])
    return "\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in text)
