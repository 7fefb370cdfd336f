import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from ppo.config import PPOStage
from sft.config import SFTStage
from tests.workbench.test_locks import held_elsewhere
from workbench import embedded, identity, run
from workbench.config import load_config
from workbench.errors import UserError
from workbench.files import MANIFEST, atomic_folder, sha256
from workbench.locks import writer
from workbench.run import StageRun, fingerprint, git_commit, processor, read_metrics, versions

INPUTS = {"model": "m1", "data": "d1"}


@pytest.fixture
def open_run(runs):
    """Open the run `demo` as a stage would when it starts."""

    def opened(*overrides: str, inputs: dict[str, str] = INPUTS) -> StageRun:
        return StageRun(
            "sft",
            load_config(SFTStage, None, [f"run.root={runs}", "run.name=demo", *overrides]),
            inputs,
        )

    return opened


@pytest.fixture
def done(open_run) -> Path:
    """The folder of a finished run."""
    stage = open_run()
    complete(stage)
    return stage.path


def complete(stage: StageRun) -> None:
    """Do what a stage does, without the training."""
    stage.log(1, {"loss": 2.0})
    stage.save_samples(1, [{"prompt": "Why?", "completion": "Because."}])
    (stage.checkpoints / "checkpoint-1").mkdir(parents=True)
    with atomic_folder(stage.model) as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "config.json").write_text("{}", "utf-8")
    stage.finish({"eval_loss": 1.5})


def metrics(stage: StageRun) -> Path:
    return stage.path / "metrics.jsonl"


# What a run leaves


def test_a_finished_run_leaves_the_promised_files(done, runs):
    assert done == runs / "demo" / "sft"
    found = sorted(str(p.relative_to(done)) for p in done.rglob("*"))
    assert found == [
        "config.yaml", "done.json", "environment.json", "metrics.jsonl",
        "model", "model/config.json", f"model/{MANIFEST}", "model/model.safetensors",
        "samples", "samples/step_000001.jsonl", "summary.json",
    ]  # fmt: skip


def test_the_recorded_config_is_the_one_that_ran(open_run):
    stage = open_run("sft.epochs=7", "data.limit=3")
    assert load_config(SFTStage, stage.path / "config.yaml") == stage.config


def test_the_environment_tells_versions_machine_and_command(done):
    tree = json.loads((done / "environment.json").read_text("utf-8"))
    assert tree["versions"]["torch"] == __import__("torch").__version__
    assert tree["memory_gib"] > 0
    assert isinstance(tree["command"], list)
    assert versions().keys() >= {"rlhf-workbench", "trl", "transformers", "datasets"}
    assert processor()


def test_the_commit_is_the_one_git_names():
    root = Path(run.__file__).parents[1]
    if not (root / ".git").exists():
        assert git_commit() is None
        return
    said = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    assert git_commit() == (said.stdout.strip() or None)


def test_the_summary_carries_the_seconds_and_can_be_read_back(open_run, done):
    summary = open_run().read_summary()
    assert summary["eval_loss"] == 1.5
    assert 0 <= summary["seconds"] < 60


def test_numbers_that_are_none_become_null(open_run):
    # A training that diverged should still end, and its files should still be JSON.
    stage = open_run()
    nan, inf = float("nan"), float("inf")
    stage.log(3, {"loss": nan, "kl": -inf, "ok": 1.0})
    assert json.loads(metrics(stage).read_text("utf-8")) == {
        "step": 3,
        "loss": None,
        "kl": None,
        "ok": 1.0,
    }
    with atomic_folder(stage.model):
        pass
    stage.finish(
        {
            "eval_loss": nan,
            "nested": {"ci95": [0.5, inf]},
            "text": "nan",
            "none": None,
            "n": 3,
            "yes": True,
        }
    )
    text = (stage.path / "summary.json").read_text("utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert open_run().read_summary() | {"seconds": 0} == {
        "eval_loss": None, "nested": {"ci95": [0.5, None]}, "text": "nan", "none": None,
        "n": 3, "yes": True, "seconds": 0,
    }  # fmt: skip


def test_samples_are_one_json_a_line_in_any_language(open_run):
    stage = open_run()
    rows = [{"prompt": "Zoë\nasks", "completion": "🫖"}, {"prompt": "b", "completion": ""}]
    stage.save_samples(20, rows)
    lines = (stage.path / "samples" / "step_000020.jsonl").read_text("utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == rows


def test_other_processes_write_nothing(runs, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    config = load_config(SFTStage, None, [f"run.root={runs}", "run.name=demo"])
    stage = StageRun("sft", config, INPUTS)
    stage.log(1, {"loss": 1.0})
    stage.rewind(0)
    stage.save_samples(1, [])
    stage.finish({})
    assert not runs.exists()


# Finished, unfinished, changed, damaged


def test_a_new_run_is_not_finished(open_run):
    stage = open_run()
    assert not stage.finished
    assert stage.why_unfinished() == f"{stage.path / 'done.json'} is missing"


def test_the_same_run_again_is_finished_and_left_alone(open_run, done):
    before = {p: p.stat().st_mtime_ns for p in done.rglob("*")}
    assert open_run().finished
    assert {p: p.stat().st_mtime_ns for p in done.rglob("*")} == before


def test_settings_that_change_no_result_change_nothing(open_run, done, runs):
    assert open_run("run.report_to=tensorboard", "run.overwrite=true").finished
    shutil.move(runs / "demo", runs / "renamed")
    assert open_run("run.name=renamed").finished


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "environment.json", "metrics.jsonl", "summary.json", "done.json",
     "model/config.json", "model/model.safetensors", f"model/{MANIFEST}"],
)  # fmt: skip
def test_a_run_with_a_file_missing_is_not_finished_and_can_be_run_again(open_run, done, name):
    (done / name).unlink()
    again = open_run()
    assert not again.finished
    shutil.rmtree(again.checkpoints, ignore_errors=True)
    complete(again)
    assert open_run().finished


def test_a_run_without_its_model_folder_is_not_finished(open_run, done):
    shutil.rmtree(done / "model")
    assert not open_run().finished


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "summary.json", "model/model.safetensors"]
)
def test_a_run_with_a_changed_file_is_not_finished(open_run, done, name):
    stage = open_run()
    with (done / name).open("a") as file:
        file.write(" ")
    reason = stage.why_unfinished()
    assert reason.startswith(f"{done / name} ")
    assert "changed" in reason or "damaged" in reason
    assert not open_run().finished


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"files": 3}', '{"files": null}'])
def test_a_damaged_seal_is_no_seal(open_run, done, text):
    (done / "done.json").write_text(text, "utf-8")
    assert not open_run().finished


def test_an_unsealed_run_names_what_is_missing(open_run, done):
    stage = open_run()
    (done / "summary.json").unlink()
    assert stage.why_unfinished() == f"{done / 'summary.json'} is missing"
    (done / "done.json").write_text("{", "utf-8")
    assert stage.why_unfinished() == f"{done / 'done.json'} is damaged"


def test_samples_added_or_lost_do_not_unfinish_a_run(open_run, done):
    shutil.rmtree(done / "samples")
    (done / "notes.txt").write_text("mine", "utf-8")
    assert open_run().finished


def test_opening_an_unfinished_run_again_keeps_its_checkpoints_and_log(open_run):
    stage = open_run()
    stage.log(1, {"loss": 2.0})
    (stage.checkpoints / "checkpoint-1").mkdir(parents=True)
    again = open_run()
    assert not again.finished
    assert (again.checkpoints / "checkpoint-1").is_dir()
    assert read_metrics(metrics(again)) == [{"step": 1, "loss": 2.0}]


def test_an_unfinished_run_of_other_settings_starts_anew_where_nothing_is_lost(open_run, capsys):
    stage = open_run()
    stage.log(1, {"loss": 2.0})
    (stage.checkpoints / ".checkpoint-1.x1y2z3w4").mkdir(parents=True)  # cut off while written
    again = open_run("sft.epochs=9")
    assert not again.checkpoints.exists()
    assert not metrics(again).exists()
    assert capsys.readouterr().err == f"{again.path}: starting anew (sft.epochs: 2.0 → 9.0)\n"


def saved(stage: StageRun) -> dict[Path, bytes]:
    """Leave two checkpoints in an unfinished run; returns all its files."""
    stage.log(1, {"loss": 2.0})
    for number in (9, 10):
        (stage.checkpoints / f"checkpoint-{number}").mkdir(parents=True)
        (stage.checkpoints / f"checkpoint-{number}" / "weights").write_bytes(b"1")
    return {path: path.read_bytes() for path in stage.path.rglob("*") if path.is_file()}


def test_other_settings_do_not_cost_an_unfinished_run_its_checkpoints(open_run, capsys):
    stage = open_run()
    before = saved(stage)
    asked = ["sft.epochs=9", "run.seed=3", "data.limit=7", "sft.batch_size=64",
             "sft.learning_rate=3e-3", "model.precision=fp32"]  # fmt: skip
    message = refusal(open_run, *asked, inputs={"model": "m1", "data": "d2"})
    assert message == (
        f"{stage.path}: holds an unfinished run with other settings (run.seed: 0 → 3, "
        "model.precision: auto → fp32, data.limit: null → 7, sft.learning_rate: 1e-05 → 0.003, "
        "sft.epochs: 2.0 → 9.0, sft.batch_size: 8 → 64, input 'data' changed); "
        "to go on from its checkpoint-10 give the old ones, which are in "
        f"{stage.path / 'config.yaml'}; else choose another run.name, or set run.overwrite=true "
        "to start anew"
    )
    assert {path: path.read_bytes() for path in before} == before
    assert open_run().saved() == stage.checkpoints / "checkpoint-10"
    again = open_run("sft.epochs=9", "run.overwrite=true")
    assert again.saved() is None
    assert "starting anew (sft.epochs: 2.0 → 9.0)" in capsys.readouterr().err


@pytest.mark.parametrize("record", ["missing", "damaged"])
def test_checkpoints_of_unknown_settings_are_not_dropped_unasked(open_run, record):
    stage = open_run()
    saved(stage)
    if record == "missing":
        (stage.path / "environment.json").unlink()
    else:
        (stage.path / "environment.json").write_text("{", "utf-8")
    assert f"(environment.json is {record})" in refusal(open_run)
    assert stage.saved() is not None
    assert open_run("run.overwrite=true").saved() is None


def test_settings_that_may_change_are_named_and_the_run_goes_on(runs, capsys):
    def opened(*overrides: str) -> StageRun:
        given = [f"run.root={runs}", "reward_model=r", *overrides]
        return StageRun("ppo", load_config(PPOStage, None, given), INPUTS)

    stage = opened()
    (stage.checkpoints / "update-000001").mkdir(parents=True)
    capsys.readouterr()
    opened("ppo.micro_batch_size=2", "ppo.save_every=3", "run.report_to=tensorboard")
    said = capsys.readouterr().err
    assert said == (
        f"{stage.path}: going on with ppo.micro_batch_size: 8 → 2, ppo.save_every: 10 → 3\n"
    )
    assert stage.saved() is not None
    opened("ppo.micro_batch_size=2", "ppo.save_every=3")
    assert capsys.readouterr().err == ""


def test_a_caller_may_keep_what_another_configuration_left(open_run, runs):
    stage = open_run()
    saved(stage)
    config = load_config(SFTStage, None, [f"run.root={runs}", "run.name=demo", "sft.epochs=9"])
    again = StageRun("sft", config, INPUTS, replace=False)
    assert again.saved() is not None
    assert again.identity["fingerprint"] != stage.identity["fingerprint"]


# Overwriting


def refusal(call, *arguments: str, **keywords: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments, **keywords)
    return str(caught.value)


def test_a_finished_run_of_other_settings_is_not_overwritten(open_run, done):
    before = {p: p.read_bytes() for p in done.rglob("*") if p.is_file()}
    assert refusal(open_run, "sft.epochs=9", "run.seed=3") == (
        f"{done}: holds a finished run with other settings "
        "(run.seed: 0 → 3, sft.epochs: 2.0 → 9.0); "
        "choose another run.name, or set run.overwrite=true to replace it"
    )
    assert {p: p.read_bytes() for p in done.rglob("*") if p.is_file()} == before


def test_changed_inputs_are_named(open_run, done):
    assert "(input 'data' changed)" in refusal(open_run, inputs={"model": "m1", "data": "d2"})


def test_another_version_of_the_project_is_named(open_run, done, monkeypatch):
    monkeypatch.setattr(identity, "__version__", "99.0")
    message = refusal(open_run)
    assert "99.0" in message
    assert "damaged" not in message


def test_a_damaged_record_is_named_as_such(open_run, done):
    (done / "environment.json").write_text("{", "utf-8")
    assert refusal(open_run).startswith(
        f"{done}: holds a finished run with other settings (environment.json is damaged)"
    )


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"identity": null}', '{"identity": []}', '{"identity": {}}']
)
def test_a_record_without_its_parts_is_damaged(open_run, done, text):
    (done / "environment.json").write_text(text, "utf-8")
    assert "environment.json is damaged" in refusal(open_run)


def test_overwrite_replaces_the_whole_folder(open_run, done, capsys):
    stage = open_run("sft.epochs=9", "run.overwrite=true")
    assert not stage.finished
    assert sorted(p.name for p in done.iterdir()) == ["config.yaml", "environment.json"]
    assert yaml.safe_load((done / "config.yaml").read_text("utf-8"))["sft"]["epochs"] == 9.0
    assert "starting anew (sft.epochs: 2.0 → 9.0)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/tmp", "a/"])
def test_a_run_name_is_a_plain_folder_name(open_run, name):
    assert "must be a plain folder name" in refusal(open_run, f"run.name={name}")


def test_a_negative_seed_is_refused(open_run):
    assert "run.seed=-1: must be 0 or more" in refusal(open_run, "run.seed=-1")


# The log


def test_rewind_drops_later_lines_and_keeps_the_order(open_run):
    stage = open_run()
    for step in (1, 2, 2, 3):
        stage.log(step, {"loss": float(step)})
    stage.rewind(2)
    assert [row["step"] for row in read_metrics(metrics(stage))] == [1, 2, 2]
    stage.rewind(-1)
    assert metrics(stage).read_text("utf-8") == ""


def test_rewind_drops_a_torn_last_line_so_that_the_next_one_starts_fresh(open_run):
    stage = open_run()
    stage.log(1, {"loss": 1.0})
    with metrics(stage).open("a") as file:
        file.write('{"step": 2, "lo')
    stage.rewind(5)
    stage.log(2, {"loss": 2.0})
    assert read_metrics(metrics(stage)) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]


@pytest.mark.parametrize(
    "tail", [b'{"step": 2, "lo', b"[]", b"3", b'{"loss": 1}', b"\x00\x00\x00", b'{"a": "\xff\xfe']
)
def test_a_torn_last_line_is_left_out(tmp_path, tail):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + tail)
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_damage_in_the_middle_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step"\n{"step": 3}\n', "utf-8")
    assert (
        refusal(read_metrics, path)
        == f"{path}:2: not a metrics line; delete the file to start its log anew"
    )


def test_rewinding_a_run_that_has_no_log_is_nothing(open_run):
    open_run().rewind(3)


# Fingerprints of inputs


def test_a_file_is_known_by_its_content(tmp_path):
    one, two = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text("rows", "utf-8")
    two.write_text("rows", "utf-8")
    assert fingerprint(str(one)) == fingerprint(str(two)) == sha256(one)[:16]
    two.write_text("rowz", "utf-8")
    assert fingerprint(str(one)) != fingerprint(str(two))


@pytest.mark.parametrize("change", ["content", "name", "more", "less"])
def test_a_folder_is_known_by_names_and_contents(tmp_path, change):
    for folder in ("one", "two"):
        (tmp_path / folder / "sub").mkdir(parents=True)
        (tmp_path / folder / "sub" / "a").write_text("1", "utf-8")
        (tmp_path / folder / "b").write_text("2", "utf-8")
    one, two = tmp_path / "one", tmp_path / "two"
    assert fingerprint(str(one)) == fingerprint(str(two))
    if change == "content":
        (two / "sub" / "a").write_text("3", "utf-8")
    elif change == "name":
        (two / "b").rename(two / "c")
    elif change == "more":
        (two / "c").touch()
    else:
        (two / "b").unlink()
    assert fingerprint(str(one)) != fingerprint(str(two))


def test_a_sealed_folder_is_known_by_its_manifest(done):
    assert fingerprint(str(done / "model")) == sha256(done / "model" / MANIFEST)[:16]


def test_a_hub_id_is_known_by_its_name_and_the_embedded_model_by_its_hash(runs):
    assert fingerprint("owner/name") == "owner/name"
    assert fingerprint(embedded.NAME) == embedded.GGUF_SHA256[:16]


def test_starting_sweeps_what_a_killed_run_left_half_written(open_run):
    stage = open_run()
    stage.checkpoints.mkdir()
    left = [stage.path / ".model.0a_bcdef", stage.checkpoints / ".checkpoint-3.x1y2z3w4"]
    for folder in left:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    open_run()
    assert not any(folder.exists() for folder in left)


# Two processes


def test_a_folder_that_another_process_writes_is_left_alone(open_run, runs):
    open_run().log(1, {"loss": 2.0})
    before = {p: p.read_bytes() for p in (runs / "demo" / "sft").rglob("*") if p.is_file()}
    with held_elsewhere(runs / "demo" / "sft") as process:
        for overrides in ([], ["run.seed=5"]):
            with pytest.raises(UserError, match=f"is being written by process {process.pid};"):
                open_run(*overrides)
    after = {p: p.read_bytes() for p in (runs / "demo" / "sft").rglob("*") if p.is_file()}
    assert after == before
    assert open_run().path == runs / "demo" / "sft"


def test_a_stage_is_locked_while_it_runs_and_leaves_no_lock(open_run, runs):
    stage = open_run()
    assert writer(stage.path) is not None
    complete(stage)
    assert writer(stage.path) is None
    assert [path.name for path in (runs / "demo").iterdir()] == ["sft"]
    assert open_run().finished  # a finished run is looked at without a lock
    assert [path.name for path in (runs / "demo").iterdir()] == ["sft"]
