"""Answers of any model to many prompts: of one that is loaded for them, or of a served one."""

from collections.abc import Sequence
from dataclasses import dataclass

from workbench.chat import Prompt
from workbench.errors import UserError
from workbench.generation import SamplingSettings
from workbench.served import ServedModel, is_served, seeds_of


@dataclass(frozen=True)
class Answered:
    """One answer.

    Attributes:
        text: without special tokens and outer blanks.
        finished: ended by the model, not cut at the longest length.
        tokens: its length, EOS included.
    """

    text: str
    finished: bool
    tokens: int


def answer_prompts(
    source: str,
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    *,
    samples: int = 1,
    seed: int = 0,
    desc: str | None = None,
) -> list[list[Answered]]:
    """Return `samples` answers of a model to each prompt.

    Args:
        source: hub id, folder, the embedded model, or `openai:URL#name`.
        prompts: strings or conversations.
        sampling: length, temperature, and how many are answered at a time.
        samples: answers to each prompt.
        seed: of the sampling; an answer depends on it and on its place.
        desc: text of the progress bar; None draws none.

    Raises:
        UserError: for a model that is not there, or a prompt that is too long for it.
    """
    asked = [prompt for prompt in prompts for _ in range(samples)]
    if is_served(source):
        said = ServedModel(source).answers(
            asked, sampling, seeds=seeds_of(seed, len(asked)), desc=desc
        )
        found = [Answered(each.text, each.finished, each.tokens) for each in said]
    else:
        found = _loaded_answers(source, asked, sampling, samples, seed, desc)
    return [found[start : start + samples] for start in range(0, len(found), samples)]


def _loaded_answers(
    source: str,
    asked: Sequence[Prompt],
    sampling: SamplingSettings,
    samples: int,
    seed: int,
    desc: str | None,
) -> list[Answered]:
    from workbench.chat import decode, query_ids
    from workbench.generation import generate
    from workbench.models import ModelSettings, load_policy, load_tokenizer, most_positions

    model, tokenizer = load_policy(ModelSettings(name=source)), load_tokenizer(source)
    queries = [query_ids(tokenizer, prompt) for prompt in asked]
    positions = most_positions(model.config)
    longest = max(map(len, queries), default=0)
    if positions is not None and longest + sampling.max_new_tokens > positions:
        number = [len(query) for query in queries].index(longest) // samples + 1
        raise UserError(
            f"prompt {number}: {longest} tokens and an answer of {sampling.max_new_tokens} go "
            f"beyond the {positions} positions of {source}; shorten it, or allow shorter answers"
        )
    responses = generate(
        model, queries, sampling, eos_token_id=tokenizer.eos_token_id, seed=seed, desc=desc
    )
    return [
        Answered(decode(tokenizer, response.ids), response.finished, len(response.ids))
        for response in responses
    ]
