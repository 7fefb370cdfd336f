"""The `rlhf prompts` commands around a suite: run, compare, bless, report."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prompts.options import (
    BaselineFolder,
    BatchSize,
    By,
    CacheFile,
    ComputeType,
    DataFile,
    Fields,
    LibraryFolder,
    Limit,
    NoCache,
    Note,
    RunFolder,
    Target,
    cache_file,
    library_of,
    named_fields,
)
from workbench.errors import UserError
from workbench.logs import console
from workbench.sources import named_sources

if TYPE_CHECKING:
    from prompts.report import Report
    from prompts.suite import Suite

BASELINES = Path("prompts/baselines")


def run(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="suite file, or the name of a starter suite")
    ],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--models",
            help="name=model, several joined by commas [default: base=smollm2-135m-instruct]",
            show_default=False,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--template", help="only this template of the suite; may be repeated"),
    ] = None,
    data: DataFile = None,
    fields: Fields = None,
    target: Target = None,
    limit: Limit = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="answers per item; greedy ones collapse to one")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="of the sampling; default: the suite's")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder of the run; default: runs/prompts/SUITE-TIME")
    ] = None,
    batch_size: BatchSize = 32,
    precision: ComputeType = "auto",
    cache: CacheFile = None,
    no_cache: NoCache = False,
    library: LibraryFolder = None,
) -> None:
    """Run a suite: every template, model, item and repeat; exit code 1 if a threshold is missed.

    What was answered before comes from the cache.

    Example: `rlhf prompts run smoke --models base=smollm2-135m-instruct,mine=runs/mine/ppo/model`
    """
    from rich.console import Console

    from prompts.display import cells_table
    from prompts.report import count, sentences
    from prompts.runner import run_folder, run_suite
    from prompts.suite import find_suite, load_suite
    from workbench import embedded

    loaded = _only(load_suite(find_suite(suite), library_of(library)), only or [])
    done = run_suite(
        loaded,
        named_sources(models or [f"base={embedded.NAME}"], "--models"),
        out or run_folder(loaded.name),
        cache=cache_file(cache, no_cache),
        limit=limit,
        repeats=repeats,
        batch_size=batch_size,
        data=data,
        fields=named_fields(fields or []),
        target=target,
        seed=seed,
        precision=precision,
    )
    drawn = draw(done.path)
    screen = Console(highlight=False, markup=False)
    for line in cells_table(drawn.summaries):
        screen.print(line, soft_wrap=True)
    screen.print()
    for sentence in sentences(drawn):
        screen.print(sentence, soft_wrap=True)
    console.print(
        f"{count(done.generated, 'answer')} generated, {done.cached} from the cache, "
        f"{done.seconds:.1f} s; results and report.html in {done.path}",
        markup=False,
    )
    if drawn.failed:
        raise typer.Exit(1)


def compare(
    run: RunFolder,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="another run, or the name of a blessed model; default: the blessed results of "
            "every model of RUN"
        ),
    ] = None,
    baselines: BaselineFolder = BASELINES,
    model: Annotated[str | None, typer.Option(help="compare this model of RUN only")] = None,
    against: Annotated[
        str | None, typer.Option(help="another model of RUN, in place of a baseline")
    ] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option(
            help="run of the same models under another seed, to measure false alarms; may be "
            "repeated; default: RUN's own repeats"
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="chance of any false finding that is asked for")
    ] = 0.05,
    out: Annotated[Path | None, typer.Option(help="folder of the reports; default: RUN")] = None,
) -> None:
    """Compare a run with its baseline item by item; exit code 1 on a regression or threshold.

    Example: `rlhf prompts compare runs/prompts/mine --baseline base`
    """
    from rich.console import Console

    from prompts.display import comparison_table, print_lost
    from prompts.gate import judge
    from prompts.report import sentences
    from prompts.reporting import write_reports

    verdict = judge(
        run,
        baselines,
        baseline=baseline,
        model=model,
        against=against,
        controls=control or [],
        alpha=alpha,
    )
    report = verdict.report
    screen = Console(highlight=False, markup=False)
    for line in comparison_table(report.compared):
        screen.print(line, soft_wrap=True)
    screen.print()
    print_lost(screen, report.compared)
    for sentence in [*sentences(report), *verdict.notes]:
        screen.print(sentence, soft_wrap=True)
    write_reports(report, out or run)
    console.print(f"report.html in {out or run}", markup=False)
    if report.failed:
        raise typer.Exit(1)


def bless(
    run: RunFolder,
    model: Annotated[
        str | None, typer.Option(help="the model to bless; may be left out where RUN has one")
    ] = None,
    baselines: BaselineFolder = BASELINES,
    by: By = "",
    note: Note = "",
) -> None:
    """Make a model's results the baseline that later runs are compared with.

    The file is text, one item a line: commit it.

    Example: `rlhf prompts bless runs/prompts/mine --model base --by ann --note "first release"`
    """
    from prompts.baselines import bless as write_baseline
    from prompts.results import read_record

    models = sorted(read_record(run).models)
    if model is None and len(models) != 1:
        raise UserError(f"{run}: has the models {', '.join(models)}; name one with --model")
    path = write_baseline(run, model or models[0], baselines, by, note)
    console.print(f"blessed: {path}", markup=False)


def report(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="folder to write to; default: RUN")] = None,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="print the Markdown instead of writing files")
    ] = False,
) -> None:
    """Draw summary.json, report.md, report.html and junit.xml again from a run's results.

    A report with a comparison is drawn by `rlhf prompts compare`.

    Example: `rlhf prompts report runs/prompts/mine --markdown`
    """
    from prompts.report import read_report
    from prompts.reporting import markdown

    if as_markdown:
        if out is not None:
            raise UserError("report: give either --out FOLDER or --markdown")
        sys.stdout.write(markdown(read_report(run)))
        return
    draw(run, out)
    console.print(f"report.html in {out or run}", markup=False)


def draw(run: Path, out: Path | None = None) -> "Report":
    """Write the summary and the reports of a run and return what they are drawn from."""
    from prompts.report import read_report
    from prompts.reporting import write_reports
    from prompts.runner import check_writable
    from prompts.summary import SUMMARY, write_summary

    found = read_report(run)
    folder = out or run
    check_writable(folder / SUMMARY)
    write_summary(folder, found.record.suite, found.summaries)
    write_reports(found, folder)
    return found


def add_to(app: typer.Typer) -> None:
    """Add these commands to an app."""
    for command in (run, compare, bless, report):
        app.command(rich_help_panel="Suites")(command)


def _only(suite: "Suite", names: list[str]) -> "Suite":
    """Return the suite with these of its templates, or with all."""
    from prompts.documents import nearest

    known = [entry.name for entry in suite.entries]
    for name in names:
        if name not in known:
            raise UserError(f"--template {name}: not in suite {suite.name}; {nearest(name, known)}")
    chosen = tuple(entry for entry in suite.entries if entry.name in names)
    return replace(suite, entries=chosen or suite.entries)
