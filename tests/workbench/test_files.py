import hashlib
import json
import os
from pathlib import Path

import pytest

from workbench.files import (
    MANIFEST,
    atomic_folder,
    damage,
    digest,
    sha256,
    sweep,
    write_json,
    write_manifest,
    write_text,
)


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with its text."""
    return {
        str(p.relative_to(folder)): p.read_text("utf-8") for p in folder.rglob("*") if p.is_file()
    }


def names(folder: Path) -> list[str]:
    """What stands in a folder, hidden names too."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A finished folder with a file at the top and one below."""
    folder = tmp_path / "model"
    with atomic_folder(folder) as temporary:
        (temporary / "weights.bin").write_bytes(b"12345678")
        (temporary / "sub").mkdir()
        (temporary / "sub" / "config.json").write_text("{}", "utf-8")
    return folder


def test_sha256_is_the_published_one(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == known


def test_digest_ignores_key_order_and_nothing_else():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    others = [
        digest({"a": 1}),
        digest({"a": 2}),
        digest([1, 2]),
        digest([2, 1]),
        digest("1"),
        digest(1),
    ]
    assert len(set(others)) == len(others)
    assert digest("é") == hashlib.sha256('["é"]'.encode()).hexdigest()[:16]


def test_write_text_writes_utf8_readable_by_others_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    write_text(path, "Zoë\n")
    assert path.read_bytes() == "Zoë\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_write_text_keeps_the_old_content_when_a_step_fails(tmp_path, monkeypatch, step):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert contents(tmp_path) == {"a.txt": "old"}


def test_write_text_keeps_the_old_content_when_the_text_cannot_be_encoded(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud83d")  # a lone surrogate, after the buffer was flushed
    assert contents(tmp_path) == {"a.txt": "old"}


def test_write_json_refuses_nan_and_keeps_the_old_content(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"kl": 1.5, "name": "Zoë"})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"kl": float("nan")})
    assert json.loads(path.read_text("utf-8")) == {"kl": 1.5, "name": "Zoë"}
    assert "Zoë" in path.read_text("utf-8")


def test_atomic_folder_appears_whole_with_its_manifest(whole):
    assert damage(whole) is None
    assert sorted(contents(whole)) == [MANIFEST, "sub/config.json", "weights.bin"]
    recorded = json.loads((whole / MANIFEST).read_text("utf-8"))["files"]
    assert recorded["weights.bin"] == {"size": 8, "sha256": hashlib.sha256(b"12345678").hexdigest()}
    assert names(whole.parent) == ["model"]
    assert whole.stat().st_mode & 0o777 == 0o755


def test_atomic_folder_is_invisible_until_it_is_whole(tmp_path):
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "a").write_text("1", "utf-8")
        assert not (tmp_path / "model").exists()


def test_atomic_folder_replaces_the_old_one_entirely(whole):
    with atomic_folder(whole) as temporary:
        (temporary / "only").write_text("new", "utf-8")
        assert (whole / "weights.bin").is_file()  # the old one serves until the last moment
    assert sorted(contents(whole)) == [MANIFEST, "only"]
    assert names(whole.parent) == ["model"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_atomic_folder_keeps_the_old_one_and_leaves_nothing_behind_on_error(whole, error):
    before = contents(whole)
    with pytest.raises(type(error)), atomic_folder(whole) as temporary:  # noqa: PT012 - the block fails
        (temporary / "half").write_text("written", "utf-8")
        raise error
    assert contents(whole) == before
    assert names(whole.parent) == ["model"]


def test_atomic_folder_leaves_nothing_behind_when_there_was_no_old_one(tmp_path):
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model"):
        raise ZeroDivisionError
    assert names(tmp_path) == []


def test_atomic_folder_keeps_the_old_one_when_the_last_rename_fails(whole, monkeypatch):
    before = contents(whole)
    rename = Path.rename

    def refuse_the_new_one(self: Path, target: Path) -> Path:
        if target == whole and not self.name.endswith(".old"):
            raise OSError(30, "Read-only file system")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new_one)
    with pytest.raises(OSError, match="Read-only"), atomic_folder(whole) as temporary:
        (temporary / "half").write_text("written", "utf-8")
    assert contents(whole) == before
    assert names(whole.parent) == ["model"]


def test_damage_names_a_folder_that_is_not_there(tmp_path):
    assert damage(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'} does not exist"


def test_damage_names_a_missing_manifest(whole):
    (whole / MANIFEST).unlink()
    assert damage(whole) == f"{whole / MANIFEST} is missing"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "{}", '{"files": []}', '{"files": null}',
     '{"files": {"weights.bin": 8}}', '{"files": {"weights.bin": {}}}'],
)  # fmt: skip
def test_damage_names_a_manifest_that_is_none(whole, text):
    (whole / MANIFEST).write_text(text, "utf-8")
    assert damage(whole) == f"{whole / MANIFEST} is damaged"


def test_damage_names_a_manifest_that_is_not_text(whole):
    (whole / MANIFEST).write_bytes(b"\xff\x00\xfe")
    assert damage(whole) == f"{whole / MANIFEST} is damaged"


@pytest.mark.parametrize("name", ["weights.bin", "sub/config.json"])
def test_damage_names_a_missing_file(whole, name):
    (whole / name).unlink()
    assert damage(whole) == f"{whole / name} is missing"


def test_damage_sees_a_file_of_another_length(whole):
    (whole / "weights.bin").write_bytes(b"1234567")
    assert (
        damage(whole)
        == f"{whole / 'weights.bin'} is damaged (its content does not match the manifest)"
    )


def test_damage_sees_one_flipped_bit(whole):
    (whole / "weights.bin").write_bytes(b"12345679")
    assert (
        damage(whole)
        == f"{whole / 'weights.bin'} is damaged (its content does not match the manifest)"
    )


def test_damage_does_not_mind_a_file_that_was_added_later(whole):
    (whole / "notes.txt").write_text("mine", "utf-8")
    assert damage(whole) is None


def test_write_manifest_does_not_list_itself(whole):
    write_manifest(whole)
    assert sorted(json.loads((whole / MANIFEST).read_text("utf-8"))["files"]) == [
        "sub/config.json",
        "weights.bin",
    ]


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    # A process killed in the middle: forked, so that no clean-up of its own can run.
    child = os.fork()
    if child == 0:
        with atomic_folder(tmp_path / "model") as temporary:
            (temporary / "weights").write_text("half", "utf-8")
            os._exit(9)
    os.waitpid(child, 0)
    (tmp_path / ".model.old").mkdir()
    (tmp_path / ".metrics.jsonl.k3_9xyzw").write_text("half", "utf-8")
    for kept in (".gitignore", ".model.backup", "model.old", "metrics.jsonl"):
        (tmp_path / kept).write_text("mine", "utf-8")
    assert len(names(tmp_path)) == 7
    sweep(tmp_path)
    assert names(tmp_path) == [".gitignore", ".model.backup", "metrics.jsonl", "model.old"]


def test_sweeping_a_folder_that_is_not_there_does_nothing(tmp_path):
    sweep(tmp_path / "none")
    assert not (tmp_path / "none").exists()
