import ast
import re
import shlex

import pytest
import typer

from tests.docs import CODE, PAGES, ROOT, blocks, code, generator, prose, read, section
from workbench import cli
from workbench.config import load_config, settings

generate = generator()
PAGE = read("cli.md")
COMMANDS = dict(generate.commands())
LAUNCHED = re.compile(r"^(?:accelerate launch|python) -m (sft|reward|ppo)\b")
STAGES = ("sft", "reward", "ppo", "demo")


def heading(words: str) -> str:
    return f"{'##' if ' ' not in words else '###'} rlhf {words}".rstrip()


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_and_option_is_documented(words):
    (help_text, *_) = blocks(section(PAGE, heading(words)), "text")
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "option":
            assert all(option in help_text.split() for option in parameter.opts)
            assert parameter.help
        else:
            assert (parameter.metavar or parameter.name) in help_text
    assert max(map(len, help_text.splitlines())) <= 80
    if not getattr(COMMANDS[words], "commands", None):
        assert f" Example: rlhf {words}" in help_text


def test_no_command_is_documented_that_is_not_there():
    found = re.findall(r"^##+ rlhf ?(.*)$", prose(PAGE), re.MULTILINE)
    assert sorted(found) == sorted(COMMANDS)
    table = re.findall(r"^\| \[`rlhf (\w+)`\]", PAGE, re.MULTILINE)
    assert set(table) == {words.split()[0] for words in COMMANDS if words}


def test_exit_codes():
    rows = re.findall(r"^\| (\d+) \|", section(PAGE, "## Exit codes"), re.MULTILINE)
    assert rows == ["0", "1", "2", str(cli.INTERRUPTED)]
    assert generate.run_command(["--version"], {})[0] == 0
    assert generate.run_command([], {})[0] == 2
    assert generate.run_command(["runs", "show", "nothing"], {})[0] == 2


def environment_variables() -> set[str]:
    """Names of variables that the code reads or sets through `os.environ`."""
    found = set()
    for package in ("workbench", "sft", "reward", "ppo", "prompts"):
        for path in (ROOT / package).glob("**/*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                    owner, keys = node.func.value, node.args[:1]
                elif isinstance(node, ast.Subscript):
                    owner, keys = node.value, [node.slice]
                else:
                    continue
                if ast.unparse(owner) == "os.environ" or ast.unparse(node).startswith("os.getenv("):
                    found |= {key.value for key in keys if isinstance(key, ast.Constant)}
    return found


def test_every_environment_variable_is_documented():
    variables = environment_variables()
    assert {"RLHF_CACHE", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "RANK"} <= variables
    text = section(PAGE, "## Environment variables")
    assert variables <= {name.partition("=")[0] for name in code(text)}
    assert {"HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"} <= code(text)


def examples() -> list[tuple[str, str]]:
    """Every `rlhf …` command in the pages' shell blocks and running text, as (page, command).

    The commands of `console` blocks have run already: the generator made those blocks.
    """
    found = set()
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        lines = [*CODE.findall(prose(text))]
        for language in ("bash", "sh", "shell"):
            for block in blocks(text, language):
                lines += block.replace("\\\n", " ").splitlines()
        for line in lines:
            command = LAUNCHED.sub(r"rlhf \1", line.strip())
            if command.startswith("rlhf ") and "…" not in command and "COMMAND" not in command:
                found.add((path.name, command))
    return sorted(found)


@pytest.mark.parametrize(("page", "line"), examples(), ids=lambda value: value[:60])
def test_commands_in_pages_are_accepted(page, line):
    check_command(shlex.split(line, comments=True)[1:])


def check_command(words: list[str]) -> None:
    """Parse a command line as `rlhf` does, and read the config it names, without running it."""
    command, arguments = COMMANDS[""], list(words)
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command = command.commands[arguments.pop(0)]
    group = getattr(command, "commands", None) and not command.invoke_without_command
    if group or not arguments:
        assert not set(arguments) - {"--help", "--version", "-h"}, f"no such command: {words}"
        return
    if "--help" in arguments:
        return
    values = command.make_context("rlhf", arguments).params
    if command.name not in STAGES or any("=" not in text for text in values["overrides"] or []):
        return
    cls = generate.config_class(command.name)
    keys = [text.partition("=")[0] for text in values["overrides"] or []]
    assert set(keys) <= {setting.key for setting in settings(cls)}
    if (values["config"] or "").startswith("configs/"):
        extra = ["reward_model=x"] if command.name == "ppo" and "reward_model" not in keys else []
        load_config(cls, values["config"], [*(values["overrides"] or []), *extra])


@pytest.mark.parametrize(
    "line",
    [
        "sft --nope",
        "nope",
        "sft sft.lr=1",
        "generate --seed 1",
        "runs nope",
        "compare a b --limit x",
    ],
)
def test_a_wrong_command_in_a_page_would_be_found(line):
    with pytest.raises((AssertionError, typer.TyperException)):
        check_command(line.split())


def test_make_targets_in_pages_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
        for line in [*lines, *CODE.findall(prose(text))]:
            named = re.match(r"make ([a-z][\w-]*)", line)
            assert named is None or named[1] in targets, f"{path.name}: {line}"
