"""The runs here: their stages, whether these are finished and whole, what they reached."""

import difflib
import functools
import json
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.table import Table
from rich.text import Text

from workbench import launch
from workbench.config import settings, to_tree
from workbench.errors import UserError
from workbench.files import damage, sha256
from workbench.locks import writer
from workbench.run import RunSettings, read_metrics

StageState = Literal["finished", "unfinished", "damaged"]

# The files every stage writes; one of them is enough to list a stage that has lost the others.
MARKS = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "done.json")
# Those that other tools do not use as well: without one of them a folder is not removed.
SURE_MARKS = ("environment.json", "done.json")
RESULTS = {  # the numbers of a stage's summary that say how it went
    "sft": ("eval_loss",),
    "reward": ("accuracy", "length_only_accuracy", "ece"),
    "ppo": ("scores_first", "scores_last", "kl"),
}
COLOURS = {"whole": "green", "finished": "green", "damaged": "red"}
UNFOLDED = {"kind", "stage", "size", "state", "seed", "took"}  # columns of a table
REPEAT = "the same `rlhf` command makes it anew"

Root = Annotated[str, typer.Option("--root", help="folder of all runs")]


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        path: `<root>/<name>/<stage>`.
        state: `unfinished` is stopped or still running; `damaged` has changed since its end.
        reason: why it is not finished and whole; None when it is.
        started: local time of its last start; None where the record is lost.
        seed: None where the record is lost.
        seconds: what it took, from its last start; None until it is finished.
        bytes: size of all its files.
        summary: its results; empty where there are none.
    """

    path: Path
    state: StageState
    reason: str | None
    started: str | None
    seed: int | None
    seconds: float | None
    bytes: int
    summary: dict[str, Any]


def run_folders(root: Path) -> list[Path]:
    """Return the folders directly below `root` that hold at least one stage."""
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and stage_folders(path))


def stage_folders(run: Path) -> list[Path]:
    """Return the stages of a run in the order in which they run."""
    folders = [run / stage for stage in launch.STAGES]
    return [path for path in folders if any((path / mark).is_file() for mark in MARKS)]


def find_run(root: Path, name: str) -> Path:
    """Return the folder of a run.

    Raises:
        UserError: for a name with slashes, an unknown one (with the nearest known), and a folder
            that is not a run.
    """
    if name in {"", ".", ".."} or Path(name).name != name or "\\" in name:
        raise UserError(f"'{name}': not the name of a run; see `rlhf runs list`, use --root FOLDER")
    known = [path.name for path in run_folders(root)]
    if name in known:
        return root / name
    if root.is_dir() and name in {path.name for path in root.iterdir()}:
        raise UserError(f"{root / name}: not a run folder, no stage of rlhf has written there")
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"runs: {', '.join(known[:10]) or 'none'}"
    raise UserError(f"{root / name}: no such run; {hint}")


def read_stage(folder: Path) -> Stage:
    """Read a stage's folder; whatever is missing or damaged in it becomes its state and reason."""
    state, reason = stage_state(folder)
    started = read_mapping(folder / "environment.json").get("time")
    run = read_mapping(folder / "config.yaml").get("run")
    seed = run.get("seed") if isinstance(run, dict) else None
    summary = read_mapping(folder / "summary.json")
    seconds = summary.get("seconds")
    return Stage(
        path=folder,
        state=state,
        reason=reason,
        started=started[:16].replace("T", " ") if isinstance(started, str) else None,
        seed=seed if isinstance(seed, int) else None,
        seconds=seconds if isinstance(seconds, int | float) else None,
        bytes=total_bytes(folder),
        summary=summary,
    )


def stage_state(folder: Path) -> tuple[StageState, str | None]:
    """Return the state of a stage and, unless it is finished and whole, the reason.

    Reads only, where opening the same folder as a `StageRun` would begin the stage anew.
    """
    done = folder / "done.json"
    if not done.is_file():
        return "unfinished", _how_far(folder)
    files = read_mapping(done).get("files")
    if not isinstance(files, dict):
        return "damaged", f"{done} is damaged; {REPEAT}"
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            return "damaged", f"{path} is missing; {REPEAT}"
        if sha256(path) != known:
            return "damaged", f"{path} has changed since the stage finished; {REPEAT}"
    problem = damage(folder / "model")
    return ("damaged", f"{problem}; {REPEAT}") if problem else ("finished", None)


def changed_settings(folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return the settings of a stage that are not the defaults: dotted key to value and default.

    Raises:
        UserError: when its config.yaml is missing, damaged or of another version.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"{path} is missing")
    config = launch.stage_config(folder.name, str(path), [])
    tree, changes = to_tree(config), {}
    for setting in settings(type(config)):
        value = functools.reduce(operator.getitem, setting.key.split("."), tree)
        # Where a run is written changes nothing in it.
        if value != setting.default and setting.key not in {"run.name", "run.root"}:
            changes[setting.key] = (value, setting.default)
    return changes


def key_results(stage: str, summary: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a stage's summary that say how it went."""
    found = {key: summary.get(key) for key in RESULTS.get(stage, ())}
    return {key: value for key, value in found.items() if isinstance(value, int | float)}


def contents(folder: Path) -> dict[str, str]:
    """Return what lies directly in a folder, with sizes; folders end in a slash."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            count = sum(file.is_file() for file in path.rglob("*"))
            found[f"{path.name}/"] = f"{size(total_bytes(path))} in {count} files"
        else:
            found[path.name] = size(path.lstat().st_size)
    return found


def total_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; links count as themselves."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_symlink() or p.is_file())


def size(count: int) -> str:
    """Return a number of bytes with a unit: `818 B`, `3.5 MB`."""
    if count < 1000:
        return f"{count} B"
    power = 1 if count < 999_500 else 2 if count < 999_500_000 else 3
    value = count / 1000**power
    return f"{value:.{1 if value < 10 else 0}f} {('kB', 'MB', 'GB')[power - 1]}"


def runs_root(root: str) -> Path:
    """Return the folder `--root` names.

    Raises:
        UserError: when it is a file, or is not there and not the default.
    """
    path = Path(root)
    if path.exists() and not path.is_dir():
        raise UserError(f"--root {root}: a file, not a folder of runs")
    if not path.exists() and root != RunSettings.root:
        raise UserError(f"--root {root}: no such folder")
    return path


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON or YAML file; empty where it is missing, damaged or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def plain(text: str) -> str:
    """Return a text with `?` for what does not print.

    Names come from disk: an escape sequence in one must not reach the terminal.
    """
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def safe_text(text: str) -> Text:
    """Return a text for the terminal that prints as it is and folds where it is too long."""
    return Text(plain(text), overflow="fold")


def state_text(state: str) -> Text:
    """Return a state in its colour."""
    return Text(state, COLOURS.get(state, "yellow"))


def results_text(results: dict[str, float]) -> str:
    """Return results as one line of text."""
    return (
        ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in results.items()) or "–"
    )


def new_table(*columns: str) -> Table:
    """Return an empty table with these column titles."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column, no_wrap=column in UNFOLDED)
    return table


def _how_far(folder: Path) -> str:
    who = writer(folder)
    facts = [f"{who} is writing it" if who else "stopped"]
    if (folder / "metrics.jsonl").is_file():
        try:
            rows = read_metrics(folder / "metrics.jsonl")
            facts += [f"last logged step {rows[-1]['step']}"] if rows else []
        except (UserError, ValueError) as error:
            facts.append(str(error))
    steps = [path.name.rpartition("-")[2] for path in folder.glob("checkpoints/checkpoint-*")]
    numbers = [int(step) for step in steps if step.isdecimal()]
    facts += [f"newest checkpoint at step {max(numbers)}"] if numbers else ["no checkpoint"]
    return "; ".join([*facts, *([] if who else ["the same `rlhf` command continues"])])


def duration(seconds: float | None) -> str:
    """Return seconds as people say them: `48 s`, `12 min`, `3.5 h`; `–` for None."""
    if seconds is None:
        return "–"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.1f} h"


def brief(value: Any) -> str:
    """Return a number of a summary in short; of a long list or mapping, how long it is."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | dict) and len(text) > 60:
        return f"{len(value)} entries, in summary.json"
    return text
