"""Settled deliveries are acknowledged with few frames, and soon (SPEC 6.2)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from keyturn_workers.amqp.acks import Acks
from tests.unit.keyturn_workers.amqp.broker_channels import BrokerChannel, ClockedLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.keyturn_workers.amqp.broker_channels import Delivered


@pytest.fixture
def clocked() -> Iterator[ClockedLoop]:
    clocked = ClockedLoop()
    yield clocked
    clocked.close()


@pytest.fixture
def channel() -> BrokerChannel:
    return BrokerChannel()


def _settle(clocked: ClockedLoop, acks: Acks, done: list[Delivered], back: str = "") -> None:
    def settle() -> None:
        for one in done:
            (acks.give_back if str(one.delivery_tag) in back else acks.done)(one.message)

    clocked.run(settle)


def test_what_ends_together_is_acknowledged_with_one_frame_at_once(
    clocked: ClockedLoop, channel: BrokerChannel
) -> None:
    acks, deliveries = Acks(64), [channel.deliver() for _ in range(5)]
    _settle(clocked, acks, [deliveries[at] for at in (2, 0, 3, 1)])
    assert channel.frames == ["ack ..4"]
    _settle(clocked, acks, deliveries[4:])
    assert channel.frames == ["ack ..4", "ack 5"]


def test_what_is_behind_a_slow_delivery_is_acknowledged_after_the_hold(
    clocked: ClockedLoop, channel: BrokerChannel
) -> None:
    acks, deliveries = Acks(64, hold_s=0.01), [channel.deliver() for _ in range(4)]
    _settle(clocked, acks, deliveries[1:3])
    clocked.pass_time(0.009)
    assert channel.frames == []
    clocked.pass_time(0.002)
    assert channel.frames == ["ack 2", "ack 3"]
    _settle(clocked, acks, [deliveries[3], deliveries[0]])
    assert channel.frames == ["ack 2", "ack 3", "ack ..4"]
    assert channel.unsettled == set()


@pytest.mark.parametrize("prefetch", [1, 2])
def test_a_small_prefetch_never_waits(
    clocked: ClockedLoop, channel: BrokerChannel, prefetch: int
) -> None:
    acks, deliveries = Acks(prefetch), [channel.deliver() for _ in range(prefetch)]
    _settle(clocked, acks, deliveries[-1:])
    assert channel.frames == [f"ack {prefetch}"]


def test_half_a_prefetch_never_waits(clocked: ClockedLoop, channel: BrokerChannel) -> None:
    """Else a slow delivery would keep the broker from sending more for as long as the hold."""
    acks, deliveries = Acks(8), [channel.deliver() for _ in range(8)]
    _settle(clocked, acks, deliveries[1:4])
    assert channel.frames == []
    _settle(clocked, acks, deliveries[4:5])
    assert channel.frames == ["ack 2"]


def test_a_delivery_that_is_given_back_is_covered_by_no_acknowledgment(
    clocked: ClockedLoop, channel: BrokerChannel
) -> None:
    acks, deliveries = Acks(64), [channel.deliver() for _ in range(3)]
    _settle(clocked, acks, deliveries, back="2")
    assert channel.frames == ["nack 2", "ack ..3"]
    assert (channel.returned, channel.acknowledged) == ({2}, {1, 3})


def test_the_tags_of_a_lost_channel_mean_nothing_on_the_next(clocked: ClockedLoop) -> None:
    lost, opened, acks = BrokerChannel(), BrokerChannel(), Acks(64)
    before = [lost.deliver() for _ in range(3)]
    after = [opened.deliver() for _ in range(3)]
    _settle(clocked, acks, before[1:2])
    lost.close()
    _settle(clocked, acks, [before[0], after[1], after[0], before[2]])
    assert (lost.frames, opened.frames) == ([], ["ack ..2"])


def test_a_flush_sends_what_waits_and_returns_once_it_is_sent(
    clocked: ClockedLoop, channel: BrokerChannel
) -> None:
    acks, deliveries = Acks(64), [channel.deliver() for _ in range(4)]
    channel.is_blocked = True
    _settle(clocked, acks, deliveries[1:3], back="3")
    flush = clocked.loop.create_task(acks.flush())
    clocked.run()
    assert not flush.done()
    clocked.run(channel.unblock)
    assert flush.done()
    assert channel.frames == ["nack 3", "ack 2"]
    clocked.run(lambda: asyncio.ensure_future(Acks(64).flush()))


def test_what_a_canceled_task_did_not_write_is_written_by_the_next(
    clocked: ClockedLoop, channel: BrokerChannel
) -> None:
    acks, deliveries = Acks(64), [channel.deliver() for _ in range(2)]

    def settle_and_cancel() -> None:
        acks.done(deliveries[0].message)
        for task in asyncio.all_tasks():
            task.cancel()

    clocked.run(settle_and_cancel)
    assert channel.frames == []
    _settle(clocked, acks, deliveries[1:])
    assert channel.frames == ["ack ..2"]


def test_a_flush_ends_with_the_channel(clocked: ClockedLoop, channel: BrokerChannel) -> None:
    acks, delivery = Acks(64), channel.deliver()
    channel.is_blocked = True
    _settle(clocked, acks, [delivery])
    flush = clocked.loop.create_task(acks.flush())
    clocked.run()
    clocked.run(channel.close)
    assert flush.done()
    assert channel.frames == []


def test_a_channel_on_which_acknowledging_fails_is_closed(
    clocked: ClockedLoop, channel: BrokerChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left open, it would keep its deliveries from everybody."""

    async def fail(*_: object, **__: object) -> None:
        raise ValueError

    monkeypatch.setattr(channel, "basic_ack", fail)
    _settle(clocked, Acks(64), [channel.deliver()])
    assert channel.is_closed
