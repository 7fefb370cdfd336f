"""The `rlhf prompts search` command."""

from pathlib import Path
from typing import Annotated

import typer

from prompts.options import (
    BatchSize,
    CacheFile,
    ComputeType,
    DataFile,
    Fields,
    LibraryFolder,
    Limit,
    NoCache,
    Target,
    cache_file,
    library_of,
    named_fields,
    suite_file,
)
from workbench.errors import UserError
from workbench.logs import console
from workbench.sources import named_sources


def search(
    template: Annotated[
        str, typer.Argument(metavar="NAME", help="template to start from, as the suite names it")
    ],
    budget: Annotated[
        int, typer.Option(min=1, help="answers that may be asked for, held-out ones included")
    ],
    suite: Annotated[
        str | None,
        typer.Option(help="suite whose items judge; default: the first starter suite with NAME"),
    ] = None,
    model: Annotated[str, typer.Option(help="hub id, folder or name=model")] = (
        "base=smollm2-135m-instruct"
    ),
    data: DataFile = None,
    fields: Fields = None,
    target: Target = None,
    limit: Limit = None,
    candidates: Annotated[
        int, typer.Option(min=2, help="how many to try; fewer where the budget does not reach")
    ] = 16,
    instructions: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of instructions to try; default: NAME.instructions beside the template"
        ),
    ] = None,
    bootstrap: Annotated[
        bool,
        typer.Option("--bootstrap", help="try rationales that the model writes itself"),
    ] = False,
    dev_share: Annotated[
        float, typer.Option(help="share of the items to choose on; the gain is of the others")
    ] = 0.5,
    alpha: Annotated[float, typer.Option(help="chance of calling a gain real that is none")] = 0.05,
    seed: Annotated[int, typer.Option(min=0, help="of split and draws")] = 0,
    write: Annotated[
        bool, typer.Option("--write", help="write the best to the library if its gain is real")
    ] = False,
    write_anyway: Annotated[
        bool, typer.Option("--write-anyway", help="write the best whatever its gain")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--as", help="name to write it under; default: NAME itself")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder; default: runs/prompts/search-NAME")
    ] = None,
    batch_size: BatchSize = 32,
    precision: ComputeType = "auto",
    cache: CacheFile = None,
    no_cache: NoCache = False,
    library: LibraryFolder = None,
) -> None:
    """Search for better exemplars and instructions under a budget, and measure the gain held out.

    Example: `rlhf prompts search arithmetic/few_shot --suite arithmetic --budget 400`
    """
    from rich.console import Console

    from prompts.candidates import read_instructions
    from prompts.runner import run_folder
    from prompts.search import search as run_search
    from prompts.search_result import write_template
    from prompts.suite import load_suite

    if name is not None and not (write or write_anyway):
        raise UserError("--as: names what is written; add --write")
    named = named_sources([model], "--model")
    if len(named) != 1:
        raise UserError(f"--model {model}: name one model")
    opened = library_of(library)
    found = run_search(
        load_suite(suite_file(suite, template), opened),
        template,
        next(iter(named.values())),
        out or run_folder("search", template.replace("/", "-").replace("@", "-")),
        cache=cache_file(cache, no_cache),
        budget=budget,
        name=next(iter(named)),
        data=data,
        fields=named_fields(fields or []),
        target=target,
        limit=limit,
        candidates=candidates,
        instructions=None if instructions is None else read_instructions(instructions),
        bootstrap=bootstrap,
        dev_share=dev_share,
        alpha=alpha,
        seed=seed,
        batch_size=batch_size,
        precision=precision,
    )
    screen = Console(highlight=False, markup=False)
    for sentence in found.sentences():
        screen.print(sentence, soft_wrap=True)
    if write_anyway or (write and found.real):
        written = write_template(found, opened, name)
        console.print(f"written: {written.path}", markup=False)
    elif write:
        console.print("not written: the gain is not shown to be real", markup=False)
    console.print(f"trials and held-out results in {found.path}", markup=False)


def add_to(app: typer.Typer) -> None:
    """Add the command to an app."""
    app.command(rich_help_panel="Suites")(search)
