"""Models without weights, built from a config: on the meta device, or on tensors without data."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from workbench.errors import UserError
from workbench.logs import quiet_transformers
from workbench.models import CLASSIFIER, decoder_layers, locate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

WAY_OUT = "use --model FOLDER, a folder with the model's config.json, or that file itself"


@dataclass(frozen=True)
class Counts:
    """Parameters of a model, counted on the meta device; tied ones once.

    Attributes:
        total: all of them.
        layers: those of the decoder layers together.
        layer: those of the largest layer.
        head: those that give logits, also where they are the embedding's.
        cache: numbers that a token keeps in the cache of keys and values, over all layers.
        attended: heads × head width, which an earlier token costs attention in each layer.
        depth: number of layers.
        uniform: whether all layers are equally large.
    """

    total: int
    layers: int
    layer: int
    head: int
    cache: int
    attended: int
    depth: int
    uniform: bool


def read_config(name: str) -> "PreTrainedConfig":
    """Return the config of a hub id, a folder, or a config.json file.

    Raises:
        UserError: for one that is not there, cannot be read, or is of no language model.
    """
    from transformers import AutoConfig

    quiet_transformers()
    path = Path(name).expanduser()
    where = str(path) if path.is_file() else locate(name)
    if Path(where).is_dir() and not (Path(where) / "config.json").is_file():
        raise UserError(f"{name}: an adapter's folder; name the model below it instead")
    try:
        config = AutoConfig.from_pretrained(where)
    except KeyboardInterrupt:
        raise
    except Exception as error:  # noqa: BLE001 - the hub's and the readers' exceptions are many
        raise UserError(f"{name}: {_why(error, local=Path(where).exists())}") from None
    return config.get_text_config(decoder=True)


def _why(error: Exception, *, local: bool) -> str:
    text = " ".join(str(error).split())
    if local:
        return f"its config cannot be read: {text[:150]}"
    if "trust_remote_code" in text:
        return f"this model runs code of its own, which is not run for a plan; {WAY_OUT}"
    chain = f"{type(error).__name__} {type(error.__cause__).__name__} {text}"
    if "Gated" in chain or "gated" in text:
        return f"the hub gives it only to those it has admitted: set HF_TOKEN, or {WAY_OUT}"
    if "NotFound" in chain and "LocalEntry" not in chain:
        return f"no model of this name on the hub; check the name, or {WAY_OUT}"
    return f"its config is not here and the hub cannot be reached; {WAY_OUT}"


def with_layers(config: "PreTrainedConfig", count: int) -> "PreTrainedConfig":
    """Return the config of the same model with fewer layers."""
    found = copy.deepcopy(config)
    kinds = found.to_dict().get("layer_types")
    if kinds is not None:
        found.layer_types = kinds[:count]
    found.num_hidden_layers = count
    return found


def language_model(config: "PreTrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    """Return the causal language model of a config, on the device of the context it is called in.

    Raises:
        UserError: for a config of no causal language model.
    """
    from transformers import AutoModelForCausalLM

    return _built(AutoModelForCausalLM, config, dtype)


def classifier(config: "PreTrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    """Return the same model with a head of one output, as reward models have."""
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(config)
    config.num_labels, config.architectures = 1, [CLASSIFIER]
    return _built(AutoModelForSequenceClassification, config, dtype)


def _built(auto: Any, config: "PreTrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    try:
        return auto.from_config(copy.deepcopy(config), dtype=dtype)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--model: a {config.model_type} config of which no language model can be built: "
            f"{first[:150]}"
        ) from None


class Dataless:
    """Tensors with a size and a type but no numbers, for which operations compute sizes alone.

    To the code that runs on them they are on a CPU, where autocast and the kernels are real.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def take(self, modules: Iterable[nn.Module], dtype: torch.dtype | None = None) -> None:
        """Put such tensors in the place of meta parameters and buffers; shared ones stay shared.

        Args:
            modules: whose they are.
            dtype: of all parameters; None leaves them as they are.
        """
        made: dict[int, Any] = {}

        def new(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")

        with self.mode:
            for module in dict.fromkeys(m for each in modules for m in each.modules()):
                for name, weight in module._parameters.items():
                    if weight is not None and weight.is_meta:
                        if id(weight) not in made:
                            kept = nn.Parameter(new(weight).to(dtype or weight.dtype))
                            kept.requires_grad_(weight.requires_grad)
                            # With the old one, so that no other gets its id.
                            made[id(weight)] = (weight, kept)
                        module._parameters[name] = made[id(weight)][1]
                for name, buffer in module._buffers.items():
                    if buffer is not None and buffer.is_meta:
                        module._buffers[name] = new(buffer)


def counts(config: "PreTrainedConfig") -> Counts:
    """Count a model's parameters by building it on the meta device.

    Raises:
        UserError: for a config of no language model, or one whose layers cannot be found.
    """
    with torch.device("meta"):
        model = language_model(config, torch.float32)
    try:
        layers = [weigh([layer]) for layer in decoder_layers(model)]
    except AttributeError:
        raise UserError(
            f"--model: the layers of {config.model_type} models are not known here, only those "
            "named `layers` as Llama's, or `h` as GPT-2's"
        ) from None
    heads = config.num_attention_heads
    found = config.to_dict()
    width = found.get("head_dim") or config.hidden_size // heads
    groups = found.get("num_key_value_heads") or heads
    return Counts(
        total=weigh([model]),
        layers=sum(layers),
        layer=max(layers),
        head=weigh([model.get_output_embeddings()]),
        cache=2 * groups * width * len(layers),
        attended=heads * width,
        depth=len(layers),
        uniform=len(set(layers)) == 1,
    )


def weigh(modules: Iterable[nn.Module]) -> int:
    """Return the number of parameters of some modules, shared ones once."""
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())
