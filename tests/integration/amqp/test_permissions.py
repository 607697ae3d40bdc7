"""The users of `keyturn broker-users`, on a real broker (SPEC 6.8).

What they are allowed works from end to end; what they are not, the broker refuses.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aio_pika
import pytest
from aiormq.exceptions import ChannelAccessRefused, PublishError
from faststream.rabbit import RabbitBroker

from keyturn import topology
from keyturn.crypto import SigningKey
from keyturn.messages import (
    DeadLettersMoved,
    EraseRejected,
    StatusReported,
    parse_event,
    parse_worker_report,
)
from keyturn.publisher import BrokerUnavailableError, NotDeliveredError, Publisher
from keyturn.publisher.connection import BrokerConnection
from keyturn.settings import PublisherSettings
from keyturn_workers.cli.broker_users import ROLES, definitions, of_publisher
from keyturn_workers.core.grants import Grant
from keyturn_workers.pipeline.amqp.declarations import declare, declare_streams
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.pipeline.amqp.publisher import WorkerPublisher
from tools.generate.examples import compact, worker_reports
from tools.generate.examples import events as event_examples
from tools.harness import requests
from tools.harness.console import ConsoleDeployment
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.harness.wire import documents_in
from tools.servers import Servers, new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

    from tools.servers import RabbitMQ, S3Server

pytestmark = pytest.mark.servers
_PASSWORD = secrets.token_hex(16)
_BILLING = "keyturn.events.billing"


def _grant(*may: str) -> Grant:
    return Grant((), frozenset(f"{each}.requested" for each in may), frozenset({"*"}))


PERMISSIONS = {
    **{role: ROLES[role] for role in ("worker", "ingest", "storage", "operator", "auditor")},
    **{
        name: of_publisher(name, grant, reads_marks=name == "gateway")
        for name, grant in {
            "billing": _grant("upload", "rotation"),
            "audit": _grant("upload", "rotation"),
            "gateway": _grant("upload", "rotation", "delete"),
            "console": _grant("enroll", "rotation", "sweep", "delete", "status", "dead_letters"),
        }.items()
    },
}


@dataclass(frozen=True)
class Users:
    """A vhost with the users, and `audit`, a second publisher like `billing`."""

    rabbitmq: RabbitMQ

    def url(self, user: str) -> str:
        port = urlsplit(self.rabbitmq.url).port
        return f"amqp://{user}:{_PASSWORD}@127.0.0.1:{port}/keyturn"


@pytest.fixture(scope="module")
def users(broker: Servers) -> Iterator[Users]:
    with ExitStack() as stack:
        rabbitmq = broker.rabbitmq
        if rabbitmq is None:  # a given broker's users are left alone
            rabbitmq = stack.enter_context(Servers("none", environ={})).rabbitmq
        assert rabbitmq is not None
        passwords = dict.fromkeys(PERMISSIONS, _PASSWORD)
        rabbitmq.import_definitions(definitions("keyturn", PERMISSIONS, passwords))
        made = Users(rabbitmq)
        asyncio.run(declare(made.url("worker"), ["billing", "audit", "gateway", "console"]))
        yield made


@asynccontextmanager
async def channel_of(users: Users, user: str) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(users.url(user)) as connection:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)


async def publish(
    channel: AbstractChannel, routing_key: str, exchange: str = "keyturn", **headers: Any
) -> None:
    message = aio_pika.Message(b"{}", headers=headers)
    if exchange:
        to = await channel.get_exchange(exchange, ensure=False)
    else:
        to = channel.default_exchange
    await to.publish(message, routing_key, mandatory=True, timeout=20)


async def read(channel: AbstractChannel, queue: str) -> None:
    await channel.set_qos(10)
    found = await channel.get_queue(queue, ensure=False)

    async def ignore(message: AbstractIncomingMessage) -> None:
        del message

    await found.consume(ignore, arguments={"x-stream-offset": "first"})


async def get(channel: AbstractChannel, queue: str) -> None:
    found = await channel.get_queue(queue, ensure=False)
    await found.get(fail=False)


async def bind(channel: AbstractChannel, queue: str, routing_key: str) -> None:
    found = await channel.get_queue(queue, ensure=False)
    await found.bind("keyturn", routing_key)


async def purge(channel: AbstractChannel, queue: str) -> None:
    found = await channel.get_queue(queue, ensure=False)
    await found.purge()


REFUSED: dict[str, Callable[[AbstractChannel], Awaitable[object]]] = {
    "another publisher's stream": lambda c: read(c, "keyturn.events.audit"),
    "the stream of all events": lambda c: read(c, "keyturn.events"),
    "the marks of keyrings": lambda c: read(c, topology.MARKS_STREAM),
    "a mark": lambda c: publish(c, topology.KEYRING_MARKED),
    "a recovery": lambda c: publish(c, "recover.requested"),
    "an erasure": lambda c: publish(c, "erase.requested"),
    "a work queue": lambda c: get(c, "keyturn.upload"),
    "dead letters": lambda c: get(c, "keyturn.upload.dead"),
    "the audit trail": lambda c: read(c, "keyturn.audit"),
    "an audit record": lambda c: publish(c, "audit.recorded"),
    "a type that it was not given": lambda c: publish(c, "enroll.requested"),
    "a delete": lambda c: publish(c, "delete.requested"),
    "an event": lambda c: publish(c, "upload.stored"),
    "a CC to another type": lambda c: publish(c, "upload.requested", CC=["enroll.requested"]),
    "a BCC to an event": lambda c: publish(c, "upload.requested", BCC=["upload.stored"]),
    "the default exchange": lambda c: publish(c, "keyturn.control", exchange=""),
    "the exchange of publishers' events": lambda c: publish(
        c, "", exchange="keyturn.publisher-events", **{"keyturn-publisher": "audit"}
    ),
    "a retry queue": lambda c: publish(c, "keyturn.upload.retry.1s", exchange=""),
    "declaring a queue": lambda c: c.declare_queue("mine"),
    "declaring a queue of the broker's naming": lambda c: c.declare_queue(exclusive=True),
    "declaring another's stream": lambda c: c.declare_queue("keyturn.events.mine", durable=True),
    "declaring an exchange": lambda c: c.declare_exchange("mine"),
    "binding its stream to requests": lambda c: bind(c, _BILLING, "upload.requested"),
    "binding its stream to all": lambda c: bind(c, _BILLING, "#"),
    "deleting its stream": lambda c: c.queue_delete(_BILLING),
    "purging a queue": lambda c: purge(c, "keyturn.upload"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_publisher_is_refused(users: Users, what: str) -> None:
    async with channel_of(users, "billing") as channel:
        with pytest.raises(ChannelAccessRefused):
            await REFUSED[what](channel)
        assert channel.is_closed


async def test_a_publisher_is_refused_another_vhost_with_the_setting_to_check(users: Users) -> None:
    elsewhere = users.url("billing").removesuffix("/keyturn") + "/%2F"
    connection = BrokerConnection(elsewhere, publish_timeout_s=5)
    with pytest.raises(BrokerUnavailableError, match="refuses the vhost in KEYTURN_AMQP_URL"):
        await connection.connect()


@pytest.mark.parametrize("what", sorted(REFUSED.keys() - {"the audit trail"}))
async def test_an_auditor_is_refused_all_but_the_audit_trail(users: Users, what: str) -> None:
    async with channel_of(users, "auditor") as channel:
        with pytest.raises(ChannelAccessRefused):
            await REFUSED[what](channel)


async def test_an_auditor_reads_the_audit_trail(users: Users) -> None:
    async with channel_of(users, "auditor") as channel:
        await read(channel, topology.AUDIT_STREAM)
        assert not channel.is_closed


@pytest.mark.parametrize("user", ["worker", "operator"])
async def test_who_uses_the_operators_key_records_it(users: Users, user: str) -> None:
    async with channel_of(users, user) as channel:
        await publish(channel, topology.AUDIT_RECORDED)


@pytest.mark.parametrize("user", ["operator", "auditor", "billing", "gateway"])
async def test_nobody_but_a_worker_deletes_the_audit_trail(users: Users, user: str) -> None:
    async with channel_of(users, user) as channel:
        with pytest.raises(ChannelAccessRefused):
            await channel.queue_delete(topology.AUDIT_STREAM)
    async with channel_of(users, user) as channel:
        with pytest.raises(ChannelAccessRefused):
            await bind(channel, topology.AUDIT_STREAM, "upload.stored")


@pytest.mark.parametrize("what", ["the stream of all events", "another publisher's stream"])
async def test_without_the_permissions_it_is_not_refused(users: Users, what: str) -> None:
    """It is these permissions that refuse it, and nothing else."""
    async with channel_of(users, "operator") as channel:
        await REFUSED[what](channel)
        assert not channel.is_closed


@pytest.mark.parametrize("routing_key", ["upload.requested", "rotation.requested"])
async def test_a_publisher_publishes_its_own_types(users: Users, routing_key: str) -> None:
    async with channel_of(users, "billing") as channel:
        await publish(channel, routing_key)
        await read(channel, _BILLING)


@pytest.mark.parametrize(
    "routing_key", ["upload.requested", "rotation.requested", "delete.requested"]
)
async def test_a_gateway_publishes_what_its_callers_may_ask_for(
    users: Users, routing_key: str
) -> None:
    async with channel_of(users, "gateway") as channel:
        await publish(channel, routing_key)
        await read(channel, "keyturn.events.gateway")
        await read(channel, topology.MARKS_STREAM)


@pytest.mark.parametrize("routing_key", ["enroll.requested", "sweep.requested", "upload.stored"])
async def test_a_gateway_publishes_nothing_else(users: Users, routing_key: str) -> None:
    async with channel_of(users, "gateway") as channel:
        with pytest.raises(ChannelAccessRefused):
            await publish(channel, routing_key)


async def test_a_worker_publishes_no_request(users: Users) -> None:
    async with channel_of(users, "worker") as channel:
        with pytest.raises(ChannelAccessRefused):
            await publish(channel, "upload.requested")


@pytest.mark.parametrize(
    "event", [*topology.EVENTS, topology.WORKER_REPORTED, topology.KEYRING_MARKED]
)
async def test_a_worker_publishes_each_event(users: Users, event: str) -> None:
    async with channel_of(users, "worker") as channel:
        await publish(channel, event)


async def test_a_workers_reports_of_status_reach_their_publisher_alone(users: Users) -> None:
    headers = {topology.PUBLISHER_HEADER: "console"}
    async with channel_of(users, "worker") as channel:
        await publish(channel, topology.STATUS_REPORTED, **headers)
        with pytest.raises(PublishError):  # on no queue without a publisher
            await publish(channel, topology.STATUS_REPORTED)


@pytest.mark.parametrize(
    "kind",
    [
        "upload.requested",
        topology.WORKER_REPORTED,
        topology.AUDIT_RECORDED,
        topology.KEYRING_MARKED,
    ],
)
async def test_an_ingest_worker_declares_listens_and_requests_uploads(
    users: Users, kind: str
) -> None:
    await declare(users.url("ingest"), ["ingest"])
    async with channel_of(users, "ingest") as channel:
        await publish(channel, kind)
        await read(channel, "keyturn.events.ingest")
        await get(channel, topology.NOTIFICATIONS)
        with pytest.raises(ChannelAccessRefused):
            await publish(channel, "upload.stored")


async def test_a_storage_server_pushes_notifications_and_nothing_else(users: Users) -> None:
    async with channel_of(users, "storage") as channel:
        await publish(channel, "any-topic", exchange=topology.NOTIFICATIONS)
        replies = await channel.declare_queue(exclusive=True)
        assert await replies.get(fail=False) is None
    async with channel_of(users, "ingest") as channel:
        queue = await channel.get_queue(topology.NOTIFICATIONS, ensure=False)
        message = await queue.get(timeout=20)
        await message.ack()
        assert message.routing_key == "any-topic"


STORAGE_REFUSED: dict[str, Callable[[AbstractChannel], Awaitable[object]]] = {
    "a request": lambda c: publish(c, "upload.requested"),
    "an event": lambda c: publish(c, "upload.stored"),
    "a work queue": lambda c: publish(c, topology.UPLOAD_QUEUE, exchange=""),
    "reading notifications": lambda c: get(c, topology.NOTIFICATIONS),
    "reading events": lambda c: read(c, topology.EVENTS_STREAM),
    "declaring a queue": lambda c: c.declare_queue("keyturn.mine"),
    "deleting its exchange": lambda c: c.exchange_delete(topology.NOTIFICATIONS),
    "purging notifications": lambda c: purge(c, topology.NOTIFICATIONS),
}


@pytest.mark.parametrize("what", STORAGE_REFUSED)
async def test_a_storage_server_is_refused(users: Users, what: str) -> None:
    async with channel_of(users, "storage") as channel:
        with pytest.raises(ChannelAccessRefused):
            await STORAGE_REFUSED[what](channel)
        assert channel.is_closed


CONSOLE_REFUSED: dict[str, Callable[[AbstractChannel], Awaitable[object]]] = {
    "another publisher's stream": lambda c: read(c, _BILLING),
    "all events": lambda c: read(c, topology.EVENTS_STREAM),
    "the audit trail": lambda c: read(c, topology.AUDIT_STREAM),
    "the workers' reports": lambda c: read(c, topology.WORKERS_STREAM),
    "dead letters": lambda c: get(c, "keyturn.upload.dead"),
    "the lock of dead letters": lambda c: c.declare_queue(topology.DEAD_LOCK, exclusive=True),
    "the default exchange": lambda c: publish(c, topology.UPLOAD_QUEUE, exchange=""),
    "a work queue": lambda c: get(c, topology.UPLOAD_QUEUE),
    "the control queue": lambda c: get(c, topology.CONTROL_QUEUE),
    "the workers' own hints": lambda c: get(c, topology.PLAN_QUEUE),
    "a retry queue": lambda c: get(c, "keyturn.upload.retry.1s"),
    "an upload": lambda c: publish(c, "upload.requested"),
    "a recovery": lambda c: publish(c, "recover.requested"),
    "an erasure": lambda c: publish(c, "erase.requested"),
    "a mark": lambda c: publish(c, topology.KEYRING_MARKED),
    "an event": lambda c: publish(c, "upload.stored"),
    "a report of status": lambda c: publish(c, topology.STATUS_REPORTED),
    "a report of a worker": lambda c: publish(c, topology.WORKER_REPORTED),
    "an audit record": lambda c: publish(c, topology.AUDIT_RECORDED),
    "an answer": lambda c: publish(c, "dead_letters.moved"),
    "a CC to another type": lambda c: publish(c, "status.requested", CC=["upload.requested"]),
    "a BCC to an event": lambda c: publish(c, "status.requested", BCC=["upload.stored"]),
    "the exchange of publishers' events": lambda c: publish(
        c, "", exchange="keyturn.publisher-events", **{"keyturn-publisher": "console"}
    ),
    "declaring a queue": lambda c: c.declare_queue("mine"),
    "declaring a stream": lambda c: c.declare_queue("keyturn.events.mine", durable=True),
    "declaring an exchange": lambda c: c.declare_exchange("mine"),
    "binding its stream to requests": lambda c: bind(
        c, "keyturn.events.console", "upload.requested"
    ),
    "binding dead letters": lambda c: bind(c, "keyturn.upload.dead", "#"),
    "deleting its stream": lambda c: c.queue_delete("keyturn.events.console"),
    "deleting the audit trail": lambda c: c.queue_delete(topology.AUDIT_STREAM),
    "deleting the workers' reports": lambda c: c.queue_delete(topology.WORKERS_STREAM),
    "deleting a work queue": lambda c: c.queue_delete(topology.UPLOAD_QUEUE),
    "deleting dead letters": lambda c: c.queue_delete("keyturn.upload.dead"),
    "deleting the exchange": lambda c: c.exchange_delete("keyturn"),
    "purging a work queue": lambda c: purge(c, topology.UPLOAD_QUEUE),
}


@pytest.mark.parametrize("what", CONSOLE_REFUSED)
async def test_a_console_is_refused(users: Users, what: str) -> None:
    async with channel_of(users, "console") as channel:
        with pytest.raises(ChannelAccessRefused):
            await CONSOLE_REFUSED[what](channel)
        assert channel.is_closed


async def test_a_console_reads_its_own_stream(users: Users) -> None:
    async with channel_of(users, "console") as channel:
        await read(channel, topology.publisher_stream("console"))


_NOT_OF_PAGES = {"enroll.requested", "recover.requested", "erase.requested"}
_OF_PAGES = sorted({*topology.CONTROL_REQUESTS} - _NOT_OF_PAGES)


@pytest.mark.parametrize("routing_key", _OF_PAGES)
async def test_a_console_publishes_the_requests_of_its_pages(
    users: Users, routing_key: str
) -> None:
    async with channel_of(users, "console") as channel:
        await publish(channel, routing_key)


async def test_a_stream_for_a_new_publisher(users: Users) -> None:
    """Declared while workers run, by the worker's user."""
    await declare_streams(users.url("worker"), ["later"])
    async with channel_of(users, "operator") as channel:
        assert await channel.get_queue("keyturn.events.later", ensure=True)


async def events(users: Users, user: str, stream: str, count: int) -> AsyncIterator[dict[str, Any]]:
    """The last events of a stream, as its user reads them."""
    async with channel_of(users, user) as channel:
        await channel.set_qos(100)
        found = await channel.get_queue(stream, ensure=False)
        arrived: asyncio.Queue[AbstractIncomingMessage] = asyncio.Queue()
        await found.consume(arrived.put, arguments={"x-stream-offset": "first"})
        async with asyncio.timeout(30):
            while count:
                message = await arrived.get()
                if message.body != b"{}":
                    assert message.headers["keyturn-event-key"]
                    for event in documents_in(message.body):
                        count -= 1
                        yield event


async def test_what_is_allowed_works_from_end_to_end(
    users: Users, moto: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real worker serves two publishers; each reads only the events of its own requests."""
    deployment = Deployment(users.url("worker"), moto, new_bucket(moto))
    env = deployment.worker_env()
    for old, new in (("api", "billing"), ("narrow", "audit")):
        env["KEYTURN_PUBLISHERS"] = env["KEYTURN_PUBLISHERS"].replace(f'"{old}"', f'"{new}"')
    enrollment = requests.enroll(deployment, "acme")
    upload, refused = (requests.upload(deployment, "acme", key, b"x") for key in ("k", "l"))
    async with worker(env) as process:
        for user, key, document in (
            ("operator", deployment.publisher_key, enrollment),
            ("billing", deployment.publisher_key, upload.document),
            ("audit", deployment.narrow_key, refused.document),
        ):
            name = "billing" if user == "operator" else user
            body = requests.encode(document)
            async with channel_of(users, user) as channel:
                exchange = await channel.get_exchange("keyturn", ensure=False)
                headers: Any = requests.headers(body, key, publisher=name)
                message = aio_pika.Message(body, headers=headers)
                await exchange.publish(message, document["type"], timeout=20)
            id_field = topology.REQUEST_ID_FIELDS[document["type"]]
            await process.logged(document[id_field])
        # The client of docs/howto/publish-python.md, with the broker's user of a publisher.
        env = deployment.publisher_env() | {
            "KEYTURN_AMQP_URL": users.url("billing"),
            "KEYTURN_PUBLISHER_NAME": "billing",
        }
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        async with Publisher.open(PublisherSettings.read()) as publisher:
            upload_id = await publisher.upload("acme", "by-the-client", b"x")
            event = await publisher.wait(upload_id, timeout_s=60)
            assert event.type == "upload.stored"
            swept = await publisher.rotate("acme", api_key="n" * 43)
            # No lost connection: a gateway must tell them apart.
            with pytest.raises(NotDeliveredError, match="may not write") as refused_by_broker:
                await publisher.delete("acme", "k")
            assert not isinstance(refused_by_broker.value, BrokerUnavailableError)
            accepted = await publisher.wait(swept, timeout_s=60)
            assert accepted.type == "rotation.accepted"
        await process.terminate()
    mine = [event async for event in events(users, "billing", _BILLING, 2)]
    assert [event["type"] for event in mine] == ["project.enrolled", "upload.stored"]
    (its,) = [event async for event in events(users, "audit", "keyturn.events.audit", 1)]
    assert (its["type"], its["code"], its["publisher"]) == (
        "upload.rejected",
        "not_permitted",
        "audit",
    )
    every = [event async for event in events(users, "operator", "keyturn.events", 3)]
    assert every == [*mine, its]


async def test_what_a_console_is_allowed_works_from_end_to_end(
    users: Users, moto: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reports reach it alone, letters are recorded, and its grant binds any client."""
    deployment = ConsoleDeployment(users.url("worker"), moto, new_bucket(moto))
    console_env = deployment.console_env(tmp_path / "passwords", amqp_url=users.url("console"))
    for name, value in console_env.items():
        monkeypatch.setenv(name, value)
    forged = {
        "type": "erase.requested",
        "request_id": requests.new_id(),
        "project": "globex",
        "requested_at": requests.now(),
        "reason": "forged",
    }
    async with (
        worker(deployment.worker_env()) as process,
        Publisher.open(PublisherSettings.read()) as console,
    ):
        enrollment = requests.enroll(deployment, "acme")
        body = requests.encode(enrollment)
        async with channel_of(users, "operator") as channel:
            exchange = await channel.get_exchange("keyturn", ensure=False)
            headers: Any = requests.headers(body, deployment.publisher_key)
            await exchange.publish(aio_pika.Message(body, headers=headers), enrollment["type"])
        await process.logged(enrollment["request_id"])
        # Signed by the console, past its topic permission; and a dead letter.
        async with channel_of(users, "operator") as channel:
            body = requests.encode(forged)
            headers = requests.headers(body, deployment.console_key, publisher="console")
            message = aio_pika.Message(body, headers=headers, message_id=forged["request_id"])
            await channel.default_exchange.publish(message, topology.CONTROL_QUEUE, timeout=20)
            dead = aio_pika.Message(b"a letter")
            await channel.default_exchange.publish(dead, "keyturn.upload.dead", timeout=20)
        refused = await console.wait(
            forged["request_id"], project="globex", request_type="erase.requested", timeout_s=60
        )
        assert isinstance(refused, EraseRejected)
        assert (refused.code, refused.project) == ("not_permitted", None)
        asked = [await console.status("projects", actor="Kim Doe") for _ in range(5)]
        waits = (console.wait(each, timeout_s=60) for each in asked)
        for report in await asyncio.gather(*waits):
            assert isinstance(report, StatusReported)
            assert [row.project for row in report.projects or ()] == ["acme"]
        letter = sha256(b"a letter").hexdigest()
        moved = await console.move_dead_letters(
            "discard", "keyturn.upload.dead", letters=[letter], actor="Kim Doe"
        )
        answer = await console.wait(moved, timeout_s=60)
        assert isinstance(answer, DeadLettersMoved)
        assert (answer.moved, answer.left) == (1, 0)
        assert await process.terminate() == 0
    records = []
    async for record in events(users, "auditor", topology.AUDIT_STREAM, 1000):
        records.append(record)
        if record["action"] == "dead_letter.discarded":
            break
    assert (records[-1]["actor"], records[-1]["publisher"]) == ("Kim Doe", "console")
    by_request = {record.get("request_id"): record for record in records}
    assert {by_request[each]["actor"] for each in asked} == {"Kim Doe"}


def _is_closed(publisher: WorkerPublisher) -> bool:
    channel = publisher._reports._opened.channel
    return channel is None or channel.is_closed


async def test_reports_that_the_broker_refuses_keep_no_event_from_its_stream(users: Users) -> None:
    """A refusal closes a channel: here the topic permission lacks `worker.reported`."""
    name = "silent-worker"
    worker = ROLES["worker"]
    keys = [key for key in worker.routing_keys if key != "worker.reported"]
    silent = {name: replace(worker, routing_keys=keys)}
    users.rabbitmq.import_definitions(definitions("keyturn", silent, {name: _PASSWORD}))
    report = parse_worker_report(compact(worker_reports()["worker.reported"]["running"]))
    stored = parse_event(compact(event_examples()["upload.stored"]["stored"]))
    broker = RabbitBroker(users.url(name), logger=None)
    try:
        # As a worker does: of two first messages at once, each would open a connection.
        await broker.connect()
        publisher = WorkerPublisher(broker, "default", [SigningKey.from_seed(bytes(32))])
        for _ in range(3):
            refused, *confirmed = await asyncio.gather(
                publisher.publish_worker_report(report),
                *(publisher.publish_event(stored) for _ in range(20)),
                return_exceptions=True,
            )
            assert isinstance(refused, NotConfirmedError)
            assert confirmed == [None] * 20
            async with asyncio.timeout(20):
                while _is_closed(publisher):  # noqa: ASYNC110  # the client library opens it again
                    await asyncio.sleep(0.01)
    finally:
        await broker.stop()
