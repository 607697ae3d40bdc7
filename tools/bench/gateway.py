"""Downloads and listings through the gateway, against two other servers (SPEC 9.2, 9.3).

A real `keyturn gateway` in a process of its own, against the same server and send loop that pass
stored bytes through (`passthrough_server`), and against the storage itself by presigned URLs. One
client in another process (`load_client`) asks all of them in turn, and discards what it gets.
CPU time is only of the server.
"""

from __future__ import annotations

import json
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import aiohttp
import psutil

from keyturn.crypto import to_base64
from keyturn.identifiers import object_s3_key
from tools.bench.figures import Comparison, Rate, Row, Spread
from tools.bench.processes import BenchError, bare, printed, sample_from_now, serving
from tools.harness import stored_objects
from tools.harness.world import MASTER_KEY, key_of, open_world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tools.bench.processes import Running
    from tools.harness.deployment import Deployment
    from tools.harness.world import World

PROJECT: Final = "gateway"
PASSED: Final = "the same server, passing stored bytes"
STORED: Final = "the storage itself, same client"
_LARGE: Final = "large"
_KIB, _MIB = 2**10, 2**20
_SMALL_BYTES: Final = 4 * _KIB
_SMALL_AT_ONCE: Final = 32
_BODIES: Final = 8
_BODIES_AT_ONCE: Final = 64
_PAGE_KEYS: Final = 1000
_LARGE_AIM: Final = 0.88
_BODIES_AIM: Final = 0.85
_LISTING_AIM: Final = 0.65
_MEMORY_AIM_MIB: Final = 256
# The test cluster keeps its objects in memory, about twice, and the readers hold pieces.
_MEMORY_A_BYTE: Final = 3
STARTED: Final = "gateway started"
_PRESIGNED_S: Final = 3600
_UNRESERVED: Final = "/-_.~"


@dataclass(frozen=True)
class Sides:
    """Where each side serves the objects of one project."""

    world: World
    project: str
    gateway: Running
    passing: Running

    @property
    def gateway_url(self) -> str:
        """Where the gateway listens."""
        return address_of(self.gateway)

    def ours(self, key: str, **headers: str) -> dict[str, Any]:
        """The object from the gateway."""
        return self._ours(f"/{quote(key, safe=_UNRESERVED)}", headers)

    def our_page(self, after: str, limit: int) -> dict[str, Any]:
        """The page of a listing that follows this key, from the gateway."""
        return self._ours(f"?after={quote(after, safe='')}&limit={limit}", {})

    def _ours(self, rest: str, headers: dict[str, str]) -> dict[str, Any]:
        sent = {"authorization": f"Bearer {self.world.api_keys[self.project]}", **headers}
        url = f"{self.gateway_url}/v1/projects/{self.project}/objects{rest}"
        return {"url": url, "headers": sent}

    def passed(self, key: str) -> dict[str, Any]:
        """Its stored bytes from the server that passes them through."""
        path = quote(object_s3_key(self.project, key), safe=_UNRESERVED)
        return {"url": f"{address_of(self.passing)}/{path}", "headers": {}}

    def bare(self, key: str, **headers: str) -> dict[str, Any]:
        """Its stored bytes from the storage."""
        return self._bare("get_object", {"Key": object_s3_key(self.project, key)}, headers)

    def bare_page(self, after: str, limit: int) -> dict[str, Any]:
        """The page of a listing that follows this key, from the storage."""
        parameters: dict[str, Any] = {"Prefix": object_s3_key(self.project, ""), "MaxKeys": limit}
        if after:
            parameters["StartAfter"] = object_s3_key(self.project, after)
        return self._bare("list_objects_v2", parameters, {})

    def _bare(
        self, operation: str, parameters: dict[str, Any], headers: dict[str, str]
    ) -> dict[str, Any]:
        # Ceph's gateway refuses a listing that is signed by version 2.
        version = "s3v4" if operation == "list_objects_v2" else None
        client = stored_objects.s3_client(self.world.deployment, signature_version=version)
        url = client.generate_presigned_url(
            operation,
            Params={"Bucket": self.world.deployment.bucket, **parameters},
            ExpiresIn=_PRESIGNED_S,
        )
        return {"url": url, "headers": headers}


def address_of(running: Running) -> str:
    """The log's line that says where it listens."""
    lines = [json.loads(line) for line in running.log.read_text().splitlines()]
    report = next(line for line in lines if line["event"] == STARTED)
    return f"http://{report['host']}:{report['port']}"


@asynccontextmanager
async def opened(
    world: World,
    project: str,
    scratch: Path,
    name: str,
    *,
    samples: Path | None = None,
    **env: str,
) -> AsyncIterator[Sides]:
    """Both servers, fresh; `env` is further settings of both, without their prefix.

    Where `samples` is given the gateway samples its own stack, and writes there at its end.
    """
    module = (
        ["keyturn_workers", "gateway"]
        if samples is None
        else ["tools.bench.stack_sampler", str(samples), "gateway"]
    )
    deployment = world.deployment
    job = {
        **deployment.publisher_env(),
        "KEYTURN_MASTER_KEYS": json.dumps({MASTER_KEY: to_base64(deployment.master_key)}),
        "KEYTURN_GATEWAY_PORT": "0",
        "KEYTURN_LOG_FORMAT": "json",
        **{f"KEYTURN_{setting}": value for setting, value in env.items()},
    }
    async with (
        serving(job, scratch / f"{name}-gateway.log", module, ready=STARTED) as a,
        serving(
            job,
            scratch / f"{name}-passing.log",
            ["tools.bench.passthrough_server"],
            ready=STARTED,
        ) as b,
    ):
        yield Sides(world, project, a, b)


async def run_job(targets: list[dict[str, Any]], **more: float) -> dict[str, Any]:
    """Do one job of `tools.bench.load_client`, by default one GET; errors as `printed`."""
    job = {"targets": targets, "count": 1, "warm": 0, "concurrency": 1, **more}
    report: dict[str, Any] = await printed(
        {}, "tools.bench.load_client", stdin_text=json.dumps(job)
    )
    return report


@dataclass
class Rounds:
    """What alternating rounds of the three sides gave."""

    ours: list[Rate] = field(default_factory=list)
    passed: list[Rate] = field(default_factory=list)
    stored: list[Rate] = field(default_factory=list)

    async def add(self, sides: Sides, targets: Targets, units: float, **job: float) -> None:
        """One job to each side; it moves so many units."""
        for rates, running, of in (
            (self.ours, sides.gateway, targets.ours),
            (self.passed, sides.passing, targets.passed),
            (self.stored, None, targets.stored),
        ):
            before = running.cpu_s() if running else math.nan
            report = await run_job(of, **job)
            cpu_s = running.cpu_s() - before if running else math.nan
            rates.append(Rate(units / report["wall_s"], 1000 * cpu_s / units))

    def rows(self, server: str, figure: str, unit: str, aim: float | None = None) -> list[Row]:
        """Throughput against both other sides, and CPU time against the passing server."""
        passed = Comparison(figure, server, PASSED, self.ours, self.passed, unit)
        stored = Comparison(figure, server, STORED, self.ours, self.stored, unit)
        return [passed.throughput(aim), passed.cpu(), stored.throughput()]


@dataclass(frozen=True)
class Targets:
    """The same objects from each side."""

    ours: list[dict[str, Any]]
    passed: list[dict[str, Any]]
    stored: list[dict[str, Any]]

    @classmethod
    def of(cls, sides: Sides, keys: Sequence[str]) -> Targets:
        """Objects by their keys."""
        return cls(
            [sides.ours(key) for key in keys],
            [sides.passed(key) for key in keys],
            [sides.bare(key) for key in keys],
        )


async def measure_large(
    deployment: Deployment, scratch: Path, *, size_bytes: int, rounds: int
) -> list[Row]:
    """One large object to one client.

    Raises:
        BenchError: the gateway gave other bytes, or the machine has not the memory for it.
    """
    needed = _MEMORY_A_BYTE * size_bytes
    if (free := psutil.virtual_memory().available) < needed:
        raise BenchError(f"{needed // _MIB} MiB of free memory are needed, not {free // _MIB}")
    found, mib = Rounds(), size_bytes // _MIB
    async with open_world(deployment) as world:
        await world.enroll(PROJECT)
        sha256 = await world.load_large(PROJECT, _LARGE, size_bytes)
        async with opened(world, PROJECT, scratch, "large") as sides:
            targets = Targets.of(sides, [_LARGE])
            report = await run_job(targets.ours, hash=True)
            if (report["size_bytes"], report["sha256"]) != (size_bytes, sha256):
                raise BenchError("the gateway gave out other bytes than those that were stored")
            for _ in range(rounds):
                await found.add(sides, targets, mib)
    return found.rows(deployment.s3.kind, f"{mib} MiB through the gateway", "MiB", _LARGE_AIM)


async def measure_bodies(
    deployment: Deployment, scratch: Path, *, size_bytes: int, rounds: int
) -> list[Row]:
    """Many bodies at once; memory is the gateway's, in a process that did nothing else."""
    found, memory_mib, mib = Rounds(), list[float](), size_bytes // _MIB
    job = {"count": _BODIES_AT_ONCE, "concurrency": _BODIES_AT_ONCE}
    async with open_world(deployment) as world:
        await world.enroll(PROJECT)
        await world.load(PROJECT, 1, _SMALL_BYTES)
        keys = [f"body/{number}" for number in range(_BODIES)]
        for key in keys:
            await world.load_large(PROJECT, key, size_bytes)
        for number in range(rounds):
            async with opened(world, PROJECT, scratch, f"bodies-{number}") as sides:
                targets, small = Targets.of(sides, keys), Targets.of(sides, [key_of(0)])
                # What is imported or opened at a first request; the storage's first read is slow.
                for of in (small.ours, small.passed):
                    await run_job(of)
                await run_job(targets.stored, **job)
                idle = sides.gateway.rss_bytes()
                sides.gateway.forget_peak()
                await found.add(sides, targets, _BODIES_AT_ONCE * mib, **job)
                memory_mib.append((sides.gateway.peak_bytes() - idle) / _MIB)
    server, figure = deployment.s3.kind, f"{_BODIES_AT_ONCE} of {mib} MiB at once"
    memory = Row(
        f"{figure}, peak memory above idle",
        server,
        "MiB",
        Spread(tuple(memory_mib)),
        at_most=_MEMORY_AIM_MIB,
    )
    return [*found.rows(server, figure, "MiB", _BODIES_AIM), memory]


async def measure_small(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """4 KiB objects, 32 at once; also against a loop of aioboto3."""
    found, loop, warm = Rounds(), list[Rate](), count // 10
    env, at_once = deployment.s3_env(), _SMALL_AT_ONCE
    async with open_world(deployment) as world:
        await world.enroll(PROJECT)
        await world.load(PROJECT, count, _SMALL_BYTES)
        await bare(env, "puts", "bare", count=count, warm=warm, concurrency=at_once)
        async with opened(world, PROJECT, scratch, "small") as sides:
            targets = Targets.of(sides, [key_of(number) for number in range(count)])
            for of in (targets.ours, targets.passed):
                await run_job(of, count=warm, concurrency=at_once)
            for _ in range(rounds):
                await found.add(sides, targets, count, count=count, concurrency=at_once)
                loop.append(
                    await bare(env, "gets", "bare", count=count, warm=warm, concurrency=at_once)
                )
    server, figure = deployment.s3.kind, f"4 KiB through the gateway, {at_once} at once"
    against_loop = Comparison(figure, server, "bare aioboto3 get loop", found.ours, loop)
    return [
        *found.rows(server, figure, "objects"),
        against_loop.throughput(),
        against_loop.cpu(),
    ]


async def sampled(world: World, scratch: Path, count: int) -> tuple[Path, Rate]:
    """A gateway's samples while it serves objects of 4 KiB, and what that took."""
    samples, warm = scratch / "gateway.json", count // 10
    async with opened(world, PROJECT, scratch, "sampled", samples=samples) as sides:
        targets = [sides.ours(key_of(number)) for number in range(count)]
        await run_job(targets, count=warm, concurrency=_SMALL_AT_ONCE)
        sample_from_now(sides.gateway)
        before = sides.gateway.cpu_s()
        report = await run_job(targets, count=count, concurrency=_SMALL_AT_ONCE)
        cpu_s = sides.gateway.cpu_s() - before
    return samples, Rate(count / report["wall_s"], 1000 * cpu_s / count)


async def measure_listing(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """All pages of a project, one after the other on one connection, against `ListObjectsV2`.

    The client parses nothing, so the storage's side is harder to match than a user's own loop.
    """
    ours, theirs = list[Rate](), list[Rate]()
    starts = ["", *(key_of(number - 1) for number in range(_PAGE_KEYS, count, _PAGE_KEYS))]
    job = {"count": len(starts), "warm": 1}
    async with open_world(deployment) as world:
        await world.enroll(PROJECT)
        await world.load_copies(PROJECT, count)
        async with opened(world, PROJECT, scratch, "listing") as sides:
            await _check_listing(sides, count)
            for _ in range(rounds):
                pages = [sides.our_page(after, _PAGE_KEYS) for after in starts]
                report = await run_job(pages, **job)
                ours.append(Rate(count / report["wall_s"], math.nan))
                pages = [sides.bare_page(after, _PAGE_KEYS) for after in starts]
                report = await run_job(pages, **job)
                theirs.append(Rate(count / report["wall_s"], math.nan))
    figure = f"list of {count:,} objects in pages of {_PAGE_KEYS:,}"
    against = "ListObjectsV2 of the same, same client"
    return [Comparison(figure, deployment.s3.kind, against, ours, theirs).throughput(_LISTING_AIM)]


async def _check_listing(sides: Sides, count: int) -> None:
    """Follow a listing to its end: every object must be listed once, in order."""
    keys: list[str] = []
    following: str | None = ""
    async with aiohttp.ClientSession() as session:
        while following is not None:
            page = sides.our_page(following, _PAGE_KEYS)
            async with session.get(page["url"], headers=page["headers"]) as response:
                if response.status != 200:
                    raise BenchError(f"a page was answered with {response.status}")
                listed = await response.json()
            keys += [each["key"] for each in listed["objects"]]
            following = listed["next"]
    if len(keys) != count or any(one >= other for one, other in pairwise(keys)):
        raise BenchError(f"{len(keys)} keys were listed, not {count} in their order")
