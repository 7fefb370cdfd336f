"""Measures updates of TRL's `PPOTrainer` in a process of its own; prints one line of JSON.

It runs in an environment with `trl==1.12.0`, which has nothing of this project installed;
`ppo_bench.py` builds that and starts this. All models are held in bf16, TRL's cheapest setting, and
gradient checkpointing is off, as it costs time. No token ends an answer.
"""

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from benchmarks.ppo_watch import Watch, about


class _Laps(TrainerCallback):  # type: ignore[misc]  # the library carries no types
    """Ends a lap with every update; the first is the warm-up."""

    def __init__(self) -> None:
        self.watch: Watch | None = None
        self.tokens = 0
        self.laps: list[dict[str, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        assert self.watch is not None
        self.laps.append(self.watch.lap() | {"tokens": self.tokens})
        self.tokens = 0


def main() -> None:
    """Measure full fine-tuning, or a LoRA policy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="models and prompts, as ppo_models.py left them")
    parser.add_argument("--lora", action="store_true", help="the policy is an adapter")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--response", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--updates", type=int, default=2, help="measured, after a first")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trl-bench-") as output:
        laps = _Laps()
        trainer = build(given, output, laps)
        laps.watch = Watch(given.device)
        laps.watch.count(trainer.model)
        count_generated(laps)
        trainer.train()
    found = {
        "updates": laps.laps[1:],
        "peak_gib": laps.watch.peak_gib(),
        "reset": laps.watch.fresh,
        "trl": version("trl"),
        "transformers": version("transformers"),
        **about(),
    }
    sys.stdout.write(json.dumps(found) + "\n")


def build(given: argparse.Namespace, output: str, laps: _Laps) -> Any:
    """Return TRL's trainer on the prepared models."""
    policy, reward = str(given.folder / "policy"), str(given.folder / "reward")
    tokenizer = AutoTokenizer.from_pretrained(policy, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = json.loads((given.folder / "prompts.json").read_text(encoding="utf-8"))
    classifiers = [
        AutoModelForSequenceClassification.from_pretrained(
            reward, num_labels=1, dtype=torch.bfloat16
        )
        for _ in range(2)
    ]
    for model in classifiers:
        model.config.pad_token_id = tokenizer.pad_token_id
    lora = json.loads((given.folder / "lora.json").read_text(encoding="utf-8"))
    config = PPOConfig(
        output_dir=output,
        use_cpu=given.device == "cpu",
        bf16=False,  # the weights are bf16 already
        gradient_checkpointing=False,
        total_episodes=given.episodes * (given.updates + 1),
        per_device_train_batch_size=given.micro_batch,
        gradient_accumulation_steps=given.episodes // given.micro_batch,
        local_rollout_forward_batch_size=given.episodes,
        num_mini_batches=1,
        num_ppo_epochs=given.epochs,
        response_length=given.response,
        stop_token=None,
        temperature=1.0,
        missing_eos_penalty=None,
        num_sample_generations=0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(policy, dtype=torch.bfloat16),
        ref_model=None,  # TRL copies the policy, or takes the adapter off
        reward_model=classifiers[0],
        value_model=classifiers[1],
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora) if given.lora else None,
        callbacks=[laps],
    )


def count_generated(laps: _Laps) -> None:
    """Count the tokens that TRL generates."""
    real = ppo_trainer.batch_generation

    def counting(model: Any, queries: torch.Tensor, *args: Any) -> Any:
        sequences, logits = real(model, queries, *args)
        laps.tokens += sequences[:, queries.shape[1] :].numel()
        return sequences, logits

    ppo_trainer.batch_generation = counting


if __name__ == "__main__":
    main()
