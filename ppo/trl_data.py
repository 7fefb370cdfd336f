"""Rows as TRL's PPO takes them, and text and conversations too, as queries."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

from ppo.reward_sources import Query
from workbench.chat import Prompt, query_ids
from workbench.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS = {"input_ids", "attention_mask", "token_type_ids", "labels"}

# A row, a prompt as text or messages, or its tokens.
Given = Query | Prompt | Mapping[str, Any] | Sequence[int]


def read_queries(
    rows: Any,
    tokenizer: "PreTrainedTokenizerBase",
    collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    where: str = "train_dataset",
) -> list[Query]:
    """Return the rows of a data set as queries.

    Args:
        rows: a `datasets.Dataset`, or any iterable of rows; of several by name, all of them.
        tokenizer: of the policy.
        collator: makes `input_ids` of a row; None where the rows have them, or text.
        where: the argument, for messages.

    Raises:
        UserError: for a row without a prompt, and when there is none at all.
    """
    found: Iterable[Any] = rows
    if isinstance(rows, Mapping):
        found = chain.from_iterable(rows.values())
    queries = []
    for number, row in enumerate(found):
        try:
            made = row if collator is None else _collated(row, collator)
            queries.append(as_query(made, tokenizer))
        except UserError as error:
            raise UserError(f"{where}: row {number}: {error}") from None
    if not queries:
        raise UserError(f"{where}: has no rows")
    return queries


def as_query(given: Given, tokenizer: "PreTrainedTokenizerBase") -> Query:
    """Return a row, a prompt or its tokens as a query.

    A row has `input_ids`, and `attention_mask` where they are padded; or `prompt`, as text or
    messages; or `messages`, the last of which is left out where it is the assistant's.

    Raises:
        UserError: when it is none of these.
    """
    if isinstance(given, Query):
        return given
    if isinstance(given, str):
        return _text_query(given, {}, tokenizer)
    if isinstance(given, Mapping):
        columns = {name: value for name, value in given.items() if name not in TOKENS}
        if "input_ids" in given:
            return _token_query(given["input_ids"], given.get("attention_mask"), columns, tokenizer)
        prompt = columns.pop("prompt", None)
        if prompt is None and columns.get("messages"):
            prompt = columns.pop("messages")
            prompt = prompt[:-1] if prompt[-1]["role"] == "assistant" else prompt
        if not prompt:
            names = ", ".join(given) or "none"
            raise UserError(f"needs input_ids, prompt or messages; its columns: {names}")
        return _text_query(prompt, columns, tokenizer)
    items = _list(given)
    if items and isinstance(items[0], Mapping):
        return _text_query(items, {}, tokenizer)
    return _token_query(items, None, {}, tokenizer)


def _text_query(
    prompt: Prompt, columns: dict[str, Any], tokenizer: "PreTrainedTokenizerBase"
) -> Query:
    return Query(query_ids(tokenizer, prompt), prompt, columns)


def _token_query(
    given: Any, mask: Any, columns: dict[str, Any], tokenizer: "PreTrainedTokenizerBase"
) -> Query:
    ids = [int(token) for token in _list(given)]
    if mask is not None:
        ids = [token for token, seen in zip(ids, _list(mask), strict=True) if seen]
    elif tokenizer.pad_token_id != tokenizer.bos_token_id:
        # Padded on the left without a mask, as collators for generation do.
        while ids and ids[0] == tokenizer.pad_token_id:
            ids.pop(0)
    if not ids:
        raise UserError("input_ids has no tokens")
    if min(ids) < 0 or max(ids) >= len(tokenizer):
        raise UserError(f"input_ids has a token beyond the {len(tokenizer)} of processing_class")
    prompt = columns.pop("prompt", None) or columns.pop("query", None)
    return Query(ids, prompt or tokenizer.decode(ids, skip_special_tokens=True), columns)


def _collated(row: Any, collator: Callable[[list[Any]], Mapping[str, Any]]) -> dict[str, Any]:
    from transformers import DataCollatorWithPadding

    if isinstance(collator, DataCollatorWithPadding):
        return dict(row)  # it only pads, and a row alone needs no padding
    batch = collator([row])
    if "input_ids" not in batch:
        raise UserError("data_collator made no input_ids of it")
    found = {name: batch[name][0] for name in ("input_ids", "attention_mask") if name in batch}
    return {name: value for name, value in row.items() if name not in TOKENS} | found


def _list(values: Any) -> list[Any]:
    return list(values.tolist() if hasattr(values, "tolist") else values)
