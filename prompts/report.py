"""What a report of a run says: its verdict, its sentences and the answers it shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prompts.results import Cell, Record, Row, read_record, read_results
from prompts.summary import Summary, summarise_run
from prompts.verdicts import CellComparison, Change, Comparison, ItemPair, Outcome
from workbench.report import text
from workbench.statistics import Estimate

OUTPUT_LIMIT = 800  # characters shown of an answer; the rest is counted


@dataclass(frozen=True)
class Report:
    """What is reported of a run.

    Attributes:
        record: how it was made.
        cells: its results.
        summaries: the numbers of every cell, in the same order.
        comparison: against a baseline, of cells with their rows, or None.
        false_alarms: the measured false-alarm rate of the comparison, or None.
    """

    record: Record
    cells: Sequence[Cell]
    summaries: Sequence[Summary]
    comparison: Comparison | None = None
    false_alarms: Estimate | None = None

    @property
    def failed(self) -> bool:
        """Return whether a cell regressed or misses a threshold: exit code 1."""
        return any(cell.verdict == "regression" for cell in self.compared) or any(
            summary.failures for summary in self.summaries
        )

    @property
    def compared(self) -> tuple[CellComparison, ...]:
        """Return the cells that were compared."""
        return self.comparison.cells if self.comparison is not None else ()

    @property
    def tone(self) -> str:
        """Return loss, win or even: the colour of the headline."""
        if self.failed:
            return "loss"
        improved = any(cell.verdict == "improvement" for cell in self.compared)
        return "win" if improved else "even"


@dataclass(frozen=True)
class Shown:
    """One answer as shown: its text and reasoning, cut, and how much of the text is not shown."""

    row: Row
    text: str
    hidden: int
    rationale: str


def read_report(
    run: Path, comparison: Comparison | None = None, false_alarms: Estimate | None = None
) -> Report:
    """Read what a report of a run folder is drawn from.

    Raises:
        UserError: when results.jsonl or run.json is missing or damaged.
    """
    record, cells = read_record(run), read_results(run)
    return Report(record, cells, summarise_run(cells, record), comparison, false_alarms)


def sentences(report: Report) -> list[str]:
    """Say in words what the run shows, the verdict first."""
    missed = [
        f"{name(summary.template, summary.model)}: {failure}."
        for summary in report.summaries
        for failure in summary.failures
    ]
    if report.comparison is not None:
        return [*_findings(report.comparison), *missed]
    return missed or [f"{count(len(report.cells), 'cell')} measured, and no threshold is missed."]


def notes(report: Report) -> list[str]:
    """Say what a reader of the comparison must know: what was left out, and how often it errs."""
    if report.comparison is None:
        return []
    said = list(_left_out(report.comparison))
    if report.false_alarms is not None:
        rate, ci = report.false_alarms.value, report.false_alarms.ci95
        interval = text.percent_interval((ci.low, ci.high))
        said.append(
            "Between runs that differ by seed alone, this comparison found something in "
            f"{text.percent(rate, 1)} of cases (95 % interval {interval}); at most "
            f"{text.percent(report.comparison.alpha)} was asked for."
        )
    return said


def name(template: str, model: str) -> str:
    """Return what a sentence calls a cell."""
    return f"{text.visible(template)} with {text.visible(model)}"


def compared_name(cell: CellComparison) -> str:
    """Return what a sentence calls a compared cell, with what stood on the other side."""
    (old, new), (before, after) = cell.templates, cell.models
    if old == new and before == after:
        return name(new, after)
    other = name(old, before) if old != new else text.visible(before)
    return f"{name(new, after)} (against {other})"


def decisive(cell: CellComparison) -> Outcome:
    """Return the outcome that decided: for a regression the likeliest fall, else the smallest p."""
    falling = [o for o in cell.tested if o.difference.value < 0]
    pool = falling if cell.verdict == "regression" else cell.tested
    return min(pool, key=lambda outcome: outcome.p)


def change(cell: CellComparison) -> str:
    """Return a comparison in short: `70 % → 45 %, p = 0.002`; p is corrected where tested."""
    outcome = decisive(cell)
    what = "" if outcome is cell.passed else "score "
    p = text.p_value(outcome.p if outcome.p_holm is None else outcome.p_holm)
    p = f"p{text.SPACE}{p}" if p.startswith("<") else f"p{text.SPACE}={text.SPACE}{p}"
    return f"{what}{text.percent(outcome.before)} → {text.percent(outcome.after)}, {p}"


def count(number: int, noun: str) -> str:
    """Return `1 cell` or `3 cells`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_words(pair: ItemPair) -> str:
    """Return what became of an item in words."""
    words: dict[Change, str] = {
        "lost": "was right, now wrong" if pair.repeats == 1 else "right less often",
        "score fell": "score fell",
        "gained": "was wrong, now right" if pair.repeats == 1 else "right more often",
        "score rose": "score rose",
        "same": "unchanged",
    }
    return words[pair.change]


def sides(pair: ItemPair) -> list[Shown]:
    """Return the two answers, before and after, that show best what changed.

    Of a lost item, one that passed and one that no longer does; else the first repeats.
    """
    wanted = {"lost": (True, False), "gained": (False, True)}.get(pair.change)
    chosen = []
    for place, rows in enumerate(pair.rows):
        fitting = [row for row in rows if wanted and row.passed == wanted[place]]
        chosen += [_shown(row) for row in (fitting or rows)[:1]]
    return chosen


def failing(cell: Cell) -> list[Shown]:
    """Return the first failed answer of every item that has one."""
    failed = [[row for row in repeats if not row.passed] for repeats in cell.rows]
    return [_shown(rows[0]) for rows in failed if rows]


def seconds(cell: Cell) -> float:
    """Return how long a cell was computed, in seconds, as far as it is known."""
    return sum(row.share for rows in cell.rows for row in rows if row.share is not None)


def _findings(comparison: Comparison) -> Iterator[str]:
    cells = comparison.cells
    for verdict, verb in (("regression", "regressed"), ("improvement", "improved")):
        found = [cell for cell in cells if cell.verdict == verdict]
        if found:
            listed = "; ".join(f"{compared_name(cell)} ({change(cell)})" for cell in found)
            yield f"{len(found)} of {count(len(cells), 'cell')} {verb}: {listed}."
    quiet = [cell for cell in cells if cell.verdict == "no evidence"]
    if quiet:
        yield (
            f"No difference can be shown in {len(quiet)} of {count(len(cells), 'cell')}"
            f"{_sensitivity(quiet)}."
        )
    for verdict, why in (
        ("insufficient data", "there are too few items"),
        ("unreliable baseline", "the baseline is unreliable"),
    ):
        found = [cell for cell in cells if cell.verdict == verdict]
        if found:
            listed = ", ".join(compared_name(cell) for cell in found)
            yield f"Nothing is concluded where {why}: {listed}."


def _sensitivity(cells: Sequence[CellComparison]) -> str:
    drops = [o.detectable for cell in cells for o in cell.tested if o.detectable is not None]
    if not drops:
        return ""
    low, high = (text.number(100 * drop, 0) for drop in (min(drops), max(drops)))
    span = low if low == high else f"{low} to {high}"
    return f"; a drop of {span} points would have been found four times in five"


def _left_out(comparison: Comparison) -> Iterator[str]:
    for cells, where in (
        (comparison.baseline_only, "the baseline"),
        (comparison.candidate_only, "this run"),
    ):
        if cells:
            yield f"Only in {where}, and not compared: {text.visible(', '.join(cells))}."
    for cell in comparison.cells:
        for items, where in (
            (cell.baseline_only, "the baseline"),
            (cell.candidate_only, "this run"),
        ):
            if items:
                some = ", ".join(text.visible(item) for item in items[:5])
                more = f" and {len(items) - 5} more" if len(items) > 5 else ""
                yield (
                    f"{compared_name(cell)}: {count(len(items), 'item')} only in {where}, not "
                    f"compared ({some}{more})."
                )
        if cell.repeats[0] != cell.repeats[1]:
            yield (
                f"{compared_name(cell)}: {cell.repeats[0]} and {cell.repeats[1]} answers an item; "
                f"compared on the first {min(cell.repeats)}."
            )


def _shown(row: Row) -> Shown:
    shown, hidden = text.cut(row.output, OUTPUT_LIMIT)
    rationale, left = text.cut(row.rationale or "", OUTPUT_LIMIT)
    more = f" … {count(left, 'more character')}" if left else ""
    return Shown(row, text.visible(shown), hidden, text.visible(rationale) + more)
