"""Points at which a worker is struck, from outside: the product itself holds no hook for any.

For the promise that nothing is lost (SPEC 6.2, 7.1). Those of sweeps are in `sweep_points`.
This module must never be imported by anything but `crashing`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any, Protocol

from keyturn.publisher import Publisher
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.amqp.acks import ChannelAcks
from keyturn_workers.pipeline.amqp.publisher import WorkerPublisher
from keyturn_workers.pipeline.amqp.requests import RequestSettlement
from keyturn_workers.pipeline.control import enrollment
from keyturn_workers.pipeline.ingest.record import SourceRecords
from keyturn_workers.pipeline.sources.bucket import SourceBucket
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from keyturn_workers.storage.s3 import S3Storage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from keyturn_workers.core.storage_values import WriteResult

_RECORDS = ".keyturn/"
KEYRINGS = ".keyturn/keyrings/"
_STAGING = ".keyturn/staging/"
# Of a streamed body: its header, and then pieces of 1 MiB each.
_MIDWAY_PIECES = 3


def always(_: tuple[Any, ...]) -> bool:
    return True


def under(prefix: str) -> Callable[[tuple[Any, ...]], bool]:
    return lambda arguments: str(arguments[0]).startswith(prefix)


def of_an_object(arguments: tuple[Any, ...]) -> bool:
    return not str(arguments[0]).startswith(_RECORDS)


def _of_several(arguments: tuple[Any, ...]) -> bool:
    _type, _publisher, bodies = arguments
    return len(bodies) > 1


def _of_objects(arguments: tuple[Any, ...]) -> bool:
    _name, _before, record = arguments
    return bool(record.objects)


class Point:
    """Where to strike: before, or after, a method that is called with what matters."""

    def __init__(
        self,
        owner: type,
        *methods: str,
        after: bool = False,
        matters: Callable[[tuple[Any, ...]], bool] = always,
    ) -> None:
        self._owner = owner
        self._methods = methods
        self._after = after
        self._matters = matters

    def install(self, strike: Callable[[], None]) -> None:
        """Patch the methods."""
        for name in self._methods:
            setattr(self._owner, name, self._patched(getattr(self._owner, name), strike))

    def _patched(self, original: Any, strike: Callable[[], None]) -> Any:
        @functools.wraps(original)
        async def patched(this: Any, *arguments: Any, **named: Any) -> Any:
            struck = self._matters(arguments)
            if struck and not self._after:
                strike()
            answer = await original(this, *arguments, **named)
            if struck and self._after:
                strike()
            return answer

        return patched


class SecretOpened:
    """Right after a sealed secret was opened."""

    def install(self, strike: Callable[[], None]) -> None:
        for owner, name in ((OpenedSessions, "open_key"), (enrollment, "open_secret")):
            original = getattr(owner, name)

            def opened(*arguments: Any, original: Any = original) -> bytes:
                secret: bytes = original(*arguments)
                strike()
                return secret

            setattr(owner, name, opened)


class ReadAgain:
    """After the first keyring read that follows a stored object (SPEC 7.3)."""

    def install(self, strike: Callable[[], None]) -> None:
        stored: list[bool] = []
        PUT_AFTER.install(lambda: stored.append(True))
        after_put = Point(KeyringReader, "read_fresh", after=True, matters=lambda _: bool(stored))
        after_put.install(strike)


class Midway:
    """In the middle of a streamed put's body."""

    def install(self, strike: Callable[[], None]) -> None:
        original = S3Storage.put_stream

        async def put_stream(
            this: S3Storage, key: str, chunks: AsyncIterator[bytes], *arguments: Any, **named: Any
        ) -> WriteResult:
            cut = _struck_midway(chunks, strike) if of_an_object((key,)) else chunks
            return await original(this, key, cut, *arguments, **named)

        setattr(S3Storage, "put_stream", put_stream)  # noqa: B010  # mypy forbids the assignment


async def _struck_midway(
    chunks: AsyncIterator[bytes], strike: Callable[[], None]
) -> AsyncIterator[bytes]:
    pieces = 0
    async for chunk in chunks:
        if pieces == _MIDWAY_PIECES:
            strike()
        pieces += 1
        yield chunk


class Stalled:
    """Stops itself by SIGSTOP once, right before an object's write, and logs the result."""

    def __init__(self, *methods: str) -> None:
        self._methods = methods

    def install(self, strike: Callable[[], None]) -> None:
        del strike
        stalled: list[bool] = []
        for name in self._methods:
            setattr(S3Storage, name, _stalling(getattr(S3Storage, name), stalled))


def _stalling(original: Any, stalled: list[bool]) -> Any:
    async def stalling(this: S3Storage, key: str, *arguments: Any, **named: Any) -> Any:
        if stalled or not of_an_object((key,)):
            return await original(this, key, *arguments, **named)
        stalled.append(True)
        os.kill(os.getpid(), signal.SIGSTOP)
        write = asyncio.create_task(original(this, key, *arguments, **named))
        write.add_done_callback(lambda done: _tell(original.__name__, key, done))
        # Where the lost connection cancels this handler, a write that had left would not mind.
        return await asyncio.shield(write)

    return stalling


def _tell(name: str, key: str, write: asyncio.Task[Any]) -> None:
    outcome = "canceled" if write.cancelled() else type(write.exception()).__name__
    sys.stderr.write(f"late {name}: {outcome} {key}\n")


PUT_AFTER = Point(S3Storage, "put", "put_stream", after=True, matters=of_an_object)


class Installed(Protocol):
    """A point, or anything else that can be put into a worker before it runs."""

    def install(self, strike: Callable[[], None]) -> None:
        """Patch the worker so that it is struck there."""
        ...


class Nowhere:
    """A worker that is never struck; it only starts without the probe, at half the cost."""

    def install(self, strike: Callable[[], None]) -> None:
        del strike


POINTS: dict[str, Installed] = {
    "nowhere": Nowhere(),
    "taken": Point(RequestSettlement, "consume_scope"),
    "secret-opened": SecretOpened(),
    "keyring-read": Point(KeyringReader, "read_recent", after=True),
    "put-before": Point(S3Storage, "put", "put_stream", matters=of_an_object),
    "put-midway": Midway(),
    "put-after": PUT_AFTER,
    "put-stalled": Stalled("put", "put_stream"),
    "keyring-read-again": ReadAgain(),
    "multipart-begun": Point(S3Storage, "create_multipart", after=True),
    "part-stored": Point(S3Storage, "upload_part", after=True),
    "completion-before": Point(S3Storage, "complete_multipart"),
    "completion-after": Point(S3Storage, "complete_multipart", after=True),
    "keyring-put-before": Point(S3Storage, "put", matters=under(KEYRINGS)),
    "keyring-put-after": Point(S3Storage, "put", after=True, matters=under(KEYRINGS)),
    "letter-before": Point(WorkerPublisher, "dead_letter"),
    "letter-after": Point(WorkerPublisher, "dead_letter", after=True),
    "put-off-before": Point(WorkerPublisher, "schedule_retry"),
    "put-off-after": Point(WorkerPublisher, "schedule_retry", after=True),
    "event-before": Point(WorkerPublisher, "publish_event"),
    "event-after": Point(WorkerPublisher, "publish_event", after=True),
    "batch-before": Point(WorkerPublisher, "_publish_events", matters=_of_several),
    "batch-after": Point(WorkerPublisher, "_publish_events", after=True, matters=_of_several),
    "staged-delete-before": Point(S3Storage, "delete", matters=under(_STAGING)),
    "staged-delete-after": Point(S3Storage, "delete", after=True, matters=under(_STAGING)),
    "source-delete-before": Point(SourceBucket, "delete_read"),
    "source-delete-after": Point(SourceBucket, "delete_read", after=True),
    "source-found": Point(SourceBucket, "head", after=True),
    "source-request-before": Point(Publisher, "upload_from_source"),
    "source-request-after": Point(Publisher, "upload_from_source", after=True),
    "source-record-before": Point(SourceRecords, "write", matters=_of_objects),
    "source-record-after": Point(SourceRecords, "write", after=True, matters=_of_objects),
    "ack-before": Point(ChannelAcks, "_write"),
}
