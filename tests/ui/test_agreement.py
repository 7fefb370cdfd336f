"""Agreement against published and hand-computed examples; raters with known faults are found."""

import time
import warnings

import krippendorff
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.inter_rater import fleiss_kappa

from tests.ui.samples import ranking_rows
from tests.ui.test_outcomes import made, right, vote_all
from ui.accounts import add_user
from ui.agreement import BLOCKS, agreement, blocks, interval, rater_quality
from ui.campaigns import create_campaign
from ui.leaderboard import bradley_terry, controlled_win_rates, cost, votes_needed, win_rates
from ui.outcomes import read_outcomes
from ui.settings import CampaignSettings
from workbench.statistics import binomial_interval


def table_of(data):
    """Outcomes of a table of values, raters by items, with NaN for a missing vote."""
    data = np.asarray(data, dtype=float)
    rater, item = np.nonzero(~np.isnan(data))
    return made(data[rater, item].astype(int), prompt=item, rater=rater)


# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section D: values 1 to 5.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, np.nan, np.nan, np.nan],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, np.nan, 3],
    [np.nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, np.nan],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, np.nan],
]


def test_krippendorffs_own_example():
    found = agreement(table_of(np.array(PUBLISHED) - 3))
    assert found.krippendorff_alpha.value == pytest.approx(0.815, abs=5e-4)
    assert found.duels == found.krippendorff_alpha.n == 11  # the last item has one vote
    assert found.votes == 40


def test_fleiss_kappa_by_hand():
    """Items 3-0-0, 0-3-0, 1-1-1 and 2-1-0: agreement 7/12, by chance 62/144, so κ is 11/41."""
    data = np.array([[1, 2, 1], [0, 0, 0], [1, 0, -1], [2, 1, 0]]).T
    found = agreement(table_of(data))
    assert found.percent.value == pytest.approx(7 / 12)
    assert found.fleiss_kappa.value == pytest.approx(11 / 41)


@given(st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=2, max_size=12))
def test_fleiss_kappa_is_that_of_statsmodels(rows):
    winners = np.sign(np.array(rows))
    counts = np.stack([(winners == side).sum(axis=1) for side in (-1, 0, 1)], axis=1)
    found = agreement(table_of(np.array(rows).T), resamples=5)
    if (counts.sum(axis=0) > 0).sum() == 1:
        assert found.fleiss_kappa is None
        assert found.percent.value == 1
    else:
        assert found.fleiss_kappa.value == pytest.approx(fleiss_kappa(counts), abs=1e-9)


@given(
    st.lists(
        st.lists(st.one_of(st.none(), st.integers(-2, 2)), min_size=4, max_size=4),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_alpha_is_that_of_krippendorff(rows):
    data = np.array([[np.nan if value is None else value for value in row] for row in rows]).T
    data = data[:, (~np.isnan(data)).sum(axis=0) >= 2]
    if not data.size:
        return
    found = agreement(table_of(data), resamples=5)
    values = np.unique(data[~np.isnan(data)])
    if len(values) == 1:
        assert found.krippendorff_alpha is None
        return
    expected = krippendorff.alpha(
        data, value_domain=[-2, -1, 0, 1, 2], level_of_measurement="ordinal"
    )
    assert found.krippendorff_alpha.value == pytest.approx(expected, abs=1e-9)


def test_both_bad_agrees_with_a_tie_on_the_winner():
    outcomes = made([0, 0, 1, 1], prompt=[0, 0, 1, 1], rater=[0, 1, 0, 1],
                    choice=["both_bad", "tie", "a", "a"], first_left=True)  # fmt: skip
    assert agreement(outcomes).percent.value == 1


@pytest.mark.parametrize("values", [[], [1], [1, -1, 0]])
def test_nobody_to_agree_with(values):
    found = agreement(made(values))
    assert (found.duels, found.votes) == (0, 0)
    assert found.percent is found.fleiss_kappa is found.krippendorff_alpha is None


@pytest.mark.parametrize("value", [0, 2])
def test_everybody_always_says_the_same(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(table_of(np.full((3, 6), value)))
    assert found.percent.value == 1
    assert 0.5 < found.percent.ci95.low < 1 == found.percent.ci95.high
    assert found.fleiss_kappa is found.krippendorff_alpha is None


def test_perfect_agreement_on_few_items_is_not_certain():
    few, many = (agreement(table_of(np.tile([1, -1, 2, -1], (3, n)))) for n in (1, 25))
    for found in (few, many):
        assert found.fleiss_kappa.value == found.krippendorff_alpha.value == pytest.approx(1)
        assert found.fleiss_kappa.ci95.high == pytest.approx(1)
    assert few.fleiss_kappa.ci95.low < 0.7
    assert 0.9 < many.fleiss_kappa.ci95.low < 1
    assert 0.9 < many.krippendorff_alpha.ci95.low < 1


def test_one_item():
    found = agreement(table_of([[1], [-1]]))
    assert found.percent.value == 0
    assert found.percent.ci95.low == 0 < found.percent.ci95.high


def test_what_is_not_counted():
    outcomes = made([1, 1, -1, -1, 1, -1], prompt=[0, 0, 0, 1, 1, 1], rater=[0, 1, 2, 0, 1, 2],
                    choice=["a", "a", "skip", "b", "a", "b"], first_left=True,
                    best=[0, 0, 0, 1, 1, 1])  # fmt: skip
    assert agreement(outcomes).percent.value == 1


def test_intervals_cover():
    """Forty items and three raters who know the answer with chance 0.7 and guess otherwise."""
    share = np.array([0.2, 0.25, 0.1, 0.3, 0.15])
    rng = np.random.default_rng(0)

    def drawn(items):
        truth = rng.choice(5, items, p=share)
        return np.where(
            rng.random((3, items)) < 0.7, truth, rng.choice(5, (3, items), p=share)
        ) - 2  # fmt: skip

    truth = agreement(table_of(drawn(20_000)), resamples=2)
    covered = np.zeros(3)
    for seed in range(200):
        found = agreement(table_of(drawn(40)), resamples=200, seed=seed)
        for place, name in enumerate(("percent", "fleiss_kappa", "krippendorff_alpha")):
            ends, value = getattr(found, name).ci95, getattr(truth, name).value
            covered[place] += ends.low <= value <= ends.high
    assert (covered >= 0.90 * 200).all(), covered


def test_the_seed_decides():
    outcomes = table_of(np.array(PUBLISHED) - 3)
    assert agreement(outcomes, seed=1) == agreement(outcomes, seed=1)
    assert agreement(outcomes, seed=1) != agreement(outcomes, seed=2)


# Resampling


@given(st.lists(st.integers(0, 30), max_size=40))
def test_few_units_are_their_own_blocks(units):
    found = blocks(np.array(units, dtype=np.int64), seed=0)
    assert found.tolist() == [sorted(set(units)).index(unit) for unit in units]


def test_many_units_are_put_together_evenly():
    units = np.repeat(np.arange(3 * BLOCKS + 5), 2)
    found = blocks(units, seed=0)
    assert (found[::2] == found[1::2]).all()
    sizes = np.bincount(found)
    assert len(sizes) == BLOCKS
    assert set(sizes.tolist()) == {6, 8}
    assert (found != blocks(units, seed=1)).any()


def test_the_interval_is_that_of_a_mean():
    """For many units it is the normal one, and for few ones wider than the percentiles."""
    rng = np.random.default_rng(0)
    data = rng.normal(size=400)
    weights = rng.standard_exponential((4000, 400))
    found = interval(weights @ data / weights.sum(axis=1), data.mean(), 400)
    half = 1.96 * data.std(ddof=1) / 20
    ends = found.low - data.mean(), found.high - data.mean()
    assert ends == pytest.approx((-half, half), rel=0.1)
    narrow, wide = (interval(weights[:, 0], 1.0, units) for units in (400, 3))
    assert wide.low < narrow.low < narrow.high < wide.high


# Raters


def one_rater(outcomes, name="r0"):
    return {rater.rater: rater for rater in rater_quality(outcomes)}[name]


def test_no_raters():
    assert rater_quality(made([], raters=())) == []


def test_one_vote_and_nothing_known():
    rater = one_rater(made([0]))
    assert (rater.votes, rater.skips, rater.both_bad, rater.median_seconds) == (1, 0, 0, 10.0)
    assert rater.gold is rater.left is rater.position_p is rater.consistency is None
    assert rater.with_others is None
    assert rater.problems == ()


def test_who_only_skips():
    rater = one_rater(made([0, 0], choice="skip"))
    assert (rater.votes, rater.skips, rater.median_seconds, rater.problems) == (0, 2, None, ())


def test_counts_and_times():
    outcomes = made([1, 0, 0, -1, 1], rater=[0, 0, 0, 0, 1], seconds=[4, 6, 100, 8, 7],
                    choice=["a", "both_bad", "skip", "b", "a"], first_left=True)  # fmt: skip
    rater = one_rater(outcomes)
    assert (rater.votes, rater.skips, rater.both_bad, rater.median_seconds) == (3, 1, 1, 6)


def test_gold_questions():
    """A tie is wrong, a skip is no answer; nine of ten are right."""
    value = [1] * 8 + [-1, 0, 0]
    best = [1] * 8 + [-1, 1, 1]
    choice = ["a"] * 8 + ["b", "tie", "skip"]
    outcomes = made(value, best=best, choice=choice, first_left=True)
    rater = one_rater(outcomes)
    assert (rater.gold.value, rater.gold.n) == (0.9, 10)
    assert rater.gold.ci95 == binomial_interval(9, 10)


def test_who_fails_gold_questions():
    outcomes = made([1] * 30 + [-1] * 30, best=1, rater=np.repeat([0, 1], 30), prompt=np.arange(60))
    assert one_rater(outcomes, "r0").problems == ()
    assert one_rater(outcomes, "r1").problems == ("fails gold questions",)
    # Two misses prove nothing yet.
    assert one_rater(made([-1, -1], best=1)).problems == ()
    assert rater_quality(outcomes, least_gold=0.0)[1].problems == ()


def test_too_fast():
    seconds = np.repeat([12.0, 10.0, 9.0, 2.9], 5)
    outcomes = made([0] * 20, rater=np.repeat(np.arange(4), 5), seconds=seconds)
    assert [rater.problems for rater in rater_quality(outcomes)] == [(), (), (), ("too fast",)]
    assert rater_quality(outcomes, too_fast=0.2)[3].problems == ()
    assert one_rater(made([0], seconds=0.9)).problems == ("too fast",)


def test_position_bias():
    rng = np.random.default_rng(0)
    left = rng.random(240) < 0.5
    fair = np.where(rng.random(80) < 0.5, 1, -1)
    value = np.concatenate([fair, np.where(left[80:160], 1, -2), np.where(left[160:], -1, 1)])
    outcomes = made(value, rater=np.repeat([0, 1, 2], 80), first_left=left)
    ann, bob, cid = rater_quality(outcomes)
    assert ann.problems == ()
    picked = int(((fair > 0) == left[:80]).sum())
    assert ann.left.value == picked / 80
    assert ann.position_p == pytest.approx(min(1, 3 * stats.binomtest(picked, 80).pvalue))
    assert (bob.left.value, cid.left.value) == (1, 0)
    assert bob.left.ci95 == binomial_interval(80, 80)
    assert bob.problems == ("favours the left",)
    assert cid.problems == ("favours the right",)


def test_ties_take_no_side():
    assert one_rater(made([0, 0, 1], first_left=True)).left.n == 1


def test_consistency_on_re_shows():
    """Four pairs shown twice: the same, the same more strongly, a tie now, and the other now."""
    outcomes = made([1, -1, 1, 1, 1, -2, 0, -1, 1], prompt=[0, 1, 2, 3, 0, 1, 2, 3, 4],
                    repeat=[False] * 4 + [True] * 4 + [False])  # fmt: skip
    rater = one_rater(outcomes)
    assert (rater.consistency.value, rater.consistency.n) == (0.5, 4)
    assert rater.consistency.ci95 == binomial_interval(2, 4)
    assert rater.votes == 9
    assert rater.left.n == 5


def test_a_skipped_re_show_tells_nothing():
    outcomes = made([1, 0], prompt=[0, 0], repeat=[False, True], choice=["a", "skip"],
                    first_left=[True, False])  # fmt: skip
    assert one_rater(outcomes).consistency is None


def test_agreement_with_others():
    data = np.array([[1, 1, -1, 0], [1, 2, -1, 1], [-1, 1, np.nan, 0]])
    found = rater_quality(table_of(data))
    # r0: 1 of 2, 2 of 2, 1 of 1, 1 of 2.
    assert [rater.with_others for rater in found] == pytest.approx([5 / 7, 4 / 7, 3 / 6])


def test_raters_of_rankings(store):
    """One ranks as is right, one the other way round; gold, re-shows and sides come out so."""
    rows = ranking_rows(16)
    for row in rows[12:]:
        row["gold_best"] = "model 0"
    settings = CampaignSettings(
        mode="ranking", raters_per_item=2, gold_share=0.2, swap_share=0.4, seed=5
    )
    create_campaign(store, "ranks", rows, settings)
    for name in ("ann", "bob"):
        add_user(store, name, "correct horse")
    rank = {f"Answer {place}.": place + 1 for place in range(4)}
    vote_all(store, "ranks", "ann", lambda s: {"ranks": [rank[text] for text in s.answers]})
    vote_all(store, "ranks", "bob", lambda s: {"ranks": [5 - rank[text] for text in s.answers]})
    outcomes = read_outcomes(store, "ranks")
    ann, bob = rater_quality(outcomes)
    assert (ann.gold.value, bob.gold.value) == (1, 0)
    assert 1 <= ann.gold.n <= 4
    assert ann.consistency.value == bob.consistency.value == 1
    repeats = outcomes.verdicts.where(outcomes.verdicts.repeat).heads()
    assert ann.consistency.n == (repeats.rater == 0).sum() > 0
    assert ann.votes == 12 + ann.gold.n + ann.consistency.n
    assert ann.left.n == 12 + ann.gold.n
    assert ann.with_others == 0
    found = agreement(outcomes)
    assert (found.duels, found.votes, found.percent.value) == (72, 144, 0)
    assert found.percent.n == 12


def test_gold_of_pairs_as_the_store_has_it(store):
    from tests.ui.samples import campaign

    name = campaign(
        store, items=20, gold=6, raters=("ann", "bob"), raters_per_item=2, gold_share=0.3
    )
    vote_all(store, name, "ann", right("a"))
    vote_all(store, name, "bob", right("b_much"))
    ann, bob = rater_quality(read_outcomes(store, name))
    assert (ann.gold.value, bob.gold.value) == (1, 0)


# Size


def million():
    """Three models, 333,334 prompts, three of 200 raters on each."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(333_334), 3)
    n = len(prompt)
    pair = prompt % 3
    return made(
        rng.choice([-2, -1, 0, 1, 2], n, p=[0.15, 0.3, 0.15, 0.25, 0.15]),
        first=np.array([0, 0, 1])[pair],
        second=np.array([1, 2, 2])[pair],
        prompt=prompt,
        rater=(prompt * 7 + np.arange(n) % 3 * 13) % 200,
        first_left=rng.random(n) < 0.5,
        lengths=(prompt * 31 % 97, prompt * 17 % 89),
        seconds=rng.gamma(4, 5, n),
        best=(prompt % 50 == 0) * 1,
        models=("base", "sft", "aligned"),
        wanted=n,
    )


def test_a_million_votes_take_less_than_three_seconds():
    import choix  # noqa: F401 - their loading is not part of it
    import sklearn.linear_model  # noqa: F401

    outcomes = million()
    began = time.process_time()
    rates = win_rates(outcomes)
    strengths = bradley_terry(outcomes).strengths
    controlled = controlled_win_rates(outcomes)
    found, raters = agreement(outcomes), rater_quality(outcomes)
    plans = [votes_needed(rate) for rate in rates]
    spent = cost(outcomes)
    assert time.process_time() - began < 3
    assert (len(rates), len(strengths), len(controlled), len(plans)) == (3, 3, 3, 3)
    assert sum(rate.votes for rate in rates) == len(outcomes.counted) == found.votes
    assert sum(rater.votes for rater in raters) == spent.labels == 1_000_002


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.sampled_from(["a", "b", "tie", "skip"]),
                  st.booleans(), st.sampled_from([0, 1])),
        max_size=12, unique_by=lambda row: (row[0], row[1], row[3]),
    )
)  # fmt: skip
def test_any_votes_give_sound_numbers(rows):
    value = [{"a": 1, "b": -1}.get(choice, 0) for _, _, choice, _, _ in rows]
    columns = [np.array(column) for column in zip(*rows, strict=True)] or [np.array([])] * 5
    best = dict(zip(columns[1].tolist(), columns[4].tolist(), strict=True))
    outcomes = made(
        value, rater=columns[0].astype(int), prompt=columns[1].astype(int),
        choice=columns[2] if rows else None, repeat=columns[3].astype(bool), first_left=True,
        best=np.array([best[prompt] for prompt in columns[1].tolist()], dtype=int),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, raters = agreement(outcomes, resamples=10), rater_quality(outcomes)
    assert sum(rater.votes + rater.skips for rater in raters) == len(rows)
    estimates = [found.percent, found.fleiss_kappa, found.krippendorff_alpha]
    estimates += [e for r in raters for e in (r.gold, r.left, r.consistency)]
    for estimate in estimates:
        if estimate is not None:
            assert estimate.ci95.low <= estimate.value <= estimate.ci95.high <= 1
