"""Demonstrations as token rows: what is learned is marked, what is too long is counted."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.chat import example_ids
from workbench.data import as_dataset
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
    folder: Path | None = None,
) -> Tokenized:
    """Encode rows exactly as the policy will see and produce them: query, answer, EOS.

    Args:
        rows: checked, of a kind the stage accepts.
        tokenizer: of the policy.
        settings: what is learned and how long a row may be.
        source: of the rows, as messages name it.
        drop_long_rows: whether rows over the length are left out, or stop the stage.
        folder: for the tokens; None keeps them in memory.

    Raises:
        UserError: when every row, or with `drop_long_rows` false any row, is longer than
            `sft.max_length`.
    """
    too_long = 0

    def encoded() -> Iterator[dict[str, list[int]]]:
        nonlocal too_long
        for number, row in enumerate(rows, start=1):
            ids, mask = example_ids(tokenizer, row)
            if len(ids) <= settings.max_length:
                counts = mask if settings.completion_only_loss else [1] * len(ids)
                yield {"input_ids": ids, "completion_mask": counts}
            elif drop_long_rows:
                too_long += 1
            else:
                raise UserError(
                    f"{source}: row {number} has {len(ids)} tokens, "
                    f"sft.max_length={settings.max_length}; "
                    "raise it, shorten the row, or set data.drop_long_rows=true"
                )
        if too_long == len(rows):
            raise UserError(
                f"{source}: all {too_long} rows are longer than "
                f"sft.max_length={settings.max_length}; raise it"
            )

    dataset = as_dataset(encoded(), folder)
    return Tokenized(dataset, too_long)
