"""The rating server as a process of its own, for the measurements that talk to it over HTTP."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from workbench.errors import UserError

PASSWORD = "correct horse battery"
_START = "from workbench.cli import main; main()"
_PATIENCE = 300.0  # seconds; a busy machine takes long to import the libraries


class Server:
    """`rlhf ui` on this machine; it can be killed and started again on the same port."""

    def __init__(self, url: str, log: Path, *options: str) -> None:
        """Choose a free port.

        Args:
            url: of the database.
            log: takes what the server prints.
            options: more of the command.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self.starts = 0
        self._words = ["ui", "--db", url, "--port", str(port), *options]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            UserError: when it ends instead.
        """
        root = str(Path(__file__).resolve().parents[1])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, *self._words],
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": root},
            )  # fmt: skip
        self.starts += 1
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                httpx.get(f"{self.address}/login", timeout=10)
            except httpx.TransportError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    said = self._log.read_text(encoding="utf-8").strip().splitlines()
                    raise UserError(f"the server did not start: {said[-1:]}") from None
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """Kill the server without a warning, as the system does when memory runs out."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Ask the server to end, and wait until it has."""
        self._end(signal.SIGTERM)

    def seconds(self) -> float:
        """Return the processor time that the running server has taken."""
        assert self._process is not None
        import psutil

        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


def log_in(http: httpx.Client, name: str) -> None:
    """Log in with the password that all accounts of a measurement have.

    Raises:
        UserError: when that is refused.
    """
    reply = http.post("/login", data={"name": name, "password": PASSWORD})
    if reply.status_code != httpx.codes.SEE_OTHER:
        raise UserError(f"{name}: cannot log in ({reply.status_code})")


def machine() -> dict[str, Any]:
    """Return what a figure has to be read with: processors, load, versions."""
    models = [
        line.partition(":")[2].strip()
        for line in _lines(Path("/proc/cpuinfo"))
        if line.startswith("model name")
    ]
    names = ("gradio", "fastapi", "uvicorn", "sqlalchemy", "numpy", "matplotlib")
    import sqlite3

    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "nice": os.nice(0),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: version(name) for name in names},
    }


def keep(out: Path, name: str, measured: dict[str, Any]) -> None:
    """Print what was measured, and write it as JSON into a folder."""
    text = json.dumps(measured, indent=2)
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return the 50th, 95th and 99th percentile and the worst, in milliseconds."""
    import numpy as np

    found = np.percentile(np.asarray(seconds), [50, 95, 99, 100]) * 1000
    return dict(
        zip(("p50_ms", "p95_ms", "p99_ms", "worst_ms"), found.round(1).tolist(), strict=True)
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []
