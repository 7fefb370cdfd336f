"""The researchers' page: campaigns and how far they are, who wins, how good raters are, export."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from ui.campaigns import (
    close_campaign,
    find_campaign,
    list_campaigns,
    pause_campaign,
    progress,
    resume_campaign,
)
from ui.dashboard import read_dashboard
from ui.downloads import link
from ui.export_files import FORMATS, Format
from ui.exporting import LEFT_OUT, METHODS, Filters, pairs
from ui.html import render
from ui.schema import CampaignStatus
from ui.store import Store
from workbench.errors import UserError

ALL = "all categories"
_CHANGES = {"Pause": pause_campaign, "Resume": resume_campaign, "Close": close_campaign}
# What can be done to a campaign, by its status.
_POSSIBLE: dict[CampaignStatus, tuple[str, ...]] = {
    "open": ("Pause", "Close"),
    "paused": ("Resume", "Close"),
    "closed": (),
}
# `element` is given by Gradio's HTML component.
_START = "import('/assets/colours.js').then((colours) => colours.start(element));"
_SURE = "(name) => confirm(`Close ${name}? It takes no more votes, for good.`) ? name : null"


class ResearchDesk:
    """What the page asks for: each method returns the values of the parts it fills."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def open(self, request: gr.Request) -> list[Any]:
        """Return the overview and the choice of campaigns; the page's address may name one."""
        names = [campaign.name for campaign in list_campaigns(self._store)]
        wanted = request.query_params.get("campaign")
        chosen = wanted if wanted in names else next(iter(names), None)
        return [self._overview(chosen), gr.Dropdown(choices=names, value=chosen)]

    def show(self, name: str | None, category: str, drop_failed: bool) -> list[Any]:
        """Return the overview, the buttons that fit, the categories, and the dashboard."""
        overview = self._overview(name)
        if name is None:
            hidden = [gr.Button(visible=False)] * len(_CHANGES)
            return [overview, *hidden, gr.Dropdown(), "", "", ""]
        with self._store.reading() as session:
            possible = _POSSIBLE[find_campaign(session, name).status]
        chosen = None if category == ALL else category
        board = read_dashboard(self._store, name, category=chosen, drop_failed=drop_failed)
        known = [ALL, *filter(None, board.everything.categories)]
        return [
            overview,
            *(gr.Button(visible=action in possible) for action in _CHANGES),
            gr.Dropdown(choices=known, value=category if category in known else ALL),
            board.numbers(),
            board.results(),
            board.people(),
        ]

    def change(self, action: str) -> Callable[[str | None, gr.Request], str]:
        """Return what a button does."""

        def act(name: str | None, request: gr.Request) -> str:
            if not name:  # the question was answered with no
                return ""
            try:
                _CHANGES[action](self._store, name, request.username)
            except UserError as error:
                return render("message.html", error=str(error), text="")
            done = {"Pause": "paused", "Resume": "open again", "Close": "closed"}[action]
            return render("message.html", error="", text=f"{name} is {done}.")

        return act

    def download(self, name: str | None, form: Format, *chosen: Any) -> str:
        """Return the link to an export."""
        if name is None:
            return ""
        return render("download.html", link=link(name, form, _filters(*chosen)), form=form)

    def preview(self, name: str | None, *chosen: Any) -> str:
        """Return what an export would hold, and what it would leave out and why."""
        if name is None:
            return ""
        try:
            found = pairs(self._store, name, _filters(*chosen))
        except UserError as error:
            return render("message.html", error=str(error), text="")
        left_out = [(LEFT_OUT[key], count) for key, count in found.left_out.items() if count]
        return render("preview.html", found=found, left_out=left_out)

    def _overview(self, chosen: str | None) -> str:
        listed = list_campaigns(self._store)
        rows = [(campaign, progress(self._store, campaign.name)) for campaign in listed]
        return render("overview.html", rows=rows, chosen=chosen)


def researcher_page(store: Store) -> gr.Blocks:
    """Return the researchers' page."""
    desk = ResearchDesk(store)
    page = gr.Blocks(title="Research", analytics_enabled=False, fill_width=True)
    with page:
        gr.HTML(render("research.html"), elem_id="bar", padding=False, js_on_load=_START)
        overview = gr.HTML(elem_id="overview")
        with gr.Row(elem_id="chooser"):
            name = gr.Dropdown(label="Campaign", choices=[], scale=3)
            buttons = {action: gr.Button(action, visible=False) for action in _CHANGES}
            refresh = gr.Button("Refresh")
        message = gr.HTML(elem_id="message")
        with gr.Row(elem_id="narrow"):
            category = gr.Dropdown(label="Category", choices=[ALL], value=ALL)
            drop_failed = gr.Checkbox(label="Leave out raters who failed their checks")
        numbers = gr.HTML(elem_id="numbers")
        with gr.Tab("Results"):
            results = gr.HTML(elem_id="results")
        with gr.Tab("Raters"):
            people = gr.HTML(elem_id="people")
        with gr.Tab("Export"):
            _export_tab(desk, name)
        parts = [overview, *buttons.values(), category, numbers, results, people]
        asked: dict[str, Any] = {
            "fn": desk.show,
            "inputs": [name, category, drop_failed],
            "outputs": parts,
            "show_progress": "minimal",
            "show_progress_on": [numbers],
        }
        page.load(desk.open, None, [overview, name], show_progress="hidden").then(**asked)
        gr.on([name.input, category.input, drop_failed.input, refresh.click], **asked)
        for action, button in buttons.items():
            sure = _SURE if action == "Close" else None
            done = button.click(desk.change(action), name, message, js=sure)
            done.then(**asked)
    return page


def _export_tab(desk: ResearchDesk, name: gr.Dropdown) -> None:
    with gr.Row():
        form = gr.Radio(list(FORMATS), value=FORMATS[0], label="Form")
        method = gr.Radio(list(METHODS), value=METHODS[0], label="One row per comparison, by")
    with gr.Row():
        min_raters = gr.Number(1, label="Raters, at least", precision=0, minimum=1)
        min_agreement = gr.Slider(0, 1, 0, step=0.05, label="Agreement, at least")
        test_fraction = gr.Slider(0, 0.9, 0, step=0.05, label="Share of prompts held out as test")
        drop_failed = gr.Checkbox(label="Leave out raters who failed their checks")
    chosen: list[Any] = [method, min_raters, min_agreement, drop_failed, test_fraction]
    with gr.Row():
        look = gr.Button("What would it hold?")
        address = gr.HTML(elem_id="download")
    about = gr.HTML(elem_id="preview")
    gr.on(
        [name.change, *(part.change for part in (form, *chosen))],
        desk.download,
        [name, form, *chosen],
        address,
    )
    look.click(desk.preview, [name, *chosen], about)


def _filters(
    method: Any, min_raters: float, min_agreement: float, drop_failed: bool, test_fraction: float
) -> Filters:
    return Filters(
        consolidate=method,
        min_raters=int(min_raters or 1),
        min_agreement=min_agreement,
        drop_failed=drop_failed,
        test_fraction=test_fraction,
    )
