"""What every request passes first: size, origin, session, role, rate, its body; and the headers.

Gradio's own checks cover the routes it thinks of; here only the routes our pages use are let
through at all, and only for those who may see the page.
"""

import logging
import secrets
import traceback
from collections.abc import Iterable
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from anyio import fail_after, to_thread
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.accounts import RateLimiter
from ui.errors import Trouble
from ui.html import render
from ui.schema import Role
from ui.sessions import COOKIE, Sessions, SignedIn

USER = "rlhf.user"  # in the scope of a request that has passed
LARGEST_BODY = 256 * 1024
SLOWEST_BODY = 30.0  # seconds
# Pages made by Gradio, and who may use them.
GRADIO: dict[str, tuple[Role, ...]] = {
    "/rate": ("rater", "researcher"),
    "/research": ("researcher",),
}
_READ = {
    "/config", "/theme.css", "/gradio_api/startup-events", "/gradio_api/app_id",
    "/gradio_api/queue/data",
}  # fmt: skip
_READ_BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
_WRITE = {
    "/gradio_api/component_server", "/gradio_api/component_server/", "/gradio_api/queue/join",
    "/gradio_api/reset", "/gradio_api/cancel",
}  # fmt: skip
_FILES = ("/assets/", "/static/", "/svelte/", "/theme.css")  # not counted by the rate limit
_SAFE = {"GET", "HEAD"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}

_log = logging.getLogger(__name__)


class Guard:
    """The outermost layer of the app."""

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        limiter: RateLimiter,
        *,
        public: Iterable[str],
        researchers: Iterable[str],
        everyone: Iterable[str],
    ) -> None:
        """Set up.

        Args:
            app: what is guarded.
            sessions: tell who asks.
            limiter: of requests per user, without files.
            public: paths that need no session; one that ends in `/` stands for all below it.
            researchers: paths for researchers only.
            everyone: paths for everybody who is signed in.
        """
        self._app, self._sessions, self._limiter = app, sessions, limiter
        self._public, self._researchers = tuple(public), tuple(researchers)
        self._everyone = tuple(everyone)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request here, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        page = scope["path"] in {f"{mount}/" for mount in GRADIO}
        nonce = secrets.token_urlsafe(16)
        send = _Headers(send, scope, nonce if page else None)
        if page:
            # Its scripts are marked below, so it must arrive uncompressed.
            kept = [pair for pair in scope["headers"] if pair[0] != b"accept-encoding"]
            scope = {**scope, "headers": kept}
        try:
            app = await self._check(scope) or self._app
        except Trouble as error:
            _log.error("%s", error)
            app = _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the server has trouble; try again")
        if app is self._app and Headers(scope=scope).get("content-length", "0") != "0":
            try:
                receive = await _whole(receive)
            except TimeoutError:
                app = _refusal(HTTPStatus.REQUEST_TIMEOUT, "this takes too long; send it again")
        try:
            await app(scope, receive, send)
        except Exception as error:  # noqa: BLE001 - the answer, a bare 500, has been sent already
            # In a line: what somebody sends on purpose must not fill the log.
            last = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:200]!r}"
            where = f"{last.filename}:{last.lineno}"
            _log.error("%s %.200r failed: %s in %s", scope["method"], scope["path"], what, where)

    async def _check(self, scope: Scope) -> Response | None:
        """Return a refusal, or None and the account in the scope."""
        request = Request(scope)
        path, write = scope["path"], request.method not in _SAFE
        if write and (refusal := _foreign(request.headers) or _large(request.headers)):
            return refusal
        if _among(path, self._public):
            return None
        roles = self._roles(request.method, path)
        user = await to_thread.run_sync(self._sessions.find, request.cookies.get(COOKIE))
        if user is None:
            return _log_in(request)
        if roles is None:
            return _shown(request, HTTPStatus.NOT_FOUND, "there is no such page")
        if user.role not in roles:
            return _shown(request, HTTPStatus.FORBIDDEN, "this page is for researchers")
        counted = not any(part in path for part in _FILES)
        if counted and not self._limiter.allow(user.name):
            why = "too many requests; wait a moment"
            refusal = _shown(request, HTTPStatus.TOO_MANY_REQUESTS, why)
            refusal.headers["Retry-After"] = "2"
            return refusal
        scope[USER] = user
        return None

    def _roles(self, method: str, path: str) -> tuple[Role, ...] | None:
        for mount, roles in GRADIO.items():
            rest = path.removeprefix(mount)
            if rest == path:
                continue
            if method not in _SAFE:
                return roles if rest in _WRITE else None
            open_to_read = rest in {"", "/", *_READ} or rest.startswith(_READ_BELOW)
            return roles if open_to_read else None
        if _among(path, self._researchers):
            return ("researcher",)
        return ("rater", "researcher") if _among(path, self._everyone) else None


def signed_in(request: Request) -> SignedIn:
    """Return who has sent a request that the guard let pass."""
    user: SignedIn = request.scope[USER]
    return user


def safe_target(target: str) -> str:
    """Return where to go after logging in: a path of ours, or `/`."""
    parts = urlsplit(target)
    ours = not parts.scheme and not parts.netloc and target.startswith("/")
    return target if ours and not target.startswith(("//", "/\\")) else "/"


class _Headers:
    """Adds the security headers to a response, and to a page's scripts the mark that they are ours.

    The mark (a nonce) lets the policy forbid scripts inside the page: an `onerror` that slipped
    through would not run. Gradio's HTML component compiles its template, hence `unsafe-eval`, and
    Svelte sets inline styles.
    """

    def __init__(self, send: Send, scope: Scope, nonce: str | None) -> None:
        self._send, self._nonce = send, nonce
        self._start: Message | None = None
        self._body: list[bytes] = []
        script = "'self'" if nonce is None else f"'self' 'nonce-{nonce}' 'unsafe-eval'"
        self._headers = {
            **_HEADERS,
            "Content-Security-Policy": (
                f"default-src 'self'; script-src {script}; style-src 'self' 'unsafe-inline'; "
                "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; "
                "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
            ),
        }
        if scope.get("scheme") == "https":
            self._headers["Strict-Transport-Security"] = "max-age=31536000"
        if scope["path"].startswith("/assets/"):
            self._headers["Cache-Control"] = "no-cache"  # asks whether they are still the same
        elif not any(part in scope["path"] for part in _FILES):
            self._headers["Cache-Control"] = "no-store"  # a shared computer keeps nothing

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            ours = [(k.lower().encode(), v.encode()) for k, v in self._headers.items()]
            names = {name for name, _ in ours}
            given = [pair for pair in message["headers"] if pair[0].lower() not in names]
            message = {**message, "headers": [*given, *ours]}
            if self._nonce is not None:
                self._start = message
                return
        elif self._start is not None:
            self._body.append(message.get("body", b""))
            if message.get("more_body", False):
                return
            body = b"".join(self._body).replace(
                b"<script", f'<script nonce="{self._nonce}"'.encode()
            )
            length = (b"content-length", str(len(body)).encode())
            kept = [pair for pair in self._start["headers"] if pair[0].lower() != length[0]]
            await self._send({**self._start, "headers": [*kept, length]})
            message = {"type": "http.response.body", "body": body}
            self._start = None
        await self._send(message)


async def _whole(receive: Receive) -> Receive:
    """Return what gives a request's body in one piece, which has come in time.

    Raises:
        TimeoutError: when it has not.
    """
    body, more = b"", True
    with fail_after(SLOWEST_BODY):
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has gone
                break
            body, more = body + message.get("body", b""), message.get("more_body", False)
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    if more:
        first = [message]

    async def again() -> Message:
        return first.pop() if first else await receive()

    return again


def _among(path: str, known: Iterable[str]) -> bool:
    return any(path == each or (each[1:].endswith("/") and path.startswith(each)) for each in known)


def _foreign(headers: Headers) -> Response | None:
    """Refuse what another site makes a browser send; programs that are no browsers send neither."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
    same = origin is None or urlsplit(origin).netloc == headers.get("host")
    if same and site in ("same-origin", "none"):
        return None
    return _refusal(HTTPStatus.FORBIDDEN, "this request comes from another site")


def _large(headers: Headers) -> Response | None:
    length = headers.get("content-length", "")
    # A body in chunks counts, whatever length is said beside it.
    if not length.isdecimal() or "transfer-encoding" in headers:
        return _refusal(HTTPStatus.LENGTH_REQUIRED, "say how long the request is")
    if int(length) > LARGEST_BODY:
        return _refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {LARGEST_BODY // 1024} KiB at once"
        )
    return None


def _log_in(request: Request) -> Response:
    if not _wants_page(request):
        return _refusal(HTTPStatus.UNAUTHORIZED, "log in first")
    query = f"?{request.url.query}" if request.url.query else ""
    target = quote(request.scope["path"] + query, safe="/")
    return RedirectResponse(f"/login?next={target}", status_code=HTTPStatus.SEE_OTHER)


def _wants_page(request: Request) -> bool:
    return request.method in _SAFE and "text/html" in request.headers.get("accept", "")


def _shown(request: Request, status: HTTPStatus, why: str) -> Response:
    """Return a refusal: a page for people, a line for programs."""
    if not _wants_page(request):
        return _refusal(status, why)
    page = render("refusal.html", title=f"{why[0].upper()}{why[1:]}.")
    return HTMLResponse(page, status_code=status)


def _refusal(status: HTTPStatus, why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=status)
