"""How runs differ: settings and surroundings that are not the same, results side by side."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench import launch
from workbench.identity import flat_tree
from workbench.runs import StageState, read_mapping, stage_folders, stage_state

MISSING = "–"  # shown where a run has no such stage, setting or result
# Of a stage's environment: what can change its results or its speed.
SURROUNDINGS = ("versions", "python", "platform", "processor", "cpu_count", "git_commit")
# Where a run is written changes nothing in it.
PLACES = ("run.name", "run.root")


@dataclass(frozen=True)
class Differences:
    """One stage of several runs; every list has one entry a run, None where it has none.

    Attributes:
        states: finished, unfinished or damaged.
        settings: those that are not the same in all runs that have the stage.
        surroundings: likewise, of versions, machine and commit.
        results: all numbers of the summaries.
    """

    states: list[StageState | None]
    settings: dict[str, list[Any]]
    surroundings: dict[str, list[Any]]
    results: dict[str, list[Any]]

    def as_json(self) -> dict[str, Any]:
        """Return it for machines."""
        return dataclasses.asdict(self)


def compare_runs(runs: Sequence[Path]) -> dict[str, Differences]:
    """Return the differences of every stage that one of the runs has, in their order.

    Settings are read as they were recorded, so that runs of different versions can be compared.

    Args:
        runs: folders of two or more runs.
    """
    found = {}
    for stage in launch.STAGES:
        folders = [run / stage if run / stage in stage_folders(run) else None for run in runs]
        if any(folders):
            found[stage] = Differences(
                states=[None if folder is None else stage_state(folder)[0] for folder in folders],
                settings=_differing([_settings(folder) for folder in folders], folders),
                surroundings=_differing([_surroundings(folder) for folder in folders], folders),
                results=_side_by_side([_results(folder) for folder in folders]),
            )
    return found


def _settings(folder: Path | None) -> dict[str, Any]:
    flat = {} if folder is None else flat_tree(read_mapping(folder / "config.yaml"))
    return {key: value for key, value in flat.items() if key not in PLACES}


def _surroundings(folder: Path | None) -> dict[str, Any]:
    known = {} if folder is None else read_mapping(folder / "environment.json")
    flat = flat_tree({key: known[key] for key in SURROUNDINGS if key in known})
    return {key.removeprefix("versions."): value for key, value in flat.items()}


def _results(folder: Path | None) -> dict[str, Any]:
    return {} if folder is None else read_mapping(folder / "summary.json")


def _side_by_side(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys}


def _differing(
    rows: Sequence[dict[str, Any]], folders: Sequence[Path | None]
) -> dict[str, list[Any]]:
    """Return what is not the same in all rows whose run has the stage."""
    there = [place for place, folder in enumerate(folders) if folder is not None]
    return {
        key: values
        for key, values in _side_by_side(rows).items()
        if any(values[place] != values[there[0]] for place in there)
    }
