"""Prints the tables of docs/prompts.md from folders of `rlhf prompts run`: accuracy by task, the
alignment tax, and what chain of thought does, each with its interval.
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from scipy import special

from prompts.pairs import GRID, Pair
from prompts.results import Cell, FloatArray, read_record, read_results
from prompts.significance import difference_interval, holm, sign_flip
from prompts.summary import Summary, summarise
from workbench.errors import UserError
from workbench.files import write_json
from workbench.report.text import number, p_value, percent, percent_interval
from workbench.statistics import Estimate, Interval, paired_bootstrap

ALPHA = 0.05
STRATEGIES = (
    ("chain_of_thought", "zero_shot"),
    ("chain_of_thought", "few_shot"),
    ("zero_shot_cot", "zero_shot"),
)
ALL = "all tasks"

Cells = Mapping[tuple[str, str, str], Cell]
"""Cells by suite, template and model."""


@dataclass(frozen=True)
class Effect:
    """A paired difference of pass rates in one task, or over all of them.

    Attributes:
        task: name of the suite, or `all tasks`.
        before: mean pass rate of the first.
        after: mean pass rate of the second.
        difference: after minus before, with its 95 % interval over items.
        fell: items on which it fell.
        rose: items on which it rose.
        p: exact two-sided p-value of the sign flips.
        p_holm: corrected over the tasks; over all tasks, which is one test, p itself.
    """

    task: str
    before: float
    after: float
    difference: Estimate
    fell: int
    rose: int
    p: float
    p_holm: float


def main() -> None:
    """Print the tables and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--base", default="base", help="name of the model before alignment")
    parser.add_argument("--aligned", default="aligned", help="name of the model after it")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    given = parser.parse_args()
    try:
        cells = read_runs(given.runs)
        parts = [accuracy_table(cells)]
        numbers: dict[str, object] = {"accuracy": accuracies(cells)}
        models = list(dict.fromkeys(model for _, _, model in cells))
        if {given.base, given.aligned} <= set(models):
            tax = alignment_tax(cells, given.base, given.aligned)
            parts.append(effect_table(f"{given.aligned} against {given.base}", tax))
            numbers["alignment_tax"] = [asdict(effect) for effect in tax]
        for model in models:
            for strategy, reference in STRATEGIES:
                effects = strategy_effects(cells, model, strategy, reference)
                if not effects:
                    continue
                title = f"{model}: {strategy} against {reference}"
                parts.append(effect_table(title, effects))
                numbers[title] = [asdict(effect) for effect in effects]
        print("\n\n".join(parts))
        if given.json is not None:
            write_json(given.json, numbers)
    except UserError as error:
        sys.exit(f"prompt_tables.py: error: {error}")


def read_runs(folders: Sequence[Path]) -> Cells:
    """Return the cells of several runs.

    Raises:
        UserError: when a folder holds no run, or two have the same cell.
    """
    cells: dict[tuple[str, str, str], Cell] = {}
    places: dict[tuple[str, str, str], Path] = {}
    for folder in folders:
        suite = read_record(folder).suite
        for cell in read_results(folder):
            key = suite, cell.template, cell.model
            if key in cells:
                raise UserError(
                    f"{folder}: {cell.name} stands already in {places[key]}; name each run once"
                )
            cells[key], places[key] = cell, folder
    return cells


def accuracies(cells: Cells) -> list[dict[str, object]]:
    """Return the numbers of `accuracy_table`, a row per cell."""
    return [{"task": suite, **asdict(summarise(cell))} for (suite, _, _), cell in cells.items()]


def accuracy_table(cells: Cells) -> str:
    """Return task × strategy × model: the pass rate with its interval, and the unparsed rate.

    Where scores are graded, as with ROUGE, the mean score follows the pass rate.
    """
    models = list(dict.fromkeys(model for _, _, model in cells))
    heads = [f"{model} | {model}: unparsed" for model in models]
    lines = [
        f"| task | strategy | n | {' | '.join(heads)} |",
        f"|---|---|{'---|' * (1 + 2 * len(models))}",
    ]
    for suite, template in dict.fromkeys((suite, template) for suite, template, _ in cells):
        own = [cells.get((suite, template, model)) for model in models]
        sizes = "–".join(str(n) for n in sorted({len(cell.items) for cell in own if cell}))
        shown = [_accuracy(summarise(cell)) if cell else " | " for cell in own]
        lines.append(f"| {suite} | {_strategy(template)} | {sizes} | {' | '.join(shown)} |")
    return "\n".join(lines)


def alignment_tax(cells: Cells, base: str, aligned: str) -> list[Effect]:
    """Return what alignment changed, over all tasks and in each of them.

    The unit is the item of a task: its difference is the mean over the templates that both models
    answered, so that an item counts once however many templates asked it. Suites of the same items
    (`commonsense` and `smoke`) are two tasks: give the runs of one of them.

    Args:
        cells: of both models.
        base: name of the model before.
        aligned: name of the model after.

    Raises:
        UserError: when no task has answers of both.
    """
    pairs: dict[str, list[Pair]] = {}
    for (suite, template, model), cell in cells.items():
        other = cells.get((suite, template, aligned))
        if model == base and other is not None:
            pairs.setdefault(suite, []).append(Pair.of(cell, other))
    if not pairs:
        raise UserError(f"no template was answered by both {base} and {aligned}")
    return effects({suite: _item_means(own) for suite, own in pairs.items()})


def strategy_effects(cells: Cells, model: str, strategy: str, reference: str) -> list[Effect]:
    """Return what a strategy changes against another within a model; empty where no task has both.

    Args:
        cells: any.
        model: name of the model.
        strategy: last part of a template's name, such as `chain_of_thought`.
        reference: that of the template it is set against.
    """
    found = {}
    for (suite, template, owner), cell in cells.items():
        task = template.rpartition("/")[0]
        other = cells.get((suite, f"{task}/{strategy}", model))
        if owner == model and _strategy(template) == reference and other is not None:
            found[suite] = _item_means([Pair.of(cell, other)])
    return effects(found) if found else []


def effects(tasks: Mapping[str, tuple[FloatArray, FloatArray]]) -> list[Effect]:
    """Return the effect over all tasks and, if there are several, in each, Holm-corrected.

    Over all tasks every item weighs the same. Items are exchangeable between before and after one
    by one, so that the sign flips of all items together test all tasks at once.

    Args:
        tasks: pass rates before and after, each of shape (n,), by task.
    """
    single = [_effect(task, *rates) for task, rates in tasks.items()]
    corrected = holm([effect.p for effect in single])
    each = [replace(effect, p_holm=p) for effect, p in zip(single, corrected, strict=True)]
    if len(each) == 1:
        return each
    before, after = (np.concatenate([rates[side] for rates in tasks.values()]) for side in (0, 1))
    whole = _effect(ALL, before, after)
    spread = stratified_interval([rates[1] - rates[0] for rates in tasks.values()])
    if spread.low < spread.high:
        difference = Estimate(whole.difference.value, spread, len(before))
        whole = replace(whole, difference=difference)
    return [whole, *each]


def stratified_interval(strata: Sequence[FloatArray]) -> Interval:
    """Return the 95 % interval of the mean over all items, their number in each stratum fixed.

    The variance is Σ (n_h / N)² s_h² / n_h (Cochran 1977, section 5.4), with Satterthwaite's
    degrees of freedom.

    Args:
        strata: the values of each stratum, of shape (n_h,); single ones add no variance.
    """
    total = sum(map(len, strata))
    parts = [
        (len(values) / total) ** 2 * float(values.var(ddof=1)) / len(values)
        for values in strata
        if len(values) > 1
    ]
    sizes = [len(values) - 1 for values in strata if len(values) > 1]
    mean = float(sum(values.sum() for values in strata) / total)
    variance = math.fsum(parts)
    if variance == 0:
        return Interval(mean, mean)
    freedom = variance**2 / math.fsum(v**2 / n for v, n in zip(parts, sizes, strict=True))
    margin = float(special.stdtrit(freedom, 0.975)) * math.sqrt(variance)
    return Interval(mean - margin, mean + margin)


def effect_table(title: str, found: Sequence[Effect]) -> str:
    """Return effects as a table, in percentage points."""
    lines = [
        f"{title}, pass rate item by item:",
        "",
        "| task | n | before | after | difference, points (95 % interval) | fell / rose | p | "
        "p, Holm | |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for effect in found:
        ci, finding = effect.difference.ci95, ""
        if effect.p_holm <= ALPHA:
            finding = "worse" if effect.difference.value < 0 else "better"
        interval = f"{number(100 * ci.low, 1)} to {number(100 * ci.high, 1)}"
        lines.append(
            f"| {effect.task} | {effect.difference.n} | {percent(effect.before, 1)} | "
            f"{percent(effect.after, 1)} | {number(100 * effect.difference.value, 1)} ({interval}) "
            f"| {effect.fell} / {effect.rose} | {p_value(effect.p)} | "
            f"{'' if effect.task == ALL else p_value(effect.p_holm)} | {finding} |"
        )
    return "\n".join(lines)


def _item_means(pairs: Sequence[Pair]) -> tuple[FloatArray, FloatArray]:
    """Return each item's pass rate before and after, averaged over the pairs that have it."""
    sums: dict[str, list[tuple[float, float]]] = {}
    for pair in pairs:
        for item, before, after in zip(pair.items, *pair.passes, strict=True):
            sums.setdefault(item, []).append((float(before), float(after)))
    means = np.array([np.mean(own, axis=0) for _, own in sorted(sums.items())])
    return means[:, 0], means[:, 1]


def _effect(task: str, before: FloatArray, after: FloatArray) -> Effect:
    # Rounded, so that equal shares of repeats or templates are equal numbers.
    change = (after - before).round(9)
    fell, rose = int((change < 0).sum()), int((change > 0).sum())
    p = sign_flip(np.rint(change * GRID).astype(np.int64))
    return Effect(
        task=task,
        before=float(before.mean()),
        after=float(after.mean()),
        difference=_difference(change, fell, rose),
        fell=fell,
        rose=rose,
        p=p,
        p_holm=p,
    )


def _difference(change: FloatArray, fell: int, rose: int) -> Estimate:
    """Return the mean change with the interval that `prompts compare` would give."""
    n, mean = len(change), float(change.mean())
    if set(np.unique(change)) <= {-1.0, 0.0, 1.0}:
        return Estimate(mean, difference_interval(fell, rose, n), n)
    return paired_bootstrap(change, np.zeros(n)) if n > 1 else Estimate(mean, Interval(-1, 1), n)


def _strategy(template: str) -> str:
    return template.rpartition("/")[2]


def _accuracy(found: Summary) -> str:
    """Return two table cells: pass rate with interval, and the unparsed rate."""
    ci = found.pass_rate.ci95
    text = f"{percent(found.pass_rate.value, 1)} ({percent_interval((ci.low, ci.high))})"
    if not math.isclose(found.score.value, found.pass_rate.value):
        text += f", score {number(found.score.value)}"
    return f"{text} | {percent(found.unparsed_rate, 1)}"


if __name__ == "__main__":
    main()
