"""Deliveries, a handler and a publisher that note what happens to them, in order."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from aio_pika.exceptions import AMQPException

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.identifiers import format_time
from keyturn.messages import RequestOrigin, UploadStored
from keyturn_workers.core.authorization import Rules
from keyturn_workers.core.grants import Grant
from keyturn_workers.pipeline.amqp.failures import Retry, RetryNotes
from keyturn_workers.pipeline.amqp.outcomes import Handled
from keyturn_workers.pipeline.amqp.requests import RequestQueue, request_route
from keyturn_workers.pipeline.amqp.settlement import DeliveryContext
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.wall_clock import utc_now
from tests.support.routes import deliver

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.errors import (
        CodedError,
    )
    from keyturn.messages import Event, Request
    from keyturn_workers.pipeline.amqp.publisher import WorkerPublisher


KEY = SigningKey.from_seed(bytes(32))
ALL = frozenset("*")
RULES = Rules(
    "test",
    {"api": Grant((VerifyKey.from_bytes(KEY.public_bytes),), ALL, ALL, frozenset({"drop"}))},
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


class BrokerError(AMQPException):
    """What aio-pika raises where a publish was not confirmed."""


@dataclass
class Scene:
    """Notes what happens, in order; the step named `failing` raises `error`, `failures` times."""

    failing: str = ""
    failures: float = float("inf")
    error: Exception = field(default_factory=BrokerError)
    steps: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def step(self, name: str) -> None:
        if name == self.failing and self.failures:
            self.failures -= 1
            self.steps.append(f"{name} failed")
            raise self.error
        self.steps.append(name)


@dataclass
class FakePublisher:
    """Publishes nothing, and notes what was requested."""

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

    async def defer(
        self, _message: object, queue: str, wait_s: float, *, publisher: str = ""
    ) -> None:
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
    """A delivery."""

    scene: Scene
    body: bytes
    headers: dict[str, Any]
    routing_key: str = "upload.requested"
    redelivered: bool = False
    message_id: str = UPLOAD_ID
    delivery_tag: int = 7


@dataclass
class FakeHandler:
    """Serves uploads by doing nothing, or by raising."""

    scene: Scene
    error: Exception | None = None
    queue: str = "keyturn.upload"
    served: tuple[str, ...] = ("upload.requested",)
    seen_before: bool | None = None
    attempts: int | None = None
    completed: bool = False
    final_codes: frozenset[str] = frozenset()
    gate: asyncio.Event | None = None
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(
        self, request: Request, origin: RequestOrigin, *, seen_before: bool, attempts: int = 0
    ) -> Handled:
        assert (request.type, origin.publisher) == ("upload.requested", "api")
        self.seen_before, self.attempts = seen_before, attempts
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

    def gives_up(self, error: CodedError) -> bool:
        return error.code in self.final_codes

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
) -> DeliveryContext:
    publisher = cast("WorkerPublisher", FakePublisher(scene))
    return DeliveryContext(publisher, metrics or WorkerMetrics(), now)


@dataclass
class FakeAudit:
    """Notes what is recorded."""

    scene: Scene

    async def served(
        self, request: Request, origin: RequestOrigin, _event: Event | None = None
    ) -> None:
        assert (request.type, origin.publisher) == ("upload.requested", "api")
        self.scene.step("recorded")

    async def refused(self, body: bytes, publisher: str, error: CodedError) -> None:
        assert (bool(body), publisher) == (True, "api")
        self.scene.step(f"recorded {error.code}")


async def consume(
    handler: FakeHandler,
    delivery: FakeMessage,
    metrics: WorkerMetrics | None = None,
    audit: FakeAudit | None = None,
) -> list[str]:
    """The steps in their order."""
    metrics = metrics or WorkerMetrics()
    queue = RequestQueue(handler, RULES, context(handler.scene, metrics), audit=audit)
    steps = await settled(queue, delivery)
    assert metrics.queue(handler.queue).in_flight == 0
    return steps


async def settled(queue: RequestQueue, delivery: FakeMessage) -> list[str]:
    """The steps of a delivery, and what becomes of it then."""
    is_settled = await deliver(request_route(queue, prefetch=8), delivery)
    delivery.scene.step("ack" if is_settled else "given back")
    return delivery.scene.steps
