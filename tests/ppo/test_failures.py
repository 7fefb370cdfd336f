"""Failures are named, the state before them is saved, and the run goes on from there."""

import math

import pytest
import torch

from ppo import checkpoint, failures
from ppo.evaluation import evaluate
from tests import two
from tests.ppo.conftest import arguments
from tests.ppo.test_engine import same_end, weights
from workbench.errors import UserError
from workbench.files import damage

GIVEN = ["ppo.total_episodes=32", "ppo.score_scaling=running", "ppo.save_every=9"]
FAILED = "run.name=failed"


def stopped(made) -> str:
    with pytest.raises(UserError) as error:
        made.train()
    text = str(error.value)
    assert "\n" not in text
    return text


def saved(made) -> list[str]:
    """The checkpoints there are, after checking that they are whole and finite."""
    for path in made.run.checkpoints.glob("update-*"):
        assert checkpoint.not_finite(checkpoint.load(path)) is None
    return sorted(path.name for path in made.run.checkpoints.glob("update-*"))


def at_update(made, update: int, real, wrong):
    """A function that is `real`, and in one update does `wrong` to its result."""

    def call(*arguments):
        found = real(*arguments)
        return wrong(found) if made.global_step == update - 1 else found

    return call


def no_memory(_: object) -> torch.Tensor:
    return torch.empty(2**52, dtype=torch.uint8)  # more than any address space holds


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("scores", "scores of {reward} of 8 answers are NaN or infinite at update 3; the model"),
        ("reference_logprobs", "reference's log-probabilities of 8 answers are NaN or infinite"),
    ],
)
def test_numbers_nobody_can_learn_from_are_named_and_nothing_is_lost(
    llama, trainer, monkeypatch, number, name, said
):
    whole = trainer(llama, *GIVEN, "run.name=whole")
    whole.train()
    made = trainer(llama, *GIVEN, FAILED)
    real = getattr(made.roles, name)
    monkeypatch.setattr(made.roles, name, at_update(made, 3, real, lambda found: found * number))
    text = stopped(made)
    assert text.startswith(f"{made.run.path}: ")
    assert said.format(reward=made.rewards.names[0]) in text
    assert "at update 3" in text
    assert text.endswith("the same command goes on from the checkpoint of update 2")
    assert saved(made) == ["update-000002"]
    again = trainer(llama, *GIVEN, FAILED)
    again.train()
    same_end(whole, again)


def test_a_policy_that_broke_is_told_from_a_reward_that_did(llama, trainer):
    made = trainer(llama)
    rollout = made.score(made.rollout()).rollout
    one = rollout.logprobs.clone()
    one[3, 0] = math.nan
    for name, values, said in (
        ("logprobs", one, "the policy's log-probabilities of 1 answers"),
        ("values", torch.full_like(one, math.inf), "the values of 8 answers"),
        ("scores", torch.tensor([0.0] * 6 + [math.nan] * 2), "scores of 2 answers"),
    ):
        with pytest.raises(failures.DivergenceError, match=said):
            made.experience(rollout._replace(**{name: values}))
    # What stands in the padding does not count.
    padding = torch.where(rollout.response_mask.bool(), rollout.logprobs, math.nan)
    assert rollout.response_mask.min() == 0
    failures.check_rollout(rollout._replace(logprobs=padding), lambda total: total)


@pytest.mark.parametrize("minibatch", [1, 2])
def test_a_loss_that_is_none_ends_the_run_before_the_step(llama, trainer, monkeypatch, minibatch):
    made = trainer(llama, *GIVEN, "ppo.micro_batch_size=8", FAILED)
    real, calls = made.optimisation._learn, []

    def learn(*arguments):
        calls.append(made.global_step)
        return real(*arguments) * (math.nan if calls.count(2) == minibatch else 1.0)

    monkeypatch.setattr(made.optimisation, "_learn", learn)
    text = stopped(made)
    assert "the loss became NaN or infinite at update 3; lower ppo.learning_rate" in text
    if minibatch == 1:
        assert "goes on from the checkpoint of update 2" in text
        assert saved(made) == ["update-000002"]
    else:  # the weights of update 2 are gone
        assert "1 optimiser steps of this update were taken, so there is no checkpoint" in text
        assert saved(made) == []
    assert all(torch.isfinite(weight).all() for weight in weights(made).values())


def test_an_exploding_kl_stops_before_it_is_learned_from(llama, trainer):
    whole = trainer(llama, *GIVEN, "run.name=whole")
    whole.train()
    made = trainer(llama, *GIVEN, FAILED, "ppo.max_kl=0.01")
    text = stopped(made)
    assert "the KL to the reference is " in text
    assert " nats per response, above ppo.max_kl=0.01, at update 2; raise ppo.kl_coef" in text
    assert text.endswith("goes on from the checkpoint of update 1")
    assert saved(made) == ["update-000001"]
    again = trainer(llama, *GIVEN, FAILED, "ppo.max_kl=null")  # may change while a run goes on
    again.train()
    same_end(whole, again)


@pytest.mark.parametrize(
    ("phase", "lower"),
    [
        ("rollout", "lower rollout.batch_size,"),
        ("score", "lower ppo.micro_batch_size,"),
        ("update", "lower ppo.micro_batch_size,"),
    ],
)
def test_out_of_memory_is_named_and_the_state_before_it_saved(
    llama, trainer, monkeypatch, phase, lower
):
    """The error is the real one of torch's allocator."""
    made = trainer(llama, *GIVEN, FAILED)
    owner, name = {
        "rollout": (made.backend, "sample"),
        "score": (made.roles, "scores"),
        "update": (made.optimisation, "_learn"),
    }[phase]
    monkeypatch.setattr(owner, name, at_update(made, 2, getattr(owner, name), no_memory))
    text = stopped(made)
    assert f"out of memory at update 2, in the {phase}; {lower} which may change" in text
    assert "rollout.max_new_tokens" in text
    assert text.endswith("goes on from the checkpoint of update 1")
    assert saved(made) == ["update-000001"]
    again = trainer(llama, *GIVEN, FAILED, "ppo.micro_batch_size=2", "rollout.batch_size=2")
    again.train()
    assert again.global_step == 4


def test_lack_of_memory_is_known_in_all_its_forms():
    with pytest.raises(RuntimeError) as error:
        no_memory(None)
    assert failures.out_of_memory(error.value)
    assert failures.out_of_memory(MemoryError())
    assert failures.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to …"))
    assert failures.out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when …"))
    assert not failures.out_of_memory(RuntimeError("shape mismatch"))
    assert not failures.out_of_memory(ValueError("out of memory"))


def test_a_reward_that_fails_loses_no_update(llama, trainer, monkeypatch):
    """Such as one that asks a server: the run goes on when the server is back."""
    whole = trainer(llama, *GIVEN, "run.name=whole")
    whole.train()
    made = trainer(llama, *GIVEN, FAILED)

    def away(_):
        raise UserError("reward function f: raised TimeoutError on the whole batch: no answer")

    monkeypatch.setattr(made.roles, "scores", at_update(made, 4, made.roles.scores, away))
    assert stopped(made) == (
        "reward function f: raised TimeoutError on the whole batch: no answer; the same command "
        "goes on from the checkpoint of update 3"
    )
    again = trainer(llama, *GIVEN, FAILED)
    again.train()
    same_end(whole, again)


def test_an_evaluation_that_failed_is_made_up_for(llama, trainer, monkeypatch):
    given = [*GIVEN, "ppo.eval_every=2"]
    whole = trainer(llama, *given, "run.name=whole")
    whole.train()
    made = trainer(llama, *given, FAILED)
    monkeypatch.setattr("ppo.engine.evaluate", lambda *a, **k: broken(made, *a, **k))
    assert "out of memory at update 2, in the evaluation" in stopped(made)
    assert saved(made) == ["update-000002"]
    monkeypatch.setattr("ppo.engine.evaluate", evaluate)
    again = trainer(llama, *given, FAILED)
    again.train()
    same_end(whole, again)


def broken(made, *arguments, **keywords):
    return evaluate(*arguments, **keywords) if made.global_step != 2 else no_memory(None)


def test_other_errors_pass_as_they_are_and_lose_nothing_either(llama, trainer, monkeypatch, capsys):
    made = trainer(llama, *GIVEN, FAILED)

    def wrong(_):
        raise ZeroDivisionError("a mistake in the code")

    monkeypatch.setattr(made.roles, "scores", at_update(made, 3, made.roles.scores, wrong))
    with pytest.raises(ZeroDivisionError):
        made.train()
    assert "failed at update 3; the same command goes on from the" in capsys.readouterr().err
    assert saved(made) == ["update-000002"]


def test_a_state_that_cannot_be_saved_does_not_hide_why_it_should(llama, trainer, monkeypatch):
    made = trainer(llama, *GIVEN, FAILED)
    monkeypatch.setattr(made.roles, "scores", at_update(made, 2, made.roles.scores, no_memory))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    text = stopped(made)
    assert "out of memory at update 2" in text
    assert "could not be saved ([Errno 28] No space left on device), so there is no" in text


def test_weights_that_are_not_finite_are_not_saved(llama, trainer):
    made = trainer(llama, *GIVEN, "ppo.save_every=1", FAILED)
    made.step()
    made.save_state()
    made.step()
    with torch.no_grad():
        next(made.roles.trained.policy.parameters()).view(-1)[0] = math.inf
    with pytest.raises(UserError, match=r"update-000002: not written, since weights.policy"):
        made.save_state()
    assert saved(made) == ["update-000001"]


# --- two processes


FAILS_ELSEWHERE = '''
import os

def score(completions, **columns):
    """Lengths; after its first batch the second process has had enough."""
    score.calls += 1
    if os.environ["RANK"] == "1" and score.calls > 1:
        raise KeyError("no such word")
    return [float(len(text)) for text in completions]

score.calls = 0
'''


@pytest.mark.slow
def test_what_fails_on_another_process_ends_all_and_is_told_once(llama, runs, prompts, tmp_path):
    (tmp_path / "mine.py").write_text(FAILS_ELSEWHERE)
    done = two.rlhf(
        "ppo", *arguments(llama, runs, prompts), f"rewards.functions=[{tmp_path}/mine.py:score]",
        "ppo.save_every=1",
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    said = " ".join(done.stderr.split())
    assert said.count("rlhf: error:") == 1
    assert "rlhf: error: process 1: reward function" in said
    assert "raised KeyError" in said
    assert "the same command goes on from the checkpoint of update 1" in said
    for noise in ("Traceback", "elastic", "gloo"):
        assert noise not in said
    assert damage(runs / "default" / "ppo" / "checkpoints" / "update-000001") is None
