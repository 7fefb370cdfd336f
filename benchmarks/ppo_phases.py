"""Times the phases of one PPO update, rollout, score and update, in each layout, with peak memory.

Every measurement is a process of its own; layouts take turns, so that a busy machine slows all of
them alike. Compare processor seconds where other work runs, wall seconds where none does.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workbench.embedded import NAME

PHASES = ("rollout", "score", "update")


def main() -> None:
    """Measure, write JSON, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=NAME)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--episodes", type=int, default=16, help="answers per update")
    parser.add_argument("--query", type=int, default=64, help="tokens of each query")
    parser.add_argument("--response", type=int, default=48, help="tokens of each response")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the answers")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--top", type=int, default=10, help="layers trained where the rest is kept")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--layouts", nargs="+", default=["separate", "lora", "shared_trunk", "lora_top"]
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench/ppo_phases.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        print(json.dumps(measure(given)))
        return
    settings = {k: v for k, v in vars(given).items() if k not in {"child", "folder", "out"}}
    rows: list[dict[str, Any]] = []
    result = {"machine": machine(), "settings": settings, "rows": rows}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write_reward_models(given.model, Path(folder))
        for repeat in range(given.repeats):
            for layout in given.layouts:
                rows.append({"layout": layout, "repeat": repeat} | child(layout, folder))
                given.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
                print(f"{repeat + 1}/{given.repeats} {layout}: {rows[-1]}", file=sys.stderr)
    print(table(rows, given.layouts))


def child(layout: str, folder: str) -> dict[str, Any]:
    """Measure a layout in a process of its own, with this one's arguments."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", layout, "--folder", folder]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def write_reward_models(model: str, folder: Path) -> None:
    """Save a whole reward model with the policy's layers, and one that is an adapter on them."""
    import torch
    from peft import get_peft_model

    from workbench.models import (
        LoraSettings,
        ModelSettings,
        load_scorer,
        load_tokenizer,
        lora_config,
    )

    torch.manual_seed(0)
    scorer = load_scorer(ModelSettings(name=model), torch.bfloat16)
    scorer.save_pretrained(folder / "whole")
    adapted = get_peft_model(scorer, lora_config(LoraSettings(enabled=True), "SEQ_CLS"))
    adapted.save_pretrained(folder / "adapter")
    for name in ("whole", "adapter"):
        load_tokenizer(model).save_pretrained(folder / name)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Return wall and processor seconds of each phase, and the peak of memory after it."""
    import torch
    from accelerate import Accelerator

    from ppo.config import PPOModelSettings, PPOSettings
    from ppo.experience import make_experience
    from ppo.rewards import RunningMoments
    from ppo.roles import Roles
    from ppo.rollout import score_rollout
    from ppo.update import Optimisation
    from workbench.config import load_config
    from workbench.generation import Response, SamplingSettings, generate

    layout = {
        "separate": ["layout=separate"],
        "lora": ["layout=lora"],
        "shared_trunk": ["layout=shared_trunk", f"train_top_layers={given.top}"],
        "lora_top": ["layout=lora", f"train_top_layers={given.top}"],
    }[given.child]
    common = [f"name={given.model}", f"precision={given.precision}"]
    torch.manual_seed(0)
    reward = given.folder / ("adapter" if given.child == "lora" else "whole")
    roles = Roles(
        load_config(PPOModelSettings, None, [*common, *layout]), str(reward), torch.device("cpu")
    )
    args = PPOSettings(
        total_episodes=given.episodes,
        batch_size=given.episodes,
        num_mini_batches=1,
        num_ppo_epochs=given.epochs,
        micro_batch_size=given.micro_batch,
    )
    optimisation = Optimisation(args, roles, Accelerator(cpu=True), 10)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(100, roles.actor.config.vocab_size, (given.episodes, given.query),
                        generator=draw).tolist()  # fmt: skip
    sampling = SamplingSettings(max_new_tokens=given.response)

    def rollout() -> list[Response]:
        with roles.sampling():  # no token ends an answer
            return generate(roles.actor, ids, sampling, eos_token_id=-1)

    def score(answers: list[Response]) -> Any:
        scored = score_rollout(roles, ids, answers, 1.0, given.micro_batch)
        return make_experience(scored, args, kl_coef=0.05, moments=RunningMoments())

    def update(experience: Any) -> None:
        optimisation(experience, 1.0, 0)
        roles.sync_actor()

    # Libraries are loaded and kernels chosen at the first call; two answers suffice for that.
    two = score_rollout(roles, ids[:2], [Response([5, 6], True)] * 2, 1.0, 2)
    warm = make_experience(two, args, kl_coef=0.05, moments=RunningMoments())
    optimisation.step(warm, [0, 1], 1.0)
    found: dict[str, Any] = {}
    answers = timed(found, "rollout", rollout)
    experience = timed(found, "score", lambda: score(answers))
    timed(found, "update", lambda: update(experience))
    return found


def timed(found: dict[str, Any], phase: str, work: Callable[[], Any]) -> Any:
    """Do the work, note its wall seconds, processor seconds and the peak of memory so far."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    found[phase] = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    return result


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    import torch
    import transformers

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def table(rows: list[dict[str, Any]], layouts: list[str]) -> str:
    """Return medians over repeats as Markdown; the ratio is of processor seconds within a turn."""
    lines = [
        "| layout | " + " | ".join(f"{phase}, CPU s (wall s)" for phase in PHASES)
        + " | sum, CPU s (wall s) | of the first | peak GiB |",
        "|---|" + "---:|" * (len(PHASES) + 3),
    ]  # fmt: skip
    first = {row["repeat"]: row for row in rows if row["layout"] == layouts[0]}
    for layout in layouts:
        own = [row for row in rows if row["layout"] == layout]
        cells = [
            f"{_median(row[phase]['cpu_s'] for row in own):.1f} "
            f"({_median(row[phase]['wall_s'] for row in own):.1f})"
            for phase in PHASES
        ]
        cells.append(
            f"{_median(_total(row, 'cpu_s') for row in own):.1f} "
            f"({_median(_total(row, 'wall_s') for row in own):.1f})"
        )
        ratio = _median(_total(row, "cpu_s") / _total(first[row["repeat"]], "cpu_s") for row in own)
        peak = max(row["update"]["peak_gib"] for row in own)
        lines.append(f"| {layout} | {' | '.join(cells)} | {ratio:.2f} | {peak:.2f} |")
    return "\n".join(lines)


def _total(row: dict[str, Any], kind: str) -> float:
    return float(sum(row[phase][kind] for phase in PHASES))


def _median(values: Any) -> float:
    return float(statistics.median(list(values)))


if __name__ == "__main__":
    main()
