"""The clipped policy and value losses. They return sums over tokens: the caller divides by the
tokens of the whole minibatch, so that micro-batches and processes of unequal length weigh every
token alike.
"""

from typing import NamedTuple

import torch

from ppo.advantages import Reduce

# exp() of a log-ratio beyond this overflows or means the update has already gone wrong; clipping
# acts long before.
MAX_LOG_RATIO = 20.0


class PolicyLoss(NamedTuple):
    """Sums over response tokens, scalars.

    Attributes:
        loss: the clipped objective, to be minimised.
        clipped: tokens at which the clip was active.
        approx_kl: Σ (log ratio)² / 2, KL from old to new policy.
        ratio: Σ π/π_old.
        tokens: number of tokens.
    """

    loss: torch.Tensor
    clipped: torch.Tensor
    approx_kl: torch.Tensor
    ratio: torch.Tensor
    tokens: torch.Tensor


class ValueLoss(NamedTuple):
    """Sums over response tokens, scalars: clipped squared error, tokens where the clip acted."""

    loss: torch.Tensor
    clipped: torch.Tensor


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    cliprange: float,
    weights: torch.Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate objective (Schulman et al. 2017, eq. 7).

    Args:
        logprobs: [B, R], of the sampled tokens under the current policy.
        old_logprobs: [B, R], under the policy before the update.
        advantages: [B, R].
        mask: [B, R], 1 on response tokens; padding may hold anything.
        cliprange: ε.
        weights: [B, R], of tokens that another policy sampled (`ppo/importance.py`); None
            weighs them alike.
    """
    keep = mask.bool()
    log_ratio = (
        (logprobs - old_logprobs).masked_fill(~keep, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    )
    advantages = advantages.masked_fill(~keep, 0.0)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    objective = torch.maximum(unclipped, clipped)
    if weights is not None:
        objective = objective * weights
    return PolicyLoss(
        loss=objective.sum(),
        clipped=(clipped > unclipped).sum(),
        approx_kl=log_ratio.square().sum() / 2,
        ratio=ratio[keep].sum(),
        tokens=keep.sum(),
    )


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    cliprange: float,
) -> ValueLoss:
    """½ max((V - R)², (clip(V, V_old ± ε) - R)²), summed over tokens (Huang et al. 2024).

    Args:
        values: [B, R], of the current value function.
        old_values: [B, R], at the time of the rollout.
        returns: [B, R], the targets.
        mask: [B, R], 1 on response tokens; padding may hold anything.
        cliprange: ε.
    """
    keep = mask.bool()
    # Inside the clip that is `values` to the bit: added up from a difference it would be another
    # number, and `clipped` would count rounding.
    near = values.clamp(old_values - cliprange, old_values + cliprange)
    plain = (values - returns).masked_fill(~keep, 0.0).square()
    limited = (near - returns).masked_fill(~keep, 0.0).square()
    return ValueLoss(loss=torch.maximum(plain, limited).sum() / 2, clipped=(limited > plain).sum())


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the mean over entries whose mask is 1, a scalar."""
    keep = mask.bool()
    return values.masked_fill(~keep, 0.0).sum() / keep.sum()


def explained_variance(
    values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    reduce: Reduce | None = None,
) -> torch.Tensor:
    """Return 1 - Var(returns - values) / Var(returns) over response tokens.

    1 is perfect, 0 no better than the mean. `reduce` sums a tensor over processes, as in `whiten`.
    """
    keep = mask.bool()
    target, error = returns[keep].double(), (returns - values)[keep].double()
    sums = [keep.sum(), target.sum(), target.square().sum(), error.sum(), error.square().sum()]
    totals = torch.stack([value.double() for value in sums])
    count, *moments = totals if reduce is None else reduce(totals)
    mean, square, error_mean, error_square = (moment / count for moment in moments)
    spread = (square - mean.square()).clamp_min(1e-8)
    explained: torch.Tensor = 1 - (error_square - error_mean.square()) / spread
    return explained
