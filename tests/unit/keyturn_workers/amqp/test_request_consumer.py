"""The order of things around one delivery (SPEC 6.2): the acknowledgment comes last.

Each step that can fail is made to fail. Whatever had not become durable by then, the
message was not acknowledged, and comes again.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.errors import (
    AlreadyExistsError,
    CodedError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.identifiers import format_time
from keyturn.messages import RequestOrigin, UploadStored
from keyturn_workers.amqp import (
    ConsumerContext,
    DeferError,
    Handled,
    NotConfirmedError,
    RequestConsumer,
    TimeSource,
    WorkerPublisher,
    message_consumer,
)
from keyturn_workers.amqp.retry import Retry, RetryNotes, utc_now
from keyturn_workers.worker.authorization import Rules
from keyturn_workers.worker.grants import Grant
from keyturn_workers.worker.metrics import WorkerMetrics
from tests.support.scrape import risen, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from aio_pika.abc import AbstractIncomingMessage

    from keyturn.messages import Event, Request
    from keyturn_workers.worker.grants import GrantsKeeper

KEY = SigningKey.from_seed(bytes(32))
ALL = frozenset("*")
RULES = Rules(
    "test",
    {"api": Grant((VerifyKey.from_bytes(KEY.public_bytes),), ALL, ALL)},
    timedelta(days=7),
)
UPLOAD_ID = "2f6c9a0e-1111-4111-8111-111111111111"
NOTES = RetryNotes("test", [KEY])
STORED = UploadStored(
    upload_id=UPLOAD_ID,
    project="acme",
    at=format_time(datetime.now(UTC)),
    key="k",
    size=1,
    generation=1,
)


class BrokerError(Exception):
    """What aio-pika raises where a publish was not confirmed."""


@dataclass
class Scene:
    """Notes what happens, in order; `failing` names the step that raises."""

    failing: str = ""
    steps: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def step(self, name: str) -> None:
        if name == self.failing:
            self.steps.append(f"{name} failed")
            raise BrokerError
        self.steps.append(name)


@dataclass
class FakePublisher:
    """Publishes nothing, and notes what it was asked for."""

    scene: Scene

    async def publish_event(self, event: Event) -> None:
        self.scene.step("published")
        self.scene.events.append(event)

    def retry_of(self, message: FakeMessage, queue: str, publisher: str) -> Retry | None:
        return NOTES.read(queue, publisher, message.body, message.headers)

    async def schedule_retry(
        self,
        _message: object,
        queue: str,
        error: CodedError,
        attempt: int,
        delay_s: int,
        *,
        publisher: str,
    ) -> None:
        assert publisher == "api"
        self.scene.step("retry")
        self.scene.steps.append(f"{queue} {error.code} {attempt} {delay_s}s")

    async def defer(self, _message: object, queue: str, wait_s: float, *, publisher: str) -> None:
        assert publisher == "api"
        self.scene.step("retry")
        self.scene.steps.append(f"{queue} {wait_s}s")

    async def put_back(self, _message: object, queue: str, retry: Retry, *, publisher: str) -> None:
        assert publisher == "api"
        self.scene.step("put back")
        self.scene.steps.append(f"{queue} {retry.code} {retry.attempt}")

    async def dead_letter(self, _message: object, queue: str, error: CodedError) -> None:
        self.scene.step("dead")
        self.scene.steps.append(f"{queue} {error.code}")


@dataclass
class FakeMessage:
    """A delivery that notes its acknowledgment."""

    scene: Scene
    body: bytes
    headers: dict[str, Any]
    routing_key: str = "upload.requested"
    redelivered: bool = False
    message_id: str = UPLOAD_ID

    async def ack(self) -> None:
        self.scene.step("ack")

    async def nack(self, *, requeue: bool) -> None:
        assert requeue
        self.scene.step("given back")


@dataclass
class FakeHandler:
    """Serves uploads by doing nothing, or by raising."""

    scene: Scene
    error: Exception | None = None
    queue: str = "keyturn.upload"
    served: tuple[str, ...] = ("upload.requested",)
    seen_before: bool | None = None
    completed: bool = False
    gate: asyncio.Event | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, request: Request, origin: RequestOrigin, *, seen_before: bool) -> Handled:
        assert (request.type, origin.publisher) == ("upload.requested", "api")
        self.seen_before = seen_before
        self.entered.set()
        if self.gate is not None:
            await self.gate.wait()
        self.scene.step("served")
        if self.error is not None:
            raise self.error

        async def after() -> None:
            self.scene.step("after")

        return Handled(STORED, {}, after)

    async def find_completed(self, request: Request, origin: RequestOrigin) -> Handled | None:
        assert (request.type, origin.publisher) == ("upload.requested", "api")
        self.scene.step("checked")
        if self.error is not None:
            raise self.error
        return Handled(STORED, {}) if self.completed else None

    async def after_refusal(
        self, request: Request, origin: RequestOrigin, error: CodedError
    ) -> None:
        assert (request.type, origin.publisher) == ("upload.requested", "api")
        self.scene.step(f"cleaned up {error.code}")


def document(**changes: Any) -> bytes:
    fields = {
        "type": "upload.requested",
        "upload_id": UPLOAD_ID,
        "project": "acme",
        "key": "k",
        "requested_at": format_time(datetime.now(UTC)),
        "sealed_key": {"intake_key": "main", "ciphertext": ""},
        "body": {"inline": ""},
    }
    return json.dumps(fields | changes).encode()


def message(
    scene: Scene, body: bytes | None = None, headers: dict[str, Any] | None = None
) -> FakeMessage:
    """A signed delivery, with further headers."""
    body = document() if body is None else body
    signature = KEY.sign_request("test", "api", body)
    signed = {"keyturn-publisher": "api", "keyturn-signature": signature}
    return FakeMessage(scene, body, signed | (headers or {}))


def noted(delivery: FakeMessage, code: str, attempt: int, in_s: float = 0) -> FakeMessage:
    """The delivery as it comes back after a worker put it off."""
    retry = Retry(code, attempt, datetime.now(UTC) + timedelta(seconds=in_s))
    delivery.headers |= NOTES.headers("keyturn.upload", "api", delivery.body, retry)
    delivery.routing_key = "keyturn.upload"
    return delivery


def context(
    scene: Scene,
    metrics: WorkerMetrics | None = None,
    now: Callable[[], datetime] = utc_now,
) -> ConsumerContext:
    publisher = cast("WorkerPublisher", FakePublisher(scene))
    return ConsumerContext(publisher, metrics or WorkerMetrics(), now)


async def consume(
    handler: FakeHandler,
    delivery: FakeMessage,
    metrics: WorkerMetrics | None = None,
) -> list[str]:
    """The steps in their order."""
    consumer = RequestConsumer(handler, RULES, context(handler.scene, metrics))
    await consumer(cast("AbstractIncomingMessage", delivery))
    assert consumer.in_flight == 0
    return handler.scene.steps


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_consumer, "_PAUSE_S", 0)


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
    """Told in no event, however well-formed it is."""
    scene = Scene()
    forged = message(scene, headers={"keyturn-publisher": "other"})
    refused = ["dead", "keyturn.upload bad_signature", "ack"]
    assert await consume(FakeHandler(scene), forged) == refused


async def test_a_transient_error_schedules_a_retry_before_the_acknowledgment() -> None:
    """Its copy is in the retry queue by then; nothing is published."""
    scene = Scene()
    handler = FakeHandler(scene, StorageUnavailableError("x"))
    delivery = noted(message(scene), "storage_unavailable", 2)
    waits = ["retry", "keyturn.upload storage_unavailable 2 30s", "ack"]
    assert await consume(handler, delivery) == ["served", *waits]


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


async def test_a_bug_of_ours_schedules_a_retry() -> None:
    """An unforeseen error is retried like a failure of the storage, and nothing is lost."""
    scene = Scene()
    handler = FakeHandler(scene, ZeroDivisionError("secret"))
    waits = ["retry", "keyturn.upload storage_unavailable 0 1s", "ack"]
    assert await consume(handler, message(scene)) == ["served", *waits]


async def test_a_lost_broker_is_not_logged_as_a_bug(capsys: pytest.CaptureFixture[str]) -> None:
    """What a role sends while it serves was not confirmed: the request comes again as it is."""
    scene = Scene()
    handler = FakeHandler(scene, NotConfirmedError("ChannelInvalidStateError"))
    assert await consume(handler, message(scene)) == ["served", "given back"]
    assert "unexpected failure" not in "".join(capsys.readouterr())


Case = tuple[Exception | None, bytes | None]
SERVED: Case = (None, None)
REFUSED: Case = (AlreadyExistsError("k"), None)
WAITING: Case = (StorageUnavailableError("x"), None)
MALFORMED: Case = (None, b"{")


@pytest.mark.parametrize(
    ("case", "failing", "expected"),
    [
        (SERVED, "published", ["served", "published failed", "given back"]),
        (SERVED, "after", ["served", "published", "after failed", "given back"]),
        (SERVED, "ack", ["served", "published", "after", "ack failed", "given back"]),
        (REFUSED, "dead", ["served", "dead failed", "given back"]),
        (REFUSED, "published", ["served", "dead", "*", "published failed", "given back"]),
        (
            REFUSED,
            "ack",
            ["served", "dead", "*", "published", "cleaned", "ack failed", "given back"],
        ),
        (WAITING, "retry", ["served", "retry failed", "given back"]),
        (WAITING, "ack", ["served", "retry", "*", "ack failed", "given back"]),
        (MALFORMED, "dead", ["dead failed", "given back"]),
    ],
)
async def test_nothing_is_acknowledged_before_it_is_durable(
    case: Case, failing: str, expected: list[str]
) -> None:
    """A step that the broker did not confirm: the message goes back to its queue."""
    error, body = case
    scene = Scene(failing)
    steps = await consume(FakeHandler(scene, error), message(scene, body))
    short = [step.removesuffix(" up already_exists") for step in steps]
    assert [step if "keyturn." not in step else "*" for step in short] == expected
    assert "ack" not in steps


async def test_a_closed_channel_raises_nothing() -> None:
    """Not even the giving back works: the broker gives the message again by itself."""
    scene = Scene("published")
    delivery = message(scene)

    async def nack(*, requeue: bool) -> None:
        raise BrokerError(requeue)

    delivery.nack = nack  # type: ignore[method-assign]  # a channel that is closed
    assert await consume(FakeHandler(scene), delivery) == ["served", "published failed"]


async def test_a_cancelled_delivery_is_neither_acknowledged_nor_given_back() -> None:
    """At the end of the grace period the broker itself redelivers the message."""
    scene = Scene()
    handler = FakeHandler(scene, gate=asyncio.Event())
    running = asyncio.create_task(consume(handler, message(scene)))
    await handler.entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert scene.steps == []


REFUSED_AS = 'requests_refused_total{code="%s",queue="keyturn.upload"}'
RETRIED_AS = 'retries_total{code="%s",queue="keyturn.upload"}'


@pytest.mark.parametrize(
    ("error", "body", "stages", "ends"),
    [
        (None, None, "admit serve tell", ['requests_served_total{type="upload.stored"}']),
        (AlreadyExistsError("k"), None, "admit serve", [REFUSED_AS % "already_exists"]),
        (None, b"{", "admit", [REFUSED_AS % "malformed_request"]),
        (StorageUnavailableError("x"), None, "admit serve", [RETRIED_AS % "storage_unavailable"]),
        (ZeroDivisionError(), None, "admit serve", [RETRIED_AS % "storage_unavailable"]),
        (DeferError(3), None, "admit serve", [RETRIED_AS % "waiting"]),
    ],
    ids=["served", "refused", "malformed", "retry", "a bug", "waits"],
)
async def test_each_outcome_is_counted_once(
    error: Exception | None, body: bytes | None, stages: str, ends: list[str]
) -> None:
    """By what became of it; and each stage that it came through was measured."""
    metrics, scene = WorkerMetrics(), Scene()
    await consume(FakeHandler(scene, error), message(scene, body), metrics)
    names = [
        'messages_consumed_total{queue="keyturn.upload"}',
        *(f'stage_seconds_count{{queue="keyturn.upload",stage="{s}"}}' for s in stages.split()),
        *ends,
    ]
    assert risen(metrics) == {f"keyturn_{name}": 1 for name in names}


async def test_what_did_not_become_durable_is_not_counted_as_done() -> None:
    """It was taken, and comes again; its end is counted then."""
    for error, failing in (
        (None, "published"),
        (None, "ack"),
        (AlreadyExistsError("k"), "dead"),
        (StorageUnavailableError("x"), "retry"),
    ):
        metrics, scene = WorkerMetrics(), Scene(failing)
        await consume(FakeHandler(scene, error), message(scene), metrics)
        ends = ("served", "refused", "retries")
        assert not [name for name in risen(metrics) if any(end in name for end in ends)]


async def test_the_age_of_a_request_in_flight_is_exported() -> None:
    """From its admission on, by what it says of itself: its sender is known by then."""
    metrics, scene = WorkerMetrics(), Scene()
    handler = FakeHandler(scene, gate=asyncio.Event())
    asked = format_time(datetime.now(UTC) - timedelta(minutes=10))
    running = asyncio.create_task(
        consume(handler, message(scene, document(requested_at=asked)), metrics)
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

    Issue 10, item 3: by an unsigned header an upload aborted the multipart uploads at its key.
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
    """Issue 10, item 3: a copy with such a header was refused for good in 0.05 s."""
    scene = Scene()
    delivery = message(scene, headers={"keyturn-attempt": f"{code}:999999999"})
    waits = ["retry", f"keyturn.upload {code} 0 1s", "ack"]
    assert await consume(FakeHandler(scene, error), delivery) == ["served", *waits]


async def test_a_retry_that_comes_early_waits_on() -> None:
    """An attacker who moves it out of its retry queue neither hurries nor uses up its tries."""
    scene = Scene()
    delivery = noted(message(scene), "unknown_project", 2, in_s=5)
    waits = ["put back", "keyturn.upload unknown_project 2", "ack"]
    assert await consume(FakeHandler(scene, UnknownProjectError("acme")), delivery) == waits


def expired(scene: Scene) -> FakeMessage:
    asked = format_time(datetime.now(UTC) - timedelta(days=8) + timedelta(minutes=1))
    return message(scene, document(requested_at=asked))


async def test_an_expired_request_that_was_completed_is_published_as_completed() -> None:
    """Issue 10, item 6: a redelivery past the age was refused though its object is stored."""
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
    """Issue 10, of the small ones: it asks the storage for the time before it refuses."""
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
    asked = format_time(datetime.now(UTC) - timedelta(**age))
    consumer = _with_an_unknown_time(scene, timedelta(seconds=2))
    await consumer(cast("AbstractIncomingMessage", message(scene, document(requested_at=asked))))
    assert scene.steps[:3] == ["checked", "dead", "keyturn.upload request_expired"]


async def test_a_request_from_the_future_is_refused() -> None:
    scene = Scene()
    asked = format_time(datetime.now(UTC) + timedelta(minutes=6))
    delivery = message(scene, document(requested_at=asked))
    steps = await consume_at(FakeHandler(scene), delivery, StorageTime(timedelta()))
    assert "keyturn.upload request_expired" in steps


@pytest.mark.parametrize("routing_key", ["enroll.requested", "", "anything", "keyturn.control"])
async def test_a_genuine_request_under_another_routing_key_is_a_bad_signature(
    routing_key: str,
) -> None:
    """Issue 10, item 2: it was answered with `malformed_request` while it was stored elsewhere."""
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
    """Issue 10, item 5: an old refusal is no answer to a new try, which has other bytes."""
    scene = Scene()
    delivery = message(scene)
    await consume(FakeHandler(scene, AlreadyExistsError("k")), delivery)
    (event,) = scene.events
    assert event.origin == RequestOrigin.of("api", delivery.body)


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
