"""Files that are whole or absent: atomic writes, content hashes, manifests of finished folders."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP}  # a folder, on some network file systems
# What `write_text` and `atomic_folder` write into until it is whole, and what they move aside.
TEMPORARY = re.compile(r"\..+\.(old|[a-z0-9_]{8})")


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(*parts: Any) -> str:
    """Return a short stable hash of JSON-able values, for cache keys and fingerprints."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_text(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old content or the new, not half."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `write_text` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; NaN is refused since JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that takes its place, with a manifest, if all goes well.

    A folder already at `path` is replaced only then; on any error the temporary folder is removed.
    Files and names are synced before and after the renaming: not even a power cut leaves half.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary.chmod(0o755)
    try:
        yield temporary
        write_manifest(temporary)
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_folder(new: Path, path: Path) -> None:
    """Put the finished folder `new` at `path`; an old one is moved aside first and then removed."""
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    try:
        new.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that nobody else writes to."""
    for path in folder.glob(".*"):
        if TEMPORARY.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def write_manifest(folder: Path) -> None:
    """Record size and hash of every file below `folder` in its manifest; sync all of it."""
    inside = sorted(path for path in folder.rglob("*") if path.name != MANIFEST)
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "sha256": sha256(path)}
        for path in inside
        if path.is_file()
    }
    for path in inside:
        if path.is_file() or path.is_dir():
            sync(path)
    write_json(folder / MANIFEST, {"files": files})


def damage(folder: Path) -> str | None:
    """Return in words what is wrong with a folder of `atomic_folder`, or None when it is whole."""
    manifest = folder / MANIFEST
    if not folder.is_dir():
        return f"{folder} does not exist"
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["files"].items()
        files = [(folder / name, entry["size"], entry["sha256"]) for name, entry in entries]
    except FileNotFoundError:
        return f"{manifest} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{manifest} is damaged"
    for path, size, known in files:
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size or sha256(path) != known:
            return f"{path} is damaged (its content does not match the manifest)"
    return None
