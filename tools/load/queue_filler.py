"""Fills the queue: `python -m tools.load.queue_filler NAME COUNT SIZE --from N --step S`.

A run starts one such process per core, because sealing and signing are most of the work. Each
publishes with the product's publisher, every request confirmed, and prints the cost as JSON.
Settings come from the environment, as for any publisher.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from typing import TYPE_CHECKING, Any

import uvloop

from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings, S3Settings
from tools.bench.processes import BenchError, printed
from tools.bench.uploads import PROJECT
from tools.load.uploads import Uploads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.harness.deployment import Deployment

_AT_ONCE = 256
_STAGED_AT_ONCE = 8
_INLINE_MAX_BYTES = 256 * 1024
_PUBLISH_S = 120.0


async def publish(uploads: Uploads, numbers: range) -> dict[str, float]:
    """Publish the uploads of these numbers; returns their count, and wall and CPU seconds."""
    began, cpu = time.perf_counter(), time.process_time()
    async with Publisher.open(
        PublisherSettings.read(), s3=S3Settings.read(), publish_timeout_s=_PUBLISH_S
    ) as publisher:
        todo: Iterator[int] = iter(numbers)

        async def work() -> None:
            for number in todo:
                await publisher.upload(
                    PROJECT,
                    uploads.key(number),
                    uploads.body(number),
                    upload_id=uploads.upload_id(number),
                )

        inline = uploads.size_bytes <= _INLINE_MAX_BYTES
        async with asyncio.TaskGroup() as group:
            for _ in range(_AT_ONCE if inline else _STAGED_AT_ONCE):
                group.create_task(work())
    return {
        "done": len(numbers),
        "wall_s": time.perf_counter() - began,
        "cpu_s": time.process_time() - cpu,
    }


async def fill(deployment: Deployment, uploads: Uploads) -> dict[str, float]:
    """Publish all uploads with one process per core; returns the totals of `publish`.

    Raises:
        BenchError: an upload was not published.
    """
    processes = os.cpu_count() or 1
    reports: list[dict[str, Any]] = await asyncio.gather(
        *(
            printed(
                deployment.publisher_env(),
                "tools.load.queue_filler",
                *(uploads.name, str(uploads.count), str(uploads.size_bytes)),
                *("--from", str(first), "--step", str(processes)),
            )
            for first in range(processes)
        )
    )
    done = sum(each["done"] for each in reports)
    if done != uploads.count:
        raise BenchError(f"{done} of {uploads.count} uploads were published")
    return {
        "done": done,
        "wall_s": max(each["wall_s"] for each in reports),
        "cpu_s": sum(each["cpu_s"] for each in reports),
    }


def main() -> None:
    """Publish, and print the cost as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("count", type=int)
    parser.add_argument("size", type=int)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--step", type=int, default=1)
    given = parser.parse_args()
    uploads = Uploads(given.name, given.count, given.size)
    numbers = range(given.first, given.count, given.step)
    print(json.dumps(uvloop.run(publish(uploads, numbers))))


if __name__ == "__main__":
    main()
