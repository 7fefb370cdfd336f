"""The `rlhf prompts` commands that look at templates: list, show, render, diff, label, schema.

The commands that run a suite are in `suite_command.py`, the search in `search_command.py`, those
that make data in `data_command.py`. None imports much before it runs: `rlhf --help` must answer at
once.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from prompts import data_command, search_command, suite_command
from prompts.options import (
    By,
    Fields,
    LibraryFolder,
    Name,
    Note,
    library_of,
    named_fields,
    suite_file,
)
from workbench.errors import UserError
from workbench.logs import console

if TYPE_CHECKING:
    from prompts.items import Item
    from prompts.library import Library
    from prompts.template import Template

TEMPLATES = "Templates"  # heading in the help
CURRENT = "current"  # the file as it is now, where a recorded version is asked for
HELP = "A library of prompt templates and a regression suite that tells a regression from noise."

app = typer.Typer(no_args_is_help=True, help=HELP)


@app.callback()
def _group() -> None:
    """A library of prompt templates, and a regression suite."""


@app.command("list", rich_help_panel=TEMPLATES)
def list_templates(
    suites: Annotated[bool, typer.Option("--suites", help="list the starter suites")] = False,
    tag: Annotated[str | None, typer.Option(help="only templates with this tag")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="only templates of this strategy, such as few_shot")
    ] = None,
    library: LibraryFolder = None,
) -> None:
    """List the templates of the library, or the suites.

    Example: `rlhf prompts list --tag retrieval`
    """
    from rich.console import Console

    from workbench.runs import new_table, safe_text

    if suites:
        if tag is not None or strategy is not None:
            raise UserError("list: --tag and --strategy are of templates; leave --suites out")
        rows = _suite_rows(library_of(library))
        table = new_table("suite", "templates", "items", "description")
    else:
        opened = library_of(library)
        templates = [opened.get(name) for name in opened.names()]
        _check_known("tag", tag, {each for template in templates for each in template.tags})
        _check_known("strategy", strategy, {template.strategy for template in templates})
        rows = [
            (template.name, template.strategy, template.description)
            for template in templates
            if tag in (None, *template.tags) and strategy in (None, template.strategy)
        ]
        table = new_table("template", "strategy", "description")
    for row in rows:
        table.add_row(*map(safe_text, row))
    Console(highlight=False, markup=False).print(table)


@app.command(rich_help_panel=TEMPLATES)
def show(name: Name, library: LibraryFolder = None) -> None:
    """Show a template as YAML without its defaults, its version, labels and recorded versions.

    Example: `rlhf prompts show arithmetic/few_shot`
    """
    opened = library_of(library)
    entry = opened.entry(name)
    recorded = opened.history.versions(entry.name)
    labels = opened.history.labels(entry.name)
    known = next((old for old in recorded if old.version == entry.version), None)
    state = f"recorded {known.time}" if known else "not recorded; `rlhf prompts label` records it"
    facts = [f"version {entry.version} ({state})"]
    facts += [f"label {label}: {version}" for label, version in sorted(labels.items())]
    for old in recorded:
        facts.append(f"recorded {old.time}: {old.version}{f', {old.note}' if old.note else ''}")
    for move in opened.history.moves(entry.name):
        note = f", {move.note}" if move.note else ""
        before = move.previous or "nothing"
        facts.append(
            f"moved {move.time}: {move.label} from {before} to {move.version} by {move.by}{note}"
        )
    # As comments, so that what is printed is a template file.
    sys.stdout.write("".join(f"# {' '.join(fact.split())}\n" for fact in facts) + entry.text)


@app.command(rich_help_panel=TEMPLATES)
def render(
    name: Name,
    item: Annotated[str | None, typer.Option(help="id of the item; default: the first")] = None,
    data: Annotated[Path | None, typer.Option(help="file of items")] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="suite whose items are used; default: the first that has NAME"),
    ] = None,
    fields: Fields = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="a field of the item; may be repeated"),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="show the text this model would read, and its tokens")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the messages as JSON")] = False,
    library: LibraryFolder = None,
) -> None:
    """Render a template for one item, with its exemplars and passages; no model is needed.

    Example: `rlhf prompts render arithmetic/few_shot --item ar002`
    """
    from prompts.conversations import render_all
    from prompts.display import conversation

    if as_json and model is not None:
        raise UserError("render: give either --json or --model")
    opened = library_of(library)
    template = opened.get(name)
    expressions = named_fields(fields or [])
    chosen = _item(opened, template, item, data, suite, expressions, values or [])
    messages = render_all(template, [chosen]).messages[0]
    if model is not None:
        from prompts.rendering import token_ids
        from workbench.models import load_tokenizer

        tokenizer = load_tokenizer(model)
        ids = token_ids(tokenizer, messages)
        sys.stdout.write(f"{tokenizer.decode(ids)}\n")
        console.print(f"{len(ids)} tokens", markup=False)
    elif as_json:
        sys.stdout.write(json.dumps(messages, ensure_ascii=False, indent=2) + "\n")
    else:
        sys.stdout.write(conversation(messages) + "\n")


@app.command("diff", rich_help_panel=TEMPLATES)
def show_difference(
    a: Annotated[str, typer.Argument(metavar="A", help="template, with @label or @version")],
    b: Annotated[
        str | None,
        typer.Argument(metavar="B", help="the other; default: A's file as it is now"),
    ] = None,
    library: LibraryFolder = None,
) -> None:
    """Show what differs between two versions, their exemplar pools and documents included.

    Without B, a plain NAME is compared from its newest recorded version on.

    Example: `rlhf prompts diff arithmetic/few_shot@production arithmetic/few_shot`
    """
    from prompts.versions import LATEST, diff

    opened = library_of(library)
    plain = a.partition("@")[0]
    first, second = (a, b) if b is not None else (a if "@" in a else f"{a}@{LATEST}", plain)
    found = diff(opened.entry(first), opened.entry(second))
    if found:
        sys.stdout.write(f"{found}\n")
    else:
        console.print(f"{first} and {second} are the same", markup=False)


@app.command(rich_help_panel=TEMPLATES)
def label(
    name: Name,
    version: Annotated[
        str,
        typer.Argument(
            metavar="VERSION",
            help="a recorded version or label, or `current`: the file, which is then recorded",
        ),
    ],
    new: Annotated[
        str, typer.Argument(metavar="LABEL", help="the label to set, such as production")
    ],
    by: By = "",
    note: Note = "",
    library: LibraryFolder = None,
) -> None:
    """Set a label on a version of a template; every move is recorded in the library.

    Example: `rlhf prompts label arithmetic/few_shot current production --by ann`
    """
    opened = library_of(library)
    if not by.strip():
        raise UserError("label: say who moves it, with --by NAME")
    if version == CURRENT:
        template = opened.get(name)
        name, version = template.name, opened.history.record(template, note)
    move = opened.history.move(new, name, version, by, note)
    before = f", was {move.previous}" if move.previous not in (None, move.version) else ""
    console.print(f"{name}: {new} is {move.version}{before}", markup=False)


@app.command(rich_help_panel=TEMPLATES)
def schema(
    kind: Annotated[
        Literal["template", "suite"], typer.Argument(metavar="KIND", help="template or suite")
    ] = "template",
    out: Annotated[Path | None, typer.Option(help="write it here instead of printing")] = None,
) -> None:
    """Print the JSON Schema of template or suite files, by which editors complete and check them.

    Example: `rlhf prompts schema --out template.schema.json`
    """
    from prompts.runner import check_writable
    from prompts.suite import SuiteFile
    from prompts.template import Template
    from workbench.files import write_json

    found = Template.json_schema() if kind == "template" else SuiteFile.json_schema()
    if out is not None:
        check_writable(out)
        write_json(out, found)
        console.print(str(out), markup=False)
    else:
        sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=2) + "\n")


for commands in (suite_command, search_command, data_command):
    commands.add_to(app)


def _suite_rows(library: "Library") -> list[tuple[str, ...]]:
    from prompts.items import load_items
    from prompts.suite import SUITES, load_suite

    rows: list[tuple[str, ...]] = []
    for path in sorted(SUITES.glob("*.yaml")):
        suite = load_suite(path, library)
        settings = suite.settings
        items = len(load_items(suite.data, settings.limit))
        rows.append((suite.name, str(len(suite.entries)), str(items), settings.description))
    return rows


def _check_known(option: str, value: str | None, known: set[str]) -> None:
    from prompts.documents import nearest

    if value is not None and value not in known:
        raise UserError(f"--{option} {value}: no template has it; {nearest(value, known)}")


def _item(
    library: "Library",
    template: "Template",
    name: str | None,
    data: Path | None,
    suite: str | None,
    expressions: dict[str, str],
    values: list[str],
) -> "Item":
    """Return the item to render: from a file, with fields of the command line over it."""
    from prompts.documents import nearest
    from prompts.items import Item, load_items
    from prompts.suite import load_suite

    fields = dict(_field(template, each) for each in values)
    if fields and not expressions and name is None and data is None and suite is None:
        return Item("command line", fields, 1)
    path = data or load_suite(suite_file(suite, template.name), library).data
    items = {item.id: item for item in load_items(path, fields=expressions)}
    if name is not None and name not in items:
        raise UserError(f"{path}: no item '{name}'; {nearest(name, items)}")
    item = items[name] if name is not None else next(iter(items.values()))
    return Item(item.id, item.fields | fields, item.line)


def _field(template: "Template", text: str) -> tuple[str, Any]:
    """Return name and value of `field=value`; the value of a field that is no text is YAML."""
    import yaml

    from prompts.documents import nearest

    name, equals, value = text.partition("=")
    if not equals:
        raise UserError(f"--set '{text}': write field=value")
    if name not in template.variables:
        raise UserError(
            f"--set {text}: {template.name} has no variable '{name}'; "
            f"{nearest(name, template.variables)}"
        )
    if template.variables[name].type == "string":
        return name, value
    try:
        return name, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {text}: the value is not YAML; quote it") from None
