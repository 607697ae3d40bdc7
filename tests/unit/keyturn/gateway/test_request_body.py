"""Uploads and rotations are sent once, as they are, and their end is told (SPEC 9.4, 9.5)."""

from __future__ import annotations

import asyncio
import io
import os
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from keyturn.errors import AlreadyExistsError, MalformedRequestError, UnauthorizedError
from keyturn.gateway import Client, ResponseLostError, UnexpectedResponseError, UploadReceipt
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    API_KEY,
    NEW_API_KEY,
    Answer,
    always,
    drop,
    json_answer,
    problem,
    problem_answer,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from keyturn.publisher.body_source import Body


def _json(status: int, document: Any) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return json_answer(status, document)

    return answer


_TAKEN = _json(202, {"upload_id": AN_ID})


async def _stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@pytest.mark.parametrize("size", [0, 1, 16 * 1024, 3 * 2**20 + 1])
async def test_every_kind_of_body_arrives_as_it_is(size: int, tmp_path: Path) -> None:
    body = os.urandom(size)
    path = tmp_path / "body"
    path.write_bytes(body)
    bodies: list[Body] = [
        body,
        bytearray(body),
        memoryview(body),
        path,
        io.BytesIO(body),
        _stream(body, b""),
    ]
    async with serving(_TAKEN) as gateway, Client.connect(gateway.url, API_KEY) as client:
        for kind in bodies:
            assert await client.upload("acme", "a b/%23#?&=é", kind) == UploadReceipt(
                AN_ID, stored=False
            )
    assert len(gateway.seen) == len(bodies)
    for number, seen in enumerate(gateway.seen):
        assert seen.method == "PUT"
        assert seen.target == "/v1/projects/acme/objects/a%20b/%2523%23%3F%26%3D%C3%A9"
        assert seen.body == body
        known = seen.headers.get("Content-Length")
        assert known == (str(size) if number < 3 else None)
        assert seen.headers["Authorization"] == f"Bearer {API_KEY}"
        assert not {"Content-Type", "Prefer"} & seen.headers.keys()


async def test_what_belongs_to_an_upload_is_sent_with_it() -> None:
    async with (
        serving(_json(201, {"upload_id": AN_ID})) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        done = await client.upload(
            "acme",
            "k",
            b"body",
            content_type="text/plain; charset=utf-8",
            metadata={"author": "kim", "title": "éé"},
            wait_s=30,
        )
    assert done == UploadReceipt(AN_ID, stored=True)
    headers = gateway.seen[0].headers
    assert headers["Prefer"] == "wait=30"
    assert headers["Content-Type"] == "text/plain; charset=utf-8"
    assert headers["X-Keyturn-Meta-Author"] == "kim"
    assert headers["X-Keyturn-Meta-Title"] == "=?utf-8?b?w6nDqQ==?="


@pytest.mark.parametrize(
    "more",
    [
        {"wait_s": 0},
        {"content_type": "a\r\nX-Evil: 1"},
        {"metadata": {"enc-algo": "x"}},
        {"metadata": {"a": "b\nc"}},
        {"metadata": {"A b": "c"}},
        {"metadata": {"a": "b" * 2000}},
    ],
)
async def test_an_upload_that_is_none_is_not_sent(more: dict[str, Any]) -> None:
    async with serving(_TAKEN) as gateway, Client.connect(gateway.url, API_KEY) as client:
        with pytest.raises(MalformedRequestError):
            await client.upload("acme", "k", b"body", **more)
    assert gateway.seen == []


async def test_a_refusal_while_waiting_is_told() -> None:
    async with (
        serving(problem(409, "already_exists", "the key is taken")) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        with pytest.raises(AlreadyExistsError, match="the key is taken"):
            await client.upload("acme", "k", b"body", wait_s=5)


async def test_of_a_refused_upload_no_body_is_sent_nor_read() -> None:
    pulled = []

    async def body() -> AsyncIterator[bytes]:
        pulled.append(1)
        yield b"secret"

    async def refuse(_: web.Request) -> web.StreamResponse:
        return problem_answer(401, "unauthorized")

    async with serving(_TAKEN) as gateway, Client.connect(gateway.url, API_KEY) as client:
        gateway.expect = refuse
        with pytest.raises(UnauthorizedError):
            await client.upload("acme", "k", body())
    assert pulled == []


async def test_a_source_that_fails_fails_as_it_did_and_completes_nothing() -> None:
    class MineError(Exception):
        pass

    async def body() -> AsyncIterator[bytes]:
        yield b"a beginning"
        raise MineError

    async with serving(_TAKEN) as gateway, Client.connect(gateway.url, API_KEY) as client:
        with pytest.raises(MineError):
            await client.upload("acme", "k", body())
        assert (await client.upload("acme", "k", b"the next")).upload_id == AN_ID
    assert [seen.body for seen in gateway.seen] == [None, b"the next"]


async def test_a_file_that_is_not_there_is_told_and_completes_nothing(tmp_path: Path) -> None:
    async with serving(_TAKEN) as gateway, Client.connect(gateway.url, API_KEY) as client:
        with pytest.raises(FileNotFoundError):
            await client.upload("acme", "k", tmp_path / "none")
        assert (await client.upload("acme", "k", b"the next")).upload_id == AN_ID
    assert [seen.body for seen in gateway.seen if seen.body is not None] == [b"the next"]


@pytest.mark.parametrize("body", [b"body", b""])
async def test_an_upload_is_not_sent_again_when_a_kept_connection_drops(body: bytes) -> None:
    """The HTTP client by itself would send it twice, and the first one refuse the second."""
    asked = []

    async def hang_up(request: web.Request) -> web.StreamResponse | None:
        asked.append(request.method)
        drop(request)
        return web.Response()

    async with serving(_TAKEN) as gateway, Client.connect(gateway.url, API_KEY) as client:
        await client.upload("acme", "first", b"so that a connection is kept")
        gateway.expect = hang_up
        with pytest.raises(ResponseLostError):
            await client.upload("acme", "k", body)
    assert asked == ["PUT"]


async def test_a_server_that_stops_reading_ends_the_upload() -> None:
    over = asyncio.Event()

    async def stand_still(_: web.Request) -> web.StreamResponse | None:
        await over.wait()
        return web.Response()

    async with (
        serving(_TAKEN) as gateway,
        Client.connect(gateway.url, API_KEY, idle_timeout_s=0.2) as client,
    ):
        gateway.expect = stand_still
        with pytest.raises(ResponseLostError, match="TimeoutError"):
            await client.upload("acme", "k", b"body")
        over.set()


async def test_a_server_that_never_answers_ends_the_upload() -> None:
    over = asyncio.Event()

    async def answer(_: web.Request) -> web.StreamResponse:
        await over.wait()
        return web.Response()

    async with (
        serving(answer) as gateway,
        Client.connect(gateway.url, API_KEY, idle_timeout_s=0.2) as client,
    ):
        with pytest.raises(ResponseLostError, match="TimeoutError"):
            await client.upload("acme", "k", b"body")
        over.set()


async def _after(seconds: float) -> None:
    """Time itself is what these tests are about: longer than the patience for the server."""
    reached = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, reached.set)
    await reached.wait()


async def test_a_slow_source_is_no_fault_of_the_server() -> None:
    async def body() -> AsyncIterator[bytes]:
        await _after(0.5)
        yield b"a"
        await _after(0.5)
        yield b"b"
        await _after(0.5)

    async with (
        serving(_TAKEN) as gateway,
        Client.connect(gateway.url, API_KEY, idle_timeout_s=0.25) as client,
    ):
        await client.upload("acme", "k", body())
    assert gateway.seen[0].body == b"ab"


async def test_an_answer_may_take_as_long_as_it_was_asked_to_wait() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        await _after(0.6)
        return json_answer(201, {"upload_id": AN_ID})

    async with (
        serving(answer) as gateway,
        Client.connect(gateway.url, API_KEY, idle_timeout_s=0.25) as client,
    ):
        assert (await client.upload("acme", "k", b"body", wait_s=1)).stored


async def test_waiting_for_a_connection_is_no_idleness() -> None:
    async def answer(_: web.Request) -> web.StreamResponse:
        await _after(0.2)
        return json_answer(202, {"upload_id": AN_ID})

    async with (
        serving(answer) as gateway,
        Client.connect(gateway.url, API_KEY, idle_timeout_s=0.5, max_connections=1) as client,
    ):
        uploads = [client.upload("acme", f"k{n}", b"body") for n in range(4)]
        assert len(await asyncio.gather(*uploads)) == 4


@pytest.mark.parametrize(
    "document", [{}, {"upload_id": "x"}, {"upload_id": 7}, {"upload_id": AN_ID.upper()}, [], None]
)
async def test_an_answer_without_an_id_is_none(document: object) -> None:
    async with (
        serving(_json(202, document)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        with pytest.raises(UnexpectedResponseError, match="no upload_id"):
            await client.upload("acme", "k", b"body")
        with pytest.raises(UnexpectedResponseError, match="no rotation_id"):
            await client.rotate("acme", NEW_API_KEY)


async def test_a_rotation_is_asked_for_with_the_current_key_and_brings_the_new_one() -> None:
    async with (
        serving(_json(202, {"rotation_id": AN_ID})) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        assert await client.rotate("acme", NEW_API_KEY) == AN_ID
    (seen,) = gateway.seen
    assert (seen.method, seen.target) == ("POST", "/v1/projects/acme/rotations")
    assert seen.headers["Authorization"] == f"Bearer {API_KEY}"
    assert seen.headers["Content-Type"] == "application/json"
    assert seen.body == b'{"api_key":"%s"}' % NEW_API_KEY.encode()


async def test_a_new_key_of_the_wrong_form_is_not_sent() -> None:
    async with serving(always(500)) as gateway, Client.connect(gateway.url, API_KEY) as client:
        with pytest.raises(MalformedRequestError) as raised:
            await client.rotate("acme", "short but secret")
    assert "short but secret" not in str(raised.value)
    assert gateway.seen == []


async def test_a_rotation_is_followed_with_the_new_key() -> None:
    told = {
        "rotation_id": AN_ID,
        "project": "acme",
        "state": "completed",
        "generation": 2,
        "counts": {"objects": 3, "rewrapped": 3},
    }
    async with serving(_json(200, told)) as gateway, Client.connect(gateway.url, API_KEY) as client:
        assert await client.with_api_key(NEW_API_KEY).rotation("acme", AN_ID) == told
    (seen,) = gateway.seen
    assert (seen.method, seen.target) == ("GET", f"/v1/projects/acme/rotations/{AN_ID}")
    assert seen.headers["Authorization"] == f"Bearer {NEW_API_KEY}"


@pytest.mark.parametrize("rotation_id", ["", "..", AN_ID.upper(), f"{AN_ID}/x"])
async def test_a_rotations_id_that_is_none_is_not_sent(rotation_id: str) -> None:
    async with serving(always(500)) as gateway, Client.connect(gateway.url, API_KEY) as client:
        with pytest.raises(MalformedRequestError):
            await client.rotation("acme", rotation_id)
    assert gateway.seen == []


@pytest.mark.parametrize(
    "document", [{}, {"rotation_id": AN_ID}, {"rotation_id": "x", "state": "completed"}, []]
)
async def test_an_answer_about_no_rotation_is_none(document: object) -> None:
    async with (
        serving(_json(200, document)) as gateway,
        Client.connect(gateway.url, API_KEY) as client,
    ):
        with pytest.raises(UnexpectedResponseError, match="another rotation"):
            await client.rotation("acme", AN_ID)
