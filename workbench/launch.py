"""The door to other rooms: starts stages, here or by `accelerate launch`, and finds commands."""

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.config import dump_yaml, find_config, load_config
from workbench.errors import StageError, UserError
from workbench.logs import console
from workbench.run import is_finished

STAGES = {"sft": "SFTStage", "reward": "RewardStage", "ppo": "PPOStage"}


def stage_config(stage: str, path: str | None, overrides: Sequence[str]) -> Any:
    """Return the checked config of a stage."""
    cls = getattr(importlib.import_module(f"{stage}.config"), STAGES[stage])
    return load_config(cls, path, overrides)


def room_commands(room: str, module: str = "command") -> Any:
    """Return the typer app of a room that has commands of its own, such as `prompts`.

    Its module is imported at every start of `rlhf`: it must be light.
    """
    return importlib.import_module(f"{room}.{module}").app


def run_stage(stage: str, config: Any) -> Path:
    """Run a stage in this process and return its folder."""
    module = importlib.import_module(f"{stage}.stage")
    folder: Path = module.run(config)
    return folder


def start_stage(stage: str, path: str, overrides: Sequence[str]) -> Path:
    """Run a stage in a process of its own, unless its finished run is there; returns its folder.

    A stage leaves much behind in a process (Accelerate's state, the allocator's memory), which the
    next would inherit.

    Raises:
        StageError: when the stage ended with an error, which it has printed itself.
    """
    config = stage_config(stage, path, overrides)
    folder: Path = Path(config.run.root) / config.run.name / stage
    if is_finished(stage, config, config.inputs()):
        console.print(f"{stage}: {folder} is up to date", markup=False)
        return folder
    command = [sys.executable, "-m", stage, "--config", str(find_config(path)), *overrides]
    code = subprocess.run(command, check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code != 0:
        raise StageError(code)
    return folder


def accelerate_launch(
    stage: str,
    path: str | None,
    overrides: Sequence[str],
    accelerate: str,
    num_processes: int | None,
) -> None:
    """Replace this process by `accelerate launch -m STAGE` with the same config and overrides."""
    stage_config(
        stage, path, overrides
    )  # a wrong key should be reported once, before N processes start
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(find_config(accelerate)),
    ]
    if num_processes is not None:
        if num_processes < 1:
            raise UserError(f"--num-processes={num_processes}: must be at least 1")
        command += ["--num_processes", str(num_processes)]
    command += ["-m", stage]
    if path is not None:
        command += ["--config", str(find_config(path))]
    os.execv(sys.executable, [*command, *overrides])


def print_config(config: Any) -> None:
    """Print a config as YAML on standard output."""
    sys.stdout.write(dump_yaml(config))
