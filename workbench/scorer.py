"""Scores from a reward model: read at the last real token, normalised as stored with the model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from workbench.chat import Prompt, query_ids, response_ids
from workbench.logs import progress
from workbench.models import ModelSettings, load_scorer, load_tokenizer
from workbench.states import answer_states

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def last_token_scores(
    model: "PreTrainedModel", input_ids: "torch.Tensor", attention_mask: "torch.Tensor"
) -> "torch.Tensor":
    """Return one raw score per sequence, read at its last real token.

    Transformers' own pooling looks for the last id that is not the pad id. Where pad = EOS it stops
    before EOS, and finished and cut-off answers look alike; the mask tells them apart.

    Args:
        model: sequence classifier with one output.
        input_ids: [B, T], padded on either side.
        attention_mask: [B, T], 1 on real tokens.

    Returns:
        [B], float32.
    """
    import torch

    positions = (attention_mask.cumsum(-1) - 1).clamp_min(0)
    hidden = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    steps = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (attention_mask * steps).argmax(-1)
    picked = hidden[torch.arange(len(last), device=last.device), last]
    return apply_head(model.score, picked)


def apply_head(head: Any, hidden: "torch.Tensor") -> "torch.Tensor":
    """Return one number per state in float32: bf16 would round scores near 4 to steps of 0.03.

    Args:
        head: linear layer from d to 1, with or without a bias.
        hidden: [N, d], any float type.

    Returns:
        [N], float32. Multiplied out by hand: autocast would turn a matrix product back into bf16.
    """
    scores: torch.Tensor = (hidden.float() * head.weight.float()).sum(-1)
    return scores if head.bias is None else scores + head.bias.float()


def pad_right(
    rows: Sequence[Sequence[int]], device: Any = None
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Pad token rows on the right, with id 0, never read; returns ids and mask, both [B, T]."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


class RewardModel:
    """A trained reward model, ready to score.

    Attributes:
        mean, std: the normaliser; a returned score is (raw - mean) / std.
    """

    def __init__(
        self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int = 32
    ) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.mean, self.std = read_normalizer(model)

    @classmethod
    def load(cls, settings: ModelSettings, batch_size: int = 32) -> "RewardModel":
        """Load a reward model folder or hub id with its tokenizer and normaliser."""
        return cls(load_scorer(settings), load_tokenizer(settings.name, settings), batch_size)

    def score_tokens(self, rows: Sequence[Sequence[int]], desc: str | None = None) -> list[float]:
        """Return normalised scores of token rows (query and response, EOS where finished), [N]."""
        return [(raw - self.mean) / self.std for raw in self.raw_scores(rows, desc)]

    def raw_scores(self, rows: Sequence[Sequence[int]], desc: str | None = None) -> list[float]:
        """Return the head's own scores, [N]; their differences are Bradley–Terry log-odds."""
        import torch

        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        starts = range(0, len(order), self.batch_size)
        for start in progress(starts, desc, unit="batch") if desc else starts:
            chunk = order[start : start + self.batch_size]
            ids, mask = pad_right([rows[i] for i in chunk], self.model.device)
            with torch.inference_mode():
                for i, score in zip(
                    chunk, last_token_scores(self.model, ids, mask).tolist(), strict=True
                ):
                    scores[i] = score
        return scores

    def raw_answer_scores(
        self,
        queries: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        desc: str | None = None,
    ) -> list[float]:
        """Return raw scores of many answers to few queries, [N]; a query is read once per batch."""
        scores = [0.0] * len(answers)
        for index, hidden in answer_states(self.model, queries, answers, self.batch_size, desc):
            last = hidden[range(len(index)), [len(answers[i]) for i in index]]
            for i, score in zip(index, apply_head(self.model.score, last).tolist(), strict=True):
                scores[i] = score
        return scores

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Any],
        finished: Sequence[bool],
        desc: str | None = None,
    ) -> list[float]:
        """Return normalised scores of answers given as text, [N]."""
        rows = [
            query_ids(self.tokenizer, prompt) + response_ids(self.tokenizer, completion, done)
            for prompt, completion, done in zip(prompts, completions, finished, strict=True)
        ]
        return self.score_tokens(rows, desc)


def read_normalizer(model: "PreTrainedModel") -> tuple[float, float]:
    """Return mean and standard deviation from a reward model's config; 0 and 1 by default."""
    config = model.config.to_dict()
    return float(config.get("reward_mean", 0.0)), float(config.get("reward_std", 1.0))


def write_normalizer(model: "PreTrainedModel", mean: float, std: float) -> None:
    """Store the normaliser in the model's config.

    Not in the head's bias: classification heads have none, and reloading drops it (TRL issue 1783).
    """
    model.config.reward_mean, model.config.reward_std = mean, std
