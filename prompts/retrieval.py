"""Retrieval: passages of a document folder nearest to a query, and how well they are found."""

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompts.documents import nearest
from prompts.items import Item
from workbench.embedding import embed
from workbench.errors import UserError
from workbench.statistics import Estimate, bootstrap_mean

if TYPE_CHECKING:
    from prompts.template import DocumentSettings

SUFFIXES = (".md", ".txt")

# Cosines depend in their last digits on the batch a text is embedded in; ranks must not.
_DECIMALS = 5
_BLANK_LINES = re.compile(r"\n\s*\n")
_HEADING = re.compile(r"#{1,6}\s")
_TOKEN = re.compile(r"\S+\s*")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*\s")
_ITEM = re.compile(r"[-*+|>]|\d+[.)]")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Passage:
    """A piece of a document.

    Attributes:
        text: as it stands in the file.
        source: `file#number`: the path below the folder and the passage's number in it, from 1.
        score: cosine of its embedding and the query's, at most 1.
    """

    text: str
    source: str
    score: float


class DocumentFolder:
    """The `.md` and `.txt` files of a folder, cut into passages and embedded on first search.

    MiniLM reads the first 256 tokens of a passage, about 190 words; what stands behind them is
    shown to the model but cannot be searched for.

    Attributes:
        settings: as the template gives them.
        texts: every passage by its source, files in the order of their paths.
    """

    def __init__(self, settings: "DocumentSettings", base: Path) -> None:
        """Read the folder.

        Args:
            settings: folder, number and length of the passages.
            base: what the folder's path is relative to: where the template file is.

        Raises:
            UserError: for a folder that does not exist or holds no text, or a file that cannot be
                read.
        """
        self.settings = settings
        self.folder = base / settings.folder
        self.texts: dict[str, str] = {}
        for path in _documents(self.folder):
            name = path.relative_to(self.folder).as_posix()
            for number, text in enumerate(passages(_read(path), settings.words), start=1):
                self.texts[f"{name}#{number}"] = text
        if not self.texts:
            raise UserError(f"{self.folder}: the documents hold no text; write some")

    def search(self, query: str, k: int | None = None) -> list[Passage]:
        """Return the passages nearest to a query; see `search_all`, which takes many at once."""
        return self.search_all([query], k)[0]

    def search_all(self, queries: Sequence[str], k: int | None = None) -> list[list[Passage]]:
        """Return the `k` passages nearest to each query, the nearest first.

        Passages of equal score keep the order of the documents.

        Args:
            queries: N texts, embedded in one batch.
            k: None takes that of the settings; a folder of fewer passages gives all.

        Returns:
            N lists, in the order of the queries.

        Raises:
            UserError: for a query without text.
        """
        for query in queries:
            if not query.strip():
                raise UserError(
                    f"documents.query: '{self.settings.query}' is empty, and nothing can be "
                    "searched for with it; fill it or leave the item out"
                )
        if not queries:
            return []
        sources = list(self.texts)
        vectors = embed(queries)
        results = []
        for vector in vectors:
            scores = np.round(self._vectors @ vector, _DECIMALS)
            ranked = np.argsort(-scores, kind="stable")[: self.settings.k if k is None else k]
            results.append(
                [Passage(self.texts[sources[i]], sources[i], float(scores[i])) for i in ranked]
            )
        return results

    @cached_property
    def _vectors(self) -> Any:
        """The passages' embeddings, [number of passages, 384]."""
        return embed(list(self.texts.values()))


def passages(text: str, words: int) -> Iterator[str]:
    """Cut a document into passages of at most so many words.

    Paragraphs (what blank lines separate) are put together while they fit and never divided where
    they fit alone; a Markdown heading begins a new passage. A longer paragraph is cut between its
    sentences, list items or table rows, and those that are longer between their words.

    Args:
        text: the document.
        words: the most words of a passage.
    """
    current: list[str] = []
    count = 0
    for piece in _pieces(text, words):
        size = len(piece.split())
        heading = _HEADING.match(piece) is not None
        # A heading directly below a heading opens the same passage.
        only_headings = all(_HEADING.match(part) and "\n" not in part for part in current)
        if current and (count + size > words or (heading and not only_headings)):
            yield "\n\n".join(current)
            current, count = [], 0
        current.append(piece)
        count += size
    if current:
        yield "\n\n".join(current)


def average_precision(relevant: Collection[str], ranked: Sequence[str]) -> float:
    """Return the mean, over the relevant sources, of the precision at the rank of each.

    A relevant source that is not ranked counts 0 (Manning et al. 2008, equation 8.8, for one
    query).

    Args:
        relevant: at least one source.
        ranked: different sources, the best first.

    Returns:
        Between 0 and 1.
    """
    wanted = _checked(relevant, ranked)
    hits, total = 0, 0.0
    for rank, source in enumerate(ranked, start=1):
        if source in wanted:
            hits += 1
            total += hits / rank
    return total / len(wanted)


def recall_at(k: int, relevant: Collection[str], ranked: Sequence[str]) -> float:
    """Return the share of the relevant sources that are among the first `k`.

    Args:
        k: at least 1.
        relevant: at least one source.
        ranked: different sources, the best first.

    Returns:
        Between 0 and 1; below 1 whenever there are more than `k` relevant sources.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, but it is {k}")
    wanted = _checked(relevant, ranked)
    return len(wanted.intersection(ranked[:k])) / len(wanted)


def evaluate_retrieval(
    folder: DocumentFolder, rows: Sequence[Item], path: Path, ks: Collection[int] = (1, 3, 5, 10)
) -> dict[str, Estimate]:
    """Measure retrieval on labelled queries: mean average precision and recall@k.

    Args:
        folder: the documents.
        rows: items with the query in the field that `documents.query` names, and in `relevant` the
            sources of the passages that answer it: a list, or one source.
        path: the rows' file, for messages.
        ks: the k of recall@k; that of the settings is always among them.

    Returns:
        `map` (over the ranking of all passages) and `recall@k` for every k in order, each with a
        bootstrap interval over the queries.

    Raises:
        UserError: for fewer than two rows, a row without query or sources, or a source that the
            folder does not have; names file and line.
    """
    if len(rows) < 2:
        raise UserError(f"{path}: {len(rows)} labelled queries give no interval; write at least 2")
    relevant = [_relevant(row, folder, f"{path}:{row.line}") for row in rows]
    queries = [_query(row, folder.settings.query, f"{path}:{row.line}") for row in rows]
    ranked = [
        [passage.source for passage in found]
        for found in folder.search_all(queries, len(folder.texts))
    ]
    pairs = list(zip(relevant, ranked, strict=True))
    measured = {"map": [average_precision(wanted, found) for wanted, found in pairs]}
    for k in sorted({*ks, folder.settings.k}):
        measured[f"recall@{k}"] = [recall_at(k, wanted, found) for wanted, found in pairs]
    return {name: bootstrap_mean(values) for name, values in measured.items()}


def _documents(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; documents.folder names it")
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    documents = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not documents:
        raise UserError(f"{folder}: no {' or '.join(SUFFIXES)} files; put the documents there")
    if len(documents) < len(files):
        other = next(path for path in files if path not in documents)
        logger.warning(
            "%s: %d files are neither .md nor .txt (such as %s) and are not searched",
            folder,
            len(files) - len(documents),
            other.name,
        )
    return documents


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file") from None


def _pieces(text: str, words: int) -> Iterator[str]:
    """Yield paragraphs; of those that are too long, as many sentences or lines as fit."""
    for paragraph in _BLANK_LINES.split(text):
        current: list[str] = []
        tokens = _TOKEN.findall(paragraph)
        for unit in [tokens] if len(tokens) <= words else _units(tokens):
            if current and len(current) + len(unit) > words:
                yield "".join(current).strip()
                current = []
            current += unit
            while len(current) > words:
                yield "".join(current[:words]).strip()
                current = current[words:]
        if current:
            yield "".join(current).strip()


def _units(tokens: Sequence[str]) -> list[list[str]]:
    """Divide words, each with the space behind it, into sentences, list items and table rows."""
    units: list[list[str]] = [[]]
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        units[-1].append(token)
        if _SENTENCE_END.search(token) or ("\n" in token and _ITEM.match(following)):
            units.append([])
    return units


def _checked(relevant: Collection[str], ranked: Sequence[str]) -> set[str]:
    if isinstance(relevant, str) or not relevant:
        raise ValueError("relevant must be a collection of at least one source")
    if len(set(ranked)) < len(ranked):
        raise ValueError("ranked names a source twice")
    return set(relevant)


def _relevant(row: Item, folder: DocumentFolder, where: str) -> list[str]:
    value = row.fields.get("relevant")
    sources = [value] if isinstance(value, str) else value
    if not isinstance(sources, list) or not sources:
        raise UserError(f"{where}: 'relevant' is {value!r}; write a list of sources, file#number")
    for source in sources:
        if source not in folder.texts:
            raise UserError(
                f"{where}: {folder.folder} has no passage {source!r} (passages of "
                f"{folder.settings.words} words); {nearest(str(source), folder.texts)}"
            )
    return sources


def _query(row: Item, field: str, where: str) -> str:
    query = row.fields.get(field)
    if not isinstance(query, str) or not query.strip():
        raise UserError(f"{where}: '{field}' is {query!r}; documents.query names it: write a text")
    return query
