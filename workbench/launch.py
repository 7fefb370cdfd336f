"""The door to other rooms: starts stages, here or by `accelerate launch`, and finds commands."""

import importlib
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from workbench.config import dump_yaml, find_config, load_config
from workbench.errors import StageError, UserError
from workbench.logs import console
from workbench.processes import PROCESSES, SILENT
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


def stage_memory(stage: str, request: Any) -> Any:
    """Return what a stage holds in memory, as its `plan` module counts it."""
    return importlib.import_module(f"{stage}.plan").memory(request)


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
    """Run a stage in the processes that an Accelerate config asks for, and wait for them.

    It is `accelerate launch -m STAGE` with the same config and overrides, but for the summary that
    torchrun prints when a process fails: the process has said why itself.

    Args:
        stage: `sft`, `reward` or `ppo`.
        path: the stage's config file.
        overrides: of its settings.
        accelerate: Accelerate's config file.
        num_processes: on all machines together; None takes the file's.

    Raises:
        UserError: for a file that cannot be used here.
        StageError: when a process failed; its code is that process's.
    """
    stage_config(stage, path, overrides)  # a wrong key should be reported once, not N times
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num-processes={num_processes}: must be at least 1")
    file = find_config(accelerate)
    number = _number(file, num_processes)
    given = [] if path is None else ["--config", str(find_config(path))]
    launch(file, number, stage, [*given, *overrides])


def _number(file: Path, num_processes: int | None) -> int:
    """Return how many processes to start by an Accelerate config, which is checked."""
    import torch
    from accelerate import DistributedType
    from accelerate.commands.config.config_args import load_config_from_file

    try:
        settings = load_config_from_file(str(file))
    except Exception as error:  # noqa: BLE001 - its loader raises whatever the file makes it stumble on
        raise UserError(
            f"{file}: not a config of Accelerate ({error}); configs/accelerate/ has some that are"
        ) from None
    kind = settings.distributed_type
    if kind == DistributedType.DEEPSPEED and find_spec("deepspeed") is None:
        raise UserError(
            f"{file}: asks for DeepSpeed, which is not installed; run: pip install deepspeed"
        )
    # FSDP stays: PPO shards on CPUs too, and the other stages say themselves that they do not.
    asks_for_gpus = not settings.use_cpu and kind != DistributedType.FSDP
    if asks_for_gpus and not torch.cuda.is_available():
        raise UserError(
            f"{file}: asks for GPUs, and there is none; take configs/accelerate/cpu.yaml"
        )
    number = int(num_processes or settings.num_processes or 0)
    if number < 1:
        raise UserError(f"{file}: does not say how many processes to start; give --num-processes N")
    return number


def launch(file: Path, number: int, module: str, arguments: Sequence[str]) -> None:
    """Run `python -m MODULE` in processes that know of each other, and wait for them.

    Args:
        file: Accelerate's config.
        number: of processes, on all machines together.
        module: which runs its own commands under `guarded`.
        arguments: of the module.

    Raises:
        UserError: when nothing was started.
        StageError: when a process failed; its code is that process's.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from accelerate.utils import patch_environment
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    given = ["--config_file", str(file), "--num_processes", str(number), "-m", module]
    # What torchrun logs of a failure, the process that failed has said; and Ctrl-C reaches it too.
    logging.disable(logging.ERROR)
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with patch_environment(**{PROCESSES: number}):
            launch_command(launch_command_parser().parse_args([*given, *arguments]))
    except ChildFailedError as error:
        raise StageError(_code(error)) from None
    except subprocess.CalledProcessError as error:
        raise StageError(_said(0, error.returncode)) from None
    except SignalException as error:
        raise StageError(128 + int(error.sigval)) from None
    except (ValueError, ImportError, OSError, RuntimeError) as error:
        raise UserError(f"{file}: Accelerate cannot start from it here: {error}") from None
    finally:
        signal.signal(signal.SIGINT, before)
        logging.disable(logging.NOTSET)


def _code(error: Any) -> int:
    """Return the code of the process that failed first, by itself."""
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    # One that failed has told why, and the others were ended; one that was killed has not.
    told: list[int] = [code for code in codes.values() if code > 0 and code != SILENT]
    if told or SILENT in codes.values():
        return (told or [2])[0]
    rank, failure = error.get_first_failure()
    return _said(rank, failure.exitcode)


def _said(rank: int, code: int) -> int:
    """Return an exit code; of a process that was killed, say so first, since it could not."""
    if code >= 0:
        return code
    hint = "; the system does that where memory runs out" if code == -signal.SIGKILL else ""
    console.print(
        f"rlhf: error: process {rank} was ended by {signal.Signals(-code).name}{hint}",
        markup=False,
        style="red",
    )
    return 2


def print_config(config: Any) -> None:
    """Print a config as YAML on standard output."""
    sys.stdout.write(dump_yaml(config))
