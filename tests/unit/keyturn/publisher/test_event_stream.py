"""Where a reader of the stream begins, against a broker that places consumers as RabbitMQ does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.publisher import event_stream
from keyturn.publisher.event_stream import StreamRecord, Verifier
from tools.generate import pretty
from tools.generate.examples import events

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from keyturn.publisher.connection import BrokerConnection


_NOW = datetime(2026, 11, 24, 10, tzinfo=UTC)
_EARLIER = _NOW - timedelta(seconds=30)
_LINK = cast("BrokerConnection", None)


class _Broker:
    """A stream. A consumer that asks for a moment after the last event is placed behind it.

    Attributes:
        attaching: What happens, by the number of the attachment, between the choice of a
            consumer's place and its first delivery.
    """

    def __init__(self) -> None:
        self.attaching: dict[int, Callable[[], None]] = {}
        self.attached: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.starts: list[object] = []
        self._log: list[tuple[datetime, Any]] = []
        self._consumers: list[tuple[int, asyncio.Queue[Any]]] = []
        self._shared: list[tuple[int, asyncio.Queue[Any]]] = []

    def write(self, at: datetime = _NOW) -> None:
        async def ack() -> None: ...

        offset = len(self._log)
        record = event_stream.StreamRecord(offset, b"%d" % offset, "")
        self._log.append((at, event_stream._Delivery(record, ack)))
        for place, queue in self._consumers:
            if offset >= place:
                queue.put_nowait(self._log[-1][1])

    def lose(self) -> None:
        for _, queue in self._consumers:
            queue.put_nowait(event_stream._Loss.CONNECTION)

    def write_undecodable(self, at: datetime = _NOW) -> None:
        """What breaks the connection of the consumer that it is delivered to."""
        self._log.append((at, event_stream._Loss.UNDECODABLE))

    def break_shared_connection(self) -> None:
        for _, queue in self._shared:
            queue.put_nowait(event_stream._Loss.UNDECODABLE)

    def make_anew(self) -> None:
        self.lose()
        self._log.clear()

    @asynccontextmanager
    async def consumer(
        self, _: object, __: str, start: Any, *, prefetch: int, isolated: bool
    ) -> AsyncIterator[asyncio.Queue[Any]]:
        assert prefetch == 1 or not isolated
        self.starts.append(start)
        happens = self.attaching.get(len(self.starts))
        found = self._place(start)
        if happens is not None:
            happens()
        place = len(self._log) if found is None else found
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for _, message in self._log[place:]:
            queue.put_nowait(message)
        self._consumers.append((place, queue))
        if not isolated:
            self._shared.append((place, queue))
        self.attached[len(self.starts)].set()
        try:
            yield queue
        finally:
            self._consumers.remove((place, queue))
            if not isolated:
                self._shared.remove((place, queue))

    def _place(self, start: Any) -> int | None:
        if start == "first":
            return 0
        if isinstance(start, int):
            return start
        return next((n for n, (at, _) in enumerate(self._log) if at >= start), None)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> _Broker:
    made = _Broker()
    monkeypatch.setattr(event_stream, "_consumer", made.consumer)
    monkeypatch.setattr(event_stream, "_KNOWN_AGAIN_S", 0.01)
    monkeypatch.setattr(event_stream, "_PAUSES_S", (0.0,))
    return made


async def _read(count: int, start: Any = _EARLIER) -> list[int]:
    offsets: list[int] = []
    async with (
        asyncio.timeout(5),
        aclosing(event_stream.follow(_LINK, start, "keyturn.events")) as told,
    ):
        async for each in told:
            offsets.append(each.offset)
            if len(offsets) == count:
                break
    return offsets


@pytest.mark.parametrize("attachment", [1, 2])
async def test_an_event_written_while_a_reader_attaches_is_not_missed(
    broker: _Broker, attachment: int
) -> None:
    broker.write(_EARLIER - timedelta(hours=1))
    broker.attaching[attachment] = broker.write
    assert await _read(1) == [1]


async def test_events_written_in_every_attachment_all_come_in_order(broker: _Broker) -> None:
    broker.attaching = dict.fromkeys(range(1, 5), broker.write)
    assert await _read(4) == [0, 1, 2, 3]


async def test_what_stands_since_then_is_read_from_its_first(broker: _Broker) -> None:
    for minutes in (-10, -1, 0, 0):
        broker.write(_NOW + timedelta(minutes=minutes))
    assert await _read(2) == [2, 3]


async def test_a_clock_ahead_of_the_brokers_loses_nothing_that_comes(broker: _Broker) -> None:
    broker.write()
    reading = asyncio.create_task(_read(2, _NOW + timedelta(hours=1)))
    await broker.attached[2].wait()
    broker.write()
    broker.write()
    assert await reading == [1, 2]


async def test_a_connection_lost_while_nothing_is_told_is_waited_out(broker: _Broker) -> None:
    reading = asyncio.create_task(_read(1))
    await broker.attached[2].wait()
    broker.lose()
    await broker.attached[4].wait()
    broker.write()
    assert await reading == [0]


async def test_a_stream_made_anew_is_read_from_where_its_reader_began(broker: _Broker) -> None:
    """Its offsets begin at 0 again: what was known of the old one says nothing."""
    for _ in range(3):
        broker.write(_NOW - timedelta(hours=1))
    broker.write()
    reading = asyncio.create_task(_read(2))
    await broker.attached[4].wait()
    broker.make_anew()
    broker.write()
    assert await reading == [3, 0]


async def test_an_offset_is_gone_to_at_once(broker: _Broker) -> None:
    for _ in range(3):
        broker.write()
    assert await _read(2, 1) == [1, 2]
    assert broker.starts == [1]


async def test_a_message_that_cannot_be_decoded_is_skipped(broker: _Broker) -> None:
    broker.write()
    broker.write_undecodable()
    broker.write_undecodable()
    broker.write()
    broker.write()
    assert await _read(3, 0) == [0, 3, 4]


async def test_a_first_message_that_cannot_be_decoded_is_skipped(broker: _Broker) -> None:
    broker.write_undecodable()
    broker.write()
    assert await _read(1, "first") == [1]


async def test_where_a_moment_begins_with_an_undecodable_message_reading_begins_earlier(
    broker: _Broker,
) -> None:
    """Its offset is unknown, so that only an earlier event leads to what follows it."""
    broker.write(_NOW - timedelta(days=2))
    broker.write(_NOW - timedelta(minutes=2))
    broker.write_undecodable(_NOW)
    broker.write(_NOW)
    assert await _read(2) == [1, 3]


async def test_a_moment_before_which_nothing_can_be_decoded_leads_to_the_first_event(
    broker: _Broker,
) -> None:
    broker.write_undecodable(_NOW)
    broker.write(_NOW)
    assert await _read(1) == [1]


async def test_a_reader_skips_nothing_when_another_reader_breaks_the_connection(
    broker: _Broker,
) -> None:
    """It reads on by a connection of its own, until it has read one message."""
    broker.write()
    reading = asyncio.create_task(_read(3, 0))
    await broker.attached[1].wait()
    broker.break_shared_connection()
    await broker.attached[2].wait()
    broker.break_shared_connection()
    broker.write()
    broker.write()
    assert await reading == [0, 1, 2]


_OLD, _NEW, _FORGED = (SigningKey.from_seed(seed * 32) for seed in (b"o", b"n", b"f"))
_BODY = pretty(next(iter(events()["upload.stored"].values()))).encode()


def _public(*keys: SigningKey) -> list[VerifyKey]:
    return [VerifyKey.from_bytes(key.public_bytes) for key in keys]


def _told(key: SigningKey, key_id: str) -> StreamRecord:
    return StreamRecord(0, _BODY, key.sign_event("test", _BODY), key_id)


@pytest.mark.parametrize("named", [_OLD.id, _NEW.id, _FORGED.id, "", "no id"])
@pytest.mark.parametrize("key", [_OLD, _NEW], ids=["old", "new"])
def test_any_listed_key_may_have_signed_whatever_the_header_names(
    key: SigningKey, named: str
) -> None:
    """The header is not signed: it decides the order of the tries, and nothing else."""
    verifier = Verifier("test", _public(_OLD, _NEW))
    assert verifier.event(_told(key, named)) is not None
    assert verifier.refused == 0
    for believed_nothing in (
        verifier.event(_told(_FORGED, named)),
        Verifier("test", _public(_FORGED)).event(_told(key, named)),
        Verifier("elsewhere", _public(_OLD, _NEW)).event(_told(key, named)),
    ):
        assert believed_nothing is None
    assert verifier.refused == 1


def test_the_key_that_is_named_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    verify: Callable[..., None] = VerifyKey.verify_event

    def noted(key: VerifyKey, *arguments: object) -> None:
        tried.append(key.id)
        verify(key, *arguments)

    monkeypatch.setattr(VerifyKey, "verify_event", noted)
    verifier = Verifier("test", _public(_OLD, _NEW))
    assert verifier.event(_told(_NEW, _NEW.id)) is not None
    assert verifier.event(_told(_NEW, "")) is not None
    assert tried == [_NEW.id, _OLD.id, _NEW.id]
