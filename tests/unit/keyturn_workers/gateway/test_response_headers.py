"""What an answer says of an object in its headers: sendable, whatever was stored (SPEC 9.2)."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.metadata import decode_caller_metadata
from keyturn_workers.gateway.objects import LegacyReader, PlaintextReader
from keyturn_workers.gateway.read import (
    AS_STORED,
    Delivery,
    delivery_as_download,
    delivery_by_link,
    object_headers,
    validator_headers,
)
from keyturn_workers.gateway.request import META_PREFIX, Span
from keyturn_workers.storage import Headers, ObjectHead
from tools.harness.memory_storage import MemoryStorage

AT = datetime(2026, 11, 24, 10, tzinfo=UTC)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# As a storage may return them: whatever another writer put there.
_VALUES = st.text(max_size=60) | st.text(st.characters(max_codepoint=255), max_size=60)


def _head(metadata: dict[str, str], content_type: str | None = None, **restated: str) -> ObjectHead:
    named = {name.replace("_", "-"): value for name, value in restated.items()}
    return ObjectHead(10, "e" * 32, AT, AT, Headers(metadata, content_type, named))


async def _unread() -> bytes:
    raise AssertionError("headers need no plaintext")


def _whole(head: ObjectHead) -> LegacyReader:
    # Nonce and tag in addition to the plaintext.
    return LegacyReader(replace(head, size_bytes=head.size_bytes + 28), _unread)


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
