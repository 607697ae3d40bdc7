"""The probe's checks that need no race (SPEC 10): each makes its requests and looks.

A refusal counts only where the object is afterwards as it was, and where the same request
with the right condition, or in time, is accepted.
"""

import asyncio
from collections.abc import Awaitable
from datetime import timedelta
from typing import Final

from keyturn_workers.errors import MissingError, PreconditionError, RefusedError, StorageAnswerError
from keyturn_workers.storage.port import Headers, IfAbsent, IfMatch, Lease, Storage
from keyturn_workers.storage.probe.protocol import Outcome, ProbeStorage

PLAIN: Final = Headers({})
WRONG_ETAG: Final = "0" * 32
_FIRST_PART_BYTES: Final = 5 * 2**20
_LEASE_S: Final = 60
# Far beyond what two clocks of one storage may differ by.
_LATE_S: Final = 600
_ROUNDS: Final = 4
_KEYS: Final = 8


async def create(storage: ProbeStorage, key: str) -> Outcome:
    """`If-None-Match: *` creates, and is refused where something stands.

    Under a lease, as every upload is put: a storage may treat query-signed requests otherwise.
    """
    await storage.put(f"{key}-clock", b"", PLAIN)
    lease = await _lease(storage, f"{key}-clock")
    await storage.put(key, b"first", PLAIN, condition=IfAbsent(), lease=lease)
    refused = await _refused(storage.put(key, b"second", PLAIN, condition=IfAbsent(), lease=lease))
    return _judge(refused, untouched=(await storage.read(key))[1] == b"first")


async def replace_body(storage: ProbeStorage, key: str) -> Outcome:
    """`If-Match` replaces the body it names, and none other."""
    etag = (await storage.put(key, b"first", PLAIN)).etag
    wrong = await _refused(storage.put(key, b"wrong", PLAIN, condition=IfMatch(WRONG_ETAG)))
    untouched = (await storage.read(key))[1] == b"first"
    await storage.put(key, b"second", PLAIN, condition=IfMatch(etag))
    stale = await _refused(storage.put(key, b"stale", PLAIN, condition=IfMatch(etag)))
    return _judge(
        wrong and stale, untouched=untouched and (await storage.read(key))[1] == b"second"
    )


async def read_after_write(storage: ProbeStorage, key: str) -> Outcome:
    """What was acknowledged is what the next read and the next listing show."""
    for number in range(_ROUNDS):
        body = b"%d" % number
        etag = (await storage.put(key, body, PLAIN)).etag
        if (await storage.read(key))[1] != body:
            return Outcome(ok=False, said="a read showed an earlier body")
        if [row.etag async for row in storage.list(key)] != [etag]:
            return Outcome(ok=False, said="a listing showed an earlier state")
    await storage.delete(key)
    try:
        await storage.head(key)
    except MissingError:
        if [row async for row in storage.list(key)]:
            return Outcome(ok=False, said="a listing showed a deleted object")
        return Outcome(ok=True, said=f"seen at once, {_ROUNDS} writes and a delete")
    return Outcome(ok=False, said="a read showed a deleted object")


async def overwritten_in_listing(storage: Storage, prefix: str) -> Outcome:
    """A listing begun after overwrites were acknowledged shows all their ETags (SPEC 8.4)."""
    keys = [f"{prefix}/{number}" for number in range(_KEYS)]
    for round_number in range(_ROUNDS):
        body = b"%d" % round_number
        puts = [storage.put(key, body + key.encode(), PLAIN) for key in keys]
        written = await asyncio.gather(*puts)
        page = await storage.list_page(f"{prefix}/")
        if page.date is None:
            return Outcome(ok=False, said="a listing without a Date")
        wanted = {key: put.etag for key, put in zip(keys, written, strict=True)}
        if dict(page.etags) != wanted or not page.is_last:
            return Outcome(ok=False, said="a listing showed an earlier state")
    return Outcome(ok=True, said=f"seen at once, {_KEYS} overwrites, {_ROUNDS} rounds")


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
    whole = end == b"ftail" and head.size_bytes == len(first) + 4
    if not whole or head.metadata != {"a": "1"}:
        return Outcome(ok=False, said="the object differs from its parts")
    return Outcome(ok=True, said="two parts became one object")


async def replace_metadata(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy replaces the metadata, takes headers anew, and leaves the body."""
    etag = (await storage.put(key, b"body", Headers({"a": "1", "b": "2"}, "text/plain"))).etag
    lease = await _lease(storage, key)
    turned = Headers({"a": "3"}, "text/plain", {"cache-control": "no-store"})
    await storage.copy_conditionally(key, turned, source_etag=etag, destination=None, lease=lease)
    head, body = await storage.read(key)
    if body != b"body":
        return Outcome(ok=False, said="the body changed")
    told = (head.metadata, head.headers.content_type, head.headers.restated.get("cache-control"))
    if told != ({"a": "3"}, "text/plain", "no-store"):
        return Outcome(ok=False, said="the metadata is not what was said")
    return Outcome(ok=True, said="metadata replaced, body unchanged")


async def copy_source(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy of a body that is no longer there is refused."""
    etag = (await storage.put(key, b"body", Headers({"a": "1"}))).etag
    lease = await _lease(storage, key)
    refused = await _refused(
        storage.copy_conditionally(
            key, PLAIN, source_etag=WRONG_ETAG, destination=None, lease=lease
        )
    )
    untouched = (await storage.head(key)).metadata == {"a": "1"}
    await storage.copy_conditionally(key, PLAIN, source_etag=etag, destination=None, lease=lease)
    return _judge(refused, untouched=untouched)


async def copy_destination(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy onto a body that is no longer there is refused."""
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
    return _judge(refused, untouched=untouched)


async def completion(storage: ProbeStorage, key: str) -> Outcome:
    """A completion with `If-None-Match: *` creates, and is refused where something stands."""
    upload_id = await storage.create_multipart(key, PLAIN)
    part = await storage.upload_part(key, upload_id, 1, b"first")
    await storage.complete_multipart(key, upload_id, [part], condition=IfAbsent())
    upload_id = await storage.create_multipart(key, PLAIN)
    part = await storage.upload_part(key, upload_id, 1, b"second")
    refused = await _refused(
        storage.complete_multipart(key, upload_id, [part], condition=IfAbsent())
    )
    return _judge(refused, untouched=(await storage.read(key))[1] == b"first")


async def multipart_copy(storage: ProbeStorage, key: str) -> Outcome:
    """An object becomes a part of its own successor."""
    etag = (await storage.put(key, b"0123456789", Headers({"a": "1"}))).etag
    upload_id = await storage.create_multipart(key, Headers({"a": "2"}))
    part = await storage.copy_part(key, upload_id, 1, first=0, last=9, source_etag=etag)
    await storage.complete_multipart(key, upload_id, [part])
    head, body = await storage.read(key)
    if (head.metadata, body) != ({"a": "2"}, b"0123456789"):
        return Outcome(ok=False, said="the copy differs")
    return Outcome(ok=True, said="metadata replaced, body unchanged")


async def tags(storage: ProbeStorage, key: str) -> Outcome:
    """Tags survive a self-copy, and reads tell how many there are."""
    etag = (await storage.put(key, b"body", PLAIN)).etag
    await storage.write_tags(key, {"team": "a b"})
    told = await storage.head(key)
    lease = Lease(told.date, _LEASE_S)
    await storage.copy_conditionally(key, PLAIN, source_etag=etag, destination=None, lease=lease)
    if await storage.read_tags(key) != {"team": "a b"}:
        return Outcome(ok=False, said="lost")
    return Outcome(ok=True, said="kept")


async def late_put(storage: ProbeStorage, key: str) -> Outcome:
    """A put after its lease is refused."""
    await storage.put(key, b"first", PLAIN)
    lease = await _lease(storage, key)
    await storage.put(key, b"in time", PLAIN, lease=lease)
    refused = await _fenced(storage.put(key, b"late", PLAIN, lease=_late(lease)))
    return _judge(refused, untouched=(await storage.read(key))[1] == b"in time")


async def late_copy(storage: ProbeStorage, key: str) -> Outcome:
    """A self-copy after its lease is refused."""
    etag = (await storage.put(key, b"body", PLAIN)).etag
    lease = await _lease(storage, key)
    in_time = Headers({"a": "1"})
    await storage.copy_conditionally(key, in_time, source_etag=etag, destination=None, lease=lease)
    etag = (await storage.head(key)).etag
    late = _late(lease)
    refused = await _fenced(
        storage.copy_conditionally(key, PLAIN, source_etag=etag, destination=None, lease=late)
    )
    return _judge(refused, untouched=(await storage.head(key)).metadata == {"a": "1"})


async def late_completion(storage: ProbeStorage, key: str) -> Outcome:
    """A completion after its lease is refused, and one in time goes through."""
    await storage.put(key, b"first", PLAIN)
    lease = await _lease(storage, key)
    upload_id = await storage.create_multipart(key, PLAIN)
    part = await storage.upload_part(key, upload_id, 1, b"second")
    refused = await _fenced(storage.complete_multipart(key, upload_id, [part], lease=_late(lease)))
    untouched = (await storage.read(key))[1] == b"first"
    if refused:
        await storage.complete_multipart(key, upload_id, [part], lease=lease)
    return _judge(refused, untouched=untouched)


async def etag_of_put(storage: ProbeStorage, key: str) -> Outcome:
    """Whether a self-copy keeps the ETag of a body that was put."""
    written = await storage.put(key, b"body", PLAIN)
    return await _etag_kept(storage, key, written.etag)


async def etag_of_multipart(storage: ProbeStorage, key: str) -> Outcome:
    """Whether a self-copy keeps the ETag of a multipart upload."""
    upload_id = await storage.create_multipart(key, PLAIN)
    part = await storage.upload_part(key, upload_id, 1, b"body")
    written = await storage.complete_multipart(key, upload_id, [part])
    return await _etag_kept(storage, key, written.etag)


async def _etag_kept(storage: ProbeStorage, key: str, etag: str) -> Outcome:
    lease = await _lease(storage, key)
    await storage.copy_conditionally(key, PLAIN, source_etag=etag, destination=None, lease=lease)
    kept = (await storage.head(key)).etag == etag
    return Outcome(ok=kept, said="kept" if kept else "changed")


async def conditional_delete(storage: ProbeStorage, key: str) -> Outcome:
    """Whether a delete of another body is refused."""
    await storage.put(key, b"body", PLAIN)
    refused = await _refused(storage.delete_if_match(key, WRONG_ETAG))
    try:
        await storage.head(key)
    except MissingError:
        return Outcome(ok=False, said="condition ignored: deleted")
    return _judge(refused, untouched=True)


async def unversioned(storage: ProbeStorage, key: str) -> Outcome:
    """Whether the bucket keeps old versions, and whether it honours conditions all the same."""
    if not await storage.versioning():
        return Outcome(ok=True, said="not versioned")
    await storage.put(key, b"first", PLAIN, condition=IfAbsent())
    if await _refused(storage.put(key, b"second", PLAIN, condition=IfAbsent())):
        return Outcome(ok=False, said="versioned, and conditions are honoured")
    return Outcome(ok=False, said="versioned, and the server ignores If-None-Match: * there")


async def _lease(storage: ProbeStorage, key: str) -> Lease:
    """A lease in time, by the storage's own clock."""
    return Lease((await storage.head(key)).date, _LEASE_S)


def _late(lease: Lease) -> Lease:
    return Lease(lease.read_at - timedelta(seconds=_LATE_S), lease.expires_s)


async def _refused(write: Awaitable[object]) -> bool:
    """Whether a write met its condition's refusal; any other failure is not one."""
    return await _answered(write, PreconditionError)


async def _fenced(write: Awaitable[object]) -> bool:
    """Whether a write was refused as too late."""
    return await _answered(write, RefusedError)


async def _answered(write: Awaitable[object], wanted: type[StorageAnswerError]) -> bool:
    try:
        await write
    except wanted:
        return True
    return False


def _judge(refused: bool, *, untouched: bool) -> Outcome:  # noqa: FBT001  # read aloud it is clear
    if refused and untouched:
        return Outcome(ok=True, said="refused, object unchanged")
    if refused:
        return Outcome(ok=False, said="refused, and written all the same")
    return Outcome(ok=False, said="not refused" if not untouched else "accepted without effect")
