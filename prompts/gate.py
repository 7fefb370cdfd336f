"""The gate: a run held against a baseline and its thresholds, and how often the gate errs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prompts.baselines import load_baseline
from prompts.comparison import compare_runs, false_alarm_rate
from prompts.report import Report, notes
from prompts.results import RESULTS, Cell, read_record, read_results
from prompts.summary import summarise_run
from workbench.errors import UserError
from workbench.statistics import Estimate

MOST_REPEATS = 10  # of a run's own, compared with each other: 45 comparisons


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a run.

    Attributes:
        report: the run, its comparison and its thresholds; `report.failed` decides.
        unmeasured: why the false-alarm rate is not known; None where it is.
    """

    report: Report
    unmeasured: str | None

    @property
    def notes(self) -> list[str]:
        """Return what a reader must know: what was left out, and how often the gate errs."""
        said = notes(self.report)
        return said if self.unmeasured is None else [*said, self.unmeasured]


def judge(
    run: Path,
    baselines: Path,
    *,
    baseline: str | None = None,
    model: str | None = None,
    against: str | None = None,
    controls: Sequence[Path] = (),
    alpha: float = 0.05,
) -> Verdict:
    """Compare a run with its baseline.

    Args:
        run: the run folder.
        baselines: folder of the blessed results.
        baseline: another run folder, or the name of a blessed model; default: for every model of
            the run that was blessed, its own baseline.
        model: compare this model of the run only.
        against: another model of the same run, in place of a baseline.
        controls: further runs of the same models under other seeds, to measure false alarms.
        alpha: the chance of any false finding that is asked for.

    Raises:
        UserError: for runs, models or baselines that are missing or have nothing in common.
    """
    record, cells = read_record(run), read_results(run)
    compared = cells
    if model is not None:
        compared = _of_model(cells, model, run)
    elif against is not None:
        compared = [cell for cell in cells if cell.model != against]
    if against is not None:
        if baseline is not None:
            raise UserError("compare: give either --against MODEL or --baseline")
        before: Sequence[Cell] = _of_model(cells, against, run)
        others = sorted({cell.model for cell in compared})
        if len(others) != 1 or others == [against]:
            raise UserError(
                f"{run}: --against {against} sets one other model against it; name it with "
                f"--model (there are {', '.join(sorted({cell.model for cell in cells}))})"
            )
    else:
        before = _baseline(compared, record.suite, baselines, baseline)
    comparison = compare_runs(before, compared, alpha)
    rate = false_alarms(run, controls, alpha)
    measured, reason = (rate, None) if isinstance(rate, Estimate) else (None, rate)
    report = Report(record, cells, summarise_run(cells, record), comparison, measured)
    return Verdict(report, reason)


def false_alarms(run: Path, controls: Sequence[Path] = (), alpha: float = 0.05) -> Estimate | str:
    """Measure how often the gate finds something where only the seed differs.

    Args:
        run: the run folder.
        controls: runs of the same suite and models under other seeds. Without any, the run's own
            repeats are compared with each other, each as a run of one answer per item: they differ
            by nothing but the random numbers.
        alpha: as in the comparison.

    Returns:
        The rate, or in words why it is not known.

    Raises:
        UserError: for a control that is no such run.
    """
    cells = read_results(run)
    if controls:
        _check_controls(run, controls)
        return false_alarm_rate([cells, *(read_results(other) for other in controls)], alpha)
    sampled = [cell.repeats for cell in cells if cell.repeats > 1]
    if not sampled:
        return (
            "The rate of false alarms was not measured: that takes --control RUN with another "
            "seed, or --repeats 2 or more; greedy answers do not vary with the seed."
        )
    repeats = [_repeat(cells, number) for number in range(min(*sampled, MOST_REPEATS))]
    try:
        return false_alarm_rate(repeats, alpha)
    except UserError as error:
        return f"The rate of false alarms was not measured: {error}."


def _repeat(cells: Sequence[Cell], number: int) -> list[Cell]:
    """Return the cells as if only one repeat had been run; greedy cells have the same in all."""
    chosen = []
    for cell in cells:
        place = slice(number, number + 1) if cell.repeats > 1 else slice(0, 1)
        chosen.append(
            replace(
                cell,
                passed=cell.passed[:, place],
                score=cell.score[:, place],
                parsed=cell.parsed[:, place],
                rows=(),
            )
        )
    return chosen


def _of_model(cells: Sequence[Cell], model: str, run: Path) -> list[Cell]:
    found = [cell for cell in cells if cell.model == model]
    if not found:
        there = ", ".join(sorted({cell.model for cell in cells}))
        raise UserError(f"{run}: no results of model '{model}'; it has {there}")
    return found


def _baseline(
    cells: Sequence[Cell], suite: str, baselines: Path, name: str | None
) -> Sequence[Cell]:
    if name is not None and (Path(name) / RESULTS).is_file():
        return read_results(Path(name))
    if name is not None and "/" in name:
        raise UserError(
            f"{name}: no such run; give the folder of a `rlhf prompts run`, or the name of a "
            "blessed model"
        )
    if name is not None:
        return load_baseline(baselines, suite, name).cells
    models = sorted({cell.model for cell in cells})
    blessed = [model for model in models if (baselines / suite / f"{model}.json").is_file()]
    # Without any, loading the first says what to do.
    return [
        cell
        for model in blessed or models[:1]
        for cell in load_baseline(baselines, suite, model).cells
    ]


def _check_controls(run: Path, controls: Sequence[Path]) -> None:
    """Refuse runs of other models or with the same seed: their agreement would prove nothing."""
    seeds: dict[object, Path] = {}
    first = read_record(run)
    for folder in (run, *controls):
        record = read_record(folder)
        seed = record.model_dump().get("seed")
        if seed in seeds:
            raise UserError(
                f"{folder}: has seed {seed}, as {seeds[seed]}; make a control with another --seed"
            )
        seeds[seed] = folder
        for name, model in first.models.items():
            other = record.models.get(name, {})
            if other.get("content_hash") != model.get("content_hash"):
                raise UserError(
                    f"{folder}: model {name} is not the one of {run}; a control differs by seed "
                    "alone"
                )
