"""Log-probabilities and entropy against plain softmax, and the gradient of both ways to it."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ppo import logprobs as module
from ppo.logprobs import check_logits, token_stats
from workbench.errors import UserError
from workbench.models import ModelSettings, load_policy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_token_stats_are_log_softmax_and_entropy_of_plain_logits(family, monkeypatch, temperature):
    monkeypatch.setattr(module, "LOGIT_ROWS", 4)
    model = load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, 12))
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1] / temperature
        hidden = model.base_model(input_ids=ids).last_hidden_state[0, :-1]
        stats = token_stats(hidden, model.get_output_embeddings(), ids[0, 1:], temperature)
    plain = torch.distributions.Categorical(logits=logits)
    assert torch.allclose(stats.logprobs, plain.log_prob(ids[0, 1:]), atol=1e-5)
    assert torch.allclose(stats.entropy, plain.entropy(), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 10, 11])
def test_token_stats_in_pieces_have_the_gradient_of_the_whole(monkeypatch, rows):
    torch.manual_seed(0)
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(6, 20, bias=False, dtype=torch.float64)
    tokens, weight = torch.randint(0, 20, (10,)), torch.randn(10)

    whole = (torch.log_softmax(head(hidden).float() / 0.7, -1)[torch.arange(10), tokens]) @ weight
    expected = torch.autograd.grad(whole, [hidden, head.weight])
    monkeypatch.setattr(module, "LOGIT_ROWS", rows)
    stats = token_stats(hidden, head, tokens, 0.7)
    found = torch.autograd.grad(stats.logprobs @ weight, [hidden, head.weight])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert not stats.entropy.requires_grad


@pytest.mark.parametrize("rows", [3, 11])
def test_a_frozen_head_gives_the_states_the_same_gradient(monkeypatch, rows):
    torch.manual_seed(0)
    monkeypatch.setattr(module, "LOGIT_ROWS", rows)
    hidden = torch.randn(10, 6, requires_grad=True)
    head = torch.nn.Linear(6, 20)
    tokens, weight = torch.randint(0, 20, (10,)), torch.randn(10)
    found = []
    for frozen in (False, True):
        head.requires_grad_(not frozen)
        stats = token_stats(hidden, head, tokens, 0.7)
        found.append(torch.autograd.grad(stats.logprobs @ weight, hidden)[0])
    assert torch.allclose(*found, atol=1e-6)
    plain = torch.log_softmax(head(hidden) / 0.7, -1)[torch.arange(10), tokens] @ weight
    assert torch.allclose(found[1], torch.autograd.grad(plain, hidden)[0], atol=1e-6)


def test_a_bias_learns_too():
    torch.manual_seed(0)
    hidden, head = torch.randn(10, 6), torch.nn.Linear(6, 20)
    tokens, weight = torch.randint(0, 20, (10,)), torch.randn(10)
    plain = torch.log_softmax(head(hidden), -1)[torch.arange(10), tokens] @ weight
    expected = torch.autograd.grad(plain, [head.weight, head.bias])
    stats = token_stats(hidden, head, tokens, 1.0)
    for a, b in zip(
        torch.autograd.grad(stats.logprobs @ weight, [head.weight, head.bias]), expected,
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_bf16_compute_stays_near_the_exact_gradient(frozen):
    torch.manual_seed(0)
    hidden, head = torch.randn(40, 32, requires_grad=True), torch.nn.Linear(32, 200, bias=False)
    head.requires_grad_(not frozen)
    tokens = torch.randint(0, 200, (40,))
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            stats = token_stats(hidden, head, tokens, 1.0)
        assert stats.logprobs.dtype == stats.entropy.dtype == torch.float32
        found.append(torch.autograd.grad(stats.logprobs.sum(), hidden)[0])
    assert (found[0] - found[1]).norm() < 0.02 * found[0].norm()
    assert not torch.equal(*found)


def test_a_model_that_changes_its_logits_after_the_head_is_refused_by_family(family):
    """Whatever the setting is called: log-probabilities are read from the head."""
    model = load_policy(ModelSettings(name=str(family.policy)), torch.float32).eval()
    check_logits(model, "plain")
    check_logits(model.to(torch.bfloat16), "plain")
    forward = model.forward

    def scaled(**given):
        output = forward(**given)
        output.logits = output.logits * 1.01
        return output

    model.forward = scaled
    with pytest.raises(UserError) as error:
        check_logits(model, "a/model")
    text = str(error.value)
    assert text.startswith(f"a/model: {model.config.model_type} models change their logits")
    assert "\n" not in text


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite"])
def test_families_known_to_rescale_are_refused(name):
    sizes = {
        "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    rescaling = {
        "gemma2": {"final_logit_softcapping": 1.0},
        "cohere": {"logit_scale": 0.25},
        "granite": {"logits_scaling": 8.0},
    }[name]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes, **rescaling))
    with pytest.raises(UserError, match=f"mine: {name} models change"):
        check_logits(model.eval(), "mine")
