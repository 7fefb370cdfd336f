"""Who may rate and who may see the results: accounts, passwords, and limits on trying."""

import math
import re
import secrets
import threading
import time
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from ui.display import storable
from ui.errors import Refused
from ui.schema import Role, User
from ui.store import Store, log_event
from workbench.errors import UserError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

SHORTEST_PASSWORD = 8
LONGEST_PASSWORD = 1024  # argon2 reads it all; a megabyte would keep a core busy
_NAME = re.compile(r"[\w.@+-]{1,64}")
_FORGET_ABOVE = 10_000  # entries of a limiter before stale ones are thrown out


def add_user(store: Store, name: str, password: str, role: Role = "rater") -> User:
    """Make an account.

    Args:
        store: of ratings.
        name: letters, digits and . _ @ + -, at most 64.
        password: at least 8 characters.
        role: raters rate; researchers also see and change everything.

    Raises:
        UserError: for a name that is taken or impossible, and a password that is too short.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"user {name!r}: a name is 1 to 64 letters, digits or . _ @ + -")
    _check_role(role)
    hashed = _hash(name, password)
    try:
        with store.session() as session:
            user = User(name=name, role=role, password_hash=hashed)
            session.add(user)
            session.flush()
            log_event(session, "add_user", name=name, role=role)
            return user
    except IntegrityError:
        raise UserError(f"user {name}: there is one of that name already") from None


def change_user(
    store: Store,
    name: str,
    *,
    password: str | None = None,
    role: Role | None = None,
    active: bool | None = None,
) -> User:
    """Change what is given of an account; an inactive one cannot log in, its votes stay.

    Raises:
        UserError: for an unknown name, role, or a password that is too short.
    """
    hashed = None if password is None else _hash(name, password)
    with store.session() as session:
        user = find_user(session, name)
        if hashed is not None:
            user.password_hash = hashed
        if role is not None:
            _check_role(role)
            user.role = role
        if active is not None:
            user.active = active
        changed = [
            key
            for key, value in (("password", password), ("role", role), ("active", active))
            if value is not None
        ]
        log_event(session, "change_user", name=name, changed=changed)
        return user


def find_user(session: Session, name: str) -> User:
    """Return the account of a name.

    Raises:
        UserError: when there is none; names the nearest.
    """
    user = session.scalar(select(User).where(User.name == name))
    if user is None:
        near = get_close_matches(name, session.scalars(select(User.name)).all(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"user {name!r}: there is no such account{hint}")
    return user


def list_users(store: Store) -> list[User]:
    """Return all accounts, by name."""
    with store.reading() as session:
        return list(session.scalars(select(User).order_by(User.name)))


def verify(store: Store, name: str, password: str) -> User | None:
    """Return the account if name and password are right and it is active, else None.

    An unknown name costs the same work as a wrong password, so that the time tells nothing.
    """
    from argon2.exceptions import InvalidHashError, VerificationError

    if len(password) > LONGEST_PASSWORD or storable(password) != password:
        return None
    user = None
    if _NAME.fullmatch(name):  # PostgreSQL takes neither NUL nor half a character
        with store.reading() as session:
            user = session.scalar(select(User).where(User.name == name))
    try:
        _hasher().verify(_nobodys_hash() if user is None else user.password_hash, password)
    except (VerificationError, InvalidHashError):
        return None
    if user is None or not user.active:
        return None
    if _hasher().check_needs_rehash(user.password_hash):
        with store.session() as session:
            find_user(session, name).password_hash = _hasher().hash(password)
    return user


class LoginLimiter:
    """Counts log-ins that failed, per name and per address, and refuses more for a while.

    Kept in memory by one server process; safe to use from many threads.
    """

    def __init__(
        self,
        per_name: int = 10,
        per_address: int = 100,
        window: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the limits.

        Args:
            per_name: attempts on one name within the window.
            per_address: attempts from one address; a whole office may come from one.
            window: in seconds.
            clock: gives seconds.
        """
        self.limits = {"name": per_name, "address": per_address}
        self.window, self.clock = window, clock
        self._lock = threading.Lock()
        self._attempts: dict[tuple[str, str], list[float]] = {}

    def attempt(self, name: str, address: str) -> None:
        """Count an attempt before the password is looked at, or refuse it.

        Raises:
            Refused: `too_many`, with the minutes to wait.
        """
        now = self.clock()
        keys = (("name", name[:64]), ("address", address))
        with self._lock:
            if len(self._attempts) > _FORGET_ABOVE:
                self._attempts = {
                    key: kept for key in self._attempts if (kept := self._recent(key, now))
                }
            for key in keys:
                recent = self._recent(key, now)
                if len(recent) >= self.limits[key[0]]:
                    minutes = math.ceil((recent[0] + self.window - now) / 60)
                    raise Refused(
                        "too_many", f"too many log-ins failed; try again in {minutes} min"
                    )
            for key in keys:
                self._attempts[key] = [*self._recent(key, now), now]

    def succeeded(self, name: str, address: str) -> None:
        """Forget the attempts on a name, and one from the address: they were no guesses."""
        with self._lock:
            self._attempts.pop(("name", name[:64]), None)
            if attempts := self._attempts.get(("address", address)):
                attempts.pop()

    def _recent(self, key: tuple[str, str], now: float) -> list[float]:
        return [moment for moment in self._attempts.get(key, ()) if moment > now - self.window]


class RateLimiter:
    """A token bucket per user: `burst` requests at once, `per_second` in the long run."""

    def __init__(
        self,
        per_second: float = 5.0,
        burst: int = 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_second, self.burst, self.clock = per_second, burst, clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and when

    def allow(self, user: str) -> bool:
        """Return whether the user may do one more thing now, and count it."""
        now = self.clock()
        with self._lock:
            if len(self._buckets) > _FORGET_ABOVE:  # a full bucket is as good as none
                full = self.burst / self.per_second
                self._buckets = {u: b for u, b in self._buckets.items() if now - b[1] < full}
            tokens, before = self._buckets.get(user, (float(self.burst), now))
            tokens = min(self.burst, tokens + (now - before) * self.per_second)
            self._buckets[user] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1


def _check_role(role: str) -> None:
    if role not in ("rater", "researcher"):
        raise UserError(f"role {role!r}: choose rater or researcher")


def _hash(name: str, password: str) -> str:
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD or storable(password) != password:
        raise UserError(
            f"user {name}: a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters"
        )
    return _hasher().hash(password)


@cache
def _hasher() -> "PasswordHasher":
    from argon2 import PasswordHasher

    # Argon2id as OWASP's password storage cheat sheet has it: 19 MiB, so that fifty people who log
    # in at once fit into a small machine.
    return PasswordHasher(memory_cost=19_456, time_cost=2, parallelism=1)


@cache
def _nobodys_hash() -> str:
    return _hasher().hash(secrets.token_urlsafe())
