"""The Python client of `tools.bench.gateway.opening`: one way of reading, timed.

`python -m tools.bench.gateway.open_client`, with a job as JSON on its standard input, prints one
JSON object. What comes is counted and discarded. A first read, which does not count, imports and
connects everything. On uvloop, as a service would run it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from keyturn.gateway import Client
from keyturn.open import Reader

if TYPE_CHECKING:
    from keyturn.gateway import OpenObject
    from keyturn.open import DecryptedObject


async def _drained(opened: OpenObject | DecryptedObject) -> int:
    size_bytes = 0
    async for piece in opened.chunks():
        size_bytes += len(piece)
    return size_bytes


async def _by_link(job: dict[str, Any], reader: Reader) -> int:
    async with reader.open(job["link"], job["keys"]["key"]) as opened:
        return await _drained(opened)


async def _by_gateway(job: dict[str, Any], client: Client) -> int:
    async with client.open(job["keys"]["project"], job["keys"]["key"]) as opened:
        return await _drained(opened)


async def _run(job: dict[str, Any]) -> dict[str, float]:
    project, api_key = job["keys"]["project"], job["keys"]["apiKey"]
    async with (
        Reader.connect(project, api_key) as reader,
        Client.connect(job["gateway"]["address"], api_key) as client,
    ):
        for _ in range(2):
            began, used = time.perf_counter(), time.process_time()
            if job["way"] == "open":
                size_bytes = await _by_link(job, reader)
            else:
                size_bytes = await _by_gateway(job, client)
            wall_s, cpu_s = time.perf_counter() - began, time.process_time() - used
    return {"bytes": size_bytes, "wall_s": wall_s, "cpu_s": cpu_s, "peak_mib": _peak_mib()}


def _peak_mib() -> float:
    # Not ru_maxrss, in which the process that started this one counts.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak_kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(peak_kib) / 1024


if __name__ == "__main__":
    print(json.dumps(uvloop.run(_run(json.loads(sys.stdin.read())))))
