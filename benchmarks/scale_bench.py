"""Measures how far processes, overlap and streaming carry on this machine.

Throughput of one and two processes for each stage, PPO that samples ahead beside PPO that does not,
and the memory of data kept on disk. Needs the demo's models (`make demo` leaves them). Contenders
take turns, and ratios are formed within a turn. Writes `runs/bench/scale.json` and the table of
`docs/scaling.md`; `--parts` measures some parts anew and keeps the others.
"""

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.ppo_bench import machine
from workbench.run import read_metrics

Json = dict[str, Any]

PARTS = ("processes", "overlap", "streaming")
PATIENCE = 1800
BLOCK = re.compile(r"(<!-- measured: scale -->\n).*?(<!-- end -->)", re.DOTALL)
CPU = "configs/accelerate/cpu.yaml"
UNITS = {"sft": "demonstrations", "reward": "prompts", "ppo": "episodes"}
PPO = [
    "ppo.batch_size=32", "ppo.num_mini_batches=4", "ppo.micro_batch_size=8",
    "rollout.batch_size=32", "ppo.eval_every=0", "ppo.eval_prompts=1", "ppo.eval_gold=false",
    "ppo.save_every=0", "ppo.value_warmup_updates=0",
]  # fmt: skip
WORDS = [
    "lamp",
    "on",
    "landing",
    "hums",
    "when",
    "lift",
    "goes",
    "down",
    "bread",
    "rises",
    "slowly",
]
PEAK = """
import resource, sys
from pathlib import Path
from sft.config import SFTStage
from sft.data import tokenize
from workbench.config import load_config
from workbench.data import load_parts
from workbench.models import load_tokenizer
import datasets, torch, transformers
source, streaming, folder = sys.argv[1:]
tokenizer = load_tokenizer("smollm2-135m-instruct")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
words = [f"data.train={source}", f"data.streaming={streaming}", "sft.max_length=4096"]
config = load_config(SFTStage, None, words)
parts = load_parts(config.data, ("prompt_completion",), 0, Path(folder))
disk = config.data.streaming
kept = [
    tokenize(rows, tokenizer, config.sft, source, True, Path(folder) / name if disk else None)
    for name, rows in (("train", parts.train), ("held_out", parts.held_out))
]
assert all(len(part.dataset) for part in kept)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def main() -> None:
    """Measure, and keep what was measured after every part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10, help="of sft and reward")
    parser.add_argument("--updates", type=int, default=3, help="of ppo, the first not counted")
    parser.add_argument("--learning-updates", type=int, default=6, help="of ppo, with overlap")
    parser.add_argument("--rows", type=int, default=60_000, help="of the streamed data")
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/scale.json"))
    parser.add_argument("--page", type=Path, default=None, help="whose table is written anew")
    given = parser.parse_args()
    results: Json = {}
    if given.out.is_file():
        results = json.loads(given.out.read_text(encoding="utf-8"))
    if not (given.demo / "reward" / "model").is_dir():
        sys.exit(f"scale_bench.py: error: {given.demo}: needs the demo's models; run `make demo`")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for part in given.parts:
        with tempfile.TemporaryDirectory(prefix="rlhf-scale-") as folder:
            measure = {"processes": processes, "overlap": overlap, "streaming": streaming}[part]
            # Each part says when and where: they may be of different days.
            results[part] = {"machine": machine("cpu"), "rows": measure(given, Path(folder))}
        given.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    text = table(results)
    print(text)
    if given.page is not None:
        page = given.page.read_text(encoding="utf-8")
        written = BLOCK.sub(lambda found: f"{found[1]}\n{text}\n\n{found[2]}", page)
        given.page.write_text(written, encoding="utf-8")


def processes(given: argparse.Namespace, folder: Path) -> list[Json]:
    """Run each stage on one and on two processes with the same global batch and all cores."""
    rows = []
    for turn in range(given.turns):
        for stage in UNITS:
            for count in (1, 2):
                root = folder / f"{turn}-{stage}-{count}"
                words = _words(stage, given, root, count)
                _run(stage, words, count)
                row = {"turn": turn, "stage": stage, "processes": count}
                rows.append(row | {"per_second": _rate(stage, root / "bench" / stage)})
                print(rows[-1], flush=True)
                shutil.rmtree(root)
    return rows


def _words(stage: str, given: argparse.Namespace, root: Path, count: int) -> list[str]:
    own = {
        "sft": [f"sft.batch_size={16 // count}", f"sft.max_steps={given.steps}",
                "sft.sample_prompts=0", f"data.limit={16 * given.steps + 16}"],
        "reward": [f"reward.batch_size={4 // count}", f"reward.max_steps={given.steps}",
                   f"data.limit={4 * given.steps + 16}",
                   f"data.train={given.demo}/rankings/rankings.jsonl"],
        "ppo": [*PPO, f"ppo.total_episodes={32 * given.updates}",
                f"reward_model={given.demo}/reward/model"],
    }[stage]  # fmt: skip
    if stage != "sft":
        own.append(f"model.name={given.demo}/sft/model")
    return [f"run.root={root}", "run.name=bench", *own]


def _rate(stage: str, folder: Path) -> float:
    rows = read_metrics(folder / "metrics.jsonl")
    if stage != "ppo":
        return float(next(r["train_samples_per_second"] for r in rows if "train_runtime" in r))
    return 32 / statistics.mean(_seconds(rows)[1:])


def _seconds(rows: list[Json]) -> list[float]:
    """Return the seconds of each update."""
    names = ("time/rollout", "time/score", "time/update")
    return [sum(row[name] for name in names) for row in rows if names[0] in row]


def overlap(given: argparse.Namespace, folder: Path) -> list[Json]:
    """Run PPO with and without sampling ahead; alone it has all cores, else each thread its own."""
    rows = []
    for turn in range(given.turns):
        for ahead in (False, True):
            root = folder / f"{turn}-{ahead}"
            words = _words("ppo", given, root, 1)
            words += [f"ppo.total_episodes={32 * given.learning_updates}", f"run.seed={turn}"]
            words.append(f"rollout.overlap={str(ahead).lower()}")
            _run("ppo", words, 2 if ahead else 1, one=True)
            log = read_metrics(root / "bench" / "ppo" / "metrics.jsonl")
            updates = [row for row in log if "objective/scores" in row]
            half = updates[len(updates) // 2 :]
            row = {
                "turn": turn, "overlap": ahead, "seconds": statistics.mean(_seconds(log)[1:]),
                "first_score": updates[0]["objective/scores"],
                "score": statistics.mean(r["objective/scores"] for r in half),
                "kl": updates[-1]["objective/kl"],
                "mismatch": statistics.mean(r.get("importance/kl", 0.0) for r in updates),
            }  # fmt: skip
            rows.append(row)
            print(row, flush=True)
            shutil.rmtree(root)
    return rows


def streaming(given: argparse.Namespace, folder: Path) -> list[Json]:
    """Load and encode the same rows in memory and on disk."""
    draw = random.Random(0)
    source = folder / "rows.jsonl"
    with source.open("w", encoding="utf-8") as file:
        for number in range(given.rows):
            words = (" ".join(draw.choices(WORDS, k=count)) for count in (60, 120))
            row = dict(zip(("prompt", "completion"), words, strict=True))
            file.write(json.dumps(row | {"prompt": f"{number} {row['prompt']}"}) + "\n")
    rows = []
    for disk in ("false", "true"):
        words = [sys.executable, "-c", PEAK, str(source), disk, str(folder / "data")]
        done = subprocess.run(words, check=True, capture_output=True, timeout=PATIENCE, text=True)
        peak = int(done.stdout.split()[-1]) / 1024
        rows.append({
            "streaming": disk == "true", "rows": given.rows, "peak_mib": peak,
            "source_mib": source.stat().st_size / 2**20,
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def _run(stage: str, words: list[str], count: int, *, one: bool = False) -> None:
    cores = os.cpu_count() or 1
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // count))}
    start = [sys.executable, "-c", "from workbench.cli import main; main()"]
    command = [*start, stage, "--config", f"configs/{stage}/demo.yaml"]
    if count > 1 and not one:
        command += ["--accelerate", CPU, "--num-processes", str(count)]
    done = subprocess.run(
        [*command, *words], check=False, capture_output=True, env=environment, timeout=PATIENCE,
        text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join([*command, *words])}\n{done.stderr[-3000:]}")


def table(results: Json) -> str:
    """Return what was measured as Markdown."""
    return "\n\n".join(
        f"{TABLES[part](results[part]['rows'])}\n\n{_where(results[part]['machine'])}"
        for part in PARTS
        if part in results
    )


def _where(found: Json) -> str:
    names = ("torch", "transformers", "accelerate")
    versions = ", ".join(f"{name} {found[name]}" for name in names)
    load = found["load_average"][0]
    return (
        f"{found['processor']}, {found['cores']} cores, no GPU; {versions}; {found['date']}, load "
        f"before it {load:.1f}."
    )


def _processes_table(rows: list[Json]) -> str:
    lines = [
        "| stage | one process | two processes | ratio, turn by turn |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for stage, unit in UNITS.items():
        own = {(r["turn"], r["processes"]): r["per_second"] for r in rows if r["stage"] == stage}
        turns = sorted({turn for turn, _ in own})
        means = [statistics.mean(own[turn, count] for turn in turns) for count in (1, 2)]
        ratios = ", ".join(f"{own[turn, 2] / own[turn, 1]:.2f}" for turn in turns)
        lines.append(f"| `{stage}`, {unit} a second | {means[0]:.2f} | {means[1]:.2f} | {ratios} |")
    return "\n".join(lines)


def _overlap_table(rows: list[Json]) -> str:
    lines = [
        "| PPO | seconds an update, turn by turn | score of the first update | of the last half | "
        "KL at the end | KL(μ‖π) a token |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for ahead, name in ((False, "as usual"), (True, "`rollout.overlap=true`")):
        own = [row for row in rows if row["overlap"] == ahead]
        cells = [
            ", ".join(f"{row[key]:.{digits}f}" for row in own)
            for key, digits in (
                ("seconds", 1), ("first_score", 2), ("score", 2), ("kl", 2), ("mismatch", 5),
            )
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _streaming_table(rows: list[Json]) -> str:
    lines = ["| data | peak memory of loading and encoding |", "|---|---:|"]
    for row in rows:
        where = "`data.streaming=true`" if row["streaming"] else "in memory"
        size = f"{row['rows']:,} demonstrations, {row['source_mib']:.0f} MiB"
        lines.append(f"| {where}, {size} | {row['peak_mib']:,.0f} MiB |")
    return "\n".join(lines)


TABLES = {
    "processes": _processes_table, "overlap": _overlap_table, "streaming": _streaming_table,
}  # fmt: skip

if __name__ == "__main__":
    started = time.time()
    main()
    print(f"{time.time() - started:.0f} s")
