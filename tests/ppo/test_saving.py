"""What a run leaves loads back: the policy merged, its adapter, and the value with its bias."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from ppo.roles import Roles
from ppo.saving import has_adapter, save_adapter, save_policy, save_value
from tests.ppo.test_lora import open_lora, reward_adapter
from tests.ppo.test_roles import open_roles, perturb, plain_logprobs, some_answers, some_batch
from workbench.models import ModelSettings, load_scorer
from workbench.scorer import read_normalizer

LAYOUTS = ["separate", "shared_trunk", "lora", "lora at the top"]


def trained_roles(family, layout: str) -> Roles:
    roles = open_roles(family, layout)
    perturb(roles.trained)
    roles.sync_actor()
    return roles


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_value_loads_back_as_a_classifier(family, tmp_path, layout):
    roles = trained_roles(family, layout)
    save_value(roles, tmp_path / "value")
    with torch.no_grad():
        _, expected = roles.trained(some_batch(roles, family), 1.0)
    model = load_scorer(ModelSettings(name=str(tmp_path / "value")), torch.float32).eval()
    mean, std = read_normalizer(model)
    found = []
    with torch.no_grad():
        for query, answer in zip(*some_answers(family), strict=True):
            ids = torch.tensor([query + answer.ids])
            states = model.base_model(input_ids=ids).last_hidden_state[0]
            logits = states[len(query) - 1 : -1] @ model.score.weight[0]
            found.append((logits - mean) / std)
    assert torch.allclose(torch.cat(found), expected, atol=1e-4)
    assert expected.std() > 0.01
    assert abs(mean) > 0.01  # there is a bias, and it came back


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_policy_loads_back_as_a_plain_model(family, tmp_path, layout):
    roles = trained_roles(family, layout)
    save_policy(roles, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    expected = plain_logprobs(roles.actor, family)
    assert torch.allclose(plain_logprobs(plain, family), expected, atol=1e-4)
    before = AutoModelForCausalLM.from_pretrained(family.policy).state_dict()
    after = plain.state_dict()
    assert {n: w.shape for n, w in before.items()} == {n: w.shape for n, w in after.items()}
    assert has_adapter(roles) == ("lora" in layout)


def test_the_adapter_loads_in_peft(family, tmp_path):
    from peft import PeftModel

    roles = trained_roles(family, "lora")
    save_adapter(roles, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(family.policy, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    expected = plain_logprobs(roles.actor, family)
    assert torch.allclose(plain_logprobs(adapted, family), expected, atol=1e-5)
    assert (expected - plain_logprobs(base.from_pretrained(family.policy), family)).std() > 0.01


def test_a_policy_merged_from_an_adapter_leaves_whole_models(llama, tmp_path):
    """An adapter of it could name no base that anything else can load."""
    first = trained_roles(llama, "lora")
    save_adapter(first, tmp_path / "sft")
    from workbench.models import load_tokenizer

    load_tokenizer(str(llama.policy)).save_pretrained(tmp_path / "sft")
    reward = reward_adapter(llama.policy, tmp_path / "reward")
    roles = open_lora(llama, reward, f"name={tmp_path / 'sft'}")
    assert not has_adapter(roles)
    assert torch.allclose(
        plain_logprobs(roles.actor, llama), plain_logprobs(first.actor, llama), atol=1e-4
    )
    save_value(roles, tmp_path / "value")
    assert (tmp_path / "value" / "model.safetensors").is_file()
