import contextlib
import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sft.config import SFTStage
from sft.data import tokenize
from sft.stage import run
from tests import two
from workbench.chat import query_ids
from workbench.config import load_config
from workbench.errors import UserError
from workbench.files import damage
from workbench.models import ModelSettings, decoder_layers, load_policy, load_tokenizer
from workbench.run import StageRun, read_metrics
from workbench.trainer import RunLog

WORDS = ("tar", "rain", "rice", "gulls", "lift", "tea", "bread", "gate")
ROWS = [{"prompt": f"Why {w}?", "completion": f"Because of the {w} lamp."} for w in WORDS]


@pytest.fixture
def rows(tmp_path) -> Path:
    return written(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def stage(runs, rows):
    """Run the stage on eight rows with a few settings; a later one of the same key wins."""

    def start(model: Path, *overrides: str) -> Path:
        return run(config(model, rows, *overrides))

    return start


def config(model: Path, rows: Path, *overrides: str) -> SFTStage:
    common = [
        f"model.name={model}", "model.precision=fp32", f"data.train={rows}", f"data.test={rows}",
        "sft.epochs=4", "sft.batch_size=4", "sft.learning_rate=3e-3", "sft.logging_steps=1",
        "sft.max_length=256", "sft.sample_prompts=2", "sampling.max_new_tokens=5",
    ]  # fmt: skip
    return load_config(SFTStage, None, [*common, *overrides])


def written(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text("utf-8"))


def logged(folder: Path, key: str) -> list[float]:
    return [row[key] for row in read_metrics(folder / "metrics.jsonl") if key in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_policy(ModelSettings(name=str(folder)), torch.float32).state_dict()


# Learning


def test_the_loss_falls_and_the_folder_is_whole(stage, tiny_model):
    folder = stage(tiny_model, "sft.batch_size=8", "sft.epochs=8")
    assert folder == Path("runs/default/sft")
    losses, held_out = logged(folder, "loss"), logged(folder, "eval_loss")
    assert len(losses) == 8  # updates
    assert losses[-1] < 0.8 * losses[0]
    assert held_out[-1] < 0.8 * held_out[0]
    found = summary(folder)
    assert found["eval_loss"] == pytest.approx(held_out[-1], rel=1e-4)
    counts = ("train_rows", "test_rows", "too_long", "skipped", "steps")
    assert [found[key] for key in counts] == [8, 8, 0, 0, 8]
    for name in ("config.yaml", "environment.json", "done.json", "model/manifest.json"):
        assert (folder / name).is_file(), name
    assert damage(folder / "model") is None
    assert not (folder / "checkpoints").exists()
    # Nothing but this project's word says that these are the weights that were measured.
    assert plain_loss(folder / "model", tiny_model) == pytest.approx(found["eval_loss"], rel=1e-4)


def plain_loss(folder: Path, start: Path) -> float:
    """Mean negative log-likelihood of the answer tokens, by plain transformers, row by row."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    settings = config(start, Path("rows.jsonl")).sft
    data = tokenize(ROWS, load_tokenizer(str(folder)), settings, "rows", True).dataset
    total, count = 0.0, 0
    for row in data:
        ids, mask = torch.tensor([row["input_ids"]]), torch.tensor(row["completion_mask"][1:])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].float().log_softmax(-1)
        picked = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
        total, count = total - float((picked * mask).sum()), count + int(mask.sum())
    return total / count


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_layers_stay_bit_identical(stage, tiny_model, precision):
    folder = stage(tiny_model, "model.train_top_layers=1", f"model.precision={precision}")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    before = load_policy(ModelSettings(name=str(tiny_model)), dtype)
    after = load_policy(ModelSettings(name=str(folder / "model")), dtype)
    assert json.loads((folder / "model" / "config.json").read_text("utf-8"))["dtype"] == (
        str(dtype).removeprefix("torch.")
    )
    *lower, top = zip(decoder_layers(before), decoder_layers(after), strict=True)
    for old, new in lower:
        for name, value in old.state_dict().items():
            assert torch.equal(value, new.state_dict()[name]), name
    embeddings = [model.get_input_embeddings().weight for model in (before, after)]
    assert torch.equal(*embeddings)
    moved = [
        not torch.equal(value, top[1].state_dict()[name])
        for name, value in top[0].named_parameters()
    ]
    assert sum(moved) > len(moved) / 2


def test_lora_leaves_an_adapter_that_opens_as_a_changed_model(stage, tiny_model):
    folder = stage(tiny_model, "model.lora.enabled=true", "sft.learning_rate=1e-2")
    assert (folder / "model" / "adapter_config.json").is_file()
    assert not (folder / "model" / "model.safetensors").exists()
    assert sorted(path.name for path in (folder / "samples").iterdir())[-1] == "step_000008.jsonl"
    losses = logged(folder, "eval_loss")
    assert losses[-1] < losses[0]
    before, after = weights(tiny_model), weights(folder / "model")
    assert before.keys() == after.keys()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    # It is the model that was measured, not one that lost its adapter on the way.
    assert merged_loss(folder, tiny_model) == pytest.approx(summary(folder)["eval_loss"], rel=1e-3)


def merged_loss(folder: Path, start: Path) -> float:
    merged = folder.parent / "merged"
    load_policy(ModelSettings(name=str(folder / "model")), torch.float32).save_pretrained(merged)
    load_tokenizer(str(folder / "model")).save_pretrained(merged)
    return plain_loss(merged, start)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_do_not_see_each_other(stage, tiny_model, tmp_path, attention):
    model = shutil.copytree(tiny_model, tmp_path / "still")  # without dropout, losses are exact
    settings = json.loads((model / "config.json").read_text("utf-8"))
    dropout = {key: 0.0 for key in settings if "drop" in key}
    (model / "config.json").write_text(json.dumps(settings | dropout), "utf-8")
    # All eight rows in one batch, or in one packed row: the first loss is that of the same tokens.
    overrides = ["sft.batch_size=8", "sft.max_steps=1", "sft.max_length=500",
                 f"model.attn_implementation={attention}"]  # fmt: skip
    apart = stage(model, *overrides, "run.name=apart")
    packed = stage(model, *overrides, "run.name=packed", "sft.packing=true")
    losses = [logged(folder, "loss")[0] for folder in (apart, packed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    norms = [logged(folder, "grad_norm")[0] for folder in (apart, packed)]
    assert norms[1] == pytest.approx(norms[0], rel=1e-4)
    assert joined_loss(model) != pytest.approx(losses[0], rel=1e-3)  # so the check can fail
    held_out = [logged(folder, "eval_loss")[0] for folder in (apart, packed)]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-5)


def joined_loss(folder: Path) -> float:
    """The loss if packed examples saw the ones before them."""
    model = load_policy(ModelSettings(name=str(folder)), torch.float32).eval()
    settings = config(folder, Path("rows.jsonl")).sft
    data = tokenize(ROWS, load_tokenizer(str(folder)), settings, "rows", True).dataset
    ids = torch.tensor([[token for row in data for token in row["input_ids"]]])
    mask = torch.tensor([bit for row in data for bit in row["completion_mask"]])[1:]
    with torch.no_grad():
        logprobs = model(ids).logits[0, :-1].log_softmax(-1)
    return float(-(logprobs.gather(-1, ids[0, 1:, None])[:, 0] * mask).sum() / mask.sum())


def test_packing_takes_fewer_updates(stage, tiny_llama):
    overrides = ["sft.batch_size=1", "sft.epochs=1", "sft.max_length=256"]
    assert summary(stage(tiny_llama, *overrides))["steps"] == 8
    packed = stage(tiny_llama, *overrides, "sft.packing=true", "run.name=packed")
    assert summary(packed)["steps"] < 4


def test_the_best_model_is_kept_not_the_last(stage, tiny_llama, tmp_path):
    # Held-out answers that the training rows make less and less likely.
    other = [{"prompt": f"How {w}?", "completion": "XQZ " * 4} for w in WORDS[:3]]
    held_out = written(tmp_path / "other.jsonl", other)
    folder = stage(
        tiny_llama, f"data.test={held_out}", "sft.learning_rate=5e-2", "sft.lr_scheduler=constant"
    )
    losses = logged(folder, "eval_loss")[:4]
    assert min(losses) < losses[-1] - 0.1
    assert summary(folder)["eval_loss"] == pytest.approx(min(losses), rel=1e-4)


# Data


def test_language_modelling_rows_are_trained_on(stage, tiny_model, tmp_path):
    text = written(tmp_path / "text.jsonl", [{"text": row["completion"]} for row in ROWS])
    folder = stage(tiny_model, f"data.train={text}", "data.test=null", "data.test_fraction=0.25")
    assert logged(folder, "loss")[-1] < logged(folder, "loss")[0]
    assert (summary(folder)["train_rows"], summary(folder)["test_rows"]) == (6, 2)
    assert not (folder / "samples").exists()  # there is no prompt to answer
    turns = [
        {"messages": [{"role": "user", "content": row["prompt"]},
                      {"role": "assistant", "content": row["completion"]}]}
        for row in ROWS
    ]  # fmt: skip
    chat = written(tmp_path / "chat.jsonl", turns)
    folder = stage(tiny_model, f"data.train={chat}", f"data.test={chat}", "run.name=chat")
    assert logged(folder, "loss")[-1] < logged(folder, "loss")[0]


def test_what_is_left_out_is_counted_and_told(stage, tiny_llama, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    long = {"prompt": "Why?", "completion": "lamp " * 300}
    text = "".join(json.dumps(row) + "\n" for row in [*ROWS, long]) + '{"prompt": "no answer"}\n'
    bad.write_text(text, "utf-8")
    overrides = (f"data.train={bad}", "sft.max_steps=1")
    with pytest.raises(UserError, match=rf"{bad}:10: missing key 'completion'"):
        stage(tiny_llama, *overrides)
    folder = stage(tiny_llama, *overrides, "data.skip_bad_rows=true")
    assert (summary(folder)["too_long"], summary(folder)["skipped"]) == (1, 1)
    told = capsys.readouterr().err
    assert "left out 1 rows over sft.max_length=256 tokens" in told
    assert f"skipped 1 bad rows, the first: {bad}:10" in told
    with pytest.raises(UserError, match=r"row 9 has \d+ tokens, sft.max_length=256; raise it"):
        stage(
            tiny_llama, *overrides, "data.skip_bad_rows=true", "data.drop_long_rows=false",
            "run.overwrite=true",
        )  # fmt: skip


def test_a_small_held_out_set_is_enough_and_an_empty_one_is_a_mistake(stage, tiny_llama, tmp_path):
    one = written(tmp_path / "one.jsonl", ROWS[:1])
    folder = stage(tiny_llama, f"data.test={one}", "sft.max_steps=2")
    assert summary(folder)["test_rows"] == 1
    assert summary(folder)["eval_loss"] > 0
    assert len((folder / "samples" / "step_000002.jsonl").read_text("utf-8").splitlines()) == 1
    empty = written(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError, match=r"empty.jsonl: no rows"):
        stage(tiny_llama, f"data.test={empty}", "run.name=empty")
    with pytest.raises(UserError, match="1 distinct prompt cannot be divided"):
        stage(tiny_llama, f"data.train={one}", "data.test=null", "run.name=single")


def test_one_row_can_be_learned(stage, tiny_llama, tmp_path):
    one = written(tmp_path / "one.jsonl", ROWS[:1])
    folder = stage(tiny_llama, f"data.train={one}", f"data.test={one}", "sft.epochs=3")
    assert summary(folder)["steps"] == 3


def test_the_sample_table_shows_what_the_model_answers(stage, tiny_model):
    folder = stage(tiny_model)
    tables = sorted((folder / "samples").iterdir())
    assert [path.name for path in tables] == [f"step_00000{n}.jsonl" for n in (2, 4, 6, 8)]
    for path in tables:
        rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        assert [row["prompt"] for row in rows] == [row["prompt"] for row in ROWS[:2]]
        assert all(isinstance(row["completion"], str) for row in rows)
        assert {row["finished"] for row in rows} <= {True, False}


def test_the_model_card_opens_the_model(stage, tiny_llama, monkeypatch):
    folder = stage(tiny_llama, "sft.max_steps=1")
    card = (folder / "model" / "README.md").read_text("utf-8")
    assert "fine-tuned on 8 demonstrations" in card
    monkeypatch.chdir(folder / "model")
    names: dict = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    ids = torch.tensor([query_ids(names["tokenizer"], "Why tar?")])
    assert names["model"](ids).logits.shape[-1] == 360


# Repeating


def test_a_finished_run_is_reused_and_a_changed_one_is_not(stage, tiny_llama, rows, capsys):
    folder = stage(tiny_llama, "sft.max_steps=1")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert stage(tiny_llama, "sft.max_steps=1") == folder
    assert capsys.readouterr().err == "sft: runs/default/sft is up to date\n"
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(UserError, match=r"other settings \(sft.max_steps: 1 → 2\)"):
        stage(tiny_llama, "sft.max_steps=2")
    written(rows, ROWS[:7])
    with pytest.raises(UserError, match="input 'data' changed, input 'test' changed"):
        stage(tiny_llama, "sft.max_steps=1")
    (folder / "model" / "config.json").unlink()
    written(rows, ROWS)
    stage(tiny_llama, "sft.max_steps=1")  # whole again
    assert damage(folder / "model") is None


class KilledError(BaseException):
    """Stands for a kill: nothing that catches errors catches it."""


def kill_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the process die when it logs the update after `step`."""
    log = StageRun.log

    def dying(self: StageRun, now: int, metrics: dict[str, float]) -> None:
        if now > step:
            raise KilledError
        log(self, now, metrics)

    monkeypatch.setattr(StageRun, "log", dying)


@pytest.mark.parametrize("spoilt", [None, "cut", "no manifest"])
def test_a_killed_run_continues_to_the_same_model(stage, tiny_llama, monkeypatch, capsys, spoilt):
    whole = stage(tiny_llama, "run.name=whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 5)
        with pytest.raises(KilledError):
            stage(tiny_llama)
    folder = Path("runs/default/sft")
    assert not (folder / "done.json").exists()
    found = sorted((folder / "checkpoints").glob("checkpoint-*"))
    assert [path.name for path in found] == ["checkpoint-2", "checkpoint-4"]
    if spoilt == "cut":
        half = found[1] / "model.safetensors"
        half.write_bytes(half.read_bytes()[:1000])
    elif spoilt == "no manifest":
        (found[1] / "manifest.json").unlink()
    capsys.readouterr()
    assert stage(tiny_llama) == folder
    told = capsys.readouterr().err
    used = found[0] if spoilt else found[1]
    assert f"sft: continuing from {used}\n" in told
    assert (f"{found[1]}: not used, " in told) == (spoilt is not None)
    expected, after = weights(whole / "model"), weights(folder / "model")
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, atol=1e-5, rtol=1e-4)
    assert logged(folder, "loss") == pytest.approx(logged(whole, "loss"), abs=1e-3)
    assert summary(folder)["steps"] == 8


# A disk that takes no more


def overrides(model: Path, rows: Path) -> list[str]:
    return [f"model.name={model}", "model.precision=fp32", f"data.train={rows}",
            f"data.test={rows}", "sft.max_steps=4", "sft.eval_steps=2", "sft.batch_size=4",
            "sft.sample_prompts=0"]  # fmt: skip


def started(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `rlhf sft` in this process; returns the exit code."""
    from workbench import cli

    monkeypatch.setattr("sys.argv", ["rlhf", "sft", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def last_line(told: str) -> str:
    """The one line that tells the mistake."""
    assert "Traceback" not in told
    lines = [line for line in told.splitlines() if line.startswith("rlhf: error: ")]
    assert len(lines) == 1, told
    return lines[0].removeprefix("rlhf: error: ")


def test_a_log_that_cannot_be_written_is_one_line(runs, rows, tiny_llama, monkeypatch, capsys):
    folder = runs / "default" / "sft"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").symlink_to("/dev/full")
    assert started(monkeypatch, *overrides(tiny_llama, rows)) == 2
    assert "no space left on the disk; free some" in last_line(capsys.readouterr().err)
    (folder / "metrics.jsonl").unlink()
    assert started(monkeypatch, *overrides(tiny_llama, rows)) == 0
    assert summary(folder)["steps"] == 4


# Runs the stage on disks of its own, which nobody else sees; tells each one's exit code and words.
DISKS = """
import contextlib, io, json, subprocess, sys
from pathlib import Path
from workbench import cli
from workbench.files import damage
from workbench.process import prepare

root, arguments, told = Path(sys.argv[1]), sys.argv[2:], {}
prepare()

def mount(options):
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(root)], check=True)

def start():
    words, out = io.StringIO(), io.StringIO()
    call = lambda: cli.app(["sft", *arguments, f"run.root={root}"], standalone_mode=False)
    with contextlib.redirect_stderr(words), contextlib.redirect_stdout(out):
        return cli.guarded(call), words.getvalue()

for size in ("40k", "600k", "1500k", "2500k"):
    mount(f"size={size}")
    code, words = start()
    folder = root / "default" / "sft"
    whole = (folder / "done.json").exists() or damage(folder / "model") is None
    mount("remount,size=50m")
    again, _ = start()
    told[size] = [code, words, whole, again, damage(folder / "model")]
    subprocess.run(["umount", str(root)], check=True)
mount("ro")
told["ro"] = start()
json.dump(told, sys.stdout)
"""


@pytest.fixture(scope="module")
def disks(tiny_llama, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("disks")
    (folder / "root").mkdir()
    rows = written(folder / "rows.jsonl", ROWS)
    command = ["unshare", "--mount", sys.executable, "-c", DISKS, str(folder / "root")]
    try:
        subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system of one's own needs privileges")
    done = subprocess.run(
        [*command, *overrides(tiny_llama, rows)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("size", ["40k", "600k", "1500k", "2500k"])
def test_a_full_disk_is_one_line_and_with_room_again_it_continues(disks, size):
    code, told, whole, again, damaged = disks[size]
    assert code == 2
    assert "no space left on the disk; free some" in last_line(told)
    assert not whole  # rather no model than half of one that looks finished
    assert (again, damaged) == (0, None)


def test_a_read_only_disk_is_one_line(disks):
    code, told = disks["ro"]
    assert code == 2
    assert "the folder is on a read-only file system" in last_line(told)


def test_a_limit_on_file_sizes_is_one_line(runs, rows, tiny_llama):
    code = (
        "import resource, sys\n"
        "from workbench.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        f"sys.argv = ['rlhf', 'sft', *{overrides(tiny_llama, rows)!r}]\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "the file would be larger than the disk or `ulimit -f` allows" in last_line(done.stderr)


@pytest.mark.parametrize("packing", ["false", "true"])
def test_streaming_trains_on_the_same_rows(stage, rows, tiny_llama, packing):
    options = ("data.test=null", "data.test_fraction=0.3", f"sft.packing={packing}")
    known = stage(tiny_llama, *options)
    found = stage(tiny_llama, *options, "run.name=streaming", "data.streaming=true")
    assert (found / "model/model.safetensors").read_bytes() == (
        known / "model/model.safetensors"
    ).read_bytes()
    assert logged(found, "eval_loss") == logged(known, "eval_loss")
    assert [path.name for path in found.iterdir() if path.name == "data"] == []


def test_streaming_stops_at_a_row_as_reading_does(stage, runs, rows, tiny_llama):
    for more, message in (
        (["sft.max_length=8", "data.drop_long_rows=false"], r"row 1 has \d+ tokens"),
        (["sft.max_length=8"], r"all 8 rows are longer than sft\.max_length=8; raise it"),
    ):
        with pytest.raises(UserError, match=message):
            stage(tiny_llama, "data.streaming=true", *more)
    gc.collect()
    assert list(runs.rglob("data")) == []  # what was encoded before it went wrong


# Two processes


def two_main(llama: str, gpt2: str) -> None:
    """Run the stage on each process: once for the losses; whole, stopped and resumed for the rest.

    GPT-2 has dropout, so that its weights depend on the random numbers of each process.
    """
    given = sys.argv[1:]
    noted = RunLog.on_log

    def start(model: str, name: str) -> None:
        run(load_config(SFTStage, None, [*given, f"model.name={model}", f"run.name={name}"]))

    def stopping(self: RunLog, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt
        noted(self, args, state, *rest, **more)

    start(llama, "two")
    start(gpt2, "whole")
    RunLog.on_log = stopping  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        start(gpt2, "stopped")
    RunLog.on_log = noted  # type: ignore[method-assign]
    start(gpt2, "stopped")


@pytest.mark.slow
def test_two_processes_learn_what_one_does(stage, runs, tmp_path, tiny_llama, tiny_gpt2):
    """As many rows an update, half of them in each process: the same losses, and one log."""
    longer = [{**row, "completion": row["completion"] + n * " Rain."} for n, row in enumerate(ROWS)]
    data = written(tmp_path / "longer.jsonl", longer)  # tokens to learn differ between processes
    given = [
        *overrides(tiny_llama, data), "sft.learning_rate=3e-3", "sft.logging_steps=1",
        "sft.max_grad_norm=0.5", "sft.weight_decay=0.1", "sft.sample_prompts=1",
    ]  # fmt: skip
    (tmp_path / "main.py").write_text(
        "from tests.sft.test_stage import two_main\n"
        f"two_main({str(tiny_llama)!r}, {str(tiny_gpt2)!r})\n"
    )
    done = two.accelerate(str(tmp_path / "main.py"), *given, "sft.batch_size=2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("sft: held-out loss") == 3  # the main process's
    assert done.stderr.count("sft: continuing from runs/stopped/sft/checkpoints/checkpoint-2") == 1

    one = stage(tiny_llama, *given, "sft.batch_size=4", "run.name=one")
    both = runs / "two" / "sft"
    assert len(logged(both, "loss")) == 4
    for key in ("loss", "grad_norm", "num_tokens", "mean_token_accuracy"):
        assert logged(both, key) == pytest.approx(logged(one, key), abs=1e-5, rel=1e-5), key
    found, alone = weights(both / "model"), weights(one / "model")
    assert max(float((found[name] - alone[name]).abs().max()) for name in alone) < 1e-4
    assert summary(both).keys() == summary(one).keys()

    whole, stopped = (runs / name / "sft" / "model" for name in ("whole", "stopped"))
    for name, weight in weights(whole).items():
        assert torch.equal(weights(stopped)[name], weight), name
