"""Nothing is moved without its record in the audit trail (SPEC 15.3, 16.1)."""

from __future__ import annotations

import pytest

from keyturn.errors import NotDeliveredError, OutcomeUnknownError
from keyturn.messages import AuditedLetter
from keyturn_workers.console.dead.audit_recorder import NotRecordedError, Recorder
from tests.unit.keyturn_workers.console.dead.letters import UPLOADS
from tests.unit.keyturn_workers.console.dead.publishers import FakePublisher

_LETTERS = [AuditedLetter(request="0" * 64)]


def _recorder(publisher: FakePublisher) -> Recorder:
    return Recorder(publisher, "discard", "ada", "they are old", timeout_s=5)


async def test_a_record_names_the_person_the_queue_and_the_reason() -> None:
    publisher = FakePublisher()
    await _recorder(publisher).record(UPLOADS, _LETTERS)
    (record,) = publisher.records
    assert (record.action, record.queue, record.actor) == ("dead_letter.discarded", UPLOADS, "ada")
    assert (record.outcome, record.reason, record.letters) == ("started", "they are old", _LETTERS)


async def test_an_attempt_that_was_not_confirmed_is_repeated_under_the_same_id() -> None:
    publisher = FakePublisher(errors=[OutcomeUnknownError("no confirmation")])
    await _recorder(publisher).record(UPLOADS, _LETTERS)
    assert len(publisher.attempts) == 2
    assert len(set(publisher.attempts)) == 1


async def test_what_stays_unconfirmed_is_not_recorded() -> None:
    publisher = FakePublisher(errors=[OutcomeUnknownError("no confirmation")] * 5)
    with pytest.raises(NotRecordedError, match="no confirmation"):
        await _recorder(publisher).record(UPLOADS, _LETTERS)
    assert len(publisher.attempts) == 3


async def test_a_broker_that_is_away_is_an_error() -> None:
    publisher = FakePublisher(errors=[NotDeliveredError("no worker serves it")])
    with pytest.raises(NotRecordedError, match="no worker serves it"):
        await _recorder(publisher).record(UPLOADS, _LETTERS)


async def test_a_control_worker_that_does_not_answer_is_an_error() -> None:
    with pytest.raises(NotRecordedError, match=r"no control worker .* within 5 s"):
        await _recorder(FakePublisher(is_silent=True)).record(UPLOADS, _LETTERS)


async def test_a_refusal_is_an_error() -> None:
    with pytest.raises(NotRecordedError, match="not_permitted"):
        await _recorder(FakePublisher(refusal="not_permitted")).record(UPLOADS, _LETTERS)
