"""Which layer of the worker a line of code belongs to. Pure.

A stack is read from the innermost frame outwards; the first frame that some layer owns
decides, so that a JSON parser's time counts for whoever called it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OTHER = "other"

# The first entry whose text stands in the file's path wins: narrow ones come first.
_OWNERS = (
    ("/contracts/sealing/base64", "validation"),
    ("/contracts/sealing/", "crypto"),
    ("/contracts/messages", "validation"),
    ("/contracts/names", "validation"),
    ("/contracts/metadata", "validation"),
    ("/workers/admission", "validation"),
    ("/pydantic", "validation"),
    ("/workers/storage/signing", "S3: signing"),
    ("/botocore/auth", "S3: signing"),
    ("/botocore/awsrequest", "S3: signing"),
    ("/botocore/parsers", "S3: listings"),
    ("/dateutil/", "S3: listings"),
    ("/workers/storage/cold", "S3: listings"),
    ("/workers/storage/listing", "S3: listings"),
    ("/workers/storage/", "S3: requests"),
    ("/aiohttp/", "S3: requests"),
    ("/aiobotocore/", "S3: requests"),
    ("/botocore/", "S3: requests"),
    ("/aiormq/", "AMQP: aio-pika"),
    ("/aio_pika/", "AMQP: aio-pika"),
    ("/pamqp/", "AMQP: aio-pika"),
    ("/faststream/", "AMQP: FastStream"),
    ("/workers/broker/teller", "AMQP: aio-pika"),
    ("/structlog/", "logs"),
    ("/workers/logs", "logs"),
    ("/uvloop/", "event loop"),
    ("/asyncio/", "event loop"),
    ("/workers/envelope/", "envelope"),
    ("/workers/sweep/", "sweep logic"),
    ("/workers/reconcile/", "sweep logic"),
    ("/workers/", "upload logic"),
    ("/contracts/", "upload logic"),
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
