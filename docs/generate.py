"""Renews the generated parts of the pages in this folder: `python docs/generate.py`.

A part stands between `<!-- generated: KIND ARGUMENT -->` and `<!-- end -->`; a test fails when one
is stale. The kinds are the keys of `PARTS`. The commands of a page run in a folder that holds the
example files it shows: fenced blocks under a line with only a name in backticks and a colon.
"""

import ast
import contextlib
import dataclasses
import importlib
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import typer

from ppo import trl_fields as trl
from prompts.suite import SuiteFile
from prompts.template import Template
from workbench import cli, launch
from workbench.config import Setting, settings
from workbench.data import load
from workbench.demo import DemoConfig
from workbench.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
COMMAND = "python docs/generate.py"

PART = re.compile(r"(<!-- generated: (\w+)(?: ([^\n]+?))? -->\n).*?(<!-- end -->)", re.DOTALL)
EXAMPLE = re.compile(
    r"^`([\w.-]+\.(?:yaml|jsonl|csv))`:\n\n```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE
)
SENTENCE_END = re.compile(r"(?<=\.)\s+(?=[A-Z])")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

Files = Mapping[str, str]


def render(page: str) -> str:
    """Return a page with all its generated parts as they should be now."""
    files = dict(EXAMPLE.findall(page))

    def renewed(match: re.Match[str]) -> str:
        opening, kind, argument, closing = match.groups()
        return f"{opening}\n{PARTS[kind](argument or '', files)}\n\n{closing}"

    return PART.sub(renewed, page)


def stage_settings(name: str, _files: Files) -> str:
    """Return the settings of `sft`, `reward`, `ppo` or `demo`, one table for each section."""
    cls = config_class(name)
    help_of = {field.name: field.metadata["help"] for field in dataclasses.fields(cls)}
    sections: dict[str, list[Setting]] = {}
    for setting in settings(cls):
        section, dot, _ = setting.key.partition(".")
        sections.setdefault(section if dot else "", []).append(setting)
    tables = []
    for section, rows in sections.items():
        title = f"**`{section}`**: {help_of[section]}\n\n" if section else ""
        tables.append(title + table("key type default help", map(_cells, rows)))
    return "\n\n".join(tables)


def config_class(name: str) -> type[Any]:
    """Return the config dataclass of a stage, or of the demo."""
    if name == "demo":
        return DemoConfig
    found: type[Any] = getattr(importlib.import_module(f"{name}.config"), launch.STAGES[name])
    return found


def help_text(command: str, files: Files) -> str:
    """Return what `rlhf COMMAND --help` prints on 80 columns."""
    return fenced("text", run_command([*shlex.split(command), "--help"], files)[1].strip("\n"))


def output(command: str, files: Files) -> str:
    """Return a command of `rlhf` and what it prints: its result, or its error."""
    _, out, err = run_command(shlex.split(command), files)
    return fenced("console", f"$ rlhf {command}\n{out or err}".rstrip("\n"))


def modules(package: str, _files: Files) -> str:
    """Return the modules of a package and the first sentence of their docstrings."""
    rows = []
    for path in sorted((ROOT / package).glob("**/*.py")):
        documentation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        paragraph = " ".join(documentation.partition("\n\n")[0].split())
        name = path.relative_to(ROOT).as_posix()
        rows.append((f"`{name}`", escaped(SENTENCE_END.split(paragraph)[0])))
    return table("module what it is", rows)


def file_keys(kind: str, _files: Files) -> str:
    """Return the keys of `template` or `suite` files, one table for each section of the file."""
    model: Any = {"template": Template, "suite": SuiteFile}[kind]
    schema = model.json_schema()
    sections = {"": schema} | schema["$defs"]
    tables = []
    for name, section in sections.items():
        rows = [
            (
                f"`{key}`",
                escaped(_key_type(value)),
                _key_default(value, key in section.get("required", ())),
                escaped(value.get("description", "")),
            )
            for key, value in section["properties"].items()
        ]
        said = escaped(section.get("description", ""))
        title = f"**{_section_name(name)}**: {said}\n\n" if name else ""
        tables.append(title + table("key type default meaning", rows))
    return "\n\n".join(tables)


def _section_name(name: str) -> str:
    """Return the class of a section of a file in words: `RegexExtractor` as `regex extractor`."""
    return " ".join(re.findall("[A-Z][a-z]+", name)).lower()


def _key_type(value: Mapping[str, Any]) -> str:
    """Return the type of a key in a JSON Schema, in words."""
    if "$ref" in value:
        return _section_name(str(value["$ref"].rpartition("/")[2]))
    if "enum" in value:
        return ", ".join(value["enum"])
    if "const" in value:
        return str(value["const"])
    if "anyOf" in value or "oneOf" in value:
        options = [_key_type(each) for each in value.get("anyOf") or value["oneOf"]]
        # Of several extractors, each of which has a section of its own, the last word will do.
        named = [option.rpartition(" extractor")[1].strip() or option for option in options]
        return " or ".join(dict.fromkeys(option for option in named if option != "null"))
    if value.get("type") == "array":
        return f"list of {_key_type(value['items'])}"
    if value.get("type") == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"mapping to {_key_type(value['additionalProperties'])}"
    return str(value.get("type", "any"))


def _key_default(value: Mapping[str, Any], required: bool) -> str:
    if required:
        return "required"
    default = value.get("default")
    if default is None or default in ("", [], {}):
        return "none"
    if isinstance(default, dict) or (isinstance(default, list) and isinstance(default[0], dict)):
        return "see below"
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def demo_data(_argument: str, _files: Files) -> str:
    """Return how many prompts and demonstrations of each category the demo has."""
    counts = {
        name: Counter(str(row["category"]) for row in rows)
        for name, rows in (
            ("train", load("demo:prompts", ("prompt_only",), split="train").rows),
            ("dev", load("demo:prompts", ("prompt_only",), split="dev").rows),
            ("test", load("demo:prompts", ("prompt_only",), split="test").rows),
            ("demonstrations", load("demo:demonstrations", ("prompt_completion",)).rows),
        )
    }
    rows = [
        (f"`{category}`", *(str(count[category]) for count in counts.values()))
        for category in counts["train"]
    ]
    rows.append(("all", *(f"{count.total()}" for count in counts.values())))
    heading = "category | train | dev | test | demonstrations"
    return table(heading, rows, separator=" | ")


def trl_fields(group: str, _files: Files) -> str:
    """Return the fields of TRL's `PPOConfig` that are `honoured`, `refused` or `without_effect`."""
    fields: dict[str, str] = getattr(trl, group.upper())
    title = {"refused": "instead", "honoured": "here", "without_effect": "why"}[group]
    return table(f"field {title}", [(f"`{name}`", said) for name, said in fields.items()])


def trl_values(_argument: str, _files: Files) -> str:
    """Return the values of honoured fields that are refused."""
    rows = [
        (f"`{name}`", ", ".join(f"`{value}`" for value in values), instead)
        for name, (values, instead) in trl.REFUSED_VALUES.items()
    ]
    rows += [
        (f"`{name}`", "all but " + ", ".join(f"`{value}`" for value in values), instead)
        for name, (values, instead) in trl.ALLOWED_VALUES.items()
    ]
    return table("field refused instead", rows)


PARTS: dict[str, Callable[[str, Files], str]] = {
    "settings": stage_settings,
    "help": help_text,
    "output": output,
    "modules": modules,
    "demo_data": demo_data,
    "file_keys": file_keys,
    "trl_fields": trl_fields,
    "trl_values": trl_values,
}


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the words of every command of `rlhf`, the root's none, and its click command."""
    pending: list[tuple[str, Any]] = [("", typer.main.get_command(cli.app))]
    while pending:
        words, command = pending.pop(0)
        yield words, command
        below = getattr(command, "commands", {})
        pending[:0] = [(f"{words} {name}".strip(), inner) for name, inner in below.items()]


def run_command(arguments: list[str], files: Files) -> tuple[int, str, str]:
    """Run `rlhf` in this process, in a folder with `files`; returns exit code, output, errors."""
    out, err = io.StringIO(), io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.dict(os.environ, {"COLUMNS": "80", "TERM": "dumb", "NO_COLOR": "1"}),
        patch.object(sys, "argv", ["rlhf", *arguments]),
        # An example that is no longer a mistake must not train a model.
        patch.object(launch, "run_stage", _no_training),
    ):
        for name, text in files.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        with (
            contextlib.chdir(folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = cli.guarded(lambda: cli.app(arguments, prog_name="rlhf", standalone_mode=False))
    return code, plain(out.getvalue()), plain(err.getvalue())


def _no_training(stage: str, config: Any) -> Path:
    raise UserError(f"{DOCS}: an example would start {stage} in {config.run.name}; mend the page")


def plain(text: str) -> str:
    """Return a terminal's text without colours and without spaces at line ends."""
    return "".join(f"{line.rstrip()}\n" for line in COLOUR.sub("", text).splitlines())


def fenced(language: str, text: str) -> str:
    """Return a text as a fenced block."""
    return f"```{language}\n{text}\n```"


def table(heading: str, rows: Any, separator: str = " ") -> str:
    """Return a Markdown table; `heading` holds its titles, the last of which may have spaces."""
    cells = [tuple(row) for row in rows]
    titles = heading.split(separator, len(cells[0]) - 1)
    lines = [titles, ["---"] * len(titles), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Return a text for a table cell, where a bar or an angle bracket would be read as markup."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


def _cells(setting: Setting) -> tuple[str, str, str, str]:
    default = setting.default if isinstance(setting.default, str) else json.dumps(setting.default)
    return (
        f"`{setting.key}`",
        setting.type,
        f"`{default}`" if default else "(empty)",
        escaped(setting.help),
    )


def main() -> None:
    """Write every page anew whose generated parts are stale, and name it."""
    for path in sorted(DOCS.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{path.relative_to(ROOT)}: renewed\n")


if __name__ == "__main__":
    main()
