"""A broker that hangs up in the handshake is a broker that cannot be reached, for everybody."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import pytest
from aio_pika.exceptions import AMQPException
from aiormq.exceptions import ChannelAccessRefused
from pamqp import commands, frame

from keyturn.errors import BrokerUnavailableError, NotDeliveredError, OutcomeUnknownError
from keyturn.publisher.connection import (
    BrokerConnection,
    connect_to_broker,
    describe_broker_failure,
    normalize_connection_errors,
    persistent_json,
)
from keyturn_workers.amqp.declarations import declare

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika import Message


# Which of its errors the client library raises is a matter of a moment.
_TRIES = 30


def test_a_stop_of_nothing_is_a_loss() -> None:
    with pytest.raises(ConnectionError), normalize_connection_errors():
        raise StopAsyncIteration


async def test_a_future_that_a_lost_connection_cancels_is_a_loss() -> None:
    """When a heartbeat fails, aiormq cancels its futures; nothing canceled this task."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    with pytest.raises(ConnectionError), normalize_connection_errors():
        await future


async def test_a_cancellation_of_the_task_stays_one() -> None:
    async def wait() -> None:
        with normalize_connection_errors():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_refusal_of_another_publish_leaves_the_outcome_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker closes the channel for one, and the client library fails every other on it.

    Reported as not delivered, a staged body would be deleted whose request is on its queue.
    """
    refuse = asyncio.Event()

    async def send(*_: object) -> None:
        await refuse.wait()
        raise ChannelAccessRefused("ACCESS_REFUSED")

    async def open_channel(_: float) -> object:
        return object()

    monkeypatch.setattr("keyturn.publisher.connection._send", send)
    broker = BrokerConnection("amqp://127.0.0.1:1/", publish_timeout_s=5)
    monkeypatch.setattr(broker, "_publishing_channel", open_channel)
    messages = [persistent_json(b"{}", f"id-{number}", {}) for number in range(3)]
    both = [
        asyncio.create_task(broker.publish("upload.requested", message)) for message in messages[:2]
    ]
    await asyncio.sleep(0.01)
    refuse.set()
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknownError] * 2
    with pytest.raises(NotDeliveredError, match="may not write"):
        await broker.publish("upload.requested", messages[2])
    await broker.close()


@asynccontextmanager
async def _hanging_up() -> AsyncIterator[str]:
    """The address of a server that sends a broker's first frame, and then hangs up."""

    async def say_and_go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        start = commands.Connection.Start(0, 9, {}, "PLAIN", "en_US")
        writer.write(frame.marshal(start, 0))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(say_and_go, "127.0.0.1", 0)
    try:
        yield f"amqp://guest:guest@127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


async def test_a_publisher_gets_that_error() -> None:
    """The client library raises StopAsyncIteration there, which is not an error."""
    async with _hanging_up() as url:
        link = BrokerConnection(url, publish_timeout_s=5)
        for _ in range(_TRIES):
            with pytest.raises(BrokerUnavailableError):
                await link.connect()
        await link.close()


async def test_a_worker_gets_that_error() -> None:
    """A retry that stopped in silence there ended a starting worker."""
    async with _hanging_up() as url:
        for _ in range(_TRIES):
            with pytest.raises((OSError, AMQPException)):
                await declare(url)


class _FakeBroker:
    """A connection, its channel and its exchange; notes what is published."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.published: list[str | None] = []
        self.connected = asyncio.Event()
        self.connected.set()
        self.is_closed = False

    async def connect(self, _url: str, **__: object) -> Self:
        await asyncio.sleep(0)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError
        return self

    def channel(self, **_: object) -> Self:
        return self

    async def initialize(self) -> None:
        await asyncio.sleep(0)

    async def get_exchange(self, *_: object, **__: object) -> Self:
        return self

    async def publish(self, message: Message, *_: object, **__: object) -> None:
        self.published.append(message.message_id)
        await asyncio.sleep(0)

    async def close(self) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "a..b"])
async def test_a_host_name_that_no_resolver_takes_is_a_connection_that_failed(host: str) -> None:
    with pytest.raises(ConnectionError) as error:
        await connect_to_broker(f"amqp://kim:canary@{host}/")
    assert describe_broker_failure(error.value) == (
        "its host name cannot be resolved: check KEYTURN_AMQP_URL"
    )


async def test_what_waits_for_the_broker_is_published_in_the_order_in_which_it_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Records of an audit trail would otherwise seem to be missing, or to have been moved."""
    broker = _FakeBroker(refusals=10)
    monkeypatch.setattr("keyturn.publisher.connection.aio_pika.connect", broker.connect)
    monkeypatch.setattr("keyturn.publisher.connection._RECONNECT_PAUSES_S", (0.001, 0.002))
    connection = BrokerConnection("amqp://127.0.0.1:1/", publish_timeout_s=5)
    ids = [str(number) for number in range(8)]
    await asyncio.gather(
        *(connection.publish("audit.recorded", persistent_json(b"{}", id_, {})) for id_ in ids)
    )
    await connection.close()
    assert broker.published == ids
