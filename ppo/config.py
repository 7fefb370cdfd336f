"""Configuration of PPO."""

import math
from dataclasses import dataclass
from typing import Literal

from ppo.monitor_config import MonitorSettings
from ppo.ptx_config import PtxSettings
from ppo.vllm_config import VLLMSettings
from workbench.config import option
from workbench.functions import function_digest, names_function
from workbench.generation import SamplingSettings
from workbench.models import ModelSettings
from workbench.run import RunSettings, fingerprints

Layout = Literal["separate", "lora", "shared_trunk"]


@dataclass
class PPOModelSettings(ModelSettings):
    """The policy to start from, and how its roles share weights."""

    layout: Layout = option(
        "separate",
        "separate: policy and value are whole models; lora: one frozen model, on which policy, "
        "value and reward are adapters as model.lora says (lora.enabled=true chooses it too), with "
        "train_top_layers in the upper layers only; shared_trunk: all roles share the frozen "
        "lower layers, whose activations are computed once per rollout (needs train_top_layers, "
        "and a reward model trained likewise)",
    )

    def __post_init__(self) -> None:
        """Let either of the two settings that ask for adapters stand for both."""
        if self.layout == "lora":
            self.lora.enabled = True
        elif self.layout == "separate" and self.lora.enabled:
            self.layout = "lora"

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if self.layout == "shared_trunk" and self.train_top_layers is None:
            return (
                "layout",
                "shared_trunk needs model.train_top_layers: how many layers each role has of "
                "its own",
            )
        if self.layout == "shared_trunk" and self.lora.enabled:
            return (
                "lora.enabled",
                "with layout=shared_trunk the top layers themselves are trained, not both; use "
                "layout=lora, with train_top_layers for adapters in the top layers only",
            )
        if self.lora.dropout:
            return (
                "lora.dropout",
                "rollout and training must give the same log-probabilities, so dropout is off; "
                "use 0",
            )
        if self.layout == "separate" and self.train_top_layers is not None:
            return (
                "train_top_layers",
                "with layout=separate all layers are trained; use layout=shared_trunk, or null",
            )
        if self.layout == "lora" and (self.train_top_layers or 0) > 0:
            return None  # elsewhere it is one or the other: here the layers below are shared
        return super().validate()


@dataclass
class DataSettings:
    """Prompts to practise on."""

    train: str = option("demo:prompts", "prompt-only data: hub id, file or folder")
    train_split: str | None = option(None, "split to read, where the source has several")
    test: str | None = option(
        None, "held-out prompts; null takes test_fraction of the training prompts"
    )
    test_split: str | None = option(None, "split of `test` to read")
    test_fraction: float = option(0.1, "share of prompts held out when `test` is null")
    streaming: bool = option(
        False,
        "keep prompts on disk instead of in memory, and read hub data while it arrives",
        free=True,
    )
    limit: int | None = option(None, "read at most this many rows")
    skip_bad_rows: bool = option(
        False, "count and list rows that cannot be read instead of stopping"
    )
    max_query_length: int = option(
        512, "longest query in tokens; prompts over it are left out and counted"
    )

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if not 0 < self.test_fraction < 1:
            return "test_fraction", "must be between 0 and 1"
        if self.max_query_length < 1:
            return "max_query_length", "must be at least 1"
        return None


@dataclass
class RewardSettings:
    """Where rewards come from beside `reward_model`, and how several become one."""

    models: list[str] = option(
        [], "more reward models, each with any tokenizer and chat template: folders or hub ids"
    )
    functions: list[str] = option(
        [],
        "Python functions f(prompts, completions, **columns) -> list[float], as module:function or "
        "file.py:function; their scores are added",
    )
    weights: list[float] = option(
        [], "one per source: reward_model, models, functions; empty weighs each by 1"
    )
    combine: Literal["sum", "mean", "min", "mean_minus_variance"] = option(
        "sum",
        "how the scores of several reward models become one: min is the worst case, "
        "mean_minus_variance takes off variance_coef times their variance (Coste et al. 2024)",
    )
    variance_coef: float = option(0.5, "λ of mean_minus_variance (Coste et al. 2024)")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        for name in self.functions:
            if not names_function(name):
                return "functions", f"{name!r} must be module:function or file.py:function"
        if self.variance_coef < 0:
            return "variance_coef", "must be 0 or more"
        if any(not math.isfinite(weight) for weight in self.weights):
            return "weights", "must be finite"
        return None


@dataclass
class RolloutSettings(SamplingSettings):
    """How a rollout's answers are sampled."""

    backend: Literal["native", "transformers", "vllm"] = option(
        "native",
        "native: the own decode loop, for Llama, Qwen2, Qwen3 and GPT-2 (others take the second, "
        "with a message); transformers: `generate`, slower and for any model; vllm: another "
        "engine, as rollout.vllm says; all sample the same distribution",
    )
    overlap: bool = option(
        False,
        "sample the next batch while learning from this one: its answers are one update old, and "
        "weighed for that (ppo.importance_cap)",
    )
    overlap_max_kl: float | None = option(
        0.1,
        "nats per token; a batch sampled ahead is dropped and sampled anew when the policy has "
        "moved further from it (importance/kl); null keeps every batch",
    )
    vllm: VLLMSettings = option(VLLMSettings, "rollouts by vLLM")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if self.overlap_max_kl is not None and self.overlap_max_kl < 0:
            return "overlap_max_kl", "must be 0 or more, or null for no bound"
        if self.overlap and self.backend == "transformers":
            return "overlap", "goes with backend=native or vllm; set it to false"
        if self.overlap and self.backend == "vllm" and self.vllm.mode == "colocate":
            return "overlap", "goes with vllm.mode=server: here vLLM and training share the GPU"
        return super().validate()


@dataclass
class PPOSettings:
    """The algorithm's settings, under the names TRL's PPO gave them where it has them."""

    total_episodes: int = option(
        100_000, "answers sampled and learned from in all (InstructGPT §C.4: 256k)"
    )
    batch_size: int = option(512, "answers per update, over all processes (InstructGPT §C.4: 512)")
    num_mini_batches: int = option(
        8, "optimiser steps per pass over a batch (InstructGPT §C.4: minibatches of 64)"
    )
    num_ppo_epochs: int = option(4, "passes over a batch (Ziegler 2019, TRL: 4; InstructGPT: 1)")
    micro_batch_size: int = option(
        8, "answers per forward and backward pass; changes memory, not results", free=True
    )
    learning_rate: float = option(3e-6, "of the policy (Huang et al. 2024: 3e-6)")
    value_learning_rate: float = option(9e-6, "of the value function (InstructGPT §C.4: 9e-6)")
    lr_scheduler: Literal["linear", "constant"] = option(
        "linear", "to 0 over the run (Huang et al. 2024), or constant"
    )
    warmup_updates: int = option(0, "updates spent warming up (InstructGPT §C.4: 10, from a tenth)")
    value_warmup_updates: int = option(0, "first updates train the value function only")
    adam_beta1: float = option(0.9, "AdamW (InstructGPT §C: 0.9)")
    adam_beta2: float = option(0.95, "AdamW (InstructGPT §C: 0.95)")
    adam_epsilon: float = option(1e-5, "AdamW (Huang et al. 2024, detail 20: 1e-5)")
    weight_decay: float = option(0.0, "decoupled weight decay")
    max_grad_norm: float = option(
        1.0, "gradients of policy and value are each scaled down to this norm"
    )
    kl_coef: float = option(
        0.05, "β, price of one nat of KL to the reference (Stiennon 2020: 0.05; InstructGPT 0.02)"
    )
    kl_estimator: Literal["k1", "k2", "k3"] = option(
        "k1",
        "per-token KL estimator in the reward (Schulman 2020); k1 leads to the optimum of "
        "score - β·KL, k2 and k3 bias the gradient and lead elsewhere",
    )
    kl_controller: Literal["fixed", "adaptive"] = option(
        "fixed", "adaptive steers β to kl_target (Ziegler 2019 §2.2)"
    )
    kl_target: float = option(6.0, "adaptive: nats per response to hold (Ziegler 2019: 6)")
    kl_horizon: int = option(
        10_000, "adaptive: episodes over which β adapts (Ziegler 2019: 10,000)"
    )
    target_kl: float | None = option(
        None,
        "an update's passes end when its mean KL from the policy that sampled exceeds this; "
        "null never (Spinning Up: 0.015)",
    )
    max_kl: float | None = option(
        200.0,
        "the run stops when the KL to the reference exceeds this many nats per response; null "
        "never",
        free=True,
    )
    gamma: float = option(1.0, "discount (InstructGPT §C.4: none)")
    lam: float = option(
        0.95, "λ of generalised advantage estimation (Schulman 2016; Ziegler 2019: 0.95)"
    )
    cliprange: float = option(0.2, "ε of the clipped policy objective (Schulman 2017: 0.2)")
    cliprange_value: float = option(
        0.2, "clip of the value update around the old values (Huang et al. 2024: 0.2)"
    )
    importance_cap: float | None = option(
        2.0,
        "C, most that a token weighs in the policy loss where another engine sampled it and said "
        "how likely it was: min(C, π_trainer / π_engine) (Ionides 2008; Yao et al. 2025); null "
        "weighs all alike",
    )
    vf_coef: float = option(0.1, "weight of the value loss (Ziegler 2019: 0.1)")
    whiten_rewards: bool = option(
        False, "unit-variance rewards; the mean stays (Huang et al. 2024, detail 24: off)"
    )
    whiten_advantages: bool = option(
        True, "mean 0, variance 1 over all processes (Huang et al. 2024, detail 25)"
    )
    missing_eos_penalty: float | None = option(
        1.0, "taken from the score of an answer without EOS (TRL: 1.0); null takes nothing"
    )
    missing_eos: Literal["subtract", "replace"] = option(
        "subtract",
        "subtract takes the penalty from the score (TRL); replace makes minus the penalty the "
        "score (Huang et al. 2024: -1)",
    )
    length_penalty: float = option(0.0, "taken from the score for each response token")
    score_scaling: Literal["none", "running", "batch"] = option(
        "none",
        "running divides scores by their standard deviation so far, mean taken off (trlX); batch "
        "by that of the batch",
    )
    score_clip: float | None = option(None, "scores are clipped to ± this; null leaves them")
    eval_every: int = option(
        10, "held-out evaluation every this many updates; 0 = only before and after"
    )
    eval_prompts: int = option(64, "held-out prompts answered at an evaluation")
    eval_gold: bool = option(
        False, "score evaluations with the gold judge as well (needs the embedded model)"
    )
    save_every: int = option(
        10, "checkpoint every this many updates; 0 = only when a failure stops the run", free=True
    )
    save_total_limit: int = option(2, "checkpoints kept, the newest ones", free=True)

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        positive = (
            "total_episodes batch_size num_mini_batches num_ppo_epochs micro_batch_size "
            "learning_rate value_learning_rate max_grad_norm kl_target kl_horizon cliprange "
            "cliprange_value eval_prompts save_total_limit"
        )
        for key in positive.split():
            if getattr(self, key) <= 0:
                return key, "must be greater than 0"
        for key in (
            "kl_coef",
            "vf_coef",
            "weight_decay",
            "eval_every",
            "save_every",
            "warmup_updates",
            "value_warmup_updates",
        ):
            if getattr(self, key) < 0:
                return key, "must be 0 or more"
        for key in ("gamma", "lam"):
            if not 0 <= getattr(self, key) <= 1:
                return key, "must be in [0, 1]"
        for key in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, key) < 1:
                return key, "must be in [0, 1)"
        if self.adam_epsilon < 0:
            return "adam_epsilon", "must be 0 or more"
        if self.importance_cap is not None and self.importance_cap < 1:
            return "importance_cap", "must be 1 or more, or null for no correction"
        if self.target_kl is not None and self.target_kl <= 0:
            return "target_kl", "must be greater than 0, or null for no early stop"
        if self.max_kl is not None and self.max_kl <= 0:
            return "max_kl", "must be greater than 0, or null for no limit"
        if self.missing_eos == "replace" and self.missing_eos_penalty is None:
            return "missing_eos", "replace needs a missing_eos_penalty"
        if self.score_clip is not None and self.score_clip <= 0:
            return "score_clip", "must be greater than 0, or null for no clipping"
        if self.batch_size % self.num_mini_batches:
            return "num_mini_batches", f"must divide batch_size={self.batch_size} exactly"
        if self.total_episodes < self.batch_size:
            return (
                "total_episodes",
                f"must be at least one batch (ppo.batch_size={self.batch_size})",
            )
        return None


@dataclass
class PPOStage:
    """`rlhf ppo`: everything stage 3 can be told."""

    run: RunSettings = option(RunSettings, "where and how to run")
    model: PPOModelSettings = option(PPOModelSettings, "the policy, normally the SFT model")
    reward_model: str = option("", "reward model folder or hub id, with the policy's tokenizer")
    data: DataSettings = option(DataSettings, "prompts")
    rewards: RewardSettings = option(RewardSettings, "more sources of reward")
    rollout: RolloutSettings = option(RolloutSettings, "how answers are sampled")
    ppo: PPOSettings = option(PPOSettings, "the algorithm")
    monitors: MonitorSettings = option(MonitorSettings, "signs of reward hacking, and samples")
    ptx: PtxSettings = option(PtxSettings, "a language-modelling loss beside PPO's")

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        models = len(self.rewards.models) + bool(self.reward_model)
        sources = models + len(self.rewards.functions)
        if not sources:
            return (
                "reward_model",
                "name the reward model, e.g. reward_model=runs/demo/reward/model, or a function "
                "under rewards.functions",
            )
        weights = self.rewards.weights
        if weights and len(weights) != sources:
            return "rewards.weights", f"must be one per source, and there are {sources}"
        if self.rewards.combine != "sum" and models < 2:
            return "rewards.combine", "needs two reward models or more"
        if self.rewards.combine == "mean" and weights and sum(weights[:models]) <= 0:
            return "rewards.weights", "the weights of the reward models must have a sum above 0"
        if self.monitors.stop and not (self.monitors.rewards or self.ppo.eval_gold):
            return (
                "monitors.stop",
                "needs a held-out reward; name one under monitors.rewards, or set "
                "ppo.eval_gold=true",
            )
        learned = {self.reward_model, *self.rewards.models, *self.rewards.functions}
        for name in self.monitors.rewards:
            if name in learned:
                return "monitors.rewards", f"{name} is learned from, so it is not held out"
        if self.rollout.temperature == 0:
            return "rollout.temperature", "greedy rollouts cannot be learned from; use 1"
        if self.rollout.backend == "vllm":
            misfit = self.rollout.vllm.misfit(self.model.layout)
            if misfit is not None:
                return f"rollout.vllm.{misfit[0]}", misfit[1]
        if self.model.load_in_4bit:
            return "model.load_in_4bit", "PPO does not train on 4-bit weights; set it to false"
        return None

    def inputs(self) -> dict[str, str]:
        """Return a fingerprint of everything the stage reads, by name."""
        models = {f"rewards.models.{i}": name for i, name in enumerate(self.rewards.models)}
        sources: dict[str, str | None] = {
            "model": self.model.name,
            "reward_model": self.reward_model,
            "data": self.data.train,
            "test": self.data.test,
            "ptx": self.ptx.data,
            "ptx.test": self.ptx.test,
        }
        named = [*self.rewards.functions, *filter(names_function, self.monitors.rewards)]
        models |= {name: name for name in self.monitors.rewards if not names_function(name)}
        functions = {name: function_digest(name) for name in named}
        return fingerprints({**sources, **models}) | functions
