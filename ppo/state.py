"""The state between two updates: what a checkpoint holds, and whether it fits the run."""

import random
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed

from ppo.sharding import gather, split_like
from workbench.errors import UserError
from workbench.identity import differences, free_settings
from workbench.logs import console

if TYPE_CHECKING:
    from ppo.engine import PPOEngine


def passing_state(engine: "PPOEngine") -> dict[str, Any]:
    """Return what a rollout already changes, before any weight moves: of this process, and small.

    The engine's own random choices follow from (seed, purpose, update, process) and have no state.
    The libraries' global generators do: functions of the user's may draw from them.
    """
    return {
        "kl_coef": engine.kl.coef,
        "moments": engine.moments.state_dict(),
        "monitors": engine.monitors.state_dict(),
        "ahead": None if engine.ahead is None else engine.ahead.state(),
        "random": random_state(),
    }


def whole_state(engine: "PPOEngine", passing: dict[str, Any]) -> dict[str, Any]:
    """Return all that a checkpoint holds; every process must call it.

    Args:
        engine: between two updates.
        passing: of `passing_state`.
    """
    weights = dict(engine.roles.trained.named_parameters())
    trained = [name for name, weight in weights.items() if weight.requires_grad]
    keep = engine.accelerator.is_main_process  # it alone writes
    return {
        "update": engine.global_step,
        "identity": engine.run.identity,
        "conditions": conditions(engine),
        "data": position(engine),
        "weights": gather({name: weights[name].detach() for name in trained}, keep=keep),
        **gather(engine.optimisation.state_dict(), keep=keep),
        **passing,
        "ahead": gather_object([passing["ahead"]]),
        "random": gather_object([passing["random"]]),
    }


def take_up(engine: "PPOEngine", state: dict[str, Any]) -> None:
    """Put an engine into a checkpoint's state.

    Raises:
        UserError: when the checkpoint is of another configuration or of other prompts.
    """
    check(engine, state)
    engine.global_step, engine.kl.coef = state["update"], state["kl_coef"]
    engine.moments.load_state_dict(state["moments"])
    engine.monitors.load_state_dict(state["monitors"])
    weights = dict(engine.roles.trained.named_parameters())
    with torch.no_grad():
        for name, value in state["weights"].items():
            weights[name].copy_(split_like(value, weights[name]))
    engine.optimisation.load_state_dict(state)
    if len(state["random"]) == engine.accelerator.num_processes:
        set_random_state(state["random"][engine.accelerator.process_index])
        if engine.ahead is not None:
            engine.ahead.load(state["ahead"][engine.accelerator.process_index])
    else:  # other ones than any process had, and than those of another process
        set_seed(engine._seed(4) % 2**32)


def check(engine: "PPOEngine", state: dict[str, Any]) -> None:
    """Check that a checkpoint is one of this run.

    Raises:
        UserError: when it is not; names what differs.
    """
    name = f"{engine.run.checkpoints}: the checkpoint of update {state['update']}"
    free = free_settings(type(engine.config))
    changed = differences(state["identity"], engine.run.identity, free)
    if changed:
        raise UserError(
            f"{name} is of other settings ({', '.join(changed)}); give the old ones to go on, or "
            "choose another folder"
        )
    # Older checkpoints are of runs that never split their weights.
    before, now = {"sharded": False} | state["conditions"], conditions(engine)
    engine.global_step = state["update"]
    if state["data"] != position(engine):
        raise UserError(
            f"{name} was trained on other prompts, or on the same in another order; give the old "
            "ones to go on, or choose another run.name"
        )
    changed = [f"{key}: {before[key]} → {now[key]}" for key in now if before[key] != now[key]]
    if before["processes"] != now["processes"]:
        console.print(
            f"ppo: not as many processes as there were ({', '.join(changed)}); prompts, weights, "
            "optimiser and schedule go on where they were, the random numbers of rollouts and "
            "minibatches are others from here on than an uninterrupted run's",
            markup=False,
            style="yellow",
        )
    elif changed:
        console.print(
            f"ppo: not the machine it was ({', '.join(changed)}); from here on the last bits may "
            "differ from an uninterrupted run's",
            markup=False,
            style="yellow",
        )


def conditions(engine: "PPOEngine") -> dict[str, Any]:
    """Return what must be the same for the last bit of a sum to be."""
    return {
        "processes": engine.accelerator.num_processes,
        "sharded": engine.roles.shards is not None,
        "threads": torch.get_num_threads(),
        "device": engine.roles.device.type,
        "torch": str(torch.__version__),
    }


def position(engine: "PPOEngine") -> dict[str, Any]:
    """Return the place in the data, which follows from the update, and what data it is."""
    return {
        "episodes": engine.global_step * engine.args.batch_size,
        "prompts": len(engine.train_queries),
        "digest": engine.data_digest,
    }


def random_state() -> dict[str, Any]:
    """Return the state of the global generators of Python, numpy and torch in this process."""
    _, keys, place, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": {
            "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
            "place": int(place),
            "has_gauss": int(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set the global generators of this process to a state of `random_state`."""
    random.setstate(state["python"])
    theirs = state["numpy"]
    keys = theirs["keys"].numpy().astype(np.uint32)
    legacy = ("MT19937", keys, theirs["place"], theirs["has_gauss"], theirs["gauss"])
    np.random.set_state(legacy)
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
