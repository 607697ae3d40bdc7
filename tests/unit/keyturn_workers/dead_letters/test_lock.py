"""One reader of dead letters at a time (SPEC 6.9)."""

from __future__ import annotations

import asyncio

import pytest

from keyturn_workers.dead_letters.errors import LockedError
from keyturn_workers.dead_letters.lock import exclusive
from tests.unit.keyturn_workers.amqp.lock_broker import FakeBroker, connection


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
