"""Demonstrations as token rows: what is learned is marked, what is too long is counted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.chat import example_ids
from workbench.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sft.config import SFTSettings


@dataclass(frozen=True)
class Tokenized:
    """A tokenised data set.

    Attributes:
        dataset: columns `input_ids` and `completion_mask` (1 where the loss is taken).
        too_long: rows left out because they exceed `max_length`.
    """

    dataset: "Dataset"
    too_long: int


def tokenize(
    rows: Sequence[dict[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    settings: "SFTSettings",
    source: str,
    drop_long_rows: bool,
) -> Tokenized:
    """Encode rows exactly as the policy will see and produce them: query, answer, EOS.

    Raises:
        UserError: when every row, or with `drop_long_rows` false any row, is longer than
            `sft.max_length`.
    """
    from datasets import Dataset

    kept: list[dict[str, list[int]]] = []
    too_long = 0
    for number, row in enumerate(rows, start=1):
        ids, mask = example_ids(tokenizer, row)
        if len(ids) > settings.max_length:
            if not drop_long_rows:
                raise UserError(
                    f"{source}: row {number} has {len(ids)} tokens, "
                    f"sft.max_length={settings.max_length}; "
                    "raise it, shorten the row, or set data.drop_long_rows=true"
                )
            too_long += 1
            continue
        kept.append(
            {
                "input_ids": ids,
                "completion_mask": mask if settings.completion_only_loss else [1] * len(ids),
            }
        )
    if not kept:
        raise UserError(
            f"{source}: all {too_long} rows are longer than sft.max_length={settings.max_length}; "
            "raise it"
        )
    return Tokenized(Dataset.from_list(kept), too_long)
