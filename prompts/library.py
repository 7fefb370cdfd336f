"""The template library: a folder of YAML files, each found by its path below the folder."""

from pathlib import Path

from prompts.documents import nearest
from prompts.template import Template, load_template
from prompts.versions import Entry, History, content_hash, snapshot
from workbench.embedded import cache_home
from workbench.errors import UserError

LIBRARY = Path(__file__).parent / "library"


class Library:
    """The templates below a folder.

    Attributes:
        root: the folder; `root/task/variant.yaml` is the template `task/variant`.
        history: versions and labels of the templates, in `root/history.jsonl`.
    """

    def __init__(self, root: Path = LIBRARY) -> None:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; a library is a folder of .yaml templates")
        self.root = root
        self.history = History(root / "history.jsonl")

    def names(self) -> list[str]:
        """Return the names of all templates, sorted; the files are not read.

        Raises:
            UserError: for a `.yml` file, which would not be found by its name.
        """
        for path in self.root.rglob("*.yml"):
            raise UserError(f"{path}: template files end with .yaml; rename it")
        return sorted(
            path.relative_to(self.root).with_suffix("").as_posix()
            for path in self.root.rglob("*.yaml")
        )

    def get(self, name: str) -> Template:
        """Return a template.

        Args:
            name: `task/variant`, or `task/variant@reference` with a label, a version or `latest`
                (the newest that is recorded), or the path of a `.yaml` file anywhere.

        Raises:
            UserError: when there is none, with the nearest names; or when its file is wrong.
        """
        path = Path(name)
        if path.suffix == ".yaml":
            if not path.is_file():
                raise UserError(f"{path}: no such template file; check the path")
            inside = path.resolve().is_relative_to(self.root.resolve())
            return load_template(path, self.root if inside else None)
        name, at, reference = name.partition("@")
        known = self.names()
        if at:
            return self._version(name, reference, known)
        if name not in known:
            raise UserError(f"{self.root}: no template '{name}'; {nearest(name, known)}")
        return load_template(self.root / f"{name}.yaml", self.root)

    def entry(self, name: str) -> Entry:
        """Return a version whole: `task/variant@reference` as recorded, else as the file is now."""
        name, at, reference = name.partition("@")
        return self.history.resolve(name, reference) if at else snapshot(self.get(name))

    def _version(self, name: str, reference: str, known: list[str]) -> Template:
        entry = self.history.resolve(name, reference)
        if name in known:
            current = load_template(self.root / f"{name}.yaml", self.root)
            if content_hash(current) == entry.version:
                return current
        return self.history.restore(entry, cache_home() / "templates")
