"""The three forms of a report: Markdown, one HTML page, and JUnit XML.

All take their verdict from `Report.failed`, as the exit code does.
"""

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from prompts.report import (
    Report,
    change,
    compared_name,
    count,
    failing,
    in_words,
    notes,
    seconds,
    sentences,
    sides,
)
from prompts.results import Record
from prompts.summary import Summary
from prompts.verdicts import VERDICTS, CellComparison, Verdict
from workbench.errors import UserError
from workbench.files import write_json, write_text
from workbench.report import text
from workbench.statistics import Interval

COMPARISON = "comparison.json"
CHANGED_SHOWN, FAILED_SHOWN, CHANGED_LISTED = 50, 5, 20  # items a cell; the rest is counted

SIGNS: dict[Verdict, str] = {
    "regression": "▼",
    "improvement": "▲",
    "no evidence": "=",
    "insufficient data": "?",
    "unreliable baseline": "!",
}
UNDECIDED: tuple[Verdict, ...] = ("insufficient data", "unreliable baseline")


def write_reports(report: Report, folder: Path) -> list[Path]:
    """Write report.md, report.html, junit.xml and, where compared, comparison.json.

    Returns:
        the files written.

    Raises:
        UserError: when the folder cannot be written.
    """
    texts = {"report.md": markdown, "report.html": html, "junit.xml": junit}
    paths = [folder / name for name in texts]
    try:
        for path, form in zip(paths, texts.values(), strict=True):
            write_text(path, form(report))
        if report.comparison is not None:
            paths.append(folder / COMPARISON)
            write_json(folder / COMPARISON, report.comparison.as_dict())
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder"
        ) from None
    return paths


def markdown(report: Report) -> str:
    """Return the report as Markdown, for a terminal or a comment on a pull request."""
    verdict = "failed" if report.failed else "passed"
    lines = [f"# Prompt suite {_plain(report.record.suite)}: {verdict}", ""]
    for sentence in [*sentences(report), *notes(report)]:
        lines += [_plain(sentence), ""]
    if report.comparison is not None:
        lines += ["## Against the baseline", "", *_comparison_table(report), ""]
        for cell in report.compared:
            lines += _changed_table(cell)
    lines += ["## Cells", "", *_summary_table(report), ""]
    return "\n".join(lines)


def html(report: Report) -> str:
    """Return the report as one HTML page that loads nothing; equal reports give equal text."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": text.number,
        "percent": text.percent,
        "percent_interval": percent_interval,
        "points": points,
        "points_interval": points_interval,
        "p_value": text.p_value,
        "one_line": one_line,
        "breakable": breakable,
        "count": count,
        "compared_name": compared_name,
        "sides": sides,
        "failing": failing,
        "in_words": in_words,
    }
    folder = files("prompts") / "templates"
    sheets = [files("workbench.report") / "style.css", folder / "report.css"]
    ends = [o.difference.ci95 for cell in report.compared for o in cell.tested]
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(
        # Markup only for what is ours: the style sheets.
        style=Markup("\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)),
        report=report,
        sentences=sentences(report),
        notes=notes(report),
        by_verdict=sorted(report.compared, key=lambda cell: VERDICTS.index(cell.verdict)),
        signs=SIGNS,
        reach=max([0.1, *(max(-end.low, end.high) for end in ends)]),
        changed_shown=CHANGED_SHOWN,
        failed_shown=FAILED_SHOWN,
        facts=list(_facts(report.record)),
    )


def junit(report: Report) -> str:
    """Return the report as JUnit XML: one test case a cell, failed where the gate fails it.

    A wrong answer alone is no failure: the suite's thresholds and the comparison decide. A cell of
    which nothing can be concluded, or that the run no longer has, is skipped, and says why.
    """
    found = {(cell.templates[1], cell.models[1]): cell for cell in report.compared}
    suite = ET.Element("testsuite", name=text.visible(report.record.suite))
    for cell, summary in zip(report.cells, report.summaries, strict=True):
        case = ET.SubElement(
            suite,
            "testcase",
            classname=text.visible(f"{report.record.suite}.{cell.model}"),
            name=text.visible(cell.template),
            time=f"{seconds(cell):.3f}",
        )
        _judge(case, summary, found.get((cell.template, cell.model)))
    for missing in report.comparison.baseline_only if report.comparison is not None else ():
        case = ET.SubElement(
            suite,
            "testcase",
            classname=text.visible(report.record.suite),
            name=text.visible(missing),
            time="0.000",
        )
        ET.SubElement(case, "skipped", message="only in the baseline")
    counts = {
        "tests": str(len(suite)),
        "failures": str(len(suite.findall("*/failure"))),
        "errors": "0",
        "skipped": str(len(suite.findall("*/skipped"))),
        "time": f"{sum(seconds(cell) for cell in report.cells):.3f}",
    }
    suite.attrib.update(counts)
    root = ET.Element("testsuites", {"name": suite.attrib["name"], **counts})
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def one_line(value: Any, limit: int = 40) -> str:
    """Return any value on one line with nothing hidden in it."""
    return text.visible(text.one_line(str(value), limit))


def breakable(value: str, limit: int = 60) -> Markup:
    """Return a name as HTML that may be broken after a slash or an underscore."""
    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(one_line(value, limit)))))


def percent_interval(interval: Interval) -> str:
    """Return an interval of shares as `62–80 %`."""
    return text.percent_interval((interval.low, interval.high))


def points(share: float, digits: int = 1) -> str:
    """Return a change of a share in percentage points with its sign: `+12.5`."""
    value = text.number(100 * share, digits)
    return value if value.startswith("−") or float(value) == 0 else f"+{value}"


def points_interval(interval: Interval) -> str:
    """Return an interval of changes as `−24.1 to −3.9`."""
    return f"{points(interval.low)} to {points(interval.high)}"


def _judge(case: ET.Element, summary: Summary, cell: CellComparison | None) -> None:
    reasons = [("threshold", failure) for failure in summary.failures]
    if cell is not None and cell.verdict == "regression":
        reasons.append(("regression", f"regression: {change(cell)}"))
    if reasons:
        failure = ET.SubElement(
            case,
            "failure",
            type=", ".join(dict.fromkeys(kind for kind, _ in reasons)),
            message="; ".join(reason for _, reason in reasons),
        )
        if cell is not None and cell.verdict == "regression":
            failure.text = "\n".join(
                f"{text.visible(pair.item)}: {in_words(pair)}, {pair.passes[0]} → {pair.passes[1]} "
                f"of {pair.repeats}"
                for pair in cell.changed()
                if pair.change in ("lost", "score fell")
            )
    elif cell is not None and cell.verdict in UNDECIDED:
        ET.SubElement(case, "skipped", message=cell.verdict)
    out = ET.SubElement(case, "system-out")
    out.text = (
        f"{count(summary.n, 'item')}, passed {text.percent(summary.pass_rate.value, 1)} "
        f"({percent_interval(summary.pass_rate.ci95)}), unparsed "
        f"{text.percent(summary.unparsed_rate, 1)}"
        + (f"; {cell.verdict}: {change(cell)}" if cell is not None else "")
    )


def _comparison_table(report: Report) -> Iterator[str]:
    yield (
        "| verdict | cell | versions | items | passed | change in points (95 %) "
        "| lost / gained | p | p (Holm) | detectable drop |"
    )
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for cell in report.compared:
        for outcome in cell.tested:
            what = "" if outcome is cell.passed else " (score)"
            drop = "–" if outcome.detectable is None else f"{points(outcome.detectable)[1:]}"
            yield _row(
                f"{SIGNS[cell.verdict]} {cell.verdict}" if not what else "",
                _plain(compared_name(cell)) + what,
                " → ".join(_code(version) for version in dict.fromkeys(cell.versions)),
                str(cell.n),
                f"{text.percent(outcome.before)} → {text.percent(outcome.after)}",
                f"{points(outcome.difference.value)} ({points_interval(outcome.difference.ci95)})",
                f"{outcome.fell} / {outcome.rose}",
                text.p_value(outcome.p),
                text.p_value(outcome.p_holm),
                drop,
            )


def _changed_table(cell: CellComparison) -> Iterator[str]:
    changed = cell.changed()
    if not changed:
        return
    yield f"### What changed: {_plain(compared_name(cell))}"
    yield ""
    yield "| item | | k of n | answer before | answer after | target |"
    yield "| --- | --- | ---: | --- | --- | --- |"
    for pair in changed[:CHANGED_LISTED]:
        shown = sides(pair)
        yield _row(
            _code(pair.item),
            in_words(pair),
            f"{pair.passes[0]} → {pair.passes[1]} of {pair.repeats}",
            *(_code(one.row.flexible or one.row.output) for one in shown),
            " or ".join(_code(one) for one in shown[0].row.target[:3]),
        )
    if len(changed) > CHANGED_LISTED:
        yield ""
        yield f"… and {count(len(changed) - CHANGED_LISTED, 'item')} more, in {COMPARISON}."
    yield ""


def _summary_table(report: Report) -> Iterator[str]:
    yield (
        "| template | model | items | passed (95 %) | score (95 %) | strict / flexible | unparsed "
        "| latency p50 / p95 ms | tokens in / out | tokens/s | thresholds |"
    )
    yield "| --- | --- | ---: " + "| ---: " * 7 + "| --- |"
    for summary in report.summaries:
        answers = summary.n * summary.repeats
        yield _row(
            f"{_plain(summary.template)} {_code(summary.version)}",
            _plain(summary.model),
            str(summary.n) if summary.repeats == 1 else f"{summary.n} × {summary.repeats}",
            f"{text.percent(summary.pass_rate.value)} ({percent_interval(summary.pass_rate.ci95)})",
            f"{text.number(summary.score.value)} "
            f"({text.interval((summary.score.ci95.low, summary.score.ci95.high))})",
            f"{text.percent(summary.strict_accuracy)} / {text.percent(summary.flexible_accuracy)}",
            text.percent(summary.unparsed_rate),
            f"{text.number(summary.latency_p50, 0)} / {text.number(summary.latency_p95, 0)}",
            f"{summary.tokens_in / answers:.0f} / {summary.tokens_out / answers:.0f}",
            text.number(summary.tokens_per_second, 0),
            "; ".join(summary.failures) or "met",
        )


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(value: str) -> str:
    """Return a text in which Markdown finds nothing of its own."""
    marks = r"[\\`*\[\]#|~]|<(?=\S)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"
    return re.sub(f"({marks})", r"\\\1", text.visible(value))


def _code(value: str) -> str:
    """Return a text on one line as code, which a pull request neither links nor formats."""
    flat = one_line(value, 60).replace("|", "\\|") or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    space = " " if "`" in flat else ""
    return f"{fence}{space}{flat}{space}{fence}"


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    """Yield what run.json says, one line a value, in the order of the file."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix} · {key}" if prefix else str(key), inner)
        elif value is not None:
            yield prefix, str(value)

    yield from walk("", record.model_dump())
