"""Listings through the gateway: their pace against the storage's own, and memory (SPEC 9.3).

The pages of both sides are requested by the same client, one after the other on one connection:
as a caller reads a listing, who learns from each page where the next one begins. The storage is
asked by presigned URLs, for the same keys in pages of the same size. The client parses nothing, so
the storage's side is harder to match than a user's own loop; that one is measured, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from keyturn.identifiers import object_s3_key
from tools.bench.figures import Row, Spread, lower_is_better
from tools.bench.gateway.sides import opened, run_job
from tools.bench.processes import BenchError, bare
from tools.bench.rotation.world import key_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.gateway.sides import Sides
    from tools.bench.rotation.world import World

PAGE_KEYS: Final = 1000
COMPARED: Final = 10_000
MANY: Final = 100_000
QUICK_COMPARED: Final = 2_000
QUICK_MANY: Final = 5_000
BARE: Final = "ListObjectsV2 of the same, same client"
LOOP: Final = "bare aioboto3 list loop"
_COMPARED_IN: Final = "listing"
_MANY_IN: Final = "listing-many"
_PACE_AIM: Final = 0.5
_MEMORY_AIM_MIB: Final = 16
_MIB: Final = 2**20


@dataclass
class Found:
    """What rounds gave: seconds for all pages of each side; `cpu_s` is the gateway's, a page."""

    ours_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    loop_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Paged:
    """What one pass over many pages took, and what it left in the gateway's memory, in MiB."""

    seconds: float
    left_mib: float
    peak_mib: float


async def measure(
    world: World, scratch: Path, *, compared: int, many: int, rounds: int
) -> list[Row]:
    """The rows of a listing of each size.

    Raises:
        BenchError: a listing was not complete.
    """
    await world.enroll(_COMPARED_IN)
    await world.load_copies(_COMPARED_IN, compared)
    found = Found()
    async with opened(world, _COMPARED_IN, scratch, "listing") as sides:
        await _follow(sides, compared)
        for _ in range(rounds):
            await _compare(sides, compared, found)
    await world.enroll(_MANY_IN)
    await world.load_copies(_MANY_IN, many)
    async with opened(world, _MANY_IN, scratch, "listing-many") as sides:
        paged = await _page_through(sides, many)
    server = world.deployment.s3.kind
    return [*pace_rows(server, compared, found), *memory_rows(server, many, paged)]


async def _compare(sides: Sides, count: int, found: Found) -> None:
    starts = ["", *(key_of(number - 1) for number in range(PAGE_KEYS, count, PAGE_KEYS))]
    job: dict[str, float] = {"count": len(starts), "concurrency": 1, "warm": 1}
    before = sides.gateway.cpu_s()
    report = await run_job("many", [sides.our_page(at, PAGE_KEYS) for at in starts], **job)
    found.cpu_s.append((sides.gateway.cpu_s() - before) / (len(starts) + 1))
    found.ours_s.append(report["wall_s"])
    report = await run_job("many", [sides.bare_page(at, PAGE_KEYS) for at in starts], **job)
    found.bare_s.append(report["wall_s"])
    environment = sides.world.deployment.s3_env()
    prefix = object_s3_key(sides.project, key_of(0).rstrip("0"))
    report = await bare(environment, "lists", prefix, **job)
    found.loop_s.append(report["wall_s"])


async def _page_through(sides: Sides, count: int) -> Paged:
    """One pass in a gateway that has served one page before."""
    await _request(sides, "")
    before = sides.gateway.rss_bytes()
    sides.gateway.forget_peak()
    began = time.perf_counter()
    await _follow(sides, count)
    seconds = time.perf_counter() - began
    left, peak = sides.gateway.rss_bytes(), sides.gateway.peak_bytes()
    return Paged(seconds, (left - before) / _MIB, (peak - before) / _MIB)


async def _request(sides: Sides, after: str, session: aiohttp.ClientSession | None = None) -> Any:
    if session is None:
        async with aiohttp.ClientSession() as once:
            return await _request(sides, after, once)
    page = sides.our_page(after, PAGE_KEYS)
    async with session.get(page["url"], headers=page["headers"]) as response:
        if response.status != 200:
            raise BenchError(f"a page was answered with {response.status}")
        return await response.json()


async def _follow(sides: Sides, count: int) -> None:
    """Read page after page; every object must be listed once, in order."""
    keys: list[str] = []
    following: str | None = ""
    async with aiohttp.ClientSession() as session:
        while following is not None:
            page = await _request(sides, following, session)
            keys += [each["key"] for each in page["objects"] if each["size"] == 0]
            following = page["next"]
    check(keys, count)


def check(keys: Sequence[str], count: int) -> None:
    """Check that these are all keys of a listing.

    Raises:
        BenchError: a key is missing, repeated or out of order.
    """
    if len(keys) != count or any(one >= other for one, other in pairwise(keys)):
        raise BenchError(f"{len(keys)} keys were listed, not {count} in their order")


def pace_rows(server: str, count: int, found: Found) -> list[Row]:
    """The seconds for all pages against the storage's, and the gateway's CPU time a page."""
    figure = f"list of {count:,} objects in pages of {PAGE_KEYS:,}"
    cpu_ms = Spread(tuple(1000 * cpu_s for cpu_s in found.cpu_s))
    ours, pace, loop = found.ours_s, found.bare_s, found.loop_s
    compare = partial(Row, figure, server, "s", Spread(tuple(ours)))
    return [
        compare(Spread(tuple(pace)), BARE, lower_is_better(ours, pace), at_least=_PACE_AIM),
        compare(Spread(tuple(loop)), LOOP, lower_is_better(ours, loop)),
        Row(f"{figure}, the gateway's CPU", server, "ms/page", cpu_ms),
    ]


def memory_rows(server: str, count: int, paged: Paged) -> list[Row]:
    """The pace of one pass, and the gateway's memory after it and at its peak."""
    figure = f"{count:,} objects paged through once"
    return [
        Row(figure, server, "objects/s", Spread((count / paged.seconds,))),
        Row(
            f"{figure}, the gateway's memory after it, above before",
            server,
            "MiB",
            Spread((paged.left_mib,)),
            at_most=_MEMORY_AIM_MIB,
        ),
        Row(
            f"{figure}, its peak memory above before",
            server,
            "MiB",
            Spread((paged.peak_mib,)),
            at_most=_MEMORY_AIM_MIB,
        ),
    ]
