"""The clipped losses by hand, their gradients, and the masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.losses import explained_variance, masked_mean, policy_loss, value_loss


def test_policy_loss_by_hand():
    old = torch.zeros(1, 4)
    new = torch.log(torch.tensor([[1.5, 0.5, 1.5, 1.1]]))
    advantages = torch.tensor([[1.0, 1.0, -1.0, -2.0]])
    loss = policy_loss(new, old, advantages, torch.ones(1, 4), 0.2)
    # max(-A·ratio, -A·clip(ratio)): -1.2 (clipped), -0.5, 1.5, 2.2
    assert float(loss.loss) == pytest.approx(-1.2 - 0.5 + 1.5 + 2.2)
    assert int(loss.clipped) == 1
    assert float(loss.ratio) == pytest.approx(4.6)
    assert float(loss.approx_kl) == pytest.approx(
        sum(math.log(r) ** 2 / 2 for r in (1.5, 0.5, 1.5, 1.1)), rel=1e-5
    )


def test_gradient_at_ratio_one_is_minus_the_advantage():
    new = torch.full((1, 3), -1.0, requires_grad=True)
    advantages = torch.tensor([[2.0, -3.0, 0.5]])
    policy_loss(new, new.detach(), advantages, torch.ones(1, 3), 0.2).loss.backward()
    torch.testing.assert_close(new.grad, -advantages)


def test_clipped_tokens_have_no_gradient_and_recovering_ones_do():
    new = torch.log(torch.tensor([[1.5, 0.5, 1.5, 0.5]])).requires_grad_()
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    policy_loss(new, torch.zeros(1, 4), advantages, torch.ones(1, 4), 0.2).loss.backward()
    assert new.grad[0, 0] == 0  # already raised enough
    assert new.grad[0, 1] == 0  # already lowered enough
    assert new.grad[0, 2] != 0  # moved the wrong way: pulled back
    assert new.grad[0, 3] != 0


def test_value_loss_by_hand():
    values, old = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.9, 1.0]])
    loss = value_loss(values, old, torch.tensor([[2.0, 3.0]]), torch.ones(1, 2), 0.2)
    # First: within the clip, (1-2)². Second: clipped to 1.2, (1.2-3)² beats (3-3)².
    assert float(loss.loss) == pytest.approx((1.0 + 1.8**2) / 2)
    assert int(loss.clipped) == 1


@pytest.mark.parametrize("junk", [0.0, 7.0, float("nan"), float("inf")])
def test_padding_changes_neither_losses_nor_gradients(junk):
    torch.manual_seed(0)
    tensors = [torch.randn(2, 5) for _ in range(4)]
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    spoilt = [t.masked_fill(mask == 0, junk) for t in tensors]
    grads = []
    for rows in (tensors, spoilt):
        new = rows[0].clone().requires_grad_()
        policy = policy_loss(new, rows[1], rows[2], mask, 0.2)
        value = value_loss(new, rows[1], rows[3], mask, 0.2)
        (policy.loss + value.loss).backward()
        grads.append((float(policy.loss), float(value.loss), float(policy.approx_kl), new.grad))
    assert grads[0][:3] == pytest.approx(grads[1][:3])
    torch.testing.assert_close(grads[0][3][mask == 1], grads[1][3][mask == 1])
    assert torch.isfinite(grads[1][3]).all()


def test_micro_batches_add_up_to_the_whole():
    torch.manual_seed(0)
    new, old, advantages = (torch.randn(6, 4) for _ in range(3))
    mask = torch.tensor([[1.0] * n + [0.0] * (4 - n) for n in (1, 4, 2, 3, 4, 1)])
    whole = policy_loss(new, old, advantages, mask, 0.2)
    parts = [
        policy_loss(new[k : k + 1], old[k : k + 1], advantages[k : k + 1], mask[k : k + 1], 0.2)
        for k in range(6)
    ]
    assert sum(float(p.loss) for p in parts) == pytest.approx(float(whole.loss), rel=1e-5)
    assert sum(int(p.tokens) for p in parts) == int(whole.tokens) == 15


def test_a_runaway_ratio_stays_finite():
    loss = policy_loss(
        torch.tensor([[500.0]]), torch.zeros(1, 1), torch.tensor([[-1.0]]), torch.ones(1, 1), 0.2
    )
    assert torch.isfinite(loss.loss)


def test_explained_variance():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[1.0, 1, 1, 0]])
    assert float(explained_variance(returns, returns, mask)) == pytest.approx(1.0)
    assert float(explained_variance(torch.full((1, 4), 2.0), returns, mask)) == pytest.approx(
        0.0, abs=1e-6
    )
    assert float(explained_variance(-returns, returns, mask)) < 0


def test_explained_variance_over_processes_is_that_of_all_tokens_together():
    draw = torch.Generator().manual_seed(0)
    returns, values = (torch.randn(6, 5, generator=draw) for _ in range(2))
    mask = (torch.rand(6, 5, generator=draw) > 0.3).float()
    whole = explained_variance(values, returns, mask)
    parts = []  # what each of two processes would add up
    for half in (slice(0, 1), slice(1, 6)):

        def keep(sums):
            parts.append(sums)
            return sums

        explained_variance(values[half], returns[half], mask[half], keep)
    both = explained_variance(values[:1], returns[:1], mask[:1], lambda _: parts[0] + parts[1])
    assert float(both) == pytest.approx(float(whole))


def test_masked_mean_is_the_mean_of_what_is_kept():
    assert (
        float(masked_mean(torch.tensor([[1.0, 3.0, float("nan")]]), torch.tensor([[1.0, 1, 0]])))
        == 2.0
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.floats(0.01, 0.9),
    st.integers(0, 2**31),
)
def test_losses_are_their_definitions_token_by_token(lengths, cliprange, seed):
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths) + 1
    new, old, advantages, returns = (
        torch.randn(len(lengths), width, generator=draw, dtype=torch.float64) for _ in range(4)
    )
    mask = torch.tensor([[1.0] * n + [0.0] * (width - n) for n in lengths])
    policy = policy_loss(new, old, advantages, mask, cliprange)
    value = value_loss(new, old, returns, mask, cliprange)
    sums = dict.fromkeys(("policy", "clipped", "kl", "ratio", "value", "limited"), 0.0)
    for row, length in enumerate(lengths):
        for t in range(length):
            a, v, v0 = float(advantages[row, t]), float(new[row, t]), float(old[row, t])
            target, ratio = float(returns[row, t]), math.exp(v - v0)
            near = min(max(ratio, 1 - cliprange), 1 + cliprange)
            sums["policy"] -= min(a * ratio, a * near)
            sums["clipped"] += a * near < a * ratio
            sums["kl"] += (v - v0) ** 2 / 2
            sums["ratio"] += ratio
            limited = min(max(v, v0 - cliprange), v0 + cliprange)
            sums["value"] += max((v - target) ** 2, (limited - target) ** 2) / 2
            sums["limited"] += (limited - target) ** 2 > (v - target) ** 2
    found = [policy.loss, policy.clipped, policy.approx_kl, policy.ratio, value.loss, value.clipped]
    assert [float(x) for x in found] == pytest.approx(list(sums.values()), rel=1e-9, abs=1e-9)
    assert int(policy.tokens) == sum(lengths)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 30), st.floats(-3, 3), st.floats(-2, 2), st.integers(0, 2**31))
def test_explained_variance_is_what_a_regression_explains(count, shift, slope, seed):
    """Values that are `slope` times the returns, off by a constant: 1 - (1 - slope)²."""
    draw = torch.Generator().manual_seed(seed)
    returns = torch.randn(1, count, generator=draw, dtype=torch.float64)
    mask = torch.ones(1, count)
    found = float(explained_variance(slope * returns + shift, returns, mask))
    assert found == pytest.approx(1 - (1 - slope) ** 2, abs=1e-4)
