"""Why the ratings store refuses a request, or cannot serve it."""

from typing import Literal

from workbench.errors import UserError

Reason = Literal[
    "unknown",  # no such assignment, or nothing to undo
    "inactive",  # the account may not log in any more
    "not_yours",  # somebody else's assignment
    "expired",  # the lease ran out
    "already_voted",  # another vote stands; undo it first
    "closed",  # the campaign takes no more votes
    "paused",  # the campaign lends nothing at the moment
    "taken",  # others have filled the item meanwhile
    "revealed",  # the names have been shown, so a new vote would not be blind
    "invalid",  # the vote does not fit the item
    "too_many",  # too many requests or log-in attempts
]


class Trouble(UserError):  # noqa: N818 - as `Refused`
    """The database does not serve us: locked, full, gone. For the log, and nothing for raters."""


class Refused(UserError):  # noqa: N818 - `raise Refused(…)` says what happens
    """A request that the store refuses, in one line for the rater and one word for the program.

    Attributes:
        reason: for a page or an HTTP status to decide on.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
