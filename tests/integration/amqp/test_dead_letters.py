"""Dead letters are kept within their bounds on a real broker (SPEC 6.9)."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from keyturn.identifiers import format_time
from keyturn.topology import DEAD_KEEPER_LOCK, DEAD_LOCK, DEAD_QUEUES, UNSIGNED_DEAD_QUEUE
from keyturn_workers.amqp.declarations import declare
from keyturn_workers.amqp.locks import broker_lock
from keyturn_workers.dead_letters import keeper as dead_letters
from keyturn_workers.dead_letters.keeper import Bounds, DeadLetterKeeper
from keyturn_workers.dead_letters.queue import QueueBrowser
from keyturn_workers.worker.metrics import WorkerMetrics
from tests.support.scrape import risen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aio_pika.abc import AbstractChannel, AbstractConnection

pytestmark = pytest.mark.servers
_DEAD = "keyturn.upload.dead"
_LETTER_BYTES = 10_000
_ROOMY = Bounds(timedelta(days=30), 10**9)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[tuple[AbstractConnection, AbstractChannel]]:
    await declare(url)
    async with await aio_pika.connect(url) as connection:
        yield connection, await connection.channel()


async def _bury(channel: AbstractChannel, queue: str, name: str, days: float = 0) -> None:
    dead_at = format_time(datetime.now(UTC) - timedelta(days=days))
    message = aio_pika.Message(
        b"x" * _LETTER_BYTES, headers={"keyturn-dead-at": dead_at}, message_id=name
    )
    await channel.default_exchange.publish(message, queue)


async def _names(channel: AbstractChannel, queue: str) -> list[str | None]:
    """What is there, in order; the next look waits until the broker has taken it back."""
    browser = QueueBrowser(channel, await channel.get_queue(queue, ensure=False))
    batches = [batch async for batch in browser.batches(lambda message: message.message_id)]
    names = [name for batch in batches for name in batch]
    await browser.requeue(len(names))
    return names


async def _count(channel: AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


def _keeper(url: str, metrics: WorkerMetrics, **bounds: Bounds) -> DeadLetterKeeper:
    named = dict.fromkeys(DEAD_QUEUES, _ROOMY)
    named |= {_DEAD: bounds.get("upload", _ROOMY), UNSIGNED_DEAD_QUEUE: bounds.get("u", _ROOMY)}
    return DeadLetterKeeper(url, named, metrics, interval_s=0.05)


async def test_the_oldest_are_dropped_and_the_rest_keeps_its_order(
    vhost_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = WorkerMetrics()
    async with _connected(vhost_url) as (connection, channel):
        for number in range(10):
            await _bury(channel, _DEAD, str(number), days=31 if number in (0, 4) else 1)
        keeper = _keeper(vhost_url, metrics, upload=Bounds(timedelta(days=30), 8 * 13_000))
        await keeper.enforce(connection)
        left = ["3", "5", "6", "7", "8", "9"]
        assert await _names(channel, _DEAD) == left
        await keeper.enforce(connection)
        assert await _names(channel, _DEAD) == left
    dropped = 'keyturn_dead_letters_dropped_total{queue="keyturn.upload.dead",reason="%s"}'
    assert risen(metrics) == {dropped % "age": 2, dropped % "bytes": 2}
    logged = capsys.readouterr().out
    assert logged.count("dead letter dropped") == 4
    assert "letters=4" in logged


async def test_a_flood_of_unsigned_messages_pushes_out_nothing_signed(vhost_url: str) -> None:
    async with _connected(vhost_url) as (connection, channel):
        await _bury(channel, _DEAD, "signed")
        for number in range(50):
            await _bury(channel, UNSIGNED_DEAD_QUEUE, str(number))
        keeper = _keeper(vhost_url, WorkerMetrics(), u=Bounds(timedelta(days=7), 65_000))
        await keeper.enforce(connection)
        assert await _names(channel, _DEAD) == ["signed"]
        assert await _names(channel, UNSIGNED_DEAD_QUEUE) == ["46", "47", "48", "49"]


async def test_a_keeper_that_dies_at_its_letters_loses_none(
    vhost_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had read them all, and acknowledged nothing yet."""

    async def dies(*_: object) -> None:
        raise ConnectionError

    async with _connected(vhost_url) as (_, channel):
        for number in range(20):
            await _bury(channel, _DEAD, str(number))
        keeper = _keeper(vhost_url, WorkerMetrics(), upload=Bounds(timedelta(days=30), 1))
        monkeypatch.setattr(dead_letters, "_drop", dies)
        async with await aio_pika.connect(vhost_url) as its_own:
            with pytest.raises(ConnectionError):
                await keeper.enforce(its_own)
        await _until(lambda: _count(channel, _DEAD), 20)
        assert await _names(channel, _DEAD) == [str(number) for number in range(20)]


async def test_one_worker_enforces_the_bounds_until_it_is_gone(vhost_url: str) -> None:
    async with _connected(vhost_url) as (_, channel):
        for number in range(30):
            await _bury(channel, _DEAD, str(number))
        keepers = [
            _keeper(vhost_url, WorkerMetrics(), upload=Bounds(timedelta(days=30), 65_000))
            for _ in range(3)
        ]
        looks: asyncio.Queue[int] = asyncio.Queue()
        for number, keeper in enumerate(keepers):
            _note_looks(keeper, looks, number)
        running = [asyncio.create_task(keeper.run()) for keeper in keepers]
        first, *more = [await asyncio.wait_for(looks.get(), 20) for _ in range(5)]
        assert set(more) == {first}
        running[first].cancel()
        await asyncio.wait(running[first : first + 1])
        while not looks.empty():
            looks.get_nowait()
        second, *more = [await asyncio.wait_for(looks.get(), 20) for _ in range(5)]
        assert set(more) == {second}
        assert second != first
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        assert await _names(channel, _DEAD) == ["26", "27", "28", "29"]


def _note_looks(keeper: DeadLetterKeeper, looks: asyncio.Queue[int], number: int) -> None:
    enforce = keeper.enforce

    async def noted(connection: AbstractConnection) -> None:
        looks.put_nowait(number)
        await enforce(connection)

    keeper.enforce = noted  # type: ignore[method-assign]


async def _until(ask: Callable[[], Awaitable[Any]], expected: Any) -> None:
    """Poll the broker, which sends no notification, until it reports this."""
    found = None
    for _ in range(200):
        found = await ask()
        if found == expected:
            return
        await asyncio.sleep(0.05)
    assert found == expected


async def test_letters_that_an_operator_reads_are_left_alone(vhost_url: str) -> None:
    async with _connected(vhost_url) as (connection, channel):
        await _bury(channel, _DEAD, "one")
        keeper = _keeper(vhost_url, WorkerMetrics(), upload=Bounds(timedelta(days=30), 1))
        async with (
            await aio_pika.connect(vhost_url) as operator,
            broker_lock(operator, DEAD_LOCK) as is_mine,
        ):
            assert is_mine
            await keeper.enforce(connection)
            assert await _count(channel, _DEAD) == 1
        await keeper.enforce(connection)
        assert await _count(channel, _DEAD) == 0


async def test_a_lock_ends_with_its_connection(vhost_url: str) -> None:
    first = await aio_pika.connect(vhost_url)
    holding = broker_lock(first, DEAD_KEEPER_LOCK)
    assert await holding.__aenter__()
    async with await aio_pika.connect(vhost_url) as second:
        async with broker_lock(second, DEAD_KEEPER_LOCK) as is_mine:
            assert not is_mine
        await first.close()
        async with broker_lock(second, DEAD_KEEPER_LOCK) as is_mine:
            assert is_mine


@pytest.mark.parametrize("grown", [1, 5])
async def test_letters_are_not_read_for_each_new_one(vhost_url: str, grown: int) -> None:
    """Reading them all once a minute would cost more than what they are bounded for."""
    async with _connected(vhost_url) as (connection, channel):
        await _bury(channel, _DEAD, "first")
        keeper = _keeper(vhost_url, WorkerMetrics(), upload=Bounds(timedelta(days=30), 16_000))
        await keeper.enforce(connection)
        for number in range(grown):
            await _bury(channel, _DEAD, str(number))
        await keeper.enforce(connection)
        assert await _count(channel, _DEAD) == 1 + grown
        for number in range(25):
            await _bury(channel, _DEAD, str(number))
        await keeper.enforce(connection)
        assert await _count(channel, _DEAD) == 1


async def test_it_can_be_cancelled_at_any_moment(vhost_url: str) -> None:
    """One cancellation is enough, although aiormq may raise its own error in place of it.

    About one time in seven it ended nothing, and a stopping worker waited for it forever.
    """
    await declare(vhost_url, {})
    bounds = dict.fromkeys(DEAD_QUEUES, Bounds(timedelta(days=1), 10**9))
    moment = random.Random(7)  # noqa: S311  # no secret
    for _ in range(40):
        keeper = DeadLetterKeeper(vhost_url, bounds, WorkerMetrics(), interval_s=0.02)
        running = asyncio.create_task(keeper.run())
        await asyncio.sleep(moment.uniform(0.01, 0.25))
        running.cancel()
        done, _ = await asyncio.wait({running}, timeout=10)
        if not done:
            running.cancel()
            pytest.fail("one cancellation ended nothing")
