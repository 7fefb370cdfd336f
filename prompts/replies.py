"""Replies: what a model says to the conversations of a template, by the template's strategy."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from prompts.answers import Extracted, Extraction, majority
from prompts.cached_model import CachedModel, Query
from prompts.choices import choices_of, likeliest
from prompts.conversations import Prompts
from prompts.questions import Question
from prompts.rendering import Message, continuation, token_ids
from prompts.served_model import Model
from prompts.template import Template
from workbench.chat import response_ids
from workbench.errors import UserError


@dataclass(frozen=True)
class Reply:
    """What a model said to one item in one repeat.

    Attributes:
        text: the output, without stop text.
        answer: what was extracted from it.
        finished: ended by the model, not cut.
        prompt_tokens: tokens read.
        tokens: tokens written.
        seconds: what somebody waited: wall time of the batches it was written in.
        share: its part of that time.
        rationale: the first pass of zero-shot chain of thought.
        choices: likelihood: each choice with its log-probability and length.
    """

    text: str
    answer: Extracted
    finished: bool
    prompt_tokens: int
    tokens: int
    seconds: float
    share: float
    rationale: str | None = None
    choices: list[dict[str, Any]] | None = None


def answer_all(model: Model, prompts: Prompts, repeats: int, seed: int) -> list[list[Reply]]:
    """Return the replies of a model to every item, N lists of `repeats`.

    Where nothing is drawn (temperature 0, likelihood) repeats would be equal, and there is one.

    Args:
        model: the model.
        prompts: N conversations of one template.
        repeats: replies per item.
        seed: the random numbers of a reply depend on it, the item's id and the repeat only.

    Raises:
        UserError: when a served model is to rank choices.
    """
    template = prompts.template
    if template.scoring == "likelihood":
        return [[reply] for reply in _ranked(ranking_model(model, template), prompts)]
    if template.generation.temperature == 0:
        repeats = 1
    if template.strategy == "zero_shot_cot":
        return _reasoned(model, prompts, repeats, seed)
    if template.strategy == "self_consistency":
        return _voted(model, prompts, repeats, seed)
    return _written(model, prompts, prompts.messages, repeats, seed)


def ranking_model(model: Model, template: Template) -> CachedModel:
    """Return a model that can rank the choices of a template: the given one, if it can.

    Raises:
        UserError: for a served model.
    """
    if isinstance(model, CachedModel):
        return model
    raise UserError(
        f"{template.name}: ranks its choices by likelihood, which a served model does not tell "
        f"({model.name}, {model.source}); give the model's folder, or leave the template out"
    )


def _written(
    model: Model,
    prompts: Prompts,
    conversations: Sequence[list[Message]],
    repeats: int,
    seed: int,
    purpose: str = "answer",
) -> list[list[Reply]]:
    """Generate `repeats` replies to each conversation."""
    template = prompts.template
    questions = [
        Question(
            messages, _seed(seed, item.id, repeat, purpose), repeat,
            f"{prompts.name}: item {item.id}",
        )
        for item, messages in zip(prompts.items, conversations, strict=True)
        for repeat in range(repeats)
    ]  # fmt: skip
    written = model.write(
        questions,
        max_new_tokens=template.generation.max_new_tokens,
        temperature=template.generation.temperature,
        stop=template.stop,
        desc=f"{model.name}: {prompts.name}",
    )
    extraction = Extraction(template.answer)
    replies = [
        Reply(
            each.text,
            extraction(each.text),
            each.finished,
            each.prompt_tokens,
            each.tokens,
            each.seconds,
            each.share,
        )
        for each in written
    ]
    return [replies[start : start + repeats] for start in range(0, len(replies), repeats)]


def _reasoned(model: Model, prompts: Prompts, repeats: int, seed: int) -> list[list[Reply]]:
    """Generate a rationale, give it back with the answer trigger, and generate the answer."""
    trigger = prompts.template.answer_trigger
    rationales = _written(model, prompts, prompts.messages, repeats, seed, "rationale")
    replies: list[list[Reply]] = [[] for _ in prompts.items]
    for repeat in range(repeats):
        firsts = [row[repeat] for row in rationales]
        seconds = [
            continuation(messages, first.text, trigger)
            for messages, first in zip(prompts.messages, firsts, strict=True)
        ]
        # The repeat is part of the seed; one reply is asked for, to this rationale.
        finals = _written(model, prompts, seconds, 1, _seed(seed, repeat), "answer")
        for row, first, (final,) in zip(replies, firsts, finals, strict=True):
            row.append(
                replace(
                    final,
                    rationale=first.text,
                    prompt_tokens=first.prompt_tokens + final.prompt_tokens,
                    tokens=first.tokens + final.tokens,
                    seconds=first.seconds + final.seconds,
                    share=first.share + final.share,
                )
            )
    return replies


def _voted(model: Model, prompts: Prompts, repeats: int, seed: int) -> list[list[Reply]]:
    """Generate samples and let their answers vote; the first sample of the majority is shown."""
    samples = prompts.template.samples
    rows = _written(model, prompts, prompts.messages, repeats * samples, seed)
    return [
        [_vote(row[start : start + samples]) for start in range(0, len(row), samples)]
        for row in rows
    ]


def _vote(samples: Sequence[Reply]) -> Reply:
    strict = majority([sample.answer.strict for sample in samples])
    flexible = majority([sample.answer.flexible for sample in samples])
    shown = next(sample for sample in samples if sample.answer.flexible == flexible)
    return replace(
        shown,
        answer=Extracted(strict, flexible),
        prompt_tokens=sum(sample.prompt_tokens for sample in samples),
        tokens=sum(sample.tokens for sample in samples),
        seconds=max(sample.seconds for sample in samples),
        share=math.fsum(sample.share for sample in samples),
    )


def _ranked(model: CachedModel, prompts: Prompts) -> list[Reply]:
    """Rank each item's choices by log-probability per byte; ties go to the first."""
    encoded = [tuple(token_ids(model.tokenizer, messages)) for messages in prompts.messages]
    choices = [choices_of(prompts.template, item) for item in prompts.items]
    queries = [
        Query(ids, name=f"{prompts.name}: item {item.id}")
        for item, ids, texts in zip(prompts.items, encoded, choices, strict=True)
        for _ in texts
    ]
    tails = [response_ids(model.tokenizer, text, finished=False) for row in choices for text in row]
    found = iter(model.likelihoods(queries, tails, f"{model.name}: {prompts.name}"))
    replies = []
    for ids, texts in zip(encoded, choices, strict=True):
        parts = [next(found) for _ in texts]
        rows: list[dict[str, Any]] = [
            {"text": text, "logprob": part.logprob, "bytes": len(text.encode())}
            for text, part in zip(texts, parts, strict=True)
        ]
        best = texts[likeliest(rows, "acc_norm")]
        replies.append(
            Reply(
                best,
                Extracted(best, best),
                finished=True,
                prompt_tokens=len(ids),
                tokens=0,
                seconds=max(part.seconds for part in parts),
                share=math.fsum(part.share for part in parts),
                choices=rows,
            )
        )
    return replies


def _seed(*parts: Any) -> int:
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12], 16)
