"""A form's token is of one session and one purpose, and has an end."""

from __future__ import annotations

import asyncio

import pytest

from keyturn.crypto import check_api_key
from keyturn_workers.console.form_tokens import FormExpiredError, FormTokens, FreshKeys

_HOSTILE = "../<script>\u202e\x00' --"


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
    assert keys.find(fresh.rotation_id, "s2") is None
    assert keys.find(fresh.rotation_id, "s1") == fresh
    keys.drop(fresh.rotation_id)
    assert keys.find(fresh.rotation_id, "s1") is None


async def test_only_the_key_that_was_shown_last_can_be_published() -> None:
    keys = FreshKeys()
    first, elsewhere, other = (
        keys.make("s1", "acme", 3),
        keys.make("s2", "acme", 3),
        keys.make("s1", "zoo", 1),
    )
    second = keys.make("s1", "acme", 3)
    assert keys.find(first.rotation_id, "s1") is None
    assert second.api_key != first.api_key
    assert keys.find(second.rotation_id, "s1") == second
    assert keys.find(elsewhere.rotation_id, "s2") == elsewhere
    assert keys.find(other.rotation_id, "s1") == other


async def test_a_key_expires() -> None:
    keys = FreshKeys(life_s=0.01)
    fresh = keys.make("s1", "acme", 3)
    await asyncio.sleep(0.03)
    assert keys.find(fresh.rotation_id, "s1") is None


async def test_memory_is_bounded() -> None:
    keys = FreshKeys(max_held=2)
    made = [keys.make("s1", f"p{number}", 1) for number in range(3)]
    held = [one for one in made if keys.find(one.rotation_id, "s1") is not None]
    assert held == made[1:]
