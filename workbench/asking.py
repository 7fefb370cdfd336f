"""Requests to a server over HTTP: sent again with a growing wait, answered or refused in a line."""

import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from time import sleep
from typing import TYPE_CHECKING, Any, TypeVar

from workbench.errors import UserError

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

_waits = random.Random()

KEY = "OPENAI_API_KEY"
TRIES = 5
FIRST_WAIT, MOST_WAIT = 0.5, 60.0  # seconds before a request is sent again; doubled each time
CONNECT_SECONDS = 10.0


class UnusableAnswerError(Exception):
    """An answer that is none; another try may bring a better one."""


class Asking:
    """Asks one server, whose API begins at `url`; its key comes from the environment.

    Attributes:
        url: without a slash at the end.
        client: of the connections.
    """

    def __init__(self, url: str, *, timeout: float, tries: int = TRIES, slow: str = "") -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: http or https.
            timeout: seconds an answer may take.
            tries: how often a request is sent at most.
            slow: what to do about an answer that takes too long, which then is not asked for again;
                empty to ask again.
        """
        import httpx2

        self.url, self.key = url.rstrip("/"), os.environ.get(KEY, "").strip()
        self._timeout, self._tries, self._slow = timeout, tries, slow
        self.client = httpx2.Client(
            headers={"Authorization": f"Bearer {self.key}"} if self.key else {},
            timeout=httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        )

    def get(self, path: str) -> "httpx2.Response":
        """Send a GET; see `sent`."""
        return self.sent(path, partial(self.client.get, f"{self.url}/{path}"), _itself)

    def post(self, path: str, body: dict[str, Any]) -> "httpx2.Response":
        """Send a POST; see `sent`."""
        return self.sent(path, partial(self.client.post, f"{self.url}/{path}", json=body), _itself)

    def sent(
        self,
        path: str,
        send: "Callable[[], httpx2.Response]",
        read: "Callable[[httpx2.Response], T]",
    ) -> T:
        """Send a request, again where the server was not reached, busy, or gave no usable answer.

        Args:
            path: named in messages.
            send: sends it once.
            read: makes something of an answer whose status is below 500 and not 429; what it raises
                as `UnusableAnswerError` is asked for again.

        Raises:
            UserError: names the address, what was answered, and after how many tries.
        """
        import httpx2

        problem, wait = "", FIRST_WAIT
        for attempt in range(self._tries):
            if attempt:
                # Drawn, so that those who were turned away together do not come back together.
                sleep(min(MOST_WAIT, wait * _waits.uniform(1.0, 1.5)))
                wait *= 2
            try:
                response = send()
                if response.status_code != 429 and response.status_code < 500:
                    return read(response)
            except (httpx2.ReadTimeout, httpx2.WriteTimeout):
                problem = f"no answer within {self._timeout:g} s"
                if self._slow:
                    raise self.wrong(path, f"{problem}; {self._slow}") from None
                continue
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                raise self.wrong(path, described(error)) from None
            except httpx2.HTTPError as error:
                problem = described(error)
                continue
            except UnusableAnswerError as error:
                problem = str(error)
                continue
            problem = f"answered {response.status_code}: {short(response.text)}"
            asked = response.headers.get("Retry-After", "")
            wait = max(wait, float(asked)) if asked.isdecimal() else wait
        raise self.wrong(path, f"{problem} ({self._tries} tries)")

    def json(self, path: str, text: str) -> dict[str, Any]:
        """Return the JSON object an answer is.

        Raises:
            UserError: when it is none, or tells of an error.
        """
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise self.wrong(path, f"answered what is no JSON object: {short(text)}")
        error = value.get("error")
        if error is not None:
            raise self.wrong(path, f"answered an error: {short(json.dumps(error))}")
        return value

    def refused(self, path: str, response: "httpx2.Response") -> UserError:
        """Return the error of an answer with another status than 200."""
        status = response.status_code
        hint = {
            401: f"; set {KEY}" if not self.key else f"; is {KEY} right?",
            404: "; does the address end as the server's does, in /v1?",
        }.get(status, "")
        return self.wrong(path, f"answered {status}: {short(response.text)}{hint}")

    def wrong(self, path: str, what: str) -> UserError:
        """Return an error that names the address; the key is not shown."""
        message = f"{self.url}/{path}: {what}"
        return UserError(message.replace(self.key, "***") if self.key else message)


def at_once(work: Callable[[int], T], count: int, most: int) -> Iterator[tuple[int, T]]:
    """Yield places from 0 to `count` - 1 with what `work` makes of them, in the order of its ends.

    Args:
        work: called in other threads, `most` of them.
        count: number of places.
        most: places worked on at a time.

    Raises:
        BaseException: the first that `work` raises; nothing new is begun after it.
    """
    todo: SimpleQueue[int] = SimpleQueue()
    news: SimpleQueue[tuple[int, T | None, BaseException | None]] = SimpleQueue()
    over = threading.Event()
    for place in range(count):
        todo.put(place)

    def run() -> None:
        try:
            while not over.is_set():
                place = todo.get_nowait()
                try:
                    news.put((place, work(place), None))
                except BaseException as error:  # noqa: BLE001 - raised again by who waits
                    over.set()
                    news.put((place, None, error))
        except Empty:
            return

    # Daemons: after Ctrl-C or an error nobody waits for answers that are under way.
    for _ in range(min(most, count)):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in range(count):
            place, found, error = news.get()
            if error is not None:
                raise error
            yield place, found  # type: ignore[misc]  # T may itself be an optional type
    finally:
        over.set()


def described(error: Exception) -> str:
    """Return what kept a request from its answer, in a few words."""
    return f"not reached ({type(error).__name__}: {short(str(error))})"


def short(text: str) -> str:
    """Return what fits in one line, without what does not print."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text[:1000])
    return " ".join(shown.split())[:200] or "(nothing)"


def _itself(response: "httpx2.Response") -> "httpx2.Response":
    return response
