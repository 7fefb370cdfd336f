"""The `rlhf ui user` commands: who may rate and who may see the results."""

import secrets
from typing import Annotated, Literal

import typer

from ui.options import DEFAULT_DB, Database
from workbench.logs import console

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look like another

app = typer.Typer(no_args_is_help=True, help="Accounts of raters and researchers.")

Name = Annotated[str, typer.Argument(help="of the account")]
Role = Annotated[
    Literal["rater", "researcher"],
    typer.Option(help="raters rate; researchers also see and change everything"),
]
NewRole = Annotated[Literal["rater", "researcher"], typer.Argument(help="what it becomes")]
Ask = Annotated[bool, typer.Option("--ask", help="type the password rather than have one made")]


@app.callback()
def _group() -> None:
    """Accounts of raters and researchers."""


@app.command()
def add(name: Name, role: Role = "rater", ask: Ask = False, db: Database = DEFAULT_DB) -> None:
    """Make an account and print its password.

    Example: `rlhf ui user add ann`
    """
    from ui.accounts import add_user
    from ui.store import Store

    password = _password(ask)
    add_user(Store(db), name, password, role)
    _tell(f"{role} {name} was made", password, ask)


@app.command("list")
def list_accounts(db: Database = DEFAULT_DB) -> None:
    """List the accounts.

    Example: `rlhf ui user list`
    """
    from rich.console import Console

    from ui.accounts import list_users
    from ui.store import Store
    from workbench.runs import new_table

    table = new_table("name", "role", "active", "since")
    for user in list_users(Store(db)):
        since = f"{user.created:%Y-%m-%d %H:%M} UTC"
        table.add_row(user.name, user.role, "yes" if user.active else "no", since)
    Console(highlight=False, markup=False).print(table)


@app.command()
def password(name: Name, ask: Ask = False, db: Database = DEFAULT_DB) -> None:
    """Set a new password; whoever is logged in with the old one is logged out.

    Example: `rlhf ui user password ann`
    """
    from ui.accounts import change_user
    from ui.store import Store

    new = _password(ask)
    change_user(Store(db), name, password=new)
    _tell(f"{name} has a new password", new, ask)


@app.command()
def role(name: Name, new: NewRole, db: Database = DEFAULT_DB) -> None:
    """Make a rater a researcher, or the reverse.

    Example: `rlhf ui user role ann researcher`
    """
    from ui.accounts import change_user
    from ui.store import Store

    change_user(Store(db), name, role=new)
    console.print(f"{name} is a {new}", markup=False)


@app.command()
def disable(name: Name, db: Database = DEFAULT_DB) -> None:
    """Keep an account from logging in; its votes stay.

    Example: `rlhf ui user disable ann`
    """
    _set_active(name, db, active=False)


@app.command()
def enable(name: Name, db: Database = DEFAULT_DB) -> None:
    """Let an account log in again.

    Example: `rlhf ui user enable ann`
    """
    _set_active(name, db, active=True)


def new_password() -> str:
    """Return a password of 59 random bits that can be read over the telephone."""
    groups = ("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(3))
    return "-".join(groups)


def _set_active(name: str, db: str, *, active: bool) -> None:
    from ui.accounts import change_user
    from ui.store import Store

    change_user(Store(db), name, active=active)
    console.print(f"{name} {'can' if active else 'cannot'} log in", markup=False)


def _password(ask: bool) -> str:
    if ask:
        typed: str = typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
        return typed
    return new_password()


def _tell(what: str, password: str, asked: bool) -> None:
    shown = "" if asked else f"; the password, shown this once: {password}"
    console.print(f"{what}{shown}", markup=False)
