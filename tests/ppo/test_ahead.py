"""Sampling ahead: what it learns from, how old that may be, and that a resumed run does so too."""

import subprocess
import sys
import threading

import pytest
import torch

from ppo import stage
from ppo.ahead import Ahead
from tests.ppo.conftest import even_share
from tests.ppo.test_engine import LAYOUTS
from workbench.config import load_config
from workbench.errors import UserError
from workbench.generation import Response
from workbench.run import read_metrics

ON = ("rollout.overlap=true", "rollout.overlap_max_kl=null")
ANSWER = [Response([5, 2], finished=True, logprobs=[-0.5, -1.0])]


# --- the batch that waits


def test_a_batch_is_taken_once_and_for_its_own_update():
    ahead = Ahead(None)
    assert ahead.take(0) is None
    ahead.start(3, lambda: ANSWER)
    assert ahead.take(2) is None
    assert ahead.take(3) == ANSWER
    assert ahead.take(3) is None


def test_it_is_made_in_another_thread_with_as_many_threads_of_its_own():
    ahead, found = Ahead(None), []

    def later():
        found.append((threading.current_thread(), torch.get_num_threads()))
        return ANSWER

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ahead.start(0, later)
        ahead.take(0)
    finally:
        torch.set_num_threads(before)
    ((thread, threads),) = found
    assert thread is not threading.main_thread()
    assert threads == 1


def test_its_thread_works_on_the_gpu_of_this_process(monkeypatch):
    chosen, here = [], threading.current_thread()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    # As CUDA has it: each thread has a current device of its own, at first 0.
    monkeypatch.setattr(
        torch.cuda, "current_device", lambda: 3 if threading.current_thread() is here else 0
    )
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda n: chosen.append((n, threading.current_thread() is here))
    )
    ahead = Ahead(None)
    ahead.start(0, lambda: [*ANSWER, *chosen])
    assert ahead.take(0) == [*ANSWER, (3, False)]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    ahead.start(1, lambda: ANSWER)
    ahead.take(1)
    assert len(chosen) == 1


def test_the_bound():
    for bound, kl, found in ((0.1, 0.2, True), (0.1, 0.1, False), (None, 9.0, False)):
        assert Ahead(bound).too_far({"importance/kl": kl}) is found


def test_a_batch_that_nobody_wanted_is_out_of_the_way_before_the_next():
    ahead, order, goes_on = Ahead(None), [], threading.Event()

    def slow():
        goes_on.wait(60)
        order.append("slow")
        return ANSWER

    def quick():
        order.append("quick")
        return ANSWER

    ahead.start(1, slow)
    ahead.start(2, quick)
    goes_on.set()
    assert ahead.take(1) is None
    assert ahead.take(2) == ANSWER
    assert order == ["slow", "quick"]


def test_the_end_of_a_process_does_not_wait_for_a_batch():
    script = (
        "import threading; from ppo.ahead import Ahead\n"
        "begun = threading.Event()\n"
        "def later(): begun.set(); threading.Event().wait(600)\n"
        "Ahead(None).start(1, later); begun.wait(60); raise SystemExit(3)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=120, check=False).returncode == 3


def test_what_a_checkpoint_keeps():
    ahead = Ahead(None)
    assert ahead.state() is None
    ahead.start(4, lambda: ANSWER)
    kept = ahead.state()
    again = Ahead(None)
    again.load(kept)
    assert (again.take(4), again.state()) == (ANSWER, None)
    again.load(None)
    assert again.take(4) is None


def test_an_error_comes_to_who_wants_the_batch():
    def broken():
        raise UserError("the server is gone")

    ahead = Ahead(None)
    ahead.start(1, broken)
    assert ahead.state() is None  # nothing of it is worth keeping
    with pytest.raises(UserError, match="the server is gone"):
        ahead.take(1)


# --- in a run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_batch_is_sampled_by_the_policy_before_the_last_update(family, trainer, layout):
    made = trainer(family, *LAYOUTS[layout], *ON, "ppo.total_episodes=32")
    own = made.backend
    expected, found = [], []
    for step in range(4):
        # What the actor of now would say to the queries of the next update.
        samples = made.rollout()
        found.append(samples.responses)
        if step < 3:
            ids = [query.ids for query in made.next_queries(step + 1)]
            expected.append(own.sample(ids, made.config.rollout, made._seed(1, step + 1)))
        metrics = made.update(made.score(samples))
        assert metrics["rollout/staleness"] == float(step > 0)
        # Of one engine and one policy only rounding differs; an update is far more.
        assert (metrics["importance/logprob_difference_max"] > 1e-3) == (step > 0)
    for rows, others in zip(found[1:], expected, strict=True):
        assert [(row.ids, row.finished) for row in rows] == [
            (row.ids, row.finished) for row in others
        ]
        # Where a trunk's states are kept rows stay a step longer, and others round differently.
        for row, other in zip(rows, others, strict=True):
            assert row.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    assert all(len(row.logprobs) == len(row.ids) for row in found[3])


def test_a_policy_that_stays_gives_the_answers_it_gives_without(llama, trainer):
    still = ("ppo.value_warmup_updates=9",)
    plain, ahead = trainer(llama, *still), trainer(llama, *still, *ON, "run.name=ahead")
    for _ in range(3):
        one, other = plain.step(), ahead.step()
        assert one["objective/scores"] == other["objective/scores"]
        assert other["importance/weight"] == pytest.approx(1, abs=1e-5)


def test_a_batch_beyond_the_bound_is_sampled_anew_before_it_is_learned_from(llama, trainer):
    shaped = ("ppo.score_scaling=running",)  # what has seen a dropped batch forgets it
    made = trainer(llama, "rollout.overlap=true", "rollout.overlap_max_kl=0", *shaped)
    plain = trainer(llama, "run.name=plain", *shaped)
    rows = [made.step() for _ in range(3)]
    assert [row["rollout/dropped"] for row in rows] == [0, 1, 1]
    assert [row["rollout/staleness"] for row in rows] == [0, 0, 0]
    assert all(row["importance/logprob_difference_max"] < 1e-4 for row in rows)
    for row, other in zip(rows, [plain.step() for _ in range(3)], strict=True):
        assert row["objective/scores"] == pytest.approx(other["objective/scores"], abs=1e-4)


def weights(folder):
    return (folder / "model/model.safetensors").read_bytes()


def test_a_run_that_is_stopped_goes_on_bit_for_bit(llama, config, monkeypatch):
    options = (*ON, "ppo.save_every=1", "ppo.total_episodes=40")
    whole = stage.run(config(llama, *options))
    monkeypatch.setattr("ppo.engine.PPOEngine.save_state", stopping_after(2))
    with pytest.raises(KeyboardInterrupt):
        stage.run(config(llama, *options, "run.name=stopped"))
    monkeypatch.undo()
    again = stage.run(config(llama, *options, "run.name=stopped"))
    assert weights(again) == weights(whole)
    logs = [read_metrics(folder / "metrics.jsonl") for folder in (whole, again)]
    scores = [[row.get("objective/scores") for row in log] for log in logs]
    assert scores[0] == scores[1]
    assert [row["rollout/staleness"] for row in logs[1] if "rollout/staleness" in row] == [
        0, 1, 1, 1, 1
    ]  # fmt: skip


def stopping_after(update):
    from ppo.engine import PPOEngine

    save = PPOEngine.save_state

    def stop(engine, passing=None):
        save(engine, passing)
        if engine.global_step == update:
            raise KeyboardInterrupt

    return stop


def test_it_learns(llama, trainer, monkeypatch):
    """As in tests/ppo/test_engine.py: the score is the share of even tokens."""
    made = trainer(
        llama, *ON, "ppo.total_episodes=256", "ppo.batch_size=32", "ppo.num_ppo_epochs=4",
        "ppo.micro_batch_size=32", "ppo.learning_rate=3e-3", "ppo.lr_scheduler=constant",
        "ppo.kl_coef=0.0", "ppo.missing_eos_penalty=null",
    )  # fmt: skip

    monkeypatch.setattr(made.roles, "scores", even_share)
    scores = [made.step()["objective/scores"] for _ in range(8)]
    assert sum(scores[-2:]) / 2 > scores[0] + 0.12


# --- refused


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["rollout.backend=transformers"],
            r"rollout\.overlap=true: goes with backend=native or",
        ),
        (
            ["rollout.backend=vllm", "rollout.vllm.mode=colocate"],
            r"rollout\.overlap=true: goes with vllm\.mode=server",
        ),
        (["rollout.overlap_max_kl=-1"], r"rollout\.overlap_max_kl=-1.*: must be 0 or more"),
    ],
)
def test_settings_that_do_not_go_together(overrides, message):
    from ppo.config import PPOStage

    given = ["model.name=a", "reward_model=b", "rollout.overlap=true", *overrides]
    with pytest.raises(UserError, match=message):
        load_config(PPOStage, None, given)


def test_a_family_that_transformers_must_decode_is_refused(llama, trainer, monkeypatch):
    monkeypatch.setattr("ppo.backends.not_native", lambda model: "is of another family")
    with pytest.raises(UserError, match=r"rollout\.overlap=true: goes with rollout\.backend=nat"):
        trainer(llama, *ON)
