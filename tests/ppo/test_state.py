"""A run that is killed at any moment, however often, ends like one that was left alone."""

import contextlib
import gc
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ppo import checkpoint, stage, state
from ppo.config import PPOStage
from ppo.engine import PPOEngine
from ppo.evaluation import Evaluation
from ppo.monitors import Monitors
from tests import two
from tests.ppo.conftest import Family, arguments
from workbench.cli import guarded
from workbench.config import load_config
from workbench.errors import UserError
from workbench.run import read_metrics

# A reward that depends on the global generators, as a function of a user's may.
NOISY = '''
import random
import numpy as np
import torch

def noisy(completions, **columns):
    """Length in words, and noise from three generators."""
    return [
        len(text.split()) + random.random() + np.random.rand() + float(torch.rand(()))
        for text in completions
    ]

def words(completions, **columns):
    return [len(text.split()) for text in completions]
'''
UPDATES = 24
# Phase: kills in it, and about how many lines of code it executes in an update.
KILLS = {
    "rollout": (4, 1000), "score": (4, 2000), "update": (4, 4000), "evaluation": (2, 2000),
    "checkpoint": (2, 150),
}  # fmt: skip


@pytest.fixture(scope="session")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reward function as `rewards.functions` names it."""
    path = tmp_path_factory.mktemp("functions") / "noise.py"
    path.write_text(NOISY)
    return f"{path}:noisy"


def carry_out(attempts: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Run attempts one after another with `tests.ppo.killing`; returns how each ended."""
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"attempts": attempts}))
    result = subprocess.run(
        [sys.executable, "-m", "tests.ppo.killing", str(plan)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def given(family: Family, runs: Path, prompts: Path, *more: str) -> list[str]:
    return [*arguments(family, runs, prompts), *more]


def left(folder: Path) -> dict[str, Any]:
    """What a run left: its weights, log, samples and summary, without times."""
    rows = [
        {key: value for key, value in row.items() if not key.startswith("time/")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]
    summary = json.loads((folder / "summary.json").read_text())
    files = [*folder.glob("model/*.safetensors"), *folder.glob("value/*.safetensors")]
    files += folder.glob("samples/*")
    assert len(files) > 2
    return {
        "rows": rows,
        "summary": {key: value for key, value in summary.items() if key != "seconds"},
        **{path.relative_to(folder).as_posix(): path.read_bytes() for path in files},
    }


def test_a_run_killed_at_twenty_moments_ends_with_the_same_bits(
    llama, runs, prompts, noisy, tmp_path
):
    """SIGKILL in rollout, score, update, evaluation, checkpoint, and while the model is saved."""
    asked = given(
        llama, runs, prompts, f"rewards.functions=[{noisy}]", "ppo.score_scaling=running",
        "ppo.kl_controller=adaptive", "ppo.kl_target=1.0", "ppo.kl_horizon=50",
        f"ppo.total_episodes={8 * UPDATES}", "ppo.save_every=1", "ppo.eval_every=2",
        "monitors.samples_every=2",
    )  # fmt: skip
    draw = random.Random(11)
    kills = [
        {"phase": phase, "entry": draw.randrange(1, 3), "line": draw.randrange(1, lines)}
        for phase, (count, lines) in KILLS.items()
        for _ in range(count)
    ]
    kills += [{"phase": "half", "file": "weights"}, {"phase": "half", "file": "state"}]
    draw.shuffle(kills)
    kills += [
        {"phase": "model", "entry": 1, "line": 30},
        {"phase": "finish", "entry": 1, "line": 9},
    ]
    assert len(kills) == 20
    attempts = [{"arguments": [*asked, "run.name=killed"], "kill": kill} for kill in kills]
    attempts.append({"arguments": [*asked, "run.name=killed"]})
    attempts.append({"arguments": [*asked, "run.name=whole"]})
    *killed, last, whole = carry_out(attempts, tmp_path)
    assert [end["code"] for end in killed] == [-signal.SIGKILL] * 20, killed
    hit = [end["phase"] for end in killed]
    assert {phase: hit.count(phase) for phase in hit} == {
        "rollout": 4, "score": 4, "update": 4, "evaluation": 2, "checkpoint": 4,
        "model": 1, "finish": 1,
    }  # fmt: skip
    assert (last["code"], whole["code"]) == (0, 0), last["said"] + whole["said"]
    assert all("Traceback" not in end["said"] for end in [*killed, last])
    assert sum("continuing from" in end["said"] for end in killed) > 10
    assert left(runs / "killed" / "ppo") == left(runs / "whole" / "ppo")
    names = [sorted(p.name for p in (runs / n / "ppo").iterdir()) for n in ("killed", "whole")]
    assert names[0] == names[1]


# --- what fits a run and what does not


def numbers() -> list[float]:
    """Drawn from each global generator."""
    return [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn()),
            float(torch.rand(())), float(torch.randn(()))]  # fmt: skip


def test_global_generators_go_on_where_they_were(tmp_path):
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    numbers()  # Gaussians come in pairs, the second of which waits
    kept = state.random_state()
    torch.save(kept, tmp_path / "random.pt")
    expected = [numbers() for _ in range(3)]
    state.set_random_state(torch.load(tmp_path / "random.pt", weights_only=True))
    assert [numbers() for _ in range(3)] == expected
    assert [numbers() for _ in range(3)] != expected


def kept(made) -> Path:
    """Do an update, save it, and return the checkpoint."""
    made.step()
    made.save_state()
    path: Path = made.run.checkpoints / "update-000001"
    return path


def test_a_checkpoint_holds_all_that_a_run_goes_on_with(llama, trainer):
    made = trainer(llama, "ppo.kl_controller=adaptive", "ppo.score_scaling=running")
    found = checkpoint.load(kept(made))
    assert set(found) == {
        "update", "identity", "conditions", "data", "weights", "optimizer", "scheduler",
        "kl_coef", "moments", "monitors", "ahead", "random",
    }  # fmt: skip
    assert found["data"]["episodes"] == 8
    assert found["data"]["prompts"] == len(made.train_queries)
    assert found["moments"]["count"] == 8
    assert found["kl_coef"] == made.kl.coef != 0.05
    assert {name.partition(".")[0] for name in found["weights"]} == {
        "policy", "value", "lm_head", "value_head"
    }  # fmt: skip
    assert len(found["random"]) == found["conditions"]["processes"] == 1


def test_other_settings_are_refused_by_the_checkpoint_too(llama, trainer):
    """As where the trainer for TRL's scripts leaves a folder as it is."""
    found = checkpoint.load(kept(trainer(llama)))
    other = trainer(llama, "run.name=other", "ppo.kl_coef=0.1", "ppo.max_kl=7")
    with pytest.raises(UserError) as error:
        state.take_up(other, found)
    text = str(error.value)
    assert "the checkpoint of update 1 is of other settings (ppo.kl_coef: 0.05 → 0.1);" in text
    assert other.global_step == 0


def test_other_prompts_are_refused(llama, trainer):
    found = checkpoint.load(kept(trainer(llama)))
    other = trainer(llama)
    other.train_queries = other.train_queries[::-1]
    with pytest.raises(UserError, match="trained on other prompts, or on the same in another"):
        state.take_up(other, found)


def test_other_threads_are_named_and_the_run_goes_on(llama, trainer, capsys):
    found = checkpoint.load(kept(trainer(llama)))
    found["conditions"]["threads"] = 99
    made = trainer(llama)
    state.take_up(made, found)
    assert made.global_step == 1
    assert f"threads: 99 → {torch.get_num_threads()}" in capsys.readouterr().err


def test_a_changed_setting_does_not_cost_an_interrupted_run_its_work(
    llama, config, monkeypatch, capsys
):
    """Exit code 2 and one line with every difference; the old settings go on from where it was."""

    def interrupted(self):
        if self.global_step == 2:
            raise KeyboardInterrupt
        return step(self)

    step = PPOEngine.step
    asked = ["ppo.total_episodes=32", "ppo.save_every=1"]
    with monkeypatch.context() as patch:
        patch.setattr(PPOEngine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stage.run(config(llama, *asked))
    changed = config(llama, *asked, "ppo.kl_coef=0.1", "model.layout=lora", "rollout.batch_size=3")
    capsys.readouterr()
    assert guarded(lambda: stage.run(changed)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "unfinished run with other settings (" in said
    assert "ppo.kl_coef: 0.05 → 0.1" in said
    assert "model.layout: separate → lora" in said
    assert "rollout.batch_size" not in said
    assert "to go on from its update-000002 give the old ones" in said
    stage.run(config(llama, *asked))
    assert "continuing from" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_stays(llama, trainer, capsys):
    """A limit on the size of files stops the writers where a full disk would."""
    made = trainer(llama)
    before = kept(made)
    made.step()
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        assert guarded(made.save_state) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the file would be larger than the disk" in said
    assert [path.name for path in made.run.checkpoints.iterdir()] == [before.name]
    found = checkpoint.load_newest(made.run.checkpoints)
    assert found is not None
    assert found["update"] == 1


# --- two processes


def updates(folder: Path) -> list[dict[str, Any]]:
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "lr" in row]
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def alarmed(self: Monitors, update: int, _: Evaluation) -> dict[str, float]:
    """An alarm after two updates, which only the main process sees."""
    self.stopped = "alarm" if update == 2 else None
    return {}


def two_main(folder: str) -> None:
    """Run the stage on each process: whole, stopped after three updates, resumed, and more."""
    arguments = sys.argv[1:]
    step = PPOEngine.step
    # The processes stay connected from one run to the next.
    Accelerator.end_training = lambda _: None  # type: ignore[method-assign]

    def run(name: str, stop: int | None, *more: str) -> None:
        def stopping(engine: PPOEngine) -> dict[str, float]:
            if engine.global_step == stop:
                raise KeyboardInterrupt
            return step(engine)

        PPOEngine.step = stopping  # type: ignore[method-assign]
        stage.run(load_config(PPOStage, None, [*arguments, f"run.name={name}", *more]))

    run("whole", None)
    with contextlib.suppress(KeyboardInterrupt):
        run("stopped", 3)
    run("stopped", None)
    with contextlib.suppress(KeyboardInterrupt):
        run("fewer", 3)
    run("more", None)
    Monitors.observe = alarmed  # type: ignore[method-assign]
    (noisy,) = (word for word in arguments if word.startswith("rewards.functions="))
    watched = noisy.replace("rewards.functions=", "monitors.rewards=").replace(":noisy", ":words")
    run("early", None, "ppo.target_kl=1e-9", "monitors.stop=true", "ppo.eval_every=2", watched)
    (Path(folder) / f"done-{os.environ['RANK']}").touch()


@pytest.mark.slow
def test_two_processes_go_on_with_the_random_numbers_of_each(
    llama, runs, prompts, noisy, tmp_path, monkeypatch, capsys
):
    """The reward depends on each process's own global generators."""
    asked = given(
        llama, runs, prompts, f"rewards.functions=[{noisy}]", "ppo.total_episodes=40",
        "ppo.save_every=2", "ppo.score_scaling=running",
    )  # fmt: skip
    step = PPOEngine.step

    def stopping(engine: PPOEngine) -> dict[str, float]:
        if engine.global_step == 3:
            raise KeyboardInterrupt
        return step(engine)

    with monkeypatch.context() as patch:
        patch.setattr(PPOEngine, "step", stopping)
        with contextlib.suppress(KeyboardInterrupt):  # by one process, for two
            stage.run(load_config(PPOStage, None, [*asked, "run.name=more"]))
    gc.collect()  # the folder's lock goes with the run
    (tmp_path / "main.py").write_text(
        f"from tests.ppo.test_state import two_main\ntwo_main({str(tmp_path)!r})\n"
    )
    result = two.accelerate(str(tmp_path / "main.py"), *asked)
    assert result.returncode == 0, result.stderr
    assert all((tmp_path / f"done-{rank}").exists() for rank in (0, 1))
    assert "continuing from" in result.stderr
    assert left(runs / "stopped" / "ppo") == left(runs / "whole" / "ppo")

    # Neither process waits for the other where one ends an update, or the run, before its time.
    early = updates(runs / "early" / "ppo")
    assert [row["policy/minibatches"] for row in early] == [2, 2]
    assert json.loads((runs / "early" / "ppo" / "summary.json").read_text())["stopped"] == "alarm"

    # Another number of processes goes on, and says what is not as it was.
    said = "not as many processes as there were (processes: 1 → 2"
    assert result.stderr.count(said) == 1
    capsys.readouterr()
    stage.run(load_config(PPOStage, None, [*asked, "run.name=fewer"]))
    assert "processes: 2 → 1" in " ".join(capsys.readouterr().err.split())
    whole, fewer, more = (updates(runs / name / "ppo") for name in ("whole", "fewer", "more"))
    assert fewer[:2] == whole[:2]  # up to the checkpoint
    for rows in (fewer, more):
        for key in ("step", "episode", "lr"):
            assert [row[key] for row in rows] == [row[key] for row in whole]
