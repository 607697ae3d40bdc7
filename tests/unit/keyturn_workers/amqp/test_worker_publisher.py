"""What a worker publishes: every failure of the broker is one error (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from aio_pika.exceptions import AMQPConnectionError, ChannelInvalidStateError
from faststream.exceptions import IncorrectState

from keyturn.crypto import SigningKey
from keyturn_workers.amqp import NotConfirmedError, WorkerPublisher

KEY = SigningKey.from_seed(bytes(32))


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
