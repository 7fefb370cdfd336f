"""Sessions: who is signed in, told by a signed cookie that a new password makes worthless."""

import hashlib
import hmac
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url

from ui.schema import Role, User
from ui.store import Store
from workbench.embedded import cache_home
from workbench.errors import UserError
from workbench.files import digest

COOKIE = "rlhf_session"
LIFETIME = 12 * 3600  # seconds; a working day
_REMEMBERED = 1.0  # seconds that an account is not looked up again: a page loads forty files
_TOKEN = re.compile(r"(\d{1,9})\.(\d{1,12})\.([0-9a-f]{64})")  # databases number in 32 bits


@dataclass(frozen=True)
class SignedIn:
    """The account behind a request."""

    id: int
    name: str
    role: Role


class Sessions:
    """Makes and reads session cookies: account, end and an HMAC-SHA256 over both.

    The account's password hash is signed as well, so that a new password ends all its sessions, and
    making an account inactive ends them too.
    """

    def __init__(
        self, store: Store, secret: bytes, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Set up.

        Args:
            store: of ratings, with the accounts.
            secret: of the signatures, at least 32 bytes.
            clock: gives seconds since 1970.
        """
        self._store, self._secret, self._clock = store, secret, clock
        self._known: dict[int, tuple[float, User | None]] = {}

    def begin(self, user: User) -> str:
        """Return the cookie of a new session."""
        self._known.pop(user.id, None)
        ends = int(self._clock()) + LIFETIME
        return f"{user.id}.{ends}.{self._sign(user, ends)}"

    def find(self, cookie: str | None) -> SignedIn | None:
        """Return who a cookie belongs to, or None when it is forged, over or void."""
        found = _TOKEN.fullmatch(cookie or "")
        if found is None or int(found[2]) <= self._clock():
            return None
        user = self._user(int(found[1]))
        if user is None or not user.active:
            return None
        if not hmac.compare_digest(self._sign(user, int(found[2])), found[3]):
            return None
        return SignedIn(user.id, user.name, user.role)

    def _sign(self, user: User, ends: int) -> str:
        text = f"{user.id}.{ends}.{user.password_hash}"
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()

    def _user(self, user_id: int) -> User | None:
        now = self._clock()
        at, user = self._known.get(user_id, (-_REMEMBERED, None))
        if not 0 <= now - at < _REMEMBERED:
            with self._store.reading() as session:
                user = session.get(User, user_id)
            if user is not None:  # made-up numbers are not remembered
                self._known[user_id] = (now, user)
        return user


def secret_of(url: str) -> bytes:
    """Return the secret of a database's sessions, made at the first call and readable by us only.

    It stands beside an SQLite file, and for a server's database in this account's cache folder.

    Args:
        url: of the database.

    Raises:
        UserError: when the file cannot be read or written.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        path = Path(f"{parsed.database}.secret")
    else:
        path = cache_home() / "ui" / f"{digest(parsed.render_as_string())}.secret"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_secret(path)
        path.chmod(0o600)
        secret = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot keep the secret of the sessions ({error})") from None
    if len(secret) < 32:
        raise UserError(f"{path}: not a secret of sessions; delete it, and all log in again")
    return secret


def _write_secret(path: Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 600
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    try:
        # Unlike a rename, a link leaves the secret that another process has just made.
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        Path(temporary).unlink()
