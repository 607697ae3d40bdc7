"""The promises of the storage port, tested on each implementation (SPEC 8.4, 10).

If a server is known to differ, the test names it by its kind.
"""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import aiohttp
import pytest
from yarl import URL

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.core.storage_values import (
    Headers,
    IfAbsent,
    IfMatch,
    Lease,
    ObjectSummary,
    Part,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from keyturn_workers.storage.s3 import S3Storage
    from tests.integration.storage.conftest import AnyStorage

PLAIN = Headers({})
MIB = 2**20
# moto does not look at the time of a signature (FACTS): there a late write is not refused.
NO_FENCE = {"moto"}

ODD_KEYS = [
    "acme/with space",
    "acme/ünïcode/日本語 🗝",
    "acme/plus+sign",
    "acme/literal%2Fpercent",
    "acme/100%",
    "acme/tilde~_-.",
    "acme/quest?ion&amp=er#hash",
    "acme/a:b@c!$'()*,;=[]",
    'acme/"quoted"\\back<angle>',
    "acme/e\u0301 decomposed",
    "acme/" + "k" * 900,
]


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def everything(storage: AnyStorage, key: str, **where: int | str) -> bytes:
    async with storage.stream(key, **where) as stream:  # type: ignore[arg-type]  # start, if_match
        return b"".join([chunk async for chunk in stream.chunks(70_000)])


def lease_of(date: datetime, expires_s: int = 15) -> Lease:
    return Lease(date, expires_s)


async def test_put_and_read(storage: AnyStorage) -> None:
    """What was put comes back: bytes, metadata in lower case, content type, times, ETag."""
    headers = Headers({"author": "kim", "enc-algo": "X"}, "application/pdf")
    before = datetime.now(UTC) - timedelta(seconds=2)
    written = await storage.put("acme/q3.pdf", b"abc", headers)
    head, body = await storage.read("acme/q3.pdf")
    assert body == b"abc"
    assert head.metadata == {"author": "kim", "enc-algo": "X"}
    assert head.headers.content_type == "application/pdf"
    assert (head.size_bytes, head.etag) == (3, written.etag)
    assert written.date is not None
    assert before <= written.date <= datetime.now(UTC) + timedelta(seconds=2)
    assert written.etag == hashlib.md5(b"abc", usedforsecurity=False).hexdigest()
    assert before <= head.date <= datetime.now(UTC) + timedelta(seconds=2)
    assert before <= head.last_modified
    assert (await storage.head("acme/q3.pdf")).headers == head.headers


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_odd_keys(storage: AnyStorage, key: str) -> None:
    """Every key that SPEC 1 allows is one object's alone, whatever its characters."""
    etag = (await storage.put(key, b"body", PLAIN, condition=IfAbsent())).etag
    head, start = await storage.read_start(key, 2)
    assert start == b"bo"
    assert head.size_bytes == 4
    assert [row.key async for row in storage.list("acme/")] == [key]
    await storage.copy_onto_itself(
        key, Headers({"turned": "yes"}), source_etag=etag, lease=lease_of(head.date)
    )
    assert (await storage.head(key)).metadata == {"turned": "yes"}
    upload_id = await storage.create_multipart(key, PLAIN)
    assert [row.key async for row in storage.list_multipart_uploads("acme/")] == [key]
    await storage.abort_multipart(key, upload_id)
    await storage.delete(key)
    with pytest.raises(MissingError):
        await storage.head(key)


@pytest.mark.parametrize(
    "value",
    [
        "two  spaces",
        "=?UTF-8?B?w7xuw69jb2Rl?=",
        "a,b; c=d",
        'quote " and \\',
        "1:9f86d081884c7d65",
        "x" * 900,
    ],
)
async def test_odd_metadata(storage: AnyStorage, value: str) -> None:
    """Metadata is signed and stored as it is, leased or not, and a copy restates it as given."""
    for lease in (None, lease_of(datetime.now(UTC))):
        etag = (await storage.put("acme/k", b"1", Headers({"said": value}), lease=lease)).etag
        head = await storage.head("acme/k")
        assert head.metadata == {"said": value}
    await storage.copy_onto_itself(
        "acme/k", head.headers, source_etag=etag, lease=lease_of(head.date)
    )
    assert (await storage.head("acme/k")).headers == head.headers


async def test_empty_metadata_value_is_kept_or_dropped(storage: AnyStorage) -> None:
    """An empty value never breaks a signature; Ceph may leave it out, and nothing else."""
    headers = Headers({"empty": "", "full": "1"})
    await storage.put("acme/k", b"1", headers, lease=lease_of(datetime.now(UTC)))
    metadata = dict((await storage.head("acme/k")).metadata)
    assert metadata.pop("empty", "") == ""
    assert metadata == {"full": "1"}


async def test_content_headers_survive_a_restated_copy(storage: AnyStorage) -> None:
    """SPEC 8.2: what the response has is what a self-copy restates."""
    restated = {
        "cache-control": "max-age=60",
        "content-disposition": 'attachment; filename="q3.pdf"',
        "content-encoding": "gzip",
        "content-language": "de",
        "expires": "Tue, 24 Nov 2037 10:00:00 GMT",
    }
    await storage.put("acme/k", b"not gzip at all", Headers({"a": "1"}, "text/plain", restated))
    head, body = await storage.read("acme/k")
    assert body == b"not gzip at all"
    assert {name: head.headers.restated.get(name) for name in restated} == restated
    turned = Headers({"a": "2"}, head.headers.content_type, head.headers.restated)
    await storage.copy_onto_itself(
        "acme/k", turned, source_etag=head.etag, lease=lease_of(head.date)
    )
    after, body = await storage.read("acme/k")
    assert after.headers == turned
    assert (body, after.etag) == (b"not gzip at all", head.etag)


async def test_missing(storage: AnyStorage) -> None:
    """Every read of what is not there says so; deleting or aborting it is fine."""
    with pytest.raises(MissingError):
        await storage.read("acme/none")
    with pytest.raises(MissingError):
        await storage.read_start("acme/none", 56)
    with pytest.raises(MissingError):
        await storage.head("acme/none")
    with pytest.raises(MissingError):
        await everything(storage, "acme/none")
    with pytest.raises(MissingError):
        await storage.copy_onto_itself(
            "acme/none", PLAIN, source_etag="0" * 32, lease=lease_of(datetime.now(UTC))
        )
    with pytest.raises((MissingError, PreconditionError)):
        await storage.put("acme/none", b"1", PLAIN, condition=IfMatch("0" * 32))
    await storage.delete("acme/none")
    upload_id = await storage.create_multipart("acme/none", PLAIN)
    await storage.abort_multipart("acme/none", upload_id)
    await storage.abort_multipart("acme/none", upload_id)


async def test_absence_is_named_by_the_storages_own_code(storage: AnyStorage) -> None:
    """A 404 counts only with a code of S3's, and these servers send it (SPEC 8.6)."""
    reads: list[Callable[[], Awaitable[object]]] = [
        lambda: storage.read("acme/none"),
        lambda: storage.read_start("acme/none", 56),
        lambda: storage.head("acme/none"),
        lambda: storage.read_tags("acme/none"),
        lambda: everything(storage, "acme/none"),
    ]
    for read in reads:
        with pytest.raises(MissingError, match="NoSuchKey"):
            await read()


async def test_an_upload_that_is_gone(storage: AnyStorage, kind: str) -> None:
    """Neither a part nor a completion brings it back; its id is quoted, whatever it is.

    Ceph's gateway answers such a completion with 500, moto such a part with none at all.
    """
    gone = MissingError if kind == "memory" else (MissingError, StorageUnavailableError)
    upload_id = await storage.create_multipart("acme/k", PLAIN)
    await storage.abort_multipart("acme/k", upload_id)
    for bad_id in (upload_id, "no such/upload+id&x=1"):
        with pytest.raises(gone):
            await storage.upload_part("acme/k", bad_id, 1, b"1")
        with pytest.raises(gone):
            await storage.complete_multipart("acme/k", bad_id, [Part(1, "0" * 32)])
    with pytest.raises(MissingError):
        await storage.head("acme/k")


async def test_read_start(storage: AnyStorage) -> None:
    """The whole object's size in any case, and nothing of an empty one."""
    await storage.put("acme/long", b"0123456789", Headers({"a": "1"}))
    await storage.put("acme/short", b"0123", PLAIN)
    await storage.put("acme/empty", b"", Headers({"enc-algo": "deleted"}))
    head, start = await storage.read_start("acme/long", 4)
    assert (head.size_bytes, head.metadata, start) == (10, {"a": "1"}, b"0123")
    head, start = await storage.read_start("acme/short", 56)
    assert (head.size_bytes, start) == (4, b"0123")
    head, start = await storage.read_start("acme/empty", 56)
    assert (head.size_bytes, head.metadata, start) == (0, {"enc-algo": "deleted"}, b"")


async def test_stream(storage: AnyStorage) -> None:
    """From any byte on, in pieces of the requested size or as they come, up to the end."""
    body = bytes(range(256)) * 1000
    etag = (await storage.put("acme/k", body, PLAIN)).etag
    async with storage.stream("acme/k", start=1000) as stream:
        assert stream.head.size_bytes == len(body)
        found = [chunk async for chunk in stream.chunks(65_536)]
    assert b"".join(found) == body[1000:]
    assert {len(chunk) for chunk in found[:-1]} == {65_536}
    async with storage.stream("acme/k", start=1000) as stream:
        assert b"".join([chunk async for chunk in stream.chunks(None)]) == body[1000:]
    assert await everything(storage, "acme/k", if_match=etag) == body
    assert await everything(storage, "acme/k", start=len(body), if_match=etag) == b""
    assert await everything(storage, "acme/k", start=len(body) - 1) == body[-1:]
    with pytest.raises(PreconditionError):
        await everything(storage, "acme/k", if_match="0" * 32)
    with pytest.raises(PreconditionError):
        await everything(storage, "acme/k", start=5, if_match="0" * 32)


async def test_a_bounded_stream(storage: AnyStorage) -> None:
    """No more than was requested, and fewer bytes if the object ends before."""
    body = bytes(range(256)) * 400
    etag = (await storage.put("acme/k", body, PLAIN)).etag
    for start, length_bytes in ((0, 1), (0, len(body)), (56, 16400), (len(body) - 3, 100)):
        async with storage.stream(
            "acme/k", start=start, length_bytes=length_bytes, if_match=etag
        ) as stream:
            assert stream.head.size_bytes == len(body)
            got = b"".join([chunk async for chunk in stream.chunks(7000)])
        assert got == body[start : start + length_bytes]
    with pytest.raises(PreconditionError):
        await everything(storage, "acme/k", start=5, length_bytes=5, if_match="0" * 32)


@pytest.mark.parametrize("key", ODD_KEYS)
async def test_a_presigned_url_needs_no_credentials(
    storage: AnyStorage, kind: str, key: str
) -> None:
    """Whole or in part, with any HTTP client and without a credential."""
    if kind == "memory":
        return  # there is no server
    await storage.put(key, b"body", Headers({}, "text/x"))
    signed = URL(await storage.presign_get(key, lease_of(datetime.now(UTC), 60)), encoded=True)
    async with aiohttp.ClientSession() as session:
        async with session.get(signed) as answer:
            assert (answer.status, await answer.read()) == (200, b"body")
            assert answer.content_type == "text/x"
        async with session.get(signed, headers={"range": "bytes=1-2"}) as answer:
            assert (answer.status, await answer.read()) == (206, b"od")


async def test_a_presigned_url_is_for_one_key_one_method_and_one_period(
    on_ceph: S3Storage,
) -> None:
    """The storage itself refuses all else (moto does not look)."""
    await on_ceph.put("acme/k", b"body", PLAIN)
    await on_ceph.put("acme/other", b"other", PLAIN)
    date = (await on_ceph.head("acme/k")).date
    signed = await on_ceph.presign_get("acme/k", lease_of(date, 60))
    over = await on_ceph.presign_get("acme/k", lease_of(date - timedelta(seconds=5), 1))
    async with aiohttp.ClientSession() as session:
        for method, url in (
            ("GET", over),
            ("GET", signed.replace("/acme/k", "/acme/other")),
            ("GET", signed.replace("X-Amz-Expires=60", "X-Amz-Expires=600")),
            ("PUT", signed),
            ("DELETE", signed),
        ):
            async with session.request(method, URL(url, encoded=True)) as answer:
                assert answer.status == 403, method
        async with session.get(URL(signed, encoded=True)) as answer:
            assert await answer.read() == b"body"


async def test_a_stream_left_early_leaves_the_pool_usable(storage: AnyStorage) -> None:
    """Many readers that stop in the middle do not run the pool dry."""
    await storage.put("acme/k", b"x" * MIB, PLAIN)
    for _ in range(100):
        async with storage.stream("acme/k") as stream:
            async for _chunk in stream.chunks(1000):
                break
    assert (await storage.head("acme/k")).size_bytes == MIB


async def test_put_conditions(storage: AnyStorage) -> None:
    """Required by SPEC 10: `If-None-Match: *` and `If-Match`, and a refusal writes nothing."""
    first = (await storage.put("acme/k", b"1", PLAIN, condition=IfAbsent())).etag
    with pytest.raises(PreconditionError):
        await storage.put("acme/k", b"2", PLAIN, condition=IfAbsent())
    second = (await storage.put("acme/k", b"3", PLAIN, condition=IfMatch(first))).etag
    with pytest.raises(PreconditionError):
        await storage.put("acme/k", b"4", PLAIN, condition=IfMatch(first))
    head, body = await storage.read("acme/k")
    assert (head.etag, body) == (second, b"3")


async def test_concurrent_creators(storage: AnyStorage) -> None:
    """Of 32 at once exactly one succeeds, and its body is the one stored."""

    async def create(number: int) -> int | None:
        try:
            await storage.put("acme/k", b"%d" % number, PLAIN, condition=IfAbsent())
        except (PreconditionError, StorageUnavailableError):
            return None
        return number

    for _ in range(3):
        won = [n for n in await asyncio.gather(*map(create, range(32))) if n is not None]
        assert len(won) == 1
        assert (await storage.read("acme/k"))[1] == b"%d" % won[0]
        await storage.delete("acme/k")


async def test_concurrency_of_32(storage: AnyStorage) -> None:
    """Many objects at once, each with its own body and metadata."""

    async def one(number: int) -> None:
        key, body = f"acme/{number}", b"%d" % number * 100
        lease = lease_of(datetime.now(UTC))
        etag = (await storage.put(key, body, Headers({"n": str(number)}), lease=lease)).etag
        head, found = await storage.read(key)
        assert (head.etag, head.metadata, found) == (etag, {"n": str(number)}, body)

    for start in range(0, 128, 32):
        await asyncio.gather(*(one(number) for number in range(start, start + 32)))
    assert len([row async for row in storage.list("acme/")]) == 128


@pytest.mark.parametrize("leased", [False, True])
@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 1])
async def test_put_stream(storage: AnyStorage, size: int, *, leased: bool) -> None:
    """A body of known length from pieces of any size, empty ones too."""
    body = b"s" * size
    chunks = pieces(b"", *(body[at : at + 300_000] for at in range(0, size, 300_000)), b"")
    lease = lease_of(datetime.now(UTC)) if leased else None
    written = await storage.put_stream(
        "acme/k", chunks, size, Headers({"a": "1"}), condition=IfAbsent(), lease=lease
    )
    head, found = await storage.read("acme/k")
    assert (head.etag, head.size_bytes, head.metadata) == (written.etag, size, {"a": "1"})
    assert found == body


async def test_put_stream_conditions(storage: AnyStorage) -> None:
    """A streamed put honors its condition, and the storage goes on working."""
    etag = (await storage.put("acme/k", b"1", PLAIN)).etag
    big = b"2" * (2 * MIB)
    with pytest.raises(PreconditionError):
        await storage.put_stream("acme/k", pieces(big), len(big), PLAIN, condition=IfAbsent())
    with pytest.raises(PreconditionError):
        await storage.put_stream(
            "acme/k", pieces(big), len(big), PLAIN, condition=IfMatch("0" * 32)
        )
    assert (await storage.read("acme/k"))[1] == b"1"
    await storage.put_stream("acme/k", pieces(big), len(big), PLAIN, condition=IfMatch(etag))
    assert await everything(storage, "acme/k") == big


class SourceError(Exception):
    """Something that no storage knows."""


@pytest.mark.parametrize("given", [0, 1, 2 * MIB])
async def test_a_source_that_fails_stores_nothing(storage: AnyStorage, given: int) -> None:
    """Its error comes back unchanged, even where all bytes but the end were given."""
    failure = SourceError("as it was")

    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * given
        raise failure

    with pytest.raises(SourceError) as caught:
        await storage.put_stream("acme/k", failing(), max(given, 1), PLAIN)
    assert caught.value is failure
    with pytest.raises(MissingError):
        await storage.head("acme/k")


@pytest.mark.parametrize("announced", [MIB - 1, MIB + 1])
async def test_a_source_of_another_length_stores_nothing(
    storage: AnyStorage, announced: int
) -> None:
    """Shorter or longer than said: refused here, before the last byte is sent."""
    with pytest.raises(ValueError, match="than announced"):
        await storage.put_stream("acme/k", pieces(b"x" * MIB), announced, PLAIN)
    with pytest.raises(MissingError):
        await storage.head("acme/k")


async def test_late_leased_writes_are_refused(storage: AnyStorage, kind: str) -> None:
    """SPEC 8.4: the storage itself refuses what arrives after its lease."""
    if kind in NO_FENCE:
        pytest.skip("moto does not look at the time of a signature")
    etag = (await storage.put("acme/k", b"1", Headers({"a": "1"}))).etag
    date = (await storage.head("acme/k")).date
    late = lease_of(date - timedelta(seconds=20))
    upload_id = await storage.create_multipart("acme/m", PLAIN)
    part = await storage.upload_part("acme/m", upload_id, 1, b"1")
    with pytest.raises(RefusedError):
        await storage.put("acme/k", b"2", PLAIN, lease=late)
    with pytest.raises(RefusedError):
        await storage.put_stream("acme/k", pieces(b"2" * MIB), MIB, PLAIN, lease=late)
    with pytest.raises(RefusedError):
        await storage.copy_onto_itself("acme/k", PLAIN, source_etag=etag, lease=late)
    with pytest.raises(RefusedError):
        await storage.complete_multipart("acme/m", upload_id, [part], lease=late)
    head, body = await storage.read("acme/k")
    assert (head.metadata, body) == ({"a": "1"}, b"1")
    with pytest.raises(MissingError):
        await storage.head("acme/m")
    await storage.complete_multipart("acme/m", upload_id, [part], lease=lease_of(date, 30))
    assert (await storage.read("acme/m"))[1] == b"1"


async def test_copy_source_condition(storage: AnyStorage, kind: str) -> None:
    """A self-copy of another body than the one that was read is refused (moto ignores it)."""
    await storage.put("acme/k", b"1", Headers({"a": "1"}))
    lease = lease_of(datetime.now(UTC))
    if kind == "moto":
        pytest.skip("moto ignores x-amz-copy-source-if-match")
    with pytest.raises(PreconditionError):
        await storage.copy_onto_itself("acme/k", PLAIN, source_etag="0" * 32, lease=lease)
    assert (await storage.head("acme/k")).metadata == {"a": "1"}


async def test_multipart(storage: AnyStorage, kind: str) -> None:
    """Parts in any order become one object with the headers given at the beginning."""
    headers = Headers({"author": "kim"}, "video/mp4", {"cache-control": "no-store"})
    upload_id = await storage.create_multipart("acme/k", headers)
    second = await storage.upload_part("acme/k", upload_id, 2, b"tail")
    first = await storage.upload_part("acme/k", upload_id, 1, b"f" * (5 * MIB))
    opened = [row async for row in storage.list_multipart_uploads("acme/")]
    assert [(row.key, row.upload_id) for row in opened] == [("acme/k", upload_id)]
    if kind != "moto":  # which reports the same moment of 2010 for every upload
        assert abs(datetime.now(UTC) - opened[0].initiated) < timedelta(minutes=1)
    lease = lease_of(datetime.now(UTC))
    written = await storage.complete_multipart(
        "acme/k", upload_id, [first, second], condition=IfAbsent(), lease=lease
    )
    head = await storage.head("acme/k")
    assert (head.etag, head.size_bytes) == (written.etag, 5 * MIB + 4)
    assert head.metadata == {"author": "kim"}
    assert head.headers.content_type == "video/mp4"
    assert head.headers.restated["cache-control"] == "no-store"
    assert await everything(storage, "acme/k", start=5 * MIB) == b"tail"
    assert [row async for row in storage.list_multipart_uploads("acme/")] == []


async def test_conditional_completion(storage: AnyStorage, kind: str) -> None:
    """Moto honors it; Ceph's gateway does not, and the second body wins."""
    await storage.put("acme/k", b"first", PLAIN)
    upload_id = await storage.create_multipart("acme/k", PLAIN)
    part = await storage.upload_part("acme/k", upload_id, 1, b"second")
    if kind == "moto":
        with pytest.raises(PreconditionError):
            await storage.complete_multipart("acme/k", upload_id, [part], condition=IfAbsent())
        assert (await storage.read("acme/k"))[1] == b"first"
    else:
        await storage.complete_multipart("acme/k", upload_id, [part], condition=IfAbsent())
        assert (await storage.read("acme/k"))[1] == b"second"


async def test_copied_part(storage: AnyStorage) -> None:
    """A range of the object itself as a part, for bodies above the copy limit."""
    etag = (await storage.put("acme/k", b"0123456789", PLAIN)).etag
    upload_id = await storage.create_multipart("acme/k", Headers({"a": "2"}))
    part = await storage.copy_part("acme/k", upload_id, 1, first=0, last=9, source_etag=etag)
    await storage.complete_multipart("acme/k", upload_id, [part])
    head, body = await storage.read("acme/k")
    assert (head.metadata, body) == ({"a": "2"}, b"0123456789")


async def test_list(storage: AnyStorage) -> None:
    """In the order of the keys' bytes, from behind a key, up to a limit."""
    keys = sorted(["acme/a", "acme/a b", "acme/a+b", "acme/z", "acme/é"], key=str.encode)
    for key in [*keys, "acme2/other"]:
        await storage.put(key, b"12", PLAIN)
    rows = [row async for row in storage.list("acme/")]
    assert [row.key for row in rows] == keys
    assert {row.size_bytes for row in rows} == {2}
    assert rows[0].etag == (await storage.head(keys[0])).etag
    behind = [row async for row in storage.list("acme/", after="acme/a+b", limit=1)]
    assert [row.key for row in behind] == [keys[keys.index("acme/a+b") + 1]]
    assert [row async for row in storage.list("acme/", limit=0)] == []
    assert [row async for row in storage.list("none/")] == []


async def test_tags(storage: AnyStorage) -> None:
    """Tags are read, counted in every read, and put back."""
    await storage.put("acme/k", b"1", PLAIN)
    assert await storage.read_tags("acme/k") == {}
    await storage.write_tags("acme/k", {"team": "a b", "x": "ü+="})
    assert await storage.read_tags("acme/k") == {"team": "a b", "x": "ü+="}
    head, _ = await storage.read_start("acme/k", 1)
    assert head.tag_count == 2


async def test_versioning(storage: AnyStorage) -> None:
    """A fresh bucket keeps none."""
    assert await storage.versioning() == ""


async def test_long_listing_goes_over_pages(storage: AnyStorage) -> None:
    """More rows than one page of the server holds."""
    keys = [f"acme/{number:05}" for number in range(1203)]
    for start in range(0, len(keys), 64):
        await asyncio.gather(*(storage.put(key, b"", PLAIN) for key in keys[start : start + 64]))
    rows: list[ObjectSummary] = [row async for row in storage.list("acme/")]
    assert [row.key for row in rows] == keys
    assert len([row async for row in storage.list("acme/", limit=1100)]) == 1100
