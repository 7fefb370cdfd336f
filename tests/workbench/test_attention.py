"""Attention on a CPU gives what the usual kernels give, for values and for gradients."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from workbench import attention
from workbench.attention import CAUSAL, causal_attention, grouped_attention, prefer_causal
from workbench.models import ModelSettings, load_policy

MODULE = SimpleNamespace(num_key_value_groups=3, is_causal=True)


def heads(count: int, length: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, length, 8, generator=draw).to(dtype).requires_grad_(True)


def expected(query, key, value, **options) -> torch.Tensor:
    key, value = (each.repeat_interleave(3, dim=1) for each in (key, value))
    return scaled_dot_product_attention(query, key, value, **options).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal_attention_is_attention_to_what_came_before(dtype):
    given = heads(6, 9, 0, dtype), heads(2, 9, 1, dtype), heads(2, 9, 2, dtype)
    slack = 1e-5 if dtype == torch.float32 else 0.05
    found, weights = causal_attention(MODULE, *given, None, scaling=0.3)
    wanted = expected(*given, is_causal=True, scale=0.3)
    assert weights is None
    assert found.dtype == dtype
    assert torch.allclose(found, wanted, atol=slack)
    pull = torch.randn_like(wanted)
    for mine, usual in zip(
        torch.autograd.grad(found, given, pull),
        torch.autograd.grad(wanted, given, pull),
        strict=True,
    ):
        assert torch.allclose(mine, usual, atol=slack)


def test_masks_and_long_texts_go_the_usual_way(monkeypatch):
    given = heads(6, 9, 0), heads(2, 9, 1), heads(2, 9, 2)
    mask = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(3)) > 0.4
    mask |= torch.eye(9, dtype=torch.bool)
    found, _ = causal_attention(MODULE, *given, mask, scaling=0.3)
    assert torch.allclose(found, expected(*given, attn_mask=mask, scale=0.3), atol=1e-5)
    monkeypatch.setattr(attention, "_SHORT", 8)
    monkeypatch.setattr(torch, "baddbmm", None)  # not called for a longer text
    found, _ = causal_attention(MODULE, *given, None, scaling=0.3)
    assert torch.allclose(found, expected(*given, is_causal=True, scale=0.3), atol=1e-5)


def test_one_new_token_sees_all_keys_of_its_group():
    query, key, value = heads(6, 1, 0), heads(2, 9, 1), heads(2, 9, 2)
    mask = torch.ones(2, 1, 1, 9, dtype=torch.bool)
    mask[0, ..., :4] = False
    found, _ = grouped_attention(MODULE, query, key, value, mask, scaling=0.3)
    assert torch.allclose(found, expected(query, key, value, attn_mask=mask, scale=0.3), atol=1e-5)


def test_a_model_gives_the_same_states_with_it(tiny_llama, tiny_gpt2, tiny_qwen):
    for folder in (tiny_llama, tiny_gpt2, tiny_qwen):
        model = load_policy(ModelSettings(name=str(folder)), torch.float32).eval()
        ids = torch.arange(5, 65)[None]
        with torch.no_grad():
            usual = model(ids).logits
            prefer_causal(model)
            assert model.config._attn_implementation == CAUSAL
            assert torch.allclose(model(ids).logits, usual, atol=1e-4)


def test_a_kernel_the_user_chose_stays(tiny_llama):
    settings = ModelSettings(name=str(tiny_llama), attn_implementation="eager")
    model = load_policy(settings, torch.float32)
    prefer_causal(model)
    assert model.config._attn_implementation == "eager"
