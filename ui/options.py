"""Options that the commands of this room share."""

from typing import Annotated

import typer

DEFAULT_DB = "sqlite:///runs/ui/ratings.db"

Database = Annotated[
    str, typer.Option("--db", metavar="URL", help="sqlite:///FILE or postgresql+psycopg://…")
]
