"""Parameters are those of the real models; every way of naming a config, and what is refused."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from workbench.errors import UserError
from workbench.models import decoder_layers
from workbench.plan import skeleton


def test_parameters_are_those_of_the_real_model(tiny_model):
    found = skeleton.counts(skeleton.read_config(str(tiny_model)))
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert found.total == model.num_parameters()
    layers = decoder_layers(model)
    assert (found.depth, found.uniform) == (len(layers), True)
    assert found.layers == sum(p.numel() for p in layers.parameters())
    assert found.layer == found.layers // found.depth
    assert found.head == model.get_output_embeddings().weight.numel()
    ids = torch.arange(5, 12)[None]
    cache = model(ids, use_cache=True).past_key_values
    kept = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert found.cache == kept / ids.numel()


def test_a_file_alone_will_do_and_no_weights_are_read(tiny_llama, tmp_path):
    alone = tmp_path / "some-name.json"
    alone.write_bytes((tiny_llama / "config.json").read_bytes())
    for name in (alone, tiny_llama):
        assert skeleton.counts(skeleton.read_config(str(name))).depth == 3


def test_a_public_architecture_has_as_many_parameters_as_published():
    # The sizes of Llama 3.1 8B (Dubey et al. 2024, table 3).
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
    )  # fmt: skip
    assert skeleton.counts(config).total == 8_030_261_248


def test_fewer_layers(tiny_qwen):
    config = skeleton.with_layers(skeleton.read_config(str(tiny_qwen)), 1)
    assert skeleton.counts(config).depth == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its config cannot be read"),
        ('{"a": 1}', "its config cannot be read"),
        ('{"model_type": "clip"}', "no language model can be built"),
    ],
)
def test_a_config_of_something_else_is_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        skeleton.counts(skeleton.read_config(str(path)))
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_names_the_way_out():
    # The tests forbid the hub.
    with pytest.raises(UserError, match="the hub cannot be reached; use --model FOLDER"):
        skeleton.read_config("nobody/no-such-model")


def test_folders_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        skeleton.read_config(str(tmp_path / "nowhere"))
    (tmp_path / "adapter_config.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(UserError, match="name the model below it"):
        skeleton.read_config(str(tmp_path))


def test_tensors_without_data_keep_what_is_shared(tiny_gpt2):
    with torch.device("meta"):
        model = skeleton.language_model(skeleton.read_config(str(tiny_gpt2)), torch.float32)
    dataless = skeleton.Dataless()
    dataless.take([model])
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with dataless.mode:
        logits = model(torch.zeros(2, 7, dtype=torch.long)).logits
    assert logits.shape == (2, 7, model.config.vocab_size)
