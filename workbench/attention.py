"""Attention on a CPU, where the usual kernels are slow: for one new token, and for short texts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NAME = "rlhf_grouped"
CAUSAL = "rlhf_causal"
# Scores of all pairs are kept for the backward pass: 9 heads × 512² × 2 bytes = 5 MB per row.
_SHORT = 512


def grouped_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    **options: Any,
) -> "tuple[torch.Tensor, None]":
    """Attend with one new token per row; longer queries go the usual way.

    Transformers repeats keys and values for every query head, which for one new token copies far
    more than it computes. Instead the heads of a group become the rows of one product.

    Args:
        module: the attention layer.
        query: [B, H, T, D].
        key: [B, G, S, D], G groups of H / G heads.
        value: [B, G, S, D].
        attention_mask: [B, 1, T, S], bool or additive, or None.
        options: what transformers passes on, `scaling` among it.

    Returns:
        [B, T, H, D], and no weights.
    """
    from torch.nn.functional import scaled_dot_product_attention
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, length, width = query.shape
    groups = key.shape[1]
    if length > 1 or heads == groups:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return output
    rows = query.view(batch, groups, heads // groups, width)
    mixed = scaled_dot_product_attention(
        rows, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return mixed.reshape(batch, 1, heads, width), None


def causal_attention(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    **options: Any,
) -> "tuple[torch.Tensor, None]":
    """Attend to all earlier tokens with plain products; long texts and masks go the usual way.

    PyTorch's fused kernel is three times slower here in bf16, most of it in the backward pass.
    The heads that share a group's keys are rows of one product.

    Args:
        module: the attention layer.
        query: [B, H, T, D].
        key: [B, G, T, D], G groups of H / G heads.
        value: [B, G, T, D].
        attention_mask: None, or what the usual kernel is to obey.
        options: what transformers passes on, `scaling` among it.

    Returns:
        [B, T, H, D], and no weights.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    batch, heads, length, width = query.shape
    groups, seen = key.shape[1:3]
    usual = attention_mask is not None or length != seen or length > _SHORT
    if usual or options.get("dropout"):
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return output
    share = heads // groups
    later = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1).repeat(share, 1)
    rows = query.reshape(batch * groups, share * length, width)
    keys, values = (each.reshape(batch * groups, length, width) for each in (key, value))
    scores = torch.baddbmm(later.expand(len(rows), -1, -1), rows, keys.mT, alpha=options["scaling"])
    weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
    mixed = torch.bmm(weights, values).view(batch, heads, length, width)
    return mixed.transpose(1, 2).contiguous(), None


def prefer_causal(model: "PreTrainedModel") -> None:
    """Give a model on a CPU `causal_attention`, unless another kernel than the usual was chosen."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    if model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(CAUSAL, causal_attention)
        AttentionMaskInterface.register(CAUSAL, sdpa_mask)
        model.config._attn_implementation = CAUSAL


@contextmanager
def grouped(model: "PreTrainedModel") -> Iterator[None]:
    """Use `grouped_attention` in the block, if the model is on a CPU with standard attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    usual = model.config._attn_implementation
    if model.device.type != "cpu" or usual not in {"sdpa", "eager", CAUSAL}:
        yield
        return
    AttentionInterface.register(NAME, grouped_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = usual
