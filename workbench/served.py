"""Models behind an OpenAI-compatible server, such as vLLM's: asked over HTTP, never loaded."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from workbench.asking import KEY, Asking, at_once, described
from workbench.chat import Prompt, as_messages
from workbench.errors import UserError
from workbench.logs import console, progress

if TYPE_CHECKING:
    import httpx2

    from workbench.generation import SamplingSettings

PREFIX = "openai:"
# What ends an answer. Anything else is no answer, such as a call of a tool.
FINISHED = {"stop": True, "length": False, "content_filter": False}


@dataclass(frozen=True)
class Said:
    """One answer of a served model.

    Attributes:
        text: without stop text and outer blanks.
        finished: ended by EOS or a stop text, not cut at the longest length.
        prompt_tokens: tokens read, as the server counts them.
        tokens: tokens written, EOS included where the server counts it.
        seconds: from the last request for it to the answer.
    """

    text: str
    finished: bool
    prompt_tokens: int
    tokens: int
    seconds: float


def is_served(source: str) -> bool:
    """Return whether a model's source is a server: `openai:http://host:port/v1#name`."""
    return str(source).startswith(PREFIX)  # folders may come as paths


class ServedModel:
    """A model that a server has, under a name.

    Prompts are read as `workbench.chat.query_ids` reads them: as chat turns where the model has a
    chat template, a plain string as one user turn; else as plain text. The server knows which.

    Attributes:
        source: `openai:URL#name`.
        url: where the server's API begins, without a slash at the end.
        name: what the server calls the model.
    """

    def __init__(self, source: str, *, timeout: float = 600.0) -> None:
        """Find the model; one request asks the server which models it has.

        Args:
            source: `openai:URL#name`.
            timeout: seconds an answer may take.

        Raises:
            UserError: for a source that is none, a server that does not answer, or has no such
                model.
        """
        self.source = source
        self.url, self.name = _parse(source)
        self._templated = True  # until the server says otherwise
        slow = "ask for less at a time (--batch-size) or shorter answers"
        self._asking = Asking(self.url, timeout=timeout, slow=slow)
        self._check_name()

    def answers(
        self,
        prompts: Sequence[Prompt],
        sampling: "SamplingSettings",
        *,
        seeds: Sequence[int],
        stop: Sequence[str] = (),
        desc: str | None = None,
    ) -> list[Said]:
        """Return one answer per prompt, in their order.

        Args:
            prompts: N strings or conversations; one that ends with an assistant turn is continued.
            sampling: length and temperature; `batch_size` requests are under way at a time.
            seeds: N, of the sampling; whether they make it repeatable is the server's affair.
            stop: texts that end an answer.
            desc: text of the progress bar; None draws none.

        Raises:
            UserError: names the address, what was answered, and after how many tries.
        """

        def work(place: int) -> Said:
            return self._said(prompts[place], sampling, seeds[place], stop)

        under_way = at_once(work, len(prompts), sampling.batch_size)
        if desc:
            under_way = progress(under_way, desc, total=len(prompts), unit="answer")
        found = dict(under_way)
        empty = sum(not said.text for said in found.values())
        if empty:
            console.print(f"{self.source}: {empty} of {len(prompts)} answers are empty")
        return [found[place] for place in range(len(prompts))]

    def stream(
        self, prompt: Prompt, sampling: "SamplingSettings", seed: int
    ) -> Iterator[str | Said]:
        """Yield the text of an answer as it grows, and the answer at the end.

        Raises:
            UserError: as `answers`; a stream that has begun is not asked for again.
        """
        import httpx2

        path, body = self._request(prompt, sampling, seed, ())
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        started, text, reason, usage = perf_counter(), "", None, None
        try:
            with self._asking.client.stream("POST", f"{self.url}/{path}", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    if self._needs_text(path, response):
                        yield from self.stream(prompt, sampling, seed)
                        return
                    raise self._asking.refused(path, response)
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    chunk = self._asking.json(path, data)
                    usage = chunk.get("usage") or usage
                    for choice in chunk.get("choices") or []:
                        delta = choice.get("delta") or {}
                        text += choice.get("text") or delta.get("content") or ""
                        reason = choice.get("finish_reason") or reason
                        yield text.strip()
        except httpx2.HTTPError as error:
            raise self._asking.wrong(path, described(error)) from None
        whole = {"choices": [{"text": text, "finish_reason": reason}], "usage": usage}
        yield self._read(path, whole, (), perf_counter() - started)

    def _check_name(self) -> None:
        response = self._asking.get("models")
        if response.status_code == 404 and self.name:  # a server that does not list its models
            return
        if response.status_code != 200:
            raise self._asking.refused("models", response)
        rows = self._asking.json("models", response.text).get("data")
        if not isinstance(rows, list):
            raise self._asking.wrong("models", "answered without a list of models")
        known = [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row]
        if self.name not in known:
            which = f"has no model '{self.name}'" if self.name else "name a model"
            raise UserError(
                f"{PREFIX}{self.url}: {which}; write {PREFIX}{self.url}#NAME with one of "
                f"{', '.join(known) or '(none)'}"
            )

    def _said(
        self, prompt: Prompt, sampling: "SamplingSettings", seed: int, stop: Sequence[str]
    ) -> Said:
        path, body = self._request(prompt, sampling, seed, stop)
        started = perf_counter()
        response = self._asking.post(path, body)
        if response.status_code != 200:
            if self._needs_text(path, response):
                return self._said(prompt, sampling, seed, stop)
            raise self._asking.refused(path, response)
        seconds = perf_counter() - started
        return self._read(path, self._asking.json(path, response.text), stop, seconds)

    def _request(
        self, prompt: Prompt, sampling: "SamplingSettings", seed: int, stop: Sequence[str]
    ) -> tuple[str, dict[str, Any]]:
        """Return path and body of a request."""
        body: dict[str, Any] = {
            "model": self.name,
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": 1.0,  # else what ships with the model may apply, as elsewhere it does not
        }
        if sampling.temperature > 0:
            body["seed"] = seed % 2**31  # what all servers take
        if stop:
            body["stop"] = list(stop)
        continued = not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"
        if not self._templated:
            return "completions", body | {"prompt": _plain(prompt, continued)}
        body["messages"] = as_messages(prompt)
        if continued:  # vLLM's words; OpenAI has none for this
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return "chat/completions", body

    def _needs_text(self, path: str, response: "httpx2.Response") -> bool:
        """Return whether a model has turned out to have no chat template, and remember it."""
        if path != "chat/completions" or "provide a chat template" not in response.text:
            return False
        self._templated = False
        return True

    def _read(self, path: str, answer: dict[str, Any], stop: Sequence[str], seconds: float) -> Said:
        """Return what an answer says, once it has the form of one."""
        choices = answer.get("choices")
        count = len(choices) if isinstance(choices, list) else 0
        if not isinstance(choices, list) or count != 1 or not isinstance(choices[0], dict):
            raise self._asking.wrong(path, f"answered with {count} choices where one was asked for")
        choice = choices[0]
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else choice.get("text")
        reason = choice.get("finish_reason")
        if not isinstance(text, str) or reason not in FINISHED:
            what = "without text" if not isinstance(text, str) else "without an end"
            raise self._asking.wrong(path, f"answered {what} (finish_reason {json.dumps(reason)})")
        usage = answer.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        read, written = counts.get("prompt_tokens"), counts.get("completion_tokens")
        if not isinstance(read, int) or not isinstance(written, int):
            raise self._asking.wrong(path, "answered without counting its tokens (usage)")
        ends = [place for place in map(text.find, stop) if place >= 0]
        text = text[: min(ends, default=len(text))].replace("\0", "\ufffd").strip()
        return Said(text, FINISHED[reason], read, written, seconds)


def seeds_of(seed: int, count: int) -> list[int]:
    """Return seeds of several answers; each depends on `seed` and its place only."""
    drawn = random.Random(seed)
    return [drawn.randrange(2**31) for _ in range(count)]


def _parse(source: str) -> tuple[str, str]:
    """Return address and model name of `openai:URL#name`; the name may be empty."""
    url, _, name = source.removeprefix(PREFIX).partition("#")
    example = f"write {PREFIX}http://HOST:PORT/v1#NAME"
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UserError(f"{source}: {error}; {example}") from None
    if parts.username is not None or parts.password is not None:
        raise UserError(f"{PREFIX}…@{parts.hostname}: no passwords in the address; set {KEY}")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
        raise UserError(f"{source}: not the address of a server; {example}")
    return url.rstrip("/"), name.strip()


def _plain(prompt: Prompt, continued: bool) -> str:
    """Return a prompt for a model without turns, as `workbench.chat.query_ids` encodes it."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(turn["content"] for turn in prompt) + ("" if continued else "\n\n")
