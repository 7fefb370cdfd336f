"""Measures the researcher's dashboard over HTTP on a database with a million votes.

The database holds one large campaign and several smaller ones, of three models and 200 raters,
with answers of some 80 words. It is put on the disk and dropped from the system's cache, and the
server is started. Then the page is opened as a browser does: the overview, and after it the
numbers, plots and tables of the large campaign; twice more, warm; and once after a vote came in.
"""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.ui_server import PASSWORD, Server, keep, log_in, machine
from ui.accounts import add_user
from ui.campaigns import find_campaign
from ui.schema import Campaign
from ui.store import Store
from workbench.errors import UserError

Json = dict[str, Any]
LARGE = "large"
MODELS = ("base", "sft", "aligned")
STRENGTH = np.array([0.0, 0.5, 0.9])
CHOICES = np.array(["a_much", "a", "tie", "both_bad", "b", "b_much", "skip"])
RATERS, RATERS_PER_ITEM, SMALLER = 200, 3, 4
_BEGIN = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
_WORDS = ("light", "water", "because", "the", "answer", "people", "often", "small", "would", "it")


def main() -> None:
    """Fill a database, open the dashboard, print and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--votes", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the JSON")
    given = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="rlhf-million-") as folder:
            measured = measure(Path(folder), given.votes)
    except UserError as error:
        sys.exit(f"ui_million.py: error: {error}")
    keep(given.out, "ui_million", measured)


def measure(folder: Path, votes: int) -> Json:
    """Fill a database in a folder and return the seconds that its dashboard takes."""
    path = folder / "ratings.db"
    url = f"sqlite:///{path}"
    fill(url, path, votes)
    _forget(path)
    measured: Json = {"machine": machine(), "votes": votes}
    measured["database_mb"] = round(path.stat().st_size / 1e6)
    server = Server(url, folder / "server.log")
    server.start()
    try:
        with httpx.Client(base_url=server.address, timeout=600) as http:
            log_in(http, "rita")
            for name in ("cold", "warm", "warm again"):
                measured[name] = _opened(http)
            _add_vote(path)
            measured["after a vote"] = _opened(http)
    finally:
        server.stop()
    said = (folder / "server.log").read_text(encoding="utf-8")
    if "Traceback" in said:
        raise UserError(f"the server failed: {said[-2000:]}")
    return measured


def fill(url: str, path: Path, votes: int) -> None:
    """Make the database: raters and a researcher, the large campaign, and smaller ones."""
    store = Store(url)
    add_user(store, "rita", PASSWORD, "researcher")
    small = votes // 20
    sizes = {f"small {number}": small for number in range(SMALLER)}
    sizes[LARGE] = votes - SMALLER * small
    with store.session() as session:
        session.add_all(
            Campaign(
                name=name, mode="pair", models=dict.fromkeys(MODELS), seed=1,
                raters_per_item=RATERS_PER_ITEM, gold_share=0.02, swap_share=0.02,
            )
            for name in sizes
        )  # fmt: skip
    with store.reading() as session:
        ids = {name: find_campaign(session, name).id for name in sizes}
    store.close()
    rng = np.random.default_rng(0)
    connection = sqlite3.connect(path)
    for setting in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-800000"):
        connection.execute(f"PRAGMA {setting}")
    connection.executemany(
        "INSERT INTO users (name, role, password_hash, active, created) VALUES (?,?,'-',1,?)",
        ((f"rater-{number}", "rater", _moment(0)) for number in range(RATERS)),
    )
    (first_rater,) = connection.execute("SELECT id FROM users WHERE name = 'rater-0'").fetchone()
    for name, count in sizes.items():
        _fill_campaign(connection, rng, ids[name], count, first_rater)
    connection.commit()
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _fill_campaign(
    connection: sqlite3.Connection, rng: np.random.Generator, campaign: int, votes: int, rater: int
) -> None:
    """Add items, answers, leases and votes of one campaign; some items are left to be rated."""
    rated = -(-votes // RATERS_PER_ITEM)
    items = rated + rated // 10
    (item_base,) = connection.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM items").fetchone()
    (answer_base,) = connection.execute("SELECT COALESCE(MAX(id), 0) + 1 FROM answers").fetchone()
    pair = np.array([[0, 1], [0, 2], [1, 2]])[rng.integers(0, 3, items)]
    gold = rng.random(items) < 0.02
    taken = np.where(gold | (np.arange(items) >= rated), 0, RATERS_PER_ITEM)
    texts = [" ".join(rng.choice(_WORDS, 80)) for _ in range(200)]
    which, tokens = rng.integers(0, len(texts), (items, 2)), rng.integers(40, 160, (items, 2))
    connection.executemany(
        "INSERT INTO items (id, campaign_id, position, prompt_id, prompt, category, gold_best, "
        "kind, taken) VALUES (?,?,?,?,?,?,?,?,?)",
        (
            (item_base + i, campaign, i, f"p{campaign}-{i}", f'"Question {i}? {texts[0]}"',
             f"c{i % 7}", answer_base + 2 * i + 1 if g else None, "gold" if g else "normal", t)
            for i, (g, t) in enumerate(zip(gold.tolist(), taken.tolist(), strict=True))
        ),
    )  # fmt: skip
    connection.executemany(
        "INSERT INTO answers (id, item_id, model, text, tokens, finished) VALUES (?,?,?,?,?,1)",
        (
            (answer_base + 2 * i + side, item_base + i, MODELS[pair[i, side]],
             texts[which[i, side]], int(tokens[i, side]))
            for i in range(items) for side in (0, 1)
        ),
    )  # fmt: skip
    # Votes come in the order of time; the raters of an item are three of all, well mixed.
    item = np.repeat(np.arange(rated), RATERS_PER_ITEM)[:votes]
    who = (item * 7 + np.arange(votes) % RATERS_PER_ITEM * 67) % RATERS
    turned = rng.random(votes) < 0.5
    ahead = STRENGTH[pair[item, 0]] - STRENGTH[pair[item, 1]] + rng.normal(0, 1.2, votes)
    level = np.digitize(np.where(turned, -ahead, ahead), [1.2, 0.15, -0.05, -0.15, -1.2])
    level[rng.random(votes) < 0.02] = len(CHOICES) - 1
    said, keys = CHOICES[level].tolist(), rng.bytes(16 * votes).hex()
    kind = np.where(gold[item], "gold", "normal").tolist()
    seconds = rng.gamma(4, 8, votes).round(1).tolist()
    connection.executemany(
        "INSERT INTO assignments (id, campaign_id, item_id, user_id, purpose, answer_order, status,"
        " created, expires) VALUES (?,?,?,?,?,?,?,?,?)",
        (
            (keys[32 * v : 32 * v + 32], campaign, item_base + i, rater + w, kind[v],
             json.dumps([answer_base + 2 * i + t, answer_base + 2 * i + 1 - t]),
             "skipped" if said[v] == "skip" else "voted", _moment(v), _moment(v + 90))
            for v, (i, w, t) in enumerate(
                zip(item.tolist(), who.tolist(), turned.tolist(), strict=True)
            )
        ),
    )  # fmt: skip
    connection.executemany(
        "INSERT INTO votes (assignment_id, campaign_id, user_id, choice, flags, comment, seconds, "
        "created, updated) VALUES (?,?,?,?,'{}','',?,?,?)",
        (
            (keys[32 * v : 32 * v + 32], campaign, rater + w, said[v], seconds[v],
             _moment(v), _moment(v))
            for v, w in enumerate(who.tolist())
        ),
    )  # fmt: skip


def _moment(vote: int) -> str:
    """Return when a vote came, as the database keeps it: one every 20 seconds."""
    return (_BEGIN + timedelta(seconds=20 * vote)).strftime("%Y-%m-%d %H:%M:%S.%f")


def _forget(path: Path) -> None:
    """Drop a file from the system's cache, so that it is read from the disk."""
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(handle)


def _add_vote(path: Path) -> None:
    """Add one more vote of the large campaign: what was worked out before is out of date."""
    connection = sqlite3.connect(path)
    lent = "SELECT MAX(votes.id) FROM votes JOIN campaigns c ON c.id = campaign_id WHERE c.name = ?"
    (last,) = connection.execute(lent, (LARGE,)).fetchone()
    connection.execute(
        "INSERT INTO assignments SELECT ?, campaign_id, item_id + 1, user_id, purpose, "
        "answer_order, repeat_of, status, created, expires FROM assignments WHERE id = "
        "(SELECT assignment_id FROM votes WHERE id = ?)",
        ("0" * 32, last),
    )
    connection.execute(
        "INSERT INTO votes (assignment_id, campaign_id, user_id, choice, flags, comment, seconds, "
        "created, updated) SELECT ?, campaign_id, user_id, 'a', flags, comment, seconds, created, "
        "updated FROM votes WHERE id = ?",
        ("0" * 32, last),
    )
    connection.commit()
    connection.close()


def _opened(http: httpx.Client) -> Json:
    """Open the researchers' page as a browser does, and return the seconds of each part."""
    began = time.perf_counter()
    http.get("/research/").raise_for_status()
    config = http.get("/research/config").json()
    (first,) = (
        each for each in config["dependencies"] if [t[1] for t in each["targets"]] == ["load"]
    )
    (then,) = (each for each in config["dependencies"] if each["trigger_after"] == first["id"])
    page = time.perf_counter() - began
    page_id = f"bench{time.monotonic_ns()}"
    overview, _ = _called(http, page_id, first["id"], [])
    results, said = _called(http, page_id, then["id"], [LARGE, "all categories", False])
    plots = sum(str(part).count("<figure") for part in said)
    if plots < 5:
        raise UserError(f"the dashboard has {plots} plots")
    return {
        "page_s": round(page, 2),
        "overview_s": round(overview, 2),
        "results_s": round(results, 2),
        "all_s": round(page + overview + results, 2),
    }


def _called(
    http: httpx.Client, page: str, function: int, data: list[Any]
) -> tuple[float, list[Any]]:
    """Call a function of the page through Gradio's queue; return the seconds and its output."""
    began = time.perf_counter()
    body = {"data": data, "fn_index": function, "session_hash": page}
    http.post("/research/gradio_api/queue/join", json=body).raise_for_status()
    path = f"/research/gradio_api/queue/data?session_hash={page}"
    with http.stream("GET", path) as reply:
        for line in reply.iter_lines():
            if not line.startswith("data:"):
                continue
            message = json.loads(line[5:])
            if message["msg"] == "process_completed":
                if not message["success"]:
                    raise UserError(f"the dashboard failed: {message}")
                return time.perf_counter() - began, message["output"]["data"]
    raise UserError("the dashboard's answer ended too early")


if __name__ == "__main__":
    main()
