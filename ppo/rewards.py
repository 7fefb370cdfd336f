"""From one score per response to one reward per token."""

import math
from typing import Literal

import torch

from ppo.advantages import Reduce
from ppo.kl import Estimator, kl_per_token


def shape_scores(
    scores: torch.Tensor,
    lengths: torch.Tensor,
    finished: torch.Tensor,
    *,
    clip: float | None = None,
    length_penalty: float = 0.0,
    missing_eos_penalty: float | None = None,
    missing_eos: Literal["subtract", "replace"] = "subtract",
) -> torch.Tensor:
    """Clip scores, take the price of length, then punish answers that did not end.

    Args:
        scores: [B].
        lengths: [B], response tokens.
        finished: [B], bool, whether the response ended with EOS.
        clip: scores are clipped to ± this first; None for no clipping.
        length_penalty: taken off for each token.
        missing_eos_penalty: for answers that did not finish; None for none.
        missing_eos: whether the penalty is taken off the score, or stands for it with a minus.

    Returns:
        [B].
    """
    if clip is not None:
        scores = scores.clamp(-clip, clip)
    scores = scores - length_penalty * lengths
    if missing_eos_penalty is None:
        return scores
    if missing_eos == "replace":
        return torch.where(finished, scores, torch.full_like(scores, -missing_eos_penalty))
    return scores - missing_eos_penalty * (~finished).to(scores.dtype)


class RunningMoments:
    """Mean and variance of all scores so far, over all processes (Chan et al. 1979).

    Attributes:
        count: scores seen.
        mean: of them.
        square: sum of squared distances to the mean.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.square = 0.0, 0.0, 0.0

    def update(self, scores: torch.Tensor, reduce: Reduce = lambda total: total) -> None:
        """Take in a batch.

        Args:
            scores: [B] of this process.
            reduce: sums a tensor over processes.
        """
        scores = scores.double()
        count, total = reduce(torch.stack([torch.ones_like(scores).sum(), scores.sum()])).tolist()
        mean = total / count
        square = reduce((scores - mean).square().sum()).item()
        together = self.count + count
        self.square += square + (mean - self.mean) ** 2 * self.count * count / together
        self.mean += (mean - self.mean) * count / together
        self.count = together

    @property
    def std(self) -> float:
        """Sample standard deviation; 1 while there is none."""
        variance = self.square / (self.count - 1) if self.count > 1 else 0.0
        return math.sqrt(variance) or 1.0

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        """Return scores with the mean taken off, in standard deviations."""
        return (scores - self.mean) / self.std

    def state_dict(self) -> dict[str, float]:
        """Return what a checkpoint keeps."""
        return {"count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take up what a checkpoint kept."""
        self.count, self.mean, self.square = state["count"], state["mean"], state["square"]


def token_rewards(
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    response_mask: torch.Tensor,
    kl_coef: float,
    estimator: Estimator = "k1",
) -> torch.Tensor:
    """Return r_t = -β·KL_t, plus the score at the last response token (Ouyang et al. 2022, eq. 2).

    Args:
        scores: [B].
        logprobs: [B, R], of the sampled tokens under the policy that sampled them.
        ref_logprobs: [B, R], under the reference.
        response_mask: [B, R], 1 on response tokens, EOS included; every row starts with a 1.
        kl_coef: β.
        estimator: see `kl_per_token`.

    Returns:
        [B, R], 0 where the mask is 0.
    """
    mask = response_mask.to(logprobs.dtype)
    # Padding may hold anything, NaN and inf too; multiplying them by 0 would not remove them.
    kl = kl_per_token(logprobs, ref_logprobs, estimator).masked_fill(mask == 0, 0.0)
    rewards = -kl_coef * kl
    last = response_mask.long().sum(-1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores.to(rewards.dtype)
    return rewards
