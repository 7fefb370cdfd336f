"""What is planned is what the real roles hold, role by role; few layers tell of many."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from ppo.config import PPOModelSettings
from ppo.plan import FORWARD, PPOMemory, held, planned_roles, sampled, scored, updated
from ppo.roles import Roles
from workbench.config import load_config
from workbench.errors import UserError
from workbench.models import ModelSettings, load_scorer, lora_config
from workbench.plan.memory import Request
from workbench.plan.skeleton import counts, read_config

LAYOUTS = [
    ("separate", None, "whole"),
    ("lora", None, "adapter"),
    ("lora", 1, "adapter"),
    ("lora", None, "whole"),
    ("lora", 1, "whole"),
    ("shared_trunk", 1, "whole"),
]


def request_for(config, layout, top, **changes) -> Request:
    found = Request(
        config, counts(config), layout, top, 4, 12, 6, torch.bfloat16, cpu=True, devices=1,
        sharding="none",
    )  # fmt: skip
    return replace(found, **changes)


def real_roles(family, layout, top, folder, kind="adapter") -> Roles:
    given = [f"name={family.policy}", "precision=bf16", f"layout={layout}", "lora.r=4"]
    given += [] if top is None else [f"train_top_layers={top}"]
    settings = load_config(PPOModelSettings, None, given)
    reward = family.reward
    if layout == "lora" and kind == "adapter":
        from peft import get_peft_model

        scorer = load_scorer(ModelSettings(name=str(family.policy)), torch.float32)
        reward = folder / "reward"
        get_peft_model(scorer, lora_config(settings.lora, "SEQ_CLS")).save_pretrained(reward)
    elif layout == "lora":
        # As `rlhf reward` leaves it: lower layers have learned too, and cannot be shared.
        scorer = load_scorer(ModelSettings(name=str(family.reward)), torch.float32)
        scorer.get_input_embeddings().weight.data += 1
        reward = folder / "reward"
        scorer.save_pretrained(reward)
    return Roles(settings, str(reward), torch.device("cpu"))


@pytest.mark.parametrize(("layout", "top", "kind"), LAYOUTS)
def test_each_role_holds_what_the_real_one_does(family, layout, top, kind, tmp_path):
    roles = real_roles(family, layout, top, tmp_path, kind)
    request = request_for(read_config(str(family.policy)), layout, top, reward=kind)
    planned = planned_roles(request, request.config, top)
    assert held(planned) == held(roles)
    # Counted another way: every tensor of every role, shared ones once.
    models = (roles.trained, roles.actor, roles.reference, roles.reference_head, roles.reward)
    tensors = {
        id(tensor): tensor
        for model in (*models, roles.reward_head)
        for tensor in (*model.parameters(), *model.buffers())
    }
    parts, trained = held(planned)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert sum(part.bytes for part in parts) == size
    assert trained == sum(p.numel() for p in tensors.values() if p.requires_grad)


def test_gradients_and_averages_are_those_of_what_is_trained(llama):
    request = request_for(read_config(str(llama.policy)), "lora", None)
    memory = PPOMemory(request)
    sizes = {part.role: part.bytes for part in memory.parts}
    assert sizes["gradients"] == 4 * memory.trained
    assert sizes["AdamW"] == 8 * memory.trained
    assert "gradient buckets" not in sizes
    two = PPOMemory(replace(request, devices=2))
    assert {part.role: part.bytes for part in two.parts}["gradient buckets"] == 4 * memory.trained
    sharded = PPOMemory(replace(request, devices=2, sharding="fsdp2"))
    assert sharded.parts == memory.parts


@pytest.mark.parametrize(("layout", "top"), [("separate", None), ("lora", None), ("lora", 5)])
def test_few_layers_tell_of_many(layout, top):
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=7,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    request = request_for(config, layout, top)
    memory = PPOMemory(request)
    few = {phase: memory.work(phase, 2) for phase in memory.phases}
    whole = memory._small(top or 7, 7)
    many = {
        "rollout": max(sampled(whole, request, 2).values()),
        "score": max(scored(whole, request, 2).values()),
        "update": max(updated(whole, request, 2).values()),
    }
    assert few == pytest.approx(many, rel=0.02)


def test_few_rows_tell_of_many(llama):
    request = request_for(read_config(str(llama.policy)), "lora", None)
    memory = PPOMemory(request)
    for phase in memory.phases:
        assert memory.work(phase, 16) == pytest.approx(
            max(memory.peaks(phase, 16).values()), rel=0.02
        )


def test_the_update_keeps_what_the_backward_pass_needs(llama):
    """Longer answers and more rows cost more, and logits are never kept whole."""
    request = request_for(read_config(str(llama.policy)), "separate", None)
    memory = PPOMemory(request)
    one, two = (memory.work("update", rows) for rows in (4, 8))
    assert one < two < 2 * one + 1
    longer = PPOMemory(replace(request, response=60))
    assert longer.work("update", 8) > two
    wide = PPOMemory(replace(request, response=400))
    assert memory.kept(4) < wide.kept(4)


def test_a_trunk_keeps_its_states(llama):
    request = request_for(read_config(str(llama.policy)), "shared_trunk", 1)
    states = 3 * 18 * 48 * 2
    assert PPOMemory(request).kept(3) == states + 3 * 6 * 7 * 4


def test_kernels_of_a_cpu_keep_all_pairs(llama):
    request = request_for(read_config(str(llama.policy)), "separate", None, prompt=300)
    gpu = PPOMemory(replace(request, cpu=False))
    assert PPOMemory(request).work("update", 2) > gpu.work("update", 2)
    roles = planned_roles(request, request.config, None)
    assert roles.actor.config._attn_implementation == "rlhf_planned_cpu"


def test_layouts_that_cannot_be_are_refused(llama):
    config = read_config(str(llama.policy))
    with pytest.raises(UserError, match="--top-layers 4: the model has 3 layers"):
        PPOMemory(request_for(config, "shared_trunk", 4))
    assert FORWARD in PPOMemory(request_for(config, "lora", 1)).peaks("rollout", 1)
