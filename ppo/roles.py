"""The roles of PPO: trained policy and value, frozen reference and reward, actor, and trunk."""

import copy
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ppo.config import PPOModelSettings
from ppo.trunk import check_family, lower_half, same_lower_half, upper_half
from workbench.errors import UserError
from workbench.models import (
    CLASSIFIER,
    ModelSettings,
    compute_dtype,
    decoder_layers,
    is_reward_model,
    load_policy,
    load_scorer,
    lora_config,
)
from workbench.scorer import apply_head, read_normalizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGIT_ROWS = 256  # rows of logits alive at a time: 256 × 49,152 × 4 bytes = 50 MB


class Batch(NamedTuple):
    """Sequences of query and response, padded on the right.

    Attributes:
        input_ids: [B, T].
        attention_mask: [B, T], 1 on real tokens.
        rows, columns: [N], where the N response tokens of the batch stand in [B, T].
        hidden: [B, T, d], activations of the trunk, or None where there is none.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    hidden: torch.Tensor | None


class TokenStats(NamedTuple):
    """Per response token, [N] float32: its log-probability, and the entropy of its distribution."""

    logprobs: torch.Tensor
    entropy: torch.Tensor


class ActorCritic(nn.Module):
    """What PPO trains: policy and value, each with its own upper layers.

    One module, so that Accelerate wraps it once.
    """

    def __init__(self, policy: Any, lm_head: nn.Module, value: Any, value_head: nn.Linear) -> None:
        super().__init__()
        self.policy, self.value, self.value_head = policy, value, value_head
        # Tied to the frozen embedding in small models; then kept out of the trained parameters.
        self.lm_head = lm_head

    def forward(self, batch: Batch, temperature: float) -> tuple[TokenStats, torch.Tensor]:
        """Return the policy's statistics of the N response tokens, and their values, [N]."""
        stats = token_stats(
            before_tokens(self.policy, batch), self.lm_head, response_tokens(batch), temperature
        )
        values = apply_head(self.value_head, before_tokens(self.value, batch))
        return stats, values


class Roles:
    """All models of a PPO run.

    Attributes:
        actor: the causal language model that samples; its weights follow the policy's
            (`sync_actor`).
        trained: policy and value.
        depth: number of frozen lower layers shared by all roles; 0 for none.
    """

    def __init__(
        self, settings: PPOModelSettings, reward_model: str | None, device: torch.device
    ) -> None:
        """Load the models and split them as the layout says.

        Args:
            settings: of the policy.
            reward_model: folder or hub id of one with the policy's tokenizer; None for none, where
                rewards come from elsewhere: then the value starts as the policy with a head of 0.
            device: of all roles.

        Raises:
            UserError: when policy and reward model do not fit the layout.
        """
        self.settings, self.dtype, self.device = settings, compute_dtype(settings.precision), device
        self.actor: PreTrainedModel = load_policy(settings, self.dtype).eval().to(device)
        reward = None if reward_model is None else self._reward(reward_model)
        self.mean, self.std = (0.0, 1.0) if reward is None else read_normalizer(reward)
        self.depth = self._depth(reward, reward_model)
        for model in (self.actor, reward):
            if model is not None:
                model.requires_grad_(False)
        self.trunk = lower_half(self.actor, self.depth) if self.depth else None
        if self.depth:
            self.reference = copy.deepcopy(upper_half(self.actor, self.depth))
            self.reference_head = self.actor.get_output_embeddings()  # frozen in this layout
        else:
            # With a head of its own: the actor's follows the policy's.
            whole = copy.deepcopy(self.actor)
            self.reference, self.reference_head = whole.base_model, whole.get_output_embeddings()
        self.reward = None if reward is None else upper_half(reward, self.depth)
        self.reward_head = None if reward is None else reward.score
        self.lora = settings.lora.enabled
        # Dropout stays off: ratios compare a rollout's log-probabilities with those of training.
        self.trained = self._trained().eval().to(device)

    def _reward(self, name: str) -> "PreTrainedModel":
        reward = load_scorer(_like(self.settings, name), self.dtype).eval().to(self.device)
        if not is_reward_model(name) and CLASSIFIER not in str(reward.config.architectures):
            raise UserError(
                f"{name}: is not a reward model, it has no trained head; "
                "name what `rlhf reward` left, e.g. reward_model=runs/demo/reward/model"
            )
        if reward.config.vocab_size != self.actor.config.vocab_size:
            raise UserError(
                f"{name}: has {reward.config.vocab_size} tokens, "
                f"the policy {self.settings.name} has {self.actor.config.vocab_size}; "
                "PPO needs a reward model with the policy's tokenizer"
            )
        return reward

    def _depth(self, reward: "PreTrainedModel | None", name: str | None) -> int:
        if self.settings.layout == "separate" or self.settings.train_top_layers is None:
            return 0
        check_family(self.actor)
        depth = len(decoder_layers(self.actor)) - self.settings.train_top_layers
        if depth < 1:
            raise UserError(
                f"model.train_top_layers={self.settings.train_top_layers}: "
                "leaves no layer to share; use fewer, "
                "or model.layout=separate"
            )
        if reward is not None and not same_lower_half(self.actor, reward, depth):
            raise UserError(
                f"{name}: its lower {depth} layers differ from the policy's, "
                "so they cannot be shared; train it with the "
                "same model.train_top_layers, or use model.layout=separate"
            )
        return depth

    def _trained(self) -> ActorCritic:
        head = nn.Linear(self.actor.config.hidden_size, 1)
        with torch.no_grad():
            if self.reward_head is None:
                head.weight.zero_()
                head.bias.zero_()
            else:
                # The value starts as the reward model, in normalised scores (Ouyang et al. 2022,
                # §C.4).
                head.weight.copy_(self.reward_head.weight.float() / self.std)
                head.bias.fill_(-self.mean / self.std)
        value = copy.deepcopy(self.reference if self.reward is None else self.reward).float()
        if self.lora:
            self.adapter = self._adapter()
            base = self.adapter.get_base_model()
            policy: Any = base.base_model
            lm_head = base.get_output_embeddings()
            value.requires_grad_(True)
        elif self.depth:
            policy, lm_head = (
                copy.deepcopy(self.reference).float(),
                self.actor.get_output_embeddings(),
            )
            policy.requires_grad_(True)
            value.requires_grad_(True)
        else:
            whole = copy.deepcopy(self.actor).float()
            whole.requires_grad_(True)
            policy, lm_head = whole.base_model, whole.get_output_embeddings()
            value.requires_grad_(True)
        return ActorCritic(policy, lm_head, value, head)

    def _adapter(self) -> Any:
        from peft import get_peft_model
        from peft.tuners.lora import LoraLayer

        where = f"model.lora.target_modules={self.settings.lora.target_modules!r}"
        try:
            adapter = get_peft_model(
                copy.deepcopy(self.actor).float(), lora_config(self.settings.lora, "CAUSAL_LM")
            )
        except ValueError as error:  # no such module, or one that cannot be adapted
            raise UserError(f"{where}: {error}") from None
        base = adapter.get_base_model()
        ends = (base.get_input_embeddings(), base.get_output_embeddings())
        # Many models tie the two, so that an adapter of one could not be merged without the other.
        if any(isinstance(module, LoraLayer) for module in ends):
            raise UserError(f"{where}: PPO adapts neither embedding nor head; leave them out")
        return adapter

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of all forward passes: bf16 over fp32 weights, or plain fp32."""
        return torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16
        )

    @torch.no_grad()
    def activations(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor | None:
        """Return the trunk's output, [B, T, d], None without a trunk; computed once per rollout."""
        if self.trunk is None:
            return None
        hidden: torch.Tensor = self.trunk(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=_positions(attention_mask),
            use_cache=False,
        ).last_hidden_state
        return hidden

    @torch.no_grad()
    def reference_logprobs(self, batch: Batch, temperature: float) -> torch.Tensor:
        """Return log-probabilities of the response tokens under the reference, [N]."""
        hidden = before_tokens(self.reference, batch)
        tokens = response_tokens(batch)
        return token_stats(hidden, self.reference_head, tokens, temperature).logprobs

    @torch.no_grad()
    def scores(self, batch: Batch) -> torch.Tensor:
        """Return normalised reward model scores, read at the last token of each sequence, [B]."""
        hidden = _forward(self.reward, batch)
        last = batch.attention_mask.sum(-1) - 1
        raw = apply_head(
            self.reward_head, hidden[torch.arange(len(last), device=last.device), last]
        )
        return (raw - self.mean) / self.std

    @torch.no_grad()
    def sync_actor(self) -> None:
        """Copy the policy's weights into the actor, in its type, before sampling and saving."""
        if self.lora:
            self._sync_adapter()
            return
        target = upper_half(self.actor, self.depth)
        weights = dict(self.trained.policy.named_parameters())
        for name, parameter in target.named_parameters():
            parameter.copy_(weights[name])
        if self.depth == 0:
            # Some families' heads have a bias.
            head = dict(self.trained.lm_head.named_parameters())
            for name, parameter in self.actor.get_output_embeddings().named_parameters():
                parameter.copy_(head[name])

    def _sync_adapter(self) -> None:
        from peft.tuners.lora import LoraLayer

        adapted = {
            name: module
            for name, module in self.trained.policy.named_modules()
            if isinstance(module, LoraLayer)
        }
        targets = dict(self.actor.base_model.named_modules())
        for name, module in adapted.items():
            merged = module.get_base_layer().weight + module.get_delta_weight("default")
            targets[name].weight.copy_(merged)


def before_tokens(model: Any, batch: Batch) -> torch.Tensor:
    """Return the last hidden states from which the response tokens are predicted, [N, d]."""
    # The state *before* token t decides over it: column t - 1.
    return _forward(model, batch)[batch.rows, batch.columns - 1]


def response_tokens(batch: Batch) -> torch.Tensor:
    """Return the response tokens of a batch, [N]."""
    return batch.input_ids[batch.rows, batch.columns]


def token_stats(
    hidden: torch.Tensor, lm_head: nn.Module, tokens: torch.Tensor, temperature: float
) -> TokenStats:
    """Return log-probability and entropy of tokens; logits for them only, a few rows at a time.

    Args:
        hidden: [N, d].
        lm_head: maps [n, d] to logits [n, V].
        tokens: [N].
        temperature: divides the logits, for log-probabilities and entropy alike.
    """

    def part(rows: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logprobs = torch.log_softmax(lm_head(rows).float() / temperature, dim=-1)
        chosen = logprobs.gather(-1, targets[:, None]).squeeze(-1)
        return chosen, -(logprobs.detach().exp() * logprobs.detach()).sum(-1)

    pieces = []
    for start in range(0, len(tokens), LOGIT_ROWS):
        rows, targets = hidden[start : start + LOGIT_ROWS], tokens[start : start + LOGIT_ROWS]
        if hidden.requires_grad:
            # Logits are computed again in the backward pass: cheaper than keeping [N, V] for it.
            pieces.append(checkpoint(part, rows, targets, use_reentrant=False))
        else:
            pieces.append(part(rows, targets))
    logprobs, entropy = (torch.cat(column) for column in zip(*pieces, strict=True))
    return TokenStats(logprobs, entropy)


def _forward(model: Any, batch: Batch) -> torch.Tensor:
    inputs = (
        {"input_ids": batch.input_ids} if batch.hidden is None else {"inputs_embeds": batch.hidden}
    )
    hidden: torch.Tensor = model(
        **inputs,
        attention_mask=batch.attention_mask,
        position_ids=_positions(batch.attention_mask),
        use_cache=False,
    ).last_hidden_state
    return hidden


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    return (attention_mask.cumsum(-1) - 1).clamp_min(0)


def _like(settings: PPOModelSettings, name: str) -> ModelSettings:
    return ModelSettings(
        name=name,
        precision=settings.precision,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
        attn_implementation=settings.attn_implementation,
    )
