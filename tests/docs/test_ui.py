import dataclasses
import inspect
import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from tests.docs import ROOT, blocks, listed, read, section
from tests.ui.samples import minutes
from tests.ui.test_mturk import result, results, sheet
from ui.accounts import LoginLimiter, RateLimiter, list_users
from ui.agreement import FEWEST_SECONDS, LEAST_GOLD, TOO_FAST
from ui.assignment import next_assignment
from ui.campaigns import list_campaigns
from ui.guard import LARGEST_BODY
from ui.options import DEFAULT_DB
from ui.schema import Mode
from ui.sessions import LIFETIME
from ui.settings import CampaignSettings
from ui.store import Store
from ui.votes import record_vote
from workbench.cli import app

PAGE = read("ui.md")


def commands() -> list[list[str]]:
    """The page's commands in its order, but for the one that needs a PostgreSQL server."""
    lines = "\n".join(blocks(PAGE, "bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line and "postgresql" not in line]


@pytest.fixture
def without_models(monkeypatch):
    """Models that answer at once, and a server that does not stay; returns what was served."""
    served = []

    def answers(models, prompts, sampling, *, mode, samples, seed):
        names = [name for name in models for _ in range(samples)]
        given = [{"model": name, "text": f"answer {n}"} for n, name in enumerate(names)]
        return [{"prompt": prompt["prompt"], "answers": given} for prompt in prompts]

    monkeypatch.setattr("ui.campaigns.prepare_answers", answers)
    monkeypatch.setattr("ui.live.LiveModels.load", lambda *_: None)
    monkeypatch.setattr("workbench.models.locate", lambda where: where)
    monkeypatch.setattr("ui.server.serve", lambda app, host, port: served.append((host, port)))
    return served


def test_every_command_runs_as_shown(tmp_path, monkeypatch, without_models):
    monkeypatch.chdir(tmp_path)
    # Sides are drawn from a campaign's seed; by chance a rater may seem to favour one of them.
    monkeypatch.setattr("ui.campaigns.secrets.randbelow", lambda _: 11)
    (items,) = blocks(PAGE, "jsonl")
    (tmp_path / "items.jsonl").write_text(items)
    ran = [words for words in commands() if words[0] == "ui"]
    for words in ran:
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, (words, done.output)
    assert set(without_models) == {("127.0.0.1", 7860)}
    store = Store(DEFAULT_DB)
    roles = {user.name: (user.role, user.active) for user in list_users(store)}
    assert roles["rita"] == ("researcher", True)
    assert roles["ann"] == ("rater", False)
    made = {campaign.name: campaign for campaign in list_campaigns(store)}
    modes = {"comparison": "pair", "first": "pair", "mine": "pair", "order": "ranking"}
    assert {name: each.mode for name, each in made.items()} == modes | {"talk": "arena"}
    assert (made["first"].swap_share, made["mine"].gold_share) == (0.05, 0.3)
    ann = CliRunner().invoke(app, ["ui", "user", "enable", "ann"])
    assert ann.exit_code == 0
    for campaign in ("first", "comparison"):
        for rater, at in (("rita", 0), ("ann", 2)):
            while item := next_assignment(store, campaign, rater, minutes(at)):
                best = "a" if item.answers[0] == "answer 1" else "b"
                record_vote(
                    store, rater, item.assignment_id, best, seconds=9.0, now=minutes(at + 1)
                )
    store.close()
    rest = [words for words in commands() if words[0] == "ratings"]
    for words in rest:
        if words[1] == "import":
            sent = sheet(tmp_path / "batch.csv")
            results(tmp_path / words[2], *(result(row, n, "W1") for n, row in enumerate(sent)))
        done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, (words, done.output)
    others = {words[0] for words in commands()} - {"ui", "ratings"}
    assert others == {"reward", "data"}  # tests/ui/test_loop.py runs these
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert {"answer 1"} <= {pair["chosen"] for pair in pairs}
    assert (tmp_path / "winners.csv").stat().st_size > 1000


def test_settings_and_their_defaults():
    text = section(PAGE, "## Campaigns")
    fields = {field.name: field.default for field in dataclasses.fields(CampaignSettings)}
    assert listed(text) == set(fields)
    for name in ("raters_per_item", "lease_seconds", "price_per_label", "mode"):
        assert re.search(rf"^\| `{name}` \| `?{fields[name]}`? \|", text, re.MULTILINE), name


def test_modes_and_roles():
    assert listed(section(PAGE, "## Modes")) == set(Mode.__args__)
    assert listed(section(PAGE, "## Accounts")) == {"rater", "researcher"}


def test_keys_are_those_of_the_page():
    documented = listed(section(PAGE, "## What raters see"))
    template = (ROOT / "ui/templates/desk.html").read_text(encoding="utf-8")
    shown = set(re.findall(r'aria-keyshortcuts="([^"]+)"', template))
    assert shown <= documented | {"2", "3", "4"}
    script = (ROOT / "ui/assets/desk.js").read_text(encoding="utf-8")
    for key in documented - {"1", "5", "A", "I", "Enter", "Esc"}:
        assert re.search(rf'key === "{key.lower()}"|[ {{]{key.lower()}: "', script), key


def test_limits_are_those_of_the_code():
    text = " ".join(PAGE.split())
    requests = RateLimiter()
    per_name, per_address, window = (
        inspect.signature(LoginLimiter).parameters[name].default
        for name in ("per_name", "per_address", "window")
    )
    words = {10: "Ten", 100: "a hundred", 300: "five minutes"}
    assert f"{words[per_name]} failed log-ins on one name" in text
    assert f"{words[per_address]} from one address, in {words[window]}" in text
    assert f"({requests.per_second:.0f} a second) and size ({LARGEST_BODY // 1024} KiB)" in text
    assert LIFETIME == 12 * 3600
    assert "Sessions last twelve hours" in text
    assert pytest.approx(1 / 3) == TOO_FAST
    assert FEWEST_SECONDS == 1
    assert f"the interval ends below {100 * LEAST_GOLD:.0f} %" in text
