"""A project in memory that is exported, with failures on request."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keyturn.errors import NotFoundError
from keyturn.gateway import ListedObject, ObjectInfo
from keyturn_workers.offline.export.run import Export, Source

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from keyturn_workers.offline.export.run import Destination, ExportReport

AT = datetime(2026, 11, 24, 10, tzinfo=UTC)
PIECE_BYTES = 70_001


@dataclass
class Opened:
    info: ObjectInfo
    body: bytes
    failure: Exception | None

    async def chunks(self) -> AsyncIterator[bytes]:
        half = len(self.body) // 2
        body = self.body if self.failure is None else self.body[:half]
        for start in range(0, len(body), PIECE_BYTES):
            yield body[start : start + PIECE_BYTES]
        if self.failure is not None:
            raise self.failure


@dataclass
class Project:
    """`failures` are raised by the next reads of a key, half way; `refusals` when it is opened."""

    objects: dict[str, bytes]
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    refusals: dict[str, list[Exception]] = field(default_factory=dict)
    listing_failures: list[Exception] = field(default_factory=list)
    stated_sizes: dict[str, int] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    bytes_seen: int = 0
    objects_seen: int = 0

    async def list(self, after: str) -> AsyncGenerator[ListedObject, None]:
        for number, key in enumerate(sorted(self.objects)):
            if key <= after:
                continue
            if number == len(self.objects) // 2 and self.listing_failures:
                raise self.listing_failures.pop()
            yield ListedObject(key, len(self.objects[key]), AT)

    @asynccontextmanager
    async def open(self, key: str) -> AsyncIterator[Opened]:
        self.opened.append(key)
        if self.refusals.get(key):
            raise self.refusals[key].pop(0)
        if key not in self.objects:
            raise NotFoundError(key)
        body = self.objects[key]
        size_bytes = self.stated_sizes.get(key, len(body))
        info = ObjectInfo(size_bytes, "text/plain", self.metadata, None, AT)
        failures = self.failures.get(key)
        yield Opened(info, body, failures.pop(0) if failures else None)

    async def export(self, destination: Destination, concurrency: int = 4) -> ExportReport:
        self.opened.clear()
        exporting = Export(Source(self.list, self.open), destination, self._progress)
        await exporting.run(concurrency)
        return exporting.report

    def _progress(self, objects: int, size_bytes: int) -> None:
        self.objects_seen += objects
        self.bytes_seen += size_bytes
