"""Dead-letter queues are read whole, by one reader at a time, and keep their order (SPEC 6.9)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from aiormq.exceptions import ChannelLockedResource

from keyturn.topology import DEAD_QUEUES
from keyturn_workers.reports.dead_letters import queue as queue_module
from keyturn_workers.reports.dead_letters.amqp1 import LinkError
from keyturn_workers.reports.dead_letters.queue import (
    MAX_BATCHES,
    LockedError,
    UnknownQueueError,
    UnreadableQueueError,
    batch_size,
    dead_queue,
    exclusive,
    read_letters,
)
from tests.unit.keyturn_workers.reports.dead_letters.memory_broker import Letter, MemoryBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractConnection, AbstractIncomingMessage

_DEAD = "keyturn.upload.dead"
_COMMANDS = 32
"""Commands of a channel on their way to a quorum queue; one is left for the flush."""


@dataclass
class FakeBroker:
    """Exclusive queues, by the connection that declared them."""

    held: dict[str, FakeConnection] = field(default_factory=dict)


@dataclass
class FakeConnection:
    """A connection that is also its one channel and its one queue."""

    broker: FakeBroker
    is_closed: bool = False
    name: str = ""

    async def channel(self) -> FakeConnection:
        self.is_closed = False
        return self

    async def declare_queue(self, name: str, *, exclusive: bool, durable: bool) -> FakeConnection:
        assert exclusive
        assert not durable
        if self.broker.held.setdefault(name, self) is not self:
            self.is_closed = True
            raise ChannelLockedResource(name)
        self.name = name
        return self

    async def delete(self, *, if_unused: bool, if_empty: bool) -> None:
        assert not if_unused
        assert not if_empty
        assert not self.is_closed
        del self.broker.held[self.name]

    async def close(self) -> None:
        self.is_closed = True


def connection(broker: FakeBroker) -> AbstractConnection:
    """A connection to this broker."""
    return cast("AbstractConnection", FakeConnection(broker))


def _name(message: AbstractIncomingMessage, queue: str) -> str | None:
    assert queue == _DEAD
    return None if message.message_id == "1" else message.message_id


@pytest.mark.parametrize("queue", DEAD_QUEUES)
def test_a_queue_is_named_with_or_without_its_suffix(queue: str) -> None:
    assert dead_queue(queue) == dead_queue(queue.removesuffix(".dead")) == queue


@pytest.mark.parametrize("name", ["", "keyturn", "keyturn.upload.dead.dead", "keyturn.events"])
def test_any_other_name_is_refused(name: str) -> None:
    with pytest.raises(UnknownQueueError, match="is not one of"):
        dead_queue(name)


async def test_a_second_reader_learns_why_it_cannot_read() -> None:
    broker = FakeBroker()
    async with exclusive(connection(broker)):
        with pytest.raises(LockedError, match="is reading the dead letters; try again later"):
            async with exclusive(connection(broker), timeout_s=0):
                raise AssertionError
    async with exclusive(connection(broker), timeout_s=0):
        assert list(broker.held) == ["keyturn.dead.lock"]


async def test_a_second_reader_waits_for_the_first() -> None:
    broker = FakeBroker()
    first = exclusive(connection(broker))
    await first.__aenter__()
    second = exclusive(connection(broker), timeout_s=10)
    waiting = asyncio.create_task(second.__aenter__())
    await asyncio.sleep(0)
    assert not waiting.done()
    await first.__aexit__(None, None, None)
    await waiting
    await second.__aexit__(None, None, None)
    assert broker.held == {}


@pytest.mark.parametrize(
    ("limit", "names"), [(None, ["0", "2", "3", "4"]), (2, ["0", "2"]), (9, ["0", "2", "3", "4"])]
)
async def test_all_letters_go_back_in_their_order_whatever_is_kept(
    limit: int | None, names: list[str]
) -> None:
    broker = MemoryBroker()
    broker.fill(_DEAD, *(Letter(b"{}", {}, str(number)) for number in range(5)))
    assert await read_letters(broker.letters(), _DEAD, _name, limit) == (names, 5)
    assert [letter.message_id for letter in broker.queues[_DEAD]] == ["0", "1", "2", "3", "4"]


async def test_an_empty_queue_has_no_letters_and_a_missing_one_is_an_error() -> None:
    broker = MemoryBroker()
    with pytest.raises(UnknownQueueError, match="does not exist on the broker; start a worker"):
        await read_letters(broker.letters(), _DEAD, _name)
    broker.fill(_DEAD)
    assert await read_letters(broker.letters(), _DEAD, _name) == ([], 0)


@dataclass
class FakeLink:
    """Receives some letters, and then none, or an error."""

    letters: list[Letter]
    end: Exception | None
    steps: list[str]

    @asynccontextmanager
    async def open(self, *_: object) -> AsyncIterator[FakeLink]:
        try:
            yield self
        finally:
            self.steps.append("closed")

    async def receive(self, _: object) -> AbstractIncomingMessage:
        if self.letters:
            return self.letters.pop(0).message
        if self.end is not None:
            raise self.end
        await asyncio.Event().wait()
        raise AssertionError

    async def release(self) -> None:
        self.steps.append("released")


async def _read_over_amqp1(
    monkeypatch: pytest.MonkeyPatch, link: FakeLink
) -> tuple[list[str], int]:
    """Three letters, as far as the link has them."""
    monkeypatch.setattr(queue_module, "_IDLE_S", 0.01)
    monkeypatch.setattr(queue_module, "open_link", link.open)
    broker = MemoryBroker()
    broker.fill(_DEAD, *(Letter(b"{}", {}) for _ in range(3)))
    letters = broker.letters()
    letters.over_amqp1.add(_DEAD)
    letters.stack.callback(link.steps.append, "unlocked")
    async with letters.stack, asyncio.timeout(20):
        return await read_letters(letters, _DEAD, _name)


async def test_letters_that_expire_while_they_are_read_over_amqp_1_0_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = FakeLink([Letter(b"{}", {}, "0"), Letter(b"{}", {}, "2")], None, [])
    assert await _read_over_amqp1(monkeypatch, link) == (["0", "2"], 2)
    assert link.steps == ["released", "closed", "unlocked"]


@pytest.mark.parametrize("error", [LinkError(), EOFError(), ConnectionResetError()])
async def test_a_link_that_fails_is_closed_before_another_reader_has_the_lock(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    link = FakeLink([Letter(b"{}", {}, "0")], error, [])
    with pytest.raises(UnreadableQueueError, match=f"the 3 letters of {_DEAD}"):
        await _read_over_amqp1(monkeypatch, link)
    assert link.steps == ["closed", "unlocked"]


@pytest.mark.parametrize("count", [1, 128, 3584, 3585, 100_000, 200_000, 1_000_000])
def test_there_are_fewer_batches_than_the_broker_keeps_in_order(count: int) -> None:
    assert -(-count // batch_size(count)) <= MAX_BATCHES < _COMMANDS


def test_a_batch_is_never_larger_than_a_prefetch() -> None:
    assert batch_size(10**8) == 65_535
    assert batch_size(1) == 128
