"""How good a reward model is on held-out pairs: accuracy, calibration, and length's share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from reward.data import Comparison
from workbench.metrics import (
    AccuracyByCategory,
    AccuracyByMargin,
    Calibration,
    LengthOnlyAccuracy,
    PairAccuracy,
    length_direction,
)
from workbench.scorer import RewardModel


@dataclass(frozen=True)
class ScoredPairs:
    """Raw scores and lengths of held-out pairs, one entry per pair."""

    chosen: list[float]
    rejected: list[float]
    chosen_length: list[int]
    rejected_length: list[int]
    weights: list[float]
    groups: list[str]
    categories: list[str]


def score_pairs(model: RewardModel, rows: Sequence[Comparison]) -> ScoredPairs:
    """Score every different answer once and spread the scores over the pairs."""
    texts = {tuple(ids) for row in rows for ids in (*row.chosen_ids, *row.rejected_ids)}
    known = sorted(texts)
    scores = dict(zip(known, model.raw_scores(known, desc="reward: held-out pairs"), strict=True))
    pairs = [(row, i) for row in rows for i in range(len(row.weight))]
    return ScoredPairs(
        chosen=[scores[tuple(row.chosen_ids[i])] for row, i in pairs],
        rejected=[scores[tuple(row.rejected_ids[i])] for row, i in pairs],
        chosen_length=[len(row.chosen_ids[i]) for row, i in pairs],
        rejected_length=[len(row.rejected_ids[i]) for row, i in pairs],
        weights=[row.weight[i] for row, i in pairs],
        groups=[row.group for row, _ in pairs],
        categories=[row.category for row, _ in pairs],
    )


def evaluate(pairs: ScoredPairs, train: Sequence[Comparison]) -> dict[str, Any]:
    """Return the numbers of a reward model's summary.

    The length-only baseline learns its direction (longer or shorter wins) on the training pairs.
    """
    sides = {"chosen": pairs.chosen, "rejected": pairs.rejected}
    lengths = {"chosen_length": pairs.chosen_length, "rejected_length": pairs.rejected_length}
    options: dict[str, Any] = {"weights": pairs.weights, "groups": pairs.groups}
    accuracy = PairAccuracy().compute(**sides, **options)
    calibration = Calibration().compute(**sides, weights=pairs.weights)
    direction = length_direction(
        [len(ids) for row in train for ids in row.chosen_ids],
        [len(ids) for row in train for ids in row.rejected_ids],
    )
    length_only = LengthOnlyAccuracy().compute(**lengths, direction=direction, **options)
    summary = {
        "accuracy": accuracy["accuracy"],
        "ci95": accuracy["ci95"],
        "length_only_accuracy": length_only["accuracy"],
        "length_only_ci95": length_only["ci95"],
        "length_only_direction": direction,
        "ece": calibration["ece"],
        "pairs": accuracy["n"],
        "calibration": [row for row in calibration["bins"] if row["count"]],
        "by_margin": _renamed(AccuracyByMargin().compute(**sides, **options)["buckets"]),
    }
    if any(pairs.categories):
        rows = AccuracyByCategory().compute(
            **sides, category=[c or "none" for c in pairs.categories], **options
        )
        summary["by_category"] = {
            row["label"]: {"accuracy": row["accuracy"], "ci95": row["ci95"], "count": row["n"]}
            for row in rows["categories"]
        }
    return summary


def _renamed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "low": row["low"],
            "high": row["high"],
            "accuracy": row["accuracy"],
            "ci95": row["ci95"],
            "count": row["n"],
        }
        for row in rows
    ]
