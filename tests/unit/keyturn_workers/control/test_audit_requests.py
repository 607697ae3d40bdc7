"""A console's letters are in the audit trail before it learns so (SPEC 15.3, 16.1)."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.messages import (
    AUDITED_LETTERS,
    AuditAccepted,
    AuditedLetter,
    AuditRequested,
    RequestOrigin,
    encode,
)
from keyturn_workers.audit import trail as trail_module
from keyturn_workers.control import AuditRequests
from tests.unit.keyturn_workers.audit.memory import Stream, trail_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import AuditRecorded
    from keyturn_workers.audit import AuditTrail

NOW: Final = datetime(2026, 11, 26, 10, tzinfo=UTC)
REQUEST_ID: Final = "d2f4a6c8-1b3d-4e5f-8a9c-0b2d4f6e8a71"
UPLOAD_ID: Final = "2f6c9a0e-5d3b-4c1a-9f5e-0b7d1c8a4e21"
LETTERS: Final = (
    AuditedLetter(
        request="a" * 64, request_type="upload.requested", request_id=UPLOAD_ID, project="acme"
    ),
    AuditedLetter(request="b" * 64),
)


def _request(**fields: Any) -> AuditRequested:
    given: dict[str, Any] = {
        "request_id": REQUEST_ID,
        "project": "*",
        "requested_at": "2026-11-26T10:00:00Z",
        "actor": "Kim Doe",
        "action": "dead_letter.replayed",
        "queue": "keyturn.upload.dead",
        "letters": LETTERS,
        "reason": "the bucket was full",
    }
    return AuditRequested(**given | fields)


def _origin(request: AuditRequested, publisher: str = "console") -> RequestOrigin:
    return RequestOrigin.of(publisher, encode(request))


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    monkeypatch.setattr(trail_module, "_PAUSES_S", (0.0,))
    return Stream()


@pytest.fixture
async def trail(stream: Stream) -> AsyncIterator[AuditTrail]:
    trail = trail_to(stream)
    async with trail.running():
        yield trail


def _requests(trail: AuditTrail, **options: Any) -> AuditRequests:
    return AuditRequests(trail, lambda: NOW, **options)


def _identity(record: AuditRecorded) -> tuple[str | None, ...]:
    return record.request, record.request_type, record.request_id, record.project


async def test_each_letter_has_a_record_that_names_person_publisher_and_reason(
    stream: Stream, trail: AuditTrail
) -> None:
    request = _request()
    handled = await _requests(trail).serve(request, _origin(request))
    first, second = stream.records
    for record in (first, second):
        assert (record.action, record.outcome) == ("dead_letter.replayed", "started")
        assert (record.actor, record.publisher) == ("Kim Doe", "console")
        assert (record.queue, record.reason) == ("keyturn.upload.dead", "the bucket was full")
    assert _identity(first) == ("a" * 64, "upload.requested", UPLOAD_ID, "acme")
    assert _identity(second) == ("b" * 64, None, None, None)
    assert stream.findings() == []
    assert handled.event == AuditAccepted(
        request_id=REQUEST_ID, project="*", at="2026-11-26T10:00:00.000000Z"
    )
    assert handled.more == ()
    assert handled.logged["letters"] == len(LETTERS)


async def test_a_failure_is_recorded_with_its_code(stream: Stream, trail: AuditTrail) -> None:
    request = _request(outcome="request_expired", action="dead_letter.discarded", reason=None)
    await _requests(trail).serve(request, _origin(request))
    assert {record.outcome for record in stream.records} == {"request_expired"}
    assert {record.action for record in stream.records} == {"dead_letter.discarded"}


async def test_nothing_is_accepted_before_the_broker_has_every_record(
    stream: Stream, trail: AuditTrail
) -> None:
    """The console moves the letters on the acceptance: what it does must be recorded by then."""
    stream.refuses = {AUDITED_LETTERS}  # the last one does not arrive the first time
    letters = [{"request": f"{number:064x}"} for number in range(AUDITED_LETTERS)]
    request = _request(letters=letters)
    handled = await _requests(trail).serve(request, _origin(request))
    assert handled.event is not None
    assert {record.request for record in stream.records} == {one["request"] for one in letters}


async def test_while_the_broker_is_away_nothing_is_accepted(
    stream: Stream, trail: AuditTrail
) -> None:
    stream.is_away = True
    request = _request()
    serving = asyncio.create_task(_requests(trail).serve(request, _origin(request)))
    await stream.tried(3)
    assert not serving.done()
    stream.is_away = False
    await serving
    assert len(stream.records) == len(LETTERS)


async def test_a_repeated_request_is_accepted_again_and_recorded_once(
    stream: Stream, trail: AuditTrail
) -> None:
    """Otherwise each copy of 500 letters would help to push older records off the stream."""
    requests, request = _requests(trail), _request()
    for _ in range(3):
        handled = await requests.serve(request, _origin(request))
        assert isinstance(handled.event, AuditAccepted)
    assert len(stream.records) == len(LETTERS)


async def test_other_bytes_or_another_publisher_are_another_request(
    stream: Stream, trail: AuditTrail
) -> None:
    """An id alone recognizes nothing: the records of one request would be missing."""
    requests, request = _requests(trail), _request()
    other = _request(actor="Ada")
    await requests.serve(request, _origin(request))
    await requests.serve(other, _origin(other))
    await requests.serve(request, _origin(request, "console-2"))
    assert [(r.actor, r.publisher) for r in stream.records[:: len(LETTERS)]] == [
        ("Kim Doe", "console"),
        ("Ada", "console"),
        ("Kim Doe", "console-2"),
    ]
    assert len({record.audit_id for record in stream.records}) == 3 * len(LETTERS)


async def test_a_canceled_attempt_is_not_taken_for_a_recorded_one(
    stream: Stream, trail: AuditTrail
) -> None:
    requests, request = _requests(trail), _request()
    stream.is_away = True
    serving = asyncio.create_task(requests.serve(request, _origin(request)))
    await stream.tried(1)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    stream.is_away = False
    await requests.serve(request, _origin(request))
    assert {record.request for record in stream.records} == {one.request for one in LETTERS}


async def test_what_another_process_records_again_has_the_same_ids(
    stream: Stream, trail: AuditTrail
) -> None:
    """After a crash between record and acknowledgment, or once the memory of it is gone."""
    request, other = _request(), _request(actor="Ada")
    forgetful = _requests(trail, remembered=1)
    await forgetful.serve(request, _origin(request))
    await forgetful.serve(other, _origin(other))
    await forgetful.serve(request, _origin(request))
    await _requests(trail).serve(request, _origin(request))
    ids = [record.audit_id for record in stream.records]
    first, of_other, again, elsewhere = (ids[start : start + 2] for start in range(0, len(ids), 2))
    assert first == again == elsewhere
    assert not {*first} & {*of_other}
    assert stream.findings() == []
