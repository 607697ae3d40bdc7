"""What answers mean (SPEC 8.2, 12): pure functions of status, code and headers."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import (
    ArchivedError,
    MissingError,
    PreconditionError,
    RefusedError,
    UnstorableKeyError,
)
from keyturn_workers.storage.s3_wire import (
    RESTATED,
    RangeNotSatisfiableError,
    check_embedded_error,
    error_code,
    error_for,
    parse_head,
    parse_tags,
    parse_versioning,
    read_error_for,
    text_element,
)

NEEDED = {
    "ETag": '"abc-2"',
    "Date": "Tue, 24 Nov 2026 10:00:00 GMT",
    "Last-Modified": "Mon, 23 Nov 2026 09:00:00 GMT",
    "Content-Length": "56",
}


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "AccessDenied", RefusedError),
        (400, "AccessDenied", RefusedError),
        (500, "AccessDenied", StorageUnavailableError),
        (403, "SignatureDoesNotMatch", RefusedError),
        (403, "InvalidObjectState", ArchivedError),
        (404, "NoSuchKey", MissingError),
        (404, "NoSuchUpload", MissingError),
        (404, "NoSuchVersion", MissingError),
        (404, "", StorageUnavailableError),
        (404, "404", StorageUnavailableError),
        (404, "NoSuchBucket", StorageUnavailableError),
        (404, "NoSuchTagSet", StorageUnavailableError),
        (410, "NoSuchKey", StorageUnavailableError),
        (409, "ConditionalRequestConflict", PreconditionError),
        (409, "OperationAborted", StorageUnavailableError),
        (412, "PreconditionFailed", PreconditionError),
        (416, "InvalidRange", RangeNotSatisfiableError),
        (400, "RequestTimeout", StorageUnavailableError),
        (400, "BadDigest", StorageUnavailableError),
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
    assert str(found).endswith(f"put: {code or status}")


UNSTORABLE = [
    (400, "KeyTooLongError", "too long"),
    (409, "ExistingObjectIsFile", "the name of a folder"),
    (409, "ExistingObjectIsDirectory", "the folder of other objects"),
]


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
        **{name.title(): value for name, value in restated.items()},
        "Content-Type": "text/plain",
        "X-Amz-Meta-Enc-Algo": "Cobblestone-256",
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
    """Aiohttp returns them as surrogates, which it cannot send again."""
    given = {
        **NEEDED,
        "x-amz-meta-latin": "Ren\udce9",
        "x-amz-meta-utf": "René",
        "Content-Type": "text/plain; n=\udce9",
        "Content-Disposition": "inline; filename=\udcfc",
    }
    headers = parse_head("read", given).headers
    assert headers.metadata == {"latin": "René", "utf": "René"}
    assert headers.content_type == "text/plain; n=é"
    assert headers.restated == {"content-disposition": "inline; filename=ü"}


def test_a_range_has_the_size_of_the_whole() -> None:
    assert parse_head("read", {**NEEDED, "Content-Range": "bytes 0-55/1234"}).size_bytes == 1234


@pytest.mark.parametrize("missing", NEEDED)
def test_a_response_without_a_required_header_is_an_error(missing: str) -> None:
    """It is not from S3, or a proxy removed headers."""
    headers = {name: value for name, value in NEEDED.items() if name != missing}
    with pytest.raises(StorageUnavailableError):
        parse_head("read", headers)


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
