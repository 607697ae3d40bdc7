"""A process reads all marks of a real broker before it serves (SPEC 5.5)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import aio_pika
import pytest

from keyturn import topology
from keyturn.crypto import SigningKey
from keyturn.errors import EventsUnavailableError, MarksUnavailableError
from keyturn.messages import KeyringMarked
from keyturn_workers.keys.keyring.mark_stream import MarkStream, following
from keyturn_workers.keys.keyring.marks import Mark
from keyturn_workers.pipeline.amqp.declarations import declare
from tests.unit.keyturn_workers.factories import AT, keyring
from tools.harness.marks import sign_mark

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel

pytestmark = pytest.mark.servers

KEY = SigningKey.from_seed(bytes([1]) * 32)
DIGEST = bytes([5]) * 32


def stream_of(url: str, *, lease_s: float = 15, signing_key: SigningKey | None = KEY) -> MarkStream:
    keys = [KEY.verify_key()]
    return MarkStream(url, "test", keys, lease_s=lease_s, signing_key=signing_key)


async def publish(channel: AbstractChannel, projects: range, *, at_once: int = 2000) -> None:
    """A mark for each project; the broker confirms many at once."""
    exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)

    def message(number: int) -> aio_pika.Message:
        mark = KeyringMarked(
            project=f"tenant-{number:07}",
            serial=1,
            digest=DIGEST.hex(),
            generation=1,
            kek_id="0" * 16,
            master_key="m1",
            at=AT,
        )
        return sign_mark("test", mark, KEY)

    for first in range(projects.start, projects.stop, at_once):
        numbers = range(first, min(first + at_once, projects.stop))
        await asyncio.gather(
            *(exchange.publish(message(number), topology.KEYRING_MARKED) for number in numbers)
        )


async def test_ten_thousand_marks_are_read_in_seconds(vhost_url: str) -> None:
    """Under 3 s on 2 cores that have nothing else to do."""
    await declare(vhost_url)
    async with await aio_pika.connect(vhost_url) as connection:
        await publish(await connection.channel(), range(10_000))
        stream = stream_of(vhost_url)
        began_s, busy_s = time.monotonic(), time.process_time()
        async with following(stream):
            await stream.load()
            took_s, busy_s = time.monotonic() - began_s, time.process_time() - busy_s
            assert stream.table.received == 10_000
            for number in (0, 4711, 9_999):
                assert stream.table.find(f"tenant-{number:07}") == Mark(1, DIGEST, 1)
    print(f"10,000 marks: {took_s:.2f} s, of which {busy_s:.2f} s of this process")
    # Its own time hardly depends on what else the machine does.
    assert busy_s < 9
    assert took_s < 60


async def test_an_empty_stream_is_read_at_once(vhost_url: str) -> None:
    """A worker's start takes hardly longer for it."""
    await declare(vhost_url)
    stream = stream_of(vhost_url)
    began_s = time.monotonic()
    async with following(stream):
        await stream.load()
        took_s = time.monotonic() - began_s
        assert stream.is_current
    print(f"an empty stream: {took_s:.2f} s")
    assert took_s < 30


async def test_a_mark_is_published_and_read_back_by_every_process(vhost_url: str) -> None:
    await declare(vhost_url)
    one, other = stream_of(vhost_url), stream_of(vhost_url)
    ring, mark = keyring(), Mark(1, DIGEST, 1)
    async with following(one), following(other):
        await asyncio.gather(one.load(), other.load())
        await one.publish(ring, mark)
        assert one.table.find("acme") == mark
        await other.catch_up()
        assert other.table.find("acme") == mark


async def test_a_gateway_that_starts_before_the_first_worker_soon_accepts_writes(
    vhost_url: str,
) -> None:
    """It asks by itself, and a lease as long as this would let it ask after 20 minutes."""
    gateway = stream_of(vhost_url, lease_s=3600, signing_key=None)
    async with following(gateway):
        with pytest.raises(EventsUnavailableError, match="no worker has declared"):
            await gateway.load()
        with pytest.raises(MarksUnavailableError, match="no worker has declared"):
            await gateway.require_current()
        worker = stream_of(vhost_url)
        await declare(vhost_url)
        async with following(worker):
            await worker.load()
            began_s = time.monotonic()
            async with asyncio.timeout(30):
                while not gateway.permits_writes:  # noqa: ASYNC110  # no events
                    await asyncio.sleep(0.05)
            print(f"after the worker: {time.monotonic() - began_s:.2f} s")
