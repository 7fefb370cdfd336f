"""Where the score lands, what the KL costs, and that padding cannot matter."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppo.rewards import RunningMoments, shape_scores, token_rewards

SCORES = torch.tensor([2.0, -1.0])
LOGPROBS = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, -0.25, 0.0]])
REFERENCE = torch.tensor([[-1.5, -1.0, -3.0], [-0.5, -1.25, 0.0]])
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])


def test_score_is_added_at_the_last_real_token_and_kl_at_every_token():
    rewards = token_rewards(SCORES, LOGPROBS, REFERENCE, MASK, kl_coef=0.1)
    expected = torch.tensor([[-0.05, 0.1, 2.0], [0.0, -0.1 - 1.0, 0.0]])
    torch.testing.assert_close(rewards, expected)


def test_sum_of_rewards_is_score_minus_beta_kl():
    rewards = token_rewards(SCORES, LOGPROBS, REFERENCE, MASK, kl_coef=0.3)
    kl = ((LOGPROBS - REFERENCE) * MASK).sum(-1)
    torch.testing.assert_close(rewards.sum(-1), SCORES - 0.3 * kl)


def test_padding_of_any_width_and_content_changes_nothing():
    plain = token_rewards(SCORES, LOGPROBS, REFERENCE, MASK, 0.1)
    junk = torch.tensor([[float("nan"), float("inf")], [-1e9, float("nan")]])
    wide = token_rewards(
        SCORES,
        torch.cat([LOGPROBS.masked_fill(MASK == 0, float("nan")), junk], 1),
        torch.cat([REFERENCE, junk], 1),
        torch.cat([MASK, torch.zeros(2, 2)], 1),
        0.1,
    )
    torch.testing.assert_close(wide[:, :3], plain)
    assert torch.equal(wide[:, 3:], torch.zeros(2, 2))


NINES, ENDED = torch.tensor([9.0, 9.0]), torch.tensor([True, False])
LENGTHS = torch.tensor([3.0, 10.0])


def test_missing_eos_is_penalised_after_clipping():
    def shaped(scores, penalty, clip, how="subtract"):
        given = {"clip": clip, "missing_eos_penalty": penalty, "missing_eos": how}
        return shape_scores(torch.tensor(scores), LENGTHS, ENDED, **given).tolist()

    assert shaped([9.0, 9.0], 1.0, 5.0) == [5.0, 4.0]
    assert shaped([9.0, 9.0], None, None) == [9.0, 9.0]
    assert shaped([-9.0, 1.0], 2.0, 5.0) == [-5.0, -1.0]
    assert shaped([9.0, 9.0], 1.5, 5.0, "replace") == [5.0, -1.5]


def test_length_costs_by_the_token_and_is_not_clipped_away():
    scores = shape_scores(NINES, LENGTHS, ENDED, clip=5.0, length_penalty=0.1)
    torch.testing.assert_close(scores, torch.tensor([4.7, 4.0]))


def test_running_moments_are_those_of_everything_seen():
    batches = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * n for n in (1, 4, 9)]
    moments = RunningMoments()
    for batch in batches:
        moments.update(batch)
    everything = torch.cat(batches).double()
    assert moments.mean == pytest.approx(float(everything.mean()))
    assert moments.std == pytest.approx(float(everything.std()))
    torch.testing.assert_close(
        moments(everything), (everything - everything.mean()) / everything.std()
    )


def test_running_moments_over_processes_are_those_of_one():
    """Two processes of equal batches: the reduced sums are twice their own."""
    halves = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([-3.0, 0.0, 9.0])]
    whole = RunningMoments()
    whole.update(torch.cat(halves))
    # What the other process adds to the two sums that are reduced, in their order.
    other = halves[1].double()
    added = iter(
        [
            torch.stack([torch.tensor(3.0).double(), other.sum()]),
            (other - whole.mean).square().sum(),
        ]
    )
    one = RunningMoments()
    one.update(halves[0], lambda total: total + next(added))
    assert one.state_dict() == pytest.approx(whole.state_dict())


def test_moments_survive_a_checkpoint_and_one_score_has_no_spread():
    moments = RunningMoments()
    moments.update(torch.tensor([3.0]))
    assert moments(torch.tensor([3.0, 5.0])).tolist() == [0.0, 2.0]
    again = RunningMoments()
    again.load_state_dict(moments.state_dict())
    assert again.state_dict() == moments.state_dict()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.floats(0, 2),
    st.sampled_from(["k1", "k2", "k3"]),
    st.integers(0, 2**31),
)
def test_token_rewards_are_their_definition(lengths, beta, estimator, seed):
    draw = torch.Generator().manual_seed(seed)
    width = max(lengths) + 1
    shape = len(lengths), width
    logprobs, reference = (-torch.rand(shape, generator=draw).double() * 9 for _ in range(2))
    scores = torch.randn(len(lengths), generator=draw).double()
    mask = torch.tensor([[1.0] * n + [0.0] * (width - n) for n in lengths])
    found = token_rewards(scores, logprobs, reference, mask, beta, estimator)
    for row, length in enumerate(lengths):
        for t in range(width):
            log_r = float(reference[row, t] - logprobs[row, t])
            kl = {"k1": -log_r, "k2": log_r**2 / 2, "k3": math.exp(log_r) - 1 - log_r}[estimator]
            expected = 0.0 if t >= length else -beta * kl
            expected += float(scores[row]) if t == length - 1 else 0.0
            assert float(found[row, t]) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.floats(-20, 20), st.integers(1, 50), st.booleans()), min_size=1, max_size=8
    ),
    st.none() | st.floats(0.1, 10),
    st.floats(0, 1),
    st.none() | st.floats(0, 5),
    st.sampled_from(["subtract", "replace"]),
)
def test_shaped_scores_are_their_definition(answers, clip, length_penalty, penalty, how):
    scores, lengths, finished = zip(*answers, strict=True)
    found = shape_scores(
        torch.tensor(scores, dtype=torch.float64), torch.tensor(lengths, dtype=torch.float64),
        torch.tensor(finished),
        clip=clip, length_penalty=length_penalty, missing_eos_penalty=penalty, missing_eos=how,
    )  # fmt: skip
    for (score, length, done), value in zip(answers, found.tolist(), strict=True):
        expected = score if clip is None else min(clip, max(-clip, score))
        expected -= length_penalty * length
        if not done and penalty is not None:
            expected = -penalty if how == "replace" else expected - penalty
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)
