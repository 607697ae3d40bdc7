"""Sessions and forms end when they must, and only what this console made is believed."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from itsdangerous import BadSignature, Signer
from structlog.testing import capture_logs

from keyturn.crypto import Secret, check_api_key
from keyturn.errors import SettingsError
from keyturn_workers.console.auth.sessions import (
    Account,
    Sessions,
    SignedOut,
    StrictSigner,
    StrictTimestampSigner,
    stamp,
)
from keyturn_workers.console.form_tokens import FormExpiredError, FormTokens, FreshKeys

if TYPE_CHECKING:
    from pathlib import Path

_KIM = Account("password", "kim", "kim", "operate", "stamp")
_HOSTILE = "../<script>\u202e\x00' --"


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


def test_it_is_remembered_until_the_session_would_have_ended() -> None:
    now = [100.0]
    signed_out = SignedOut(None, clock=lambda: now[0])
    signed_out.add("one", 200)
    assert "one" in signed_out
    assert "two" not in signed_out
    now[0] = 300
    signed_out.add("two", 400)
    assert "one" not in signed_out


def test_a_file_survives_a_restart_and_keeps_no_old_lines(tmp_path: Path) -> None:
    path = tmp_path / "signed-out"
    now = [100.0]
    for session, end in (("one", 200), ("two", 400)):
        SignedOut(path, clock=lambda: now[0]).add(session, end)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "one" in SignedOut(path, clock=lambda: now[0])
    now[0] = 300
    restarted = SignedOut(path, clock=lambda: now[0])
    assert "two" in restarted
    assert "one" not in restarted
    assert path.read_text() == "two 400\n"


def test_a_file_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="CONSOLE_SIGNED_OUT_FILE"):
        SignedOut(tmp_path)
    malformed = tmp_path / "malformed"
    malformed.write_text("no line of ours\n")
    with pytest.raises(SettingsError, match="CONSOLE_SIGNED_OUT_FILE"):
        SignedOut(malformed)


def test_a_disk_that_fails_later_does_not_keep_anybody_signed_in(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    signed_out = SignedOut(folder / "signed-out")
    (folder / "signed-out").unlink()
    folder.rmdir()
    with capture_logs() as logs:
        signed_out.add("one", 1e10)
    assert "one" in signed_out
    assert [line["event"] for line in logs] == ["sign-out not recorded in the file"]


@pytest.mark.parametrize("signer", [StrictSigner(b"key"), StrictTimestampSigner(b"key")])
def test_a_signature_is_the_text_that_the_signer_writes(signer: Signer) -> None:
    signed = signer.sign("value").decode()
    assert signer.unsign(signed) == b"value"
    for other in (signed + "=", signed[:-1] + "\n" + signed[-1], signed[:-2], signed + "é"):
        with pytest.raises(BadSignature):
            signer.unsign(other)


def test_the_library_reads_more_than_one() -> None:
    """Why these classes exist. If this fails, they can go."""
    lenient = Signer(b"key")
    assert lenient.unsign(lenient.sign("value") + b"=") == b"value"


def test_signatures_of_the_library_stay_valid() -> None:
    """So no update signs anyone out."""
    assert StrictSigner(b"key").unsign(Signer(b"key").sign("value")) == b"value"


def test_a_token_says_what_its_form_is_about() -> None:
    tokens = FormTokens()
    token = tokens.make("s1", "delete", "acme", _HOSTILE)
    form = tokens.read(token, "s1", "delete")
    assert form.subject == ("acme", _HOSTILE)
    assert form == tokens.read(token, "s1", "delete")
    assert form.request_id != tokens.read(tokens.make("s1", "delete"), "s1", "delete").request_id


@pytest.mark.parametrize(("session", "purpose"), [("s2", "delete"), ("s1", "sweep")])
def test_a_token_of_another_session_or_purpose_is_refused(session: str, purpose: str) -> None:
    tokens = FormTokens()
    token = tokens.make("s1", "delete", "acme")
    with pytest.raises(FormExpiredError):
        tokens.read(token, session, purpose)


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "é\x00"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(FormExpiredError):
        FormTokens().read(token, "s1", "delete")


def test_a_token_of_another_process_or_too_old_is_refused() -> None:
    token = FormTokens().make("s1", "delete", "acme")
    with pytest.raises(FormExpiredError):
        FormTokens().read(token, "s1", "delete")
    tokens = FormTokens()
    with pytest.raises(FormExpiredError):
        tokens.read(tokens.make("s1", "delete"), "s1", "delete", life_s=-1)


async def test_a_key_is_held_for_its_own_session_until_it_is_dropped() -> None:
    keys = FreshKeys()
    fresh = keys.make("s1", "acme", 3)
    check_api_key(fresh.api_key.get_secret_value())
    assert fresh.api_key.get_secret_value() not in repr(fresh)
    assert keys.find(fresh.request_id, "s2") is None
    assert keys.find(fresh.request_id, "s1") == fresh
    keys.drop(fresh.request_id)
    assert keys.find(fresh.request_id, "s1") is None


async def test_only_the_key_that_was_shown_last_can_be_published() -> None:
    keys = FreshKeys()
    first, elsewhere, other = (
        keys.make("s1", "acme", 3),
        keys.make("s2", "acme", 3),
        keys.make("s1", "zoo", 1),
    )
    second = keys.make("s1", "acme", 3)
    assert keys.find(first.request_id, "s1") is None
    assert second.api_key != first.api_key
    assert keys.find(second.request_id, "s1") == second
    assert keys.find(elsewhere.request_id, "s2") == elsewhere
    assert keys.find(other.request_id, "s1") == other


async def test_a_key_expires() -> None:
    keys = FreshKeys(life_s=0.01)
    fresh = keys.make("s1", "acme", 3)
    await asyncio.sleep(0.03)
    assert keys.find(fresh.request_id, "s1") is None


async def test_memory_is_bounded() -> None:
    keys = FreshKeys(max_held=2)
    made = [keys.make("s1", f"p{number}", 1) for number in range(3)]
    held = [one for one in made if keys.find(one.request_id, "s1") is not None]
    assert held == made[1:]
