"""Plaintext objects are read where the gateway redirects, and the API key stays (SPEC 9.3)."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import (
    CodedError,
    NotFoundError,
    RangeNotSatisfiableError,
    StorageUnavailableError,
)
from keyturn.gateway import Client, GatewayError, IncompleteBodyError, UnexpectedResponseError
from tests.unit.keyturn.gateway.gateway import (
    API_KEY,
    Answer,
    FakeGateway,
    always,
    cut,
    object_of,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

BODY = os.urandom(1000)
SIGNED = "/bucket/acme/a%20b?X-Amz-Signature=5ec4e7&X-Amz-Expires=60"
STORED = {
    "ETag": '"md5"',
    "Content-Type": "text/csv",
    "x-amz-meta-author": "kim",
    "x-amz-meta-enc-upload": "2f6c9a0e-0000-4000-8000-000000000001",
    "X-Keyturn-Meta-Forged": "no",
}


def _to(target: str, status: int = 307) -> Answer:
    return always(status, b"", {"Location": target})


@pytest.fixture
async def storage() -> AsyncIterator[FakeGateway]:
    async with serving(object_of(BODY, STORED)) as running:
        yield running


async def _read(gateway: FakeGateway, start: int = 0, length: int | None = None) -> bytes:
    async with (
        Client.connect(gateway.url, API_KEY) as client,
        client.open("acme", "a b", start=start, length=length) as opened,
    ):
        return await opened.read()


async def test_a_redirect_is_followed_without_the_api_key(
    storage: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(_to(storage.url + SIGNED)) as gateway:
        assert await _read(gateway) == BODY
        assert await _read(gateway, 10, 5) == BODY[10:15]
    assert [seen.target for seen in storage.seen] == [SIGNED, SIGNED]
    assert [seen.headers.get("Range") for seen in storage.seen] == [None, "bytes=10-14"]
    for seen in storage.seen:
        assert "Authorization" not in seen.headers
        assert API_KEY not in repr(seen)
    assert all(seen.headers["Authorization"] for seen in gateway.seen)
    assert API_KEY not in caplog.text


async def test_what_the_storage_tells_of_the_object_is_told(storage: FakeGateway) -> None:
    async with (
        serving(_to(storage.url + SIGNED)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        told = await client.stat("acme", "k")
    assert storage.methods == ["HEAD"]
    assert (told.size_bytes, told.content_type, told.etag) == (len(BODY), "text/csv", '"md5"')
    assert told.metadata == {"author": "kim"}


async def test_what_a_plaintext_object_was_stored_with_is_no_proxys_encoding() -> None:
    headers = {**STORED, "Content-Encoding": "gzip"}
    async with (
        serving(object_of(BODY, headers)) as storage,
        serving(_to(storage.url + SIGNED)) as gateway,
    ):
        assert await _read(gateway) == BODY


async def test_a_second_redirect_is_not_followed(storage: FakeGateway) -> None:
    async with (
        serving(_to(storage.url + SIGNED)) as second,
        serving(_to(second.url + "/x")) as gateway,
    ):
        with pytest.raises(UnexpectedResponseError, match="the storage responded with 307"):
            await _read(gateway)
    assert storage.seen == []
    assert len(second.seen) == 1


async def test_a_loop_is_asked_twice_and_then_refused() -> None:
    async with serving(always(500)) as gateway:
        gateway.answer = _to(gateway.url + "/v1/projects/acme/objects/k")
        with pytest.raises(UnexpectedResponseError):
            await _read(gateway)
    assert ["Authorization" in seen.headers for seen in gateway.seen] == [True, False]


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 308])
async def test_no_other_redirect_is_followed(storage: FakeGateway, status: int) -> None:
    async with serving(_to(storage.url + SIGNED, status)) as gateway:
        with pytest.raises(UnexpectedResponseError) as raised:
            await _read(gateway)
    assert raised.value.status == status
    assert storage.seen == []


@pytest.mark.parametrize(
    "target",
    [
        "",
        "/elsewhere",
        "//127.0.0.1/x",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "http://",
        "http:///x",
        "http://user:password@127.0.0.1/x",
        "http://[::1/x",
        "javascript:alert(1)",
    ],
)
async def test_a_redirect_to_anything_but_a_web_address_is_refused(target: str) -> None:
    async with serving(_to(target)) as gateway:
        with pytest.raises(UnexpectedResponseError, match="redirected to what is no"):
            await _read(gateway)
    assert len(gateway.seen) == 1


@pytest.mark.parametrize("host", ["127.0.0.1:1", "a..b", "127.0.0.1:99999"])
async def test_an_address_where_nothing_answers_is_the_storages_failure(host: str) -> None:
    async with serving(_to(f"http://{host}/x?X-Amz-Signature=5ec4e7")) as gateway:
        with pytest.raises(StorageUnavailableError) as raised:
            await _read(gateway)
    assert "5ec4e7" not in str(raised.value)
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (404, NotFoundError),
        (416, RangeNotSatisfiableError),
        (500, StorageUnavailableError),
        (503, StorageUnavailableError),
        (401, UnexpectedResponseError),
        (403, UnexpectedResponseError),
        (204, UnexpectedResponseError),
    ],
)
@pytest.mark.parametrize("how", ["GET", "HEAD"])
async def test_the_storages_refusals_are_told_by_their_status(
    status: int, expected: type[CodedError | GatewayError], how: str
) -> None:
    xml = b"" if status == 204 else b"<Error><Code>AccessDenied</Code></Error>"
    async with (
        serving(always(status, xml)) as storage,
        serving(_to(storage.url + SIGNED)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        with pytest.raises(expected) as raised:
            await (_read(gateway) if how == "GET" else client.stat("acme", "k"))
    assert "5ec4e7" not in str(raised.value)


async def test_a_plaintext_body_that_is_cut_raises() -> None:
    async with (
        serving(cut(b"abc", 10)) as storage,
        serving(_to(storage.url + SIGNED)) as gateway,
    ):
        with pytest.raises(IncompleteBodyError):
            await _read(gateway)


async def test_what_is_sent_is_never_redirected(storage: FakeGateway) -> None:
    async with (
        serving(_to(storage.url + SIGNED)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        for call in (client.upload("acme", "k", b"body"), client.rotate("acme", API_KEY)):
            with pytest.raises(UnexpectedResponseError):
                await call
    assert storage.seen == []
