"""Servers on loopback end, whatever their connections do."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import pytest

from tools.harness.loopback import loopback_server


@pytest.mark.timeout(10)
async def test_a_server_ends_while_one_of_its_connections_ends_too() -> None:
    """Its task is done when the server cancels all, and the callbacks have not run yet."""
    began, may_end = asyncio.Event(), asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        began.set()
        await may_end.wait()
        writer.close()

    async with loopback_server(serve) as url:
        _, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        await began.wait()
        may_end.set()
    writer.close()
