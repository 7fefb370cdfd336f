"""Hidden states at some positions: a Llama's or Qwen's last layer is computed for these alone."""

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ppo.lora import Role
from ppo.sharding import is_split

FAMILIES = ("llama", "qwen2", "qwen3")
# Scores of all pairs are kept for the backward pass; above this many the fused kernel is used.
_PAIRS = 512 * 512


def states_at(
    model: Any, inputs: dict[str, torch.Tensor], rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Return the last hidden states at N positions of sequences that are padded on the right.

    The last layer's queries, its feed-forward part and the final norm, most of what it computes,
    are for these positions only: PPO reads neither the query's states nor, for a score, any but
    the last.

    Args:
        model: a base model, its upper part, or a `Role`.
        inputs: `input_ids` [B, T] or `inputs_embeds` [B, T, d].
        rows: [N], in order, the sequences of the positions.
        columns: [N], the positions in them.

    Returns:
        [N, d].
    """
    role = isinstance(model, Role)
    body = model.body[0] if role else model
    kinds = set(body.config.to_dict().get("layer_types") or ["full_attention"])
    known = body.config.model_type in FAMILIES and kinds == {"full_attention"}
    # A layer's weights that are split are gathered in its own forward pass alone.
    if not known or not body.layers or any(map(is_split, body.layers[-1].parameters())):
        hidden: torch.Tensor = model(**inputs, use_cache=False).last_hidden_state
        return hidden[rows, columns]
    with model.adapters.use(model.name) if role else nullcontext():
        below = _without_top(body)(**inputs, use_cache=False).last_hidden_state
        return _top(body, below, rows, columns)


def _without_top(body: Any) -> Any:
    part = copy.copy(body)  # a new module object around the same weights
    part._modules = dict(body._modules)
    part.config = copy.copy(body.config)
    part.layers, part.norm = body.layers[:-1], nn.Identity()
    part.config.num_hidden_layers = len(part.layers)
    return part


def _top(
    body: Any, hidden: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    layer, (batch, length, _) = body.layers[-1], hidden.shape
    attention, width = layer.self_attn, layer.self_attn.head_dim
    counts = torch.bincount(rows, minlength=batch)
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    # Each sequence's positions side by side, [B, R]; 0 where it has fewer.
    index = columns.new_zeros(batch, int(counts.max())).index_put((rows, places), columns)
    normed = layer.input_layernorm(hidden)
    key = attention.k_proj(normed).view(batch, length, -1, width)
    value = attention.v_proj(normed).view(batch, length, -1, width).transpose(1, 2)
    query = attention.q_proj(_gather(normed, index)).view(*index.shape, -1, width)
    if body.config.model_type == "qwen3":
        query, key = attention.q_norm(query), attention.k_norm(key)
    steps = torch.arange(length, device=rows.device)
    cos, sin = (each[0] for each in body.rotary_emb(hidden, steps[None]))
    query = _turn(query, cos[index], sin[index]).transpose(1, 2)
    key = _turn(key, cos, sin).transpose(1, 2)
    later = steps > index[..., None]  # [B, R, T]
    mixed = _attend(query, key, value, later, attention.scaling)
    state = _gather(hidden, index) + attention.o_proj(mixed.transpose(1, 2).flatten(2))
    state = state + layer.mlp(layer.post_attention_layernorm(state))
    found: torch.Tensor = body.norm(state)[rows, places]
    return found


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    later: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """Attend with R queries per row, [B, H, R, D], to all T keys that are not later than theirs."""
    batch, heads, asked, width = query.shape
    groups, length = key.shape[1:3]
    if query.device.type != "cpu" or asked * length > _PAIRS:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=~later[:, None], scale=scaling, enable_gqa=True
        )
    # The heads that share a group's keys are rows of one product.
    rows = query.reshape(batch, groups, -1, width)
    scores = (rows @ key.mT).view(batch, groups, -1, asked, length) * scaling
    scores = scores.masked_fill(later[:, None, None], -torch.inf)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    return (weights.view(batch, groups, -1, length) @ value).view(batch, heads, asked, width)


def _gather(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))


def _turn(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary positions (Su et al. 2021) to [B, T, heads, D]; cos and sin are [.., T, D]."""
    first, second = states.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return states * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)
