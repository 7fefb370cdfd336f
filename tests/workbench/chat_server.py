"""A small server that speaks the OpenAI protocol, in this process, as a test wants it to."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NO_TEMPLATE = {"error": {"message": "As the tokenizer has none, you must provide a chat template"}}


def echo(body: dict) -> str:
    """Answer with what was asked, last."""
    return "echo: " + (body["messages"][-1]["content"] if "messages" in body else body["prompt"])


@dataclass
class ChatServer:
    """What the server has and does, and what it was asked.

    `trouble` sees every request (path, body, its number) before it is answered, and may answer it
    itself, with (status, content, headers); it may also wait.
    """

    models: list[str] = field(default_factory=lambda: ["policy"])
    say: Callable[[dict], str] = echo
    trouble: Callable[[str, dict, int], tuple | None] = lambda path, body, number: None
    change: Callable[[dict], object] = lambda answer: answer
    template: bool = True
    asked: list[tuple[str, dict]] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    most_at_once: int = 0
    address: str = ""
    _at_once: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def source(self, name: str = "policy") -> str:
        return f"openai:{self.address}#{name}"

    def bodies(self, path: str = "/v1/chat/completions") -> list[dict]:
        return [body for where, body in self.asked if where == path]

    def answer(self, path: str, body: dict) -> tuple:
        with self._lock:
            self.asked.append((path, body))
            number = len(self.asked)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            return self.trouble(path, body, number) or self._answer(path, body)
        finally:
            with self._lock:
                self._at_once -= 1

    def _answer(self, path: str, body: dict) -> tuple:
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": name} for name in self.models]}, {}
        if body.get("model") not in self.models:
            return (
                404,
                {"error": {"message": f"The model `{body.get('model')}` does not exist."}},
                {},
            )
        chat = path == "/v1/chat/completions"
        if chat and not self.template:
            return 400, NO_TEMPLATE, {}
        words = self.say(body).split(" ")
        most = body["max_tokens"]
        text, reason = " ".join(words[:most]), "length" if len(words) > most else "stop"
        for stop in body.get("stop", []):
            if stop in text:
                text, reason = text.partition(stop)[0], "stop"
        usage = {"prompt_tokens": 7, "completion_tokens": min(len(words), most)}
        if body.get("stream"):
            return 200, list(self._pieces(text, reason, usage, chat)), {}
        said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, "finish_reason": reason} | said
        return 200, self.change({"choices": [choice], "usage": usage}), {}

    def _pieces(self, text: str, reason: str, usage: dict, chat: bool) -> Iterator[dict]:
        for k, word in enumerate(text.split(" ")):
            piece = word if k == 0 else f" {word}"
            yield {"choices": [{"delta": {"content": piece}} if chat else {"text": piece}]}
        yield {"choices": [{"delta": {}, "finish_reason": reason}]}
        yield {"choices": [], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    served: ChatServer
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._reply({})

    def do_POST(self):
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _reply(self, body):
        self.served.headers.append(dict(self.headers))
        status, content, headers = self.served.answer(self.path, body)
        if status is None:  # a connection that breaks
            self.close_connection = True
            return
        if isinstance(content, list):
            lines = [f"data: {json.dumps(piece)}\n\n" for piece in content] + ["data: [DONE]\n\n"]
            data = "".join(lines).encode()
        else:
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@contextmanager
def chat_server(**options) -> Iterator[ChatServer]:
    """Serve until the block ends."""
    with serving(ChatServer(**options)) as served:
        yield served


@contextmanager
def serving(served: ChatServer) -> Iterator[ChatServer]:
    """Serve what there is already until the block ends."""
    handler = type("Handler", (_Handler,), {"served": served})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    served.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
