"""Held-out evaluation: means of its own rows, the same draw every time, and the gold judge."""

import pytest
import torch

from ppo.backends import NativeBackend
from ppo.config import PPOModelSettings, RewardSettings
from ppo.evaluation import evaluate
from ppo.reward_sources import Query, RewardSources
from ppo.roles import Roles
from tests.ppo.conftest import PROMPTS
from workbench.chat import decode, query_ids
from workbench.config import load_config
from workbench.generation import SamplingSettings
from workbench.judge import GoldJudge
from workbench.models import ModelSettings, load_policy, load_tokenizer
from workbench.scorer import RewardModel


@pytest.fixture
def roles(family) -> Roles:
    """Roles with a policy away from its reference."""
    given = [f"name={family.policy}", "precision=fp32"]
    roles = Roles(
        load_config(PPOModelSettings, None, given), str(family.reward), torch.device("cpu")
    )
    with torch.no_grad():
        for parameter in roles.trained.policy.parameters():
            parameter.mul_(1.1)
    roles.sync_actor()
    return roles


def evaluated(roles: Roles, family, *, seed: int = 0, judge: GoldJudge | None = None):
    tokenizer = load_tokenizer(str(family.policy))
    return evaluate(
        roles, NativeBackend(roles, tokenizer.eos_token_id), tokenizer,
        [Query(query_ids(tokenizer, text), text) for text in PROMPTS],
        SamplingSettings(max_new_tokens=6), RewardSources(RewardSettings(), "reward", []),
        seed=seed, micro_batch_size=4, judge=judge,
    )  # fmt: skip


def test_metrics_are_means_of_the_rows(roles, family):
    result = evaluated(roles, family)
    rows = result.samples
    assert [row["prompt"] for row in rows] == PROMPTS
    assert set(result.metrics) == {
        "eval/scores", "eval/kl", "eval/length", "eval/missing_eos", "eval/distinct_2"
    }  # fmt: skip
    n = len(rows)
    assert result.metrics["eval/scores"] == pytest.approx(sum(r["score"] for r in rows) / n)
    assert result.metrics["eval/kl"] == pytest.approx(sum(r["kl"] for r in rows) / n)
    missing = sum(not row["finished"] for row in rows)
    assert 0 < missing < n
    assert result.metrics["eval/missing_eos"] == pytest.approx(missing / n)
    assert abs(result.metrics["eval/kl"]) > 0.01


def test_rows_hold_the_answers_that_were_scored(llama, gpt2):
    """Texts, scores and lengths belong together."""
    for family in (llama, gpt2):
        given = [f"name={family.policy}", "precision=fp32"]
        roles = Roles(
            load_config(PPOModelSettings, None, given), str(family.reward), torch.device("cpu")
        )
        tokenizer = load_tokenizer(str(family.policy))
        from workbench.generation import generate

        queries = [query_ids(tokenizer, text) for text in PROMPTS]
        answers = generate(
            roles.actor, queries, SamplingSettings(max_new_tokens=6),
            eos_token_id=tokenizer.eos_token_id, seed=0,
        )  # fmt: skip
        result = evaluated(roles, family)
        assert [r["completion"] for r in result.samples] == [
            decode(tokenizer, answer.ids) for answer in answers
        ]
        assert [r["finished"] for r in result.samples] == [answer.finished for answer in answers]
        mean = sum(len(answer.ids) for answer in answers) / len(answers)
        assert result.metrics["eval/length"] == pytest.approx(mean)
        reward = RewardModel.load(ModelSettings(name=str(family.reward), precision="fp32"))
        scores = reward.score_tokens(
            [query + answer.ids for query, answer in zip(queries, answers, strict=True)]
        )
        assert [r["score"] for r in result.samples] == pytest.approx(scores, abs=1e-5)
        assert result.metrics["eval/kl"] == 0.0


def test_random_numbers_are_the_same_every_time(roles, family):
    """What two evaluations differ in is the policy, never the draw."""
    state = torch.get_rng_state()
    first = evaluated(roles, family)
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluated(roles, family) == first
    assert evaluated(roles, family, seed=1).samples != first.samples


def test_the_gold_judge_scores_the_same_answers(llama):
    roles = Roles(
        load_config(PPOModelSettings, None, [f"name={llama.policy}", "precision=fp32"]),
        str(llama.reward),
        torch.device("cpu"),
    )
    base = load_policy(ModelSettings(name=str(llama.policy)), torch.float32).eval()
    judge = GoldJudge(base, load_tokenizer(str(llama.policy)))
    result = evaluated(roles, llama, judge=judge)
    gold = [row["gold"] for row in result.samples]
    assert all(0 <= value <= 1 for value in gold)
    assert len(set(gold)) > 5
    assert result.metrics["eval/gold"] == pytest.approx(sum(gold) / len(gold))
    plain = evaluated(roles, llama).metrics
    assert {k: v for k, v in result.metrics.items() if k != "eval/gold"} == plain
