"""The `rlhf ui` command: makes a campaign when asked to, and serves the pages.

Nothing here imports more than typer before a command runs: `rlhf --help` must answer at once.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ui import user_command
from ui.options import DEFAULT_DB, Database
from workbench.errors import UserError
from workbench.logs import console
from workbench.sources import named_sources

if TYPE_CHECKING:
    from ui.live import LiveModels
    from ui.settings import CampaignSettings
    from ui.store import Store

EXAMPLE = "base=smollm2-135m-instruct,aligned=runs/demo/ppo/model"

app = typer.Typer(invoke_without_command=True)
app.add_typer(user_command.app, name="user")


@app.callback()
def ui(
    context: typer.Context,
    models: Annotated[
        str | None, typer.Option(help="name=model,name=model …, to compare with each other")
    ] = None,
    db: Database = DEFAULT_DB,
    campaign: Annotated[str, typer.Option(help="name of the campaign; made if new")] = "comparison",
    mode: Annotated[
        Literal["pair", "ranking", "chat", "arena"],
        typer.Option(help="chat: raters write the prompts; arena: and names are shown"),
    ] = "pair",
    prompts: Annotated[
        str, typer.Option(help="file of prompts that the models answer, or demo:prompts")
    ] = "demo:prompts",
    split: Annotated[
        str | None, typer.Option(help="split of the prompts; default: demo:prompts' test")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="use only the first so many prompts")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="JSONL of prompts with answers, instead of --models")
    ] = None,
    raters_per_item: Annotated[
        int | None, typer.Option(min=1, help="votes wanted for each item; default: 3")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE, any other setting of a campaign; repeatable"),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=1, help="answers of each model to a prompt, to rank")
    ] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer in tokens")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="0 is greedy, 1 samples the model itself")
    ] = 0.7,
    seed: Annotated[int, typer.Option(min=0, help="seed of the sampling")] = 0,
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 is all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 7860,
) -> None:
    """Serve the pages on which people compare models, blindly, and the researchers' dashboard.

    The first start makes a researcher and a rater, and prints their passwords. With --models, the
    models answer the prompts and a campaign is made of that; without, what is there is served.

    Example: `rlhf ui --models base=smollm2-135m-instruct,aligned=runs/demo/ppo/model`
    """
    if context.invoked_subcommand is not None:
        return
    from ui.dashboard import import_drawing, preload
    from ui.live import LiveModels
    from ui.server import serve
    from ui.store import Store
    from workbench.generation import SamplingSettings

    named = _parse_models(models)
    if rows is not None and named:
        raise UserError("--rows: it holds the answers; leave --models out")
    sampling = SamplingSettings(max_new_tokens=max_new_tokens, temperature=temperature)
    chosen = _settings(mode, raters_per_item, settings or [])
    store = Store(db)
    try:
        _check_host(store, host)
        live = LiveModels(sampling)
        if named or rows is not None:
            asked = {"source": prompts, "split": split, "limit": limit}
            _make_campaign(store, campaign, chosen, named, rows, asked, sampling, samples, seed)
            _load_live(store, campaign, live)
        pages = _build(store, db, live)  # takes seconds; the address must work when it is shown
        threading.Thread(target=import_drawing, daemon=True).start()
        preload(store)
        _make_accounts(store)  # last, so that their passwords stand beside the address
        _say_where(store, host, port)
        serve(pages, host, port)
    finally:
        store.close()


def _build(store: "Store", db: str, live: "LiveModels") -> Any:
    from ui.server import create_app
    from ui.sessions import secret_of

    return create_app(store, secret_of(db), live=live)


def _parse_models(text: str | None) -> dict[str, str]:
    from workbench.models import locate
    from workbench.served import ServedModel, is_served

    named = {} if text is None else named_sources([text], "--models")
    for where in named.values():
        if is_served(where):
            ServedModel(where)
        else:
            locate(where)
    return named


def _settings(mode: str, raters_per_item: int | None, overrides: list[str]) -> "CampaignSettings":
    from ui.settings import CampaignSettings
    from workbench.config import load_config

    given = [f"mode={mode}"]
    if raters_per_item is not None:
        given.append(f"raters_per_item={raters_per_item}")
    return load_config(CampaignSettings, None, [*given, *overrides])


def _check_host(store: "Store", host: str) -> None:
    from ui.accounts import list_users
    from ui.server import is_loopback

    if is_loopback(host):
        return
    if not list_users(store):
        raise UserError(
            f"--host {host}: others could reach this server, and it has no accounts yet; make them "
            f"first: rlhf ui user add NAME --role researcher --db {store.url}"
        )
    console.print(
        "passwords would cross the network readable: put a proxy that speaks HTTPS in front, "
        "unless the network is yours",
        style="yellow",
    )


def _make_accounts(store: "Store") -> None:
    from ui.accounts import add_user, list_users
    from ui.user_command import new_password

    if list_users(store):
        return
    console.print("Accounts were made. Their passwords are shown this once:", markup=False)
    for role in ("researcher", "rater"):
        password = new_password()
        add_user(store, role, password, "researcher" if role == "researcher" else "rater")
        console.print(f"  {role:<12}{password}", markup=False)


def _make_campaign(
    store: "Store",
    name: str,
    settings: "CampaignSettings",
    models: dict[str, str],
    rows: Path | None,
    prompts: dict[str, Any],
    sampling: Any,
    samples: int,
    seed: int,
) -> None:
    from ui.campaigns import LIVE, create_campaign, list_campaigns, prepare_answers

    if name in {each.name for each in list_campaigns(store)}:
        console.print(f"campaign {name}: it is there, and is served as it is", markup=False)
        return
    if rows is not None:
        made: list[dict[str, Any]] = _read_rows(rows)
    elif settings.mode in LIVE:
        made = []
    else:
        made = prepare_answers(
            models, _read_prompts(**prompts), sampling, mode=settings.mode, samples=samples,
            seed=seed,
        )  # fmt: skip
    created = create_campaign(store, name, made, settings, models=models)
    notes = [f"{created.gold} gold questions" if created.gold else ""]
    notes += [f"{created.identical} with two answers alike" if created.identical else ""]
    notes += [f"{created.leaks} answers that name a model" if created.leaks else ""]
    about = f"{created.items} items" if made else "raters write the prompts"
    listed = ", ".join(note for note in notes if note)
    console.print(f"campaign {name}: {about}{f' ({listed})' if listed else ''}", markup=False)


def _read_prompts(source: str, split: str | None, limit: int | None) -> list[dict[str, Any]]:
    from workbench.data import Kind, load

    kinds: tuple[Kind, ...] = ("prompt_only", "prompt_completion", "preference", "ranking")
    if source == "demo:prompts" and split is None:
        split = "test"  # nothing was trained on them
    return list(load(source, kinds, split=split, limit=limit).rows)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    import json

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read it ({error})") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: not JSON ({error})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected an object with prompt and answers")
        rows.append(row)
    return rows


def _load_live(store: "Store", name: str, live: "LiveModels") -> None:
    """Load the models of a live campaign now, so that a mistake shows here and nobody waits."""
    from ui.campaigns import LIVE, find_campaign

    with store.reading() as session:
        campaign = find_campaign(session, name)
    if campaign.mode not in LIVE or campaign.status != "open":
        return
    for where in sorted({where for where in campaign.models.values() if where}):
        console.print(f"loading {where} …", markup=False)
        live.load(where)


def _say_where(store: "Store", host: str, port: int) -> None:
    from ui.campaigns import list_campaigns

    if not list_campaigns(store):
        console.print(
            f"no campaign yet; stop and give --models {EXAMPLE}", style="yellow", markup=False
        )
    shown = {"0.0.0.0": "localhost", "::": "localhost"}.get(host, host)
    shown = f"[{shown}]" if ":" in shown else shown
    console.print(f"http://{shown}:{port}/   (Ctrl-C stops)", markup=False)
