"""What was asked of a launcher against what came of it; and one reason, however it ends."""

import os
import signal
import sys
from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from tests import two
from workbench import processes
from workbench.errors import UserError


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Nothing launched this process."""
    for name in (*processes.SIZES, "RANK", "LOCAL_WORLD_SIZE", "RLHF_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("FSDP", "DEEPSPEED"):
        monkeypatch.delenv(f"ACCELERATE_USE_{name}", raising=False)


def refused(call, *arguments) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    return str(error.value)


@pytest.mark.parametrize("name", processes.SIZES)
def test_any_launcher_says_how_many_were_asked_for(monkeypatch, name):
    assert processes.asked() == 1
    monkeypatch.setenv(name, "3")
    assert processes.asked() == 3


def test_one_process_starts_and_agrees_with_itself():
    processes.start("sft")
    assert processes.agree(7, "seven") == 7
    assert processes.of_main("x") == "x"
    assert processes.tells()
    assert not processes.lost(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed"))


def test_fewer_processes_than_were_asked_for_are_refused(monkeypatch):
    """Accelerate starts one for distributed_type NO or MULTI_CPU, whatever the number."""
    monkeypatch.setenv("RLHF_PROCESSES", "2")
    text = refused(processes.start, "ppo")
    assert text.startswith("2 processes were asked for, and each here knows of 1: ")
    assert "configs/accelerate/cpu.yaml" in text


def test_sharding_that_accelerate_would_leave_out_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert processes.asked_for_fsdp()
    for stage in ("sft", "reward"):
        text = refused(processes.start, stage)
        assert text.startswith(f"{stage}: FSDP was asked for, and without a GPU Accelerate leaves")
    processes.start("ppo")  # PyTorch's own shards on CPUs


def test_deepspeed_is_refused_where_it_cannot_be(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "configs/accelerate/fsdp2.yaml" in refused(processes.start, "ppo")
    monkeypatch.setattr(processes, "find_spec", lambda _: None)
    assert refused(processes.start, "sft").endswith("run: pip install deepspeed")
    monkeypatch.setattr(processes, "find_spec", lambda _: "there")
    assert "DeepSpeed was asked for, and without a GPU" in refused(processes.start, "reward")


@pytest.mark.parametrize(
    ("asked", "kind", "number", "text"),
    [
        ({}, DistributedType.NO, 1, ""),
        ({"WORLD_SIZE": "2"}, DistributedType.NO, 1, "2 processes were asked for, and Accelerate "),
        ({"WORLD_SIZE": "2"}, DistributedType.MULTI_CPU, 2, ""),
        ({"ACCELERATE_USE_FSDP": "true"}, DistributedType.MULTI_GPU, 1, "sharding by FSDP was "),
        ({"ACCELERATE_USE_FSDP": "true"}, DistributedType.FSDP, 1, ""),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, DistributedType.NO, 1, "sharding by DEEPSPEED was "),
    ],
)
def test_an_accelerator_must_be_what_was_asked_for(monkeypatch, asked, kind, number, text):
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    found = SimpleNamespace(distributed_type=kind, num_processes=number)
    if text:
        assert refused(processes.check, found).startswith(text)
    else:
        processes.check(found)  # type: ignore[arg-type]


def test_the_time_to_wait_is_a_number_of_seconds(monkeypatch):
    assert processes.timeout() == 1800
    monkeypatch.setenv("RLHF_TIMEOUT", "2.5")
    assert processes.timeout() == 2.5
    for text in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("RLHF_TIMEOUT", text)
        assert refused(processes.timeout).startswith(f"RLHF_TIMEOUT={text}: must be a number")


# Two processes, one of which fails


def failing(how: str) -> None:
    """Join, then let process 1 fail in some way while the other waits for it."""
    import time

    from accelerate.utils import gather_object

    from workbench.cli import guarded

    def call() -> None:
        processes.start("sft")
        rank = int(os.environ["RANK"])
        if how == "disagree":
            processes.agree(rank, "runs/a")
        assert processes.agree(how, "how it fails") == how
        assert processes.of_main(rank) == 0
        if rank == 1:
            if how == "user":
                raise UserError("rows.jsonl:3: bad row")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "hangs":
                time.sleep(600)  # ended by a signal, long before
            raise ZeroDivisionError("ours")
        gather_object([rank])

    sys.exit(guarded(call))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("user", 2, "rlhf: error: process 1: rows.jsonl:3: bad row"),
        ("disagree", 2, "rlhf: error: runs/a: the processes see different things (0, 1);"),
        ("killed", 2, "rlhf: error: process 1 was ended by SIGKILL"),
        ("hangs", 2, "rlhf: error: waited 3 s for process 1, which did not come"),
        ("bug", 1, "ZeroDivisionError: ours"),
    ],
)
def test_a_failure_ends_all_and_is_told_once(tmp_path, how, code, said):
    (tmp_path / "main.py").write_text(
        f"from tests.workbench.test_processes import failing\nfailing({how!r})\n"
    )
    launch = (
        "import sys; from pathlib import Path; from workbench.cli import guarded; "
        f"from workbench.launch import launch; file = Path({str(two.ROOT / two.CPU)!r}); "
        "sys.exit(guarded(lambda: launch(file, 2, 'main', [])))"
    )
    more = {"RLHF_TIMEOUT": "3"} if how == "hangs" else {}
    done = two.finished([sys.executable, "-c", launch], PYTHONPATH=f"{tmp_path}:{two.ROOT}", **more)
    assert done.returncode == code, done.stderr
    assert " ".join(done.stderr.split()).count(said) == 1, done.stderr
    assert done.stderr.count("rlhf: error") == (how != "bug")
    assert done.stderr.count("Traceback") == (how == "bug")
    assert "elastic" not in done.stderr
