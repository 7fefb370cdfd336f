"""What the commands print: conversations, and tables of cells and comparisons."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from prompts.rendering import Message
from prompts.report import compared_name, count
from prompts.reporting import SIGNS, percent_interval, points, points_interval
from prompts.summary import Summary
from prompts.verdicts import CellComparison, Verdict
from workbench.report import text
from workbench.runs import safe_text

if TYPE_CHECKING:
    from rich.console import Console

LISTED = 10  # items named under the table
CELL_TITLES = ("items", "passed (95 %)", "strict/flex", "unparsed", "tok/s", "p50/p95 s")
COMPARISON_TITLES = ("before → after", "points (95 %)", "fell/rose", "p (Holm)", "MDE")
COLOURS: dict[Verdict, str] = {
    "regression": "red",
    "improvement": "green",
    "no evidence": "default",
    "insufficient data": "yellow",
    "unreliable baseline": "yellow",
}


def conversation(messages: Sequence[Message]) -> str:
    """Return a conversation as text, each turn under its role in brackets."""
    return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def cells_table(summaries: Iterable[Summary]) -> list[Text]:
    """Return the numbers of every cell, below its template; latency is in seconds."""
    heads, rows, styles = [], [["", *CELL_TITLES]], [""]
    for summary in summaries:
        n, repeats = summary.n, summary.repeats
        accuracies = (summary.strict_accuracy, summary.flexible_accuracy)
        heads.append(Text(text.visible(summary.template), "bold"))
        styles.append("red" if summary.failures else "")
        rows.append(
            [
                text.visible(summary.model),
                str(n) if repeats == 1 else f"{n}×{repeats}",
                f"{text.percent(summary.pass_rate.value)} "
                f"({percent_interval(summary.pass_rate.ci95)})",
                "/".join(text.number(100 * share, 0) for share in accuracies) + f"{text.SPACE}%",
                text.percent(summary.unparsed_rate),
                text.number(summary.tokens_per_second if summary.tokens_out else None, 0),
                f"{_seconds(summary.latency_p50)}/{_seconds(summary.latency_p95)}",
            ]
        )
    return _below(heads, rows, styles)


def comparison_table(cells: Iterable[CellComparison]) -> list[Text]:
    """Return what was found of every cell, below its verdict; graded cells have two rows."""
    heads, rows = [], [["", *COMPARISON_TITLES]]
    for cell in cells:
        verdict = Text(f"{SIGNS[cell.verdict]} {cell.verdict}", f"bold {COLOURS[cell.verdict]}")
        head = Text.assemble(verdict, f": {compared_name(cell)}, {count(cell.n, 'item')}")
        for outcome in cell.tested:
            drop = text.DASH if outcome.detectable is None else points(-outcome.detectable)
            heads.append(head)
            rows.append(
                [
                    "pass rate" if outcome is cell.passed else "mean score",
                    f"{text.percent(outcome.before)} → {text.percent(outcome.after)}",
                    f"{points(outcome.difference.value)} "
                    f"({points_interval(outcome.difference.ci95)})",
                    f"{outcome.fell}/{outcome.rose}",
                    text.p_value(outcome.p_holm),
                    drop,
                ]
            )
    return _below(heads, rows, [""] * len(rows))


def print_lost(console: "Console", cells: Iterable[CellComparison]) -> None:
    """Print which items the cells that regressed have lost."""
    for cell in cells:
        lost = [pair for pair in cell.changed() if pair.change in ("lost", "score fell")]
        if cell.verdict != "regression" or not lost:
            continue
        named = [
            pair.item
            if pair.repeats == 1
            else f"{pair.item} ({pair.passes[0]} → {pair.passes[1]} of {pair.repeats})"
            for pair in lost[:LISTED]
        ]
        more = f" and {count(len(lost) - LISTED, 'item')} more" if len(lost) > LISTED else ""
        line = f"{compared_name(cell)}, worse: {', '.join(named)}{more}"
        console.print(safe_text(line), soft_wrap=True)


def _below(
    heads: Sequence[Text], rows: Sequence[Sequence[str]], styles: Sequence[str]
) -> list[Text]:
    """Return rows in columns, each below its head, which is printed once; the first are titles.

    A table with the heads in a column would not fit 80 characters.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[Text] = []
    above = None
    for head, row, style in zip([None, *heads], rows, styles, strict=True):
        if head is not None and head != above:
            lines.append(head)
        above = head
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        text_line = "  ".join([f"  {row[0].ljust(widths[0])}", *cells])
        lines.append(Text(text_line, "dim" if head is None else style))
    return lines


def _seconds(milliseconds: float | None) -> str:
    if milliseconds is None:
        return text.DASH
    seconds = milliseconds / 1000
    return text.number(seconds, 1 if seconds >= 10 else 2)
