"""Roles made of models that are in memory, as scripts for TRL's PPO hand them in."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ppo.config import PPOModelSettings
from ppo.logprobs import check_logits
from ppo.lora import POLICY, Adapters, Role
from ppo.norms import quick_norms
from ppo.roles import ActorCritic, Roles
from workbench.attention import prefer_causal
from workbench.errors import UserError
from workbench.models import LoraSettings, check_plain_logits, compute_dtype
from workbench.scorer import read_normalizer, write_normalizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class GivenRoles(Roles):
    """Roles made of given models, whole ones but for a policy with an adapter.

    Policy and value are trained where they are, in float32; reference and reward are frozen.
    """

    def __init__(
        self,
        settings: PPOModelSettings,
        device: torch.device,
        *,
        policy: "PreTrainedModel",
        reference: "PreTrainedModel | None" = None,
        reward: "PreTrainedModel | None" = None,
        value: "PreTrainedModel | None" = None,
        peft_config: Any = None,
    ) -> None:
        """Put given models together.

        Args:
            settings: name and precision of the policy.
            device: of all roles.
            policy: causal language model.
            reference: None takes a copy of the policy, or the policy without its adapter.
            reward: sequence classifier with one output that reads the policy's tokens; None where
                rewards come from elsewhere.
            value: sequence classifier with one output; None takes a copy of the reward model, or of
                the policy with a head of 0.
            peft_config: a `peft.LoraConfig` of the policy's adapter; None trains all weights that
                require gradients.

        Raises:
            UserError: for models that cannot take their role.
        """
        self.settings, self.dtype, self.device = settings, compute_dtype(settings.precision), device
        self.depth, self.embedded, self.reward_embedded, self.trunk = 0, False, False, None
        self.adapters: Adapters | None = None
        _check_policy(policy)
        for name, model in (("reward_model", reward), ("value_model", value)):
            _check_scorer(name, model)
        if reward is not None and _rows(reward) < _rows(policy):
            raise UserError(
                f"reward_model: reads {_rows(reward)} tokens, the policy writes {_rows(policy)}; "
                "hand in workbench.scorer.RewardModel(reward_model, its tokenizer) in its place"
            )
        self.mean, self.std = (0.0, 1.0) if reward is None else read_normalizer(reward)
        self.reward: Any = None
        self.reward_head: Any = None
        for model in (policy, reference, reward, value):
            if model is not None:
                prefer_causal(model)
                quick_norms(model)
        # Before the roles share anything: a copy is of what was handed in.
        critic = self._value(value, reward, policy)
        if reward is not None:
            reward.requires_grad_(False).eval().to(device)
            self.reward, self.reward_head = reward.base_model, reward.score
        if reference is None and peft_config is None:
            reference = copy.deepcopy(policy).to(self.dtype)
        if reference is not None:
            reference.requires_grad_(False).eval().to(device)
            self.reference: Any = reference.base_model
            self.reference_head = reference.get_output_embeddings()
        body: Any
        if peft_config is None:
            self.actor = copy.deepcopy(policy).requires_grad_(False).eval().to(device, self.dtype)
            policy.float().to(device)
            body = policy.base_model
        else:
            self.actor = policy.requires_grad_(False).to(self.dtype)
            self.adapters = _GivenAdapters(policy, peft_config)
            policy.to(device)
            body = Role(self.adapters, POLICY, policy.base_model)
            if reference is None:
                self.reference = Role(self.adapters, None, policy.base_model)
                self.reference_head = policy.get_output_embeddings()
        check_logits(self.actor, "model")
        self.policy_model, self.value_model, self.reward_model = policy, critic, reward
        self.ref_model = reference
        lm_head = policy.get_output_embeddings()
        # Dropout stays off: ratios compare a rollout's log-probabilities with those of training.
        module = ActorCritic(body, lm_head, critic.base_model, critic.score)
        self.trained = module.eval().to(device)

    def _value(
        self,
        value: "PreTrainedModel | None",
        reward: "PreTrainedModel | None",
        policy: "PreTrainedModel",
    ) -> Any:
        if value is None and reward is None:
            return _fresh_value(policy)
        # The reward stays as it is while the value learns, also if one object was meant for both.
        given: Any = copy.deepcopy(reward) if value is None or value is reward else value
        if value is None or value is reward:
            given.requires_grad_(True)
        given.float()
        mean, std = read_normalizer(given)
        if (mean, std) != (0.0, 1.0):
            # Values are sums of scores, and scores are normalised.
            old = given.score
            given.score = nn.Linear(old.weight.shape[1], 1, device=old.weight.device)
            with torch.no_grad():
                given.score.weight.copy_(old.weight / std)
                bias = 0.0 if old.bias is None else float(old.bias)
                given.score.bias.fill_((bias - mean) / std)
            write_normalizer(given, 0.0, 1.0)
        return given


class _GivenAdapters(Adapters):
    """The policy's adapter as a given `LoraConfig` has it."""

    def __init__(self, model: "PreTrainedModel", config: Any) -> None:
        from peft import LoraConfig

        if not isinstance(config, LoraConfig):
            raise UserError(
                f"peft_config: is a {type(config).__name__}; only peft.LoraConfig is supported"
            )
        if config.bias != "none" or config.use_dora or config.modules_to_save:
            raise UserError(
                "peft_config: bias, use_dora and modules_to_save train more than LoRA's matrices; "
                "leave them out"
            )
        self.given = copy.deepcopy(config)
        self.given.lora_dropout = 0.0  # as all dropout
        super().__init__(model, LoraSettings(target_modules=config.target_modules or ""))

    def _config(self) -> Any:
        return copy.deepcopy(self.given)


class _FreshValue(nn.Module):
    """A copy of the policy's decoder, with a head of 0."""

    def __init__(self, base_model: Any, width: int) -> None:
        super().__init__()
        self.base_model, self.score = base_model, nn.Linear(width, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)


def _fresh_value(policy: "PreTrainedModel") -> _FreshValue:
    copied = copy.deepcopy(policy.base_model).float().requires_grad_(True)
    return _FreshValue(copied, policy.config.get_text_config(decoder=True).hidden_size)


def _check_policy(policy: Any) -> None:
    from peft import PeftModel

    if isinstance(policy, PeftModel):
        raise UserError(
            "model: is a PeftModel; hand in the model below it and peft_config, or what its "
            "merge_and_unload() returns"
        )
    if not hasattr(policy, "get_output_embeddings") or policy.get_output_embeddings() is None:
        raise UserError(f"model: is a {type(policy).__name__}; hand in an AutoModelForCausalLM")
    check_plain_logits(policy, "model")


def _check_scorer(name: str, model: Any) -> None:
    if model is None:
        return
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.weight.shape[0] != 1:
        raise UserError(
            f"{name}: needs a linear head `score` with one output; load it by "
            "AutoModelForSequenceClassification.from_pretrained(name, num_labels=1)"
        )


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])
