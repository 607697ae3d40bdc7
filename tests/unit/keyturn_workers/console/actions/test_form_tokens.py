"""A form's token is of one session and one purpose, and has an end."""

from __future__ import annotations

import pytest

from keyturn_workers.console.actions.form_tokens import FormExpiredError, FormTokens

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
