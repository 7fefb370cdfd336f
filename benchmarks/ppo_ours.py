"""Measures updates of our PPO engine in a process of its own; prints one line of JSON.

`ppo_bench.py` starts it. It runs the real engine, rollout, score and update, without evaluation and
checkpoints, on prompts of random tokens; no token ends an answer, so that all are equally long.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.ppo_watch import Watch, about

LAYOUTS = {
    "separate": ["model.layout=separate"],
    "lora": ["model.layout=lora"],
    "shared_trunk": ["model.layout=shared_trunk"],
}
NO_TOKEN = -1


def main() -> None:
    """Measure a layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="models and prompts, as ppo_models.py left them")
    parser.add_argument("--layout", default="shared_trunk", choices=list(LAYOUTS))
    parser.add_argument("--top", type=int, default=None, help="layers trained, for shared_trunk")
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--response", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--updates", type=int, default=2, help="measured")
    parser.add_argument("--warm", choices=("update", "short"), default="update")
    parser.add_argument("--shares", action="store_true", help="count operations, measure the rate")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    given = parser.parse_args()
    found = measure(given)
    if found is not None:
        sys.stdout.write(json.dumps(found) + "\n")


def measure(given: argparse.Namespace) -> dict[str, Any] | None:
    """Return what was measured; None in processes other than the first."""
    with tempfile.TemporaryDirectory(prefix="rlhf-bench-") as runs:
        engine = build(given, runs)
        watch = Watch(given.device)
        watch.count(engine.optimisation.model)
        if given.warm == "short":
            warm_up(engine)
        else:
            update(engine, watch)
        laps, rates = [], []
        for _ in range(given.updates):
            if given.shares:
                rates.append(rate(engine, given))
                watch.lap()
            laps.append(update(engine, watch))
        peak = watch.peak_gib()
        found = {"updates": laps, "peak_gib": peak, "processes": engine.accelerator.num_processes}
        found |= {"reset": watch.fresh, **about()}
        if given.shares:
            found |= {"rates": rates, "flops": operations(engine)}
    total = engine.accelerator.reduce(torch.tensor(peak, device=engine.roles.device), "sum")
    found["peak_gib"] = float(total)  # of all processes together
    return found if engine.accelerator.is_main_process else None


def build(given: argparse.Namespace, runs: str) -> Any:
    """Return an engine on the prepared models."""
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    from ppo.config import PPOStage
    from ppo.engine import PPOEngine
    from ppo.reward_sources import Query
    from ppo.roles import Roles
    from workbench.config import load_config
    from workbench.models import load_tokenizer
    from workbench.run import StageRun

    policy, reward = given.folder / "policy", given.folder / "reward"
    top = [] if given.top is None else [f"model.train_top_layers={given.top}"]
    if given.layout == "lora":
        reward = given.folder / "reward-adapter"
    config = load_config(
        PPOStage,
        None,
        [
            *LAYOUTS[given.layout], *top,
            f"run.root={runs}", f"model.name={policy}", "model.precision=bf16",
            f"reward_model={reward}", "data.train=none",
            f"rollout.max_new_tokens={given.response}",
            f"ppo.total_episodes={given.episodes * 100}", f"ppo.batch_size={given.episodes}",
            "ppo.num_mini_batches=1", f"ppo.num_ppo_epochs={given.epochs}",
            f"ppo.micro_batch_size={given.micro_batch}", "ppo.missing_eos_penalty=null",
        ],
    )  # fmt: skip
    set_seed(0)
    accelerator = Accelerator(cpu=given.device == "cpu", mixed_precision="no")
    prompts = json.loads((given.folder / "prompts.json").read_text(encoding="utf-8"))
    return PPOEngine(
        config,
        Roles(config.model, str(reward), accelerator.device),
        load_tokenizer(str(policy)),
        [Query(ids, "") for ids in prompts],
        StageRun("ppo", config, {}),
        accelerator,
        stop_token_id=NO_TOKEN,
    )


def update(engine: Any, watch: Watch) -> dict[str, Any]:
    """Do one update and return what each phase took."""
    watch.lap()
    found: dict[str, Any] = {}
    samples = engine.rollout()
    found["rollout"] = watch.lap()
    found["tokens"] = sum(len(answer.ids) for answer in samples.responses)
    found["tokens"] *= engine.accelerator.num_processes
    experience = engine.score(samples)
    found["score"] = watch.lap()
    engine.update(experience)
    found["update"] = watch.lap()
    found |= {
        unit: sum(found[phase][unit] for phase in ("rollout", "score", "update"))
        for unit in ("wall_s", "cpu_s", "optimizer_steps", "tokens_trained")
    }
    return found


def warm_up(engine: Any) -> None:
    """Load libraries and choose kernels, by an update on answers of two tokens."""
    from ppo.reward_sources import Samples
    from workbench.generation import Response

    queries = engine.next_queries()
    answers = [Response([5, 6], finished=False) for _ in queries]
    engine.update(engine.score(Samples(queries, answers)))


def rate(engine: Any, given: argparse.Namespace) -> dict[str, float]:
    """Return the rates of bf16 products now, FLOP a second: square ones, and the model's own."""
    from benchmarks.ppo_flops import product_rates

    rows = given.micro_batch * (len(engine.train_queries[0].ids) + given.response)
    return product_rates(engine.roles.actor.config, rows, given.device)


def operations(engine: Any) -> dict[str, Any]:
    """Return the floating-point operations of each phase, counted as they are called."""
    from benchmarks.ppo_flops import counted

    found: dict[str, Any] = {}

    def phase(name: str, work: Callable[[], Any]) -> Any:
        result, found[name] = counted(work)
        return result

    samples = phase("rollout", engine.rollout)
    experience = phase("score", lambda: engine.score(samples))
    phase("update", lambda: engine.update(experience))
    return found


if __name__ == "__main__":
    main()
