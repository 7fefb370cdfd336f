import time
from itertools import count

import pytest
from sqlalchemy import select

from tests.ui.samples import PASSWORD
from ui.accounts import (
    LoginLimiter,
    RateLimiter,
    add_user,
    change_user,
    find_user,
    list_users,
    verify,
)
from ui.errors import Refused
from ui.schema import Event, User
from workbench.errors import UserError


def test_the_right_password_opens_the_account_and_no_other(store):
    add_user(store, "ann", PASSWORD)
    add_user(store, "bea", "another one", role="researcher")
    assert verify(store, "ann", PASSWORD).name == "ann"
    assert verify(store, "bea", "another one").role == "researcher"
    for name, password in (
        ("ann", "another one"), ("ann", ""), ("ann", PASSWORD + " "), ("Ann", PASSWORD),
        ("nobody", PASSWORD), ("", ""), ("an\0n", PASSWORD), ("a\ud800", "\ud800"),
        ("ann", "x" * 2_000_000),
    ):  # fmt: skip
        assert verify(store, name, password) is None, (name, password[:20])


def test_passwords_are_kept_as_salted_argon2id(store):
    ann, bob = add_user(store, "ann", PASSWORD), add_user(store, "bob", PASSWORD)
    assert ann.password_hash.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert ann.password_hash != bob.password_hash
    with store.reading() as session:
        kept = [vars(row) for table in (User, Event) for row in session.scalars(select(table))]
    assert len(kept) == 4
    assert PASSWORD not in str(kept)


def test_a_hash_of_older_settings_is_renewed_at_log_in(store):
    from argon2 import PasswordHasher

    add_user(store, "ann", PASSWORD)
    with store.session() as session:
        find_user(session, "ann").password_hash = PasswordHasher(1, 8192, 1).hash(PASSWORD)
    assert verify(store, "ann", PASSWORD) is not None
    with store.reading() as session:
        assert "m=19456" in find_user(session, "ann").password_hash
    assert verify(store, "ann", PASSWORD) is not None


def test_an_unknown_name_costs_as_much_as_a_wrong_password(store):
    add_user(store, "ann", PASSWORD)

    def quickest(name):
        verify(store, name, "wrong password")
        times = []
        for _ in range(5):
            start = time.thread_time()
            verify(store, name, "wrong password")
            times.append(time.thread_time() - start)
        return min(times)

    known, unknown = quickest("ann"), quickest("nobody")
    assert 0.5 < known / unknown < 2


@pytest.mark.parametrize(
    ("name", "password", "role", "message"),
    [
        ("ann", PASSWORD, "rater", "there is one of that name already"),
        ("", PASSWORD, "rater", "a name is 1 to 64 letters"),
        ("a b", PASSWORD, "rater", "a name is 1 to 64 letters"),
        ("<b>", PASSWORD, "rater", "a name is 1 to 64 letters"),
        ("x" * 65, PASSWORD, "rater", "a name is 1 to 64 letters"),
        ("bob", "short", "rater", "a password has 8 to 1024 characters"),
        ("bob", "half a \ud800 character", "rater", "a password has 8 to 1024 characters"),
        ("bob", "x" * 1025, "rater", "a password has 8 to 1024 characters"),
        ("bob", PASSWORD, "queen", "choose rater or researcher"),
    ],
)
def test_an_impossible_account_is_one_line(store, name, password, role, message):
    add_user(store, "ann", PASSWORD)
    with pytest.raises(UserError, match=message):
        add_user(store, name, password, role)
    assert [user.name for user in list_users(store)] == ["ann"]


def test_an_account_can_be_changed_and_shut(store):
    add_user(store, "ann", PASSWORD)
    change_user(store, "ann", password="something else", role="researcher")
    assert verify(store, "ann", PASSWORD) is None
    assert verify(store, "ann", "something else").role == "researcher"
    change_user(store, "ann", active=False)
    assert verify(store, "ann", "something else") is None
    change_user(store, "ann", active=True)
    assert verify(store, "ann", "something else") is not None
    with store.reading() as session:
        events = [(e.what, e.detail) for e in session.scalars(select(Event).order_by(Event.id))]
    assert events[:3] == [
        ("add_user", {"name": "ann", "role": "rater"}),
        ("change_user", {"name": "ann", "changed": ["password", "role"]}),
        ("change_user", {"name": "ann", "changed": ["active"]}),
    ]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("anne", {"active": False}, "user 'anne': there is no such account; did you mean ann?"),
        ("ann", {"password": "short"}, "a password has 8 to 1024"),
        ("ann", {"role": "queen"}, "choose rater or researcher"),
    ],
)
def test_an_impossible_change_is_one_line(store, name, changes, message):
    add_user(store, "ann", PASSWORD)
    with pytest.raises(UserError, match=message):
        change_user(store, name, **changes)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_guessing_one_name_is_stopped_from_anywhere():
    clock = Clock()
    limiter = LoginLimiter(per_name=3, per_address=100, window=300, clock=clock)
    for address in ("a", "b", "c"):
        limiter.attempt("ann", address)
        clock.now += 10
    with pytest.raises(Refused, match="try again in 5 min") as caught:
        limiter.attempt("ann", "d")
    assert caught.value.reason == "too_many"
    limiter.attempt("bob", "a")  # others are let in
    clock.now = 1000 + 301  # and the first attempt is forgotten
    limiter.attempt("ann", "d")
    with pytest.raises(Refused):
        limiter.attempt("ann", "d")


def test_one_address_cannot_try_all_names():
    limiter = LoginLimiter(per_name=3, per_address=5, clock=Clock())
    for number in range(5):
        limiter.attempt(f"user {number}", "a")
    with pytest.raises(Refused):
        limiter.attempt("user 5", "a")
    limiter.attempt("user 5", "b")


def test_those_who_know_their_password_are_never_stopped():
    limiter = LoginLimiter(per_name=3, per_address=5, clock=Clock())
    for number in range(50):
        limiter.attempt(f"rater {number % 10}", "office")
        limiter.succeeded(f"rater {number % 10}", "office")


def test_a_limiter_forgets_what_is_long_past():
    clock = Clock()
    limiter = LoginLimiter(clock=clock)
    for number in range(12_000):
        clock.now += 1
        limiter.attempt(f"name {number}", f"address {number}")
    assert len(limiter._attempts) < 10_010


def test_a_bucket_gives_a_burst_and_then_a_rate():
    clock = Clock()
    limiter = RateLimiter(per_second=2, burst=5, clock=clock)
    assert [limiter.allow("ann") for _ in range(6)] == [True] * 5 + [False]
    assert limiter.allow("bob")
    clock.now += 0.5
    assert [limiter.allow("ann") for _ in range(2)] == [True, False]
    clock.now += 3600
    assert [limiter.allow("ann") for _ in range(6)] == [True] * 5 + [False]


def test_a_bucket_lets_the_rate_through_in_the_long_run():
    clock = Clock()
    limiter = RateLimiter(per_second=2, burst=5, clock=clock)
    passed = 0
    for _ in count():
        if clock.now >= 1100:
            break
        passed += limiter.allow("ann")
        clock.now += 0.125  # exact in binary: eight requests a second for 100 seconds
    assert passed == 2 * 100 + 4
