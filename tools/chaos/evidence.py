"""The evidence for the checks after a run, read from the broker and not from the run itself.

After the workers ended, it reads the event stream from its beginning, takes all dead letters and
counts the messages in the queues, with aio-pika only.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aio_pika
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPException

from keyturn import topology
from keyturn.crypto import MarkVerifier, SignatureError, VerifyKey
from keyturn.messages import parse_mark
from tools.chaos.attackers import Attacks, digest
from tools.chaos.drop_checks import DropState
from tools.chaos.drops import Written
from tools.chaos.plan import RIVAL
from tools.harness.requests import new_id
from tools.harness.wire import consume_stream, open_wire, verified_events

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from aio_pika.abc import AbstractIncomingMessage

    from keyturn.messages import KeyringMarked
    from keyturn.publisher.requests import SignedRequest
    from tools.chaos.drops import SourceBuckets
    from tools.chaos.key_outages import CustomerSecret, KeyOutage
    from tools.chaos.operator import OperatorRequest
    from tools.chaos.plan import Plan
    from tools.chaos.thief import Theft
    from tools.harness.deployment import Deployment
    from tools.harness.tenants import Tenant
    from tools.harness.wire import Wire

_READ_S = 120


@dataclass(frozen=True)
class Letter:
    """A dead letter: its queue, request, code and body digest, and whether the body is kept."""

    queue: str
    request_id: str
    code: str
    digest: str = ""
    has_body: bool = True


@dataclass
class OnBroker:
    """The broker's content: verified events, digests of others, dead letters, queue depths.

    `marks` are the verified marks of keyrings, in their order. `poison` counts the dead letters
    of each queue that RabbitMQ cannot deliver to this client (poison messages).
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    depths: dict[str, int] = field(default_factory=dict)
    marks: list[KeyringMarked] = field(default_factory=list)
    poison: Counter[str] = field(default_factory=Counter)


@dataclass
class Evidence:
    """A run: what was requested, what is on the broker, and what the processes showed.

    `customer_secrets` are those of each generation, by project.
    """

    plan: Plan
    deployment: Deployment
    folder: Path
    tenants: dict[str, Tenant]
    masters: dict[str, bytes] = field(repr=False)
    confirmed: frozenset[str]
    sent: dict[str, list[SignedRequest]] = field(repr=False)
    requested: list[OperatorRequest]
    tagged: dict[str, dict[str, str]]
    broker: OnBroker
    attacks: Attacks = field(default_factory=Attacks)
    rival: Tenant | None = None
    thefts: list[Theft] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    unexpected_exits: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    misread: list[str] = field(default_factory=list)
    misreported: list[str] = field(default_factory=list)
    written: Written = field(default_factory=Written)
    source_buckets: SourceBuckets | None = None
    drop_state: DropState = field(default_factory=DropState)
    customer_secrets: dict[str, list[CustomerSecret | None]] = field(
        default_factory=dict, repr=False
    )
    key_outages: list[KeyOutage] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)


async def on_broker(deployment: Deployment) -> OnBroker:
    """Read everything; this removes the dead letters from the broker."""
    found = OnBroker()
    async with open_wire(deployment) as wire:
        for queue in topology.queues():
            if not queue.is_stream:
                found.depths[queue.name] = await wire.depth(queue.name)
        for name in topology.DEAD_QUEUES:
            await _take_letters(deployment, name, found)
        await _read_events(wire, deployment, found)
        await _read_marks(wire, deployment, found)
    return found


async def _take_letters(deployment: Deployment, name: str, found: OnBroker) -> None:
    """Take all dead letters of a queue; a poison message costs the connection, and is taken too."""
    while True:
        async with await aio_pika.connect(deployment.amqp_url) as connection:
            queue = await (await connection.channel()).get_queue(name, ensure=False)
            try:
                while (message := await queue.get(no_ack=True, fail=False)) is not None:
                    found.letters.append(_letter(name, message))
            except (AMQPException, *CONNECTION_EXCEPTIONS):
                found.poison[name] += 1
            else:
                return


def _letter(name: str, message: AbstractIncomingMessage) -> Letter:
    code = str(message.headers.get(topology.CODE_HEADER))
    dropped = message.headers.get(topology.BODY_DROPPED_HEADER)
    of_body = digest(message.body) if dropped is None else str(dropped)
    return Letter(name, str(message.message_id), code, of_body, dropped is None)


async def _read_events(wire: Wire, deployment: Deployment, found: OnBroker) -> None:
    verify = VerifyKey.from_bytes(deployment.event_key.public_bytes)

    def take(body: bytes, signature: str) -> None:
        try:
            events = verified_events(verify, deployment.name, body, signature)
        except SignatureError:
            found.unverified.append(digest(body))
        else:
            found.events += events

    await _read_stream(wire, deployment, topology.EVENTS_STREAM, "upload.stored", take)


async def _read_marks(wire: Wire, deployment: Deployment, found: OnBroker) -> None:
    verifier = MarkVerifier(deployment.name, [deployment.event_key.verify_key()])

    def take(body: bytes, signature: str) -> None:
        if verifier.signer(body, signature) is not None and b"keyring.marked" in body:
            found.marks.append(parse_mark(body))

    await _read_stream(wire, deployment, topology.MARKS_STREAM, topology.KEYRING_MARKED, take)


async def _read_stream(
    wire: Wire,
    deployment: Deployment,
    stream: str,
    routing_key: str,
    take: Callable[[bytes, str], None],
) -> None:
    """Read a stream from its beginning to a marker that is published now."""
    marker, over = new_id().encode(), asyncio.Event()

    async def receive(message: AbstractIncomingMessage) -> None:
        if message.body == marker:
            over.set()
            return
        take(message.body, str(message.headers.get(topology.SIGNATURE_HEADER)))
        await message.ack()

    await wire.publish(routing_key, marker, {})
    async with asyncio.timeout(_READ_S), await aio_pika.connect(deployment.amqp_url) as connection:
        await consume_stream(connection, stream, receive)
        await over.wait()


def event_ids(event: dict[str, Any]) -> set[str]:
    """The request ids in an event."""
    names = set(topology.REQUEST_ID_FIELDS.values())
    return {value for name, value in event.items() if name in names}


def honest(broker: OnBroker) -> list[dict[str, Any]]:
    """The events of requests that the hostile publisher did not sign."""
    return [event for event in broker.events if event.get("publisher") != RIVAL]


def events_by_request(broker: OnBroker) -> dict[str, Counter[str]]:
    """The number of events by honest request and type; a rejection's type includes its code."""
    by_id: dict[str, Counter[str]] = {}
    for event in honest(broker):
        what = f"{event['type']} {event['code']}" if "code" in event else event["type"]
        for request_id in event_ids(event):
            by_id.setdefault(request_id, Counter())[what] += 1
    return by_id


def stored_ids(evidence: Evidence) -> set[str]:
    """The uploads that were reported as stored."""
    return {
        event["upload_id"] for event in honest(evidence.broker) if event["type"] == "upload.stored"
    }
