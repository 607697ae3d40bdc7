"""What a worker publishes is confirmed for itself, and every failure is one error (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import create_autospec

import pytest
from aio_pika import Message
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPConnectionError
from aiormq.exceptions import ChannelInvalidStateError
from faststream.exceptions import IncorrectState
from pamqp import commands

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.messages import (
    Event,
    UploadStored,
    parse_batch,
    parse_event,
    parse_traced_event,
    parse_worker_report,
)
from keyturn.topology import EVENTS
from keyturn_workers.pipeline.amqp.event_batches import NotConfirmedError
from keyturn_workers.pipeline.amqp.publisher import ConfirmedPublisher, WorkerPublisher
from tests.unit.keyturn_workers.pipeline.amqp.connections import FakeConnection
from tests.unit.keyturn_workers.pipeline.amqp.deliveries import STORED
from tools.generate.examples import compact, worker_reports
from tools.generate.examples import events as event_examples

if TYPE_CHECKING:
    from collections.abc import Coroutine

KEY = SigningKey.from_seed(bytes(32))


@pytest.fixture
def connection() -> FakeConnection:
    return FakeConnection()


@pytest.fixture
def publisher(connection: FakeConnection) -> ConfirmedPublisher:
    return ConfirmedPublisher(connection.broker, "exchange", timeout_s=3)


def _publish(publisher: ConfirmedPublisher, body: bytes = b"{}") -> Coroutine[Any, Any, None]:
    return publisher.publish("upload.stored", body, commands.Basic.Properties())


async def test_a_message_is_mandatory_and_has_a_time_in_which_to_be_confirmed(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    await _publish(publisher, b"body")
    ((body,), options) = connection.underlay.basic_publish.await_args
    assert (body, options["exchange"], options["routing_key"]) == (
        b"body",
        "exchange",
        "upload.stored",
    )
    assert (options["mandatory"], options["timeout"], options["wait"]) == (True, 3, False)


async def test_what_no_queue_must_take_is_not_returned(connection: FakeConnection) -> None:
    publisher = ConfirmedPublisher(connection.broker, "exchange", timeout_s=3, is_mandatory=False)
    await _publish(publisher)
    assert connection.underlay.basic_publish.await_args.kwargs["mandatory"] is False


async def test_many_at_once_share_one_channel(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    await asyncio.gather(*(_publish(publisher) for _ in range(20)))
    await _publish(publisher)
    assert connection.opened == 1
    assert connection.underlay.basic_publish.await_count == 21


async def test_none_waits_for_the_confirmation_of_another(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    confirmed = asyncio.Event()

    async def confirm(body: bytes, **_: Any) -> None:
        if body == b"first":
            await confirmed.wait()

    connection.underlay.basic_publish.side_effect = confirm
    first = asyncio.create_task(_publish(publisher, b"first"))
    await _publish(publisher, b"second")
    assert not first.done()
    confirmed.set()
    await first


async def test_on_a_lost_connection_publishing_fails_at_once(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    await _publish(publisher)
    connection.lose()
    with pytest.raises(ChannelInvalidStateError):
        await _publish(publisher)
    assert connection.opened == 1


async def test_on_a_channel_that_was_opened_again_messages_are_published(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    await _publish(publisher)
    connection.lose()
    await connection.reopen()
    await _publish(publisher)
    assert connection.opened == 1
    assert connection.underlay.basic_publish.await_count == 1


async def test_a_channel_that_stays_lost_is_refused(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    """Events would end with the first lost connection."""
    connection.robust = create_autospec(AbstractChannel, instance=True)
    with pytest.raises(TypeError):
        await _publish(publisher)


async def test_a_failure_to_open_is_tried_again_by_the_next_message(
    connection: FakeConnection, publisher: ConfirmedPublisher
) -> None:
    open_channel = connection.channel

    async def refuse(**_: object) -> Any:
        connection.channel = open_channel  # type: ignore[method-assign]  # once
        raise ChannelInvalidStateError

    connection.channel = refuse  # type: ignore[method-assign]
    with pytest.raises(ChannelInvalidStateError):
        await _publish(publisher)
    await _publish(publisher)
    assert connection.underlay.basic_publish.await_count == 1


@pytest.mark.parametrize(
    "loss",
    [
        ChannelInvalidStateError("No active transport"),
        AMQPConnectionError(),
        TimeoutError(),
        Exception("a bare one"),
        IncorrectState("no producer"),
    ],
    ids=lambda loss: type(loss).__name__,
)
async def test_each_failure_is_one_error(loss: Exception) -> None:
    class Lost:
        async def publish(self, *_: object, **__: object) -> None:
            raise loss

    publisher = WorkerPublisher(cast("Any", Lost()), "test", [KEY])
    with pytest.raises(NotConfirmedError):
        await publisher.send(b"{}", "keyturn.plan", 0)


class _Waiting:
    """A broker that responds with the outcome of a future."""

    def __init__(self) -> None:
        self.response: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def publish(self, *_: object, **__: object) -> None:
        await self.response


async def test_a_lost_connection_is_no_cancellation() -> None:
    """Aiormq cancels its futures. A task that took that for its own would end silently."""
    broker = _Waiting()
    publisher = WorkerPublisher(cast("Any", broker), "test", [KEY])
    sending = asyncio.create_task(publisher.send(b"{}", "keyturn.plan", 0))
    await asyncio.sleep(0)
    broker.response.set_exception(asyncio.CancelledError())
    with pytest.raises(NotConfirmedError):
        await sending


async def test_a_cancellation_stays_one() -> None:
    sending = asyncio.create_task(
        WorkerPublisher(cast("Any", _Waiting()), "test", [KEY]).send(b"{}", "keyturn.plan", 0)
    )
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending


class _Copies:
    """A broker that notes the queue of each publish, and responds to it when the test lets it."""

    def __init__(self) -> None:
        self.queues: list[str] = []
        self.responses: list[asyncio.Future[None]] = []

    async def publish(self, _: object, queue: str, **__: object) -> None:
        self.queues.append(queue.partition(".")[0])
        self.responses.append(asyncio.get_running_loop().create_future())
        await self.responses[-1]


async def _turns() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("end", ["confirmed", "lost", "canceled"])
async def test_copies_of_one_message_are_published_one_after_the_other(end: str) -> None:
    """A returned message is known by its id only: each copy could get the other's outcome."""
    broker = _Copies()
    publisher = WorkerPublisher(cast("Any", broker), "test", [KEY])
    ids = {"a": "1", "b": "1", "c": "2", "d": "1", "e": None, "f": None}
    copies = [
        asyncio.create_task(
            publisher.defer(cast("Any", Message(b"{}", message_id=message_id)), queue, 5)
        )
        for queue, message_id in ids.items()
    ]
    await _turns()
    assert broker.queues == ["a", "c", "e", "f"]
    match end:
        case "confirmed":
            broker.responses[0].set_result(None)
        case "lost":
            broker.responses[0].set_exception(ChannelInvalidStateError())
        case _:
            copies[0].cancel()
    await _turns()
    assert broker.queues == ["a", "c", "e", "f", "b"]
    broker.responses[4].set_result(None)
    await _turns()
    assert broker.queues == ["a", "c", "e", "f", "b", "d"]
    for number in (1, 2, 3, 5):
        broker.responses[number].set_result(None)
    outcomes = await asyncio.gather(*copies, return_exceptions=True)
    assert outcomes[1:] == [None] * 5


class _Channels:
    """Notes what is published on it, or refuses it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.published: list[tuple[str, bytes, Any]] = []

    async def publish(self, routing_key: str, body: bytes, properties: Any) -> None:
        if self.error is not None:
            raise self.error
        self.published.append((routing_key, body, properties))


async def test_reports_do_not_share_a_channel_with_events() -> None:
    """A broker that refuses a report closes its channel: to events that would look like a loss."""
    publisher = WorkerPublisher(cast("Any", None), "test", [KEY])
    assert publisher._events._is_mandatory
    assert not publisher._reports._is_mandatory
    events, reports = _Channels(), _Channels()
    publisher._events, publisher._reports = cast("Any", events), cast("Any", reports)
    for document in (*event_examples().values(), *worker_reports().values()):
        body = compact(next(iter(document.values())))
        if b'"worker.reported"' in body:
            await publisher.publish_worker_report(parse_worker_report(body))
        else:
            await publisher.publish_event(parse_event(body))
    assert {key for key, _, _ in reports.published} == {"status.reported", "worker.reported"}
    assert {key for key, _, _ in events.published} == set(EVENTS)
    for _, body, properties in reports.published:
        signature = str(properties.headers["keyturn-signature"])
        VerifyKey.from_bytes(KEY.public_bytes).verify_event("test", body, signature)
    by_type = {key: properties.headers for key, _, properties in reports.published}
    assert "keyturn-publisher" in by_type["status.reported"]
    assert "keyturn-publisher" not in by_type["worker.reported"]


def _stored(number: int, publisher: str | None = "api") -> UploadStored:
    upload_id = f"2f6c9a0e-1111-4111-8111-{number:012}"
    return STORED.model_copy(update={"upload_id": upload_id, "publisher": publisher})


async def _published(*events: Event) -> list[tuple[str, bytes, Any]]:
    """What events that end at the same time are published as."""
    publisher, events_channel = WorkerPublisher(cast("Any", None), "test", [KEY]), _Channels()
    publisher._events = publisher._reports = cast("Any", events_channel)
    await asyncio.gather(*(publisher.publish_event(event) for event in events))
    return events_channel.published


async def test_events_that_end_together_are_published_as_one_signed_message() -> None:
    events = [_stored(number) for number in range(4)]
    alone, batch = await _published(*events)
    key = VerifyKey.from_bytes(KEY.public_bytes)
    for routing_key, _, properties in (alone, batch):
        assert routing_key == "upload.stored"
        assert properties.headers["keyturn-publisher"] == "api"
        assert properties.headers["keyturn-event-key"] == KEY.id
        assert properties.correlation_id is None
    key.verify_event("test", alone[1], alone[2].headers["keyturn-signature"])
    key.verify_events("test", batch[1], batch[2].headers["keyturn-signature"])
    assert parse_event(alone[1]) == events[0]
    assert [traced.event for traced in parse_batch(batch[1])] == events[1:]


async def test_pages_of_status_and_events_without_a_publisher_are_not_batched() -> None:
    status = parse_event(compact(next(iter(event_examples()["status.reported"].values()))))
    nobodys = _stored(1, publisher=None)
    published = await _published(status, status, status, nobodys, nobodys)
    assert [parse_event(body).type for _, body, _ in published] == [
        *["status.reported"] * 3,
        *["upload.stored"] * 2,
    ]


async def test_an_event_links_to_the_trace_that_it_is_given() -> None:
    publisher, channel = WorkerPublisher(cast("Any", None), "test", [KEY]), _Channels()
    publisher._events = cast("Any", channel)
    await asyncio.gather(
        *(publisher.publish_event(_stored(n), traceparent=f"trace {n}") for n in range(3))
    )
    (_, alone, _), (_, batch, _) = channel.published
    read = [parse_traced_event(alone), *parse_batch(batch)]
    assert [each.traceparent for each in read] == ["trace 0", "trace 1", "trace 2"]


async def test_a_batch_that_is_not_confirmed_fails_each_of_its_events() -> None:
    publisher = WorkerPublisher(cast("Any", None), "test", [KEY])
    publisher._events = cast("Any", _Channels(ChannelInvalidStateError("lost")))
    outcomes = await asyncio.gather(
        *(publisher.publish_event(_stored(n)) for n in range(3)), return_exceptions=True
    )
    assert list(map(repr, outcomes)) == ["NotConfirmedError('ChannelInvalidStateError')"] * 3
