"""A signed stream in memory, and a broker that is up or away."""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from keyturn.crypto import EventVerifier, SigningKey
from keyturn.errors import BrokerUnavailableError, EventsUnavailableError
from keyturn.identifiers import parse_time
from keyturn.messages import (
    AuditRecorded,
    WorkerReported,
    encode,
    encode_audit,
    encode_worker_report,
)
from keyturn.publisher.event_stream import StreamRecord, Verifier

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import pytest

DEPLOYMENT = "test"
KEY = SigningKey.from_seed(bytes(range(32)))


def make_verifier() -> Verifier:
    return Verifier(DEPLOYMENT, (KEY.verify_key(),))


def make_signatures() -> EventVerifier:
    return EventVerifier(DEPLOYMENT, (KEY.verify_key(),))


def record(offset: int, message: Any, *, forged: bool = False) -> StreamRecord:
    """A message as a record of a stream."""
    match message:
        case AuditRecorded():
            body = encode_audit(message)
        case WorkerReported():
            body = encode_worker_report(message)
        case _:
            body = encode(message)
    signature = KEY.sign_event("other" if forged else DEPLOYMENT, body)
    return StreamRecord(offset, body, signature, KEY.id)


def _time_of(record: StreamRecord) -> datetime:
    return parse_time(orjson.loads(record.body)["at"])


class FakeConnection:
    """Connects, or does not."""

    def __init__(self) -> None:
        self.problem: str | None = None
        self.connects = 0

    async def connect(self) -> None:
        self.connects += 1
        if self.problem is not None:
            raise BrokerUnavailableError(self.problem)


class FakeStream:
    """One stream, for `follow` and `last_offset` of a module."""

    def __init__(self, *records: StreamRecord) -> None:
        self.records = [*records]
        self.problem: str | None = None
        self.starts: list[Any] = []
        self.note_problem: Callable[[str | None], None] | None = None
        self.more = asyncio.Event()

    def install(self, monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
        monkeypatch.setattr(module, "follow", self.follow)
        monkeypatch.setattr(module, "last_offset", self.last_offset)

    def add(self, *records: StreamRecord) -> None:
        self.records.extend(records)
        self.more.set()

    async def last_offset(self, _connection: object, _stream: str) -> int | None:
        if self.problem is not None:
            raise EventsUnavailableError(self.problem)
        return self.records[-1].offset if self.records else None

    async def follow(
        self,
        _connection: object,
        start: Any,
        *_streams: str,
        note_problem: Callable[[str | None], None],
    ) -> AsyncGenerator[StreamRecord, None]:
        self.starts.append(start)
        self.note_problem = note_problem
        note_problem(None)
        first = start if isinstance(start, int) else 0
        index = 0
        while True:
            while index < len(self.records):
                each = self.records[index]
                is_early = isinstance(start, datetime) and _time_of(each) < start
                if each.offset >= first and not is_early:
                    yield each
                index += 1
            self.more.clear()
            await self.more.wait()
