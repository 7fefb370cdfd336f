"""Measures the regression suite: which faults of templates it finds, with how many items, and how
often it finds something where nothing was changed.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from prompts.comparison import compare_runs, false_alarm_rate
from prompts.faults import FAULTS
from prompts.library import Library
from prompts.results import Cell, read_results
from prompts.runner import run_suite
from prompts.suite import Entry, Suite, find_suite, load_suite
from prompts.verdicts import Verdict
from workbench.embedded import NAME
from workbench.errors import UserError
from workbench.files import write_json, write_text
from workbench.report.text import number, p_value, percent, percent_interval
from workbench.statistics import Estimate

SUITES = ("arithmetic", "commonsense", "sentiment", "entailment", "passage_qa")
SIZES = (20, 40, 60)
FOUND = {"regression": "**caught**", "improvement": "seen (better)"}


@dataclass(frozen=True)
class Found:
    """What the comparison says of one fault in one template.

    Attributes:
        suite: name of the suite.
        template: name of the template.
        fault: name of the fault.
        n: items.
        verdict: of the faulty cell, with the suite's other cells unchanged.
        before: pass rate of the template.
        after: that of the broken one.
        p_holm: corrected p-value; None where nothing was tested.
        blind: whether no drop could be found, since too little is right at first.
        others: cells beside it in which something was found; there is nothing.
    """

    suite: str
    template: str
    fault: str
    n: int
    verdict: Verdict
    before: float
    after: float
    p_holm: float | None
    blind: bool
    others: int


def main() -> None:
    """Run the suites, compare, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=NAME, help="source of the model")
    parser.add_argument("--suites", nargs="+", default=list(SUITES), help="starter suites or files")
    parser.add_argument("--templates", nargs="+", help="only these; default all of the suites")
    parser.add_argument("--faults", nargs="+", help="only these; default all")
    parser.add_argument("--n", nargs="+", type=int, default=list(SIZES), help="numbers of items")
    parser.add_argument("--seeds", type=int, default=8, help="runs for the false-alarm rate")
    parser.add_argument("--temperature", type=float, default=0.7, help="of those runs")
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=Path("runs/prompts/faults"))
    given = parser.parse_args()
    started = time.time()
    try:
        runs = Runs(given.model, given.out, given.batch_size)
        found: list[Found] = []
        alarms: dict[str, dict[int, Estimate]] = {}
        for name in given.suites:
            suite = chosen(load_suite(find_suite(name), Library()), given.templates)
            found += measure(runs, suite, given.faults, given.n, given.alpha)
            if given.seeds > 1:
                rates = false_alarms(
                    runs, suite, given.seeds, given.temperature, given.n, given.alpha
                )
                alarms |= {suite.name: rates} if rates else {}
        text = report(found, alarms, given.alpha, given.temperature)
        write_text(given.out / "faults.md", text)
        write_json(
            given.out / "faults.json",
            {
                "model": given.model,
                "alpha": given.alpha,
                "seeds": given.seeds,
                "temperature": given.temperature,
                "seconds": round(time.time() - started, 1),
                "false_alarms": {
                    suite: {str(n): asdict(rate) for n, rate in rates.items()}
                    for suite, rates in alarms.items()
                },
                "faults": [asdict(one) for one in found],
            },
        )
        print(text)
    except UserError as error:
        sys.exit(f"prompt_faults.py: error: {error}")


class Runs:
    """Runs suites with one model and one cache."""

    def __init__(self, model: str, out: Path, batch_size: int) -> None:
        self.model, self.out, self.batch_size = model, out, batch_size

    def __call__(
        self, suite: Suite, entries: Sequence[Entry], limit: int, seed: int | None = None
    ) -> dict[str, Cell]:
        """Return the cells of the entries by name.

        Args:
            suite: whose items and metrics.
            entries: N entries.
            limit: use the first so many items.
            seed: of sampling, in place of the suite's.
        """
        run = run_suite(
            replace(suite, entries=tuple(entries)),
            {"model": self.model},
            self.out / f"{suite.name}{'' if seed is None else f'-seed{seed}'}",
            cache=self.out / "known.sqlite",
            limit=limit,
            batch_size=self.batch_size,
            seed=seed,
        )
        return {cell.template: cell for cell in read_results(run.path)}


def chosen(suite: Suite, templates: Sequence[str] | None) -> Suite:
    """Return the suite with the templates named, or all.

    Raises:
        UserError: when it has none of them.
    """
    entries = tuple(e for e in suite.entries if templates is None or e.name in templates)
    if not entries:
        raise UserError(f"{suite.path}: lists none of {', '.join(templates or [])}")
    return replace(suite, entries=entries)


def measure(
    runs: Runs, suite: Suite, names: Sequence[str] | None, sizes: Sequence[int], alpha: float
) -> list[Found]:
    """Break every template of a suite in every way, and compare.

    A fault is compared as in practice: the run has one broken template among the suite's, and all
    its cells share Holm's correction. The items are the first n, as `--limit n` takes them.

    Args:
        runs: answers items.
        suite: the suite.
        names: of the faults; None takes all.
        sizes: numbers of items; those that the suite does not have are left out.
        alpha: the chance of any false finding in one comparison.

    Raises:
        UserError: when a fault's name is unknown.
    """
    faults = [fault for fault in FAULTS if names is None or fault.name in names]
    if names is not None and len(faults) < len(set(names)):
        known = ", ".join(fault.name for fault in FAULTS)
        raise UserError(f"unknown fault among {', '.join(names)}; there are: {known}")
    broken: list[tuple[Entry, str, Entry]] = []
    for entry in suite.entries:
        for fault in faults:
            template = fault.apply(entry.template)
            if template is not None:
                faulty = replace(entry, name=f"{entry.name}!{fault.name}", template=template)
                broken.append((entry, fault.name, faulty))
    entries = [*suite.entries, *(faulty for _, _, faulty in broken)]
    cells = runs(suite, entries, max(sizes))
    found = []
    for n in sizes:
        baseline = [cut(cells[entry.name], n) for entry in suite.entries]
        if len(baseline[0].items) < n:
            continue
        for entry, name, faulty in broken:
            run = [
                replace(cut(cells[faulty.name], n), template=entry.name)
                if cell.template == entry.name
                else cell
                for cell in baseline
            ]
            found.append(_found(suite.name, entry.name, name, n, baseline, run, alpha))
    return found


def false_alarms(
    runs: Runs, suite: Suite, seeds: int, temperature: float, sizes: Sequence[int], alpha: float
) -> dict[int, Estimate]:
    """Compare the unchanged templates with themselves over seeds, sampled.

    Args:
        runs: answers items.
        suite: the suite; its likelihood templates, where nothing is drawn, are left out.
        seeds: k runs, each of which is compared with each.
        temperature: of all templates.
        sizes: numbers of items.
        alpha: as in `measure`.

    Returns:
        The share of comparisons that found something, by the number of items; empty where the suite
        draws nothing.
    """
    entries = [
        replace(
            entry,
            template=entry.template.model_copy(
                update={
                    "generation": entry.template.generation.model_copy(
                        update={"temperature": temperature}
                    )
                }
            ),
        )
        for entry in suite.entries
        if entry.template.scoring == "generate"
    ]
    if not entries:
        return {}
    results = [runs(suite, entries, max(sizes), seed) for seed in range(seeds)]
    most = min(len(cell.items) for cell in results[0].values())
    return {
        n: false_alarm_rate([[cut(cell, n) for cell in run.values()] for run in results], alpha)
        for n in sizes
        if n <= most
    }


def cut(cell: Cell, n: int) -> Cell:
    """Return a cell with its first n items."""
    return replace(
        cell,
        items=cell.items[:n],
        passed=cell.passed[:n],
        score=cell.score[:n],
        parsed=cell.parsed[:n],
        rows=cell.rows[:n],
    )


def report(
    found: Sequence[Found],
    alarms: dict[str, dict[int, Estimate]],
    alpha: float,
    temperature: float,
) -> str:
    """Return the tables as Markdown: by fault, by template, and the false-alarm rate."""
    sizes = sorted({one.n for one in found})
    return "\n".join(
        [
            f"Alpha {alpha:g}; p-values corrected over the cells of the suite (Holm). Blind: too "
            "little was right before for a fall to be found.",
            "",
            *_by_fault(found, sizes),
            "",
            *_by_template(found, sizes),
            "",
            *_alarm_lines(alarms, temperature),
        ]
    )


def _found(
    suite: str,
    template: str,
    fault: str,
    n: int,
    baseline: Sequence[Cell],
    run: Sequence[Cell],
    alpha: float,
) -> Found:
    comparison = compare_runs(baseline, run, alpha)
    cell = next(each for each in comparison.cells if each.templates[0] == template)
    others = [each for each in comparison.cells if each is not cell and each.verdict in FOUND]
    return Found(
        suite=suite,
        template=template,
        fault=fault,
        n=n,
        verdict=cell.verdict,
        before=cell.passed.before,
        after=cell.passed.after,
        p_holm=cell.p_holm,
        blind=cell.blind,
        others=len(others),
    )


def _by_fault(found: Sequence[Found], sizes: Sequence[int]) -> list[str]:
    """Return, for every fault, in how many of the templates it was caught."""
    lines = [
        f"| fault | what was done | {' | '.join(f'n = {n}' for n in sizes)} |",
        f"|---|---|{'---|' * len(sizes)}",
    ]
    for fault in FAULTS:
        own = [one for one in found if one.fault == fault.name]
        if not own:
            continue
        shown = []
        for n in sizes:
            verdicts = Counter(one.verdict for one in own if one.n == n)
            better = f" (+{verdicts['improvement']} better)" if verdicts["improvement"] else ""
            shown.append(f"{verdicts['regression']} of {verdicts.total()}{better}")
        lines.append(f"| {fault.name} | {fault.description} | {' | '.join(shown)} |")
    totals = []
    for n in sizes:
        caught = [one.verdict in FOUND for one in found if one.n == n]
        totals.append(f"{sum(caught)} of {len(caught)}")
    return [*lines, f"| all | found, worse or better | {' | '.join(totals)} |"]


def _by_template(found: Sequence[Found], sizes: Sequence[int]) -> list[str]:
    """Return a row per template and fault, with the pass rates at the largest n."""
    lines = [
        f"| template | fault | before → after | {' | '.join(f'n = {n}' for n in sizes)} |",
        f"|---|---|---|{'---|' * len(sizes)}",
    ]
    for template, fault in dict.fromkeys((one.template, one.fault) for one in found):
        own = {one.n: one for one in found if (one.template, one.fault) == (template, fault)}
        last = own[max(own)]
        shown = [_verdict(own[n]) if n in own else "" for n in sizes]
        lines.append(
            f"| {template} | {fault} | {percent(last.before)} → {percent(last.after)} | "
            f"{' | '.join(shown)} |"
        )
    return lines


def _verdict(one: Found) -> str:
    if one.verdict in FOUND:
        return f"{FOUND[one.verdict]}, {p_value(one.p_holm)}"
    if one.p_holm is None or one.verdict == "unreliable baseline":
        return one.verdict
    return "blind" if one.blind else f"no, {p_value(one.p_holm)}"


def _alarm_lines(alarms: dict[str, dict[int, Estimate]], temperature: float) -> list[str]:
    if not alarms:
        return ["False alarms were not measured."]
    lines = [
        f"Unchanged templates against themselves under other seeds, temperature "
        f"{number(temperature, 1)}:",
        "",
        "| suite | n | comparisons with a false finding (95 % interval) |",
        "|---|---|---|",
    ]
    for suite, rates in alarms.items():
        for n, rate in rates.items():
            ci = percent_interval((rate.ci95.low, rate.ci95.high))
            lines.append(f"| {suite} | {n} | {percent(rate.value, 1)} ({ci}) |")
    return lines


if __name__ == "__main__":
    main()
