"""KL estimators against the exact KL of a small vocabulary; controllers against their formula."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.kl import AdaptiveKL, FixedKL, kl_per_token


@pytest.fixture
def distributions():
    torch.manual_seed(0)
    policy = torch.log_softmax(torch.randn(7) * 2, -1).double()
    reference = torch.log_softmax(torch.randn(7) * 2, -1).double()
    return policy, reference


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_expectation_under_the_policy_is_the_exact_kl(distributions, estimator):
    policy, reference = distributions
    exact = (policy.exp() * (policy - reference)).sum()
    # The expectation over all 7 tokens, not a sample of them.
    expected = (policy.exp() * kl_per_token(policy, reference, estimator)).sum()
    torch.testing.assert_close(expected, exact)
    swapped = (policy.exp() * kl_per_token(reference, policy, estimator)).sum()
    assert abs(float(swapped - exact)) > 0.1  # the ratio upside down is another number


def test_k2_is_half_the_squared_log_ratio(distributions):
    policy, reference = distributions
    torch.testing.assert_close(kl_per_token(policy, reference, "k2"), (policy - reference) ** 2 / 2)


def test_k3_is_never_negative_and_k1_can_be(distributions):
    policy, reference = distributions
    assert (kl_per_token(policy, reference, "k3") >= 0).all()
    assert (kl_per_token(policy, reference, "k1") < 0).any()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_equal_distributions_have_no_kl(estimator):
    logprobs = torch.tensor([-0.3, -2.0, -9.0])
    assert torch.equal(kl_per_token(logprobs, logprobs, estimator), torch.zeros(3))


def test_adaptive_controller_follows_the_formula_and_clips_the_error():
    control = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    control.update(6.6, episodes=100)  # error 0.1
    assert control.coef == pytest.approx(0.1 * (1 + 0.1 * 100 / 1000))
    control = AdaptiveKL(coef=0.1, target=6.0, horizon=1000)
    control.update(600.0, episodes=100)  # error clipped to 0.2
    assert control.coef == pytest.approx(0.1 * 1.02)
    control.update(0.0, episodes=100)  # error clipped to -0.2
    assert control.coef == pytest.approx(0.1 * 1.02 * 0.98)


def test_adaptive_controller_finds_the_target():
    # A world in which KL falls as the coefficient rises: the controller must settle at the target.
    control = AdaptiveKL(coef=1.0, target=6.0, horizon=500)
    for _ in range(2000):
        control.update(3.0 / control.coef, episodes=50)
    assert 3.0 / control.coef == pytest.approx(6.0, rel=0.02)


def test_fixed_controller_stays():
    control = FixedKL(0.05)
    control.update(1e9, episodes=512)
    assert control.coef == 0.05


def gradients(logits: torch.Tensor, reference: torch.Tensor, rewards: torch.Tensor, estimator):
    """Of E[reward - β·k] as PPO takes it, summed over all tokens, and of E[reward] - β·KL."""
    logits = logits.clone().requires_grad_()
    logprobs = torch.log_softmax(logits, -1)
    chances, beta = logprobs.exp(), 0.4
    payoff = rewards - beta * kl_per_token(logprobs, reference, estimator)
    taken = torch.autograd.grad(
        (chances.detach() * logprobs * payoff.detach()).sum(), logits, retain_graph=True
    )[0]
    wanted = (chances * rewards).sum() - beta * (chances * (logprobs - reference)).sum()
    return taken, torch.autograd.grad(wanted, logits)[0]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_only_k1_in_the_reward_gives_the_gradient_of_the_kl(distributions, estimator):
    policy, reference = distributions
    rewards = torch.linspace(-1, 1, 7).double().roll(3)
    taken, wanted = gradients(policy, reference, rewards, estimator)
    assert torch.allclose(taken, wanted, atol=1e-12) == (estimator == "k1")
    # At the optimum, π ∝ π_ref·exp(r/β), learning rests with k1 alone.
    rest, _ = gradients(reference + rewards / 0.4, reference, rewards, estimator)
    assert (float(rest.abs().max()) < 1e-12) == (estimator == "k1")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=8),
    st.sampled_from(["k1", "k2", "k3"]),
)
def test_estimators_are_their_formulas(pairs, estimator):
    found = kl_per_token(*torch.tensor(pairs, dtype=torch.float64).T, estimator)
    for (logprob, ref_logprob), value in zip(pairs, found.tolist(), strict=True):
        r = math.exp(ref_logprob - logprob)
        formula = {"k1": -math.log(r), "k2": math.log(r) ** 2 / 2, "k3": r - 1 - math.log(r)}
        assert value == pytest.approx(formula[estimator], rel=1e-9, abs=1e-9)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.floats(1e-3, 1), st.floats(0.1, 20), st.integers(100, 10_000), st.floats(-5, 100),
    st.integers(1, 512),
)  # fmt: skip
def test_the_adaptive_coefficient_rises_above_the_target_and_falls_below(
    coef, target, horizon, kl, episodes
):
    control = AdaptiveKL(coef, target, horizon)
    control.update(kl, episodes)
    change = control.coef / coef - 1
    assert abs(change) <= 0.2 * episodes / horizon + 1e-9
    assert change * (kl - target) >= 0
    if abs(kl / target - 1) < 0.2:
        assert change == pytest.approx((kl / target - 1) * episodes / horizon, abs=1e-9)
