"""The numbers of a campaign as a researcher reads them: who wins, how surely, how good raters are.

Reads the votes once; everything shown together is of the same moment. Until the next vote it is
not worked out again.
"""

import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from ui import plots
from ui.agreement import Agreement, RaterQuality, agreement, rater_quality
from ui.campaigns import find_campaign
from ui.html import render
from ui.leaderboard import (
    BradleyTerry,
    ControlledWinRate,
    Cost,
    WinRate,
    bradley_terry,
    controlled_win_rates,
    cost,
    votes_needed,
    win_rates,
)
from ui.outcomes import Outcomes, read_outcomes
from ui.schema import Campaign, Item, Vote
from ui.store import Store
from workbench.errors import UserError
from workbench.logs import console

_MOST_PRELOADED, _WORTH_PRELOADING = 2, 20_000  # campaigns; votes
_MOST_KEPT = 4  # dashboards; of a million votes one takes some 70 MB
_kept: "WeakKeyDictionary[Store, dict[Any, Dashboard]]" = WeakKeyDictionary()
_working = threading.Lock()  # two who ask at once are served by one computation


@dataclass(frozen=True)
class Dashboard:
    """What is known of a campaign.

    Attributes:
        stamp: of the votes, read before them: when it is the same, so are they.
        everything: all outcomes; progress and cost are of these.
        outcomes: those looked at: of one category, or without some raters.
        failed: raters whose checks say that they guess or hurry.
        left_out: those of them that were left out.
        rates: of every two models.
        controlled: likewise, at equal length.
        board: the models' strengths.
        agreement: of the raters.
        raters: each of them, over all outcomes.
        cost: so far and to the end.
    """

    stamp: tuple[int, ...]
    everything: Outcomes
    outcomes: Outcomes
    failed: tuple[str, ...]
    left_out: tuple[str, ...]
    rates: list[WinRate]
    controlled: list[ControlledWinRate]
    board: BradleyTerry
    agreement: Agreement
    raters: list[RaterQuality]
    cost: Cost

    def numbers(self) -> str:
        """Return the key numbers as HTML."""
        return self._numbers

    def results(self) -> str:
        """Return the plots and tables of models as HTML."""
        return self._results

    def people(self) -> str:
        """Return the plot and the table of raters as HTML."""
        return self._people

    @cached_property
    def _numbers(self) -> str:
        return render(
            "numbers.html",
            cost=self.cost,
            raters=len(self.everything.raters),
            agreement=self.agreement,
            left_out=self.left_out,
        )

    @cached_property
    def _results(self) -> str:
        needed = [votes_needed(rate) for rate in self.rates]
        drawn = [
            plots.win_rates(self.rates, self.controlled),
            plots.strengths(self.board),
            plots.agreement(self.agreement),
            plots.votes_over_time(self.everything, self.cost),
        ]
        return render(
            "results.html",
            plots=drawn,
            rates=list(zip(self.rates, self.controlled, needed, strict=True)),
            board=self.board,
            agreement=self.agreement,
            unit=self.outcomes.length_unit,
        )

    @cached_property
    def _people(self) -> str:
        return render("raters.html", plot=plots.raters(self.raters), raters=self.raters)


def read_dashboard(
    store: Store, campaign: str, *, category: str | None = None, drop_failed: bool = False
) -> Dashboard:
    """Read the votes of a campaign and work out its numbers.

    Args:
        store: of ratings.
        campaign: its name.
        category: looks at the items of one category only.
        drop_failed: leaves out raters that failed their checks.

    Raises:
        UserError: when there is no campaign of that name.
    """
    with _working:
        asked = (campaign, category, drop_failed)
        stamp, kept = _stamp(store, campaign), _kept.setdefault(store, {})
        known = kept.pop(asked, None)
        if known is None or known.stamp != stamp:
            known = _work_out(store, stamp, *asked)
        kept[asked] = known  # last, so that those not asked for in a while are first
        while len(kept) > _MOST_KEPT:
            del kept[next(iter(kept))]
        return known


def _stamp(store: Store, campaign: str) -> tuple[int, ...]:
    """Return numbers that change with every vote, every undo and every item of a campaign."""
    with store.reading() as session:
        asked = find_campaign(session, campaign)
        items = select(func.count(), func.max(Item.id)).where(Item.campaign_id == asked.id)
        votes = select(func.count(), func.max(Vote.id)).where(Vote.campaign_id == asked.id)
        return (asked.id, *session.execute(items).one(), *session.execute(votes).one())


def _work_out(
    store: Store, stamp: tuple[int, ...], campaign: str, category: str | None, drop_failed: bool
) -> Dashboard:
    everything = read_outcomes(store, campaign)
    raters = rater_quality(everything)
    failed = tuple(rater.rater for rater in raters if rater.problems)
    left_out: Collection[str] = failed if drop_failed else ()
    looked_at = everything.without(left_out) if left_out else everything
    if category is not None:
        looked_at = looked_at.only(category)
    return Dashboard(
        stamp=stamp,
        everything=everything,
        outcomes=looked_at,
        failed=failed,
        left_out=tuple(left_out),
        rates=win_rates(looked_at),
        controlled=controlled_win_rates(looked_at),
        board=bradley_terry(looked_at),
        agreement=agreement(looked_at),
        raters=raters,
        cost=cost(everything),
    )


def import_drawing() -> None:
    """Import what numbers and plots need, so that the first to open the page need not wait."""
    import choix  # noqa: F401 - the import is what is wanted
    from matplotlib.backends import backend_svg  # noqa: F401 - as above


def preload(store: Store) -> None:
    """Work out the numbers of the campaigns of the most votes, if these are many.

    So nobody has to wait for them. Trouble with the database is left to those who ask.
    """
    votes = func.count(Vote.id)
    counted = select(Campaign.name, votes).join_from(Campaign, Vote).group_by(Campaign.id)
    with suppress(SQLAlchemyError, UserError):
        with store.reading() as session:
            largest = session.execute(counted.order_by(votes.desc()).limit(_MOST_PRELOADED)).all()
        for name, count in largest:
            if count >= _WORTH_PRELOADING:
                console.print(f"working out the numbers of {name}, {count:,} votes", markup=False)
                dashboard = read_dashboard(store, name)
                dashboard.numbers(), dashboard.results(), dashboard.people()
