"""Log-probabilities of given answers: one forward pass a batch, logits at answer tokens only."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from workbench.states import answer_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def answer_logprobs(
    model: "PreTrainedModel",
    queries: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    batch_size: int = 32,
    desc: str | None = None,
) -> list[list[float]]:
    """Return the log-probability of every answer token given the query and the tokens before it.

    Args:
        model: causal language model.
        queries: N queries as token ids; equal ones are read once per batch.
        answers: N answers as token ids; an empty one gives an empty list.
        batch_size: sequences per forward pass.
        desc: text of the progress bar; None draws none.

    Returns:
        N lists, nats.
    """
    import torch

    found: list[list[float]] = [[] for _ in answers]
    some = [i for i in range(len(answers)) if answers[i]]
    for index, hidden in answer_states(
        model, [queries[i] for i in some], [answers[i] for i in some], batch_size, desc
    ):
        for row, i in enumerate(some[k] for k in index):
            ids = torch.tensor(list(answers[i]), device=hidden.device)
            with torch.inference_mode():
                logits = model.get_output_embeddings()(hidden[row, : len(ids)]).float()
                picked = logits.gather(-1, ids[:, None]).squeeze(-1) - logits.logsumexp(-1)
            found[i] = picked.tolist()
    return found
