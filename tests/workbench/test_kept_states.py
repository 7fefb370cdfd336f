"""States kept while sampling are those of a pass over the whole sequence, for every token."""

from dataclasses import replace

import pytest
import torch

from ppo.trunk import lower_half
from workbench.generation import SamplingSettings, generate
from workbench.models import ModelSettings, load_policy

# Of several lengths, so that some are padded; two alike, which are read once.
QUERIES = [[7, 8, 9, 10, 11], [12, 13], [7, 8, 9, 10, 11], [14, 15, 16], [17], [18, 19]]
SETTINGS = SamplingSettings(max_new_tokens=12, batch_size=4)


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", "tiny_qwen"])
def model(request):
    folder = request.getfixturevalue(request.param)
    return load_policy(ModelSettings(name=str(folder)), torch.float32).eval()


def answers(model, eos: int, depth: int, settings: SamplingSettings = SETTINGS):
    return generate(model, QUERIES, settings, eos_token_id=eos, seed=3, keep_depth=depth)


def a_frequent_token(model) -> int:
    """A token that ends some answers early and others not at all."""
    ids = [set(answer.ids[:9]) for answer in answers(model, -1, 0)]
    return max(set.union(*ids), key=lambda token: sum(token in each for each in ids))


@torch.no_grad()
def by_one_pass(model, query, answer, depth):
    part = lower_half(model, depth)
    return part(input_ids=torch.tensor([query + answer.ids]), use_cache=False).last_hidden_state[0]


@pytest.mark.parametrize("eos", ["none", "early"])
def test_they_equal_one_pass_over_query_and_answer(model, eos):
    stop, layers = -1 if eos == "none" else a_frequent_token(model), model.config.num_hidden_layers
    for depth in (1, layers):
        found = answers(model, stop, depth)
        for query, answer in zip(QUERIES, found, strict=True):
            assert answer.states.shape == (len(query + answer.ids), model.config.hidden_size)
            wanted = by_one_pass(model, query, answer, depth)
            # Of the size of their rounding: these models' states go up to 60.
            assert (answer.states - wanted).abs().max() < 3e-6 * wanted.abs().max()
    lengths = {len(answer.ids) for answer in found}
    assert lengths == {12} if eos == "none" else len(lengths) > 1
    assert len({answer.finished for answer in found}) == (1 if eos == "none" else 2)


def test_keeping_them_changes_no_answer(model):
    stop = a_frequent_token(model)
    plain, kept = answers(model, stop, 0), answers(model, stop, 1)
    assert [answer.ids for answer in plain] == [answer.ids for answer in kept]
    assert all(answer.states is None for answer in plain)
    assert plain == kept  # what a caller compares is the answer


def test_they_can_be_learned_from(model):
    states = answers(model, -1, 1)[0].states
    weight = torch.ones(states.shape[-1], requires_grad=True)
    (states * weight).sum().backward()  # refused for tensors of inference mode
    assert torch.allclose(weight.grad, states.sum(0))


def test_answers_of_one_token_are_left_to_a_pass_of_their_own(model):
    found = answers(model, -1, 1, replace(SETTINGS, max_new_tokens=1))
    assert [len(answer.ids) for answer in found] == [1] * len(QUERIES)
    assert all(answer.states is None for answer in found)
