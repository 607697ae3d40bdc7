"""Raw requests against a server that misbehaves by script (SPEC 7, 8.4, 10)."""

from __future__ import annotations

import asyncio
import traceback
from base64 import b64encode
from datetime import UTC, datetime
from hashlib import md5
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from keyturn.errors import SettingsError, StorageUnavailableError
from keyturn.settings import S3Settings
from keyturn_workers.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.storage import Headers, IfAbsent, IfMatch, Lease, Part, s3_session
from keyturn_workers.storage.port import RECORD_MAX_BYTES
from keyturn_workers.storage.s3 import S3Storage, open_storage
from tests.unit.keyturn_workers.storage.scripted import (
    DROP,
    ETAG,
    SECRET,
    SILENCE,
    Reply,
    scripted_server,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from keyturn_workers.storage import ObjectStream
    from tests.unit.keyturn_workers.storage.scripted import ScriptedServer

PLAIN = Headers({})
COPIED = b"<CopyObjectResult><ETag>&quot;x&quot;</ETag></CopyObjectResult>"


def error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message/></Error>".encode()


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with scripted_server() as server:
        yield server


@pytest.fixture
async def storage(server: ScriptedServer) -> AsyncIterator[S3Storage]:
    async with open_storage(server.settings(), max_connections=4) as storage:
        yield storage


def lease(expires_s: int = 15) -> Lease:
    return Lease(datetime(2026, 11, 24, 10, 0, 0, tzinfo=UTC), expires_s)


async def chunks(*given: bytes) -> AsyncIterator[bytes]:
    for chunk in given:
        yield chunk


# More than is sent at once.
LARGE = bytes(2**20 + 1)
WRITES: dict[str, Callable[[S3Storage], Awaitable[object]]] = {
    "put": lambda s: s.put("a/k", b"body", PLAIN, condition=IfAbsent()),
    "leased put": lambda s: s.put("a/k", b"body", PLAIN, condition=IfAbsent(), lease=lease()),
    "large put": lambda s: s.put("a/k", LARGE, PLAIN, condition=IfAbsent()),
    "streamed put": lambda s: s.put_stream("a/k", chunks(b"bo", b"dy"), 4, PLAIN),
    "copy": lambda s: s.copy_onto_itself("a/k", PLAIN, source_etag=ETAG, lease=lease()),
    "part": lambda s: s.upload_part("a/k", "id", 1, b"body"),
    "completion": lambda s: s.complete_multipart("a/k", "id", [Part(1, ETAG)], lease=lease()),
    "begin": lambda s: s.create_multipart("a/k", PLAIN),
}


@pytest.mark.parametrize("name", WRITES)
async def test_a_dropped_connection_is_told_and_never_resent(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    """A kept connection that drops after the request was read: it may have been stored.

    aiohttp alone would send a PUT again, and `If-None-Match: *` would meet its first try.
    """
    await storage.put("a/warm", b"1", PLAIN)
    server.script = [DROP]
    with pytest.raises(StorageUnavailableError):
        await WRITES[name](storage)
    warm, lost = server.asked
    assert lost.connection == warm.connection, "the drop must hit a kept connection"


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("status", [400, 409, 429, 500, 503, 307])
async def test_a_failed_write_is_not_resent(
    server: ScriptedServer, storage: S3Storage, name: str, status: int
) -> None:
    """Not after an error, and not where a redirect points."""
    server.script = [Reply(status, error("SlowDown"), {"Location": "/elsewhere"})]
    with pytest.raises(StorageUnavailableError, match="SlowDown"):
        await WRITES[name](storage)
    assert len(server.asked) == 1


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize(
    ("status", "code", "raised"),
    [
        (403, "AccessDenied", RefusedError),
        (404, "NoSuchUpload", MissingError),
        (412, "PreconditionFailed", PreconditionError),
        (409, "ConditionalRequestConflict", PreconditionError),
        (404, "NoSuchBucket", StorageUnavailableError),
    ],
)
async def test_definite_answers(
    server: ScriptedServer, storage: S3Storage, name: str, status: int, code: str, raised: type
) -> None:
    """Each with its error, whose text is the operation and the code alone."""
    server.script = [Reply(status, error(code))]
    with pytest.raises(raised) as caught:
        await WRITES[name](storage)
    assert str(caught.value).endswith(f": {code}")


async def streamed(storage: S3Storage) -> bytes:
    async with storage.stream("a/k") as stream:
        return b"".join([chunk async for chunk in stream.chunks(3)])


async def collected(stream: ObjectStream, into: list[bytes], size_bytes: int | None = 3) -> None:
    async for chunk in stream.chunks(size_bytes):
        into.append(chunk)  # noqa: PERF401  # what came before an error stays


async def test_no_more_of_a_record_is_asked_for_than_one_can_have(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """Whoever writes the bucket could put one there that fills the memory of all readers."""
    server.script = [Reply(206, b"beginning", {"Content-Range": "bytes 0-8/999999999999"})]
    head, body = await storage.read("a/k")
    assert server.asked[0].headers["range"] == f"bytes=0-{RECORD_MAX_BYTES - 1}"
    assert (head.size_bytes, body) == (999999999999, b"beginning")


READS: dict[str, Callable[[S3Storage], Awaitable[object]]] = {
    "read": lambda s: s.read("a/k"),
    "read_start": lambda s: s.read_start("a/k", 56),
    "head": lambda s: s.head("a/k"),
    "stream": streamed,
}


@pytest.mark.parametrize("name", READS)
async def test_reads_are_tried_again(server: ScriptedServer, storage: S3Storage, name: str) -> None:
    """After a drop and after an error, with a signature of its own each time."""
    server.script = [DROP, Reply(503, error("SlowDown")), Reply(200, b"body")]
    await READS[name](storage)
    assert len(server.asked) == 3
    assert all("authorization" in asked.headers for asked in server.asked)


@pytest.mark.parametrize("name", READS)
async def test_reads_give_up(server: ScriptedServer, storage: S3Storage, name: str) -> None:
    """After a few tries; and at once where the answer is definite."""
    server.script = [Reply(503, error("SlowDown"))] * 10
    with pytest.raises(StorageUnavailableError):
        await READS[name](storage)
    assert 2 <= len(server.asked) <= 5
    server.asked.clear()
    # A HEAD's answer has no body, and so no code: a ranged read decides.
    bodiless = [Reply(404)] if name == "head" else []
    server.script = [*bodiless, Reply(404, error("NoSuchKey"))]
    with pytest.raises(MissingError):
        await READS[name](storage)
    assert len(server.asked) == 1 + len(bodiless)


PROXY_PAGE = b"<html><body>404 Not Found</body></html>"


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize(
    "page", [PROXY_PAGE, b"", error("NoSuchBucket")], ids=["html", "empty", "bucket"]
)
async def test_a_404_that_is_not_the_storages_own_is_no_absence(
    server: ScriptedServer, storage: S3Storage, name: str, page: bytes
) -> None:
    """A proxy's page, or a bucket that is gone: the object may exist all the same."""
    server.script = [Reply(404, b"" if name == "head" else page), *[Reply(404, page)] * 9]
    with pytest.raises(StorageUnavailableError):
        await READS[name](storage)


async def test_a_404_of_a_proxy_to_a_listing_or_tags_is_no_absence(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """The generated client has its own reading of answers: it must come to the same."""
    server.script = [Reply(404, PROXY_PAGE)] * 20
    with pytest.raises(StorageUnavailableError):
        _ = [row async for row in storage.list("a/")]
    with pytest.raises(StorageUnavailableError):
        await storage.read_tags("a/k")
    with pytest.raises(StorageUnavailableError):
        await storage.delete("a/k")


async def test_a_head_that_a_ranged_read_contradicts(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """What the read shows is believed: the head is that of the object."""
    server.script = [Reply(404), Reply(206, b"b", {"Content-Range": "bytes 0-0/4"})]
    assert (await storage.head("a/k")).size_bytes == 4
    assert [asked.method for asked in server.asked] == ["HEAD", "GET"]
    server.script = [Reply(404), Reply(416, error("InvalidRange"))]
    with pytest.raises(StorageUnavailableError):
        await storage.head("a/k")
    server.script = [Reply(404), Reply(403, error("InvalidObjectState"))]
    with pytest.raises(StorageUnavailableError):
        await storage.head("a/k")


async def test_a_delete_marker_that_is_read_by_its_id(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """S3 answers 405: nothing to read is there, and that is certain."""
    marker = {"x-amz-delete-marker": "true"}
    server.script = [Reply(405, error("MethodNotAllowed"), marker)]
    with pytest.raises(MissingError):
        await storage.read_start("a/k", 56, version_id="v")
    server.script = [Reply(405, PROXY_PAGE, marker)] * 9
    with pytest.raises(StorageUnavailableError):
        await storage.read_start("a/k", 56, version_id="v")


async def test_a_truncated_record_is_read_again(server: ScriptedServer, storage: S3Storage) -> None:
    """Half a record is no record."""
    server.script = [Reply(200, b"whole record", cut=5), Reply(200, b"whole record")]
    assert (await storage.read("a/k"))[1] == b"whole record"


@pytest.mark.parametrize(("size_bytes", "whole"), [(3, {b"012345", b"012"}), (None, {b"012345"})])
async def test_a_truncated_stream_breaks(
    server: ScriptedServer, storage: S3Storage, size_bytes: int | None, whole: set[bytes]
) -> None:
    """What came before the break was given; the end never looks clean."""
    server.script = [Reply(200, b"0123456789", cut=4)]
    found: list[bytes] = []
    async with storage.stream("a/k") as stream:
        with pytest.raises(StorageUnavailableError):
            await collected(stream, found, size_bytes)
    assert b"".join(found) in whole


async def test_a_stream_as_it_comes_ends_where_it_must(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """All of a body; and of a server that sends more than was asked for, no byte of that."""
    server.script = [
        Reply(200, b"0123456789"),
        Reply(206, b"23456", {"Content-Range": "bytes 2-6/10"}),
    ]
    async with storage.stream("a/k") as stream:
        assert b"".join([piece async for piece in stream.chunks(None)]) == b"0123456789"
    async with storage.stream("a/k", start=2, length_bytes=3) as stream:
        assert b"".join([piece async for piece in stream.chunks(None)]) == b"234"


@pytest.mark.parametrize("size_bytes", [3, None])
async def test_an_answer_shorter_than_it_told_breaks(
    server: ScriptedServer, storage: S3Storage, size_bytes: int | None
) -> None:
    """One whose own length ends before the range that it says it is."""
    server.script = [Reply(206, b"2", {"Content-Range": "bytes 2-4/10"})]
    found: list[bytes] = []
    async with storage.stream("a/k", start=2, length_bytes=3) as stream:
        with pytest.raises(StorageUnavailableError):
            await collected(stream, found, size_bytes)


async def test_an_ignored_range_is_no_answer(server: ScriptedServer, storage: S3Storage) -> None:
    """The whole object in answer to a range would be read at the wrong place."""
    server.script = [Reply(200, b"0123456789")]
    with pytest.raises(StorageUnavailableError):
        async with storage.stream("a/k", start=3):
            pytest.fail("must not open")


@pytest.mark.parametrize(
    ("start", "length_bytes", "asked"),
    [(0, 4, "bytes=0-3"), (3, 1, "bytes=3-3"), (3, None, "bytes=3-"), (0, None, None)],
)
async def test_a_bounded_stream_asks_for_no_more(
    server: ScriptedServer, storage: S3Storage, start: int, length_bytes: int | None, asked: str
) -> None:
    """And reads no more, whatever is still to come of the object."""
    end = 10 if length_bytes is None else start + length_bytes
    status = 206 if asked else 200
    told = {"Content-Range": f"bytes {start}-{end - 1}/10"} if asked else {}
    server.script = [Reply(status, b"0123456789"[start:end], told)]
    async with storage.stream("a/k", start=start, length_bytes=length_bytes) as stream:
        assert stream.head.size_bytes == 10
        got = b"".join([chunk async for chunk in stream.chunks(3)])
    assert got == b"0123456789"[start:end]
    assert server.asked[0].headers.get("range") == asked


async def test_a_bounded_stream_of_a_shorter_object_ends_with_it(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """Fewer bytes than were asked for are what there is."""
    server.script = [Reply(206, b"789", {"Content-Range": "bytes 7-9/10"})]
    async with storage.stream("a/k", start=7, length_bytes=100) as stream:
        assert b"".join([chunk async for chunk in stream.chunks(70)]) == b"789"


async def test_what_a_presigned_url_says(server: ScriptedServer, storage: S3Storage) -> None:
    """A GET of this one object, from the read on, for as long as the lease; nothing is asked."""
    signed = await storage.presign_get("a/ü k?&", lease(60))
    url = urlsplit(signed)
    query = {name: value for name, (value,) in parse_qs(url.query).items()}
    assert url.path == "/bucket/a/%C3%BC%20k%3F%26"
    assert (query["X-Amz-Date"], query["X-Amz-Expires"]) == ("20261124T100000Z", "60")
    assert query["X-Amz-SignedHeaders"] == "host"
    assert SECRET not in signed
    assert not server.asked


@pytest.mark.parametrize(
    ("body", "raised"),
    [
        (error("InternalError"), StorageUnavailableError),
        (error("PreconditionFailed"), PreconditionError),
        (error("AccessDenied"), RefusedError),
        (b"", StorageUnavailableError),
        (b"<html>a proxy</html>", StorageUnavailableError),
    ],
)
@pytest.mark.parametrize("name", ["copy", "completion"])
async def test_an_error_inside_a_200(
    server: ScriptedServer, storage: S3Storage, name: str, body: bytes, raised: type
) -> None:
    """S3 begins its answer before it knows; only a result is a success."""
    server.script = [Reply(200, body)]
    with pytest.raises(raised):
        await WRITES[name](storage)


async def test_silence_ends_with_the_lease(server: ScriptedServer, storage: S3Storage) -> None:
    """A leased write waits no longer than its lease."""
    server.script = [SILENCE]
    async with asyncio.timeout(5):
        with pytest.raises(StorageUnavailableError, match="TimeoutError"):
            await storage.put("a/k", b"1", PLAIN, lease=lease(1))


async def test_a_stalled_stream_ends(
    server: ScriptedServer, storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A streamed put may last, but not without progress."""
    monkeypatch.setattr("keyturn_workers.storage.streaming_body.IDLE_TIMEOUT_S", 0.2)
    server.script = [SILENCE]
    async with asyncio.timeout(5):
        with pytest.raises(StorageUnavailableError, match="TimeoutError"):
            await storage.put_stream("a/k", chunks(b"1"), 1, PLAIN)


async def test_a_slow_source_does_not_count_as_a_stall(
    server: ScriptedServer, storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock runs for the storage alone."""
    monkeypatch.setattr("keyturn_workers.storage.streaming_body.IDLE_TIMEOUT_S", 0.1)

    async def slow() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.sleep(0.3)  # the very thing under test
        yield b"2"

    assert (await storage.put_stream("a/k", slow(), 2, PLAIN)).etag == ETAG
    assert server.asked[0].body == b"12"


async def test_what_a_leased_put_says(server: ScriptedServer, storage: S3Storage) -> None:
    """SPEC 8.4: signed in the query, from the read on, with every header that carries meaning."""
    said = Headers({"enc-algo": "X"}, "text/plain", {"cache-control": "no-store"})
    await storage.put("a/ü k", b"body", said, condition=IfMatch(ETAG), lease=lease(7))
    asked = server.asked[0]
    url = urlsplit(asked.target)
    query = {name: value for name, (value,) in parse_qs(url.query).items()}
    assert url.path == "/bucket/a/%C3%BC%20k"
    assert (query["X-Amz-Date"], query["X-Amz-Expires"]) == ("20261124T100000Z", "7")
    assert set(query["X-Amz-SignedHeaders"].split(";")) == {
        *("cache-control", "content-md5", "content-type", "host", "if-match", "x-amz-meta-enc-algo")
    }
    assert asked.headers["if-match"] == ETAG
    digest = md5(b"body", usedforsecurity=False).digest()
    assert asked.headers["content-md5"] == b64encode(digest).decode()
    assert "authorization" not in asked.headers
    assert not {"user-agent", "accept", "accept-encoding"} & set(asked.headers)


async def test_what_a_copy_says(server: ScriptedServer, storage: S3Storage) -> None:
    """Unpinned source, REPLACE, the source's condition, and none on the destination."""
    server.script = [Reply(200, COPIED)]
    await storage.copy_onto_itself("a/ü+k", PLAIN, source_etag=ETAG, lease=lease())
    headers = server.asked[0].headers
    assert headers["x-amz-copy-source"] == "/bucket/a/%C3%BC%2Bk"
    assert headers["x-amz-metadata-directive"] == "REPLACE"
    assert headers["x-amz-copy-source-if-match"] == ETAG
    assert "if-match" not in headers


async def test_a_session_token_travels_along(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Temporary credentials of the standard AWS chain, in headers and in leased queries."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTEMP")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the/token+=")
    named = server.settings()
    settings = S3Settings(s3_endpoint_url=named.s3_endpoint_url, s3_bucket=named.s3_bucket)
    async with open_storage(settings) as storage:
        await storage.put("a/k", b"1", PLAIN)
        await storage.put("a/k", b"1", PLAIN, lease=lease())
    plain, leased = server.asked
    assert plain.headers["x-amz-security-token"] == "the/token+="
    assert "x-amz-security-token" in plain.headers["authorization"]
    query = parse_qs(urlsplit(leased.target).query)
    assert query["X-Amz-Security-Token"] == ["the/token+="]


async def test_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Said at the door, in one line."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", f"{tmp_path}/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", f"{tmp_path}/none")
    with pytest.raises(SettingsError, match="no S3 credentials"):
        async with open_storage(S3Settings(s3_bucket="bucket")):
            pytest.fail("must not open")


@pytest.mark.parametrize(
    ("bucket", "url"),
    [
        ("keyturn-files", "https://keyturn-files.s3.eu-central-1.amazonaws.com/"),
        ("dotted.name", "https://s3.eu-central-1.amazonaws.com/dotted.name/"),
    ],
)
async def test_where_aws_is(bucket: str, url: str) -> None:
    """Without an endpoint: the bucket's own host at AWS, by botocore's rules."""
    settings = S3Settings.model_validate(
        {
            "s3_bucket": bucket,
            "s3_region": "eu-central-1",
            "s3_access_key_id": "AKID",
            "s3_secret_access_key": SECRET,
        }
    )
    async with open_storage(settings) as storage:
        assert (await storage.presign_get("k", lease())).startswith(f"{url}k?")


@pytest.mark.parametrize("reply", [DROP, SILENCE, Reply(500), Reply(403), Reply(200, cut=0)])
async def test_errors_show_neither_signature_nor_secret(
    server: ScriptedServer, storage: S3Storage, reply: Reply
) -> None:
    """Not in the whole traceback, whatever failed (SPEC 11)."""
    server.script = [reply]
    with pytest.raises((StorageUnavailableError, RefusedError)) as caught:
        await storage.copy_onto_itself("a/k", PLAIN, source_etag=ETAG, lease=lease(1))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "Signature" not in shown
    assert "127.0.0.1" not in shown
    assert SECRET not in shown


async def test_a_refused_connection(storage: S3Storage, server: ScriptedServer) -> None:
    """Nothing listens: the storage is unavailable."""
    gone = server.settings().model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})
    async with open_storage(gone) as nowhere:
        with pytest.raises(StorageUnavailableError, match="ClientConnectorError"):
            await nowhere.put("a/k", b"1", PLAIN)
        with pytest.raises(StorageUnavailableError):
            await nowhere.read("a/k")
        with pytest.raises(StorageUnavailableError):
            await nowhere.delete("a/k")
    assert storage.capabilities is not None


@pytest.mark.parametrize("name", ["put", "leased put", "large put", "part"])
async def test_without_the_guard_a_put_would_be_sent_twice(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The broken variant that the guard exists for: aiohttp's second attempt is real."""

    async def pass_through(
        request: object, handler: Callable[[object], Awaitable[object]]
    ) -> object:
        return await handler(request)

    monkeypatch.setattr(s3_session, "surface_loss", pass_through)
    async with open_storage(server.settings()) as storage:
        await storage.put("a/warm", b"1", PLAIN)
        server.script = [DROP, Reply(412, error("PreconditionFailed"))]
        with pytest.raises(PreconditionError):
            await WRITES[name](storage)
    assert len(server.asked) == 3
