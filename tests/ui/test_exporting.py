import json
import shutil
from collections import Counter
from datetime import datetime
from math import comb

import pytest
from sqlalchemy import select

from tests.ui.ballots import MIRROR, add_raters, make, question, vote
from tests.ui.samples import NOON, minutes, pair_rows, ranking_rows
from ui.assignment import next_assignment
from ui.campaigns import create_campaign, find_campaign
from ui.chats import Reply, save_turn
from ui.export_files import write_rows
from ui.exporting import LEFT_OUT, METHODS, Filters, card, pairs
from ui.schema import User
from ui.settings import CampaignSettings
from ui.store import Store
from ui.votes import record_vote
from workbench.data import group_key, load
from workbench.data.check import check
from workbench.errors import UserError


@pytest.fixture
def store(sqlite_template, tmp_path):
    """An empty store on SQLite; what differs between databases is `read_outcomes`' business."""
    shutil.copy(sqlite_template, tmp_path / "ratings.db")
    opened = Store(f"sqlite:///{tmp_path}/ratings.db")
    yield opened
    opened.close()


def test_a_pair_says_who_won_how_much_and_where_it_comes_from(store):
    rows = pair_rows(1)
    rows[0] |= {"prompt_id": "p-0", "category": "facts"}
    make(store, rows)
    vote(store, "ann", question("a_much"))
    vote(store, "bob", question("a"))
    vote(store, "cid", question("b"))
    found = pairs(store, "test", Filters())
    (row,) = found.rows
    at = row.pop("exported_at")
    assert datetime.fromisoformat(at).utcoffset().total_seconds() == 0
    with store.reading() as session:
        numbers = sorted(session.scalars(select(User.id)))
    assert row == {
        "prompt": "Question 0?",
        "chosen": "Right 0.",
        "rejected": "Wrong 0.",
        "margin": pytest.approx(4 / 3),
        "weight": 1.0,
        "votes": 3,
        "agreement": pytest.approx(2 / 3),
        "confidence": pytest.approx(2 / 3),
        "chosen_finished": True,
        "rejected_finished": False,
        "category": "facts",
        "prompt_id": "p-0",
        "campaign": "test",
        "item": 0,
        "chosen_model": "good",
        "rejected_model": "poor",
        "raters": numbers,
        "database": store.url,
        "split": "train",
    }
    assert found.votes == 3
    assert set(found.left_out.values()) == {0}


def test_the_second_model_can_win(store):
    make(store, pair_rows(2), raters=("ann",))
    vote(store, "ann", question("b_much", "a"))
    won = {
        row["prompt"]: (row["chosen_model"], row["margin"])
        for row in pairs(store, None, Filters()).rows
    }
    assert won == {"Question 0?": ("poor", 2.0), "Question 1?": ("good", 1.0)}


def test_what_teaches_nothing_is_left_out_and_counted(store):
    rows = pair_rows(6)
    rows[4]["answers"][1]["text"] = rows[4]["answers"][0]["text"]
    rows[5]["answers"][1]["text"] = " \n"
    make(store, rows, raters=("ann", "bob"))
    vote(store, "ann", question("tie", "both_bad", "a", "a", "a", "a"))
    vote(store, "bob", question("tie", "both_bad", "b", "skip", "a", "a"))
    found = pairs(store, "test", Filters())
    assert [row["prompt"] for row in found.rows] == ["Question 3?"]
    assert found.votes == 12
    assert {key: count for key, count in found.left_out.items() if count} == {
        "skips": 1, "ties": 2, "both_bad": 1, "identical": 1, "empty": 1,
    }  # fmt: skip


def test_every_vote_alone_shares_the_weight_of_its_comparison(store):
    make(store, pair_rows(2))
    vote(store, "ann", question("a_much", "tie"))
    vote(store, "bob", question("a", "both_bad"))
    vote(store, "cid", question("b", "a"))
    found = pairs(store, "test", Filters(consolidate="none"))
    told = [
        (row["prompt"], row["chosen"][:5], row["weight"], row["agreement"]) for row in found.rows
    ]
    third = pytest.approx(1 / 3)
    assert sorted(told, key=str) == [
        ("Question 0?", "Right", third, pytest.approx(2 / 3)),
        ("Question 0?", "Right", third, pytest.approx(2 / 3)),
        ("Question 0?", "Wrong", third, third),
        ("Question 1?", "Right", 1.0, third),
    ]
    assert (found.left_out["ties"], found.left_out["both_bad"]) == (1, 1)
    most = pairs(store, "test", Filters(consolidate="none", min_agreement=0.5))
    assert [row["chosen"] for row in most.rows] == ["Right 0.", "Right 0."]
    assert most.left_out["disagreement"] == 2


def test_too_few_raters_and_too_little_agreement(store):
    make(store, pair_rows(3))
    vote(store, "ann", question("a", "a", "a"))
    vote(store, "bob", question("a", "a", "skip"))
    vote(store, "cid", question("a", "b", "skip"))
    for filters, kept, left in (
        (Filters(min_raters=1), 3, {"skips": 2}),
        (Filters(min_raters=2), 2, {"skips": 2, "few_raters": 1}),
        (Filters(min_raters=3, min_agreement=0.7), 1,
         {"skips": 2, "few_raters": 1, "disagreement": 1}),
        (Filters(min_agreement=1), 2, {"skips": 2, "disagreement": 1}),
    ):  # fmt: skip
        found = pairs(store, "test", filters)
        assert len(found.rows) == kept
        assert {key: count for key, count in found.left_out.items() if count} == left


def test_failed_raters_are_left_out(store):
    make(store, pair_rows(20, gold=10))
    always = {f"Question {number}?": "a" for number in range(30)}
    vote(store, "ann", always)
    vote(store, "bob", always)
    vote(store, "cid", dict.fromkeys(always, "b"))
    found = pairs(store, "test", Filters())
    assert found.left_out["gold"] == 30
    assert {row["prompt"] for row in found.rows} == {f"Question {n}?" for n in range(20)}
    assert found.failed == ()
    assert {row["agreement"] for row in found.rows} == {2 / 3}
    for filters in (Filters(drop_failed=True), Filters(min_gold_accuracy=0.5)):
        left = pairs(store, "test", filters)
        assert left.failed == ("cid",)
        assert left.left_out["failed_raters"] == 30
        assert {row["agreement"] for row in left.rows} == {1.0}
        assert {row["votes"] for row in left.rows} == {2}
    assert pairs(store, "test", Filters(min_gold_accuracy=0)).failed == ()


def test_dawid_skene_finds_who_is_always_wrong(store):
    raters = ("ann", "bob", "cid", "dee", "eve")
    make(store, pair_rows(30), raters=raters)
    right = {f"Question {n}?": "a" if n % 2 else "b" for n in range(30)}
    wrong = {prompt: MIRROR[choice] for prompt, choice in right.items()}
    # Two who know, three who do not: one is always wrong, two say one thing whatever is shown.
    vote(store, "ann", right)
    vote(store, "bob", right)
    vote(store, "cid", wrong)
    vote(store, "dee", dict.fromkeys(right, "a"))
    vote(store, "eve", dict.fromkeys(right, "a"))

    def correct(method):
        rows = pairs(store, "test", Filters(consolidate=method)).rows
        return sum(
            (row["chosen_model"] == "good") == (int(row["prompt"][9:-1]) % 2 == 1) for row in rows
        )

    assert correct("majority") == 15
    assert correct("dawid-skene") == 30
    sure = pairs(store, "test", Filters(consolidate="dawid-skene")).rows
    assert all(row["confidence"] > 0.9 for row in sure)
    assert {row["agreement"] for row in sure} == {0.4, 0.8}


def test_a_ranking_becomes_all_its_pairs_of_one_weight(store):
    make(store, ranking_rows(1), raters=("ann",), mode="ranking")
    shown = next_assignment(store, "test", "ann", NOON)
    worth = {"Answer 0.": 1, "Answer 1.": 2, "Answer 2.": 2, "Answer 3.": 3}
    ranks = [worth[text] for text in shown.answers]
    record_vote(store, "ann", shown.assignment_id, ranks=ranks, seconds=9, now=NOON)
    found = pairs(store, "test", Filters())
    won = {(row["chosen_model"][-1], row["rejected_model"][-1]) for row in found.rows}
    assert won == {("0", "1"), ("0", "2"), ("0", "3"), ("1", "3"), ("2", "3")}
    assert {row["weight"] for row in found.rows} == {1 / comb(4, 2)}
    assert {row["margin"] for row in found.rows} == {1.0}
    assert (found.left_out["ties"], found.votes) == (1, 1)
    assert found.rows[0]["prompt"] == [{"role": "user", "content": "Question 0?"}]
    (message,) = found.rows[0]["chosen"]
    assert message["role"] == "assistant"
    assert message["content"].startswith("Answer ")


def test_all_campaigns_make_one_table_of_one_form(store):
    make(store, pair_rows(1), raters=("ann",), name="first")
    create_campaign(store, "second", ranking_rows(1), CampaignSettings(mode="ranking", seed=1))
    vote(store, "ann", question("a"), name="first")
    shown = next_assignment(store, "second", "ann", NOON)
    record_vote(store, "ann", shown.assignment_id, ranks=[1, 2, 3, 4], seconds=9, now=NOON)
    found = pairs(store, None, Filters())
    assert Counter(row["campaign"] for row in found.rows) == {"first": 1, "second": 6}
    assert all(isinstance(row[key], list) for row in found.rows for key in ("prompt", "chosen"))
    assert isinstance(pairs(store, "first", Filters()).rows[0]["prompt"], str)


def test_a_chat_of_one_turn_is_a_pair_and_a_longer_one_is_not(store):
    add_raters(store, "ann")
    models = {"base": "here", "aligned": "there"}
    create_campaign(store, "talk", [], CampaignSettings(mode="chat", seed=1), models=models)
    with store.reading() as session:
        campaign = find_campaign(session, "talk")
    for turns in (1, 2):
        chat = None
        for turn in range(turns):
            replies = (Reply(f"Yes {turn}.", 2, True), Reply(f"No {turn}.", 2, False))
            chat = save_turn(
                store, campaign, "ann", chat, f"Of {turns}?", ("base", "aligned"), replies, NOON
            )
        record_vote(store, "ann", chat.assignment_id, "b", seconds=5, now=NOON)
    found = pairs(store, "talk", Filters())
    (row,) = found.rows
    assert (row["prompt"], row["chosen"], row["chosen_model"]) == ("Of 1?", "No 0.", "aligned")
    assert row["chosen_finished"] is False
    assert found.left_out["multi_turn"] == 1


def test_prompts_are_split_by_themselves_and_stay_where_they_are(store):
    rows = pair_rows(40)
    for row in rows[20:]:  # the same prompts again, written a little differently
        row["prompt"] = rows[rows.index(row) - 20]["prompt"].replace(" ", "  ")
    make(store, rows, raters=("ann",))
    always = {f"Question{space}{n}?": "a" for n in range(20) for space in (" ", "  ")}
    vote(store, "ann", always)
    found = pairs(store, "test", Filters(test_fraction=0.3)).rows
    assert len(found) == 40
    splits = {}
    for row in found:
        splits.setdefault(group_key(row), set()).add(row["split"])
    assert set(map(len, splits.values())) == {1}
    held = {key for key, split in splits.items() if split == {"test"}}
    assert 2 <= len(held) <= 10
    # A larger share holds the same prompts out, and more.
    more = pairs(store, "test", Filters(test_fraction=0.6)).rows
    assert held < {group_key(row) for row in more if row["split"] == "test"}


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_neither_split_is_empty(store, fraction):
    make(store, pair_rows(2), raters=("ann",))
    vote(store, "ann", question("a", "a"))
    found = pairs(store, "test", Filters(test_fraction=fraction)).rows
    assert {row["split"] for row in found} == {"train", "test"}


def test_one_prompt_cannot_be_divided(store):
    make(store, pair_rows(1), raters=("ann",))
    vote(store, "ann", question("a"))
    with pytest.raises(UserError, match=r"^--test-fraction 0.5: one prompt cannot be divided"):
        pairs(store, "test", Filters(test_fraction=0.5))


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (Filters(min_raters=0), "--min-raters 0: must be at least 1"),
        (Filters(min_agreement=1.1), "--min-agreement 1.1: must be from 0 to 1"),
        (Filters(min_gold_accuracy=-1), "--min-gold-accuracy -1.0: must be from 0 to 1"),
        (Filters(test_fraction=1), "--test-fraction 1.0: must be from 0 to below 1"),
        (Filters(test_fraction=-0.1), "--test-fraction -0.1: must be from 0 to below 1"),
    ],
)
def test_impossible_filters(store, filters, message):
    with pytest.raises(UserError, match=f"^{message}"):
        pairs(store, None, filters)


def test_nothing_to_export_says_why(store):
    with pytest.raises(UserError, match=r"ratings.db: no pair from 0 votes; collect more votes"):
        pairs(store, None, Filters())
    make(store, pair_rows(1), raters=("ann", "bob"))
    vote(store, "ann", question("tie"))
    vote(store, "bob", question("skip"))
    with pytest.raises(UserError, match=r"no pair from 2 votes \(1 skips, 1 without a winner\); c"):
        pairs(store, "test", Filters())
    with pytest.raises(UserError, match="there is no such campaign"):
        pairs(store, "nowhere", Filters())


def test_re_shows_are_not_counted_twice(store):
    make(store, pair_rows(3), raters=("ann",))
    vote(store, "ann", question("a", "a", "b"), again=["Question 1?"])
    found = pairs(store, "test", Filters())
    assert (found.left_out["repeats"], found.votes, len(found.rows)) == (1, 4, 3)
    assert {row["votes"] for row in found.rows} == {1}


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv", "datasets"])
@pytest.mark.parametrize("mode", ["pair", "ranking"])
def test_training_takes_an_export_as_it_is(store, form, mode, tmp_path):
    from reward.data import tokenize

    made = ranking_rows(3) if mode == "ranking" else pair_rows(3)
    make(store, made, raters=("ann",), mode=mode)
    for number in range(3):
        shown = next_assignment(store, "test", "ann", minutes(number))
        said = {"ranks": [1, 2, 3, 4]} if mode == "ranking" else {"choice": "a_much"}
        record_vote(store, "ann", shown.assignment_id, seconds=9, now=minutes(number), **said)
    found = pairs(store, "test", Filters(test_fraction=0.3))
    out = tmp_path / (f"pairs.{form}" if form != "datasets" else "pairs")
    write_rows(found.rows, out, form, card(found, Filters()))
    held = {json.dumps(row["prompt"]) for row in found.rows if row["split"] == "test"}
    for split in ("train", "test"):
        loaded = load(str(out), ("preference", "ranking"), split=split)
        assert loaded.kind == "preference"
        assert all((json.dumps(row["prompt"]) in held) == (split == "test") for row in loaded.rows)
        compared = tokenize(loaded.rows, Letters(), 1024, str(out), drop_long_rows=False)
        assert compared.pairs == sum(row["split"] == split for row in found.rows)
        weight = 1 / 6 if mode == "ranking" else 1.0
        margin = 1.0 if mode == "ranking" else 2.0
        assert {w for row in compared.rows for w in row.weight} == {weight}
        assert {m for row in compared.rows for m in row.margin} == {margin}
    report = check(str(out))
    assert sum(part.rows for part in report.parts) == len(found.rows)
    assert [part.identical_pairs for part in report.parts] == [0, 0]
    assert [overlap.exact for overlap in report.overlaps] == [0]
    assert report.skipped == ()


class Letters:
    """A tokenizer of one token per letter, with turns written out."""

    chat_template = "yes"
    eos_token_id = 0

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in messages) + "<answer>"

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(letter) for letter in text]}


def test_the_card_tells_counts_filters_and_agreement(store):
    rows = pair_rows(4)
    for row in rows:
        row["answers"][0]["model"] = "go|od"
    make(store, rows)
    vote(store, "ann", question("a", "a", "tie", "b"))
    vote(store, "bob", question("a", "a", "tie", "b"))
    vote(store, "cid", question("a", "a", "tie", "b"))
    filters = Filters(min_raters=2, test_fraction=0.3)
    text = card(pairs(store, "test", filters), filters)
    assert text.startswith("---\npretty_name: ")
    assert "3 pairs from 12 votes" in text
    assert "- 1 without a winner\n" in text
    assert "| test | go\\|od, poor | 3 | 4 | 1.00 (" in text
    assert "- `min_raters`: 2\n" in text
    assert store.url in text
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {4, 8}
    held = sum("| test | " in line and line.count("|") == 4 for line in table)
    assert held == 1


def test_every_reason_has_words_and_every_method_works(store):
    make(store, pair_rows(1), raters=("ann",))
    vote(store, "ann", question("a"))
    for method in METHODS:
        found = pairs(store, "test", Filters(consolidate=method))
        assert len(found.rows) == 1
        assert found.left_out.keys() == LEFT_OUT.keys()


def test_both_databases_give_the_same(shared_store):
    make(shared_store, pair_rows(3), raters=("ann", "bob"))
    vote(shared_store, "ann", question("a", "b_much", "a"))
    vote(shared_store, "bob", question("a", "b", "b"))
    found = pairs(shared_store, "test", Filters())
    told = [(row["chosen"], row["margin"], row["raters"]) for row in found.rows]
    assert told == [("Right 0.", 1.0, [1, 2]), ("Wrong 1.", 1.5, [1, 2])]
    assert found.left_out["ties"] == 1
