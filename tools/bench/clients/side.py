"""One client in a process of its own: `python -m tools.bench.clients.side NAME PREFIX …`.

CPU time is the whole process's, so the threads of a client count too. It prints one JSON
object: for each operation that the client has, seconds of wall and CPU time, and how often
it was done. The loop is uvloop and the collector runs seldom, as in a worker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import TYPE_CHECKING

import uvloop

from keyturn_workers.worker.gc import tame_garbage_collection
from tools.bench.clients import generated, on_aiohttp, on_crt, on_others, on_rust, product
from tools.bench.clients.asking import Place, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from tools.bench.clients.asking import Client

    _Opening = Callable[[Place], AbstractAsyncContextManager[Client]]
    _Once = Callable[[int], Awaitable[None]]

BASELINE = "aioboto3, default"
OURS = "keyturn_workers.storage"
FLOOR = "asyncio + httptools, no library"
SIDES: dict[str, _Opening] = {
    BASELINE: generated.default,
    OURS: product.opened,
    FLOOR: on_others.floor,
    "aioboto3, tuned": generated.tuned,
    "aiohttp + botocore's signer": on_aiohttp.with_botocore,
    "aiohttp + awscrt.auth": on_aiohttp.with_crt,
    "aiohttp + our signer": on_aiohttp.with_product,
    "awscrt.s3": on_crt.s3,
    "awscrt.http + our signer": on_crt.http,
    "obstore": on_rust.obstore,
    "pyreqwest + our signer": on_rust.pyreqwest,
    "httpunk + our signer": on_rust.httpunk,
    "punkreq + our signer": on_rust.punkreq,
    "wreq + our signer": on_rust.wreq,
    "httpx + our signer": on_others.httpx,
    "httpx2 + our signer": on_others.httpx2,
    "aiosonic + our signer": on_others.aiosonic,
    "curl_cffi + our signer": on_others.curl_cffi,
}


async def _span(once: _Once, first: int, last: int, concurrency: int) -> None:
    numbers = iter(range(first, last))

    async def work(numbers: Iterator[int]) -> None:
        for number in numbers:
            await once(number)

    await asyncio.gather(*(work(numbers) for _ in range(concurrency)))


async def measure(
    name: str, prefix: str, *, count: int, warm: int, concurrency: int
) -> dict[str, dict[str, float]]:
    """All operations of one client, one after the other, on the objects that it puts."""
    etags: dict[int, str] = {}
    async with SIDES[name](Place.from_environment()) as client:

        async def put(number: int) -> None:
            etags[number] = await client.put(f"{prefix}/{number}")

        async def get(number: int) -> None:
            await client.get(f"{prefix}/{number}")

        async def head(number: int) -> None:
            await client.head(f"{prefix}/{number}")

        async def copy(number: int) -> None:
            await client.copy(f"{prefix}/{number}", etags[number])

        told = {}
        for operation in (put, get, head, copy):
            try:
                await _span(operation, 0, warm, concurrency)
            except UnsupportedError:
                continue  # a dash in the table; whatever else is raised ends the bench
            began, cpu = time.perf_counter(), time.process_time()
            await _span(operation, warm, warm + count, concurrency)
            told[operation.__name__] = {
                "wall_s": time.perf_counter() - began,
                "cpu_s": time.process_time() - cpu,
                "done": count,
            }
    return told


def main() -> None:
    """Measure one, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=SIDES)
    parser.add_argument("prefix")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--warm", type=int, required=True)
    parser.add_argument("--concurrency", type=int, default=32)
    given = parser.parse_args()
    tame_garbage_collection()
    measuring = measure(
        given.name,
        given.prefix,
        count=given.count,
        warm=given.warm,
        concurrency=given.concurrency,
    )
    print(json.dumps(uvloop.run(measuring)))


if __name__ == "__main__":
    main()
