"""A request is sent once, and the API key goes to the gateway alone (SPEC 9, 9.3)."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from keyturn.errors import (
    CodedError,
    NotFoundError,
    RangeNotSatisfiableError,
    SettingsError,
    StorageUnavailableError,
)
from keyturn.gateway import (
    Client,
    GatewayError,
    GatewayUnavailableError,
    IncompleteBodyError,
    ResponseLostError,
    UnexpectedResponseError,
)
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    API_KEY,
    CALLS,
    NEW_API_KEY,
    SENT_ONCE,
    UPLOADED,
    Answer,
    FakeGateway,
    after,
    always,
    connected,
    cut,
    drop,
    failure,
    json_always,
    json_answer,
    object_of,
    own_frames,
    problem,
    read,
    refusal,
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


@pytest.mark.parametrize(
    "url",
    [
        "",
        "files.example.com",
        "ftp://files.example.com",
        "http://",
        "http://user:sesame@files.example.com",
        "http://files.example.com/?token=sesame",
        "http://files.example.com/#sesame",
        "http://files.example.com:99999",
        "http://[::1",
        "http://files example.com",
        "http://files.example.com\r\n",
    ],
)
async def test_a_url_of_no_gateway_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="the gateway's URL must be") as raised:
        async with Client.connect(url, API_KEY):
            pass
    assert "sesame" not in str(raised.value)


async def test_without_aiohttp_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(SettingsError, match=r"keyturn\[gateway\]"):
        async with Client.connect("http://127.0.0.1:1", API_KEY):
            pass


async def test_a_gateway_below_a_path_is_requested_there() -> None:
    async with serving(object_of(BODY)) as gateway:
        assert await read(f"{gateway.url}/files/") == (len(BODY), BODY)
    assert gateway.seen[0].target == "/files/v1/projects/acme/objects/k"


def _to(target: str, status: int = 307) -> Answer:
    return always(status, b"", {"Location": target})


@pytest.fixture
async def storage() -> AsyncIterator[FakeGateway]:
    async with serving(object_of(BODY, STORED)) as running:
        yield running


async def test_a_redirect_is_followed_without_the_api_key(
    storage: FakeGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(_to(storage.url + SIGNED)) as gateway:
        assert await read(gateway.url) == (len(BODY), BODY)
        assert await read(gateway.url, 10, 5) == (5, BODY[10:15])
    assert [seen.target for seen in storage.seen] == [SIGNED, SIGNED]
    assert [seen.headers.get("Range") for seen in storage.seen] == [None, "bytes=10-14"]
    for seen in storage.seen:
        assert "Authorization" not in seen.headers
        assert API_KEY not in repr(seen)
    assert all(seen.headers["Authorization"] for seen in gateway.seen)
    assert API_KEY not in caplog.text


async def test_the_storages_description_of_the_object_is_returned(storage: FakeGateway) -> None:
    async with connected(_to(storage.url + SIGNED)) as (_, client):
        info = await client.stat("acme", "k")
    assert storage.methods == ["HEAD"]
    assert (info.size_bytes, info.content_type, info.etag) == (len(BODY), "text/csv", '"md5"')
    assert info.metadata == {"author": "kim"}


async def test_what_a_plaintext_object_was_stored_with_is_no_proxys_encoding() -> None:
    headers = {**STORED, "Content-Encoding": "gzip"}
    async with (
        serving(object_of(BODY, headers)) as storage,
        serving(_to(storage.url + SIGNED)) as gateway,
    ):
        assert await read(gateway.url) == (len(BODY), BODY)


async def test_a_second_redirect_is_not_followed(storage: FakeGateway) -> None:
    async with (
        serving(_to(storage.url + SIGNED)) as second,
        serving(_to(second.url + "/x")) as gateway,
    ):
        with pytest.raises(UnexpectedResponseError, match="the storage responded with 307"):
            await read(gateway.url)
    assert storage.seen == []
    assert len(second.seen) == 1


async def test_a_loop_is_requested_twice_and_then_refused() -> None:
    async with serving(always(500)) as gateway:
        gateway.answer = _to(gateway.url + "/v1/projects/acme/objects/k")
        with pytest.raises(UnexpectedResponseError):
            await read(gateway.url)
    assert ["Authorization" in seen.headers for seen in gateway.seen] == [True, False]


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 308])
async def test_no_other_redirect_is_followed(storage: FakeGateway, status: int) -> None:
    async with serving(_to(storage.url + SIGNED, status)) as gateway:
        with pytest.raises(UnexpectedResponseError) as raised:
            await read(gateway.url)
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
        with pytest.raises(UnexpectedResponseError, match="redirected to an address that is not"):
            await read(gateway.url)
    assert len(gateway.seen) == 1


@pytest.mark.parametrize("host", ["127.0.0.1:1", "a..b", "127.0.0.1:99999"])
async def test_an_address_where_nothing_answers_is_the_storages_failure(host: str) -> None:
    async with serving(_to(f"http://{host}/x?X-Amz-Signature=5ec4e7")) as gateway:
        with pytest.raises(StorageUnavailableError) as raised:
            await read(gateway.url)
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
async def test_the_storages_refusals_are_raised_by_their_status(
    status: int, expected: type[CodedError | GatewayError], how: str
) -> None:
    xml = b"" if status == 204 else b"<Error><Code>AccessDenied</Code></Error>"
    async with (
        serving(always(status, xml)) as storage,
        serving(_to(storage.url + SIGNED)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        with pytest.raises(expected) as raised:
            await (read(gateway.url) if how == "GET" else client.stat("acme", "k"))
    assert "5ec4e7" not in str(raised.value)


async def test_a_plaintext_body_that_is_cut_raises() -> None:
    async with (
        serving(cut(b"abc", 10)) as storage,
        serving(_to(storage.url + SIGNED)) as gateway,
    ):
        with pytest.raises(IncompleteBodyError):
            await read(gateway.url)


async def test_what_is_sent_is_never_redirected(storage: FakeGateway) -> None:
    async with connected(_to(storage.url + SIGNED)) as (_, client):
        for call in (
            client.upload("acme", "k", b"body"),
            client.rotate("acme", API_KEY),
            client.delete("acme", "k"),
            client.link("acme", "k"),
        ):
            with pytest.raises(UnexpectedResponseError):
                await call
    assert storage.seen == []


@pytest.mark.parametrize("how", CALLS)
async def test_a_gateway_that_is_not_there_is_unavailable(how: str) -> None:
    error = await failure("http://127.0.0.1:1", how)
    assert isinstance(error, GatewayUnavailableError)
    assert "(connection refused: check the host and port in KEYTURN_GATEWAY_URL" in str(error)


async def _hang_up(request: web.Request) -> web.StreamResponse:
    drop(request)
    return web.Response()


@pytest.mark.parametrize("how", CALLS)
async def test_a_gateway_that_hangs_up_leaves_open_what_was_sent(how: str) -> None:
    error = await refusal(_hang_up, how)
    sent = how in SENT_ONCE
    assert isinstance(error, ResponseLostError if sent else GatewayUnavailableError)


async def _garbage(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 twohundred OK\r\n\r\n")
    drop(request)
    return web.Response()


@pytest.mark.parametrize("how", CALLS)
async def test_an_answer_that_is_no_http_is_none(how: str) -> None:
    """The HTTP client's own error would hold the request with its headers here."""
    error = await refusal(_garbage, how)
    assert isinstance(error, (ResponseLostError, GatewayUnavailableError))


@pytest.mark.parametrize("how", ["open", "upload", "delete", "list", "link"])
async def test_a_refusal_that_is_cut_is_no_answer(how: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Length": "100", "Content-Type": "application/problem+json"}
        response = web.StreamResponse(status=401, headers=headers)
        await response.prepare(request)
        await response.write(b'{"code":"unauthorized"}')
        drop(request)
        return response

    error = await refusal(answer, how)
    sent = how in SENT_ONCE
    assert isinstance(error, ResponseLostError if sent else GatewayUnavailableError)


@pytest.mark.parametrize("how", ["open", "upload", "rotation"])
async def test_a_page_without_an_end_is_not_read_to_it(how: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=502)
        response.enable_chunked_encoding()
        await response.prepare(request)
        with suppress(ConnectionError):
            while True:
                await response.write(b"x" * 2**16)
        return response

    error = await refusal(answer, how)
    assert isinstance(error, UnexpectedResponseError)


@pytest.mark.parametrize("answer", [_hang_up, _garbage, always(302), problem(401, "unauthorized")])
@pytest.mark.parametrize("how", CALLS)
async def test_no_error_and_no_log_holds_an_api_key(
    answer: Answer, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    error = await refusal(answer, how)
    frames = list(own_frames(error))
    assert frames
    shown = [str(error), repr(error), repr(vars(error)), *frames, caplog.text]
    assert not [text for text in shown if API_KEY in text or NEW_API_KEY in text]


@pytest.mark.parametrize("body", [b"body", b""])
async def test_an_upload_is_not_sent_again_when_a_kept_connection_drops(body: bytes) -> None:
    """The HTTP client by itself would send it twice, and the first one refuse the second."""
    methods = []

    async def hang_up(request: web.Request) -> web.StreamResponse | None:
        methods.append(request.method)
        drop(request)
        return web.Response()

    async with connected(UPLOADED) as (gateway, client):
        await client.upload("acme", "first", b"so that a connection is kept")
        gateway.expect = hang_up
        with pytest.raises(ResponseLostError):
            await client.upload("acme", "k", body)
    assert methods == ["PUT"]


async def test_a_deletion_is_not_sent_again_when_a_kept_connection_drops() -> None:
    """The HTTP client by itself would send it twice; it is sent without a body."""
    async with connected(json_always(202, {"request_id": AN_ID})) as (gateway, client):
        await client.delete("acme", "first")
        gateway.answer = _hang_up
        with pytest.raises(ResponseLostError):
            await client.delete("acme", "k")
    assert gateway.methods == ["DELETE", "DELETE"]
    for seen in gateway.seen:
        assert seen.body == b""
        assert not {"Expect", "Content-Type", "Transfer-Encoding"} & seen.headers.keys()


async def test_a_deletions_answer_may_take_as_long_as_the_requested_wait() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        await after(0.2)
        return web.Response(status=204)

    async with connected(answer, idle_timeout_s=0.1) as (_, client):
        assert (await client.delete("acme", "k", wait_s=1)).deleted
        with pytest.raises(ResponseLostError, match="it did not respond in time"):
            await client.delete("acme", "k")


async def test_a_server_that_stops_reading_ends_the_upload() -> None:
    over = asyncio.Event()

    async def stand_still(_: web.Request) -> web.StreamResponse | None:
        await over.wait()
        return web.Response()

    async with connected(UPLOADED, idle_timeout_s=0.2) as (gateway, client):
        gateway.expect = stand_still
        with pytest.raises(ResponseLostError, match="it did not respond in time"):
            await client.upload("acme", "k", b"body")
        over.set()


async def test_a_server_that_never_answers_ends_the_upload() -> None:
    over = asyncio.Event()

    async def answer(_: web.Request) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    async with connected(answer, idle_timeout_s=0.2) as (_, client):
        with pytest.raises(ResponseLostError, match="it did not respond in time"):
            await client.upload("acme", "k", b"body", wait=False)
        over.set()


async def test_an_answer_may_take_as_long_as_the_requested_wait() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        await after(0.6)
        return json_answer(201, {"upload_id": AN_ID})

    async with connected(answer, idle_timeout_s=0.25) as (_, client):
        assert (await client.upload("acme", "k", b"body", wait_s=1)).stored


async def test_waiting_for_a_connection_is_no_idleness() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        await after(0.2)
        return json_answer(201, {"upload_id": AN_ID})

    async with connected(answer, idle_timeout_s=0.5, max_connections=1) as (_, client):
        uploads = [client.upload("acme", f"k{n}", b"body") for n in range(4)]
        assert len(await asyncio.gather(*uploads)) == 4
