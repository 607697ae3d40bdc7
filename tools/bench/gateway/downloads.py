"""Downloads through the gateway: one of 1 GiB, 64 at once of 16 MiB, and small ones (SPEC 9.2).

Each round requests from the gateway, the server that passes stored bytes through, and the storage
itself, with the same client; throughput is of what the client got, CPU time only of the server.
What the first round of the large object gives is hashed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tools.bench.figures import Row, Spread, higher_is_better, lower_is_better
from tools.bench.gateway.sides import opened, run_job
from tools.bench.layers import Sampled
from tools.bench.processes import BenchError, bare, sample_from_now
from tools.bench.rotation.sizes import name_of
from tools.bench.rotation.world import key_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tools.bench.gateway.sides import Sides
    from tools.bench.processes import Running
    from tools.bench.rotation.world import World

PROJECT = "gateway"
LARGE = "large"
PASSED = "the same server, passing stored bytes"
STORED = "the storage itself, same client"
_MIB = 2**20
_SMALL_BYTES = 4096
_SMALL_AT_ONCE = 32
_BODIES = 8
_BODIES_AT_ONCE = 64
_THROUGHPUT_AIM = 0.85
_MEMORY_AIM_MIB = 256


@dataclass
class Side:
    """What rounds of one side gave: so much a second, and the server's CPU seconds."""

    per_s: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


@dataclass
class Rounds:
    """What alternating rounds gave."""

    ours: Side = field(default_factory=Side)
    passed: Side = field(default_factory=Side)
    stored: Side = field(default_factory=Side)
    memory_mib: list[float] = field(default_factory=list)


async def _served(running: Running, what: str, target: Any, **job: float) -> tuple[Any, float]:
    """The report of a job, and the server's CPU seconds for it."""
    before = running.cpu_s()
    report = await run_job(what, target, **job)
    return report, running.cpu_s() - before


async def large(
    world: World, scratch: Path, *, size_bytes: int, sha256: str, rounds: int
) -> list[Row]:
    """One large object to one client.

    Raises:
        BenchError: the bytes are not those that were stored.
    """
    found, mib = Rounds(), size_bytes / _MIB
    async with opened(world, PROJECT, scratch, "large") as sides:
        report = await run_job("single", [sides.ours(LARGE)], hash=True)
        if (report["size_bytes"], report["sha256"]) != (size_bytes, sha256):
            raise BenchError("the gateway gave out other bytes than those that were stored")
        for _ in range(rounds):
            report, cpu_s = await _served(sides.gateway, "single", [sides.ours(LARGE)], hash=False)
            found.ours.per_s.append(mib / report["wall_s"])
            found.ours.cpu.append(cpu_s)
            report, cpu_s = await _served(
                sides.passing, "single", [sides.passed(LARGE)], hash=False
            )
            found.passed.per_s.append(mib / report["wall_s"])
            found.passed.cpu.append(cpu_s)
            report = await run_job("single", [sides.bare(LARGE)], hash=False)
            found.stored.per_s.append(mib / report["wall_s"])
    figure = f"{name_of(size_bytes)} through the gateway"
    return rows(world.deployment.s3.kind, figure, found, "MiB/s", "s", cpu_name="its CPU")


async def bodies(world: World, scratch: Path, *, size_bytes: int, rounds: int) -> list[Row]:
    """Many bodies at once; memory is the gateway's, in a process that did nothing else."""
    found, kind = Rounds(), world.deployment.s3.kind
    keys = [f"body/{number}" for number in range(_BODIES)]
    for key in keys:
        await world.load_large(PROJECT, key, size_bytes)
    mib = _BODIES_AT_ONCE * size_bytes / _MIB
    job: dict[str, float] = {"count": _BODIES_AT_ONCE, "concurrency": _BODIES_AT_ONCE, "warm": 0}
    async with opened(world, PROJECT, scratch, "bodies") as sides:
        # The storage is slow on the first read of a body.
        await run_job("many", [sides.bare(key) for key in keys], **job)
    for number in range(rounds):
        async with opened(world, PROJECT, scratch, f"bodies-{number}") as sides:
            await _warmed(sides)
            idle = sides.gateway.rss_bytes()
            sides.gateway.forget_peak()
            ours = [sides.ours(key) for key in keys]
            report, cpu_s = await _served(sides.gateway, "many", ours, **job)
            found.memory_mib.append((sides.gateway.peak_bytes() - idle) / _MIB)
            found.ours.per_s.append(mib / report["wall_s"])
            found.ours.cpu.append(cpu_s)
            passed = [sides.passed(key) for key in keys]
            report, cpu_s = await _served(sides.passing, "many", passed, **job)
            found.passed.per_s.append(mib / report["wall_s"])
            found.passed.cpu.append(cpu_s)
            report = await run_job("many", [sides.bare(key) for key in keys], **job)
            found.stored.per_s.append(mib / report["wall_s"])
    figure = f"{_BODIES_AT_ONCE} of {name_of(size_bytes)} at once"
    memory = Row(
        f"{figure}, peak memory above idle",
        kind,
        "MiB",
        Spread(tuple(found.memory_mib)),
        at_most=_MEMORY_AIM_MIB,
    )
    return [*rows(kind, figure, found, "MiB/s", "s", cpu_name="its CPU"), memory]


async def _warmed(sides: Sides) -> None:
    """All that is imported or opened at a first request is there."""
    for target in (sides.ours(key_of(0)), sides.passed(key_of(0))):
        await run_job("single", [target], hash=False)


async def small(world: World, scratch: Path, *, count: int, rounds: int) -> list[Row]:
    """4 KiB objects, 32 at once."""
    found, bare_cpu, kind = Rounds(), Side(), world.deployment.s3.kind
    warm = count // 10
    job: dict[str, float] = {"count": count, "concurrency": _SMALL_AT_ONCE, "warm": warm}
    keys = [key_of(number) for number in range(count)]
    await bare(
        world.deployment.s3_env(),
        "puts",
        "bare",
        count=count,
        warm=warm,
        concurrency=_SMALL_AT_ONCE,
    )
    done = count + warm
    async with opened(world, PROJECT, scratch, "small") as sides:
        ours = [sides.ours(key) for key in keys]
        passed = [sides.passed(key) for key in keys]
        stored = [sides.bare(key) for key in keys]
        for _ in range(rounds):
            for targets, running, side in (
                (ours, sides.gateway, found.ours),
                (passed, sides.passing, found.passed),
            ):
                report, cpu_s = await _served(running, "many", targets, **job)
                side.per_s.append(report["done"] / report["wall_s"])
                side.cpu.append(1000 * cpu_s / done)
            report = await run_job("many", stored, **job)
            found.stored.per_s.append(report["done"] / report["wall_s"])
            report = await bare(
                world.deployment.s3_env(),
                "gets",
                "bare",
                count=count,
                warm=warm,
                concurrency=_SMALL_AT_ONCE,
            )
            bare_cpu.per_s.append(report["done"] / report["wall_s"])
            bare_cpu.cpu.append(1000 * report["cpu_s"] / report["done"])
    figure = f"{name_of(_SMALL_BYTES)} through the gateway, {_SMALL_AT_ONCE} at once"
    loop = "bare aioboto3 get loop"
    return [
        *rows(kind, figure, found, "objects/s", "ms/request", cpu_name="CPU a request", aim=None),
        _rate_row(figure, kind, "objects/s", found.ours.per_s, bare_cpu.per_s, loop),
        _cpu_row(f"{figure}, CPU a request", kind, "ms/request", found.ours, bare_cpu, loop),
    ]


async def sampled(world: World, scratch: Path, *, count: int) -> dict[str, float]:
    """Milliseconds by layer of a 4 KiB object from the gateway, in a separate round."""
    samples, warm = scratch / "gateway.json", count // 10
    job: dict[str, float] = {"count": count, "concurrency": _SMALL_AT_ONCE, "warm": 0}
    async with opened(world, PROJECT, scratch, "sampled", samples=samples) as sides:
        targets = [sides.ours(key_of(number)) for number in range(count)]
        await run_job("many", targets[:warm], **(job | {"count": warm}))
        sample_from_now(sides.gateway)
        report, cpu_s = await _served(sides.gateway, "many", targets, **job)
    per_s, cpu_ms = report["done"] / report["wall_s"], 1000 * cpu_s / report["done"]
    return Sampled.written(samples).an_object(per_s=per_s, cpu_ms=cpu_ms)


def rows(
    kind: str,
    figure: str,
    found: Rounds,
    unit: str,
    cpu_unit: str,
    *,
    cpu_name: str,
    aim: float | None = _THROUGHPUT_AIM,
) -> list[Row]:
    """Throughput against both other sides, and CPU time against the passing server."""
    return [
        _rate_row(figure, kind, unit, found.ours.per_s, found.passed.per_s, PASSED, aim),
        _cpu_row(f"{figure}, {cpu_name}", kind, cpu_unit, found.ours, found.passed, PASSED),
        _rate_row(figure, kind, unit, found.ours.per_s, found.stored.per_s, STORED),
    ]


def _rate_row(
    figure: str,
    kind: str,
    unit: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    against: str,
    aim: float | None = None,
) -> Row:
    return Row(
        figure,
        kind,
        unit,
        Spread(tuple(ours)),
        Spread(tuple(theirs)),
        against,
        higher_is_better(ours, theirs),
        at_least=aim,
    )


def _cpu_row(figure: str, kind: str, unit: str, ours: Side, theirs: Side, against: str) -> Row:
    return Row(
        figure,
        kind,
        unit,
        Spread(tuple(ours.cpu)),
        Spread(tuple(theirs.cpu)),
        against,
        lower_is_better(ours.cpu, theirs.cpu),
    )
