"""Trackers: what a stage logs arrives in TensorBoard's files and in trackio's local database."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from workbench.config import load_config, option
from workbench.errors import UserError
from workbench.models import ModelSettings, load_scorer, load_tokenizer
from workbench.run import RunSettings


@dataclass
class Holder:
    """A config with nothing but a run section."""

    run: RunSettings = option(RunSettings, "run")


def rows(path: Path) -> str:
    lines = [
        {"prompt": f"Name the colour number {i}, please.", "completion": f"It is number {i}."}
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return str(path)


def start(stage: str, folder: Path, tracker: str, *overrides: str) -> None:
    """Run a stage in a process of its own: trackers keep their state in the process."""
    command = [sys.executable, "-m", stage, f"run.root={folder}/runs", "run.name=tracked"]
    environment = os.environ | {"TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*command, f"run.report_to={tracker}", "model.precision=fp32", *overrides],
        capture_output=True, text=True, timeout=300, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]


def texts(folder: Path) -> str:
    """All texts that TensorBoard's files hold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = ""
    for file in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["tensors"]:
            found += "".join(
                str(value.tensor_proto.string_val[0], "utf-8") for value in events.Tensors(tag)
            )
    return found


def logged(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: set[str] = set()
    for file in folder.rglob("events.out.tfevents.*"):
        events = EventAccumulator(str(file))
        events.Reload()
        tags |= set(events.Tags()["scalars"])
    return tags


@pytest.fixture
def ppo_overrides(tiny_llama, tmp_path):
    settings = ModelSettings(name=str(tiny_llama), precision="fp32")
    reward = load_scorer(settings)
    reward.save_pretrained(tmp_path / "reward")
    load_tokenizer(str(tiny_llama)).save_pretrained(tmp_path / "reward")
    data = rows(tmp_path / "data.jsonl")
    return [
        f"model.name={tiny_llama}", f"reward_model={tmp_path / 'reward'}", f"data.train={data}",
        "ppo.total_episodes=8", "ppo.batch_size=4", "ppo.num_mini_batches=1", "ppo.eval_prompts=1",
        "rollout.max_new_tokens=4",
    ]  # fmt: skip


def test_tensorboard_gets_the_metrics_of_the_supervised_and_the_ppo_stage(
    tiny_llama, tmp_path, ppo_overrides
):
    data = rows(tmp_path / "sft.jsonl")
    start(
        "sft",
        tmp_path,
        "tensorboard",
        f"model.name={tiny_llama}",
        f"data.train={data}",
        "sft.max_steps=2",
    )
    start("ppo", tmp_path, "tensorboard", *ppo_overrides)
    assert "train/loss" in logged(tmp_path / "runs" / "tracked" / "sft")
    assert "objective/kl" in logged(tmp_path / "runs" / "tracked" / "ppo")
    (settings,) = (tmp_path / "runs/tracked/ppo/tensorboard").rglob("hparams.yml")
    assert "data.max_query_length: 512" in settings.read_text("utf-8")
    assert '"data.drop_long_rows": true' in texts(tmp_path / "runs" / "tracked" / "sft")


def test_trackio_gets_them_without_a_network(tiny_llama, tmp_path, ppo_overrides):
    start("ppo", tmp_path, "trackio", *ppo_overrides)
    databases = list((tmp_path / "trackio").rglob("*.db")) + list(
        (tmp_path / "trackio").rglob("*.parquet")
    )
    assert databases
    assert found(tmp_path, b"objective/kl")
    assert found(tmp_path, b"data.max_query_length")
    assert not found(tmp_path, b"data.drop_long_rows")
    data = rows(tmp_path / "sft.jsonl")
    options = (f"model.name={tiny_llama}", f"data.train={data}", "sft.max_steps=2")
    start("sft", tmp_path, "trackio", *options)
    assert found(tmp_path, b"data.drop_long_rows")


def found(folder: Path, text: bytes) -> bool:
    files = [path for path in (folder / "trackio").rglob("*") if path.is_file()]
    return any(text in path.read_bytes() for path in files)


def test_a_tracker_that_is_not_installed_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"run\.report_to='wandb': .*pip install wandb"):
        load_config(Holder, None, ["run.report_to=wandb"])
