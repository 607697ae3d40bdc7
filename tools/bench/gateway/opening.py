"""Opening without the gateway in the data path, against the gateway's stream (SPEC 9.3, 15.2).

The same client reads the same object both ways, in turn: by a ciphertext link, decrypting itself,
and from the gateway, which decrypts for it. Each read is a process of its own, after one that does
not count. Where all processes share two cores, the gateway's own CPU time slows its side, as it
would not on a machine of its own; the client's CPU time is the cost of decrypting there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keyturn.gateway import Client
from tools.bench.figures import Row, Spread, higher_is_better, lower_is_better
from tools.bench.gateway.sides import opened
from tools.bench.processes import BenchError, printed, printed_by_node
from tools.bench.rotation.sizes import name_of

if TYPE_CHECKING:
    from tools.bench.gateway.sides import Sides
    from tools.bench.rotation.world import World

LARGE_BYTES: Final = 256 * 2**20
QUICK_BYTES: Final = 64 * 2**20
STREAMED: Final = "the gateway's stream, same client"
_PROJECT: Final = "opening"
_KEY: Final = "large"
_MIB: Final = 2**20
_MEMORY_AIM_MIB: Final = 48
_NODE: Final = Path(__file__).with_name("open_client.mjs")
_RUNTIMES: Final = ("Node.js", "Python")


@dataclass
class Side:
    """What rounds of one way of reading gave, of the client's process."""

    mib_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_mib: list[float] = field(default_factory=list)

    def add(self, report: dict[str, float], size_bytes: int) -> None:
        """Keep a report.

        Raises:
            BenchError: other bytes came than are stored.
        """
        if report["bytes"] != size_bytes:
            raise BenchError(f"{report['bytes']} bytes came of {size_bytes}")
        self.mib_per_s.append(size_bytes / _MIB / report["wall_s"])
        self.cpu_s.append(report["cpu_s"])
        self.peak_mib.append(report["peak_mib"])


@dataclass
class Found:
    """Both ways of one runtime."""

    opened: Side = field(default_factory=Side)
    streamed: Side = field(default_factory=Side)


async def measure(world: World, scratch: Path, *, size_bytes: int, rounds: int) -> list[Row]:
    """The rows of each runtime.

    Raises:
        BenchError: an object was not read whole.
    """
    await world.enroll(_PROJECT)
    await world.load_large(_PROJECT, _KEY, size_bytes)
    found = {runtime: Found() for runtime in _RUNTIMES}
    async with opened(world, _PROJECT, scratch, "opening") as sides:
        for _ in range(rounds):
            for runtime, both in found.items():
                both.opened.add(await _read(runtime, "open", sides), size_bytes)
                both.streamed.add(await _read(runtime, "fetch", sides), size_bytes)
    server = world.deployment.s3.kind
    return [
        row for runtime, both in found.items() for row in rows(server, runtime, size_bytes, both)
    ]


async def _read(runtime: str, way: str, sides: Sides) -> dict[str, float]:
    api_key = sides.world.api_keys[_PROJECT]
    target = sides.ours(_KEY)
    address = target["url"].partition("/v1/")[0]
    async with Client.connect(address, api_key) as client:
        link = await client.ciphertext_link(_PROJECT, _KEY)
    job: dict[str, Any] = {
        "way": way,
        "link": {"url": link.url, "metadata": dict(link.metadata)},
        "keys": {"project": _PROJECT, "key": _KEY, "apiKey": api_key},
        "gateway": {**target, "address": address},
    }
    text = json.dumps(job)
    report: dict[str, float] = (
        await printed_by_node(_NODE, stdin_text=text)
        if runtime == "Node.js"
        else await printed({}, "tools.bench.gateway.open_client", stdin_text=text)
    )
    return report


def rows(server: str, runtime: str, size_bytes: int, found: Found) -> list[Row]:
    """Throughput and the client's CPU time against the stream, and memory by itself."""
    ours, theirs = found.opened, found.streamed
    figure = f"{name_of(size_bytes)} opened in {runtime}"
    above = [a - b for a, b in zip(ours.peak_mib, theirs.peak_mib, strict=True)]
    return [
        Row(
            figure,
            server,
            "MiB/s",
            Spread(tuple(ours.mib_per_s)),
            Spread(tuple(theirs.mib_per_s)),
            STREAMED,
            higher_is_better(ours.mib_per_s, theirs.mib_per_s),
        ),
        Row(
            f"{figure}, the client's CPU",
            server,
            "s",
            Spread(tuple(ours.cpu_s)),
            Spread(tuple(theirs.cpu_s)),
            STREAMED,
            lower_is_better(ours.cpu_s, theirs.cpu_s),
        ),
        Row(
            f"{figure}, peak memory above that of the stream",
            server,
            "MiB",
            Spread(tuple(above)),
            at_most=_MEMORY_AIM_MIB,
        ),
    ]
