"""A body is sent only when asked for, and its source's failure is the caller's own (SPEC 9.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.errors import UnauthorizedError
from tests.unit.keyturn.gateway.asking import connected
from tests.unit.keyturn.gateway.gateway import (
    AN_ID,
    UPLOADED,
    after,
    problem_answer,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp import web


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
