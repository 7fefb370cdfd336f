"""Runs stages one after another in each of the processes that were started together.

    accelerate launch --config_file configs/accelerate/fsdp2.yaml -m tests.ppo.sharded PLAN.json

The plan is a list of attempts, each with `arguments` of `python -m ppo`; `canned`, whether answers
follow from their queries alone; `stop`, after how many updates it is interrupted; and `forget`, a
kind of module that is not split. What each process saw is left beside the plan as
`seen-RANK.json`.
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator

import ppo.backends
from ppo import stage
from ppo.config import PPOStage
from ppo.engine import PPOEngine
from ppo.sharding import Shards, is_split
from workbench.config import load_config
from workbench.errors import UserError
from workbench.generation import Response, SamplingSettings

STEP, TRAIN, GENERATE = PPOEngine.step, PPOEngine.train, ppo.backends.generate
GROUP = Shards._group


def answers(engine: PPOEngine) -> list[list[int]]:
    """Sample answers to the held-out prompts, with the same random numbers in every process."""
    queries = [query.ids for query in engine.held_out]
    found = engine.backend.sample(queries, SamplingSettings(max_new_tokens=7), 5)
    return [response.ids for response in found]


def canned(_: Any, queries: Any, __: Any, *, eos_token_id: int, **___: Any) -> list[Response]:
    """Answers that follow from the query alone."""
    found = []
    for query in queries:
        ids, done = list(query[: 1 + len(query) % 5]), len(query) % 2 == 0
        found.append(Response([*ids, eos_token_id] if done else ids, done))
    return found


def shares(engine: PPOEngine) -> dict[str, Any]:
    """Count the numbers in weights and moments of all roles, those here, and what these occupy."""
    roles = engine.roles
    models = [roles.actor, roles.trained, roles.reference, roles.reward]
    weights = {id(p): p for model in models if model is not None for p in model.parameters()}
    moments = [
        moment
        for kept in engine.optimisation.optimizer.state.values()
        for moment in kept.values()
        if moment.dim()
    ]
    everything = [*weights.values(), *moments]
    here = [each.to_local() if is_split(each) else each for each in everything]
    return {
        "split": all(map(is_split, everything)),
        "numbers": sum(each.numel() for each in everything),
        "here": sum(each.numel() for each in here),
        "bytes": sum(
            {s.data_ptr(): s.nbytes() for s in (e.untyped_storage() for e in here)}.values()
        ),
    }


def carry_out(attempt: dict[str, Any]) -> dict[str, Any]:
    """Run the stage as an attempt says; returns what was seen."""
    seen: dict[str, Any] = {}

    def step(engine: PPOEngine) -> dict[str, float]:
        if engine.global_step == attempt.get("stop"):
            raise KeyboardInterrupt
        return STEP(engine)

    def train(engine: PPOEngine) -> None:
        seen["before"] = answers(engine)
        ppo.backends.generate = canned if attempt.get("canned") else GENERATE
        TRAIN(engine)
        ppo.backends.generate = GENERATE
        seen["after"] = answers(engine)
        seen.update(shares(engine))

    def group(shards: Shards, module: Any) -> None:
        if attempt.get("forget", "-") not in type(module).__name__:
            GROUP(shards, module)

    PPOEngine.step, PPOEngine.train = step, train  # type: ignore[method-assign]
    Shards._group = group  # type: ignore[method-assign]
    try:
        config = load_config(PPOStage, None, attempt["arguments"])
        with contextlib.suppress(KeyboardInterrupt):
            stage.run(config)
    except UserError as error:
        seen["error"] = str(error)
    finally:
        PPOEngine.step, PPOEngine.train = STEP, TRAIN  # type: ignore[method-assign]
        Shards._group = GROUP  # type: ignore[method-assign]
        ppo.backends.generate = GENERATE
    return seen


def main(plan: Path) -> None:
    """Carry out a plan."""
    # The processes stay connected from one run to the next.
    Accelerator.end_training = lambda _: None  # type: ignore[method-assign]
    seen = [carry_out(attempt) for attempt in json.loads(plan.read_text(encoding="utf-8"))]
    (plan.parent / f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
