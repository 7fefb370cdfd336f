"""The last layer at some positions gives what the whole layer gives there, and its gradients."""

import pytest
import torch

from ppo import top_layer
from ppo.top_layer import states_at
from ppo.trunk import lower_half, upper_half
from workbench.models import ModelSettings, load_policy

IDS = torch.arange(5, 41).view(3, 12)
ROWS, COLUMNS = torch.tensor([0, 0, 0, 1, 2, 2]), torch.tensor([2, 3, 11, 7, 0, 5])


@pytest.fixture(params=["tiny_llama", "tiny_qwen", "tiny_gpt2"])
def model(request):
    folder = request.getfixturevalue(request.param)
    return load_policy(ModelSettings(name=str(folder)), torch.float32).eval()


def test_states_and_gradients_are_those_of_the_whole_layer(model):
    base = model.base_model
    pull = torch.linspace(-1, 1, len(ROWS) * model.config.hidden_size).view(len(ROWS), -1)
    found = states_at(base, {"input_ids": IDS}, ROWS, COLUMNS)
    wanted = base(input_ids=IDS).last_hidden_state[ROWS, COLUMNS]
    assert torch.allclose(found, wanted, atol=1e-4)
    weights = dict(base.named_parameters())
    mine = torch.autograd.grad((found * pull).sum(), weights.values(), allow_unused=True)
    usual = torch.autograd.grad((wanted * pull).sum(), weights.values(), allow_unused=True)
    assert any(each is not None for each in mine)
    for name, a, b in zip(weights, mine, usual, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            assert torch.allclose(a, b, atol=1e-3, rtol=1e-3), name


@pytest.mark.parametrize("top", [1, 2])
def test_an_upper_half_reads_activations(model, top):
    depth = model.config.num_hidden_layers - top
    with torch.no_grad():
        below = lower_half(model, depth)(input_ids=IDS).last_hidden_state
        found = states_at(upper_half(model, depth), {"inputs_embeds": below}, ROWS, COLUMNS)
        wanted = model.base_model(input_ids=IDS).last_hidden_state[ROWS, COLUMNS]
    assert torch.allclose(found, wanted, atol=1e-4)


def test_many_pairs_go_through_the_fused_kernel(model, monkeypatch):
    with torch.no_grad():
        plain = states_at(model.base_model, {"input_ids": IDS}, ROWS, COLUMNS)
        monkeypatch.setattr(top_layer, "_PAIRS", 0)
        fused = states_at(model.base_model, {"input_ids": IDS}, ROWS, COLUMNS)
    assert torch.allclose(plain, fused, atol=1e-4)


def test_the_last_layer_computes_the_positions_asked_for_only(tiny_llama):
    model = load_policy(ModelSettings(name=str(tiny_llama)), torch.float32).eval()
    seen: list[int] = []
    for layer in model.base_model.layers:
        layer.mlp.register_forward_hook(lambda _, given, __: seen.append(given[0][..., 0].numel()))
    with torch.no_grad():
        states_at(model.base_model, {"input_ids": IDS}, ROWS, COLUMNS)
    # Three positions, one, and two, padded to three each.
    assert seen == [IDS.numel()] * (len(seen) - 1) + [9]


def test_later_tokens_change_nothing(model):
    other = IDS.clone()
    other[:, 8:] = 3
    asked = (torch.tensor([0, 1, 2]), torch.tensor([7, 7, 7]))
    with torch.no_grad():
        one, two = (states_at(model.base_model, {"input_ids": ids}, *asked) for ids in (IDS, other))
    assert torch.allclose(one, two, atol=1e-5)
