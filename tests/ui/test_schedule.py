from collections import Counter

import pytest

from ui.schedule import drawn_order, wish
from ui.schema import Campaign

GOLDEN_SIDES = [[2, 1], [1, 2], [2, 1], [1, 2], [2, 1], [1, 2], [1, 2], [2, 1]]
GOLDEN_RANKING = [4, 2, 1, 5, 0, 3]


def planned(**values):
    return Campaign(**{"seed": 7, "gold_share": 0.0, "swap_share": 0.0, **values})


def test_sides_are_drawn_from_seed_item_and_rater():
    """Golden: a change here would deal other sides to campaigns that are under way."""
    orders = [drawn_order(planned(), position, "ann", [1, 2]) for position in range(8)]
    assert orders == GOLDEN_SIDES
    assert drawn_order(planned(), 3, "ann", range(6)) == GOLDEN_RANKING
    assert orders != [
        drawn_order(planned(seed=8), position, "ann", [1, 2]) for position in range(8)
    ]
    assert orders != [drawn_order(planned(), position, "bob", [1, 2]) for position in range(8)]


@pytest.mark.parametrize("count", [2, 4, 9])
def test_every_answer_is_as_often_on_the_left(count):
    firsts = Counter(
        drawn_order(planned(), position, rater, range(count))[0]
        for position in range(300)
        for rater in ("ann", "bob", "eve")
    )
    # Binomial(900, 1/count): five standard deviations at most from its mean.
    mean, deviation = 900 / count, (900 / count * (1 - 1 / count)) ** 0.5
    assert all(abs(firsts[place] - mean) < 5 * deviation for place in range(count))


def test_raters_see_the_sides_independently_of_each_other():
    same = sum(
        drawn_order(planned(), position, "ann", [1, 2])
        == drawn_order(planned(), position, "bob", [1, 2])
        for position in range(1000)
    )
    assert abs(same - 500) < 5 * 250**0.5


def test_gold_and_swaps_have_their_shares():
    campaign = planned(gold_share=0.1, swap_share=0.25)
    wishes = Counter(wish(campaign, "ann", step) for step in range(4000))
    for purpose, share in (("gold", 0.1), ("swap", 0.25), ("normal", 0.65)):
        assert abs(wishes[purpose] - 4000 * share) < 5 * (4000 * share * (1 - share)) ** 0.5


def test_without_shares_everything_is_normal():
    assert {wish(planned(), "ann", step) for step in range(100)} == {"normal"}
