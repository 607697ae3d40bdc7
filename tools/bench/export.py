"""`keyturn export` to a folder, against `rclone copy` of the stored bytes (SPEC 14).

Both read the same objects of the same bucket; rclone copies ciphertext and checks no SHA-256. The
export authenticates, decrypts, hashes, and forces each file to the disk before it has its name.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tools.bench.figures import Comparison, Rate, Row, Spread
from tools.bench.gateway import PROJECT, opened
from tools.bench.processes import timed
from tools.harness.world import key_of, open_world
from tools.servers import rclone

if TYPE_CHECKING:
    from pathlib import Path

    from tools.harness.deployment import Deployment
    from tools.harness.world import World

RCLONE: Final = "rclone copy of the stored bytes"
_MIB: Final = 2**20
_SMALL_BYTES: Final = 4096
_LARGE_MIB: Final = 64
_AT_ONCE: Final = 16
_AS_OPERATOR: Final = ("--as-operator", "--reason", "a measurement")
_MEMORY_AIM_MIB: Final = 256


@dataclass
class _Sides:
    """What the rounds gave; `peaks_mib` are of the export from the bucket."""

    from_bucket: list[Rate] = field(default_factory=list)
    by_gateway: list[Rate] = field(default_factory=list)
    rclone: list[Rate] = field(default_factory=list)
    peaks_mib: list[float] = field(default_factory=list)


async def _round(world: World, gateway_url: str, scratch: Path, sides: _Sides, units: int) -> None:
    """One export from the bucket, one through the gateway, one rclone; each to a new folder."""
    deployment = world.deployment
    api_key = {"KEYTURN_API_KEY": world.api_keys[PROJECT]}
    target = scratch / "exported"
    export = [sys.executable, "-m", "keyturn_workers", "export", PROJECT, str(target)]
    stored = f"keyturn:{deployment.bucket}/{PROJECT}"
    copy = [rclone.program(), "copy", stored, str(target), "--transfers", str(_AT_ONCE)]
    rclone_env = rclone.remotes_env(keyturn=deployment.s3)
    for rates, command, its_env in (
        (sides.from_bucket, [*export, *_AS_OPERATOR], deployment.worker_env()),
        (sides.by_gateway, [*export, "--gateway", gateway_url], api_key),
        (sides.rclone, copy, rclone_env),
    ):
        rate, peak_mib = await asyncio.to_thread(timed, command, its_env, units)
        rates.append(rate)
        if rates is sides.from_bucket:
            sides.peaks_mib.append(peak_mib)
        await asyncio.to_thread(shutil.rmtree, target)


async def measure_small(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """Many objects of 4 KiB; errors as `measure_large`."""
    async with open_world(deployment) as world:
        await world.enroll(PROJECT)
        await world.load(PROJECT, count, _SMALL_BYTES)
        return await _measure(world, scratch, f"export of {count:,} of 4 KiB", count, rounds)


async def measure_large(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """Objects of 64 MiB.

    Raises:
        BenchError: a side failed.
        ServerError: rclone is missing.
    """
    figure, mib = f"export of {count} of {_LARGE_MIB} MiB", count * _LARGE_MIB
    async with open_world(deployment) as world:
        await world.enroll(PROJECT)
        for number in range(count):
            await world.load_large(PROJECT, key_of(number), _LARGE_MIB * _MIB)
        return await _measure(world, scratch, figure, mib, rounds, unit="MiB")


async def _measure(
    world: World, scratch: Path, figure: str, units: int, rounds: int, *, unit: str = "objects"
) -> list[Row]:
    sides, server = _Sides(), world.deployment.s3.kind
    async with opened(world, PROJECT, scratch, "export") as served:
        url = served.gateway_url
        # What the first of them finds cold.
        await _round(world, url, scratch, _Sides(), units)
        for _ in range(rounds):
            await _round(world, url, scratch, sides, units)
    ours = Comparison(
        f"{figure}, from the bucket", server, RCLONE, sides.from_bucket, sides.rclone, unit
    )
    by_gateway = Comparison(
        f"{figure}, through a gateway", server, RCLONE, sides.by_gateway, sides.rclone, unit
    )
    peaks = Spread(tuple(sides.peaks_mib))
    return [
        *(row for side in (ours, by_gateway) for row in (side.throughput(), side.cpu())),
        Row(f"{figure}, peak memory", server, "MiB", peaks, at_most=_MEMORY_AIM_MIB),
    ]
