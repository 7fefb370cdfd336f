"""The rules that keep the rooms apart, checked on the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppo.config import PPOStage
from reward.config import RewardStage
from sft.config import SFTStage
from workbench.config import load_config, read_yaml
from workbench.demo import DemoConfig
from workbench.launch import STAGES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("workbench", "sft", "reward", "ppo", "prompts", "ui", "configs")
# The modules that may look a module up by name: the launcher finds stages and the other rooms'
# commands, the loader the votes of `ratings:` sources, the doctor tries whether libraries can be
# imported, `functions` finds the functions that users name.
BY_NAME = {
    "workbench/launch.py",
    "workbench/data/loading.py",
    "workbench/doctor.py",
    "workbench/functions.py",
}
MOST_LINES = 450
CONFIGS = {"sft": SFTStage, "reward": RewardStage, "ppo": PPOStage}


def modules(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).glob("**/*.py"))


def imports(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of every imported module, inside functions and type checks as well.

    A relative import keeps its dots; `from a import b` yields `a`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")


def lookups(source: str) -> list[int]:
    """Return the lines that import a module by a name known only when they run."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in {"import_module", "__import__"}
    ]


def trespasses(package: str, source: str) -> list[tuple[int, str]]:
    """Return the imports that a module of a package must not have."""
    closed = set(PACKAGES) - {package, "workbench"}
    return [
        (line, name)
        for line, name in imports(source)
        if name.startswith(".") or name.partition(".")[0] in closed
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_to_workbench_and_never_across(package):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in modules(package)
        for line, name in trespasses(package, path.read_text(encoding="utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("workbench", "import sft"),
        ("workbench", "def f():\n    from ppo.trainer import PPOTrainer"),
        ("reward", "from sft.data import tokenize"),
        ("ppo", "if TYPE_CHECKING:\n    import reward.stage as stage"),
        ("ppo", "from .kl import FixedKL"),
        ("sft", "import os, ui.app"),
    ],
)
def test_a_trespass_is_found(package, source):
    assert len(trespasses(package, source)) == 1


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("ppo", "from ppo.kl import FixedKL\nfrom workbench.run import StageRun"),
        ("workbench", "import workbench.data, torch, rewards"),
    ],
)
def test_other_imports_are_let_pass(package, source):
    assert trespasses(package, source) == []


def test_only_the_launcher_finds_stages_by_name():
    found = {
        path.relative_to(ROOT).as_posix(): lookups(path.read_text(encoding="utf-8"))
        for path in modules(*PACKAGES)
    }
    assert {name for name, lines in found.items() if lines} == BY_NAME
    launcher = (ROOT / "workbench/launch.py").read_text(encoding="utf-8")
    assert set(STAGES) == {path.parent.name for path in ROOT.glob("*/stage.py")}
    assert all(f'"{stage}"' in launcher for stage in STAGES)


def test_no_module_is_too_long():
    lengths = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules(*PACKAGES)
    }
    assert {name: count for name, count in lengths.items() if count > MOST_LINES} == {}


def test_every_module_says_what_it_is():
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in modules(*PACKAGES)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("**/*.yaml")), ids=lambda path: path.name
)
def test_every_config_loads(path):
    folder = path.parent.name
    if folder == "accelerate":
        from accelerate.commands.config.config_args import load_config_from_file

        # Accelerate refuses keys it does not know.
        assert load_config_from_file(str(path)).num_processes >= 1
        return
    if folder in CONFIGS:
        load_config(CONFIGS[folder], path)
        return
    demo = load_config(DemoConfig, path)
    for stage, cls in CONFIGS.items():
        settings = getattr(demo, stage)
        joined = ["model.name=a", "data.train=b", *(["reward_model=c"] if stage == "ppo" else [])]
        load_config(cls, settings.config, [*settings.overrides, *joined])


def test_configs_are_packaged_where_a_stage_looks_for_them():
    named = {path.relative_to(ROOT / "configs").parts[0] for path in ROOT.glob("configs/*/*.yaml")}
    assert named == {*CONFIGS, "accelerate"}
    for stage in CONFIGS:
        assert (ROOT / "configs" / stage / "demo.yaml").is_file()
        assert read_yaml(ROOT / "configs" / stage / "default.yaml")


def test_tests_mirror_the_tree():
    orphans = []
    for package in ("workbench", "sft", "reward", "ppo"):
        for test in sorted((ROOT / "tests" / package).glob("**/test_*.py")):
            name = test.relative_to(ROOT / "tests").parent / test.name.removeprefix("test_")
            if not (ROOT / name).is_file() and not (ROOT / name).with_suffix("").is_dir():
                orphans.append(test.relative_to(ROOT).as_posix())
    assert orphans == []


def test_nothing_names_the_machine_it_was_written_on():
    place = "/" + "work/"
    texts = [*modules(*PACKAGES, "tests", "benchmarks", "docs"), *ROOT.glob("configs/**/*.yaml")]
    texts += [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
    ]
    named = [path.name for path in texts if place in path.read_text(encoding="utf-8")]
    assert named == []
