"""A 1 GiB staged upload: throughput, and the worker's memory during it (SPEC 6.4, 7.2).

The worker reads the staged body, opens it, seals it and stores it; the bare side only
stores. So there are two comparisons: with the bare multipart upload, and with a bare
get followed by that upload, which moves the same bytes.
"""

from __future__ import annotations

import asyncio
import io
import os
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, cast

import psutil

from keyturn.crypto import Sealer, sealed_size, to_base64, transport_context, upload_info
from tools.bench.bare import Zeros
from tools.bench.figures import Row, Spread, higher_is_better
from tools.bench.processes import BenchError, bare, worker
from tools.bench.uploads import PROJECT, enroll
from tools.harness import requests, stored_objects
from tools.harness.wire import open_wire

if TYPE_CHECKING:
    from pathlib import Path

    from tools.bench.processes import Running
    from tools.harness.deployment import Deployment
    from tools.harness.requests import Upload

_MIB = 2**20
_SAMPLE_S = 0.02
_UPLOAD_S = 240
_MEMORY_AIM_MIB = 128
# A memory-backed OSD takes about two bytes of memory for each one of the three bodies.
_MEMORY_A_BYTE = 7


class SealedFile(io.RawIOBase):
    """A file of sealed bytes, made as it is read."""

    def __init__(self, key: bytes, context: bytes, size_bytes: int) -> None:
        self._sealer = Sealer(key, context)
        self._source = Zeros(size_bytes)
        self._held = bytearray(self._sealer.header)
        self._over = False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes; nothing at the end."""
        while not self._over and (size < 0 or len(self._held) < size):
            piece = self._source.read(_MIB)
            self._held += self._sealer.update(piece) if piece else self._sealer.finish()
            self._over = not piece
        count = len(self._held) if size < 0 else min(size, len(self._held))
        given = bytes(self._held[:count])
        del self._held[:count]
        return given


@dataclass
class Rounds:
    """What the rounds gave: MiB a second, and MiB."""

    ours: list[float] = field(default_factory=list)
    put: list[float] = field(default_factory=list)
    get_and_put: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)


def _stage(deployment: Deployment, key: str, size_bytes: int) -> Upload:
    """A request whose sealed body is in staging."""
    made = requests.upload(deployment, PROJECT, key, b"", staged=True)
    transport_key = os.urandom(32)
    source = SealedFile(transport_key, transport_context(made.upload_id), size_bytes)
    stored_objects.s3_client(deployment).upload_fileobj(
        cast("IO[bytes]", source),
        deployment.bucket,
        f".keyturn/staging/api/{made.upload_id}",
    )
    ciphertext = deployment.intake.public_key.seal(
        transport_key, upload_info(made.upload_id, PROJECT, key)
    )
    made.document["sealed_key"]["ciphertext"] = to_base64(ciphertext)
    made.document["body"] = {"staged": {"size": sealed_size(size_bytes)}}
    return made


async def _watch(running: Running) -> int:
    """The highest resident memory seen; ends when cancelled."""
    peak = 0
    try:
        while True:
            peak = max(peak, running.rss_bytes())
            await asyncio.sleep(_SAMPLE_S)
    except asyncio.CancelledError:
        return peak


async def _ours(
    deployment: Deployment, scratch: Path, made: Upload, name: str, size_bytes: int
) -> tuple[float, float]:
    """Seconds from the request to its event, and MiB of memory above idle."""
    env = deployment.worker_env()
    async with worker(env, scratch / f"{name}.log") as running, open_wire(deployment) as wire:
        idle = running.rss_bytes()
        running.forget_peak()
        watching = asyncio.create_task(_watch(running))
        body = requests.encode(made.document)
        headers = requests.headers(body, deployment.publisher_key)
        began = time.perf_counter()
        await wire.publish("upload.requested", body, headers)
        event = await wire.outcome(made.upload_id, timeout_s=_UPLOAD_S)
        took_s = time.perf_counter() - began
        watching.cancel()
        peak = max(await watching, running.peak_bytes())
    if event["type"] != "upload.stored" or event["size"] != size_bytes:
        raise BenchError(f"the staged upload was not stored: {event}")
    return took_s, (peak - idle) / _MIB


def check_memory(size_bytes: int, *, memory_a_byte: int = _MEMORY_A_BYTE) -> None:
    """See that the storage server, which keeps all in memory, has room for one round.

    Raises:
        BenchError: it has not; starting all the same would end other processes.
    """
    needed = memory_a_byte * size_bytes
    if (free := psutil.virtual_memory().available) < needed:
        raise BenchError(
            f"{needed // _MIB} MiB of free memory are needed, there are {free // _MIB}"
        )


async def one_round(
    deployment: Deployment, scratch: Path, found: Rounds, *, size_bytes: int
) -> None:
    """One round, on separate servers: what is deleted leaves their memory too late."""
    await enroll(deployment, scratch)
    mib, env = size_bytes / _MIB, deployment.s3_env()
    made = await asyncio.to_thread(_stage, deployment, "big", size_bytes)
    took_s, memory_mib = await _ours(deployment, scratch, made, "big", size_bytes)
    put_s = (await bare(env, "multipart", "bare/big", bytes=size_bytes))["wall_s"]
    get_s = (await bare(env, "get", "bare/big"))["wall_s"]
    found.ours.append(mib / took_s)
    found.put.append(mib / put_s)
    found.get_and_put.append(mib / (get_s + put_s))
    found.memory_mib.append(memory_mib)


def rows(server: str, found: Rounds, size_bytes: int) -> list[Row]:
    """Throughput, and the worker's memory with its aim."""
    mib = size_bytes / _MIB
    size = f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib:g} MiB"
    ours = Spread(tuple(found.ours))
    throughput = [
        Row(
            f"{size} staged upload",
            server,
            "MiB/s",
            ours,
            Spread(tuple(theirs)),
            against,
            higher_is_better(found.ours, theirs),
        )
        for against, theirs in (
            ("bare multipart upload", found.put),
            ("bare get, then multipart upload", found.get_and_put),
        )
    ]
    memory = Row(
        f"{size} staged upload, peak memory above idle",
        server,
        "MiB",
        Spread(tuple(found.memory_mib)),
        at_most=_MEMORY_AIM_MIB,
    )
    return [*throughput, memory]
