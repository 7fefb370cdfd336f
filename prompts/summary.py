"""The numbers of every cell of a run, with intervals and the suite's thresholds: summary.json."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from prompts.results import Cell, FloatArray, Record, Row
from prompts.significance import Z95
from workbench.files import write_json
from workbench.statistics import Estimate, Interval, bootstrap_mean

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Summary:
    """The numbers of one cell; intervals are of 95 %, over items.

    Attributes:
        template: name of the template.
        version: its content hash.
        model: name of the model.
        n: items.
        repeats: answers per item.
        passed: answers that passed, of n × repeats.
        pass_rate: their share, with Wilson's interval.
        score: mean primary score, with the bootstrap interval of the item means.
        strict_accuracy: the accuracy if only what the first extractor found counted.
        flexible_accuracy: the accuracy of the extracted answers (exact match where measured, else
            the primary score).
        unparsed_rate: share of answers from which nothing could be extracted.
        unfinished_rate: share of answers that were cut off.
        latency_p50: median time of an answer in ms; None where no time is known.
        latency_p95: the 95th percentile.
        tokens_in: prompt tokens in all.
        tokens_out: generated tokens in all.
        tokens_per_second: generated tokens per second of computing; None where no time is known.
        thresholds: the suite's limits for this template.
        failures: in words, the thresholds that do not hold.
    """

    template: str
    version: str
    model: str
    n: int
    repeats: int
    passed: int
    pass_rate: Estimate
    score: Estimate
    strict_accuracy: float
    flexible_accuracy: float
    unparsed_rate: float
    unfinished_rate: float
    latency_p50: float | None
    latency_p95: float | None
    tokens_in: int
    tokens_out: int
    tokens_per_second: float | None
    thresholds: dict[str, float]
    failures: tuple[str, ...]


def wilson(k: float, n: int) -> Interval:
    """Return Wilson's 95 % interval of a proportion (Wilson 1927).

    Args:
        k: Successes, 0 <= k <= n. Where every unit gives a share rather than 0 or 1, as the mean of
            repeats does, its variance is at most that of a coin, and the interval errs to the wide
            side.
        n: Independent units, at least 1.
    """
    share, z2 = k / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    margin = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Interval(max(0.0, centre - margin), min(1.0, centre + margin))


def summarise(cell: Cell, thresholds: Mapping[str, float] | None = None) -> Summary:
    """Return the numbers of a cell and whether they keep to the suite's thresholds.

    Args:
        cell: with its rows.
        thresholds: `pass_rate`, the least there may be, and `unparsed_rate`, the most.
    """
    limits = {"pass_rate": 0.0, "unparsed_rate": 1.0, **(thresholds or {})}
    rows = [row for repeats in cell.rows for row in repeats]
    n, seconds = len(cell.items), [row.seconds for row in rows if row.seconds is not None]
    latency = [1000 * float(q) for q in np.percentile(seconds, [50, 95])] if seconds else None
    tokens_out = sum(row.tokens for row in rows)
    time = math.fsum(row.share for row in rows if row.share is not None)
    share, unparsed = float(cell.passed.mean()), float((~cell.parsed).mean())
    strict, flexible = accuracies(rows)
    return Summary(
        template=cell.template,
        version=cell.version,
        model=cell.model,
        n=n,
        repeats=cell.repeats,
        passed=int(cell.passed.sum()),
        pass_rate=Estimate(share, wilson(share * n, n), n),
        score=_mean(cell.score.mean(axis=1)),
        strict_accuracy=strict,
        flexible_accuracy=flexible,
        unparsed_rate=unparsed,
        unfinished_rate=sum(not row.finished for row in rows) / len(rows),
        latency_p50=latency[0] if latency else None,
        latency_p95=latency[1] if latency else None,
        tokens_in=sum(row.prompt_tokens for row in rows),
        tokens_out=tokens_out,
        tokens_per_second=tokens_out / time if time else None,
        thresholds=limits,
        failures=tuple(_failures(share, unparsed, limits)),
    )


def accuracies(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the strict and the flexible accuracy of the answers.

    What the first extractor finds is also what the chain finds, so that such an answer is as right
    strictly as it is flexibly; only two majorities over samples may differ.
    """
    flexible, strict = [], []
    for row in rows:
        right = row.scores.get("exact_match", row.score)
        flexible.append(right)
        if "exact_match_strict" in row.scores:
            strict.append(row.scores["exact_match_strict"])
        elif row.choices is not None or row.strict == row.flexible:
            strict.append(right)
        else:
            strict.append(float(row.strict in row.target))
    return sum(strict) / len(rows), sum(flexible) / len(rows)


def summarise_run(cells: Iterable[Cell], record: Record) -> list[Summary]:
    """Return the numbers of every cell, held against the thresholds of the run."""
    return [summarise(cell, record.thresholds.get(cell.template)) for cell in cells]


def write_summary(folder: Path, suite: str, summaries: Iterable[Summary]) -> Path:
    """Write summary.json and return its path."""
    cells = [asdict(summary) for summary in summaries]
    write_json(folder / SUMMARY, {"suite": suite, "cells": cells})
    return folder / SUMMARY


def _mean(values: FloatArray) -> Estimate:
    if len(values) < 2:
        return Estimate(float(values[0]), Interval(0.0, 1.0), len(values))
    return bootstrap_mean(values)


def _failures(share: float, unparsed: float, limits: Mapping[str, float]) -> Iterable[str]:
    for name, value, missed, side in (
        ("pass_rate", share, share < limits["pass_rate"], "below"),
        ("unparsed_rate", unparsed, unparsed > limits["unparsed_rate"], "above"),
    ):
        if missed:
            what = name.replace("_", " ")
            yield f"{what} {100 * value:.1f} % is {side} the threshold {100 * limits[name]:.1f} %"
