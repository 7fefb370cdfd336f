"""The app over bare HTTP, as somebody would who does not use our pages."""

import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest
from sqlalchemy import func, select

from tests.ui.pages import Visitor, serving
from tests.ui.samples import PASSWORD, pair_rows, ranking_rows
from ui.accounts import LoginLimiter, RateLimiter, add_user, change_user
from ui.campaigns import close_campaign, create_campaign, pause_campaign, resume_campaign
from ui.guard import LARGEST_BODY
from ui.schema import Assignment, Event, Vote
from ui.server import create_app, is_loopback
from ui.settings import CampaignSettings
from ui.store import Store

SECRET = b"0123456789abcdef" * 4
# Nothing else on any page looks like these.
MODELS = ("zyxomma-7b", "quagga-13b")


@pytest.fixture(scope="module")
def store(tmp_path_factory, sqlite_template) -> Iterator[Store]:
    path = tmp_path_factory.mktemp("server") / "ratings.db"
    path.write_bytes(sqlite_template.read_bytes())
    opened = Store(f"sqlite:///{path}")
    for name in ("ann", "bob", "cat", "dan"):
        add_user(opened, name, PASSWORD)
    add_user(opened, "rita", PASSWORD, "researcher")
    create_campaign(opened, "test", named(pair_rows(40)), CampaignSettings(raters_per_item=4))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def address(store) -> Iterator[str]:
    limits = {"logins": LoginLimiter(per_name=6), "requests": RateLimiter(1000, 10_000)}
    with serving(create_app(store, SECRET, **limits)) as url:
        yield url


@pytest.fixture(scope="module")
def ann(address) -> Visitor:
    return Visitor(address, "ann")


@pytest.fixture
def fresh(store, request) -> str:
    """A campaign of the test's own."""
    name = request.node.name[:100].translate({ord(c): "-" for c in "[]/'=<>,;:()"})
    create_campaign(store, name, named(pair_rows(8)), CampaignSettings(raters_per_item=3))
    return name


def named(rows):
    for row in rows:
        for answer, model in zip(row["answers"], MODELS, strict=False):
            answer["model"] = model
    return rows


# --- who gets in ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/rate/", "/research/", "/account"])
def test_a_browser_without_a_session_is_sent_to_the_log_in(address, path):
    reply = httpx.get(address + path, headers={"accept": "text/html"})
    assert (reply.status_code, reply.headers["location"]) == (303, f"/login?next={path}")


@pytest.mark.parametrize(
    "path", ["/rate/config", "/rate/gradio_api/info", "/session", "/export/test", "/nothing"]
)
def test_a_program_without_a_session_is_refused(address, path):
    assert httpx.get(address + path).status_code == 401


def test_the_log_in_leads_to_the_page_of_ones_role(address):
    for name, home in (("ann", "/rate/"), ("rita", "/research/")):
        visitor = Visitor(address)
        assert visitor.log_in(name).headers["location"] == "/"
        assert visitor.http.get("/").headers["location"] == home
        assert visitor.http.get("/session").json()["name"] == name


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_sites(address):
    (cookie,) = Visitor(address).log_in("ann").headers.get_list("set-cookie")
    attributes = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", "max-age=43200"} <= attributes
    assert "secure" not in attributes
    behind_tls = Visitor(address)
    behind_tls.http.headers["x-forwarded-proto"] = "https"
    reply = behind_tls.log_in("ann")
    assert "; Secure" in reply.headers["set-cookie"]
    assert "max-age" in reply.headers["strict-transport-security"]


@pytest.mark.parametrize(
    ("name", "password"), [("ann", "wrong password"), ("nobody", PASSWORD), ("", ""), ("a\0b", "x")]
)
def test_a_wrong_log_in_sets_no_cookie(address, name, password):
    reply = Visitor(address).log_in(name, password)
    assert reply.status_code == 401
    assert "set-cookie" not in reply.headers
    assert "do not go together" in reply.text


def test_what_was_typed_comes_back_escaped(address):
    reply = Visitor(address).log_in('"><script>alert(1)</script>', "x", next='/"><b>')
    assert "<script" not in reply.text
    assert "&lt;script&gt;" in reply.text
    assert "<b>" not in reply.text


@pytest.mark.parametrize(
    "target", ["//evil.example/", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"]
)
def test_the_log_in_leads_nowhere_else(address, target):
    assert Visitor(address).log_in("ann", next=target).headers["location"] == "/"
    assert 'name="next" value="/"' in httpx.get(f"{address}/login", params={"next": target}).text


def test_guessing_a_password_is_stopped(address):
    for _ in range(6):
        assert Visitor(address).log_in("dan", "a wrong guess").status_code == 401
    reply = Visitor(address).log_in("dan", PASSWORD)
    assert reply.status_code == 429
    assert "try again in" in reply.text


def test_logging_out_forgets_the_cookie(address):
    visitor = Visitor(address, "ann")
    assert visitor.http.get("/session").status_code == 200
    assert visitor.http.post("/logout").headers["location"] == "/login"
    assert visitor.http.get("/session").status_code == 401


def test_a_log_in_is_recorded(address, store):
    def count():
        with store.reading() as session:
            found = select(func.count()).select_from(Event).where(Event.what == "login")
            return session.scalar(found)

    before = count()
    Visitor(address, "bob")
    assert count() == before + 1


def test_a_new_password_ends_other_sessions_and_keeps_this_one(address, store):
    add_user(store, "eve", PASSWORD)
    here, elsewhere = Visitor(address, "eve"), Visitor(address, "eve")
    new = "a longer password"
    for wrong in (
        {"old": "not it", "new": new, "again": new},
        {"old": PASSWORD, "new": new, "again": "another one"},
        {"old": PASSWORD, "new": "short", "again": "short"},
    ):
        assert here.http.post("/account", data=wrong).status_code == 400
    assert Visitor(address).log_in("eve").status_code == 303
    reply = here.http.post("/account", data={"old": PASSWORD, "new": new, "again": new})
    assert reply.status_code == 200
    time.sleep(1.1)  # accounts are remembered for a second
    assert here.http.get("/session").status_code == 200
    assert elsewhere.http.get("/session").status_code == 401
    assert Visitor(address).log_in("eve", PASSWORD).status_code == 401
    assert Visitor(address).log_in("eve", new).status_code == 303


def test_an_account_that_is_disabled_is_out_within_a_second(address, store):
    add_user(store, "fay", PASSWORD)
    fay = Visitor(address, "fay")
    assert "shown" in fay.ask("begin")
    change_user(store, "fay", active=False)
    time.sleep(1.1)
    assert fay.send("begin", {"campaign": "test"}).status_code == 401
    assert Visitor(address).log_in("fay").status_code == 401


# --- what the guard keeps out ---------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_another_site_cannot_make_a_browser_act(ann, headers):
    assert ann.send("begin", {"campaign": "test"}, **headers).status_code == 403
    assert ann.http.post("/logout", headers=headers).status_code == 403
    assert ann.http.get("/session").status_code == 200


def test_our_own_pages_can(ann, address):
    headers = {"origin": address, "sec-fetch-site": "same-origin"}
    assert ann.send("begin", {"campaign": "test"}, **headers).status_code == 200


def test_a_request_has_a_length_and_a_limit(ann):
    path = "/rate/gradio_api/component_server/"
    assert ann.http.post(path, content=iter([b"{}"])).status_code == 411
    large = b" " * (LARGEST_BODY + 1)
    assert ann.http.post(path, content=large).status_code == 413
    assert ann.http.post("/login", content=large).status_code == 413


def test_a_user_who_asks_too_often_waits_and_others_do_not(store):
    limits = {"requests": RateLimiter(0.001, 3)}
    with serving(create_app(store, SECRET, **limits)) as address:
        eager, patient = Visitor(address, "ann"), Visitor(address, "bob")
        assert [eager.http.get("/session").status_code for _ in range(4)] == [200] * 3 + [429]
        assert eager.http.get("/session").headers["retry-after"] == "2"
        assert eager.http.get("/assets/base.css").status_code == 200
        assert patient.http.get("/session").status_code == 200


@pytest.mark.parametrize(
    "path", ["/login", "/assets/desk.js", "/rate/", "/rate/config", "/nothing"]
)
def test_every_answer_carries_the_security_headers(ann, path):
    headers = ann.http.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    (scripts,) = re.findall(r"script-src ([^;]*)", policy)
    assert "unsafe-inline" not in scripts
    assert ("unsafe-eval" in scripts) == (path == "/rate/")
    assert "http" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "same-origin"
    assert "server" not in headers


def test_only_the_scripts_of_the_page_run(ann):
    page = ann.http.get("/rate/", headers={"accept-encoding": "br, gzip"})
    (nonce,) = re.findall(r"'nonce-([^']+)'", page.headers["content-security-policy"])
    scripts = re.findall(r"<script[^>]*>", page.text)
    assert len(scripts) >= 4
    assert all(f'nonce="{nonce}"' in script for script in scripts)
    again = ann.http.get("/rate/")
    assert nonce not in again.headers["content-security-policy"]
    assert "no-store" in again.headers["cache-control"]


def bare(address, head, path="/login"):
    """Send a request as no library would, and return what comes back."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        try:
            line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
            return b"".join(iter(lambda: line.recv(65536), b""))
        except (BrokenPipeError, ConnectionResetError):  # the server has hung up on us
            return b""


@pytest.mark.parametrize(
    "path",
    [
        "/rate/static/../../../../etc/passwd", "/rate/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/rate/svelte/..%2f..%2f..%2f..%2fetc%2fpasswd", "/rate/static//etc/passwd",
        "/rate/gradio_api/file=/etc/passwd", "/assets/..%2fguard.py", "/assets/../server.py",
        "/assets//etc/passwd", "/rate/..%2fresearch/config", "/rate/%2e%2e/research/config",
        "/research%2fconfig", "/%72esearch/config", "http://x/research/config",
        "/rate/config/../../research/config", "/rate/assets/%00", "/assets/%00", "/%ff",
        "/rate/proxy=http://127.0.0.1/", "/rate/heartbeat/../config", "/export/test",
    ],
)  # fmt: skip
def test_no_way_round_leads_to_files_or_to_the_researchers(ann, address, path):
    cookie = f"Cookie: rlhf_session={ann.http.cookies['rlhf_session']}\r\nConnection: close"
    reply = bare(address, cookie, path)
    assert reply.split(b" ")[1] in (b"403", b"404"), reply[:80]
    for secret in (b"root:", b"import ", b"dependencies", b"zyxomma"):
        assert secret not in reply


def test_endless_headers_are_refused(address):
    reply = bare(address, f"X-Long: {'a' * 200_000}")
    assert reply.split(b" ")[1:2] in ([b"400"], [b"431"], [])


@pytest.mark.parametrize("change", [
    lambda user, ends, signature: f"{int(user) + 1}.{ends}.{signature}",
    lambda user, ends, signature: f"{user}.{int(ends) + 3600}.{signature}",
    lambda user, ends, signature: f"{user}.{ends}.{signature[::-1]}",
    lambda user, ends, signature: f"{user}.{ends}.",
    lambda user, ends, signature: f"{user}.{ends}.{signature}.x",
])  # fmt: skip
def test_a_changed_cookie_opens_nothing(ann, address, change):
    forged = change(*ann.http.cookies["rlhf_session"].split("."))
    for path in ("/session", "/rate/config", "/research/config", "/export/test"):
        cookie = {"cookie": f"rlhf_session={forged}"}
        assert httpx.get(address + path, headers=cookie).status_code == 401


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"), (b"", "application/json"), (b"[]", "application/json"),
        (b"null", "text/plain"), (b"[" * 100_000, "application/json"),
        (b"\xff", "application/json"), (b"a=b", "application/x-www-form-urlencoded"),
        (b"x", "multipart/form-data"), (b"x", "multipart/form-data; boundary=a"),
        (b'--a\r\nContent-Disposition: form-data; name="f"; filename="../../x"\r\n\r\nx\r\n--a--',
         "multipart/form-data; boundary=a"),
    ],
)  # fmt: skip
def test_a_body_of_another_kind_is_refused(ann, address, body, kind):
    path, kind = "/rate/gradio_api/component_server/", {"content-type": kind}
    assert ann.http.post(path, content=body, headers=kind).status_code in (400, 413)
    # 429: nobody's name has been tried too often by then.
    assert httpx.post(f"{address}/login", content=body, headers=kind).status_code in (400, 401, 429)
    assert ann.http.get("/session").status_code == 200


def test_what_gradio_does_not_know_is_no_traceback(ann, caplog):
    ann.ask("campaigns")
    body = {"session_hash": "x", "component_id": 999, "fn_name": "begin", "data": {}}
    for path, data in (
        ("component_server/", body),
        ("queue/join", {"data": [], "fn_index": 99, "session_hash": "x"}),
    ):
        reply = ann.http.post(f"/rate/gradio_api/{path}", json=data)
        assert (reply.status_code, reply.text) == (500, "Internal Server Error")
    ann.http.get("/session")  # by then the server has logged what it answered before
    failures = [record for record in caplog.records if record.name == "ui.guard"]
    assert len(failures) == 2
    assert all(record.exc_info is None for record in failures)


def gradio_routes():
    """Every path and method that Gradio serves, parameters filled in."""
    import gradio as gr

    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.HTML()
    app = gr.routes.App.create_app(blocks)
    (included,) = [route for route in app.routes if not hasattr(route, "path")]
    routes = [route for route in app.routes if hasattr(route, "path")]
    return sorted(
        (method, re.sub(r"\{[^}]*\}", "x", route.path))
        for route in [*routes, *included.original_router.routes]
        for method in getattr(route, "methods", None) or {"GET"}
    )


def test_no_researcher_route_of_gradio_answers_a_rater(ann):
    routes = gradio_routes()
    assert len(routes) > 60
    for method, path in routes:
        reply = ann.http.request(method, f"/research{path}", content=b"{}")
        assert reply.status_code in (403, 404), (method, path, reply.status_code)
    for path in ("/research/", "/research/config", "/research/gradio_api/queue/data"):
        assert ann.http.get(path).status_code == 403
    for path in ("component_server/", "queue/join"):
        assert ann.http.post(f"/research/gradio_api/{path}", json={}).status_code == 403
    assert ann.http.get("/export/test").status_code == 403


def test_a_rater_reaches_only_what_the_page_uses(ann, address):
    client = httpx.Client(base_url=address, cookies=ann.http.cookies)
    reached = set()
    for method, path in gradio_routes():
        with client.stream(method, f"/rate{path}", content=b"{}") as reply:  # some never end
            if reply.status_code not in (404, 405):
                reached.add((method, path))
    assert {path for method, path in reached if method in ("GET", "HEAD")} <= {
        "/", "/config", "/config/", "/theme.css", "/assets/x", "/static/x", "/svelte/x",
        "/gradio_api/app_id", "/gradio_api/startup-events", "/gradio_api/heartbeat/x",
        "/gradio_api/queue/data",
    }  # fmt: skip
    assert {path for method, path in reached if method == "POST"} <= {
        "/gradio_api/component_server", "/gradio_api/component_server/",
        "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset",
    }  # fmt: skip


def test_nothing_of_gradio_that_talks_to_others_is_on(ann):
    config = ann.http.get("/rate/config").json()
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False
    assert config["footer_links"] == []
    assert config["mcp_server"] is False
    assert config["pwa"] is False
    assert "share" not in config or not config["share"]


# --- voting ---------------------------------------------------------------------------------


def test_a_vote_is_taken_and_the_next_item_comes_with_it(ann, store, fresh):
    begun = ann.ask("begin", fresh)
    assert begun["campaign"]["name"] == fresh
    assert "Helpful" in begun["campaign"]["guidelines"]
    first = begun["shown"]
    assert first["left"] == 8
    assert {"Right", "Wrong"} == {text.split()[0] for text in first["answers"]}
    flags = [["hallucination"], []]
    said = ann.vote(first, "a_much", campaign=fresh, flags=flags, comment="clear")
    assert said["saved"] is True
    assert "names" not in said
    assert said["shown"]["left"] == 7
    assert said["shown"]["assignment"] != first["assignment"]
    with store.reading() as session:
        found = select(Vote).where(Vote.assignment_id == first["assignment"])
        vote = session.scalars(found).one()
        order = session.get_one(Assignment, first["assignment"]).order
    assert (vote.choice, vote.comment, vote.seconds) == ("a_much", "clear", 2.5)
    assert vote.flags == {str(order[0]): ["hallucination"]}


def test_the_same_vote_again_is_the_same_vote(ann, store, fresh):
    shown = ann.ask("begin", fresh)["shown"]
    again = [ann.vote(shown, "b", campaign=fresh) for _ in range(3)]
    assert all(said["saved"] for said in again)
    assert ann.vote(shown, "a", campaign=fresh)["refused"] == "already_voted"
    with store.reading() as session:
        found = select(func.count()).where(Vote.assignment_id == shown["assignment"])
        assert session.scalar(found) == 1


def test_a_reload_shows_the_same_item_in_the_same_order(ann, address, fresh):
    shown = ann.ask("begin", fresh)["shown"]
    elsewhere = Visitor(address, "ann")
    assert elsewhere.ask("begin", fresh)["shown"] == shown
    assert ann.ask("next_item", fresh)["shown"] == shown


def test_undo_brings_the_item_back(ann, fresh):
    first = ann.ask("begin", fresh)["shown"]
    ann.vote(first, "tie", campaign=fresh)
    assert ann.ask("undo_vote", fresh)["shown"] == first
    assert ann.ask("undo_vote", fresh)["refused"] == "unknown"
    assert ann.vote(first, "b", campaign=fresh)["saved"]


def test_somebody_elses_item_cannot_be_voted_on(ann, address, fresh):
    shown = ann.ask("begin", fresh)["shown"]
    bob = Visitor(address, "bob")
    assert bob.vote(shown, campaign=fresh)["refused"] == "not_yours"
    assert ann.vote(shown, campaign=fresh)["saved"]


def test_an_expired_item_cannot_be_voted_on(ann, store):
    settings = CampaignSettings(lease_seconds=1)
    create_campaign(store, "brief", named(pair_rows(2)), settings)
    shown = ann.ask("begin", "brief")["shown"]
    time.sleep(1.1)
    assert ann.vote(shown, campaign="brief")["refused"] == "expired"


def test_paused_and_closed_campaigns_say_so(ann, store, fresh):
    shown = ann.ask("begin", fresh)["shown"]
    pause_campaign(store, fresh)
    said = ann.vote(shown, campaign=fresh)
    assert (said["saved"], said["refused"]) == (True, "paused")
    resume_campaign(store, fresh)
    shown = ann.ask("next_item", fresh)["shown"]
    close_campaign(store, fresh)
    assert ann.vote(shown, campaign=fresh)["refused"] == "closed"
    assert ann.ask("begin", fresh)["refused"] == "closed"
    assert fresh not in [each["name"] for each in ann.ask("campaigns")["campaigns"]]


GOOD = {"campaign": "test", "assignment": "0" * 32, "choice": "a", "seconds": 1.0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, "unknown"),
        ({"assignment": "' OR 1=1 --"}, "unknown"),
        ({"assignment": "0" * 65}, "invalid"),
        ({"assignment": None}, "invalid"),
        ({"choice": "left"}, "invalid"),
        ({"choice": 2}, "invalid"),
        ({"seconds": "1"}, "invalid"),
        ({"seconds": None}, "invalid"),
        ({"model": "zyxomma-7b"}, "invalid"),
        ({"user": "bob"}, "invalid"),
        ({"flags": [["x"] * 100]}, "invalid"),
        ({"ranks": [1] * 10}, "invalid"),
        ({"campaign": "no such"}, "unknown"),
        ({"campaign": "x" * 129}, "invalid"),
    ],
)
def test_a_wrong_vote_is_refused_in_words(ann, change, reason):
    reply = ann.send("vote", GOOD | change)
    assert reply.status_code == 200
    assert reply.json()["refused"] == reason
    assert reply.json()["message"]


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": -1.0}, {"comment": "x" * 2001}, {"flags": [["nonsense"], []]}, {"flags": [[]]},
        {"ranks": [1, 2]}, {"choice": None},
    ],
)  # fmt: skip
def test_a_vote_that_does_not_fit_the_item_is_refused(ann, change):
    shown = ann.ask("begin")["shown"]
    said = ann.ask("vote", **(GOOD | {"assignment": shown["assignment"]} | change))
    assert said["refused"] == "invalid"


@pytest.mark.parametrize("data", [None, 7, "text", [], [1, 2], {}, {"campaign": None}])
def test_other_data_is_refused(ann, data):
    for function in ("begin", "next_item", "vote", "undo_vote"):
        assert ann.send(function, data).json()["refused"] == "invalid"


def test_an_unknown_campaign_does_not_name_the_others(ann):
    said = ann.ask("begin", "tes")
    assert said == {"refused": "unknown", "message": "there is no such campaign"}


def test_a_function_that_is_not_offered_is_not_there(ann):
    for function in ("get_config", "postprocess", "__init__", "_account"):
        assert ann.send(function, {}).status_code == 404


def test_another_campaigns_name_reveals_nothing(ann, store, fresh):
    create_campaign(store, f"{fresh} open", named(pair_rows(2)), CampaignSettings(mode="arena"))
    shown = ann.ask("begin", fresh)["shown"]
    said = ann.vote(shown, campaign=f"{fresh} open")
    assert "names" not in said
    assert leaked_in(said) == []


def leaked_in(said):
    return [model for model in MODELS if model in str(said)]


# --- trouble --------------------------------------------------------------------------------


@pytest.fixture
def troubled(tmp_path, sqlite_template, monkeypatch):
    """A server of its own, whose database can be spoilt: the rater, the store and the file."""
    monkeypatch.setattr("ui.store.WAIT_SECONDS", 0.2)
    path = tmp_path / "ratings.db"
    path.write_bytes(sqlite_template.read_bytes())
    opened = Store(f"sqlite:///{path}")
    add_user(opened, "ann", PASSWORD)
    create_campaign(opened, "test", named(pair_rows(60)), CampaignSettings())
    with serving(create_app(opened, SECRET)) as address:
        yield Visitor(address, "ann"), opened, path
    opened.close()


def full(connection):
    # As on a disk that is full: SQLite itself refuses to grow the file.
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")


def read_only(connection):
    connection.execute("PRAGMA query_only=ON")


@pytest.mark.parametrize(
    ("spoil", "mend", "why"),
    [
        (full, "max_page_count=1000000", "database or disk is full"),
        (read_only, "query_only=OFF", "attempt to write a readonly database"),
    ],
)
def test_a_database_that_takes_no_vote_says_so_and_takes_it_later(
    troubled, caplog, spoil, mend, why
):
    ann, store, _ = troubled
    shown = ann.ask("begin")["shown"]
    comment = "x" * 2000
    pool = store.engine.pool
    with closing(store.engine.raw_connection()) as first:
        assert pool.checkedin() + pool.checkedout() == 1  # the requests before shared it
        spoil(first.driver_connection)
    saved = 0
    while "refused" not in (said := ann.vote(shown, comment=comment)):
        shown, saved = said["shown"], saved + 1  # into what room is left
    assert said == {"refused": "trouble", "message": "the server has trouble; try again"}
    assert any(why in record.getMessage() for record in caplog.records)
    assert all(record.exc_info is None for record in caplog.records)
    with closing(store.engine.raw_connection()) as first:
        first.driver_connection.execute(f"PRAGMA {mend}")
    assert ann.vote(shown, comment=comment)["saved"]
    with store.reading() as session:
        assert session.scalar(select(func.count()).select_from(Vote)) == saved + 1


def test_a_database_that_somebody_has_locked_is_waited_for_and_no_vote_is_lost(troubled, caplog):
    ann, store, path = troubled
    shown = ann.ask("begin")["shown"]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert ann.vote(shown)["refused"] == "trouble"
        assert Visitor(str(ann.http.base_url)).log_in("ann").status_code == 503
        other.execute("ROLLBACK")
    assert any("database is locked" in record.getMessage() for record in caplog.records)
    assert all(record.exc_info is None for record in caplog.records)
    assert ann.vote(shown)["saved"]
    with store.reading() as session:
        assert session.scalar(select(func.count()).select_from(Vote)) == 1


# --- what is shown --------------------------------------------------------------------------

NASTY = (
    '<script>alert(1)</script><img src=x onerror="alert(2)">![beacon](https://evil.example/b.png)'
    "\u202egnp.exe\x00 [link](javascript:alert(3))"
)


def test_hostile_text_is_text(ann, store):
    rows = [{"prompt": NASTY, "answers": [{"model": m, "text": NASTY + m[0]} for m in MODELS]}]
    create_campaign(store, "nasty", rows, CampaignSettings())
    shown = ann.ask("begin", "nasty")["shown"]
    assert shown["html"] is False
    for text in (*shown["answers"], shown["prompt"][0]["text"]):
        assert "<script>" in text  # the page shows it as text
        assert "\u202e" not in text
        assert "\x00" not in text
        assert "⟨U+202E⟩" in text


def test_markdown_is_sanitised(ann, store):
    rows = [
        {"prompt": "p", "answers": [{"model": m, "text": f"**{m[0]}** {NASTY}"} for m in MODELS]}
    ]
    create_campaign(store, "marked", rows, CampaignSettings(markdown=True))
    shown = ann.ask("begin", "marked")["shown"]
    assert shown["html"] is True
    for html in shown["answers"]:
        assert set(re.findall(r"<(\w+)([^>]*)>", html)) == {("p", ""), ("strong", "")}


def test_a_huge_answer_is_cut(ann, store):
    rows = [{"prompt": "p", "answers": [{"model": m, "text": m[0] * 1_000_000} for m in MODELS]}]
    create_campaign(store, "huge", rows, CampaignSettings())
    reply = ann.send("begin", {"campaign": "huge"})
    assert len(reply.content) < 60_000
    assert all("the first 20,000 are shown" in text for text in reply.json()["shown"]["answers"])


# --- blindness ------------------------------------------------------------------------------


def leaked(visitor):
    names = re.compile("|".join(MODELS).encode(), re.IGNORECASE)
    return [data for data in visitor.received if names.search(data)]


def test_no_byte_before_the_vote_names_a_model(address, store):
    ranked = ranking_rows(3)
    for row in ranked:
        for answer, model in zip(row["answers"], MODELS * 2, strict=True):
            answer["model"] = f"{model}-{answer['model'][-1]}"
    models = dict(zip(MODELS, ("path/zyxomma-7b", "path/quagga-13b"), strict=True))
    create_campaign(store, "blind pair", named(pair_rows(3)), CampaignSettings())
    create_campaign(store, "blind rank", ranked, CampaignSettings(mode="ranking"))
    create_campaign(store, "blind chat", [], CampaignSettings(mode="chat"), models=models)
    create_campaign(store, "open arena", named(pair_rows(3)), CampaignSettings(mode="arena"))
    add_user(store, "gus", PASSWORD)
    gus = Visitor(address)
    gus.http.get("/login")
    gus.log_in("gus")
    for path in ("/", "/rate/", "/rate/config", "/session", "/account", "/rate/theme.css"):
        gus.http.get(path)
    page = gus.http.get("/rate/").text
    for asset in set(re.findall(r'(?:src|href)="\./(assets/[^"]+)"', page)):
        gus.http.get(f"/rate/{asset}")
    for file in ("desk.js", "ranking.js", "chat.js", "rate.css", "base.css"):
        gus.http.get(f"/assets/{file}")
    assert gus.ask("campaigns")["campaigns"]
    shown = gus.ask("begin", "blind pair")["shown"]
    for choice in ("a", "skip", "both_bad"):
        gus.vote(shown, choice, campaign="blind pair")
        shown = gus.ask("undo_vote", "blind pair")["shown"]
    ranks = gus.ask("begin", "blind rank")["shown"]
    assert gus.vote(ranks, None, ranks=[2, 1, 1, 4], campaign="blind rank")["saved"]
    assert gus.ask("begin", "blind chat")["campaign"]["live"]
    said = {"campaign": "blind chat", "assignment": None, "text": "Who are you?"}
    gus.http.post("/chat/say", json=said)  # refused, as this server has no models
    before = gus.ask("begin", "open arena")["shown"]
    gus.ask("undo_vote", "open arena")
    assert len(gus.received) > 30
    assert leaked(gus) == []
    # The scan would have found them: after a vote in the arena they are there.
    names = gus.vote(before, campaign="open arena")["names"]
    assert set(names) == set(MODELS)
    assert len(leaked(gus)) == 1


def test_the_arena_names_the_models_in_the_order_shown(ann, store):
    create_campaign(store, "arena", named(pair_rows(4)), CampaignSettings(mode="arena"))
    shown = ann.ask("begin", "arena")["shown"]
    names = ann.vote(shown, "a", campaign="arena")["names"]
    kinds = [text.split()[0] for text in shown["answers"]]
    assert dict(zip(kinds, names, strict=True)) == {"Right": MODELS[0], "Wrong": MODELS[1]}
    assert ann.ask("undo_vote", "arena")["refused"] == "revealed"


def test_a_skip_in_the_arena_reveals_nothing(ann, store):
    create_campaign(store, "skipped", named(pair_rows(4)), CampaignSettings(mode="arena"))
    shown = ann.ask("begin", "skipped")["shown"]
    assert "names" not in ann.vote(shown, "skip", campaign="skipped")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.7", False), ("example.org", False)],
)  # fmt: skip
def test_which_addresses_only_this_machine_reaches(host, loopback):
    assert is_loopback(host) is loopback
