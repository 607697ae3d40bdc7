"""The baseline: plain aioboto3 with default settings, in a separate process.

`python -m tools.bench.bare puts|uploads|heads|copies|gets|lists|multipart|get …`; where and with
which keys it reads from `KEYTURN_S3_…`. It prints one JSON object: seconds of wall and CPU time,
and how much was done. None of the product's own code runs here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import TYPE_CHECKING, Any

import aioboto3
from aiobotocore.config import AioConfig

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    _Figures = dict[str, float]
    _Once = Callable[[Any, int], Awaitable[None]]

_BODY_BYTES = 4096
_BLOCK_BYTES = 2**23
_PAGE_KEYS = 1000
# A keyring of one generation, and the range by which one is read.
_RECORD_BYTES = 700
_RECORD_MAX_BYTES = 2 * 2**20
# The names and lengths that an upload's object has.
METADATA = {
    "enc-algo": "Cobblestone-256",
    "enc-dek-user": "A" * 140,
    "enc-dek-admin": "B" * 140,
    "enc-kek-user": "1:0123456789abcdef",
    "enc-kek-admin": "m1",
    "enc-upload": "00000000-0000-4000-8000-000000000000",
}


class Zeros:
    """A file of random blocks, repeated; it takes no memory to speak of."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes
        self._block = os.urandom(_BLOCK_BYTES)

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        count = min(size if size >= 0 else self._left, self._left, _BLOCK_BYTES)
        self._left -= count
        return self._block[:count]


def _client(connections: int | None) -> Any:
    environ = os.environ
    # The default pool of 10 would bound the concurrency below the worker's.
    config = AioConfig(max_pool_connections=connections) if connections else None
    return aioboto3.Session().client(
        "s3",
        endpoint_url=environ["KEYTURN_S3_ENDPOINT_URL"],
        region_name=environ["KEYTURN_S3_REGION"],
        aws_access_key_id=environ["KEYTURN_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["KEYTURN_S3_SECRET_ACCESS_KEY"],
        config=config,
    )


async def _many(client: Any, once: _Once, count: int, warm: int, concurrency: int) -> _Figures:
    """`once` for `count` numbers, `concurrency` at a time, after `warm` that do not count."""

    async def work(numbers: Iterator[int]) -> None:
        for number in numbers:
            await once(client, number)

    async def span(first: int, last: int) -> None:
        numbers = iter(range(first, last))
        await asyncio.gather(*(work(numbers) for _ in range(concurrency)))

    await span(0, warm)
    began, cpu = time.perf_counter(), time.process_time()
    await span(warm, warm + count)
    return _figures(began, cpu, count)


async def puts(prefix: str, count: int, warm: int, concurrency: int) -> _Figures:
    """`count` puts of 4 KiB."""
    bucket, body = os.environ["KEYTURN_S3_BUCKET"], os.urandom(_BODY_BYTES)

    async def put(client: Any, number: int) -> None:
        await client.put_object(
            Bucket=bucket, Key=f"{prefix}/{number}", Body=body, Metadata=METADATA
        )

    async with _client(concurrency) as client:
        return await _many(client, put, count, warm, concurrency)


async def uploads(
    prefix: str, count: int, warm: int, concurrency: int, reads: float = 0.0
) -> _Figures:
    """`count` puts, and for each `reads` gets of a small record: what an upload worker sends."""
    bucket, body = os.environ["KEYTURN_S3_BUCKET"], os.urandom(_BODY_BYTES)
    record = f"{prefix}/record"

    async def upload(client: Any, number: int) -> None:
        await client.put_object(
            Bucket=bucket, Key=f"{prefix}/{number}", Body=body, Metadata=METADATA
        )
        for _ in range(int((number + 1) * reads) - int(number * reads)):
            answer = await client.get_object(
                Bucket=bucket, Key=record, Range=f"bytes=0-{_RECORD_MAX_BYTES - 1}"
            )
            async with answer["Body"] as stream:
                await stream.read()

    async with _client(concurrency) as client:
        await client.put_object(Bucket=bucket, Key=record, Body=os.urandom(_RECORD_BYTES))
        return await _many(client, upload, count, warm, concurrency)


async def heads(prefix: str, count: int, warm: int, concurrency: int) -> _Figures:
    """`count` heads of what `puts` put."""
    bucket = os.environ["KEYTURN_S3_BUCKET"]

    async def head(client: Any, number: int) -> None:
        await client.head_object(Bucket=bucket, Key=f"{prefix}/{number}")

    async with _client(concurrency) as client:
        return await _many(client, head, count, warm, concurrency)


async def copies(prefix: str, count: int, warm: int, concurrency: int) -> _Figures:
    """`count` objects of `puts`: a head, and a copy onto itself with other metadata."""
    bucket = os.environ["KEYTURN_S3_BUCKET"]

    async def copy(client: Any, number: int) -> None:
        key = f"{prefix}/{number}"
        head = await client.head_object(Bucket=bucket, Key=key)
        await client.copy_object(
            Bucket=bucket,
            Key=key,
            CopySource={"Bucket": bucket, "Key": key},
            CopySourceIfMatch=head["ETag"].strip('"'),
            MetadataDirective="REPLACE",
            Metadata=METADATA,
        )

    async with _client(concurrency) as client:
        return await _many(client, copy, count, warm, concurrency)


async def gets(prefix: str, count: int, warm: int, concurrency: int) -> _Figures:
    """`count` gets of what `puts` put, each read to its end."""
    bucket = os.environ["KEYTURN_S3_BUCKET"]

    async def get(client: Any, number: int) -> None:
        answer = await client.get_object(Bucket=bucket, Key=f"{prefix}/{number}")
        async with answer["Body"] as body:
            await body.read()

    async with _client(concurrency) as client:
        return await _many(client, get, count, warm, concurrency)


async def lists(prefix: str, count: int, warm: int, concurrency: int) -> _Figures:
    """`count` pages of a listing of numbered keys, from the first one on."""
    bucket = os.environ["KEYTURN_S3_BUCKET"]

    async def page(client: Any, number: int) -> None:
        first = number % count * _PAGE_KEYS
        after = {"StartAfter": f"{prefix}{first - 1:08}"} if first else {}
        await client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=_PAGE_KEYS, **after)

    async with _client(concurrency) as client:
        return await _many(client, page, count, warm, concurrency)


async def multipart(key: str, size_bytes: int) -> _Figures:
    """One `upload_fileobj` of a body that costs nothing to read."""
    async with _client(None) as client:
        began, cpu = time.perf_counter(), time.process_time()
        await client.upload_fileobj(Zeros(size_bytes), os.environ["KEYTURN_S3_BUCKET"], key)
        return _figures(began, cpu, size_bytes)


async def get(key: str) -> _Figures:
    """One `get_object`, read to its end in pieces of 1 MiB and thrown away."""
    async with _client(None) as client:
        began, cpu = time.perf_counter(), time.process_time()
        answer = await client.get_object(Bucket=os.environ["KEYTURN_S3_BUCKET"], Key=key)
        size_bytes = 0
        async for piece in answer["Body"].iter_chunks(2**20):
            size_bytes += len(piece)
        return _figures(began, cpu, size_bytes)


def _figures(began: float, cpu: float, done: int) -> _Figures:
    return {
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
        "done": done,
    }


_LOOPS = {"puts": puts, "heads": heads, "copies": copies, "gets": gets, "lists": lists}


def main() -> None:
    """Do one of them, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=[*_LOOPS, "uploads", "multipart", "get"])
    parser.add_argument("key")
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--warm", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--bytes", type=int, default=0)
    parser.add_argument("--reads", type=float, default=0.0, help="gets for each put of uploads")
    given = parser.parse_args()
    if given.what in _LOOPS:
        loop = _LOOPS[given.what]
        report = asyncio.run(loop(given.key, given.count, given.warm, given.concurrency))
    elif given.what == "uploads":
        report = asyncio.run(
            uploads(given.key, given.count, given.warm, given.concurrency, given.reads)
        )
    elif given.what == "multipart":
        report = asyncio.run(multipart(given.key, given.bytes))
    else:
        report = asyncio.run(get(given.key))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
