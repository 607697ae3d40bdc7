"""`python -m tools.release.bucket`: keep what this release leaves in a bucket and on the broker.

Run once for each release. A worker on real servers enrolls a project, stores and deletes objects
and rotates the project's key. Every object of the bucket is kept in
`tests/unit/compatibility/`, with the first message of each type, the last mark, and the secrets,
which protect nothing else. From then on, tests open it with the code of every later release.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import aio_pika

from keyturn import topology
from keyturn.crypto import new_api_key, to_base64
from keyturn.publisher import Publisher
from keyturn.settings import PublisherSettings
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.servers import Servers
from tools.supply.lock import ROOT

if TYPE_CHECKING:
    from aio_pika.abc import AbstractIncomingMessage

_TEXTS: Final = {
    "before/the rotation.txt": "stored before the rotation",
    "größe": "stored under a name that is not ASCII",
    "empty": "",
}
_AFTER: Final = {"after": "stored after the rotation"}
_SEEDS: Final = ("master_key", "intake_seed", "event_seed", "publisher_seed", "gateway_seed")
_TIMEOUT_S: Final = 120.0


def main() -> None:
    """Write the file of this release."""
    release = version("keyturn-workers")
    name = f"made_by_{release.replace('.', '_')}.json"
    target = ROOT / "tests/unit/compatibility" / name
    with Servers("ceph") as servers:
        deployment = Deployment(servers.amqp_url, servers.s3, servers.new_bucket())
        os.environ.update(deployment.publisher_env())
        made = asyncio.run(_make(deployment))
    target.write_text(f"{json.dumps({'made_by': release, **made}, indent=1)}\n")
    print(f"{target}: {target.stat().st_size} bytes")


async def _make(deployment: Deployment) -> dict[str, Any]:
    """Use the deployment; return its secrets, all objects of its bucket, and its messages."""
    new_key = new_api_key()
    messages: dict[str, dict[str, Any]] = {}

    async def keep(message: AbstractIncomingMessage) -> None:
        name = str(message.routing_key)
        if name not in messages or name == topology.KEYRING_MARKED:
            headers = {key: str(value) for key, value in message.headers.items()}
            messages[name] = {"headers": headers, "body": message.body.decode()}

    async with (
        worker(deployment.worker_env(LEASE_S="1", KEYRING_CACHE_S="0.2")),
        await aio_pika.connect(deployment.amqp_url) as connection,
        Publisher.open(PublisherSettings.read()) as publisher,
    ):
        queue = await (await connection.channel()).declare_queue(exclusive=True)
        await queue.bind(topology.EXCHANGE, "#")
        await queue.consume(keep, no_ack=True)
        enrolled = await publisher.enroll("acme", api_key=deployment.api_key)
        await publisher.wait(enrolled, timeout_s=_TIMEOUT_S)
        await _upload(publisher, {**_TEXTS, "deleted": "deleted"})
        deleted = await publisher.delete("acme", "deleted")
        await publisher.wait(deleted, timeout_s=_TIMEOUT_S)
        rotation = await publisher.rotate("acme", api_key=new_key)
        await publisher.wait_completed(rotation, timeout_s=_TIMEOUT_S)
        await _upload(publisher, _AFTER)
    return {
        "secrets": {
            **{name: to_base64(getattr(deployment, name)) for name in _SEEDS},
            "old_api_key": deployment.api_key,
            "api_key": new_key,
        },
        "texts": _TEXTS | _AFTER,
        "objects": _objects(deployment),
        "messages": messages,
    }


async def _upload(publisher: Publisher, texts: dict[str, str]) -> None:
    for key, text in texts.items():
        upload = await publisher.upload(
            "acme", key, text.encode(), content_type="text/plain", metadata={"author": "Jürgen"}
        )
        await publisher.wait(upload, timeout_s=_TIMEOUT_S)


def _objects(deployment: Deployment) -> dict[str, dict[str, Any]]:
    client, found = stored_objects.s3_client(deployment), {}
    for s3_key in stored_objects.list_keys(deployment):
        answer = client.get_object(Bucket=deployment.bucket, Key=s3_key)
        body = base64.b64encode(answer["Body"].read()).decode()
        found[s3_key] = {
            "content_type": answer["ContentType"],
            "metadata": answer["Metadata"],
            "body": body,
        }
    return found


if __name__ == "__main__":
    main()
