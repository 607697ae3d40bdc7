"""A worker that dies at a named point: `python -m tests.acceptance.crashing worker ROLE --point P`.

For the promise that nothing is lost (SPEC 6.2, 7.1). The real worker is patched from outside and
kills its own process with SIGKILL, so that no handler, buffer or `finally` gets a last word; the
product itself holds no hook for any of this. It must never be imported by anything but its tests.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import uvloop
from aio_pika.message import IncomingMessage

from workers import runtime
from workers.broker import Consumer, Teller
from workers.control import enrolment
from workers.keyring import KeyringReader
from workers.logs import configure
from workers.settings import WorkerSettings
from workers.storage import Differences
from workers.storage.s3 import S3Storage
from workers.upload import uploader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_RECORDS = ".keyturn/"
_KEYRINGS = ".keyturn/keyrings/"
_STAGING = ".keyturn/staging/"
# Of a streamed body: its header, and then pieces of 1 MiB each.
_MIDWAY_PIECES = 3


def _always(_: tuple[Any, ...]) -> bool:
    return True


def _under(prefix: str) -> Callable[[tuple[Any, ...]], bool]:
    return lambda arguments: str(arguments[0]).startswith(prefix)


def _of_an_object(arguments: tuple[Any, ...]) -> bool:
    return not str(arguments[0]).startswith(_RECORDS)


class Point:
    """Where to strike: before, or after, a method that is called with what matters."""

    def __init__(
        self,
        owner: type,
        *methods: str,
        after: bool = False,
        matters: Callable[[tuple[Any, ...]], bool] = _always,
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
        for module in (uploader, enrolment):
            original = module.open_secret

            def opened(*arguments: Any, original: Any = original) -> bytes:
                secret: bytes = original(*arguments)
                strike()
                return secret

            setattr(module, "open_secret", opened)  # noqa: B010  # mypy forbids the assignment


class ReadAgain:
    """After the first keyring read that follows a stored object (SPEC 7.3)."""

    def install(self, strike: Callable[[], None]) -> None:
        stored: list[bool] = []
        PUT_AFTER.install(lambda: stored.append(True))
        after_put = Point(KeyringReader, "fresh", after=True, matters=lambda _: bool(stored))
        after_put.install(strike)


class Midway:
    """In the middle of a streamed put's body."""

    def install(self, strike: Callable[[], None]) -> None:
        original = S3Storage.put_stream

        async def put_stream(
            this: S3Storage, key: str, chunks: AsyncIterator[bytes], *arguments: Any, **named: Any
        ) -> str:
            cut = _struck_midway(chunks, strike) if _of_an_object((key,)) else chunks
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
    """Stopped by SIGSTOP, once, right before an object's put, and told what became of the put."""

    def install(self, strike: Callable[[], None]) -> None:
        del strike
        stalled: list[bool] = []
        for name in ("put", "put_stream"):
            setattr(S3Storage, name, _stalling(getattr(S3Storage, name), stalled))


def _stalling(original: Any, stalled: list[bool]) -> Any:
    async def stalling(this: S3Storage, key: str, *arguments: Any, **named: Any) -> Any:
        if stalled or not _of_an_object((key,)):
            return await original(this, key, *arguments, **named)
        stalled.append(True)
        os.kill(os.getpid(), signal.SIGSTOP)
        put = asyncio.create_task(original(this, key, *arguments, **named))
        put.add_done_callback(_tell)
        # The lost connection cancels this handler; a put that had left by then would not mind.
        return await asyncio.shield(put)

    return stalling


def _tell(put: asyncio.Task[str]) -> None:
    outcome = "cancelled" if put.cancelled() else type(put.exception()).__name__
    sys.stderr.write(f"late put: {outcome}\n")


PUT_AFTER = Point(S3Storage, "put", "put_stream", after=True, matters=_of_an_object)

POINTS: dict[str, Point | SecretOpened | ReadAgain | Midway | Stalled] = {
    "taken": Point(Consumer, "__call__"),
    "secret-opened": SecretOpened(),
    "keyring-read": Point(KeyringReader, "recent", after=True),
    "put-before": Point(S3Storage, "put", "put_stream", matters=_of_an_object),
    "put-midway": Midway(),
    "put-after": PUT_AFTER,
    "put-stalled": Stalled(),
    "keyring-read-again": ReadAgain(),
    "multipart-begun": Point(S3Storage, "begin_multipart", after=True),
    "part-stored": Point(S3Storage, "put_part", after=True),
    "completion-before": Point(S3Storage, "complete_multipart"),
    "completion-after": Point(S3Storage, "complete_multipart", after=True),
    "keyring-put-before": Point(S3Storage, "put", matters=_under(_KEYRINGS)),
    "keyring-put-after": Point(S3Storage, "put", after=True, matters=_under(_KEYRINGS)),
    "letter-before": Point(Teller, "dead_letter"),
    "letter-after": Point(Teller, "dead_letter", after=True),
    "put-off-before": Point(Teller, "put_off"),
    "put-off-after": Point(Teller, "put_off", after=True),
    "event-before": Point(Teller, "tell"),
    "event-after": Point(Teller, "tell", after=True),
    "staged-delete-before": Point(S3Storage, "delete", matters=_under(_STAGING)),
    "staged-delete-after": Point(S3Storage, "delete", after=True, matters=_under(_STAGING)),
    "ack-before": Point(IncomingMessage, "ack"),
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _skip_probe(*, conditional_completion: bool) -> None:
    """Start at once on a server whose differences the test knows; others test the probe."""

    async def known(_: WorkerSettings) -> Differences:
        return Differences(conditional_completion=conditional_completion)

    setattr(runtime, "_check_storage", known)  # noqa: B010  # mypy forbids the assignment


def main() -> None:
    """Run the worker."""
    parser = argparse.ArgumentParser(prog="crashing")
    parser.add_argument("command", choices=["worker"])
    parser.add_argument("role", choices=["upload", "control", "all"])
    parser.add_argument("--point", choices=POINTS, required=True)
    parser.add_argument("--conditional-completion", action="store_true")
    said = parser.parse_args()
    settings = WorkerSettings.read()
    configure(settings.log_format, settings.log_level)
    _skip_probe(conditional_completion=said.conditional_completion)
    POINTS[said.point].install(_die)
    roles = runtime.ALL_ROLES if said.role == "all" else frozenset({said.role})
    uvloop.run(runtime.run_worker(settings, roles))


if __name__ == "__main__":
    main()
