"""Win rates, strengths, plans and costs against closed forms, published numbers and known truth."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from tests.ui.test_outcomes import made
from ui.leaderboard import (
    ALPHA,
    bradley_terry,
    controlled_win_rates,
    cost,
    sign_test_size,
    votes_needed,
    win_rates,
)
from workbench.statistics import Interval, binomial_interval

THREE = ("base", "sft", "aligned")


def wins_of(wins, ties, losses):
    """Votes for the second model, `aligned`, each on a prompt of its own."""
    return made([-1] * wins + [0] * ties + [1] * losses)


def one_pair(outcomes):
    (rate,) = win_rates(outcomes)
    return rate


# Win rates


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_the_interval_is_clopper_pearson_for_one_vote_a_prompt(wins, losses):
    if not wins + losses:
        return
    rate = one_pair(wins_of(wins, 0, losses))
    exact = stats.binomtest(max(wins, losses), wins + losses).proportion_ci(method="exact")
    assert rate.effective == rate.votes == rate.prompts == wins + losses
    assert rate.model == ("aligned" if wins > losses else "base")
    assert (rate.ci95.low, rate.ci95.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert rate.p_sign == pytest.approx(stats.binomtest(wins, wins + losses).pvalue, abs=1e-9)


def test_a_published_interval():
    """7 of 10: 34.75 % to 93.33 %, as in every table of exact limits."""
    rate = one_pair(wins_of(7, 0, 3))
    assert (rate.ci95.low, rate.ci95.high) == pytest.approx((0.3475, 0.9333), abs=1e-4)


def test_complete_separation():
    rate = one_pair(wins_of(20, 0, 0))
    assert (rate.model, rate.opponent, rate.win_rate) == ("aligned", "base", 1.0)
    assert rate.ci95.low == pytest.approx(0.025 ** (1 / 20))
    assert rate.ci95.high == 1.0
    assert rate.told_apart


def test_one_vote():
    rate = one_pair(wins_of(1, 0, 0))
    assert (rate.win_rate, rate.votes, rate.effective) == (1.0, 1, 1)
    assert (rate.ci95.low, rate.ci95.high) == pytest.approx((0.025, 1.0))
    assert rate.p_sign == 1.0
    assert not rate.told_apart


def test_no_votes():
    assert win_rates(made([])) == []
    assert controlled_win_rates(made([])) == []
    result = bradley_terry(made([]))
    assert result.strengths == ()
    assert result.connected
    assert not result.separated


def test_ties_only():
    rate = one_pair(wins_of(0, 8, 0))
    assert (rate.model, rate.wins, rate.ties, rate.losses) == ("base", 0, 8, 0)
    assert (rate.win_rate, rate.p_sign) == (0.5, 1.0)
    assert rate.ci95 == binomial_interval(4, 8)
    result = bradley_terry(wins_of(0, 8, 0))
    assert [s.strength for s in result.strengths] == pytest.approx([0, 0], abs=1e-9)
    assert all(s.ci95.low < 0 < s.ci95.high for s in result.strengths)
    assert not result.separated
    (controlled,) = controlled_win_rates(wins_of(0, 8, 0))
    assert controlled.win_rate.value == pytest.approx(0.5)


def test_both_bad_is_a_tie_and_known_apart():
    rate = one_pair(made([-1, 0, 0, 0], choice=["b", "both_bad", "tie", "both_bad"]))
    assert (rate.wins, rate.ties, rate.both_bad, rate.win_rate) == (1, 3, 2, 0.625)


def test_what_is_no_comparison_of_models_does_not_count():
    counted = made([-1, 1, 1, 1, 1], choice=["b", "skip", "a", "a", "a"], first_left=True,
                   repeat=[False, False, True, False, False], best=[0, 0, 0, 1, 0],
                   second=[1, 1, 1, 1, 0])  # fmt: skip
    rate = one_pair(counted)  # a vote, a skip, a re-show, a gold question, a model against itself
    assert (rate.model, rate.votes) == ("aligned", 1)
    assert [s.votes for s in bradley_terry(counted).strengths] == [1, 1]


def test_votes_on_one_prompt_that_always_agree_are_one_vote():
    each = np.repeat([-1, -1, -1, -1, -1, -1, -1, 1, 1, 1], 30)
    rate = one_pair(made(each, prompt=np.repeat(np.arange(10), 30)))
    assert (rate.votes, rate.prompts, rate.win_rate) == (300, 10, 0.7)
    # Not quite ten: the variance between them is itself estimated, from nine degrees of freedom.
    assert 6 <= rate.effective <= 10
    assert rate.ci95.low <= binomial_interval(7, 10).low
    assert rate.p_sign == pytest.approx(stats.binomtest(7, 10).pvalue)


def test_votes_that_all_agree_count_by_prompts():
    rate = one_pair(made([-1] * 60, prompt=np.repeat(np.arange(20), 3)))
    assert rate.effective == 20
    assert rate.ci95 == binomial_interval(20, 20)
    assert one_pair(made([-1] * 60, prompt=0)).effective == 1


def test_the_interval_covers_where_one_of_independent_votes_does_not():
    """Twenty prompts with ten votes each, which differ from prompt to prompt."""
    rng = np.random.default_rng(5)
    covered = naive = 0
    for _ in range(150):
        chance = rng.beta(0.7 * 2, 0.3 * 2, size=20)
        won = rng.random((20, 10)) < chance[:, None]
        rate = one_pair(made(np.where(won, -1, 1).ravel(), prompt=np.repeat(np.arange(20), 10)))
        truth = 0.7 if rate.model == "aligned" else 0.3
        covered += rate.ci95.low <= truth <= rate.ci95.high
        plain = binomial_interval(won.sum(), 200)
        naive += plain.low <= 0.7 <= plain.high
    assert covered >= 0.91 * 150
    assert naive <= 0.75 * 150


def test_every_two_of_three_models():
    outcomes = made(
        [1, 1, -1, -1, -1, 0], first=[0, 0, 0, 0, 1, 1], second=[1, 1, 2, 2, 2, 2], models=THREE
    )
    found = [(r.model, r.opponent, r.wins, r.ties, r.losses) for r in win_rates(outcomes)]
    assert found == [
        ("base", "sft", 2, 0, 0), ("aligned", "base", 2, 0, 0), ("aligned", "sft", 1, 1, 0),
    ]  # fmt: skip


# Bradley-Terry


@pytest.mark.parametrize(("wins", "losses"), [(1, 0), (20, 0), (30, 20), (7, 3)])
def test_two_models_have_the_log_odds_and_jeffreys_interval(wins, losses):
    result = bradley_terry(wins_of(wins, 0, losses), resamples=4000)
    best, other = result.strengths
    assert best.model == "aligned"
    odds = math.log((wins + 0.5) / (losses + 0.5))
    assert best.strength == pytest.approx(odds / 2, abs=1e-4)
    assert other.strength == pytest.approx(-odds / 2, abs=1e-4)
    assert best.win_rate == pytest.approx(special.expit(odds), abs=1e-4)
    assert (result.connected, result.separated) == (True, losses == 0)
    n = wins + losses
    reach = 1.96 * math.sqrt((n + 1) / max(n - 1, 1))
    jeffreys = stats.beta(wins + 0.5, losses + 0.5).ppf(stats.norm.cdf([-reach, reach]))
    ends = best.win_rate_ci95.low, best.win_rate_ci95.high
    assert ends == pytest.approx(tuple(jeffreys), abs=0.03)


def test_three_models_by_hand():
    """Each beats the next 3:1 and the last but one 9:1: log odds ln 3 apart, were there no prior.

    400 times as many votes leave nothing of the prior.
    """
    value = np.repeat([1, -1, 1, -1, 1, -1], [1200, 400, 1200, 400, 1440, 160])
    first = np.repeat([0, 0, 1, 1, 0, 0], [1200, 400, 1200, 400, 1440, 160])
    second = np.repeat([1, 1, 2, 2, 2, 2], [1200, 400, 1200, 400, 1440, 160])
    outcomes = made(value, first=first, second=second, models=THREE)
    result = bradley_terry(outcomes, resamples=200)
    assert [s.model for s in result.strengths] == list(THREE)
    found = [s.strength for s in result.strengths]
    assert found == pytest.approx([math.log(3), 0, -math.log(3)], abs=5e-3)
    assert result.strengths[0].win_rate == pytest.approx((0.75 + 0.9) / 2, abs=2e-3)
    assert [s.votes for s in result.strengths] == [3200, 3200, 3200]


def test_strengths_are_choix_own():
    import choix

    rng = np.random.default_rng(3)
    value = rng.choice([-2, -1, 0, 1, 2], 90)
    first, second = np.array([0, 0, 1])[np.arange(90) % 3], np.array([1, 2, 2])[np.arange(90) % 3]
    tally = np.full((3, 3), 0.5) - 0.5 * np.eye(3)
    for v, one, other in zip(value, first, second, strict=True):
        tally[one, other] += (np.sign(v) + 1) / 2
        tally[other, one] += (1 - np.sign(v)) / 2
    expected = choix.ilsr_pairwise_dense(tally, alpha=ALPHA)
    outcomes = made(value, first=first, second=second, models=THREE)
    found = {s.model: s.strength for s in bradley_terry(outcomes, resamples=10).strengths}
    assert [found[name] for name in THREE] == pytest.approx((expected - expected.mean()).tolist())


def test_one_model_wins_every_time_among_three():
    """The case in which other libraries give zeros or infinities."""
    first = np.repeat([0, 0, 1], 20)
    second = np.repeat([1, 2, 2], 20)
    value = np.concatenate([[1, -1] * 10, [-1] * 40])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = bradley_terry(made(value, first=first, second=second, models=THREE))
    best, *others = result.strengths
    assert best.model == "aligned"
    assert result.separated
    assert [s.strength for s in others] == pytest.approx([others[0].strength] * 2, abs=1e-3)
    assert best.strength - others[0].strength == pytest.approx(math.log(20.5 / 0.5), abs=1e-3)
    for strength in result.strengths:
        numbers = [strength.ci95.low, strength.strength, strength.ci95.high]
        assert np.isfinite(numbers).all()
        assert numbers == sorted(numbers)
        assert strength.ci95.high - strength.ci95.low > 0.5
    assert 0.85 < best.win_rate_ci95.low < 0.98
    assert best.ci95.low > max(s.ci95.high for s in others)


def test_models_that_never_met():
    outcomes = made(
        [1, 1, -1, 1, 1, 1], first=[0, 0, 0, 2, 2, 2], second=[1, 1, 1, 3, 3, 3],
        models=("a", "b", "c", "d", "never seen"),
    )  # fmt: skip
    result = bradley_terry(outcomes, resamples=50)
    assert not result.connected
    strengths = {s.model: s.strength for s in result.strengths}
    assert set(strengths) == {"a", "b", "c", "d"}
    assert strengths["a"] + strengths["b"] == pytest.approx(0, abs=1e-9)
    assert strengths["c"] == pytest.approx(math.log(3.5 / 0.5) / 2, abs=1e-3)


def test_the_seed_decides():
    outcomes = wins_of(12, 3, 5)
    first, again = (bradley_terry(outcomes, resamples=100, seed=3) for _ in range(2))
    assert first == again
    assert bradley_terry(outcomes, resamples=100, seed=4) != first


def test_many_prompts_are_put_together_and_none_is_left_out(monkeypatch):
    rng = np.random.default_rng(0)
    value = np.where(rng.random(3000) < 0.7, -1, 1)
    outcomes = made(value, prompt=np.repeat(np.arange(1000), 3))
    whole = bradley_terry(outcomes, resamples=2000).strengths[0]
    monkeypatch.setattr("ui.agreement.BLOCKS", 300)
    grouped = bradley_terry(outcomes, resamples=2000).strengths[0]
    assert grouped.strength == whole.strength
    widths = [s.ci95.high - s.ci95.low for s in (grouped, whole)]
    assert widths[0] == pytest.approx(widths[1], rel=0.2)


def test_bradley_terry_intervals_cover():
    """Thirty prompts, three votes on each pair of three models, which depend on the prompt."""
    rng = np.random.default_rng(2)
    theta = np.array([-0.5, 0.0, 0.5])
    first, second = np.array([0, 0, 1]), np.array([1, 2, 2])
    chance = special.expit(theta[first] - theta[second])
    covered = []
    for seed in range(40):
        drawn = rng.beta(3 * chance, 3 * (1 - chance), (30, 3))
        won = rng.random((30, 3, 3)) < drawn[:, :, None]
        prompt, pair, _ = (index.ravel() for index in np.indices(won.shape))
        value = np.where(won, 1, -1).ravel()
        outcomes = made(value, first=first[pair], second=second[pair], prompt=prompt, models=THREE)
        for strength in bradley_terry(outcomes, resamples=100, seed=seed).strengths:
            truth = theta[THREE.index(strength.model)]
            covered.append(strength.ci95.low <= truth <= strength.ci95.high)
    assert np.mean(covered) >= 0.88


# Controlled


def test_longer_answers_that_win_by_their_length_alone():
    """The second model writes longer answers, and raters prefer the longer one, whoever wrote it.

    Its plain win rate is far above one half, the controlled one is not.
    """
    rng = np.random.default_rng(0)
    n = 600
    one, other = rng.integers(20, 60, n), rng.integers(40, 100, n)
    x = np.tanh((other - one) / (other - one).std())
    value = np.where(rng.random(n) < special.expit(1.5 * x), -1, 1)
    outcomes = made(value, lengths=(one, other))
    assert one_pair(outcomes).ci95.low > 0.6
    (controlled,) = controlled_win_rates(outcomes)
    assert controlled.model == "aligned"
    assert controlled.win_rate.ci95.low < 0.5 < controlled.win_rate.ci95.high
    assert controlled.length_effect.ci95.low < 1.5 < controlled.length_effect.ci95.high
    assert controlled.length_effect.ci95.low > 0
    assert controlled.side_effect.ci95.low < 0 < controlled.side_effect.ci95.high


def test_a_model_that_stood_left_more_often():
    rng = np.random.default_rng(4)
    left = rng.random(900) < 0.8
    value = np.where(rng.random(900) < special.expit(np.where(left, 0.5, -0.5)), 1, -1)
    outcomes = made(value, first_left=left)
    assert one_pair(outcomes).ci95.low > 0.5
    (controlled,) = controlled_win_rates(outcomes)
    assert controlled.win_rate.ci95.low < 0.5
    assert controlled.side_effect.ci95.low < 1 < controlled.side_effect.ci95.high
    assert controlled.side_effect.ci95.low > 0


def test_the_regression_is_that_of_statsmodels():
    import statsmodels.api as sm

    rng = np.random.default_rng(8)
    n = 4000
    one, other = rng.integers(10, 90, n), rng.integers(10, 90, n)
    left = rng.random(n) < 0.5
    x = np.tanh((one - other) / (one - other).std())
    value = np.where(rng.random(n) < special.expit(0.4 + 0.8 * x + 0.3 * (left - 0.5)), 1, -1)
    value[::7] = 0
    design = sm.add_constant(np.stack([x, left - 0.5], axis=1))
    model = sm.GLM((value + 1) / 2, design, family=sm.families.Binomial()).fit()
    (controlled,) = controlled_win_rates(made(value, lengths=(one, other), first_left=left))
    assert controlled.model == "base"
    found = [
        special.logit(controlled.win_rate.value),
        controlled.length_effect.value,
        controlled.side_effect.value,
    ]
    assert found == pytest.approx(model.params.tolist(), abs=2e-3)
    ends = controlled.length_effect.ci95.low, controlled.length_effect.ci95.high
    # A little wider, as ties are taken for halves of a coin's toss.
    assert ends == pytest.approx(tuple(model.conf_int()[1]), abs=0.01)


@pytest.mark.parametrize("votes", [1, 20])
@pytest.mark.parametrize("lengths", [(10, 10), (10, 14)])
def test_separation_by_model_and_length(votes, lengths):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (controlled,) = controlled_win_rates(made([-1] * votes, lengths=lengths))
    assert controlled.model == "aligned"
    rate = controlled.win_rate
    assert 0 <= rate.ci95.low < rate.value < rate.ci95.high <= 1
    assert rate.value > 0.6
    assert (rate.ci95.low > 0.5) == (votes == 20 and lengths == (10, 10))


def test_length_decides_every_vote():
    one, other = np.tile([10, 30], 20), np.tile([30, 10], 20)
    left = np.arange(40) // 2 % 2 == 0
    outcomes = made(np.where(one > other, 1, -1), lengths=(one, other), first_left=left)
    (controlled,) = controlled_win_rates(outcomes)
    assert controlled.win_rate.value == pytest.approx(0.5, abs=1e-6)
    assert controlled.length_effect.ci95.low > 1


# Plans


@pytest.mark.parametrize(
    ("rate", "votes"),
    [(0.6, 193.85), (0.4, 193.85), (0.75, 28.92), (1.0, 6), (0.5, math.inf)],
)
def test_the_size_of_a_sign_test(rate, votes):
    """194 and 29 are the sizes that textbooks give for 60 % and 75 % against one half."""
    assert sign_test_size(rate) == pytest.approx(votes, abs=0.01)


@pytest.mark.parametrize("rate", [0.6, 0.7])
def test_a_test_of_that_size_has_its_power(rate):
    n = math.ceil(sign_test_size(rate))
    wins = np.arange(n + 1)
    found = 2 * np.minimum(stats.binom.cdf(wins, n, 0.5), stats.binom.sf(wins - 1, n, 0.5)) < 0.05
    assert stats.binom.pmf(wins, n, rate)[found].sum() == pytest.approx(0.8, abs=0.06)


def test_more_votes_are_needed():
    rate = one_pair(wins_of(33, 0, 21))
    needed = votes_needed(rate)
    assert not rate.told_apart
    assert needed.total == math.ceil(sign_test_size(33.5 / 55))
    assert needed.more == needed.total - 54 > 0


def test_ties_and_votes_on_the_same_prompts_cost_more():
    plain = votes_needed(one_pair(wins_of(33, 0, 21))).total
    half_ties = votes_needed(one_pair(wins_of(33, 54, 21))).total
    assert half_ties == pytest.approx(2 * plain, rel=0.02)
    value = np.repeat([-1] * 33 + [1] * 21, 3)
    shared = one_pair(made(value, prompt=np.repeat(np.arange(54), 3)))
    assert votes_needed(shared).total == pytest.approx(3 * plain, rel=0.15)


def test_enough_votes_already():
    needed = votes_needed(one_pair(wins_of(20, 0, 0)))
    assert (needed.total, needed.more, needed.why) == (20, 0, "aligned is better already")


@pytest.mark.parametrize("votes", [1, 5])
def test_few_votes_promise_little(votes):
    """A win or five in a row do not mean that the sixth proves it."""
    needed = votes_needed(one_pair(wins_of(votes, 0, 0)))
    assert needed.total == max(math.ceil(sign_test_size((votes + 0.5) / (votes + 1))), votes + 1)
    assert needed.more > 0


def test_equals_are_said_to_be_equal():
    for rate in (one_pair(wins_of(50, 0, 50)), one_pair(wins_of(5005, 0, 4995))):
        needed = votes_needed(rate)
        assert (needed.total, needed.more) == (None, None)
        assert "more than 100,000 votes" in needed.why
    assert votes_needed(one_pair(wins_of(5050, 0, 4950)), most=10**6).total is not None


def test_nothing_but_ties():
    needed = votes_needed(one_pair(wins_of(0, 9, 0)))
    assert (needed.total, needed.more, needed.why) == (None, None, "every vote so far is a tie")


# Costs


def test_costs():
    outcomes = made([-1, 1, 0, 1], choice=["b", "a", "skip", "a"], first_left=True, wanted=12)
    found = cost(outcomes)
    assert (found.labels, found.labels_to_finish) == (3, 9)
    assert (found.spent, found.to_finish) == pytest.approx((0.036, 0.108))
    dearer = cost(outcomes, price=1.0)
    assert (dearer.spent, dearer.to_finish) == (3.0, 9.0)


def test_gold_and_re_shows_cost_as_well():
    import dataclasses

    outcomes = made([1, 1, 1], repeat=[False, True, False], best=[0, 0, 1], wanted=10)
    found = cost(dataclasses.replace(outcomes, extra=0.25))
    assert (found.labels, found.labels_to_finish) == (3, 12)


def test_a_finished_campaign_costs_no_more():
    found = cost(made([1, 1, 1], wanted=2))
    assert (found.labels_to_finish, found.to_finish) == (0, 0)
    nothing = cost(made([]))
    assert (nothing.labels, nothing.spent, nothing.labels_to_finish) == (0, 0, 0)


# All at once


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([(0, 1), (0, 2), (1, 2), (0, 0)]),
                          st.integers(-2, 2), st.integers(0, 4)), max_size=12))  # fmt: skip
def test_any_votes_give_sound_numbers(rows):
    pairs = np.array([pair for pair, _, _ in rows], dtype=np.int64).reshape(-1, 2)
    outcomes = made(
        np.array([value for _, value, _ in rows], dtype=np.int64),
        first=pairs[:, 0], second=pairs[:, 1],
        prompt=np.array([prompt for _, _, prompt in rows], dtype=np.int64), models=THREE,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rates, table = win_rates(outcomes), bradley_terry(outcomes, resamples=20)
        controlled = controlled_win_rates(outcomes)
    assert len(rates) == len(controlled)
    for rate, by in zip(rates, controlled, strict=True):
        assert (rate.model, rate.opponent) == (by.model, by.opponent)
        assert 0 <= rate.ci95.low <= rate.win_rate <= rate.ci95.high <= 1
        assert 1 <= rate.effective <= rate.votes
        assert rate.win_rate >= 0.5
        assert isinstance(votes_needed(rate).why, str)
        for estimate in (by.win_rate, by.length_effect, by.side_effect):
            assert isinstance(estimate.ci95, Interval)
            assert estimate.ci95.low <= estimate.value <= estimate.ci95.high
    for strength in table.strengths:
        assert strength.ci95.low <= strength.strength <= strength.ci95.high
        assert math.isfinite(strength.ci95.low)
        assert math.isfinite(strength.ci95.high)
