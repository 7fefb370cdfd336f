"""The decoder's steps are the model's own, whatever the family, the padding or the precision."""

import pytest
import torch

from workbench import decoder as decoder_module
from workbench.decoder import Decoder
from workbench.decoding_cache import decoding_cache, left_padded, spread
from workbench.models import ModelSettings, load_policy

QUERIES = [[7, 8, 9, 10, 11], [12, 13], [7, 8, 9, 10, 11], [14, 15, 16]]
TOKENS = [[20, 21, 22], [23, 24, 25], [26, 27, 28], [29, 30, 31]]


@pytest.fixture(params=["tiny_llama", "tiny_gpt2", "tiny_qwen"])
def folder(request):
    return request.getfixturevalue(request.param)


def load(folder, dtype: torch.dtype = torch.float32):
    return load_policy(ModelSettings(name=str(folder)), dtype).eval()


@torch.inference_mode()
def steps(model, queries=QUERIES) -> torch.Tensor:
    """Logits after each of `TOKENS`, [rows, 3, V], by the decoder."""
    decoder = Decoder.of(model)
    cache = decoding_cache(model.config)
    ids, mask, positions, index = left_padded(queries, model.device)
    model.base_model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache
    )
    spread(cache, index, 3)
    mask, last = mask[index], positions[index, -1]
    padded, found = not mask.all(), []
    for step in range(3):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        tokens = torch.tensor([row[step] for row in TOKENS[: len(queries)]])
        seen = mask[:, None, None].bool() if padded else None
        hidden = decoder(tokens, last + 1 + step, seen, cache)
        found.append(decoder.head(hidden))
    return torch.stack(found, dim=1)


@torch.inference_mode()
def whole(model, queries=QUERIES) -> torch.Tensor:
    """The same from one forward pass per row, without padding or cache."""
    rows = [
        model(torch.tensor([query + tokens])).logits[0, -3:]
        for query, tokens in zip(queries, TOKENS, strict=False)
    ]
    return torch.stack(rows)


def test_log_probabilities_equal_those_of_a_full_pass(folder):
    model = load(folder)
    found, wanted = (torch.log_softmax(f(model), -1) for f in (steps, whole))
    assert torch.allclose(found, wanted, atol=1e-4)


def test_without_padding_no_mask_is_needed(folder):
    model, even = load(folder), [[7, 8, 9], [10, 11, 12]]
    assert torch.allclose(steps(model, even), whole(model, even), atol=1e-4)


def test_packed_weights_give_what_the_plain_ones_give(folder, monkeypatch):
    model = load(folder, torch.bfloat16)
    packed = steps(model)
    monkeypatch.setattr(decoder_module, "PACKED_BYTES", 0)  # as for a model that is too large
    assert not Decoder.of(model).packs
    assert torch.allclose(packed.float(), steps(model).float(), atol=0.1)
    exact = torch.log_softmax(whole(load(folder)), -1)
    assert (torch.log_softmax(packed.float(), -1) - exact).abs().mean() < 0.1


def test_other_families_windows_and_quantised_layers_are_left_to_the_model(tiny_llama, tiny_qwen):
    model = load(tiny_llama)
    assert Decoder.of(model) is not None
    model.config.model_type = "mamba"
    assert Decoder.of(model) is None
    windowed = load(tiny_qwen)
    windowed.config.layer_types = ["sliding_attention"] * windowed.config.num_hidden_layers
    windowed.config.sliding_window = 4
    assert Decoder.of(windowed) is None

    class Quantised(torch.nn.Linear):
        pass

    other = load(tiny_llama)
    other.model.layers[0].mlp.up_proj = Quantised(4, 4)
    assert Decoder.of(other) is None


def test_an_active_adapter_is_left_to_the_model_and_a_merged_one_is_not(tiny_llama):
    from peft import LoraConfig, get_peft_model

    model = load(tiny_llama)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    assert Decoder.of(model) is None
    with adapted.disable_adapter():
        for module in model.modules():
            if hasattr(module, "lora_A"):
                module._active_adapter = []
        assert Decoder.of(model) is not None
