"""CPU milliseconds an object by layer, in the three hot paths.

Upload worker, page worker and gateway each serve a separate round in which they sample
their own stack; none of them is timed against anything. Shares are of the samples after the
start, milliseconds are these shares of the CPU time an object of the same round. Sampling
itself takes a few per cent, and counts for whatever it interrupts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.bench import uploads
from tools.bench.gateway import downloads
from tools.bench.rotation import pages
from tools.bench.rotation.world import open_world

if TYPE_CHECKING:
    from pathlib import Path

    from tools.harness.deployment import Deployment

_BODY_BYTES = 4096


async def measure(
    deployment: Deployment, scratch: Path, *, count: int
) -> dict[str, dict[str, float]]:
    """Milliseconds an object by layer, by process."""
    kind = deployment.s3.kind
    await uploads.enroll(deployment, scratch)
    layers, reads = await uploads.sampled(deployment, scratch, count)
    found = {f"upload worker, {kind} ({reads:.2f} keyring reads an upload)": layers}
    async with open_world(deployment) as world:
        for project in (pages.PROJECT, downloads.PROJECT):
            await world.enroll(project)
            await world.load(project, count, _BODY_BYTES)
        for name, layers in (await pages.sampled(world, scratch, count)).items():
            found[f"page worker, {name} pass, {kind}"] = layers
        found[f"gateway, GET of 4 KiB, {kind}"] = await downloads.sampled(
            world, scratch, count=count
        )
    return found
