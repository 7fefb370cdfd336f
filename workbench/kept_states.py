"""States of the lower layers, kept while answers are sampled, so that they are computed once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from workbench.models import decoder_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class KeptStates:
    """What the layers below `depth` make of each token of B queries and their answers.

    Attributes:
        depth: number of layers, one at least.
        last: whether the next tokens are the last ones, which the layers above need not read.
    """

    def __init__(self, depth: int, queries: Sequence[Sequence[int]], room: int) -> None:
        """Keep nothing yet.

        Args:
            depth: number of layers.
            queries: token ids of each.
            room: most tokens of an answer.
        """
        self.depth, self.last, self._room = depth, False, room
        self._lengths = [len(query) for query in queries]
        self._index, self._column = torch.arange(len(queries)), 0
        self._queries: torch.Tensor | None = None
        self._answers: torch.Tensor | None = None

    @contextmanager
    def reading(self, model: "PreTrainedModel", places: torch.Tensor) -> Iterator[None]:
        """Keep the states of the pass over the queries that the block makes.

        Args:
            model: that reads them.
            places: [B], where each query stands in that pass, padded on the left.
        """

        def keep(_module: Any, _inputs: Any, output: Any) -> None:
            self._queries = output[0] if isinstance(output, tuple) else output

        handle = decoder_layers(model)[self.depth - 1].register_forward_hook(keep)
        try:
            yield
        finally:
            handle.remove()
        self._index = places

    def expect(self, rows: Sequence[int], column: int, *, last: bool) -> None:
        """Say whose token is read next.

        Args:
            rows: which of the B.
            column: the token's number in its answer, from 0.
            last: whether no other will follow in any row.
        """
        self._rows = torch.tensor(rows, device=self._index.device)
        self._column, self.last = column, last

    def add(self, states: torch.Tensor) -> None:
        """Keep the states of the tokens that are read, one of each expected row, [rows, d]."""
        if self._answers is None:
            self._answers = states.new_empty(len(self._lengths), self._room, states.shape[-1])
        self._answers[self._rows, self._column] = states

    def of(self, row: int, count: int) -> torch.Tensor:
        """Return the states of a row's query and the first `count` tokens of its answer, [T, d].

        They can take part in training, also if they were made in inference mode.
        """
        assert self._queries is not None
        assert self._answers is not None
        with torch.inference_mode(mode=False):
            query = self._queries[self._index[row], -self._lengths[row] :]
            return torch.cat([query, self._answers[row, :count]])
