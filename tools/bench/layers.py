"""Which layer of the worker a line of code belongs to. Pure.

A stack is read from the innermost frame outwards; the first frame that some layer owns
decides, so that a JSON parser's time counts for its caller.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

OTHER = "other"
WAITING = "waiting"
"""Time by the clock in which the process's core had nothing to do: no CPU time, so no layer."""

# The first entry that the file's path contains wins: specific ones come first.
_OWNERS = (
    ("/contracts/keyturn/crypto/base64", "validation"),
    ("/contracts/keyturn/crypto/signatures", "crypto: signatures"),
    ("/contracts/keyturn/crypto/intake", "crypto: HPKE"),
    ("/keyturn/crypto/", "crypto: bodies, wraps, records"),
    ("/contracts/keyturn/messages", "validation"),
    ("/contracts/keyturn/identifiers", "validation"),
    ("/contracts/keyturn/metadata", "validation"),
    ("/workers/keyturn_workers/worker/authorization", "validation"),
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
    ("/aiobotocore/", "S3: requests"),
    ("/botocore/", "S3: requests"),
    ("/aiormq/", "AMQP: aiormq, pamqp"),
    ("/pamqp/", "AMQP: aiormq, pamqp"),
    ("/aio_pika/", "AMQP: aio-pika"),
    ("/faststream/", "AMQP: FastStream"),
    ("/workers/keyturn_workers/amqp/request_consumer", "broker logic"),
    ("/workers/keyturn_workers/amqp/retry", "broker logic"),
    ("/keyturn_workers/amqp/", "AMQP: our own part"),
    ("/prometheus_client/", "metrics"),
    ("/workers/keyturn_workers/worker/metrics", "metrics"),
    ("/workers/keyturn_workers/gateway/metrics", "metrics"),
    ("/structlog/", "logs"),
    ("/workers/keyturn_workers/worker/logging", "logs"),
    ("/uvicorn/", "HTTP server"),
    ("/starlette/", "HTTP server"),
    ("/workers/keyturn_workers/http_server/", "HTTP server"),
    ("/keyturn_workers/gateway/", "gateway logic"),
    ("/uvloop/", "event loop"),
    ("/asyncio/", "event loop"),
    ("/keyturn_workers/keyring/", "keyring"),
    ("/keyturn_workers/objects/apply", "sweep logic"),
    ("/keyturn_workers/objects/encrypt_in_place", "sweep logic"),
    ("/keyturn_workers/objects/multipart_copy", "sweep logic"),
    ("/keyturn_workers/objects/reconcile", "sweep logic"),
    ("/keyturn_workers/objects/", "envelope"),
    ("/keyturn_workers/sweep/", "sweep logic"),
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


def shares(stacks: Mapping[tuple[str, ...], int]) -> Counter[str]:
    """Samples a layer."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        found[layer_of(stack)] += count
    return found


@dataclass(frozen=True)
class Sampled:
    """What a sampled process wrote: samples a layer, and how many records it read."""

    layers: Mapping[str, int]
    reads: int

    @classmethod
    def written(cls, file: Path) -> Sampled:
        """Read the file that `tools.bench.stack_sampler` wrote."""
        found = json.loads(file.read_text())
        return cls(found["layers"], found["reads"])

    def an_object(self, *, per_s: float, cpu_ms: float) -> dict[str, float]:
        """CPU milliseconds an object by layer, and those in which the process waited."""
        total = sum(self.layers.values())
        by_layer = {layer: cpu_ms * samples / total for layer, samples in self.layers.items()}
        return {**by_layer, WAITING: max(0.0, 1000 / per_s - cpu_ms)}
