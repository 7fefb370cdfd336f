"""Learning curves of the layouts: gold score against KL on the demo task, several seeds each.

Needs the demo's SFT and reward model (`make demo` leaves them). Runs that are finished are kept, so
that the command can be stopped and repeated.
"""

import argparse
import json
import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from workbench.report.canvas import COLOURS, picture
from workbench.statistics import cluster_bootstrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What differs between the layouts: a step of the same size moves adapters and whole models
# differently far, so each has a rate of its own, chosen for like KL.
LAYOUTS = {
    "separate": ["model.train_top_layers=null", "ppo.learning_rate=4e-5",
                 "ppo.value_learning_rate=6e-5"],
    "lora": ["model.train_top_layers=null", "ppo.learning_rate=3e-4",
             "ppo.value_learning_rate=4e-4"],
    "shared_trunk": [],
}  # fmt: skip
SIZES = {
    "ppo.total_episodes": 192, "ppo.batch_size": 32, "ppo.num_mini_batches": 4,
    "ppo.micro_batch_size": 8, "rollout.batch_size": 32, "ppo.eval_every": 2, "ppo.save_every": 0,
    "ppo.eval_prompts": 40,
}  # fmt: skip
SHADES = {"separate": "sft", "lora": "reward", "shared_trunk": "ppo"}
BLOCK = re.compile(r"<!-- curves -->.*<!-- /curves -->", re.DOTALL)


class Curve(NamedTuple):
    """One run's evaluations, E of them on P prompts.

    Attributes:
        layout, seed: of the run.
        kl: [E], nats per answer, mean over the prompts.
        gold: [E, P].
    """

    layout: str
    seed: int
    kl: list[float]
    gold: list[list[float]]


def main() -> None:
    """Run what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--layouts", nargs="+", default=list(LAYOUTS), choices=list(LAYOUTS))
    parser.add_argument("--root", type=Path, default=Path("runs"))
    parser.add_argument("--page", type=Path, default=Path("docs/ppo.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/img/ppo-curves.png"))
    given = parser.parse_args()
    curves = []
    for seed in given.seeds:
        for layout in given.layouts:
            folder = given.root / f"curves-{layout}-{seed}" / "ppo"
            if not (folder / "done.json").is_file():
                subprocess.run(command(layout, seed, given.root), check=True)
            curves.append(read(folder, layout, seed))
    text = table(curves)
    print(text)
    page = given.page.read_text(encoding="utf-8")
    block = f"<!-- curves -->\n\n{text}\n\n<!-- /curves -->"
    given.page.write_text(BLOCK.sub(lambda _: block, page), encoding="utf-8")
    picture(given.picture, (440, 260), [partial(paint, curves=curves)])


def command(layout: str, seed: int, root: Path) -> list[str]:
    """Return the command of one run."""
    sizes = [f"{key}={value}" for key, value in SIZES.items()]
    return [
        sys.executable, "-m", "ppo", "--config", "configs/ppo/demo.yaml", f"run.root={root}",
        f"run.name=curves-{layout}-{seed}", f"run.seed={seed}", f"model.layout={layout}",
        *sizes, *LAYOUTS[layout],
    ]  # fmt: skip


def read(folder: Path, layout: str, seed: int) -> Curve:
    """Read a run's evaluations."""
    kl, gold = [], []
    for path in sorted((folder / "samples").glob("step_*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kl.append(sum(row["kl"] for row in rows) / len(rows))
        gold.append([row["gold"] for row in rows])
    return Curve(layout, seed, kl, gold)


def at_kl(curve: Curve, kl: float) -> list[float]:
    """Return the gold score of each prompt where the curve first reaches a KL, [P].

    Between two evaluations it is drawn as a line.
    """
    for step in range(1, len(curve.kl)):
        low, high = curve.kl[step - 1], curve.kl[step]
        if high >= kl > low:
            share = (kl - low) / (high - low)
            before, after = (np.array(curve.gold[k]) for k in (step - 1, step))
            return [float(value) for value in before + share * (after - before)]
    raise ValueError(f"{curve.layout}, seed {curve.seed}: never reaches a KL of {kl}")


def table(curves: list[Curve]) -> str:
    """Return gold at the end and at equal KL, with differences to `separate`, as Markdown."""
    kl = math.floor(100 * min(max(curve.kl) for curve in curves)) / 100
    layouts = list(dict.fromkeys(curve.layout for curve in curves))
    base = {curve.seed: at_kl(curve, kl) for curve in curves if curve.layout == "separate"}
    lines = [
        f"| layout | KL at the end | gold at the start | gold at the end | gold at KL {kl:.2f} | "
        "less that of `separate` (95 %) |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for layout in layouts:
        own = [curve for curve in curves if curve.layout == layout]
        equal = {curve.seed: at_kl(curve, kl) for curve in own}
        cells = [
            f"`{layout}`",
            " / ".join(f"{curve.kl[-1]:.2f}" for curve in own),
            f"{np.mean([curve.gold[0] for curve in own]):.3f}",
            f"{np.mean([curve.gold[-1] for curve in own]):.3f}",
            f"{np.mean(list(equal.values())):.3f}",
        ]
        seeds = [seed for seed in equal if seed in base]
        if layout == "separate" or not seeds:
            cells.append("")
        else:
            # Answers to one prompt under several seeds are not independent; prompts are.
            gaps = np.concatenate([np.array(equal[seed]) - base[seed] for seed in seeds])
            prompts = [prompt for seed in seeds for prompt in range(len(equal[seed]))]
            found = cluster_bootstrap(gaps, prompts)
            cells.append(f"{found.value:+.3f} ({found.ci95.low:+.3f} to {found.ci95.high:+.3f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def paint(axes: "Axes", curves: list[Curve]) -> str:
    """Paint gold against KL: a pale line a run, and a strong one for the mean of a layout's."""
    for layout in dict.fromkeys(curve.layout for curve in curves):
        own = [curve for curve in curves if curve.layout == layout]
        golds: list[Any] = [[float(np.mean(row)) for row in curve.gold] for curve in own]
        colour = COLOURS[SHADES[layout]]
        for curve, gold in zip(own, golds, strict=True):
            axes.plot(curve.kl, gold, color=colour, linewidth=0.8, alpha=0.3)
        # A run that was stopped early has fewer evaluations than the others.
        count = min(map(len, golds))
        kl = np.mean([curve.kl[:count] for curve in own], axis=0)
        mean = np.mean([gold[:count] for gold in golds], axis=0)
        axes.plot(kl, mean, color=colour, marker="o", markersize=4, label=layout)
    axes.set_xlabel("KL to the SFT policy, nats per answer")
    axes.set_ylabel("gold score, held-out prompts")
    axes.legend(fontsize=8)
    return "Gold score against KL in each layout: single runs pale, their mean strong"


if __name__ == "__main__":
    main()
