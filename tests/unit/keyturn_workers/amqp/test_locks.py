"""A lock on the broker is held by one connection, and given back at the end (SPEC 6.9)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest
from aiormq.exceptions import ChannelLockedResource

from keyturn_workers.amqp.locks import broker_lock

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection


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


def _connection(broker: FakeBroker) -> AbstractConnection:
    return cast("AbstractConnection", FakeConnection(broker))


async def test_a_lock_is_held_by_one_connection_at_a_time() -> None:
    broker = FakeBroker()
    first, second = _connection(broker), _connection(broker)
    async with broker_lock(first, "lock") as held:
        assert held
        async with broker_lock(second, "lock") as also:
            assert not also
        async with broker_lock(second, "another") as another:
            assert another
    assert broker.held == {}
    async with broker_lock(second, "lock") as held:
        assert held


async def test_a_lock_is_given_back_if_the_block_fails() -> None:
    broker = FakeBroker()
    with pytest.raises(LookupError):
        async with broker_lock(_connection(broker), "lock"):
            raise LookupError
    assert broker.held == {}


async def test_a_lock_that_was_lost_with_its_channel_is_not_given_back_again() -> None:
    broker = FakeBroker()
    connection = FakeConnection(broker)
    async with broker_lock(cast("AbstractConnection", connection), "lock") as held:
        assert held
        connection.is_closed = True
    assert connection.is_closed
