"""The plain pipeline: what a user would build instead of Keyturn (SPEC 7).

A FastStream subscriber, one aioboto3 client, AES-256-GCM under a separate data key for each
object, that key wrapped under one key-encryption key into the object's metadata, and a confirmed
event. `python -m tools.bench.plain` serves `plain.upload` until SIGTERM; where broker and bucket
are it reads from `KEYTURN_…`. It signs nothing, fences nothing, and could not rotate a key:
what Keyturn does beyond it is what the comparison prices. None of the product's code runs here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from datetime import UTC, datetime
from typing import Any, Final

import aioboto3
import uvloop
from aiobotocore.config import AioConfig
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from faststream import AckPolicy, FastStream
from faststream.rabbit import (
    Channel,
    ExchangeType,
    QueueType,
    RabbitBroker,
    RabbitExchange,
    RabbitQueue,
)
from pydantic import BaseModel

EXCHANGE: Final = "plain"
QUEUE: Final = "plain.upload"
EVENTS: Final = "plain.events"
UPLOAD: Final = "upload.requested"
STORED: Final = "upload.stored"
READY: Final = "plain worker started"
CONCURRENCY: Final = 64
_NONCE_BYTES: Final = 12
_PUBLISH_TIMEOUT_S: Final = 30
_GRACE_S: Final = 30


class Upload(BaseModel):
    """A request: `body` is the plaintext in base64."""

    upload_id: str
    project: str
    key: str
    body: str


def document(upload_id: str, project: str, key: str, plaintext: bytes) -> bytes:
    """A request's bytes."""
    body = base64.b64encode(plaintext).decode()
    return json.dumps(
        {"upload_id": upload_id, "project": project, "key": key, "body": body}
    ).encode()


def sealed(kek: AESGCM, plaintext: bytes, name: bytes) -> tuple[bytes, dict[str, str]]:
    """An object's body under a fresh data key, and the metadata that holds the wrapped key."""
    data_key, nonce, wrap_nonce = os.urandom(32), os.urandom(_NONCE_BYTES), os.urandom(_NONCE_BYTES)
    body = nonce + AESGCM(data_key).encrypt(nonce, plaintext, name)
    wrapped = wrap_nonce + kek.encrypt(wrap_nonce, data_key, name)
    return body, {"dek": base64.b64encode(wrapped).decode(), "algo": "AES-256-GCM"}


def _client() -> Any:
    environ = os.environ
    config = AioConfig(
        max_pool_connections=CONCURRENCY,
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return aioboto3.Session().client(
        "s3",
        endpoint_url=environ["KEYTURN_S3_ENDPOINT_URL"],
        region_name=environ["KEYTURN_S3_REGION"],
        aws_access_key_id=environ["KEYTURN_S3_ACCESS_KEY_ID"],
        aws_secret_access_key=environ["KEYTURN_S3_SECRET_ACCESS_KEY"],
        config=config,
    )


async def serve() -> None:
    """Serve uploads until SIGTERM."""
    broker = RabbitBroker(
        os.environ["KEYTURN_AMQP_URL"],
        default_channel=Channel(on_return_raises=True),
        graceful_timeout=_GRACE_S,
        logger=None,
    )
    exchange = RabbitExchange(EXCHANGE, type=ExchangeType.TOPIC, durable=True)
    queue = RabbitQueue(QUEUE, queue_type=QueueType.QUORUM, durable=True, routing_key=UPLOAD)
    bucket, kek = os.environ["KEYTURN_S3_BUCKET"], AESGCM(os.urandom(32))
    async with _client() as s3:

        @broker.subscriber(
            queue,
            exchange,
            channel=Channel(prefetch_count=CONCURRENCY),
            ack_policy=AckPolicy.NACK_ON_ERROR,
        )
        async def store(upload: Upload) -> None:
            plaintext = base64.b64decode(upload.body)
            name = f"{upload.project}/{upload.key}"
            body, metadata = sealed(kek, plaintext, name.encode())
            await s3.put_object(
                Bucket=bucket, Key=name, Body=body, Metadata=metadata, IfNoneMatch="*"
            )
            event = {
                "type": STORED,
                "upload_id": upload.upload_id,
                "project": upload.project,
                "key": upload.key,
                "size": len(plaintext),
                "at": datetime.now(UTC).isoformat(),
            }
            # Returns once the broker confirmed it; the message is acknowledged after that.
            await broker.publish(
                event,
                routing_key=STORED,
                exchange=exchange,
                persist=True,
                mandatory=True,
                timeout=_PUBLISH_TIMEOUT_S,
            )

        async def declare() -> None:
            stream = await broker.declare_queue(
                RabbitQueue(EVENTS, queue_type=QueueType.STREAM, durable=True)
            )
            await stream.bind(await broker.declare_exchange(exchange), STORED)

        async def ready() -> None:
            print(READY, file=sys.stderr, flush=True)

        app = FastStream(broker, logger=None, after_startup=[ready])
        await broker.connect()
        await declare()
        await app.run()


if __name__ == "__main__":
    # As `faststream run` does where uvloop is installed.
    uvloop.install()
    asyncio.run(serve())
