"""A command declares the trail's stream only where there is none (SPEC 15.3)."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from keyturn.errors import NotDeliveredError
from keyturn.topology import AUDIT_RECORDED, AUDIT_STREAM, EXCHANGE, audit_queue
from keyturn_workers.audit import declaration
from keyturn_workers.audit.declaration import declare_missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


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

    monkeypatch.setattr(declaration, "connect_to_broker", connect)
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
