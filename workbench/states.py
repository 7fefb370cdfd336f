"""Hidden states at answers: a query that several answers share is read once."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from workbench.logs import progress

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class AnswerStates(NamedTuple):
    """States of B answers; A is the longest of them.

    Attributes:
        which: the answers' places in the list.
        hidden: [B, A + 1, d], the last layer's state after the query and the first k answer tokens,
            at place k; meaningless after an answer's end.
    """

    which: list[int]
    hidden: "torch.Tensor"


def answer_states(
    model: "PreTrainedModel",
    queries: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int,
    desc: str | None = None,
) -> Iterator[AnswerStates]:
    """Yield the states of all answers, a batch at a time, in no particular order.

    Args:
        model: causal language model or sequence classifier; its trunk is run in inference mode.
        queries: N queries as token ids, none of them empty.
        answers: N answers as token ids; empty ones are welcome.
        batch_size: sequences per forward pass.
        desc: text of the progress bar; None draws none.
    """
    import torch

    # Equal queries meet, and sequences of like length: little padding.
    order = sorted(
        range(len(answers)), key=lambda i: (len(queries[i]), tuple(queries[i]), len(answers[i]))
    )
    starts = range(0, len(order), batch_size)
    for start in progress(starts, desc, unit="batch") if desc else starts:
        index = order[start : start + batch_size]
        with torch.inference_mode():
            hidden = _states(model, [queries[i] for i in index], [answers[i] for i in index])
        yield AnswerStates(index, hidden)


def _states(
    model: "PreTrainedModel", queries: list[Sequence[int]], answers: list[Sequence[int]]
) -> "torch.Tensor":
    import torch

    from workbench.decoding_cache import decoding_cache, left_padded, spread

    length = max(map(len, answers))
    device = model.device
    ids, mask, positions, rows = left_padded(queries, device)
    cache = decoding_cache(model.config)
    read = model.base_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    first: torch.Tensor = read[rows, -1:]
    if length == 0:
        return first
    spread(cache, rows, length)
    # Padding on the right, where causal attention never looks.
    tails = torch.tensor([list(a) + [0] * (length - len(a)) for a in answers], device=device)
    written = model.base_model(
        input_ids=tails,
        attention_mask=torch.cat([mask[rows], mask.new_ones(len(answers), length)], dim=1),
        position_ids=positions[rows, -1:] + 1 + torch.arange(length, device=device),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    states: torch.Tensor = torch.cat([first, written], dim=1)
    return states
