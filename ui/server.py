"""The web server: log-in, the raters' and the researchers' pages, and the guard before them all."""

import ipaddress
import logging
import socket
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from fastapi.staticfiles import StaticFiles
from starlette.types import ASGIApp

from ui.accounts import LoginLimiter, RateLimiter, change_user, find_user, verify
from ui.chat_page import ChatDesk, add_chat
from ui.downloads import add_downloads
from ui.errors import Refused, Trouble
from ui.guard import GRADIO, Guard, safe_target, signed_in
from ui.html import render
from ui.sessions import COOKIE, LIFETIME, Sessions
from ui.store import Store, log_event
from workbench.errors import UserError

if TYPE_CHECKING:
    import gradio as gr
    import uvicorn

    from ui.live import LiveModels

HOME = {"rater": "/rate/", "researcher": "/research/"}
_HERE = Path(__file__).parent
_log = logging.getLogger(__name__)
_HEAD = (
    '<link rel="stylesheet" href="/assets/base.css">'
    '<link rel="stylesheet" href="/assets/{page}.css">'
    '<link rel="icon" href="/assets/icon.svg" type="image/svg+xml">'
)


def create_app(
    store: Store,
    secret: bytes,
    *,
    live: "LiveModels | None" = None,
    logins: LoginLimiter | None = None,
    requests: RateLimiter | None = None,
) -> ASGIApp:
    """Return the whole app.

    Args:
        store: of ratings.
        secret: of the session cookies, see `ui.sessions.secret_of`.
        live: the models that answer in chats; without, live campaigns say that there are none.
        logins: limits guessing of passwords.
        requests: limits requests of each user.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Trouble, _troubled)
    sessions = Sessions(store, secret)
    limiter = logins or LoginLimiter()
    _add_log_in(app, store, sessions, limiter)
    _add_account(app, store, sessions, limiter)
    app.mount("/assets", StaticFiles(directory=_HERE / "assets"))
    _mount_pages(app, store, live)
    return Guard(
        app,
        sessions,
        requests or RateLimiter(),
        public=("/login", "/assets/", "/favicon.ico"),
        researchers=("/export/",),
        everyone=("/", "/logout", "/account", "/session", "/chat/say"),
    )


def serve(app: ASGIApp, host: str, port: int) -> None:
    """Serve the app until Ctrl-C.

    Raises:
        UserError: when the address cannot be used.
    """
    import uvicorn

    listener = _listen(host, port)
    with listener:
        uvicorn.Server(configured(app)).run(sockets=[listener])


def configured(app: ASGIApp, log_level: str = "warning", patience: int = 3) -> "uvicorn.Config":
    """Return how the app is served; its end waits some seconds for pages that stay open."""
    import uvicorn

    return uvicorn.Config(
        app,
        http="h11",  # refuses headers beyond 64 KiB; httptools takes them until memory is full
        log_level=log_level,
        server_header=False,
        timeout_graceful_shutdown=patience,
    )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(
            f"{host}:{port}: cannot listen there ({error}); choose another --port or --host"
        ) from None
    return listener


def _page(template: str, status: HTTPStatus = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    return HTMLResponse(render(template, **{"error": "", **values}), status_code=status)


def _troubled(_request: Request, error: Exception) -> Response:
    _log.error("%s", error)  # names the database, which is nothing for raters
    return PlainTextResponse("the server has trouble; try again\n", 503)


def _keep(response: Response, request: Request, cookie: str) -> Response:
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=LIFETIME,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


def _add_log_in(app: FastAPI, store: Store, sessions: Sessions, limiter: LoginLimiter) -> None:
    @app.get("/")
    def home(request: Request) -> Response:
        return RedirectResponse(HOME[signed_in(request).role], HTTPStatus.SEE_OTHER)

    @app.get("/favicon.ico")
    def icon() -> Response:
        return RedirectResponse("/assets/icon.svg", HTTPStatus.MOVED_PERMANENTLY)

    @app.get("/login")
    def ask(request: Request) -> Response:
        target = safe_target(request.query_params.get("next", "/"))
        return _page("login.html", name="", target=target)

    @app.post("/login")
    async def log_in(request: Request) -> Response:
        form = await request.form()
        name, password = (str(form.get(key, "")) for key in ("name", "password"))
        target = safe_target(str(form.get("next", "/")))
        address = request.client.host if request.client else ""

        def refused(status: HTTPStatus, why: str) -> Response:
            return _page("login.html", status, name=name, target=target, error=why)

        try:
            limiter.attempt(name, address)
        except Refused as error:
            return refused(HTTPStatus.TOO_MANY_REQUESTS, str(error))
        user = await run_in_threadpool(verify, store, name, password)
        if user is None:
            return refused(HTTPStatus.UNAUTHORIZED, "This name and password do not go together.")
        limiter.succeeded(name, address)
        await run_in_threadpool(_record, store, user.id, address)
        return _keep(RedirectResponse(target, HTTPStatus.SEE_OTHER), request, sessions.begin(user))

    @app.post("/logout")
    def log_out() -> Response:
        response = RedirectResponse("/login", HTTPStatus.SEE_OTHER)
        response.delete_cookie(COOKIE)
        return response

    @app.get("/session")
    def session(request: Request) -> Response:
        user = signed_in(request)
        return JSONResponse({"name": user.name, "role": user.role})


def _add_account(app: FastAPI, store: Store, sessions: Sessions, limiter: LoginLimiter) -> None:
    @app.get("/account")
    def account(request: Request) -> Response:
        return _page("account.html", user=signed_in(request), done=False)

    @app.post("/account")
    async def change_password(request: Request) -> Response:
        user, form = signed_in(request), await request.form()
        old, new, again = (str(form.get(key, "")) for key in ("old", "new", "again"))

        def refused(why: str) -> Response:
            return _page("account.html", HTTPStatus.BAD_REQUEST, user=user, done=False, error=why)

        if new != again:
            return refused("The two new passwords are not the same.")
        address = request.client.host if request.client else ""
        try:
            limiter.attempt(user.name, address)
            if await run_in_threadpool(verify, store, user.name, old) is None:
                return refused("The old password is not right.")
            limiter.succeeded(user.name, address)
            await run_in_threadpool(change_user, store, user.name, password=new)
        except Trouble:
            raise
        except UserError as error:
            return refused(str(error))
        with store.reading() as reading:
            changed = find_user(reading, user.name)
        page = _page("account.html", user=user, done=True)
        return _keep(page, request, sessions.begin(changed))


def _mount_pages(app: FastAPI, store: Store, live: "LiveModels | None") -> None:
    from ui.rater_page import rater_page
    from ui.researcher_page import researcher_page

    chats = ChatDesk(store, live)
    add_chat(app, chats)
    add_downloads(app, store)
    _mount(app, rater_page(store, chats), "/rate")
    _mount(app, researcher_page(store), "/research")


def _mount(app: FastAPI, blocks: "gr.Blocks", path: str) -> None:
    import gradio as gr

    def user_of(request: Request) -> str | None:
        # The guard has looked already; Gradio wants a name for its own requests.
        user = signed_in(request)
        return user.name if user.role in GRADIO[path] else None

    gr.mount_gradio_app(
        app,
        blocks,
        path,
        auth_dependency=user_of,
        run_history=False,
        show_error=False,
        footer_links=[],
        max_file_size=0,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        ssr_mode=False,
        theme=gr.themes.Base(font="system-ui", font_mono="ui-monospace"),
        head=_HEAD.format(page=path.strip("/")),
    )


def _record(store: Store, user_id: int, address: str) -> None:
    with store.session() as session:
        log_event(session, "login", user_id=user_id, address=address)
