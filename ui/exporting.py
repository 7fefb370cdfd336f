"""Votes as preference pairs: what a reward model learns, and what was left out and why."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from ui.agreement import agreement, rater_quality
from ui.campaigns import list_campaigns
from ui.consolidation import consolidate
from ui.outcomes import Outcomes, read_outcomes
from ui.schema import Answer, Assignment, Campaign, Item, Turn, User, utc_now
from ui.store import Store
from workbench.chat import Prompt, as_messages
from workbench.data.splits import group_key
from workbench.errors import UserError
from workbench.files import digest
from workbench.statistics import Estimate

Row = dict[str, Any]
Method = Literal["majority", "dawid-skene", "none"]
METHODS: tuple[Method, ...] = get_args(Method)

# What may be left out, in words.
LEFT_OUT = {
    "failed_raters": "votes of raters who failed their checks",
    "skips": "skips",
    "gold": "votes on gold questions",
    "repeats": "re-shows of what the rater had judged before",
    "few_raters": "comparisons with too few raters",
    "ties": "without a winner",
    "both_bad": "both bad",
    "disagreement": "with too little agreement",
    "multi_turn": "chats of several turns (each answer follows a history of its own)",
    "identical": "of identical answers",
    "empty": "with an empty answer",
}


class Filters(BaseModel):
    """Which votes count, and which comparisons are told.

    Attributes:
        consolidate: one row per comparison, by majority or Dawid-Skene, or one row per vote.
        min_raters: votes on a comparison, at least.
        min_agreement: share of a comparison's votes that say what the row says, at least.
        min_gold_accuracy: raters with less are left out; who has seen no gold question stays.
        drop_failed: leave out raters whose checks say that they guess or hurry.
        test_fraction: share of the prompts to hold out; all pairs of a prompt are on one side.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    consolidate: Method = "majority"
    min_raters: int = 1
    min_agreement: float = 0.0
    min_gold_accuracy: float | None = None
    drop_failed: bool = False
    test_fraction: float = 0.0

    def check(self) -> None:
        """Stop at an impossible value.

        Raises:
            UserError: names the option.
        """
        if self.min_raters < 1:
            raise UserError(f"--min-raters {self.min_raters}: must be at least 1")
        for name in ("min_agreement", "min_gold_accuracy"):
            value = vars(self)[name]
            if value is not None and not 0 <= value <= 1:
                option = name.replace("_", "-")
                raise UserError(f"--{option} {value}: must be from 0 to 1")
        if not 0 <= self.test_fraction < 1:
            raise UserError(f"--test-fraction {self.test_fraction}: must be from 0 to below 1")


@dataclass(frozen=True)
class Pairs:
    """Preference rows, and what is not among them.

    Attributes:
        rows: see `pairs`.
        votes: all there were, skips included.
        left_out: counts by the keys of `LEFT_OUT`, those that are 0 too.
        failed: names of the raters left out.
        outcomes: of each campaign, without these.
    """

    rows: list[Row]
    votes: int
    left_out: dict[str, int]
    failed: tuple[str, ...]
    outcomes: tuple[Outcomes, ...]


def pairs(store: Store, campaign: str | None, filters: Filters) -> Pairs:
    """Return the votes as preference rows in TRL's explicit form.

    `prompt`, `chosen` and `rejected` are texts, or messages where a prompt is messages. `margin` is
    the mean strength of the votes for either answer: 2 for much better, 1 for better. `weight` is
    1 / C(K, 2) of an item with K answers, so that each item counts the same (equation 1 of Ouyang
    et al. 2022); rows of single votes share it. `confidence` is the winner's probability by
    Dawid-Skene, else `agreement`. `raters` are numbers of accounts, not names.

    Args:
        store: of ratings.
        campaign: its name; None for all campaigns.
        filters: what to leave out, and how to consolidate.

    Raises:
        UserError: for an unknown campaign, an impossible filter, and when no pair is left.
    """
    filters.check()
    names = [campaign] if campaign else [each.name for each in reversed(list_campaigns(store))]
    known = {"database": store.url, "exported_at": utc_now().isoformat(timespec="seconds")}
    rows: list[Row] = []
    kept: list[Outcomes] = []
    counts, failed, votes = Counter[str](), set[str](), 0
    for name in names:
        given = read_outcomes(store, name)
        out = failed_raters(given, filters)
        kept.append(given.without(out))
        before, after = len(given.verdicts.heads()), len(kept[-1].verdicts.heads())
        votes, failed = votes + before, failed | out
        counts["failed_raters"] += before - after
        rows += [row | known for row in _campaign_rows(store, kept[-1], filters, counts)]
    left_out = {key: counts[key] for key in LEFT_OUT}
    if not rows:
        why = ", ".join(f"{count} {LEFT_OUT[key]}" for key, count in left_out.items() if count)
        raise UserError(
            f"{store.url}: no pair from {votes} votes{f' ({why})' if why else ''}; collect more "
            "votes, or filter less"
        )
    if any(isinstance(row["prompt"], list) for row in rows):  # a table has one form only
        for row in rows:
            row["prompt"] = as_messages(row["prompt"])
            for name in ("chosen", "rejected"):
                row[name] = [{"role": "assistant", "content": row[name]}]
    _split(rows, filters.test_fraction)
    return Pairs(rows, votes, left_out, tuple(sorted(failed)), tuple(kept))


def card(found: Pairs, filters: Filters) -> str:
    """Return the README of exported pairs: what they are, what was left out, how raters agree."""
    rows = found.rows
    splits = "".join(
        f"| {split} | {len(part):,} | {len({group_key(row) for row in part}):,} |\n"
        for split in ("train", "test")
        if (part := [row for row in rows if row["split"] == split])
    )
    left_out = "".join(
        f"- {count:,} {LEFT_OUT[key]}\n" for key, count in found.left_out.items() if count
    )
    campaigns = ""
    for outcomes in found.outcomes:
        agreed = agreement(outcomes)
        campaigns += (
            f"| {outcomes.campaign} | {', '.join(map(_in_table, outcomes.models))} "
            f"| {len(np.unique(outcomes.verdicts.rater))} | {agreed.duels:,} "
            f"| {_with_interval(agreed.percent)} | {_with_interval(agreed.fleiss_kappa)} "
            f"| {_with_interval(agreed.krippendorff_alpha)} |\n"
        )
    chosen = "".join(f"- `{key}`: {value}\n" for key, value in vars(filters).items())
    return f"""---
pretty_name: Preferences of human raters
tags: [preference, rlhf, trl, rlhf-workbench]
---

# Preferences of human raters

{len(rows):,} pairs from {found.votes:,} votes in `{rows[0]["database"]}`, exported at
{rows[0]["exported_at"]}. TRL's preference format with an explicit prompt.

| split | pairs | prompts |
| --- | ---: | ---: |
{splits}
## Left out

{left_out or "Nothing."}
## Agreement of the raters

With 95 % intervals, over the comparisons that two or more of them judged.

| campaign | models | raters | comparisons | same winner | Fleiss κ | Krippendorff α |
| --- | --- | ---: | ---: | --- | --- | --- |
{campaigns}
## How it was made

{chosen}
`margin` is the mean strength of the votes for either answer (2 much better, 1 better), `weight` is
1 / C(K, 2) of an item with K answers, `agreement` the share of the votes that say what the row
says, `confidence` the winner's probability (Dawid-Skene) or the same share. `raters` are numbers.
"""


def _in_table(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _with_interval(found: Estimate | None) -> str:
    if found is None:
        return "–"
    return f"{found.value:.2f} ({found.ci95.low:.2f} to {found.ci95.high:.2f})"


@dataclass(frozen=True)
class _Written:
    """An item, and its answers in the order of its duels.

    Attributes:
        position: place in the campaign.
        long: a chat of several turns.
        answers: model, text, and whether it was finished.
    """

    position: int
    prompt_id: str
    prompt: Prompt
    category: str | None
    long: bool
    answers: list[tuple[str, str, bool]]


@dataclass(frozen=True)
class _Told:
    """What one row is to say of a duel."""

    duel: int
    winner: int  # 1 or -1
    votes: int
    agreement: float
    confidence: float
    margin: float
    share: int  # rows that share the duel's weight


def _campaign_rows(
    store: Store, outcomes: Outcomes, filters: Filters, counts: Counter[str]
) -> Iterator[Row]:
    with store.reading() as session:
        written = _read_written(session, outcomes)
        ids = dict(session.execute(select(User.name, User.id)).all())
    heads = outcomes.verdicts.heads()
    gold = outcomes.duels.gold[heads.duel]
    counts["skips"] += int(heads.skipped.sum())
    counts["gold"] += int((gold & ~heads.skipped).sum())
    counts["repeats"] += int((heads.repeat & ~gold & ~heads.skipped).sum())
    given, of_duel = outcomes.counted, outcomes.duels.item
    starts = np.searchsorted(of_duel, np.arange(len(outcomes.items)))
    by_duel = np.argsort(given.duel, kind="stable")
    bounds = np.searchsorted(given.duel[by_duel], np.arange(len(of_duel) + 1))
    for told in _told(outcomes, filters, counts):
        place = int(of_duel[told.duel])
        found = written[int(outcomes.items[place])]
        duels = list(combinations(found.answers, 2))
        first, second = duels[told.duel - int(starts[place])]
        chosen, rejected = (first, second) if told.winner > 0 else (second, first)
        if found.long:
            counts["multi_turn"] += 1
        elif chosen[1] == rejected[1]:
            counts["identical"] += 1
        elif not (chosen[1].strip() and rejected[1].strip()):
            counts["empty"] += 1
        else:
            raters = given.rater[by_duel[bounds[told.duel] : bounds[told.duel + 1]]]
            yield {
                "prompt": found.prompt,
                "chosen": chosen[1],
                "rejected": rejected[1],
                "margin": told.margin,
                "weight": 1 / (len(duels) * told.share),
                "votes": told.votes,
                "agreement": told.agreement,
                "confidence": told.confidence,
                "chosen_finished": chosen[2],
                "rejected_finished": rejected[2],
                "category": found.category,
                "prompt_id": found.prompt_id,
                "campaign": outcomes.campaign,
                "item": found.position,
                "chosen_model": chosen[0],
                "rejected_model": rejected[0],
                "raters": sorted(ids[outcomes.raters[rater]] for rater in raters.tolist()),
            }


def _told(outcomes: Outcomes, filters: Filters, counts: Counter[str]) -> Iterator[_Told]:
    """Return what the rows are to say, in the order of the duels; the rest is counted."""
    given, size = outcomes.counted, len(outcomes.duels.item)
    votes = np.bincount(given.duel, minlength=size)
    first = np.bincount(given.duel[given.value > 0], minlength=size)
    second = np.bincount(given.duel[given.value < 0], minlength=size)
    strength = np.bincount(given.duel, abs(given.value), minlength=size)
    bad = np.bincount(given.duel[given.both_bad], minlength=size)
    enough = votes >= filters.min_raters
    counts["few_raters"] += int(((votes > 0) & ~enough).sum())
    if filters.consolidate == "none":
        order = np.argsort(given.duel, kind="stable")
        duel, winner = given.duel[order], np.sign(given.value[order])
        called_bad, sure = given.both_bad[order], None
    else:
        one = consolidate(outcomes, filters.consolidate)
        duel, winner, sure = one.duel, one.winner, one.confidence
        called_bad = 2 * bad[duel] > votes[duel]
    for row in np.flatnonzero(enough[duel]).tolist():
        at, side = int(duel[row]), int(winner[row])
        decided = int(first[at] + second[at])
        if side == 0 or not decided:
            counts["both_bad" if called_bad[row] else "ties"] += 1
            continue
        agreement = float((first if side > 0 else second)[at] / votes[at])
        if agreement < filters.min_agreement:
            counts["disagreement"] += 1
            continue
        yield _Told(
            duel=at,
            winner=side,
            votes=int(votes[at]),
            agreement=agreement,
            confidence=agreement if sure is None else float(sure[row]),
            margin=float(strength[at] / decided),
            share=decided if filters.consolidate == "none" else 1,
        )


def failed_raters(outcomes: Outcomes, filters: Filters) -> set[str]:
    """Return the names of the raters that the filters leave out of a campaign."""
    if not filters.drop_failed and filters.min_gold_accuracy is None:
        return set()
    least = filters.min_gold_accuracy or 0.0
    return {
        rater.rater
        for rater in rater_quality(outcomes)
        if (filters.drop_failed and rater.problems)
        or (rater.gold is not None and rater.gold.value < least)
    }


def _read_written(session: Session, outcomes: Outcomes) -> dict[int, _Written]:
    campaign = session.scalars(select(Campaign.id).where(Campaign.name == outcomes.campaign)).one()
    chats = session.scalars(
        select(Assignment.item_id)
        .join(Turn, Turn.assignment_id == Assignment.id)
        .where(Assignment.campaign_id == campaign, Turn.number == 1)
    )
    long = set(chats)
    items = session.execute(
        select(Item.id, Item.position, Item.prompt_id, Item.prompt, Item.category).where(
            Item.campaign_id == campaign
        )
    )
    written = {
        key: _Written(position, prompt_id, prompt, category, key in long, [])
        for key, position, prompt_id, prompt, category in items
    }
    answers = session.execute(
        select(Answer.item_id, Answer.id, Answer.model, Answer.text, Answer.finished)
        .join(Item, Item.id == Answer.item_id)
        .where(Item.campaign_id == campaign)
    ).all()
    # In the order of `Outcomes.models`, as duels are made.
    place = {model: number for number, model in enumerate(outcomes.models)}
    for answer in sorted(answers, key=lambda each: (place[each.model], each.id)):
        written[answer.item_id].answers.append((answer.model, answer.text, answer.finished))
    return written


def _split(rows: list[Row], fraction: float) -> None:
    """Give each row a `split`; a prompt's depends on itself, so that it stays as votes come in."""
    keys = [group_key(row) for row in rows]
    drawn = {key: int(digest("split", key), 16) / 16**16 for key in keys}
    held = {key for key, number in drawn.items() if number < fraction}
    if fraction > 0:
        if len(drawn) < 2:
            raise UserError(f"--test-fraction {fraction}: one prompt cannot be divided")
        held |= {min(drawn, key=drawn.__getitem__)}  # neither side is left empty
        held -= {max(drawn, key=drawn.__getitem__)}
    for row, key in zip(rows, keys, strict=True):
        row["split"] = "test" if key in held else "train"
