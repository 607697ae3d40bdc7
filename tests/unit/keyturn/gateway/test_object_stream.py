"""A body that is not all there never ends cleanly (SPEC 3.1, 9.2)."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest
from aiohttp import web

from keyturn.gateway import IncompleteBodyError
from keyturn.gateway.client import OpenObject
from keyturn.gateway.responses import ObjectInfo
from tests.unit.keyturn.gateway.asking import connected
from tests.unit.keyturn.gateway.gateway import cut, drop

if TYPE_CHECKING:
    from collections.abc import Iterator


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
