import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import typer
import yaml

from sft.config import SFTStage
from workbench import __version__, cli, launch
from workbench.config import load_config
from workbench.errors import UserError


@pytest.fixture
def rlhf(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command in this process; returns exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rlhf", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def only_line(text: str) -> str:
    """The message of an error that is one line and nothing else."""
    assert text.startswith("rlhf: error: ")
    assert text.count("\n") == 1, text
    assert "Traceback" not in text
    return text.removeprefix("rlhf: error: ").rstrip("\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft", "model.nam=x"],
         "command line: unknown key 'model.nam' (value 'x'); did you mean 'model.name'?"),
        (["sft", "sft.batch_size=0"], "command line: sft.batch_size=0: must be greater than 0"),
        (["sft", "-c", "configs/sft/dmo.yaml"],
         "configs/sft/dmo.yaml: no such config file; did you mean configs/sft/demo.yaml?"),
        (["sft", "--num-processes", "2"],
         "--num-processes: needs --accelerate FILE, e.g. --accelerate configs/accelerate/cpu.yaml"),
        (["sft", "--report-to", "paper"],
         "command line: run.report_to='paper' is not one of none, trackio, tensorboard, wandb"),
        (["nope"], "No such command 'nope'; see --help"),
        (["sft", "--nope"], "No such option: --nope; see --help"),
        (["sft", "--config"], "Option '--config' requires an argument; see --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(rlhf, arguments, message):
    code, out, err = rlhf(*arguments)
    assert (code, out) == (2, "")
    assert only_line(err) == message


def test_a_value_of_the_wrong_kind_names_the_option(rlhf):
    code, out, err = rlhf("sft", "--num-processes", "two")
    assert (code, out) == (2, "")
    assert "--num-processes" in only_line(err)


def test_a_mistake_is_one_line_from_the_shell_too(tmp_path):
    for command in (["-m", "sft"], ["-c", "from workbench.cli import main; main()", "sft"]):
        done = subprocess.run(
            [sys.executable, *command, "sft.epoch=1"],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert only_line(done.stderr).endswith("did you mean 'sft.epochs'?")


def test_no_mistake_shows_a_password(rlhf):
    address = "ratings:postgresql://me:sesame@host/name"
    for arguments in (
        ["sft", f"data.trian={address}"],
        ["reward", f"--dta={address}"],
        ["reward", "--num-processes", address],
        ["runs", "show", address],
    ):
        code, out, err = rlhf(*arguments)
        assert code == 2
        assert "sesame" not in out + only_line(err) + str(sys.argv)


def test_the_votes_of_people_are_given_to_reward_in_one_option(rlhf):
    address = "ratings:sqlite:///ratings.db#first round"
    code, out, _ = rlhf("reward", "--data", address, "reward.epochs=2", "--print-config")
    tree = yaml.safe_load(out)
    assert (code, tree["data"]["train"], tree["reward"]["epochs"]) == (0, address, 2.0)
    _, out, _ = rlhf("reward", "--data", "ratings:postgresql://me:sesame@host/n", "--print-config")
    assert yaml.safe_load(out)["data"]["train"] == "ratings:postgresql://me:***@host/n"


@pytest.mark.parametrize(
    ("command", "part"),
    [("ui", "--models"), ("ui user", "disable"), ("ratings", "consolidate"),
     ("ratings export", "--min-agreement")],
)  # fmt: skip
def test_the_commands_of_the_rating_app_are_there(rlhf, command, part):
    code, out, _ = rlhf(*command.split(), "--help")
    assert code == 0
    assert part in out


def test_only_the_main_process_tells_the_mistake(rlhf, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert rlhf("sft", "sft.epoch=1") == (3, "", "")


def test_no_arguments_show_the_help_and_no_error(rlhf):
    code, out, err = rlhf()
    assert code == 2
    assert "Usage" in out + err
    assert "error" not in err


def test_version(rlhf):
    assert rlhf("--version") == (0, f"rlhf-workbench {__version__}\n", "")


def commands(group: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command below a typer group, as the words one types."""
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        below = hasattr(command, "commands")
        found += commands(command, (*path, name)) if below else [(*path, name)]
    return found


@pytest.mark.parametrize("words", commands(typer.main.get_command(cli.app)), ids=" ".join)
def test_the_help_of_every_command_has_an_example(rlhf, words):
    code, out, err = rlhf(*words, "--help")
    assert (code, err) == (0, "")
    assert "Example" in out
    assert f"rlhf {' '.join(words)}" in " ".join(out.replace("│", " ").split())


@pytest.mark.parametrize("stage", ["sft"])
def test_print_config_prints_yaml_that_gives_the_same_config(rlhf, tmp_path, stage):
    config = ["--config", "configs/sft/demo.yaml"]
    code, out, err = rlhf(
        stage, *config, "sft.epochs=9", "--print-config", "--report-to", "tensorboard"
    )
    assert (code, err) == (0, "")
    (tmp_path / "printed.yaml").write_text(out, "utf-8")
    loaded = load_config(SFTStage, tmp_path / "printed.yaml")
    assert (loaded.sft.epochs, loaded.run.report_to) == (9.0, "tensorboard")
    assert loaded == load_config(
        SFTStage, "configs/sft/demo.yaml", ["sft.epochs=9", "run.report_to=tensorboard"]
    )


def test_help_answers_without_the_heavy_libraries():
    code = (
        "import sys\nfrom workbench.cli import app\n"
        "app(['sft', '--print-config'], standalone_mode=False)\n"
        "heavy = ('torch', 'transformers', 'datasets', 'trl', 'matplotlib')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert yaml.safe_load(done.stdout.rpartition("[]")[0])["run"]["name"] == "default"


def fails_with(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "disk quota exceeded"),
        (errno.EROFS, "the folder is on a read-only file system"),
        (errno.EACCES, "permission denied"),
        (errno.EPERM, "not permitted"),
    ],
)
def test_a_disk_that_takes_nothing_is_one_line(capsys, code, words):
    error = OSError(code, os.strerror(code), "runs/demo/sft/config.yaml")
    assert cli.guarded(fails_with(error)) == 2
    assert only_line(capsys.readouterr().err).startswith(f"runs/demo/sft/config.yaml: {words}")
    assert cli.guarded(fails_with(OSError(code, os.strerror(code)))) == 2  # torch names no file
    assert words in only_line(capsys.readouterr().err)


def test_a_full_disk_under_safetensors_is_one_line(capsys):
    from safetensors import SafetensorError

    text = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert cli.guarded(fails_with(SafetensorError(text))) == 2
    assert "no space left on the disk" in only_line(capsys.readouterr().err)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_full_disk_under_torch_save_is_one_line(tmp_path, size):
    # A limit on the size of files stops torch's writer where a full disk would.
    code = (
        "import resource, sys, torch\n"
        "from workbench.cli import guarded\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))\n"
        f"sys.exit(guarded(lambda: torch.save(torch.zeros({size}), 'optimizer.pt')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "no space left on the disk" in only_line(done.stderr)


def test_a_run_folder_that_is_a_file_is_one_line(rlhf, tmp_path):
    (tmp_path / "file").write_text("mine", "utf-8")
    for root in ("file", "file/below"):
        code, _, err = rlhf("sft", f"run.root={tmp_path / root}", f"model.name={tmp_path / 'file'}")
        assert code == 2
        assert "a file is where a folder should be" in only_line(err)
    assert (tmp_path / "file").read_text("utf-8") == "mine"


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("ours"), OSError(errno.EIO, "broken disk"), RuntimeError("x")]
)
def test_a_fault_of_our_own_is_not_hidden(error):
    with pytest.raises(type(error)):
        cli.guarded(fails_with(error))


def test_a_user_error_of_many_lines_becomes_one(capsys):
    assert cli.guarded(fails_with(UserError("a.jsonl:3: not\n  JSON\n"))) == 2
    assert only_line(capsys.readouterr().err) == "a.jsonl:3: not JSON"


def test_exit_codes_come_through():
    assert cli.guarded(lambda: None) == 0
    assert cli.guarded(lambda: 3) == 3  # what typer.Exit(3) becomes


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_ctrl_c_gives_130_and_says_that_work_is_kept(capsys, error):
    assert cli.guarded(fails_with(error)) == 130
    assert (
        capsys.readouterr().err
        == "\nstopped; what was finished is kept, the same command continues\n"
    )


def test_ctrl_c_inside_a_command_gives_130(rlhf, monkeypatch):
    monkeypatch.setattr(
        launch, "run_stage", lambda stage, config: fails_with(KeyboardInterrupt())()
    )
    code, out, err = rlhf("sft")
    assert (code, out) == (130, "")
    assert err == "\nstopped; what was finished is kept, the same command continues\n"


def test_ctrl_c_from_the_terminal_leaves_no_traceback(tmp_path):
    code = (
        "import time\n"
        "from workbench import cli, launch\n"
        "def stage(name, config):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "launch.run_stage = stage\n"
        "import sys; sys.argv = ['rlhf', 'sft']; cli.main()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 130
    assert err == "\nstopped; what was finished is kept, the same command continues\n"


def test_python_m_stage_is_the_same_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sft/__main__.py", "sft.epochs=2", "--print-config"])
    with pytest.raises(SystemExit) as caught:
        cli.stage_main("sft")
    assert not caught.value.code
    assert yaml.safe_load(capsys.readouterr().out)["sft"]["epochs"] == 2.0
