"""A quorum queue is read without a message removed, and keeps its order (SPEC 6.9, 12)."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import aio_pika
import pytest
from aio_pika.exceptions import AMQPConnectionError

from keyturn.topology import DEAD_POLICIES, UNSIGNED_DEAD_QUEUE
from keyturn_workers.pipeline.amqp.declarations import declare
from keyturn_workers.process.wall_clock import utc_now
from keyturn_workers.reports.dead_letters import queue as queue_module
from keyturn_workers.reports.dead_letters.amqp1 import LinkError
from keyturn_workers.reports.dead_letters.letters import code_of
from keyturn_workers.reports.dead_letters.move import Move, Moved, move_letters
from keyturn_workers.reports.dead_letters.queue import (
    QueueBrowser,
    UnreadableQueueError,
    open_letters,
    read_letters,
    ready_count,
)
from keyturn_workers.reports.status.feeds import DEPTHS_FOR_S, QueueDepths
from tools.harness.amqp1 import POISONS, open_sender
from tools.harness.loopback import proxy_before

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

    from keyturn.messages import DeadLettersAction
    from keyturn.topology import Policy
    from keyturn_workers.reports.dead_letters.letters import DeadLetter
    from tools.servers import Servers

pytestmark = pytest.mark.servers
_DEAD, _OTHER = "keyturn.upload.dead", "keyturn.control.dead"
_COUNT = 3600  # the most batches that there can be
_ORDER = list(range(_COUNT))


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[tuple[AbstractConnection, AbstractChannel]]:
    async with await aio_pika.connect(url) as connection:
        yield connection, await connection.channel()


async def _fill(
    url: str, queue: str = _DEAD, count: int = _COUNT, ready: int | None = None
) -> None:
    await declare(url)
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=False)
        for number in range(count):
            message = aio_pika.Message(b"x" * 100, message_id=str(number))
            await channel.default_exchange.publish(message, queue)
        await _until_ready(channel, queue, ready or count)


async def _until_ready(channel: AbstractChannel, queue: str, count: int) -> None:
    declared = await channel.get_queue(queue, ensure=False)
    async with asyncio.timeout(30):
        while await ready_count(declared) != count:  # noqa: ASYNC110  # the broker has no event
            await asyncio.sleep(0.05)


def _number(message: AbstractIncomingMessage) -> int:
    return int(message.message_id or "-1")


async def _browser(channel: AbstractChannel, queue: str = _DEAD) -> QueueBrowser:
    return QueueBrowser(channel, await channel.get_queue(queue, ensure=False))


def _tag(message: AbstractIncomingMessage) -> int:
    assert message.delivery_tag is not None
    return message.delivery_tag


async def _browse(browser: QueueBrowser) -> list[int]:
    batches = [batch async for batch in browser.batches(_number)]
    return [number for batch in batches for number in batch]


async def _order(url: str, queue: str = _DEAD) -> list[int]:
    """The order in which the messages are there."""
    async with _connected(url) as (_, channel):
        browser = await _browser(channel, queue)
        order = await _browse(browser)
        await browser.requeue()
        return order


async def test_messages_of_several_batches_go_back_in_their_order(vhost_url: str) -> None:
    await _fill(vhost_url)
    for _ in range(3):
        assert await _order(vhost_url) == _ORDER


async def test_names_that_do_not_follow_each_other_would_change_the_order(
    vhost_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broken variant: the broker returns batches in the order of their consumers' names."""
    await _fill(vhost_url)
    monkeypatch.setattr(queue_module, "_numbers", itertools.count(10**6, -1))
    assert await _order(vhost_url) == _ORDER
    assert await _order(vhost_url) != _ORDER


async def test_what_was_acknowledged_is_gone_and_the_rest_keeps_its_order(vhost_url: str) -> None:
    await _fill(vhost_url)
    async with _connected(vhost_url) as (_, channel):
        browser = await _browser(channel)
        async for batch in browser.batches(lambda message: message):
            for message in batch:
                if _number(message) % 10 == 0 or _number(message) == _COUNT - 1:
                    await browser.ack([_tag(message)])
        left = [number for number in _ORDER[:-1] if number % 10]
        await browser.requeue()
    assert await _order(vhost_url) == left


async def test_all_acknowledged_messages_are_gone_although_the_channel_closes(
    vhost_url: str,
) -> None:
    await _fill(vhost_url, count=300)
    async with _connected(vhost_url) as (_, channel):
        browser = await _browser(channel)
        async for batch in browser.batches(lambda message: message):
            await browser.ack([_tag(message) for message in batch])
        await browser.requeue()
    assert await _order(vhost_url) == []


async def test_a_lost_connection_changes_nothing(vhost_url: str) -> None:
    await _fill(vhost_url)
    async with proxy_before(vhost_url) as link:
        connection = await aio_pika.connect(link.url)
        channel = await connection.channel()
        assert await _browse(await _browser(channel)) == _ORDER
        link.stop()
    async with _connected(vhost_url) as (_, other):
        await _until_ready(other, _DEAD, _COUNT)
    assert await _order(vhost_url) == _ORDER


async def test_a_message_that_comes_back_is_not_read_twice(vhost_url: str) -> None:
    await _fill(vhost_url, count=100)
    async with _connected(vhost_url) as (_, channel):
        browser = await _browser(channel)
        read = []
        async for batch in browser.batches(lambda message: message):
            for message in batch:
                read.append(_number(message))
                copy = aio_pika.Message(message.body, message_id=message.message_id)
                await channel.default_exchange.publish(copy, _DEAD)
                await browser.ack([_tag(message)])
        assert read == list(range(100))
        await browser.requeue()
    # To flush acknowledgments, the browser may receive the first message that came meanwhile.
    assert sorted(await _order(vhost_url)) == read


async def test_an_error_while_a_message_is_read_ends_the_reading(vhost_url: str) -> None:
    await _fill(vhost_url, count=10)
    async with _connected(vhost_url) as (_, channel):
        browser = await _browser(channel)

        def fails(message: AbstractIncomingMessage) -> int:
            if message.message_id == "4":
                raise LookupError
            return _number(message)

        with pytest.raises(LookupError):
            assert [batch async for batch in browser.batches(fails)]
        await browser.requeue()
        await _until_ready(channel, _DEAD, 10)
    assert await _order(vhost_url) == list(range(10))


def _policy(broker: Servers, url: str, policy: Policy, **definition: int) -> None:
    assert broker.rabbitmq is not None
    vhost = unquote(urlsplit(url).path[1:])
    # Of the policies of one priority, any could win.
    command = ("set_policy", "-p", vhost, "--priority", "1", "--apply-to", "quorum_queues")
    given = json.dumps({**policy.definition, **definition})
    broker.rabbitmq.control(*command, policy.name, policy.pattern, given)


async def test_policies_drop_the_oldest_by_age_and_by_size(broker: Servers, vhost_url: str) -> None:
    if broker.rabbitmq is None:
        pytest.skip("the policies of a given broker are its operator's")
    signed, unsigned = DEAD_POLICIES
    _policy(broker, vhost_url, unsigned, **{"max-length-bytes": 1000})
    _policy(broker, vhost_url, signed, **{"message-ttl": 3000})
    await _fill(vhost_url, count=5)
    async with _connected(vhost_url) as (_, channel):
        # What was read and returned is not a day younger.
        async with asyncio.timeout(20):
            while await _order(vhost_url):  # noqa: ASYNC110  # the broker has no event
                await asyncio.sleep(0.2)
        for number in range(50):
            message = aio_pika.Message(b"x" * 100, message_id=str(number))
            await channel.default_exchange.publish(message, UNSIGNED_DEAD_QUEUE)
    assert await _order(vhost_url, UNSIGNED_DEAD_QUEUE) == list(range(40, 50))


async def test_letters_that_a_foreign_policy_drops_are_counted_where_the_alert_looks(
    broker: Servers, vhost_url: str
) -> None:
    """A delivery limit in a policy overrides the queue's own -1: reading then uses letters up."""
    if broker.rabbitmq is None:
        pytest.skip("the policies of a given broker are its operator's")

    def dropped() -> int:
        assert broker.rabbitmq is not None
        labels = "[{queue_type,rabbit_quorum_queue},{dead_letter_strategy,disabled}]"
        name = "messages_dead_lettered_delivery_limit_total"
        counted = f"maps:get({name}, maps:get({labels}, rabbit_global_counters:overview()))."
        return int(broker.rabbitmq.control("eval", counted))

    before = await asyncio.to_thread(dropped)
    foreign = replace(DEAD_POLICIES[0], name="foreign", pattern=r"\.dead$", definition={})
    _policy(broker, vhost_url, foreign, **{"delivery-limit": 2})
    await _fill(vhost_url, count=5)
    async with asyncio.timeout(60):
        while await _order(vhost_url):
            pass
        while await asyncio.to_thread(dropped) < before + 5:  # noqa: ASYNC110  # no event
            await asyncio.sleep(0.2)


async def test_letters_that_are_being_read_are_counted_as_before(vhost_url: str) -> None:
    """While one reads them, the queue looks empty to others; a page must not say so."""
    await _fill(vhost_url, count=5)
    depths = QueueDepths(vhost_url, utc_now, [_DEAD, _OTHER])
    try:
        assert (await depths.read()).queues[_DEAD].depth == 5
        async with open_letters(vhost_url) as letters:
            browser = await _browser(letters.channel)
            assert await _browse(browser) == [0, 1, 2, 3, 4]
            await asyncio.sleep(DEPTHS_FOR_S)
            assert (await depths.read()).queues[_DEAD].depth == 5
            await browser.requeue()
        async with _connected(vhost_url) as (_, channel):
            await (await channel.get_queue(_DEAD, ensure=False)).purge()
        await asyncio.sleep(DEPTHS_FOR_S)
        assert (await depths.read()).queues[_DEAD].depth == 0
    finally:
        await depths.close()


async def test_a_first_count_waits_for_letters_that_are_being_read(vhost_url: str) -> None:
    await _fill(vhost_url, count=5)
    depths = QueueDepths(vhost_url, utc_now, [_DEAD])
    async with open_letters(vhost_url) as letters:
        browser = await _browser(letters.channel)
        await _browse(browser)
        first = asyncio.create_task(depths.read())
        await asyncio.sleep(0.5)
        assert not first.done()
    assert (await first).queues[_DEAD].depth == 5
    await depths.close()


async def _fill_around_poisons(url: str) -> list[bytes]:
    """Five letters of 0-9-1, one of each kind that is not convertible, five more; their bodies."""
    await _fill(url, count=5)
    async with open_sender(url, f"/queues/{_DEAD}") as sender:
        for name, parts in POISONS.items():
            await sender.send(name.encode(), parts)
    await _fill(url, count=5, ready=10 + len(POISONS))
    return [b"x" * 100] * 5 + [name.encode() for name in POISONS] + [b"x" * 100] * 5


async def _bodies(url: str) -> list[bytes]:
    async with open_letters(url) as letters:
        found, depth = await read_letters(letters, _DEAD, lambda message, _: message.body)
        assert depth == len(found)
    return found


async def test_letters_that_rabbitmq_cannot_convert_are_read_like_others_and_none_is_removed(
    vhost_url: str,
) -> None:
    bodies = await _fill_around_poisons(vhost_url)
    for _ in range(3):
        assert await _bodies(vhost_url) == bodies


@pytest.mark.parametrize("action", ["discard", "replay"])
async def test_a_letter_that_rabbitmq_cannot_convert_is_moved_and_no_other(
    vhost_url: str, action: DeadLettersAction
) -> None:
    bodies = await _fill_around_poisons(vhost_url)
    recorded: list[int] = []

    async def record(_: str, letter: DeadLetter, __: str) -> None:
        recorded.append(letter.size_bytes)

    def selects(message: AbstractIncomingMessage) -> bool:
        return message.body in (b"footer", b"map", b"uuid")

    async with open_letters(vhost_url) as letters:
        moved = await move_letters(letters, _DEAD, Move(action, selects, record))
    assert moved == Moved(moved=3)
    assert recorded == [4, 6, 3]
    assert await _bodies(vhost_url) == [
        body for body in bodies if body not in (b"footer", b"map", b"uuid")
    ]
    async with _connected(vhost_url) as (_, channel):
        work = await channel.get_queue("keyturn.upload", ensure=False)
        # What was replayed is a message of 0-9-1, which any worker can be given.
        replayed = [await work.get(fail=False) for _ in range(4)]
    bodies = [message.body for message in replayed if message is not None]
    assert bodies == ([b"uuid", b"footer", b"map"] if action == "replay" else [])


async def test_a_whole_queue_of_letters_that_cannot_be_converted_is_discarded(
    vhost_url: str,
) -> None:
    await declare(vhost_url)
    async with open_sender(vhost_url, f"/queues/{_DEAD}") as sender:
        for number in range(300):
            await sender.send(str(number).encode(), POISONS["uuid"])

    async def record(*_: object) -> None:
        return

    async with open_letters(vhost_url) as letters:
        move = Move("discard", lambda _: True, record)
        assert await move_letters(letters, _DEAD, move) == Moved(moved=300)
    assert await _bodies(vhost_url) == []


async def test_the_brokers_reason_is_the_code_of_a_letter_that_cannot_be_converted(
    vhost_url: str,
) -> None:
    await declare(vhost_url)
    async with _connected(vhost_url) as (_, channel):
        await channel.declare_queue(
            "q",
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-delivery-limit": 1,
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": _DEAD,
            },
        )
    async with open_sender(vhost_url, "/queues/q") as sender:
        await sender.send(b"body", POISONS["uuid"])
    for _ in range(2):
        async with _connected(vhost_url) as (_, channel):
            with pytest.raises(AMQPConnectionError):
                await (await channel.get_queue("q", ensure=False)).get()
    async with _connected(vhost_url) as (_, channel):
        await _until_ready(channel, _DEAD, 1)
    async with open_letters(vhost_url) as letters:
        found, _ = await read_letters(letters, _DEAD, lambda message, _: code_of(message.headers))
    assert found == ["delivery_limit"]


async def test_without_amqp_1_0_that_queue_alone_cannot_be_read_and_keeps_its_letters(
    vhost_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = await _fill_around_poisons(vhost_url)
    await _fill(vhost_url, _OTHER, count=2)
    with monkeypatch.context() as patched:

        def refuse(*_: object) -> None:
            raise LinkError

        patched.setattr(queue_module, "open_link", refuse)
        async with open_letters(vhost_url) as letters:
            with pytest.raises(UnreadableQueueError, match=f"the 25 letters of {_DEAD}") as failed:
                await read_letters(letters, _DEAD, lambda message, _: message.body)
            assert failed.value.depth == len(bodies)
            assert await read_letters(letters, _OTHER, lambda *_: None) == ([], 2)
    assert await _bodies(vhost_url) == bodies
