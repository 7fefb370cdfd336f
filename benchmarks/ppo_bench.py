"""Measures PPO side by side: TRL's trainer, generation, shares of the machine's rate, growth.

`make bench` runs it. Every measurement is a process of its own, and contenders take turns, so that
a busy machine slows all of them alike; ratios are formed within a turn. It writes
`runs/bench/ppo.json`, the tables of `docs/performance.md` and a figure. `--parts` measures some
parts anew and keeps the others; a part that was cut short is taken up where it stopped with
`--resume`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.ppo_figure import draw
from benchmarks.ppo_tables import render, write_block
from workbench.embedded import NAME
from workbench.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("trl", "generation", "phases", "growth")
TAKING_TURNS = ("trl", "generation")  # the others compare a process with itself
TRL = "trl==1.12.0"
SAME = ("peft", "accelerate", "datasets")  # TRL's environment holds the versions that ours has
PATIENCE = 1800  # seconds; no measurement takes that long
OURS = "benchmarks.ppo_ours"

Json = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One measurement: its labels, and the words of its command after the folder of models.

    Attributes:
        labels: tell it apart from the others of its part.
        module: that measures.
        words: its options.
        trl: whether it runs in TRL's environment.
        processes: that it is started on.
    """

    labels: Json
    module: str
    words: list[str]
    trl: bool = False
    processes: int = 1


def main() -> None:
    """Measure, and keep what was measured after every process."""
    given = arguments()
    import torch

    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    results: Json = {}
    if given.out.is_file():
        results = json.loads(given.out.read_text(encoding="utf-8"))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    own = results.setdefault(given.device, {"parts": {}})
    failed = []
    with tempfile.TemporaryDirectory(prefix="rlhf-bench-") as folder:
        try:
            if not given.tables:
                own["machine"] = machine(given.device)
                prepare(given, Path(folder))
        except UserError as error:
            sys.exit(f"ppo_bench.py: error: {error}")
        for name in [] if given.tables else given.parts:
            try:
                part(name, given, own["parts"], Path(folder), results)
            except UserError as error:
                failed.append(f"{name}: {error}")
    if given.docs is not None:
        draw(results, given.figure)
        write_block(given.docs, render(results))
    print(render(results))
    if failed:
        sys.exit("\n".join(f"ppo_bench.py: error: {line}" for line in failed))


def arguments() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    add("--resume", action="store_true", help="keep what the parts have measured already")
    add("--tables", action="store_true", help="measure nothing, write tables and figure")
    add("--turns", type=int, default=2, help=f"of {' and '.join(TAKING_TURNS)}")
    add("--updates", type=int, default=2, help="measured in each process, after a first")
    add("--model", default=NAME, help="folder, hub id or the embedded model")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes a GPU if there is one; there the model is a Llama of 1.5 B random weights",
    )
    add("--episodes", type=int, default=16, help="answers per update")
    add("--query", type=int, default=64, help="tokens of each prompt")
    add("--response", type=int, default=48, help="tokens of each answer")
    add("--epochs", type=int, default=4, help="passes over the answers")
    add("--micro-batch", type=int, default=8)
    add("--tops", type=int, nargs="+", default=[10, 5], help="layers trained in shared_trunk")
    add("--batches", type=int, nargs="+", default=[1, 16, 64], help="of generation")
    add("--grow-response", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    add("--grow-batch", type=int, nargs="+", default=[8, 16, 32, 64, 128])
    add("--grow-layers", type=int, nargs="+", default=[1, 5, 10, 20, 30])
    add("--grow-processes", type=int, nargs="+", default=[1, 2])
    add("--venv", type=Path, default=Path("runs/bench/venv-trl"), help="TRL's, built if need be")
    add("--out", type=Path, default=Path("runs/bench/ppo.json"))
    add("--docs", type=Path, default=None, help="page whose tables are written anew")
    add("--figure", type=Path, default=Path("docs/img/ppo_growth.png"))
    return parser.parse_args()  # fmt: skip


def prepare(given: argparse.Namespace, folder: Path) -> None:
    """Write models and prompts, and build TRL's environment if it is needed and not there."""
    if "trl" in given.parts:
        build_venv(given.venv)
    count = max([given.episodes * (given.updates + 2), *given.batches, *given.grow_batch])
    words = ["--model", given.model, "--query", str(given.query), "--prompts", str(count)]
    if given.device == "cuda":
        words.append("--random")
    run([sys.executable, "-m", "benchmarks.ppo_models", str(folder), *words])


def build_venv(venv: Path) -> None:
    """Build an environment with TRL 1.12, unless it is there and works."""
    python = venv / "bin" / "python"
    wanted = "import trl.experimental.ppo; from importlib.metadata import version as v"
    check = f"{wanted}; assert 'trl==' + v('trl') == {TRL!r}"
    if python.exists() and not _status([str(python), "-c", check]):
        return
    print(f"building {venv}", file=sys.stderr)
    transformers = ".".join(version("transformers").split(".")[:2])
    run([sys.executable, "-m", "venv", "--clear", str(venv)])
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # First and alone, so that what is installed or at hand is taken, not the newest of the rest.
    run([*pip, f"torch=={version('torch').partition('+')[0]}"])
    run([*pip, TRL, f"transformers=={transformers}.*", *(f"{n}=={version(n)}" for n in SAME)])
    if _status([str(python), "-c", check]):
        raise UserError(f"{venv}: TRL cannot be imported there; delete the folder and try again")


def part(name: str, given: argparse.Namespace, parts: Json, folder: Path, results: Json) -> None:
    """Measure a part and keep its rows as they come."""
    settings = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in vars(given).items()
        if key not in {"parts", "resume", "tables", "out", "docs", "figure", "venv"}
    }
    kept = parts.get(name, {})
    # More turns may join those that were measured; other sizes may not.
    if not given.resume or kept.get("settings", {}) | {"turns": given.turns} != settings:
        kept = {"seconds": 0.0, "rows": []}
    parts[name] = kept | {"settings": settings}
    kept = parts[name]
    rows = kept["rows"]
    turns = given.turns if name in TAKING_TURNS else 1
    for turn in range(turns):
        for job in jobs(name, given):
            labels = job.labels | {"turn": turn}
            if any(all(row[k] == v for k, v in labels.items()) for row in rows):
                continue
            began = time.perf_counter()
            rows.append(labels | start(job, given, folder))
            kept["seconds"] += time.perf_counter() - began
            given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            print(f"{name} {turn + 1}/{turns} {said(rows[-1])}", file=sys.stderr)


def jobs(name: str, given: argparse.Namespace) -> Iterator[Job]:
    """Yield the measurements of one turn of a part."""
    work = [f"--episodes={given.episodes}", f"--response={given.response}"]
    work += [f"--epochs={given.epochs}", f"--micro-batch={given.micro_batch}"]
    updates = f"--updates={given.updates}"
    layouts = [("separate", None), ("lora", None), *(("shared_trunk", top) for top in given.tops)]
    if name == "generation":
        batches = [f"--response={given.response}", "--batches", *map(str, given.batches)]
        for way in ("transformers", "native", "products"):
            yield Job({"way": way}, "benchmarks.ppo_generation", ["--way", way, *batches])
        return
    if name == "growth":
        yield from growth(given)
        return
    if name == "trl":
        for lora in (False, True):
            labels = {"side": "trl", "layout": "lora" if lora else "full", "top": None}
            words = [*work, updates, *(["--lora"] if lora else [])]
            yield Job(labels, "benchmarks.trl_ppo", words, trl=True)
    shares = ["--shares"] if name == "phases" else []
    for layout, top in layouts:
        labels = {"side": "ours", "layout": layout, "top": top}
        trained = [] if top is None else [f"--top={top}"]
        yield Job(labels, OURS, [*work, updates, "--layout", layout, *trained, *shares])


def growth(given: argparse.Namespace) -> Iterator[Job]:
    """Yield one measurement for each point of each axis, in `shared_trunk`."""
    from torch import cuda

    usual = {"response": given.response, "episodes": given.episodes, "top": given.tops[0]}
    axes = {
        "response": given.grow_response,
        "episodes": given.grow_batch,
        "top": given.grow_layers,
        "processes": given.grow_processes,
    }
    for axis, values in axes.items():
        for value in values:
            if axis == "processes" and given.device == "cuda" and value > cuda.device_count():
                continue
            sizes = {k: v for k, v in (usual | {axis: value}).items() if k != "processes"}
            words = [f"--{key}={size}" for key, size in sizes.items()]
            words += [f"--epochs={given.epochs}", f"--micro-batch={given.micro_batch}"]
            words += ["--updates=1", "--warm=short"]
            processes = value if axis == "processes" else 1
            yield Job({"axis": axis, "value": value}, OURS, words, processes=processes)


def start(job: Job, given: argparse.Namespace, folder: Path) -> Json:
    """Run a measurement and return what it printed."""
    python = str(given.venv / "bin" / "python") if job.trl else sys.executable
    words = [job.module, str(folder), *job.words, f"--device={given.device}"]
    if job.processes == 1:
        return _printed(run([python, "-m", *words]))
    settings = folder / "processes.json"
    settings.write_text(json.dumps(launcher(job.processes)), encoding="utf-8")
    launch = [python, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    # The cores are shared out among the processes.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // job.processes))}
    return _printed(run([*launch, "--config_file", str(settings), "-m", *words], threads))


def launcher(processes: int) -> Json:
    """Return Accelerate's settings for so many processes here; a CPU's are joined by gloo."""
    return {
        "compute_environment": "LOCAL_MACHINE", "machine_rank": 0, "num_machines": 1,
        # Processes are connected for this type only; MULTI_CPU without mpirun starts one.
        "distributed_type": "MULTI_GPU", "use_cpu": False, "num_processes": processes,
        "main_training_function": "main", "mixed_precision": "no", "rdzv_backend": "static",
        "same_network": True,
    }  # fmt: skip


def run(command: list[str], env: dict[str, str] | None = None) -> str:
    """Run a command in the project's folder and return what it printed.

    Raises:
        UserError: when it fails or does not end.
    """
    here = os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=here | (env or {}), capture_output=True, text=True,
            check=False, timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command[1:])}: not done after {PATIENCE} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing was said"]
        raise UserError(f"{' '.join(command[1:])}: status {done.returncode}: {said[-1]}")
    return done.stdout


def machine(device: str) -> Json:
    """Return what the numbers depend on."""
    import torch

    cores = os.cpu_count() or 1
    found: Json = {
        "processor": _processor(),
        "cores": cores,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "seed": 0,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    names = ("torch", "transformers", "peft", "accelerate")
    return found | {name: version(name) for name in names} | {"trl": TRL.partition("==")[2]}


def said(row: Json) -> str:
    """Return a row's labels and times in a line."""
    labels = ("side", "layout", "top", "way", "axis", "value")
    words = [str(row[key]) for key in labels if row.get(key) is not None]
    timed = row.get("updates") or list(row.get("batches", {}).values())
    walls = ", ".join(f"{lap['wall_s']:.2f}" for lap in timed)
    return f"{' '.join(words)}: {walls} s"


def _printed(out: str) -> Json:
    """Return the result among what a measurement printed; libraries print too, TRL its metrics."""
    found: Json = json.loads([line for line in out.splitlines() if line.startswith('{"')][-1])
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _status(command: list[str]) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode


if __name__ == "__main__":
    main()
