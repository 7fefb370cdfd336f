"""One step of decoding without the model's modules: fewer, larger products over packed weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel

    from workbench.kept_states import KeptStates

# The families whose layers are known here; tests compare their steps with full forward passes.
FAMILIES = ("llama", "qwen2", "qwen3", "gpt2")
# Packed weights are a second copy, so large models are left as they are.
PACKED_BYTES = 4 * 2**30
Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Block:
    """One layer: norms, products, and how attention's heads are laid out.

    Attributes:
        states: gives query, key and value heads side by side, [B, (H + 2 G) D].
        heads, groups, width: H, G and D.
        scaling: of the attention's products.
        between: the norms of query and key heads, or none.
        up: gives gate and value of the gated unit side by side, or the plain unit's input.
    """

    before: Product
    states: Product
    heads: int
    groups: int
    width: int
    scaling: float
    between: tuple[Product, Product] | None
    out: Product
    after: Product
    up: Product
    activation: Product
    gated: bool
    down: Product


class Decoder:
    """Computes the state after one more token in each row, as the model's own modules would.

    Query, key and value, and a gated unit's two halves, are one product each. In bf16 on a CPU the
    weights are packed once into the layout that the matrix kernels want; for few rows these kernels
    otherwise spend most of their time on that. The weights are those of the moment it is made.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        """Collect and pack the weights of a model for which `of` gives a decoder."""
        self.model, base = model, model.base_model
        self.gpt2 = model.config.model_type == "gpt2"
        size = sum(p.numel() * p.element_size() for p in base.parameters())
        self.packs = _packs(model) and size <= PACKED_BYTES
        block = self._gpt2_block if self.gpt2 else self._block
        self.blocks = [block(layer) for layer in (base.h if self.gpt2 else base.layers)]
        self.norm = _norm(base.ln_f if self.gpt2 else base.norm)
        head = model.get_output_embeddings()
        self.head: Product = self._product(head) if self.packs else head

    @classmethod
    def of(cls, model: "PreTrainedModel") -> "Decoder | None":
        """Return the decoder of a model, or None where its own modules must do the work."""
        from workbench.decoding_cache import RoomyLayer, decoding_cache

        if model.config.model_type not in FAMILIES:
            return None
        # Layers with windows or states of their own stay with the model's modules.
        roomy = all(isinstance(each, RoomyLayer) for each in decoding_cache(model.config).layers)
        base = model.base_model
        layers = base.h if model.config.model_type == "gpt2" else base.layers
        plain = all(_plain(module) for layer in layers for module in layer.modules())
        return cls(model) if roomy and plain else None

    def __call__(
        self,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: "DynamicCache",
        kept: "KeptStates | None" = None,
    ) -> torch.Tensor:
        """Read one token per row and append its keys and values to the cache.

        Args:
            tokens: [B].
            positions: [B], of these tokens.
            mask: [B, 1, 1, S], True where the S tokens, these included, are no padding; None where
                none is.
            cache: of `decoding_cache`, filled with the tokens before.
            kept: takes the states of the lower layers; None keeps none.

        Returns:
            The last hidden state, [B, d], after the final norm; of tokens which only the lower
            layers need to read, theirs.
        """
        base = self.model.base_model
        state: torch.Tensor = self.model.get_input_embeddings()(tokens)
        turn: tuple[torch.Tensor, torch.Tensor] | None = None
        if self.gpt2:
            state = state + base.wpe(positions)
        else:
            cos, sin = base.rotary_emb(state[:, None], positions[:, None])
            half = sin.shape[-1] // 2
            turn = (cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1))
        for number, (block, layer) in enumerate(zip(self.blocks, cache.layers, strict=True), 1):
            state = state + self._attend(block, block.before(state), turn, mask, layer)
            wide = block.up(block.after(state))
            if block.gated:
                gate, value = wide.chunk(2, dim=-1)
                wide = block.activation(gate).mul_(value)
            else:
                wide = block.activation(wide)
            state = state + block.down(wide)
            if kept is not None and number == kept.depth:
                kept.add(state)
                if kept.last:
                    return state
        return self.norm(state)

    @staticmethod
    def _attend(
        block: _Block,
        state: torch.Tensor,
        turn: tuple[torch.Tensor, torch.Tensor] | None,
        mask: torch.Tensor | None,
        layer: Any,
    ) -> torch.Tensor:
        heads = block.states(state).view(len(state), -1, block.width)
        asking = heads[:, : block.heads + block.groups]
        if block.between is not None:
            query, key = asking[:, : block.heads], asking[:, block.heads :]
            asking = torch.cat([block.between[0](query), block.between[1](key)], dim=1)
        if turn is not None:
            # Rotary positions (Su et al. 2021): the halves change places, one with its sign.
            cos, sin = turn
            asking = torch.addcmul(asking * cos, asking.roll(block.width // 2, dims=-1), sin)
        query, key = asking[:, : block.heads], asking[:, block.heads :]
        value = heads[:, block.heads + block.groups :]
        keys, values = layer.update(key[:, :, None], value[:, :, None])
        # The heads that share a group's keys are its rows: nothing is repeated.
        rows = query.reshape(len(state), block.groups, -1, block.width)
        mixed = functional.scaled_dot_product_attention(
            rows, keys, values, attn_mask=mask, scale=block.scaling
        )
        return block.out(mixed.reshape(len(state), -1))

    def _block(self, layer: Any) -> _Block:
        attention, mlp = layer.self_attn, layer.mlp
        config, width = self.model.config, attention.head_dim
        norms = self.model.config.model_type == "qwen3"
        return _Block(
            before=_norm(layer.input_layernorm),
            states=self._product(attention.q_proj, attention.k_proj, attention.v_proj),
            heads=config.num_attention_heads,
            groups=config.num_key_value_heads,
            width=width,
            scaling=attention.scaling,
            between=(_norm(attention.q_norm), _norm(attention.k_norm)) if norms else None,
            out=self._product(attention.o_proj),
            after=_norm(layer.post_attention_layernorm),
            up=self._product(mlp.gate_proj, mlp.up_proj),
            activation=mlp.act_fn,
            gated=True,
            down=self._product(mlp.down_proj),
        )

    def _gpt2_block(self, layer: Any) -> _Block:
        attention, heads = layer.attn, layer.attn.num_heads
        return _Block(
            before=layer.ln_1,
            states=self._product(attention.c_attn),
            heads=heads,
            groups=heads,
            width=attention.head_dim,
            scaling=attention.scaling,
            between=None,
            out=self._product(attention.c_proj),
            after=layer.ln_2,
            up=self._product(layer.mlp.c_fc),
            activation=layer.mlp.act,
            gated=False,
            down=self._product(layer.mlp.c_proj),
        )

    def _product(self, *modules: nn.Module) -> Product:
        """Return x ↦ x W + b of one linear module, or of several side by side."""
        found = [_weight(module) for module in modules]
        weight = found[0][0] if len(found) == 1 else torch.cat([each[0] for each in found])
        offsets = [each[1] for each in found if each[1] is not None]
        offset = None if not offsets else torch.cat(offsets)
        if not self.packs:
            return lambda x: functional.linear(x, weight, offset)
        multiply = torch.ops.mkldnn._linear_pointwise
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None)
        return lambda x: multiply(x, packed, offset, "none", [], "")


def _packs(model: "PreTrainedModel") -> bool:
    """Return whether oneDNN's packed products are there for this model: bf16, on a CPU."""
    if model.device.type != "cpu" or model.dtype != torch.bfloat16:
        return False
    names: Sequence[str] = ("_linear_pointwise", "_reorder_linear_weight")
    there = all(hasattr(torch.ops.mkldnn, name) for name in names)
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _plain(module: nn.Module) -> bool:
    """Return whether a layer's module is one whose weights tell all that it does."""
    from peft.tuners.lora import LoraLayer

    if isinstance(module, LoraLayer):
        return not module.active_adapters and not module.merged_adapters
    # Quantised layers are subclasses of `Linear`.
    return not isinstance(module, nn.Linear) or type(module) is nn.Linear


def _weight(module: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the weight of a linear module, [outputs, inputs], and its bias."""
    from transformers.pytorch_utils import Conv1D

    inner = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight = inner.weight.detach()
    bias = None if inner.bias is None else inner.bias.detach()
    return (weight.T if isinstance(inner, Conv1D) else weight), bias


def _norm(module: Any) -> Product:
    if isinstance(module, nn.LayerNorm):
        return module
    weight, epsilon = module.weight.detach(), module.variance_epsilon
    return lambda x: functional.rms_norm(x, weight.shape, weight, epsilon)
