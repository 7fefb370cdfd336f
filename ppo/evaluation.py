"""Held-out evaluation of a policy during PPO: proxy score, KL, and rewards never learned from."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ppo.backends import Backend
from ppo.kl import kl_per_token
from ppo.reward_sources import Query, RewardSources, Samples, Source
from ppo.roles import Roles
from ppo.rollout import score_rollout
from workbench.chat import decode
from workbench.generation import SamplingSettings
from workbench.statistics import distinct_n

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.judge import GoldJudge


class Evaluation(NamedTuple):
    """Means over the held-out prompts, named `eval/…`, and a sample table with a row per prompt."""

    metrics: dict[str, float]
    samples: list[dict[str, Any]]


def evaluate(
    roles: Roles,
    backend: Backend,
    tokenizer: "PreTrainedTokenizerBase",
    queries: Sequence[Query],
    sampling: SamplingSettings,
    rewards: RewardSources,
    *,
    seed: int,
    micro_batch_size: int,
    judge: "GoldJudge | None",
    held_out: Mapping[str, Source] | None = None,
) -> Evaluation:
    """Sample an answer per held-out prompt, with the same random numbers every time; score it."""
    ids = [query.ids for query in queries]
    responses = backend.sample(ids, sampling, seed)
    rollout = score_rollout(roles, ids, responses, sampling.temperature, micro_batch_size)
    prompts = [query.prompt for query in queries]
    samples = Samples(list(queries), rollout.responses)
    own = None if roles.reward is None else rollout.scores
    scores, parts = rewards(samples, tokenizer, own)
    kl = (kl_per_token(rollout.logprobs, rollout.ref_logprobs) * rollout.response_mask).sum(-1)
    texts = [decode(tokenizer, response.ids) for response in rollout.responses]
    rows: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "completion": text,
            "finished": response.finished,
            "score": float(scores[i]),
            "kl": float(kl[i]),
        }
        for i, (prompt, text, response) in enumerate(
            zip(prompts, texts, rollout.responses, strict=True)
        )
    ]
    metrics = {
        "eval/scores": float(scores.mean()),
        "eval/kl": float(kl.mean()),
        "eval/length": float(rollout.response_mask.sum(-1).mean()),
        "eval/missing_eos": float((~rollout.finished).float().mean()),
        "eval/distinct_2": distinct_n([response.ids for response in rollout.responses], 2),
    }
    if len(parts) > 1:
        metrics |= {f"eval/rewards/{name}": float(part.mean()) for name, part in parts.items()}
        for i, row in enumerate(rows):
            row["scores"] = {name: float(part[i]) for name, part in parts.items()}
    for name, source in (held_out or {}).items():
        found = source(samples, texts)
        metrics[f"eval/held_out/{name}"] = sum(found) / len(found)
        for row, score in zip(rows, found, strict=True):
            row.setdefault("held_out", {})[name] = score
    if judge is not None:
        verdicts = judge.score(prompts, texts, rollout.responses)
        metrics["eval/gold"] = sum(verdict.gold for verdict in verdicts) / len(verdicts)
        for row, verdict in zip(rows, verdicts, strict=True):
            row["gold"] = verdict.gold
    return Evaluation(metrics, rows)
