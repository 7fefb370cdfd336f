"""A rollout's numbers against plain forward passes of single sequences; padding changes nothing."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from ppo.backends import NativeBackend
from ppo.config import PPOModelSettings
from ppo.logprobs import token_stats
from ppo.rewards import shape_scores, token_rewards
from ppo.roles import Roles
from ppo.rollout import (
    collate,
    micro_batches,
    response_places,
    score_rollout,
    select,
    unflatten,
)
from ppo.trunk import upper_half
from tests.ppo.conftest import PROMPTS
from workbench.chat import query_ids
from workbench.config import load_config
from workbench.generation import Response, SamplingSettings
from workbench.models import ModelSettings, load_scorer, load_tokenizer
from workbench.scorer import RewardModel
from workbench.states import answer_states

CPU = torch.device("cpu")
NUMBERS = ("logprobs", "ref_logprobs", "values", "entropy", "scores", "response_mask")
LAYOUTS = {"separate": [], "shared_trunk": ["layout=shared_trunk", "train_top_layers=1"]}
# Adapters' numbers: test_lora.py.


@pytest.fixture(params=LAYOUTS)
def roles(request, family) -> Roles:
    """Roles whose policy and value have moved away from reference and reward."""
    given = [f"name={family.policy}", "precision=fp32", *LAYOUTS[request.param]]
    roles = Roles(load_config(PPOModelSettings, None, given), str(family.reward), CPU)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in roles.trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=draw))
    roles.sync_actor()
    return roles


def queries_of(family, count: int = len(PROMPTS)) -> list[list[int]]:
    tokenizer = load_tokenizer(str(family.policy))
    return [query_ids(tokenizer, text) for text in PROMPTS[:count]]


def some_answers(family) -> tuple[list[list[int]], list[Response]]:
    """Six queries, among them one with EOS inside; answers of 1 to 6 tokens, half of them ended."""
    eos = load_tokenizer(str(family.policy)).eos_token_id
    queries = queries_of(family, 6)
    queries[2] = [*queries[2][:2], eos, eos, *queries[2][2:]]
    answers = [[eos], [7, 8], [50, 51, eos], [12, 13, 13, 12], [30, 31, 32, 33, eos], [14] * 6]
    return queries, [Response(ids, ids[-1] == eos) for ids in answers]


@torch.no_grad()
def one_by_one(roles: Roles, family, queries, answers, temperature: float):
    """Log-probabilities, reference, entropy, value per row: whole models, single sequences."""
    reference = AutoModelForCausalLM.from_pretrained(family.policy, dtype=torch.float32).eval()
    critic = load_scorer(ModelSettings(name=str(family.reward)), torch.float32).eval()
    upper_half(critic, roles.depth).load_state_dict(roles.trained.value.state_dict())
    head = roles.trained.value_head
    for query, answer in zip(queries, answers, strict=True):
        ids = torch.tensor([query + answer.ids])
        before = slice(len(query) - 1, -1)
        logits = [model(input_ids=ids).logits[0, before] for model in (roles.actor, reference)]
        policy, start = (torch.distributions.Categorical(logits=x / temperature) for x in logits)
        states = critic.base_model(input_ids=ids).last_hidden_state[0, before]
        tokens = torch.tensor(answer.ids)
        values = states @ head.weight[0] + head.bias
        yield policy.log_prob(tokens), start.log_prob(tokens), policy.entropy(), values


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_every_number_equals_a_plain_forward_pass(roles, family, temperature):
    queries, answers = some_answers(family)
    rollout = score_rollout(roles, queries, answers, temperature, 4)
    plain = one_by_one(roles, family, queries, answers, temperature)
    for i, (logprobs, ref_logprobs, entropy, values) in enumerate(plain):
        n = len(answers[i].ids)
        assert rollout.response_mask[i].tolist() == [1.0] * n + [0.0] * (6 - n)
        assert torch.allclose(rollout.logprobs[i, :n], logprobs, atol=1e-5)
        assert torch.allclose(rollout.ref_logprobs[i, :n], ref_logprobs, atol=1e-5)
        assert torch.allclose(rollout.entropy[i, :n], entropy, atol=1e-5)
        assert torch.allclose(rollout.values[i, :n], values, atol=1e-5)
    kept = rollout.response_mask.bool()
    assert (rollout.logprobs - rollout.ref_logprobs)[kept].abs().max() > 0.01


def test_scores_are_the_reward_models(roles, family):
    queries, answers = some_answers(family)
    rollout = score_rollout(roles, queries, answers, 1.0, 4)
    reward = RewardModel.load(ModelSettings(name=str(family.reward), precision="fp32"))
    rows = [query + answer.ids for query, answer in zip(queries, answers, strict=True)]
    assert torch.allclose(rollout.scores, torch.tensor(reward.score_tokens(rows)), atol=1e-5)
    # EOS is read: without it the same answer has another score.
    cut = reward.score_tokens([queries[4] + answers[4].ids[:-1]])[0]
    assert abs(cut - float(rollout.scores[4])) > 1e-3


def test_padding_and_micro_batches_change_nothing(roles, family):
    queries, answers = some_answers(family)
    apart = score_rollout(roles, queries, answers, 1.0, 1)
    # A long stranger in the same micro-batch widens both query and response.
    stranger = [9] * 90, Response([11] * 14, finished=False)
    wide = score_rollout(roles, [*queries, stranger[0]], [*answers, stranger[1]], 1.0, 8)
    for name in NUMBERS:
        mine, other = getattr(apart, name), getattr(wide, name)[:6]
        if mine.dim() == 2:
            assert not other[:, 6:].any()
            other = other[:, :6]
        assert torch.allclose(mine, other, atol=1e-5), name
    order = [3, 0, 5, 1, 4, 2]
    mixed = score_rollout(roles, [queries[i] for i in order], [answers[i] for i in order], 1.0, 2)
    for name in NUMBERS:
        assert torch.allclose(getattr(apart, name)[order], getattr(mixed, name), atol=1e-5), name
    assert mixed.finished.tolist() == [answers[i].finished for i in order]


@pytest.mark.parametrize("layout", ["shared_trunk", "lora"])
def test_what_sampling_kept_is_not_computed_again(family, monkeypatch, layout):
    given = [f"name={family.policy}", "precision=fp32", f"layout={layout}", "train_top_layers=1"]
    roles = Roles(load_config(PPOModelSettings, None, given), str(family.reward), CPU)
    queries, eos = queries_of(family), load_tokenizer(str(family.policy)).eos_token_id
    answers = NativeBackend(roles, eos).sample(queries, SamplingSettings(max_new_tokens=8), 0)
    assert all(answer.states is not None for answer in answers)
    plain = [replace(answer, states=None) for answer in answers]
    anew = score_rollout(roles, queries, plain, 1.0, 4)
    monkeypatch.setattr(Roles, "activations", lambda *_: pytest.fail("computed again"))
    kept = score_rollout(roles, queries, answers, 1.0, 4)
    for name in NUMBERS:
        assert torch.allclose(getattr(anew, name), getattr(kept, name), atol=2e-5), name
    for mine, other, answer in zip(kept.hidden, anew.hidden, answers, strict=True):
        assert mine is answer.states  # not a second copy
        assert (mine - other).abs().max() < 3e-6 * other.abs().max()
    cut = replace(answers[0], ids=answers[0].ids[:-1] or [5, 6])  # its states are of other tokens
    for other in (plain[0], cut):
        with pytest.raises(pytest.fail.Exception):
            score_rollout(roles, queries, [other, *answers[1:]], 1.0, 4)


def test_no_states_are_kept_where_no_trunk_is_shared(family):
    given = [f"name={family.policy}", "precision=fp32", "layout=lora"]
    roles = Roles(load_config(PPOModelSettings, None, given), str(family.reward), CPU)
    answers = NativeBackend(roles, 0).sample([[5, 6]], SamplingSettings(max_new_tokens=3), 0)
    assert answers[0].states is None


@torch.no_grad()
def test_left_right_and_no_padding_give_the_same_logprobs(family):
    """Scoring pads on the right, decoding on the left; where neither pads, the same numbers."""
    model = AutoModelForCausalLM.from_pretrained(family.policy, dtype=torch.float32).eval()
    queries, answers = some_answers(family)
    head, longest = model.get_output_embeddings(), max(len(a.ids) for a in answers)
    right = collate(queries, answers, None, CPU)
    assert (right.attention_mask[:, -1] == 0).any()
    states = model.base_model(
        input_ids=right.input_ids, attention_mask=right.attention_mask
    ).last_hidden_state[right.rows, right.columns - 1]
    tokens = right.input_ids[right.rows, right.columns]
    flat = token_stats(states, head, tokens, 1.0).logprobs
    padded_right = flat.split([len(answer.ids) for answer in answers])
    seen = set()
    for index, hidden in answer_states(model, queries, [a.ids for a in answers], 8):
        for row, i in enumerate(index):
            n = len(answers[i].ids)
            tokens = torch.tensor(answers[i].ids)
            left = token_stats(hidden[row, :n], head, tokens, 1.0).logprobs
            ids = torch.tensor([queries[i] + answers[i].ids])
            logits = model(input_ids=ids).logits[0, len(queries[i]) - 1 : -1]
            none = torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]
            assert torch.allclose(left, none, atol=1e-5)
            assert torch.allclose(padded_right[i], none, atol=1e-5)
            seen.add((len(queries[i]), n))
    assert len(seen) == 6
    assert longest == 6


def test_padded_ids_are_never_read(roles, family):
    """Whatever id stands on padding, EOS = PAD or any other, the numbers are the same."""
    queries, answers = some_answers(family)
    batch = collate(queries, answers, None, CPU)
    results = []
    for pad in (0, load_tokenizer(str(family.policy)).eos_token_id, 77):
        ids = batch.input_ids.masked_fill(batch.attention_mask == 0, pad)
        filled = batch._replace(input_ids=ids, hidden=roles.activations(ids, batch.attention_mask))
        with torch.no_grad():
            stats, values = roles.trained(filled, 1.0)
        results.append(torch.cat([stats.logprobs, values, roles.scores(filled)]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_score_lands_on_the_last_token_of_finished_and_cut_answers(roles, family):
    queries, answers = some_answers(family)
    rollout = score_rollout(roles, queries, answers, 1.0, 4)
    assert rollout.finished.tolist() == [True, False, True, False, True, False]
    shaped = shape_scores(
        rollout.scores, rollout.response_mask.sum(-1), rollout.finished, missing_eos_penalty=2.0
    )
    rewards = token_rewards(
        shaped, rollout.logprobs, rollout.ref_logprobs, rollout.response_mask, kl_coef=0.0
    )
    for i, answer in enumerate(answers):
        expected = torch.zeros(6)
        expected[len(answer.ids) - 1] = rollout.scores[i] - (0.0 if answer.finished else 2.0)
        assert torch.equal(rewards[i], expected)


def test_kept_activations_give_the_same_numbers_again(roles, family):
    queries, answers = some_answers(family)
    rollout = score_rollout(roles, queries, answers, 1.0, 4)
    index = [5, 0, 3]
    batch = select(rollout, index, CPU)
    assert (rollout.hidden is None) == (batch.hidden is None) == (roles.depth == 0)
    if rollout.hidden is not None:
        lengths = [len(q) + len(a.ids) for q, a in zip(queries, answers, strict=True)]
        assert [len(states) for states in rollout.hidden] == lengths
    with torch.no_grad():
        stats, values = roles.trained(batch, 1.0)
    chosen = [queries[i] for i in index]
    width = rollout.logprobs.shape[1]
    spread = unflatten(stats.logprobs, batch, chosen, width)
    assert torch.allclose(spread, rollout.logprobs[index], atol=1e-5)
    spread = unflatten(values, batch, chosen, width)
    assert torch.allclose(spread, rollout.values[index], atol=1e-5)


def test_collate_marks_exactly_the_response_tokens():
    queries = [[1, 2, 3], [4], [5, 6]]
    answers = [Response([10], True), Response([20, 21, 22, 23], False), Response([30, 31], True)]
    batch = collate(queries, answers, None, CPU)
    assert batch.input_ids.tolist() == [[1, 2, 3, 10, 0], [4, 20, 21, 22, 23], [5, 6, 30, 31, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0], [1] * 5, [1, 1, 1, 1, 0]]
    places = list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
    assert places == [(0, 3), (1, 1), (1, 2), (1, 3), (1, 4), (2, 2), (2, 3)]
    rows, columns = response_places(batch, queries)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [
        (0, 0), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)
    ]  # fmt: skip
    flat = torch.arange(1.0, 8.0, requires_grad=True)
    spread = unflatten(flat, batch, queries, 5)
    assert spread.tolist() == [[1, 0, 0, 0, 0], [2, 3, 4, 5, 0], [6, 7, 0, 0, 0]]
    (spread * torch.arange(15.0).view(3, 5)).sum().backward()
    assert flat.grad.tolist() == [0, 5, 6, 7, 8, 10, 11]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 9))
def test_micro_batches_hold_every_row_once_and_like_lengths_together(lengths, size):
    parts = list(micro_batches(lengths, size))
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(len(part) == size for part in parts[:-1])
    longest = [max(lengths[i] for i in part) for part in parts]
    shortest = [min(lengths[i] for i in part) for part in parts]
    assert all(a <= b for a, b in zip(longest[:-1], shortest[1:], strict=True))
