"""Splitting a decoder: frozen lower layers with kept activations, and upper layers of each role."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from workbench.decoder import FAMILIES
from workbench.errors import UserError
from workbench.models import decoder_layers, final_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NoPositions(nn.Module):
    """Stands in for GPT-2's position embedding in the upper half: the lower half has added it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        """Return zeros, [B, T, d]."""
        return torch.zeros(*position_ids.shape, self.width, device=position_ids.device)


def check_family(model: "PreTrainedModel") -> None:
    """Refuse a model whose layers cannot be told apart here.

    Raises:
        UserError: names the family and those that can be split.
    """
    family = model.config.model_type
    if family not in FAMILIES:
        raise UserError(
            f"model.train_top_layers: {family} models are not split here ({', '.join(FAMILIES)} "
            "only); use model.layout=separate, or lora without train_top_layers"
        )


def lower_half(model: "PreTrainedModel", depth: int) -> Any:
    """Return the embedding and first `depth` layers, without the final norm; weights are shared.

    With `depth` 0 that is the embedding alone.
    """
    return _part(model, slice(0, depth), upper=False)


def upper_half(model: "PreTrainedModel", depth: int, *, embedded: bool = False) -> Any:
    """Return the model from layer `depth` on, fed with activations; weights are shared.

    It is called with `inputs_embeds`. With `depth` 0 it is the whole base model and is called with
    `input_ids`, unless `embedded`: then all layers, fed with what the embedding gives.
    """
    whole = depth == 0 and not embedded
    return model.base_model if whole else _part(model, slice(depth, None), upper=True)


def same_lower_half(a: "PreTrainedModel", b: "PreTrainedModel", depth: int) -> bool:
    """Return whether two models have the same embedding and first `depth` layers, bit for bit."""
    if a.config.model_type != b.config.model_type or len(decoder_layers(a)) != len(
        decoder_layers(b)
    ):
        return False
    mine, other = lower_half(a, depth).state_dict(), lower_half(b, depth).state_dict()
    return mine.keys() == other.keys() and all(
        mine[key].shape == other[key].shape
        and torch.equal(mine[key], other[key].to(mine[key].dtype))
        for key in mine
    )


def _part(model: "PreTrainedModel", layers: slice, *, upper: bool) -> Any:
    check_family(model)
    family, base = model.config.model_type, model.base_model
    part = copy.copy(base)  # a new module object around the same weights
    part._modules = dict(base._modules)
    part.config = copy.deepcopy(base.config)
    kept = nn.ModuleList(list(decoder_layers(model))[layers])
    part.config.num_hidden_layers = len(kept)
    # Qwen's layers name their kind of attention by index; the upper half counts from 0 again.
    kinds = part.config.to_dict().get("layer_types")
    if kinds is not None:
        part.config.layer_types = kinds[layers]
    names = ("h", "ln_f") if family == "gpt2" else ("layers", "norm")
    setattr(part, names[0], kept)
    setattr(part, names[1], final_norm(model) if upper else nn.Identity())
    if upper:
        # Activations come in; the embedding would only be carried along (and counted as memory).
        part._modules["wte" if family == "gpt2" else "embed_tokens"] = None
        if family == "gpt2":
            part.wpe = NoPositions(base.config.hidden_size)
    return part
