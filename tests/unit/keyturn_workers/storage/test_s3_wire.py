"""The headers of copies, for features that no test server has (SPEC 8.2)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import (
    ArchivedError,
    ClockSkewError,
    MissingError,
    PreconditionError,
    RefusedError,
    RequestFailedError,
    UnstorableKeyError,
)
from keyturn_workers.core.storage_values import Headers, Lease
from keyturn_workers.storage.s3_wire import (
    RESTATED,
    RangeNotSatisfiableError,
    check_embedded_error,
    decode_names,
    error_code,
    error_for,
    find_columns,
    find_rows,
    find_text,
    parse_date,
    parse_head,
    parse_tags,
    parse_versioning,
    read_error_for,
    text_element,
)
from tests.unit.keyturn_workers.storage.servers import ETAG, Reply

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage.s3 import S3Storage
    from tests.unit.keyturn_workers.storage.servers import ScriptedServer

NEEDED = {
    "etag": '"abc-2"',
    "date": "Tue, 24 Nov 2026 10:00:00 GMT",
    "last-modified": "Mon, 23 Nov 2026 09:00:00 GMT",
    "content-length": "56",
}
UNSTORABLE = [
    (400, "KeyTooLongError", "too long"),
    (409, "ExistingObjectIsFile", "the name of a folder"),
    (409, "ExistingObjectIsDirectory", "the folder of other objects"),
]
_TEXT = st.text(st.sampled_from("%+=&;_#aF2 3\n\r~/\u00e9\u65e5\U0001f5dd'\"<>\x01"), max_size=12)

COPIED = b"<CopyObjectResult><ETag>&quot;x&quot;</ETag></CopyObjectResult>"
BEGUN = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
EMPTY_MD5 = "1B2M2Y8AsgTpgAmY7PhCfg=="

# As AWS returns them for an object, and accepts them in a copy.
KMS = {
    "x-amz-server-side-encryption": "aws:kms",
    "x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:eu-central-1:1:key/a-b",
    "x-amz-server-side-encryption-bucket-key-enabled": "true",
}
LOCK = {
    "x-amz-object-lock-legal-hold": "ON",
    "x-amz-object-lock-mode": "COMPLIANCE",
    "x-amz-object-lock-retain-until-date": "2099-01-01T00:00:00.000Z",
}
OBJECT_HEADERS = {
    "storage class": {"x-amz-storage-class": "INTELLIGENT_TIERING"},
    "archive class": {"x-amz-storage-class": "GLACIER"},
    "encrypted under a key": KMS,
    "locked": LOCK,
    "everything": {
        **KMS,
        **LOCK,
        "cache-control": "no-store",
        "content-disposition": "inline",
        "content-encoding": "br",
        "content-language": "de",
        "expires": "never",
        "x-amz-storage-class": "STANDARD_IA",
        "x-amz-website-redirect-location": "/other",
    },
}


def test_everything_is_everything() -> None:
    """A header that is restated and not in the table would go untested."""
    assert OBJECT_HEADERS["everything"].keys() == RESTATED


@pytest.mark.parametrize("name", OBJECT_HEADERS)
async def test_a_self_copy_sends_what_was_given(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    """Each header unchanged and signed, with the new metadata; a lock with its digest."""
    object_headers = OBJECT_HEADERS[name]
    response_headers = {
        **object_headers,
        "content-type": "text/x",
        "x-amz-meta-author": "kim",
        "x-amz-meta-enc-a": "1",
    }
    server.script = [Reply(200, b"start", response_headers), Reply(200, COPIED)]
    head, _ = await storage.read_start("a/k", 56)
    replaced = Headers(
        {"author": "kim", "enc-a": "2"}, head.headers.content_type, head.headers.restated
    )
    await storage.copy_onto_itself("a/k", replaced, source_etag=ETAG, lease=Lease(head.date, 15))
    request = server.requests[1]
    assert {name: request.headers.get(name) for name in object_headers} == object_headers
    assert request.headers["content-type"] == "text/x"
    assert request.headers["x-amz-meta-author"] == "kim"
    assert request.headers["x-amz-meta-enc-a"] == "2"
    assert request.headers["x-amz-metadata-directive"] == "REPLACE"
    digest = EMPTY_MD5 if LOCK.keys() <= object_headers.keys() else None
    assert request.headers.get("content-md5") == digest
    signed = request.target.partition("X-Amz-SignedHeaders=")[2].partition("&")[0].split("%3B")
    assert object_headers.keys() <= set(signed)


@pytest.mark.parametrize("name", OBJECT_HEADERS)
async def test_a_multipart_copy_restates_headers_when_it_is_created(
    server: ScriptedServer, storage: S3Storage, name: str
) -> None:
    """Not with its parts, where S3 would refuse them."""
    object_headers = OBJECT_HEADERS[name]
    copied = b"<CopyPartResult><ETag>&quot;p&quot;</ETag></CopyPartResult>"
    server.script = [Reply(200, BEGUN), Reply(200, copied)]
    upload_id = await storage.create_multipart(
        "a/k", Headers({"enc-a": "2"}, "text/x", object_headers)
    )
    await storage.copy_part("a/k", upload_id, 1, first=0, last=9, source_etag=ETAG)
    begun, part = server.requests
    assert {name: begun.headers.get(name) for name in object_headers} == object_headers
    assert begun.headers["x-amz-meta-enc-a"] == "2"
    assert object_headers.keys().isdisjoint(part.headers)
    assert part.headers["x-amz-copy-source-range"] == "bytes=0-9"
    assert part.headers["x-amz-copy-source-if-match"] == ETAG


async def test_an_empty_put_has_its_digest(server: ScriptedServer, storage: S3Storage) -> None:
    """A bucket that locks by default refuses a put without one, and a tombstone must be stored."""
    await storage.put("a/k", b"", Headers({"enc-algo": "deleted"}))
    assert server.requests[0].headers["content-md5"] == EMPTY_MD5


@pytest.mark.parametrize("status", [200, 403])
async def test_an_archived_source_is_an_error(
    server: ScriptedServer, storage: S3Storage, status: int
) -> None:
    """Reported at once or inside a 200; never retried."""
    server.script = [Reply(status, b"<Error><Code>InvalidObjectState</Code></Error>")] * 2
    lease = Lease((await _date(storage, server)), 15)
    with pytest.raises(ArchivedError):
        await storage.copy_onto_itself("a/k", Headers({}), source_etag=ETAG, lease=lease)


async def _date(storage: S3Storage, server: ScriptedServer) -> datetime:
    server.script.insert(0, Reply())
    return (await storage.head("a/k")).date


async def test_an_archived_object_is_not_read(server: ScriptedServer, storage: S3Storage) -> None:
    """Its head can be read, its bytes cannot; there is no second attempt."""
    server.script = [Reply(403, b"<Error><Code>InvalidObjectState</Code></Error>")]
    with pytest.raises(ArchivedError):
        await storage.read_start("a/k", 56)
    assert len(server.requests) == 1
    server.script = [Reply(200, headers={"x-amz-storage-class": "DEEP_ARCHIVE"})]
    assert (await storage.head("a/k")).archived


async def test_a_version_is_requested_by_its_id(server: ScriptedServer, storage: S3Storage) -> None:
    """In the query of the GET, and of the HEAD of an empty object."""
    server.script = [
        Reply(416, b"<Error><Code>InvalidRange</Code></Error>"),
        Reply(200, headers={"x-amz-version-id": "a+b/c"}),
    ]
    head, start = await storage.read_start("a/k", 56, version_id="a+b/c")
    assert (head.version_id, start) == ("a+b/c", b"")
    assert [request.method for request in server.requests] == ["GET", "HEAD"]
    assert all(request.target.endswith("/a/k?versionId=a%2Bb%2Fc") for request in server.requests)


async def test_a_delete_marker_is_missing(server: ScriptedServer, storage: S3Storage) -> None:
    """AWS responds 405 if one is read by its version id."""
    refused = b"<Error><Code>MethodNotAllowed</Code></Error>"
    server.script = [Reply(405, refused, {"x-amz-delete-marker": "true"})]
    with pytest.raises(MissingError):
        await storage.read_start("a/k", 56, version_id="m")


@pytest.mark.parametrize(
    ("given", "sent"), [(None, "binary/octet-stream"), ("text/html", "text/html")]
)
async def test_a_put_always_has_a_content_type(
    server: ScriptedServer, storage: S3Storage, given: str | None, sent: str
) -> None:
    """Without one SeaweedFS stores an empty object when a connection is lost."""
    stored = Reply(200, b"", {"etag": f'"{ETAG}"'})
    server.script = [stored, stored, Reply(200, BEGUN)]
    headers = Headers({}, given)
    await storage.put("a/k", b"body", headers)
    await storage.put_stream("a/k", _body(), 4, headers)
    await storage.create_multipart("a/k", headers)
    assert [each.headers["content-type"] for each in server.requests] == [sent] * 3


async def _body() -> AsyncIterator[bytes]:
    yield b"body"


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "AccessDenied", RefusedError),
        (400, "AccessDenied", RefusedError),
        (500, "AccessDenied", StorageUnavailableError),
        (403, "SignatureDoesNotMatch", RefusedError),
        (403, "RequestTimeTooSkewed", ClockSkewError),
        (403, "InvalidObjectState", ArchivedError),
        (404, "NoSuchKey", MissingError),
        (404, "NoSuchUpload", MissingError),
        (404, "NoSuchVersion", MissingError),
        (404, "", RequestFailedError),
        (404, "404", RequestFailedError),
        (404, "NoSuchBucket", RequestFailedError),
        (404, "NoSuchTagSet", RequestFailedError),
        (410, "NoSuchKey", RequestFailedError),
        (409, "ConditionalRequestConflict", PreconditionError),
        (409, "OperationAborted", RequestFailedError),
        (412, "PreconditionFailed", PreconditionError),
        (416, "InvalidRange", RangeNotSatisfiableError),
        (400, "RequestTimeout", RequestFailedError),
        (400, "BadDigest", RequestFailedError),
        (301, "PermanentRedirect", StorageUnavailableError),
        (429, "", StorageUnavailableError),
        (500, "InternalError", StorageUnavailableError),
        (501, "NotImplemented", StorageUnavailableError),
        (503, "SlowDown", StorageUnavailableError),
    ],
)
def test_every_status_has_its_error(status: int, code: str, error: type[Exception]) -> None:
    found = error_for("put", status, code)
    assert type(found) is error
    assert f"put: {code or status}" in str(found)


@pytest.mark.parametrize(("status", "code", "reason"), UNSTORABLE)
def test_a_key_that_the_storage_cannot_hold(status: int, code: str, reason: str) -> None:
    """Its reason is in words, since it ends in the refusal of a request."""
    found = error_for("put", status, code)
    assert type(found) is UnstorableKeyError
    assert reason in str(found)
    assert type(error_for("put", 500, code)) is StorageUnavailableError
    body = f"<Error><Code>{code}</Code></Error>".encode()
    with pytest.raises(UnstorableKeyError):
        check_embedded_error("complete multipart", body, b"<CompleteMultipartUploadResult")


@pytest.mark.parametrize(("status", "code", "reason"), UNSTORABLE)
def test_nothing_is_read_at_such_a_key(status: int, code: str, reason: str) -> None:
    assert reason
    assert type(read_error_for("read", status, code)) is MissingError
    assert type(read_error_for("read", 500, code)) is StorageUnavailableError


def test_a_head_has_everything_that_a_copy_restates() -> None:
    """And nothing else."""
    restated = {name: f"value of {name}" for name in RESTATED if "lock" not in name}
    headers = {
        **NEEDED,
        **restated,
        "content-type": "text/plain",
        "x-amz-meta-enc-algo": "Cobblestone-256",
        "x-amz-tagging-count": "3",
        "x-amz-version-id": "v1",
        "x-amz-request-id": "not for us",
    }
    head = parse_head("read", headers)
    assert (head.size_bytes, head.etag, head.version_id, head.tag_count) == (56, "abc-2", "v1", 3)
    assert head.date == datetime(2026, 11, 24, 10, tzinfo=UTC)
    assert head.last_modified == datetime(2026, 11, 23, 9, tzinfo=UTC)
    assert head.metadata == {"enc-algo": "Cobblestone-256"}
    assert head.headers.content_type == "text/plain"
    assert head.headers.restated == restated
    assert (head.archived, head.locked) == (False, False)


def test_bytes_that_are_not_utf8_are_read_as_latin1() -> None:
    """An exchange returns them as surrogates, which it cannot send again."""
    given = {
        **NEEDED,
        "x-amz-meta-latin": "Ren\udce9",
        "x-amz-meta-utf": "René",
        "content-type": "text/plain; n=\udce9",
        "content-disposition": "inline; filename=\udcfc",
    }
    headers = parse_head("read", given).headers
    assert headers.metadata == {"latin": "René", "utf": "René"}
    assert headers.content_type == "text/plain; n=é"
    assert headers.restated == {"content-disposition": "inline; filename=ü"}


def test_a_range_has_the_size_of_the_whole() -> None:
    assert parse_head("read", {**NEEDED, "content-range": "bytes 0-55/1234"}).size_bytes == 1234


@pytest.mark.parametrize("missing", NEEDED)
def test_a_response_without_a_required_header_is_an_error(missing: str) -> None:
    """It is not from S3, or a proxy removed headers."""
    headers = {name: value for name, value in NEEDED.items() if name != missing}
    with pytest.raises(StorageUnavailableError):
        parse_head("read", headers)


@pytest.mark.parametrize(
    "odd",
    [
        {"x-amz-tagging-count": "abc"},
        {"x-amz-tagging-count": "-1"},
        {"content-range": "bytes 0-55/-1234"},
        {"content-range": "bytes 0-55/1_234"},
        {"content-range": "bytes 0-55/*"},
        {"content-length": "-56"},
        {"content-length": "5\u0666"},
        {"content-length": "9" * 30},
        {"date": "Tue, 24 Nov 99999999999999999999 10:00:00 GMT"},
        {"date": "Tue, 24 Nov 2026 10:00:00 +99999999999999"},
        {"last-modified": "Tue, 24 Nov 2026 99999999999999999999:00:00 GMT"},
        {"last-modified": ""},
    ],
)
def test_a_number_or_time_that_is_none_is_an_error_of_the_storage(odd: dict[str, str]) -> None:
    with pytest.raises(StorageUnavailableError):
        parse_head("read", {**NEEDED, **odd})
    if "date" in odd:
        assert parse_date(odd) is None


@pytest.mark.parametrize(
    ("headers", "archived"),
    [
        ({}, False),
        ({"x-amz-storage-class": "STANDARD_IA"}, False),
        ({"x-amz-storage-class": "GLACIER_IR"}, False),
        ({"x-amz-storage-class": "GLACIER"}, True),
        ({"x-amz-storage-class": "DEEP_ARCHIVE"}, True),
        (
            {"x-amz-storage-class": "GLACIER", "x-amz-restore": 'ongoing-request="true"'},
            True,
        ),
        (
            {
                "x-amz-storage-class": "GLACIER",
                "x-amz-restore": 'ongoing-request="false", expiry-date="Fri, 27 Nov 2026"',
            },
            False,
        ),
        ({"x-amz-storage-class": "INTELLIGENT_TIERING"}, False),
        (
            {
                "x-amz-storage-class": "INTELLIGENT_TIERING",
                "x-amz-archive-status": "DEEP_ARCHIVE_ACCESS",
            },
            True,
        ),
    ],
)
def test_archived_objects_are_recognized(headers: dict[str, str], archived: bool) -> None:
    assert parse_head("read", {**NEEDED, **headers}).archived is archived


@pytest.mark.parametrize(
    ("headers", "locked", "restated"),
    [
        ({"x-amz-object-lock-legal-hold": "ON"}, True, 1),
        ({"x-amz-object-lock-legal-hold": "OFF"}, False, 1),
        (
            {
                "x-amz-object-lock-mode": "GOVERNANCE",
                "x-amz-object-lock-retain-until-date": "2026-11-25T00:00:00.000Z",
            },
            True,
            2,
        ),
        (
            {
                "x-amz-object-lock-mode": "GOVERNANCE",
                "x-amz-object-lock-retain-until-date": "2026-11-23T00:00:00Z",
            },
            False,
            0,
        ),
        ({"x-amz-object-lock-retain-until-date": "some day"}, True, 1),
    ],
)
def test_locked_objects_are_recognized(
    headers: dict[str, str], locked: bool, restated: int
) -> None:
    """An expired retention locks nothing, and is not restated: S3 would refuse it."""
    head = parse_head("read", {**NEEDED, **headers})
    assert (head.locked, len(head.headers.restated)) == (locked, restated)


def test_elements_of_bodies_are_parsed() -> None:
    assert error_code(b"<Error><Code>SlowDown</Code></Error>") == "SlowDown"
    assert error_code(b"<html>") == ""
    assert error_code(b"<Code>" + b"x" * 100 + b"</Code>") == ""
    assert text_element("begin", b"<UploadId>a&amp;b</UploadId>", "UploadId") == "a&b"
    for body in (b"<UploadId/>", b"<UploadId>\xff</UploadId>", b"<html>"):
        with pytest.raises(StorageUnavailableError):
            text_element("begin", body, "UploadId")
    assert error_code(b"<Code>\xff</Code>") == ""


def test_tags_are_parsed() -> None:
    tag = "<Tag><Key>a</Key><Value>b &amp; c</Value></Tag><Tag><Key>d</Key><Value/></Tag>"
    body = f"<Tagging><TagSet>{tag}</TagSet></Tagging>".encode()
    assert parse_tags(body) == {"a": "b & c", "d": ""}
    for malformed in (b"", body[:-2], body.replace(b"<Key>d</Key>", b"")):
        with pytest.raises(StorageUnavailableError):
            parse_tags(malformed)


def test_the_versioning_of_a_bucket_is_parsed() -> None:
    """What does not say it is no bucket without versions."""
    for status in ("Enabled", "Suspended"):
        body = f"<VersioningConfiguration><Status>{status}</Status></VersioningConfiguration>"
        assert parse_versioning(body.encode()) == status
    assert parse_versioning(b'<VersioningConfiguration xmlns="x"/>') == ""
    for malformed in (b"", b"<VersioningConfiguration><Status>On</Status>"):
        with pytest.raises(StorageUnavailableError):
            parse_versioning(malformed)


def test_embedded_errors_are_errors() -> None:
    """Only the expected element, without an error next to it, is a success."""
    check_embedded_error("copy", b"<CopyObjectResult xmlns=''/>", b"<CopyObjectResult")
    with pytest.raises(StorageUnavailableError, match="without outcome"):
        check_embedded_error("copy", b"", b"<CopyObjectResult")
    with pytest.raises(ArchivedError, match="InvalidObjectState"):
        check_embedded_error(
            "copy", b"<Error><Code>InvalidObjectState</Code></Error>", b"<CopyObject"
        )
    with pytest.raises(StorageUnavailableError, match="InternalError"):
        check_embedded_error("copy", b"<Error><Code>InternalError</Code></Error>", b"<CopyObject")


@given(st.lists(_TEXT, max_size=4))
def test_texts_are_read_as_they_were_written(texts: list[str]) -> None:
    rows = "".join(f"<Row>\n <Other/><Name>{escape(text)}</Name></Row>" for text in texts)
    (names,) = find_columns(find_rows("Row", f"<Rows>{rows}</Rows>".encode()), "Name")
    assert list(names) == texts


@given(st.lists(_TEXT, max_size=4))
def test_names_are_decoded_as_they_were_encoded(names: list[str]) -> None:
    assert list(decode_names([quote(name, safe="") for name in names])) == names


@pytest.mark.parametrize("encoded", ["p/%FF", "p/%ED%A0%80", "p/%C3%A9%C3"])
def test_a_name_that_is_not_utf8_is_an_error(encoded: str) -> None:
    """With replacements it would sort elsewhere, and a listing could continue past other keys."""
    with pytest.raises(ValueError, match="codec can't decode"):
        decode_names(["p/a", encoded])


def test_references_are_replaced_once() -> None:
    body = b"<Key>&amp;lt;&#39;&#x1F5DD;&quot;&apos;&#1;&nbsp;</Key>"
    assert find_text("Key", body) == "&lt;'\U0001f5dd\"'\x01&nbsp;"


def test_an_element_may_be_absent_or_empty() -> None:
    assert find_text("Key", b"<Keys>a</Keys>") is None
    assert find_text("Key", b"<Key/>") == find_text("Key", b"<Key></Key>") == ""
    assert find_rows("Row", b"<Rows></Rows>") == []
    assert find_columns([], "Name") == [[]]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"<Row><Name>a</Name>", "without an end"),
        (b"<Row></Row>", "lacks"),
        (b"<Row><Name>a</Row>", "lacks"),
        (b"<Row><Name>a</Name><Name>b</Name></Row>", "lacks"),
        (b"<Row><Name>\xff</Name></Row>", "decode"),
        (b"<Row><Name>&#xD800;</Name></Row>", "surrogates"),
        (b"<Row><Name>&#x110000;</Name></Row>", "range"),
    ],
)
def test_what_is_not_whole_is_an_error(body: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        find_columns(find_rows("Row", body), "Name")
