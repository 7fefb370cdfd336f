"""Adapters of the roles on one frozen trunk (Hu et al. 2021), by PEFT: switched, merged, saved."""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from workbench.errors import UserError
from workbench.models import (
    ADAPTED_CONFIG,
    ADAPTER_WEIGHTS,
    LoraSettings,
    is_reward_model,
    locate,
    lora_config,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLICY, VALUE, REWARD = "policy", "value", "reward"
HEAD = "base_model.model.score.weight"  # under which PEFT saves a classifier's head


class RewardAdapter(NamedTuple):
    """A reward model that is an adapter on the policy's own weights.

    Attributes:
        name: its folder.
        config: a `peft.LoraConfig`.
        weights: of the adapter, under PEFT's names.
        head: [1, d].
        mean, std: the normaliser of its scores.
    """

    name: str
    config: Any
    weights: dict[str, torch.Tensor]
    head: torch.Tensor
    mean: float
    std: float


class Adapters:
    """A frozen causal language model, and named adapters on it, one of them active at a time.

    At rest the policy's is active, so that the model is the policy. The weights below are never
    written to: without an adapter the model answers bit for bit as it was loaded.

    Attributes:
        model: the language model; its linear layers have become PEFT's.
    """

    def __init__(
        self, model: "PreTrainedModel", settings: LoraSettings, first_layer: int = 0
    ) -> None:
        """Add the policy's adapter, which changes nothing until it is trained.

        Args:
            model: frozen, and changed in place.
            settings: rank and targets.
            first_layer: layers below it get no adapter.

        Raises:
            UserError: when the targets do not exist or cannot be adapted.
        """
        from peft import get_peft_model

        self.model, self.settings, self.first_layer = model, settings, first_layer
        where = f"model.lora.target_modules={settings.target_modules!r}"
        try:
            self.peft = get_peft_model(model, self._config(), adapter_name=POLICY)
        except ValueError as error:  # no such module, or one that cannot be adapted
            raise UserError(f"{where}: {error}") from None
        self.active: str | None = POLICY
        self._collect()
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        # Many models tie the two, so that an adapter of one could not be merged without the other.
        if any(layer is end for layer in self.layers.values() for end in ends):
            raise UserError(f"{where}: PPO adapts neither embedding nor head; leave them out")

    def add(self, name: str, config: Any = None) -> None:
        """Add an adapter that changes nothing yet; `config` None takes the policy's."""
        self.peft.add_adapter(name, config or self._config())
        self._collect()

    def add_reward(self, found: RewardAdapter) -> None:
        """Add the reward model's adapter, and the value's, as a copy of it where that can be.

        It cannot where it changes layers below `first_layer`: then the value's is a fresh one.
        """
        from peft import set_peft_model_state_dict

        for name in (REWARD, VALUE):
            if name == VALUE and self.reaches(REWARD) < self.first_layer:
                self.add(name)
                continue
            self.add(name, copy.deepcopy(found.config))
            done = set_peft_model_state_dict(self.peft, dict(found.weights), adapter_name=name)
            if done.unexpected_keys:
                raise UserError(
                    f"{found.name}: its adapter changes {done.unexpected_keys[0]}, which the "
                    "policy does not have; train it on the policy, or use model.layout=separate"
                )

    def reaches(self, name: str) -> int:
        """Return the lowest decoder layer an adapter changes."""
        numbers = [
            int(next(part for part in place.split(".") if part.isdigit()))
            for place, layer in self.layers.items()
            if name in layer.lora_A
        ]
        return min(numbers)

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Make another adapter the active one in the block; None makes it the bare trunk."""
        before = self.active
        # Autocast takes bf16 in; PEFT would make float32 of it first.
        self._switch(name, cast=not torch.is_autocast_enabled(self.model.device.type))
        try:
            yield
        finally:
            self._switch(before)

    @contextmanager
    def merged(self, name: str) -> Iterator[None]:
        """Put an adapter into copies of the weights it changes, in the block.

        Sampling a token at a time spends more on an adapter's small products than on its sums.
        Afterwards the same tensors stand where they stood: nothing is subtracted.
        """
        originals: list[tuple[nn.Module, nn.Parameter]] = []
        try:
            for layer in self.layers.values():
                if name in layer.lora_A:
                    base = layer.get_base_layer()
                    with torch.no_grad():
                        changed = (base.weight + layer.get_delta_weight(name)).to(base.weight.dtype)
                    originals.append((base, base.weight))
                    base.weight = nn.Parameter(changed, requires_grad=False)
            with self.use(None):
                yield
        finally:
            for base, weight in originals:
                base.weight = weight

    @staticmethod
    def plain_state(module: nn.Module) -> dict[str, torch.Tensor]:
        """Return the weights of the model or its base under their own names, without adapters."""
        return {
            name.replace(".base_layer.", "."): weight
            for name, weight in module.state_dict().items()
            if ".lora_" not in name
        }

    def save(self, name: str, folder: Path, base: str, head: torch.Tensor | None = None) -> None:
        """Write an adapter as PEFT does; with a head [1, d] as that of a sequence classifier."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = get_peft_model_state_dict(self.peft, adapter_name=name, save_embedding_layers=False)
        state = {key: weight.detach().cpu().contiguous() for key, weight in state.items()}
        config = copy.deepcopy(self.peft.peft_config[name])
        config.inference_mode, config.base_model_name_or_path = True, base
        if head is not None:
            state[HEAD] = head.detach().cpu().contiguous()
            config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
        save_file(state, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(folder)

    def _config(self) -> Any:
        config = lora_config(self.settings, "CAUSAL_LM")
        if self.first_layer:
            # Not `layers_to_transform`: it passes over targets that PEFT names in full.
            lower = "|".join(map(str, range(self.first_layer)))
            config.exclude_modules = rf".*\.(?:layers|h)\.(?:{lower})\..*"
        return config

    def _collect(self) -> None:
        from peft.tuners.lora import LoraLayer

        self.layers: dict[str, Any] = {
            name: module
            for name, module in self.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        self.model.eval()
        for name, parameter in self.model.named_parameters():
            # The reward's never learns; the rest is the trunk.
            adapted = ".lora_" in name and name.split(".")[-2] != REWARD
            parameter.requires_grad_(adapted)
        self._switch(self.active)

    def _switch(self, name: str | None, *, cast: bool = True) -> None:
        self.active = name
        for layer in self.layers.values():
            # Not `set_adapter`, which also decides what is trained.
            layer._active_adapter = [] if name is None else [name]
            layer.cast_input_dtype_enabled = cast


class Role(nn.Module):
    """The trunk as one role sees it; its parameters are those of the role's adapter alone."""

    def __init__(self, adapters: Adapters, name: str | None, body: Any) -> None:
        """Look at a trunk through an adapter.

        Args:
            adapters: of the trunk.
            name: of the adapter; None is the bare trunk.
            body: the base model or a part of it.
        """
        super().__init__()
        self.name, self.adapters = name, adapters
        self.body = (body,)  # in a tuple: not among this module's parameters
        if name is not None:
            for place, layer in adapters.layers.items():
                if name in layer.lora_A:
                    self.add_module(f"{place.replace('.', '_')}_lora_A", layer.lora_A[name])
                    self.add_module(f"{place.replace('.', '_')}_lora_B", layer.lora_B[name])

    @property
    def config(self) -> Any:
        """Of the trunk."""
        return self.body[0].config

    def forward(self, **inputs: Any) -> Any:
        """Call the trunk with the role's adapter."""
        with self.adapters.use(self.name):
            return self.body[0](**inputs)


def read_reward_adapter(name: str, policy: str) -> RewardAdapter | str:
    """Read a reward model that is an adapter on the policy.

    Args:
        name: the reward model's folder or hub id.
        policy: that of the policy.

    Returns:
        The adapter, or why the reward model cannot be one on the policy's trunk.
    """
    folder = Path(locate(name))
    if not (folder / "adapter_config.json").is_file():
        return "is a whole model"
    if not is_reward_model(name) or not (folder / ADAPTER_WEIGHTS).is_file():
        return "is no adapter of a reward model in safetensors"
    from peft import LoraConfig, PeftConfig
    from safetensors.torch import load_file

    config = PeftConfig.from_pretrained(str(folder))
    base = str(config.base_model_name_or_path)
    if not _same(base, policy):
        return f"is an adapter of {base}, not of {policy}"
    plain = isinstance(config, LoraConfig) and config.bias == "none" and not config.use_dora
    weights = load_file(folder / ADAPTER_WEIGHTS)
    head = weights.pop(HEAD, None)
    if not plain or head is None or not all(".lora_" in key for key in weights):
        return "is an adapter with more to it than LoRA and a head"
    stored: dict[str, Any] = {}
    if (folder / ADAPTED_CONFIG).is_file():
        stored = json.loads((folder / ADAPTED_CONFIG).read_text(encoding="utf-8"))
    config.modules_to_save, config.task_type, config.inference_mode = None, "CAUSAL_LM", False
    config.lora_dropout = 0.0  # it is used as it is, and the value's ratios need none
    mean, std = float(stored.get("reward_mean", 0.0)), float(stored.get("reward_std", 1.0))
    return RewardAdapter(name, config, weights, head, mean, std)


def _same(base: str, policy: str) -> bool:
    try:
        places = [Path(locate(name)) for name in (base, policy)]
    except UserError:  # a base that has gone
        return False
    if all(place.is_dir() for place in places):
        return places[0].resolve() == places[1].resolve()
    return places[0] == places[1]
