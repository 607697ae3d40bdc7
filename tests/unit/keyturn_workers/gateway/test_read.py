"""GET and HEAD of an object: what is sent, and when (SPEC 9.1 to 9.3)."""

from __future__ import annotations

import asyncio
import os
import re
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from email.message import Message
from itertools import count
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.crypto import (
    BODY_CONTEXT,
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    ChunkReader,
    Secret,
    kek_id,
    new_api_key,
    seal,
    user_kek,
)
from keyturn.errors import CodedError, StorageUnavailableError, UnauthorizedError
from keyturn.identifiers import is_object_key
from keyturn.messages import RequestOrigin
from keyturn.metadata import decode_caller_metadata
from keyturn_workers.core.keyring import Generation, Keyring
from keyturn_workers.core.storage_values import Headers, ObjectHead
from keyturn_workers.gateway import objects
from keyturn_workers.gateway.auth import Authenticator
from keyturn_workers.gateway.keyring_lookups import KeyringLookups
from keyturn_workers.gateway.metrics import GatewayMetrics
from keyturn_workers.gateway.objects import EncryptedReader, ObjectOpener, PlaintextReader
from keyturn_workers.gateway.read import (
    AS_STORED,
    Delivery,
    ObjectRoutes,
    content_disposition,
    delivery_as_download,
    delivery_by_link,
    filename_of,
    object_headers,
    validator_headers,
)
from keyturn_workers.gateway.request import META_PREFIX, Span, format_http_date
from keyturn_workers.gateway.shares import ConcurrencyLimit
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.keyring.store import create_keyring
from tests.unit.keyturn_workers.factories import deleted, enc, sealed_object
from tests.unit.keyturn_workers.gateway.bench import API_KEY, CHUNK, KEY, NEW_API_KEY, TARGET
from tests.unit.keyturn_workers.gateway.serving import PATH, Connection, Serving
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

# --- Content-Disposition (RFC 6266, RFC 8187)


@pytest.mark.parametrize(
    ("filename", "parameters"),
    [
        ("report.pdf", 'filename="report.pdf"'),
        ("q3; report (1).pdf", 'filename="q3; report (1).pdf"'),
        ("q3 'a'.pdf", "filename=\"q3 'a'.pdf\""),
        ('a"b.pdf', "filename=\"a_b.pdf\"; filename*=UTF-8''a%22b.pdf"),
        ("100%.pdf", "filename=\"100_.pdf\"; filename*=UTF-8''100%25.pdf"),
        ("ü €.pdf", "filename=\"_ _.pdf\"; filename*=UTF-8''%C3%BC%20%E2%82%AC.pdf"),
        ("*'()", 'filename="*\'()"'),
        ("ü*'()", "filename=\"_*'()\"; filename*=UTF-8''%C3%BC%2A%27%28%29"),
        ("a\\b", "filename=\"a_b\"; filename*=UTF-8''a%5Cb"),
    ],
)
@pytest.mark.parametrize("disposition", ["attachment", "inline"])
def test_names(
    filename: str, parameters: str, disposition: Literal["attachment", "inline"]
) -> None:
    assert content_disposition(disposition, filename) == f"{disposition}; {parameters}"


@given(st.text(min_size=1, max_size=40).filter(is_object_key))
def test_every_segment_of_a_key_is_a_header_that_parsers_read(segment: str) -> None:
    """The value is one line of ASCII, and the standard library's parser finds the name in it."""
    name = filename_of(segment)
    value = content_disposition("attachment", name)
    assert value.isascii()
    assert value.isprintable()
    message = Message()
    message["content-disposition"] = value
    assert message.get_content_disposition() == "attachment"
    if "filename*" in value:
        assert unquote(value.partition("filename*=UTF-8''")[2]) == name
    else:
        assert value == f'attachment; filename="{name}"'


@pytest.mark.parametrize(
    ("object_key", "filename"),
    [
        ("report.pdf", "report.pdf"),
        ("reports/2026/q3.pdf", "q3.pdf"),
        ("reports/..\\..\\q3.pdf", ".._.._q3.pdf"),
        ("reports/links", "links"),
    ],
)
def test_an_objects_filename_is_its_keys_last_segment(object_key: str, filename: str) -> None:
    assert filename_of(object_key) == filename


# --- What an answer says of an object in its headers: sendable, whatever was stored (SPEC 9.2)


AT = datetime(2026, 11, 24, 10, tzinfo=UTC)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# As a storage may return them: whatever another writer put there.
_VALUES = st.text(max_size=60) | st.text(st.characters(max_codepoint=255), max_size=60)


def _head(metadata: dict[str, str], content_type: str | None = None, **restated: str) -> ObjectHead:
    named = {name.replace("_", "-"): value for name, value in restated.items()}
    return ObjectHead(10, "e" * 32, AT, AT, Headers(metadata, content_type, named))


def _whole(head: ObjectHead) -> EncryptedReader:
    # Headers need the body's beginning alone.
    sealed = seal(bytes(32), BODY_CONTEXT, bytes(head.size_bytes))
    chunks = ChunkReader(bytes(32), BODY_CONTEXT, sealed[:HEADER_BYTES])
    stored = replace(head, size_bytes=len(sealed))
    return EncryptedReader(MemoryStorage(), "acme/k", stored, sealed, chunks, head.size_bytes)


def _plain(head: ObjectHead) -> PlaintextReader:
    return PlaintextReader(MemoryStorage(), "acme/k", head)


def test_validator_headers() -> None:
    assert validator_headers(_plain(_head({}))) == {
        "etag": '"' + "e" * 32 + '"',
        "last-modified": "Tue, 24 Nov 2026 10:00:00 GMT",
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "x-content-type-options": "nosniff",
        "content-security-policy": "sandbox",
    }


@pytest.mark.parametrize(
    ("delivery", "disposition"),
    [
        (AS_STORED, "inline; filename=stored"),
        (
            delivery_as_download("given ü"),
            "attachment; filename=\"given _\"; filename*=UTF-8''given%20%C3%BC",
        ),
        (delivery_by_link("a/b.pdf", inline=False), 'attachment; filename="b.pdf"'),
        (delivery_by_link("a/b.pdf", inline=True), 'inline; filename="b.pdf"'),
    ],
)
def test_the_request_decides_about_the_disposition(delivery: Delivery, disposition: str) -> None:
    """Of what is sent; a 304 sends nothing that it could be about."""
    reader = _plain(_head({}, content_disposition="inline; filename=stored"))
    for span in (None, Span(0, 1)):
        assert object_headers(reader, span, delivery)["content-disposition"] == disposition
    assert "content-disposition" not in validator_headers(reader, delivery)
    assert delivery.redirectable == (delivery is AS_STORED)


def test_no_cache_keeps_what_a_link_opened() -> None:
    reader = _plain(_head({}))
    by_link = validator_headers(reader, delivery_by_link("a", inline=True))
    assert by_link == validator_headers(reader) | {
        "cache-control": "private, no-store",
        "referrer-policy": "no-referrer",
    }
    assert validator_headers(reader, delivery_as_download("a")) == validator_headers(reader)


def test_headers_of_the_whole_object_and_of_a_range() -> None:
    reader = _whole(_head({}, "text/plain"))
    full = object_headers(reader, None)
    assert (full["content-length"], full["content-type"]) == ("10", "text/plain")
    assert "content-range" not in full
    span = object_headers(reader, Span(2, 5))
    assert (span["content-length"], span["content-range"]) == ("3", "bytes 2-4/10")


def test_the_length_is_that_of_the_plaintext() -> None:
    assert object_headers(_whole(_head({})), None)["content-length"] == "10"
    assert object_headers(_plain(_head({})), None)["content-length"] == "10"


@pytest.mark.parametrize("content_type", [None, "", "a/b\r\nx: y", "a/\x7f", "ä/b"])
def test_an_invalid_content_type_becomes_the_default(content_type: str | None) -> None:
    headers = object_headers(_whole(_head({}, content_type)), None)
    assert headers["content-type"] == "application/octet-stream"


def test_metadata_is_encoded_as_for_the_storage() -> None:
    metadata = {
        "author": "kim",
        "title": "=?utf-8?b?w7xiZXI=?=",
        "raw": "über",
        "empty": "",
        "enc-algo": "Cobblestone-256",
        "enc-upload": "x",
        "line": "a\r\nset-cookie: b",
        "null": "\0",
        "lone": "\ud800",
        "bad name": "x",
        "ünamed": "x",
        "colon:": "x",
        "": "x",
        "-": "x",
    }
    headers = object_headers(_whole(_head(metadata)), None)
    sent = {n: v for n, v in headers.items() if n.startswith(META_PREFIX)}
    assert sent == {
        META_PREFIX + "author": "kim",
        META_PREFIX + "title": "=?utf-8?b?w7xiZXI=?=",
        META_PREFIX + "raw": "=?utf-8?b?w7xiZXI=?=",
        META_PREFIX + "empty": "",
    }


def test_the_stored_encoding_is_sent_for_plaintext_only_and_stored_caching_never() -> None:
    """An encrypted body is not gzip, and a shared cache must not store a response."""
    head = _head(
        {},
        content_encoding="gzip",
        cache_control="public, max-age=60",
        expires="Thu, 01 Dec 2033 16:00:00 GMT",
        content_disposition="attachment",
        content_language="de",
        x_amz_storage_class="STANDARD_IA",
    )
    opened, plain = object_headers(_whole(head), None), object_headers(_plain(head), None)
    for headers in (opened, plain):
        assert headers["cache-control"] == "private, no-cache"
        assert not {"expires", "x-amz-storage-class"} & set(headers)
    assert (opened["content-disposition"], opened["content-language"]) == ("attachment", "de")
    assert "content-encoding" not in opened
    assert plain["content-encoding"] == "gzip"


@pytest.mark.slow
@given(
    st.dictionaries(st.text(max_size=20) | st.just("author"), _VALUES, max_size=4),
    _VALUES,
    st.dictionaries(
        st.sampled_from(["content-disposition", "content-language", "cache-control", "expires"]),
        _VALUES,
    ),
)
def test_no_header_value_spans_lines(
    metadata: dict[str, str], content_type: str, restated: dict[str, str]
) -> None:
    head = replace(_head({}), headers=Headers(metadata, content_type, restated))
    founds: list[Any] = [_whole(head), _plain(head)]
    for reader in founds:
        for name, value in object_headers(reader, Span(0, 1)).items():
            assert _TOKEN.fullmatch(name), name
            assert all(" " <= c <= "~" for c in value), (name, value)


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=50))
def test_a_value_in_any_script_can_be_decoded(value: str) -> None:
    header = object_headers(_whole(_head({"v": value})), None)[META_PREFIX + "v"]
    if "=?" not in value:  # such a stored value is in RFC 2047's form, or looks like it
        assert decode_caller_metadata({"v": header})["v"] == value


# --- GET and HEAD of an object through the whole application (SPEC 9.1 to 9.3)


PLAINTEXT = os.urandom(40 * CHUNK + 7)


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_RESUME_PAUSES_S", (0.0, 0.0, 0.0))


def _serving(plaintext: bytes = PLAINTEXT, **more: Any) -> Serving:
    serving = Serving(**more)
    serving.bench.plant_sealed(plaintext)
    return serving


async def test_a_whole_object() -> None:
    serving = _serving()
    got = await serving.ask()
    assert (got.status, got.content, got.ended) == (200, PLAINTEXT, True)
    assert got.headers["content-length"] == str(len(PLAINTEXT))
    assert got.headers["content-type"] == "application/pdf"
    assert got.headers["x-keyturn-meta-author"] == "kim"
    assert got.headers["x-content-type-options"] == "nosniff"
    assert got.headers["content-security-policy"] == "sandbox"
    assert got.headers["accept-ranges"] == "bytes"
    assert serving.counted("sent_bytes_total") == len(PLAINTEXT)
    assert serving.counted("requests_total", route="objects", method="GET", status="200") == 1


async def test_a_head_has_the_headers_of_a_get_and_costs_a_header_and_two_chunks() -> None:
    serving = _serving()
    full, head = await serving.ask(), await serving.ask("HEAD")
    assert (head.status, head.content, head.ended) == (200, b"", True)
    assert head.headers == full.headers
    serving.bench.storage.requested_bytes = 0
    await serving.ask("HEAD")
    assert serving.bench.storage.requested_bytes <= HEADER_BYTES + 2 * SEALED_CHUNK_BYTES


@pytest.mark.parametrize("size", [0, 1, CHUNK, 20 * CHUNK + 7])
@pytest.mark.parametrize(
    ("spec", "span"),
    [
        ("bytes=0-0", slice(0, 1)),
        ("bytes=5-", slice(5, None)),
        ("bytes=-3", slice(-3, None)),
        (f"bytes={CHUNK - 1}-{CHUNK}", slice(CHUNK - 1, CHUNK + 1)),
        (f"bytes=-{CHUNK + 1}", slice(-CHUNK - 1, None)),
        ("bytes=0-99999999", slice(0, None)),
        ("bytes=-0", slice(0, 0)),
        ("bytes=999999999-", slice(0, 0)),
    ],
)
async def test_ranges(size: int, spec: str, span: slice) -> None:
    serving = _serving(PLAINTEXT[:size])
    got = await serving.ask(headers={"range": spec})
    expected = PLAINTEXT[:size][span]
    if size == 0 and spec.startswith("bytes=-") and spec != "bytes=-0":
        assert (got.status, got.content) == (200, b"")  # all of nothing
    elif not expected:
        assert got.status == 416
        assert got.headers["content-range"] == f"bytes */{size}"
        assert got.document()["code"] == "range_not_satisfiable"
    else:
        first, end, _ = span.indices(size)
        assert (got.status, got.content) == (206, expected)
        assert got.headers["content-range"] == f"bytes {first}-{end - 1}/{size}"


@pytest.mark.parametrize("spec", ["bytes=0-1,3-4", "lines=1-2", "bytes=3-2", "nonsense"])
async def test_an_invalid_range_is_ignored(spec: str) -> None:
    got = await _serving().ask(headers={"range": spec})
    assert (got.status, got.content) == (200, PLAINTEXT)


async def test_a_range_of_a_head_is_ignored() -> None:
    """RFC 9110, 14.2: only GET has ranges."""
    head = await _serving().ask("HEAD", headers={"range": "bytes=0-0"})
    assert (head.status, head.headers["content-length"]) == (200, str(len(PLAINTEXT)))


@pytest.mark.parametrize("spec", ["bytes=7-7", "bytes=-1", f"bytes={17 * CHUNK}-{17 * CHUNK}"])
async def test_one_byte_costs_a_header_and_two_chunks(spec: str) -> None:
    serving = _serving()
    await serving.bench.authenticate()
    got = await serving.ask(headers={"range": spec})
    assert (got.status, len(got.content)) == (206, 1)
    assert serving.bench.storage.requested_bytes <= HEADER_BYTES + 2 * SEALED_CHUNK_BYTES


async def test_conditions() -> None:
    serving = _serving()
    etag = (await serving.ask("HEAD")).headers["etag"]
    for method in ("GET", "HEAD"):
        same = await serving.ask(method, headers={"if-none-match": f'"x", W/{etag}'})
        assert (same.status, same.content) == (304, b"")
        assert same.headers["etag"] == etag
        assert "content-type" not in same.headers
        other = await serving.ask(method, headers={"if-match": '"x"'})
        assert other.status == 412
        assert (await serving.ask(method, headers={"if-match": etag})).status == 200
    ranged = {"range": "bytes=0-3"}
    held = await serving.ask(headers={**ranged, "if-range": etag})
    assert (held.status, held.content) == (206, PLAINTEXT[:4])
    changed = await serving.ask(headers={**ranged, "if-range": '"x"'})
    assert (changed.status, changed.content) == (200, PLAINTEXT)
    missing = await serving.ask(target="/v1/projects/acme/objects/x", headers={"if-match": "*"})
    assert missing.status == 404


async def test_an_etag_outlives_a_rotation() -> None:
    serving = _serving()
    etag = (await serving.ask("HEAD")).headers["etag"]
    body = (await serving.bench.storage.read(TARGET))[1]
    assert etag == f'"{body[24:56].hex()}"'


async def test_errors_before_a_response_starts() -> None:
    serving = _serving()
    other = "/v1/projects/acme/objects/"
    for target, key, status, code in (
        (PATH, NEW_API_KEY, 401, "unauthorized"),
        (PATH, None, 401, "unauthorized"),
        ("/v1/projects/nobody/objects/x", API_KEY, 401, "unauthorized"),
        ("/v1/projects/No%20Body/objects/x", API_KEY, 401, "unauthorized"),
        (other + "missing", API_KEY, 404, "not_found"),
        (other + "a//b", API_KEY, 404, "not_found"),
        (other + "..%2f..%2f.keyturn", API_KEY, 404, "not_found"),
        (other, API_KEY, 404, "not_found"),
    ):
        for method in ("GET", "HEAD"):
            got = await serving.ask(method, target, key=key)
            assert (got.status, got.ended) == (status, True)
            if method == "GET":
                assert got.document()["code"] == code


@pytest.mark.parametrize("key", ["k" * 901, "%c3%a9" * 451, "a//b", "a/../b", "a/", "a%00b", "%ff"])
async def test_an_upload_to_an_invalid_key_is_malformed_and_all_else_is_not_found(key: str) -> None:
    serving, target = Serving(), f"/v1/projects/acme/objects/{key}"
    serving.bench.plant_sealed(key="None")  # a key of its own, which nothing else is read as
    refused = await serving.ask("PUT", target, body=b"x")
    assert (refused.status, refused.document()["code"]) == (400, "malformed_request")
    assert "1 to 900 bytes" in refused.document()["detail"]
    for method in ("GET", "HEAD", "DELETE"):
        assert (await serving.ask(method, target)).status == 404
    assert (await serving.ask(target="/v1/projects/acme/objects/None")).status == 200
    assert (await serving.ask("PUT", target, key=NEW_API_KEY, body=b"x")).status == 401


async def test_an_unauthorized_caller_learns_nothing_about_the_object() -> None:
    """Only an authenticated caller learns that a key is invalid."""
    serving = _serving()
    answers = []
    for target in (PATH, "/v1/projects/acme/objects/a//b", "/v1/projects/nobody/objects/a"):
        got = await serving.ask(target=target, key=NEW_API_KEY)
        answers.append((got.status, got.content, sorted(got.headers.items())))
    assert answers[0] == answers[1] == answers[2]
    assert set(serving.bench.storage.calls) == {"read"}


async def test_an_object_that_does_not_open_is_a_502_counted_by_its_code() -> None:
    serving = Serving()
    bench = serving.bench
    wraps, body = sealed_object(bench.desired, KEY, PLAINTEXT)
    broken = {
        "corrupt_object": (enc(wraps), body[:24] + bytes(32) + body[56:]),
        "no_usable_wrap": (enc(replace(wraps, user=b"", admin=b"")), body),
        "unknown_algorithm": ({**enc(wraps), "enc-algo": "ROT13"}, body),
    }
    for code, (metadata, stored) in broken.items():
        bench.plant(metadata, stored)
        for headers in ({}, {"range": "bytes=0-0"}):
            got = await serving.ask(headers=headers)
            assert (got.status, got.document()["code"]) == (502, code)
        assert serving.counted("failures_total", code=code) == 2
    bench.plant(deleted(bench.desired, KEY), b"")
    assert (await serving.ask()).document()["code"] == "not_found"


async def test_a_corrupt_first_chunk_is_a_502() -> None:
    """HEAD and ranges verify the last chunk before they send a length."""
    serving = _serving()
    metadata = dict((await serving.bench.storage.head(TARGET)).metadata)
    body = (await serving.bench.storage.read(TARGET))[1]
    serving.bench.plant(metadata, body[:-1])
    for method, headers in (("HEAD", {}), ("GET", {"range": "bytes=0-0"})):
        got = await serving.ask(method, headers=headers)
        assert (got.status, got.aborted) == (502, False)


@pytest.mark.parametrize("size", [0, 1, 3 * CHUNK, len(PLAINTEXT)])
@pytest.mark.parametrize("damage", ["tag", "cut", "chunk cut", "longer"])
async def test_a_get_that_fails_after_its_start_is_aborted(size: int, damage: str) -> None:
    serving = _serving(PLAINTEXT[:size])
    metadata = dict((await serving.bench.storage.head(TARGET)).metadata)
    body = (await serving.bench.storage.read(TARGET))[1]
    changed = {
        "tag": body[:-1] + bytes([body[-1] ^ 1]),
        "cut": body[:-1],
        "chunk cut": body[: HEADER_BYTES + size // CHUNK * SEALED_CHUNK_BYTES],
        "longer": body + b"\0",
    }[damage]
    serving.bench.plant(metadata, changed)
    got = await serving.ask()
    if got.status == 502:  # no length can be given at all
        assert got.ended
        return
    assert (got.status, got.ended, got.aborted) == (200, False, True)
    assert len(got.content) < max(size, 1)
    assert PLAINTEXT.startswith(got.content)
    assert serving.counted("aborted_total", reason="corrupt_object") == 1
    assert serving.counted("failures_total", code="corrupt_object") == 1


async def test_a_lasting_storage_failure_aborts_the_response() -> None:
    serving = _serving()
    serving.bench.storage.breaks = [HEADER_BYTES + 17 * SEALED_CHUNK_BYTES, 0, 0, 0]
    got = await serving.ask()
    assert (got.status, got.ended, got.aborted) == (200, False, True)
    assert serving.counted("aborted_total", reason="storage_unavailable") == 1


async def test_an_unavailable_storage_is_a_503_with_retry_after() -> None:
    serving = _serving()
    serving.bench.storage.fail_next("stream", StorageUnavailableError("stream: SlowDown"))
    got = await serving.ask()
    assert (got.status, got.document()["code"]) == (503, "storage_unavailable")
    assert got.headers["retry-after"] == "1"


async def test_an_unexpected_error_after_the_start_aborts_and_never_completes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    serving = _serving()

    opens, opened = ChunkReader.open_chunks, count()

    def breaks(reader: ChunkReader, first: int, sealed: bytes) -> bytearray:
        if next(opened) == 2:
            raise RuntimeError("a secret in an exception")
        return opens(reader, first, sealed)

    monkeypatch.setattr(ChunkReader, "open_chunks", breaks)
    got = await serving.ask()
    assert (got.status, got.ended, got.aborted) == (200, False, True)
    assert b"secret" not in got.content
    assert serving.counted("requests_total", route="objects", method="GET", status="200") == 1


# The other end.


async def test_a_disconnect_ends_the_read_from_the_storage() -> None:
    serving = _serving()
    storage = serving.bench.storage
    storage.pauses_at, storage.reached, storage.resumed = 1, asyncio.Event(), asyncio.Event()
    connection = Connection()
    asking = asyncio.create_task(serving.ask(on=connection))
    await storage.reached.wait()
    # Most of it is still to come, and the storage says nothing: only the client can be noticed.
    connection.gone.set()
    async with asyncio.timeout(5):
        await asking
    assert storage.open_streams == 0
    assert not connection.ended
    assert storage.given_bytes < len(PLAINTEXT)
    assert serving.counted("aborted_total", reason="client_gone") == 1


@pytest.mark.parametrize("headers", [{}, {"range": f"bytes=0-{18 * CHUNK}"}])
async def test_a_client_that_reads_nothing_is_disconnected(headers: dict[str, str]) -> None:
    serving = _serving(idle_timeout_s=0.05)
    connection = Connection()
    connection.takes.clear()
    async with asyncio.timeout(5):
        await serving.ask(on=connection, headers=headers)
    assert (connection.aborted, connection.ended) == (True, False)
    assert serving.bench.storage.open_streams == 0
    assert serving.counted("aborted_total", reason="client_slow") == 1


# Plaintext.


@pytest.mark.parametrize("presigned", [True, False])
async def test_plaintext_is_read_from_the_storage_or_streamed(*, presigned: bool) -> None:
    serving = Serving(presign_plaintext=presigned)
    bench = serving.bench
    bench.allow_plaintext()
    bench.plant({}, PLAINTEXT, restated={"content-encoding": "gzip"})
    got = await serving.ask()
    head = await serving.ask("HEAD")
    assert (head.status, head.headers["content-length"]) == (200, str(len(PLAINTEXT)))
    etag = head.headers["etag"]
    assert (await serving.ask(headers={"if-none-match": etag})).status == 304
    assert (await serving.ask(headers={"if-match": '"x"'})).status == 412
    ranged = await serving.ask(headers={"range": "bytes=1-2"})
    # A bucket writer chooses content types: no page of its own runs on the gateway's origin.
    unchanged = await serving.ask(headers={"if-none-match": etag})
    for answer in (got, head, ranged, unchanged):
        assert answer.headers["content-security-policy"] == "sandbox"
    if presigned:
        assert (got.status, got.content, ranged.status) == (307, b"", 307)
        assert got.headers["location"].startswith(f"memory:///{TARGET}")
        assert got.headers["cache-control"] == "no-store"
        assert {lease.expires_s for lease in bench.storage.leases} == {60}
    else:
        assert (got.status, got.content) == (200, PLAINTEXT)
        assert got.headers["content-encoding"] == "gzip"
        assert (ranged.status, ranged.content) == (206, PLAINTEXT[1:3])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_download_has_the_name_that_the_caller_gives_it(method: str) -> None:
    serving = _serving()
    got = await serving.ask(method, f"{PATH}?x=1&download=q3%20%C3%BC.pdf")
    own = await serving.ask(method)
    disposition = "attachment; filename=\"q3 _.pdf\"; filename*=UTF-8''q3%20%C3%BC.pdf"
    assert got.headers == own.headers | {"content-disposition": disposition}
    assert got.content == own.content
    part = await serving.ask(target=f"{PATH}?download=a", headers={"range": "bytes=1-2"})
    assert (part.status, part.content) == (206, PLAINTEXT[1:3])
    assert part.headers["content-disposition"] == 'attachment; filename="a"'


async def test_a_download_with_a_name_is_never_redirected() -> None:
    """The storage would not send the name."""
    serving = Serving(presign_plaintext=True)
    serving.bench.allow_plaintext()
    serving.bench.plant({}, b"content", restated={"content-disposition": "inline"})
    got = await serving.ask(target=f"{PATH}?download=a.txt")
    assert (got.status, got.content) == (200, b"content")
    assert got.headers["content-disposition"] == 'attachment; filename="a.txt"'
    assert serving.bench.storage.leases == []


@pytest.mark.parametrize("name", ["", "a/b", "a%5Cb", "a%0Ab", "%FF", "a&download=a", "n" * 256])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_bad_name_of_a_download_is_a_400_for_authenticated_callers(
    name: str, method: str
) -> None:
    serving = _serving()
    target = f"{PATH}?download={name}"
    refused = await serving.ask(method, target)
    assert refused.status == 400
    if method == "GET":
        assert refused.document()["code"] == "malformed_request"
    assert (await serving.ask(method, target, key=None)).status == 401
    assert (await serving.ask("PUT", f"{PATH}x?download={name}", body=b"x")).status == 202
    assert set(serving.bench.storage.calls) <= {"read", "read_start"}


async def test_plaintext_is_presigned_for_authenticated_callers_only() -> None:
    serving = Serving(presign_plaintext=True)
    serving.bench.plant({}, PLAINTEXT)
    got = await serving.ask()  # not allowed in the project
    assert (got.status, got.document()["code"]) == (502, "corrupt_object")
    serving.bench.allow_plaintext()
    assert (await serving.ask(key=NEW_API_KEY)).status == 401
    assert serving.bench.storage.calls["presign_get"] == 0


# Times.


def _rewrapped(serving: Serving, stored_at: str) -> None:
    """Put an object that a rotation rewrapped a moment ago, with this `enc-stored-at`."""
    wraps, body = sealed_object(serving.bench.desired, KEY, PLAINTEXT)
    serving.bench.plant(enc(wraps) | {"enc-stored-at": stored_at}, body)


async def test_no_rotation_makes_a_file_look_changed() -> None:
    """Headers and conditions use the time at which the content was stored."""
    serving = Serving()
    then = "Mon, 02 Nov 2026 03:04:05 GMT"
    _rewrapped(serving, "2026-11-02T03:04:05.600000Z")
    for method in ("GET", "HEAD"):
        got = await serving.ask(method)
        assert got.headers["last-modified"] == then
        assert "enc-stored-at" not in str(got.headers)
    for condition, status in (("if-modified-since", 304), ("if-unmodified-since", 200)):
        assert (await serving.ask(headers={condition: then})).status == status
    ranged = await serving.ask(headers={"range": "bytes=0-9", "if-range": then})
    assert (ranged.status, ranged.content) == (206, PLAINTEXT[:10])
    before = "Mon, 02 Nov 2026 03:04:04 GMT"
    assert (await serving.ask(headers={"if-modified-since": before})).status == 200
    assert (await serving.ask(headers={"if-unmodified-since": before})).status == 412


@pytest.mark.parametrize(
    "stored_at", ["", "yesterday", "2026-11-02", "9999-01-01T00:00:00Z", "2026-13-02T03:04:05Z"]
)
async def test_an_implausible_stored_at_is_ignored(stored_at: str) -> None:
    serving = Serving()
    _rewrapped(serving, stored_at)
    head = await serving.bench.storage.head(TARGET)
    got = await serving.ask("HEAD")
    assert got.headers["last-modified"] == format_http_date(head.last_modified)


# Nothing of an object is read before its caller is authenticated (SPEC 9.1).

_OWN_KEY = new_api_key()
_MASTER = {"m1": Secret(os.urandom(32))}
_OPERATIONS = ("read", "read_start", "head", "stream", "list", "presign_get")


class _Watched(MemoryStorage):
    """Records the S3 key of every read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name not in _OPERATIONS:
            return found

        def watched(key: str, *arguments: Any, **more: Any) -> Any:
            self.seen.append(key)
            return found(key, *arguments, **more)

        return watched


@pytest.fixture
async def storage() -> AsyncIterator[_Watched]:
    watched = _Watched()
    kek = user_kek(_OWN_KEY, "acme")

    entry = Generation(
        1, kek_id(kek), kek, str(uuid.uuid4()), "2026-11-24T10:00:00Z", "2026-11-24T10:00:00Z"
    )
    ring = Keyring("acme", "m1", entry, RequestOrigin("api", "0" * 64), lease_s=15)
    await create_keyring(watched, ring, operator_keys(_MASTER), lease_s=15)
    watched.seen.clear()
    return watched


async def _ask(storage: _Watched, method: str, project: str, authorization: str) -> None:
    keyrings = KeyringReader(storage, operator_keys(_MASTER), lease_s=1, cache_s=0)
    auth = Authenticator(
        keyrings,
        KeyringLookups(keyrings, storage),
        Secret(b""),
        deployment="default",
        cache_s=0,
        refusal_min_s=0,
    )
    opener = ObjectOpener(storage, auth, operator_keys(_MASTER), HeldCustomerKeys())
    limit = ConcurrencyLimit(4, 1.0, "requests")
    objects = ObjectRoutes(auth, limit, opener, {}, GatewayMetrics(), presign_plaintext=True)
    headers = [(b"authorization", authorization.encode())]
    raw = f"/v1/projects/{project}/objects/x".encode()
    scope = {"type": "http", "method": method, "raw_path": raw, "headers": headers}
    scope["query_string"] = b""

    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing is taken of a body")

    async def send(message: Any) -> None:
        raise AssertionError(message)

    await objects(scope, receive, send)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT"])
@pytest.mark.parametrize(
    ("project", "reads"),
    [
        ("acme", [".keyturn/keyrings/acme.json"]),
        ("nosuch", [".keyturn/keyrings/nosuch.json"]),
        ("NoSuch", []),
        (".keyturn", []),
        ("..", []),
    ],
)
async def test_an_unauthorized_request_reads_at_most_a_keyring(
    storage: _Watched, method: str, project: str, reads: list[str]
) -> None:
    for without_key in ("", "Bearer ", "Basic abc"):
        with pytest.raises(UnauthorizedError):
            await _ask(storage, method, project, without_key)
    assert storage.seen == []
    with pytest.raises(UnauthorizedError):
        await _ask(storage, method, project, f"Bearer {'x' * 40}")
    assert storage.seen == reads


async def test_the_holder_of_the_key_reads_the_object(storage: _Watched) -> None:
    """The refusals above must not have another reason."""
    with pytest.raises(CodedError, match="no object has this key"):
        await _ask(storage, "GET", "acme", f"Bearer {_OWN_KEY}")
    assert storage.seen == [".keyturn/keyrings/acme.json", "acme/x"]
