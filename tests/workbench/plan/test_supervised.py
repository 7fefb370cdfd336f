"""What the Trainer's stages hold is what their models weigh; steps cost what is trained."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

import reward.plan
import sft.plan
from workbench.errors import UserError
from workbench.models import (
    LoraSettings,
    ModelSettings,
    freeze_lower_layers,
    load_policy,
    load_scorer,
    lora_config,
)
from workbench.plan.memory import Request
from workbench.plan.skeleton import counts, read_config


def request_for(config, layout="separate", top=None, **changes) -> Request:
    found = Request(
        config, counts(config), layout, top, 4, 12, 6, torch.bfloat16, cpu=True, devices=1,
        sharding="none",
    )  # fmt: skip
    return replace(found, **changes)


@pytest.mark.parametrize(
    ("layout", "top"), [("separate", None), ("lora", None), ("shared_trunk", 1)]
)
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_the_model_weighs_what_the_real_one_does(tiny_model, stage, layout, top):
    memory = {"sft": sft.plan, "reward": reward.plan}[stage].memory(
        request_for(read_config(str(tiny_model)), layout, top)
    )
    load = load_policy if stage == "sft" else load_scorer
    model = load(ModelSettings(name=str(tiny_model)), torch.float32)
    freeze_lower_layers(model, top)
    if layout == "lora":
        from peft import get_peft_model

        task = "CAUSAL_LM" if stage == "sft" else "SEQ_CLS"
        model = get_peft_model(model, lora_config(LoraSettings(enabled=True, r=4), task))
    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}.values()
    size = sum(each.numel() * each.element_size() for each in tensors)
    sizes = {}
    for part in memory.parts:
        sizes[part.role] = sizes.get(part.role, 0) + part.bytes
    trained = sum(each.numel() for each in tensors if each.requires_grad)
    assert sizes == {"model": size, "gradients": 4 * trained, "AdamW": 8 * trained}
    assert memory.trained == trained
    assert memory.work("step", 2) > memory.work("step", 1) > 0


def test_checkpointing_keeps_less_and_few_layers_tell_of_many():
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=7,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    plain = sft.plan.memory(request_for(config))
    again = sft.plan.memory(request_for(config, checkpointing=True))
    assert again.work("step", 4) < plain.work("step", 4)
    assert plain.work("step", 2) == pytest.approx(max(plain._step(7, None, 2).values()), rel=0.02)


def test_a_gpu_keeps_no_logits(tiny_llama):
    config = read_config(str(tiny_llama))
    one = sft.plan.memory(request_for(config, response=200))
    gpu = sft.plan.memory(request_for(config, response=200, cpu=False))
    assert one.work("step", 8) > gpu.work("step", 8)


def test_more_layers_than_there_are_is_refused(tiny_llama):
    with pytest.raises(UserError, match="--top-layers 9: the model has 3 layers"):
        sft.plan.memory(request_for(read_config(str(tiny_llama)), "shared_trunk", 9))
