"""From prompts to a saved model: every family and layout, killed, damaged, on two processes."""

import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ppo.backends
import ppo.engine
from ppo import stage
from ppo.config import PPOStage
from tests import two
from tests.ppo.conftest import PROMPTS, arguments
from workbench.chat import query_ids
from workbench.config import load_config
from workbench.errors import UserError
from workbench.files import damage
from workbench.generation import Response
from workbench.models import load_tokenizer
from workbench.run import read_metrics

LAYOUTS = {
    "separate": [],
    "shared_trunk": ["model.layout=shared_trunk", "model.train_top_layers=1"],
    "lora": ["model.layout=lora", "model.lora.r=4"],
}
SUMMARY = (
    "episodes updates kl scores_first scores_last missing_eos kl_coef layout train_prompts "
    "left_out seconds value eval/scores eval/kl eval/length eval/missing_eos eval/distinct_2 alerts"
)
FILES = "config.yaml done.json environment.json metrics.jsonl model samples summary.json value"


def sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def timeless(folder: Path) -> list[dict]:
    rows = read_metrics(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def refused(config: PPOStage) -> str:
    with pytest.raises(UserError) as error:
        stage.run(config)
    text = str(error.value)
    assert "\n" not in text
    return text


# --- a whole run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_leaves_a_model_anyone_can_open(family, config, layout):
    made = config(family, *LAYOUTS[layout])
    folder = stage.run(made)
    adapter = ["adapter"] if layout == "lora" else []
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES.split(), *adapter])
    assert all(damage(folder / name) is None for name in ("model", "value", *adapter))

    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) == {*SUMMARY.split(), *adapter}
    assert summary["episodes"] == 24
    assert summary["updates"] == 3
    assert summary["train_prompts"] == 19  # a tenth of 21 is held out
    assert summary["layout"] == made.model.layout == layout
    rows = read_metrics(folder / "metrics.jsonl")
    updates = [row for row in rows if "objective/scores" in row]
    assert summary["scores_first"] == updates[0]["objective/scores"]
    assert summary["scores_last"] == updates[-1]["objective/scores"]
    assert summary["kl"] == updates[-1]["objective/kl"]
    assert abs(updates[0]["objective/kl"]) < 1e-6

    before = AutoModelForCausalLM.from_pretrained(family.policy)
    after = AutoModelForCausalLM.from_pretrained(folder / "model", use_safetensors=True)
    assert type(after) is type(before)
    assert after.config.to_dict().keys() == before.config.to_dict().keys()
    a, b = before.state_dict(), after.state_dict()
    assert {n: w.shape for n, w in a.items()} == {n: w.shape for n, w in b.items()}
    assert any(not torch.equal(a[name], b[name]) for name in a)
    assert all(torch.isfinite(weight).all() for weight in b.values())
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    original = load_tokenizer(str(family.policy))
    ids = query_ids(tokenizer, PROMPTS[0])
    assert ids == query_ids(original, PROMPTS[0])
    assert tokenizer.eos_token_id == original.eos_token_id
    after.generate(torch.tensor([ids]), max_new_tokens=3, attention_mask=torch.ones(1, len(ids)))
    card = (folder / "model" / "README.md").read_text()
    assert "AutoModelForCausalLM" in card
    assert str(family.reward) in card


def test_the_saved_model_is_the_trained_one(llama, config, monkeypatch):
    """The file holds the weights after the last update, not those of its rollout."""
    trainers = []
    real = ppo.engine.PPOEngine.train

    def train(self):
        trainers.append(self)
        real(self)

    monkeypatch.setattr(stage.PPOEngine, "train", train)
    folder = stage.run(config(llama))
    saved = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    trained = trainers[0].roles.trained
    for name, weight in trained.policy.state_dict().items():
        assert torch.equal(saved[f"model.{name}"], weight), name
    assert torch.equal(saved["lm_head.weight"], trained.lm_head.weight)


def test_another_run_continues_from_the_saved_model(llama, config):
    """What PPO saved is a policy like any other, also for PPO."""
    folder = stage.run(config(llama, "run.name=first"))
    again = stage.run(config(llama, "run.name=second", f"model.name={folder / 'model'}"))
    rows = read_metrics(again / "metrics.jsonl")
    assert abs(rows[1]["objective/kl"]) < 1e-6


def test_samples_show_prompts_and_answers(llama, config):
    folder = stage.run(config(llama, "ppo.eval_every=2"))
    tables = sorted((folder / "samples").glob("step_*"))
    assert [path.name for path in tables] == [
        "step_000000.jsonl", "step_000002.jsonl", "step_000003.jsonl"
    ]  # fmt: skip
    first, last = (
        [json.loads(line) for line in tables[i].read_text("utf-8").splitlines()] for i in (0, -1)
    )
    assert len(first) == 2  # held-out prompts
    assert [row["prompt"] for row in first] == [row["prompt"] for row in last]
    assert set(first[0]) == {"prompt", "completion", "finished", "score", "kl"}
    assert {row["prompt"] for row in first} < set(PROMPTS)
    assert first != last
    assert all(row["kl"] == 0 for row in first)


def test_tensorboard_takes_metrics_and_config(llama, config):
    folder = stage.run(
        config(llama, "run.report_to=tensorboard", "model.lora.enabled=true",
               "model.lora.target_modules=[q_proj, v_proj]")
    )  # fmt: skip
    assert list(folder.rglob("events.out.tfevents.*"))


def test_the_same_seed_gives_the_same_model_and_another_does_not(llama, config):
    folders = [
        stage.run(config(llama, f"run.name={name}", f"run.seed={seed}"))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    a, b, c = (sha(folder / "model" / "model.safetensors") for folder in folders)
    assert a == b != c
    assert timeless(folders[0]) == timeless(folders[1])


# --- prompts


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def test_over_long_prompts_are_counted_and_left_out(llama, config, capsys):
    made = config(llama)
    tokenizer = load_tokenizer(str(llama.policy))
    lengths = sorted(len(query_ids(tokenizer, text)) for text in PROMPTS)
    limit = lengths[-4]
    over = sum(length > limit for length in lengths)
    assert 1 <= over <= 3
    made = config(llama, f"data.max_query_length={limit}")
    summary = json.loads((stage.run(made) / "summary.json").read_text())
    assert summary["left_out"] == over
    assert summary["train_prompts"] <= 19
    printed = " ".join(capsys.readouterr().err.split())
    assert f"left out {over} prompts over data.max_query_length={limit} tokens" in printed


def test_no_prompt_left_is_an_error_that_says_so(llama, config):
    text = refused(config(llama, "data.max_query_length=2"))
    assert "data.max_query_length=2" in text


def test_held_out_prompts_from_a_file_of_their_own(llama, config, tmp_path):
    test = write_rows(tmp_path / "test.jsonl", [{"prompt": f"Number {i}?"} for i in range(3)])
    folder = stage.run(config(llama, f"data.test={test}"))
    assert json.loads((folder / "summary.json").read_text())["train_prompts"] == 21
    rows = (folder / "samples" / "step_000000.jsonl").read_text().splitlines()
    assert [json.loads(row)["prompt"] for row in rows] == ["Number 0?", "Number 1?", "Number 2?"]


def test_prompts_come_from_conversations_pairs_and_rankings_too(llama, config, tmp_path):
    turns = [{"role": "user", "content": "How deep is the harbour?"}]
    said = [{"role": "assistant", "content": "Deep."}]
    shapes = {
        "conversation": [{"prompt": turns}] * 2 + [{"prompt": [{**turns[0], "content": "Why?"}]}],
        "pairs": [
            {"prompt": [{"role": "user", "content": f"{i}?"}], "chosen": said, "rejected": said}
            for i in range(4)
        ],
        "rankings": [
            {"prompt": f"{i}?", "completions": ["a", "b"], "ranks": [1, 2]} for i in range(4)
        ],
    }
    for name, rows in shapes.items():
        data = write_rows(tmp_path / f"{name}.jsonl", rows)
        folder = stage.run(
            config(llama, f"run.name={name}", f"data.train={data}", "data.test_fraction=0.3")
        )
        assert json.loads((folder / "summary.json").read_text())["train_prompts"] >= 1


# --- refusals


def test_a_missing_reward_model_is_named(llama, config, tmp_path):
    missing = str(tmp_path / "nothing" / "model")
    assert missing in refused(config(llama, f"reward_model={missing}"))
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(config(llama, f"reward_model={tmp_path / 'empty'}"))


def test_a_missing_policy_or_data_file_is_named(llama, config, tmp_path):
    missing = str(tmp_path / "nothing" / "model")
    assert missing in refused(config(llama, f"model.name={missing}"))
    missing = str(tmp_path / "nothing.jsonl")
    assert missing in refused(config(llama, f"data.train={missing}"))


def test_a_bad_row_is_named_with_its_line(llama, config, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Why?"}\n{"prompt": \n', "utf-8")
    assert "bad.jsonl:2" in refused(config(llama, f"data.train={tmp_path / 'bad.jsonl'}"))


def test_an_impossible_batch_division_is_refused(config, llama):
    with pytest.raises(UserError, match=r"ppo.num_mini_batches=3: must divide batch_size=8"):
        config(llama, "ppo.num_mini_batches=3")


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_answers_beyond_the_models_positions_are_refused(request, name, config, tmp_path):
    """GPT-2 has a table of 512 positions and would fail in it; others were never trained beyond."""
    family = request.getfixturevalue(name)
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "gull " * (i + 166)} for i in range(5)])
    made = config(
        family, f"data.train={long}", "data.max_query_length=2000", "rollout.max_new_tokens=200"
    )
    text = refused(made)
    assert "rollout.max_new_tokens=200" in text
    assert "512" in text
    assert str(family.policy) in text


# --- repeated, damaged, killed


def test_a_finished_run_is_not_run_again(llama, config, monkeypatch, capsys):
    folder = stage.run(config(llama))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    capsys.readouterr()

    def train(self):
        raise AssertionError("trained again")

    monkeypatch.setattr(stage.PPOEngine, "train", train)
    assert stage.run(config(llama)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert "is up to date" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["model/model.safetensors", "model/config.json", "metrics.jsonl", "done.json",
             "environment.json", "summary.json", "config.yaml"]
)  # fmt: skip
def test_a_deleted_file_leads_to_the_same_run_again(llama, config, name):
    folder = stage.run(config(llama))
    before = sha(folder / "model" / "model.safetensors"), timeless(folder)
    (folder / name).unlink()
    assert stage.run(config(llama)) == folder
    assert (sha(folder / "model" / "model.safetensors"), timeless(folder)) == before
    assert sorted(path.name for path in folder.iterdir()) == FILES.split()


def test_other_settings_do_not_replace_a_finished_run_unasked(llama, config):
    folder = stage.run(config(llama))
    before = sha(folder / "model" / "model.safetensors")
    text = refused(config(llama, "ppo.kl_coef=0.2"))
    assert "ppo.kl_coef: 0.05 → 0.2" in text
    assert sha(folder / "model" / "model.safetensors") == before
    stage.run(config(llama, "ppo.kl_coef=0.2", "run.overwrite=true"))
    assert sha(folder / "model" / "model.safetensors") != before


def environment() -> dict[str, str]:
    """As many threads as here: sums in another order would end in other last bits."""
    threads = str(torch.get_num_threads())
    return os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}


def kill_when(command: list[str], moment: Callable[[], bool]) -> None:
    """Start a command and SIGKILL it at a moment, before it has finished."""
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 250
        while not moment():
            assert process.poll() is None, "finished before the moment to kill it"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def steps(log: Path) -> int:
    return log.read_text().count("objective/kl_coef") if log.is_file() else 0


@pytest.mark.slow
def test_a_killed_run_ends_like_one_that_was_left_alone(gpt2, runs, prompts):
    given = [
        *arguments(gpt2, runs, prompts), *LAYOUTS["shared_trunk"],
        "ppo.total_episodes=192", "ppo.save_every=3", "ppo.eval_every=4",
    ]  # fmt: skip
    whole = stage.run(load_config(PPOStage, None, [*given, "run.name=whole"]))

    folder = runs / "killed" / "ppo"
    command = [sys.executable, "-m", "ppo", *given, "run.name=killed"]
    # Right after the first checkpoint appears, then in the middle of an update after the second.
    kill_when(command, (folder / "checkpoints" / "update-000003").exists)
    assert not (folder / "model").exists()
    kill_when(command, lambda: steps(folder / "metrics.jsonl") >= 10)
    assert not (folder / "done.json").exists()
    result = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "continuing from" in result.stderr
    assert "Traceback" not in result.stderr
    assert sha(folder / "model" / "model.safetensors") == sha(whole / "model" / "model.safetensors")
    assert timeless(folder) == timeless(whole)
    assert sorted(path.name for path in folder.iterdir()) == FILES.split()
    for table in (whole / "samples").iterdir():
        assert (folder / "samples" / table.name).read_bytes() == table.read_bytes()


# --- two processes


def canned_answers(actor, queries, sampling, *, eos_token_id, **_):
    """Answers that follow from the query alone: one process and two learn from the same."""
    answers = []
    for query in queries:
        ids = query[: 1 + len(query) % 5]
        done = len(query) % 2 == 0
        answers.append(Response([*ids, eos_token_id] if done else ids, done))
    return answers


def canned_main(folder: str) -> None:
    """Run `python -m ppo` with those answers and leave every process's weights in a folder."""
    ppo.backends.generate = canned_answers
    real = ppo.engine.PPOEngine.train

    def train(self):
        real(self)
        weights = {name: p.detach() for name, p in self.roles.trained.named_parameters()}
        name = f"{self.accelerator.process_index}-of-{self.accelerator.num_processes}.pt"
        torch.save(weights, Path(folder) / name)

    ppo.engine.PPOEngine.train = train  # type: ignore[method-assign]
    runpy.run_module("ppo", run_name="__main__", alter_sys=True)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(llama, runs, prompts, tmp_path, monkeypatch):
    """Whitening, losses and gradient norms over all processes: the same weights as from one."""
    given = [
        *arguments(llama, runs, prompts),
        "ppo.num_mini_batches=1", "ppo.weight_decay=0.1", "ppo.max_grad_norm=0.5",
        "ppo.learning_rate=3e-4", "ppo.value_learning_rate=3e-4", "ppo.value_warmup_updates=1",
        "ppo.save_every=2", "ppo.kl_controller=adaptive", "ppo.score_scaling=running",
    ]  # fmt: skip
    (tmp_path / "main.py").write_text(
        f"from tests.ppo.test_stage import canned_main\ncanned_main({str(tmp_path)!r})\n"
    )
    result = two.accelerate(str(tmp_path / "main.py"), *given, "run.name=two")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("model in") == 1  # the main process writes, the other nothing
    first, second = (torch.load(tmp_path / f"{rank}-of-2.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    trainers = []
    real = ppo.engine.PPOEngine.train

    def train(self):
        trainers.append(self)
        real(self)

    monkeypatch.setattr(ppo.backends, "generate", canned_answers)
    monkeypatch.setattr(stage.PPOEngine, "train", train)
    one = stage.run(load_config(PPOStage, None, [*given, "run.name=one"]))
    alone = dict(trainers[0].roles.trained.named_parameters())
    assert max(float((alone[name] - first[name]).abs().max()) for name in first) < 1e-5
    assert (alone["lm_head.weight"] - trainers[0].roles.reference_head.weight).abs().max() > 1e-4
    both = timeless(runs / "two" / "ppo")
    assert len(both) == len(timeless(one)) == 5
    for row, other in zip(both, timeless(one), strict=True):
        assert row.keys() == other.keys()
        for key in row:
            near = {"abs": 1e-5} if key.startswith("loss/") else {"rel": 1e-3, "abs": 1e-4}
            assert row[key] == pytest.approx(other[key], **near), key


def test_streaming_practises_on_the_same_prompts(llama, config):
    known = stage.run(config(llama))
    found = stage.run(config(llama, "run.name=streaming", "data.streaming=true"))
    assert sha(found / "model/model.safetensors") == sha(known / "model/model.safetensors")
    assert timeless(found) == timeless(known)
    assert not (found / "data").exists()
