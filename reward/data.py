"""Preferences as token rows, each a prompt with all its pairs, as in InstructGPT (appendix C.2)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.chat import query_ids, response_ids
from workbench.data import Mapped, Spool, group_key
from workbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Comparison:
    """All pairs of one prompt.

    Attributes:
        chosen_ids, rejected_ids: token ids of query and answer, one entry per pair.
        weight: of each pair, the row's own or 1, over C(K, 2), so that every prompt counts once.
        margin: of each pair, subtracted from the score difference in the loss; 0 where the
            data has none.
        group: hash of the prompt.
        category: of the prompt, or "".
    """

    chosen_ids: list[list[int]]
    rejected_ids: list[list[int]]
    weight: list[float]
    margin: list[float]
    group: str
    category: str


@dataclass(frozen=True)
class Comparisons:
    """A tokenised data set and what was left out of it."""

    rows: Sequence[Comparison]
    ties: int
    identical: int
    too_long: int
    zero_weight: int

    @property
    def pairs(self) -> int:
        """Number of pairs."""
        return sum(len(row.weight) for row in self.rows)


def tokenize(
    rows: Sequence[dict[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    source: str,
    drop_long_rows: bool,
    folder: Path | None = None,
) -> Comparisons:
    """Encode preference or ranking rows; pairs that teach nothing are left out and counted.

    Those are ties, identical answers, pairs of weight 0 and over-long pairs.

    An answer ends with EOS unless its row says it was cut off: `finished` (one flag per completion
    of a ranking), `chosen_finished`, `rejected_finished`. Otherwise cut-off answers would be
    learned as complete ones.

    Args:
        rows: checked, `preference` or `ranking`.
        tokenizer: of the reward model.
        max_length: longest query and answer, in tokens.
        source: of the rows, as messages name it.
        drop_long_rows: whether pairs over the length are left out, or stop the stage.
        folder: for the tokens; None keeps them in memory.

    Raises:
        UserError: when nothing is left, at a flag that is neither true nor false, or at the first
            over-long pair with `drop_long_rows` false.
    """
    kept: list[Comparison] = []
    spool = None if folder is None else Spool(folder)
    counts = {"ties": 0, "identical": 0, "too_long": 0, "zero_weight": 0}
    for number, row in enumerate(rows, start=1):
        query = query_ids(tokenizer, row["prompt"])
        texts, finished, ranks, margin = _answers(row, f"{source}: row {number}")
        encoded = [
            query + response_ids(tokenizer, text, done)
            for text, done in zip(texts, finished, strict=True)
        ]
        own = 1.0 if row.get("weight") is None else float(row["weight"])
        pairs: list[tuple[int, int]] = []
        for i, j in combinations(range(len(texts)), 2):
            if ranks[i] == ranks[j]:
                counts["ties"] += 1
            elif encoded[i] == encoded[j]:
                counts["identical"] += 1
            elif own == 0:
                counts["zero_weight"] += 1
            elif max(len(encoded[i]), len(encoded[j])) > max_length:
                if not drop_long_rows:
                    raise UserError(
                        f"{source}: row {number} has "
                        f"{max(len(encoded[i]), len(encoded[j]))} tokens, "
                        f"reward.max_length={max_length}; raise it, "
                        "or set data.drop_long_rows=true"
                    )
                counts["too_long"] += 1
            else:
                pairs.append((i, j) if ranks[i] < ranks[j] else (j, i))
        if not pairs:
            continue
        weight = own / comb(len(texts), 2)
        comparison = Comparison(
            chosen_ids=[encoded[i] for i, _ in pairs],
            rejected_ids=[encoded[j] for _, j in pairs],
            weight=[weight] * len(pairs),
            margin=[margin] * len(pairs),
            group=group_key(row),
            category=str(row.get("category") or ""),
        )
        if spool is None:
            kept.append(comparison)
        else:
            spool.append(asdict(comparison))
    found = kept if spool is None else Mapped(spool, lambda row: Comparison(**row))
    if not found:
        left_out = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items())
        raise UserError(
            f"{source}: no usable pair is left ({left_out}); check it with `rlhf data check`"
        )
    return Comparisons(found, **counts)


def _answers(row: dict[str, Any], where: str) -> tuple[list[Any], list[bool], list[int], float]:
    if "completions" in row:
        texts = row["completions"]
        flags = row.get("finished")
        if flags is None:
            flags = [True] * len(texts)
        if not isinstance(flags, list) or len(flags) != len(texts):
            raise UserError(
                f"{where}: 'finished' is {flags!r}; write one true or false for each completion"
            )
        return texts, [_flag(flag, "finished", where) for flag in flags], row["ranks"], 0.0
    finished = [
        _flag(row.get(name), name, where) for name in ("chosen_finished", "rejected_finished")
    ]
    return [row["chosen"], row["rejected"]], finished, [1, 2], float(row.get("margin") or 0.0)


def _flag(value: Any, name: str, where: str) -> bool:
    if value is None or isinstance(value, bool):
        return value is not False
    raise UserError(f"{where}: {name!r} holds {value!r}; write true or false, or leave it out")
