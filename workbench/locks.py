"""Locks on run folders: who writes there says so, until it ends, however it ends."""

import fcntl
import os
import time
import weakref
from pathlib import Path

from workbench.errors import UserError

# The locks of this process by file; a run that is opened again here goes on under the same one.
_held: "weakref.WeakValueDictionary[Path, Lock]" = weakref.WeakValueDictionary()
_PATIENCE = 1.0  # seconds; `rlhf runs list` holds a lock for a moment when it looks


class Lock:
    """The right to write a folder of a run, kept until `release`, the object's or process's end.

    The lock is the kernel's (`flock`) on a file beside the folder, so that a killed process leaves
    none behind. The file holds the process id, for messages.
    """

    def __init__(self, file: Path, descriptor: int) -> None:
        self._end = weakref.finalize(self, _release, file, descriptor, os.getpid())

    @property
    def held(self) -> bool:
        """Whether it has not been released yet."""
        return self._end.alive

    def release(self) -> None:
        """Give the folder up, and remove the file."""
        self._end()


def lock(folder: Path) -> Lock:
    """Take the right to write a folder, which need not be there yet.

    A file system without locks, as some clusters have, gives the right to everybody.

    Raises:
        UserError: when another process has it.
    """
    file = _file(folder)
    known = _held.get(file)
    if known is not None and known.held:
        return known
    file.parent.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + _PATIENCE
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        taken = _taken(descriptor, fcntl.LOCK_EX)
        # Between opening and locking, whoever had it may have removed the file.
        if taken and _same(file, descriptor):
            break
        os.close(descriptor)
        if not taken and time.monotonic() > give_up:
            raise UserError(
                f"{folder}: is being written by {_process(file)}; wait until it ends, stop it, or "
                "choose another run.name"
            )
        time.sleep(0.02)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    _held[file] = held = Lock(file, descriptor)
    return held


def writer(folder: Path) -> str | None:
    """Return who is writing a folder, in words, or None where nobody is; changes nothing."""
    file = _file(folder)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return None if _taken(descriptor, fcntl.LOCK_SH) else _process(file)
    finally:
        os.close(descriptor)


def _file(folder: Path) -> Path:
    # Beside the folder, which is emptied and removed at times.
    return folder.absolute().parent / f".{folder.name}.lock"


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return True
    return True


def _same(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _process(file: Path) -> str:
    try:
        number = file.read_text(encoding="utf-8").strip()
    except OSError:
        number = ""
    return f"process {number}" if number.isdecimal() else "another process"


def _release(file: Path, descriptor: int, owner: int) -> None:
    if os.getpid() != owner:  # a forked child must not take the lock from its parent
        return
    if _same(file, descriptor):
        file.unlink()
    os.close(descriptor)
