"""Options that several `rlhf prompts` commands share, and what they mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.errors import UserError
from workbench.models import Precision

if TYPE_CHECKING:
    from prompts.library import Library

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="template, NAME@label, NAME@version or .yaml file")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a `rlhf prompts run`")]
LibraryFolder = Annotated[
    Path | None, typer.Option("--library", help="folder of templates; default: the starter library")
]
BaselineFolder = Annotated[Path, typer.Option("--baselines", help="folder of blessed results")]
By = Annotated[str, typer.Option("--by", envvar="USER", help="who you are, for the record")]
Note = Annotated[str, typer.Option("--note", help="why, for the record")]
Fields = Annotated[
    list[str] | None,
    typer.Option(
        "--field",
        metavar="NAME=EXPRESSION",
        help="new field of the items, a Jinja expression over their columns such as "
        "question=prompt[0].content; may be repeated",
    ),
]
DataFile = Annotated[
    Path | None, typer.Option("--data", help="file of items, in place of the suite's")
]
Target = Annotated[
    str | None,
    typer.Option("--target", help="field of the right answer, in place of the suite's"),
]
Limit = Annotated[int | None, typer.Option(min=1, help="use only the first so many items")]
BatchSize = Annotated[int, typer.Option(min=1, help="prompts decoded together")]
CacheFile = Annotated[
    Path | None, typer.Option("--cache", help="file of known answers; default: one for all runs")
]
NoCache = Annotated[bool, typer.Option("--no-cache", help="generate every answer anew")]
ComputeType = Annotated[Precision, typer.Option("--precision", help="compute type of the models")]


def library_of(folder: Path | None) -> "Library":
    """Return the library of a folder, or the starter library."""
    from prompts.library import LIBRARY, Library

    return Library(LIBRARY if folder is None else folder)


def cache_file(path: Path | None, no_cache: bool) -> Path | None:
    """Return the file of known answers; None where none is wanted."""
    from workbench.embedded import cache_home

    if no_cache and path is not None:
        raise UserError("give either --cache FILE or --no-cache")
    return None if no_cache else path or cache_home() / "answers.sqlite"


def suite_file(name: str | None, template: str) -> Path:
    """Return the file of a suite, or of the first starter suite that lists a template.

    Args:
        name: of the suite, or its path; None looks for one.
        template: name of the template.

    Raises:
        UserError: when there is none.
    """
    from prompts.documents import read_yaml
    from prompts.suite import SUITES, find_suite

    if name is not None:
        return find_suite(name)
    for path in sorted(SUITES.glob("*.yaml")):
        if template in read_yaml(path).tree["templates"]:
            return path
    raise UserError(f"{template}: no starter suite lists it; name a suite with --suite")


def named_fields(texts: list[str]) -> dict[str, str]:
    """Return the expressions of new fields by name.

    Args:
        texts: `name=expression` each.

    Raises:
        UserError: for a text without a name or expression, or a name given twice.
    """
    named: dict[str, str] = {}
    for text in texts:
        name, _, expression = text.partition("=")
        if not name.strip() or not expression.strip():
            raise UserError(f"--field '{text}': write name=expression")
        if name.strip() in named:
            raise UserError(f"--field '{text}': '{name.strip()}' is given twice; keep one")
        named[name.strip()] = expression.strip()
    return named
