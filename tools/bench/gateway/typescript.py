"""A download by `get` of the TypeScript client, against `fetch` in Node.js (SPEC 9.2).

In turn, each in a process of its own, after a small read that does not count. Both read the same
stream of the same gateway, so that the difference is what counting, timeouts and resuming cost.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tools.bench.figures import Row, Spread, higher_is_better, lower_is_better
from tools.bench.gateway.opening import Side
from tools.bench.gateway.sides import opened
from tools.bench.large_upload import check_memory
from tools.bench.processes import printed_by_node
from tools.bench.rotation.sizes import name_of

if TYPE_CHECKING:
    from tools.bench.gateway.sides import Sides
    from tools.bench.rotation.world import World

LARGE_BYTES: Final = 2**30
QUICK_BYTES: Final = 128 * 2**20
FETCH: Final = "fetch of the same URL"
_PROJECT: Final = "typescript"
_KEY: Final = "large"
_RATIO_AIM: Final = 0.9
_MEMORY_AIM_MIB: Final = 24
# A memory-backed OSD takes about two bytes of memory for each one, and a reader's pieces.
_MEMORY_A_BYTE: Final = 3
_CLIENT: Final = Path(__file__).with_name("typescript_client.mjs")


async def measure(world: World, scratch: Path, *, size_bytes: int, rounds: int) -> list[Row]:
    """The rows of alternating rounds.

    Raises:
        BenchError: an object was not read whole, or the server has not the memory for it.
    """
    check_memory(size_bytes, memory_a_byte=_MEMORY_A_BYTE)
    await world.enroll(_PROJECT)
    await world.load_large(_PROJECT, _KEY, size_bytes)
    ours, theirs = Side(), Side()
    async with opened(world, _PROJECT, scratch, "typescript") as sides:
        for _ in range(rounds):
            ours.add(await _read("get", sides), size_bytes)
            theirs.add(await _read("fetch", sides), size_bytes)
    return rows(world.deployment.s3.kind, size_bytes, ours, theirs)


async def _read(way: str, sides: Sides) -> dict[str, float]:
    target = sides.ours(_KEY)
    job: dict[str, Any] = {
        "way": way,
        "key": _KEY,
        "client": {
            "url": target["url"].partition("/v1/")[0],
            "project": _PROJECT,
            "apiKey": sides.world.api_keys[_PROJECT],
        },
        "target": target,
    }
    report: dict[str, float] = await printed_by_node(_CLIENT, stdin_text=json.dumps(job))
    return report


def rows(server: str, size_bytes: int, ours: Side, theirs: Side) -> list[Row]:
    """Throughput and CPU time against `fetch`, and the memory above its."""
    figure = f"{name_of(size_bytes)} by the TypeScript client"
    above = [a - b for a, b in zip(ours.peak_mib, theirs.peak_mib, strict=True)]
    return [
        Row(
            figure,
            server,
            "MiB/s",
            Spread(tuple(ours.mib_per_s)),
            Spread(tuple(theirs.mib_per_s)),
            FETCH,
            higher_is_better(ours.mib_per_s, theirs.mib_per_s),
            at_least=_RATIO_AIM,
        ),
        Row(
            f"{figure}, CPU",
            server,
            "s",
            Spread(tuple(ours.cpu_s)),
            Spread(tuple(theirs.cpu_s)),
            FETCH,
            lower_is_better(ours.cpu_s, theirs.cpu_s),
        ),
        Row(
            f"{figure}, peak memory above that of fetch",
            server,
            "MiB",
            Spread(tuple(above)),
            at_most=_MEMORY_AIM_MIB,
        ),
    ]
