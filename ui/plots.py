"""Plots of the dashboard: win rates, strengths, raters, agreement, votes over time."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ui.agreement import Agreement, RaterQuality
from ui.drawing import (
    SIDE,
    Chart,
    Colours,
    Plot,
    Row,
    Sign,
    blank,
    mark,
    measure,
    new_axes,
    new_figure,
    write,
)
from ui.leaderboard import BradleyTerry, ControlledWinRate, Cost, WinRate
from ui.outcomes import Outcomes
from workbench.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_RATERS = 24
_PERCENTS = {quarter / 4: f"{25 * quarter} %" for quarter in range(5)}
_SHARES = {
    "wins": Sign("win"),
    "ties": Sign("tie"),
    "both bad": Sign("bad"),
    "losses": Sign("loss"),
}
_DOT, _RATE, _EVEN = Sign("win", "o"), Sign("ink", "o"), Sign("ink", "D", hollow=True)
_OF_RATER = {
    "gold right, 95 %": _DOT,
    "chose left": Sign("loss", "|"),
    "as the others": Sign("soft", "^"),
    "same again": Sign("ink", "s", hollow=True),
}


def win_rates(rates: Sequence[WinRate], controlled: Sequence[ControlledWinRate] = ()) -> Plot:
    """Plot win rates with their intervals, over the shares of wins, ties and losses.

    Args:
        rates: as `ui.leaderboard.win_rates` gives them.
        controlled: of the same pairs, drawn below as hollow diamonds; may be left out.
    """
    if not rates:
        return blank("win-rates", "Win rates", "No votes on two models yet.")

    def row(place: int, rate: WinRate) -> Row:
        def paint(axes: "Axes", y: float, colours: Colours) -> None:
            counts = (rate.wins, rate.ties - rate.both_bad, rate.both_bad, rate.losses)
            start = 0.0
            for count, sign in zip(counts, _SHARES.values(), strict=True):
                share = count / rate.votes
                axes.barh(y, share, height=12, left=start, color=colours[sign.colour])
                start += share
            mark(axes, y, rate.win_rate, rate.ci95, _RATE, colours)
            if controlled:
                even = controlled[place].win_rate
                mark(axes, y + 15, even.value, even.ci95, _EVEN, colours)

        low, high = 100 * rate.ci95.low, 100 * rate.ci95.high
        text = f"{100 * rate.win_rate:.0f} % ({low:.0f}–{high:.0f} %), {_votes(rate.votes)}"
        return Row((rate.model, rate.opponent), text, paint)

    rows = [row(place, rate) for place, rate in enumerate(rates)]
    legend = _SHARES | {"win rate, 95 %": _RATE}
    if controlled:
        legend["at equal length, on no side"] = _EVEN
    unit, lanes = "share of the votes, ties half", 2 if controlled else 1
    chart = Chart(rows, (0, 1), _PERCENTS, unit, 0.5, legend, lanes)
    return Plot("win-rates", "Win rates", _in_words(rows), chart.paint)


def strengths(board: BradleyTerry) -> Plot:
    """Plot the models' Bradley-Terry strengths with their intervals, best first."""
    title = "Strengths (Bradley–Terry)"
    if not board.strengths:
        return blank("strengths", title, "No votes on two models yet.")
    rows = [_dot(s.model, s.strength, s.ci95, "+.2f") for s in board.strengths]
    # An interval that only the prior bounds would leave the others no room; an arrow goes on.
    points = [s.strength for s in board.strengths]
    low = max(min(s.ci95.low for s in board.strengths), min(points) - 2)
    high = min(max(s.ci95.high for s in board.strengths), max(points) + 2)
    rim = 0.04 * (high - low)
    notes = []
    if not board.connected:
        notes.append("Some models were never compared, not even through others.")
    if board.separated:
        notes.append("Some never lost to others: only the prior bounds how much stronger they are.")
    limits, unit = (low - rim, high + rim), "log odds, with 95 % intervals"
    chart = Chart(rows, limits, _round(*limits), unit, 0.0, {}, note=" ".join(notes))
    return Plot("strengths", title, ". ".join([_in_words(rows), *notes]), chart.paint)


def raters(quality: Sequence[RaterQuality], most: int = MOST_RATERS) -> Plot:
    """Plot what the votes tell of each rater; those with problems first, then who voted most.

    Args:
        quality: as `ui.agreement.rater_quality` gives them.
        most: raters shown; of the others it is said how many they are.
    """
    if not quality:
        return blank("raters", "Raters", "Nobody has voted yet.")

    def row(rater: RaterQuality) -> Row:
        def paint(axes: "Axes", y: float, colours: Colours) -> None:
            axes.hlines(y, 0, 1, colours["line"], linewidth=0.8, zorder=0.5)
            gold, left, others, again = _OF_RATER.values()
            if rater.gold is not None:
                mark(axes, y, rater.gold.value, rater.gold.ci95, gold, colours)
            if rater.left is not None:
                mark(axes, y, rater.left.value, None, left, colours)
            if rater.with_others is not None:
                mark(axes, y, rater.with_others, None, others, colours)
            if rater.consistency is not None:
                mark(axes, y, rater.consistency.value, None, again, colours)

        seconds = "" if rater.median_seconds is None else f", {rater.median_seconds:.1f} s each"
        alarm = ", ".join(rater.problems)
        return Row((rater.rater,), f"{_votes(rater.votes)}{seconds}", paint, alarm)

    ordered = sorted(quality, key=lambda rater: (not rater.problems, -rater.votes))
    rows = [row(rater) for rater in ordered[:most]]
    note = ""
    if hidden := ordered[most:]:
        bad = sum(bool(rater.problems) for rater in hidden)
        note = f"Not shown: {len(hidden):,} more, {bad:,} of them with problems."
    chart = Chart(rows, (0, 1), _PERCENTS, "share", 0.5, _OF_RATER, note=note)
    return Plot("raters", "Raters", f"{_in_words(rows)}. {note}".strip(), chart.paint)


def agreement(found: Agreement) -> Plot:
    """Plot percent agreement, Fleiss' κ and Krippendorff's α with their intervals."""
    named = {
        "Two raters name the same winner": found.percent,
        "Fleiss’ κ": found.fleiss_kappa,
        "Krippendorff’s α, ordinal": found.krippendorff_alpha,
    }
    known = {name: estimate for name, estimate in named.items() if estimate is not None}
    title = "Agreement of raters"
    if not known:
        return blank("agreement", title, "No pair of answers has two votes yet.")
    rows = [_dot(name, of.value, of.ci95, ".2f") for name, of in known.items()]
    limits = (min(0.0, *(of.ci95.low for of in known.values())) - 0.03, 1.03)
    unit = "1: always; κ and α of 0: as by chance"
    chart = Chart(rows, limits, _round(*limits), unit, 0.0, {})
    words = f"on {found.duels:,} pairs of answers: {_in_words(rows)}"
    return Plot("agreement", title, words, chart.paint)


def votes_over_time(outcomes: Outcomes, spent: Cost) -> Plot:
    """Plot how many labels there were when, and how many are wanted in all.

    Args:
        outcomes: of all raters.
        spent: as `ui.leaderboard.cost` gives it.
    """
    if not outcomes.curve:
        return blank("votes", "Votes over time", "No votes yet.")
    moments, counts = zip(*outcomes.curve, strict=True)
    wanted = counts[-1] + spent.labels_to_finish
    text = f"{_votes(counts[-1])} of {wanted:,} wanted"
    one_day = moments[0].astimezone(UTC).date() == moments[-1].astimezone(UTC).date()
    zone = f"UTC, {moments[0].astimezone(UTC):%d %b %Y}" if one_day else "UTC"

    def paint(width: int, colours: Colours) -> "Figure":
        from matplotlib.ticker import MaxNLocator, StrMethodFormatter

        figure = new_figure(width, 290, colours)
        left = max(42, 18 + math.ceil(measure(f"{wanted:,}")))
        within = width - left - SIDE - 12
        axes = new_axes(figure, (left, 34, within, 180), colours)
        times = [moment.timestamp() for moment in moments]
        rim = 0.03 * (times[-1] - times[0]) or 1.0
        axes.set(xlim=(times[0] - rim, times[-1] + rim), ylim=(0, 1.1 * wanted), xlabel=zone)
        axes.plot(times, counts, color=colours["win"], linewidth=2, drawstyle="steps-post")
        axes.fill_between(times, counts, step="post", color=colours["win"], alpha=0.15, linewidth=0)
        axes.plot(times[-1], counts[-1], color=colours["win"], marker="o", markersize=6)
        axes.axhline(wanted, color=colours["soft"], linewidth=1, linestyle=(0, (4, 3)))
        axes.grid(axis="y", color=colours["line"], linewidth=0.8)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        ticks = _times(times[0], times[-1], int(min(within // 66, 12)))
        axes.set_xticks(list(ticks), list(ticks.values()))
        write(figure, width - SIDE, 16, text, colours["soft"], ha="right")
        return figure

    words = f"{text}, by {moments[-1]:%Y-%m-%d %H:%M} UTC"
    return Plot("votes", "Votes over time", words, paint)


def _dot(name: str, value: float, ci95: Interval, form: str) -> Row:
    """Return a row of one number with its interval."""

    def paint(axes: "Axes", y: float, colours: Colours) -> None:
        mark(axes, y, value, ci95, _DOT, colours)

    # The sum turns a rounded negative zero into a plain one.
    numbers = (format(round(number, 2) + 0.0, form) for number in (value, ci95.low, ci95.high))
    point, low, high = (number.replace("-", "−") for number in numbers)
    return Row((name,), f"{point} ({low} to {high})", paint)


def _round(low: float, high: float) -> Mapping[float, str]:
    """Return three to seven round numbers in a range, with their texts."""
    power = 10 ** math.floor(math.log10(high - low))
    step = next(s * power for s in (0.2, 0.5, 1, 2) if (high - low) / (s * power) <= 6)
    places = range(math.ceil(low / step), math.floor(high / step) + 1)
    return {place * step: f"{place * step:.2g}".replace("-", "−") for place in places}


def _times(first: float, last: float, most: int) -> Mapping[float, str]:
    """Return up to `most` round moments in a span of POSIX seconds, with their texts in UTC."""
    # Each step is at most twice the one before, so that at least half of `most` moments are left.
    sixtieths, days = (1, 2, 3, 5, 10, 15, 30), (1, 2, 4, 7, *(14 * 2**n for n in range(11)))
    counts = {1: sixtieths, 60: sixtieths, 3600: (1, 2, 3, 6, 12), 86_400: days}
    steps = [unit * count for unit, some in counts.items() for count in some]
    step = next((step for step in steps if (last - first) / step <= most), steps[-1])
    places = range(math.ceil(first / step), math.floor(last / step) + 1)
    form = "%H:%M:%S" if step < 60 else "%d %b\n%H:%M" if step < 86_400 else "%d %b\n%Y"
    moments = [float(place * step) for place in places] or [first]
    return {at: f"{datetime.fromtimestamp(at, UTC):{form}}" for at in moments}


def _in_words(rows: Sequence[Row]) -> str:
    return "; ".join(row.words for row in rows)


def _votes(count: int) -> str:
    return f"{count:,} vote{'' if count == 1 else 's'}"
