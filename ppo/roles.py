"""The roles of PPO: trained policy and value, frozen reference and reward, actor, and trunk."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ppo.config import PPOModelSettings
from ppo.logprobs import TokenStats, check_logits, token_stats
from ppo.lora import POLICY, REWARD, VALUE, Adapters, RewardAdapter, Role, read_reward_adapter
from ppo.norms import quick_norms
from ppo.sharding import Shards, skeleton
from ppo.top_layer import states_at
from ppo.trunk import check_family, lower_half, same_lower_half, upper_half
from workbench.attention import prefer_causal
from workbench.errors import UserError
from workbench.logs import console
from workbench.models import (
    CLASSIFIER,
    ModelSettings,
    compute_dtype,
    decoder_layers,
    is_reward_model,
    load_policy,
    load_scorer,
)
from workbench.scorer import apply_head, read_normalizer

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


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


class ActorCritic(nn.Module):
    """What PPO trains: policy and value, each with its own upper layers.

    One module, so that Accelerate wraps it once.
    """

    def __init__(self, policy: Any, lm_head: nn.Module, value: Any, value_head: nn.Linear) -> None:
        super().__init__()
        self.policy, self.value, self.value_head = policy, value, value_head
        # Tied to the frozen embedding in small models; then kept out of the trained parameters.
        self.lm_head = lm_head

    def forward(
        self, batch: Batch, temperature: float, parts: Sequence[str] = ("policy", "value")
    ) -> tuple[TokenStats | None, torch.Tensor | None]:
        """Return the policy's statistics of the N response tokens, and their values, [N].

        What `parts` does not name is None.
        """
        stats, values = None, None
        if "policy" in parts:
            before = before_tokens(self.policy, batch)
            stats = token_stats(before, self.lm_head, response_tokens(batch), temperature)
        if "value" in parts:
            values = apply_head(self.value_head, before_tokens(self.value, batch))
        return stats, values


class Roles:
    """All models of a PPO run.

    Attributes:
        actor: the causal language model that samples; its weights follow the policy's
            (`sync_actor`).
        trained: policy and value.
        adapters: those on the one model of all roles; None in layouts with models of their own.
        depth: number of frozen lower layers shared by all roles; 0 for none.
        trunk: computes the activations that roles share; None where there are none.
        shards: keeps the weights split among processes; None where each process has them all.
    """

    shards: Shards | None = None

    def __init__(
        self,
        settings: PPOModelSettings,
        reward_model: str | None,
        device: torch.device,
        mesh: "DeviceMesh | None" = None,
    ) -> None:
        """Load the models and split them as the layout says.

        Args:
            settings: of the policy.
            reward_model: folder or hub id of one with the policy's tokenizer; None for none, where
                rewards come from elsewhere: then the value starts as the policy with a head of 0.
            device: of all roles.
            mesh: of the processes that share the weights among them; None where each has them all.

        Raises:
            UserError: when policy and reward model do not fit the layout.
        """
        self.settings, self.dtype, self.home = settings, compute_dtype(settings.precision), device
        # A device holds no more than its part of what is split: that is read into plain memory.
        self.device = device if mesh is None else torch.device("cpu")
        self.actor: PreTrainedModel = self._policy()
        plain = None if mesh is None else skeleton(self.actor)
        found = self._reward_adapter(reward_model)
        reward = None
        if reward_model is not None and found is None:
            reward = self._reward(reward_model).requires_grad_(False)
        self.mean, self.std = (0.0, 1.0) if reward is None else read_normalizer(reward)
        self.depth = self._depth()
        self.embedded = settings.train_top_layers is not None
        # Whether the reward model is fed with the trunk's activations, or reads tokens.
        self.reward_embedded = self.embedded and self._fits(reward, reward_model)
        self.adapters: Adapters | None = None
        self.trunk: Any = lower_half(self.actor, self.depth) if self.embedded else None
        self.reward: Any = None
        self.reward_head: nn.Linear | None = None
        if reward is not None:
            self.reward_head = reward.score
            self.reward = self._part(reward) if self.reward_embedded else reward.base_model
        if settings.layout == "lora":
            self._adapt(found)
        elif self.embedded:
            self.reference: Any = copy.deepcopy(self._part(self.actor))
            self.reference_head = self.actor.get_output_embeddings()  # frozen in this layout
        else:
            # With a head of its own: the actor's follows the policy's.
            whole = copy.deepcopy(self.actor)
            self.reference, self.reference_head = whole.base_model, whole.get_output_embeddings()
        # Dropout stays off: ratios compare a rollout's log-probabilities with those of training.
        self.trained = self._trained().eval().to(self.device)
        self.device = device
        if mesh is not None and plain is not None:
            self.shards = Shards(self, plain, mesh)

    def _policy(self) -> "PreTrainedModel":
        policy = load_policy(self.settings, self.dtype).eval().to(self.device)
        policy.requires_grad_(False)
        self._prefer_causal(policy)
        quick_norms(policy)
        check_logits(policy, self.settings.name)
        return policy

    def _prefer_causal(self, model: "PreTrainedModel") -> None:
        if self.home.type == "cpu":
            prefer_causal(model)

    def _reward_adapter(self, name: str | None) -> RewardAdapter | None:
        if self.settings.layout != "lora" or name is None:
            return None
        found = read_reward_adapter(name, self.settings.name)
        if isinstance(found, RewardAdapter):
            return found
        console.print(
            f"ppo: {name} {found}: it stays a frozen model of its own beside the trunk, and the "
            "value starts from its head",
            markup=False,
        )
        return None

    def _reward(self, name: str) -> "PreTrainedModel":
        reward = load_scorer(_like(self.settings, name), self.dtype).eval().to(self.device)
        self._prefer_causal(reward)
        quick_norms(reward)
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

    def _depth(self) -> int:
        if self.settings.train_top_layers is None:
            return 0
        check_family(self.actor)
        depth = len(decoder_layers(self.actor)) - self.settings.train_top_layers
        if depth < 0:
            raise UserError(
                f"model.train_top_layers={self.settings.train_top_layers}: "
                f"the policy has {len(decoder_layers(self.actor))} layers; use fewer"
            )
        return depth

    def _fits(self, reward: "PreTrainedModel | None", name: str | None) -> bool:
        if reward is None:
            return False
        fits = same_lower_half(self.actor, reward, self.depth)
        if not fits and self.settings.layout == "shared_trunk":
            raise UserError(
                f"{name}: its embedding or lower {self.depth} layers differ from the policy's, "
                "so they cannot be shared; train it with the "
                "same model.train_top_layers, or use model.layout=separate"
            )
        return fits

    def _part(self, model: "PreTrainedModel") -> Any:
        return upper_half(model, self.depth, embedded=self.embedded)

    def _adapt(self, found: RewardAdapter | None) -> None:
        """Make policy, value, reference and, if it is an adapter, reward of the one model."""
        self.adapters = adapters = Adapters(self.actor, self.settings.lora, self.depth)
        upper = self._part(self.actor)
        if self.trunk is not None:
            self.trunk = Role(adapters, None, self.trunk)
        if found is not None:
            self.mean, self.std = found.mean, found.std
            adapters.add_reward(found)
            self.reward_embedded = self.embedded and adapters.reaches(REWARD) >= self.depth
            body = upper if self.reward_embedded else self.actor.base_model
            self.reward = Role(adapters, REWARD, body)
            self.reward_head = nn.Linear(found.head.shape[1], 1, bias=False, device=self.device)
            self.reward_head.weight = nn.Parameter(found.head.to(self.device), requires_grad=False)
        else:
            adapters.add(VALUE)
        self.actor.to(self.device)
        self.reference = Role(adapters, None, upper)
        self.reference_head = self.actor.get_output_embeddings()

    def _trained(self) -> ActorCritic:
        width = self.actor.config.hidden_size
        if self.adapters is None and self.reward_head is not None:
            width = self.reward_head.weight.shape[1]
        head = nn.Linear(width, 1)
        with torch.no_grad():
            if self.reward_head is None or self.reward_head.weight.shape[1] != width:
                head.weight.zero_()
                head.bias.zero_()
            else:
                # The value starts as the reward model, in normalised scores (Ouyang et al. 2022,
                # §C.4).
                head.weight.copy_(self.reward_head.weight.float() / self.std)
                head.bias.fill_(-self.mean / self.std)
        lm_head = self.actor.get_output_embeddings()
        if self.adapters is not None:
            upper = self._part(self.actor)
            policy, value = (Role(self.adapters, name, upper) for name in (POLICY, VALUE))
            return ActorCritic(policy, lm_head, value, head)
        value = copy.deepcopy(self.reference if self.reward is None else self.reward).float()
        value.requires_grad_(True)
        if self.embedded:
            policy = copy.deepcopy(self.reference).float().requires_grad_(True)
        else:
            whole = copy.deepcopy(self.actor).float().requires_grad_(True)
            policy, lm_head = whole.base_model, whole.get_output_embeddings()
        return ActorCritic(policy, lm_head, value, head)

    @contextmanager
    def sampling(self) -> Iterator["PreTrainedModel"]:
        """Yield the actor as it samples fastest; every process must enter where it is split."""
        if self.shards is not None:
            with self.shards.actor() as actor:
                yield actor
            return
        with nullcontext() if self.adapters is None else self.adapters.merged(POLICY):
            yield self.actor

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of all forward passes: bf16 over fp32 weights, or plain fp32."""
        return torch.autocast(
            self.device.type,
            torch.bfloat16,
            enabled=self.dtype == torch.bfloat16,
            # A cast that is kept would outlive the gathered weight, and lose its gradient.
            cache_enabled=self.shards is None,
        )

    @torch.no_grad()
    def activations(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,  # noqa: ARG002
    ) -> torch.Tensor | None:
        """Return the trunk's output, [B, T, d], None without a trunk; computed once per rollout.

        The sequences are padded on the right, so the mask (`Batch`) is not needed.
        """
        if self.trunk is None:
            return None
        hidden: torch.Tensor = self.trunk(input_ids=input_ids, use_cache=False).last_hidden_state
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
        if not self.reward_embedded:
            batch = batch._replace(hidden=None)
        raw = apply_head(self.reward_head, last_states(self.reward, batch))
        return (raw - self.mean) / self.std

    @torch.no_grad()
    def sync_actor(self) -> None:
        """Copy the policy's weights into the actor, in its type, before sampling and saving."""
        if self.adapters is not None:
            return  # the actor is the trunk with the policy's adapter
        target = self._part(self.actor)
        weights = dict(self.trained.policy.named_parameters())
        for name, parameter in target.named_parameters():
            parameter.copy_(weights[name])
        if not self.embedded:
            # Some families' heads have a bias.
            head = dict(self.trained.lm_head.named_parameters())
            for name, parameter in self.actor.get_output_embeddings().named_parameters():
                parameter.copy_(head[name])


def before_tokens(model: Any, batch: Batch) -> torch.Tensor:
    """Return the last hidden states from which the response tokens are predicted, [N, d]."""
    # The state *before* token t decides over it: column t - 1.
    return states_at(model, _inputs(batch), batch.rows, batch.columns - 1)


def last_states(model: Any, batch: Batch) -> torch.Tensor:
    """Return the last hidden state of each sequence's last token, [B, d]."""
    last = batch.attention_mask.sum(-1) - 1
    return states_at(model, _inputs(batch), torch.arange(len(last), device=last.device), last)


def response_tokens(batch: Batch) -> torch.Tensor:
    """Return the response tokens of a batch, [N]."""
    return batch.input_ids[batch.rows, batch.columns]


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    # Padding stands on the right: causal attention never looks at it, and positions count from 0.
    # Without a mask the attention kernel skips what the mask would only hide.
    if batch.hidden is None:
        return {"input_ids": batch.input_ids}
    return {"inputs_embeds": batch.hidden}


def _like(settings: PPOModelSettings, name: str) -> ModelSettings:
    return ModelSettings(
        name=name,
        precision=settings.precision,
        trust_remote_code=settings.trust_remote_code,
        allow_pickle=settings.allow_pickle,
        attn_implementation=settings.attn_implementation,
    )
