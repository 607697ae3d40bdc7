"""The baseline: plain aioboto3 with default settings, in a separate process.

`python -m tools.bench.bare puts|heads|copies|gets PREFIX …`; where and with which keys it reads
from `KEYTURN_S3_…`. It prints one JSON object: seconds of wall and CPU time, and how much was done.
None of the product's own code runs here.
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
    from collections.abc import Iterator

_BODY = os.urandom(4096)
# The names and lengths that an upload's object has.
_METADATA = {
    "enc-algo": "Cobblestone-256",
    "enc-dek-user": "A" * 140,
    "enc-dek-admin": "B" * 140,
    "enc-kek-user": "1:0123456789abcdef",
    "enc-kek-admin": "m1",
    "enc-upload": "00000000-0000-4000-8000-000000000000",
}


def _client(connections: int) -> Any:
    environ = os.environ
    return aioboto3.Session().client(
        "s3",
        endpoint_url=environ["KEYTURN_S3_ENDPOINT_URL"],
        region_name=environ["KEYTURN_S3_REGION"],
        aws_access_key_id=environ["KEYTURN_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["KEYTURN_S3_SECRET_ACCESS_KEY"],
        # The default pool of 10 would bound the concurrency below the worker's.
        config=AioConfig(max_pool_connections=connections),
    )


async def put(client: Any, bucket: str, key: str) -> None:
    """Put 4 KiB."""
    await client.put_object(Bucket=bucket, Key=key, Body=_BODY, Metadata=_METADATA)


async def head(client: Any, bucket: str, key: str) -> None:
    """Head what `put` put."""
    await client.head_object(Bucket=bucket, Key=key)


async def copy(client: Any, bucket: str, key: str) -> None:
    """Head what `put` put, and copy it onto itself with other metadata."""
    found = await client.head_object(Bucket=bucket, Key=key)
    await client.copy_object(
        Bucket=bucket,
        Key=key,
        CopySource={"Bucket": bucket, "Key": key},
        CopySourceIfMatch=found["ETag"].strip('"'),
        MetadataDirective="REPLACE",
        Metadata=_METADATA,
    )


async def get(client: Any, bucket: str, key: str) -> None:
    """Get what `put` put, to its end."""
    response = await client.get_object(Bucket=bucket, Key=key)
    async with response["Body"] as body:
        await body.read()


_LOOPS = {"puts": put, "heads": head, "copies": copy, "gets": get}


async def loop(
    what: str, prefix: str, *, count: int, warm: int, concurrency: int
) -> dict[str, float]:
    """One request for each of `count` keys, after `warm` that do not count."""
    once, bucket = _LOOPS[what], os.environ["KEYTURN_S3_BUCKET"]

    async def work(client: Any, numbers: Iterator[int]) -> None:
        for number in numbers:
            await once(client, bucket, f"{prefix}/{number}")

    async def span(client: Any, first: int, last: int) -> None:
        numbers = iter(range(first, last))
        await asyncio.gather(*(work(client, numbers) for _ in range(concurrency)))

    async with _client(concurrency) as client:
        await span(client, 0, warm)
        began, cpu = time.perf_counter(), time.process_time()
        await span(client, warm, warm + count)
        return {
            "wall_s": time.perf_counter() - began,
            "cpu_s": time.process_time() - cpu,
            "done": count,
        }


def main() -> None:
    """Run one loop, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=_LOOPS)
    parser.add_argument("prefix")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--warm", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=64)
    given = parser.parse_args()
    bounds = {"count": given.count, "warm": given.warm, "concurrency": given.concurrency}
    print(json.dumps(asyncio.run(loop(given.what, given.prefix, **bounds))))


if __name__ == "__main__":
    main()
