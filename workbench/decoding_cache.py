"""Keys and values of a decode loop: written into room set aside once, never copied to grow."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # the library carries no types
    """One layer's keys and values, [B, G, S, D], the first `length` of S columns in use.

    Transformers' own layer is concatenated anew for every token, which copies the whole cache.
    """

    def __init__(self) -> None:
        super().__init__()
        self.room, self.length = 0, 0

    def update(
        self, key_states: "torch.Tensor", value_states: "torch.Tensor", *args: Any, **kwargs: Any
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Append states of T tokens; returns all of them, [B, G, length, D], as views."""
        if self.room == 0:
            keys, values = super().update(key_states, value_states, *args, **kwargs)
            self.length = keys.shape[-2]
            return keys, values
        end = self.length + key_states.shape[-2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Return how many columns are in use."""
        return self.length

    def make_room(self, rows: "torch.Tensor", room: int) -> None:
        """Copy the given rows (an index may repeat) to a place with columns for `room` tokens."""
        self.keys: torch.Tensor = _roomy(self.keys, rows, self.length, room)
        self.values: torch.Tensor = _roomy(self.values, rows, self.length, room)
        self.room = room

    def batch_select_indices(self, indices: "torch.Tensor") -> None:
        """Keep the given rows."""
        self.make_room(indices, self.keys.shape[-2] - self.length)


class Queries(NamedTuple):
    """A batch of B queries, of which U differ, padded on the left to the longest of T tokens.

    Attributes:
        ids: [U, T].
        mask: [U, T], 1 on tokens and 0 on padding.
        positions: [U, T], counted from each query's first token.
        rows: [B], where each query stands among the U.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor


def left_padded(queries: Sequence[Sequence[int]], device: torch.device) -> Queries:
    """Return a batch of queries, equal ones once, ready for answers to follow them."""
    unique = list(dict.fromkeys(map(tuple, queries)))
    place = {query: k for k, query in enumerate(unique)}
    width = max(map(len, unique))
    ids = torch.tensor([[0] * (width - len(q)) + list(q) for q in unique], device=device)
    mask = torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in unique], device=device)
    # Left padding shifts positions; GPT-2 style models have absolute ones and would read garbage.
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    rows = torch.tensor([place[tuple(query)] for query in queries], device=device)
    return Queries(ids, mask, positions, rows)


def decoding_cache(config: "PreTrainedConfig") -> DynamicCache:
    """Return a cache for a model; layers with a sliding window or a state keep their own kind."""
    cache = DynamicCache(config=config)
    cache.layers = [
        RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def spread(cache: DynamicCache, rows: "torch.Tensor", room: int) -> None:
    """Give each listed row (an index may repeat) of a filled cache room for further tokens."""
    for layer in cache.layers:
        if isinstance(layer, RoomyLayer):
            layer.make_room(rows, room)
        else:
            layer.batch_select_indices(rows)


def _roomy(states: "torch.Tensor", rows: "torch.Tensor", length: int, room: int) -> "torch.Tensor":
    batch, (_, groups, _, width) = len(rows), states.shape
    wide = states.new_empty(batch, groups, length + room, width)
    wide[:, :, :length] = states[rows, :, :length]
    return wide
