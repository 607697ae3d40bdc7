"""What becomes of a request: an answer is final, and what may have been sent stays so."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from keyturn.errors import (
    BrokerUnavailableError,
    EventsUnavailableError,
    KeyturnError,
    MalformedRequestError,
    NotDeliveredError,
    OutcomeUnknownError,
)
from keyturn_workers.console.actions import outcome
from keyturn_workers.console.actions.outcome import Action, ActionState
from tests.unit.keyturn_workers.console.actions.publishers import event

_AT = datetime(2026, 11, 26, 10, tzinfo=UTC)
_ID = "2f6c9a0e-0000-4000-8000-000000000001"
_ACTION = Action(_ID, "rotation", "acme", "kim", _AT, expected_generation=2)


def test_a_confirmed_request_waits_for_its_answer() -> None:
    action = outcome.published(_ACTION, _AT)
    assert action.state is ActionState.PUBLISHED
    assert not action.is_final
    assert not action.may_be_repeated


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (NotDeliveredError("no queue"), ActionState.NOT_SENT, None),
        (BrokerUnavailableError("refused"), ActionState.NOT_SENT, None),
        (MalformedRequestError("project"), ActionState.NOT_SENT, "malformed_request"),
        (OutcomeUnknownError("not confirmed"), ActionState.UNKNOWN, None),
    ],
)
def test_only_a_request_that_was_certainly_not_sent_is_called_so(
    error: KeyturnError, state: ActionState, code: str | None
) -> None:
    action = outcome.failed_to_publish(_ACTION, error, _AT)
    assert (action.state, action.code) == (state, code)
    assert action.may_be_repeated


def test_an_attempt_that_may_have_arrived_is_not_taken_back_by_a_later_failure() -> None:
    unknown = outcome.failed_to_publish(_ACTION, OutcomeUnknownError("not confirmed"), _AT)
    again = outcome.repeated(unknown, "lee", _AT)
    assert again.state is ActionState.UNKNOWN
    action = outcome.failed_to_publish(again, BrokerUnavailableError("refused"), _AT)
    assert action.state is ActionState.UNKNOWN
    assert (action.attempts, action.person) == (2, "lee")


def test_a_request_that_was_not_sent_is_sent_again() -> None:
    unsent = outcome.failed_to_publish(_ACTION, NotDeliveredError("no queue"), _AT)
    assert outcome.repeated(unsent, "kim", _AT).state is ActionState.SENDING


def test_a_refusal_keeps_its_code_and_detail() -> None:
    refusal = event("rotation.rejected", rotation_id=_ID, code="kek_reused", detail="had it")
    action = outcome.answered(_ACTION, refusal, _AT)
    assert (action.state, action.code, action.detail) == (
        ActionState.REJECTED,
        "kek_reused",
        "had it",
    )


def test_an_answer_that_is_faster_than_the_confirmation_stays() -> None:
    accepted = outcome.answered(
        _ACTION, event("rotation.accepted", rotation_id=_ID, generation=3), _AT
    )
    assert accepted.generation == 3
    assert outcome.published(accepted, _AT) == accepted
    assert outcome.failed_to_publish(accepted, OutcomeUnknownError("?"), _AT) == accepted


def test_a_stream_that_cannot_be_read_changes_no_state() -> None:
    published = outcome.published(_ACTION, _AT)
    action = outcome.cannot_wait(published, EventsUnavailableError("no stream"), _AT)
    assert action.state is ActionState.PUBLISHED
    assert "no stream" in action.detail
