import os
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from sft.config import SFTStage
from workbench import launch
from workbench.config import find_config, load_config
from workbench.errors import StageError, UserError

ACCELERATE = """
compute_environment: LOCAL_MACHINE
distributed_type: 'NO'
machine_rank: 0
main_training_function: main
mixed_precision: 'no'
num_machines: 1
num_processes: 1
use_cpu: true
"""


@pytest.fixture
def launched(monkeypatch):
    """What would have been launched."""
    found: list[tuple[Path, int, str, list[str]]] = []
    monkeypatch.setattr(launch, "launch", lambda *given: found.append(given))
    return found


def test_stage_config_reads_file_and_overrides():
    config = launch.stage_config("sft", "configs/sft/demo.yaml", ["sft.epochs=1"])
    assert config == load_config(SFTStage, "configs/sft/demo.yaml", ["sft.epochs=1"])
    assert config.sft.epochs == 1.0


def test_print_config_prints_what_can_be_loaded(capsys, tmp_path):
    config = launch.stage_config("sft", "configs/sft/demo.yaml", ["run.name=Zoë"])
    launch.print_config(config)
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out, "utf-8")
    assert launch.stage_config("sft", str(tmp_path / "printed.yaml"), []) == config


def test_accelerate_launch_hands_everything_on(launched, tmp_path):
    (tmp_path / "cpu.yaml").write_text(ACCELERATE, "utf-8")
    accelerate = str(tmp_path / "cpu.yaml")
    launch.accelerate_launch(
        "sft", "configs/sft/demo.yaml", ["sft.epochs=7", "run.name=Zoë"], accelerate, 1
    )
    [(file, number, module, arguments)] = launched
    assert (file, number, module) == (Path(accelerate), 1, "sft")
    # What would have run does run, but prints its config instead of training.
    command = [sys.executable, "-m", module, *arguments, "--print-config"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tree = yaml.safe_load(done.stdout)
    assert (tree["sft"]["epochs"], tree["run"]["name"]) == (7.0, "Zoë")
    assert tree["sft"]["learning_rate"] == 1e-4  # from the file


def test_the_number_of_processes_is_the_files_unless_given(launched, tmp_path):
    (tmp_path / "cpu.yaml").write_text(ACCELERATE, "utf-8")
    for number in (None, 4):
        launch.accelerate_launch("sft", None, [], str(tmp_path / "cpu.yaml"), number)
    assert [number for _, number, _, _ in launched] == [1, 4]
    assert all("--config" not in arguments for _, _, _, arguments in launched)


# Started by Accelerate itself in one process, by its type NO.
FAILING = """
import sys
from workbench.cli import guarded
from workbench.errors import UserError

def fail():
    raise UserError("rows.jsonl:3: bad row")

sys.exit(guarded(fail) if sys.argv[1] == "badly" else 0)
"""


def test_the_code_of_a_launch_is_the_processs_own(tmp_path, monkeypatch, capfd):
    (tmp_path / "one.yaml").write_text(ACCELERATE, "utf-8")
    (tmp_path / "failing.py").write_text(FAILING, "utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(launch.__file__).parents[1]}")
    launch.launch(tmp_path / "one.yaml", 1, "failing", ["well"])
    with pytest.raises(StageError) as error:
        launch.launch(tmp_path / "one.yaml", 1, "failing", ["badly"])
    assert error.value.code == 2
    said = capfd.readouterr().err
    assert "rows.jsonl:3: bad row" in said
    assert "Traceback" not in said
    assert "RLHF_PROCESSES" not in os.environ


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: FASTEST\n", "not a config of Accelerate"),
        ("compute_environment: [\n", "not a config of Accelerate"),
        (ACCELERATE.replace("'NO'", "DEEPSPEED"), "DeepSpeed, which is not installed; run: pip"),
        (ACCELERATE.replace("use_cpu: true", "use_cpu: false"), "asks for GPUs, and there is none"),
    ],
)
def test_a_file_that_cannot_be_used_here_is_refused(launched, tmp_path, monkeypatch, text, message):
    monkeypatch.setattr(launch, "find_spec", lambda _: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "file.yaml").write_text(text, "utf-8")
    with pytest.raises(UserError, match="file.yaml: .*" + message):
        launch.accelerate_launch("sft", None, [], str(tmp_path / "file.yaml"), None)
    assert launched == []


PACKAGED = {
    "cpu": ("MULTI_GPU", 2), "single_gpu": ("NO", 1), "ddp": ("MULTI_GPU", 8),
    "fsdp2": ("FSDP", 8), "deepspeed_zero2": ("DEEPSPEED", 8),
    "deepspeed_zero3": ("DEEPSPEED", 8), "multi_node": ("MULTI_GPU", 16),
}  # fmt: skip


def test_packaged_files_are_configs_of_accelerate_and_go_into_the_wheel():
    from accelerate.commands.config.config_args import load_config_from_file

    folder = Path(str(files("configs"))) / "accelerate"
    assert {path.stem for path in folder.glob("*.yaml")} == PACKAGED.keys()
    for name, (kind, number) in PACKAGED.items():
        path = find_config(f"configs/accelerate/{name}.yaml")
        found = load_config_from_file(str(path))  # it refuses keys that it does not know
        assert (found.distributed_type.value, found.num_processes) == (kind, number), name
        assert path.read_text("utf-8").startswith("# ")
    data = tomllib.loads((folder.parents[1] / "pyproject.toml").read_text("utf-8"))
    assert data["tool"]["setuptools"]["package-data"]["configs"] == ["**/*.yaml"]


@pytest.mark.parametrize(
    ("path", "overrides", "accelerate", "number", "message"),
    [
        (None, ["sft.epoch=1"], "cpu.yaml", None, "did you mean 'sft.epochs'"),
        (None, [], "cpu.yaml", 0, "--num-processes=0: must be at least 1"),
        (None, [], "nowhere.yaml", None, "nowhere.yaml: no such config file"),
        ("nowhere.yaml", [], "cpu.yaml", None, "nowhere.yaml: no such config file"),
    ],
)
def test_a_mistake_is_told_once_before_any_process_starts(
    launched, tmp_path, monkeypatch, path, overrides, accelerate, number, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cpu.yaml").write_text(ACCELERATE, "utf-8")
    with pytest.raises(UserError, match="^.*" + message.replace("?", r"\?")):
        launch.accelerate_launch("sft", path, overrides, accelerate, number)
    assert launched == []
