"""Votes read back as numbers, on both databases."""

import numpy as np
import pytest
from sqlalchemy import select

from tests.ui.samples import NOON, campaign, fill, minutes, pair_rows, ranking_rows
from ui.accounts import add_user
from ui.assignment import next_assignment
from ui.campaigns import create_campaign
from ui.outcomes import CHOICES, Duels, Outcomes, Verdicts, read_outcomes
from ui.schema import User
from ui.settings import CampaignSettings
from ui.votes import record_vote, undo_last
from workbench.errors import UserError

MIRROR = {"a_much": "b_much", "a": "b", "b": "a", "b_much": "a_much"}


def made(
    value,
    *,
    first=0,
    second=1,
    prompt=None,
    rater=0,
    first_left=None,
    choice=None,
    repeat=False,
    seconds=10.0,
    lengths=(10, 10),
    best=0,
    models=("base", "aligned"),
    raters=None,
    wanted=0,
):
    """Return outcomes of one vote per value, positive for the first model, as a store gives them.

    Every other argument is one for all votes or one for each; by default each vote is on a prompt
    of its own. Votes on the same prompt and models are on the same duel.
    """
    value = np.asarray(value, dtype=np.int64)
    n = len(value)
    spread = (first, second, np.arange(n) if prompt is None else prompt, *lengths, best)
    first, second, prompt, one, other, best = (np.broadcast_to(x, n) for x in spread)
    key = (prompt * len(models) + first) * len(models) + second
    _, head, duel = np.unique(key, return_index=True, return_inverse=True)
    rater = np.broadcast_to(rater, n)
    left = np.arange(n) % 2 == 0 if first_left is None else first_left
    left = np.broadcast_to(left, n)
    if choice is None:
        choice = np.array([4, 3, 2, 1, 0])[np.where(left, value, -value) + 2]  # b_much … a_much
    else:
        choice = np.array([CHOICES.index(c) for c in np.broadcast_to(choice, n)], dtype=np.int64)
    return Outcomes(
        campaign="made",
        mode="pair",
        models=tuple(models),
        raters=tuple(raters or (f"r{i}" for i in range(int(rater.max(initial=-1)) + 1))),
        items=np.arange(len(head)),
        prompts=tuple(map(str, range(int(prompt.max(initial=-1)) + 1))),
        categories=("",),
        length_unit="tokens",
        duels=Duels(
            item=np.arange(len(head)),
            prompt=prompt[head],
            category=np.zeros(len(head), dtype=np.int64),
            first=first[head],
            second=second[head],
            first_length=one[head].astype(float),
            second_length=other[head].astype(float),
            best=best[head],
            gold=best[head] != 0,
        ),
        verdicts=Verdicts(
            vote=np.arange(n),
            rater=rater,
            duel=duel,
            choice=choice,
            value=value,
            first_left=left,
            repeat=np.broadcast_to(repeat, n),
            seconds=np.broadcast_to(seconds, n).astype(float),
        ),
        wanted=wanted,
        price_per_label=0.012,
        extra=0.0,
        curve=(),
    )


def vote_all(store, name, rater, decide, start=0):
    """Let a rater vote on everything that is shown; `decide` maps a text to its worth."""
    number = start
    while (shown := next_assignment(store, name, rater, minutes(number))) is not None:
        said = decide(shown)
        record_vote(
            store, rater, shown.assignment_id, seconds=2.5 + number, now=minutes(number), **said
        )
        number += 1
    return number


def right(choice):
    """Prefer the answer that begins with `Right`, so strongly; `choice` is as if it stood left."""

    def decide(shown):
        turned = not shown.answers[0].startswith("Right")
        return {"choice": MIRROR.get(choice, choice) if turned else choice}

    return decide


def test_no_votes_are_an_empty_table(shared_store):
    create_campaign(shared_store, "empty", pair_rows(3, gold=1), CampaignSettings(gold_share=0.2))
    outcomes = read_outcomes(shared_store, "empty")
    assert len(outcomes.verdicts) == len(outcomes.counted) == 0
    assert (outcomes.raters, outcomes.curve) == ((), ())
    assert outcomes.models == ("good", "poor")
    assert len(outcomes.items) == len(outcomes.duels.item) == 4
    assert outcomes.wanted == 9


def test_an_unknown_campaign_is_one_line(shared_store):
    with pytest.raises(UserError, match="no such campaign"):
        read_outcomes(shared_store, "nowhere")


def test_a_live_campaign_without_items_is_empty(shared_store):
    models = {"base": "here", "aligned": "there"}
    create_campaign(shared_store, "live", [], CampaignSettings(mode="chat"), models=models)
    outcomes = read_outcomes(shared_store, "live")
    assert outcomes.models == ("base", "aligned")
    assert (len(outcomes.items), outcomes.wanted, len(outcomes.counted)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("choice", "value"),
    [("a_much", 2), ("a", 1), ("tie", 0), ("both_bad", 0), ("b", -1), ("b_much", -2)],
)
def test_a_vote_counts_for_the_model_and_not_for_the_side(store, choice, value):
    name = campaign(store, items=8, raters=("ann",), raters_per_item=1)
    vote_all(store, name, "ann", right(choice))
    outcomes = read_outcomes(store, name)
    votes = outcomes.verdicts
    assert outcomes.models[0] == "good"
    assert votes.value.tolist() == [value] * 8
    assert set(votes.first_left.tolist()) == {True, False}
    assert votes.both_bad.all() == (choice == "both_bad")
    assert not votes.skipped.any()
    # As shown: with the good answer on the right, the choice is the mirrored one.
    mirrored = CHOICES.index(MIRROR.get(choice, choice))
    expected = np.where(votes.first_left, CHOICES.index(choice), mirrored)
    assert votes.choice.tolist() == expected.tolist()


def test_everything_else_of_a_vote(store):
    rows = pair_rows(2)
    rows[0] |= {"prompt_id": "p0", "category": "poetry"}
    rows[1]["answers"].reverse()
    add_user(store, "ann", "correct horse")
    settings = CampaignSettings(raters_per_item=1, price_per_label=0.5, gold_share=0, seed=1)
    create_campaign(store, "one", rows, settings)
    vote_all(store, "one", "ann", right("a"))
    outcomes = read_outcomes(store, "one")
    duels, votes = outcomes.duels, outcomes.verdicts
    assert (outcomes.campaign, outcomes.mode, outcomes.raters) == ("one", "pair", ("ann",))
    assert outcomes.prompts[duels.prompt[0]] == "p0"
    assert [outcomes.categories[place] for place in duels.category] == ["poetry", ""]
    assert outcomes.only("poetry").verdicts.duel.tolist() == [0]
    # The first answer is the first model's, in whatever order the row gave them.
    assert duels.first.tolist() == [0, 0]
    assert duels.second.tolist() == [1, 1]
    assert outcomes.length_unit == "tokens"
    assert duels.first_length.tolist() == [3, 3]
    assert duels.second_length.tolist() == [4, 4]
    assert sorted(votes.duel.tolist()) == [0, 1]
    assert votes.seconds.tolist() == [2.5, 3.5]
    assert (outcomes.wanted, outcomes.price_per_label, outcomes.extra) == (2, 0.5, 0)
    assert outcomes.curve == ((NOON, 1), (minutes(1), 2))


def test_characters_where_a_token_count_is_missing(store):
    rows = pair_rows(2)
    del rows[1]["answers"][0]["tokens"]
    create_campaign(store, "mixed", rows)
    outcomes = read_outcomes(store, "mixed")
    assert outcomes.length_unit == "characters"
    assert outcomes.duels.first_length.tolist() == [8, 8]  # Right 0.


def test_a_skip_is_no_vote(store):
    name = campaign(store, items=3, raters=("ann",), raters_per_item=1)
    vote_all(store, name, "ann", lambda shown: {"choice": "skip"})
    outcomes = read_outcomes(store, name)
    assert outcomes.verdicts.skipped.all()
    assert len(outcomes.verdicts) == 3
    assert len(outcomes.counted) == 0
    assert outcomes.curve == ()


def test_an_undone_vote_is_gone(store):
    name = campaign(store, items=1, raters=("ann",), raters_per_item=1)
    vote_all(store, name, "ann", right("a"))
    undo_last(store, "ann", name, minutes(5))
    assert len(read_outcomes(store, name).verdicts) == 0
    vote_all(store, name, "ann", right("b"), start=6)
    assert read_outcomes(store, name).verdicts.value.tolist() == [-1]


def test_gold_and_re_shows_are_known_and_not_counted(store):
    name = campaign(
        store, items=30, gold=4, raters=("ann",), raters_per_item=1, gold_share=0.2, swap_share=0.3
    )
    vote_all(store, name, "ann", right("a"))
    outcomes = read_outcomes(store, name)
    votes, duels = outcomes.verdicts, outcomes.duels
    gold = duels.gold[votes.duel]
    assert gold.sum() > 0
    assert duels.best[votes.duel[gold]].tolist() == [1] * gold.sum()
    assert duels.best[~duels.gold].tolist() == [0] * 30
    assert votes.repeat.sum() > 0
    assert len(outcomes.counted) == 30 == len(votes) - gold.sum() - votes.repeat.sum()
    # The re-show has the other side left, and means the same.
    for place in np.flatnonzero(votes.repeat):
        (before,) = np.flatnonzero((votes.duel == votes.duel[place]) & ~votes.repeat)
        assert votes.first_left[before] != votes.first_left[place]
        assert votes.value[before] == votes.value[place] == 1
    assert outcomes.wanted == 30
    assert outcomes.extra == pytest.approx(0.5)


def test_a_ranking_is_all_its_pairs(store):
    rows = ranking_rows(6, answers=5)
    for row in rows:
        row["answers"] = row["answers"][::-1]
    rows[5] |= {"gold_best": "model 2"}
    add_user(store, "ann", "correct horse")
    settings = CampaignSettings(mode="ranking", raters_per_item=1, gold_share=0.3, seed=3)
    create_campaign(store, "ranks", rows, settings)
    rank = {"Answer 0.": 2, "Answer 1.": 1, "Answer 2.": 2, "Answer 3.": 4, "Answer 4.": 3}
    vote_all(
        store, "ranks", "ann", lambda s: {"choice": None, "ranks": [rank[t] for t in s.answers]}
    )
    outcomes = read_outcomes(store, "ranks")
    votes, duels = outcomes.verdicts, outcomes.duels
    assert len(votes.heads()) == 6
    assert len(votes) == 60
    # The campaign names its models as the rows came: model 4 first.
    assert outcomes.models == tuple(f"model {i}" for i in (4, 3, 2, 1, 0))
    worth = [-rank[f"Answer {i}."] for i in (4, 3, 2, 1, 0)]
    first, second = duels.first[votes.duel], duels.second[votes.duel]
    expected = np.sign(np.array(worth)[first] - np.array(worth)[second])
    assert votes.value.tolist() == expected.tolist()
    assert (votes.choice == CHOICES.index("ranked")).all()
    assert set(votes.first_left.tolist()) == {True, False}
    gold = duels.gold[votes.duel]
    assert gold.sum() == 10
    best = np.where(first == 2, 1, 0) - np.where(second == 2, 1, 0)
    assert duels.best[votes.duel[gold]].tolist() == best[gold].tolist()
    assert len(outcomes.curve) == 6


def test_a_skipped_ranking_is_one_skip(store):
    add_user(store, "ann", "correct horse")
    settings = CampaignSettings(mode="ranking", raters_per_item=1)
    create_campaign(store, "ranks", ranking_rows(2), settings)
    vote_all(store, "ranks", "ann", lambda shown: {"choice": "skip"})
    outcomes = read_outcomes(store, "ranks")
    assert outcomes.verdicts.skipped.tolist() == [True, True]


def test_campaigns_do_not_mix(store):
    one = campaign(store, "one", items=2, raters=("ann", "bob"), raters_per_item=2)
    rows = pair_rows(3)
    for row in rows:
        row["answers"][0]["model"] = "other"
    create_campaign(store, "two", rows, CampaignSettings(raters_per_item=2, seed=1))
    for number in range(2):  # items of a third between those of the second campaign
        create_campaign(store, f"late {number}", pair_rows(1))
    vote_all(store, one, "ann", right("a"))
    vote_all(store, "two", "ann", right("b"))
    vote_all(store, "two", "bob", right("tie"))
    first, second = read_outcomes(store, one), read_outcomes(store, "two")
    assert first.models == ("good", "poor")
    assert second.models == ("other", "poor")
    assert (first.raters, second.raters) == (("ann",), ("ann", "bob"))
    assert first.verdicts.value.tolist() == [1, 1]
    assert sorted(second.verdicts.value.tolist()) == [-1, -1, -1, 0, 0, 0]
    assert len(first.items) == 2
    assert second.without(["bob"]).verdicts.value.tolist() == [-1, -1, -1]
    assert second.without([]).verdicts.value.tolist() == second.verdicts.value.tolist()


def test_items_of_another_campaign_in_between_are_left_out(store):
    """As live campaigns have them: their items are made one by one, between those of others."""
    from ui.schema import Answer, Campaign, Item

    for name in ("here", "there"):
        models = {"base": "x", "aligned" if name == "here" else "else": "y"}
        create_campaign(store, name, [], CampaignSettings(mode="chat"), models=models)
    with store.session() as session:
        ids = dict(session.execute(Campaign.__table__.select().with_only_columns(
            Campaign.name, Campaign.id)).all())  # fmt: skip
        for position in range(3):
            for name in ("here", "there"):
                item = Item(
                    campaign_id=ids[name], position=position, prompt_id="p", prompt="Hello?"
                )
                session.add(item)
                session.flush()
                other = "aligned" if name == "here" else "else"
                for model in (other, "base"):
                    session.add(Answer(item_id=item.id, model=model, text="x" * (position + 1)))
    outcomes = read_outcomes(store, "here")
    assert outcomes.models == ("base", "aligned")
    assert outcomes.duels.first.tolist() == [0, 0, 0]
    assert outcomes.duels.second_length.tolist() == [1, 2, 3]


def test_every_vote_of_many_finds_its_own_item(store):
    campaign(store, raters=())
    fill(store, "test", items=300, raters=5)
    found = read_outcomes(store, "test")
    given, duels = found.verdicts, found.duels
    with store.reading() as session:
        number = dict(session.execute(select(User.name, User.id)).all())
    item = found.items[duels.item[given.duel]]
    rater = np.array([number[name] for name in found.raters])[given.rater]
    assert len(given) == len(set(zip(item.tolist(), rater.tolist(), strict=True))) == 1500
    # As `fill` votes; the first model's answer stands left.
    assert (given.value == np.array([1, -1, 0])[(item + rater) % 3]).all()
    assert given.first_left.all()


def test_a_long_curve_is_exact_at_the_points_it_keeps(store, monkeypatch):
    monkeypatch.setattr("ui.outcomes._POINTS", 4)
    name = campaign(store, items=10, raters=("ann",), raters_per_item=1)
    vote_all(store, name, "ann", right("a"))
    curve = read_outcomes(store, name).curve
    assert curve == tuple((minutes(count - 1), count) for count in (1, 4, 7, 10))
