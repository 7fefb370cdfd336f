import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from prompts.significance import (
    detectable,
    difference_interval,
    holm,
    mcnemar,
    mcnemar_power,
    sign_flip,
    sign_flip_power,
)

small = st.lists(st.integers(-6, 6), min_size=1, max_size=9)


@pytest.mark.parametrize(
    ("fell", "rose", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 2**5),
        (6, 0, 2 / 2**6),
        (0, 10, 2 / 2**10),
        (3, 3, 1.0),
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (9, 3, 2 * (1 + 12 + 66 + 220) / 2**12),
    ],
)
def test_mcnemar_is_the_binomial_sum(fell, rose, p):
    assert mcnemar(fell, rose) == pytest.approx(p, rel=1e-12)
    assert mcnemar(rose, fell) == mcnemar(fell, rose)


def test_mcnemar_agrees_with_a_textbook():
    # Agresti, An Introduction to Categorical Data Analysis, ch. 8: of 1600 voters 150 and 86
    # changed their minds; z² = 17.36, so the normal p-value is 3.1e-5.
    assert mcnemar(150, 86) == pytest.approx(3.1e-5, rel=0.25)


@given(small)
def test_sign_flips_are_counted_exactly(differences):
    sums = [
        abs(sum(sign * size for sign, size in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(differences))
    ]
    share = sum(total >= abs(sum(differences)) for total in sums) / len(sums)
    assert sign_flip(differences) == pytest.approx(share, rel=1e-12)


def test_sign_flips_agree_with_scipy():
    differences = np.array([3, -1, 4, 1, -5, 9, 2, 6, 5, 3])
    zero = np.zeros_like(differences)
    expected = stats.permutation_test(
        (differences, zero),
        lambda x, y: (x - y).sum(),
        permutation_type="samples",
        n_resamples=5000,
    )
    assert sign_flip(differences) == pytest.approx(expected.pvalue, rel=1e-12)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 9))
def test_sign_flips_of_single_passes_are_mcnemars_test(fell, rose, same):
    differences = [-1] * fell + [1] * rose + [0] * same
    assert sign_flip(np.array(differences, dtype=int)) == pytest.approx(mcnemar(fell, rose))


@given(small, st.randoms(use_true_random=False))
def test_sign_flips_know_no_order_and_no_direction(differences, random):
    shuffled = differences[:]
    random.shuffle(shuffled)
    assert sign_flip(shuffled) == sign_flip(differences)
    assert sign_flip([-value for value in differences]) == sign_flip(differences)


def test_sign_flips_stand_many_items():
    p = sign_flip(np.array([100] * 700 + [-100] * 300))
    assert 0 < p < 1e-30
    assert sign_flip(np.array([50, -50] * 1000)) == pytest.approx(1.0)


def test_sign_flips_refuse_what_would_be_rounded():
    with pytest.raises(ValueError, match="whole numbers"):
        sign_flip([0.5, -0.25])


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, 0.04; never falling.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.001, 0.2))
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values, alpha):
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = set()
    for rank, index in enumerate(order):
        if p_values[index] * (len(p_values) - rank) > alpha:
            break
        rejected.add(index)
    adjusted = holm(p_values)
    assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))


def test_the_interval_by_hand():
    # b = 9, c = 2, n = 30: (3 - 10) / 32 ∓ 1.959964 · sqrt((13/32 - (7/32)²) / 32).
    interval = difference_interval(9, 2, 30)
    margin = 1.959964 * ((13 / 32 - (7 / 32) ** 2) / 32) ** 0.5
    assert (interval.low, interval.high) == pytest.approx((-7 / 32 - margin, -7 / 32 + margin))


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_the_interval_is_mirrored_holds_the_value_and_has_a_width(fell, rose, same):
    n = fell + rose + same
    assume(n > 0)
    one, other = difference_interval(fell, rose, n), difference_interval(rose, fell, n)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
    assert -1 <= one.low <= (rose - fell) / n <= one.high <= 1
    assert one.high > one.low


@pytest.mark.parametrize(("fall", "rise"), [(0.02, 0.02), (0.2, 0.05), (0.1, 0.1)])
def test_the_interval_covers_95_percent(fall, rise):
    rng = np.random.default_rng(0)
    counts = rng.multinomial(40, [fall, rise, 1 - fall - rise], size=4000)
    covered = [
        (i := difference_interval(int(b), int(c), 40)).low <= rise - fall <= i.high
        for b, c, _ in counts
    ]
    assert np.mean(covered) >= 0.94


def test_the_power_of_mcnemar_by_enumeration():
    n, fall, rise, level = 12, 0.4, 0.05, 0.05
    total = sum(
        stats.multinomial.pmf([b, c, n - b - c], n, [fall, rise, 1 - fall - rise])
        for b in range(n + 1)
        for c in range(n + 1 - b)
        if b > c and mcnemar(b, c) <= level
    )
    assert mcnemar_power(n, fall, rise, level) == pytest.approx(total, rel=1e-9)
    assert mcnemar_power(n, 0.0, 0.0, level) == 0
    assert mcnemar_power(4, 1.0, 0.0, level) == 0  # four items cannot reach 0.05


def test_the_two_powers_agree_on_many_items():
    for drop in (0.05, 0.08):
        exact = mcnemar_power(1000, 0.05 + drop, 0.05, 0.01)
        assert sign_flip_power(1000, 0.1, drop, 0.01) == pytest.approx(exact, abs=0.02)
    assert sign_flip_power(100, 0.0, 0.0, 0.05) == 0
    assert sign_flip_power(100, 0.0, 1.0, 0.05) == 1


@settings(deadline=None, max_examples=25)
@given(st.integers(10, 200), st.floats(0, 0.3), st.sampled_from([0.05, 0.05 / 6, 0.001]))
def test_the_detectable_drop_is_where_the_power_reaches_80_percent(n, churn, level):
    def power(drop):
        return mcnemar_power(n, churn / 2 + drop, churn / 2, level)

    drop = detectable(power, 1 - churn)
    if drop is None:
        assert power(1 - churn) < 0.8
    else:
        assert power(drop) >= 0.8 > power(drop - 1e-5)


def test_nothing_is_detectable_among_too_few_items():
    assert detectable(lambda drop: mcnemar_power(5, drop, 0, 0.05), 1.0) is None
    assert detectable(lambda drop: 1.0, 0.0) is None
