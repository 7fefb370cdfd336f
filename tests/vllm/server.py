"""A real vLLM server on the CPU, from the environment that `make vllm` builds."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

ROOT = Path(__file__).resolve().parents[2]
VENV = Path(os.environ.get("VLLM_VENV", ROOT / "runs" / "vllm" / "venv"))
# Only a guard against hanging: half a minute where nothing else runs, minutes where much does.
START_SECONDS = 1500
SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}


def missing() -> str | None:
    """Return why there is no vLLM to test with, or None where there is one."""
    if (VENV / ".ready").is_file():
        return None
    return f"no vLLM in {VENV}; `make vllm` builds it, `make test-vllm` runs these tests"


@dataclass
class Running:
    """A server that is up.

    Attributes:
        url: ends in /v1.
        process: its own session.
        log: what it printed.
    """

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def kill(self) -> None:
        """End it and its children at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(60)


@contextmanager
def vllm_server(model: Path, folder: Path, *options: str) -> Iterator[Running]:
    """Serve a model in float32 until the block ends.

    Args:
        model: its folder.
        folder: to run in, for the log.
        options: more of the command line.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(VENV / "bin" / "python"), "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(model), "--host", "127.0.0.1", "--port", str(port),
        "--dtype", "float32", "--enforce-eager", "--enable-lora", *options,
    ]  # fmt: skip
    log = folder / "vllm.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **SETTINGS}, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    running = Running(f"http://127.0.0.1:{port}/v1", process, log)
    try:
        _wait(running, f"http://127.0.0.1:{port}/health")
        yield running
    finally:
        running.kill()


def _wait(running: Running, health: str) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if running.process.poll() is not None:
            break
        try:
            if httpx2.get(health, timeout=10).status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        time.sleep(0.5)
    tail = running.log.read_text("utf-8", errors="replace")[-3000:]
    raise RuntimeError(f"vLLM did not start:\n{tail}")
