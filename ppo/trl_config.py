"""`PPOConfig` with the fields of TRL 1.12's, and what it means to the engine."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from ppo.config import PPOStage
from ppo.trl_fields import ALLOWED_VALUES, HONOURED, REFUSED, REFUSED_VALUES, WITHOUT_EFFECT
from workbench.config import from_tree, option
from workbench.errors import UserError


@dataclass
class PPOConfig(TrainingArguments):  # type: ignore[misc]
    """Arguments of `PPOTrainer`: those of TRL 1.12's, with its defaults.

    Those of `transformers.TrainingArguments` are here too. A field that is not honoured is refused
    by its name, or listed in `ppo.trl_fields` with why it has no effect.
    """

    learning_rate: float = option(3e-6, "of policy and value function")
    logging_steps: float = option(10, "of no effect: every update is logged")
    gradient_checkpointing: bool | None = option(True, "of no effect")
    bf16: bool | None = option(None, "bf16 compute; None is True unless fp16 is set")
    dataset_num_proc: int | None = option(None, "of no effect")
    num_mini_batches: int = option(1, "optimiser steps per pass over a batch")
    total_episodes: int | None = option(None, "answers in all; None: num_train_epochs of the data")
    local_rollout_forward_batch_size: int = option(64, "prompts decoded together")
    num_sample_generations: int = option(10, "tables of sampled answers over the run; 0 for none")
    response_length: int = option(53, "longest answer, in tokens")
    stop_token: str | None = option(None, "eos: the tokenizer's EOS ends an answer")
    stop_token_id: int | None = option(None, "the token that ends an answer")
    temperature: float = option(0.7, "of sampling")
    missing_eos_penalty: float | None = option(None, "taken from the score of an unfinished answer")
    sft_model_path: str = option("EleutherAI/pythia-160m", "for scripts")
    world_size: int | None = option(None, "processes; worked out")
    num_total_batches: int | None = option(None, "updates; worked out")
    micro_batch_size: int | None = option(None, "answers per forward pass; worked out")
    local_batch_size: int | None = option(None, "answers per update and process; worked out")
    batch_size: int | None = option(None, "answers per update; worked out")
    local_mini_batch_size: int | None = option(None, "answers per step and process; worked out")
    mini_batch_size: int | None = option(None, "answers per optimiser step; worked out")
    push_to_hub: bool = option(False, "save_model() uploads what it has written")
    reward_model_path: str = option("EleutherAI/pythia-160m", "for scripts")
    model_adapter_name: str | None = option(None, "refused")
    ref_adapter_name: str | None = option(None, "refused")
    num_ppo_epochs: int = option(4, "passes over a batch")
    whiten_rewards: bool = option(False, "unit-variance rewards; the mean stays")
    kl_coef: float = option(0.05, "price of one nat of KL to the reference")
    kl_estimator: str = option("k1", "per-token KL estimator in the reward: k1, k2 or k3")
    cliprange: float = option(0.2, "clip of the policy objective")
    vf_coef: float = option(0.1, "weight of the value loss")
    cliprange_value: float = option(0.2, "clip of the value update around the old values")
    gamma: float = option(1.0, "discount")
    lam: float = option(0.95, "λ of generalised advantage estimation")
    ds3_gather_for_generation: bool = option(True, "of no effect")

    def __post_init__(self) -> None:
        """Fill in what depends on the machine.

        Raises:
            UserError: for a field or value that is refused.
        """
        check(self)
        if self.bf16 is None:
            self.bf16 = True
        if not torch.cuda.is_available():
            self.use_cpu = True
        # Transformers 5 warns of the older name, and would take it over.
        if getattr(self, "activation_checkpointing", None) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()

    def work_out(self, rows: int, world: int) -> None:
        """Fill in the batch sizes and the number of updates.

        Args:
            rows: of the training data.
            world: processes.

        Raises:
            UserError: when a batch cannot be divided into its minibatches.
        """
        if self.total_episodes is None:
            self.total_episodes = int(self.num_train_epochs * rows)
        for name in ("num_mini_batches", "per_device_train_batch_size", "total_episodes"):
            _positive(self, name)
        _positive(self, "gradient_accumulation_steps")
        self.world_size = world
        self.local_batch_size = self.per_device_train_batch_size * self.gradient_accumulation_steps
        self.micro_batch_size = self.per_device_train_batch_size * world
        self.batch_size = self.local_batch_size * world
        if self.local_batch_size % self.num_mini_batches:
            raise UserError(
                f"PPOConfig: num_mini_batches={self.num_mini_batches}: must divide "
                "per_device_train_batch_size × gradient_accumulation_steps = "
                f"{self.local_batch_size} exactly"
            )
        self.mini_batch_size = self.batch_size // self.num_mini_batches
        self.local_mini_batch_size = self.local_batch_size // self.num_mini_batches
        # The last update is a whole one, so there may be more episodes than asked for.
        self.num_total_batches = math.ceil(self.total_episodes / self.batch_size)

    def stop(self, eos_token_id: int | None) -> int | None:
        """Return the token that ends an answer, or None where nothing does.

        Args:
            eos_token_id: of the tokenizer.

        Raises:
            UserError: when two tokens are asked for, or EOS is and there is none.
        """
        if self.stop_token and self.stop_token_id is not None:
            raise UserError("PPOConfig: stop_token and stop_token_id: set one of them, not both")
        if self.stop_token and eos_token_id is None:
            raise UserError("PPOConfig: stop_token='eos': the tokenizer has no EOS; set one")
        return eos_token_id if self.stop_token else self.stop_token_id

    def beside(self) -> dict[str, str]:
        """Return what changes a run's result and is not in the engine's configuration."""
        names = "lr_scheduler_type lr_scheduler_kwargs warmup_steps stop_token stop_token_id"
        return {name: str(_plain(getattr(self, name))) for name in names.split()}


def check(args: PPOConfig) -> None:
    """Check that no field or value is set that is refused.

    Raises:
        UserError: names the field and what to use instead.
    """
    for field in dataclasses.fields(PPOConfig):  # a script's subclass may have more
        value = getattr(args, field.name)
        if value == field.default or not value:
            continue  # none of the refused ones has a default that is true, but for `max_steps`
        if field.name in REFUSED:
            raise UserError(f"PPOConfig: {field.name}={value!r}: refused; {REFUSED[field.name]}")
        if field.name not in HONOURED and field.name not in WITHOUT_EFFECT:
            raise UserError(f"PPOConfig: {field.name}={value!r}: not known here; leave it out")
    for name, (values, instead) in REFUSED_VALUES.items():
        if str(_plain(getattr(args, name))) in values:
            raise UserError(f"PPOConfig: {name}={_plain(getattr(args, name))!r}: {instead}")
    for name, (allowed, instead) in ALLOWED_VALUES.items():
        if _plain(getattr(args, name)) not in allowed:
            raise UserError(f"PPOConfig: {name}={_plain(getattr(args, name))!r}: {instead}")


def stage_config(
    args: PPOConfig, model: str, reward: str, functions: list[str], layout: str = "separate"
) -> PPOStage:
    """Return the engine's configuration.

    Args:
        args: after `work_out`.
        model: name of the policy.
        reward: name of the reward model; empty for none.
        functions: names of further sources of reward, as `module:function`.
        layout: separate, or lora for a policy with an adapter.

    Raises:
        UserError: for a value out of range.
    """
    folder = Path(str(args.output_dir)).expanduser().absolute()
    same = (
        "num_mini_batches num_ppo_epochs batch_size learning_rate adam_beta1 adam_beta2 "
        "adam_epsilon weight_decay max_grad_norm kl_coef kl_estimator gamma lam cliprange "
        "cliprange_value vf_coef whiten_rewards missing_eos_penalty"
    )
    ppo: dict[str, Any] = {name: getattr(args, name) for name in same.split()}
    ppo |= {
        "total_episodes": int(args.num_total_batches or 1) * int(args.batch_size or 1),
        "micro_batch_size": args.per_device_train_batch_size,
        "value_learning_rate": args.learning_rate,
        # The trainer puts a schedule of transformers in its place; this one is its default.
        "lr_scheduler": "constant" if _plain(args.lr_scheduler_type) == "constant" else "linear",
        "eval_every": 0,
        "save_every": 0,
        "max_kl": None,  # TRL knows no such limit
    }
    tree: dict[str, Any] = {
        "run": {"root": str(folder.parent), "name": folder.name, "seed": args.seed},
        "model": {
            "name": model,
            "precision": "bf16" if args.bf16 else "fp32",
            "layout": layout,
        },
        "reward_model": reward,
        "rewards": {"functions": functions},
        "rollout": {
            "max_new_tokens": args.response_length,
            "temperature": args.temperature,
            "batch_size": args.local_rollout_forward_batch_size,
        },
        "ppo": ppo,
    }
    sections = {name: keys for name, keys in tree.items() if isinstance(keys, dict)}
    origin = {f"{name}.{key}": "PPOConfig" for name, keys in sections.items() for key in keys}
    return from_tree(PPOStage, tree, origin)


def _plain(value: Any) -> Any:
    """Return the value of an enumeration's member."""
    return getattr(value, "value", value)


def _positive(args: PPOConfig, name: str) -> None:
    if getattr(args, name) < 1:
        raise UserError(f"PPOConfig: {name}={getattr(args, name)!r}: must be at least 1")
