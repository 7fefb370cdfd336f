import logging

import anyio
import pytest

from tests.ui.samples import PASSWORD
from ui import guard as guard_module
from ui.accounts import RateLimiter, add_user
from ui.guard import Guard, safe_target
from ui.sessions import COOKIE, Sessions


@pytest.mark.parametrize(
    ("target", "safe"),
    [
        ("/rate/?campaign=a%20b", "/rate/?campaign=a%20b"),
        ("/", "/"),
        ("", "/"),
        ("rate", "/"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example/rate/", "/"),
        ("javascript:alert(1)", "/"),
        ("/\t/evil.example", "/"),
        ("/\n/evil.example", "/"),
    ],
)
def test_where_a_log_in_may_lead(target, safe):
    assert safe_target(target) == safe


class Asked:
    """An app behind the guard that says what it was asked."""

    def __init__(self):
        self.scopes = []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<script>x</script>"})


def ask(store, path, cookie="", method="GET", kind="http", headers=(), receive=None, app=None):
    """Return what the guard sends, and whether the app was asked."""
    app, sent = app or Asked(), []
    sessions = Sessions(store, b"s" * 64)
    guard = Guard(
        app,
        sessions,
        RateLimiter(),
        public=("/login", "/assets/"),
        researchers=("/export/",),
        everyone=("/", "/account"),
    )
    given = [(b"cookie", f"{COOKIE}={cookie(sessions)}".encode())] if cookie else []
    scope = {
        "type": kind, "method": method, "path": path, "headers": [*given, *headers],
        "query_string": b"",
    }  # fmt: skip

    async def send(message):
        sent.append(message)

    anyio.run(guard, scope, receive, send)
    return sent, app.scopes


@pytest.fixture
def cookies(store):
    users = {
        "rater": add_user(store, "ann", PASSWORD),
        "researcher": add_user(store, "rita", PASSWORD, "researcher"),
    }
    return {role: lambda sessions, u=user: sessions.begin(u) for role, user in users.items()}


@pytest.mark.parametrize(
    ("path", "nobody", "rater", "researcher"),
    [
        ("/login", 200, 200, 200),
        ("/assets/desk.js", 200, 200, 200),
        ("/loginx", 401, 404, 404),
        ("/", 401, 200, 200),
        ("/account", 401, 200, 200),
        ("/accounts", 401, 404, 404),
        ("/rate", 401, 200, 200),
        ("/rate/", 401, 200, 200),
        ("/rate/config", 401, 200, 200),
        ("/rate/assets/x.js", 401, 200, 200),
        ("/rate/file=/etc/passwd", 401, 404, 404),
        ("/rate/gradio_api/file=/etc/passwd", 401, 404, 404),
        ("/rate/gradio_api/info", 401, 404, 404),
        ("/ratex", 401, 404, 404),
        ("/research/", 401, 403, 200),
        ("/research/config", 401, 403, 200),
        ("/research/assets/x.js", 401, 403, 200),
        ("/research/gradio_api/upload", 401, 404, 404),
        ("/export/x", 401, 403, 200),
        ("/export", 401, 404, 404),
        ("//research/", 401, 404, 404),
        ("/rate/../research/", 401, 404, 404),
        ("/rate/assets/../../research/", 401, 200, 200),  # a file name, and no such file
    ],
)
def test_who_may_see_what(store, cookies, path, nobody, rater, researcher):
    for cookie, status in (
        ("", nobody),
        (cookies["rater"], rater),
        (cookies["researcher"], researcher),
    ):
        sent, reached = ask(store, path, cookie)
        assert (sent[0]["status"], len(reached)) == (status, int(status == 200))


def test_the_account_travels_with_the_request(store, cookies):
    _, (scope,) = ask(store, "/account", cookies["rater"])
    user = scope["rlhf.user"]
    assert (user.name, user.role) == ("ann", "rater")


def test_websockets_are_closed(store):
    sent, reached = ask(store, "/rate/", kind="websocket")
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert reached == []


def test_only_pages_are_rewritten(store, cookies):
    sent, _ = ask(store, "/account", cookies["rater"])
    assert sent[-1]["body"] == b"<script>x</script>"
    sent, (scope,) = ask(store, "/rate/", cookies["rater"], headers=[(b"accept-encoding", b"br")])
    assert sent[-1]["body"].startswith(b'<script nonce="')
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(sent[-1]["body"])).encode()
    assert b"accept-encoding" not in dict(scope["headers"])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_every_method_that_writes_is_checked(store, cookies, method):
    evil = [(b"origin", b"https://evil.example"), (b"host", b"here"), (b"content-length", b"0")]
    sent, reached = ask(store, "/account", cookies["rater"], method, headers=evil)
    assert (sent[0]["status"], reached) == (403, [])
    own = [(b"origin", b"http://here"), (b"host", b"here"), (b"content-length", b"0")]
    sent, reached = ask(store, "/account", cookies["rater"], method, headers=own)
    assert (sent[0]["status"], len(reached)) == (200, 1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 411),
        ([(b"content-length", b"-1")], 411),
        ([(b"content-length", b"1e3")], 411),
        ([(b"content-length", b"3"), (b"transfer-encoding", b"chunked")], 411),
        ([(b"content-length", str(guard_module.LARGEST_BODY + 1).encode())], 413),
        ([(b"content-length", b"9" * 30)], 413),
        ([(b"content-length", b"0")], 200),
    ],
)
@pytest.mark.parametrize("path", ["/account", "/login"])
def test_a_body_has_a_length_within_the_limit(store, cookies, path, headers, status):
    sent, reached = ask(store, path, cookies["rater"], "POST", headers=headers)
    assert (sent[0]["status"], len(reached)) == (status, int(status == 200))


class Reads(Asked):
    """An app that reads the body, and then waits for what comes after it."""

    def __init__(self):
        super().__init__()
        self.got = []

    async def __call__(self, scope, receive, send):
        for _ in range(2):
            self.got.append(await receive())
        await super().__call__(scope, receive, send)


def arriving(*messages):
    """Return what gives these messages and then nothing."""
    left = list(messages)

    async def receive():
        if left:
            return left.pop(0)
        await anyio.sleep_forever()
        return None

    return receive


def test_a_body_reaches_the_app_whole(store, cookies):
    parts = [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"cd"},
        {"type": "http.disconnect"},
    ]
    app = Reads()
    sized = [(b"content-length", b"4")]
    ask(
        store,
        "/account",
        cookies["rater"],
        "POST",
        headers=sized,
        receive=arriving(*parts),
        app=app,
    )
    whole = {"type": "http.request", "body": b"abcd", "more_body": False}
    assert app.got == [whole, {"type": "http.disconnect"}]


@pytest.mark.parametrize("path", ["/account", "/login"])
def test_a_body_that_does_not_come_is_not_waited_for(store, cookies, monkeypatch, path):
    monkeypatch.setattr(guard_module, "SLOWEST_BODY", 0.05)
    begun = arriving({"type": "http.request", "body": b"a", "more_body": True})
    sized = [(b"content-length", b"4")]
    sent, reached = ask(store, path, cookies["rater"], "POST", headers=sized, receive=begun)
    assert (sent[0]["status"], reached) == (408, [])


def test_a_failure_is_one_line_in_the_log(store, cookies, caplog):
    class Fails(Asked):
        async def __call__(self, scope, receive, send):
            await super().__call__(scope, receive, send)
            raise KeyError("what somebody sent\nand a second line")

    with caplog.at_level(logging.ERROR):
        sent, _ = ask(store, "/account", cookies["rater"], app=Fails())
    assert sent[0]["status"] == 200  # what was answered before
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("GET '/account' failed: KeyError:")
    assert "test_guard.py" in said
    assert "\n" not in said
    assert record.exc_info is None
