"""The stream of marks, in memory: the workers' own `MarkStream` follows it and adds to it.

Only its connection is simulated. A publish is a request on the network. What the stream holds
reaches a process at once, unless the process is stalled, lags, or is cut off from the broker.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

from keyturn.errors import (
    BrokerUnavailableError,
    EventsUnavailableError,
    OutcomeUnknownError,
    StorageUnavailableError,
)
from keyturn.publisher.event_stream import StreamRecord
from keyturn.topology import EVENT_KEY_HEADER, KEYRING_MARKED, SIGNATURE_HEADER
from keyturn_workers.keys.keyring import mark_stream
from tests.protocol.waiters import EVENT_KEY

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import pytest

    from keyturn.crypto import SigningKey
    from tests.protocol.process import Process

PUBLISH: Final = "publish keyring.marked"
_OPENED: Final = b'{"type":"marks.opened"}'


class Marks:
    """The stream that all processes share. It begins with one message, as a used one does.

    Attributes:
        records: What it holds.
        delivered: How many messages of it are delivered to a process, by the process's number; all
            of them to the others.
        cut: The numbers of processes that cannot reach the broker.
    """

    def __init__(self, patch: pytest.MonkeyPatch, appended: Callable[[StreamRecord], None]) -> None:
        self.records: list[StreamRecord] = []
        self.delivered: dict[int, int] = {}
        self.cut: set[int] = set()
        self._appended = appended
        self._append(_OPENED)
        for name in ("BrokerConnection", "follow", "last_offset"):
            patch.setattr(mark_stream, name, globals()[f"_{name}"])

    def _append(self, body: bytes, signature: str = "", key_id: str = "") -> None:
        record = StreamRecord(len(self.records), body, signature, key_id)
        self.records.append(record)
        self._appended(record)

    def add(self, message: Any) -> None:
        """A message that a worker publishes is durable."""
        headers = message.headers
        self._append(message.body, headers[SIGNATURE_HEADER], headers[EVENT_KEY_HEADER])

    def add_again(self, record: StreamRecord) -> None:
        """A broker writer publishes an old mark once more."""
        self._append(record.body, record.signature, record.key_id)

    def forge(self, project: str, fields: dict[str, object], key: SigningKey = EVENT_KEY) -> None:
        """The thief of an event key, who writes to the broker, publishes a signed mark."""
        document = {
            "type": KEYRING_MARKED,
            "project": project,
            "serial": 1,
            "digest": "0" * 64,
            "generation": 1,
            "kek_id": "0" * 16,
            "master_key": "m1",
            "at": "2026-11-24T10:00:00Z",
            **fields,
        }
        body = json.dumps(document).encode()
        self._append(body, key.sign_mark("test", body), key.id)

    def junk(self, body: bytes) -> None:
        """A broker writer publishes what no worker signed."""
        self._append(body)

    def lose(self) -> None:
        """The broker is lost with all that it held: an empty stream takes the stream's place."""
        self.records = []

    def delay(self, process: Process) -> None:
        """Deliver nothing new to a process."""
        self.delivered[process.number] = len(self.records)

    def mend(self) -> None:
        """Deliver all to everyone."""
        self.delivered.clear()
        self.cut.clear()

    def of(self, project: str) -> list[StreamRecord]:
        """The marks of one project."""
        return [each for each in self.records if json.loads(each.body).get("project") == project]


class Link:
    """What connects one process to the stream."""

    def __init__(self, marks: Marks, process: Process) -> None:
        self.marks = marks
        self.process = process
        self._read = marks.records
        self._at = 0
        self._waked = asyncio.Event()

    def wake(self) -> None:
        """Let it read on, if there is anything."""
        self._waked.set()

    @property
    def is_cut(self) -> bool:
        """Whether the process cannot reach the broker."""
        return self.process.number in self.marks.cut

    async def next(self) -> StreamRecord:
        """The next message."""
        while True:
            if not (self.process.stalled or self.is_cut):
                if self._read is not self.marks.records:
                    self._read, self._at = self.marks.records, 0
                end = len(self._read)
                if self._at < min(end, self.marks.delivered.get(self.process.number, end)):
                    record = self._read[self._at]
                    self._at += 1
                    self.process.world.oracle.marks.received(self.process, record)
                    return record
            self._waked.clear()
            await self._waked.wait()

    async def publish(self, message: Any, timeout_s: float) -> None:
        """A request on the network."""
        if self.process.wire.dead:
            raise asyncio.CancelledError
        if self.is_cut:
            raise BrokerUnavailableError("the broker is away")

        async def confirmed() -> None:
            self.marks.add(message)

        project = json.loads(message.body).get("project", "")
        network = self.process.world.network
        try:
            async with asyncio.timeout(timeout_s):
                await network.ask(self.process, PUBLISH, project, confirmed)
        except (TimeoutError, StorageUnavailableError) as exc:
            raise OutcomeUnknownError("no confirmation came") from exc


class _BrokerConnection:
    """As `MarkStream` uses it."""

    def __init__(self, broker: Link, *, publish_timeout_s: float) -> None:
        self.link = broker
        self._timeout_s = publish_timeout_s

    def separate(self) -> _BrokerConnection:
        return self

    async def publish(self, routing_key: str, message: Any) -> None:
        del routing_key
        await self.link.publish(message, self._timeout_s)


async def _follow(connection: Any, *_: Any, **__: Any) -> AsyncGenerator[StreamRecord, None]:
    while True:
        yield await connection.link.next()


async def _last_offset(connection: Any, *_: Any, **__: Any) -> int | None:
    link: Link = connection.link
    if link.is_cut:
        raise EventsUnavailableError("the broker is away")
    return len(link.marks.records) - 1 if link.marks.records else None
