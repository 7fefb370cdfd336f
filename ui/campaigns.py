"""Campaigns: prompts with answers to compare, their making, and how far the raters have come."""

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches
from itertools import combinations
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ui.display import storable
from ui.rows import ANSWERS, checked_prompt, checked_row, insert_rows
from ui.schema import (
    Assignment,
    Campaign,
    CampaignStatus,
    Item,
    Mode,
    User,
    Vote,
    utc_now,
)
from ui.settings import CampaignSettings
from ui.store import Store, log_event
from workbench.answering import answer_prompts
from workbench.chat import Prompt
from workbench.errors import UserError
from workbench.generation import SamplingSettings

LIVE: tuple[Mode, ...] = ("chat", "arena")  # raters write the prompts, models answer at once
_NAME = re.compile(r"\w[\w .-]{0,127}")
_NAMED = select(Campaign).where(Campaign.name == bindparam("name"))  # made once: of every vote


@dataclass(frozen=True)
class Created:
    """A campaign that has been made.

    Attributes:
        campaign: its name.
        items: normal items.
        gold: gold questions.
        identical: items of which two answers are the same text.
        leaks: answers in which a model says what it is.
    """

    campaign: str
    items: int
    gold: int
    identical: int
    leaks: int


@dataclass(frozen=True)
class Progress:
    """How far a campaign has come; gold questions and re-shows are not counted.

    Attributes:
        items: to be rated.
        wanted: votes wanted, items × raters per item.
        done: votes there are.
        leased: items that raters have before them now.
        skipped: times an item was skipped.
        raters: people who have voted.
    """

    items: int
    wanted: int
    done: int
    leased: int
    skipped: int
    raters: int


def create_campaign(
    store: Store,
    name: str,
    rows: Iterable[Mapping[str, Any]],
    settings: CampaignSettings | None = None,
    *,
    models: Mapping[str, str | None] | None = None,
    by: str | None = None,
) -> Created:
    """Make a campaign of rows; all of it or, on any error, nothing.

    Args:
        store: of ratings.
        name: letters, digits, space and . _ -, at most 128.
        rows: `prompt` (text or messages), `answers` (each with `model`, `text` and, where known,
            `tokens` and `finished`), optionally `prompt_id`, `category`, and `gold_best`, the model
            whose answer a careful rater must prefer: it makes the row a gold question.
        settings: how the campaign is run.
        models: name of each model to where it is loaded from; live modes answer with these.
        by: the researcher's account, for the audit log.

    Raises:
        UserError: for a name that is taken, an impossible setting or row; names the row, from 1.
    """
    settings = settings or CampaignSettings()
    _check_settings(name, settings)
    checked = [
        checked_row(f"campaign {name}: row {number}", row, settings.mode)
        for number, row in enumerate(rows, start=1)
    ]
    known: dict[str, str | None] = dict(models or {})
    known.update({a.model: known.get(a.model) for row in checked for a in row.answers})
    gold = sum(row.gold_best is not None for row in checked)
    _check_content(name, settings, known, len(checked) - gold, gold)
    names = [*known, *(where for where in known.values() if where)]
    campaign = Campaign(
        name=name,
        models=known,
        mode=settings.mode,
        guidelines=storable(settings.guidelines),
        raters_per_item=settings.raters_per_item,
        seed=secrets.randbelow(2**31) if settings.seed is None else settings.seed,
        lease_seconds=settings.lease_seconds,
        gold_share=settings.gold_share,
        swap_share=settings.swap_share,
        blind=settings.mode != "arena" if settings.blind is None else settings.blind,
        markdown=settings.markdown,
        price_per_label=settings.price_per_label,
    )
    try:
        with store.session() as session:
            session.add(campaign)
            session.flush()
            leaks = insert_rows(session, campaign.id, checked, names) if checked else 0
            identical = sum(len({a.text for a in r.answers}) < len(r.answers) for r in checked)
            created = Created(name, len(checked) - gold, gold, identical, leaks)
            _log(session, campaign, "create", by, items=created.items, gold=gold)
            return created
    except IntegrityError:
        raise UserError(f"campaign {name}: there is one of that name; choose another") from None


def pause_campaign(store: Store, name: str, by: str | None = None) -> None:
    """Lend no more items; votes on those already lent are taken."""
    _set_status(store, name, "paused", by)


def resume_campaign(store: Store, name: str, by: str | None = None) -> None:
    """Lend items again."""
    _set_status(store, name, "open", by)


def close_campaign(store: Store, name: str, by: str | None = None) -> None:
    """Take no more votes, for good."""
    _set_status(store, name, "closed", by)


def find_campaign(session: Session, name: str) -> Campaign:
    """Return the campaign of a name.

    Raises:
        UserError: when there is none; names the nearest.
    """
    campaign = session.scalar(_NAMED, {"name": storable(name)})
    if campaign is None:
        known = list(session.scalars(select(Campaign.name).order_by(Campaign.id)))
        near = get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known) or 'none'}"
        raise UserError(f"campaign {name!r}: there is no such campaign; {hint}")
    return campaign


def list_campaigns(store: Store) -> list[Campaign]:
    """Return all campaigns, the newest first."""
    with store.reading() as session:
        return list(session.scalars(select(Campaign).order_by(Campaign.id.desc())))


def progress(store: Store, name: str, now: datetime | None = None) -> Progress:
    """Return how far a campaign has come.

    Args:
        store: of ratings.
        name: of the campaign.
        now: leases that ran out by then are not counted; None for this moment.
    """
    with store.reading() as session:
        campaign = find_campaign(session, name)
        normal = (Item.campaign_id == campaign.id, Item.kind == "normal")
        items, taken = session.execute(
            select(func.count(), func.coalesce(func.sum(Item.taken), 0)).where(*normal)
        ).one()
        own = (Assignment.campaign_id == campaign.id, Assignment.purpose == "normal")
        leases = session.scalars(
            select(Assignment.expires).where(*own, Assignment.status == "leased")
        ).all()
        skipped = session.scalar(
            select(func.count()).select_from(Assignment).where(*own, Assignment.status == "skipped")
        )
        # One probe of an index per account rather than a pass over all votes.
        voted = select(Vote.id).where(Vote.campaign_id == campaign.id, Vote.user_id == User.id)
        raters = session.scalar(select(func.count()).select_from(User).where(voted.exists()))
        return Progress(
            items=items,
            wanted=items * campaign.raters_per_item,
            done=int(taken) - len(leases),
            leased=sum(expires > (now or utc_now()) for expires in leases),
            skipped=skipped or 0,
            raters=raters or 0,
        )


def _set_status(store: Store, name: str, status: CampaignStatus, by: str | None) -> None:
    with store.session() as session:
        campaign = find_campaign(session, name)
        # The condition stands in the statement: somebody may close the campaign at this moment.
        open_still = (Campaign.id == campaign.id, Campaign.status != "closed")
        statement = update(Campaign).where(*open_still).values(status=status).returning(Campaign.id)
        if session.scalar(statement) is None and status != "closed":
            raise UserError(f"campaign {name}: it is closed, and stays closed; make a new one")
        _log(
            session, campaign, {"open": "resume", "paused": "pause", "closed": "close"}[status], by
        )


def _log(session: Session, campaign: Campaign, what: str, by: str | None, **detail: Any) -> None:
    user_id = session.scalar(select(User.id).where(User.name == by)) if by else None
    log_event(session, what, user_id=user_id, campaign=campaign.name, **detail)


def _check_settings(name: str, settings: CampaignSettings) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"campaign {name!r}: a name is 1 to 128 letters, digits, spaces or . _ - and begins "
            "with a letter or digit"
        )
    problem = settings.validate()
    if problem is not None:
        key, why = problem
        raise UserError(f"campaign {name}: {key}={vars(settings)[key]!r}: {why}")


def _check_content(
    name: str, settings: CampaignSettings, models: Mapping[str, object], items: int, gold: int
) -> None:
    live = settings.mode in LIVE
    if not items and not live:
        raise UserError(f"campaign {name}: no rows to rate; give prompts with answers")
    if not items and len(models) < 2:
        raise UserError(f"campaign {name}: a live campaign needs at least two models")
    if settings.gold_share > 0 and not gold:
        raise UserError(
            f"campaign {name}: gold_share={settings.gold_share} needs rows with gold_best; "
            "add some, or set it to 0"
        )


def prepare_answers(
    models: Mapping[str, str],
    prompts: Sequence[Mapping[str, Any]],
    sampling: SamplingSettings | None = None,
    *,
    mode: Mode = "pair",
    samples: int = 1,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Have models answer prompts, and return the rows of a campaign.

    Args:
        models: name to hub id, folder or the embedded model; loaded one after the other.
        prompts: rows with `prompt` and, where known, `id` or `prompt_id`, and `category`.
        sampling: length, temperature and batch size.
        mode: pair makes one row for every two models and prompt, ordered so that each round of all
            prompts is shared evenly by the pairs; ranking one row per prompt with all answers.
        samples: answers of each model to a prompt, in ranking mode.
        seed: of the sampling.

    Raises:
        UserError: for too few or many answers, a bad prompt, and one that is too long for a model.
    """
    sampling = sampling or SamplingSettings()
    names = list(models)
    groups = [names] if mode == "ranking" else list(combinations(names, 2))
    if mode not in ANSWERS:
        raise UserError(f"answers: in {mode} mode models answer while the rater waits")
    fewest, most = ANSWERS[mode]
    count = len(groups[0]) * samples if groups else 0
    if not fewest <= count <= most:
        raise UserError(
            f"answers: {len(models)} models with {samples} answers each; an item of a {mode} "
            f"campaign has {fewest} to {most} answers"
        )
    asked = [
        checked_prompt(f"answers: prompt {number}", row.get("prompt"))
        for number, row in enumerate(prompts, start=1)
    ]
    answers = {
        name: _answers(name, where, asked, sampling, samples, seed + number)
        for number, (name, where) in enumerate(models.items())
    }
    rows = []
    for turn in range(len(groups)):
        for number, row in enumerate(prompts):
            group = groups[(turn + number) % len(groups)]
            shown = [answer for name in group for answer in answers[name][number]]
            given = {key: row[key] for key in ("prompt_id", "category") if row.get(key) is not None}
            if "prompt_id" not in given and row.get("id") is not None:
                given["prompt_id"] = str(row["id"])
            rows.append({"prompt": asked[number], "answers": shown, **given})
    return rows


def _answers(
    name: str,
    where: str,
    prompts: Sequence[Prompt],
    sampling: SamplingSettings,
    samples: int,
    seed: int,
) -> list[list[dict[str, Any]]]:
    """Return `samples` answers of one model to each prompt, as rows have them."""
    found = answer_prompts(
        where, prompts, sampling, samples=samples, seed=seed, desc=f"answers: {name}"
    )
    return [
        [
            {
                "model": name,
                "text": answer.text,
                "tokens": answer.tokens,
                "finished": answer.finished,
            }
            for answer in several
        ]
        for several in found
    ]
