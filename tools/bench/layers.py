"""CPU time by layer of the code: of an upload, of both passes of a rotation, of a download.

Upload worker, page worker and gateway each serve a separate round in which they sample their
own stack (`stack_sampler`); none of them is timed against anything. Shares are of the samples
after the start, milliseconds are these shares of the CPU time an object of the same round.
Sampling itself takes a few per cent, and counts for whatever it interrupts.

A stack is read from the innermost frame outwards; the first frame that some layer owns
decides, so that a JSON parser's time counts for its caller.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from tools.bench import gateway, rotation, uploads
from tools.bench.figures import WAITING
from tools.harness.world import open_world

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tools.bench.figures import Rate
    from tools.harness.deployment import Deployment

OTHER = "other"
_BODY_BYTES = 4096

# The first entry that the file's path contains wins: specific ones come first.
_OWNERS = (
    ("/contracts/keyturn/crypto/base64", "validation"),
    ("/contracts/keyturn/crypto/signatures", "crypto: signatures"),
    ("/contracts/keyturn/crypto/intake", "crypto: HPKE"),
    ("/keyturn/crypto/", "crypto: bodies, wraps, records"),
    ("/contracts/keyturn/messages", "validation"),
    ("/contracts/keyturn/identifiers", "validation"),
    ("/contracts/keyturn/metadata", "validation"),
    ("/workers/keyturn_workers/core/authorization", "validation"),
    ("/pydantic", "validation"),
    ("/workers/keyturn_workers/storage/signing", "S3: signing"),
    ("/botocore/auth", "S3: signing"),
    ("/botocore/awsrequest", "S3: signing"),
    ("/botocore/parsers", "S3: listings"),
    ("/dateutil/", "S3: listings"),
    ("/workers/keyturn_workers/storage/s3_listings", "S3: listings"),
    ("/workers/keyturn_workers/storage/listing", "S3: listings"),
    ("/keyturn_workers/storage/", "S3: requests"),
    ("/aiohttp/", "S3: requests"),
    ("/httptools/", "S3: requests"),
    ("/aiobotocore/", "S3: requests"),
    ("/botocore/", "S3: requests"),
    ("/aiormq/", "AMQP: aiormq, pamqp"),
    ("/pamqp/", "AMQP: aiormq, pamqp"),
    ("/aio_pika/", "AMQP: aio-pika"),
    ("/faststream/", "AMQP: FastStream"),
    ("/workers/keyturn_workers/pipeline/amqp/requests", "broker logic"),
    ("/workers/keyturn_workers/pipeline/amqp/failures", "broker logic"),
    ("/keyturn_workers/pipeline/amqp/", "AMQP: our own part"),
    ("/prometheus_client/", "metrics"),
    ("/workers/keyturn_workers/process/metrics", "metrics"),
    ("/workers/keyturn_workers/gateway/metrics", "metrics"),
    ("/structlog/", "logs"),
    ("/workers/keyturn_workers/process/logging", "logs"),
    ("/uvicorn/", "HTTP server"),
    ("/starlette/", "HTTP server"),
    ("/workers/keyturn_workers/process/http_server/", "HTTP server"),
    ("/keyturn_workers/gateway/", "gateway logic"),
    ("/uvloop/", "event loop"),
    ("/asyncio/", "event loop"),
    ("/keyturn_workers/keys/keyring/", "keyring"),
    ("/keyturn_workers/pipeline/objects/apply", "sweep logic"),
    ("/keyturn_workers/pipeline/objects/", "envelope"),
    ("/keyturn_workers/pipeline/sweep/", "sweep logic"),
    ("/keyturn_workers/", "upload logic"),
    ("/keyturn/", "upload logic"),
)


def layer_of(stack: Sequence[str]) -> str:
    """The layer of a stack of file names, the innermost first."""
    for path in stack:
        for text, layer in _OWNERS:
            if text in path:
                return layer
    return OTHER


def by_layer(stacks: Iterable[tuple[Sequence[str], int]], rate: Rate) -> dict[str, float]:
    """CPU milliseconds an object by layer, and those in which the process waited."""
    samples: Counter[str] = Counter()
    for stack, count in stacks:
        samples[layer_of(stack)] += count
    total = samples.total()
    layers = {layer: rate.cpu_ms * count / total for layer, count in samples.items()}
    return {**layers, WAITING: max(0.0, 1000 / rate.per_s - rate.cpu_ms)}


def _read(samples: Path, rate: Rate) -> dict[str, float]:
    return by_layer(json.loads(samples.read_text())["stacks"], rate)


async def measure(
    deployment: Deployment, scratch: Path, *, count: int
) -> dict[str, dict[str, float]]:
    """Milliseconds an object by layer, by process."""
    kind, samples = deployment.s3.kind, scratch / "upload.json"
    await uploads.enroll(deployment, scratch)
    rate = await uploads.ours(deployment, scratch, "sampled", count, samples=samples)
    found = {f"upload worker, {kind}": _read(samples, rate)}
    async with open_world(deployment) as world:
        for project in (rotation.PROJECT, gateway.PROJECT):
            await world.enroll(project)
            await world.load(project, count, _BODY_BYTES)
        for name in ("writing", "proving"):
            of_pass = await rotation.sampled(world, scratch, name, count)
            found[f"page worker, {name} pass, {kind}"] = _read(*of_pass)
        found[f"gateway, GET of 4 KiB, {kind}"] = _read(
            *await gateway.sampled(world, scratch, count)
        )
    return found
