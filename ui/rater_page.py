"""The raters' page: what the browser may ask, and the Gradio component it asks through."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import gradio as gr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ui.assignment import Shown, left, next_assignment
from ui.campaigns import find_campaign, list_campaigns
from ui.chat_page import ChatDesk
from ui.display import harmless, markdown_html
from ui.errors import Refused
from ui.guard import signed_in
from ui.schema import Campaign, Choice, utc_now
from ui.store import Store
from ui.votes import FLAGS, record_vote, reveal, undo_last
from workbench.chat import as_messages
from workbench.errors import UserError

Json = dict[str, Any]
_TEMPLATE = Path(__file__).parent / "templates" / "desk.html"
# `element` and `server` are given by Gradio's HTML component.
_START = "import('/assets/desk.js').then((desk) => desk.start(element, server));"
_DEFAULT_GUIDELINES = """\
Read the prompt, then both answers to the end. Choose the answer you would rather have been given.

- **Helpful** first: does it do what was asked, and all of it?
- **Truthful**: nothing made up, nothing misleading.
- **Harmless**: nothing that would hurt somebody.

Length and style count only as far as they help. If you cannot tell, choose *Tie*; if neither answer
is of any use, *Both bad*; if you cannot judge the matter, *Skip*.
"""
_log = logging.getLogger(__name__)


class _Asked(BaseModel):
    """What the browser sends: nothing in it is believed but the rater's opinion."""

    model_config = ConfigDict(extra="forbid", strict=True)
    campaign: Annotated[str, Field(max_length=128)]


class _Voted(_Asked):
    assignment: Annotated[str, Field(max_length=64)]
    choice: Choice | None = None
    ranks: Annotated[list[int], Field(max_length=9)] | None = None
    flags: Annotated[list[Annotated[list[str], Field(max_length=99)]], Field(max_length=9)] = []
    comment: str = ""
    seconds: float


class RatingDesk:
    """What a rater's browser may ask for; nothing that it is told names a model before the vote.

    Each method takes what the browser sent, and the name of the account the guard has found.
    """

    def __init__(self, store: Store, chats: ChatDesk) -> None:
        self._store, self._chats = store, chats
        self._known: dict[str, Campaign] = {}
        self._live: dict[int, bool] = {}

    def campaigns(self, _data: Any, user: str) -> Json:
        """Return the campaigns that are open, with how many items are left for the rater."""
        listed = []
        for each in list_campaigns(self._store):
            if each.status == "open":
                live = self._is_live(each)
                number = None if live else left(self._store, each.name, user)
                listed.append({"name": each.name, "mode": each.mode, "live": live, "left": number})
        return {"campaigns": listed, "flags": FLAGS}

    def begin(self, data: Any, user: str) -> Json:
        """Return a campaign's guidelines and the item before the rater, or the next."""
        campaign = self._campaign(_Asked.model_validate(data).campaign)
        about = {
            "name": campaign.name,
            "mode": campaign.mode,
            "live": self._is_live(campaign),
            "blind": campaign.blind,
            "guidelines": markdown_html(campaign.guidelines or _DEFAULT_GUIDELINES),
        }
        return {"campaign": about, **self._next(campaign, user)}

    def next_item(self, data: Any, user: str) -> Json:
        """Return the item before the rater, or the next."""
        return self._next(self._campaign(_Asked.model_validate(data).campaign), user)

    def vote(self, data: Any, user: str) -> Json:
        """Record a vote and return the next item; in an open campaign, who wrote what as well."""
        voted = _Voted.model_validate(data)
        campaign = self._campaign(voted.campaign)
        record_vote(
            self._store,
            user,
            voted.assignment,
            voted.choice,
            ranks=voted.ranks,
            flags=voted.flags,
            comment=voted.comment,
            seconds=voted.seconds,
            now=utc_now(),
        )
        said: Json = {"saved": True}
        if not campaign.blind and voted.choice != "skip":
            said["names"] = reveal(self._store, user, voted.assignment)
        try:
            return said | self._next(campaign, user)
        except Refused as error:  # closed or paused meanwhile; the vote stands
            return said | {"refused": error.reason, "message": str(error)}

    def undo_vote(self, data: Any, user: str) -> Json:
        """Take back the rater's last vote and return its item."""
        campaign = self._campaign(_Asked.model_validate(data).campaign)
        shown = undo_last(self._store, user, campaign.name, utc_now())
        if self._is_live(campaign):
            return self._next(campaign, user)
        return {"shown": _as_json(shown, campaign)}

    def _next(self, campaign: Campaign, user: str) -> Json:
        if self._is_live(campaign):
            return {"chat": self._chats.current(campaign, user)}
        shown = next_assignment(self._store, campaign.name, user, utc_now())
        return {"shown": None if shown is None else _as_json(shown, campaign)}

    def _campaign(self, name: str) -> Campaign:
        """Return a campaign; of what is remembered, only what never changes is used."""
        if name not in self._known:
            try:
                with self._store.reading() as session:
                    self._known[name] = find_campaign(session, name)
            except UserError:  # its message would list the others
                raise Refused("unknown", "there is no such campaign") from None
        return self._known[name]

    def _is_live(self, campaign: Campaign) -> bool:
        if campaign.id not in self._live:  # rows come with the campaign or not at all
            self._live[campaign.id] = self._chats.is_live(campaign)
        return self._live[campaign.id]


def rater_page(store: Store, chats: ChatDesk) -> gr.Blocks:
    """Return the raters' page: one component of our own, and the functions it may call."""
    desk = RatingDesk(store, chats)
    asked = (desk.campaigns, desk.begin, desk.next_item, desk.vote, desk.undo_vote)
    page = gr.Blocks(title="Ratings", analytics_enabled=False, fill_width=True)
    with page:
        gr.HTML(
            html_template=_TEMPLATE.read_text(encoding="utf-8"),
            js_on_load=_START,
            apply_default_css=False,
            elem_id="desk",
            server_functions=[_server_function(work) for work in asked],
        )
    return page


def _server_function(work: Callable[[Any, str], Json]) -> Callable[[Any, gr.Request], Json]:
    """Return a function that Gradio serves; what is refused is said in JSON, and fails nothing."""

    def answer(data: Any, request: gr.Request) -> Json:
        try:
            return work(data, _account(request))
        except Refused as error:
            return {"refused": error.reason, "message": str(error)}
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            return {"refused": "invalid", "message": f"{key}: {first['msg']}"}
        except UserError as error:  # names the database, say, which is nothing for raters
            _log.error("%s: %s", work.__name__, error)
            return {"refused": "trouble", "message": "the server has trouble; try again"}

    answer.__name__, answer.__doc__ = work.__name__, work.__doc__
    return answer


def _account(request: Any) -> str:
    # A server function gets Starlette's request, whatever its signature says.
    starlettes: Any = request.request if isinstance(request, gr.Request) else request
    return signed_in(starlettes).name


def _as_json(shown: Shown, campaign: Campaign) -> Json:
    show = markdown_html if campaign.markdown else harmless
    return {
        "assignment": shown.assignment_id,
        "prompt": [
            {"role": turn["role"], "text": harmless(turn["content"])}
            for turn in as_messages(shown.prompt)
        ],
        "answers": [show(text) for text in shown.answers],
        "html": campaign.markdown,
        "left": shown.left,
    }
