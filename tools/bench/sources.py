"""`keyturn import`, against `rclone copy` of the same objects between the same buckets (SPEC 17).

The source is another bucket of the same server. rclone's two remotes have different names, so the
bodies pass through rclone as they pass through the worker; with one name, the server would copy.
An `rclone crypt` remote encrypts them too. A target is emptied once it is measured.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tools.bench.figures import Comparison, Rate, Row, Spread
from tools.bench.processes import timed, worker
from tools.bench.uploads import BODY, CONCURRENCY, PROJECT, enroll, ours
from tools.harness.sources import DropBucket, sources_env
from tools.servers import rclone

if TYPE_CHECKING:
    from pathlib import Path

    from tools.harness.deployment import Deployment

RCLONE: Final = "rclone copy"
CRYPT: Final = "rclone copy into rclone crypt"
_MIB: Final = 2**20
_LARGE_MIB: Final = 64
_WRITERS: Final = 16
# Ceph frees large objects that long after they were deleted; till then they are in memory.
_GC_S: Final = 130
_SMALL_AIM: Final = 1.0
_LARGE_AIM: Final = 0.9
_MEMORY_AIM_MIB: Final = 256


@dataclass
class _Bench:
    """A source, and what copies its objects into Keyturn's bucket; `units` are in all of them."""

    deployment: Deployment
    scratch: Path
    units: int
    imports: list[Rate] = field(default_factory=list)
    plain: list[Rate] = field(default_factory=list)
    crypt: list[Rate] = field(default_factory=list)
    peaks_mib: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._drop = DropBucket(self.deployment.s3, project=PROJECT)
        self._keyturn = f"keyturn:{self.deployment.bucket}"
        password = subprocess.check_output([rclone.program(), "obscure", "bench"], text=True)
        self._rclone_env = {
            **rclone.remotes_env(drop=self.deployment.s3, keyturn=self.deployment.s3),
            "RCLONE_CONFIG_CRYPT_TYPE": "crypt",
            "RCLONE_CONFIG_CRYPT_REMOTE": f"{self._keyturn}/crypt",
            "RCLONE_CONFIG_CRYPT_PASSWORD": password.strip(),
        }

    async def fill(self, count: int, body: bytes) -> None:
        """Write the objects, and read them once: the first read of each is slower."""

        def write() -> None:
            with ThreadPoolExecutor(_WRITERS) as writers:
                list(writers.map(lambda number: self._drop.put(str(number), body), range(count)))

        await asyncio.to_thread(write)
        await self._rclone("cat", "--discard", self._source)

    async def round(self, number: int) -> None:
        """Import everything, then copy it with rclone twice."""
        await self._import(number)
        await self._rclone("delete", f"{self._keyturn}/{PROJECT}/import-{number}")
        for rates, target in ((self.plain, f"{self._keyturn}/plain"), (self.crypt, "crypt:")):
            rates.append(await self._rclone("copy", self._source, target))
            await self._rclone("delete", target)

    @property
    def _source(self) -> str:
        return f"drop:{self._drop.bucket}/in"

    async def _import(self, number: int) -> None:
        """Import under another name of the source, so that no upload has had its outcome."""
        self._drop.name = f"drop-{number}"
        self._drop.fields["key"] = f"import-{number}/{{name}}"
        settings = sources_env(self.deployment, self._drop)
        env = self.deployment.worker_env(UPLOAD_CONCURRENCY=str(CONCURRENCY), **settings)
        command = [sys.executable, "-m", "keyturn_workers", "import", self._drop.name]
        async with worker(env, self.scratch / f"import-{number}.log") as running:
            running.forget_peak()
            cpu_s = running.cpu_s()
            own_env = {**env, **self.deployment.publisher_env()}
            rate, _ = await asyncio.to_thread(timed, command, own_env, self.units)
            cpu_ms = 1000 * (running.cpu_s() - cpu_s) / self.units
            self.imports.append(Rate(rate.per_s, rate.cpu_ms + cpu_ms))
            self.peaks_mib.append(running.peak_bytes() / _MIB)

    async def _rclone(self, *arguments: str) -> Rate:
        command = [rclone.program(), *arguments, "--transfers", str(CONCURRENCY)]
        rate, _ = await asyncio.to_thread(timed, command, self._rclone_env, self.units)
        return rate

    def rows(self, figure: str, unit: str, *, aim: float | None = None) -> list[Row]:
        """Throughput and CPU time against both copies, and the worker's peak memory."""
        server = self.deployment.s3.kind
        plain = Comparison(figure, server, RCLONE, self.imports, self.plain, unit)
        crypt = Comparison(figure, server, CRYPT, self.imports, self.crypt, unit)
        peaks = Spread(tuple(self.peaks_mib))
        return [
            *(plain.throughput(aim), plain.cpu(), crypt.throughput(), crypt.cpu()),
            Row(f"{figure}, peak memory", server, "MiB", peaks, at_most=_MEMORY_AIM_MIB),
        ]


async def measure_small(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """Objects of 4 KiB, also against the same bodies in requests; errors as `measure_large`."""
    await enroll(deployment, scratch)
    bench, inline = _Bench(deployment, scratch, count), list[Rate]()
    await bench.fill(count, BODY)
    for number in range(rounds):
        await bench.round(number)
        inline.append(await ours(deployment, scratch, f"inline-{number}", count))
    figure = f"import of {count:,} of 4 KiB"
    requested = Comparison(
        figure, deployment.s3.kind, "the same in requests", bench.imports, inline
    )
    return [requested.throughput(_SMALL_AIM), requested.cpu(), *bench.rows(figure, "objects")]


async def measure_large(
    deployment: Deployment, scratch: Path, *, count: int, rounds: int
) -> list[Row]:
    """Objects of 64 MiB.

    Raises:
        BenchError: a side failed.
        ServerError: rclone is missing.
    """
    await enroll(deployment, scratch)
    bench = _Bench(deployment, scratch, count * _LARGE_MIB)
    await bench.fill(count, bytes(range(256)) * (_LARGE_MIB * _MIB // 256))
    for number in range(rounds):
        if number > 0:
            await asyncio.sleep(_GC_S)
        await bench.round(number)
    return bench.rows(f"import of {count} of {_LARGE_MIB} MiB", "MiB", aim=_LARGE_AIM)
