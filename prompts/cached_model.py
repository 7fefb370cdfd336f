"""A model that is loaded only for the answers that a cache lacks."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import workbench
from prompts.cache import Cache
from prompts.questions import Question, Written
from prompts.rendering import token_ids
from workbench import embedded
from workbench.errors import UserError
from workbench.files import digest, sha256
from workbench.logs import progress
from workbench.models import (
    ModelSettings,
    Precision,
    load_policy,
    load_tokenizer,
    locate,
    most_positions,
)
from workbench.run import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The code that an answer depends on: when it changes, known answers are no longer trusted.
CODE = ("generation", "decoder", "decoding_cache", "attention", "likelihood", "states")
LIBRARIES = ("torch", "transformers")
# Tokenizers that are their tokenizer.json and nothing else: readable without importing torch.
PLAIN_TOKENIZERS = {"PreTrainedTokenizerFast", "TokenizersBackend"}


@dataclass(frozen=True)
class Query:
    """One prompt to be answered.

    Attributes:
        ids: its tokens.
        seed: of its sampling; without meaning at temperature 0.
        repeat: which of several answers to the same prompt this is.
        name: where it comes from, for messages.
    """

    ids: tuple[int, ...]
    seed: int = 0
    repeat: int = 0
    name: str = "prompt"


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        ids: its tokens.
        finished: ended by EOS or a stop text, not cut at the longest length.
        seconds: wall time of the batch it was generated in, what somebody waited for it.
        share: its part of that time, seconds / answers in the batch.
    """

    ids: list[int]
    finished: bool
    seconds: float
    share: float


@dataclass(frozen=True)
class Likelihood:
    """The log-probability of one given answer.

    Attributes:
        logprob: its sum over the answer's tokens, nats.
        seconds: wall time of the batch it was computed in.
        share: its part of that time.
    """

    logprob: float
    seconds: float
    share: float


class CachedModel:
    """A model whose answers come from the cache; its weights are loaded for the others only.

    Attributes:
        name: what it is called in results.
        source: hub id, folder or the embedded model's name.
        generated: answers and likelihoods computed so far.
        cached: those that were known.
    """

    def __init__(
        self,
        name: str,
        source: str,
        cache: Cache,
        *,
        precision: Precision = "auto",
        batch_size: int = 32,
    ) -> None:
        """Take a model's name and source; nothing is loaded yet.

        Raises:
            UserError: for a source that does not exist or holds no model.
        """
        self.name, self.source, self.cache = name, source, cache
        self.precision, self.batch_size = precision, batch_size
        self.generated = self.cached = 0
        self._where = locate(source)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer."""
        return _plain_tokenizer(Path(self._where)) or load_tokenizer(self.source)

    @cached_property
    def content_hash(self) -> str:
        """Hash of the model's files; of an adapter's base model too."""
        return content_hash(self.source)

    @cached_property
    def device(self) -> str:
        """Where it runs: cuda, or cpu."""
        # Asking torch takes a second; a machine without the driver's tool has no such device.
        if not (shutil.which("nvidia-smi") or shutil.which("rocm-smi")):
            return "cpu"
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def dtype(self) -> str:
        """Type of its weights, as torch names it."""
        if self.device == "cpu":  # as `workbench.models.compute_dtype`, without torch
            return "float32" if self.precision == "fp32" else "bfloat16"
        from workbench.models import compute_dtype

        return str(compute_dtype(self.precision)).removeprefix("torch.")

    @cached_property
    def policy(self) -> "PreTrainedModel":
        """The model itself, loaded when first asked for."""
        import torch

        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]
        settings = ModelSettings(name=self.source, precision=self.precision)
        return load_policy(settings, dtype).eval().to(self.device)

    def unload(self) -> None:
        """Forget the weights, so that the next model finds room."""
        self.__dict__.pop("policy", None)

    def write(
        self,
        questions: Sequence[Question],
        *,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str] = (),
        desc: str | None = None,
    ) -> list[Written]:
        """Return one answer per question as text; as `answers`, from conversations."""
        encoded: dict[int, tuple[int, ...]] = {}  # repeats share their messages
        for question in questions:
            if id(question.messages) not in encoded:
                ids = tuple(token_ids(self.tokenizer, question.messages))
                encoded[id(question.messages)] = ids
        queries = [Query(encoded[id(q.messages)], q.seed, q.repeat, q.name) for q in questions]
        answers = self.answers(
            queries, max_new_tokens=max_new_tokens, temperature=temperature, stop=stop, desc=desc
        )
        return [
            Written(
                self.text(answer.ids, stop),
                answer.finished,
                len(query.ids),
                len(answer.ids),
                answer.seconds,
                answer.share,
            )
            for query, answer in zip(queries, answers, strict=True)
        ]

    def answers(
        self,
        queries: Sequence[Query],
        *,
        max_new_tokens: int,
        temperature: float,
        stop: Sequence[str] = (),
        desc: str | None = None,
    ) -> list[Answer]:
        """Return one answer per query: known ones from the cache, the others generated.

        An answer depends on its query, the settings and the model alone, not on the other queries
        (but for rounding in low precision, where a batch's padding can turn a near tie).

        Args:
            queries: N prompts; at temperature 0 equal ones are answered once.
            max_new_tokens: longest answer, EOS included.
            temperature: 0 is greedy.
            stop: texts that end an answer.
            desc: text of the progress bar, drawn while something is generated.
        """
        greedy = temperature == 0
        settings: list[Any] = [max_new_tokens, temperature, list(stop)]
        keys = [
            self._key("answer", q.ids, settings, 0 if greedy else q.seed, 0 if greedy else q.repeat)
            for q in queries
        ]
        values = self.cache.get(dict.fromkeys(keys))
        missing = {key: q for key, q in zip(keys, queries, strict=True) if key not in values}
        self._count(len(missing), len(queries))
        # Prompts of like length waste little padding; equal ones meet and are read once.
        order = sorted(missing, key=lambda key: (-len(missing[key].ids), missing[key].ids))
        for chunk in self._chunks(order, desc):
            batch = [missing[key] for key in chunk]
            for query in batch:
                self._check_length(query, max_new_tokens)
            values |= self._timed(
                chunk, partial(self._generate, batch, max_new_tokens, temperature, stop)
            )
        return [Answer(**values[key]) for key in keys]

    def likelihoods(
        self,
        queries: Sequence[Query],
        answers: Sequence[Sequence[int]],
        desc: str | None = None,
    ) -> list[Likelihood]:
        """Return the log-probability of each given answer, not empty, after its query."""
        keys = [
            self._key("likelihood", query.ids, list(answer))
            for query, answer in zip(queries, answers, strict=True)
        ]
        values = self.cache.get(dict.fromkeys(keys))
        rows = zip(keys, queries, answers, strict=True)
        missing = {key: (query, answer) for key, query, answer in rows if key not in values}
        self._count(len(missing), len(queries))
        order = sorted(missing, key=lambda key: (-len(missing[key][0].ids), missing[key][0].ids))
        for chunk in self._chunks(order, desc):
            batch = [missing[key] for key in chunk]
            for query, answer in batch:
                self._check_length(query, len(answer))
            values |= self._timed(chunk, partial(self._score, batch))
        return [Likelihood(**values[key]) for key in keys]

    def text(self, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
        """Return an answer's tokens as text, up to the first stop text, without outer blanks."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        ends = [place for place in map(text.find, stop) if place >= 0]
        # A byte-level vocabulary can spell NUL, which no data file of ours may hold.
        return text[: min(ends, default=len(text))].replace("\0", "\ufffd").strip()

    def _key(self, kind: str, *parts: Any) -> str:
        whole = [kind, self.content_hash, self.dtype, self.device, code_version(), *parts]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def _count(self, missing: int, total: int) -> None:
        self.generated += missing
        self.cached += total - missing

    def _chunks(self, keys: list[str], desc: str | None) -> Iterable[list[str]]:
        chunks = [
            keys[start : start + self.batch_size] for start in range(0, len(keys), self.batch_size)
        ]
        if not chunks:
            return []
        _ = self.policy  # loading it is no answer's waiting time
        return progress(chunks, desc, unit="batch") if desc else chunks

    def _timed(
        self, keys: Sequence[str], compute: Callable[[], Sequence[dict[str, Any]]]
    ) -> dict[str, dict[str, Any]]:
        """Compute a batch, note how long it took and store it: an interrupted run keeps it."""
        started = time.perf_counter()
        results = compute()
        seconds = round(time.perf_counter() - started, 4)
        times = {"seconds": seconds, "share": seconds / len(keys)}
        values = {key: result | times for key, result in zip(keys, results, strict=True)}
        self.cache.put(values)
        return values

    def _generate(
        self, batch: Sequence[Query], max_new_tokens: int, temperature: float, stop: Sequence[str]
    ) -> list[dict[str, Any]]:
        from workbench.generation import SamplingSettings, StopText, generate

        responses = generate(
            self.policy,
            [query.ids for query in batch],
            SamplingSettings(max_new_tokens, temperature, len(batch)),
            eos_token_id=self.tokenizer.eos_token_id,
            seeds=[query.seed for query in batch],
            stop=StopText(self.tokenizer, stop) if stop else None,
        )
        return [{"ids": response.ids, "finished": response.finished} for response in responses]

    def _score(self, batch: Sequence[tuple[Query, Sequence[int]]]) -> list[dict[str, Any]]:
        from workbench.likelihood import answer_logprobs

        queries, answers = [query.ids for query, _ in batch], [answer for _, answer in batch]
        rows = answer_logprobs(self.policy, queries, answers, len(batch))
        return [{"logprob": math.fsum(row)} for row in rows]

    def _check_length(self, query: Query, new_tokens: int) -> None:
        context = most_positions(self.policy.config)
        if context is not None and len(query.ids) + new_tokens > context:
            raise UserError(
                f"{query.name}: {len(query.ids)} tokens and up to {new_tokens} of answer are more "
                f"than the {context} that model {self.name} reads; show fewer exemplars or "
                "passages, or lower generation.max_new_tokens"
            )


def content_hash(source: str) -> str:
    """Return a hash of a model's files; of an adapter and its base model together.

    A model on the hub is named by its id and, once a part of it is here, its commit.
    """
    where = source if source == embedded.NAME else locate(source)
    adapter = Path(where) / "adapter_config.json"
    if adapter.is_file():
        try:
            base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{adapter}: damaged; it names no base model") from None
        return digest(fingerprint(where), content_hash(base))
    if where == embedded.NAME or Path(where).is_dir():
        return fingerprint(where)
    from huggingface_hub import try_to_load_from_cache

    here = try_to_load_from_cache(where, "config.json")
    return f"{where}@{Path(here).parent.name}" if isinstance(here, str) else where


@cache
def code_version() -> str:
    """Return a hash of the code and of the library versions that answers depend on."""
    folder = Path(workbench.__file__).parent
    sources = [sha256(folder / f"{name}.py") for name in CODE]
    return digest(sources, [version(name) for name in LIBRARIES])


def _plain_tokenizer(folder: Path) -> "PreTrainedTokenizerBase | None":
    """Load a tokenizer that needs no code of its own; None leaves it to `load_tokenizer`."""
    path = folder / "tokenizer_config.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        plain = settings["tokenizer_class"] in PLAIN_TOKENIZERS and "auto_map" not in settings
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not plain or not settings.get("eos_token") or not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer
