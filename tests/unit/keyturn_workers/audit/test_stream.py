"""The stream of the trail: records are signed for it, and a command declares it if need be."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika import DeliveryMode
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity

from keyturn.crypto import VerifyKey
from keyturn.errors import BrokerUnavailableError, NotDeliveredError
from keyturn.publisher.connection import BrokerConnection
from keyturn.topology import (
    AUDIT_RECORDED,
    AUDIT_STREAM,
    EVENT_KEY_HEADER,
    EXCHANGE,
    SIGNATURE_HEADER,
    audit_queue,
)
from keyturn_workers.audit import AuditPublisher, trail
from keyturn_workers.audit.trail import declare_missing
from tests.unit.keyturn_workers.audit.memory import EVENT_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika import Message

_NOBODY = "amqp://nobody@127.0.0.1:1/"


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
