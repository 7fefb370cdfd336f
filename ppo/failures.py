"""Failures of a run: named, the state saved where that loses nothing, and stopped."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ppo import checkpoint
from ppo.advantages import Reduce
from ppo.experience import Experience
from ppo.rollout import Rollout
from workbench.errors import UserError, out_of_memory
from workbench.logs import console, unbarred
from workbench.processes import loss_in_words, lost

if TYPE_CHECKING:
    from ppo.engine import PPOEngine

RATES = "lower ppo.learning_rate or ppo.value_learning_rate"
LESS = {
    "rollout": "rollout.batch_size",
    "evaluation": "rollout.batch_size or ppo.micro_batch_size",
    "score": "ppo.micro_batch_size",
    "update": "ppo.micro_batch_size",
}


class DivergenceError(FloatingPointError):
    """Numbers that nothing can be learned from; all processes see it at the same time.

    Attributes:
        advice: how to mend it.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(what)
        self.advice = advice


@contextmanager
def stopping(engine: "PPOEngine", phase: str) -> Iterator[None]:
    """Turn what fails in the block into one line, and save the state before the failing update.

    Args:
        engine: whose `before` is the state before the update.
        phase: rollout, score, update or evaluation.

    Raises:
        UserError: for diverged numbers, for lack of memory, for another process that is gone or
            late, and for what was a `UserError` already; says which checkpoint is kept. Other
            errors are passed on as they are.
    """
    try:
        yield
    except Exception as error:
        memory = out_of_memory(error)
        if memory:
            traceback.clear_frames(error.__traceback__)  # they hold the tensors that filled it
        kept = keep(engine, phase, together=isinstance(error, FloatingPointError))
        update = engine.global_step + (phase != "evaluation")
        where = f"{engine.run.path}: "
        if lost(error):
            text = f"{where}{loss_in_words(error)}; update {update}, in the {phase}"
        elif isinstance(error, DivergenceError):
            text = f"{where}{error} at update {update}; {error.advice}"
        elif isinstance(error, FloatingPointError):
            text = f"{where}{error} at update {update}; {RATES}"
        elif memory:
            text = (
                f"{where}out of memory at update {update}, in the {phase}; lower {LESS[phase]}, "
                "which may change while a run goes on, or in another run rollout.max_new_tokens, "
                "or choose model.layout=lora or shared_trunk"
            )
        elif isinstance(error, UserError):
            text = str(error)
        else:
            with unbarred():
                console.print(f"{where}failed at update {update}; {kept}", markup=False)
            raise
        raise UserError(f"{text}; {kept}") from None


def keep(engine: "PPOEngine", phase: str, *, together: bool) -> str:
    """Save the state before the failing update if it is still there; say what there is to go on.

    The weights are those of the last update until the first optimiser step of the next one. After
    it the state before is gone, and what the last checkpoint holds is all there is.

    Args:
        engine: whose `before` is the state before the update.
        phase: in which it failed.
        together: whether all processes are here; one alone cannot save for the others.
    """
    update, saved = engine.global_step, checkpoint.newest(engine.run.checkpoints)
    steps = engine.optimisation.steps if phase == "update" else 0
    reason = ""
    if steps:
        reason = f"{steps} optimiser steps of this update were taken, so "
    elif update and saved != update:
        if engine.accelerator.num_processes > 1 and not together:
            reason = "one process alone cannot save the state, so "
        else:
            try:
                engine.save_state(engine.before)
                saved = update
            except Exception as error:  # noqa: BLE001 - the failure to report is another one
                reason = f"its state could not be saved ({error}), so "
    if saved is None:
        return f"{reason}there is no checkpoint, and the run starts anew"
    return f"{reason}the same command goes on from the checkpoint of update {saved}"


def check_rollout(rollout: Rollout, reduce: Reduce) -> None:
    """Check that all numbers of a rollout are finite, before anything is made of them.

    Args:
        rollout: scored by every role.
        reduce: sums a tensor over processes, so that all stop together.

    Raises:
        DivergenceError: names the first kind of number that is not.
    """
    mask = rollout.response_mask.bool()
    damaged = "the model is damaged, or its precision too low"
    kinds = {
        "the policy's log-probabilities": (rollout.logprobs, RATES),
        "the values": (rollout.values, RATES),
        "the reference's log-probabilities": (rollout.ref_logprobs, damaged),
        **{f"scores of {name}": (part, damaged) for name, part in rollout.parts.items()},
        "scores": (rollout.scores, "the weights of the sources or model.precision are at fault"),
    }
    _check({name: (_bad(values, mask), advice) for name, (values, advice) in kinds.items()}, reduce)


def check_experience(experience: Experience, max_kl: float | None, reduce: Reduce) -> None:
    """Check that experience is finite and the policy still near its reference.

    Args:
        experience: of this process.
        max_kl: most nats per response; None for no limit.
        reduce: sums a tensor over processes.

    Raises:
        DivergenceError: names what is too much.
    """
    mask = experience.rollout.response_mask.bool()
    advice = "set ppo.score_clip, or look at the rewards"
    kinds = {"returns": experience.returns, "advantages": experience.advantages}
    _check({name: (_bad(values, mask), advice) for name, values in kinds.items()}, reduce)
    kl = experience.metrics["objective/kl"]
    if max_kl is not None and kl > max_kl:
        raise DivergenceError(
            f"the KL to the reference is {kl:.1f} nats per response, above ppo.max_kl={max_kl:g},",
            "raise ppo.kl_coef or lower ppo.learning_rate in another run, or raise ppo.max_kl, "
            "which may change while a run goes on",
        )


def _bad(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the number of answers with a number that is not finite, [] float64."""
    bad = ~torch.isfinite(values)
    rows = bad if values.dim() == 1 else (bad & mask).any(-1)
    return rows.sum().double()


def _check(kinds: dict[str, tuple[torch.Tensor, str]], reduce: Reduce) -> None:
    found = reduce(torch.stack([count for count, _ in kinds.values()]))
    for count, (name, (_, advice)) in zip(found.tolist(), kinds.items(), strict=True):
        if count:
            raise DivergenceError(f"{name} of {count:.0f} answers are NaN or infinite", advice)
