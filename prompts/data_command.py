"""The `rlhf prompts` commands that let a model write training data: annotate, paraphrase."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from prompts.options import (
    BatchSize,
    CacheFile,
    ComputeType,
    LibraryFolder,
    Limit,
    NoCache,
    cache_file,
    library_of,
)
from workbench.errors import UserError
from workbench.logs import console
from workbench.models import Precision
from workbench.sources import named_sources

if TYPE_CHECKING:
    from prompts.annotate import Annotation
    from prompts.served_model import Model as AnyModel

DataFile = Annotated[
    Path, typer.Argument(metavar="DATA", help="rows: .jsonl, .json, .csv or .parquet")
]
Model = Annotated[str, typer.Option("--model", help="hub id, folder or name=model")]
OutFile = Annotated[Path, typer.Option("--out", help="JSONL file to write")]
Column = Annotated[str, typer.Option(help="column of the text")]


def annotate(
    data: DataFile,
    model: Model,
    out: OutFile,
    labels: Annotated[
        list[str] | None,
        typer.Option(help="labels, joined by commas; without them preferences are asked for"),
    ] = None,
    column: Column = "text",
    question: Annotated[
        str | None, typer.Option(help="what the labels are about, in one sentence")
    ] = None,
    min_confidence: Annotated[
        float, typer.Option(help="leave out labels the model is less sure of, 0 to 1")
    ] = 0.0,
    on_disagreement: Annotated[
        Literal["drop", "tie", "average"],
        typer.Option(help="pairs on which the two orders disagree: left out, ties, or the mean"),
    ] = "drop",
    template: Annotated[
        str | None, typer.Option(help="default: annotate/label or annotate/preference")
    ] = None,
    limit: Limit = None,
    batch_size: BatchSize = 32,
    precision: ComputeType = "auto",
    cache: CacheFile = None,
    no_cache: NoCache = False,
    library: LibraryFolder = None,
) -> None:
    """Let a model label texts, or say which of several answers is better, as training rows.

    With --labels, DATA has texts. Without, it has `prompt` and `completions`; each two answers are
    shown in both orders, so that a favourite place cancels out.

    Example: `rlhf prompts annotate answers.jsonl --model smollm2-135m-instruct --out pairs.jsonl`
    """
    from prompts.annotate import label
    from prompts.items import load_items
    from prompts.preferences import prefer

    if labels is None and (question is not None or min_confidence > 0):
        raise UserError("annotate: --question and --min-confidence are for labels; add --labels")
    items = load_items(data, limit)
    _check_out(data, out)
    chosen = library_of(library).get(
        template or ("annotate/preference" if labels is None else "annotate/label")
    )
    with _annotator(model, cache_file(cache, no_cache), batch_size, precision) as annotator:
        if labels is None:
            found: Annotation = prefer(annotator, chosen, items, data, disagreement=on_disagreement)
        else:
            found = label(
                annotator,
                chosen,
                items,
                data,
                labels=[part.strip() for each in labels for part in each.split(",")],
                field=column,
                question=question,
                min_confidence=min_confidence,
            )
    _write(found, out)


def paraphrase(
    data: DataFile,
    model: Model,
    out: OutFile,
    column: Column = "text",
    copies: Annotated[int, typer.Option(help="paraphrases of each text")] = 1,
    min_similarity: Annotated[
        float, typer.Option(help="least cosine of the embeddings of a text and its paraphrase")
    ] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="of the sampling")] = 0,
    template: Annotated[
        str, typer.Option(help="template that rewrites a text")
    ] = "annotate/paraphrase",
    limit: Limit = None,
    batch_size: BatchSize = 32,
    precision: ComputeType = "auto",
    cache: CacheFile = None,
    no_cache: NoCache = False,
    library: LibraryFolder = None,
) -> None:
    """Let a model write texts in other words, and keep what says the same differently.

    Example: `rlhf prompts paraphrase texts.jsonl --model smollm2-135m-instruct --out more.jsonl`
    """
    from prompts.annotate import paraphrase as rewrite
    from prompts.items import load_items

    items = load_items(data, limit)
    _check_out(data, out)
    chosen = library_of(library).get(template)
    with _annotator(model, cache_file(cache, no_cache), batch_size, precision) as annotator:
        found = rewrite(
            annotator,
            chosen,
            items,
            data,
            field=column,
            copies=copies,
            min_similarity=min_similarity,
            seed=seed,
        )
    _write(found, out)


def add_to(app: typer.Typer) -> None:
    """Add these commands to an app."""
    for command in (annotate, paraphrase):
        app.command(rich_help_panel="Data")(command)


@contextmanager
def _annotator(
    model: str, path: Path | None, batch_size: int, precision: Precision
) -> "Iterator[AnyModel]":
    """Yield the model, whose answers are stored as they come."""
    from prompts.cache import Cache
    from prompts.served_model import open_model

    named = named_sources([model], "--model")
    if len(named) != 1:
        raise UserError(f"--model {model}: name one model")
    known = Cache(path)
    try:
        name, source = next(iter(named.items()))
        yield open_model(name, source, known, precision=precision, batch_size=batch_size)
    finally:
        known.close()


def _check_out(data: Path, out: Path) -> None:
    if out.exists() and out.samefile(data):
        raise UserError(f"--out {out}: is the file that is read; write to another")
    from prompts.runner import check_writable

    check_writable(out)


def _write(found: "Annotation", out: Path) -> None:
    from prompts.annotate import write_rows

    write_rows(found, out)
    console.print(f"{len(found.rows)} rows in {out}: {found}", markup=False)
