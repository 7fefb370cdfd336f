"""Every plot at phone and desktop width: all texts inside and apart, and what is drawn is true."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.ui.test_drawing import assert_texts_fit, boxes
from tests.ui.test_outcomes import made
from ui import plots
from ui.agreement import RaterQuality, agreement, rater_quality
from ui.drawing import WIDE
from ui.leaderboard import bradley_terry, controlled_win_rates, cost, win_rates
from workbench.statistics import Estimate, Interval

LONG = ("base", "runs/demo/ppo/2026-11-20/model/checkpoint-000120-with-a-name-of-its-own", "sft 2")
START = datetime(2026, 11, 2, 8, tzinfo=UTC)


def campaign(models=LONG, votes=180):
    """Three models, sixty prompts, three of six raters on each; gold questions and re-shows."""
    rng = np.random.default_rng(0)
    prompt = np.arange(votes) // 3
    pair = prompt % 3
    outcomes = made(
        rng.choice([-2, -1, 0, 1, 2], votes),
        first=np.array([0, 0, 1])[pair], second=np.array([1, 2, 2])[pair], prompt=prompt,
        rater=np.arange(votes) % 6, seconds=np.where(np.arange(votes) % 6 == 4, 1.5, 12.0),
        best=np.where(prompt % 10 == 0, 1, 0), models=models, wanted=votes + 20,
        raters=["ann", "bob", "a rater of a rather long name, at a university", "d", "e", "名前"],
    )  # fmt: skip
    curve = tuple((START + timedelta(hours=3 * n), n + 1) for n in range(votes))
    return replace(outcomes, curve=curve)


def all_plots(outcomes):
    rates = win_rates(outcomes)
    return [
        plots.win_rates(rates, controlled_win_rates(outcomes)),
        plots.win_rates(rates),
        plots.strengths(bradley_terry(outcomes, resamples=50)),
        plots.raters(rater_quality(outcomes)),
        plots.agreement(agreement(outcomes, resamples=50)),
        plots.votes_over_time(outcomes, cost(outcomes)),
    ]


CASES = {
    "many": campaign(),
    "separated": made([-1] * 9, prompt=np.arange(9) // 3, rater=np.arange(9) % 3),
    "one": replace(made([1], wanted=3), curve=((START, 1),)),
    "ties": made([0] * 4, prompt=[0, 0, 1, 1], rater=[0, 1, 0, 1]),
    "none": made([], raters=()),
}


@pytest.mark.parametrize("width", [390, WIDE, 1200])
@pytest.mark.parametrize("case", CASES)
def test_all_texts_fit(case, width):
    for plot in all_plots(CASES[case]):
        assert_texts_fit(plot, width)


@pytest.mark.parametrize("case", CASES)
def test_every_plot_is_drawn_in_both_themes_and_as_a_page(case):
    drawn = all_plots(CASES[case])
    for plot in drawn:
        light, dark = (plot.png(theme, 390, 1) for theme in ("light", "dark"))
        assert light.startswith(b"\x89PNG")
        assert light != dark
        assert plot.title in plot.page()
        assert plot.words
    assert len({plot.name for plot in drawn}) == 5  # win rates are drawn in two ways


def test_without_votes_each_plot_says_so():
    words = [plot.words for plot in all_plots(CASES["none"])]
    assert words == [
        "No votes on two models yet.", "No votes on two models yet.",
        "No votes on two models yet.", "Nobody has voted yet.",
        "No pair of answers has two votes yet.", "No votes yet.",
    ]  # fmt: skip


def test_win_rates_are_drawn_where_they_are():
    choice = ["b"] * 6 + ["both_bad", "tie"] + ["a"] * 2
    outcomes = made([-1] * 6 + [0] * 2 + [1] * 2, choice=choice, first_left=True)
    plot = plots.win_rates(win_rates(outcomes))
    (axes,) = plot.figure().axes
    bars = [(round(bar.get_x(), 6), round(bar.get_width(), 6)) for bar in axes.patches]
    assert bars == [(0, 0.6), (0.6, 0.1), (0.7, 0.1), (0.8, 0.2)]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([0.7, 0.7])  # a rim and the dot
    assert plot.words == "aligned against base: 70 % (35–93 %), 10 votes"


def test_controlled_win_rates_are_diamonds():
    outcomes = campaign()
    controlled = controlled_win_rates(outcomes)
    (axes,) = plots.win_rates(win_rates(outcomes), controlled).figure().axes
    drawn = {
        round(float(line.get_xdata()[0]), 9) for line in axes.lines if line.get_marker() == "D"
    }
    assert drawn == {round(by.win_rate.value, 9) for by in controlled}
    _, found = boxes(plots.win_rates(win_rates(outcomes), controlled), 390)
    assert "at equal length, on no side" in [text for text, _ in found]


def test_strengths_under_separation_say_so_and_point_on():
    board = bradley_terry(CASES["separated"], resamples=200)
    plot = plots.strengths(board)
    assert "only the prior bounds" in plot.words
    (axes,) = plot.figure().axes
    assert {line.get_marker() for line in axes.lines} >= {"<", ">", "o"}
    calm = plots.strengths(bradley_terry(campaign(), resamples=50))
    assert "prior" not in calm.words


def test_strengths_of_models_that_never_met_say_so():
    apart = made([1, -1, 1, -1], first=[0, 0, 2, 2], second=[1, 1, 3, 3], models=tuple("abcd"))
    assert "never compared" in plots.strengths(bradley_terry(apart, resamples=20)).words


def rater(name, votes, problems=()):
    half = Estimate(0.5, Interval(0.4, 0.6), 10)
    return RaterQuality(name, votes, 0, 0, 9.0, half, half, 1.0, half, 0.5, tuple(problems))


def test_raters_with_problems_come_first_and_nobody_is_hidden_silently():
    quality = [rater(f"r{n}", 10 + n) for n in range(30)]
    quality[3] = rater("r3", 1, ["too fast", "favours the left"])
    quality[4] = rater("r4", 2, ["fails gold questions"])
    _, found = boxes(plots.raters(quality), 390)
    names = [text for text, _ in found if text.startswith("r")]
    assert names == ["r4", "r3", *(f"r{n}" for n in range(29, 7, -1))]
    texts = [text for text, _ in found]
    assert "too fast, favours the left" in texts
    assert "Not shown: 6 more, 0 of them with problems." in texts
    few = plots.raters(quality, most=1)
    assert "29 more, 1 of them with problems" in few.words
    assert "r4 (fails gold questions): 2 votes, 9.0 s each" in few.words


def test_raters_marks():
    quality = [replace(rater("ann", 5), gold=Estimate(0.9, Interval(0.7, 1.0), 10),
                       left=Estimate(0.4, Interval(0, 1), 5), with_others=0.6,
                       consistency=Estimate(0.75, Interval(0, 1), 4))]  # fmt: skip
    (axes,) = plots.raters(quality).figure().axes
    drawn = {line.get_marker(): float(line.get_xdata()[0]) for line in axes.lines}
    assert {drawn[sign] for sign in "o|^s"} == {0.9, 0.4, 0.6, 0.75}
    nothing = replace(quality[0], gold=None, left=None, with_others=None, consistency=None)
    (axes,) = plots.raters([replace(nothing, median_seconds=None)]).figure().axes
    assert len(axes.lines) == 0


def test_agreement_leaves_out_what_is_not_defined():
    plot = plots.agreement(agreement(CASES["ties"], resamples=50))
    assert "same winner: 1.00" in plot.words
    assert "κ" not in plot.words
    assert "α" in plots.agreement(agreement(campaign(), resamples=50)).words


def test_a_rounded_negative_zero_is_zero():
    estimate = Estimate(-0.001, Interval(-0.2, 0.2), 9)
    found = replace(agreement(CASES["ties"], resamples=5), krippendorff_alpha=estimate)
    assert "α, ordinal: 0.00 (−0.20 to 0.20)" in plots.agreement(found).words


@pytest.mark.parametrize(
    ("span", "texts"),
    [
        (0.0, ["08:00:00"]),
        (7.0, ["08:00:00", "08:00:02", "08:00:04", "08:00:06"]),
        (9000.0, ["02 Nov\n08:00", "02 Nov\n09:00", "02 Nov\n10:00"]),
        (4 * 86400.0, ["03 Nov\n2026", "04 Nov\n2026", "05 Nov\n2026", "06 Nov\n2026"]),
    ],
)
def test_times_are_round_and_in_utc(span, texts):
    curve = ((START, 1), (START + timedelta(seconds=span), 2))
    outcomes = replace(made([]), curve=curve)
    (axes,) = plots.votes_over_time(outcomes, cost(outcomes)).figure("light", 390).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == texts


@pytest.mark.parametrize(
    "step", [timedelta(seconds=1), timedelta(minutes=7), timedelta(hours=5), timedelta(days=40)]
)
@pytest.mark.parametrize("width", [390, 1200])
def test_votes_over_any_time(step, width):
    curve = tuple((START + n * step, 9000 * n + 1) for n in range(90))
    outcomes = replace(made([], wanted=1_500_000), curve=curve)
    plot = plots.votes_over_time(outcomes, cost(outcomes))
    assert plot.words.startswith("801,001 votes of 2,301,001 wanted, by ")
    assert_texts_fit(plot, width)
    (axes,) = plot.figure("light", width).axes
    assert 2 <= len(axes.get_xticks()) <= (5 if width == 390 else 15)
    assert axes.lines[0].get_ydata()[-1] == 801_001
    assert axes.get_ylim()[1] > 2_301_001


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    begin=st.datetimes(datetime(2000, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
    # Of all lengths alike: a second is as likely as a year.
    span=st.floats(0, 8.5).map(lambda power: 10**power),
    votes=st.sampled_from([2, 7, 1_234_567]),
    width=st.sampled_from([390, WIDE]),
)
@example(begin=START, span=0.0, votes=5, width=390)
@example(begin=START + timedelta(milliseconds=500), span=0.3, votes=5, width=390)
def test_any_span_of_time_has_a_readable_axis(begin, span, votes, width):
    shares = (0, 0.2, 0.9, 1)
    curve = tuple(
        (begin + timedelta(seconds=span * share), 1 + round((votes - 1) * share))
        for share in shares
    )
    outcomes = replace(made([]), curve=curve)
    plot = plots.votes_over_time(outcomes, cost(outcomes))
    figure, found = assert_texts_fit(plot, width)
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert len(labels) >= (2 if span >= 2 else 1)
    assert len(set(labels)) == len(labels)
    assert all(low <= place <= high for place in axes.get_xticks())
    across = sorted((box.x0, box.x1) for text, box in found if text in labels)
    assert len(across) == len(labels)
    for (_, end), (start, _) in pairwise(across):
        assert start - end >= 6  # pixels, so that two are not read as one
