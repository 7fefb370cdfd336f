"""The run folder of a stage: config, environment, metrics, samples, checkpoints, model, summary."""

import importlib.util
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
import weakref
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from workbench import __version__, embedded
from workbench.config import dump_yaml, option
from workbench.errors import UserError
from workbench.files import MANIFEST, damage, digest, sha256, sweep, write_json, write_text
from workbench.identity import differences, free_settings, identity
from workbench.locks import lock
from workbench.logs import console, is_main_process
from workbench.passwords import masked_tree

Tracker = Literal["none", "trackio", "tensorboard", "wandb"]
DAMAGED: dict[str, Any] = {"fingerprint": "damaged"}
LIBRARIES = ("torch", "trl", "transformers", "peft", "accelerate", "datasets", "evaluate")


@dataclass
class RunSettings:
    """Where a stage writes and how it may be repeated."""

    name: str = option("default", "name of the run; the stage writes to <root>/<name>/<stage>/")
    root: str = option("runs", "folder of all runs")
    seed: int = option(0, "seed of data order, initial heads, sampling and dropout")
    report_to: Tracker = option(
        "none", "tracker beside metrics.jsonl: trackio, tensorboard, wandb or none"
    )
    overwrite: bool = option(
        False,
        "replace a run of another configuration in the same folder, finished or with checkpoints",
    )

    def validate(self) -> tuple[str, str] | None:
        """Return the first impossible setting and why."""
        if not self.name or self.name in {".", ".."} or Path(self.name).name != self.name:
            return "name", "must be a plain folder name, without slashes"
        if self.seed < 0:
            return "seed", "must be 0 or more"
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            return "report_to", f"the package is not installed; run: pip install {self.report_to}"
        return None


class StageRun:
    """One stage's folder while the stage runs.

    Attributes:
        path: `<root>/<name>/<stage>`.
        identity: what its result depends on; a checkpoint records it.
        finished: the same stage with the same configuration and inputs is complete and whole here.
    """

    def __init__(
        self, stage: str, config: Any, inputs: dict[str, str], *, replace: bool = True
    ) -> None:
        """Open or create the folder.

        Args:
            stage: `sft`, `reward` or `ppo`.
            config: the stage's config dataclass; its `run` section is a `RunSettings`.
            inputs: name to content fingerprint of everything the stage reads.
            replace: whether a run of another configuration makes room for this one; False leaves
                it to who calls, and to what its checkpoints say.

        Raises:
            UserError: when the folder holds another configuration's run, finished or with
                checkpoints, and `run.overwrite` is false; or another process writes there.
        """
        settings: RunSettings = config.run
        self.stage, self.config, self.settings = stage, config, settings
        self.path = Path(settings.root) / settings.name / stage
        self.started = time.time()
        self.identity = identity(stage, config, inputs)
        before = self._recorded_identity()
        same = before is not None and before["fingerprint"] == self.identity["fingerprint"]
        self.finished = same and self.why_unfinished() is None
        if self.finished or not is_main_process():
            return
        self._lock = lock(self.path)
        # Rows and tokens are not taken up again, however the run ends. Only who holds the folder
        # may: another process may be at work there.
        weakref.finalize(self, shutil.rmtree, self.path / "data", ignore_errors=True)
        lost = before is None and self.saved() is not None  # checkpoints, of who knows what
        if replace and not same and (before is not None or lost):
            self._replace(before)
        elif same:
            self._name_freedom(before)
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.checkpoints):
            sweep(folder)
        (self.path / "done.json").unlink(missing_ok=True)
        write_text(self.path / "config.yaml", dump_yaml(config))
        write_json(self.path / "environment.json", environment() | {"identity": self.identity})

    @property
    def model(self) -> Path:
        """The folder of the finished model."""
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def data(self) -> Path:
        """The folder of rows and tokens kept on disk while the stage runs, of this process."""
        return self.path / "data" / os.environ.get("RANK", "0")

    def saved(self) -> Path | None:
        """Return the newest checkpoint, whole or not, or None."""
        found = [path for path in self.checkpoints.glob("*-*") if not path.name.startswith(".")]
        return max(found, key=lambda path: (len(path.name), path.name), default=None)

    def why_unfinished(self) -> str | None:
        """Return what keeps this folder from being a finished run, in words, or None."""
        done = self.path / "done.json"
        if not done.is_file():
            return f"{done} is missing"
        try:
            files = json.loads(done.read_text(encoding="utf-8"))["files"].items()
        except (ValueError, KeyError, TypeError, AttributeError):
            return f"{done} is damaged"
        for name, known in files:
            path = self.path / name
            if not path.is_file():
                return f"{path} is missing"
            if sha256(path) != known:
                return f"{path} has changed"
        return (
            damage(self.model)
            if self.model.exists() or (self.path / "done.json").is_file()
            else None
        )

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to `metrics.jsonl`; values that are not finite are written as null."""
        if not is_main_process():
            return
        row = {"step": step} | {key: _finite(float(value)) for key, value in metrics.items()}
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint is synced, and the lines before it must be too

    def rewind(self, step: int) -> None:
        """Drop logged lines after `step`, to be written again, and a torn last line."""
        path = self.path / "metrics.jsonl"
        if not path.is_file() or not is_main_process():
            return
        rows = read_metrics(path)
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))

    def save_samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write a table of sampled answers to `samples/step_000000.jsonl`."""
        if is_main_process():
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            write_text(self.path / "samples" / f"step_{step:06d}.jsonl", text)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary, seal the folder with hashes and drop the checkpoints.

        Values that are not finite, as after a diverged training, are written as null.
        """
        if not is_main_process():
            return
        summary = summary | {"seconds": round(time.time() - self.started, 1)}
        write_json(self.path / "summary.json", _finite(summary))
        kept = [
            self.path / name
            for name in ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")
        ]
        files = {path.name: sha256(path) for path in kept if path.is_file()}
        write_json(self.path / "done.json", {"files": files})
        for folder in (self.checkpoints, self.path / "data"):
            shutil.rmtree(folder, ignore_errors=True)
        self._lock.release()
        self.finished = True

    def read_summary(self) -> dict[str, Any]:
        """Return the summary of a finished stage."""
        value: dict[str, Any] = json.loads((self.path / "summary.json").read_text(encoding="utf-8"))
        return value

    def _recorded_identity(self) -> dict[str, Any] | None:
        path = self.path / "environment.json"
        try:
            identity: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["identity"]
            identity["fingerprint"], identity["config"], identity["inputs"]  # all must be there
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return DAMAGED
        return identity

    def _replace(self, before: dict[str, Any] | None) -> None:
        finished, saved = (self.path / "done.json").is_file(), self.saved()
        if before is None or before is DAMAGED:
            changed = f"environment.json is {'missing' if before is None else 'damaged'}"
        else:
            free = free_settings(type(self.config))
            changed = ", ".join(differences(before, self.identity, free))
        if finished and not self.settings.overwrite:
            raise UserError(
                f"{self.path}: holds a finished run with other settings ({changed}); "
                "choose another run.name, or set run.overwrite=true to replace it"
            )
        if saved is not None and not self.settings.overwrite:
            raise UserError(
                f"{self.path}: holds an unfinished run with other settings ({changed}); "
                f"to go on from its {saved.name} give the old ones, which are in "
                f"{self.path / 'config.yaml'}; else choose another run.name, or set "
                "run.overwrite=true to start anew"
            )
        console.print(f"{self.path}: starting anew ({changed})", markup=False)
        shutil.rmtree(self.path)

    def _name_freedom(self, before: dict[str, Any] | None) -> None:
        """Say which of the settings that may change did, where a run goes on."""
        changed = [] if before is None else differences(before, self.identity, set())
        if changed and self.saved() is not None:
            console.print(f"{self.path}: going on with {', '.join(changed)}", markup=False)


def environment() -> dict[str, Any]:
    """Return what a reader needs to repeat a run: versions, machine, commit and command line."""
    import psutil

    return {
        "versions": versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cpu_count": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "git_commit": git_commit(),
        "command": masked_tree(sys.argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def versions() -> dict[str, str]:
    """Return the versions of this project and of the libraries it stands on."""
    found = {"rlhf-workbench": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def processor() -> str:
    """Return the name of the processor, as the machine tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Return the commit of the source tree this code runs from, or None outside a clone."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a `metrics.jsonl` without a last line torn by a crash; other damage is an error."""
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(
                f"{path}:{number}: not a metrics line; delete the file to start its log anew"
            ) from None
        rows.append(row)
    return rows


def is_finished(stage: str, config: Any, inputs: dict[str, str]) -> bool:
    """Return whether a whole finished run of this very configuration is there; touches nothing."""
    run = StageRun.__new__(StageRun)
    run.path = Path(config.run.root) / config.run.name / stage
    before = run._recorded_identity()
    same = (
        before is not None
        and before["fingerprint"] == identity(stage, config, inputs)["fingerprint"]
    )
    return same and run.why_unfinished() is None


def fingerprints(sources: dict[str, str | None]) -> dict[str, str]:
    """Return the fingerprint of each named source; those that are not set are left out."""
    return {name: fingerprint(source) for name, source in sources.items() if source}


def fingerprint(source: str) -> str:
    """Return a fingerprint of a model or data source: hashes of what it holds, or its name."""
    if source == embedded.NAME:
        return embedded.GGUF_SHA256[:16]
    if source.startswith("demo:"):
        packaged = Path(__file__).parent / "demo_data" / f"{source.removeprefix('demo:')}.jsonl"
        return sha256(packaged)[:16] if packaged.is_file() else source
    if source.startswith("ratings:"):
        from workbench.data import KINDS, load  # a stage that reads files does not wait for it

        return digest(load(source, KINDS).rows)
    path = Path(source)
    if path.is_file():
        return sha256(path)[:16]
    if (path / MANIFEST).is_file():
        return sha256(path / MANIFEST)[:16]
    if path.is_dir():
        return digest(
            {str(p.relative_to(path)): sha256(p) for p in sorted(path.rglob("*")) if p.is_file()}
        )
    return source


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
