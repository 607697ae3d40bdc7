"""A 1 GiB staged upload: throughput, and the worker's memory during it (SPEC 6.4, 7.2).

The worker reads the staged body, opens it, seals it and stores it; the bare side only
stores. So there are two comparisons: with the bare multipart upload, and with a bare
get followed by that upload, which moves the same bytes.
"""

from __future__ import annotations

import asyncio
import io
import time
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, cast

from contracts.sealing import Sealer, b64, transport_context, upload_info
from tests.bench.bare import Zeros
from tests.bench.figures import Row, Spread, higher_is_better
from tests.bench.processes import BenchError, bare, worker
from tests.bench.uploads import PROJECT
from tests.support import reader, requests
from tests.support.wire import open_wire

if TYPE_CHECKING:
    from pathlib import Path

    from tests.bench.processes import Running
    from tests.support.deployment import Deployment
    from tests.support.requests import Upload

_MIB = 2**20
_SAMPLE_S = 0.02
_UPLOAD_S = 240
_MEMORY_AIM_MIB = 128
_KEPT = "bench-kept/sealed"


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
        """Up to so many bytes; nothing at the end."""
        while not self._over and (size < 0 or len(self._held) < size):
            piece = self._source.read(_MIB)
            self._held += self._sealer.update(piece) if piece else self._sealer.finish()
            self._over = not piece
        wanted = len(self._held) if size < 0 else min(size, len(self._held))
        given = bytes(self._held[:wanted])
        del self._held[:wanted]
        return given


@dataclass
class _Rounds:
    ours: list[float] = field(default_factory=list)
    put: list[float] = field(default_factory=list)
    get_and_put: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Sealed:
    """What was sealed once and is staged anew for every round."""

    upload_id: str
    transport_key: bytes
    size_bytes: int


def _prepare(deployment: Deployment, size_bytes: int) -> _Sealed:
    """Seal and store the body once, beside staging."""
    made = requests.upload(deployment, PROJECT, "kept", b"", staged=True)
    transport_key = bytes(range(32))
    context = transport_context(made.upload_id)
    client = reader.s3_client(deployment)
    source = cast("IO[bytes]", SealedFile(transport_key, context, size_bytes))
    client.upload_fileobj(source, deployment.bucket, _KEPT)
    stored = client.head_object(Bucket=deployment.bucket, Key=_KEPT)["ContentLength"]
    return _Sealed(made.upload_id, transport_key, stored)


def _staged(deployment: Deployment, sealed: _Sealed, key: str) -> Upload:
    """The same sealed body in staging again, and a request for another key."""
    made = requests.upload(deployment, PROJECT, key, b"", staged=True)
    ciphertext = deployment.intake.public_key.seal(
        sealed.transport_key, upload_info(sealed.upload_id, PROJECT, key)
    )
    made.upload_id = made.document["upload_id"] = sealed.upload_id
    made.document["sealed_key"]["ciphertext"] = b64(ciphertext)
    made.document["body"] = {"staged": {"size": sealed.size_bytes}}
    reader.s3_client(deployment).copy(
        {"Bucket": deployment.bucket, "Key": _KEPT},
        deployment.bucket,
        f".keyturn/staging/api/{sealed.upload_id}",
    )
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


async def measure(
    deployment: Deployment, scratch: Path, *, size_bytes: int, rounds: int
) -> list[Row]:
    """The rows for one server. The project must be enrolled."""
    sealed = await asyncio.to_thread(_prepare, deployment, size_bytes)
    found = _Rounds()
    mib = size_bytes / _MIB
    env = deployment.s3_env()
    client = reader.s3_client(deployment)
    for number in range(rounds):
        name = f"big{number}"
        made = await asyncio.to_thread(_staged, deployment, sealed, name)
        took_s, memory_mib = await _ours(deployment, scratch, made, name, size_bytes)
        put_s = (await bare(env, "multipart", f"bare-{name}", bytes=size_bytes))["wall_s"]
        get_s = (await bare(env, "get", _KEPT))["wall_s"]
        found.ours.append(mib / took_s)
        found.put.append(mib / put_s)
        found.get_and_put.append(mib / (get_s + put_s))
        found.memory_mib.append(memory_mib)
        for key in (f"{PROJECT}/{name}", f"bare-{name}"):
            client.delete_object(Bucket=deployment.bucket, Key=key)
    return _rows(deployment.s3.kind, found, mib)


def _rows(server: str, found: _Rounds, mib: float) -> list[Row]:
    size = f"{mib / 1024:g} GiB" if mib >= 1024 else f"{mib:g} MiB"
    ours = Spread(tuple(found.ours))
    rows = [
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
    return [*rows, memory]
