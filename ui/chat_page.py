"""Chats: a rater's own prompt, answered by two models at once as they write, then voted on."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Annotated, Any

from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from ui.campaigns import LIVE, find_campaign
from ui.chats import MOST_TURNS, Chat, Reply, checked_text, current_chat, draw_models, save_turn
from ui.display import harmless, markdown_html
from ui.errors import Refused
from ui.guard import signed_in
from ui.schema import Campaign, Item, utc_now
from ui.store import Store
from workbench.chat import Messages
from workbench.errors import UserError

if TYPE_CHECKING:
    from ui.live import LiveModels

Json = dict[str, Any]
_AT_ONCE = 4  # conversations that models answer; more would only be slower each
_log = logging.getLogger(__name__)


class _Said(BaseModel):
    """What the browser sends: a turn, in a conversation (`assignment`) or as the first of one."""

    model_config = ConfigDict(extra="forbid", strict=True)
    campaign: Annotated[str, Field(max_length=128)]
    assignment: Annotated[str, Field(max_length=64)] | None
    text: str


class ChatDesk:
    """What raters' chats need: the models and the conversations so far."""

    def __init__(self, store: Store, live: "LiveModels | None") -> None:
        self._store, self._live = store, live

    def is_live(self, campaign: Campaign) -> bool:
        """Return whether raters of a campaign write the prompts; an arena may have rows instead."""
        if campaign.mode not in LIVE:
            return False
        with self._store.reading() as session:
            rows = (Item.campaign_id == campaign.id, Item.kind != "live")
            return session.scalar(select(Item.id).where(*rows).limit(1)) is None

    def current(self, campaign: Campaign, user: str) -> Json | None:
        """Return the conversation a rater is in, as the browser shows it, or None."""
        chat = current_chat(self._store, campaign, user, utc_now())
        return None if chat is None else _as_json(chat, campaign)

    def say(self, said: _Said, user: str) -> Iterator[Json]:
        """Ask both models, yield the texts as they grow, then the stored conversation.

        Raises:
            Refused: as `ui.chats.save_turn`; `invalid` for a text that cannot be asked, and when
                the server has no models.
        """
        campaign = self._find(said.campaign)
        if campaign.status == "closed":
            raise Refused("closed", f"campaign {campaign.name}: it is closed; thank you")
        text = checked_text(said.text)
        chat = current_chat(self._store, campaign, user, utc_now())
        if said.assignment is None:
            chat = None
        elif chat is None or chat.assignment_id != said.assignment:
            raise Refused("expired", "this conversation is over; begin another")
        elif len(chat.turns) >= MOST_TURNS:
            raise Refused("invalid", f"{MOST_TURNS} turns are enough; vote, and begin another")
        models = draw_models(campaign) if chat is None else chat.models
        wheres = [campaign.models[model] for model in models]
        if self._live is None or None in wheres:
            raise Refused("invalid", "this server has no models for this campaign")
        replies: list[Reply] = []
        asked = [_conversation(chat, side, text) for side in (0, 1)]
        for written in self._live.answer([str(where) for where in wheres], asked):
            if isinstance(written[0], Reply):
                replies = [reply for reply in written if isinstance(reply, Reply)]
            else:
                yield {"answers": [harmless(str(part)) for part in written]}
        left, right = replies
        saved = save_turn(self._store, campaign, user, chat, text, models, (left, right), utc_now())
        yield {"chat": _as_json(saved, campaign)}

    def _find(self, name: str) -> Campaign:
        with self._store.reading() as session:
            try:
                campaign = find_campaign(session, name)
            except UserError:  # its message would list the others
                raise Refused("unknown", "there is no such campaign") from None
        if not self.is_live(campaign):
            raise Refused("invalid", "this campaign has prompts of its own")
        return campaign


def add_chat(app: FastAPI, desk: ChatDesk) -> None:
    """Add the route that streams answers: Gradio's server functions answer once only."""
    # The others wait here, and not in the threads that votes need as well.
    turns = asyncio.Semaphore(_AT_ONCE)

    @app.post("/chat/say")
    def say(said: _Said, request: Request) -> StreamingResponse:
        user = signed_in(request).name

        async def lines() -> AsyncIterator[str]:
            async with turns:
                messages = _told(desk.say(said, user))
                try:
                    while (message := await to_thread.run_sync(next, messages, None)) is not None:
                        yield json.dumps(message) + "\n"
                finally:  # also when the rater has gone
                    messages.close()

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def _told(messages: Iterator[Json]) -> Generator[Json, None, None]:
    """Yield messages, and at the end why there are no more, if that is no success."""
    try:
        yield from messages
    except Refused as error:
        yield {"refused": error.reason, "message": str(error)}
    except UserError as error:  # names the model, which is nothing for raters
        _log.error("chat: %s", error)
        yield {"refused": "trouble", "message": "the models have trouble; try again later"}


def _conversation(chat: Chat | None, side: int, text: str) -> Messages:
    messages = []
    for asked, answers in chat.turns if chat else ():
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answers[side]})
    return [*messages, {"role": "user", "content": text}]


def _as_json(chat: Chat, campaign: Campaign) -> Json:
    show = markdown_html if campaign.markdown else harmless
    return {
        "assignment": chat.assignment_id,
        "turns": [
            {"text": harmless(text), "answers": [show(answer) for answer in answers]}
            for text, answers in chat.turns
        ],
        "html": campaign.markdown,
    }
