"""Writes what both sides of the PPO benchmark read: models, prompts and the adapters' settings."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from workbench.embedded import NAME
from workbench.models import (
    LoraSettings,
    ModelSettings,
    load_policy,
    load_scorer,
    load_tokenizer,
    lora_config,
)

SEED = 0
FIRST_TOKEN = 100  # below it stand the special ones


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=NAME, help=f"folder, hub id or {NAME}")
    parser.add_argument("--random", action="store_true", help="1.5 B random weights instead")
    parser.add_argument("--query", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--prompts", type=int, default=256)
    given = parser.parse_args()
    write(given.folder, given.model, random=given.random, query=given.query, count=given.prompts)


def write(folder: Path, model: str, *, random: bool, query: int, count: int) -> None:
    """Write `policy`, `reward`, `reward-adapter`, `prompts.json` and `lora.json`.

    Args:
        folder: that they are written to.
        model: the policy, and the weights of the reward model, whose head is random.
        random: take a Llama of 1.5 B random weights with that model's tokenizer.
        query: tokens of each prompt, drawn at random.
        count: prompts.
    """
    torch.manual_seed(SEED)
    policy = str(folder / "policy")
    tokenizer = load_tokenizer(model)
    first = random_llama(len(tokenizer)) if random else load_policy(ModelSettings(name=model))
    first.to(torch.bfloat16).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    vocabulary = first.config.vocab_size
    del first
    scorer: Any = load_scorer(ModelSettings(name=policy), torch.bfloat16)
    scorer.config.pad_token_id = tokenizer.pad_token_id
    scorer.save_pretrained(folder / "reward")
    from peft import get_peft_model

    settings = LoraSettings(enabled=True)
    get_peft_model(scorer, lora_config(settings, "SEQ_CLS")).save_pretrained(
        folder / "reward-adapter"
    )
    for name in ("reward", "reward-adapter"):
        tokenizer.save_pretrained(folder / name)
    draw = torch.Generator().manual_seed(SEED)
    ids = torch.randint(FIRST_TOKEN, vocabulary, (count, query), generator=draw).tolist()
    (folder / "prompts.json").write_text(json.dumps(ids), encoding="utf-8")
    lora = {"r": settings.r, "lora_alpha": settings.alpha, "target_modules": "all-linear"}
    (folder / "lora.json").write_text(json.dumps(lora), encoding="utf-8")


def random_llama(vocabulary: int) -> Any:
    """Return a Llama of 1.5 B random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=2048, intermediate_size=6144, num_hidden_layers=30,
        num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


if __name__ == "__main__":
    main()
