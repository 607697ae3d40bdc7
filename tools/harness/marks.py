"""Marks of keyrings, published and read without the workers' code that follows them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import aio_pika

from keyturn import topology
from keyturn.crypto import Secret
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import KeyringMarked, encode_mark
from keyturn_workers.pipeline.amqp.declarations import declare
from tools.harness import requests, stored_objects
from tools.harness.local_keys import parse_keyring

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel

    from keyturn.crypto import SigningKey
    from tools.harness.deployment import Deployment


def mark_of(deployment: Deployment, project: str, **changed: Any) -> KeyringMarked:
    """The mark of the keyring that the bucket holds; `changed` fields are overridden."""
    answer = stored_objects.s3_client(deployment).get_object(
        Bucket=deployment.bucket, Key=keyring_s3_key(project)
    )
    body = answer["Body"].read()
    masters = {name: Secret(key) for name, key in deployment.master_keys.items()}
    keyring = parse_keyring(body, project, masters)
    fields: dict[str, Any] = {
        "project": project,
        "serial": keyring.serial,
        "digest": hashlib.sha256(body).hexdigest(),
        "generation": keyring.current.generation,
        "kek_id": keyring.current.kek_id,
        "master_key": keyring.master_key,
        "at": requests.now(),
    }
    return KeyringMarked.model_validate(fields | changed)


def sign_mark(deployment: str, mark: KeyringMarked, key: SigningKey) -> aio_pika.Message:
    """The message of a mark."""
    body = encode_mark(mark)
    return aio_pika.Message(
        body,
        headers={
            topology.SIGNATURE_HEADER: key.sign_mark(deployment, body),
            topology.EVENT_KEY_HEADER: key.id,
        },
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


async def publish_mark(
    channel: AbstractChannel,
    deployment: Deployment,
    mark: KeyringMarked,
    *,
    key: SigningKey | None = None,
) -> None:
    """Publish a mark as a worker does, signed by the event key unless another is given."""
    exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
    message = sign_mark(deployment.name, mark, key or deployment.event_key)
    await exchange.publish(message, topology.KEYRING_MARKED, timeout=30)


async def mark_keyrings(deployment: Deployment, *projects: str) -> None:
    """Put the marks of these projects on a fresh broker, as `keyturn recover` does."""
    await declare(deployment.amqp_url, deployment.publishers())
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        for project in projects:
            await publish_mark(channel, deployment, mark_of(deployment, project))
