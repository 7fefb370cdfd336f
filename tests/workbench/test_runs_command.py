import io
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.workbench.run_folders import ppo, reward, rlhf, sft, snapshot
from tests.workbench.test_locks import held_elsewhere
from workbench.runs import total_bytes


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "100")


def printed(capsys, *arguments):
    assert rlhf("runs", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *arguments):
    """Return the one line that a command is refused with."""
    assert rlhf("runs", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("rlhf: error: ")


def cells(line):
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


# For machines


def test_list_as_json_has_a_row_a_stage_with_time_size_and_all_results(capsys):
    assert printed(capsys, "list") == []
    reward(), sft("night", finish=False)
    done, stopped = printed(capsys, "list")
    assert (done["run"], done["stage"], done["state"], done["seed"]) == (
        "demo", "reward", "finished", 3,
    )  # fmt: skip
    assert done["path"] == "runs/demo/reward"
    assert done["summary"]["by_margin"]["bucket 8"] == {"accuracy": 0.5, "n": 8}
    assert done["seconds"] == done["summary"]["seconds"]
    assert done["bytes"] == total_bytes(Path("runs/demo/reward"))
    assert (stopped["run"], stopped["state"], stopped["seconds"]) == ("night", "unfinished", None)
    assert stopped["reason"].startswith("stopped; last logged step 7")


def test_show_as_json_has_settings_versions_results_and_files(capsys):
    sft(learning_rate=1e-4)
    Path("runs/demo/report.html").write_text("x")
    found = printed(capsys, "show", "demo")
    assert (found["run"], found["files"]) == ("demo", {"report.html": "1 B"})
    stage = found["stages"]["sft"]
    assert stage["settings"] == {"sft.learning_rate": [1e-4, 1e-5]}
    assert stage["settings_error"] is None
    assert stage["versions"].keys() >= {"rlhf-workbench", "torch", "trl", "python"}
    assert stage["summary"]["eval_loss"] == 1.23456
    assert stage["files"]["config.yaml"].endswith("B")


# Comparing


def test_compare_shows_what_differs_and_the_results_side_by_side(capsys):
    sft(), sft("other", seed=1, learning_rate=1e-4), ppo("other")
    assert rlhf("runs", "compare", "demo", "other") == 0
    out = capsys.readouterr().out
    rows = [cells(line) for line in out.splitlines()]
    assert ["demo", "other"] in rows
    assert ["run.seed", "0", "1"] in rows
    assert ["sft.learning_rate", "1e-05", "0.0001"] in rows
    assert ["eval_loss", "1.235", "1.235"] in rows
    assert ["surroundings that differ: none"] in rows
    assert ["scores_last", "–", "1.4"] in rows
    assert "sft.epochs" not in out
    assert "run.name" not in out
    assert "by_margin" not in out


def test_compare_as_json_has_one_value_a_run(capsys):
    sft(), sft("b", seed=1), sft("c", finish=False), ppo("b")
    environment = Path("runs/c/sft/environment.json")
    facts = json.loads(environment.read_text())
    facts["versions"]["torch"] = "1.0"
    environment.write_text(json.dumps(facts))
    found = printed(capsys, "compare", "c", "demo", "b")
    assert found["runs"] == ["c", "demo", "b"]
    stage = found["stages"]["sft"]
    assert stage["states"] == ["unfinished", "finished", "finished"]
    assert stage["settings"] == {"run.seed": [0, 0, 1]}
    assert list(stage["surroundings"]) == ["torch"]
    assert stage["surroundings"]["torch"][0] == "1.0"
    assert stage["results"]["eval_loss"] == [None, 1.23456, 1.23456]
    # Of a stage that only one run has, nothing differs.
    assert found["stages"]["ppo"]["states"] == [None, None, "finished"]
    assert found["stages"]["ppo"]["settings"] == {}
    assert found["stages"]["ppo"]["results"]["kl"] == [None, None, 7.4]


def test_a_setting_of_another_version_is_compared_as_it_was_recorded(capsys):
    sft(), sft("old")
    config = Path("runs/old/sft/config.yaml")
    tree = yaml.safe_load(config.read_text())
    tree["sft"]["epocks"] = tree["sft"].pop("epochs")
    config.write_text(yaml.safe_dump(tree))
    settings = printed(capsys, "compare", "demo", "old")["stages"]["sft"]["settings"]
    assert settings == {"sft.epochs": [2.0, None], "sft.epocks": [None, 2.0]}


def test_damaged_runs_are_compared_by_what_is_left(capsys):
    sft(), sft("hurt")
    Path("runs/hurt/sft/config.yaml").write_bytes(b"\xff")
    Path("runs/hurt/sft/summary.json").write_text("[")
    stage = printed(capsys, "compare", "demo", "hurt")["stages"]["sft"]
    assert stage["states"] == ["finished", "damaged"]
    assert stage["results"]["eval_loss"] == [1.23456, None]
    assert rlhf("runs", "compare", "demo", "hurt") == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["demo"], "compare demo: name two or more runs, each once"),
        (["demo", "demo"], "compare demo demo: name two or more runs, each once"),
        (["demo", "dem"], "runs/dem: no such run; did you mean 'demo'?"),
        (["demo", "../demo"], "'../demo': not the name of a run; see `rlhf runs list`"),
    ],
)
def test_compare_wants_different_runs_that_are_there(capsys, names, message):
    sft()
    assert refusal(capsys, "compare", *names).startswith(message)


# Removing


def test_rm_of_a_stage_leaves_the_others(capsys):
    sft(), reward()
    before = snapshot(Path("runs"))
    assert printed(capsys, "rm", "demo", "--stage", "sft", "--yes") == {
        "path": "runs/demo/sft",
        "removed": True,
        "bytes": sum(len(v) for k, v in before.items() if v and k.startswith("runs/demo/sft/")),
    }
    kept = {k: v for k, v in before.items() if not k.startswith("runs/demo/sft")}
    assert snapshot(Path("runs")) == kept
    assert refusal(capsys, "rm", "demo", "--stage", "ppo", "--yes") == (
        "runs/demo/ppo: no such stage; runs/demo has reward"
    )


def test_rm_as_json_asks_where_it_does_not_spoil_the_json(capsys, monkeypatch):
    sft()
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert rlhf("runs", "rm", "demo", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["removed"] is False
    assert "Remove runs/demo (sft; " in err
    assert Path("runs/demo/sft").is_dir()


@pytest.mark.parametrize("written", ["runs/demo/sft", "runs/demo"])
def test_rm_leaves_alone_what_another_process_is_writing(capsys, written):
    sft(), reward()
    before = snapshot(Path("runs/demo/sft"))
    with held_elsewhere(Path(written)) as process:
        message = f"{written}: process {process.pid} is writing it; stop that first"
        assert refusal(capsys, "rm", "demo", "--yes") == message
        assert refusal(capsys, "rm", "demo", "--stage", "sft", "--yes") == message
        assert snapshot(Path("runs/demo/sft")) == before
        if written != "runs/demo":  # another stage may go meanwhile
            assert rlhf("runs", "rm", "demo", "--stage", "reward", "--yes") == 0
    assert rlhf("runs", "rm", "demo", "--yes") == 0
    assert list(Path("runs").iterdir()) == []


def test_rm_follows_no_link_to_a_stage(tmp_path, capsys):
    sft("real"), reward()
    shutil.move("runs/real/sft", tmp_path / "elsewhere")
    Path("runs/demo/sft").symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path / "elsewhere")
    message = refusal(capsys, "rm", "demo", "--stage", "sft", "--yes")
    assert message.startswith("runs/demo/sft: a link to ")
    assert rlhf("runs", "rm", "demo", "--yes") == 0
    assert not Path("runs/demo").exists()
    assert snapshot(tmp_path / "elsewhere") == before
