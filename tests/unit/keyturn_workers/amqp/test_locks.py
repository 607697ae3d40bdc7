"""A lock on the broker is held by one connection, and given back at the end (SPEC 6.9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from keyturn_workers.amqp.locks import broker_lock
from tests.unit.keyturn_workers.dead_letters.lock_broker import (
    FakeBroker,
    FakeConnection,
    connection,
)

if TYPE_CHECKING:
    from aio_pika.abc import AbstractConnection


async def test_a_lock_is_held_by_one_connection_at_a_time() -> None:
    broker = FakeBroker()
    first, second = connection(broker), connection(broker)
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
        async with broker_lock(connection(broker), "lock"):
            raise LookupError
    assert broker.held == {}


async def test_a_lock_that_was_lost_with_its_channel_is_not_given_back_again() -> None:
    broker = FakeBroker()
    lost = FakeConnection(broker)
    async with broker_lock(cast("AbstractConnection", lost), "lock") as held:
        assert held
        lost.is_closed = True
    assert lost.is_closed
