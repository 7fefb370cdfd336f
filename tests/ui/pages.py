"""The app on a port of its own, and what a rater's browser sends to it, by bare HTTP."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from tests.ui.samples import PASSWORD
from ui.server import configured

Json = dict[str, Any]


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an app on a free port and yield its address."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(configured(app, log_level="error", patience=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                thread.join(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


class Visitor:
    """Somebody with a cookie jar; remembers every byte that was received."""

    def __init__(self, address: str, name: str | None = None, password: str = PASSWORD) -> None:
        self.http = httpx.Client(base_url=address, timeout=30)
        self.received: list[bytes] = []
        self.http.event_hooks = {"response": [self._remember]}
        self.component = 0
        if name is not None:
            reply = self.log_in(name, password)
            assert reply.status_code == 303, reply.text

    def log_in(self, name: str, password: str = PASSWORD, **more: str) -> httpx.Response:
        return self.http.post("/login", data={"name": name, "password": password, **more})

    def send(self, function: str, data: Any, **headers: str) -> httpx.Response:
        """Call a server function of the raters' page as its script does."""
        if not self.component:
            (desk,) = self.http.get("/rate/config").json()["components"]
            self.component = desk["id"]
        body = {
            "session_hash": "bare",
            "component_id": self.component,
            "fn_name": function,
            "data": data,
        }
        path = "/rate/gradio_api/component_server/"
        return self.http.post(path, json=body, headers=headers)

    def ask(self, function: str, campaign: str = "test", **data: Any) -> Json:
        """Return the answer to a call that the guard lets pass."""
        reply = self.send(function, {"campaign": campaign, **data})
        assert reply.status_code == 200, reply.text
        answer: Json = reply.json()
        return answer

    def vote(self, shown: Json, choice: str | None = "a", **more: Any) -> Json:
        given: Json = {"assignment": shown["assignment"], "choice": choice, "seconds": 2.5, **more}
        return self.ask("vote", **given)

    def _remember(self, response: httpx.Response) -> None:
        response.read()
        self.received += [str(response.headers).encode(), response.content]
