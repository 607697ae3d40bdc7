"""The parts of the gateway's bench, on one server with one set of objects (SPEC 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.bench.gateway import downloads, first_bytes
from tools.bench.large_upload import check_memory
from tools.bench.rotation.world import open_world

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tools.bench.figures import Row
    from tools.harness.deployment import Deployment

_MIB = 2**20
_SMALL_BYTES = 4096
# A memory-backed OSD takes about two bytes of memory for each one, and a reader's pieces.
_MEMORY_A_BYTE = 3


async def measure(
    deployment: Deployment,
    scratch: Path,
    requested: Collection[str],
    rows: list[Row],
    *,
    quick: bool,
    rounds: int | None,
) -> None:
    """Append the rows of what was requested, as each is measured.

    Raises:
        BenchError: something was not served, or the server has not the memory for it.
    """
    size_bytes = (128 if quick else 1024) * _MIB
    count = 400 if quick else 3000
    rounds = rounds or (1 if quick else 5)
    check_memory(size_bytes, memory_a_byte=_MEMORY_A_BYTE)
    async with open_world(deployment) as world:
        await world.enroll(downloads.PROJECT)
        await world.load(downloads.PROJECT, count, _SMALL_BYTES)
        sha256 = await world.load_large(downloads.PROJECT, downloads.LARGE, size_bytes)
        if "gateway-large" in requested:
            rows += await downloads.large(
                world, scratch, size_bytes=size_bytes, sha256=sha256, rounds=rounds
            )
        if "gateway-first" in requested:
            rows += await first_bytes.measure(
                world, scratch, size_bytes=size_bytes, samples=20 if quick else 60, rounds=rounds
            )
        if "gateway-bodies" in requested:
            body_bytes = (1 if quick else 16) * _MIB
            rows += await downloads.bodies(world, scratch, size_bytes=body_bytes, rounds=rounds)
        if "gateway-small" in requested:
            rows += await downloads.small(world, scratch, count=count, rounds=rounds)
