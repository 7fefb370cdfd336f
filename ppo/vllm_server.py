"""A vLLM server: sampled answers with their log-probabilities, and adapters loaded at run time."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench.asking import Asking, UnusableAnswerError, at_once, short
from workbench.errors import UserError
from workbench.generation import Response, SamplingSettings
from workbench.served import seeds_of

if TYPE_CHECKING:
    import httpx2

# Rounding may carry a probability of 1 over it.
ROUNDING = 1e-3


class UnknownModelError(Exception):
    """The server does not know a name, as after it was started anew."""


class ServedPolicy(NamedTuple):
    """What a server was started with.

    Attributes:
        name: under which it is asked for.
        root: folder or hub id, where the server says it.
        longest: tokens of prompt and answer together, where the server says it.
    """

    name: str
    root: str | None
    longest: int | None


class VLLMServer:
    """Asks a server of vLLM 0.10.2 or newer.

    Prompts go as token ids, one request each: a request's prompts would share its seed, and equal
    prompts get equal answers.
    """

    def __init__(self, url: str, *, timeout: float, tries: int) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: ends in /v1.
            timeout: seconds an answer may take.
            tries: how often a request is sent at most.
        """
        self.asking = Asking(url, timeout=timeout, tries=tries)

    def models(self) -> list[dict[str, Any]]:
        """Return what the server has: the model it was started with, and adapters.

        Raises:
            UserError: when it does not answer.
        """
        return self.asking.sent("models", partial(self._get, "models"), self._listed)

    def base(self, name: str | None) -> ServedPolicy:
        """Return the model the server was started with.

        Args:
            name: the server's for it; None for the only one.

        Raises:
            UserError: when it has no such model.
        """
        rows = [row for row in self.models() if not row.get("parent")]
        known = [str(row["id"]) for row in rows]
        found = [row for row in rows if name is None or row["id"] == name]
        if len(found) != 1:
            which = f"has no model '{name}'" if name else "name the policy with rollout.vllm.model"
            raise UserError(f"{self.asking.url}: {which}; it has {', '.join(known) or 'none'}")
        longest = found[0].get("max_model_len")
        root = found[0].get("root")
        return ServedPolicy(
            str(found[0]["id"]),
            None if root is None else str(root),
            longest if isinstance(longest, int) else None,
        )

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter from a folder that the server can read; one loaded already stays.

        Raises:
            UserError: when the server cannot, with its reason.
        """
        path, body = "load_lora_adapter", {"lora_name": name, "lora_path": str(folder)}
        response = self.asking.post(path, body)
        if response.status_code == 200 or "already been loaded" in response.text:
            return
        if response.status_code == 404 and "does not exist" not in response.text:
            raise self.asking.wrong(
                path,
                "answered 404: start the server with --enable-lora, and with "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True in its environment",
            )
        raise self.asking.wrong(
            path,
            f"answered {response.status_code}: {short(response.text)}; it must see {folder} under "
            "this path (rollout.vllm.folder), and allow the rank (--max-lora-rank)",
        )

    def unload(self, name: str) -> None:
        """Forget an adapter; one that the server does not have is none to forget."""
        self.asking.post("unload_lora_adapter", {"lora_name": name})

    def sample(
        self,
        name: str,
        queries: Sequence[Sequence[int]],
        settings: SamplingSettings,
        seed: int,
        stop_token_id: int,
    ) -> list[Response]:
        """Sample one response per query, in their order, with log-probabilities.

        Args:
            name: the server's, of the model or adapter.
            queries: token ids of each.
            settings: length and temperature; `batch_size` requests are under way at a time.
            seed: each answer's depends on it and on its place.
            stop_token_id: ends an answer; a negative one lets every answer go on to its end.

        Raises:
            UserError: names the address and what was wrong, after all tries.
            UnknownModelError: when the server does not know the name.
        """
        seeds = seeds_of(seed, len(queries))
        stops = [stop_token_id] if stop_token_id >= 0 else []

        def work(place: int) -> Response:
            query = list(queries[place])
            body = request(name, query, settings, seeds[place], stops)
            return self.asking.sent(
                "completions",
                partial(self._post, "completions", body),
                lambda response: self._answer(response, name, query, settings, stop_token_id),
            )

        found = dict(at_once(work, len(queries), settings.batch_size))
        return [found[place] for place in range(len(queries))]

    def _get(self, path: str) -> "httpx2.Response":
        return self.asking.client.get(f"{self.asking.url}/{path}")

    def _post(self, path: str, body: dict[str, Any]) -> "httpx2.Response":
        return self.asking.client.post(f"{self.asking.url}/{path}", json=body)

    def _listed(self, response: "httpx2.Response") -> list[dict[str, Any]]:
        if response.status_code != 200:
            raise self.asking.refused("models", response)
        rows = _object(response).get("data")
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and "id" in row for row in rows
        ):
            raise UnusableAnswerError("answered without a list of models")
        return rows

    def _answer(
        self,
        response: "httpx2.Response",
        name: str,
        query: list[int],
        settings: SamplingSettings,
        stop_token_id: int,
    ) -> Response:
        if response.status_code == 404 and name in response.text:
            raise UnknownModelError(name)
        if response.status_code != 200:
            raise self.asking.refused("completions", response)
        return read_answer(_object(response), name, query, settings, stop_token_id)


def request(
    name: str, query: list[int], settings: SamplingSettings, seed: int, stops: list[int]
) -> dict[str, Any]:
    """Return the body of a request that leaves nothing to the model's or the server's defaults."""
    return {
        "model": name,
        "prompt": query,
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "seed": seed,
        # Only the policy's own stop token ends an answer, not what ships with the model.
        "stop_token_ids": stops,
        "ignore_eos": True,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def read_answer(
    answer: dict[str, Any],
    name: str,
    query: list[int],
    settings: SamplingSettings,
    stop_token_id: int,
) -> Response:
    """Return what an answer holds, once it is what was asked for.

    Raises:
        UnusableAnswerError: says what it is instead.
    """
    if answer.get("model") != name:
        raise UnusableAnswerError(
            f"answered with the weights '{answer.get('model')}' where '{name}' were asked for"
        )
    choices = answer.get("choices")
    count = len(choices) if isinstance(choices, list) else 0
    if not isinstance(choices, list) or count != 1 or not isinstance(choices[0], dict):
        raise UnusableAnswerError(f"answered with {count} choices where one was asked for")
    choice = choices[0]
    read, ids = choice.get("prompt_token_ids"), choice.get("token_ids")
    if not isinstance(ids, list) or not ids or not all(isinstance(each, int) for each in ids):
        raise UnusableAnswerError("answered without token ids; vLLM 0.10.2 or newer gives them")
    if read is not None and read != query:
        raise UnusableAnswerError("read other tokens than were sent")
    told = choice.get("logprobs")
    logprobs = told.get("token_logprobs") if isinstance(told, dict) else None
    if not isinstance(logprobs, list) or len(logprobs) != len(ids):
        raise UnusableAnswerError(
            f"answered without a log-probability for each of {len(ids)} tokens"
        )
    numbers = [number for number in logprobs if isinstance(number, int | float)]
    if len(numbers) < len(ids) or not all(math.isfinite(n) and n < ROUNDING for n in numbers):
        raise UnusableAnswerError("answered with log-probabilities that are none")
    finished = bool(ids) and ids[-1] == stop_token_id
    if stop_token_id in ids[:-1] or not (
        len(ids) == settings.max_new_tokens or (finished and len(ids) < settings.max_new_tokens)
    ):
        raise UnusableAnswerError(
            f"answered {len(ids)} tokens (finish_reason {choice.get('finish_reason')}), which end "
            f"neither with token {stop_token_id} nor after {settings.max_new_tokens}"
        )
    return Response(ids, finished, [float(number) for number in numbers])


def _object(response: "httpx2.Response") -> dict[str, Any]:
    try:
        value = response.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UnusableAnswerError(f"answered what is no JSON object: {short(response.text)}")
    return value
