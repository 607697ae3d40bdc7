"""Today's workers and gateway go on with what a release left: bucket, marks and evidence.

The bucket and the marks of each release from 1.0.0rc1 on are in `tests/unit/compatibility`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import aio_pika
import pytest

from keyturn import topology
from keyturn.crypto import new_api_key
from keyturn.errors import UnauthorizedError
from keyturn.evidence import in_chain_order, verify_chain
from keyturn.gateway import Client
from keyturn.identifiers import evidence_prefix
from keyturn_workers.pipeline.amqp.declarations import declare
from tests.unit.compatibility.released import RELEASES, Released
from tools.harness import requests, stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import gateway, worker
from tools.harness.wire import SignedPublisher, open_wire

if TYPE_CHECKING:
    from tools.servers import S3Server

pytestmark = pytest.mark.servers


def _restore_bucket(made: Released, deployment: Deployment) -> None:
    client = stored_objects.s3_client(deployment)
    for s3_key, body in made.bodies().items():
        stored = made.document["objects"][s3_key]
        client.put_object(
            Bucket=deployment.bucket,
            Key=s3_key,
            Body=body,
            Metadata=stored["metadata"],
            ContentType=stored["content_type"],
        )


async def _restore_mark(made: Released, deployment: Deployment) -> None:
    await declare(deployment.amqp_url, deployment.publishers())
    kept = made.messages[topology.KEYRING_MARKED]
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(topology.EXCHANGE, ensure=False)
        message = aio_pika.Message(
            kept["body"].encode(),
            headers=kept["headers"],
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(message, topology.KEYRING_MARKED, timeout=30)


def _evidence(deployment: Deployment) -> list[bytes]:
    client = stored_objects.s3_client(deployment)
    return in_chain_order(
        client.get_object(Bucket=deployment.bucket, Key=s3_key)["Body"].read()
        for s3_key in stored_objects.list_keys(deployment, evidence_prefix("acme"))
    )


async def _texts(url: str, api_key: str, keys: list[str]) -> dict[str, str]:
    found = {}
    async with Client.connect(url, api_key) as client:
        for key in keys:
            async with client.open("acme", key) as opened:
                found[key] = (await opened.read()).decode()
    return found


@pytest.mark.parametrize("release", RELEASES)
async def test_objects_are_read_and_a_rotation_extends_the_evidence(
    release: str, vhost_url: str, ceph: S3Server, ceph_bucket: str
) -> None:
    made = Released(release)
    deployment = Deployment(
        vhost_url,
        ceph,
        ceph_bucket,
        api_key=made.api_key(),
        **made.seeds(),  # type: ignore[arg-type]
    )
    _restore_bucket(made, deployment)
    await _restore_mark(made, deployment)
    new_key, keys = new_api_key(), sorted(made.texts)
    settings = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
    async with (
        worker(deployment.worker_env(**settings)),
        gateway(deployment.gateway_env(KEYRING_CACHE_S="0.2")) as served,
        open_wire(deployment) as wire,
    ):
        assert await _texts(served.url, deployment.api_key, keys) == made.texts
        with pytest.raises(UnauthorizedError):
            await _texts(served.url, made.api_key("old_api_key"), keys)
        rotation = requests.rotation(deployment, "acme", new_key)
        await SignedPublisher(deployment, wire).publish(rotation)
        end = await wire.event(lambda event: event["type"] == "rotation.completed")
        assert (end["clean"], end["current"], end["deleted"]) == (True, len(keys), 1)
        assert await _texts(served.url, new_key, keys) == made.texts
    before = [one for name, one in made.bodies().items() if name.startswith(".keyturn/evidence/")]
    files = _evidence(deployment)
    assert files[: len(before)] == before
    assert len(files) == len(before) + 1
    event_key = deployment.event_key.verify_key()
    verify_chain(files, [event_key], deployment="test", project="acme", newest=end["evidence"])
