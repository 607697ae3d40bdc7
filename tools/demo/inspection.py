"""What the demo reads back: from the broker's queue, and from the bucket.

No cell of its table is computed from what was sent.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aio_pika

from keyturn import metadata as object_metadata
from keyturn.errors import CodedError
from keyturn.identifiers import object_s3_key
from keyturn.metadata import Plaintext
from keyturn_workers.objects.download import open_object

if TYPE_CHECKING:
    from pathlib import Path

    from keyturn_workers.objects.download import Access
    from keyturn_workers.storage import Storage

_SAMPLE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Waiting:
    """A message that waits on the queue."""

    size_bytes: int
    body: str


@dataclass(frozen=True)
class Bucket:
    """What the bucket shows of an object to anyone who may read it."""

    size_bytes: int
    algorithm: str
    first_bytes: str
    zlib_percent: int


async def waiting(amqp_url: str, queue: str) -> dict[str, Waiting]:
    """The messages on a queue by their id; closing the channel puts them all back."""
    found: dict[str, Waiting] = {}
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        source = await channel.get_queue(queue, ensure=False)
        while (message := await source.get(fail=False)) is not None:
            kind = next(iter(json.loads(message.body)["body"]))
            found[str(message.message_id)] = Waiting(len(message.body), kind)
    return found


async def bucket_shows(storage: Storage, project: str, key: str) -> Bucket:
    """Read an object as it lies there."""
    async with storage.stream(object_s3_key(project, key)) as stream:
        sample = b""
        async for piece in stream.chunks(_SAMPLE_BYTES):
            sample = sample or piece
    envelope = object_metadata.parse(stream.head.metadata)
    algorithm = (
        "plaintext!"
        if isinstance(envelope, Plaintext)
        else stream.head.metadata[object_metadata.ALGO]
    )
    return Bucket(stream.head.size_bytes, algorithm, sample[:6].hex(" "), zlib_percent(sample))


def zlib_percent(sample: bytes) -> int:
    """How small zlib makes it, in percent: text shrinks, ciphertext does not."""
    return round(100 * len(zlib.compress(sample, 6)) / len(sample)) if sample else 100


async def opened_sha256(storage: Storage, key: str, access: Access) -> str:
    """The SHA-256 of the plaintext that this key opens, or the code of the failure."""
    digest = hashlib.sha256()
    try:
        async with open_object(storage, key, access) as opened:
            async for piece in opened.chunks():
                digest.update(piece)
    except CodedError as exc:
        return exc.code
    return digest.hexdigest()


async def stored_sha256(storage: Storage, project: str, key: str) -> str:
    """The SHA-256 of an object's bytes as they lie in the bucket."""
    digest = hashlib.sha256()
    async with storage.stream(object_s3_key(project, key)) as stream:
        async for piece in stream.chunks(_SAMPLE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file on disk."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
