"""The S3 storage against a server that misbehaves by script (SPEC 7, 8.4, 10)."""

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
from keyturn_workers.core.errors import (
    MissingError,
    PreconditionError,
    RefusedError,
    UnstorableKeyError,
)
from keyturn_workers.core.storage_values import (
    RECORD_MAX_BYTES,
    Capabilities,
    Headers,
    IfAbsent,
    IfMatch,
    Lease,
    Part,
)
from keyturn_workers.storage.s3 import S3Storage, open_storage
from tests.unit.keyturn_workers.storage.servers import (
    DROP,
    ETAG,
    PROXY_PAGE,
    SECRET,
    SILENCE,
    TIME,
    Reply,
    listed,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from keyturn_workers.core.storage_port import ObjectStream
    from tests.unit.keyturn_workers.storage.servers import ScriptedServer

PLAIN = Headers({})
COPIED = b"<CopyObjectResult><ETag>&quot;x&quot;</ETag></CopyObjectResult>"


def error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message/></Error>".encode()


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
    "tags": lambda s: s.write_tags("a/k", {"team": "a b"}),
}
DELETES: dict[str, Callable[[S3Storage], Awaitable[object]]] = {
    "delete": lambda s: s.delete("a/k"),
    "delete of a version": lambda s: s.delete_version("a/k", "v"),
    "abort": lambda s: s.abort_multipart("a/k", "id"),
}
EVERY_WRITE = WRITES | DELETES


@pytest.mark.parametrize("name", EVERY_WRITE)
async def test_a_write_on_a_dropped_connection_fails_and_is_never_resent(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    """A kept connection drops after the request was read: the body may have been stored.

    A second PUT with `If-None-Match: *` would meet its first attempt.
    """
    await storage.put("a/warm", b"1", PLAIN)
    server.script = [DROP]
    with pytest.raises(StorageUnavailableError):
        await EVERY_WRITE[name](storage)
    warm, lost = server.requests
    assert lost.connection == warm.connection, "the drop must hit a kept connection"


@pytest.mark.parametrize("name", EVERY_WRITE)
@pytest.mark.parametrize("status", [400, 409, 429, 500, 503, 307])
async def test_a_failed_write_is_not_resent(
    server: ScriptedServer, storage: S3Storage, name: str, status: int
) -> None:
    """Not after an error, and not where a redirect points."""
    server.script = [Reply(status, error("SlowDown"), {"Location": "/elsewhere"})]
    with pytest.raises(StorageUnavailableError, match="SlowDown"):
        await EVERY_WRITE[name](storage)
    assert len(server.requests) == 1


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
async def test_each_refusal_raises_its_error(
    server: ScriptedServer, storage: S3Storage, name: str, status: int, code: str, raised: type
) -> None:
    """The text is the operation and the code alone."""
    server.script = [Reply(status, error(code))]
    with pytest.raises(raised) as caught:
        await WRITES[name](storage)
    assert str(caught.value).endswith(f": {code}")


@pytest.mark.parametrize("name", WRITES)
async def test_nothing_is_written_at_a_key_that_is_too_long(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    """An upload is refused for good, and not tried again as if something were missing."""
    server.script = [Reply(400, error("KeyTooLongError"))]
    with pytest.raises(UnstorableKeyError, match="too long"):
        await WRITES[name](storage)


async def streamed(storage: S3Storage) -> bytes:
    async with storage.stream("a/k") as stream:
        return b"".join([chunk async for chunk in stream.chunks(3)])


async def collected(stream: ObjectStream, into: list[bytes], size_bytes: int | None = 3) -> None:
    async for chunk in stream.chunks(size_bytes):
        into.append(chunk)  # noqa: PERF401  # what came before an error stays


async def test_a_read_of_a_record_is_bounded(server: ScriptedServer, storage: S3Storage) -> None:
    """A writer of the bucket could store one that fills the memory of all readers."""
    server.script = [Reply(206, b"beginning", {"Content-Range": "bytes 0-8/999999999999"})]
    head, body = await storage.read("a/k")
    assert server.requests[0].headers["range"] == f"bytes=0-{RECORD_MAX_BYTES - 1}"
    assert (head.size_bytes, body) == (999999999999, b"beginning")


READS: dict[str, Callable[[S3Storage], Awaitable[object]]] = {
    "read": lambda s: s.read("a/k"),
    "read_start": lambda s: s.read_start("a/k", 56),
    "head": lambda s: s.head("a/k"),
    "stream": streamed,
}


@pytest.mark.parametrize("name", READS)
async def test_reads_are_retried(server: ScriptedServer, storage: S3Storage, name: str) -> None:
    """After a drop and after an error, each time with a new signature."""
    server.script = [DROP, Reply(503, error("SlowDown")), Reply(200, b"body")]
    await READS[name](storage)
    assert len(server.requests) == 3
    assert all("authorization" in request.headers for request in server.requests)


@pytest.mark.parametrize("name", READS)
async def test_reads_give_up_and_a_missing_object_is_not_retried(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    """After a few attempts; a definite response is not retried at all."""
    server.script = [Reply(503, error("SlowDown"))] * 10
    with pytest.raises(StorageUnavailableError):
        await READS[name](storage)
    assert 2 <= len(server.requests) <= 5
    server.requests.clear()
    # The response to a HEAD has no code: a ranged read decides.
    bodiless = [Reply(404)] if name == "head" else []
    server.script = [*bodiless, Reply(404, error("NoSuchKey"))]
    with pytest.raises(MissingError):
        await READS[name](storage)
    assert len(server.requests) == 1 + len(bodiless)


@pytest.mark.parametrize("name", ["read", "read_start", "stream"])
async def test_nothing_exists_at_a_key_that_is_too_long(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    server.script = [Reply(400, error("KeyTooLongError"))]
    with pytest.raises(MissingError):
        await READS[name](storage)
    assert len(server.requests) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize(
    "page", [PROXY_PAGE, b"", error("NoSuchBucket")], ids=["html", "empty", "bucket"]
)
async def test_a_404_without_the_storages_code_is_no_missing_object(
    server: ScriptedServer, storage: S3Storage, name: str, page: bytes
) -> None:
    """A proxy's page, or a missing bucket: the object may exist nevertheless."""
    server.script = [Reply(404, b"" if name == "head" else page), *[Reply(404, page)] * 9]
    with pytest.raises(StorageUnavailableError):
        await READS[name](storage)


async def test_a_404_to_a_head_is_checked_by_a_ranged_read(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """The read decides: if it finds the object, its head is returned."""
    server.script = [Reply(404), Reply(206, b"b", {"Content-Range": "bytes 0-0/4"})]
    assert (await storage.head("a/k")).size_bytes == 4
    assert [request.method for request in server.requests] == ["HEAD", "GET"]
    server.script = [Reply(404), Reply(416, error("InvalidRange"))]
    with pytest.raises(StorageUnavailableError):
        await storage.head("a/k")
    server.script = [Reply(404), Reply(403, error("InvalidObjectState"))]
    with pytest.raises(StorageUnavailableError):
        await storage.head("a/k")


async def test_a_delete_marker_read_by_its_version_id_is_missing(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """S3 responds 405, which is definite; the 405 of a proxy is not."""
    marker = {"x-amz-delete-marker": "true"}
    server.script = [Reply(405, error("MethodNotAllowed"), marker)]
    with pytest.raises(MissingError):
        await storage.read_start("a/k", 56, version_id="v")
    server.script = [Reply(405, PROXY_PAGE, marker)] * 9
    with pytest.raises(StorageUnavailableError):
        await storage.read_start("a/k", 56, version_id="v")


@pytest.mark.parametrize(
    ("reply", "raised"),
    [
        (Reply(405, error("MethodNotAllowed"), {"x-amz-delete-marker": "true"}), MissingError),
        (Reply(405, PROXY_PAGE), StorageUnavailableError),
    ],
    ids=["storage", "proxy"],
)
async def test_a_delete_marker_that_a_head_meets_is_checked_by_a_ranged_read(
    server: ScriptedServer, storage: S3Storage, reply: Reply, raised: type[Exception]
) -> None:
    """The response to a HEAD has no code, so that its 405 alone says nothing definite."""
    empty = Reply(416, error("InvalidRange"))
    server.script = [empty, Reply(405, headers={"x-amz-delete-marker": "true"}), *[reply] * 9]
    with pytest.raises(raised):
        await storage.read_start("a/k", 56, version_id="v")
    assert [each.method for each in server.requests[:3]] == ["GET", "HEAD", "GET"]


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"x-amz-delete-marker": "true", "x-amz-version-id": "m1"}, "m1"),
        ({"x-amz-delete-marker": "True", "x-amz-version-id": "m1"}, "m1"),
        ({"x-amz-delete-marker": "false", "x-amz-version-id": "v1"}, None),
        ({"x-amz-version-id": "v1"}, None),
        ({"x-amz-delete-marker": "true"}, None),
        ({}, None),
    ],
)
async def test_a_conditional_delete_returns_the_version_of_its_delete_marker_alone(
    server: ScriptedServer,
    storage: S3Storage,
    headers: dict[str, str],
    version: str | None,
) -> None:
    """Otherwise the version that a delete removed could be taken for the marker that it left."""
    server.script = [Reply(204, headers=headers)]
    assert await storage.delete_if_match("a/k", ETAG) == version
    assert server.requests[0].headers["if-match"] == ETAG


async def test_a_truncated_record_is_read_again(server: ScriptedServer, storage: S3Storage) -> None:
    """Half a record is no record, and the read is retried."""
    server.script = [Reply(200, b"whole record", cut=5), Reply(200, b"whole record")]
    assert (await storage.read("a/k"))[1] == b"whole record"


@pytest.mark.parametrize(
    ("size_bytes", "complete"), [(3, {b"012345", b"012"}), (None, {b"012345"})]
)
async def test_a_truncated_stream_breaks(
    server: ScriptedServer, storage: S3Storage, size_bytes: int | None, complete: set[bytes]
) -> None:
    """What arrived before the break was yielded; the end never looks clean."""
    server.script = [Reply(200, b"0123456789", cut=4)]
    received: list[bytes] = []
    async with storage.stream("a/k") as stream:
        with pytest.raises(StorageUnavailableError):
            await collected(stream, received, size_bytes)
    assert b"".join(received) in complete


async def test_an_uncut_stream_ends_at_its_length(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """It yields the whole body, and no byte beyond the requested length."""
    server.script = [
        Reply(200, b"0123456789"),
        Reply(206, b"23456", {"Content-Range": "bytes 2-6/10"}),
    ]
    async with storage.stream("a/k") as stream:
        assert b"".join([piece async for piece in stream.chunks(None)]) == b"0123456789"
    async with storage.stream("a/k", start=2, length_bytes=3) as stream:
        assert b"".join([piece async for piece in stream.chunks(None)]) == b"234"


@pytest.mark.parametrize("size_bytes", [3, None])
async def test_a_body_shorter_than_its_range_breaks(
    server: ScriptedServer, storage: S3Storage, size_bytes: int | None
) -> None:
    """Its Content-Length ends before its Content-Range does."""
    server.script = [Reply(206, b"2", {"Content-Range": "bytes 2-4/10"})]
    received: list[bytes] = []
    async with storage.stream("a/k", start=2, length_bytes=3) as stream:
        with pytest.raises(StorageUnavailableError):
            await collected(stream, received, size_bytes)


async def test_an_ignored_range_is_an_error(server: ScriptedServer, storage: S3Storage) -> None:
    """The whole object would be read at the wrong offset."""
    server.script = [Reply(200, b"0123456789")]
    with pytest.raises(StorageUnavailableError):
        async with storage.stream("a/k", start=3):
            pytest.fail("must not open")


@pytest.mark.parametrize(
    ("start", "length_bytes", "range_header"),
    [(0, 4, "bytes=0-3"), (3, 1, "bytes=3-3"), (3, None, "bytes=3-"), (0, None, None)],
)
async def test_a_bounded_stream_requests_its_range_alone(
    server: ScriptedServer,
    storage: S3Storage,
    start: int,
    length_bytes: int | None,
    range_header: str,
) -> None:
    """And reads no more than that."""
    end = 10 if length_bytes is None else start + length_bytes
    status = 206 if range_header else 200
    headers = {"Content-Range": f"bytes {start}-{end - 1}/10"} if range_header else {}
    server.script = [Reply(status, b"0123456789"[start:end], headers)]
    async with storage.stream("a/k", start=start, length_bytes=length_bytes) as stream:
        assert stream.head.size_bytes == 10
        got = b"".join([chunk async for chunk in stream.chunks(3)])
    assert got == b"0123456789"[start:end]
    assert server.requests[0].headers.get("range") == range_header


async def test_a_bounded_stream_of_a_shorter_object_ends_with_it(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """Fewer bytes than requested are no error there."""
    server.script = [Reply(206, b"789", {"Content-Range": "bytes 7-9/10"})]
    async with storage.stream("a/k", start=7, length_bytes=100) as stream:
        assert b"".join([chunk async for chunk in stream.chunks(70)]) == b"789"


async def test_a_presigned_url_is_for_one_get_during_the_lease(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """It is valid from the keyring read on, and making it sends no request."""
    signed = await storage.presign_get("a/ü k?&", lease(60))
    url = urlsplit(signed)
    query = {name: value for name, (value,) in parse_qs(url.query).items()}
    assert url.path == "/bucket/a/%C3%BC%20k%3F%26"
    assert (query["X-Amz-Date"], query["X-Amz-Expires"]) == ("20261124T100000Z", "60")
    assert query["X-Amz-SignedHeaders"] == "host"
    assert SECRET not in signed
    assert not server.requests


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
async def test_an_error_inside_a_200_is_an_error(
    server: ScriptedServer, storage: S3Storage, name: str, body: bytes, raised: type
) -> None:
    """S3 starts its response before it knows the outcome; only a result is a success."""
    server.script = [Reply(200, body)]
    with pytest.raises(raised):
        await WRITES[name](storage)


async def test_silence_ends_with_the_lease(server: ScriptedServer, storage: S3Storage) -> None:
    """A leased write waits no longer than that."""
    server.script = [SILENCE]
    async with asyncio.timeout(5):
        with pytest.raises(StorageUnavailableError, match="it did not respond in time"):
            await storage.put("a/k", b"1", PLAIN, lease=lease(1))


async def test_a_stalled_stream_ends(
    server: ScriptedServer, storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A streamed put may last, but not without progress."""
    monkeypatch.setattr("keyturn_workers.storage.s3_http.IDLE_TIMEOUT_S", 0.2)
    server.script = [SILENCE]
    async with asyncio.timeout(5):
        with pytest.raises(StorageUnavailableError, match="it did not respond in time"):
            await storage.put_stream("a/k", chunks(b"1"), 1, PLAIN)


@pytest.mark.slow
async def test_a_slow_source_does_not_count_as_a_stall(
    server: ScriptedServer, storage: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timer runs only while the storage is slow."""
    monkeypatch.setattr("keyturn_workers.storage.s3_http.IDLE_TIMEOUT_S", 0.1)

    async def slow() -> AsyncIterator[bytes]:
        yield b"1"
        await asyncio.sleep(0.3)  # the very thing under test
        yield b"2"

    assert (await storage.put_stream("a/k", slow(), 2, PLAIN)).etag == ETAG
    assert server.requests[0].body == b"12"


async def test_a_leased_put_signs_all_its_headers_in_the_query(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """SPEC 8.4: valid from the keyring read on."""
    headers = Headers({"enc-algo": "X"}, "text/plain", {"cache-control": "no-store"})
    await storage.put("a/ü k", b"body", headers, condition=IfMatch(ETAG), lease=lease(7))
    request = server.requests[0]
    url = urlsplit(request.target)
    query = {name: value for name, (value,) in parse_qs(url.query).items()}
    assert url.path == "/bucket/a/%C3%BC%20k"
    assert (query["X-Amz-Date"], query["X-Amz-Expires"]) == ("20261124T100000Z", "7")
    assert set(query["X-Amz-SignedHeaders"].split(";")) == {
        *("cache-control", "content-md5", "content-type", "host", "if-match", "x-amz-meta-enc-algo")
    }
    assert request.headers["if-match"] == ETAG
    digest = md5(b"body", usedforsecurity=False).digest()
    assert request.headers["content-md5"] == b64encode(digest).decode()
    assert "authorization" not in request.headers
    assert not {"user-agent", "accept", "accept-encoding"} & set(request.headers)


async def test_a_copy_has_an_unpinned_source_and_its_condition(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """REPLACE, the source's condition, and none on the destination."""
    server.script = [Reply(200, COPIED)]
    await storage.copy_onto_itself("a/ü+k", PLAIN, source_etag=ETAG, lease=lease())
    headers = server.requests[0].headers
    assert headers["x-amz-copy-source"] == "/bucket/a/%C3%BC%2Bk"
    assert headers["x-amz-metadata-directive"] == "REPLACE"
    assert headers["x-amz-copy-source-if-match"] == ETAG
    assert "if-match" not in headers


async def test_a_session_token_is_sent_and_signed(
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
    plain, leased = server.requests
    assert plain.headers["x-amz-security-token"] == "the/token+="
    assert "x-amz-security-token" in plain.headers["authorization"]
    query = parse_qs(urlsplit(leased.target).query)
    assert query["X-Amz-Security-Token"] == ["the/token+="]


async def test_missing_credentials_are_a_settings_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    """Reported at the start, in one line."""
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
async def test_the_default_endpoint_is_aws(bucket: str, url: str) -> None:
    """Without an endpoint, by botocore's rules."""
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


async def test_a_refused_connection_is_unavailability(
    storage: S3Storage, server: ScriptedServer
) -> None:
    """Nothing listens there."""
    gone = server.settings().model_copy(update={"s3_endpoint_url": "http://127.0.0.1:1"})
    async with open_storage(gone) as nowhere:
        with pytest.raises(StorageUnavailableError, match="connection refused: check the host"):
            await nowhere.put("a/k", b"1", PLAIN)
        with pytest.raises(StorageUnavailableError):
            await nowhere.read("a/k")
        with pytest.raises(StorageUnavailableError):
            await nowhere.delete("a/k")
    assert storage.capabilities is not None


EMPTY_HEAD = {
    "ETag": f'"{ETAG}"',
    "Date": "Tue, 24 Nov 2026 10:00:00 GMT",
    "Last-Modified": "Tue, 24 Nov 2026 09:00:00 GMT",
    "x-amz-meta-enc-algo": "deleted",
}


async def test_an_empty_object_above_other_keys_is_read(
    server: ScriptedServer, storage: S3Storage
) -> None:
    """SeaweedFS answers a ranged read of it 404; HEAD shows it."""
    storage.capabilities = Capabilities(keys_are_paths=True)
    missing = Reply(404, error("NoSuchKey"))
    server.script = [missing, Reply(200, b"", EMPTY_HEAD)]
    head, start = await storage.read_start("a/k", 56)
    assert (head.size_bytes, head.metadata, start) == (0, {"enc-algo": "deleted"}, b"")
    server.script = [missing, Reply(404, b"")]
    with pytest.raises(MissingError):
        await storage.read_start("a/k", 56)
    server.script = [missing, Reply(200, b"", EMPTY_HEAD | {"Content-Length": "3"})]
    with pytest.raises(StorageUnavailableError):
        await storage.read_start("a/k", 56)


async def test_elsewhere_a_404_needs_no_second_look(
    server: ScriptedServer, storage: S3Storage
) -> None:
    server.script = [Reply(404, error("NoSuchKey"))]
    with pytest.raises(MissingError):
        await storage.read_start("a/k", 56)
    assert [request.method for request in server.requests] == ["GET"]


async def test_tags_are_read_and_written(server: ScriptedServer, storage: S3Storage) -> None:
    tags = b"<Tagging><TagSet><Tag><Key>team</Key><Value>a &lt; b</Value></Tag></TagSet></Tagging>"
    server.script = [Reply(503, error("SlowDown")), Reply(200, tags), Reply(200)]
    assert await storage.read_tags("a/k") == {"team": "a < b"}
    await storage.write_tags("a/k", {"team": "a < b"})
    assert [request.method for request in server.requests] == ["GET", "GET", "PUT"]
    assert b"<Tag><Key>team</Key><Value>a &lt; b</Value></Tag>" in server.requests[-1].body


async def test_what_is_missing_already_is_deleted_without_an_error(
    server: ScriptedServer, storage: S3Storage
) -> None:
    server.script = [
        Reply(404, error(code)) for code in ("NoSuchUpload", "NoSuchKey", "NoSuchVersion")
    ]
    await storage.abort_multipart("p/k", "upload")
    await storage.delete("p/k")
    await storage.delete_version("p/k", "v")
    queries = [urlsplit(request.target).query for request in server.requests]
    assert queries == ["uploadId=upload", "", "versionId=v"]
    server.script = [Reply(403, error("AccessDenied")), Reply(404, PROXY_PAGE)]
    with pytest.raises(RefusedError):
        await storage.delete_version("p/k", "v")
    with pytest.raises(StorageUnavailableError):
        await storage.delete("p/k")


async def test_the_probes_prefix_is_emptied_of_uploads_versions_and_objects(
    server: ScriptedServer, storage: S3Storage
) -> None:
    uploads = (
        "<ListMultipartUploadsResult><IsTruncated>false</IsTruncated><Upload><Key>p/k</Key>"
        f"<UploadId>u</UploadId><Initiated>{TIME}</Initiated></Upload></ListMultipartUploadsResult>"
    )
    versions = (
        "<ListVersionsResult><IsTruncated>false</IsTruncated><DeleteMarker><Key>p/k</Key>"
        "<VersionId>1</VersionId><IsLatest>true</IsLatest>"
        f"<LastModified>{TIME}</LastModified></DeleteMarker></ListVersionsResult>"
    )
    status = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"
    server.script = [
        Reply(200, uploads.encode()),
        Reply(204),
        Reply(200, status),
        Reply(200, versions.encode()),
        Reply(204),
        listed("p/l"),
        Reply(204),
    ]
    await storage.purge("p/")
    deletes = [request.target for request in server.requests if request.method == "DELETE"]
    assert deletes == ["/bucket/p/k?uploadId=u", "/bucket/p/k?versionId=1", "/bucket/p/l"]
    listings = [r.target for r in server.requests if "versioning" not in r.target]
    assert all("prefix=p%2F" in target for target in listings if target.startswith("/bucket?"))
