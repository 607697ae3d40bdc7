"""Requests without an outcome: how many one project may have, and for how long (SPEC 9.3)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest

from keyturn.errors import TooManyRequestsError
from keyturn.messages import UploadStored
from keyturn.publisher import EventsUnavailableError, NotDeliveredError, OutcomeUnknownError
from keyturn.publisher.requests import new_id
from keyturn_workers.gateway import publishing
from keyturn_workers.gateway.publishing import PendingRequests, event_of
from keyturn_workers.gateway.shares import GatewayBusyError
from tests.unit.keyturn_workers.gateway.publishing import FakePublisher

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import Event
    from keyturn.publisher import Publisher

_WAIT_S = 600.0


def _stored(upload_id: str) -> Event:
    at = "2026-11-24T10:00:00.000000Z"
    return UploadStored(upload_id=upload_id, project="a", key="k", size=1, generation=1, at=at)


def _pending(
    publisher: FakePublisher, *, wait_s: float = _WAIT_S, total: int = 9
) -> PendingRequests:
    return PendingRequests(
        cast("Publisher", publisher),
        "upload.requested",
        noun="uploads pending",
        per_project=3,
        total=total,
        outcome_wait_s=wait_s,
        project_bytes=100,
    )


@pytest.fixture
def publisher() -> FakePublisher:
    return FakePublisher()


@pytest.fixture
async def pending(publisher: FakePublisher) -> AsyncIterator[PendingRequests]:
    pending = _pending(publisher)
    yield pending
    await pending.close()


async def _published() -> None:
    """A publish that the broker confirms."""


async def _failed(error: Exception) -> None:
    raise error


async def _publish(
    pending: PendingRequests, project: str = "a", size_bytes: int = 1
) -> asyncio.Task[Event]:
    with pending.hold(project, new_id()) as request:
        request.resize(size_bytes)
        return await request.publish(_published())


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_project_at_its_limit_is_refused_and_no_other(pending: PendingRequests) -> None:
    for _ in range(3):
        await _publish(pending)
    with pytest.raises(TooManyRequestsError, match="the project has 3 uploads pending: retry"):
        await _publish(pending)
    await _publish(pending, "b")
    assert pending.in_all == 4


async def test_what_the_caller_knows_to_be_in_progress_counts_too(pending: PendingRequests) -> None:
    await _publish(pending)
    with pytest.raises(TooManyRequestsError), pending.hold("a", "x", others=2):
        pass
    with pending.hold("a", "x", others=1):
        pass


async def test_the_bytes_of_a_project_are_limited(pending: PendingRequests) -> None:
    await _publish(pending, size_bytes=60)
    with pytest.raises(TooManyRequestsError, match="60 bytes of uploads pending"):
        await _publish(pending, size_bytes=41)
    await _publish(pending, size_bytes=40)
    await _publish(pending, "b", size_bytes=100)
    await _publish(pending, "c", size_bytes=101)  # one request is never too large
    assert pending.in_all == 4


async def test_a_request_that_shrinks_gives_its_bytes_back(pending: PendingRequests) -> None:
    with pending.hold("a", "x") as request:
        for size_bytes in (10, 100, 0):
            request.resize(size_bytes)
        await _publish(pending, size_bytes=100)


async def test_an_outcome_frees_the_place(
    pending: PendingRequests, publisher: FakePublisher
) -> None:
    outcomes = [await _publish(pending, size_bytes=30) for _ in range(3)]
    await _settle()
    assert [event_of(outcome) for outcome in outcomes] == [None] * 3
    publisher.answer = _stored
    publisher.telling.set()
    await _settle()
    assert all(isinstance(event_of(outcome), UploadStored) for outcome in outcomes)
    assert pending.in_all == 0
    assert not pending._projects
    assert not pending._outcomes


async def test_what_was_not_published_frees_its_place(pending: PendingRequests) -> None:
    for _ in range(5):
        with pytest.raises(NotDeliveredError), pending.hold("a", "x") as request:
            await request.publish(_failed(NotDeliveredError("no")))
        with pytest.raises(ValueError, match="before"), pending.hold("a", "x"):
            raise ValueError("before it was published")
    assert pending.in_all == 0
    assert not pending._projects


async def test_what_may_have_been_published_keeps_its_place(pending: PendingRequests) -> None:
    for _ in range(3):
        with pytest.raises(OutcomeUnknownError), pending.hold("a", "x") as request:
            await request.publish(_failed(OutcomeUnknownError("?")))
    with pytest.raises(TooManyRequestsError):
        await _publish(pending)


async def test_while_events_cannot_be_read_no_place_is_freed(
    pending: PendingRequests, publisher: FakePublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project would publish without a limit meanwhile. Once they can be read, they are."""
    monkeypatch.setattr(publishing, "_RETRY_S", 0.0)
    publisher.wait_fails = EventsUnavailableError("no stream")
    publisher.answer = _stored
    for _ in range(3):
        await _publish(pending)
        await _settle()
    assert len(publisher.waits) > 3
    with pytest.raises(TooManyRequestsError):
        await _publish(pending)
    publisher.wait_fails = None
    await _settle()
    assert pending.in_all == 0


@pytest.mark.parametrize("error", [None, EventsUnavailableError("no stream")])
async def test_an_outcome_that_does_not_become_known_frees_the_place_in_time(
    publisher: FakePublisher, error: Exception | None
) -> None:
    """Events may have been lost: a place that is never freed would be lost too."""
    publisher.wait_fails = error
    pending = _pending(publisher, wait_s=0.02)
    outcome = await _publish(pending)
    assert pending.in_all == 1
    await asyncio.wait((outcome,))
    await _settle()
    assert event_of(outcome) is None
    assert pending.in_all == 0


async def test_all_projects_together_are_limited(publisher: FakePublisher) -> None:
    pending = _pending(publisher, total=2)
    await _publish(pending, "a")
    await _publish(pending, "b")
    with pytest.raises(GatewayBusyError):
        await _publish(pending, "c")
    assert sorted(pending._projects) == ["a", "b"]
    await pending.close()


async def test_closing_ends_all_waits(pending: PendingRequests) -> None:
    outcome = await _publish(pending)
    await pending.close()
    await _settle()
    assert outcome.cancelled()
    assert event_of(outcome) is None
    assert pending.in_all == 0
