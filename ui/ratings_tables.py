"""Tables of a campaign's numbers for the terminal, and the same numbers for machines."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from ui.agreement import RaterQuality
from ui.consolidation import Consolidation
from ui.dashboard import Dashboard
from ui.leaderboard import votes_needed
from workbench.runs import new_table, safe_text
from workbench.statistics import Estimate, Interval

Row = dict[str, Any]


def numbers(board: Dashboard) -> Row:
    """Return everything a dashboard knows as JSON has it."""
    heads = board.outcomes.verdicts.heads()
    rates = [
        {
            **dataclasses.asdict(rate),
            "votes": rate.votes,
            "votes_needed": dataclasses.asdict(votes_needed(rate)),
            "controlled": {
                name: dataclasses.asdict(vars(controlled)[name])
                for name in ("win_rate", "length_effect", "side_effect")
            },
        }
        for rate, controlled in zip(board.rates, board.controlled, strict=True)
    ]
    return {
        "campaign": board.outcomes.campaign,
        "mode": board.outcomes.mode,
        "votes": int((~heads.skipped).sum()),
        "skips": int(heads.skipped.sum()),
        "win_rates": rates,
        "bradley_terry": dataclasses.asdict(board.board),
        "agreement": dataclasses.asdict(board.agreement),
        "raters": [dataclasses.asdict(rater) for rater in board.raters],
        "left_out": list(board.left_out),
        "cost": dataclasses.asdict(board.cost),
    }


def show_numbers(board: Dashboard, console: Console) -> None:
    """Print who wins, how far raters agree, each rater, and the cost."""
    facts = numbers(board)
    console.print(
        f"{facts['campaign']}: {facts['votes']:,} votes of {len(board.raters)} raters, "
        f"{facts['skips']:,} skips; ${board.cost.spent:,.2f} so far, "
        f"${board.cost.to_finish:,.2f} to finish"
    )
    if board.left_out:
        console.print(f"raters left out: {', '.join(board.left_out)}")
    _print(console, "who wins, with 95 % intervals", _win_rates(board))
    if len(board.board.strengths) > 2:
        _print(console, "Bradley-Terry strengths, in log odds", _strengths(board))
        if not board.board.connected:
            console.print("  the models fall into groups that were never compared")
        if board.board.separated:
            console.print("  a model never lost: its strength rests on the prior")
    _print(console, f"agreement on {board.agreement.duels:,} comparisons", _agreement(board))
    _print(console, "raters", _raters(board.raters))


def show_winners(name: str, found: Sequence[Row], one: Consolidation, console: Console) -> None:
    """Print how often each model won, how surely, and how each rater errs.

    Args:
        name: of the campaign.
        found: rows of `Consolidation.table`.
        one: where they come from.
        console: to print to.
    """
    sure = sum(row["confidence"] for row in found) / len(found)
    console.print(f"{name}: {len(found):,} comparisons by {one.method}, mean confidence {sure:.1%}")
    won = Counter(row["winner"] for row in found).most_common()
    rows = ((winner, f"{count:,}", f"{count / len(found):.1%}") for winner, count in won)
    _print(console, "", _table(("winner", "comparisons", "share"), rows))
    if one.confusion:
        _print(console, "raters, where one answer is better", _confusion(one.confusion))


def _win_rates(board: Dashboard) -> Table:
    names = (
        "model",
        "against",
        "win rate",
        "wins",
        "ties",
        "losses",
        "equal length",
        "votes to go",
    )
    rows = []
    for rate, controlled in zip(board.rates, board.controlled, strict=True):
        more = votes_needed(rate).more
        rows.append(
            (
                rate.model,
                rate.opponent,
                _share(Estimate(rate.win_rate, rate.ci95, rate.votes)),
                f"{rate.wins:,}",
                f"{rate.ties:,}",
                f"{rate.losses:,}",
                _share(controlled.win_rate),
                "–" if more is None else f"{more:,}",
            )
        )
    return _table(names, rows)


def _strengths(board: Dashboard) -> Table:
    rows = (
        (
            each.model,
            f"{each.strength:+.2f} ({_between(each.ci95, '+.2f')})",
            _share(Estimate(each.win_rate, each.win_rate_ci95, each.votes)),
            f"{each.votes:,}",
        )
        for each in board.board.strengths
    )
    return _table(("model", "strength", "beats the others", "votes"), rows)


def _agreement(board: Dashboard) -> Table:
    found = board.agreement
    rows = [("same winner", _share(found.percent))]
    for name, value in (
        ("Fleiss κ", found.fleiss_kappa),
        ("Krippendorff α", found.krippendorff_alpha),
    ):
        text = "–" if value is None else f"{value.value:.2f} ({_between(value.ci95, '.2f')})"
        rows.append((name, text))
    return _table(("measure", "value"), rows)


def _raters(raters: Iterable[RaterQuality]) -> Table:
    names = ("rater", "votes", "skips", "seconds", "gold", "left", "same again", "as others", "")
    rows = (
        (
            rater.rater,
            f"{rater.votes:,}",
            f"{rater.skips:,}",
            "–" if rater.median_seconds is None else f"{rater.median_seconds:.1f}",
            *(
                "–" if found is None else f"{found.value:.0%}"
                for found in (rater.gold, rater.left, rater.consistency)
            ),
            "–" if rater.with_others is None else f"{rater.with_others:.0%}",
            ", ".join(rater.problems),
        )
        for rater in raters
    )
    return _table(names, rows)


def _confusion(confusion: Mapping[str, Any]) -> Table:
    rows = (
        (
            rater,
            f"{(chances[0][0] + chances[2][2]) / 2:.0%}",
            f"{(chances[0][1] + chances[2][1]) / 2:.0%}",
            f"{(chances[0][2] + chances[2][0]) / 2:.0%}",
        )
        for rater, chances in confusion.items()
    )
    return _table(("rater", "names it", "calls a tie", "names the other"), rows)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = new_table(*names)
    for row in rows:
        table.add_row(*map(safe_text, row))
    return table


def _print(console: Console, title: str, table: Table) -> None:
    console.print()
    if title:
        console.print(title, style="bold")
    console.print(table)


def _share(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.value:.1%} ({_between(found.ci95, '.0%')})"


def _between(interval: Interval, form: str) -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"
