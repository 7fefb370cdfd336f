"""What PPO holds in memory, and what its phases take: the real roles, made without weights."""

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from ppo.config import PPOModelSettings, PPOSettings
from ppo.lora import REWARD, RewardAdapter, Role
from ppo.norms import quick_norms
from ppo.roles import Batch, Roles
from ppo.trunk import lower_half
from workbench.attention import causal_attention
from workbench.config import load_config
from workbench.decoder import Decoder
from workbench.decoding_cache import decoding_cache, spread
from workbench.errors import UserError
from workbench.generation import choose
from workbench.models import lora_config
from workbench.plan.live import FORWARD, Live
from workbench.plan.memory import (
    FEW_LAYERS,
    Part,
    Request,
    Reward,
    StageMemory,
    from_few,
    model_settings,
    prepare_gradients,
    tensors,
    training_parts,
)
from workbench.plan.skeleton import Dataless, classifier, language_model, with_layers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TEMPERATURE = 1.0
PLANNED = "rlhf_planned"
ROLLOUT, SCORE, UPDATE = "rollout", "score", "update"


class PlannedRoles(Roles):
    """The roles of a run, of models that a config describes, without their weights.

    They are made on the meta device, and are like the real ones in all else. The reward model is
    one of the policy's kind: a model of its own, or in the lora layout an adapter on all layers.
    """

    def __init__(
        self,
        settings: PPOModelSettings,
        config: "PreTrainedConfig",
        *,
        cpu: bool,
        sharded: bool = False,
        reward: Reward = "whole",
    ) -> None:
        """Make the roles.

        Args:
            settings: of the policy.
            config: of its model.
            cpu: whether attention is as it is on a CPU.
            sharded: whether weights are cast anew for every product, as those that are gathered.
            reward: `whole` as `rlhf reward` leaves it, `adapter` with model.lora.enabled=true.
        """
        self.planned_reward = reward
        self.model_config, self.cpu, self.sharded = config, cpu, sharded
        self.dataless = Dataless()
        with torch.device("meta"):
            super().__init__(settings, "a reward model", torch.device("meta"))

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of all forward passes, as in the real roles."""
        bf16, plain = self.dtype == torch.bfloat16, not self.sharded
        return torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=plain)

    def models(self) -> list[nn.Module]:
        """Return all modules of the roles; some share their weights."""
        found = (self.trained, self.actor, self.reference, self.reference_head)
        return [part for part in (*found, self.reward, self.reward_head) if part is not None]

    def _policy(self) -> "PreTrainedModel":
        return self._ready(language_model(self.model_config, self.dtype))

    def _reward(self, name: str) -> "PreTrainedModel":  # noqa: ARG002
        return self._ready(classifier(self.model_config, self.dtype))

    def _ready(self, model: "PreTrainedModel") -> "PreTrainedModel":
        model.eval().requires_grad_(False)
        # Padding stands on the right, so that no mask is made; to see that, transformers would have
        # to read data. On a CPU the kernel is the one that `prefer_causal` sets.
        name = f"{PLANNED}_cpu" if self.cpu else PLANNED
        AttentionInterface.register(name, causal_attention if self.cpu else sdpa_attention_forward)
        AttentionMaskInterface.register(name, lambda *_, **__: None)
        model.config._attn_implementation = name
        quick_norms(model)
        return model

    def _reward_adapter(self, name: str | None) -> RewardAdapter | None:
        if self.settings.layout != "lora" or self.planned_reward == "whole":
            return None
        head = torch.empty(1, self.model_config.hidden_size)
        lora = lora_config(self.settings.lora, "CAUSAL_LM")
        return RewardAdapter(str(name), lora, {}, head, 0.0, 1.0)

    def _fits(self, reward: "PreTrainedModel | None", name: str | None) -> bool:  # noqa: ARG002
        # A whole one has learned in all its layers; where lower ones must be shared it has not.
        return self.embedded and reward is not None and self.settings.layout == "shared_trunk"


class PPOMemory(StageMemory):
    """The memory of `rlhf ppo`."""

    phases = (ROLLOUT, SCORE, UPDATE)

    def __init__(self, request: Request) -> None:
        """Count what is held.

        Raises:
            UserError: for a layout that the model cannot have.
        """
        super().__init__(request)
        if request.sharding == "fsdp2" and request.layout == "separate":
            raise UserError(
                "--sharding fsdp2: PPO does not shard the layout separate; use --layout lora or "
                "shared_trunk, or --sharding none"
            )
        item, counts = request.dtype.itemsize, request.counts
        self.layers = request.top_layers or counts.depth
        self.top = request.top_layers is not None
        if self.layers > counts.depth:
            raise UserError(f"--top-layers {self.layers}: the model has {counts.depth} layers")
        self.small: dict[tuple[int, int], PlannedRoles] = {}
        self.parts, self.trained = self._held()
        self.parts += tuple(training_parts(self.trained, request))
        # As in `ppo.sharding`: the whole actor while it samples; otherwise a layer and the next,
        # in the type they are kept in, and an embedding or a head.
        kept = item if request.layout == "lora" else 4
        passing = item * counts.head + 2 * kept * counts.layer
        self.gathered = {ROLLOUT: item * counts.total, SCORE: passing, UPDATE: passing}

    def kept(self, rows: int) -> int:
        """Return the bytes of a device's rows from the rollout to the end of the update."""
        request = self.request
        # Log-probabilities of two models, values, entropy, mask, advantages and returns.
        numbers = rows * request.response * 7 * 4
        states = rows * request.tokens * request.config.hidden_size * request.dtype.itemsize
        return numbers + (states if self.top else 0)

    def most(self, rows: int) -> int:
        """Return the rows of a minibatch."""
        return rows // self.minibatches(rows)

    @staticmethod
    def minibatches(rows: int) -> int:
        """Return how many a device's rows are split into: as many as by default where they can."""
        return math.gcd(rows, PPOSettings.num_mini_batches)

    def settings(self, rows: int, micro: int, sampled: int | None, passes: int) -> dict[str, Any]:
        """Return the settings of a run as it is planned."""
        request = self.request
        batch = rows * request.devices
        found = {"model.layout": request.layout} | model_settings(request)
        found |= {
            "data.max_query_length": request.prompt,
            "rollout.max_new_tokens": request.response,
            "ppo.batch_size": batch,
            "ppo.num_mini_batches": self.minibatches(rows),
            "ppo.num_ppo_epochs": passes,
            "ppo.micro_batch_size": micro,
            "rollout.batch_size": sampled,
        }
        if batch > PPOSettings.total_episodes:
            found["ppo.total_episodes"] = batch
        return found

    def peaks(self, phase: str, rows: int) -> dict[str, int]:
        """Return the bytes that a phase takes beside what is held, at the peak of each window."""
        if phase == ROLLOUT:
            return {FORWARD: self._rollout(rows)}
        run = scored if phase == SCORE else updated
        return from_few(lambda n: run(self._small(n), self.request, rows), self.layers)

    def _rollout(self, rows: int) -> int:
        """Return the rollout's peak: the cache grows with all layers, merging with the trained."""
        depth, request = self.request.counts.depth, self.request
        # What the trunk makes of the tokens is gathered in a place that is left after the loop.
        states = rows * request.tokens * request.config.hidden_size * request.dtype.itemsize
        kept = states if self.top and self.layers < depth else 0

        def all_layers(trained: int | None) -> int:
            def measure(layers: int) -> dict[str, int]:
                return sampled(self._small(trained or layers, layers), self.request, rows)

            return from_few(measure, depth)[FORWARD] + kept

        if self.layers == depth:
            return all_layers(None)
        if self.request.layout != "lora":
            return all_layers(1)  # nothing is merged
        one, two = all_layers(1), all_layers(2)
        return one + (self.layers - 1) * (two - one)

    def _held(self) -> tuple[tuple[Part, ...], int]:
        request, depth = self.request, self.request.counts.depth
        low, high = FEW_LAYERS
        if self.top or depth <= high or not request.counts.uniform:
            return held(planned_roles(request, request.config, request.top_layers))
        # Adapters on many layers take long to make; every layer adds the same.
        few, more = (
            held(planned_roles(request, with_layers(request.config, count), None))
            for count in (low, high)
        )
        parts = tuple(
            replace(a, bytes=a.bytes + (depth - low) * (b.bytes - a.bytes))
            for a, b in zip(few[0], more[0], strict=True)
        )
        return parts, few[1] + (depth - low) * (more[1] - few[1])

    def _small(self, trained: int, layers: int | None = None) -> PlannedRoles:
        """Return roles of fewer layers, which can be called."""
        request = self.request
        depth = min(layers or trained + self.top, request.counts.depth)
        if (trained, depth) not in self.small:
            top = trained if self.top else None
            roles = planned_roles(request, with_layers(request.config, depth), top)
            roles.dataless.take(roles.models())
            roles.device = torch.device("cpu")
            self.small[trained, depth] = roles
        return self.small[trained, depth]


def memory(request: Request) -> PPOMemory:
    """Return the memory of PPO; `workbench.launch` finds it by this name."""
    return PPOMemory(request)


def planned_roles(
    request: Request, config: "PreTrainedConfig", top_layers: int | None
) -> PlannedRoles:
    """Return the roles of a request, for a config that may have fewer layers."""
    sharded = request.sharding == "fsdp2"
    settings = settings_of(request, top_layers)
    return PlannedRoles(settings, config, cpu=request.cpu, sharded=sharded, reward=request.reward)


def settings_of(request: Request, top_layers: int | None) -> PPOModelSettings:
    """Return the settings that a request stands for."""
    given = [
        f"layout={request.layout}",
        f"lora.r={request.lora_rank}",
        f"precision={'bf16' if request.dtype == torch.bfloat16 else 'fp32'}",
    ]
    if top_layers is not None:
        given.append(f"train_top_layers={top_layers}")
    try:
        found: PPOModelSettings = load_config(PPOModelSettings, None, given)
    except UserError as error:
        raise UserError(f"--layout {request.layout}: {error}") from None
    return found


def held(roles: Roles) -> tuple[tuple[Part, ...], int]:
    """Return what the roles hold, each tensor once, and the number of trained parameters."""
    seen: set[int] = set()
    lora, parts, trained = roles.adapters is not None, [], 0
    kind = "adapter, float32" if lora else "weights, float32"
    learned = roles.trained
    for role, modules in (
        ("policy", (learned.policy, learned.lm_head)),
        ("value", (learned.value, learned.value_head)),
    ):
        found = [tensors(module, seen, trained=True) for module in modules]
        trained += sum(number for number, _ in found)
        parts.append(Part(role, f"trained {kind}", sum(size for _, size in found)))
    of_reward = [module for module in (roles.reward, roles.reward_head) if module is not None]
    if isinstance(roles.reward, Role) and roles.reward.name == REWARD:
        size = sum(tensors(module, seen)[1] for module in of_reward)
        parts.append(Part("reward", "frozen adapter, float32", size))
    kind = str(roles.dtype).removeprefix("torch.")
    if roles.embedded:
        depth = roles.depth
        lower = tensors(lower_half(roles.actor, depth), seen)[1]
        parts.append(Part("trunk", f"embedding and lower {depth} layers, {kind}", lower))
    what = f"all roles' frozen model, {kind}" if lora else f"samples; {kind}"
    if lora and roles.embedded:
        what = f"all roles' upper layers and head, {kind}"
    parts.append(Part("trunk" if lora else "actor", what, tensors(roles.actor, seen)[1]))
    frozen = [("reference", [roles.reference, roles.reference_head]), ("reward", of_reward)]
    for role, models in frozen:
        size = sum(tensors(model, seen)[1] for model in models)
        if size:
            parts.append(Part(role, f"frozen, {kind}", size))
    return tuple(parts), trained


def sampled(roles: PlannedRoles, request: Request, rows: int) -> dict[str, int]:
    """Return the peak of a rollout: prompts are read, the cache gets room, a token is drawn."""
    model = roles.actor
    # Where it is sharded the actor that is gathered is merged already.
    sampling: Any = roles.sampling()
    if roles.sharded and roles.adapters is not None:
        sampling = roles.adapters.use(None)
    with roles.dataless.mode, torch.no_grad(), _counting(roles, request) as live, sampling:
        native = not request.config.to_dict().get("sliding_window")
        decoder = Decoder.of(model) if native else None
        cache = decoding_cache(model.config)
        ids = torch.zeros(rows, request.prompt, dtype=torch.long)
        hidden = model.base_model(
            input_ids=ids, past_key_values=cache, use_cache=True
        ).last_hidden_state[:, -1]
        spread(cache, torch.arange(rows), request.response)
        head = model.get_output_embeddings()
        # A packed head gives logits of the same size.
        choose(head(hidden), TEMPERATURE, torch.empty(rows))
        del decoder
    return dict(live.peaks)


def scored(roles: PlannedRoles, request: Request, rows: int) -> dict[str, int]:
    """Return the peak of scoring a micro-batch under every role."""
    with roles.dataless.mode, torch.no_grad(), _counting(roles, request) as live, roles.autocast():
        batch = _batch(request, rows)
        batch = batch._replace(hidden=roles.activations(batch.input_ids, batch.attention_mask))
        found = roles.trained(batch, TEMPERATURE)
        del found
        roles.reference_logprobs(batch, TEMPERATURE)
        roles.scores(batch)
    return dict(live.peaks)


def updated(roles: PlannedRoles, request: Request, rows: int) -> dict[str, int]:
    """Return the peaks of a micro-batch of the update, forward and backward."""
    together = request.devices > 1 and request.sharding == "none"
    parts = [("policy", "value")] if together else [("policy",), ("value",)]
    with roles.dataless.mode:
        prepare_gradients(roles.trained)
        with _counting(roles, request) as live, roles.autocast():
            for module in (roles.trained.policy, roles.trained.value):
                body: Any = module.body[0] if isinstance(module, Role) else module
                layers = body.h if body.config.model_type == "gpt2" else body.layers
                live.watch_layer(layers[-2 if len(layers) > 1 else -1])
            batch = _batch(request, rows)
            if roles.trunk is not None:
                hidden = torch.empty(rows, request.tokens, roles.model_config.hidden_size)
                batch = batch._replace(hidden=hidden.to(request.dtype))
            for part in parts:
                live.begin(f"{part[0]} ")
                stats, values = roles.trained(batch, TEMPERATURE, part)
                loss: Any = 0.0
                if stats is not None:
                    loss = loss + stats.logprobs.sum()
                if values is not None:
                    loss = loss + values.sum()
                del stats, values
                loss.backward()
                del loss
    return dict(live.peaks)


def _batch(request: Request, rows: int) -> Batch:
    ids = torch.zeros(rows, request.tokens, dtype=torch.long)
    each = torch.arange(rows)[:, None].expand(rows, request.response).reshape(-1)
    columns = (request.prompt + torch.arange(request.response)).repeat(rows)
    return Batch(ids, torch.ones_like(ids), each, columns, None)


def _counting(roles: PlannedRoles, request: Request) -> Live:
    live = Live(request.response, packs=request.cpu)
    live.leave_out(roles.models())
    return live
