"""A worker process without its network: its own consumers, on a bucket in memory.

Deliveries come in as the bytes of AMQP frames and are read by the client library, as they
are in a worker; whatever the worker publishes is written back into frames. What stands
between the two is the product alone.
"""

from __future__ import annotations

import os
import struct
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, cast

from aio_pika import IncomingMessage
from aiormq.abc import DeliveredMessage
from pamqp import commands
from pamqp.header import ContentHeader

from keyturn.crypto import user_kek
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import parse_audit
from keyturn.topology import CONTROL_QUEUE, UPLOAD_QUEUE
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.keys.audit.trail import AuditProcess, AuditTrail
from keyturn_workers.pipeline.amqp.acks import Acks
from keyturn_workers.pipeline.worker.wiring import CONTROL, UPLOAD, Wiring
from keyturn_workers.process.metrics import WorkerMetrics
from keyturn_workers.process.property_tolerance import tolerate_odd_properties
from keyturn_workers.process.settings import WorkerSettings
from tests.fuzz.valid_messages import OTHER_PROJECT, PROJECT
from tests.fuzz.wire import FRAME_BYTES
from tests.support.routes import deliver
from tests.unit.keyturn_workers.factories import generation, keyring
from tests.unit.keyturn_workers.witness import FakeWitness
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from aio_pika import Message
    from aio_pika.abc import AbstractIncomingMessage

    from tools.harness.deployment import Deployment

_CLASS_ID: Final = 60
_FRAME_OVERHEAD_BYTES: Final = 8 + 12


@dataclass(frozen=True)
class Published:
    """A message of the worker's."""

    queue: str
    body: bytes
    header: bytes

    def read(self) -> IncomingMessage:
        """The message as a consumer reads it."""
        return received(self.header, self.body, self.queue, Channel())


class FrameError(Exception):
    """Flags or lengths that no broker passes on: it closes the sender's connection."""


@dataclass
class Channel:
    """Where a delivery came from: notes what was said about it."""

    number: int = 1
    is_closed: bool = False
    acks: int = 0
    nacks: int = 0
    connection: Any = None

    async def basic_ack(self, *_: Any, **__: Any) -> None:
        self.acks += 1

    async def basic_nack(self, *_: Any, **__: Any) -> None:
        self.nacks += 1


@dataclass
class Broker:
    """What `WorkerPublisher` needs of FastStream's: a queue to publish to."""

    published: list[Published] = field(default_factory=list)

    async def publish(self, message: Message, queue: str, *, timeout: float) -> None:  # noqa: ASYNC109
        del timeout
        self.keep(queue, message.body, message.properties)

    def keep(self, queue: str, body: bytes, properties: commands.Basic.Properties) -> None:
        """Note a message as the frames that it would be sent in."""
        header = properties.marshal()
        if len(header) + _FRAME_OVERHEAD_BYTES > FRAME_BYTES:
            raise ValueError("a header that is larger than a frame")
        self.published.append(Published(queue, body, header))


@dataclass(frozen=True)
class ConfirmedPublisher:
    """What `WorkerPublisher` publishes events by."""

    broker: Broker

    async def publish(
        self, routing_key: str, body: bytes, properties: commands.Basic.Properties
    ) -> None:
        self.broker.keep(routing_key, body, properties)


async def _confirmed(audit_id: str, body: bytes) -> None:
    """A stream that takes every record."""
    del audit_id
    parse_audit(body)


def received(
    header: bytes, body: bytes, routing_key: str, channel: Channel, *, redelivered: bool = False
) -> IncomingMessage:
    """A delivery as aio-pika gives it; errors as `delivered`."""
    message = delivered(header, body, routing_key, channel, redelivered=redelivered)
    return IncomingMessage(message)


def delivered(
    header: bytes, body: bytes, routing_key: str, channel: Channel, *, redelivered: bool = False
) -> DeliveredMessage:
    """A delivery, out of the bytes of its content header and its body.

    Raises:
        FrameError: it is not cut as a content header is.
    """
    found = ContentHeader()
    try:
        found.unmarshal(struct.pack(">HHQ", _CLASS_ID, 0, len(body)) + header)
    except (struct.error, ValueError) as exc:
        raise FrameError(str(exc)) from exc
    delivery = commands.Basic.Deliver("consumer", 1, redelivered, "keyturn", routing_key)
    return DeliveredMessage(
        delivery=delivery, header=found, body=body, channel=cast("Any", channel)
    )


class Worker:
    """One worker with the roles `upload` and `control`, and its bucket."""

    def __init__(self, deployment: Deployment, staged: Mapping[str, bytes]) -> None:
        self._staged = staged
        self._settings = _settings(deployment)
        self._rings = {
            project: keyring(project, master_key="m1") for project in (PROJECT, OTHER_PROJECT)
        }
        kek = user_kek(deployment.api_key, PROJECT)
        self._rings[PROJECT] = replace(self._rings[PROJECT], current=generation(1, kek=kek))
        self._audit = AuditTrail(AuditProcess.start("worker control"), _confirmed)
        self.begin()

    def running(self) -> AbstractAsyncContextManager[None]:
        """While the block runs, what is recorded in the audit trail is confirmed."""
        return self._audit.running()

    def begin(self) -> None:
        """A bucket as new, and a new process on it."""
        self.broker = Broker()
        self.storage = MemoryStorage()
        for project, ring in self._rings.items():
            record = build_keyring(ring, self._settings.master_keys)
            self.storage.plant(keyring_s3_key(project), record, Headers({}))
        for key, body in self._staged.items():
            self.storage.plant(key, body, Headers({}))
        keys = operator_keys(self._settings.master_keys)
        broker = cast("Any", self.broker)
        process = Wiring(
            self._settings,
            self.storage,
            broker,
            keys,
            HeldCustomerKeys(),
            WorkerMetrics(),
            audit=self._audit,
            witness=FakeWitness(),
        )
        publisher, confirmed = process._worker_publisher, ConfirmedPublisher(self.broker)
        publisher._events = publisher._reports = cast("Any", confirmed)
        roles = frozenset({UPLOAD, CONTROL})
        self._routes = {route.queue: route for route in process.routes(roles)}

    async def take(self, queue: str, message: AbstractIncomingMessage) -> None:
        """Let the worker take one delivery; what it publishes is in `broker.published`."""
        self.broker.published.clear()
        acks = Acks(prefetch=1)
        if await deliver(self._routes[queue], message):
            acks.done(message)
        else:
            acks.give_back(message)
        await acks.flush()


def _settings(deployment: Deployment) -> WorkerSettings:
    tolerate_odd_properties()
    with _environment(deployment.worker_env()):
        return WorkerSettings.read()


@contextmanager
def _environment(env: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


QUEUES: Final = (UPLOAD_QUEUE, CONTROL_QUEUE)
