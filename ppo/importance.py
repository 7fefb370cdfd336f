"""Importance weights: tokens that another policy sampled, weighed as if the trainer's had.

Another engine, or weights that are older by an update, sample from a behaviour policy μ that is not
quite the trainer's π_old, and the policy gradient is then that of another expectation. Each token's
term is multiplied by π_old / μ, cut from above (truncated importance sampling: Ionides 2008; for
the mismatch of engine and trainer Yao et al. 2025, "On the Rollout-Training Mismatch in Modern RL
Systems").
"""

import math
from typing import NamedTuple

import torch

from ppo.advantages import Reduce
from ppo.kl import kl_per_token
from ppo.losses import MAX_LOG_RATIO


class Importance(NamedTuple):
    """How far apart the two policies are, and what is made of it.

    Attributes:
        weights: [B, R], what each token's policy loss is multiplied by; None for no correction.
        metrics: over the tokens of all processes, under their names in the log.
    """

    weights: torch.Tensor | None
    metrics: dict[str, float]


def truncated_weights(
    logprobs: torch.Tensor, behaviour_logprobs: torch.Tensor, mask: torch.Tensor, cap: float
) -> torch.Tensor:
    """Return min(C, π_old / μ) of each token, 1 on padding; exactly 1 where both agree.

    Args:
        logprobs: [B, R], of the sampled tokens under the trainer's policy before the update.
        behaviour_logprobs: [B, R], under the policy that sampled them.
        mask: [B, R], 1 on response tokens; padding may hold anything.
        cap: C.
    """
    difference = (logprobs - behaviour_logprobs).masked_fill(~mask.bool(), 0.0)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().clamp_max(cap)


def importance(
    logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    mask: torch.Tensor,
    cap: float | None,
    *,
    process: int = 0,
    world: int = 1,
    reduce: Reduce = lambda total: total,
) -> Importance:
    """Measure the mismatch of two policies on what one of them sampled, and weigh its tokens.

    Args:
        logprobs: [B, R], under the trainer's policy before the update.
        behaviour_logprobs: [B, R], under the policy that sampled.
        mask: [B, R], 1 on response tokens.
        cap: C of `truncated_weights`; None corrects nothing and still measures.
        process: number of this one.
        world: number of processes.
        reduce: sums a tensor over processes.

    Returns:
        Weights, and `importance/logprob_difference_mean` and `…_max` (absolute, nats),
        `importance/kl` (KL(μ‖π_old) per token by k3, nats), and with a cap `importance/weight` (the
        mean) and `importance/truncated` (share of tokens).
    """
    keep = mask.bool()
    ours, theirs = logprobs[keep].double(), behaviour_logprobs[keep].double()
    difference = (ours - theirs).abs()
    sums = [
        keep.sum(),
        difference.sum(),
        kl_per_token(theirs, ours.clamp_max(theirs + MAX_LOG_RATIO), "k3").sum(),
    ]
    weights = None
    if cap is not None:
        weights = truncated_weights(logprobs, behaviour_logprobs, mask, cap)
        sums += [weights[keep].double().sum(), (ours - theirs > math.log(cap)).sum()]
    # A maximum by a sum: each process fills a place of its own.
    largest = ours.new_zeros(world)
    largest[process] = difference.max() if difference.numel() else 0.0
    total = reduce(torch.cat([torch.stack([value.double() for value in sums]), largest]))
    found = total.tolist()
    metrics = {
        "importance/logprob_difference_mean": found[1] / found[0],
        "importance/logprob_difference_max": max(found[-world:]),
        "importance/kl": found[2] / found[0],
    }
    if weights is not None:
        metrics["importance/weight"] = found[3] / found[0]
        metrics["importance/truncated"] = found[4] / found[0]
    return Importance(weights, metrics)
