"""Exemplars: which worked examples an item's prompt shows, never the item itself."""

import json
import random
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompts.documents import nearest
from prompts.items import Item
from workbench.embedding import embed
from workbench.errors import UserError

if TYPE_CHECKING:
    from prompts.template import ExemplarSettings

NEAR_DUPLICATE = 0.8
"""Jaccard similarity of two texts' word 3-grams from which one repeats the other."""

MMR_LAMBDA = 0.5
"""Weight of nearness to the item; the rest is the penalty of nearness to exemplars chosen."""

TELLING_WORDS = 4
"""A text of fewer words, such as an answer, may be the same in two different questions."""

GRAM_WORDS = 3
# Cosines depend in their last digits on the batch a text is embedded in; ranks must not.
_DECIMALS = 5
# Punctuation of sentences does not count, but 2 + 3 is not 2 - 3. Scripts that are written without
# spaces: each character is a word.
_UNSPACED = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s.,;:!?'\"“”‘’()…]")

Gram = tuple[str, ...]
Fields = tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """The exemplars of one item.

    Attributes:
        exemplars: in the order in which the prompt shows them.
        excluded: ids of the exemplars left out because they repeat the item.
    """

    exemplars: tuple[Item, ...]
    excluded: tuple[str, ...]


class Selector:
    """Selects exemplars from a pool, none of which is the item or a near-duplicate of it.

    An exemplar repeats an item if their texts in one field are equal but for case and punctuation,
    or share 0.8 of their word 3-grams (Jaccard). The field is `by` where the settings name it;
    else every field counts that tells the rows of the pool apart (more than half of its values
    differ) and has four words or more in the item; where all are shorter, they count as one text.

    What an item gets depends on the item, the pool and the settings, never on the other items.
    """

    def __init__(self, settings: "ExemplarSettings", pool: Sequence[Item], pool_path: Path) -> None:
        """Check that the pool fits the settings.

        Raises:
            UserError: when the pool is smaller than `k`, or lacks an id or field that is named.
        """
        self._settings, self._pool, self._path = settings, pool, pool_path
        if settings.k > len(pool):
            raise UserError(
                f"{pool_path}: has {len(pool)} exemplars but exemplars.k is {settings.k}; "
                "write more or lower k"
            )
        places = {exemplar.id: index for index, exemplar in enumerate(pool)}
        for name in settings.ids:
            if name not in places:
                raise UserError(
                    f"{pool_path}: no exemplar '{name}', which exemplars.ids names; "
                    f"{nearest(name, places)}"
                )
        self._fixed = [places[name] for name in settings.ids]
        if settings.by is not None:
            for exemplar in pool:
                _text_of(exemplar, settings.by, f"{pool_path}:{exemplar.line}")
        self._classes = self._labels() if settings.selector == "balanced" else []
        self._leaks = _LeakIndex(pool, settings.by)

    def select(self, item: Item) -> Selection:
        """Select the exemplars of one item; see `select_all`, which embeds many items at once."""
        return self.select_all([item])[0]

    def select_all(self, items: Sequence[Item]) -> list[Selection]:
        """Select the exemplars of every item, all embedded in one batch.

        Where leaks leave fewer than `k` exemplars, an item gets those.

        Args:
            items: N items.

        Returns:
            N selections, in the order of `items`.

        Raises:
            UserError: when an item lacks the field `by`, or no exemplar is left for it.
        """
        queries: Iterable[Any] = [None] * len(items)
        if self._settings.selector in {"knn", "mmr"} and items:
            queries = embed([_text_of(item, self._by, _name(item)) for item in items])
        return [self._select(item, query) for item, query in zip(items, queries, strict=True)]

    def _select(self, item: Item, query: Any) -> Selection:
        settings, leaks = self._settings, self._leaks.of(item)
        near: Any = None if query is None else np.round(self._vectors @ query, _DECIMALS)
        match settings.selector:
            case "fixed":
                leaks &= set(self._fixed)
                ranked = [index for index in self._fixed if index not in leaks]
            case "first_n":
                ranked = self._without(leaks)
            case "random":
                ranked = self._shuffled(item, self._without(leaks))
            case "balanced":
                ranked = self._balanced(self._shuffled(item, self._without(leaks)))
            case "knn":
                ranked = sorted(self._without(leaks), key=lambda index: -near[index])
            case "mmr":
                ranked = self._diverse(near, self._without(leaks))
        chosen = ranked[: settings.k]
        if not chosen:
            raise UserError(
                f"{self._path}: every exemplar repeats {_name(item)}, so that it has none; "
                "add exemplars, or name the field to compare with exemplars.by"
            )
        if settings.order == "random":
            chosen = self._shuffled(item, chosen, "order")
        elif settings.order == "nearest_last":
            chosen = sorted(chosen, key=lambda index: near[index])
        return Selection(
            tuple(self._pool[index] for index in chosen),
            tuple(self._pool[index].id for index in sorted(leaks)),
        )

    @property
    def _by(self) -> str:
        if self._settings.by is None:
            raise ValueError(f"selector {self._settings.selector} without `by`")
        return self._settings.by

    @cached_property
    def _vectors(self) -> Any:
        """The pool's embeddings, [len(pool), 384]."""
        return embed([_text_of(each, self._by, f"{self._path}:{each.line}") for each in self._pool])

    def _labels(self) -> list[str]:
        label = self._settings.label or ""
        for exemplar in self._pool:
            if exemplar.fields.get(label) is None:
                raise UserError(
                    f"{self._path}:{exemplar.line}: no '{label}', which exemplars.label names; "
                    f"{nearest(label, exemplar.fields)}"
                )
        return [_as_text(exemplar.fields[label]) for exemplar in self._pool]

    def _without(self, leaks: set[int]) -> list[int]:
        return [index for index in range(len(self._pool)) if index not in leaks]

    def _shuffled(self, item: Item, indices: Sequence[int], purpose: str = "") -> list[int]:
        # Of Python's generators only random() promises the same numbers in later versions, and one
        # key per place in the pool keeps the order of the others when a leak is left out.
        generator = random.Random(f"{self._settings.seed}:{purpose}:{item.id}")
        keys = [generator.random() for _ in self._pool]
        return sorted(indices, key=lambda index: keys[index])

    def _balanced(self, shuffled: Sequence[int]) -> list[int]:
        """Deal the classes in turn, each in the order given."""
        classes: dict[str, list[int]] = {}
        for index in shuffled:
            classes.setdefault(self._classes[index], []).append(index)
        dealt = chain.from_iterable(zip_longest(*classes.values()))
        return [index for index in dealt if index is not None]

    def _diverse(self, near: Any, allowed: Sequence[int]) -> list[int]:
        """Rank by maximal marginal relevance (Carbonell & Goldstein 1998, equation 1)."""
        left, chosen = list(allowed), list[int]()
        nearest_chosen = np.zeros(len(self._pool), dtype=np.float32)
        while left and len(chosen) < self._settings.k:
            score = MMR_LAMBDA * near[left] - (1 - MMR_LAMBDA) * nearest_chosen[left]
            best = left.pop(int(np.argmax(np.round(score, _DECIMALS))))
            similar = np.round(self._vectors @ self._vectors[best], _DECIMALS)
            nearest_chosen = np.maximum(nearest_chosen, similar) if chosen else similar
            chosen.append(best)
        return chosen


class _LeakIndex:
    """Word 3-grams of a pool's texts, to find the rows that repeat an item."""

    def __init__(self, pool: Sequence[Item], by: str | None) -> None:
        self._by = by
        self._fields = _telling_fields(pool) if by is None else (by,)
        self._sizes: dict[Fields, list[int]] = {}
        self._rows: dict[Fields, dict[Gram, list[int]]] = {}
        for group in {*((field,) for field in self._fields), self._fields}:
            grams = [_grams(exemplar, group) for exemplar in pool]
            rows: dict[Gram, list[int]] = defaultdict(list)
            for index, each in enumerate(grams):
                for gram in each:
                    rows[gram].append(index)
            self._sizes[group] = [len(each) for each in grams]
            self._rows[group] = rows

    def of(self, item: Item) -> set[int]:
        """Return the positions in the pool of the exemplars that repeat an item."""
        groups = [self._fields]
        if self._by is None:
            long = [f for f in self._fields if len(_words(item.fields.get(f))) >= TELLING_WORDS]
            groups = [(field,) for field in long] or groups
        return set(chain.from_iterable(self._like(item, group) for group in groups))

    def _like(self, item: Item, group: Fields) -> Iterable[int]:
        grams = _grams(item, group)
        rows, sizes = self._rows[group], self._sizes[group]
        shared = Counter(chain.from_iterable(rows.get(gram, ()) for gram in grams))
        return (
            index
            for index, both in shared.items()
            if both / (len(grams) + sizes[index] - both) >= NEAR_DUPLICATE
        )


def _telling_fields(pool: Sequence[Item]) -> Fields:
    """Return the fields of which more than half of the pool's values differ, or else all."""
    values: dict[str, set[frozenset[Gram]]] = defaultdict(set)
    for exemplar in pool:
        for field in exemplar.fields:
            values[field].add(_grams(exemplar, (field,)))
    telling = [field for field, distinct in values.items() if 2 * len(distinct) > len(pool)]
    return tuple(telling or values)


def _grams(row: Item, fields: Fields) -> frozenset[Gram]:
    """Return the word 3-grams of fields; a shorter text is one gram, a text without words none."""
    words = [word for field in fields for word in _words(row.fields.get(field))]
    if len(words) < GRAM_WORDS:
        return frozenset([tuple(words)] if words else [])
    return frozenset(zip(words, words[1:], words[2:], strict=False))


def _words(value: Any) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", _as_text(value)).casefold())


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text_of(row: Item, field: str, where: str) -> str:
    value = row.fields.get(field)
    if not isinstance(value, str) or not value.strip():
        found = _found(row.fields, field)
        raise UserError(f"{where}: {found}, which exemplars.by names; it must be a text")
    return value


def _found(fields: Mapping[str, Any], field: str) -> str:
    if field not in fields:
        return f"no '{field}' ({nearest(field, fields)})"
    return f"'{field}' is {fields[field]!r}"


def _name(item: Item) -> str:
    return f"item '{item.id}' (line {item.line})"
