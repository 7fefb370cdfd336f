import json
import shutil
from pathlib import Path

import pytest
import torch

from workbench import models
from workbench.config import load_config
from workbench.errors import UserError
from workbench.models import (
    LoraSettings,
    ModelSettings,
    compute_dtype,
    decoder_layers,
    final_norm,
    freeze_lower_layers,
    is_reward_model,
    load_policy,
    load_scorer,
    load_tokenizer,
    locate,
    lora_config,
)

IDS = torch.tensor([[5, 60, 70, 80, 9]])


def settings(folder: Path, **extra) -> ModelSettings:
    return ModelSettings(name=str(folder), **{"precision": "fp32"} | extra)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


@pytest.fixture
def copy(tiny_llama, tmp_path) -> Path:
    """A model folder to be spoilt."""
    shutil.copytree(tiny_llama, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(tiny_model, tmp_path):
    """A PEFT adapter folder with non-zero adapters, and the logits of base plus adapter."""
    from peft import get_peft_model

    torch.manual_seed(0)
    base = load_policy(settings(tiny_model))
    model = get_peft_model(base, lora_config(LoraSettings(enabled=True, r=4, alpha=8), "CAUSAL_LM"))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", logits(model)


# Names


def test_a_folder_and_the_embedded_name_are_found_and_anything_else_is_a_hub_id(
    tiny_llama, monkeypatch
):
    monkeypatch.setattr(models.embedded, "embedded_model", lambda: Path("/cache/embedded"))
    assert locate(str(tiny_llama)) == str(tiny_llama)
    assert locate("smollm2-135m-instruct") == "/cache/embedded"
    assert locate("gpt2") == "gpt2"
    assert locate("owner/name") == "owner/name"


@pytest.mark.parametrize(
    "name", ["./nope", "/nope/model", "~/nope", "runs/demo/sft/model", "a/b/c", "../x"]
)
def test_what_looks_like_a_path_is_never_asked_of_the_hub(runs, name):
    assert (
        refusal(locate, name)
        == f"{name}: no such folder; train it first, or see `rlhf models` for what is here"
    )


def test_a_file_or_a_folder_without_a_model_is_refused(tmp_path):
    assert "no config.json or adapter_config.json in this folder" in refusal(locate, str(tmp_path))
    (tmp_path / "model.gguf").touch()
    assert "a model is a folder, this is a file" in refusal(locate, str(tmp_path / "model.gguf"))


def test_a_folder_in_the_home_folder_is_found(copy, monkeypatch):
    monkeypatch.setenv("HOME", str(copy.parent))
    assert load_tokenizer("~/model").eos_token == "</s>"
    assert load_policy(ModelSettings(name="~/model")).config.model_type == "llama"


@pytest.mark.parametrize(
    "load", [lambda name: load_policy(ModelSettings(name=name)), load_tokenizer]
)
def test_a_hub_id_that_cannot_be_had_points_to_the_embedded_model(runs, load):
    message = refusal(load, "nobody/has-this-model")
    assert message.startswith("nobody/has-this-model: cannot load this model (")
    assert message.endswith("offline, use 'smollm2-135m-instruct'")


# Loading


def test_every_family_loads_in_the_asked_type(tiny_model):
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert load_policy(settings(tiny_model, precision=precision)).dtype == dtype
        assert load_scorer(settings(tiny_model, precision=precision)).dtype == dtype
    assert load_policy(settings(tiny_model, precision="bf16"), torch.float32).dtype == torch.float32
    assert compute_dtype("fp32") == torch.float32


def test_sampling_settings_that_ship_with_a_model_are_dropped(copy):
    shipped = {"do_sample": True, "temperature": 0.6, "top_k": 5, "top_p": 0.5, "eos_token_id": 2}
    (copy / "generation_config.json").write_text(json.dumps(shipped), "utf-8")
    generation = load_policy(settings(copy)).generation_config
    assert (generation.do_sample, generation.temperature, generation.top_k, generation.top_p) == (
        False,
        None,
        None,
        None,
    )
    assert generation.eos_token_id == 2


def test_pad_becomes_eos_only_where_it_is_missing(tiny_llama, tiny_gpt2, tiny_qwen):
    pads = [load_tokenizer(str(folder)).pad_token for folder in (tiny_llama, tiny_gpt2, tiny_qwen)]
    assert pads == ["</s>", "<|endoftext|>", "<|endoftext|>"]
    assert load_tokenizer(str(tiny_qwen)).eos_token == "<|im_end|>"


def test_a_tokenizer_without_eos_is_refused(copy):
    config = json.loads((copy / "tokenizer_config.json").read_text("utf-8"))
    del config["eos_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    assert "no EOS token" in refusal(load_tokenizer, str(copy))


def test_a_missing_tokenizer_is_one_line(copy):
    for path in copy.glob("tokenizer*"):
        path.unlink()
    assert refusal(load_tokenizer, str(copy)).startswith(f"{copy}: cannot load this model (")


# Safety


def test_pickled_weights_are_refused_unless_asked_for(copy):
    model = load_policy(settings(copy))
    torch.save(model.state_dict(), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    for load in (load_policy, load_scorer):
        message = refusal(load, settings(copy))
        assert "no safetensors weights here" in message
        assert "model.allow_pickle=true" in message
    asked = load_policy(settings(copy, allow_pickle=True))
    torch.testing.assert_close(logits(asked), logits(model))


def test_code_that_comes_with_a_model_is_not_run(copy, tmp_path, monkeypatch):
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config |= {"model_type": "mine", "auto_map": {
        "AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine",
        "AutoModelForSequenceClassification": "mine.Mine",
    }}  # fmt: skip
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    (copy / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n", "utf-8")
    # Asked at a terminal, transformers would offer to run it; "y" would be one keystroke away.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    for load in (load_policy, load_scorer):
        message = refusal(load, settings(copy))
        assert (
            message == f"{copy}: this model runs code of its own; read it, "
            "then set model.trust_remote_code=true"
        )
    assert not (tmp_path / "ran").exists()


# Damage


@pytest.mark.parametrize("spoil", ["cut", "empty", "noise"])
def test_damaged_weights_are_one_line(copy, spoil):
    path = copy / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[: len(whole) // 2], "empty": b"", "noise": b"\xff" * 1000}[spoil]
    )
    for load in (load_policy, load_scorer):
        assert refusal(load, settings(copy)).startswith(f"{copy}: cannot load this model (")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"model_type": "no-such-kind"}', '{"model_type": 3}']
)
def test_a_damaged_config_is_one_line(copy, text):
    (copy / "config.json").write_text(text, "utf-8")
    for load in (load_policy, load_scorer):
        assert refusal(load, settings(copy)).startswith(f"{copy}: cannot load this model (")


def test_weights_of_another_shape_are_one_line(copy):
    config = json.loads((copy / "config.json").read_text("utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"hidden_size": 64}), "utf-8")
    assert refusal(load_policy, settings(copy)).startswith(f"{copy}: cannot load this model (")


def test_a_damaged_tokenizer_is_one_line(copy):
    (copy / "tokenizer.json").write_text("{", "utf-8")
    assert refusal(load_tokenizer, str(copy)).startswith(f"{copy}: cannot load this model (")


def test_an_unknown_attention_kernel_is_one_line(tiny_llama):
    message = refusal(load_policy, settings(tiny_llama, attn_implementation="magic"))
    assert "magic" in message


# What is trained


@pytest.mark.parametrize("head", ["policy", "scorer"])
@pytest.mark.parametrize("top", [1, 2])
def test_freezing_leaves_the_top_layers_the_last_norm_and_a_head(tiny_model, head, top):
    model = (load_policy if head == "policy" else load_scorer)(settings(tiny_model))
    layers = decoder_layers(model)
    expected = sum(p.numel() for layer in list(layers)[-top:] for p in layer.parameters())
    expected += sum(p.numel() for p in final_norm(model).parameters())
    expected += model.score.weight.numel() if head == "scorer" else 0
    freeze_lower_layers(model, top)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert not any(
        "embed" in name or "wte" in name or "wpe" in name or "lm_head" in name for name in trained
    )


def test_the_count_of_a_hand_calculated_layer(tiny_gpt2):
    model = load_policy(settings(tiny_gpt2))
    freeze_lower_layers(model, 1)
    d = 32  # GPT-2 layer: two norms, attention d×3d and d×d, MLP d×4d and 4d×d, all with biases
    layer = 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == layer + 2 * d


def test_null_trains_everything(tiny_model):
    model = load_policy(settings(tiny_model))
    freeze_lower_layers(model, None)
    assert all(p.requires_grad for p in model.parameters())


def test_the_norm_is_the_last_thing_before_the_logits(tiny_model):
    model = load_policy(settings(tiny_model)).eval()
    with torch.no_grad():
        states = []
        handle = final_norm(model).register_forward_hook(
            lambda module, args, output: states.append(output)
        )
        found = model(IDS).logits
        handle.remove()
        torch.testing.assert_close(model.get_output_embeddings()(states[0]), found)


def test_more_top_layers_than_there_are_is_refused(tiny_qwen):
    message = refusal(freeze_lower_layers, load_policy(settings(tiny_qwen)), 3)
    assert message == "model.train_top_layers=3: the model has 2 layers; use null to train all"


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["train_top_layers=0"], "train_top_layers=0"),
        (["train_top_layers=2", "lora.enabled=true"], "train_top_layers=2"),
        (["load_in_4bit=true"], "load_in_4bit=true"),
        (["lora.r=0"], "lora.r=0"),
        (["lora.dropout=1"], "lora.dropout=1.0"),
        (["lora.dropout=-0.1"], "lora.dropout=-0.1"),
    ],
)
def test_impossible_settings_are_refused(overrides, key):
    assert refusal(load_config, ModelSettings, None, overrides).startswith(f"command line: {key}: ")


# LoRA and 4 bit


def test_lora_is_off_unless_enabled():
    assert lora_config(LoraSettings(), "CAUSAL_LM") is None
    config = lora_config(LoraSettings(enabled=True, r=3, alpha=5, dropout=0.5), "SEQ_CLS")
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 5, 0.5)
    assert set(config.modules_to_save) == {"score"}
    assert lora_config(LoraSettings(enabled=True), "CAUSAL_LM").modules_to_save is None


def test_fresh_adapters_change_nothing_and_train_little(tiny_model):
    from peft import get_peft_model

    model = load_policy(settings(tiny_model))
    before, all_of_it = logits(model), sum(p.numel() for p in model.parameters())
    adapted = get_peft_model(model, lora_config(LoraSettings(enabled=True, r=2), "CAUSAL_LM"))
    torch.testing.assert_close(logits(adapted), before, atol=0, rtol=0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert 0 < trained < all_of_it / 4


def test_an_adapter_folder_is_merged_into_its_base(adapter, tiny_model):
    folder, expected = adapter
    merged = load_policy(settings(folder))
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits(merged), expected, atol=1e-3, rtol=1e-3)
    assert not torch.allclose(logits(merged), logits(load_policy(settings(tiny_model))), atol=1e-1)


def test_the_tokenizer_of_an_adapter_folder_is_its_own_or_the_base_one(adapter, tiny_model):
    folder, _ = adapter
    base = load_tokenizer(str(tiny_model))
    assert load_tokenizer(str(folder)).get_vocab() == base.get_vocab()
    base.add_tokens(["<mine>"])
    base.save_pretrained(folder)
    assert "<mine>" in load_tokenizer(str(folder)).get_vocab()


def test_an_adapter_whose_base_is_gone_is_one_line(adapter):
    folder, _ = adapter
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    config["base_model_name_or_path"] = "/gone/base"
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    assert "/gone/base" in refusal(load_policy, settings(folder))


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_adapter_config_is_one_line(adapter, text):
    folder, _ = adapter
    (folder / "adapter_config.json").write_text(text, "utf-8")
    assert refusal(load_policy, settings(folder)).startswith(str(folder))
    assert refusal(load_tokenizer, str(folder)).startswith(str(folder))


def test_an_adapter_with_damaged_weights_is_one_line(adapter):
    folder, _ = adapter
    (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 100)
    assert refusal(load_policy, settings(folder)).startswith(f"{folder}: cannot load this model (")


def test_pickled_adapter_weights_are_refused_as_well(adapter):
    from safetensors.torch import load_file

    folder, expected = adapter
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()
    assert "model.allow_pickle=true" in refusal(load_policy, settings(folder))
    asked = load_policy(settings(folder, allow_pickle=True))
    torch.testing.assert_close(logits(asked), expected, atol=1e-3, rtol=1e-3)


def test_4_bit_without_a_gpu_is_refused(tiny_llama, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refusal(load_policy, settings(tiny_llama, load_in_4bit=True))
    assert message.startswith("model.load_in_4bit=true: needs the bitsandbytes package and a GPU")


# Scorers


def test_a_fresh_head_has_the_distribution_of_ziegler_2019(tiny_model):
    # 200 heads of d weights: the standard deviation of all of them is known to about 1 %.
    torch.manual_seed(1)
    heads = torch.stack(
        [load_scorer(settings(tiny_model)).score.weight.detach().flatten() for _ in range(200)]
    )
    d = heads.shape[1]
    assert float(heads.std()) * (d + 1) ** 0.5 == pytest.approx(
        1.0, abs=4 / (2 * heads.numel()) ** 0.5
    )
    assert float(heads.mean()) * (d + 1) ** 0.5 == pytest.approx(0.0, abs=4 / heads.numel() ** 0.5)


def test_a_fresh_head_follows_the_global_seed(tiny_llama):
    def head(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return load_scorer(settings(tiny_llama)).score.weight

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_a_trained_head_is_kept(tiny_model, tmp_path):
    model = load_scorer(settings(tiny_model))
    model.save_pretrained(tmp_path / "reward")
    assert is_reward_model(str(tmp_path / "reward"))
    assert not is_reward_model(str(tiny_model))
    assert torch.equal(load_scorer(settings(tmp_path / "reward")).score.weight, model.score.weight)


def test_a_trained_head_from_the_hub_is_kept(tiny_llama, tmp_path, monkeypatch):
    import huggingface_hub.constants

    # The hub's cache, as a download would have left it.
    snapshot = tmp_path / "models--me--reward" / "snapshots" / ("a" * 40)
    (tmp_path / "models--me--reward" / "refs").mkdir(parents=True)
    (tmp_path / "models--me--reward" / "refs" / "main").write_text("a" * 40, "utf-8")
    model = load_scorer(settings(tiny_llama))
    model.save_pretrained(snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert torch.equal(load_scorer(settings("me/reward")).score.weight, model.score.weight)


def test_a_scorer_trained_with_lora_keeps_its_head_and_its_adapters(tiny_model, tmp_path):
    from peft import get_peft_model

    from workbench.scorer import last_token_scores

    def scores(model) -> torch.Tensor:
        with torch.no_grad():
            return last_token_scores(model.eval(), IDS, torch.ones_like(IDS))

    model = get_peft_model(
        load_scorer(settings(tiny_model)), lora_config(LoraSettings(enabled=True, r=4), "SEQ_CLS")
    )
    for weight in model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    expected = scores(model.merge_and_unload())
    torch.manual_seed(99)  # a head drawn anew would differ
    loaded = load_scorer(settings(tmp_path / "adapter"))
    torch.testing.assert_close(scores(loaded), expected, atol=1e-3, rtol=1e-3)
    assert is_reward_model(str(tmp_path / "adapter"))


def test_a_model_that_rescales_its_logits_is_refused(tmp_path):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    settings = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    Gemma2ForCausalLM(Gemma2Config(**settings)).save_pretrained(tmp_path / "capped")
    with pytest.raises(UserError, match=r"capped: rescales its logits .*softcapping=30.0"):
        load_policy(ModelSettings(name=str(tmp_path / "capped")))
    plain = Gemma2Config(**settings, final_logit_softcapping=None)
    Gemma2ForCausalLM(plain).save_pretrained(tmp_path / "plain")
    assert load_policy(ModelSettings(name=str(tmp_path / "plain"))).config.model_type == "gemma2"
