"""A model as annotator: labels and paraphrases of a data set, as new rows of training data."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompts.answers import normalise
from prompts.conversations import render_all
from prompts.items import Item
from prompts.replies import answer_all
from prompts.served_model import Model
from prompts.template import Template
from workbench.errors import UserError
from workbench.files import write_text

# Columns that would make a row another kind of training data than the labelled text it is.
OTHER_KINDS = {"completions", "ranks", "chosen", "rejected", "messages", "instruction"}
UNSURE, UNFINISHED, UNREADABLE = "unsure", "unfinished", "unreadable"
UNCHANGED, REPEATED, DISTANT = "unchanged", "repeated", "another meaning"


@dataclass(frozen=True)
class Annotation:
    """New training rows and what became of the others.

    Attributes:
        rows: in the order of the items.
        asked: how many pairs, texts or paraphrases there were to begin with.
        dropped: how many of them were left out, by reason.
    """

    rows: list[dict[str, Any]]
    asked: int
    dropped: dict[str, int]

    def __str__(self) -> str:
        """Return one line for the terminal."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items() if count)
        kept = self.asked - sum(self.dropped.values())
        return f"kept {kept} of {self.asked}" + (f"; left out: {reasons}" if reasons else "")


def label(
    model: Model,
    template: Template,
    items: Sequence[Item],
    data: Path,
    *,
    labels: Sequence[str],
    field: str = "text",
    question: str | None = None,
    min_confidence: float = 0.0,
) -> Annotation:
    """Give every text the likeliest of some labels.

    A row has the labelled `text`, `label`, `confidence` (the label's probability among the labels)
    and `annotator`, as `prompt` and `completion` what a model would learn to label it from, and
    what else the item holds, but for columns of other kinds of training data.

    Args:
        model: the annotator.
        template: reads text, labels and perhaps question; ranks the choices `labels`.
        items: the rows.
        data: their file, for messages.
        labels: two or more.
        field: the item's field that is labelled.
        question: what the labels are about, in one sentence; the template has a default.
        min_confidence: rows below it are left out and counted.

    Raises:
        UserError: for a template or labels that do not fit, or an item without text.
    """
    if template.scoring != "likelihood" or template.choices != "labels":
        raise UserError(
            f"{template.path}: a label is read from the choices `labels`; set `scoring: "
            "likelihood` and `choices: labels`"
        )
    _check_labels(labels)
    if not 0 <= min_confidence <= 1:
        raise UserError(f"min_confidence={min_confidence}: must be between 0 and 1")
    added = {"labels": list(labels), "question": question}
    asked = [
        Item(item.id, {**item.fields, "text": _text(item, field, data), **added}, item.line)
        for item in items
    ]
    prompts = render_all(template, asked)
    rows: list[dict[str, Any]] = []
    for item, messages, (reply,) in zip(
        items, prompts.messages, answer_all(model, prompts, 1, 0), strict=True
    ):
        logprobs = [choice["logprob"] for choice in reply.choices or []]
        top = max(logprobs)
        # Softmax over the labels: the model's probability, given that it names one of them.
        confidence = 1 / math.fsum(math.exp(value - top) for value in logprobs)
        chosen = labels[logprobs.index(top)]
        if confidence >= min_confidence:
            rows.append(
                {name: item.fields[name] for name in item.fields if name not in OTHER_KINDS}
                | {
                    "id": item.id,
                    "text": item.fields[field],
                    "label": chosen,
                    "confidence": confidence,
                    "annotator": model.name,
                    "prompt": messages,
                    "completion": [{"role": "assistant", "content": chosen}],
                }
            )
    return Annotation(rows, len(items), {UNSURE: len(items) - len(rows)})


def _check_labels(labels: Sequence[str]) -> None:
    if len(set(labels)) < max(2, len(labels)) or not all(text.strip() for text in labels):
        raise UserError(f"labels {list(labels)}: give at least two, all different, none empty")
    for short in labels:
        for long in labels:
            if long != short and long.startswith(short):
                raise UserError(
                    f"label '{short}' begins label '{long}', which can then never be likelier; "
                    "rename one"
                )


def paraphrase(
    model: Model,
    template: Template,
    items: Sequence[Item],
    data: Path,
    *,
    field: str = "text",
    copies: int = 1,
    min_similarity: float = 0.8,
    seed: int = 0,
) -> Annotation:
    """Rewrite a field of every item in other words, and keep what says the same differently.

    A row is its item with the new text, `paraphrase_of` (the item's id), `similarity` and
    `annotator`.

    Args:
        model: the annotator.
        template: reads text; samples its answers.
        items: the rows.
        data: their file, for messages.
        field: the item's field that is rewritten.
        copies: paraphrases asked for, per item.
        min_similarity: least cosine of the MiniLM embeddings of a text and its paraphrase.
        seed: of the sampling.

    Raises:
        UserError: for a template or number that does not fit, or an item without text.
    """
    if template.scoring != "generate":
        raise UserError(f"{template.path}: a paraphrase is written; set `scoring: generate`")
    if copies < 1 or (copies > 1 and template.generation.temperature == 0):
        raise UserError(
            f"copies={copies}: ask for at least 1, and for more only with a template that samples "
            f"(generation.temperature of {template.path} is {template.generation.temperature:g})"
        )
    if not -1 <= min_similarity <= 1:
        raise UserError(f"min_similarity={min_similarity}: a cosine is between -1 and 1")
    asked = [
        Item(item.id, {**item.fields, "text": _text(item, field, data)}, item.line)
        for item in items
    ]
    replies = answer_all(model, render_all(template, asked), copies, seed)
    written = [
        (item, copy, reply)
        for item, row in zip(asked, replies, strict=True)
        for copy, reply in enumerate(row, start=1)
    ]
    ended = [(item, copy, reply.answer.flexible) for item, copy, reply in written if reply.finished]
    judged = judge_paraphrases([(i.fields["text"], text) for i, _, text in ended], min_similarity)
    dropped = dict.fromkeys((UNFINISHED, UNREADABLE, UNCHANGED, REPEATED, DISTANT), 0)
    dropped[UNFINISHED] = len(written) - len(ended)
    own = {item.id: item.fields for item in items}
    rows: list[dict[str, Any]] = []
    for (item, copy, text), (reason, similarity) in zip(ended, judged, strict=True):
        if reason is not None:
            dropped[reason] += 1
            continue
        rows.append(
            {
                **own[item.id],
                "id": f"{item.id}-p{copy}",
                field: text,
                "paraphrase_of": item.id,
                "similarity": similarity,
                "annotator": model.name,
            }
        )
    return Annotation(rows, len(written), dropped)


def judge_paraphrases(
    pairs: Sequence[tuple[str, str | None]], min_similarity: float
) -> list[tuple[str | None, float | None]]:
    """Say of each paraphrase why it is left out, or None, and how similar it is to its text.

    Args:
        pairs: N texts with a paraphrase each; None where it could not be read.
        min_similarity: least cosine of the embeddings.

    Returns:
        N pairs of reason and similarity; the similarity is None where another reason came first.
    """
    from workbench.embedding import embed

    seen: set[tuple[str, str]] = set()
    reasons: list[str | None] = []
    for source, text in pairs:
        plain = normalise(text or "", "text")
        if not plain:
            reasons.append(UNREADABLE)
        elif plain == normalise(source, "text"):
            reasons.append(UNCHANGED)
        else:
            reasons.append(REPEATED if (source, plain) in seen else None)
            seen.add((source, plain))
    left = [place for place, reason in enumerate(reasons) if reason is None]
    similarity: dict[int, float] = {}
    if left:
        sources = embed([pairs[place][0] for place in left])
        others = embed([pairs[place][1] or "" for place in left])
        similarity = dict(zip(left, map(float, (sources * others).sum(axis=1)), strict=True))
    return [
        (DISTANT if similarity.get(place, 1.0) < min_similarity else reason, similarity.get(place))
        for place, reason in enumerate(reasons)
    ]


def write_rows(annotation: Annotation, path: Path) -> None:
    """Write the rows as JSONL, whole or not at all.

    Raises:
        UserError: when no row was kept; says what was left out and why.
    """
    if not annotation.rows:
        raise UserError(f"{path}: not written, there is no row: {annotation}")
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in annotation.rows)
    write_text(path, "".join(f"{line}\n" for line in lines))


def _text(item: Item, field: str, data: Path) -> str:
    value = item.fields.get(field)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{data}:{item.line}: '{field}' is {value!r:.60}; it must be a text")
    return value
