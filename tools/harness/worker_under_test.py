"""A deployment served by a real worker process, and the checks for a rejected message.

For tests of SPEC 6.3 and 12 with a real broker and bucket. One worker may serve a whole test
module: each message is handled completely before the next one is sent.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aio_pika

from keyturn import topology
from keyturn_workers.process.message_copies import CODES_WITHOUT_BODY
from tools.harness import requests, stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import WorkerProcess, worker
from tools.harness.wire import Wire, open_wire
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractIncomingMessage

    from tools.servers import S3Server, Servers

QUEUES = dict.fromkeys(topology.UPLOAD_REQUESTS, topology.UPLOAD_QUEUE) | dict.fromkeys(
    topology.CONTROL_REQUESTS, topology.CONTROL_QUEUE
)
_WORKER_HEADERS = set(topology.WORKER_HEADERS)
_ID_FIELDS = sorted(set(topology.REQUEST_ID_FIELDS.values()))


@dataclass(frozen=True)
class OutgoingRequest:
    """A message to publish, and the rejection event that is expected for it, if any."""

    routing_key: str
    body: bytes
    headers: dict[str, Any]
    rejection: dict[str, Any] | None = None

    @property
    def request_id(self) -> str:
        """The request id in its rejection event."""
        assert self.rejection is not None
        return str(next(self.rejection[n] for n in _ID_FIELDS if n in self.rejection))


@dataclass(frozen=True)
class WorkerUnderTest:
    """A worker process, its deployment, and a connection to its broker."""

    deployment: Deployment
    process: WorkerProcess
    wire: Wire

    def sign(
        self, document: dict[str, Any], *, routing_key: str = "", project: str | None = None
    ) -> OutgoingRequest:
        """Sign a request as the publisher `api`; `project` overrides the one in its rejection."""
        body = requests.encode(document)
        kind = document["type"]
        name = topology.REQUEST_ID_FIELDS[kind]
        rejection = {
            "type": kind.replace(".requested", ".rejected"),
            name: document[name],
            "project": project or document["project"],
        }
        headers: dict[str, Any] = dict(requests.headers(body, self.deployment.publisher_key))
        return OutgoingRequest(routing_key or kind, body, headers, rejection)

    async def publish(self, sent: OutgoingRequest, **properties: Any) -> None:
        """Publish a message unchanged."""
        await self.wire.publish(sent.routing_key, sent.body, sent.headers, **properties)

    async def publish_and_wait(self, document: dict[str, Any]) -> dict[str, Any]:
        """Publish a request, wait until the worker has handled it, and return its event.

        The log line comes last, after the staged body is deleted and the message acknowledged.
        """
        known, logged = len(self.wire.events), len(self.process.lines)
        sent = self.sign(document)
        await self.publish(sent, message_id=sent.request_id)
        event = await self.wire.event(
            lambda event: (
                sent.request_id in event.values() and event not in self.wire.events[:known]
            )
        )
        await self.process.logged(sent.request_id, after=logged)
        return event

    async def enroll(self, project: str, **more: Any) -> dict[str, Any]:
        """Enroll a project with the deployment's API key."""
        event = await self.publish_and_wait(requests.enroll(self.deployment, project, **more))
        assert event["type"] == "project.enrolled"
        return event

    async def assert_serves_next(self, project: str = "acme") -> dict[str, Any]:
        """Check that a valid upload is stored and opens with both keys; returns its event."""
        key = f"good/{uuid.uuid4()}"
        event = await self.publish_and_wait(
            requests.upload(self.deployment, project, key, b"good").document
        )
        assert event["type"] == "upload.stored", event
        for role in ("user", "admin"):
            assert stored_objects.decrypt(self.deployment, project, key, role) == b"good"
        return event

    async def assert_rejected(
        self, sent: OutgoingRequest, code: str, detail: str = "", **properties: Any
    ) -> AbstractIncomingMessage:
        """Check what SPEC 6.3 and 12 require of a rejected message; returns the dead letter.

        The message is in its queue's dead-letter queue with its code, body and headers and
        nowhere else, at most one event reports it, and the next valid message is served.
        """
        known = len(self.wire.events)
        properties.setdefault("message_id", str(uuid.uuid4()))
        await self.publish(sent, **properties)
        queue = QUEUES[sent.routing_key]
        unsigned = code == "bad_signature"
        dead_queue = topology.UNSIGNED_DEAD_QUEUE if unsigned else f"{queue}.dead"
        dead = await self.wire.take(dead_queue)
        assert dead.headers["keyturn-code"] == code, dead.headers
        assert detail in str(dead.headers["keyturn-detail"])
        if topology.BODY_DROPPED_HEADER in dead.headers:
            assert code in CODES_WITHOUT_BODY
            kept_of = json.loads(dead.body)["body"]
            assert kept_of["sha256"] == hashlib.sha256(sent.body).hexdigest()
        else:
            assert code not in CODES_WITHOUT_BODY
            assert dead.body == sent.body
        kept = {name: v for name, v in dead.headers.items() if name not in _WORKER_HEADERS}
        assert kept == sent.headers
        assert dead.message_id == properties["message_id"]
        assert dead.delivery_mode == aio_pika.DeliveryMode.PERSISTENT
        expected = []
        if sent.rejection is not None:
            event = await self.wire.outcome(sent.request_id)
            assert detail in event["detail"]
            rejection = {
                **sent.rejection,
                "code": code,
                "at": event["at"],
                "detail": event["detail"],
                "publisher": sent.headers["keyturn-publisher"],
                "request": hashlib.sha256(sent.body).hexdigest(),
            }
            assert event == rejection
            expected.append(event)
        expected.append(await self.assert_serves_next())
        assert self.wire.events[known:] == expected
        assert [await self.wire.depth(q) for q in (queue, dead_queue)] == [0, 0]
        return dead

    def stage(self, upload_id: str, body: bytes, *, publisher: str = "api") -> None:
        """Put a sealed body into staging, as a publisher does."""
        stored_objects.s3_client(self.deployment).put_object(
            Bucket=self.deployment.bucket, Key=staging_s3_key(upload_id, publisher), Body=body
        )

    def put(self, s3_key: str, body: bytes, metadata: dict[str, str] | None = None) -> None:
        """Put an object as any writer of the bucket could."""
        stored_objects.s3_client(self.deployment).put_object(
            Bucket=self.deployment.bucket, Key=s3_key, Body=body, Metadata=metadata or {}
        )

    def object_exists(self, s3_key: str) -> bool:
        """Whether an object exists at this S3 key."""
        return s3_key in stored_objects.list_keys(self.deployment, s3_key)


def staging_s3_key(upload_id: str, publisher: str = "api") -> str:
    """The S3 key of a publisher's staged body."""
    return f".keyturn/staging/{publisher}/{upload_id}"


async def fresh_amqp_url(broker: Servers) -> str:
    """A fresh vhost of a private broker, or the emptied vhost of a given broker."""
    if broker.rabbitmq is not None:
        return broker.rabbitmq.next_vhost_url()
    async with await aio_pika.connect(broker.amqp_url) as connection:
        streams = map(topology.publisher_queue, ("api", "narrow", "gateway"))
        for queue in (*topology.queues(), *streams):
            # One channel each: the broker closes the channel on an error.
            await (await connection.channel()).queue_delete(queue.name)
    return broker.amqp_url


@asynccontextmanager
async def run_worker(
    broker: Servers, s3: S3Server, *, endpoint_url: str = "", **env: str
) -> AsyncIterator[WorkerUnderTest]:
    """Run a worker for a fresh deployment on these servers, with the project `acme` enrolled.

    `endpoint_url` overrides the worker's storage address; `env` are further settings of the
    worker, without their prefix.
    """
    deployment = Deployment(await fresh_amqp_url(broker), s3, new_bucket(s3))
    if endpoint_url:
        env["S3_ENDPOINT_URL"] = endpoint_url
    async with run_worker_for(deployment, **env) as running:
        yield running


@asynccontextmanager
async def run_worker_for(deployment: Deployment, **env: str) -> AsyncIterator[WorkerUnderTest]:
    """Run a worker for this deployment, with the project `acme` enrolled."""
    async with (
        worker(deployment.worker_env(**env)) as process,
        open_wire(deployment) as wire,
    ):
        running = WorkerUnderTest(deployment, process, wire)
        await running.enroll("acme")
        yield running
