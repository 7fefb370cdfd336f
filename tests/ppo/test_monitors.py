"""Monitors: they fire when the score is exploited, stay silent when it is not, and survive."""

import functools
import json

import numpy as np
import pytest
import torch

from ppo import monitors as monitors_module
from ppo import stage
from ppo.config import PPOStage
from ppo.evaluation import Evaluation
from ppo.monitor_config import MonitorSettings
from ppo.monitors import Monitors
from ppo.reward_sources import RewardFunction
from tests.ppo.conftest import arguments
from workbench.config import load_config
from workbench.errors import UserError
from workbench.files import damage
from workbench.run import read_metrics
from workbench.statistics import paired_bootstrap

FAST = [
    "ppo.batch_size=32", "ppo.num_ppo_epochs=4", "ppo.micro_batch_size=32", "ppo.eval_every=1",
    "ppo.lr_scheduler=constant", "ppo.kl_coef=0.0", "ppo.missing_eos_penalty=null",
    "ppo.eval_prompts=21", "monitors.samples_every=0",
]  # fmt: skip


def evaluation(scores, gold=None, *, length=10.0, distinct_2=0.5, **held_out) -> Evaluation:
    rows = [{"score": float(score)} for score in scores]
    for i, row in enumerate(rows):
        if gold is not None:
            row["gold"] = float(gold[i])
        if held_out:
            row["held_out"] = {name: float(values[i]) for name, values in held_out.items()}
    return Evaluation({"eval/length": length, "eval/distinct_2": distinct_2}, rows)


def noise(seed: int, count: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=count)


# --- the comparison with the best evaluation


def test_an_alert_names_the_numbers(capsys):
    monitors = Monitors(MonitorSettings())
    base = noise(0)
    first = monitors.observe(0, evaluation(base, 0.5 + 0.01 * noise(1)))
    assert first["monitor/alert"] == 0
    assert "monitor/gold_change" not in first
    best = monitors.observe(10, evaluation(base + 0.5, 0.6 + 0.01 * noise(2)))
    assert best["monitor/alert"] == 0
    assert best["monitor/gold_change"] == pytest.approx(0.1, abs=0.01)
    assert capsys.readouterr().err == ""
    found = monitors.observe(20, evaluation(base + 1.25, 0.55 + 0.01 * noise(3)))
    assert found["monitor/alert"] == monitors.alerts == 1
    assert found["monitor/gold_change"] == pytest.approx(-0.05, abs=0.01)
    assert found["monitor/gold_score_change"] == pytest.approx(0.75)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ppo: update 20: since update 10 the score rose by +0.750 [+0.750, ")
    assert f"while gold fell by {found['monitor/gold_change']:+.3f} [-0.0" in line
    assert "on 64 held-out prompts" in line
    assert monitors.stopped is None  # nobody asked for it


@pytest.mark.parametrize(
    ("score", "gold"),
    [(0.5, 0.1), (-0.5, -0.1), (-0.5, 0.1), (0.5, 0.0), (0.0, -0.1)],
    ids=["both rise", "both fall", "it gets better", "gold stays", "the score stays"],
)
def test_other_changes_are_no_alert(score, gold, capsys):
    monitors = Monitors(MonitorSettings(stop=True))
    scores, golds = noise(0), noise(1)
    monitors.observe(0, evaluation(scores, golds))
    found = monitors.observe(
        1, evaluation(scores + score + 0.05 * noise(2), golds + gold + 0.05 * noise(3))
    )
    assert found["monitor/alert"] == monitors.alerts == 0
    assert monitors.stopped is None
    assert capsys.readouterr().err == ""


def test_every_held_out_reward_is_watched_and_compared_with_its_own_best(capsys):
    monitors = Monitors(MonitorSettings())
    base, jitter = noise(0), 0.01 * noise(1)
    for update, (score, kind, short) in enumerate([(0, 0, 1), (1, 1, 2), (2, 2, 1), (3, 3, 3)]):
        found = monitors.observe(
            update, evaluation(base + score, kind=jitter + kind, short=-jitter + short)
        )
        assert found["monitor/alert"] == (update == 2)
    assert found["monitor/kind_change"] == pytest.approx(1)
    assert found["monitor/kind_score_change"] == pytest.approx(1)
    assert found["monitor/short_change"] == pytest.approx(1)
    assert found["monitor/short_score_change"] == pytest.approx(2)  # since update 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "while short fell by -1.000" in text


def test_a_reward_that_only_jitters_seldom_alerts_though_the_best_of_many_is_lucky(monkeypatch):
    """Against the best of k noisy evaluations a plain interval would alert every few times."""
    fast = functools.partial(paired_bootstrap, resamples=500)
    monkeypatch.setattr(monitors_module, "paired_bootstrap", fast)
    alerts = observed = plain = 0
    for run in range(30):
        draw = np.random.default_rng(run)
        monitors = Monitors(MonitorSettings())
        prompts = draw.normal(size=24)
        for update in range(25):
            gold = prompts + draw.normal(size=24)
            best = monitors.best.get("gold")
            found = monitors.observe(update, evaluation(prompts + 0.1 * update, gold))
            alerts += found["monitor/alert"]
            observed += 1
            if best is not None:
                difference = gold - np.array(best["held_out"])
                plain += difference.mean() + 2.07 * difference.std(ddof=1) / 24**0.5 < 0
    assert plain > 0.1 * observed
    assert alerts < 0.03 * observed


def test_one_prompt_gives_no_interval_and_no_alert():
    monitors = Monitors(MonitorSettings())
    monitors.observe(0, evaluation([0.0], [1.0]))
    assert monitors.observe(1, evaluation([5.0], [0.0]))["monitor/alert"] == 0


def test_patience_counts_alerts_in_a_row(capsys):
    monitors = Monitors(MonitorSettings(stop=True, patience=2))
    base, jitter = noise(0), 0.01 * noise(1)
    golds = [1.0, 0.5, 2.0, 1.5, 1.0]  # falls, recovers, falls twice
    for update, gold in enumerate(golds):
        assert monitors.stopped is None
        monitors.observe(update, evaluation(base + update, jitter + gold))
    assert monitors.alerts == 3
    assert monitors.stopped is not None
    assert monitors.stopped.startswith("update 4: since update 2 the score rose by +2.000")
    assert monitors.summary() == {"alerts": 3, "stopped": monitors.stopped}
    assert "update 4: the run ends here (monitors.stop)" in capsys.readouterr().err


# --- drift


@pytest.mark.parametrize(
    ("length", "distinct_2", "said"),
    [
        (19.9, 0.36, None),
        (20.1, 0.5, "held-out answers have 20.1 tokens, and had 10.0 before"),
        (4.9, 0.5, "held-out answers have 4.9 tokens"),
        (10.0, 0.34, "distinct-2 is 0.34, and was 0.50 before"),
    ],
)
def test_drift_is_measured_against_the_first_evaluation(length, distinct_2, said, capsys):
    monitors = Monitors(MonitorSettings())
    first = monitors.observe(0, evaluation([1.0, 2.0]))
    assert first == {
        "monitor/length_ratio": 1, "monitor/distinct_2_ratio": 1, "monitor/drift": 0
    }  # fmt: skip
    monitors.observe(1, evaluation([1.0, 2.0], length=12, distinct_2=0.4))
    found = monitors.observe(2, evaluation([1.0, 2.0], length=length, distinct_2=distinct_2))
    assert found["monitor/length_ratio"] == pytest.approx(length / 10)
    assert found["monitor/distinct_2_ratio"] == pytest.approx(distinct_2 / 0.5)
    assert found["monitor/drift"] == (said is not None)
    assert "monitor/alert" not in found  # nothing is held out
    printed = capsys.readouterr().err
    assert (said or "") in printed
    assert bool(printed) == (said is not None)


# --- in a run


def longer(batch) -> torch.Tensor:
    """A score that pays for nothing but length."""
    return torch.bincount(batch.rows, minlength=len(batch.input_ids)).float()


def ends(completion_ids, **_):
    """What was wanted: short answers."""
    return [-float(len(ids)) for ids in completion_ids]


def long_enough(completion_ids, **_):
    """Something that length does bring about."""
    return [float(min(len(ids), 6)) for ids in completion_ids]


def made_for(trainer, family, monkeypatch, wanted, *overrides):
    made = trainer(family, *FAST, *overrides)
    monkeypatch.setattr(made.roles, "scores", longer)
    made.held_out = [*made.train_queries, *made.held_out]
    made.held_out_rewards = {"wanted": RewardFunction(wanted, "wanted")}
    return made


def monitored(made) -> list[dict]:
    rows = read_metrics(made.run.path / "metrics.jsonl")
    return [row for row in rows if "eval/scores" in row]


def test_a_policy_that_exploits_its_score_is_caught(llama, trainer, monkeypatch, capsys):
    made = made_for(trainer, llama, monkeypatch, ends, "ppo.total_episodes=256")
    made.train()
    rows = monitored(made)
    assert len(rows) == 9
    assert rows[-1]["eval/scores"] > rows[0]["eval/scores"] + 0.5
    assert rows[-1]["eval/held_out/wanted"] == pytest.approx(-rows[-1]["eval/length"])
    assert rows[-1]["monitor/alert"] == 1
    assert made.monitors.alerts == sum(row["monitor/alert"] for row in rows) >= 2
    assert rows[-1]["monitor/wanted_change"] < -0.5 < 0.5 < rows[-1]["monitor/wanted_score_change"]
    assert capsys.readouterr().err.count("the policy may be exploiting the reward") >= 2


def test_no_alert_where_both_rise(llama, trainer, monkeypatch, capsys):
    made = made_for(trainer, llama, monkeypatch, long_enough, "ppo.total_episodes=256")
    made.train()
    rows = monitored(made)
    assert rows[-1]["eval/scores"] > rows[0]["eval/scores"] + 0.5
    assert rows[-1]["eval/held_out/wanted"] > rows[0]["eval/held_out/wanted"] + 0.3
    assert sum(row["monitor/alert"] for row in rows) == 0
    assert "exploiting" not in capsys.readouterr().err


def test_a_stopped_run_stays_stopped_when_it_is_resumed(llama, trainer, monkeypatch):
    given = ["ppo.total_episodes=640", "monitors.stop=true", "monitors.rewards=[wanted]"]
    made = made_for(trainer, llama, monkeypatch, ends, *given)
    made.train()
    assert 0 < made.global_step < made.total_updates == 20
    assert made.monitors.stopped.startswith(f"update {made.global_step}: ")
    # Killed before its model was saved: the checkpoint knows.
    again = made_for(trainer, llama, monkeypatch, ends, *given)
    monkeypatch.setattr(again, "step", lambda: pytest.fail("it went on"))
    again.train()
    assert again.global_step == made.global_step
    assert again.monitors.state_dict() == made.monitors.state_dict()
    assert monitored(again) == monitored(made)


@pytest.mark.parametrize("stopped", [2, 5])
def test_a_resumed_run_sees_what_the_uninterrupted_one_saw(
    llama, trainer, monkeypatch, capsys, stopped
):
    given = ["ppo.total_episodes=256", "ppo.save_every=2"]
    whole = made_for(trainer, llama, monkeypatch, ends, "run.name=whole", *given)
    whole.train()
    said = [line for line in capsys.readouterr().err.splitlines() if "exploiting" in line]
    first = made_for(trainer, llama, monkeypatch, ends, "run.name=cut", *given)
    real = first.step

    def step():
        if first.global_step == stopped:
            raise KeyboardInterrupt
        return real()

    monkeypatch.setattr(first, "step", step)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    capsys.readouterr()
    resumed = made_for(trainer, llama, monkeypatch, ends, "run.name=cut", *given)
    resumed.train()
    assert monitored(resumed) == monitored(whole)
    assert resumed.monitors.state_dict() == whole.monitors.state_dict()
    lines = [line for line in capsys.readouterr().err.splitlines() if "exploiting" in line]
    assert lines
    assert lines == said[-len(lines) :]


REWARDS = """
def longer(completion_ids, **_):
    return [float(len(ids)) for ids in completion_ids]

def ends(completion_ids, **_):
    return [-float(len(ids)) for ids in completion_ids]
"""


def test_a_stage_that_is_stopped_saves_its_model_and_says_why(
    llama, runs, prompts, tmp_path, capsys
):
    code = tmp_path / "rewards.py"
    code.write_text(REWARDS)
    given = [
        *arguments(llama, runs, prompts), *FAST, "ppo.total_episodes=640", "reward_model=",
        f"rewards.functions=[{code}:longer]", f"monitors.rewards=[{code}:ends]",
        "monitors.stop=true", "data.test_fraction=0.5",
    ]  # fmt: skip
    config = load_config(PPOStage, None, given)
    folder = stage.run(config)
    assert damage(folder / "model") is None
    summary = json.loads((folder / "summary.json").read_text())
    assert 0 < summary["updates"] < 20
    assert summary["alerts"] == 1
    why = summary["stopped"]
    assert why.startswith(f"update {summary['updates']}: since update ")
    assert "rewards.py:ends fell by" in why
    assert summary["eval/held_out/rewards.py:ends"] == pytest.approx(-summary["eval/length"])
    assert why.partition(": ")[2] in capsys.readouterr().err
    # Another text in the function's file is another run.
    before = config.inputs()
    code.write_text(REWARDS + "\n")
    assert config.inputs() != before


def test_a_held_out_reward_that_cannot_be_loaded_is_named(llama, runs, prompts):
    given = [*arguments(llama, runs, prompts), "monitors.rewards=[no_module:f]"]
    with pytest.raises(UserError, match=r"monitors.rewards: no_module:f: cannot be imported"):
        stage.run(load_config(PPOStage, None, given))


def test_a_reward_model_can_be_held_out(llama, runs, prompts, other_pad):
    given = [*arguments(llama, runs, prompts), f"monitors.rewards=[{other_pad}]"]
    folder = stage.run(load_config(PPOStage, None, given))
    name = f"eval/held_out/{other_pad.name}"
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "eval/scores" in row]
    # The same weights under another tokenizer: text is decoded and encoded anew.
    assert all(isinstance(row[name], float) for row in rows)
    first = json.loads((folder / "samples/step_000000.jsonl").read_text().splitlines()[0])
    assert set(first["held_out"]) == {other_pad.name}
