"""The end of a consumer is asked for, and never cut short (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from keyturn_workers.amqp import leaving, take_no_more

if TYPE_CHECKING:
    from faststream.rabbit.subscriber import RabbitSubscriber


@dataclass
class FakeQueue:
    """A queue whose broker answers when it is let; `problem` is what it answers with."""

    problem: Exception | None = None
    let: asyncio.Event = field(default_factory=asyncio.Event)
    told: list[str] = field(default_factory=list)

    async def cancel(self, tag: str) -> None:
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.told.append("cut short")
            raise
        self.told.append(tag)
        if self.problem is not None:
            raise self.problem


@dataclass
class FakeSubscriber:
    """What of FastStream's is used here."""

    _queue_obj: FakeQueue | None
    _consumer_tag: str | None = "tag"


async def _leave(subscriber: FakeSubscriber) -> None:
    async with asyncio.timeout(10):
        await take_no_more(cast("RabbitSubscriber", subscriber))


async def test_a_broker_that_is_slow_is_not_waited_for_and_not_cut_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled, the client library would close the channel, and end what is being handled."""
    monkeypatch.setattr(leaving, "_TIMEOUT_S", 0.05)
    queue = FakeQueue()
    await _leave(FakeSubscriber(queue))
    assert queue.told == []
    queue.let.set()
    await asyncio.sleep(0.01)
    assert queue.told == ["tag"]


async def test_a_broker_that_is_gone_does_no_harm() -> None:
    queue = FakeQueue(ConnectionError())
    queue.let.set()
    subscriber = FakeSubscriber(queue)
    await _leave(subscriber)
    assert (queue.told, subscriber._consumer_tag) == (["tag"], None)


@pytest.mark.parametrize("subscriber", [FakeSubscriber(None), FakeSubscriber(None, None)])
async def test_one_that_never_started_has_nothing_to_end(subscriber: FakeSubscriber) -> None:
    await _leave(subscriber)
