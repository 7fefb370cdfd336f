"""Experience: a rollout with its rewards, advantages and returns."""

from typing import NamedTuple

import torch

from ppo.advantages import Reduce, gae, whiten
from ppo.config import PPOSettings
from ppo.importance import importance
from ppo.kl import kl_per_token
from ppo.losses import explained_variance, masked_mean
from ppo.rewards import RunningMoments, shape_scores, token_rewards
from ppo.rollout import Rollout
from workbench.statistics import distinct_n


class Experience(NamedTuple):
    """A rollout with what is learned from it.

    Attributes:
        rollout: the sampled responses.
        advantages, returns: [B, R], 0 on padding.
        metrics: numbers about the rollout, averaged over all processes.
        value_only: whether the policy stays as it is (`value_warmup_updates`).
        weights: [B, R], of tokens that another policy sampled; None weighs them alike.
    """

    rollout: Rollout
    advantages: torch.Tensor
    returns: torch.Tensor
    metrics: dict[str, float]
    value_only: bool = False
    weights: torch.Tensor | None = None


def make_experience(
    rollout: Rollout,
    args: PPOSettings,
    *,
    kl_coef: float,
    moments: RunningMoments,
    world: int = 1,
    reduce: Reduce = lambda total: total,
    value_only: bool = False,
    process: int = 0,
) -> Experience:
    """Turn a rollout into rewards, advantages and returns.

    Args:
        rollout: scored by every role.
        args: the algorithm's settings.
        kl_coef: β.
        moments: of all scores so far; those of the rollout join them.
        world: number of processes.
        reduce: sums a tensor over processes.
        value_only: passed on.
        process: number of this one.
    """
    mask = rollout.response_mask
    scores = shape_scores(
        _scaled(rollout.scores, args, moments, reduce),
        mask.sum(-1),
        rollout.finished,
        clip=args.score_clip,
        length_penalty=args.length_penalty,
        missing_eos_penalty=args.missing_eos_penalty,
        missing_eos=args.missing_eos,
    )
    rewards = token_rewards(
        scores, rollout.logprobs, rollout.ref_logprobs, mask, kl_coef, args.kl_estimator
    )
    if args.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, reduce=reduce)
    advantages, returns = gae(rewards, rollout.values, mask, args.gamma, args.lam)
    if args.whiten_advantages:
        advantages = whiten(advantages, mask, reduce=reduce)
    kl = (kl_per_token(rollout.logprobs, rollout.ref_logprobs) * mask).sum(-1)
    # What the rewards hold, whichever the estimator; `objective/kl` is always k1, unbiased.
    penalty = kl_coef * (
        kl_per_token(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator) * mask
    ).sum(-1)
    # The mean over processes, weighed by their tokens.
    share = mask.sum() * world / reduce(mask.sum())
    local = {
        "objective/kl": kl.mean(),
        "objective/entropy": masked_mean(rollout.entropy, mask) * share,
        "objective/scores": rollout.scores.mean(),
        "objective/non_score_reward": -penalty.mean(),
        "objective/rlhf_reward": (scores - penalty).mean(),
        "response/length": mask.sum(-1).mean(),
        "response/missing_eos": (~rollout.finished).float().mean(),
        "response/distinct_2": mask.new_tensor(
            distinct_n(_everywhere(rollout, process, world, reduce), 2)
        ),
        "val/explained_variance": explained_variance(rollout.values, returns, mask, reduce),
        "val/num_eos_tokens": rollout.finished.float().sum() * world,
    }
    if len(rollout.parts) > 1:
        for name, part in rollout.parts.items():
            local[f"rewards/{name}"] = part.mean()
    means = reduce(torch.stack([value.double() for value in local.values()])) / world
    metrics = dict(zip(local, means.tolist(), strict=True)) | {"objective/kl_coef": kl_coef}
    weights = None
    if rollout.behaviour_logprobs is not None:
        weights, found = importance(
            rollout.logprobs,
            rollout.behaviour_logprobs,
            mask,
            args.importance_cap,
            process=process,
            world=world,
            reduce=reduce,
        )
        metrics |= found
    return Experience(rollout, advantages, returns, metrics, value_only, weights)


def _everywhere(rollout: Rollout, process: int, world: int, reduce: Reduce) -> list[list[int]]:
    """Return the tokens of all processes' responses: what differs between them has no mean."""
    own = [response.ids for response in rollout.responses]
    if world == 1:
        return own
    device = rollout.response_mask.device
    lengths = torch.zeros(world, len(own), dtype=torch.long, device=device)
    lengths[process] = torch.tensor([len(ids) for ids in own], device=device)
    lengths = reduce(lengths)
    tokens = torch.zeros(world, len(own), int(lengths.max()), dtype=torch.long, device=device)
    for row, ids in enumerate(own):
        tokens[process, row, : len(ids)] = torch.tensor(ids, device=device)
    rows = reduce(tokens).flatten(0, 1).tolist()
    return [row[:length] for row, length in zip(rows, lengths.flatten().tolist(), strict=True)]


def _scaled(
    scores: torch.Tensor, args: PPOSettings, moments: RunningMoments, reduce: Reduce
) -> torch.Tensor:
    if args.score_scaling == "none":
        return scores
    batch = RunningMoments() if args.score_scaling == "batch" else moments
    batch.update(scores, reduce)
    return batch(scores)
