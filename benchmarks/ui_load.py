"""Measures votes under load: raters over HTTP, as the page votes, and a server that is killed.

Three phases, each on an SQLite database of its own: raters who think between votes, raters who do
not, and raters who do not while the server is killed (SIGKILL) at random moments and started again.
After each, the database is compared with what the server acknowledged.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx
from sqlalchemy import func, select

from benchmarks.ui_server import PASSWORD, Server, keep, machine, percentiles
from ui.accounts import add_user
from ui.schema import Assignment, Item, User, Vote
from ui.store import Store
from workbench.errors import UserError

Json = dict[str, Any]
CAMPAIGN = "load"
CHOICES = ("a_much", "a", "tie", "b", "b_much", "both_bad")
MODELS = ("alpha", "beta", "gamma")
RATERS_PER_ITEM = 3
# Part of the load: they make the choice of the next item dearer.
SHARES = ("--set", "gold_share=0.05", "--set", "swap_share=0.05")


@dataclass(frozen=True)
class Load:
    """What is done to the server.

    Attributes:
        raters: at once.
        votes: of all of them together.
        think: mean seconds between an item's arrival and the vote; drawn from half to one and a
            half of that.
        kills: times that the server is killed.
        seed: of choices, pauses and the moments of the kills.
    """

    raters: int
    votes: int
    think: float = 0.0
    kills: int = 0
    seed: int = 0


@dataclass
class Record:
    """What the raters saw: every vote that the server acknowledged, and how long each took."""

    acknowledged: dict[str, str] = field(default_factory=dict)
    sent: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    repeats: int = 0  # votes sent again, as no answer came
    waits: int = 0  # answers "too many requests", waited for as they say


def main() -> None:
    """Run the phases, print and keep what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--votes", type=int, default=10_000, help="in each phase")
    parser.add_argument("--think", type=float, default=1.0, help="mean seconds before a vote")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--phase",
        action="append",
        choices=("thinking", "saturated", "killed"),
        help="thinking, saturated or killed; repeatable",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the JSON")
    given = parser.parse_args()
    size = {"raters": given.raters, "votes": given.votes, "seed": given.seed}
    phases = {
        "thinking": Load(**size, think=given.think),
        "saturated": Load(**size),
        "killed": Load(**size, kills=given.kills),
    }
    try:
        measured = {"machine": machine(), **size, "think_s": given.think}
        for name in given.phase or phases:
            load = phases[name]
            with tempfile.TemporaryDirectory(prefix="rlhf-load-") as folder:
                measured[name] = run(load, Path(folder))
                measured[name]["load_average"] = machine()["load_average"]
                print(f"{name}: {measured[name]}", file=sys.stderr)
    except UserError as error:
        sys.exit(f"ui_load.py: error: {error}")
    keep(given.out, "ui_load", measured)


def run(load: Load, folder: Path) -> Json:
    """Run a phase and return its figures.

    Raises:
        UserError: when a vote is lost or double, or the server does not start.
    """
    url = f"sqlite:///{folder}/ratings.db"
    rows = folder / "rows.jsonl"
    rows.write_text("".join(f"{json.dumps(row)}\n" for row in make_rows(load)), encoding="utf-8")
    _add_raters(url, load.raters)
    options = ("--rows", str(rows), "--campaign", CAMPAIGN, *SHARES)
    each = ("--raters-per-item", str(RATERS_PER_ITEM), "--set", f"seed={load.seed}")
    server = Server(url, folder / "server.log", *options, *each)
    server.start()
    try:
        record, elapsed, busy = asyncio.run(_vote(server, load))
    finally:
        server.stop()
    said = (folder / "server.log").read_text(encoding="utf-8")
    if "Traceback" in said:
        raise UserError(f"the server failed: {said[-2000:]}")
    check(url, record)
    return {
        "votes": len(record.acknowledged),
        "votes_per_second": round(len(record.seconds) / elapsed, 1),
        "seconds": round(elapsed, 1),
        **percentiles(record.seconds),
        "server_cpu_ms_per_vote": None if load.kills else round(1000 * busy / load.votes, 2),
        "kills": server.starts - 1,
        "sent_again": record.repeats,
        "told_to_wait": record.waits,
        "lost": 0,
        "double": 0,
    }


def make_rows(load: Load) -> list[Json]:
    """Return items for all votes and some to spare, of answers as long as real ones."""
    draws = Random(load.seed)
    words = ["light", "water", "because", "the", "answer", "people", "often", "small", "would"]
    count = load.votes // RATERS_PER_ITEM + 2 * load.raters
    rows = []
    for number in range(count + 40):
        models = draws.sample(MODELS, 2)
        answers = [
            {"model": model, "text": " ".join(draws.choices(words, k=120)), "tokens": 150}
            for model in models
        ]
        row: Json = {"prompt": f"Question {number}?", "answers": answers}
        if number >= count:
            row["gold_best"] = models[0]
        rows.append(row)
    return rows


def check(url: str, record: Record) -> None:
    """Compare the database with what was acknowledged.

    Raises:
        UserError: when a vote is missing, changed, made up, there twice, or an item holds more
            raters than it should.
    """
    store = Store(url)
    with store.reading() as session:
        found = session.execute(
            select(
                Vote.assignment_id, Vote.choice, Assignment.item_id, User.name, Assignment.purpose
            )
            .join(Assignment, Assignment.id == Vote.assignment_id)
            .join(User, User.id == Vote.user_id)
        ).all()
        held = select(Assignment.item_id, func.count()).where(Assignment.purpose == "normal")
        held = held.where(Assignment.status.in_(("leased", "voted"))).group_by(Assignment.item_id)
        places = dict(session.execute(held).all())
        taken = dict(
            session.execute(select(Item.id, Item.taken).where(Item.kind == "normal")).all()
        )
    store.close()
    kept = {row.assignment_id: row.choice for row in found}
    lost = [vote for vote, choice in record.acknowledged.items() if kept.get(vote) != choice]
    made_up = [vote for vote, choice in kept.items() if record.sent.get(vote) != choice]
    shown = Counter((row.item_id, row.name, row.purpose == "swap") for row in found)
    double = [key for key, count in shown.items() if count > 1]
    if lost or made_up or double or len(kept) != len(found):
        raise UserError(
            f"{len(lost)} votes lost or changed, {len(made_up)} that nobody sent, "
            f"{len(double) + len(found) - len(kept)} double"
        )
    wrong = [item for item, count in taken.items() if count != places.get(item, 0)]
    if wrong or max(taken.values()) > RATERS_PER_ITEM:
        raise UserError(f"{len(wrong)} items count their raters wrongly, or hold too many")


def _add_raters(url: str, count: int) -> None:
    store = Store(url)
    for number in range(count):
        add_user(store, f"rater-{number}", PASSWORD)
    store.close()


async def _vote(server: Server, load: Load) -> tuple[Record, float, float]:
    """Let all raters vote; return the record, the seconds, and the server's processor time."""
    record = Record()
    shares = [
        load.votes // load.raters + (number < load.votes % load.raters)
        for number in range(load.raters)
    ]
    raters = [_Rater(server.address, number, load, record) for number in range(load.raters)]
    await asyncio.gather(*(rater.begin() for rater in raters))
    before, began = server.seconds(), time.monotonic()
    everybody = asyncio.gather(
        *(rater.vote(share) for rater, share in zip(raters, shares, strict=True))
    )
    killer = asyncio.create_task(_kill(server, load, record))
    await everybody
    elapsed, busy = time.monotonic() - began, server.seconds() - before
    await killer
    await asyncio.gather(*(rater.http.aclose() for rater in raters))
    return record, elapsed, busy


async def _kill(server: Server, load: Load, record: Record) -> None:
    """Kill the server when so many votes are in, drawn by the seed, and start it again."""
    draws = Random(f"kills {load.seed}")
    for after in sorted(draws.sample(range(load.votes // 20, load.votes * 19 // 20), load.kills)):
        while len(record.acknowledged) < after:
            await asyncio.sleep(0.001)
        await asyncio.sleep(draws.uniform(0, 0.05))  # anywhere within a transaction
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)


class _Rater:
    """A rater's browser: a connection, a cookie, and the calls that the page makes."""

    def __init__(self, address: str, number: int, load: Load, record: Record) -> None:
        self.http = httpx.AsyncClient(base_url=address, timeout=120)
        self._name, self._load, self._record = f"rater-{number}", load, record
        self._draws = Random(f"{load.seed} {number}")
        self._component = 0
        self._shown: Json = {}

    async def begin(self) -> None:
        """Log in, open the page and ask for the first item."""
        reply = await self.http.post("/login", data={"name": self._name, "password": PASSWORD})
        if reply.status_code != httpx.codes.SEE_OTHER:
            raise UserError(f"{self._name}: cannot log in ({reply.status_code})")
        (desk,) = (await self.http.get("/rate/config")).json()["components"]
        self._component = desk["id"]
        await asyncio.sleep(self._draws.uniform(0, self._load.think))  # not all in one step
        self._shown = (await self._ask("begin"))["shown"]

    async def vote(self, count: int) -> None:
        """Vote so often, and send again what was not answered."""
        for _ in range(count):
            if self._load.think:
                await asyncio.sleep(self._load.think * self._draws.uniform(0.5, 1.5))
            lent, choice = self._shown["assignment"], self._draws.choice(CHOICES)
            self._record.sent[lent] = choice
            began = time.perf_counter()
            said = await self._ask("vote", assignment=lent, choice=choice, seconds=2.0)
            self._record.seconds.append(time.perf_counter() - began)
            if not said.get("saved"):
                raise UserError(f"{self._name}: the vote was refused: {said}")
            self._record.acknowledged[lent] = choice
            self._shown = said["shown"]

    async def _ask(self, function: str, **data: Any) -> Json:
        body = {
            "session_hash": self._name,
            "component_id": self._component,
            "fn_name": function,
            "data": {"campaign": CAMPAIGN, **data},
        }
        while True:
            try:
                reply = await self.http.post("/rate/gradio_api/component_server/", json=body)
            except httpx.TransportError:
                self._record.repeats += 1
                await asyncio.sleep(0.2)
                continue
            if reply.status_code == httpx.codes.TOO_MANY_REQUESTS:
                self._record.waits += 1
                await asyncio.sleep(float(reply.headers["retry-after"]))
                continue
            if reply.status_code != httpx.codes.OK:
                raise UserError(f"{self._name}: {function}: {reply.status_code} {reply.text[:200]}")
            said: Json = reply.json()
            if said.get("refused") == "trouble":
                raise UserError(f"{self._name}: {function}: {said}")
            return said


if __name__ == "__main__":
    main()
