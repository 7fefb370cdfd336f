import re

import pytest

from tests.docs import ROOT, code, generator, listed, read, section
from workbench import files, run

generate = generator()
PAGE = read("architecture.md")
ROOMS = section(PAGE, "## The rooms").partition("\n### ")[0]
PACKAGES = ("workbench", "sft", "reward", "ppo", "prompts", "ui")


def modules(package: str) -> set[str]:
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / package).glob("**/*.py")}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_is_named_and_no_other(package):
    text = section(PAGE, f"### `{package}/`")
    assert listed(text) == modules(package), f"run: {generate.COMMAND}"
    # A line says what the module is: a module without a docstring would leave it empty.
    assert all(len(line.split(" | ")[1]) > 10 for line in text.splitlines() if line[:3] == "| `")


def test_files_named_in_the_text_exist():
    named = {
        name for name in code(PAGE) if re.fullmatch(r"(?:[\w.-]+/)+[\w.-]+\.(?:py|yaml)", name)
    }
    assert len(named) > 60
    assert {name for name in named if not (ROOT / name).is_file()} == set()


def test_every_folder_with_code_is_a_room_and_no_other():
    rooms = {name.removesuffix("/") for name in listed(ROOMS)}
    assert {room for room in rooms if not (ROOT / room).is_dir()} == set()
    assert {path.parent.name for path in ROOT.glob("[a-z]*/*.py")} <= rooms


def test_the_run_folder_is_drawn_whole():
    drawing = section(PAGE, "## The run folder")
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "summary.json", "done.json"):
        assert f" {name} " in drawing
    for name in ("samples/", "checkpoints/", "model/", files.MANIFEST, "comparison.json"):
        assert name in drawing
    assert run.RunSettings.root == "runs"


def test_every_stage_is_in_the_drawing():
    drawing = section(PAGE, "## The run folder")
    assert all(f"├── {stage}/" in drawing for stage in generate.launch.STAGES)
