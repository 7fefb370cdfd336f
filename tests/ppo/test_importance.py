"""Importance weights by hand, their measures over processes, and what they do to an update."""

import math
from dataclasses import replace

import pytest
import torch

from ppo.importance import importance, truncated_weights
from ppo.losses import policy_loss
from tests.ppo.test_engine import LAYOUTS
from workbench.errors import UserError

OURS = torch.log(torch.tensor([[0.5, 0.2, 0.9], [0.3, 0.1, 0.7]]))
THEIRS = torch.log(torch.tensor([[0.25, 0.4, 0.9], [0.1, 0.8, 0.1]]))
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])


def test_weights_by_hand():
    weights = truncated_weights(OURS, THEIRS, MASK, 2.5)
    # 0.5 / 0.25, 0.2 / 0.4, exactly 1, and 0.3 / 0.1 cut at 2.5; 1 on padding
    torch.testing.assert_close(weights, torch.tensor([[2.0, 0.5, 1.0], [2.5, 1.0, 1.0]]))
    assert weights[0, 2] == 1
    assert truncated_weights(OURS, THEIRS, MASK, 1.0).max() == 1
    assert truncated_weights(OURS, THEIRS, MASK, 100.0)[1, 0] == pytest.approx(3.0)


def test_measures_by_hand():
    found = importance(OURS, THEIRS, MASK, 2.5).metrics
    ratios = [2.0, 0.5, 1.0, 3.0]
    assert found == pytest.approx(
        {
            "importance/logprob_difference_mean": sum(abs(math.log(r)) for r in ratios) / 4,
            "importance/logprob_difference_max": math.log(3.0),
            # r - 1 - log r with r = π / μ, from tokens of μ: KL(μ‖π)
            "importance/kl": sum(r - 1 - math.log(r) for r in ratios) / 4,
            "importance/weight": (2.0 + 0.5 + 1.0 + 2.5) / 4,
            "importance/truncated": 0.25,
        },
        rel=1e-6,
    )


def test_the_kl_is_that_from_what_sampled_to_what_learns():
    """Over all tokens of two known distributions, weighed by how often μ samples them."""
    mu, pi = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    counts = (mu * 10).long()
    rows = torch.arange(3).repeat_interleave(counts)[None]
    found = importance(pi.log()[rows], mu.log()[rows], torch.ones_like(rows), None)
    expected = float((mu * (mu / pi).log()).sum())
    assert found.metrics["importance/kl"] == pytest.approx(expected, rel=1e-6)
    assert found.weights is None
    assert set(found.metrics) == {
        "importance/logprob_difference_mean", "importance/logprob_difference_max", "importance/kl",
    }  # fmt: skip


def test_the_weighted_gradient_is_that_of_the_policy_that_learns():
    """E over μ of weight · ∇log π · A, over all tokens, is E over π of ∇log π · A."""
    torch.manual_seed(0)
    logits, behaviour = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    mu, advantages = behaviour.softmax(0), torch.randn(6, dtype=torch.float64)
    logits.requires_grad_()
    pi = logits.log_softmax(0)
    (-(pi.exp() * advantages).sum()).backward()
    wanted, logits.grad = logits.grad.clone(), None
    pi = logits.log_softmax(0)
    weights = truncated_weights(pi.detach()[None], mu.log()[None], torch.ones(1, 6), math.inf)
    # Each token as often as μ samples it.
    policy_loss(
        pi[None], pi.detach()[None], advantages[None] * mu, torch.ones(1, 6), 0.2, weights
    ).loss.backward()
    torch.testing.assert_close(logits.grad, wanted)


def test_padding_may_hold_anything():
    ours, theirs = OURS.clone(), THEIRS.clone()
    ours[1, 1:], theirs[1, 1:] = math.nan, math.inf
    plain, padded = (importance(a, b, MASK, 2.5) for a, b in ((OURS, THEIRS), (ours, theirs)))
    assert plain.metrics == padded.metrics
    assert torch.equal(plain.weights, padded.weights)


def test_an_impossible_difference_does_not_overflow():
    found = importance(torch.zeros(1, 1), torch.full((1, 1), -1e4), torch.ones(1, 1), 1e12)
    assert torch.isfinite(found.weights).all()
    assert all(math.isfinite(number) for number in found.metrics.values())


def test_processes_measure_together():
    """Each sees its own rows; sums travel, and so does the largest difference."""
    sent: list[torch.Tensor] = []
    for process in range(2):
        importance(
            OURS[process : process + 1], THEIRS[process : process + 1],
            MASK[process : process + 1], 2.5, process=process, world=2,
            reduce=lambda total: sent.append(total) or total,
        )  # fmt: skip
    together = [
        importance(
            OURS[process : process + 1], THEIRS[process : process + 1],
            MASK[process : process + 1], 2.5, process=process, world=2,
            reduce=lambda total: sent[0] + sent[1],
        ).metrics
        for process in range(2)
    ]  # fmt: skip
    assert together[0] == together[1] == pytest.approx(importance(OURS, THEIRS, MASK, 2.5).metrics)


# --- in an update


def learned(made, change=None):
    """All trained weights after one update, whose answers may say what they were sampled at."""
    samples = made.rollout()
    experience = made.score(samples)
    if change is not None:
        rollout = experience.rollout
        responses = [
            replace(response, logprobs=change(row[: len(response.ids)]).tolist())
            for response, row in zip(samples.responses, rollout.logprobs, strict=True)
        ]
        experience = made.score(samples._replace(responses=responses))
    metrics = made.update(experience)
    weights = {name: p.detach().clone() for name, p in made.roles.trained.named_parameters()}
    return experience, metrics, weights


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_both_agree_the_update_is_the_same_to_the_bit(llama, trainer, layout):
    plain, metrics, without = learned(trainer(llama, *LAYOUTS[layout], "run.name=a"))
    assert plain.weights is None
    assert not any(name.startswith("importance/") for name in metrics)
    experience, metrics, weighed = learned(
        trainer(llama, *LAYOUTS[layout], "run.name=b"), lambda row: row
    )
    assert torch.equal(experience.weights, torch.ones_like(experience.weights))
    assert metrics["importance/logprob_difference_max"] == 0
    assert metrics["importance/kl"] == metrics["importance/truncated"] == 0
    assert metrics["importance/weight"] == 1
    assert all(torch.equal(without[name], weighed[name]) for name in without)


def test_where_they_differ_the_policy_learns_otherwise_and_the_value_alike(llama, trainer):
    _, _, without = learned(trainer(llama, "run.name=a"))
    shifted = lambda row: row + 1.2 * torch.sin(torch.arange(len(row)) * 1.7)  # noqa: E731
    experience, metrics, weighed = learned(trainer(llama, "run.name=b"), shifted)
    mask = experience.rollout.response_mask.bool()
    expected = (experience.rollout.logprobs - experience.rollout.behaviour_logprobs).exp()
    torch.testing.assert_close(experience.weights[mask], expected.clamp_max(2.0)[mask])
    assert 0 < metrics["importance/truncated"] < 0.5
    assert metrics["importance/kl"] > 0.01
    same = {name for name in without if torch.equal(without[name], weighed[name])}
    assert {name for name in without if name.startswith("value")} <= same
    assert any(name.startswith("policy") and name not in same for name in without)
    # Without a correction it is only measured.
    _, metrics, measured = learned(trainer(llama, "run.name=c", "ppo.importance_cap=null"), shifted)
    assert metrics["importance/kl"] > 0.01
    assert "importance/weight" not in metrics
    assert all(torch.equal(without[name], measured[name]) for name in without)


def test_a_cap_below_one_is_refused(llama, config):
    with pytest.raises(UserError, match=r"importance_cap.*1 or more"):
        config(llama, "ppo.importance_cap=0.5")
