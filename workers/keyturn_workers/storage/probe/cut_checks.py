"""The probe's checks with connections that are really cut (SPEC 7.2, 10).

A put is sent in the form in which Keyturn sends its own, and its connection is closed before the
first byte of its body, or within it. Nothing may be stored: an upload would otherwise leave an
object of the wrong length at its key, and report it as corrupt when it is delivered again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import MissingError, StorageAnswerError
from keyturn_workers.storage.port import Headers, IfAbsent, Lease
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage

_PLAIN: Final = Headers({"a": "1"})
_LEASE_S: Final = 60
# Two pieces: the first one is sent before the source fails.
_PIECE: Final = b"c" * 32 * 2**10


class _CutError(Exception):
    """Ends the body of a put."""


async def cut_puts(storage: ProbeStorage, key: str) -> Outcome:
    """A put whose connection is closed stores nothing, wherever it is cut."""
    await storage.put(f"{key}-clock", b"", _PLAIN)
    lease = Lease((await storage.head(f"{key}-clock")).date, _LEASE_S)
    cuts: dict[str, Awaitable[object]] = {
        "before its body": _from_memory(storage, f"{key}-0", 0, lease),
        "within its body": _from_memory(storage, f"{key}-1", len(_PIECE), lease),
        "before its body, streamed": _streamed(storage, f"{key}-2", 1, lease),
        "within its body, streamed": _streamed(storage, f"{key}-3", 2, lease),
    }
    await asyncio.gather(*cuts.values())
    stored = await asyncio.gather(*(_exists(storage, f"{key}-{at}") for at in range(len(cuts))))
    for cut, size_bytes in zip(cuts, stored, strict=True):
        if size_bytes is not None:
            return Outcome(ok=False, detail=f"cut off {cut}: {size_bytes} bytes stored")
    return Outcome(ok=True, detail="nothing stored, cut before and within the body")


async def _from_memory(storage: ProbeStorage, key: str, sent_bytes: int, lease: Lease) -> None:
    with suppress(StorageUnavailableError, StorageAnswerError):
        await storage.put_cut_off(
            key, 2 * _PIECE, _PLAIN, sent_bytes=sent_bytes, condition=IfAbsent(), lease=lease
        )


async def _streamed(storage: ProbeStorage, key: str, pieces: int, lease: Lease) -> None:
    # One piece is held back, so that no body is complete before its source has ended.
    with suppress(_CutError, StorageUnavailableError, StorageAnswerError):
        await storage.put_stream(
            key,
            _failing(pieces),
            (pieces + 1) * len(_PIECE),
            _PLAIN,
            condition=IfAbsent(),
            lease=lease,
        )


async def _failing(pieces: int) -> AsyncIterator[bytes]:
    for _ in range(pieces):
        yield _PIECE
    raise _CutError


async def _exists(storage: ProbeStorage, key: str) -> int | None:
    """The size of what is stored."""
    try:
        return (await storage.head(key)).size_bytes
    except MissingError:
        return None
