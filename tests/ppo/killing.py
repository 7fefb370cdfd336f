"""Runs `python -m ppo` in forked children that are killed at chosen moments, again and again.

Starting Python and its libraries takes longer than a tiny run, so one process imports everything
once and forks a child for each attempt. A child counts the lines of code that it executes within a
phase, and sends itself SIGKILL at a given one: no clean-up runs, as if it came from outside.

    python -m tests.ppo.killing PLAN.json

The plan has `attempts`, each with `arguments` and an optional `kill`: a `phase`, which of the
attempt's entries into it (`entry`), and after how many lines there (`line`), at its end at the
latest; or the phase `half` and a `file`. A JSON line for each is printed: how the child ended,
where it was, and what it said.
"""

import json
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# The function in which a phase begins and ends, by file and name.
PHASES = {
    ("ppo/engine.py", "rollout"): "rollout",
    ("ppo/engine.py", "score"): "score",
    ("ppo/engine.py", "update"): "update",
    ("ppo/engine.py", "evaluate"): "evaluation",
    ("ppo/checkpoint.py", "save"): "checkpoint",
    ("ppo/stage.py", "_save"): "model",
    ("workbench/run.py", "finish"): "finish",
}


class Killer:
    """Counts executed lines of the project's code, and kills the process at one of them."""

    def __init__(
        self, phase: str, entry: int, line: int, report: Callable[[dict[str, Any]], None]
    ) -> None:
        self.phase, self.entries, self.left, self.report = phase, entry, line, report
        self.inside: list[str] = []
        self.update = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """Enter a function: follow its lines if it is the project's."""
        place = frame.f_code.co_filename
        if event != "call" or not place.startswith(str(ROOT)) or ".venv" in place:
            return None
        name = Path(place).relative_to(ROOT).as_posix()
        phase = PHASES.get((name, frame.f_code.co_name))
        if phase is not None:
            self.inside.append(phase)
            self.entries -= phase == self.phase
            self.update = getattr(frame.f_locals.get("self"), "global_step", self.update)

        # Nothing is written yet while numbers are looked at, one after another.
        search = frame.f_code.co_qualname.startswith("not_finite")

        def lines(frame: FrameType, event: str, _: Any) -> Any:
            if self.entries == 0 and self.phase in self.inside and not search:
                self.left -= event == "line"
                if self.left == 0 or (event == "return" and phase == self.phase):
                    where = f"{name}:{frame.f_lineno} {frame.f_code.co_name}"
                    self.report({"phase": self.phase, "update": self.update, "where": where})
                    os.kill(os.getpid(), signal.SIGKILL)
            if event == "return" and phase is not None:
                self.inside.pop()
            return lines

        return lines


def half_written(path: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a writer that is killed when half of its file is on the disk."""

    def write(content: Any, target: Path, report: Callable[[dict[str, Any]], None]) -> None:
        call(content, target)
        os.truncate(target, target.stat().st_size // 2)
        report({"phase": "checkpoint", "where": f"half of {path}"})
        os.kill(os.getpid(), signal.SIGKILL)

    return write


def child(attempt: dict[str, Any], report: Callable[[dict[str, Any]], None]) -> None:
    """Be one attempt: `python -m ppo` with its arguments."""
    from ppo import checkpoint
    from ppo.engine import PPOEngine
    from workbench import cli

    kill = attempt.get("kill")
    if kill is not None and kill["phase"] == "half":
        writers = {"weights": (checkpoint, "save_file"), "state": (checkpoint.torch, "save")}
        module, name = writers[kill["file"]]
        write = half_written(kill["file"], getattr(module, name))
        setattr(module, name, lambda content, target: write(content, target, report))
    elif kill is not None:
        real = PPOEngine.train

        def train(engine: PPOEngine) -> None:
            sys.settrace(Killer(**kill, report=report))  # not the slow start before
            real(engine)

        PPOEngine.train = train  # type: ignore[method-assign]
    sys.argv = ["ppo", *attempt["arguments"]]
    cli.stage_main("ppo")


def attempt(given: dict[str, Any]) -> dict[str, Any]:
    """Fork a child for an attempt, wait for its end, and return how it ended."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile("w+") as said:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.dup2(said.fileno(), 2)
                os.dup2(said.fileno(), 1)
                child(given, lambda found: os.write(writing, json.dumps(found).encode()) and None)
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:  # noqa: BLE001 - no error may leave a fork
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            report = pipe.read()
        status = os.waitpid(pid, 0)[1]
        said.seek(0)
        found = json.loads(report) if report else {}
        return found | {"code": os.waitstatus_to_exitcode(status), "said": said.read()}


def main(plan: str) -> None:
    """Carry out a plan, and print a line for each attempt."""
    import torch
    from transformers import (  # noqa: F401
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        PreTrainedTokenizerFast,
    )

    from workbench.process import prepare

    prepare()
    torch.set_num_threads(1)  # no threads that a fork would lose
    assert threading.active_count() == 1
    for given in json.loads(Path(plan).read_text(encoding="utf-8"))["attempts"]:
        sys.stdout.write(json.dumps(attempt(given)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
