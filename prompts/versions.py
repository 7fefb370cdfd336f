"""Versions of templates: content hashes, and an append-only record of versions and labels."""

import base64
import difflib
import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from prompts.documents import nearest
from prompts.template import Template, load_template
from workbench.errors import UserError
from workbench.files import atomic_folder, damage

LATEST = "latest"
LABEL = re.compile(r"[a-z][a-z0-9_-]{0,39}")
HASH = re.compile(r"[0-9a-f]{4,12}")
MAX_RECORDED = 5_000_000  # bytes of the pool and documents of one version


@dataclass(frozen=True)
class Entry:
    """A version of a template, whole.

    Attributes:
        name: of the template.
        version: its content hash.
        time: when it was recorded, ISO 8601, UTC.
        note: why.
        text: the template as canonical YAML.
        files: content of `pool/<file>` and `documents/<path in the folder>`.
    """

    name: str
    version: str
    time: str
    note: str
    text: str
    files: Mapping[str, bytes]


@dataclass(frozen=True)
class Move:
    """A label that was set on a version.

    Attributes:
        name: of the template.
        label: such as `production`.
        version: where it points from then on.
        previous: where it pointed before; None when it was new.
        time: ISO 8601, UTC.
        by: who moved it.
        note: why.
    """

    name: str
    label: str
    version: str
    previous: str | None
    time: str
    by: str
    note: str


def canonical_yaml(template: Template) -> str:
    """Return a template as YAML text: no comments, no defaults, keys in the order of the schema."""
    return _yaml(template.model_dump(exclude_defaults=True))


def content_hash(template: Template) -> str:
    """Return the version of a template: 12 hex digits of a SHA-256.

    It covers every setting that differs from its default, and the bytes of the exemplar pool and
    of the documents wherever they are; comments and layout of the YAML file do not count.

    Raises:
        UserError: when the pool or a document cannot be read.
    """
    return _hash(template, _files(template))


def snapshot(template: Template, note: str = "") -> Entry:
    """Return a template as the entry that `History.record` would write now."""
    files = _files(template)
    text = canonical_yaml(template)
    return Entry(template.name, _hash(template, files), _now(), note, text, files)


def diff(a: Entry, b: Entry) -> str:
    """Return the unified diff of two versions, of their pools and documents too; "" if equal."""
    before = {"template.yaml": a.text.encode(), **a.files}
    after = {"template.yaml": b.text.encode(), **b.files}
    parts = []
    for path in ["template.yaml", *sorted({*a.files, *b.files})]:
        old, new = before.get(path, b""), after.get(path, b"")
        if old == new:
            continue
        heads = (f"{a.name}@{a.version}/{path}", f"{b.name}@{b.version}/{path}")
        try:
            texts = (old.decode().splitlines(), new.decode().splitlines())
        except UnicodeDecodeError:
            parts.append(f"--- {heads[0]}\n+++ {heads[1]}\nbinary files differ")
            continue
        parts.append("\n".join(difflib.unified_diff(*texts, *heads, lineterm="")))
    return "\n".join(parts)


class History:
    """The record of a library's versions and labels: JSON Lines that are only ever appended to.

    Attributes:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, template: Template, note: str = "") -> str:
        """Append a version, unless it is the newest one already, and return its hash.

        Raises:
            UserError: when pool and documents are too large to be kept, or the file is damaged or
                cannot be written.
        """
        entry = snapshot(template, note)
        size = sum(map(len, entry.files.values()))
        if size > MAX_RECORDED:
            raise UserError(
                f"{template.path}: pool and documents have {size:,} bytes; the history keeps "
                f"versions of up to {MAX_RECORDED:,} bytes whole"
            )

        def lines(content: "_Content") -> list[dict[str, Any]]:
            known = content.entries.get(entry.name, [])
            if known and known[-1].version == entry.version:
                return []
            new = {_sha256(data): data for data in entry.files.values()}
            blobs = [_blob(sha, data) for sha, data in new.items() if sha not in content.blobs]
            hashes = {path: _sha256(data) for path, data in entry.files.items()}
            row = asdict(replace(entry, files={})) | {"files": hashes}
            return [*blobs, {"event": "version", **row}]

        self._append(lines)
        return entry.version

    def move(self, label: str, name: str, version: str, by: str, note: str = "") -> Move:
        """Set a label on a version and record it; nothing is written when it is there already.

        Args:
            label: lower-case word, such as `production`.
            name: of the template.
            version: a recorded version, as for `resolve`.
            by: who moves it.
            note: why.

        Raises:
            UserError: for a label that could be taken for a version, or an unknown version.
        """
        if not LABEL.fullmatch(label) or HASH.fullmatch(label) or label == LATEST:
            raise UserError(
                f"label '{label}': use a lower-case word such as production or candidate, neither "
                f"'{LATEST}' nor one that reads as a version"
            )
        if not by.strip():
            raise UserError(f"label '{label}': say who moves it")
        moved: list[Move] = []

        def lines(content: "_Content") -> list[dict[str, Any]]:
            entry = self._resolve(content, name, version)
            previous = _labels(content, name).get(label)
            moved.append(Move(name, label, entry.version, previous, _now(), by, note))
            same = previous == entry.version
            return [] if same else [{"event": "label", **asdict(moved[0])}]

        self._append(lines)
        return moved[0]

    def versions(self, name: str) -> list[Entry]:
        """Return the recorded versions of a template, oldest first."""
        return list(self._read().entries.get(name, []))

    def labels(self, name: str) -> dict[str, str]:
        """Return the version that each label of a template points to."""
        return _labels(self._read(), name)

    def moves(self, name: str) -> list[Move]:
        """Return how the labels of a template were moved, oldest first."""
        return [move for move in self._read().moves if move.name == name]

    def resolve(self, name: str, reference: str) -> Entry:
        """Return the version that a label, `latest` or (the beginning of) a hash stands for.

        Raises:
            UserError: when there is none or more than one; names what there is.
        """
        return self._resolve(self._read(), name, reference)

    def restore(self, entry: Entry, folder: Path) -> Template:
        """Return a recorded version as a template, its files written below `folder`.

        Raises:
            UserError: when the record does not yield the version it states.
        """
        target = folder / entry.version
        if damage(target) is not None:
            files = {**entry.files, f"library/{entry.name}.yaml": self._moved(entry).encode()}
            with atomic_folder(target) as new:
                for path, data in files.items():
                    (new / path).parent.mkdir(parents=True, exist_ok=True)
                    (new / path).write_bytes(data)
        root = target / "library"
        template = load_template(root / f"{entry.name}.yaml", root)
        if content_hash(template) != entry.version:
            raise self._changed(entry)
        return template

    def _moved(self, entry: Entry) -> str:
        """Return the text of an entry that reads the files beside it."""
        up = "../" * (entry.name.count("/") + 1)
        try:
            tree = yaml.safe_load(entry.text)
            if "exemplars" in tree:
                pool = next(path for path in entry.files if path.startswith("pool/"))
                tree["exemplars"]["pool"] = f"{up}{pool}"
            if "documents" in tree:
                tree["documents"]["folder"] = f"{up}documents"
        except (yaml.YAMLError, StopIteration, TypeError):
            raise self._changed(entry) from None
        return _yaml(tree)

    def _changed(self, entry: Entry) -> UserError:
        return UserError(
            f"{self.path}: version {entry.version} of {entry.name} was changed by hand; restore "
            "the file from version control"
        )

    def _resolve(self, content: "_Content", name: str, reference: str) -> Entry:
        entries = content.entries.get(name, [])
        if not entries:
            raise UserError(
                f"{self.path}: no version of '{name}' is recorded; {nearest(name, content.entries)}"
            )
        labels = _labels(content, name)
        known = {entry.version: entry for entry in entries}
        if reference == LATEST:
            return entries[-1]
        if reference in labels:
            return known[labels[reference]]
        found = [version for version in known if version.startswith(reference)]
        if not HASH.fullmatch(reference) or not found:
            names = [*labels, *known, LATEST]
            raise UserError(
                f"{self.path}: {name} has no label or version '{reference}'; "
                f"{nearest(reference, names)}"
            )
        if len(found) > 1:
            raise UserError(f"{self.path}: '{reference}' begins {', '.join(found)}; write more")
        return known[found[0]]

    def _read(self) -> "_Content":
        try:
            return _Content(self.path, self.path.read_bytes())
        except FileNotFoundError:
            return _Content(self.path, b"")
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror})") from None

    def _append(self, lines: Callable[["_Content"], list[dict[str, Any]]]) -> None:
        """Append what `lines` makes of the present content, while nobody else writes."""
        try:
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.seek(0)
                content = _Content(self.path, file.read())
                text = "".join(
                    json.dumps(line, ensure_ascii=False) + "\n" for line in lines(content)
                )
                file.write(text.encode())
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); copy the library to a folder "
                "of your own"
            ) from None


class _Content:
    """What a history file holds."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.blobs: dict[str, bytes] = {}
        self.entries: dict[str, list[Entry]] = {}
        self.moves: list[Move] = []
        lines = data.split(b"\n")
        for number, line in enumerate(lines, start=1):
            if number == len(lines) and not line:
                continue
            try:
                if number == len(lines):
                    raise ValueError("cut off")
                self._add(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{path}:{number}: damaged record ({error}); restore the file from version "
                    "control"
                ) from None

    def _add(self, row: dict[str, Any]) -> None:
        match row.pop("event"):
            case "file":
                binary = "base64" in row
                data = base64.b64decode(row["base64"]) if binary else row["text"].encode()
                self.blobs[row["sha256"]] = data
            case "version":
                files = {path: self.blobs[sha] for path, sha in row.pop("files").items()}
                entry = Entry(**row, files=files)
                self.entries.setdefault(entry.name, []).append(entry)
            case "label":
                move = Move(**row)
                if move.version not in {e.version for e in self.entries.get(move.name, [])}:
                    raise ValueError(f"label of the unknown version {move.version}")
                self.moves.append(move)
            case other:
                raise ValueError(f"unknown event {other!r}")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as `|` blocks."""


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text.rstrip("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text_node)


def _yaml(tree: dict[str, Any]) -> str:
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def _hash(template: Template, files: Mapping[str, bytes]) -> str:
    tree = template.model_dump(exclude_defaults=True)
    hashes = {path: _sha256(data) for path, data in files.items()}
    if template.exemplars is not None:
        tree["exemplars"]["pool"] = [hashes[path] for path in files if path.startswith("pool/")]
    if template.documents is not None:
        tree["documents"]["folder"] = {
            path: sha for path, sha in hashes.items() if path.startswith("documents/")
        }
    return _sha256(json.dumps(tree, sort_keys=True, ensure_ascii=False).encode())[:12]


def _files(template: Template) -> dict[str, bytes]:
    paths: dict[str, Path] = {}
    if template.pool_path is not None:
        paths[f"pool/{template.pool_path.name}"] = template.pool_path
    if template.documents_path is not None:
        from prompts.retrieval import SUFFIXES  # imports scipy

        folder = template.documents_path
        for path in sorted(folder.rglob("*")):
            inside = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in inside.parts)
            if path.is_file() and path.suffix.lower() in SUFFIXES and not hidden:
                paths[f"documents/{inside.as_posix()}"] = path
    try:
        return {name: path.read_bytes() for name, path in paths.items()}
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _labels(content: _Content, name: str) -> dict[str, str]:
    return {move.label: move.version for move in content.moves if move.name == name}


def _blob(sha: str, data: bytes) -> dict[str, str]:
    try:
        return {"event": "file", "sha256": sha, "text": data.decode()}
    except UnicodeDecodeError:
        return {"event": "file", "sha256": sha, "base64": base64.b64encode(data).decode()}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
