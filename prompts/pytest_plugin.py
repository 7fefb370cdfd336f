"""The pytest plugin: `pytest --prompt-suite FILE` reports every cell of a suite as one test.

A cell fails when it misses a threshold of its suite or, with `--prompt-baseline FOLDER`, when it
regressed against the blessed results. The suite is run once, when its first cell is asked for.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from workbench.errors import UserError

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr
    from _pytest.terminal import TerminalReporter

    from prompts.gate import Verdict
    from prompts.report import Report
    from prompts.suite import Suite
    from prompts.verdicts import CellComparison

LOST_LISTED = 20  # items named in a failure

suites_key = pytest.StashKey[list[Path]]()
finished_key = pytest.StashKey[list["SuiteFile"]]()


class GateError(Exception):
    """A cell misses a threshold or regressed; the message says which and by how much."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("prompts", "prompt suites (rlhf-workbench)")
    group.addoption(
        "--prompt-suite",
        action="append",
        default=[],
        metavar="FILE",
        help="suite file, or the name of a starter suite; may be repeated",
    )
    group.addoption(
        "--prompt-models",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="models, joined by commas; default: base=smollm2-135m-instruct",
    )
    group.addoption(
        "--prompt-baseline",
        metavar="FOLDER",
        help="folder of blessed results; a regression against them fails the cell",
    )
    group.addoption(
        "--prompt-library",
        metavar="FOLDER",
        help="folder of templates; default: the starter library",
    )
    group.addoption(
        "--prompt-limit", type=int, metavar="N", help="use only the first so many items"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Collect the suites, and other tests only where they are asked for by name."""
    names = config.getoption("prompt_suite")
    config.stash[finished_key] = []
    config.stash[suites_key] = []
    if not names:
        return
    from prompts.suite import find_suite

    try:
        suites = [find_suite(name).resolve() for name in names]
    except UserError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[suites_key] = suites
    asked = config.args_source is pytest.Config.ArgsSource.ARGS
    args = config.args if asked else []
    # A worker of pytest-xdist gets the arguments as they were completed before.
    config.args[:] = [*args, *(str(path) for path in suites if str(path) not in args)]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "SuiteFile | None":
    """Collect the cells of a suite file that was asked for."""
    suites = parent.config.stash[suites_key]
    if not suites or file_path.resolve() not in suites:
        return None
    return SuiteFile.from_parent(parent, path=file_path)


def pytest_terminal_summary(terminalreporter: "TerminalReporter", config: pytest.Config) -> None:
    """Say in words what the suites have shown, and where the results lie."""
    for collected in config.stash[finished_key]:
        from prompts.report import sentences

        verdict = collected.verdict()
        terminalreporter.section(f"prompt suite {verdict.report.record.suite}")
        for line in [*sentences(verdict.report), *verdict.notes]:
            terminalreporter.line(line)
        terminalreporter.line(f"results and report.html in {collected.folder}")


class SuiteFile(pytest.File):
    """A suite, whose cells are its tests."""

    _verdict: "Verdict | None" = None
    _error: UserError | None = None
    _suite: "Suite | None" = None

    def collect(self) -> Iterator["CellItem"]:
        """Yield one test per template and model."""
        from workbench.sources import named_sources

        try:
            self._suite = suite = self._load()
            asked = self.config.getoption("prompt_models") or [_default_model()]
            models = named_sources(asked, "--prompt-models")
        except UserError as error:
            raise self.CollectError(str(error)) from None
        for entry in suite.entries:
            for name, source in models.items():
                item: CellItem = CellItem.from_parent(self, name=f"{entry.name}[{name}]")
                item.template, item.model, item.source = entry.name, name, source
                yield item

    @property
    def folder(self) -> Path:
        """Where the results go."""
        from prompts.runner import run_folder

        return run_folder(self._load().name, "pytest")

    def verdict(self) -> "Verdict":
        """Return what the gate says of the selected cells; the suite is run the first time.

        Raises:
            UserError: when it cannot be run or compared; at every call.
        """
        if self._error is not None:
            raise self._error
        if self._verdict is None:
            try:
                self._verdict = self._judged()
            except UserError as error:
                self._error = error
                raise
            self.config.stash[finished_key].append(self)
        return self._verdict

    def _judged(self) -> "Verdict":
        from dataclasses import replace

        from prompts.baselines import load_baseline
        from prompts.gate import Verdict, judge
        from prompts.options import cache_file
        from prompts.reporting import write_reports
        from prompts.runner import run_suite
        from prompts.suite_command import draw

        chosen = [
            item
            for item in self.session.items
            if isinstance(item, CellItem) and item.parent is self
        ]
        templates = {item.template for item in chosen}
        models = {item.model: item.source for item in chosen}
        suite = self._load()
        run_suite(
            replace(suite, entries=tuple(e for e in suite.entries if e.name in templates)),
            models,
            self.folder,
            cache=cache_file(None, no_cache=False),
            limit=self.config.getoption("prompt_limit"),
        )
        report = draw(self.folder)
        baselines = self.config.getoption("prompt_baseline")
        if baselines is None:
            return Verdict(report, None)
        for model in models:
            load_baseline(Path(baselines), suite.name, model)  # each of them must have one
        verdict = judge(self.folder, Path(baselines))
        write_reports(verdict.report, self.folder)
        return verdict

    def _load(self) -> "Suite":
        from prompts.options import library_of
        from prompts.suite import load_suite

        if self._suite is None:
            library = self.config.getoption("prompt_library")
            self._suite = load_suite(self.path, library_of(Path(library) if library else None))
        return self._suite


class CellItem(pytest.Item):
    """A template with a model."""

    template: str
    model: str
    source: str

    def runtest(self) -> None:
        """Fail where the gate fails the cell; skip where nothing can be concluded."""
        from prompts.reporting import UNDECIDED

        suite = self.getparent(SuiteFile)
        if suite is None:
            raise RuntimeError(f"{self.name} was not collected from a suite")
        report = suite.verdict().report
        compared = self._compared(report)
        reasons = self._reasons(report, compared)
        if reasons:
            raise GateError("\n".join(reasons))
        if report.comparison is not None and compared is None:
            pytest.skip("not in the baseline")
        if compared is not None and compared.verdict in UNDECIDED:
            pytest.skip(compared.verdict)

    def repr_failure(
        self,
        excinfo: pytest.ExceptionInfo[BaseException],
        style: object = None,  # noqa: ARG002 - pytest's signature
    ) -> "str | TerminalRepr":
        """Return what failed, in words."""
        if isinstance(excinfo.value, GateError | UserError):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return where the cell stands and what it is called."""
        return self.path, None, f"{self.template} with {self.model}"

    def _compared(self, report: "Report") -> "CellComparison | None":
        return next(
            (
                cell
                for cell in report.compared
                if (cell.templates[1], cell.models[1]) == (self.template, self.model)
            ),
            None,
        )

    def _reasons(self, report: "Report", compared: "CellComparison | None") -> list[str]:
        from prompts.report import change, count, in_words

        (summary,) = (
            each
            for each in report.summaries
            if (each.template, each.model) == (self.template, self.model)
        )
        self.user_properties += [
            ("items", str(summary.n)),
            ("pass_rate", f"{summary.pass_rate.value:.4f}"),
            ("unparsed_rate", f"{summary.unparsed_rate:.4f}"),
        ]
        reasons = list(summary.failures)
        if compared is not None:
            self.user_properties.append(("verdict", compared.verdict))
        if compared is not None and compared.verdict == "regression":
            reasons.append(f"regression: {change(compared)}")
            lost = [pair for pair in compared.changed() if pair.change in ("lost", "score fell")]
            reasons += [
                f"  {pair.item}: {in_words(pair)} ({pair.passes[0]} → {pair.passes[1]} of "
                f"{pair.repeats})"
                for pair in lost[:LOST_LISTED]
            ]
            if len(lost) > LOST_LISTED:
                reasons.append(f"  and {count(len(lost) - LOST_LISTED, 'item')} more")
        return reasons


def _default_model() -> str:
    from workbench import embedded

    return f"base={embedded.NAME}"
