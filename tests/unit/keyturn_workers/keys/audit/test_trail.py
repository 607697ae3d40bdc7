"""Records are signed, published in order, each at least once, and logged at once (SPEC 15.3)."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika import DeliveryMode
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity
from structlog.testing import capture_logs

from keyturn.crypto import VerifyKey
from keyturn.errors import BrokerUnavailableError, NotDeliveredError
from keyturn.identifiers import is_uuid
from keyturn.publisher.connection import BrokerConnection
from keyturn.topology import (
    AUDIT_RECORDED,
    AUDIT_STREAM,
    EVENT_KEY_HEADER,
    EXCHANGE,
    SIGNATURE_HEADER,
    audit_queue,
)
from keyturn_workers.keys.audit import trail
from keyturn_workers.keys.audit import trail as module
from keyturn_workers.keys.audit.trail import (
    AuditProcess,
    AuditPublisher,
    declare_missing,
    log_kek_derived,
    one_line,
)
from keyturn_workers.keys.master_keys.known_text import RESERVED_PROJECT
from keyturn_workers.keys.master_keys.port import KekDerived as Derived
from tests.unit.keyturn_workers.keys.audit.memory import EVENT_KEY, PROCESS, Clock, Stream, trail_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika import Message

    from keyturn_workers.keys.audit.trail import AuditTrail

_NOBODY = "amqp://nobody@127.0.0.1:1/"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES_S", (0.0,))


async def _derive(trail: AuditTrail, count: int) -> None:
    for number in range(count):
        await trail.kek_derived(Derived("2027", "awskms", "admin", f"p{number}", f"call-{number}"))


async def test_a_record_is_on_the_stream_when_record_returns() -> None:
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        with capture_logs() as lines:
            audit_id = await trail.record("request.served", actor="api", project="acme")
        (record,) = stream.records
    assert (record.audit_id, record.actor, record.outcome) == (audit_id, "api", "done")
    assert (record.process, record.role, record.host) == (PROCESS.id, PROCESS.role, PROCESS.host)
    assert (record.counter, record.previous, record.project) == (1, None, "acme")
    assert trail.pending == 0
    (line,) = lines
    assert (line["event"], line["log_level"]) == ("audit.recorded", "info")
    assert (line["audit_id"], line["action"]) == (audit_id, "request.served")


async def test_without_an_actor_it_is_the_process() -> None:
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        await trail.record("dead_letter.discarded")
    assert stream.records[0].actor == PROCESS.actor


async def test_many_at_once_are_one_chain() -> None:
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        await asyncio.gather(*(trail.record("request.served") for _ in range(200)))
    assert [record.counter for record in stream.records] == list(range(1, 201))
    assert stream.findings() == []
    assert stream.at_once > 1


async def test_while_the_broker_is_away_records_are_logged_and_wait() -> None:
    stream = Stream(is_away=True)
    trail = trail_to(stream)
    with capture_logs() as lines:
        async with trail.running():
            waiting = [asyncio.create_task(trail.record("request.served")) for _ in range(5)]
            await stream.tried(3)
            assert (trail.pending, stream.bodies) == (5, [])
            assert not any(task.done() for task in waiting)
            stream.is_away = False
            await asyncio.gather(*waiting)
    *recorded, last = lines
    assert [line["event"] for line in recorded] == ["audit.recorded"] * 5
    problem = {"problem": "the broker cannot be reached (TestError)", "pending": 5}
    assert last == {"event": "audit trail not written", "log_level": "warning", **problem}
    assert [record.counter for record in stream.records] == [1, 2, 3, 4, 5]
    assert stream.findings() == []


@pytest.mark.parametrize("lost", [1, 2, 7])
async def test_a_record_without_a_confirmation_is_published_again_as_it_was(lost: int) -> None:
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        await trail.record("request.served")
        stream.loses_confirmations = lost
        await asyncio.gather(*(trail.record("request.served") for _ in range(10)))
    assert len(stream.bodies) > 11
    assert len(set(stream.bodies)) == 11
    assert stream.findings() == []


async def test_only_one_record_opens_a_new_connection() -> None:
    """Several could be spread over two channels, and overtake each other."""
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        await asyncio.gather(*(trail.record("request.served") for _ in range(9)))
        assert stream.at_once == 8  # all that had come while the first one was published
        stream.is_away = True
        waiting = [asyncio.create_task(trail.record("request.served")) for _ in range(9)]
        await stream.tried(9 + 10)  # the window that fails, and the next attempt
        stream.at_once = 0
        await stream.tried(9 + 13)
        assert stream.at_once == 1
        stream.is_away = False
        await asyncio.gather(*waiting)


async def test_a_record_that_the_broker_refused_is_not_lost_among_others() -> None:
    """It comes late then, and a reader sees that; but it comes."""
    stream = Stream(refuses={4})
    trail = trail_to(stream)
    async with trail.running():
        await asyncio.gather(*(trail.record("request.served") for _ in range(9)))
    assert {record.counter for record in stream.records} == set(range(1, 10))
    assert trail.pending == 0


async def test_deriving_does_not_wait_for_the_broker_until_too_many_records_do() -> None:
    stream = Stream()
    stream.gate.clear()
    trail = trail_to(stream, max_pending=3)
    async with trail.running():
        async with asyncio.timeout(5):
            await _derive(trail, 3)
        assert stream.bodies == []
        fourth = asyncio.create_task(_derive(trail, 1))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not fourth.done()
        stream.gate.set()
        async with asyncio.timeout(5):
            await fourth
    assert [record.project for record in stream.records] == ["p0", "p1", "p2", "p0"]
    record = stream.records[0]
    assert (record.action, record.master_key, record.kind) == ("kek.derived", "2027", "admin")
    assert (record.provider, record.provider_request_id) == ("awskms", "call-0")


async def test_an_odd_id_of_a_provider_is_recorded_as_one_line() -> None:
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        odd_id = "a\n\x1b[2J" + "x" * 300
        await trail.kek_derived(Derived("m1", "vault", "record", "acme", odd_id))
        await trail.kek_derived(Derived("m1", "pkcs11", "record", "acme", None))
    odd, none = (record.provider_request_id for record in stream.records)
    assert odd is not None
    assert odd.startswith("a??[2J")
    assert len(odd) == 200
    assert none is None


async def test_a_reserved_name_is_no_project() -> None:
    stream = Stream()
    trail = trail_to(stream)
    async with trail.running():
        await trail.kek_derived(Derived("m1", "vault", "record", RESERVED_PROJECT, None))
    assert stream.records[0].project is None


async def test_a_process_without_an_event_key_logs_what_was_derived() -> None:
    with capture_logs() as lines:
        await log_kek_derived(Derived("m1", "vault", "admin", "acme", "call-1"))
    assert lines == [
        {
            "event": "kek.derived",
            "log_level": "info",
            "master_key": "m1",
            "project": "acme",
            "kind": "admin",
            "provider": "vault",
            "provider_request_id": "call-1",
        }
    ]


async def test_what_waits_at_the_end_is_published() -> None:
    stream = Stream()
    stream.gate.clear()
    trail = trail_to(stream)
    async with trail.running():
        await _derive(trail, 4)
        stream.gate.set()
    assert len(stream.bodies) == 4


async def test_what_cannot_be_published_at_the_end_is_counted() -> None:
    trail = trail_to(Stream(is_away=True))
    with capture_logs() as lines:
        async with trail.running(drain_s=0.01):
            await _derive(trail, 2)
    lost = {"event": "audit records not published", "log_level": "error", "count": 2}
    assert (lines[-1], trail.pending) == (lost, 2)


async def test_a_command_logs_nothing_of_it() -> None:
    trail = trail_to(Stream(is_away=True), is_logged=False)
    with capture_logs() as lines:
        async with trail.running(drain_s=0.01):
            await _derive(trail, 2)
    assert lines == []


async def test_a_canceled_caller_leaves_its_record() -> None:
    stream = Stream()
    stream.gate.clear()
    trail = trail_to(stream)
    async with trail.running():
        task = asyncio.create_task(trail.record("request.served"))
        await stream.tried(1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stream.gate.set()
        await trail.record("request.served")
    assert [record.counter for record in stream.records] == [1, 2]


async def test_times_never_go_back() -> None:
    """An export from one time to another would have gaps."""
    stream, clock = Stream(), Clock()
    trail = trail_to(stream, now=clock)
    async with trail.running():
        for seconds in (5.0, -60.0, 1.0, 100.0):
            clock.move(seconds)
            await trail.record("request.served")
    times = [record.at for record in stream.records]
    assert times == sorted(times)
    assert times[0] == times[1] == times[2] < times[3]


async def test_a_bug_of_the_publisher_is_tried_again_and_not_printed() -> None:
    stream = Stream()
    failures = [ValueError("amqp://user:password@host/")]

    async def publish(audit_id: str, body: bytes) -> None:
        if failures:
            raise failures.pop()
        await stream.publish(audit_id, body)

    trail = module.AuditTrail(PROCESS, publish)
    with capture_logs() as lines:
        async with trail.running():
            await trail.record("request.served")
    assert (lines[-1]["problem"], lines[-1]["pending"]) == ("ValueError", 1)


# Who a process is.


def test_each_run_is_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("USER", "somebody")
    one, other = AuditProcess.start("download"), AuditProcess.start("download")
    assert one.id != other.id
    assert is_uuid(one.id)
    assert one.host == socket.gethostname()
    assert one.actor == f"{pwd.getpwuid(os.getuid()).pw_name}@{one.host}"


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_001)
    assert AuditProcess.start("download").actor.startswith("4000000001@")


@pytest.mark.parametrize(
    ("text", "line"),
    [("kim@bastion", "kim@bastion"), ("", "?"), ("a\nb\x1b", "a?b?"), ("x" * 300, "x" * 200)],
)
def test_a_name_is_one_line(text: str, line: str) -> None:
    assert one_line(text) == line


# The stream of the trail.


async def test_a_record_is_signed_for_its_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, Message]] = []

    async def publish(self: Any, routing_key: str, message: Message) -> None:
        del self
        sent.append((routing_key, message))

    monkeypatch.setattr(BrokerConnection, "publish", publish)
    publisher = AuditPublisher(_NOBODY, "test", EVENT_KEY)
    await publisher.publish("an-id", b"{}")
    ((routing_key, message),) = sent
    assert (routing_key, message.message_id) == (AUDIT_RECORDED, "an-id")
    assert message.delivery_mode is DeliveryMode.PERSISTENT
    # No publisher's stream may take it.
    assert set(message.headers) == {SIGNATURE_HEADER, EVENT_KEY_HEADER}
    assert message.headers[EVENT_KEY_HEADER] == EVENT_KEY.id
    signature = str(message.headers[SIGNATURE_HEADER])
    VerifyKey.from_bytes(EVENT_KEY.public_bytes).verify_event("test", b"{}", signature)


@pytest.mark.slow
async def test_a_broker_that_is_away_is_an_error() -> None:
    publisher = AuditPublisher(_NOBODY, "test", EVENT_KEY, timeout_s=1)
    with pytest.raises(BrokerUnavailableError):
        await publisher.connect()
    with pytest.raises(BrokerUnavailableError):
        await publisher.publish("an-id", b"{}")
    await publisher.close()


@dataclass
class FakeBroker:
    """A broker with the stream or without it."""

    exists: bool = False
    refuses: bool = False
    done: list[Any] = field(default_factory=list)

    async def channel(self) -> FakeBroker:
        return self

    async def declare_exchange(self, name: str, *_: object, **__: object) -> str:
        self.done.append(name)
        return name

    async def declare_queue(self, name: str, *, passive: bool = False, **more: Any) -> FakeBroker:
        if passive:
            if not self.exists:
                raise ChannelNotFoundEntity("no queue")
            return self
        if self.refuses:
            raise ChannelAccessRefused("not you")
        self.done.append((name, more["arguments"]["x-max-age"]))
        return self

    async def bind(self, exchange: str, routing_key: str) -> None:
        self.done.append((exchange, routing_key))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    made = FakeBroker()

    @asynccontextmanager
    async def connection() -> AsyncIterator[FakeBroker]:
        yield made

    async def connect(_: str) -> Any:
        return connection()

    monkeypatch.setattr(trail, "connect_to_broker", connect)
    return made


async def test_a_missing_stream_is_declared_and_bound(broker: FakeBroker) -> None:
    await declare_missing("amqp://host/", audit_queue(3600))
    assert broker.done == [EXCHANGE, (AUDIT_STREAM, "3600s"), (EXCHANGE, AUDIT_RECORDED)]


async def test_an_existing_stream_is_left_alone(broker: FakeBroker) -> None:
    """Its bounds are the workers' settings, which this command may not know."""
    broker.exists = True
    await declare_missing("amqp://host/", audit_queue(3600))
    assert broker.done == []


async def test_who_may_not_declare_it_is_told_what_to_do(broker: FakeBroker) -> None:
    broker.refuses = True
    with pytest.raises(NotDeliveredError, match=r"no worker has declared keyturn\.audit; start"):
        await declare_missing("amqp://host/", audit_queue(3600))
