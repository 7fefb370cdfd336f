"""Queries: the prompts of a stage's data as the policy reads them, in memory or on disk."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ppo.config import PPOStage
from ppo.reward_sources import Query
from workbench.chat import query_ids
from workbench.data import Kind, Mapped, Spool, load_parts
from workbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ACCEPTS: tuple[Kind, ...] = ("prompt_only", "prompt_completion", "preference", "ranking")


class Queries(NamedTuple):
    """Prompts of one run.

    Attributes:
        train, held_out: to practise on, and to evaluate on.
        left_out: how many were longer than `data.max_query_length`.
        longest: tokens of the longest kept.
    """

    train: Sequence[Query]
    held_out: Sequence[Query]
    left_out: int
    longest: int


def load_queries(config: PPOStage, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> Queries:
    """Read and encode the prompts that the config names.

    Args:
        config: of the stage.
        tokenizer: of the policy.
        folder: for rows on disk, with `data.streaming`; queries are then encoded where they are
            asked for.

    Raises:
        UserError: when there are none, or all are too long.
    """
    data = config.data

    def query(row: dict[str, Any]) -> Query:
        columns = {name: value for name, value in row.items() if name != "prompt"}
        return Query(query_ids(tokenizer, row["prompt"]), row["prompt"], columns)

    parts = load_parts(data, ACCEPTS, config.run.seed, folder)
    kept: list[Sequence[Query]] = []
    left_out = longest = 0
    for rows in (parts.train, parts.held_out):
        short, queries = array("Q"), list[Query]()
        for index, row in enumerate(rows):
            found = query(row)
            if len(found.ids) > data.max_query_length:
                left_out += 1
                continue
            longest = max(longest, len(found.ids))
            short.append(index)
            if not isinstance(rows, Spool):
                queries.append(found)
        kept.append(Mapped(rows.select(short), query) if isinstance(rows, Spool) else queries)
    if not kept[0]:
        raise UserError(
            f"{data.train}: no prompt of at most "
            f"data.max_query_length={data.max_query_length} tokens; raise it"
        )
    return Queries(kept[0], kept[1], left_out, longest)


def content(queries: Iterable[Query]) -> str:
    """Return a hash of the tokens of all queries in their order."""
    found = hashlib.sha256()
    for query in queries:
        found.update(array("q", [len(query.ids), *query.ids]).tobytes())
    return found.hexdigest()[:16]
