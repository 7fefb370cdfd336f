"""The norm with its own gradient is transformers', for values and gradients."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from ppo.norms import RMSNorm, quick_norms
from workbench.models import ModelSettings, load_policy


def pair(dtype: torch.dtype) -> tuple[RMSNorm, LlamaRMSNorm]:
    usual = LlamaRMSNorm(8, eps=1e-3)
    with torch.no_grad():
        usual.weight.copy_(torch.linspace(0.2, 2.0, 8))
    usual = usual.to(dtype)
    return RMSNorm(torch.nn.Parameter(usual.weight.detach().clone()), 1e-3), usual


def states(dtype: torch.dtype) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 8, generator=draw).to(dtype).requires_grad_(True)


def test_it_gives_the_same_bits_and_gradients_in_float32():
    mine, usual = pair(torch.float32)
    one, other = states(torch.float32), states(torch.float32)
    assert torch.equal(mine(one), usual(other))
    pull = torch.linspace(-1, 1, 48).view(2, 3, 8)
    mine(one).backward(pull)
    usual(other).backward(pull)
    assert torch.allclose(one.grad, other.grad, atol=1e-6)
    assert torch.allclose(mine.weight.grad, usual.weight.grad, atol=1e-6)
    assert other.grad.abs().max() > 0.1


def test_its_gradient_is_the_slope():
    found = states(torch.float32)
    norm = RMSNorm(torch.nn.Parameter(torch.linspace(0.2, 2.0, 8)), 1e-3)

    def wide(x, w):
        factor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3)
        return w * x * factor

    wanted = torch.autograd.grad(wide(found, norm.weight).sin().sum(), [found, norm.weight])
    mine = torch.autograd.grad(norm(found).sin().sum(), [found, norm.weight])
    for a, b in zip(mine, wanted, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_bf16_states_stay_bf16_under_float32_weights():
    mine, _ = pair(torch.float32)
    found = states(torch.bfloat16)
    out = mine(found)
    out.sum().backward()
    assert (out.dtype, found.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    assert mine.weight.grad.dtype == torch.float32
    exact = mine(found.detach().float())
    assert torch.allclose(out.float(), exact, rtol=0.01)


def test_a_frozen_norm_passes_gradients_on():
    mine, usual = pair(torch.float32)
    mine.weight.requires_grad_(False)
    one, other = states(torch.float32), states(torch.float32)
    mine(one).square().sum().backward()
    usual(other).square().sum().backward()
    assert mine.weight.grad is None
    assert torch.allclose(one.grad, other.grad, atol=1e-6)


@pytest.mark.parametrize("kind", ["tiny_llama", "tiny_qwen"])
def test_a_model_keeps_its_names_and_its_answers(request, kind):
    settings = ModelSettings(name=str(request.getfixturevalue(kind)))
    model = load_policy(settings, torch.float32).eval()
    names, ids = list(model.state_dict()), torch.arange(5, 25)[None]
    before = model(ids).logits
    quick_norms(model)
    assert list(model.state_dict()) == names
    assert sum(isinstance(module, RMSNorm) for module in model.modules()) > 4
    assert torch.equal(model(ids).logits, before)
