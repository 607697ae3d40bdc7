"""A hostile publisher and an attacker with broker access, during a run (SPEC 6.3, 6.7).

The hostile publisher has a key and a grant for its own project only. It signs its own requests
with the ids of others' requests. The broker writer may publish any message anywhere, but has no
key: it copies and alters signed messages, and sends unsigned ones. Meanwhile each victim waits
with the product's client, which must receive the event of its own request.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aio_pika
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPException

from keyturn import topology
from keyturn.crypto import SigningKey, new_api_key, to_base64
from keyturn.errors import NotSentHereError
from keyturn.publisher import PublisherError
from keyturn.publisher.requests import SignedRequest
from tools.chaos.plan import FLAWS_WITHOUT_EVENT, HOSTILE, RIVAL, rng_for
from tools.harness import requests as rq
from tools.harness.amqp1 import POISONS, AMQP1Error, Parts, open_sender
from tools.harness.wire import consume_stream

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from keyturn.messages import Event
    from tools.chaos.plan import Action, Upload
    from tools.chaos.publisher import EventLog, RecordingPublisher
    from tools.harness.deployment import Deployment

_RECENT = 40
_OLD_EVENTS = 12
_READ_S = 1.0
_PAUSE_S = 0.3
_WAIT_S = 900.0
_FORGED_ATTEMPT = 99
_POISONED = (
    topology.UPLOAD_QUEUE,
    topology.CONTROL_QUEUE,
    topology.SWEEP_QUEUE,
    topology.PLAN_QUEUE,
    topology.NOTIFICATIONS,
)


def digest(body: bytes) -> str:
    """A request's digest in events: the hex SHA-256 of its body."""
    return hashlib.sha256(body).hexdigest()


@dataclass(frozen=True)
class ForgedMessage:
    """A message not signed for its destination: its attack, and its expected dead-letter queue."""

    attack: str
    dead_queue: str


@dataclass(frozen=True)
class VictimOutcome:
    """The event that the caller of an attacked request received, or None."""

    request_id: str
    attack: str
    event: dict[str, Any] | None


@dataclass
class Attacks:
    """A record of the attacks for the checks; keys are digests of bodies.

    `forged` were published as requests without a valid signature for their destination,
    `false_events` as events not signed by the deployment; `signed` are the hostile publisher's
    own requests. `poison` counts the poison messages sent to each queue.
    """

    signed: list[SignedRequest] = field(default_factory=list, repr=False)
    forged: dict[str, list[ForgedMessage]] = field(default_factory=dict)
    junk: set[str] = field(default_factory=set)
    false_events: set[str] = field(default_factory=set)
    waited: list[VictimOutcome] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)
    poison: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Message:
    """A message to publish, to the exchange or directly to a queue."""

    routing_key: str
    body: bytes
    headers: Mapping[str, Any]
    message_id: str = ""
    to_queue: bool = False
    amqp1: Parts | None = None  # if sent over AMQP 1.0: always to the queue itself


def publishers_with_rival(deployment: Deployment, key: SigningKey) -> str:
    """The setting `PUBLISHERS` with the hostile publisher, which has all rights in its project."""
    known = json.loads(deployment.worker_env()["KEYTURN_PUBLISHERS"])
    return json.dumps(
        {
            **known,
            RIVAL: {"keys": [to_base64(key.public_bytes)], "may": ["*"], "projects": [RIVAL]},
        }
    )


@dataclass
class Attackers:
    """Performs attacks; `attacks` records them."""

    deployment: Deployment
    key: SigningKey
    seed: int
    publisher: RecordingPublisher
    event_log: EventLog
    uploads: dict[str, Upload]
    attacks: Attacks = field(default_factory=Attacks)
    _waits: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _number: int = 0

    async def attack(self, action: Action) -> None:
        """Perform one attack on several requests, as soon as the broker accepts it."""
        self._number += 1
        rng = rng_for(self.seed, f"attack {self._number}")
        for victim in self._victims(rng, action.times):
            self._wait_for(victim, action.to)
            for message in await self._messages(action.to, victim, rng):
                await publish(self.deployment, message)
                self.attacks.done[action.to] += 1

    async def all_heard(self) -> None:
        """Wait until all victims have received the events of their requests."""
        await asyncio.gather(*self._waits.values())

    def stop(self) -> None:
        """Cancel all waits; a victim whose wait is canceled has received nothing."""
        for task in self._waits.values():
            task.cancel()

    # The victims.

    def _victims(self, rng: random.Random, count: int) -> list[SignedRequest]:
        """Recently sent requests, including some that are not uploads."""
        sent = [tries[-1] for tries in self.publisher.sent.values()]
        sent = [signed for signed in sent if self._is_complete(signed)]
        uploads = [signed for signed in sent if signed.type == "upload.requested"][-_RECENT:]
        others = [signed for signed in sent if signed.type != "upload.requested"]
        waiting = [u for u in uploads if u.request_id not in self.event_log.events]
        chosen = [rng.choice(others)] if others else []
        pool = waiting or uploads
        return (chosen + rng.sample(pool, min(count, len(pool))))[:count]

    def _is_complete(self, signed: SignedRequest) -> bool:
        upload = self.uploads.get(signed.request_id)
        return upload is None or upload.flaw not in FLAWS_WITHOUT_EVENT

    def _wait_for(self, victim: SignedRequest, attack: str) -> None:
        if victim.request_id not in self._waits:
            task = asyncio.create_task(self._hear(victim, attack))
            self._waits[victim.request_id] = task

    async def _hear(self, victim: SignedRequest, attack: str) -> None:
        event: Event | None = None
        try:
            while event is None:
                try:
                    event = await self.publisher.wait_completed(
                        victim.request_id, timeout_s=_WAIT_S
                    )
                except NotSentHereError:
                    return  # sent without the client, which does not know it
                except TimeoutError:
                    break
                except PublisherError:
                    await asyncio.sleep(_PAUSE_S)
        except asyncio.CancelledError:
            self.attacks.waited.append(VictimOutcome(victim.request_id, attack, None))
            raise
        outcome = None if event is None else event.model_dump()
        self.attacks.waited.append(VictimOutcome(victim.request_id, attack, outcome))

    # The messages.

    async def _messages(
        self, attack: str, victim: SignedRequest, rng: random.Random
    ) -> list[Message]:
        if attack in HOSTILE:
            return self._signed(attack, victim)
        if attack == "old events":
            return await self._old_events(rng)
        return self._written(attack, victim, rng)

    def _signed(self, attack: str, victim: SignedRequest) -> list[Message]:
        """A request that the hostile publisher signs with the victim's id."""
        document = json.loads(victim.body)
        body = rq.encode(self._document(attack, victim.request_id, document))
        headers = rq.headers(body, self.key, publisher=RIVAL, deployment=self.deployment.name)
        message_type = json.loads(body)["type"]
        signed = SignedRequest(victim.request_id, message_type, body, headers)
        self.attacks.signed.append(signed)
        return [Message(message_type, body, headers, victim.request_id)]

    def _document(self, attack: str, request_id: str, others: dict[str, Any]) -> dict[str, Any]:
        project = RIVAL if attack.endswith("of its own") else others["project"]
        key = others.get("key", f"taken/{request_id}")
        match attack.split(maxsplit=1)[0]:
            case "sweep":
                return rq.sweep(project, sweep_id=request_id)
            case "upload":
                made = rq.upload(self.deployment, project, key, b"rival", upload_id=request_id)
                return made.document
            case "rotation":
                return {
                    **rq.rotation(self.deployment, project, new_api_key(), expected_generation=99),
                    "rotation_id": request_id,
                }
            case "delete":
                return rq.delete(project, key, request_id=request_id)
            case _:
                return {**others, "requested_at": "yesterday", "color": "red"}

    def _written(self, attack: str, victim: SignedRequest, rng: random.Random) -> list[Message]:
        """The broker writer's message, with or without the victim's request."""
        if attack.startswith("copy"):
            return [self._copy(attack, victim, rng)]
        if attack == "unsigned request":
            return [
                self._junk(attack, key, os.urandom(60), {}, victim.request_id)
                for key in topology.REQUESTS
            ]
        if attack == "false event":
            return [self._false_event(victim)]
        if attack == "poison":
            queue, poison = rng.choice(_POISONED), POISONS[rng.choice(sorted(POISONS))]
            self.attacks.poison[queue] += 1
            return [Message(queue, os.urandom(60), {}, amqp1=poison)]
        return [self._changed(attack, victim)]

    def _copy(self, attack: str, victim: SignedRequest, rng: random.Random) -> Message:
        """The same signed bytes, sent elsewhere or with forged worker headers."""
        body, headers, named = victim.body, dict(victim.headers), victim.request_id
        if attack == "copy under another key":
            key = rng.choice([key for key in topology.REQUESTS if key != victim.type])
            self._note(attack, body, topology.UNSIGNED_DEAD_QUEUE)
            return Message(key, body, headers, named)
        if attack == "copy to another queue":
            is_upload = victim.type in topology.UPLOAD_REQUESTS
            away = topology.CONTROL_QUEUE if is_upload else topology.UPLOAD_QUEUE
            queue = rng.choice((away, topology.SWEEP_QUEUE, topology.PLAN_QUEUE))
            # The workers' hints are unsigned, so an invalid one is in their dead-letter queue.
            dead = topology.dead_letter_name(queue)
            self._note(attack, body, topology.UNSIGNED_DEAD_QUEUE if queue == away else dead)
            return Message(queue, body, headers, named, to_queue=True)
        forged = {
            topology.ATTEMPT_HEADER: _FORGED_ATTEMPT,
            topology.CODE_HEADER: "storage_unavailable",
            topology.NOT_BEFORE_HEADER: "2099-01-01T00:00:00.000000Z",
            topology.RETRY_MAC_HEADER: to_base64(os.urandom(32)),
        }
        return Message(victim.type, body, headers | forged, named)

    def _changed(self, attack: str, victim: SignedRequest) -> Message:
        """Changed bytes, with the original signature or signed with an unknown key."""
        document, headers = json.loads(victim.body), dict(victim.headers)
        if attack == "altered request":
            body = rq.encode({**document, "project": RIVAL})
        else:
            body = rq.encode({**document, "requested_at": rq.now()})
            name = str(headers[topology.PUBLISHER_HEADER])
            headers = rq.headers(body, self.key, publisher=name, deployment=self.deployment.name)
        return self._junk(attack, victim.type, body, headers, victim.request_id)

    def _junk(
        self, attack: str, key: str, body: bytes, headers: Mapping[str, Any], named: str
    ) -> Message:
        self._note(attack, body, topology.UNSIGNED_DEAD_QUEUE)
        self.attacks.junk.add(digest(body))
        return Message(key, body, headers, named)

    def _note(self, attack: str, body: bytes, dead_queue: str) -> None:
        self.attacks.forged.setdefault(digest(body), []).append(ForgedMessage(attack, dead_queue))

    def _false_event(self, victim: SignedRequest) -> Message:
        """A rejection of the victim's request that the deployment did not sign."""
        event = {
            "type": topology.REJECTED_EVENTS[victim.type],
            topology.REQUEST_ID_FIELDS[victim.type]: victim.request_id,
            "project": json.loads(victim.body)["project"],
            "at": rq.now(),
            "code": "malformed_request",
            "detail": "forged",
            "publisher": "api",
            "request": digest(victim.body),
        }
        body = rq.encode(event)
        self.attacks.false_events.add(digest(body))
        headers = {
            topology.SIGNATURE_HEADER: self.key.sign_event(self.deployment.name, body),
            topology.PUBLISHER_HEADER: "api",
        }
        return Message(str(event["type"]), body, headers, victim.request_id)

    async def _old_events(self, rng: random.Random) -> list[Message]:
        """Events from the stream, republished with their own or another routing key."""
        kept: list[Message] = []

        async def take(message: Any) -> None:
            headers = dict(message.headers)
            if rng.random() < 0.5 and topology.PUBLISHER_HEADER in headers:
                headers[topology.PUBLISHER_HEADER] = rng.choice(("api", RIVAL))
            own = str(message.routing_key)
            key = own if rng.random() < 0.5 else rng.choice(topology.EVENTS)
            kept.append(Message(key, message.body, headers))
            await message.ack()

        while not kept:
            # Nothing can be read while the broker is down.
            with suppress(AMQPException, OSError, TimeoutError, *CONNECTION_EXCEPTIONS):
                async with await aio_pika.connect(self.deployment.amqp_url) as connection:
                    await consume_stream(connection, topology.EVENTS_STREAM, take)
                    await asyncio.sleep(_READ_S)
        return rng.sample(kept, min(_OLD_EVENTS, len(kept)))


async def publish(deployment: Deployment, message: Message) -> None:
    """Publish until confirmed; a duplicate is one more attack."""
    while True:
        try:
            await _publish_once(deployment, message)
        except (AMQPException, AMQP1Error, EOFError, OSError, TimeoutError, *CONNECTION_EXCEPTIONS):
            await asyncio.sleep(_PAUSE_S)
        else:
            return


async def _publish_once(deployment: Deployment, message: Message) -> None:
    if message.amqp1 is not None:
        address = f"/queues/{message.routing_key}"
        async with open_sender(deployment.amqp_url, address) as sender:
            await sender.send(message.body, message.amqp1)
        return
    async with await aio_pika.connect(deployment.amqp_url, timeout=5) as connection:
        channel = await connection.channel()
        exchange: Any = channel.default_exchange
        if not message.to_queue:
            exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
        sent = aio_pika.Message(
            message.body,
            headers=dict(message.headers),
            content_type="application/json",
            message_id=message.message_id or None,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(sent, message.routing_key, timeout=10)
