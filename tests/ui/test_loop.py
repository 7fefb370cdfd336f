"""The loop closes: people vote in the browser's way, and a reward model learns what they prefer.

The raters are simulated; all else is real: the server and its log-in, the database, the commands
and the training. A better answer gives a reason. Which model wrote it, its length and its
place tell little or nothing.
"""

import json
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from random import Random

import pytest
from sqlalchemy import func, select

from tests.ui.pages import Visitor, serving
from tests.ui.samples import PASSWORD
from ui.accounts import RateLimiter, add_user
from ui.campaigns import create_campaign
from ui.consolidation import consolidate
from ui.outcomes import read_outcomes
from ui.schema import Item, Vote
from ui.server import create_app
from ui.settings import CampaignSettings
from ui.store import Store
from workbench import cli
from workbench.data import load

ITEMS, GOLD, HELD_OUT = 80, 10, 100
REASON = "because"
WORDS = ("tar", "rain", "rice", "gulls", "lift", "tea", "bread", "gate", "lamp", "kettle", "noon")
# How often each says what is true. Three are good, two guess, one turns everything round, and one
# votes for the left answer whatever it says.
SKILL = {"ada": 0.9, "ben": 0.9, "chi": 0.9, "dov": 0.5, "eli": 0.5, "fay": 0.15, "gus": None}
BAD = {"dov", "eli", "fay", "gus"}


def written(number: int) -> tuple[str, str, str]:
    """Return a prompt, its better and its worse answer."""
    draws = Random(f"text {number}")
    one, two, three = draws.sample(WORDS, 3)
    # Of any length, so that length tells little.
    opening, other = (" ".join(draws.choices(WORDS, k=draws.randint(1, 8))) for _ in range(2))
    better = f"{opening.capitalize()} {REASON} of the {one}."
    worse = f"{other.capitalize()} instead of the {two}."
    return f"{number}: why {one} {two} {three}?", better, worse


def row(number: int) -> dict:
    """Return an item; either model may have written the better answer."""
    prompt, *texts = written(number)
    models = Random(f"models {number}").sample(["base", "aligned"], 2)
    answers = [{"model": model, "text": text} for model, text in zip(models, texts, strict=True)]
    gold = {"gold_best": models[0]} if number >= ITEMS else {}
    return {"prompt": prompt, "answers": answers, **gold}


def choice(rater: str, answers: list[str], draws: Random) -> str:
    """Return what a rater says to the answers as the page shows them, left and right."""
    skill, strength = SKILL[rater], draws.choice(["", "_much"])
    if skill is None:
        return f"a{strength}"
    right = REASON in answers[0]
    return f"{'a' if right == (draws.random() < skill) else 'b'}{strength}"


@pytest.fixture(scope="module")
def voted(sqlite_template, tmp_path_factory) -> Iterator[Store]:
    """A campaign that seven raters have gone through from log-in to the last item, by HTTP."""
    path = tmp_path_factory.mktemp("loop") / "ratings.db"
    path.write_bytes(sqlite_template.read_bytes())
    store = Store(f"sqlite:///{path}")
    given = CampaignSettings(raters_per_item=len(SKILL), gold_share=0.1, seed=11)
    create_campaign(store, "loop", [row(number) for number in range(ITEMS + GOLD)], given)
    for name in SKILL:
        add_user(store, name, PASSWORD)
    limits = RateLimiter(1000, 10_000)  # these read faster than people
    with serving(create_app(store, bytes(range(64)), requests=limits)) as address:
        desks = {name: Visitor(address, name) for name in SKILL}
        draws = {name: Random(name) for name in SKILL}
        shown = {name: desk.ask("begin", "loop")["shown"] for name, desk in desks.items()}
        for name in cycle(SKILL):
            if not any(shown.values()):
                break
            if (item := shown[name]) is None:
                continue
            said = {
                "assignment": item["assignment"],
                "choice": choice(name, [str(text) for text in item["answers"]], draws[name]),
                "seconds": draws[name].uniform(5, 30),
            }
            reply = desks[name].ask("vote", "loop", **said)
            assert reply["saved"]
            shown[name] = reply["shown"]
    yield store
    store.close()


@pytest.fixture
def rlhf(runs, capsys) -> Callable[..., str]:
    """Run the command, which must succeed; returns what it says."""

    def run(*arguments: object) -> str:
        code = cli.guarded(
            lambda: cli.app([str(each) for each in arguments], standalone_mode=False)
        )
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out + said.err

    return run


@pytest.fixture
def train(rlhf, tiny_llama, tmp_path) -> Callable[[object], tuple[str, dict]]:
    """Train a reward model on a source and measure it on held-out prompts, by the true preference.

    Returns what was said and the summary.
    """
    pairs = (written(number) for number in range(1000, 1000 + HELD_OUT))
    held_out = tmp_path / "held_out.jsonl"
    rows = [{"prompt": prompt, "chosen": yes, "rejected": no} for prompt, yes, no in pairs]
    held_out.write_text("".join(json.dumps(each) + "\n" for each in rows), "utf-8")

    def start(source: object) -> tuple[str, dict]:
        said = rlhf(
            "reward", "--data", source, f"data.test={held_out}", f"model.name={tiny_llama}",
            "model.precision=fp32", "reward.epochs=2", "reward.batch_size=8",
            "reward.learning_rate=3e-3", "reward.max_length=128",
        )  # fmt: skip
        return said, json.loads(Path("runs/default/reward/summary.json").read_text("utf-8"))

    return start


def right(store: Store, method: str) -> float:
    """Return the share of the items on which consolidated votes name the better answer."""
    outcomes = read_outcomes(store, "loop")
    with store.reading() as session:
        prompts = dict(session.execute(select(Item.id, Item.prompt)).all())
    truth = {each["prompt"]: each["answers"][0]["model"] for each in map(row, range(ITEMS))}
    found = consolidate(outcomes, method).table(outcomes)
    assert len(found) == ITEMS
    won = [
        truth[prompts[item]] == winner
        for item, winner in zip(found["item"], found["winner"], strict=True)
    ]
    return sum(won) / ITEMS


def test_every_rater_went_through_all_items(voted):
    with voted.reading() as session:
        assert session.scalar(select(func.count()).select_from(Vote)) >= ITEMS * len(SKILL)
    gold = read_outcomes(voted, "loop").duels.gold
    assert (int(gold.sum()), int((~gold).sum())) == (GOLD, ITEMS)


def test_dawid_skene_finds_the_truth_where_a_majority_does_not(voted):
    majority, dawid_skene = right(voted, "majority"), right(voted, "dawid-skene")
    assert dawid_skene >= 0.9
    assert dawid_skene >= majority + 0.1


def test_a_reward_model_learns_from_the_votes_as_they_are(voted, train):
    said, summary = train(f"ratings:{voted.url}#loop")
    assert summary["pairs"] == HELD_OUT
    assert summary["accuracy"] >= 0.75
    assert summary["ci95"][0] > 0.5 + 0.1
    assert summary["accuracy"] >= summary["length_only_accuracy"] + 0.1
    again, _ = train(f"ratings:{voted.url}#loop")
    assert "model in" in said
    assert "is up to date" in again


def test_a_reward_model_learns_from_exported_pairs(voted, rlhf, train, tmp_path):
    out = tmp_path / "pairs"
    said = rlhf(
        "ratings", "export", "--db", voted.url, "--campaign", "loop", "--out", out,
        "--consolidate", "dawid-skene", "--drop-failed-raters", "--test-fraction", "0.1",
    )  # fmt: skip
    assert "pairs from " in said
    found = load(str(out), ("preference",), split="train").rows
    truth = {prompt: better for prompt, better, _ in map(written, range(ITEMS))}
    assert sum(truth[each["prompt"]] == each["chosen"] for each in found) >= 0.9 * len(found)
    assert f"rows {len(found)} preference" in " ".join(rlhf("data", "check", out).split())
    _, summary = train(out)
    assert summary["accuracy"] >= 0.85
    assert summary["ci95"][0] > 0.5 + 0.2
