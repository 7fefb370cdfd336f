import io
import json
import os
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workbench.run_folders import ppo, reward, rlhf, sft, snapshot
from workbench.errors import UserError
from workbench.runs import changed_settings, duration, find_run, read_stage, size, stage_state

SEALED = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")


# States


def test_a_finished_stage_is_finished_with_its_seed_start_and_summary():
    run = sft(seed=5)
    stage = read_stage(run.path)
    time = json.loads((run.path / "environment.json").read_text())["time"]
    assert (stage.state, stage.reason, stage.seed) == ("finished", None, 5)
    assert stage.started == time[:10] + " " + time[11:16]
    assert stage.summary["eval_loss"] == 1.23456


def test_an_unfinished_stage_says_how_far_it_came_and_who_is_writing_it():
    run = sft(finish=False)
    (run.checkpoints / "checkpoint-12").mkdir()
    far = "last logged step 7; newest checkpoint at step 12"
    who = f"process {os.getpid()} is writing it"
    assert stage_state(run.path) == ("unfinished", f"{who}; {far}")
    path = run.path
    del run  # what it held goes with it, as at the end of its process
    assert stage_state(path) == (
        "unfinished",
        f"stopped; {far}; the same `rlhf` command continues",
    )


FILES = (*SEALED, "done.json", "model/model.safetensors", "model/config.json", "model/README.md")
FILES += ("model/manifest.json", "samples/step_000004.jsonl")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{", b"[1, 2]", b'{"files": 3, "run": 4}'])
def test_any_lost_or_spoilt_file_is_told_as_a_resuming_stage_sees_it(capsys, name, content):
    run = sft()
    assert stage_state(run.path) == ("finished", None)
    assert run.why_unfinished() is None
    if content is None:
        (run.path / name).unlink()
    else:
        (run.path / name).write_bytes(content)
    state, reason = stage_state(run.path)
    expected = "finished" if name.startswith("samples") else "damaged"
    assert state == ("unfinished" if name == "done.json" and content is None else expected)
    if state == "damaged":
        assert str(run.path / name) in reason
    if name != "done.json":  # there it must judge alike
        assert (run.why_unfinished() is None) == (state == "finished")
    before = snapshot(Path("runs"))
    for command in (["models"], ["models", "--json"], ["runs", "list"], ["runs", "show", "demo"]):
        assert rlhf(*command) == 0
    assert snapshot(Path("runs")) == before
    assert state in capsys.readouterr().out


# rlhf runs list, show


def test_runs_are_listed_by_stage_in_their_order(capsys):
    ppo(), reward(), sft(), sft("another", finish=False)
    Path("runs/notes").mkdir()
    Path("runs/demo/compare").mkdir()
    assert rlhf("runs", "list") == 0
    out = capsys.readouterr().out
    dated = re.compile(r"\b\d{4}-\d\d-\d\d\b")  # a folded time of day is a line too
    rows = [line.split() for line in out.splitlines() if dated.search(line)]
    assert [row[:3] for row in rows] == [
        ["another", "sft", "unfinished"],
        ["demo", "sft", "finished"],
        ["reward", "finished", rows[2][2]],
        ["ppo", "finished", rows[3][2]],
    ]
    assert rows[2][3:6] == ["3", *duration(read_stage(Path("runs/demo/reward")).seconds).split()]
    assert size(read_stage(Path("runs/demo/reward")).bytes) in out
    assert "notes" not in out
    assert "runs show NAME" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_without_runs_list_says_what_to_do(capsys):
    assert rlhf("runs", "list") == 0
    assert "no runs in runs; `rlhf demo` starts one" in capsys.readouterr().out


def test_show_tells_settings_results_and_files(capsys):
    sft(learning_rate=1e-4, epochs=2.0)
    Path("runs/demo/report.html").write_text("x" * 2500)
    assert rlhf("runs", "show", "demo") == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert ["sft.learning_rate", "0.0001", "(default", "1e-05)"] in rows
    assert ["eval_loss", "1.235"] in rows
    assert "sft.epochs" not in out  # 2.0 is the default
    assert "run.root" not in out
    assert ["report.html", "2.5", "kB"] in rows
    samples = (Path("runs/demo/sft/samples/step_000004.jsonl")).stat().st_size
    assert ["samples/", str(samples), "B", "in", "1", "files"] in rows


def test_stages_without_a_valid_default_are_compared_too(capsys):
    assert changed_settings(reward().path) == {
        "run.seed": (3, 0),
        "data.train": ("pairs.jsonl", ""),
    }
    assert changed_settings(ppo().path) == {"reward_model": ("runs/demo/reward/model", "")}
    assert rlhf("runs", "show", "demo") == 0
    out = capsys.readouterr().out
    assert "9 entries, in summary.json" in out
    assert "[0.69, 0.74]" in out
    assert out.index("reward: finished") < out.index("ppo: finished")


def test_settings_of_another_version_are_said_to_be(capsys):
    run = sft()
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("epochs:", "epocks:"))
    assert rlhf("runs", "show", "demo") == 0
    assert "did you mean 'sft.epochs'?" in " ".join(capsys.readouterr().out.split())


def test_an_unknown_run_comes_with_the_nearest(capsys):
    sft("demo"), sft("night")
    assert rlhf("runs", "show", "dmeo") == 2
    assert rlhf("runs", "show", "zzz") == 2
    assert rlhf("runs", "show", "z" * 5000) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "rlhf: error: runs/dmeo: no such run; did you mean 'demo'?"
    assert lines[1] == "rlhf: error: runs/zzz: no such run; runs: demo, night"
    assert len(lines) == 3


def test_escape_sequences_in_names_do_not_reach_the_terminal(capsys):
    sft("a\x1b[31mb")
    assert rlhf("runs", "list") == 0
    assert rlhf("runs", "show", "a\x1b[31mb") == 0
    assert rlhf("models") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "a?[31mb" in out


# rlhf runs rm


def answer(monkeypatch, text):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_rm_removes_that_folder_and_nothing_else(tmp_path):
    sft("demo"), sft("other")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    Path("runs/demo/sft/link").symlink_to(outside)
    Path("runs/notes.txt").write_text("kept")
    before = snapshot(tmp_path)
    assert rlhf("runs", "rm", "demo", "--yes") == 0
    expected = {p: v for p, v in before.items() if not p.startswith(str(tmp_path / "runs/demo"))}
    assert snapshot(tmp_path) == expected
    assert len(expected) < len(before)


def test_rm_asks_first(capsys, monkeypatch):
    sft()
    before = snapshot(Path("runs"))
    answer(monkeypatch, "n\n")
    assert rlhf("runs", "rm", "demo") == 0
    answer(monkeypatch, "")
    assert rlhf("runs", "rm", "demo") == 2
    assert snapshot(Path("runs")) == before
    out, err = capsys.readouterr()
    assert "Remove runs/demo (sft; " in out
    assert "runs/demo: kept\n" in err
    assert "--yes removes unasked" in err
    answer(monkeypatch, "y\n")
    assert rlhf("runs", "rm", "demo") == 0
    assert not Path("runs/demo").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../other", "demo/", "demo/sft", "x\\y", "/"])
def test_rm_takes_only_the_name_of_a_run(tmp_path, capsys, name):
    sft(), sft(name="other", root=".")
    before = snapshot(tmp_path)
    assert rlhf("runs", "rm", "--yes", "--", name) == 2
    assert rlhf("runs", "rm", "--yes", "--", str(tmp_path / "other")) == 2
    assert snapshot(tmp_path) == before
    lines = capsys.readouterr().err.splitlines()
    assert ["not the name of a run" in line for line in lines] == [True, True]


def test_rm_refuses_links_and_folders_that_are_not_runs(tmp_path, capsys):
    sft()
    run = sft("elsewhere", root="outside")
    Path("runs/linked").symlink_to(run.path.parent.absolute())
    Path("runs/notes").mkdir()
    Path("runs/file").touch()
    project = Path("runs/project/sft")  # another tool's, whose folders happen to have our names
    project.mkdir(parents=True)
    (project / "config.yaml").write_text("a: 1")
    before = snapshot(tmp_path)
    for name in ("linked", "notes", "file", "project"):
        assert rlhf("runs", "rm", name, "--yes") == 2
    assert snapshot(tmp_path) == before
    lines = capsys.readouterr().err.splitlines()
    assert "a link to" in lines[0]
    assert "not a run folder" in lines[1]
    assert "not a run folder" in lines[2]
    assert "remove it by hand" in lines[3]


@settings(deadline=None)  # a busy machine is not a failure
@given(st.text(max_size=12) | st.sampled_from(["demo", "demo/../demo", "notes", "..", "demo "]))
def test_a_run_is_found_by_its_plain_name_only(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "property"
    if not root.exists():
        (root / "notes").mkdir(parents=True)
        (root / "demo" / "sft").mkdir(parents=True)
        (root / "demo" / "sft" / "done.json").touch()
    if name == "demo":
        assert find_run(root, name) == root / "demo"
    else:
        with pytest.raises(UserError):
            find_run(root, name)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (9_400, "9.4 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (272_585_970, "273 MB"),
        (1_500_000_000, "1.5 GB"),
        (70_000_000_000, "70 GB"),
    ],
)
def test_sizes_are_rounded_to_their_unit(count, text):
    assert size(count) == text


def test_a_removed_stage_leaves_the_others_listed(capsys):
    sft(), reward()
    shutil.rmtree("runs/demo/sft")
    assert rlhf("runs", "list") == 0
    out = capsys.readouterr().out
    assert "demo  reward" in out
    assert "sft" not in out
