"""Rollouts: sampled responses and everything PPO needs to know about them, computed once."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from ppo.roles import Batch, Roles
from workbench.generation import Response
from workbench.scorer import pad_right


class Rollout(NamedTuple):
    """B sampled responses; R is the longest of them.

    Attributes:
        queries: token ids of each query.
        responses: sampled answers.
        hidden: trunk activations of each sequence, [T_i, d], or None without a trunk.
        logprobs: [B, R] of the sampled tokens under the policy before the update.
        ref_logprobs: [B, R] under the reference.
        values: [B, R], V of the state in which each token was chosen.
        entropy: [B, R], nats.
        response_mask: [B, R], 1 on response tokens, EOS included.
        scores: [B], scores of all sources, combined; 0 until then where no role gives any.
        finished: [B], bool, ended with EOS.
        parts: [B] of each source of reward, by name.
        behaviour_logprobs: [B, R] under the policy that sampled, where it may be another one than
            the policy before the update; else None.
    """

    queries: list[list[int]]
    responses: list[Response]
    hidden: list[torch.Tensor] | None
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor
    response_mask: torch.Tensor
    scores: torch.Tensor
    finished: torch.Tensor
    parts: dict[str, torch.Tensor] = {}  # noqa: RUF012 - never changed
    behaviour_logprobs: torch.Tensor | None = None


@torch.no_grad()
def score_rollout(
    roles: Roles,
    queries: list[list[int]],
    responses: list[Response],
    temperature: float,
    micro_batch_size: int,
) -> Rollout:
    """Score responses under every role.

    Args:
        roles: the models.
        queries: token ids of each query.
        responses: one each; the trunk reads them only where sampling kept no states of theirs.
        temperature: that they were sampled at.
        micro_batch_size: sequences per forward pass.
    """
    device = roles.device
    count, width = len(queries), max(len(response.ids) for response in responses)
    shape = (count, width)
    filled: dict[str, Any] = {
        name: torch.zeros(shape, device=device)
        for name in ("logprobs", "ref_logprobs", "values", "entropy")
    }
    mask = torch.zeros(shape, device=device)
    scores = torch.zeros(count, device=device)
    kept = None if roles.trunk is None else _kept(queries, responses)
    hidden = [torch.empty(0)] * count if roles.trunk is not None and kept is None else kept
    with roles.autocast():
        for index in micro_batches(_lengths(queries, responses), micro_batch_size):
            chosen = [queries[i] for i in index]
            known = None if kept is None else [kept[i] for i in index]
            batch = collate(chosen, [responses[i] for i in index], known, device)
            if known is None:
                activations = roles.activations(batch.input_ids, batch.attention_mask)
                batch = batch._replace(hidden=activations)
            stats, values = roles.trained(batch, temperature)
            rows, columns = response_places(batch, chosen)
            places = (torch.tensor(index, device=device)[rows], columns)
            filled["logprobs"][places] = stats.logprobs
            filled["entropy"][places] = stats.entropy
            filled["values"][places] = values
            filled["ref_logprobs"][places] = roles.reference_logprobs(batch, temperature)
            mask[places] = 1.0
            if roles.reward is not None:
                scores[index] = roles.scores(batch)
            if known is None and hidden is not None and batch.hidden is not None:
                for row, i in enumerate(index):
                    hidden[i] = batch.hidden[row, : len(queries[i]) + len(responses[i].ids)].clone()
    finished = torch.tensor([response.finished for response in responses], device=device)
    return Rollout(
        queries,
        responses,
        hidden,
        **filled,
        response_mask=mask,
        scores=scores,
        finished=finished,
        behaviour_logprobs=_behaviour(responses, width, device),
    )


def _kept(
    queries: Sequence[Sequence[int]], responses: Sequence[Response]
) -> list[torch.Tensor] | None:
    """Return the trunk's activations that sampling left, or None where some are not there."""
    found = []
    for length, response in zip(_lengths(queries, responses), responses, strict=True):
        if response.states is None or len(response.states) != length:
            return None  # sampled by another engine, or made longer or shorter since
        found.append(response.states)
    return found


def _behaviour(
    responses: Sequence[Response], width: int, device: torch.device
) -> torch.Tensor | None:
    """Return the log-probabilities that came with the answers, [B, R]; None where none came."""
    rows = [response.logprobs for response in responses if response.logprobs is not None]
    if len(rows) < len(responses):
        return None
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows], device=device)


def collate(
    queries: Sequence[Sequence[int]],
    responses: Sequence[Response],
    hidden: Sequence[torch.Tensor] | None,
    device: torch.device,
) -> Batch:
    """Pad sequences on the right, where causal attention never looks, and mark the responses."""
    sequences = [
        list(query) + response.ids for query, response in zip(queries, responses, strict=True)
    ]
    ids, mask = pad_right(sequences, device)
    starts = torch.tensor([len(query) for query in queries], device=device)
    steps = torch.arange(ids.shape[1], device=device)
    rows, columns = ((steps >= starts[:, None]) & mask.bool()).nonzero().T
    padded = None
    if hidden is not None:
        padded = torch.nn.utils.rnn.pad_sequence(list(hidden), batch_first=True)
    return Batch(ids, mask, rows, columns, padded)


def select(rollout: Rollout, index: Sequence[int], device: torch.device) -> Batch:
    """Return the batch of some of a rollout's sequences, with their kept activations."""
    hidden = None if rollout.hidden is None else [rollout.hidden[i] for i in index]
    return collate(
        [rollout.queries[i] for i in index], [rollout.responses[i] for i in index], hidden, device
    )


def micro_batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Yield indices in micro-batches of like length, so that little is spent on padding."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def unflatten(
    flat: torch.Tensor, batch: Batch, queries: Sequence[Sequence[int]], width: int
) -> torch.Tensor:
    """Spread values over N response tokens to [B, width], 0 elsewhere; gradients flow through."""
    out = flat.new_zeros(len(queries), width)
    return out.index_put(response_places(batch, queries), flat)


def response_places(
    batch: Batch, queries: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and columns in [B, R] of the N response tokens of a batch."""
    starts = torch.tensor([len(query) for query in queries], device=batch.rows.device)
    return batch.rows, batch.columns - starts[batch.rows]


def _lengths(queries: Sequence[Sequence[int]], responses: Sequence[Response]) -> list[int]:
    return [
        len(query) + len(response.ids) for query, response in zip(queries, responses, strict=True)
    ]
