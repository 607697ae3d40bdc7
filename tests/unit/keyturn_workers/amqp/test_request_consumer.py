"""A signed request on its way: admitted, served, answered and acknowledged (SPEC 6.2, 6.3)."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest

from keyturn.errors import (
    AlreadyExistsError,
    CodedError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.identifiers import format_time
from keyturn.messages import RequestOrigin
from keyturn_workers.amqp.failures import Retry, utc_now
from keyturn_workers.amqp.request_consumer import Handled, RequestConsumer, TimeSource
from keyturn_workers.worker.authorization import Rules
from keyturn_workers.worker.grants import Grant
from keyturn_workers.worker.metrics import WorkerMetrics
from tests.support.scrape import shown
from tests.unit.keyturn_workers.amqp.deliveries import (
    ALL,
    NOTES,
    RULES,
    UPLOAD_ID,
    FakeAudit,
    FakeHandler,
    FakeMessage,
    Scene,
    consume,
    context,
    document,
    message,
    noted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_pika.abc import AbstractIncomingMessage

    from keyturn.messages import Request
    from keyturn_workers.worker.grants import GrantsKeeper


async def test_a_request_is_acknowledged_after_its_event_and_what_follows() -> None:
    """Served, published, cleaned up, acknowledged."""
    scene = Scene()
    assert await consume(FakeHandler(scene), message(scene)) == [
        "served",
        "published",
        "after",
        "ack",
    ]


async def test_a_refusal_is_a_dead_letter_first_and_an_event_second() -> None:
    """The dead letter, the event, the acknowledgment."""
    scene = Scene()
    handler = FakeHandler(scene, AlreadyExistsError("k"))
    refused = [
        "dead",
        "keyturn.upload already_exists",
        "published",
        "cleaned up already_exists",
        "ack",
    ]
    assert await consume(handler, message(scene)) == ["served", *refused]
    assert [(event.type, getattr(event, "code", "")) for event in scene.events] == [
        ("upload.rejected", "already_exists")
    ]


async def test_a_malformed_request_is_refused_without_being_served() -> None:
    """Refused without being served."""
    scene = Scene()
    refused = ["dead", "keyturn.upload malformed_request", "published", "ack"]
    assert await consume(FakeHandler(scene), message(scene, document(key="/"))) == refused


async def test_a_malformed_request_without_an_id_has_no_event() -> None:
    """It becomes a dead letter all the same."""
    scene = Scene()
    refused = ["dead", "keyturn.upload malformed_request", "ack"]
    assert await consume(FakeHandler(scene), message(scene, b"{")) == refused


async def test_a_bad_signature_is_answered_by_no_event() -> None:
    """Named in no event, however well-formed it is."""
    scene = Scene()
    forged = message(scene, headers={"keyturn-publisher": "other"})
    refused = ["dead", "keyturn.upload bad_signature", "ack"]
    assert await consume(FakeHandler(scene), forged) == refused


async def test_after_the_last_attempt_a_request_is_refused() -> None:
    scene = Scene()
    handler = FakeHandler(scene, UnknownProjectError("acme"))
    delivery = noted(message(scene), "unknown_project", 3)
    refused = [
        "dead",
        "keyturn.upload unknown_project",
        "published",
        "cleaned up unknown_project",
        "ack",
    ]
    assert await consume(handler, delivery) == ["served", *refused]


async def test_what_was_done_is_recorded_before_anything_says_so() -> None:
    """After the effect: a record of what was not done would be a lie."""
    scene = Scene()
    steps = await consume(FakeHandler(scene), message(scene), audit=FakeAudit(scene))
    assert steps == ["served", "recorded", "published", "after", "ack"]


async def test_what_is_not_recorded_is_not_acknowledged() -> None:
    scene = Scene(failing="recorded")
    steps = await consume(FakeHandler(scene), message(scene), audit=FakeAudit(scene))
    assert steps == ["served", "recorded failed", "given back"]


async def test_a_refusal_of_what_a_publisher_signed_is_recorded() -> None:
    scene = Scene()
    handler = FakeHandler(scene, AlreadyExistsError("k"))
    steps = await consume(handler, message(scene), audit=FakeAudit(scene))
    assert steps[:3] == ["served", "recorded already_exists", "dead"]
    scene = Scene()
    malformed = message(scene, document(key="/"))
    steps = await consume(FakeHandler(scene), malformed, audit=FakeAudit(scene))
    assert steps[:2] == ["recorded malformed_request", "dead"]


async def test_a_flood_of_unsigned_requests_does_not_fill_the_trail() -> None:
    scene = Scene()
    forged = message(scene, headers={"keyturn-publisher": "other"})
    steps = await consume(FakeHandler(scene), forged, audit=FakeAudit(scene))
    assert steps == ["dead", "keyturn.upload bad_signature", "ack"]


async def test_what_is_retried_is_recorded_once_it_is_done() -> None:
    scene = Scene()
    handler = FakeHandler(scene, StorageUnavailableError())
    steps = await consume(handler, message(scene), audit=FakeAudit(scene))
    assert not [step for step in steps if "recorded" in step]


async def test_the_age_of_a_request_in_flight_is_exported() -> None:
    """From its admission on, by what it says of itself: its sender is known by then."""
    metrics, scene = WorkerMetrics(), Scene()
    handler = FakeHandler(scene, gate=asyncio.Event())
    requested_at = format_time(datetime.now(UTC) - timedelta(minutes=10))
    running = asyncio.create_task(
        consume(handler, message(scene, document(requested_at=requested_at)), metrics)
    )
    await handler.entered.wait()
    found = shown(metrics)
    assert 600 <= found['keyturn_oldest_message_age_seconds{queue="keyturn.upload"}'] < 660
    assert found['keyturn_messages_in_flight{queue="keyturn.upload"}'] == 1
    assert handler.gate is not None
    handler.gate.set()
    await running


def redelivered(delivery: FakeMessage) -> None:
    delivery.redelivered = True


def waited(delivery: FakeMessage) -> None:
    noted(delivery, "unknown_project", 1)


def forged(delivery: FakeMessage) -> None:
    delivery.headers["keyturn-attempt"] = "unknown_project:1"


def of_another(delivery: FakeMessage) -> None:
    retry = Retry("unknown_project", 1, datetime.now(UTC))
    delivery.headers |= NOTES.headers("keyturn.upload", "other", delivery.body, retry)


def counted(delivery: FakeMessage) -> None:
    delivery.headers |= {"x-delivery-count": 1, "x-death": [{"count": 1}]}


@pytest.mark.parametrize(
    ("change", "seen_before"),
    [
        (lambda _: None, False),
        (redelivered, True),
        (waited, True),
        (forged, False),
        (of_another, False),
        (counted, False),
    ],
)
async def test_only_the_broker_and_workers_say_that_a_request_was_seen_before(
    change: Callable[[FakeMessage], None], *, seen_before: bool
) -> None:
    """Only the broker and the workers can say that an earlier delivery may have done part of it.

    Because of an unsigned header an upload aborted the multipart uploads at its key.
    """
    scene = Scene()
    handler, delivery = FakeHandler(scene), message(scene)
    change(delivery)
    await consume(handler, delivery)
    assert handler.seen_before is seen_before


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("unknown_project", UnknownProjectError("acme")),
        ("storage_unavailable", StorageUnavailableError("x")),
    ],
)
async def test_a_forged_attempt_is_not_counted(code: str, error: CodedError) -> None:
    """A copy with such a header was refused for good in 0.05 s."""
    scene = Scene()
    delivery = message(scene, headers={"keyturn-attempt": f"{code}:999999999"})
    waits = ["retry", f"keyturn.upload {code} 0 1s", "ack"]
    assert await consume(FakeHandler(scene, error), delivery) == ["served", *waits]


def expired(scene: Scene) -> FakeMessage:
    requested_at = format_time(datetime.now(UTC) - timedelta(days=8) + timedelta(minutes=1))
    return message(scene, document(requested_at=requested_at))


async def test_an_expired_request_that_was_completed_is_published_as_completed() -> None:
    """A redelivery past the age was refused though its object is stored."""
    scene = Scene()
    handler = FakeHandler(scene, completed=True)
    assert await consume(handler, expired(scene)) == ["checked", "published", "ack"]
    assert [event.type for event in scene.events] == ["upload.stored"]


async def test_an_expired_request_that_was_not_completed_is_refused() -> None:
    scene = Scene()
    refused = ["dead", "keyturn.upload request_expired", "published", "cleaned up request_expired"]
    steps = await consume(FakeHandler(scene), expired(scene))
    assert steps == ["checked", *refused, "ack"]


async def test_an_expired_request_waits_for_a_storage_that_does_not_respond() -> None:
    """Whether it is done cannot be said: it waits, up to a day, and is not refused."""
    scene = Scene()
    handler = FakeHandler(scene, StorageUnavailableError("x"))
    waits = ["retry", "keyturn.upload storage_unavailable 0 1s", "ack"]
    assert await consume(handler, expired(scene)) == ["checked", *waits]
    scene.steps.clear()
    old = message(scene, document(requested_at="2026-01-01T00:00:00Z"))
    steps = await consume(handler, old)
    assert steps[:3] == ["checked", "dead", "keyturn.upload storage_unavailable"]


class StorageTime:
    """A worker whose own clock is some minutes off, until it asks the storage."""

    def __init__(self, off: timedelta, error: Exception | None = None) -> None:
        self._off = off
        self._error = error

    def now(self) -> datetime:
        return datetime.now(UTC) + self._off

    async def learn(self) -> None:
        if self._error is not None:
            raise self._error
        self._off = timedelta()


async def consume_at(handler: FakeHandler, delivery: FakeMessage, time: StorageTime) -> list[str]:
    made = context(handler.scene, now=time.now)
    consumer = RequestConsumer(handler, RULES, made, time=TimeSource(time.learn))
    await consumer(cast("AbstractIncomingMessage", delivery))
    return handler.scene.steps


@pytest.mark.parametrize("minutes", [-6, 60 * 24 * 8])
async def test_a_worker_whose_clock_is_off_refuses_no_fresh_request(minutes: int) -> None:
    """It asks the storage for the time before it refuses."""
    scene = Scene()
    steps = await consume_at(
        FakeHandler(scene), message(scene), StorageTime(timedelta(minutes=minutes))
    )
    assert steps == ["served", "published", "after", "ack"]


async def test_a_time_that_cannot_be_learned_refuses_nothing() -> None:
    scene = Scene()
    time = StorageTime(timedelta(minutes=-6), StorageUnavailableError("x"))
    steps = await consume_at(FakeHandler(scene), message(scene), time)
    assert steps == ["retry", "keyturn.upload storage_unavailable 0 1s", "ack"]


def _with_an_unknown_time(scene: Scene, off: timedelta) -> RequestConsumer:
    """A worker that has just met a storage whose clock is off."""
    return RequestConsumer(
        FakeHandler(scene),
        RULES,
        context(scene, now=lambda: datetime.now(UTC) + off),
        time=TimeSource(is_known=lambda: False),
    )


@pytest.mark.parametrize("off", [{"minutes": -6}, {"days": 8}, {"days": 30}])
async def test_a_time_that_is_not_known_for_two_leases_refuses_nothing(off: dict[str, int]) -> None:
    """The first answer of a slow front end had every fresh request refused for good."""
    scene = Scene()
    consumer = _with_an_unknown_time(scene, timedelta(**off))
    await consumer(cast("AbstractIncomingMessage", message(scene)))
    waits = ["retry", "keyturn.upload storage_unavailable 0 1s", "ack"]
    assert scene.steps == ["checked", *waits]


@pytest.mark.parametrize("age", [{"minutes": -6}, {"days": 8}])
async def test_what_both_clocks_call_expired_is_refused_at_once(age: dict[str, int]) -> None:
    scene = Scene()
    requested_at = format_time(datetime.now(UTC) - timedelta(**age))
    consumer = _with_an_unknown_time(scene, timedelta(seconds=2))
    await consumer(
        cast("AbstractIncomingMessage", message(scene, document(requested_at=requested_at)))
    )
    assert scene.steps[:3] == ["checked", "dead", "keyturn.upload request_expired"]


async def test_a_request_from_the_future_is_refused() -> None:
    scene = Scene()
    requested_at = format_time(datetime.now(UTC) + timedelta(minutes=6))
    delivery = message(scene, document(requested_at=requested_at))
    steps = await consume_at(FakeHandler(scene), delivery, StorageTime(timedelta()))
    assert "keyturn.upload request_expired" in steps


@pytest.mark.parametrize("routing_key", ["enroll.requested", "", "anything", "keyturn.control"])
async def test_a_genuine_request_under_another_routing_key_is_a_bad_signature(
    routing_key: str,
) -> None:
    """It was answered with `malformed_request` while it was stored elsewhere."""
    scene = Scene()
    delivery = message(scene)
    delivery.routing_key = routing_key
    assert await consume(FakeHandler(scene), delivery) == [
        "dead",
        "keyturn.upload bad_signature",
        "ack",
    ]
    assert scene.events == []


async def test_a_refusal_names_its_request() -> None:
    """An old refusal is no answer to a new attempt, which has other bytes."""
    scene = Scene()
    delivery = message(scene)
    await consume(FakeHandler(scene, AlreadyExistsError("k")), delivery)
    (event,) = scene.events
    assert event.origin == RequestOrigin.of("api", delivery.body)


class Sweeps(FakeHandler):
    """Serves sweeps."""

    origin: RequestOrigin | None = None

    async def serve(self, request: Request, origin: RequestOrigin, *, seen_before: bool) -> Handled:
        assert (request.type, seen_before) == ("sweep.requested", False)
        self.origin = origin
        return Handled(None, {})


async def test_the_person_whom_a_request_names_comes_with_its_origin() -> None:
    scene = Scene()
    sweep = {"type": "sweep.requested", "sweep_id": UPLOAD_ID, "project": "acme", "actor": "ada"}
    delivery = message(scene, json.dumps(sweep | {"requested_at": format_time(utc_now())}).encode())
    delivery.routing_key = "sweep.requested"
    handler = Sweeps(scene, queue="keyturn.control", served=("sweep.requested",))
    assert await consume(handler, delivery) == ["ack"]
    assert handler.origin == RequestOrigin.of("api", delivery.body)
    assert handler.origin.actor == "ada"


async def test_a_failed_cleanup_causes_no_second_dead_letter() -> None:
    """What it leaves is swept away by its age."""
    scene = Scene("cleaned up already_exists")
    steps = await consume(FakeHandler(scene, AlreadyExistsError("k")), message(scene))
    assert steps.count("dead") == 1
    assert steps[-2:] == ["cleaned up already_exists failed", "ack"]


class Changing:
    """Grants that an operator changes: `after` is what the file says once it is read again."""

    def __init__(self, after: dict[str, Grant], pending: str = "") -> None:
        self.grants: dict[str, Grant] = {}
        self._after = after
        self._pending = pending

    async def refresh(self) -> bool:
        changed = self.grants != self._after
        self.grants.update(self._after)
        return changed

    def is_pending(self, publisher: object) -> bool:
        return publisher == self._pending


async def consume_by(handler: FakeHandler, delivery: FakeMessage, changing: Changing) -> list[str]:
    rules = Rules("test", changing.grants, timedelta(days=7))
    grants = cast("GrantsKeeper", changing)
    consumer = RequestConsumer(handler, rules, context(handler.scene), grants=grants)
    await consumer(cast("AbstractIncomingMessage", delivery))
    return handler.scene.steps


async def test_the_grants_are_read_again_before_an_unknown_publisher_is_refused() -> None:
    """SPEC 6.3: its grant may be a second old, and this worker not know of it yet."""
    scene = Scene()
    changing = Changing(dict(RULES.publishers))
    done = ["served", "published", "after", "ack"]
    assert await consume_by(FakeHandler(scene), message(scene), changing) == done


@pytest.mark.parametrize(
    ("before", "code"),
    [
        (Grant((), ALL, ALL), "bad_signature"),
        (Grant(RULES.publishers["api"].keys, frozenset(), ALL), "not_permitted"),
    ],
)
async def test_a_new_key_or_grant_applies_to_the_next_message(before: Grant, code: str) -> None:
    scene = Scene()
    changing = Changing(dict(RULES.publishers))
    changing.grants["api"] = before
    assert "served" in await consume_by(FakeHandler(scene), message(scene), changing)
    scene.steps.clear()
    unchanged = Changing({"api": before})
    unchanged.grants["api"] = before
    steps = await consume_by(FakeHandler(scene), message(scene), unchanged)
    assert f"keyturn.upload {code}" in steps


async def test_a_publisher_without_a_stream_yet_is_not_refused() -> None:
    """The broker gives its message again once the stream is there."""
    scene = Scene()
    steps = await consume_by(FakeHandler(scene), message(scene), Changing({}, pending="api"))
    assert steps == ["given back"]
