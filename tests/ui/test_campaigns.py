from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select

from tests.ui.samples import NOON, PASSWORD, campaign, minutes, pair_rows, ranking_rows
from ui.accounts import add_user
from ui.assignment import next_assignment
from ui.campaigns import (
    Created,
    Progress,
    close_campaign,
    create_campaign,
    find_campaign,
    list_campaigns,
    pause_campaign,
    prepare_answers,
    progress,
    resume_campaign,
)
from ui.errors import Refused
from ui.schema import Answer, Campaign, Event, Item
from ui.settings import CampaignSettings
from ui.votes import record_vote
from workbench.chat import decode, query_ids
from workbench.errors import UserError
from workbench.generation import SamplingSettings, generate
from workbench.models import ModelSettings, load_policy, load_tokenizer


def test_a_campaign_is_made_with_its_settings_and_counts(store):
    rows = pair_rows(3, gold=1)
    rows[0]["answers"][0]["text"] = rows[0]["answers"][1]["text"]
    rows[1]["answers"][1]["text"] = "I am Qwen3-4B."
    settings = CampaignSettings(
        guidelines="Read\0 both.", raters_per_item=5, seed=9, gold_share=0.1, swap_share=0.2,
        markdown=True, price_per_label=0.5, lease_seconds=60,
    )  # fmt: skip
    add_user(store, "bea", PASSWORD, "researcher")
    models = {"poor": "Qwen/Qwen3-4B"}
    created = create_campaign(store, "first try", rows, settings, models=models, by="bea")
    assert created == Created("first try", items=3, gold=1, identical=1, leaks=1)
    (made,) = list_campaigns(store)
    assert made.models == {"poor": "Qwen/Qwen3-4B", "good": None}
    assert (made.guidelines, made.raters_per_item, made.seed) == ("Read\ufffd both.", 5, 9)
    assert (made.gold_share, made.swap_share, made.price_per_label) == (0.1, 0.2, 0.5)
    assert (made.markdown, made.blind, made.status, made.lease_seconds) == (True, True, "open", 60)
    assert abs((datetime.now(UTC) - made.created).total_seconds()) < 60
    with store.reading() as session:
        event = session.scalars(select(Event).where(Event.what == "create")).one()
        leaks = session.scalars(select(Answer.leak).where(Answer.leak.is_not(None))).all()
    assert event.detail == {"campaign": "first try", "items": 3, "gold": 1}
    assert event.user_id is not None
    assert leaks == ["Qwen3-4B"]


def test_a_seed_that_is_not_given_cannot_be_guessed(store):
    create_campaign(store, "one", pair_rows(1))
    create_campaign(store, "two", pair_rows(1))
    seeds = [found.seed for found in list_campaigns(store)]
    assert seeds[0] != seeds[1]
    assert all(seed > 1000 for seed in seeds)  # fails once in a million


@pytest.mark.parametrize(
    ("mode", "blind", "is_blind"),
    [("pair", None, True), ("arena", None, False), ("pair", False, False), ("arena", True, True)],
)
def test_names_are_revealed_in_the_arena_only_unless_told(store, mode, blind, is_blind):
    create_campaign(store, "test", pair_rows(1), CampaignSettings(mode=mode, blind=blind))
    assert list_campaigns(store)[0].blind is is_blind


@pytest.mark.parametrize(
    ("name", "rows", "settings", "models", "message"),
    [
        ("taken", pair_rows(1), {}, None, "campaign taken: there is one of that name"),
        ("", pair_rows(1), {}, None, "a name is 1 to 128 letters"),
        ("<b>", pair_rows(1), {}, None, "a name is 1 to 128 letters"),
        ("new", [], {}, None, "campaign new: no rows to rate"),
        ("new", [], {"mode": "chat"}, {"one": "x"}, "a live campaign needs at least two models"),
        ("new", pair_rows(1), {"mode": "chat"}, None, "row 1: a chat campaign takes no rows"),
        ("new", pair_rows(1), {"gold_share": 0.1}, None, "gold_share=0.1 needs rows with gold"),
        ("new", pair_rows(1), {"raters_per_item": 0}, None, "campaign new: raters_per_item=0: "),
        ("new", [*pair_rows(2), {"prompt": "x"}], {}, None, "row 3: answers: Field required"),
        ("new", ranking_rows(1), {}, None, "row 1: 4 answers; in pair mode an item has 2"),
    ],
)  # fmt: skip
def test_an_impossible_campaign_leaves_nothing_behind(store, name, rows, settings, models, message):
    create_campaign(store, "taken", pair_rows(1))
    with pytest.raises(UserError, match=message):
        create_campaign(store, name, rows, CampaignSettings(**settings), models=models)
    with store.reading() as session:
        assert session.scalars(select(Campaign.name)).all() == ["taken"]
        assert session.scalar(select(func.count()).select_from(Item)) == 1


def test_a_live_campaign_has_models_and_no_rows(store):
    models = {"one": "runs/one", "two": "runs/two"}
    create_campaign(store, "test", [], CampaignSettings(mode="chat"), models=models)
    assert list_campaigns(store)[0].models == models


def test_an_unknown_campaign_is_named_with_the_nearest(store):
    for reading in (True, False):
        with store.reading() as session:
            hint = "there are: none" if reading else "did you mean first?"
            with pytest.raises(UserError, match=f"campaign 'frist': there is no .*{hint}"):
                find_campaign(session, "frist")
        if reading:
            create_campaign(store, "first", pair_rows(1))


def test_the_newest_campaign_comes_first(store):
    for name in ("one", "two"):
        create_campaign(store, name, pair_rows(1))
    assert [found.name for found in list_campaigns(store)] == ["two", "one"]


def test_a_paused_campaign_takes_votes_and_lends_nothing(store):
    campaign(store)
    shown = next_assignment(store, "test", "ann", NOON)
    pause_campaign(store, "test")
    assert next_assignment(store, "test", "ann", NOON).assignment_id == shown.assignment_id
    record_vote(store, "ann", shown.assignment_id, "a", seconds=1, now=NOON)
    with pytest.raises(Refused, match="it is paused") as caught:
        next_assignment(store, "test", "ann", NOON)
    assert caught.value.reason == "paused"
    resume_campaign(store, "test")
    assert next_assignment(store, "test", "ann", NOON) is not None


def test_a_closed_campaign_stays_closed(store):
    campaign(store)
    shown = next_assignment(store, "test", "ann", NOON)
    close_campaign(store, "test", by="ann")
    close_campaign(store, "test")
    with pytest.raises(Refused) as caught:
        next_assignment(store, "test", "ann", NOON)
    assert caught.value.reason == "closed"
    with pytest.raises(Refused) as caught:
        record_vote(store, "ann", shown.assignment_id, "a", seconds=1, now=NOON)
    assert caught.value.reason == "closed"
    for change in (pause_campaign, resume_campaign):
        with pytest.raises(UserError, match="it is closed, and stays closed"):
            change(store, "test")
    with store.reading() as session:
        events = [(e.what, e.user_id) for e in session.scalars(select(Event).order_by(Event.id))]
    assert [what for what, _ in events] == ["add_user", "add_user", "create", "close", "close"]
    assert events[3][1] is not None


def test_progress_counts_votes_wanted_and_done(store):
    campaign(store, items=4, raters_per_item=2, raters=("ann", "bob", "eve"), lease_seconds=600)
    assert progress(store, "test", NOON) == Progress(4, 8, 0, 0, 0, 0)
    for rater, choice in (("ann", "a"), ("ann", "tie"), ("bob", "skip"), ("bob", "b")):
        shown = next_assignment(store, "test", rater, NOON)
        record_vote(store, rater, shown.assignment_id, choice, seconds=1, now=NOON)
    next_assignment(store, "test", "ann", NOON)
    assert progress(store, "test", NOON) == Progress(4, 8, done=3, leased=1, skipped=1, raters=2)
    # A lease that ran out is not before anybody, and no vote either.
    assert progress(store, "test", minutes(11)) == Progress(4, 8, 3, leased=0, skipped=1, raters=2)


def test_gold_and_swaps_do_not_count_as_progress(store):
    campaign(store, items=30, gold=30, gold_share=0.4, swap_share=0.3, raters_per_item=1)
    votes = 0
    while (shown := next_assignment(store, "test", "ann", NOON)) is not None:
        record_vote(store, "ann", shown.assignment_id, "a", seconds=1, now=NOON)
        votes += 1
    assert votes > 40
    assert progress(store, "test", NOON) == Progress(30, 30, 30, 0, 0, 1)


SAMPLING = SamplingSettings(max_new_tokens=8, temperature=1.0, batch_size=4)
PROMPTS = [
    {"prompt": "Why does the lamp hum?", "id": "p0", "category": "light"},
    {"prompt": [{"role": "user", "content": "Rinse the rice"}], "prompt_id": "p1"},
    {"prompt": "Count the gulls."},
]


def test_models_answer_prompts_for_a_campaign(store, tiny_llama):
    models = {"first": str(tiny_llama), "second": str(tiny_llama)}
    rows = prepare_answers(models, PROMPTS, SAMPLING, seed=3)
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in PROMPTS]
    assert [row.get("prompt_id") for row in rows] == ["p0", "p1", None]
    assert [row.get("category") for row in rows] == ["light", None, None]
    tokenizer, model = load_tokenizer(str(tiny_llama)), load_policy(ModelSettings(str(tiny_llama)))
    queries = [query_ids(tokenizer, row["prompt"]) for row in PROMPTS]
    for place, name in enumerate(models):
        expected = generate(
            model, queries, SAMPLING, eos_token_id=tokenizer.eos_token_id, seed=3 + place
        )
        assert [row["answers"][place] for row in rows] == [
            {
                "model": name,
                "text": decode(tokenizer, response.ids),
                "tokens": len(response.ids),
                "finished": response.finished,
            }
            for response in expected
        ]
    # The same model twice does not answer with the same random numbers.
    assert all(row["answers"][0]["text"] != row["answers"][1]["text"] for row in rows)
    assert create_campaign(store, "test", rows).items == 3


def test_three_models_share_every_round_of_prompts(tiny_llama):
    models = dict.fromkeys("xyz", str(tiny_llama))
    rows = prepare_answers(models, PROMPTS, SAMPLING)
    pairs = ["".join(answer["model"] for answer in row["answers"]) for row in rows]
    assert pairs == ["xy", "xz", "yz", "xz", "yz", "xy", "yz", "xy", "xz"]
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in PROMPTS] * 3


def test_a_ranking_takes_several_answers_of_each_model(tiny_llama):
    models = dict.fromkeys("xy", str(tiny_llama))
    rows = prepare_answers(models, PROMPTS[:2], SAMPLING, mode="ranking", samples=2)
    assert [[a["model"] for a in row["answers"]] for row in rows] == [["x", "x", "y", "y"]] * 2
    texts = [answer["text"] for row in rows for answer in row["answers"]]
    assert len(set(texts)) == 8


@pytest.mark.parametrize(
    ("models", "prompts", "extra", "message"),
    [
        ("x", PROMPTS, {}, "1 models with 1 answers each; an item of a pair campaign has 2 to 2"),
        ("xy", PROMPTS, {"samples": 2}, "an item of a pair campaign has 2 to 2"),
        ("xy", PROMPTS, {"mode": "ranking"}, "2 models with 1 answers each; .* has 4 to 9"),
        ("xy", PROMPTS, {"mode": "chat"}, "in chat mode models answer while"),
        ("xy", [*PROMPTS, {"text": "?"}], {}, "answers: prompt 4: missing key 'prompt'"),
        ("xy", [*PROMPTS, {"prompt": "word " * 600}], {}, "prompt 4: .* 512 positions of /"),
    ],
)
def test_what_models_cannot_answer_is_one_line(tiny_llama, models, prompts, extra, message):
    with pytest.raises(UserError, match=message):
        prepare_answers(dict.fromkeys(models, str(tiny_llama)), prompts, SAMPLING, **extra)
