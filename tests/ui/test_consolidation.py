"""Consolidation with known truth: raters who spam, who turn things round, who always say tie."""

import numpy as np
import pytest

from tests.ui.samples import ranking_rows
from tests.ui.test_outcomes import made, vote_all
from ui.accounts import add_user
from ui.campaigns import create_campaign
from ui.consolidation import METHODS, WINNERS, consolidate
from ui.outcomes import read_outcomes
from ui.settings import CampaignSettings

GOOD, SPAM, TURNED = 0.9, 0.0, -0.9


def simulated(skills, items, votes, seed, gold=0):
    """Votes of raters with known skill on items with known winners.

    Args:
        skills: chance of each rater to say the true winner; below 0 to say the other one; they
            guess otherwise.
        items: how many.
        votes: on each item, by different raters.
        seed: of all that is random.
        gold: how many of the items are gold questions.
    """
    rng = np.random.default_rng(seed)
    truth = rng.choice([1, 0, -1], items, p=[0.45, 0.1, 0.45])
    truth[:gold] = 1
    rater = np.concatenate(
        [rng.permutation(len(skills))[:votes] for _ in range(items)] or [np.array([], dtype=int)]
    )
    item = np.repeat(np.arange(items), votes)
    skill = np.array(skills)[rater]
    knows = rng.random(len(item)) < np.abs(skill)
    value = np.where(knows, np.sign(skill) * truth[item], rng.choice([1, 0, -1], len(item)))
    return truth, made(value, prompt=item, rater=rater, best=np.where(item < gold, 1, 0),
                       raters=[f"r{i}" for i in range(len(skills))])  # fmt: skip


def accuracy(found, truth):
    return (found.winner == truth[found.duel]).mean()


@pytest.mark.parametrize(
    ("skills", "votes"),
    [
        ([GOOD] * 3 + [SPAM] * 4, 5),
        ([GOOD] * 5 + [TURNED] * 2, 5),
        ([GOOD] * 2 + [SPAM] * 2 + [TURNED], 5),
    ],
)
def test_dawid_skene_beats_majority_when_raters_are_bad(skills, votes):
    better = []
    for seed in range(3):
        truth, outcomes = simulated(skills, 150, votes, seed)
        by = {method: accuracy(consolidate(outcomes, method), truth) for method in METHODS}
        better.append(by["dawid-skene"] - by["majority"])
        assert by["dawid-skene"] > 0.8
    assert min(better) > 0
    assert np.mean(better) > 0.04


def test_both_are_good_when_raters_are():
    truth, outcomes = simulated([GOOD] * 6, 150, 3, 0)
    for method in METHODS:
        assert accuracy(consolidate(outcomes, method), truth) > 0.93


def test_the_confusion_of_each_rater_is_found():
    _, outcomes = simulated([0.95, 0.95, 0.95, SPAM, TURNED], 400, 5, 1)
    found = consolidate(outcomes).confusion
    assert set(found) == {"r0", "r1", "r2", "r3", "r4"}
    for matrix in found.values():
        assert matrix.shape == (3, 3)
        assert matrix.sum(axis=1) == pytest.approx([1, 1, 1])
    assert found["r0"].diagonal() == pytest.approx([0.967] * 3, abs=0.06)
    assert found["r3"] == pytest.approx(np.full((3, 3), 1 / 3), abs=0.12)
    turned = np.fliplr(found["r4"]).diagonal()
    assert turned == pytest.approx([0.93] * 3, abs=0.08)


def test_gold_questions_settle_whom_to_believe():
    """Two who are right against two who turn everything round: votes alone cannot tell."""
    skills = [GOOD] * 2 + [TURNED] * 2
    truth, outcomes = simulated(skills, 120, 4, 3, gold=20)
    found = consolidate(outcomes)
    assert accuracy(found, truth) > 0.9
    assert found.duel.tolist() == list(range(20, 120))
    # Without it, whichever side: there is nothing to choose by.
    assert accuracy(consolidate(outcomes, "majority"), truth) < 0.5


def test_confidence_is_the_chance_to_be_right():
    confidence, right = [], []
    for seed in range(4):
        truth, outcomes = simulated([GOOD] * 15 + [SPAM] * 10, 150, 3, seed)
        found = consolidate(outcomes)
        confidence.append(found.confidence)
        right.append(found.winner == truth[found.duel])
    confidence, right = np.concatenate(confidence), np.concatenate(right)
    assert confidence.mean() == pytest.approx(right.mean(), abs=0.06)
    sure = confidence > 0.95
    assert right[sure].mean() > 0.95
    assert right[~sure].mean() < right[sure].mean() - 0.1


# Counting


def test_majority_by_hand():
    value = [2, 1, -1, 1, -1, 0, 0, 1, -2]
    prompt = [0, 0, 0, 1, 1, 2, 2, 2, 3]
    choice = ["a_much", "a", "b", "a", "b", "both_bad", "tie", "a", "b_much"]
    found = consolidate(made(value, prompt=prompt, choice=choice, first_left=True), "majority")
    assert found.method == "majority"
    assert found.duel.tolist() == [0, 1, 2, 3]
    assert found.winner.tolist() == [1, 0, 0, -1]
    assert found.confidence.tolist() == pytest.approx([2 / 3, 1 / 2, 2 / 3, 1])
    assert found.votes.tolist() == [3, 2, 3, 1]
    assert found.both_bad.tolist() == [0, 0, 1, 0]
    assert found.value.tolist() == pytest.approx([2 / 3, 0, 1 / 3, -2])
    assert found.confusion == {}


@pytest.mark.parametrize("method", METHODS)
def test_no_votes(method):
    found = consolidate(made([]), method)
    assert len(found.duel) == len(found.winner) == len(found.confidence) == 0
    assert found.confusion == {}
    assert len(found.table(made([]))) == 0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("value", "winner"), [(2, 1), (-1, -1), (0, 0)])
def test_one_vote(method, value, winner):
    found = consolidate(made([value]), method)
    assert found.winner.tolist() == [winner]
    assert found.confidence[0] == 1 if method == "majority" else 0.4 < found.confidence[0] < 0.8


@pytest.mark.parametrize("method", METHODS)
def test_ties_only(method):
    found = consolidate(made([0] * 12, prompt=np.arange(12) // 3, rater=np.arange(12) % 3), method)
    assert found.winner.tolist() == [0] * 4
    assert (found.confidence > 0.8).all()


@pytest.mark.parametrize("method", METHODS)
def test_one_model_wins_every_vote(method):
    found = consolidate(made([-1] * 30, prompt=np.arange(30) // 3, rater=np.arange(30) % 3), method)
    assert found.winner.tolist() == [-1] * 10
    assert (found.confidence > 0.9).all()


@pytest.mark.parametrize("method", METHODS)
def test_skips_re_shows_and_gold_questions_are_no_votes(method):
    outcomes = made([1, 0, -1, 1, 1], prompt=[0, 0, 0, 1, 2], rater=[0, 1, 0, 0, 1],
                    choice=["a", "skip", "b", "a", "skip"], first_left=True,
                    repeat=[False, False, True, False, False], best=[0, 0, 0, 1, 0])  # fmt: skip
    found = consolidate(outcomes, method)
    assert found.duel.tolist() == [0]
    assert found.votes.tolist() == [1]
    assert found.winner.tolist() == [1]


def test_a_rater_of_gold_questions_only_is_known_too():
    found = consolidate(made([1, 1, 1], rater=[0, 1, 1], prompt=[0, 1, 2], best=[1, 1, 0]))
    assert found.duel.tolist() == [2]
    assert set(found.confusion) == {"r0", "r1"}


@pytest.mark.parametrize("method", METHODS)
def test_the_table_names_the_winner(method):
    outcomes = made([1, 1, -2, -1, 0], prompt=[0, 0, 1, 1, 2], rater=[0, 1, 0, 1, 0])
    table = consolidate(outcomes, method).table(outcomes)
    assert table["winner"].tolist() == ["base", "aligned", "tie"]
    assert table["first"].tolist() == ["base"] * 3
    assert table["second"].tolist() == ["aligned"] * 3
    assert table["votes"].tolist() == [2, 2, 1]
    assert table["value"].tolist() == [1, -1.5, 0]
    assert table["prompt_id"].tolist() == ["0", "1", "2"]


def test_rankings_are_consolidated_pair_by_pair(store):
    create_campaign(
        store, "ranks", ranking_rows(5), CampaignSettings(mode="ranking", raters_per_item=3)
    )
    rank = {f"Answer {place}.": place + 1 for place in range(4)}
    for name in ("ann", "bob", "cid"):
        add_user(store, name, "correct horse")
        turned = name == "cid"
        vote_all(
            store, "ranks", name,
            lambda s, turned=turned: {
                "ranks": [5 - rank[t] if turned else rank[t] for t in s.answers]
            },
        )  # fmt: skip
    outcomes = read_outcomes(store, "ranks")
    for method in METHODS:
        found = consolidate(outcomes, method)
        assert found.winner.tolist() == [1] * 30
        assert found.votes.tolist() == [3] * 30
        assert found.value == pytest.approx(np.full(30, 1 / 3))
    assert np.fliplr(consolidate(outcomes).confusion["cid"])[0, 0] > 0.9


def test_nothing_is_printed_on_the_way(recwarn, capfd):
    consolidate(simulated([GOOD] * 3, 10, 3, 0)[1])
    assert [str(warning.message) for warning in recwarn] == []
    assert capfd.readouterr() == ("", "")


def test_the_order_of_winners_is_as_documented():
    assert WINNERS == (1, 0, -1)
