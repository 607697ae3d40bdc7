"""The topology is declared in an order in which no request can be lost (SPEC 6.1, 6.2, 6.8)."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from aio_pika import ExchangeType
from aiormq.exceptions import ChannelAccessRefused, ChannelPreconditionFailed

from keyturn.topology import (
    AUDIT_RECORDED,
    AUDIT_STREAM,
    EXCHANGE,
    NOTIFICATIONS,
    PUBLISHER_EVENTS,
    PUBLISHER_EVENTS_EXCHANGE,
    UPLOAD_QUEUE,
    audit_queue,
    notifications_queue,
    queues,
)
from keyturn_workers.pipeline.amqp import declarations
from keyturn_workers.pipeline.amqp.declarations import TopologyError, declare, declare_streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel

    from keyturn.topology import Queue

URL = "amqp://localhost/"


@dataclass
class FakeBroker:
    """Notes what is declared and bound, in order; refuses to declare what `refusing` names."""

    declared: list[str] = field(default_factory=list)
    bound: list[tuple[str, str, Any]] = field(default_factory=list)
    arguments: dict[str, Any] = field(default_factory=dict)
    refusing: dict[str, Exception] = field(default_factory=dict)

    async def channel(self) -> AbstractChannel:
        return cast("AbstractChannel", self)

    def _declare(self, name: str, *, durable: bool, **arguments: Any) -> FakeDeclared:
        assert durable
        if name in self.refusing:
            raise self.refusing[name]
        self.declared.append(name)
        self.arguments.setdefault(name, {}).update(arguments)
        return FakeDeclared(self, name)

    async def declare_exchange(
        self, name: str, type_: ExchangeType, *, durable: bool, internal: bool = False
    ) -> FakeDeclared:
        return self._declare(name, durable=durable, type=type_, internal=internal)

    async def declare_queue(
        self, name: str, *, durable: bool, arguments: dict[str, Any]
    ) -> FakeDeclared:
        return self._declare(name, durable=durable, **arguments)

    async def get_queue(self, name: str, *, ensure: bool) -> FakeDeclared:
        assert name in self.declared
        assert not ensure
        return FakeDeclared(self, name)


@dataclass
class FakeDeclared:
    """A queue or an exchange."""

    broker: FakeBroker
    name: str

    async def bind(
        self, to: FakeDeclared, routing_key: str = "", arguments: dict[str, str] | None = None
    ) -> None:
        self.broker.bound.append((self.name, to.name, routing_key or arguments))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    fake = FakeBroker()

    @asynccontextmanager
    async def connection() -> AsyncIterator[FakeBroker]:
        yield fake

    async def connect(url: str) -> object:
        assert url == URL
        return connection()

    monkeypatch.setattr(declarations, "connect_to_broker", connect)
    return fake


async def test_every_queue_is_declared_with_its_arguments_and_bound(broker: FakeBroker) -> None:
    await declare(URL)
    for queue in queues():
        assert queue.arguments.items() <= broker.arguments[queue.name].items()
        bound = [(to, key) for name, to, key in broker.bound if name == queue.name]
        keys = tuple(key for to, key in bound if to == EXCHANGE)
        assert keys == queue.bindings
    names = [queue.name for queue in queues()]
    assert [name for name in dict.fromkeys(broker.declared) if name in names] == names
    assert broker.arguments[EXCHANGE]["type"] is ExchangeType.TOPIC


async def test_notifications_have_an_exchange_of_their_own(broker: FakeBroker) -> None:
    """Whoever may push them, under any routing key, writes to that one bounded queue."""
    await declare(URL)
    exchange, queue = (name for name in broker.declared if name == NOTIFICATIONS)
    assert exchange == queue == "keyturn.notifications"
    assert broker.arguments[NOTIFICATIONS] == {
        **notifications_queue().arguments,
        "type": ExchangeType.FANOUT,
        "internal": False,
    }
    assert [each for each in broker.bound if NOTIFICATIONS in each] == [
        (NOTIFICATIONS, NOTIFICATIONS, None)
    ]


@pytest.mark.parametrize(("given", "max_age"), [(None, "31536000s"), (audit_queue(3600), "3600s")])
async def test_the_audit_trail_has_the_bounds_of_the_settings(
    broker: FakeBroker, given: Queue | None, max_age: str
) -> None:
    await declare(URL, ["api"], given)
    assert broker.arguments[AUDIT_STREAM]["x-max-age"] == max_age
    assert (AUDIT_STREAM, EXCHANGE, AUDIT_RECORDED) in broker.bound
    taking = [name for name, _, key in broker.bound if key == AUDIT_RECORDED]
    assert taking == [AUDIT_STREAM]


async def test_each_publishers_stream_takes_events_that_carry_its_name(broker: FakeBroker) -> None:
    await declare(URL, ["web", "api"])
    for name in ("api", "web"):
        binding = {"x-match": "all", "keyturn-publisher": name}
        expected = (f"keyturn.events.{name}", PUBLISHER_EVENTS_EXCHANGE, binding)
        assert expected in broker.bound
    arguments = broker.arguments[PUBLISHER_EVENTS_EXCHANGE]
    assert arguments == {"type": ExchangeType.HEADERS, "internal": True}


async def test_a_request_is_accepted_only_once_its_publisher_can_read_the_answer(
    broker: FakeBroker,
) -> None:
    await declare(URL, ["web", "api"])
    bound = [name for name, _, _ in broker.bound]
    streams = ("keyturn.events.api", "keyturn.events.web", PUBLISHER_EVENTS_EXCHANGE)
    assert max(map(bound.index, streams)) < bound.index(UPLOAD_QUEUE)


async def test_only_events_enter_the_publishers_streams_and_only_once_these_are_bound(
    broker: FakeBroker,
) -> None:
    """By `#` a request would enter too, and count as delivered where no worker ever reads it."""
    await declare(URL, ["api"])
    entering = [
        (number, key)
        for number, (name, to, key) in enumerate(broker.bound)
        if (name, to) == (PUBLISHER_EVENTS_EXCHANGE, EXCHANGE)
    ]
    assert [key for _, key in entering] == list(PUBLISHER_EVENTS)
    bound = [name for name, _, _ in broker.bound]
    assert bound.index("keyturn.events.api") < entering[0][0]


async def test_streams_of_further_publishers_declare_no_queue(broker: FakeBroker) -> None:
    await declare_streams(URL, ["api"])
    assert broker.declared == [EXCHANGE, PUBLISHER_EVENTS_EXCHANGE, "keyturn.events.api"]


@pytest.mark.parametrize("error", [ChannelPreconditionFailed, ChannelAccessRefused])
@pytest.mark.parametrize("name", [EXCHANGE, UPLOAD_QUEUE, AUDIT_STREAM, PUBLISHER_EVENTS_EXCHANGE])
async def test_what_exists_with_other_arguments_is_named(
    broker: FakeBroker, name: str, error: type[Exception]
) -> None:
    broker.refusing[name] = error("inequivalent arg 'x-delivery-limit'")
    with pytest.raises(TopologyError, match=f"{name} cannot be declared: .*x-delivery-limit"):
        await declare(URL, ["api"])
