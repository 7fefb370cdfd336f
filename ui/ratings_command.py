"""The `rlhf ratings` commands: votes in, out and summed up."""

import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ui.options import DEFAULT_DB, Database
from workbench.errors import UserError
from workbench.logs import console as messages

if TYPE_CHECKING:
    from ui.store import Store

app = typer.Typer(
    no_args_is_help=True, help="Votes of human raters: import, export, statistics, consolidation."
)

CampaignName = Annotated[
    str | None, typer.Option("--campaign", help="its name; not needed where there is only one")
]
MinRaters = Annotated[int, typer.Option(min=1, help="votes on a comparison, at least")]
DropFailed = Annotated[
    bool,
    typer.Option(
        "--drop-failed-raters",
        help="leave out raters who fail gold questions, favour a side or are too fast",
    ),
]
LeastGold = Annotated[
    float | None, typer.Option(help="leave out raters with a smaller share of gold questions right")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


@app.callback()
def _group() -> None:
    """Votes of human raters: import, export, statistics, consolidation."""


@app.command("import")
def import_votes(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="results .csv of Mechanical Turk")],
    *,
    db: Database = DEFAULT_DB,
    campaign: CampaignName = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="list bad rows instead of importing nothing")
    ] = False,
) -> None:
    """Take the results of a Mechanical Turk batch as votes; the same file again changes nothing.

    The batch itself is written by `rlhf ratings export --format mturk`.

    Example: `rlhf ratings import Batch_123_batch_results.csv --campaign first`
    """
    from ui.mturk import import_results
    from ui.ratings_source import open_store

    with closing(open_store(db)) as store:
        name = _one_campaign(store, campaign)
        done = import_results(store, name, file, skip_bad_rows=skip_bad_rows)
    _say(
        f"{name}: {done.votes} votes imported, {done.raters} new raters, {done.unchanged} rows "
        f"known already, {done.rejected} rejected, {done.withdrawn} votes withdrawn"
    )
    if done.bad:
        _say(f"{len(done.bad)} bad rows left out")
    for line in done.bad:
        _say(f"  {line}")


@app.command()
def export(
    out: Annotated[Path, typer.Option(help="file or folder to write")],
    *,
    db: Database = DEFAULT_DB,
    campaign: Annotated[
        str | None, typer.Option("--campaign", help="its name; all campaigns when left out")
    ] = None,
    form: Annotated[
        Literal["jsonl", "parquet", "datasets", "csv", "mturk"] | None,
        typer.Option(
            "--format",
            help="by default as OUT is named, without a suffix a datasets folder; csv is for "
            "spreadsheets; mturk writes the items to be rated, as a batch for Mechanical Turk",
        ),
    ] = None,
    consolidate: Annotated[
        Literal["majority", "dawid-skene", "none"],
        typer.Option(help="of several votes: majority, Dawid-Skene, or none: a row per vote"),
    ] = "majority",
    min_raters: MinRaters = 1,
    min_agreement: Annotated[
        float, typer.Option(help="share of the votes that say what the row says, at least")
    ] = 0.0,
    drop_failed_raters: DropFailed = False,
    min_gold_accuracy: LeastGold = None,
    test_fraction: Annotated[
        float, typer.Option(help="share of the prompts to hold out, with all their pairs")
    ] = 0.0,
) -> None:
    """Write the votes as preference pairs that `rlhf reward` and TRL take as they are.

    Example: `rlhf ratings export --campaign first --out pairs.jsonl --min-raters 2`
    """
    from ui.export_files import form_of, write_rows
    from ui.exporting import LEFT_OUT, Filters, card, pairs
    from ui.ratings_source import open_store
    from ui.store import log_event

    if form == "mturk":
        _export_batch(db, campaign, out)
        return
    filters = Filters(
        consolidate=consolidate,
        min_raters=min_raters,
        min_agreement=min_agreement,
        min_gold_accuracy=min_gold_accuracy,
        drop_failed=drop_failed_raters,
        test_fraction=test_fraction,
    )
    chosen = form or form_of(out)
    with closing(open_store(db)) as store:
        found = pairs(store, campaign, filters)
        write_rows(found.rows, out, chosen, card(found, filters))
        with store.session() as session:
            log_event(session, "export", campaign=campaign, form=chosen, pairs=len(found.rows))
    held = sum(row["split"] == "test" for row in found.rows)
    also = f", {held} of them held out" if held else ""
    _say(f"{len(found.rows)} pairs from {found.votes} votes in {out}{also}")
    for key, count in found.left_out.items():
        if count:
            _say(f"  left out: {count} {LEFT_OUT[key]}")
    if found.failed:
        _say(f"  raters left out: {', '.join(found.failed)}")
    if chosen == "csv":
        _say(
            "  csv is for spreadsheets: texts that look like a formula begin with an apostrophe "
            "there; train on jsonl, parquet or datasets"
        )


@app.command()
def stats(
    *,
    db: Database = DEFAULT_DB,
    campaign: CampaignName = None,
    drop_failed_raters: DropFailed = False,
    as_json: AsJson = False,
) -> None:
    """Print who wins and how surely, how far raters agree, and how good each of them is.

    Example: `rlhf ratings stats --campaign first --drop-failed-raters`
    """
    from ui.dashboard import read_dashboard
    from ui.ratings_source import open_store
    from ui.ratings_tables import numbers, show_numbers

    with closing(open_store(db)) as store:
        name = _one_campaign(store, campaign)
        board = read_dashboard(store, name, drop_failed=drop_failed_raters)
    if as_json:
        _print_json(numbers(board))
    else:
        show_numbers(board, _tables())


@app.command()
def consolidate(
    *,
    db: Database = DEFAULT_DB,
    campaign: CampaignName = None,
    method: Annotated[
        Literal["majority", "dawid-skene"],
        typer.Option(help="most votes, or votes weighed by how each rater errs"),
    ] = "dawid-skene",
    min_raters: MinRaters = 1,
    drop_failed_raters: DropFailed = False,
    min_gold_accuracy: LeastGold = None,
    out: Annotated[
        Path | None, typer.Option(help="write the winner of each comparison, as .jsonl or .csv")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put several raters' votes together: one winner of each comparison, and how sure it is.

    Example: `rlhf ratings consolidate --campaign first --out winners.csv`
    """
    from ui.consolidation import consolidate as put_together
    from ui.exporting import Filters, failed_raters
    from ui.outcomes import read_outcomes
    from ui.ratings_source import open_store
    from ui.ratings_tables import show_winners

    filters = Filters(drop_failed=drop_failed_raters, min_gold_accuracy=min_gold_accuracy)
    filters.check()
    with closing(open_store(db)) as store:
        name = _one_campaign(store, campaign)
        outcomes = read_outcomes(store, name)
    outcomes = outcomes.without(failed_raters(outcomes, filters))
    one = put_together(outcomes, method)
    table = one.table(outcomes)
    # Through JSON, so that there are no numbers of numpy's own.
    found = json.loads(table[table["votes"] >= min_raters].to_json(orient="records"))
    if not found:
        raise UserError(f"campaign {name}: no comparison has {min_raters} votes; collect more")
    if out is not None:
        _write_winners(found, out)
        _say(f"{len(found)} winners in {out}")
    if as_json:
        confusion = {rater: chances.tolist() for rater, chances in one.confusion.items()}
        _print_json({"method": method, "winners": found, "confusion": confusion})
    else:
        show_winners(name, found, one, _tables())


def _export_batch(db: str, campaign: str | None, out: Path) -> None:
    from ui.mturk import export_batch
    from ui.ratings_source import open_store

    if out.suffix.lower() != ".csv":
        raise UserError(f"{out}: Mechanical Turk takes .csv files; name one")
    with closing(open_store(db)) as store:
        batch = export_batch(store, _one_campaign(store, campaign), out)
    _say(
        f"{batch.items} items in {out}: upload it with {batch.raters} assignments per item; the "
        f"page shows ${{prompt}}, ${{answer_a}} … and asks for {batch.answer}"
    )


def _write_winners(found: list[dict[str, Any]], out: Path) -> None:
    from ui.export_files import csv_text
    from workbench.files import write_text

    if out.suffix.lower() == ".csv":
        write_text(out, csv_text(list(found[0]), (list(row.values()) for row in found)))
    elif out.suffix.lower() == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        write_text(out, "".join(lines))
    else:
        raise UserError(f"{out}: winners are written as .jsonl or .csv; name such a file")


def _one_campaign(store: "Store", name: str | None) -> str:
    from ui.campaigns import list_campaigns

    if name is not None:
        return name
    known = [campaign.name for campaign in list_campaigns(store)]
    if len(known) != 1:
        listed = f"choose one of {', '.join(known)}" if known else f"{store.url} holds none"
        raise UserError(f"--campaign: {listed}")
    return known[0]


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def _tables() -> Any:
    from rich.console import Console

    # Names come from people: never markup, and no highlighting of numbers inside them.
    return Console(highlight=False, markup=False, emoji=False)


def _say(line: str) -> None:
    messages.print(line, markup=False)
