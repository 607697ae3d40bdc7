"""A session ends when it must, and no cookie is believed that this console did not make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from keyturn.crypto import Secret
from keyturn_workers.console.auth.sessions import Account, Sessions, stamp
from keyturn_workers.console.auth.signed_out import SignedOut

_KIM = Account("password", "kim", "kim", "operate", "stamp")


@dataclass
class _Console:
    """Sessions at a time and with accounts that a test changes."""

    now: float = 1_000_000.0
    stamps: dict[str, str] = field(default_factory=lambda: {"kim": "stamp"})
    signed_out: SignedOut = field(default_factory=lambda: SignedOut(None))

    def sessions(self, key: bytes = b"k" * 32) -> Sessions:
        return Sessions(
            Secret(key),
            lambda _kind, account, _role: self.stamps.get(account),
            self.signed_out,
            session_s=1000,
            idle_s=100,
            clock=lambda: self.now,
        )


def test_a_cookie_names_the_person_after_a_restart_too() -> None:
    console = _Console()
    cookie = console.sessions().begin(_KIM)
    session = console.sessions().read(cookie)
    assert session is not None
    assert (session.person.name, session.person.role) == ("kim", "operate")
    assert session.person.id == "password:kim"
    assert session.ends_at == console.now + 1000


def test_each_sign_in_has_an_id_and_a_token_of_its_own() -> None:
    sessions = _Console().sessions()
    first, second = (sessions.read(sessions.begin(_KIM)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.id != second.id
    assert first.csrf != second.csrf
    assert first.id not in first.csrf


@pytest.mark.parametrize("cookie", [None, "", "a", "W10.a", "null.a"])
def test_what_is_no_cookie_is_nobody(cookie: str | None) -> None:
    assert _Console().sessions().read(cookie) is None


def test_a_changed_cookie_is_refused() -> None:
    sessions = _Console().sessions()
    cookie = sessions.begin(_KIM)
    for position in range(0, len(cookie) - 1, 7):
        other = "A" if cookie[position] != "A" else "B"
        assert sessions.read(cookie[:position] + other + cookie[position + 1 :]) is None


def test_another_key_signs_everybody_out() -> None:
    console = _Console()
    assert console.sessions(b"n" * 32).read(console.sessions().begin(_KIM)) is None


def test_it_ends_without_an_action() -> None:
    console = _Console()
    cookie = console.sessions().begin(_KIM)
    console.now += 99
    assert console.sessions().read(cookie) is not None
    console.now += 1
    assert console.sessions().read(cookie) is None


def test_actions_keep_it_but_not_for_ever() -> None:
    console = _Console()
    sessions = console.sessions()
    cookie = sessions.begin(_KIM)
    first = sessions.read(cookie)
    for _ in range(19):
        console.now += 50
        assert sessions.read(cookie) == first
        cookie = sessions.renew(cookie) or cookie
    console.now += 50
    assert sessions.read(cookie) is None


def test_a_cookie_is_not_written_at_each_action() -> None:
    console = _Console()
    sessions = console.sessions()
    cookie = sessions.begin(_KIM)
    console.now += 9
    assert sessions.renew(cookie) is None
    console.now += 1
    assert sessions.renew(cookie) not in (None, cookie)


def test_no_copy_of_a_cookie_outlives_the_sign_out() -> None:
    console = _Console()
    sessions = console.sessions()
    cookie = sessions.begin(_KIM)
    console.now += 50
    copy = sessions.renew(cookie)
    session = sessions.read(cookie)
    assert session is not None
    sessions.end(session)
    assert sessions.read(cookie) is None
    assert sessions.read(copy) is None
    assert console.sessions().read(copy) is None


def test_it_ends_with_its_account() -> None:
    console = _Console()
    cookie = console.sessions().begin(_KIM)
    console.stamps["kim"] = "of another password"
    assert console.sessions().read(cookie) is None
    del console.stamps["kim"]
    assert console.sessions().read(cookie) is None


def test_a_stamp_changes_with_each_of_its_parts() -> None:
    assert len({stamp("a", "b"), stamp("ab"), stamp("a", "c"), stamp("b", "a")}) == 4
    assert replace(_KIM, id="lee").person.id == "password:lee"
