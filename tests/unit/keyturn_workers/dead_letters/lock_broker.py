"""A broker that has nothing but exclusive queues."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from aiormq.exceptions import ChannelLockedResource

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


def connection(broker: FakeBroker) -> AbstractConnection:
    """A connection to this broker."""
    return cast("AbstractConnection", FakeConnection(broker))
