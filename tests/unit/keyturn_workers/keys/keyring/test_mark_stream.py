"""The stream of marks is read to its end, and nothing unsigned on it counts (SPEC 5.5)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import orjson
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused
from structlog.testing import capture_logs

from keyturn.crypto import SigningKey, new_customer_secret
from keyturn.errors import EventsUnavailableError, MarksUnavailableError, NotDeliveredError
from keyturn.messages import KeyringMarked, encode_mark, parse_mark
from keyturn.publisher.event_stream import StreamRecord
from keyturn.topology import EVENT_KEY_HEADER, KEYRING_MARKED, MARKS_STREAM, SIGNATURE_HEADER
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.keyring_record import customer_key_to_json
from keyturn_workers.keys.keyring import mark_stream
from keyturn_workers.keys.keyring.mark_stream import MarkStream, following
from keyturn_workers.keys.keyring.marks import Finding, Mark
from tests.unit.keyturn_workers.factories import AT, keyring

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from aio_pika import Message

    from keyturn_workers.core.keyring import Keyring

CURRENT: Final = SigningKey.from_seed(bytes([1]) * 32)
EARLIER: Final = SigningKey.from_seed(bytes([2]) * 32)
STRANGER: Final = SigningKey.from_seed(bytes([3]) * 32)
LEASE_S: Final = 15.0


@dataclass
class Broker:
    """A broker with one stream in memory, and the clock of the process that reads it.

    Attributes:
        records: What is on the stream.
        now_s: The process's clock.
        is_away: Whether publishing and looking fail.
        delivers: How many records are delivered at most to the consumer that follows.
        shows_end: Whether a consumer at the end is shown anything.
        takes_s: How long that takes.
        before_append: Runs before a published message is on the stream.
    """

    records: list[StreamRecord] = field(default_factory=list)
    now_s: float = 1000.0
    is_away: bool = False
    delivers: int | None = None
    shows_end: bool = True
    takes_s: float = 0
    before_append: Callable[[], None] = lambda: None
    closed: int = 0
    looks: int = 0
    _generation: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def append(self, body: bytes, signature: str = "", key_id: str = "", skipped: int = 0) -> None:
        """Put a message on the stream, behind some that cannot be decoded."""
        last = self.records[-1].offset if self.records else -1
        offset = last + 1 + skipped
        self.records.append(StreamRecord(offset, body, signature, key_id, skipped=skipped))
        self.changed()

    def append_mark(
        self,
        serial: int,
        digest: bytes = bytes(32),
        *,
        project: str = "acme",
        key: SigningKey = CURRENT,
        deployment: str = "default",
        skipped: int = 0,
    ) -> bytes:
        """Put a signed mark on the stream; returns its body."""
        body = mark_body(serial, digest, project=project)
        self.append(body, key.sign_mark(deployment, body), key.id, skipped)
        return body

    def replace(self) -> None:
        """Delete the stream, and declare it again."""
        self.records = []
        self._generation += 1
        self.changed()

    def changed(self) -> None:
        """Wake the consumer that follows."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(
        self, connection: Any, start: int, stream: str, *, note_problem: Callable[[Any], None]
    ) -> AsyncGenerator[StreamRecord, None]:
        assert (connection.broker, start, stream) == (self, 0, MARKS_STREAM)
        read, generation = 0, self._generation
        note_problem(None)
        while True:
            if generation != self._generation:
                read, generation = 0, self._generation
            limit = len(self.records) if self.delivers is None else self.delivers
            if read < min(limit, len(self.records)):
                read += 1
                yield self.records[read - 1]
            else:
                await self._changed.wait()

    async def last_offset(
        self, connection: Any, stream: str, *, silence_s: float, newest_s: float
    ) -> int | None:
        assert (connection.broker, stream) == (self, MARKS_STREAM)
        assert newest_s <= silence_s < 3
        self.looks += 1
        self.changed()
        await asyncio.sleep(0)
        if self.is_away:
            raise EventsUnavailableError("the broker is away")
        shows_end = self.shows_end and self.takes_s <= silence_s
        return self.records[-1].offset if self.records and shows_end else None

    async def looked(self, times: int) -> None:
        """Wait until the process has looked at the end that often from now on."""
        until = self.looks + times
        async with asyncio.timeout(5):
            while self.looks < until:
                await self._changed.wait()

    def connection(self, address: str, *, publish_timeout_s: float) -> Connection:
        assert address == "amqp://"
        assert publish_timeout_s > 1
        return Connection(self)


@dataclass
class Connection:
    """Publishes to the stream, as `BrokerConnection` does."""

    broker: Broker

    def separate(self) -> Connection:
        return Connection(self.broker)

    async def publish(self, routing_key: str, message: Message) -> None:
        assert message.message_id
        assert routing_key == KEYRING_MARKED
        await asyncio.sleep(0)
        if self.broker.is_away:
            raise NotDeliveredError(message.message_id)
        self.broker.before_append()
        headers = message.headers
        self.broker.append(
            message.body, str(headers[SIGNATURE_HEADER]), str(headers[EVENT_KEY_HEADER])
        )

    async def close(self) -> None:
        self.broker.closed += 1


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    broker = Broker()
    monkeypatch.setattr(mark_stream, "follow", broker.follow)
    monkeypatch.setattr(mark_stream, "last_offset", broker.last_offset)
    monkeypatch.setattr(mark_stream, "BrokerConnection", broker.connection)
    monkeypatch.setattr(mark_stream, "boottime_s", lambda: broker.now_s)
    return broker


def stream_of(
    signing_key: SigningKey | None = CURRENT, *more: SigningKey, lease_s: float = LEASE_S
) -> MarkStream:
    keys = [key.verify_key() for key in (signing_key or CURRENT, *more)]
    return MarkStream("amqp://", "default", keys, lease_s=lease_s, signing_key=signing_key)


@asynccontextmanager
async def loaded(stream: MarkStream) -> AsyncIterator[MarkStream]:
    """The stream while it is followed, read to its end."""
    async with following(stream), asyncio.timeout(5):
        await stream.load()
        yield stream


def current(stream: MarkStream) -> bool:
    """Whether it is current now; mypy would keep an earlier answer of the property."""
    return stream.is_current


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def mark_body(serial: int, digest: bytes = bytes(32), *, project: str = "acme") -> bytes:
    return encode_mark(
        KeyringMarked(
            project=project,
            serial=serial,
            digest=digest.hex(),
            generation=1,
            kek_id="0" * 16,
            master_key="m1",
            at=AT,
        )
    )


def mark(serial: int, digest: bytes = bytes(32)) -> Mark:
    return Mark(serial, digest, 1)


async def test_all_marks_are_known_before_a_process_serves(broker: Broker) -> None:
    for serial in range(100):
        broker.append_mark(serial, project="acme" if serial % 2 else "other")
    stream = stream_of()
    assert not current(stream)
    with pytest.raises(MarksUnavailableError):
        stream.check_current("acme")
    async with loaded(stream):
        assert stream.table.find("acme") == mark(99)
        assert stream.table.find("other") == mark(98)
        assert current(stream)
        stream.check_current("acme")
        assert len(broker.records) == 100


async def test_a_stream_is_empty_only_if_a_first_message_is_read_back(broker: Broker) -> None:
    """A silence proves nothing: the broker may be slow, and the newest marks be missed."""
    async with loaded(stream_of()) as stream:
        (first,) = broker.records
        assert orjson.loads(first.body)["type"] == "marks.opened"
        assert current(stream)
        assert stream.table.received == 0
    async with loaded(stream_of()) as second:
        assert second.is_current
        assert len(broker.records) == 1


async def test_marks_that_no_silent_consumer_showed_are_known_all_the_same(broker: Broker) -> None:
    broker.append_mark(5)
    broker.shows_end = False
    stream = stream_of()

    def show() -> None:
        broker.shows_end = True

    broker.before_append = show
    async with loaded(stream):
        assert stream.table.find("acme") == mark(5)
        assert len(broker.records) == 2


async def test_a_start_waits_for_the_last_mark(broker: Broker) -> None:
    broker.append_mark(1)
    broker.append_mark(2)
    broker.delivers = 1
    stream = stream_of()
    async with following(stream):
        loading = asyncio.create_task(stream.load())
        await settle()
        assert stream.table.find("acme") == mark(1)
        assert not loading.done()
        broker.delivers = None
        broker.changed()
        async with asyncio.timeout(5):
            await loading
        assert stream.table.find("acme") == mark(2)


async def test_a_broker_that_does_not_deliver_fails_the_start(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = stream_of()
    monkeypatch.setattr(mark_stream, "_TIMEOUT_S", 0.01)
    broker.append_mark(1)
    broker.delivers = 0
    async with following(stream):
        with pytest.raises(EventsUnavailableError, match="does not deliver"):
            await stream.load()


@pytest.mark.parametrize("cause", [ChannelNotFoundEntity, ChannelAccessRefused])
@pytest.mark.parametrize("asks", [MarkStream._follow, MarkStream._keep_current])
async def test_a_stream_without_a_worker_is_asked_for_every_second_of_the_first_minute(
    broker: Broker,
    monkeypatch: pytest.MonkeyPatch,
    asks: Callable[[MarkStream], Awaitable[None]],
    cause: type[Exception],
) -> None:
    """The first worker, which declares it, may start a little later; no permission comes later."""
    began_s, paused = broker.now_s, list[tuple[float, float]]()

    async def refuse(*_: object, **__: object) -> AsyncGenerator[StreamRecord, None]:
        for record in broker.records:
            yield record
        raise EventsUnavailableError("unreadable") from cause()

    async def sleep(seconds: float) -> None:
        if seconds:
            paused.append((broker.now_s - began_s, seconds))
        broker.now_s += seconds
        if broker.now_s - began_s > 120:
            raise asyncio.CancelledError

    broker.is_away = True
    monkeypatch.setattr(mark_stream, "follow", refuse)
    monkeypatch.setattr("keyturn_workers.keys.keyring.mark_stream.asyncio.sleep", sleep)
    stream = stream_of(None)
    stream._is_refused = cause is ChannelAccessRefused
    with pytest.raises(asyncio.CancelledError):
        await asks(stream)
    early = [seconds for at_s, seconds in paused if at_s < 60]
    late = [seconds for at_s, seconds in paused if at_s >= 60]
    if cause is ChannelNotFoundEntity:
        assert max(early) <= 1
    else:
        assert len(early) < 20
    assert min(early) > 0.1
    assert early == sorted(early)
    assert set(late) == {5}


async def test_marks_that_became_known_are_asked_for_as_ever(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    paused = list[float]()

    async def sleep(seconds: float) -> None:
        if seconds:
            paused.append(seconds)
            broker.is_away = len(paused) < 3
        if len(paused) == 6:
            raise asyncio.CancelledError

    broker.is_away = True
    monkeypatch.setattr("keyturn_workers.keys.keyring.mark_stream.asyncio.sleep", sleep)
    stream = stream_of(None)
    with pytest.raises(asyncio.CancelledError):
        await stream._keep_current()
    assert current(stream)
    assert paused == [0.5, 0.5, 0.5, 5, 5, 5]


async def test_a_start_fails_while_the_broker_is_away(broker: Broker) -> None:
    broker.is_away = True
    stream = stream_of()
    async with following(stream):
        with pytest.raises(EventsUnavailableError, match="away"):
            await stream.load()
    broker.is_away = False
    async with loaded(stream_of()) as other:
        assert other.is_current


FORGED: Final[dict[str, tuple[SigningKey, Callable[[SigningKey, bytes], str]]]] = {
    "unsigned": (CURRENT, lambda _key, _body: ""),
    "no base64": (CURRENT, lambda _key, _body: "?"),
    "by a key that is not ours": (STRANGER, lambda key, body: key.sign_mark("default", body)),
    "of another deployment": (CURRENT, lambda key, body: key.sign_mark("other", body)),
    "an event's signature": (CURRENT, lambda key, body: key.sign_event("default", body)),
    "a request's signature": (CURRENT, lambda key, body: key.sign_request("default", "", body)),
    "of another mark": (CURRENT, lambda key, _body: key.sign_mark("default", mark_body(8))),
}


@pytest.mark.parametrize("name", FORGED)
async def test_only_a_signed_mark_counts(broker: Broker, name: str) -> None:
    """Anyone with write access to the exchange can put a message on the stream."""
    key, sign = FORGED[name]
    broker.append_mark(1)
    body = mark_body(9)
    broker.append(body, sign(key, body), CURRENT.id)
    async with loaded(stream_of()) as stream:
        assert stream.table.find("acme") == mark(1)
        assert current(stream)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"type": "marks.opened"}',
        b'{"type": "keyring.marked"}',
        mark_body(9).replace(b'"serial":9', b'"serial":-9'),
        mark_body(9).replace(b'"digest":"00', b'"digest":"zz'),
        mark_body(9).replace(b"keyring.marked", b"upload.stored"),
    ],
)
async def test_a_signed_message_that_is_no_mark_is_passed_over(broker: Broker, body: bytes) -> None:
    broker.append_mark(1)
    broker.append(body, CURRENT.sign_mark("default", body), CURRENT.id)
    broker.append_mark(2)
    async with loaded(stream_of()) as stream:
        assert stream.table.find("acme") == mark(2)


async def test_a_mark_of_a_later_version_counts(broker: Broker) -> None:
    body = mark_body(4)[:-1] + b',"since_1_2":true}'
    broker.append(body, CURRENT.sign_mark("default", body), CURRENT.id)
    async with loaded(stream_of()) as stream:
        assert stream.table.find("acme") == mark(4)


@pytest.mark.parametrize("named", [EARLIER.id, CURRENT.id, "", "no key"])
async def test_an_earlier_event_keys_marks_count_whatever_key_they_name(
    broker: Broker, named: str
) -> None:
    body = mark_body(4)
    broker.append(body, EARLIER.sign_mark("default", body), named)
    async with loaded(stream_of(CURRENT, EARLIER)) as stream:
        assert stream.table.find("acme") == mark(4)
        assert stream.signed_before == {"acme": EARLIER.id}
    async with loaded(stream_of(CURRENT)) as without:
        assert without.table.find("acme") is None


async def test_a_mark_that_is_published_again_is_signed_by_the_current_event_key(
    broker: Broker,
) -> None:
    """After that, no mark needs the earlier key."""
    broker.append_mark(1, key=EARLIER)
    broker.append_mark(4, key=EARLIER)
    broker.append_mark(2, key=CURRENT, project="third")
    async with loaded(stream_of(CURRENT, EARLIER)) as stream:
        assert stream.signed_before == {"acme": EARLIER.id}
        await stream.publish(replace(keyring(), serial=4), mark(4))
        assert stream.signed_before == {}
        assert stream.table.find("acme") == mark(4)
    async with loaded(stream_of(CURRENT)) as without:
        assert without.table.find("acme") == mark(4)


OUT_OF_BOUNDS: Final[tuple[dict[str, object], ...]] = (
    {"serial": 2**63 - 1},
    {"serial": 2**48},
    {"serial": -1},
    {"generation": 2**64},
    {"generation": 10**18 - 1},
    {"generation": 2**48},
    {"at": "1969-12-31T23:59:59.999999Z"},
    {"at": "0001-01-01T00:00:00Z"},
    {"master_key": "m" * 33},
    {"project": "acme\n"},
    {"kek_id": "0" * 17},
    {"digest": ["0" * 64]},
)


@pytest.mark.parametrize("change", OUT_OF_BOUNDS, ids=str)
async def test_a_signed_mark_that_no_worker_writes_is_skipped_and_counted(
    broker: Broker, change: dict[str, object]
) -> None:
    """It does not end the reading of marks, now or after a restart, and is never signed anew."""
    body = json.dumps({**json.loads(mark_body(3)), **change}).encode()
    broker.append_mark(1)
    async with loaded(stream_of(CURRENT, EARLIER)) as stream:
        broker.append(body, EARLIER.sign_mark("default", body), EARLIER.id)
        broker.append(body, STRANGER.sign_mark("default", body), EARLIER.id)
        broker.append_mark(2)
        await settle()
        assert (stream.table.find("acme"), stream.skipped) == (mark(2), 1)
    called: list[str] = []
    keys = [CURRENT.verify_key(), EARLIER.verify_key()]
    restarted = MarkStream(
        "amqp://",
        "default",
        keys,
        lease_s=LEASE_S,
        signing_key=CURRENT,
        on_skipped=lambda: called.append("skipped"),
    )
    async with loaded(restarted):
        assert (restarted.table.find("acme"), restarted.skipped) == (mark(2), 1)
        assert called == ["skipped"]
        assert current(restarted)
        assert not restarted.signed_before


async def test_a_replayed_mark_of_an_earlier_key_makes_it_needed_for_nothing_new(
    broker: Broker,
) -> None:
    """Lower marks are skipped, by whichever key they were signed."""
    old = broker.append_mark(1, key=EARLIER)
    broker.append_mark(2, key=CURRENT)
    broker.append(old, EARLIER.sign_mark("default", old), EARLIER.id)
    async with loaded(stream_of(CURRENT, EARLIER)) as stream:
        assert stream.signed_before == {}
        assert stream.table.find("acme") == mark(2)


async def test_messages_that_cannot_be_decoded_are_no_gap(broker: Broker) -> None:
    broker.append_mark(1, skipped=2)
    broker.append_mark(2)
    broker.append_mark(3, skipped=1)
    async with loaded(stream_of()) as stream:
        assert stream.table.find("acme") == mark(3)
        assert current(stream)


@pytest.mark.parametrize("at_start", [True, False])
async def test_a_gap_is_never_current_again(broker: Broker, *, at_start: bool) -> None:
    """What was lost may be the mark that matters."""
    broker.append_mark(1)
    broker.append_mark(2)
    lost = 0 if at_start else 1
    broker.append_mark(3)
    del broker.records[lost]
    stream = stream_of()
    async with following(stream), asyncio.timeout(5):
        with pytest.raises(EventsUnavailableError, match="lost messages"):
            await stream.load()
        broker.append_mark(4)
        await settle()
        assert not current(stream)
        with pytest.raises(MarksUnavailableError):
            stream.check_current("acme")


async def test_it_is_current_for_one_lease(broker: Broker) -> None:
    async with loaded(stream_of()) as stream:
        broker.now_s += LEASE_S
        assert current(stream)
        broker.now_s += 0.1
        assert not current(stream)
        with pytest.raises(MarksUnavailableError):
            stream.check_current("acme")
        await stream.catch_up()
        assert current(stream)


async def test_it_is_current_as_of_when_the_look_was_sent(broker: Broker) -> None:
    """A mark that was published while the end was on its way may have been missed."""
    stream = stream_of()
    broker.append_mark(1)
    broker.delivers = 0
    async with following(stream), asyncio.timeout(5):
        loading = asyncio.create_task(stream.load())
        await settle()
        broker.now_s += LEASE_S - 1
        broker.delivers = None
        broker.changed()
        await loading
        broker.now_s += 2
        assert not current(stream)


async def test_it_stays_current_by_itself(broker: Broker) -> None:
    async with loaded(stream_of(lease_s=0.03)) as stream:
        for _ in range(4):
            await broker.looked(1)
            broker.now_s += 0.02
        await broker.looked(1)
        await settle()
        assert current(stream)


async def test_a_broker_that_is_away_is_named(broker: Broker) -> None:
    async with loaded(stream_of(lease_s=0.03)) as stream:
        broker.is_away = True
        await broker.looked(2)
        broker.now_s += 1
        with pytest.raises(MarksUnavailableError, match="the broker is away"):
            stream.check_current("acme")
        with pytest.raises(MarksUnavailableError, match="the broker is away"):
            await stream.catch_up()


async def test_it_is_logged_once_that_the_marks_are_not_current_and_that_they_are_again(
    broker: Broker,
) -> None:
    async with loaded(stream_of(lease_s=0.03)):
        with capture_logs() as logs:
            await broker.looked(2)
            broker.is_away = True
            broker.now_s += 1
            await broker.looked(3)
            broker.is_away = False
            await broker.looked(3)
    logged = [log["event"] for log in logs if log["event"].startswith("marks are")]
    assert logged == ["marks are not current", "marks are current"]


async def test_catching_up_needs_a_look_that_began_later(broker: Broker) -> None:
    async with loaded(stream_of()) as stream:
        broker.now_s += 1
        broker.append_mark(3, project="other")
        looks = broker.looks
        await asyncio.gather(*(stream.catch_up() for _ in range(50)))
        assert stream.table.find("other") == mark(3)
        assert broker.looks == looks + 1


async def test_it_becomes_current_when_a_read_needs_it(broker: Broker) -> None:
    async with loaded(stream_of()) as stream:
        looks = broker.looks
        await stream.become_current()
        assert broker.looks == looks
        broker.now_s += LEASE_S + 1
        assert not current(stream)
        await asyncio.gather(*(stream.become_current() for _ in range(50)))
        assert current(stream)
        assert broker.looks == looks + 1


async def test_callbacks_get_each_new_highest_mark_once(broker: Broker) -> None:
    broker.append_mark(2)
    stream = stream_of()
    seen: list[tuple[str, Mark]] = []
    stream.when_marked(lambda project, new: seen.append((project, new)))
    async with loaded(stream):
        for serial in (2, 1, 3):
            broker.append_mark(serial)
        broker.append_mark(3, bytes([1]) * 32)
        await settle()
    assert seen == [("acme", mark(2)), ("acme", mark(3))]


# Publishing.


def ring_of(serial: int = 1) -> tuple[Keyring, Mark]:
    return replace(keyring(), serial=serial), mark(serial, hashlib.sha256(b"record").digest())


async def test_a_published_mark_is_read_back(broker: Broker) -> None:
    async with loaded(stream_of()) as stream:
        ring, new = ring_of()
        await stream.publish(ring, new)
        assert stream.table.find("acme") == new
        published = parse_mark(broker.records[-1].body)
        assert published.digest == hashlib.sha256(b"record").hexdigest()
        assert published.kek_id == ring.current.kek_id
    async with loaded(stream_of()) as other:
        assert other.table.find("acme") == new


async def test_publishing_ends_only_when_the_mark_is_read_back(broker: Broker) -> None:
    """The broker's confirmation alone shows no earlier mark of the same serial."""
    async with loaded(stream_of()) as stream:
        broker.delivers = len(broker.records)
        publishing = asyncio.create_task(stream.publish(*ring_of()))
        await settle()
        assert len(broker.records) == broker.delivers + 1
        assert not publishing.done()
        broker.delivers = None
        broker.changed()
        await publishing
        assert stream.table.find("acme") is not None


async def test_callers_share_one_publication(broker: Broker) -> None:
    async with loaded(stream_of()) as stream:
        before = len(broker.records)
        ring, new = ring_of()
        await asyncio.gather(*(stream.publish(ring, new) for _ in range(50)))
        assert len(broker.records) == before + 1
        assert stream._awaited == {}


async def test_a_canceled_caller_does_not_cancel_the_others_publication(broker: Broker) -> None:
    async with loaded(stream_of()) as stream:
        broker.delivers = len(broker.records)
        ring, new = ring_of()
        leaving, staying = (asyncio.create_task(stream.publish(ring, new)) for _ in range(2))
        await settle()
        leaving.cancel()
        await settle()
        broker.delivers = None
        broker.changed()
        await staying
        assert leaving.cancelled()


@pytest.mark.parametrize("earlier", [mark(2), mark(1, bytes([9]) * 32)])
async def test_a_mark_that_came_too_late_is_read_back_and_counts_for_nothing(
    broker: Broker, earlier: Mark
) -> None:
    """Its publisher reads the keyring again, and finds out."""
    async with loaded(stream_of()) as stream:
        ring, new = ring_of()

        def overtake() -> None:
            broker.append_mark(earlier.serial, earlier.digest)

        broker.before_append = overtake
        await stream.publish(ring, new)
        assert stream.table.find("acme") == earlier


async def test_a_mark_that_is_not_read_back_in_time_fails(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with loaded(stream_of()) as stream:
        monkeypatch.setattr(mark_stream, "_TIMEOUT_S", 0.01)
        broker.delivers = len(broker.records)
        with pytest.raises(MarksUnavailableError, match="read back in time"):
            await stream.publish(*ring_of())
        assert stream._awaited == {}
        broker.delivers = None
        broker.changed()
        await settle()
        # It is on the stream all the same, and the next attempt finds it there.
        await stream.publish(*ring_of())


async def test_without_a_broker_nothing_is_marked(broker: Broker) -> None:
    async with loaded(stream_of()) as stream:
        broker.is_away = True
        results = await asyncio.gather(
            *(stream.publish(*ring_of()) for _ in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [MarksUnavailableError] * 3
        broker.is_away = False
        await stream.publish(*ring_of())


async def test_a_forged_copy_of_an_awaited_mark_does_not_end_the_wait(broker: Broker) -> None:
    async with loaded(stream_of()) as stream:
        broker.delivers = len(broker.records)
        ring, new = ring_of()

        def forge() -> None:
            broker.append(mark_body(new.serial, new.digest), "", CURRENT.id)

        broker.before_append = forge
        publishing = asyncio.create_task(stream.publish(ring, new))
        await settle()
        broker.delivers += 1
        broker.changed()
        await settle()
        assert not publishing.done()
        broker.delivers = None
        broker.changed()
        await publishing


# A stream that was replaced.


async def test_a_replaced_stream_must_show_the_marks_again(broker: Broker) -> None:
    """An attacker who deletes the stream brings no old keyring back."""
    broker.append_mark(3)
    broker.append_mark(1, project="other")
    async with loaded(stream_of()) as stream:
        broker.replace()
        broker.append_mark(1, project="other")
        await settle()
        assert not current(stream)
        await stream.catch_up()
        assert current(stream)
        stream.check_current("other")
        with pytest.raises(MarksUnavailableError, match=r"replaced.*recover"):
            stream.check_current("acme")
        broker.append_mark(2)
        await settle()
        with pytest.raises(MarksUnavailableError, match=r"replaced.*recover"):
            stream.check_current("acme")
        broker.append_mark(3)
        await settle()
        stream.check_current("acme")


async def test_a_gateway_of_a_replaced_stream_forgets_nothing(broker: Broker) -> None:
    """An attacker who deletes the stream must not bring back the keyrings that it contradicted."""
    broker.append_mark(3)
    async with loaded(stream_of(signing_key=None)) as stream:
        broker.replace()
        broker.append_mark(1, project="other")
        await settle()
        await stream.catch_up()
        since = stream.table.received
        found = [stream.table.compare("acme", mark(serial), since) for serial in (0, 2)]
        assert found == [Finding.ROLLED_BACK] * 2
        assert not any(map(stream.accepts, found))
        assert stream.table.compare("acme", mark(3), since) is Finding.UNKNOWN


async def test_a_gateway_waits_for_a_busy_broker_to_show_a_mark_that_it_knows(
    broker: Broker,
) -> None:
    broker.append_mark(3)
    async with loaded(stream_of(signing_key=None)) as stream:
        broker.takes_s = 2
        broker.now_s += LEASE_S + 1
        async with asyncio.timeout(5):
            await stream.catch_up()
        assert current(stream)


async def test_an_empty_stream_in_the_place_of_one_with_marks_is_noticed(broker: Broker) -> None:
    """A process looks at the end of the stream, which is below what it has read."""
    broker.append_mark(3)
    broker.append_mark(4)
    async with loaded(stream_of()) as stream:
        broker.replace()
        broker.now_s += LEASE_S + 1
        await stream.catch_up()
        assert current(stream)
        with pytest.raises(MarksUnavailableError, match="replaced"):
            stream.check_current("acme")


async def test_the_end_of_another_stream_makes_nothing_current(broker: Broker) -> None:
    """Its follower still reads the one before, and knows no mark of the new one."""
    broker.append_mark(3)
    broker.append_mark(4)
    async with loaded(stream_of()) as stream:
        broker.delivers = 0
        broker.replace()
        broker.append_mark(4)
        broker.now_s += LEASE_S + 1
        catching_up = asyncio.create_task(stream.catch_up())
        await settle()
        assert not catching_up.done()
        assert not current(stream)
        broker.delivers = None
        broker.changed()
        await catching_up
        assert current(stream)


# A gateway.


async def test_a_gateway_adds_nothing_and_serves_without_the_stream(broker: Broker) -> None:
    stream = stream_of(None)
    stream.check_current("acme")
    assert stream.accepts(Finding.UNMARKED)
    assert stream.accepts(Finding.UNKNOWN)
    with pytest.raises(MarksUnavailableError):
        await stream.publish(*ring_of())
    assert broker.records == []
    broker.append_mark(3)
    async with loaded(stream):
        assert stream.table.find("acme") == mark(3)
        assert stream.accepts(Finding.UNMARKED)
        assert not stream.accepts(Finding.UNKNOWN)
        assert not stream.accepts(Finding.ROLLED_BACK)
        assert not stream.accepts(Finding.READ_AGAIN)


def test_a_worker_accepts_marked_keyrings_alone() -> None:
    stream = MarkStream(
        "amqp://",
        "default",
        [CURRENT.verify_key()],
        lease_s=LEASE_S,
        signing_key=CURRENT,
    )
    assert not any(map(stream.accepts, Finding))


async def test_both_connections_are_closed_at_the_end(broker: Broker) -> None:
    async with loaded(stream_of()):
        assert broker.closed == 0
    assert broker.closed == 2


async def test_a_process_that_adds_no_marks_takes_silence_for_an_empty_stream(
    broker: Broker,
) -> None:
    async with loaded(stream_of(None)) as stream:
        assert current(stream)
        assert broker.records == []
        broker.append_mark(3)
        broker.now_s += 1
        await stream.catch_up()
        assert stream.table.find("acme") == mark(3)
        # Once it has read a mark, silence at the end means something else.
        broker.shows_end = False
        broker.now_s += LEASE_S + 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.catch_up()
        assert not current(stream)


async def test_a_mark_repeats_the_customer_keys_that_are_not_cleared(broker: Broker) -> None:
    secret = new_customer_secret()
    customer_key = CustomerKey.of(KeyName("kms-eu", "a"), secret, "vault:v1:YQ==")
    ring = replace(keyring(), serial=1)
    ring = replace(ring, current=replace(ring.current, customer_key=customer_key))
    mark = Mark.of(ring, bytes(32))
    async with loaded(stream_of()) as stream:
        await stream.publish(ring, replace(mark, customer_keys={}))
        await stream.publish(keyring("plain"), Mark.of(keyring("plain"), bytes(32)))
        found = stream.table.find("acme")
        assert found is not None
        assert found.customer_keys == ring.customer_keys
    published = {each["project"]: each for each in _documents(broker)}
    assert published["acme"]["customer_keys"] == [
        {**customer_key_to_json(customer_key), "generations": [1]}
    ]
    assert "customer_keys" not in published["plain"]


async def test_a_mark_with_a_customer_key_that_no_store_wrote_is_skipped(broker: Broker) -> None:
    """The holder of an event key signed it: it must not end the reading of the stream."""
    fields = customer_key_to_json(
        CustomerKey.of(KeyName("bao", "b"), new_customer_secret(), "YQ==")
    )
    good = {**json.loads(mark_body(5)), "customer_keys": [{**fields, "generations": [1]}]}
    changes: list[dict[str, object]] = [
        {"wrapped": "YQ"},  # without its padding
        {"wrapped": "YR=="},  # not canonical
        {"wrapped": ":YQ=="},
        {"secret_id": "A"},
        {"generations": [2]},
        {"generations": [1, 1]},
        {"store": "*"},
    ]
    for serial, change in enumerate(changes, 6):
        forged = {**good, "serial": serial, "customer_keys": [good["customer_keys"][0] | change]}
        body = json.dumps(forged).encode()
        broker.append(body, CURRENT.sign_mark("default", body), CURRENT.id)
    body = json.dumps(good).encode()
    broker.append(body, CURRENT.sign_mark("default", body), CURRENT.id)
    async with loaded(stream_of()) as stream:
        assert stream.skipped == len(changes)
        found = stream.table.find("acme")
        assert found is not None
        assert found.serial == 5
        assert set(found.customer_keys) == {1}


def _documents(broker: Broker) -> list[dict[str, Any]]:
    documents = [json.loads(record.body) for record in broker.records]
    return [each for each in documents if each["type"] == KEYRING_MARKED]
