"""Where a reader of the stream begins, against a broker that places consumers as RabbitMQ does."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from aio_pika.exceptions import ChannelNotFoundEntity, ProbableAuthenticationError
from aiormq.exceptions import ChannelAccessRefused

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.errors import EventsUnavailableError
from keyturn.messages import encode_batch
from keyturn.publisher import event_stream
from keyturn.publisher.event_stream import StreamRecord, Verifier
from tools.generate import pretty
from tools.generate.examples import audit_records, events, worker_reports

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
        refused: By the number of the attachment, the error that it ends with.
        silent: The numbers of attachments that are delivered nothing.
        ack_errors: By the offset, the error that its next acknowledgment ends with.
    """

    def __init__(self) -> None:
        self.attaching: dict[int, Callable[[], None]] = {}
        self.refused: dict[int, Exception] = {}
        self.silent: set[int] = set()
        self.ack_errors: dict[int, Exception] = {}
        self.attached: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self.starts: list[object] = []
        self._log: list[tuple[datetime, Any]] = []
        self._consumers: list[tuple[int, asyncio.Queue[Any]]] = []
        self._shared: list[tuple[int, asyncio.Queue[Any]]] = []

    def write(self, at: datetime = _NOW) -> None:
        offset = len(self._log)

        async def ack() -> None:
            if (error := self.ack_errors.pop(offset, None)) is not None:
                raise error

        record = event_stream.StreamRecord(offset, b"%d" % offset, "")
        self._log.append((at, event_stream._Delivery(record, ack)))
        for place, queue in self._consumers:
            if offset >= place:
                queue.put_nowait(self._log[-1][1])

    def write_without_offset(self) -> None:
        """Its headers cannot be decoded, and are read as empty ones."""

        async def ack() -> None: ...

        record = event_stream.StreamRecord(event_stream._NO_OFFSET, b"junk", "")
        self._log.append((_NOW, event_stream._Delivery(record, ack)))

    def lose(self) -> None:
        for _, queue in self._consumers:
            queue.put_nowait(event_stream._InterruptedError())

    def write_undecodable(self, at: datetime = _NOW) -> None:
        """What breaks the connection of the consumer that it is delivered to."""
        self._log.append((at, event_stream._UndecodableError()))

    def break_shared_connection(self) -> None:
        for _, queue in self._shared:
            queue.put_nowait(event_stream._UndecodableError())

    async def attachment(self, number: int) -> None:
        await asyncio.wait_for(self.attached[number].wait(), timeout=5)

    def break_every_connection(self) -> None:
        for _, queue in self._consumers:
            queue.put_nowait(event_stream._UndecodableError())

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
        if (error := self.refused.get(len(self.starts))) is not None:
            raise error
        found = self._place(start)
        if happens is not None:
            happens()
        place = len(self._log) if found is None else found
        if len(self.starts) in self.silent:
            place = sys.maxsize
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
        if start == "last":  # the newest chunk: here, the last two messages
            return max(0, len(self._log) - 2)
        if isinstance(start, int):
            return start
        return next((n for n, (at, _) in enumerate(self._log) if at >= start), None)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> _Broker:
    made = _Broker()
    monkeypatch.setattr(event_stream, "_consumer", made.consumer)
    monkeypatch.setattr(event_stream, "_KNOWN_AGAIN_S", 0.01)
    monkeypatch.setattr(event_stream, "_PAUSES_S", (0.0,))
    monkeypatch.setattr(event_stream, "_SKIP_PAUSES_S", (0.0,))
    return made


async def _read(count: int, start: Any = _EARLIER) -> list[int]:
    offsets: list[int] = []
    async with (
        asyncio.timeout(5),
        aclosing(event_stream.follow(_LINK, start, "keyturn.events")) as records,
    ):
        async for each in records:
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


async def test_what_exists_since_then_is_read_from_its_first(broker: _Broker) -> None:
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


async def test_a_connection_lost_while_nothing_is_published_is_waited_out(broker: _Broker) -> None:
    reading = asyncio.create_task(_read(1))
    await broker.attached[2].wait()
    broker.lose()
    await broker.attached[4].wait()
    broker.write()
    assert await reading == [0]


async def test_a_later_attempt_that_fails_is_reported_until_one_succeeds(broker: _Broker) -> None:
    broker.write()
    broker.refused = {
        3: ChannelAccessRefused("canary"),
        4: ProbableAuthenticationError("canary"),
    }
    noted: list[str | None] = []
    following = event_stream.follow(_LINK, 0, "keyturn.events", note_problem=noted.append)
    async with asyncio.timeout(5), aclosing(following) as records:
        assert (await anext(records)).offset == 0
        reading = asyncio.ensure_future(anext(records))
        broker.lose()
        await broker.attachment(2)
        broker.lose()
        await broker.attachment(5)
        broker.write()
        assert (await reading).offset == 1
    assert noted == [
        None,
        None,
        (
            "the broker's user may not read keyturn.events: "
            r"it needs read permission ^keyturn\.events$"
        ),
        "the broker cannot be reached (it refuses the user name or password in KEYTURN_AMQP_URL)",
        None,
    ]


async def test_a_stream_that_is_declared_again_is_read_from_where_its_reader_began(
    broker: _Broker,
) -> None:
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


async def test_messages_without_an_offset_are_read_in_their_place(broker: _Broker) -> None:
    """A few hundred of them must not stop a reader that looks at each by itself."""
    for _ in range(300):
        broker.write_without_offset()
    broker.write()
    assert await _read(301, 0) == [*range(301)]
    assert broker.starts == [0]
    assert await event_stream.last_offset(_LINK, "keyturn.events", newest_s=0.01) == 300
    broker.write_without_offset()
    assert await event_stream.last_offset(_LINK, "keyturn.events", newest_s=0.01) == 301


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
    """It reads on by a separate connection, until it has read one message."""
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
    assert verifier.events(_told(key, named))
    assert verifier.refused == 0
    assert verifier.events(_told(_FORGED, named)) == ()
    assert Verifier("test", _public(_FORGED)).events(_told(key, named)) == ()
    assert Verifier("elsewhere", _public(_OLD, _NEW)).events(_told(key, named)) == ()
    assert verifier.refused == 1


_KINDS: dict[str, dict[str, Any]] = {
    "event": next(iter(events()["upload.stored"].values())),
    "worker_report": next(iter(worker_reports()["worker.reported"].values())),
    "audit_record": next(iter(audit_records()["audit.recorded"].values())),
}


def _read_as(verifier: Verifier, record: StreamRecord) -> dict[str, Any]:
    return {
        "event": next(iter(verifier.events(record)), None),
        "worker_report": verifier.worker_report(record),
    }


@pytest.mark.parametrize("kind", _KINDS)
def test_each_kind_of_message_is_read_as_itself_alone_and_only_if_it_is_signed(kind: str) -> None:
    body = pretty(_KINDS[kind]).encode()
    verifier = Verifier("test", _public(_OLD, _NEW))
    signed = StreamRecord(0, body, _NEW.sign_event("test", body), _NEW.id)
    read = _read_as(verifier, signed)
    types = {name: message.type for name, message in read.items() if message is not None}
    assert types == ({kind: _KINDS[kind]["type"]} if kind in read else {})
    assert verifier.refused == 0
    forged = StreamRecord(0, body, _FORGED.sign_event("test", body), _NEW.id)
    assert not any(_read_as(verifier, forged).values())
    assert verifier.refused == 2


_BATCH = encode_batch("upload.stored", [_BODY, _BODY.replace(b"upload.stored", b"later"), _BODY])


@pytest.mark.parametrize("body", [_BATCH, b" " * 100 + _BATCH], ids=["plain", "no hint"])
def test_a_batch_is_read_by_the_signature_of_a_batch_alone(body: bytes) -> None:
    """Neither form passes for the other, however the bytes look."""
    verifier = Verifier("test", _public(_OLD, _NEW))
    batch = StreamRecord(0, body, _OLD.sign_events("test", body))
    assert [event.type for event in verifier.events(batch)] == ["upload.stored"] * 2
    assert verifier.refused == 0
    relabeled = StreamRecord(0, body, _OLD.sign_event("test", body))
    assert verifier.events(relabeled) == ()
    assert verifier.refused == 0  # signed, and no event that this version knows
    single = StreamRecord(0, _BODY, _OLD.sign_events("test", _BODY))
    assert verifier.events(single) == ()
    forged = StreamRecord(0, body, _FORGED.sign_events("test", body))
    assert verifier.events(forged) == ()
    assert verifier.refused == 1


def test_no_event_can_be_taken_out_of_its_batch() -> None:
    verifier = Verifier("test", _public(_OLD))
    signature = _OLD.sign_events("test", _BATCH)
    for body in (_BODY, encode_batch("upload.stored", [_BODY])):
        assert verifier.events(StreamRecord(0, body, signature)) == ()
    assert verifier.refused == 2


def test_the_key_that_is_named_is_tried_first(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    verify: Callable[..., None] = VerifyKey.verify_event

    def noted(key: VerifyKey, *arguments: object) -> None:
        tried.append(key.id)
        verify(key, *arguments)

    monkeypatch.setattr(VerifyKey, "verify_event", noted)
    verifier = Verifier("test", _public(_OLD, _NEW))
    assert verifier.events(_told(_NEW, _NEW.id))
    assert verifier.events(_told(_NEW, ""))
    assert tried == [_NEW.id, _OLD.id, _NEW.id]


async def test_an_error_of_attaching_skips_nothing(broker: _Broker) -> None:
    """A broker that closes the connection during the handshake looks like one, for example."""
    broker.write()
    reading = asyncio.create_task(_read(2, 0))
    await broker.attachment(1)
    broker.refused = dict.fromkeys(range(2, 7), event_stream._UndecodableError())
    broker.break_shared_connection()
    await broker.attachment(7)
    broker.write()
    assert await reading == [0, 1]


async def test_an_error_of_attaching_does_not_lead_to_an_earlier_moment(broker: _Broker) -> None:
    broker.write(_NOW - timedelta(days=2))
    reading = asyncio.create_task(_read(1))
    await broker.attachment(2)
    broker.refused = dict.fromkeys(range(3, 8), event_stream._UndecodableError())
    broker.break_shared_connection()
    await broker.attachment(9)
    broker.write()
    assert await reading == [1]


async def test_a_broker_that_cannot_be_decoded_is_an_error_at_the_first_attempt(
    broker: _Broker,
) -> None:
    for start in (0, _EARLIER):
        broker.starts.clear()
        broker.refused = dict.fromkeys(range(1, 3), event_stream._UndecodableError())
        with pytest.raises(EventsUnavailableError, match="frames cannot be decoded"):
            await _read(1, start)


async def test_an_error_of_acknowledging_skips_nothing(broker: _Broker) -> None:
    """What follows the record may break the connection before its acknowledgment is sent."""
    broker.write()
    reading = asyncio.create_task(_read(3, 0))
    await broker.attachment(1)
    broker.ack_errors = {1: ValueError(), 2: ValueError()}
    broker.break_shared_connection()
    await broker.attachment(2)
    broker.write()
    broker.write()
    assert await reading == [0, 1, 2]


async def test_a_message_is_skipped_only_if_it_breaks_two_connections_in_a_row(
    broker: _Broker,
) -> None:
    broker.write()
    broker.silent = set(range(1, 5))
    reading = asyncio.create_task(_read(2, 0))
    for attachment in (1, 2):
        await broker.attachment(attachment)
        broker.break_every_connection()
    await broker.attachment(3)
    broker.lose()
    await broker.attachment(4)
    broker.break_every_connection()
    await broker.attachment(5)
    broker.write()
    assert await reading == [0, 1]


async def test_the_pause_after_skipped_messages_grows_until_one_is_read(
    broker: _Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many of them in a row must not make readers connect as fast as they can."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(delay_s: float) -> None:
        pauses.append(delay_s)
        await sleep(0)

    for undecodable in (5, 1):
        broker.write()
        for _ in range(undecodable):
            broker.write_undecodable()
    broker.write()
    monkeypatch.setattr(event_stream, "_SKIP_PAUSES_S", (1, 2, 3))
    monkeypatch.setattr(asyncio, "sleep", pause)
    assert await _read(3, 0) == [0, 6, 8]
    assert [each for each in pauses if each] == [1, 2, 3, 3, 3, 1]


def test_three_messages_in_a_row_are_passed_within_seconds() -> None:
    assert sum(event_stream._SKIP_PAUSES_S[:3]) < 2
    assert max(event_stream._SKIP_PAUSES_S) <= 5


async def test_a_broker_that_is_slow_once_is_not_taken_for_another_stream(broker: _Broker) -> None:
    """Otherwise the events since the beginning would come again."""
    broker.write()
    broker.silent = {2}
    reading = asyncio.create_task(_read(2, 0))
    await broker.attachment(1)
    broker.lose()
    await broker.attachment(3)
    broker.write()
    assert await reading == [0, 1]


async def test_another_stream_that_is_empty_is_noticed(broker: _Broker) -> None:
    broker.write()
    reading = asyncio.create_task(_read(2, 0))
    await broker.attachment(1)
    broker.make_anew()
    await broker.attachment(4)
    broker.write()
    assert await reading == [0, 0]


class _Connection:
    """A connection whose channels open, and which fails when it is closed."""

    def __init__(self) -> None:
        self.channels: list[_Channel] = []

    def separate(self) -> _Connection:
        return self

    async def channel(self, prefetch: int) -> _Channel:
        assert prefetch == 1
        self.channels.append(_Channel())
        return self.channels[-1]

    async def close(self) -> None:
        raise OverflowError


class _Channel:
    """Both layers of a channel; the decoder's error ends it when it is closed."""

    def __init__(self) -> None:
        self.close_callbacks: set[Callable[[object, BaseException | None], None]] = set()
        self.on_consumer_cancel_callbacks: set[object] = set()

    async def get_underlay_channel(self) -> _Channel:
        return self

    async def get_queue(self, stream: str, *, ensure: bool) -> None: ...

    async def basic_consume(self, stream: str, receive: object, *, arguments: object) -> None: ...

    async def close(self) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "")


async def test_errors_of_closing_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    connection = _Connection()
    caplog.set_level("DEBUG", event_stream.__name__)
    async with event_stream._consumer(
        cast("BrokerConnection", connection), "keyturn.events", 7, prefetch=1, isolated=True
    ) as messages:
        (lost,) = connection.channels[0].close_callbacks
        lost(None, OverflowError("a value of the message"))
        assert isinstance(await messages.get(), event_stream._UndecodableError)
    assert [each.getMessage() for each in caplog.records] == [
        "reading keyturn.events from 7 on, 1 messages at a time",
        "a consumer was lost: _UndecodableError (OverflowError)",
    ]


async def test_the_newest_offset_is_that_of_the_last_message(broker: _Broker) -> None:
    assert await event_stream.last_offset(_LINK, "keyturn.audit", silence_s=0.01) is None
    for last in range(3):
        broker.write()
        assert await event_stream.last_offset(_LINK, "keyturn.audit", newest_s=0.01) == last


async def test_the_newest_messages_end_where_none_follows(
    broker: _Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker or a process without CPU may take longer for all of them than for a pause."""
    monkeypatch.setattr(event_stream, "_NEWEST_S", 60)
    broker.write()
    looking = asyncio.create_task(event_stream.last_offset(_LINK, "keyturn.marks", newest_s=1))
    for _ in range(2):
        await asyncio.sleep(0.6)
        broker.write()
    assert await looking == 2


async def test_a_stream_that_never_pauses_has_a_newest_offset(
    broker: _Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "_NEWEST_S", 0.3)
    broker.write()
    looking = asyncio.create_task(event_stream.last_offset(_LINK, "keyturn.audit", newest_s=60))
    async with asyncio.timeout(20):
        while not looking.done():
            broker.write()
            await asyncio.sleep(0.01)
    assert await looking is not None


async def test_a_newest_message_that_cannot_be_decoded_has_no_offset(broker: _Broker) -> None:
    broker.write()
    broker.write_undecodable()
    assert await event_stream.last_offset(_LINK, "keyturn.audit", newest_s=0.01) == 0
    broker.write_undecodable()
    assert await event_stream.last_offset(_LINK, "keyturn.audit", newest_s=0.01) is None


async def test_the_newest_offset_of_a_stream_that_cannot_be_read(broker: _Broker) -> None:
    broker.refused[1] = ChannelNotFoundEntity("no queue")
    with pytest.raises(EventsUnavailableError, match=r"declared keyturn\.audit; start one"):
        await event_stream.last_offset(_LINK, "keyturn.audit")
