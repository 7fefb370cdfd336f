"""Mechanical Turk: a campaign's items out as a batch file, the batch's results in as votes."""

import html
import re
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ui.campaigns import LIVE, find_campaign
from ui.display import harmless, storable
from ui.export_files import csv_text, is_formula
from ui.mturk_results import LETTERS, Result, answer_of, read_results
from ui.schedule import drawn_order
from ui.schema import Answer, Assignment, Campaign, Item, User, Vote, utc_now
from ui.store import Store, log_event
from ui.votes import CHOICES
from workbench.chat import Prompt
from workbench.data.conversations import RowError, shorten
from workbench.errors import UserError
from workbench.files import digest, write_text

_WORKER = "mturk-"
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")  # emoji and such: the upload refuses them


@dataclass(frozen=True)
class Batch:
    """A batch file that was written.

    Attributes:
        path: of the file.
        items: its rows.
        raters: assignments to ask for, per row.
        answer: names and values of the form fields that hold a worker's answer.
    """

    path: Path
    items: int
    raters: int
    answer: str


@dataclass(frozen=True)
class Imported:
    """What a results file changed.

    Attributes:
        votes: new ones, skips included.
        unchanged: rows that are votes already.
        raters: workers seen for the first time.
        rejected: rows of assignments whose work was rejected; they are no votes.
        withdrawn: votes taken back, as their work was rejected after an earlier import.
        bad: rows left out by `skip_bad_rows`, one `file:line: why` each.
    """

    votes: int
    unchanged: int
    raters: int
    rejected: int
    withdrawn: int
    bad: tuple[str, ...]


@dataclass(frozen=True)
class _Sent:
    """What a batch file of a campaign holds.

    Attributes:
        items: by the token that stands for them in the file.
        orders: ids of an item's answers from a on, by item id.
        texts: of the answers, by id.
    """

    campaign: Campaign
    items: dict[str, Item]
    orders: dict[int, list[int]]
    texts: dict[int, str]


@dataclass(frozen=True)
class _Ledger:
    """What workers have said so far, kept up to date while rows are taken.

    Attributes:
        users: by name.
        assignments: by the ids of item and user.
        votes: by assignment id.
        places: items to how many more raters they have had.
    """

    users: dict[str, User]
    assignments: dict[tuple[int, int], Assignment]
    votes: dict[str, Vote]
    places: Counter[int]


def export_batch(store: Store, campaign: str, out: Path) -> Batch:
    """Write the items that still want raters, and the gold questions, as a batch file to upload.

    The columns are `item`, `prompt`, `answer_a`, `answer_b`, …, which results have as `Input.item`
    and so on. `item` tells nothing, the rows stand in a drawn order, and the sides of each are
    drawn from the campaign's seed, alike for all workers. Texts are HTML, as the upload puts them
    into its page unchanged.

    Args:
        store: of ratings.
        campaign: its name.
        out: the `.csv` file to write.

    Raises:
        UserError: for a live campaign, and when no item wants raters.
    """
    with store.reading() as session:
        sent = _sent(session, campaign)
    asked, orders = sent.campaign, sent.orders
    wanted = [
        (token, item)
        for token, item in sorted(sent.items.items())
        if item.kind == "gold" or item.taken < asked.raters_per_item
    ]
    if all(item.kind == "gold" for _, item in wanted):
        raise UserError(f"campaign {campaign}: no item wants more raters; nothing to send")
    letters = LETTERS[: max(len(orders[item.id]) for _, item in wanted)]
    rows = [
        [
            token,
            _page_text(_prompt_text(item.prompt)),
            *(_page_text(sent.texts[answer]) for answer in orders[item.id]),
            *("" for _ in letters[len(orders[item.id]) :]),
        ]
        for token, item in wanted
    ]
    write_text(out, csv_text(["item", "prompt", *(f"answer_{x}" for x in letters)], rows))
    with store.session() as session:
        log_event(session, "export", campaign=campaign, format="mturk", rows=len(rows))
    answer = f"choice = {', '.join(CHOICES)}"
    if asked.mode == "ranking":
        answer = f"rank_a … rank_{letters[-1]} = 1 (best) to {len(letters)}, or choice = skip"
    return Batch(out, len(rows), asked.raters_per_item, answer)


def import_results(
    store: Store,
    campaign: str,
    path: Path,
    *,
    skip_bad_rows: bool = False,
    now: datetime | None = None,
) -> Imported:
    """Take the votes of a results file, all at once; the same file again changes nothing.

    Workers become raters `mturk-WORKERID`, who cannot log in. Submitted and approved work counts;
    rejected work does not, and takes back the vote of an earlier import. Votes beyond the
    campaign's raters per item are kept: they were paid for.

    Args:
        store: of ratings.
        campaign: its name.
        path: the `.csv` file of results as downloaded.
        skip_bad_rows: list bad rows rather than import nothing.
        now: the time of the votes; None for this moment.

    Raises:
        UserError: for a closed or live campaign, a file that is not one of results, and bad rows.
    """
    rows, moment = read_results(path), now or utc_now()

    def work(session: Session) -> Imported:
        sent = _sent(session, campaign, lock=True)
        if sent.campaign.status == "closed":
            raise UserError(f"campaign {campaign}: it is closed and takes no more votes")
        ledger = _ledger(session, sent.campaign)
        before, bad, counts = len(ledger.users), [], Counter[str]()
        for where, row in rows.items():
            try:
                counts[_take(session, sent, ledger, row, moment)] += 1
            except RowError as error:
                bad.append(f"{where}: {error}")
        if bad and not skip_bad_rows:
            more = f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""
            raise UserError(f"{bad[0]}{more}; nothing was imported, --skip-bad-rows leaves it out")
        for item_id, places in sorted(ledger.places.items()):
            taken = update(Item).where(Item.id == item_id).values(taken=Item.taken + places)
            session.execute(taken.execution_options(synchronize_session=False))
        done = Imported(
            votes=counts["votes"],
            unchanged=counts["unchanged"],
            raters=len(ledger.users) - before,
            rejected=counts["rejected"],
            withdrawn=counts["withdrawn"],
            bad=tuple(bad),
        )
        if done.votes or done.withdrawn:
            log_event(session, "import", at=moment, campaign=campaign, format="mturk", **counts)
        return done

    try:
        return store.run(work)
    except IntegrityError:
        raise UserError(f"{path}: imported twice at the same moment; try again") from None


def _take(
    session: Session, sent: _Sent, ledger: _Ledger, row: Result | RowError, now: datetime
) -> str:
    """Bring one row into the session; returns which count of `Imported` it belongs to."""
    if isinstance(row, RowError):
        raise row
    item = sent.items.get(row.item)
    if item is None:
        raise RowError(f"Input.item {shorten(row.item)} is not of campaign {sent.campaign.name}")
    order = sent.orders[item.id]
    for letter, answer in zip(LETTERS, order, strict=False):
        shown = row.cell(f"Input.answer_{letter}")
        if shown is not None and _plain(shown) != _plain(_page_text(sent.texts[answer])):
            raise RowError(f"Input.answer_{letter} is not the text that was sent for this item")
    user = ledger.users.get(f"{_WORKER}{row.worker}")
    assignment = None if user is None else ledger.assignments.get((item.id, user.id))
    key = blake2b(f"{sent.campaign.id} {row.assignment}".encode(), digest_size=16).hexdigest()
    if assignment is not None and assignment.id != key:
        raise RowError(f"worker {row.worker} has rated this item in another assignment")
    standing = ledger.votes.get(key)
    if row.status == "Rejected":
        if standing is None or assignment is None:
            return "rejected"
        _withdraw(session, ledger, item, assignment)
        return "withdrawn"
    choice, ranks = answer_of(row, sent.campaign.mode, len(order))
    if standing is not None:
        if (standing.choice, standing.ranks) != (choice, ranks):
            raise RowError(f"assignment {row.assignment} was imported with another answer")
        return "unchanged"
    if user is None:
        # No password fits, and the account is not active: workers rate there, not here.
        name = f"{_WORKER}{row.worker}"
        user = User(name=name, role="rater", password_hash="!", active=False, created=now)
        session.add(user)
        session.flush()
        ledger.users[name] = user
    if assignment is None:
        begun = now - timedelta(seconds=row.seconds)
        assignment = Assignment(
            id=key,
            campaign_id=sent.campaign.id,
            item_id=item.id,
            user_id=user.id,
            purpose="gold" if item.kind == "gold" else "normal",
            order=order,
            created=begun,
            expires=now,
        )
        session.add(assignment)
        ledger.assignments[item.id, user.id] = assignment
    assignment.status = "skipped" if choice == "skip" else "voted"
    if item.kind != "gold" and choice != "skip":
        ledger.places[item.id] += 1
    session.flush()  # the vote refers to the assignment by its id only
    ledger.votes[key] = Vote(
        assignment_id=key,
        campaign_id=sent.campaign.id,
        user_id=user.id,
        choice=choice,
        ranks=ranks,
        flags={},
        comment=storable(row.comment),
        seconds=row.seconds,
        created=now,
        updated=now,
    )
    session.add(ledger.votes[key])
    return "votes"


def _withdraw(session: Session, ledger: _Ledger, item: Item, assignment: Assignment) -> None:
    session.delete(ledger.votes.pop(assignment.id))
    if item.kind != "gold" and assignment.status == "voted":
        ledger.places[item.id] -= 1
    assignment.status = "expired"


def _sent(session: Session, name: str, *, lock: bool = False) -> _Sent:
    campaign = find_campaign(session, name)
    if campaign.mode in LIVE:
        raise UserError(
            f"campaign {name}: a {campaign.mode} campaign is live; no batch can hold it"
        )
    if lock:  # one import after the other
        session.execute(select(Campaign.id).where(Campaign.id == campaign.id).with_for_update())
    items = list(session.scalars(select(Item).where(Item.campaign_id == campaign.id)))
    answers = session.execute(
        select(Answer.id, Answer.item_id, Answer.text)
        .join(Item, Item.id == Answer.item_id)
        .where(Item.campaign_id == campaign.id)
        .order_by(Answer.id)
    ).all()
    ids: dict[int, list[int]] = {}
    for answer in answers:
        ids.setdefault(answer.item_id, []).append(answer.id)
    return _Sent(
        campaign,
        items={digest("mturk", campaign.seed, name, item.position): item for item in items},
        orders={
            item.id: drawn_order(campaign, item.position, _WORKER, ids[item.id]) for item in items
        },
        texts={answer.id: answer.text for answer in answers},
    )


def _ledger(session: Session, campaign: Campaign) -> _Ledger:
    users = list(session.scalars(select(User).where(User.name.startswith(_WORKER))))
    workers = (Assignment.campaign_id == campaign.id, User.name.startswith(_WORKER))
    of_workers = select(Assignment).join(User, User.id == Assignment.user_id).where(*workers)
    assignments = list(session.scalars(of_workers))
    votes = session.scalars(
        select(Vote)
        .join(Assignment, Assignment.id == Vote.assignment_id)
        .join(User, User.id == Assignment.user_id)
        .where(*workers)
    )
    return _Ledger(
        users={user.name: user for user in users},
        assignments={(lent.item_id, lent.user_id): lent for lent in assignments},
        votes={vote.assignment_id: vote for vote in votes},
        places=Counter(),
    )


def _prompt_text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in prompt)


def _page_text(text: str) -> str:
    """Return a text as HTML in one line; a spreadsheet sees no formula, a worker no apostrophe."""
    cell = html.escape(harmless(text)).replace("\n", "<br>")
    cell = _ASTRAL.sub(lambda found: f"&#{ord(found[0])};", cell)
    return f"&#{ord(cell[0])};{cell[1:]}" if is_formula(cell) else cell


def _plain(cell: str) -> str:
    return " ".join(html.unescape(cell).split())
