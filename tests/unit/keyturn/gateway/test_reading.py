"""Objects, and ranges of them, are read as they are, or not at all (SPEC 9.1, 9.2)."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from urllib.parse import unquote

import pytest
from aiohttp import web

from keyturn.errors import MalformedRequestError, NotFoundError, RangeNotSatisfiableError
from keyturn.gateway import Client, UnexpectedResponseError
from tests.unit.keyturn.gateway.gateway import API_KEY, HEADERS, always, object_of, serving

BODY = os.urandom(1000)


async def _read(
    url: str, start: int = 0, length: int | None = None, key: str = "k"
) -> tuple[int, bytes]:
    """The length that was told, and the body."""
    async with (
        Client.connect(url, API_KEY) as client,
        client.open("acme", key, start=start, length=length) as opened,
    ):
        return opened.length, await opened.read()


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 3 * 2**20 + 1])
async def test_a_whole_object_comes_in_pieces(size: int) -> None:
    body = os.urandom(size)
    async with (
        serving(object_of(body)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
        client.open("acme", "k") as opened,
    ):
        assert (opened.size_bytes, opened.length) == (size, size)
        pieces = [piece async for piece in opened.chunks()]
        assert b"".join(pieces) == body
        assert all(pieces)
        assert await opened.read() == b""
    (seen,) = gateway.seen
    assert (seen.method, seen.target) == ("GET", "/v1/projects/acme/objects/k")
    assert seen.headers["Authorization"] == f"Bearer {API_KEY}"
    assert "Range" not in seen.headers
    assert seen.headers["Accept-Encoding"] == "identity"


async def test_what_is_told_of_an_object_is_the_same_by_get_and_head() -> None:
    async with (
        serving(object_of(BODY)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        told = await client.stat("acme", "k")
        async with client.open("acme", "k") as opened:
            assert opened.info == told
            assert opened.content_type == "text/plain"
            assert opened.metadata == {"author": "kim", "title": "éé"}
            assert opened.etag == '"c0ffee"'
            assert opened.last_modified == datetime(2026, 11, 24, 10, tzinfo=UTC)
    assert told.size_bytes == len(BODY)
    assert gateway.methods == ["HEAD", "GET"]


@pytest.mark.parametrize(
    ("start", "length", "header"),
    [
        (0, 1, "bytes=0-0"),
        (0, 1000, "bytes=0-999"),
        (0, 5000, "bytes=0-4999"),
        (1, None, "bytes=1-"),
        (999, None, "bytes=999-"),
        (100, 50, "bytes=100-149"),
        (990, 50, "bytes=990-1039"),
        (-1, None, "bytes=-1"),
        (-1000, None, "bytes=-1000"),
        (-2000, None, "bytes=-2000"),
    ],
)
async def test_a_range_is_read_as_asked(start: int, length: int | None, header: str) -> None:
    expected = BODY[start:] if length is None else BODY[start : start + length]
    async with (
        serving(object_of(BODY)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
        client.open("acme", "k", start=start, length=length) as opened,
    ):
        assert opened.size_bytes == len(BODY)
        assert opened.length == len(expected)
        assert await opened.read() == expected
    assert gateway.seen[0].headers["Range"] == header


async def test_a_range_behind_the_end_is_refused_as_the_gateway_does() -> None:
    async with serving(object_of(BODY)) as gateway:
        with pytest.raises(RangeNotSatisfiableError):
            await _read(gateway.url, 1000)
    async with serving(object_of(b"")) as gateway:
        with pytest.raises(RangeNotSatisfiableError):
            await _read(gateway.url, 0, 1)


@pytest.mark.parametrize(("start", "length"), [(0, 0), (5, -1), (-5, 3)])
async def test_a_range_that_http_cannot_ask_for_is_not_sent(start: int, length: int) -> None:
    async with serving(object_of(BODY)) as gateway:
        with pytest.raises(MalformedRequestError):
            await _read(gateway.url, start, length)
    assert gateway.seen == []


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (200, {}, "the range was ignored"),
        (206, {}, "states no range"),
        (206, {"Content-Range": "bytes 0-9/1000"}, "another range"),
        (206, {"Content-Range": "bytes 100-109/105"}, "another range"),
        (206, {"Content-Range": "bytes 100-108/1000"}, "another range"),
        (206, {"Content-Range": "bytes 100-109/*"}, "states no range"),
        (206, {"Content-Range": "bytes */1000"}, "states no range"),
        (206, {"Content-Range": "chars 100-109/1000"}, "states no range"),
        (206, {"Content-Range": "bytes 100-109/1000", "Content-Encoding": "br"}, "encoded"),
    ],
)
async def test_an_answer_that_is_not_the_range_is_not_taken_for_it(
    status: int, headers: dict[str, str], told: str
) -> None:
    async with serving(always(status, b"0123456789", headers)) as gateway:
        with pytest.raises(UnexpectedResponseError, match=told) as raised:
            await _read(gateway.url, 100, 10)
    assert raised.value.status == status


async def test_another_length_than_the_range_has_is_not_taken_for_it() -> None:
    headers = {"Content-Range": "bytes 100-109/1000"}
    async with serving(always(206, b"012345678", headers)) as gateway:
        with pytest.raises(UnexpectedResponseError, match="another range"):
            await _read(gateway.url, 100, 10)


async def test_a_part_is_not_taken_for_the_whole() -> None:
    headers = {"Content-Range": "bytes 0-9/10"}
    async with serving(always(206, b"0123456789", headers)) as gateway:
        with pytest.raises(UnexpectedResponseError, match="the status is 206"):
            await _read(gateway.url)


async def test_an_answer_without_a_length_is_not_taken() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(b"0123456789")
        return response

    async with serving(answer) as gateway:
        with pytest.raises(UnexpectedResponseError, match="no length"):
            await _read(gateway.url)


async def test_a_body_that_a_proxy_compressed_is_not_taken() -> None:
    async with serving(object_of(BODY, {**HEADERS, "Content-Encoding": "gzip"})) as gateway:
        with pytest.raises(UnexpectedResponseError, match="encoded"):
            await _read(gateway.url)


@pytest.mark.parametrize(
    ("key", "sent"),
    [
        ("a b", "a%20b"),
        ("100%", "100%25"),
        ("%2e%2e/x", "%252e%252e/x"),
        ("a#b?c&d=e", "a%23b%3Fc%26d%3De"),
        ("é/日本.txt", "%C3%A9/%E6%97%A5%E6%9C%AC.txt"),
        ("a+b;c:d@e", "a%2Bb%3Bc%3Ad%40e"),
        ("~-_.x/..y", "~-_.x/..y"),
        ("back\\slash", "back%5Cslash"),
    ],
)
async def test_every_key_arrives_as_it_is(key: str, sent: str) -> None:
    async with serving(object_of(BODY)) as gateway:
        assert await _read(gateway.url, key=key) == (len(BODY), BODY)
    assert gateway.seen[0].target == f"/v1/projects/acme/objects/{sent}"
    assert unquote(gateway.seen[0].target).endswith(f"/objects/{key}")


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../x", "a/./b", "a\nb", "k" * 901])
@pytest.mark.parametrize("how", ["open", "stat", "upload"])
async def test_a_key_that_is_none_is_not_sent(key: str, how: str) -> None:
    async with serving(object_of(BODY)) as gateway, Client.connect(gateway.url, API_KEY) as client:
        with pytest.raises(MalformedRequestError, match="a key"):
            await _ask(client, how, "acme", key)
    assert gateway.seen == []


@pytest.mark.parametrize("project", ["", "Acme", "a/b", "..", ".keyturn", "acme\r\nX: y"])
@pytest.mark.parametrize("how", ["open", "stat", "upload", "rotate", "rotation"])
async def test_a_project_that_is_none_is_not_sent(project: str, how: str) -> None:
    async with serving(object_of(BODY)) as gateway, Client.connect(gateway.url, API_KEY) as client:
        with pytest.raises(MalformedRequestError, match="a project id"):
            await _ask(client, how, project, "k")
    assert gateway.seen == []


async def _ask(client: Client, how: str, project: str, key: str) -> None:
    if how == "open":
        async with client.open(project, key):
            pass
    elif how == "stat":
        await client.stat(project, key)
    elif how == "upload":
        await client.upload(project, key, b"")
    elif how == "rotate":
        await client.rotate(project, API_KEY)
    else:
        await client.rotation(project, "2f6c9a0e-0000-4000-8000-000000000001")


async def test_a_gateway_below_a_path_is_asked_there() -> None:
    async with serving(object_of(BODY)) as gateway:
        assert await _read(f"{gateway.url}/files/") == (len(BODY), BODY)
    assert gateway.seen[0].target == "/files/v1/projects/acme/objects/k"


async def test_one_client_reads_for_several_projects_on_the_same_connections() -> None:
    other_key = "another-project's-key-is-no-such".replace("'", "-")
    async with serving(object_of(BODY)) as gateway, Client.connect(gateway.url, API_KEY) as client:
        await client.stat("acme", "k")
        await client.with_api_key(other_key).stat("other", "k")
        await client.stat("acme", "k")
    sent = [seen.headers["Authorization"].removeprefix("Bearer ") for seen in gateway.seen]
    assert sent == [API_KEY, other_key, API_KEY]


async def test_an_object_that_is_left_early_holds_no_connection() -> None:
    body = os.urandom(8 * 2**20)
    async with (
        serving(object_of(body)) as gateway,
        Client.connect(gateway.url, API_KEY, max_connections=1) as client,
    ):
        for _ in range(3):
            async with client.open("acme", "k") as opened:
                async for _ in opened.chunks():
                    break
        async with client.open("acme", "k") as opened:
            assert await opened.read() == body


async def test_headers_that_say_nothing_are_none() -> None:
    headers = {"Last-Modified": "yesterday", "Content-Type": "a/b"}
    async with (
        serving(object_of(b"x", headers)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        told = await client.stat("acme", "k")
    assert (told.etag, told.last_modified, told.metadata) == (None, None, {})


async def test_nothing_there_is_not_found_by_head_too() -> None:
    async with serving(always(404)) as gateway, Client.connect(gateway.url, API_KEY) as client:
        with pytest.raises(NotFoundError):
            await client.stat("acme", "k")
