"""Batched sampling: finished answers leave the batch, and logits are computed where needed only."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workbench.attention import grouped
from workbench.config import option
from workbench.logs import is_main_process

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from workbench.decoder import Decoder

# A batch is closed up when no more than this share of its rows is still being written.
_FULL_ENOUGH = 0.85
# Tokens whose probabilities are added up together when one is drawn.
_BLOCK = 256


@dataclass
class SamplingSettings:
    """How answers are drawn. The defaults sample the model's own distribution, as PPO must."""

    max_new_tokens: int = option(64, "longest answer, in tokens, EOS included")
    temperature: float = option(1.0, "divides the logits; 1 samples the model itself, 0 is greedy")
    batch_size: int = option(64, "prompts decoded together", free=True)

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if self.max_new_tokens < 1:
            return "max_new_tokens", "must be at least 1"
        if self.temperature < 0:
            return "temperature", "must be 0 (greedy) or more"
        if self.batch_size < 1:
            return "batch_size", "must be at least 1"
        return None


@dataclass(frozen=True)
class Response:
    """One sampled answer.

    Attributes:
        ids: response tokens, EOS included when there is one.
        finished: whether the model ended it with EOS; False means it was cut at `max_new_tokens`.
        logprobs: of the tokens, under the distribution they were drawn from; None where what drew
            them did not say.
        states: of the lower layers, for the tokens of query and answer, [T, d]; None where they
            were not kept.
    """

    ids: list[int]
    finished: bool
    logprobs: list[float] | None = None
    states: "torch.Tensor | None" = field(default=None, compare=False, repr=False)


class StopText:
    """Texts that end an answer before EOS does, as few-shot prompts need them."""

    # Tokens decoded to look for a stop text that has just been completed, for each of its
    # characters: a token holds at least one character, and a broken one at the seam does no harm.
    _SEAM = 8

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> None:
        self.tokenizer, self.texts = tokenizer, tuple(texts)
        self.window = max(map(len, self.texts), default=0) + self._SEAM

    def __call__(self, ids: Sequence[int]) -> bool:
        """Return whether the last tokens hold one of the texts."""
        if not self.texts:
            return False
        tail = self.tokenizer.decode(list(ids[-self.window :]), skip_special_tokens=True)
        return any(text in tail for text in self.texts)


def generate(
    model: "PreTrainedModel",
    queries: Sequence[Sequence[int]],
    settings: SamplingSettings,
    *,
    eos_token_id: int,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    stop: StopText | None = None,
    desc: str | None = None,
    logprobs: bool = False,
    keep_depth: int = 0,
) -> list[Response]:
    """Sample one response per query, in the order of the queries.

    A query that occurs several times is read once, and its samples share what was read.

    Args:
        model: causal language model, in evaluation mode.
        queries: token ids per query, unpadded.
        settings: length, temperature and batch size.
        eos_token_id: the token that ends a response.
        seed: of the sampling; the random numbers of an answer depend on it and on the place of its
            query in the list, not on the batch it falls into.
        seeds: one seed per query instead: then neither on its place.
        stop: texts that end an answer too; the last token that completes one is kept.
        logprobs: whether to return how likely each token was when it was drawn.
        keep_depth: number of lower layers whose states are kept, of families with a `Decoder`; 0
            keeps none.
        desc: text of the progress bar; None draws none.
    """
    import torch
    from tqdm.auto import tqdm

    from workbench.decoder import Decoder

    if not queries:
        return []
    draws = _draws(len(queries), settings, seed, seeds)
    # Batches of like length waste little padding; the longest come first so that memory trouble
    # shows at once. Equal queries meet.
    order = sorted(range(len(queries)), key=lambda i: (-len(queries[i]), tuple(queries[i])))
    responses: dict[int, Response] = {}
    hide = desc is None or not is_main_process()
    with (
        tqdm(
            total=len(queries),
            desc=desc,
            unit="answer",
            disable=hide,
            leave=False,
            dynamic_ncols=True,
        ) as bar,
        torch.inference_mode(),
        _no_dropout(model),
        grouped(model),
    ):
        # The first token comes with the reading of the query, which the model's own modules do.
        decoder = Decoder.of(model) if settings.max_new_tokens > 1 else None
        for start in range(0, len(order), settings.batch_size):
            chunk = order[start : start + settings.batch_size]
            batch = _decode(
                [queries[i] for i in chunk],
                model,
                decoder,
                settings,
                eos_token_id,
                None if draws is None else draws[chunk].to(model.device),
                stop,
                logprobs,
                keep_depth,
            )
            responses.update(zip(chunk, batch, strict=True))
            bar.update(len(chunk))
    return [responses[i] for i in range(len(queries))]


def _draws(
    count: int, settings: SamplingSettings, seed: int, seeds: Sequence[int] | None
) -> "torch.Tensor | None":
    """Return the uniform numbers in (0, 1] that the tokens are drawn with, [N, R]."""
    import torch

    if settings.temperature == 0:
        return None
    if seeds is None:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(count, settings.max_new_tokens, generator=generator)
    else:
        rows = (torch.Generator().manual_seed(s) for s in seeds)
        drawn = torch.stack([torch.rand(settings.max_new_tokens, generator=row) for row in rows])
    # `rand` gives [0, 1); turned round, a token of probability 0 at the front is never taken.
    return 1.0 - drawn


def _decode(
    queries: list[Sequence[int]],
    model: "PreTrainedModel",
    decoder: "Decoder | None",
    settings: SamplingSettings,
    eos_token_id: int,
    draws: "torch.Tensor | None",
    stop: StopText | None,
    logprobs: bool,
    keep_depth: int,
) -> list[Response]:
    import torch

    from workbench.decoding_cache import decoding_cache, left_padded, spread
    from workbench.kept_states import KeptStates

    ids, mask, positions, index = left_padded(queries, model.device)
    cache = decoding_cache(model.config)
    answers: list[list[int]] = [[] for _ in queries]
    likely: list[list[float]] = [[] for _ in queries]
    finished = [False] * len(queries)
    padded = len(set(map(len, queries))) > 1
    rows = list(range(len(queries)))  # which answer each row of the batch writes
    longest, kept = settings.max_new_tokens, None
    if keep_depth and decoder is not None:
        kept = KeptStates(keep_depth, queries, longest)
    read = finished if kept is None else [False] * len(queries)  # which need no further step
    for step in range(longest if kept is None else longest + 1):
        if step == 0 or decoder is None:
            with nullcontext() if kept is None else kept.reading(model, index):
                hidden = model.base_model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state[:, -1]
        else:
            seen = mask[:, None, None].bool() if padded else None
            if kept is not None:
                kept.expect(rows, step - 1, last=step == longest or all(finished))
            hidden = decoder(ids[:, 0], positions[:, 0], seen, cache, kept)
            if kept is not None:
                if kept.last:
                    break
                read = list(finished)  # before this step, which has read their last tokens
        if step == 0:
            spread(cache, index, settings.max_new_tokens)
            hidden, mask, positions = hidden[index], mask[index], positions[index]
        logits = (model.get_output_embeddings() if decoder is None else decoder.head)(hidden)
        tokens = choose(logits, settings.temperature, None if draws is None else draws[:, step])
        chances = _logprobs(logits, settings.temperature, tokens) if logprobs else [0.0] * len(rows)
        for row, token, chance in zip(rows, tokens.tolist(), chances, strict=True):
            if not finished[row]:
                answers[row].append(token)
                likely[row].append(chance)
                finished[row] = token == eos_token_id or (stop is not None and stop(answers[row]))
        keep = [k for k, row in enumerate(rows) if not read[row]]
        if not keep:
            break
        ids, positions = tokens[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        # Leaving copies the others' cache, so a few finished rows wait for company.
        if len(keep) <= _FULL_ENOUGH * len(rows):
            index = torch.tensor(keep, device=model.device)
            rows = [rows[k] for k in keep]
            ids, positions, mask = ids[index], positions[index], mask[index]
            draws = None if draws is None else draws[index]
            cache.batch_select_indices(index)
    return [
        Response(
            answers[row],
            finished[row],
            likely[row] if logprobs else None,
            None if kept is None else kept.of(row, len(answers[row])),
        )
        for row in range(len(queries))
    ]


def _logprobs(logits: "torch.Tensor", temperature: float, tokens: "torch.Tensor") -> list[float]:
    import torch

    wide = logits.float() / (temperature or 1.0)
    found: list[float] = (
        wide.gather(-1, tokens[:, None]).squeeze(-1) - torch.logsumexp(wide, dim=-1)
    ).tolist()
    return found


def choose(
    logits: "torch.Tensor", temperature: float, draws: "torch.Tensor | None"
) -> "torch.Tensor":
    """Draw one token per row from softmax(logits / temperature) by inverting its distribution.

    `torch.multinomial` draws an exponential variate per vocabulary entry; one uniform number per
    row does the same.

    Args:
        logits: [B, V], any float type.
        temperature: 0 takes the most likely token.
        draws: [B], uniform in (0, 1]; None only at temperature 0.

    Returns:
        Token ids, [B].
    """
    import torch

    if draws is None:
        return logits.argmax(-1)
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    size = logits.shape[-1]
    chances = torch.softmax(logits, dim=-1)
    chances = torch.nn.functional.pad(chances, (0, -size % _BLOCK))
    # First the block of tokens, then the token in it: a sum over the vocabulary has no steps that
    # could be done at once, and its rounding would grow along the way.
    blocks = chances.view(len(chances), -1, _BLOCK)
    sums = blocks.sum(-1).cumsum(-1)
    # Scaling by the last entry absorbs rounding, so that the sum of probabilities is exactly 1 for
    # the draw.
    goal = draws[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, goal).clamp_max(sums.shape[-1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp_min(0)), 0.0)
    inside = blocks.gather(1, block[..., None].expand(-1, 1, _BLOCK)).squeeze(1).cumsum(-1)
    # Rounding may leave the goal a hair above the block's own sum: then its last likely token.
    goal = torch.minimum(goal - before, inside[:, -1:])
    tokens = block * _BLOCK + torch.searchsorted(inside, goal)
    return tokens.squeeze(-1).clamp_max(size - 1)


def _no_dropout(model: "PreTrainedModel") -> AbstractContextManager[None]:
    return _EvaluationMode(model) if model.training else nullcontext()


class _EvaluationMode(AbstractContextManager[None]):
    def __init__(self, model: "PreTrainedModel") -> None:
        self.model = model

    def __enter__(self) -> None:
        self.model.eval()

    def __exit__(self, *error: object) -> None:
        self.model.train()
