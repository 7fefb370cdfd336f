"""Campaigns to look at: texts as people and models write them, and raters of different minds."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from sqlalchemy import select

from tests.ui.samples import PASSWORD, minutes
from ui.accounts import add_user
from ui.assignment import next_assignment
from ui.campaigns import create_campaign
from ui.chats import Reply
from ui.schema import Answer, Assignment
from ui.settings import CampaignSettings
from ui.store import Store
from ui.votes import record_vote

PAIRS, RANKED, RATED = "Helpfulness round 3", "Rank five letters", "Helpfulness round 2"
DONE = "Pilot"
QUESTION = "Why does the harbour smell of tar after rain?"
STRENGTH = {"base": 0.0, "sft": 0.8, "ppo": 1.6}
RATERS = {"ada": 1.4, "ben": 1.0, "chi": 1.2, "dov": 0.8, "eve": 0.0}  # how well they tell

_SKY = [
    "Sunlight looks white, but all colours are in it. The air throws blue light about far more "
    "than red, so blue reaches your eyes from every part of the sky.\n\nAt sunset the light has "
    "a long way through the air. Most of the blue has gone astray by then; what is left is "
    "orange and red.",
    "The sky is blue because it mirrors the sea, which is blue. In the evening the sea is darker "
    "and the sun is closer to it, so the sky turns red.",
]
_LETTERS = [
    "Dear Ms Okafor,\n\nthank you for the invitation. I am afraid I cannot join on Friday. Could "
    "we find a time early next week?\n\nKind regards",
    "No. Friday does not work for me.",
    "Dear Ms Okafor,\n\nunfortunately another appointment keeps me on Friday. Monday or Tuesday "
    "morning would suit me well; otherwise I would gladly read the minutes.\n\nWith best wishes",
    "Hello! I'd love to come on Friday, see you there. Sorry that I cannot make it!",
    "Dear Sir or Madam, I hereby inform you of my inability to attend the aforementioned meeting.",
]
_HARBOUR = (
    "Old mooring posts and planks are soaked with tar so that they do not rot. Rain cools the air "
    "and lifts the oils from the wood, and the damp air carries them further than dry air does.",
    "The harbour smells of tar because rain is made of sea water, and sea water holds tar. When "
    "it rains more, it smells more.",
)
_ASKED = {
    "brainstorming": "Give me three ideas for {}.",
    "open question": "What should I know about {} before I start?",
    "rewriting": "Make this friendlier: “You are late with {}.”",
}
_TOPICS = (
    "a rainy weekend", "a small balcony garden", "a first bicycle tour", "learning to whistle",
    "a goodbye present", "cooking for twelve", "a school newspaper", "moving to another city",
    "a quiet birthday", "repairing a chair", "reading more", "a letter to a neighbour",
    "baking bread", "a chess club", "a long train ride", "painting a kitchen",
)  # fmt: skip
_WRITTEN = {
    "base": "There is much to say about {0}. Many people like {0}. It depends on what you want.",
    "sft": "About {0}: begin small, ask somebody who has done it, and leave time for mistakes.",
    "ppo": "Gladly! For {0}, first make a short list, then choose the one thing that matters most "
    "to you, and begin with that today.",
}


class Talkers:
    """Stands where `ui.live.LiveModels` does, and always says the same, so that pictures do too."""

    def answer(
        self, wheres: Sequence[str], conversations: Sequence[Any]
    ) -> Iterator[list[str] | list[Reply]]:
        """Yield a beginning, then the whole answers."""
        yield [text[:40] for text in _HARBOUR]
        yield [Reply(text, len(text.split()), True) for text in _HARBOUR]


def looked_at(store: Store) -> None:
    """Make campaigns to rate: answers of two models, five letters to rank, one all rated."""
    sky = "Explain to a ten-year-old why the sky is blue and the sunset is red."
    letter = "Write a polite e-mail to Ms Okafor that declines a meeting on Friday."
    pairs = [_row(prompt, _SKY) for prompt in (sky, f"{sky} Use two sentences.")]
    create_campaign(store, PAIRS, pairs, CampaignSettings(raters_per_item=9, seed=3))
    settings = CampaignSettings(mode="ranking", raters_per_item=9, seed=3)
    create_campaign(store, RANKED, [_row(letter, _LETTERS)], settings)
    create_campaign(store, DONE, pairs[:1], CampaignSettings(raters_per_item=1, seed=3))
    add_user(store, "pia", PASSWORD)
    item = next_assignment(store, DONE, "pia", minutes(0))
    assert item is not None
    record_vote(store, "pia", item.assignment_id, "a", seconds=31.0, now=minutes(1))


def rated(store: Store, seed: int = 5) -> None:
    """Make a campaign of three models on which five raters have voted."""
    draws = Random(seed)
    rows = [_compared(kind, topic, draws) for topic in _TOPICS for kind in _ASKED]
    for row in draws.sample(rows, 8):
        row["gold_best"] = max(row["answers"], key=lambda answer: STRENGTH[answer["model"]])[
            "model"
        ]
    settings = CampaignSettings(raters_per_item=5, gold_share=0.15, swap_share=0.1, seed=seed)
    create_campaign(store, RATED, rows, settings)
    for rater in RATERS:
        add_user(store, rater, PASSWORD)
    now = 0.0
    waiting = set(RATERS)
    while waiting:
        for rater in sorted(waiting):
            now += draws.uniform(0.2, 1.0)
            item = next_assignment(store, RATED, rater, minutes(now))
            if item is None:
                waiting.discard(rater)
                continue
            seconds = draws.uniform(0.4, 0.9) if rater == "eve" else draws.uniform(9, 40)
            choice: Any = _opinion(store, item.assignment_id, RATERS[rater], draws)
            record_vote(store, rater, item.assignment_id, choice, seconds=seconds, now=minutes(now))


def _row(prompt: str, texts: list[str]) -> dict[str, Any]:
    answers = [{"model": f"model {number}", "text": text} for number, text in enumerate(texts)]
    return {"prompt": prompt, "answers": answers}


def _compared(kind: str, topic: str, draws: Random) -> dict[str, Any]:
    answers = [
        {"model": model, "text": _WRITTEN[model].format(topic), "tokens": draws.randint(10, 80)}
        for model in draws.sample(sorted(STRENGTH), 2)
    ]
    return {"prompt": _ASKED[kind].format(topic), "category": kind, "answers": answers}


def _opinion(store: Store, assignment_id: str, skill: float, draws: Random) -> str:
    with store.reading() as session:
        order = session.get_one(Assignment, assignment_id).order
        found = select(Answer.id, Answer.model).where(Answer.id.in_(order))
        models = dict(session.execute(found).all())
    if draws.random() < 0.1:
        return draws.choice(["tie", "both_bad", "skip"])
    left, right = (STRENGTH[models[answer_id]] for answer_id in order)
    ahead = skill * (left - right) + draws.gauss(0, 1)
    side = "a" if ahead > 0 else "b"
    return f"{side}_much" if abs(ahead) > 1.5 else side
