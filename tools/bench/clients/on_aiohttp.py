"""aiohttp with one signer or another, and nothing around it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from tools.bench.clients.asking import CONNECTIONS, Answer, PlainHttp, product_signer
from tools.bench.clients.signers import botocore_signer, crt_signer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.storage.signing import Signed
    from tools.bench.clients.asking import Client, Place, Signs


@asynccontextmanager
async def _opened(place: Place, signer: Signs) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        auto_decompress=False,
    ) as session:

        async def send(method: str, signed: Signed, body: bytes) -> Answer:
            async with session.request(
                method,
                URL(signed.url, encoded=True),
                headers=signed.headers,
                data=body or None,
                allow_redirects=False,
            ) as answer:
                return Answer(answer.status, answer.headers, await answer.read())

        yield PlainHttp(place, send, signer)


@asynccontextmanager
async def with_botocore(place: Place) -> AsyncIterator[Client]:
    """Botocore's signers as they are."""
    async with _opened(place, botocore_signer(place)) as client:
        yield client


@asynccontextmanager
async def with_crt(place: Place) -> AsyncIterator[Client]:
    """AWS's signer in C."""
    async with _opened(place, crt_signer(place)) as client:
        yield client


@asynccontextmanager
async def with_product(place: Place) -> AsyncIterator[Client]:
    """The product's signer."""
    async with _opened(place, product_signer(place)) as client:
        yield client
