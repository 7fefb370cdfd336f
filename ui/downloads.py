"""Exports over HTTP: a campaign's pairs as a file to keep, for researchers."""

import shutil
import tempfile
from pathlib import Path
from typing import Annotated
from urllib.parse import quote, urlencode

from fastapi import FastAPI, Query, Request
from fastapi.responses import FileResponse, PlainTextResponse, Response
from starlette.background import BackgroundTask

from ui.export_files import Format, write_rows
from ui.exporting import Filters, card, pairs
from ui.guard import signed_in
from ui.store import Store, log_event
from workbench.errors import UserError


class _Asked(Filters):
    """The query of an export: its form, and the filters."""

    form: Format = "jsonl"

    def filters(self) -> Filters:
        """Return them as the export takes them."""
        return Filters(**self.model_dump(exclude={"form"}))


def link(campaign: str, form: Format, filters: Filters) -> str:
    """Return the address of an export."""
    chosen = {key: value for key, value in vars(filters).items() if value is not None}
    return f"/export/{quote(campaign)}?{urlencode({'form': form, **chosen})}"


def add_downloads(app: FastAPI, store: Store) -> None:
    """Add the route; the guard lets researchers only come here."""

    @app.get("/export/{campaign}")
    def export(campaign: str, request: Request, asked: Annotated[_Asked, Query()]) -> Response:
        form, filters = asked.form, asked.filters()
        folder = Path(tempfile.mkdtemp(prefix="rlhf-export-"))
        try:
            out = folder / (campaign if form == "datasets" else f"{campaign}.{form}")
            found = pairs(store, campaign, filters)
            write_rows(found.rows, out, form, card(found, filters))
            if form == "datasets":
                out = Path(shutil.make_archive(str(out), "zip", out))
            with store.session() as session:
                user = signed_in(request)
                log_event(session, "export", user_id=user.id, campaign=campaign, form=form)
        except UserError as error:
            shutil.rmtree(folder)
            return PlainTextResponse(f"{error}\n", status_code=400)
        return FileResponse(
            out, filename=out.name, background=BackgroundTask(shutil.rmtree, folder)
        )
