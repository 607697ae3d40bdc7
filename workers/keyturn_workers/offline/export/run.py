"""Exports every object that a source lists: reads it, retries, counts (SPEC 9.2).

It holds one block of each object in progress, whatever its size. It must never count an object that
did not open to its end, or whose size differs from the stated one.
"""

import asyncio
import errno
import hashlib
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import stamina

from keyturn.errors import (
    CodedError,
    CorruptObjectError,
    ForeignObjectError,
    GatewayError,
    GatewayUnavailableError,
    IncompleteBodyError,
    NotFoundError,
    TransientError,
    UnauthorizedError,
    UnexpectedResponseError,
)
from keyturn.gateway.listing import ListedObject
from keyturn.gateway.responses import ObjectInfo
from keyturn.identifiers import is_object_key
from keyturn_workers.core.errors import StorageResponseError
from keyturn_workers.offline.export.manifest import Record

BLOCK_BYTES: Final = 1024**2
FAILURES_KEPT: Final = 1000
_ATTEMPTS: Final = 8
_OUTAGE_AFTER: Final = 32
_HASHED_INLINE_BYTES: Final = 64 * 1024
_SERVER_ERROR: Final = 500
_DESTINATION_FAILED: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE}


class Opened(Protocol):
    """An object opened in the bucket or by a gateway."""

    @property
    def info(self) -> ObjectInfo:
        """The size, type and metadata of the object."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Yield the plaintext; ends without an error only if all of it was authenticated."""


@dataclass(frozen=True, slots=True)
class Source:
    """The objects of one project.

    `list` yields all objects, or those after a key, always in the same order. `open` opens one
    object; errors as `keyturn download`.
    """

    list: Callable[[str], AsyncGenerator[ListedObject, None]]
    open: Callable[[str], AbstractAsyncContextManager[Opened]]


class Incoming:
    """An object on its way to a destination, which reads its blocks once."""

    def __init__(self, key: str, opened: Opened, on_bytes: Callable[[int], None]) -> None:
        self.key = key
        self.info = opened.info
        self.read_bytes = 0
        self._opened = opened
        self._on_bytes = on_bytes
        self._sha256 = hashlib.sha256()

    async def blocks(self) -> AsyncIterator[bytes]:
        """Yield the plaintext in blocks of about 1 MiB; whole only if this ends without an error.

        Raises:
            CorruptObjectError: the object does not authenticate, or has another size.
            CodedError, GatewayError: it cannot be read.
        """
        held = bytearray()
        async for piece in self._opened.chunks():
            held += piece
            if len(held) >= BLOCK_BYTES:
                yield await self._counted(bytes(held))
                held.clear()
        if self.read_bytes + len(held) != self.info.size_bytes:
            raise CorruptObjectError("the size of the plaintext differs from the stated one")
        if held:
            yield await self._counted(bytes(held))

    async def _counted(self, block: bytes) -> bytes:
        if len(block) > _HASHED_INLINE_BYTES:
            await asyncio.to_thread(self._sha256.update, block)
        else:
            self._sha256.update(block)
        self.read_bytes += len(block)
        self._on_bytes(len(block))
        return block

    def record(self, path: str, etag: str | None = None) -> Record:
        """Return its record in the manifest, once all blocks were read."""
        return Record(
            key=self.key,
            path=path,
            size=self.info.size_bytes,
            sha256=self._sha256.hexdigest(),
            etag=etag,
            content_type=self.info.content_type and _valid(self.info.content_type),
            metadata={name: _valid(value) for name, value in self.info.metadata.items()},
            last_modified=self.info.last_modified,
        )


def _valid(text: str) -> str:
    """Return text that UTF-8 can hold: a bucket writer's metadata may decode to something else."""
    return text.encode(errors="backslashreplace").decode()


class Destination(Protocol):
    """The place where objects are written: a folder, a prefix of a bucket, or another project."""

    async def size_of(self, key: str) -> int | None:
        """Return the size of an exported object's file, in bytes; None if it is not exported."""

    async def store(self, incoming: Incoming) -> bool:
        """Store one object, and record it; return False, without reading it, if it is there."""


@dataclass(slots=True)
class ExportReport:
    """The outcomes of an export so far."""

    exported: int = 0
    already_there: int = 0
    deleted: int = 0
    size_bytes: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)

    def fail(self, key: str, exc: Exception) -> None:
        """Count a failure by its code, and keep it if there are not too many."""
        code = error_code(exc)
        self.failed[code] += 1
        if len(self.failures) < FAILURES_KEPT:
            detail = exc.detail if isinstance(exc, CodedError) else _text(exc)
            self.failures.append({"key": key, "code": code, "detail": detail})


class Export:
    """One run over all objects of a source."""

    def __init__(
        self, source: Source, destination: Destination, on_progress: Callable[[int, int], None]
    ) -> None:
        """Prepare a run.

        `on_progress` is called with further objects and bytes. Before bytes are read again after a
        failure, it is called with their negative count.
        """
        self.report = ExportReport()
        self._source = source
        self._destination = destination
        self._on_progress = on_progress
        self._listing: AsyncGenerator[ListedObject, None] | None = None
        self._after = ""
        self._turn = asyncio.Lock()
        self._outages = 0

    async def run(self, concurrency: int) -> None:
        """Export all objects, this many at once; the outcomes are in `report`.

        Raises:
            ExceptionGroup: the first error that is not about a single object: a refused API key,
                a listing that fails, a destination without space, or a gateway or storage that
                stays unavailable.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(concurrency):
                    group.create_task(self._work())
        finally:
            if self._listing is not None:
                await self._listing.aclose()

    async def _work(self) -> None:
        while (entry := await self._next()) is not None:
            await self._export(entry.key)
            self._on_progress(1, 0)

    async def _next(self) -> ListedObject | None:
        """Return the next object; a listing that failed is continued after the last one."""
        async with self._turn:
            async for attempt in _retrying():
                with attempt:
                    entry = await self._advance()
            self._after = self._after if entry is None else entry.key
            return entry

    async def _advance(self) -> ListedObject | None:
        if self._listing is None:
            self._listing = self._source.list(self._after)
        try:
            return await anext(self._listing, None)
        except Exception:
            self._listing = None  # a generator that failed has ended
            raise

    async def _export(self, key: str) -> None:
        report = self.report
        try:
            if not is_object_key(key):
                raise ForeignObjectError("no object can have this key")
            size_bytes = await self._destination.size_of(key)
            if size_bytes is None:
                is_new, size_bytes = await self._fetch(key)
            else:
                is_new = False
                self._on_progress(0, size_bytes)
            report.exported += is_new
            report.already_there += not is_new
            report.size_bytes += size_bytes
        except NotFoundError:  # since it was listed, or it is a tombstone
            report.deleted += 1
        except (CodedError, GatewayError, StorageResponseError, OSError) as exc:
            self._outages = self._outages + 1 if _is_outage(exc) else 0
            if _ends_run(exc) or self._outages >= _OUTAGE_AFTER:
                raise
            report.fail(key, exc)
        else:
            self._outages = 0

    async def _fetch(self, key: str) -> tuple[bool, int]:
        """Return whether the object is new, and its size."""
        async for attempt in _retrying():
            with attempt:
                async with self._source.open(key) as opened:
                    incoming = Incoming(key, opened, lambda count: self._on_progress(0, count))
                    try:
                        is_new = await self._destination.store(incoming)
                    except BaseException:
                        self._on_progress(0, -incoming.read_bytes)
                        raise
                    if not is_new:
                        self._on_progress(0, incoming.info.size_bytes)
        return is_new, incoming.info.size_bytes


def _retrying() -> AsyncIterator[stamina.Attempt]:
    return stamina.retry_context(
        on=_may_pass, attempts=_ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=10.0
    )


def _may_pass(exc: Exception) -> bool:
    return _is_outage(exc) or isinstance(exc, IncompleteBodyError)


def _is_outage(exc: Exception) -> bool:
    """Check if the cause may be the gateway or a storage rather than one object."""
    by_server = isinstance(exc, UnexpectedResponseError) and exc.status >= _SERVER_ERROR
    return by_server or isinstance(exc, TransientError | GatewayUnavailableError)


def _ends_run(exc: Exception) -> bool:
    """Check if every other object would fail, too."""
    is_full = isinstance(exc, OSError) and exc.errno in _DESTINATION_FAILED
    return is_full or isinstance(exc, UnauthorizedError)


def error_code(exc: Exception) -> str:
    """Return the code of SPEC 12, or the name of the exception in the same form."""
    if isinstance(exc, CodedError):
        return exc.code
    words = re.findall(r"[A-Z][a-z0-9]*", type(exc).__name__.removesuffix("Error"))
    return "_".join(words).lower()


def _text(exc: Exception) -> str:
    return exc.strerror or "" if isinstance(exc, OSError) else str(exc)
