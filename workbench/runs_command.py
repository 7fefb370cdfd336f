"""The `rlhf runs` commands: which runs are here, how they differ, and away with one."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from workbench.errors import UserError
from workbench.locks import lock, writer
from workbench.logs import console as messages
from workbench.logs import progress
from workbench.run import RunSettings
from workbench.run_differences import MISSING, compare_runs
from workbench.runs import (
    SURE_MARKS,
    Root,
    Stage,
    brief,
    changed_settings,
    contents,
    duration,
    find_run,
    key_results,
    new_table,
    plain,
    read_mapping,
    read_stage,
    results_text,
    run_folders,
    runs_root,
    safe_text,
    size,
    stage_folders,
    state_text,
    total_bytes,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="name of the run")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON, for machines")]

app = typer.Typer(no_args_is_help=True, help="List, look into, compare and remove runs.")


@app.command("list")
def list_runs(root: Root = RunSettings.root, as_json: AsJson = False) -> None:
    """List every run with its stages: state, start, seed, time, size and key results.

    Example: `rlhf runs list`
    """
    folders = [stage for run in run_folders(runs_root(root)) for stage in stage_folders(run)]
    stages = [read_stage(folder) for folder in progress(folders, "checking runs")]
    if as_json:
        _print_json([_as_json(stage) for stage in stages])
        return
    console = Console(highlight=False, markup=False)
    if not folders:
        console.print(safe_text(f"no runs in {root}; `rlhf demo` starts one"))
        return
    table = new_table("run", "stage", "state", "started", "seed", "took", "size", "results")
    above = ""
    for stage in stages:
        run, name = stage.path.parent.name, stage.path.name
        table.add_row(
            safe_text("" if run == above else run),
            name,
            state_text(stage.state),
            safe_text(stage.started or "unknown"),
            "–" if stage.seed is None else str(stage.seed),
            duration(stage.seconds),
            size(stage.bytes),
            results_text(key_results(name, stage.summary)),
        )
        above = run
    console.print(table)
    if any(stage.state != "finished" for stage in stages):
        console.print("\n`rlhf runs show NAME` says why a stage is unfinished or damaged")


@app.command()
def show(name: Name, root: Root = RunSettings.root, as_json: AsJson = False) -> None:
    """Show a run's stages: state, settings other than the defaults, versions, results and files.

    Example: `rlhf runs show demo`
    """
    run = find_run(runs_root(root), name)
    folders = stage_folders(run)
    stages = {folder.name: _details(read_stage(folder)) for folder in folders}
    known = {f"{folder.name}/" for folder in folders}
    others = {key: value for key, value in contents(run).items() if key not in known}
    if as_json:
        _print_json({"run": name, "path": str(run), "stages": stages, "files": others})
        return
    console = Console(highlight=False, markup=False)
    for stage, facts in stages.items():
        started = f", started {facts['started'] or 'at an unknown time'}"
        console.print(
            Text.assemble((stage, "bold"), ": ", state_text(facts["state"]), safe_text(started))
        )
        if facts["reason"]:
            console.print(safe_text(f"  {facts['reason']}"), soft_wrap=True)
        changes = {
            key: f"{json.dumps(value)} (default {json.dumps(default)})"
            for key, (value, default) in facts["settings"].items()
        }
        if facts["settings_error"]:
            changes = {"unreadable": facts["settings_error"]}
        _section(console, "settings other than the defaults", changes)
        _section(console, "versions", facts["versions"])
        _section(console, "results", {key: brief(value) for key, value in facts["summary"].items()})
        _section(console, "files", facts["files"])
        console.print()
    if others:
        _section(console, "beside the stages", others)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="names of two or more runs")],
    root: Root = RunSettings.root,
    as_json: AsJson = False,
) -> None:
    """Compare runs: the settings and versions that differ, and their results side by side.

    Example: `rlhf runs compare demo demo-1`
    """
    folder = runs_root(root)
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"compare {' '.join(names)}: name two or more runs, each once")
    found = compare_runs([find_run(folder, name) for name in names])
    if as_json:
        _print_json({"runs": names, "stages": {k: v.as_json() for k, v in found.items()}})
        return
    console = Console(highlight=False, markup=False)
    for stage, differences in found.items():
        states = [state or MISSING for state in differences.states]
        console.print(Text(stage, "bold"))
        table = new_table("", *names)
        table.add_row(Text("state", "dim"), *map(state_text, states))
        for title, rows, nothing in (
            ("settings that differ", differences.settings, "null"),
            ("surroundings that differ", differences.surroundings, MISSING),
            ("results", differences.results, MISSING),
        ):
            table.add_row()
            table.add_row(Text(f"{title}{'' if rows else ': none'}", "dim"))
            for key, values in rows.items():
                shown = [
                    MISSING if state is None else nothing if value is None else brief(value)
                    for value, state in zip(values, differences.states, strict=True)
                ]
                table.add_row(safe_text(key), *map(safe_text, shown))
        console.print(Padding(table, (0, 0, 1, 2), expand=False))


@app.command()
def rm(
    name: Name,
    root: Root = RunSettings.root,
    stage: Annotated[
        Literal["sft", "reward", "ppo"] | None,
        typer.Option("--stage", help="remove this stage only"),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove one run: its folder with all stages, models and reports, and nothing else.

    A run that is being written is left alone, and links are never followed.

    Example: `rlhf runs rm demo --yes`
    """
    run = find_run(runs_root(root), name)
    folders = stage_folders(run)
    if run.is_symlink():
        raise UserError(f"{run}: a link to {run.resolve()}, not a run folder; remove it by hand")
    doomed = run if stage is None else run / stage
    removed = [folder for folder in folders if doomed in (run, folder)]
    if not removed:
        has = ", ".join(folder.name for folder in folders)
        raise UserError(f"{doomed}: no such stage; {run} has {has}")
    if doomed.is_symlink():
        raise UserError(f"{doomed}: a link to {doomed.resolve()}; remove it by hand")
    if not any((folder / mark).is_file() for folder in removed for mark in SURE_MARKS):
        raise UserError(f"{doomed}: without {' or '.join(SURE_MARKS)}; remove it by hand")
    written = [run, *removed]
    _check_still(written)
    bytes_ = total_bytes(doomed)
    if not yes:
        what = f"{', '.join(folder.name for folder in removed)}; {size(bytes_)}"
        try:
            yes = typer.confirm(f"Remove {plain(str(doomed))} ({what})?", err=as_json)
        except typer.Abort:
            raise UserError(f"{doomed}: kept, no answer was given; --yes removes unasked") from None
    if yes:
        _check_still(written)  # the answer may have taken its time
        held = [lock(folder) for folder in written]
        shutil.rmtree(doomed)
        for each in held:
            each.release()
    if as_json:
        _print_json({"path": str(doomed), "removed": yes, "bytes": bytes_})
    else:
        messages.print(safe_text(f"{doomed}: {'removed' if yes else 'kept'}"))


def _check_still(folders: list[Path]) -> None:
    for folder in folders:
        who = writer(folder)
        if who is not None:
            raise UserError(f"{folder}: {who} is writing it; stop that first")


def _as_json(stage: Stage) -> dict[str, Any]:
    place = {"run": stage.path.parent.name, "stage": stage.path.name}
    return place | dataclasses.asdict(stage) | {"path": str(stage.path)}


def _details(stage: Stage) -> dict[str, Any]:
    """Return what `show` tells of a stage."""
    error = None
    try:
        changes = changed_settings(stage.path)
    except UserError as found:
        changes, error = {}, str(found)
    environment = read_mapping(stage.path / "environment.json")
    versions = environment.get("versions")
    found_versions = dict(versions) if isinstance(versions, dict) else {}
    if "python" in environment:
        found_versions["python"] = environment["python"]
    return _as_json(stage) | {
        "settings": changes,
        "settings_error": error,
        "versions": {str(key): str(value) for key, value in found_versions.items()},
        "files": contents(stage.path),
    }


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _section(console: Console, title: str, rows: dict[str, str]) -> None:
    console.print(f"  {title}{'' if rows else ': none'}", style="dim")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for key, value in rows.items():
        table.add_row(safe_text(key), safe_text(value))
    if rows:
        console.print(Padding(table, (0, 0, 0, 4), expand=False))
