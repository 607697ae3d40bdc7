"""The probe's checks of requests, except for concurrent writers (SPEC 10).

A refusal counts only if the object is unchanged afterwards, and if the same request with the
right condition, or in time, is accepted.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from datetime import timedelta
from typing import Final

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import (
    MissingError,
    PreconditionError,
    RefusedError,
    StorageResponseError,
)
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.storage_values import Headers, IfAbsent, IfMatch, Lease
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage

PLAIN: Final = Headers({})
WRONG_ETAG: Final = "0" * 32
_FIRST_PART_BYTES: Final = 5 * 2**20
_LEASE_S: Final = 60
# Much more than the clocks of one storage may differ.
_LATE_S: Final = 600
_ROUNDS: Final = 4
_KEYS: Final = 8
_META: Final = Headers({"a": "1"})
# Two pieces: the first one is sent before the source fails.
_PIECE: Final = b"c" * 32 * 2**10


class _CutError(Exception):
    """Ends the body of a put."""


async def create(storage: ProbeStorage, key: str) -> Outcome:
    """A put with `If-None-Match: *` creates an object, and is refused if one exists.

    It has a lease, like every upload: a storage may treat query-signed requests differently.
    """
    await storage.put(f"{key}-clock", b"", PLAIN)
    lease = await _lease(storage, f"{key}-clock")
    await storage.put(key, b"first", PLAIN, condition=IfAbsent(), lease=lease)
    refused = await _refused(storage.put(key, b"second", PLAIN, condition=IfAbsent(), lease=lease))
    return _outcome(refused, untouched=(await storage.read(key))[1] == b"first")


async def replace_body(storage: ProbeStorage, key: str) -> Outcome:
    """A put with `If-Match` replaces the body with this ETag, and no other."""
    etag = (await storage.put(key, b"first", PLAIN)).etag
    wrong = await _refused(storage.put(key, b"wrong", PLAIN, condition=IfMatch(WRONG_ETAG)))
    untouched = (await storage.read(key))[1] == b"first"
    await storage.put(key, b"second", PLAIN, condition=IfMatch(etag))
    stale = await _refused(storage.put(key, b"stale", PLAIN, condition=IfMatch(etag)))
    return _outcome(
        wrong and stale, untouched=untouched and (await storage.read(key))[1] == b"second"
    )


async def read_after_write(storage: ProbeStorage, key: str) -> Outcome:
    """The next read and the next listing show an acknowledged write."""
    for number in range(_ROUNDS):
        body = b"%d" % number
        etag = (await storage.put(key, body, PLAIN)).etag
        if (await storage.read(key))[1] != body:
            return Outcome(ok=False, detail="a read showed an earlier body")
        if [row.etag async for row in storage.list(key)] != [etag]:
            return Outcome(ok=False, detail="a listing showed an earlier state")
    await storage.delete(key)
    try:
        await storage.head(key)
    except MissingError:
        if [row async for row in storage.list(key)]:
            return Outcome(ok=False, detail="a listing showed a deleted object")
        return Outcome(ok=True, detail=f"seen at once, {_ROUNDS} writes and a delete")
    return Outcome(ok=False, detail="a read showed a deleted object")


async def overwritten_in_listing(storage: Storage, prefix: str) -> Outcome:
    """A listing that starts after overwrites were acknowledged shows their ETags (SPEC 8.4)."""
    keys = [f"{prefix}/{number}" for number in range(_KEYS)]
    for round_number in range(_ROUNDS):
        body = b"%d" % round_number
        puts = [storage.put(key, body + key.encode(), PLAIN) for key in keys]
        written = await asyncio.gather(*puts)
        page = await storage.list_page(f"{prefix}/")
        if page.date is None:
            return Outcome(ok=False, detail="a listing without a Date")
        expected = {key: put.etag for key, put in zip(keys, written, strict=True)}
        if dict(page.etags) != expected or not page.is_last:
            return Outcome(ok=False, detail="a listing showed an earlier state")
    return Outcome(ok=True, detail=f"seen at once, {_KEYS} overwrites, {_ROUNDS} rounds")


async def multipart(storage: ProbeStorage, key: str) -> Outcome:
    """Two parts become one object."""
    upload_id = await storage.create_multipart(key, Headers({"a": "1"}))
    first = b"f" * _FIRST_PART_BYTES
    parts = [
        await storage.upload_part(key, upload_id, 1, first),
        await storage.upload_part(key, upload_id, 2, b"tail"),
    ]
    await storage.complete_multipart(key, upload_id, parts)
    async with storage.stream(key, start=len(first) - 1) as stream:
        end = b"".join([chunk async for chunk in stream.chunks(1024)])
    head = stream.head
    is_complete = end == b"ftail" and head.size_bytes == len(first) + 4
    if not is_complete or head.metadata != {"a": "1"}:
        return Outcome(ok=False, detail="the object differs from its parts")
    return Outcome(ok=True, detail="two parts became one object")


async def replace_metadata(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy replaces the metadata and the headers, and keeps the body."""
    etag = (await storage.put(key, b"body", Headers({"a": "1", "b": "2"}, "text/plain"))).etag
    lease = await _lease(storage, key)
    replaced = Headers({"a": "3"}, "text/plain", {"cache-control": "no-store"})
    await storage.copy_conditionally(key, replaced, source_etag=etag, destination=None, lease=lease)
    head, body = await storage.read(key)
    if body != b"body":
        return Outcome(ok=False, detail="the body changed")
    seen = (head.metadata, head.headers.content_type, head.headers.restated.get("cache-control"))
    if seen != ({"a": "3"}, "text/plain", "no-store"):
        return Outcome(ok=False, detail="the metadata is not what was sent")
    return Outcome(ok=True, detail="metadata replaced, body unchanged")


async def copy_source(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy whose source has another ETag is refused."""
    etag = (await storage.put(key, b"body", Headers({"a": "1"}))).etag
    lease = await _lease(storage, key)
    refused = await _refused(
        storage.copy_conditionally(
            key, PLAIN, source_etag=WRONG_ETAG, destination=None, lease=lease
        )
    )
    untouched = (await storage.head(key)).metadata == {"a": "1"}
    await storage.copy_conditionally(key, PLAIN, source_etag=etag, destination=None, lease=lease)
    return _outcome(refused, untouched=untouched)


async def copy_destination(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy whose destination has another ETag is refused."""
    etag = (await storage.put(key, b"body", Headers({"a": "1"}))).etag
    lease = await _lease(storage, key)
    refused = await _refused(
        storage.copy_conditionally(
            key, PLAIN, source_etag=None, destination=IfMatch(WRONG_ETAG), lease=lease
        )
    )
    untouched = (await storage.head(key)).metadata == {"a": "1"}
    await storage.copy_conditionally(
        key, PLAIN, source_etag=None, destination=IfMatch(etag), lease=lease
    )
    return _outcome(refused, untouched=untouched)


async def completion(storage: ProbeStorage, key: str) -> Outcome:
    """A completion with `If-None-Match: *` creates an object, and is refused if one exists."""
    upload_id = await storage.create_multipart(key, PLAIN)
    part = await storage.upload_part(key, upload_id, 1, b"first")
    await storage.complete_multipart(key, upload_id, [part], condition=IfAbsent())
    upload_id = await storage.create_multipart(key, PLAIN)
    part = await storage.upload_part(key, upload_id, 1, b"second")
    refused = await _refused(
        storage.complete_multipart(key, upload_id, [part], condition=IfAbsent())
    )
    return _outcome(refused, untouched=(await storage.read(key))[1] == b"first")


async def multipart_copy(storage: ProbeStorage, key: str) -> Outcome:
    """An object is copied onto itself as a part of a multipart upload."""
    etag = (await storage.put(key, b"0123456789", Headers({"a": "1"}))).etag
    upload_id = await storage.create_multipart(key, Headers({"a": "2"}))
    part = await storage.copy_part(key, upload_id, 1, first=0, last=9, source_etag=etag)
    await storage.complete_multipart(key, upload_id, [part])
    head, body = await storage.read(key)
    if (head.metadata, body) != ({"a": "2"}, b"0123456789"):
        return Outcome(ok=False, detail="the copy differs")
    return Outcome(ok=True, detail="metadata replaced, body unchanged")


async def tags(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy keeps the tags."""
    etag = (await storage.put(key, b"body", PLAIN)).etag
    await storage.write_tags(key, {"team": "a b"})
    head = await storage.head(key)
    lease = Lease(head.date, _LEASE_S)
    await storage.copy_conditionally(key, PLAIN, source_etag=etag, destination=None, lease=lease)
    if await storage.read_tags(key) != {"team": "a b"}:
        return Outcome(ok=False, detail="lost")
    return Outcome(ok=True, detail="kept")


async def late_put(storage: ProbeStorage, key: str) -> Outcome:
    """A put is refused after its lease."""
    await storage.put(key, b"first", PLAIN)
    lease = await _lease(storage, key)
    await storage.put(key, b"in time", PLAIN, lease=lease)
    refused = await _refused_late(storage.put(key, b"late", PLAIN, lease=_late(lease)))
    return _outcome(refused, untouched=(await storage.read(key))[1] == b"in time")


async def late_copy(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy is refused after its lease."""
    etag = (await storage.put(key, b"body", PLAIN)).etag
    lease = await _lease(storage, key)
    in_time = Headers({"a": "1"})
    await storage.copy_conditionally(key, in_time, source_etag=etag, destination=None, lease=lease)
    etag = (await storage.head(key)).etag
    late = _late(lease)
    refused = await _refused_late(
        storage.copy_conditionally(key, PLAIN, source_etag=etag, destination=None, lease=late)
    )
    return _outcome(refused, untouched=(await storage.head(key)).metadata == {"a": "1"})


async def late_completion(storage: ProbeStorage, key: str) -> Outcome:
    """A completion is refused after its lease, and accepted in time."""
    await storage.put(key, b"first", PLAIN)
    lease = await _lease(storage, key)
    upload_id = await storage.create_multipart(key, PLAIN)
    part = await storage.upload_part(key, upload_id, 1, b"second")
    refused = await _refused_late(
        storage.complete_multipart(key, upload_id, [part], lease=_late(lease))
    )
    untouched = (await storage.read(key))[1] == b"first"
    if refused:
        await storage.complete_multipart(key, upload_id, [part], lease=lease)
    return _outcome(refused, untouched=untouched)


async def etag_of_put(storage: ProbeStorage, key: str) -> Outcome:
    """Check if a self-copy keeps the ETag of a single put."""
    written = await storage.put(key, b"body", PLAIN)
    return await _etag_kept(storage, key, written.etag)


async def etag_of_multipart(storage: ProbeStorage, key: str) -> Outcome:
    """Check if a self-copy keeps the ETag of a multipart upload."""
    upload_id = await storage.create_multipart(key, PLAIN)
    part = await storage.upload_part(key, upload_id, 1, b"body")
    written = await storage.complete_multipart(key, upload_id, [part])
    return await _etag_kept(storage, key, written.etag)


async def _etag_kept(storage: ProbeStorage, key: str, etag: str) -> Outcome:
    lease = await _lease(storage, key)
    await storage.copy_conditionally(key, PLAIN, source_etag=etag, destination=None, lease=lease)
    kept = (await storage.head(key)).etag == etag
    return Outcome(ok=kept, detail="kept" if kept else "changed")


async def conditional_delete(storage: Storage, key: str) -> Outcome:
    """Check if a delete with another ETag is refused."""
    await storage.put(key, b"body", PLAIN)
    refused = await _refused(storage.delete_if_match(key, WRONG_ETAG))
    try:
        await storage.head(key)
    except MissingError:
        return Outcome(ok=False, detail="condition ignored: deleted")
    return _outcome(refused, untouched=True)


async def unversioned(storage: ProbeStorage, key: str) -> Outcome:
    """Check if the bucket keeps old versions, and if it honors conditions nevertheless."""
    if not await storage.versioning():
        return Outcome(ok=True, detail="not versioned")
    await storage.put(key, b"first", PLAIN, condition=IfAbsent())
    if await _refused(storage.put(key, b"second", PLAIN, condition=IfAbsent())):
        return Outcome(ok=False, detail="versioned, and conditions are honored")
    return Outcome(ok=False, detail="versioned, and the server ignores If-None-Match: * there")


async def cut_puts(storage: ProbeStorage, key: str) -> Outcome:
    """A put whose connection is closed stores nothing, wherever it is cut (SPEC 7.2).

    The put is sent as Keyturn sends its own. If cut puts were stored, an upload would leave an
    object of the wrong length at its key, and a redelivery would report that as corrupt.
    """
    await storage.put(f"{key}-clock", b"", PLAIN)
    lease = await _lease(storage, f"{key}-clock")
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
    with suppress(StorageUnavailableError, StorageResponseError):
        await storage.put_cut_off(
            key, 2 * _PIECE, _META, sent_bytes=sent_bytes, condition=IfAbsent(), lease=lease
        )


async def _streamed(storage: ProbeStorage, key: str, pieces: int, lease: Lease) -> None:
    # One piece is held back, so that no body is complete before its source has ended.
    with suppress(_CutError, StorageUnavailableError, StorageResponseError):
        await storage.put_stream(
            key,
            _failing(pieces),
            (pieces + 1) * len(_PIECE),
            _META,
            condition=IfAbsent(),
            lease=lease,
        )


async def _failing(pieces: int) -> AsyncIterator[bytes]:
    for _ in range(pieces):
        yield _PIECE
    raise _CutError


async def _exists(storage: ProbeStorage, key: str) -> int | None:
    """Return the size of the stored object; None without one."""
    try:
        return (await storage.head(key)).size_bytes
    except MissingError:
        return None


async def _lease(storage: ProbeStorage, key: str) -> Lease:
    """Return a current lease, by the storage's own clock."""
    return Lease((await storage.head(key)).date, _LEASE_S)


def _late(lease: Lease) -> Lease:
    return Lease(lease.read_at - timedelta(seconds=_LATE_S), lease.expires_s)


async def _refused(write: Awaitable[object]) -> bool:
    """Check if a write is refused by its condition; other errors are raised."""
    return await _raises(write, PreconditionError)


async def _refused_late(write: Awaitable[object]) -> bool:
    """Check if a write is refused as too late."""
    return await _raises(write, RefusedError)


async def _raises(write: Awaitable[object], error: type[StorageResponseError]) -> bool:
    try:
        await write
    except error:
        return True
    return False


def _outcome(refused: bool, *, untouched: bool) -> Outcome:  # noqa: FBT001  # clear at each call
    if refused and untouched:
        return Outcome(ok=True, detail="refused, object unchanged")
    if refused:
        return Outcome(ok=False, detail="refused, but written nevertheless")
    return Outcome(ok=False, detail="not refused" if not untouched else "accepted without effect")
