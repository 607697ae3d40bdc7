"""Settled deliveries are acknowledged with few frames and soon, in whatever order (SPEC 6.2).

A run of the model is a list of steps against the broker's channels. Each broken variant has a run
that rejects it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyturn_workers.pipeline.amqp import acks
from keyturn_workers.pipeline.amqp.acks import Acks
from tests.unit.keyturn_workers.pipeline.amqp.connections import BrokerChannel, ClockedLoop

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.unit.keyturn_workers.pipeline.amqp.connections import Delivered

HOLD_S = 0.01
Step = tuple[str, int]


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


def test_what_is_given_back_together_is_given_back_once_each(
    clocked: ClockedLoop, channel: BrokerChannel
) -> None:
    acks, deliveries = Acks(64), [channel.deliver() for _ in range(3)]
    _settle(clocked, acks, deliveries, back="123")
    assert channel.frames == ["nack 1", "nack 2", "nack 3"]


def test_what_follows_one_that_was_given_back_waits_for_nothing(
    clocked: ClockedLoop, channel: BrokerChannel
) -> None:
    acks, deliveries = Acks(64), [channel.deliver() for _ in range(3)]
    _settle(clocked, acks, deliveries[:1], back="1")
    _settle(clocked, acks, deliveries[2:])
    assert channel.frames == ["nack 1"]
    _settle(clocked, acks, deliveries[1:2])
    assert channel.frames == ["nack 1", "ack ..3"]


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


class _Run:
    """Deliveries to one consumer, and what must be true after each step."""

    def __init__(self, prefetch: int) -> None:
        self.clocked = ClockedLoop()
        self.prefetch = prefetch
        self.acks = Acks(prefetch, hold_s=HOLD_S)
        self.channels = [BrokerChannel()]
        self.served: list[Delivered] = []
        self.settled: list[Delivered] = []
        self.flushes: list[asyncio.Task[None]] = []

    @property
    def channel(self) -> BrokerChannel:
        return self.channels[-1]

    def play(self, steps: list[Step]) -> None:
        try:
            for name, number in steps:
                getattr(self, f"_{name}")(number)
                self.clocked.run()
                self.check()
            self.channel.unblock()
            self._flush(0)
            self.clocked.run()
            self.check()
            assert all(flush.done() for flush in self.flushes), "a flush never returned"
            served = {one.delivery_tag for one in self.served if one.origin is self.channel}
            dropped = self.channel.unsettled - served
            assert not dropped & {one.delivery_tag for one in self._settled_here()}, "not said"
        finally:
            self.clocked.close()

    def _deliver(self, number: int) -> None:
        for _ in range(1 + number % 3):
            if len(self.channel.unsettled) < self.prefetch:
                self.served.append(self.channel.deliver())

    def _done(self, number: int) -> None:
        if self.served:
            delivery = self.served.pop(number % len(self.served))
            delivery.done_at = self.clocked.now
            self.settled.append(delivery)
            self.clocked.loop.call_soon(self.acks.done, delivery.message)

    def _give_back(self, number: int) -> None:
        if self.served:
            delivery = self.served.pop(number % len(self.served))
            delivery.was_given_back = True
            self.settled.append(delivery)
            self.clocked.loop.call_soon(self.acks.give_back, delivery.message)

    def _together(self, number: int) -> None:
        """Several end in one turn of the loop, as one batch of events lets them."""
        for _ in range(2 + number % 3):
            self._done(number)

    def _cancel(self, number: int) -> None:
        """A handler ends without a word: the broker redelivers once the channel is closed."""
        if self.served:
            self.served.pop(number % len(self.served))

    def _pass(self, number: int) -> None:
        self.clocked.pass_time((1 + number % 12) / 1000)

    def _block(self, _: int) -> None:
        self.channel.is_blocked = True

    def _unblock(self, _: int) -> None:
        self.channel.unblock()

    def _reopen(self, _: int) -> None:
        """Handlers of the lost channel's deliveries go on."""
        self.channel.close()
        self.channels.append(BrokerChannel())

    def _flush(self, _: int) -> None:
        self.flushes.append(self.clocked.loop.create_task(self.acks.flush()))

    def _settled_here(self) -> list[Delivered]:
        return [one for one in self.settled if one.origin is self.channel]

    def check(self) -> None:
        for channel in self.channels:
            assert not channel.refused, f"the broker closed a channel on {channel.refused}"
            settled = [one for one in self.settled if one.origin is channel]
            done = {one.delivery_tag for one in settled if one.done_at is not None}
            back = {one.delivery_tag for one in settled if one.was_given_back}
            assert channel.acknowledged <= done, "acknowledged while it was being served"
            assert channel.returned <= back, "given back, and done"
        if self.channel.is_blocked:
            return
        late = [
            one
            for one in self._settled_here()
            if one.delivery_tag in self.channel.unsettled
            and (one.done_at is None or one.done_at + HOLD_S <= self.clocked.now)
        ]
        assert not late, "not said in time"
        current: Any = self.acks._current
        if current is not None and current.channel is self.channel:
            assert 2 * len(current._ready) < self.prefetch, "settled, and not said"
            gone = current._gone
            assert len(gone) <= self.prefetch + 1, "remembers too much"
            assert len(gone._begins) == len(gone), "remembers what it has forgotten"


NAMES = ("deliver", "done", "give_back", "together", "cancel", "pass", "block", "unblock", "flush")


WEIGHTED = (*("deliver", "done", "together", "pass") * 2, *NAMES, "reopen")


STEPS = st.lists(st.tuples(st.sampled_from(WEIGHTED), st.integers(0, 60)), max_size=60)


@settings(max_examples=150, deadline=None)
@given(prefetch=st.sampled_from([1, 2, 3, 8, 64]), steps=STEPS)
def test_acknowledgments_are_right_and_soon(prefetch: int, steps: list[Step]) -> None:
    _Run(prefetch).play(steps)


class _CoversWhatIsServed(acks.ChannelAcks):
    def _prefix(self) -> list[int]:
        return sorted(self._ready)


class _NamesWhatIsGone(acks.ChannelAcks):
    def _prefix(self) -> list[int]:
        found = super()._prefix()
        return found and [*found, self._gone.beyond(found[-1] + 1) - 1]

    async def _write_next(self) -> bool:
        for tag in self._prefix():
            self._ready.setdefault(tag, 0.0)
        return await super()._write_next()


class _WritesTwoFramesAtOnce(acks.ChannelAcks):
    """And notes each before it has reached the socket."""

    _sending: asyncio.Task[None] | None = None

    async def _write_next(self) -> bool:
        if self._back:
            nack: Any = self.channel.basic_nack(self._back[0], requeue=True)
            self._sending = asyncio.get_running_loop().create_task(nack)
            self._sending.add_done_callback(lambda task: task.cancelled() or task.exception())
            await asyncio.sleep(0)
            self._through = self._gone.add(self._back.popleft(), self._through)
            return True
        return await super()._write_next()


class _WaitsForEver(acks.ChannelAcks):
    def _begin(self) -> asyncio.Task[None]:
        self._end_timer()
        return super()._begin() if self._prefix() or self._back else _nothing()


def _nothing() -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(asyncio.sleep(0))


class _GivesBackTwice(acks.ChannelAcks):
    def give_back(self, tag: int) -> None:
        self.done(tag)
        super().give_back(tag)


class _MergesNothing(acks._Intervals):
    def add(self, tag: int, through: int) -> int:
        self._ends[tag], self._begins[tag + 1] = tag + 1, tag
        return self.drop(through)


def _ends(*numbers: int) -> list[Step]:
    return [("done", number) for number in numbers]


@pytest.mark.parametrize(
    ("broken", "steps", "problem"),
    [
        pytest.param(
            _CoversWhatIsServed,
            [("deliver", 2), ("deliver", 0), ("together", 7)],
            "acknowledged while it was being served",
            id="up to a delivery behind one that is served",
        ),
        pytest.param(
            _NamesWhatIsGone,
            [("deliver", 2), *_ends(1), ("pass", 11), *_ends(0)],
            "the broker closed a channel on ack ..2",
            id="names a tag that was said singly",
        ),
        pytest.param(
            _WritesTwoFramesAtOnce,
            [("deliver", 2), ("block", 0), ("give_back", 0), ("together", 0), ("unblock", 0)],
            "the broker closed a channel on nack 1",
            id="notes what has not reached the socket",
        ),
        pytest.param(
            _WaitsForEver,
            [("deliver", 2), *_ends(1), ("pass", 11), ("pass", 11)],
            "not said in time",
            id="waits for a delivery that is slow",
        ),
        pytest.param(
            _GivesBackTwice,
            [("deliver", 2), ("give_back", 0), ("pass", 11)],
            "the broker closed a channel",
            id="settles one delivery twice",
        ),
    ],
)
def test_a_broken_variant_is_rejected(
    monkeypatch: pytest.MonkeyPatch, broken: type, steps: list[Step], problem: str
) -> None:
    _Run(8).play(steps)
    monkeypatch.setattr(acks, "ChannelAcks", broken)
    with pytest.raises(AssertionError, match=problem):
        _Run(8).play(steps)


def test_a_channel_that_is_taken_for_the_one_before_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps = [("deliver", 2), ("deliver", 0), *_ends(0, 0), ("reopen", 0)]
    steps += [("deliver", 2), ("deliver", 0), ("together", 4)]
    _Run(8).play(steps)

    class _FirstChannel(Acks):
        def _of(self, message: Any) -> Any:
            if self._current is None:
                return super()._of(message)
            self._current.channel = message.channel
            return self._current

    monkeypatch.setitem(globals(), "Acks", _FirstChannel)
    with pytest.raises(AssertionError, match="acknowledged while it was being served"):
        _Run(8).play(steps)


def test_intervals_that_are_not_merged_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stuck delivery, and many behind it."""
    steps = [("deliver", 0)]
    for _ in range(12):
        steps += [("deliver", 0), *_ends(1), ("pass", 11)]
    _Run(8).play(steps)
    monkeypatch.setattr(acks, "_Intervals", _MergesNothing)
    with pytest.raises(AssertionError, match="remembers too much"):
        _Run(8).play(steps)
