"""A body that is not all there never ends cleanly, in either direction (SPEC 3.1, 9.2, 9.4)."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from keyturn.errors import UnauthorizedError
from keyturn.gateway import IncompleteBodyError
from keyturn.gateway.client import OpenObject
from keyturn.gateway.responses import ObjectInfo
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    UPLOADED,
    after,
    connected,
    cut,
    drop,
    problem_answer,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


# Downloads.


@pytest.mark.parametrize("missing", [1, 100_000, 300_000])
async def test_a_body_that_is_cut_raises_after_what_came(missing: int) -> None:
    body = os.urandom(300_000)
    sent = body[: len(body) - missing]
    given = bytearray()
    async with (
        connected(cut(sent, len(body))) as (_, client),
        client.open("acme", "k") as opened,
    ):
        assert opened.length == len(body)

        async def read() -> None:
            async for piece in opened.chunks():
                given.extend(piece)

        with pytest.raises(IncompleteBodyError):
            await read()
        with pytest.raises(IncompleteBodyError):  # nor does it end cleanly when asked again
            await opened.read()
    assert sent.startswith(bytes(given))


async def test_a_range_that_is_cut_raises() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Range": "bytes 10-19/100", "Content-Length": "10"}
        response = web.StreamResponse(status=206, headers=headers)
        await response.prepare(request)
        await response.write(b"012345678")
        drop(request)
        return response

    async with (
        connected(answer) as (_, client),
        client.open("acme", "k", start=10, length=10) as opened,
    ):
        with pytest.raises(IncompleteBodyError):
            await opened.read()


async def test_a_body_that_stalls_raises() -> None:
    over = asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        await response.write(b"a beginning")
        await over.wait()
        return response

    async with (
        connected(answer, idle_timeout_s=0.2) as (_, client),
        client.open("acme", "k") as opened,
    ):
        with pytest.raises(IncompleteBodyError, match="it did not respond in time"):
            await opened.read()
        over.set()


class _Ends:
    """A stream that ends early without a word, as no version of aiohttp should."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.content = self

    async def readany(self) -> bytes:
        return next(self._pieces, b"")


async def test_the_bytes_are_counted_whatever_the_http_client_says() -> None:
    info = ObjectInfo(10, None, {}, None, None)
    short = OpenObject(info, 10, _Ends(iter([b"01234", b"5678"])))  # type: ignore[arg-type]
    with pytest.raises(IncompleteBodyError):
        await short.read()
    opened = OpenObject(info, 10, _Ends(iter([b"01234", b"56789"])))  # type: ignore[arg-type]
    assert await opened.read() == b"0123456789"


# Uploads: a body is sent only when asked for, and its source's failure is the caller's own.


async def test_of_a_refused_upload_no_body_is_sent_nor_read() -> None:
    pulled = []

    async def body() -> AsyncIterator[bytes]:
        pulled.append(1)
        yield b"secret"

    async def refuse(_: web.Request) -> web.StreamResponse:
        return problem_answer(401, "unauthorized")

    async with connected(UPLOADED) as (gateway, client):
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

    async with connected(UPLOADED) as (gateway, client):
        with pytest.raises(MineError):
            await client.upload("acme", "k", body())
        assert (await client.upload("acme", "k", b"the next")).upload_id == AN_ID
    assert [seen.body for seen in gateway.seen] == [None, b"the next"]


async def test_a_missing_file_is_raised_and_completes_nothing(tmp_path: Path) -> None:
    async with connected(UPLOADED) as (gateway, client):
        with pytest.raises(FileNotFoundError):
            await client.upload("acme", "k", tmp_path / "none")
        assert (await client.upload("acme", "k", b"the next")).upload_id == AN_ID
    assert [seen.body for seen in gateway.seen if seen.body is not None] == [b"the next"]


@pytest.mark.slow
async def test_a_slow_source_is_no_fault_of_the_server() -> None:
    async def body() -> AsyncIterator[bytes]:
        await after(0.5)
        yield b"a"
        await after(0.5)
        yield b"b"
        await after(0.5)

    async with connected(UPLOADED, idle_timeout_s=0.25) as (gateway, client):
        await client.upload("acme", "k", body())
    assert gateway.seen[0].body == b"ab"
