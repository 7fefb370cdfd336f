"""The check of a data set before anything is trained on it: counts, lengths, duplicates, bias."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from workbench.data.conversations import Message, Text, text_of
from workbench.data.findings import Example, LengthBias, Lengths, Overlap, Part, Report, Unit
from workbench.data.formats import KINDS, Kind, is_conversational
from workbench.data.loading import load, splits_of
from workbench.data.splits import group_key
from workbench.errors import UserError
from workbench.files import digest
from workbench.logs import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workbench.data.duplicates import TextIndex

Row = dict[str, Any]

_EXAMPLES = 3
_FIELDS: dict[Kind, tuple[str, ...]] = {
    "prompt_completion": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "prompt_only": ("prompt",),
    "language_modeling": ("text", "messages"),
    "ranking": ("prompt", "completions", "ranks"),
}


@dataclass(frozen=True)
class _Rows:
    """The rows of one part before they are looked at."""

    name: str
    kind: Kind
    rows: list[Row]


@dataclass(frozen=True)
class _Prompts:
    """The distinct prompts of a part: their group keys, their texts, and the index of these."""

    keys: list[str]
    texts: list[str]
    index: "TextIndex"


def check(
    source: str,
    other: str | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    *,
    max_length: int | None = None,
    skip_bad_rows: bool = False,
) -> Report:
    """Check a data set, and with `other` the prompts the two have in common.

    All splits of a source are checked, one part each, and compared with one another: the files or
    splits of a folder or hub set, or the values of a file's `split` column.

    Args:
        source: as `workbench.data.load` takes it.
        other: a second source, e.g. the held-out set.
        tokenizer: counts tokens as the stages do (chat template, EOS); None counts words.
        max_length: count rows whose prompt plus answer is longer than this.
        skip_bad_rows: list bad rows rather than stop at the first.

    Raises:
        UserError: when a source cannot be loaded or has a bad row, or the limit is below 1.
    """
    if max_length is not None and max_length < 1:
        raise UserError(f"max length {max_length}: write 1 or more, or leave it out")
    named: list[_Rows] = []
    skipped: list[str] = []
    for each in (source,) if other is None else (source, other):
        for split in splits_of(each) or (None,):
            loaded = load(each, KINDS, split=split, skip_bad_rows=skip_bad_rows)
            skipped += loaded.skipped
            named += _by_column(_Rows(loaded.source, loaded.kind, list(loaded.rows)))
    prompts = [_distinct(part) for part in named]
    parts = [
        _part(part, found, tokenizer, max_length)
        for part, found in zip(named, prompts, strict=True)
    ]
    overlaps = [
        _overlap(named[i].name, named[j].name, prompts[i], prompts[j])
        for i, j in combinations(range(len(named)), 2)
    ]
    unit: Unit = "words" if tokenizer is None else "tokens"
    return Report(tuple(parts), tuple(overlaps), tuple(skipped), unit, max_length)


def _by_column(part: _Rows) -> list[_Rows]:
    """Divide the rows of a file by its `split` column, if every row has one."""
    values = {None if row.get("split") is None else str(row["split"]) for row in part.rows}
    if None in values or len(values) < 2:
        return [part]
    divided: dict[str, list[Row]] = {}
    for row in part.rows:
        divided.setdefault(f"{part.name} ({row['split']})", []).append(row)
    return [_Rows(name, part.kind, rows) for name, rows in divided.items()]


def _part(
    part: _Rows,
    prompts: _Prompts,
    tokenizer: "PreTrainedTokenizerBase | None",
    max_length: int | None,
) -> Part:
    rows, kind = part.rows, part.kind
    lengths: dict[str, list[int]] = {}
    over = identical = longer = shorter = equal = 0
    # Counting words takes a moment; counting tokens is worth a progress bar.
    for row in rows if tokenizer is None else progress(rows, "counting tokens", unit=" rows"):
        prompt, answers = _measure(row, kind, tokenizer)
        for field, length in [*prompt, *answers]:
            lengths.setdefault(field, []).append(length)
        longest = sum(length for _, length in prompt)
        longest += max((length for _, length in answers), default=0)
        over += max_length is not None and longest > max_length
        texts = _answers(row, kind)
        for better, worse in _comparisons(row, kind):
            if text_of(texts[better][1]) == text_of(texts[worse][1]):
                identical += 1
                continue
            difference = answers[better][1] - answers[worse][1]
            longer += difference > 0
            shorter += difference < 0
            equal += difference == 0
    distinct = {digest([row.get(field) for field in _FIELDS[kind]]) for row in rows}
    within = prompts.index.within
    return Part(
        name=part.name,
        kind=kind,
        conversational=is_conversational(rows[0]),
        rows=len(rows),
        prompts=len(prompts.keys),
        lengths={field: _percentiles(values) for field, values in lengths.items()},
        over_length=None if max_length is None else over,
        duplicates=len(rows) - len(distinct),
        near_duplicates=len(within),
        near_examples=tuple(
            Example(prompts.texts[match.other], prompts.texts[match.index], match.similarity)
            for match in within[:_EXAMPLES]
        ),
        identical_pairs=identical if kind in ("preference", "ranking") else None,
        empty_turns=sum(not turn["content"].strip() for row in rows for turn in _turns(row, kind)),
        length_bias=_bias(longer, shorter, equal),
    )


def _bias(longer: int, shorter: int, equal: int) -> LengthBias | None:
    from workbench.statistics import binomial_interval

    pairs = longer + shorter
    if not pairs:
        return None
    interval = binomial_interval(longer, pairs)
    return LengthBias(pairs, equal, longer, longer / pairs, interval.low, interval.high)


def _measure(
    row: Mapping[str, Any], kind: Kind, tokenizer: "PreTrainedTokenizerBase | None"
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Return (field, length) of the prompt, if the kind has one, and of each answer."""
    from workbench.chat import query_ids, response_ids

    answers = _answers(row, kind)
    prompt = [("prompt", _prompt(row))] if "prompt" in row else []
    if tokenizer is None:
        return (
            [(field, len(text_of(value).split())) for field, value in prompt],
            [(field, len(text_of(value).split())) for field, value in answers],
        )
    if isinstance(row.get("messages"), list):
        # The whole conversation in one: its questions as a prompt, its last answer as a completion.
        query = query_ids(tokenizer, row["messages"][:-1])
        response = response_ids(tokenizer, row["messages"][-1:])
        return [], [("messages", len(query) + len(response))]
    return (
        [(field, len(query_ids(tokenizer, value))) for field, value in prompt],
        [(field, len(response_ids(tokenizer, value))) for field, value in answers],
    )


def _prompt(row: Mapping[str, Any]) -> Text:
    prompt: Text = row["prompt"]
    return prompt


def _answers(row: Mapping[str, Any], kind: Kind) -> list[tuple[str, Text]]:
    if kind == "ranking":
        return [("completions", completion) for completion in row["completions"]]
    fields = [field for field in _FIELDS[kind] if field != "prompt"]
    return [(field, row[field]) for field in fields if row.get(field) is not None]


def _comparisons(row: Mapping[str, Any], kind: Kind) -> list[tuple[int, int]]:
    """Return the (better, worse) positions among the row's answers."""
    if kind == "preference":
        return [(0, 1)]
    if kind != "ranking":
        return []
    ranks = row["ranks"]
    pairs = combinations(range(len(ranks)), 2)
    return [(i, j) if ranks[i] < ranks[j] else (j, i) for i, j in pairs if ranks[i] != ranks[j]]


def _turns(row: Mapping[str, Any], kind: Kind) -> Iterator[Message]:
    values = [value for _, value in _answers(row, kind)]
    for value in [row.get("prompt"), *values]:
        if isinstance(value, list):
            yield from value


def _percentiles(values: Sequence[int]) -> Lengths:
    import numpy as np

    found = np.percentile(values, (5, 50, 95, 99, 100), method="inverted_cdf")
    return Lengths(*(int(value) for value in found))


def _distinct(part: _Rows) -> _Prompts:
    from workbench.data.duplicates import TextIndex

    texts: dict[str, str] = {}
    for row in part.rows:
        texts.setdefault(group_key(row), _question(row))
    listed = list(texts.values())
    index = TextIndex(progress(listed, "near-duplicates", unit=" prompts"))
    return _Prompts(list(texts), listed, index)


def _question(row: Mapping[str, Any]) -> str:
    """Return what is compared with other rows: the prompt or text, without the system message.

    A long system message that all rows share would make them all near-duplicates.
    """
    value: Text = next(row[field] for field in ("prompt", "messages", "text") if row.get(field))
    if isinstance(value, str):
        return value
    return text_of([message for message in value if message["role"] != "system"])


def _overlap(first: str, second: str, left: _Prompts, right: _Prompts) -> Overlap:
    known = set(left.keys)
    new = [index for index, key in enumerate(right.keys) if key not in known]
    tracked = progress(new, "prompts in two places", unit=" prompts")
    found = [right.index.lookup(index, left.index) for index in tracked]
    near = [match for match in found if match is not None]
    examples = tuple(
        Example(left.texts[match.other], right.texts[match.index], match.similarity)
        for match in near[:_EXAMPLES]
    )
    return Overlap(first, second, len(right.keys) - len(new), len(near), examples)
