"""Two connected processes on this machine's CPU, started as a user starts them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU = "configs/accelerate/cpu.yaml"


def environment(**more: str) -> dict[str, str]:
    """The environment of tests, in which this project's packages are found from any folder."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | more


def rlhf(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run `rlhf STAGE … --accelerate configs/accelerate/cpu.yaml --num-processes 2`."""
    command = [sys.executable, "-c", "from workbench.cli import main; main()", *arguments]
    return finished([*command, "--accelerate", CPU, "--num-processes", "2"], **more)


def accelerate(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run plain `accelerate launch --config_file configs/accelerate/cpu.yaml --num_processes 2`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / CPU)]
    return finished([*command, "--num_processes", "2", *arguments], **more)


def finished(command: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command, env=environment(**more), capture_output=True, text=True, check=False
    )
