"""Models that answer while somebody waits: loaded once, streamed as they write."""

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from ui.chats import Reply
from ui.errors import Refused
from workbench.chat import Messages, decode, query_ids
from workbench.generation import SamplingSettings, StopText, generate
from workbench.models import ModelSettings, load_policy, load_tokenizer, most_positions
from workbench.served import Said, ServedModel, is_served

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

News = SimpleQueue[tuple[int, str | Reply | BaseException]]  # of each side
_PAUSE = 0.05  # seconds between two looks at what has been written


@dataclass(frozen=True)
class _Model:
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    turn: threading.Lock  # one answer at a time: a second would slow down both


class LiveModels:
    """Loads models when they are first asked for, and lets them answer."""

    def __init__(self, sampling: SamplingSettings | None = None) -> None:
        """Set up.

        Args:
            sampling: length and temperature of the answers.
        """
        self.sampling = sampling or SamplingSettings(max_new_tokens=256, temperature=0.7)
        self._loading = threading.Lock()
        self._models: dict[str, _Model | ServedModel] = {}

    def load(self, where: str) -> _Model | ServedModel:
        """Return the model of a hub id or folder, or a served one.

        Raises:
            UserError: when it cannot be loaded, or its server does not have it.
        """
        with self._loading:
            if where not in self._models:
                self._models[where] = ServedModel(where) if is_served(where) else _loaded(where)
            return self._models[where]

    def answer(
        self, wheres: Sequence[str], conversations: Sequence[Messages]
    ) -> Iterator[list[str] | list[Reply]]:
        """Let models answer side by side.

        All show the same number of tokens until one has ended, so that a model cannot be told by
        its speed.

        Args:
            wheres: hub id, folder or server of the model of each side.
            conversations: what each is asked.

        Yields:
            The texts so far, and at the end the replies.

        Raises:
            Refused: `invalid`, when a conversation has grown too long for its model.
            UserError: when a model cannot be loaded, or its server fails.
        """
        news: News = SimpleQueue()
        nobody_listens = threading.Event()
        writers: list[Callable[[], Reply | None]] = []
        for side, (where, messages) in enumerate(zip(wheres, conversations, strict=True)):
            loaded = self.load(where)
            if isinstance(loaded, ServedModel):
                outlet = _Outlet(side, news, nobody_listens)
                writers.append(partial(self._ask, loaded, messages, outlet))
            else:
                tap = _Tap(loaded.tokenizer, side, news, nobody_listens)
                writers.append(partial(self._write, loaded, self._query(loaded, messages), tap))
        for side, write in enumerate(writers):
            threading.Thread(target=_report, args=(side, write, news), daemon=True).start()
        texts: list[list[str]] = [[""] for _ in wheres]
        replies: dict[int, Reply] = {}
        try:
            while len(replies) < len(wheres):
                side, what = news.get()
                if isinstance(what, BaseException):
                    raise what
                if isinstance(what, Reply):
                    replies[side] = what
                else:
                    texts[side].append(what)
                if news.empty():
                    pace = min(
                        (len(t) for k, t in enumerate(texts) if k not in replies), default=None
                    )
                    yield [written[:pace][-1] for written in texts]
                    time.sleep(_PAUSE)
            yield [replies[side] for side in range(len(wheres))]
        finally:
            nobody_listens.set()

    def _query(self, loaded: _Model, messages: Messages) -> list[int]:
        query = query_ids(loaded.tokenizer, messages)
        positions = most_positions(loaded.model.config)
        if positions is not None and len(query) + self.sampling.max_new_tokens > positions:
            raise Refused("invalid", "this is too long for the models; vote, or write less")
        return query

    def _write(self, loaded: _Model, query: list[int], tap: "_Tap") -> Reply:
        with loaded.turn:
            response = generate(
                loaded.model,
                [query],
                self.sampling,
                eos_token_id=loaded.tokenizer.eos_token_id,
                seed=secrets.randbelow(2**31),
                stop=tap,
            )[0]
        text = decode(loaded.tokenizer, response.ids)
        return Reply(text, len(response.ids), response.finished)

    def _ask(self, model: ServedModel, messages: Messages, show: "_Outlet") -> Reply | None:
        for part in model.stream(messages, self.sampling, secrets.randbelow(2**31)):
            if isinstance(part, Said):
                return Reply(part.text, part.tokens, part.finished)
            if show(part):
                break
        return None


def _loaded(where: str) -> _Model:
    model, tokenizer = load_policy(ModelSettings(name=where)), load_tokenizer(where)
    return _Model(model.eval(), tokenizer, threading.Lock())


def _report(side: int, write: Callable[[], Reply | None], news: News) -> None:
    """Report what became of an answer; None where nobody waits for it."""
    try:
        reply = write()
    except BaseException as error:  # noqa: BLE001 - raised again where somebody sees it
        news.put((side, error))
    else:
        if reply is not None:
            news.put((side, reply))


class _Outlet:
    """Reports the text so far, and says whether to stop as nobody waits for more."""

    def __init__(self, side: int, news: News, nobody_listens: threading.Event) -> None:
        self._side, self._news, self._nobody_listens = side, news, nobody_listens

    def __call__(self, text: str) -> bool:
        """Report, and return whether to stop."""
        self._news.put((self._side, text))
        return self._nobody_listens.is_set()


class _Tap(StopText):
    """Reports the text after every token, and stops an answer that nobody waits for."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        side: int,
        news: News,
        nobody_listens: threading.Event,
    ) -> None:
        super().__init__(tokenizer, ())
        self._show = _Outlet(side, news, nobody_listens)

    def __call__(self, ids: Sequence[int]) -> bool:
        """Report, and return whether to stop."""
        # A character of several tokens shows as U+FFFD until it is complete.
        return self._show(decode(self.tokenizer, ids).rstrip("\ufffd"))
