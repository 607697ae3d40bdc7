"""Objects of sources on real servers: our bucket on Ceph, sources there and on moto (SPEC 17).

Moto honors the conditions of deletes and keeps versions. Ceph ignores the conditions.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.sources import DropBucket, sources_env
from tools.harness.worker_under_test import (
    OutgoingRequest,
    WorkerUnderTest,
    fresh_amqp_url,
    run_worker_for,
)
from tools.servers import new_bucket
from tools.servers.process import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn.messages import SourceObject
    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

DELETES = {"delete": True}
NAMES = ["versioned", "conditional", "ignoring", "unconditional", "near"]


@dataclass
class Setting:
    """A worker, and the drop buckets by their names."""

    served: WorkerUnderTest
    drops: dict[str, DropBucket]

    def sign(self, drop: DropBucket, named: Any, **more: Any) -> OutgoingRequest:
        return self.served.sign(drop.request(self.served.deployment, named, **more))

    def opened(self, key: str) -> bytes:
        return stored_objects.decrypt(self.served.deployment, "acme", key, "user")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def setting(broker: Servers, ceph: S3Server, moto: S3Server) -> AsyncIterator[Setting]:
    deployment = Deployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    drops = [
        DropBucket(moto, "versioned", versioned=True, fields=DELETES),
        DropBucket(moto, "conditional", fields=DELETES),
        DropBucket(ceph, "ignoring", fields=DELETES),
        DropBucket(ceph, "unconditional", fields={"delete": "unconditional"}),
        DropBucket(ceph, "near", versioned=True, fields=DELETES),
    ]
    async with run_worker_for(deployment, **sources_env(deployment, *drops)) as served:
        yield Setting(served, {drop.name: drop for drop in drops})


@pytest.mark.parametrize("size_bytes", [0, 5_000, 20_000_000])
@pytest.mark.parametrize("name", NAMES)
async def test_an_object_is_taken_in_and_deleted_from_its_source(
    setting: Setting, name: str, size_bytes: int
) -> None:
    """Deleted where exactly what was read can be deleted, or where the setting takes the risk."""
    drop, body, key = setting.drops[name], os.urandom(size_bytes), f"{name}/{size_bytes} ü+%.bin"
    named = drop.put(key, body, ContentType="text/csv", Metadata={"author": "kim"})
    event = await setting.served.publish_and_wait(drop.request(setting.served.deployment, named))
    assert (event["type"], event["size"]) == ("upload.stored", size_bytes), event
    assert setting.opened(key) == body
    head = stored_objects.read_object(setting.served.deployment, "acme", key)
    assert head.metadata["author"] == "kim"
    assert drop.read(key) == (body if name == "ignoring" else None)
    again = await setting.served.publish_and_wait(drop.request(setting.served.deployment, named))
    assert again["type"] == "upload.stored"


@pytest.mark.parametrize("name", NAMES)
async def test_an_object_that_was_written_over_is_not_stored(setting: Setting, name: str) -> None:
    drop, key = setting.drops[name], f"{name}/changed"
    first = drop.put(key, b"first")
    later = drop.put(key, b"later")
    sent = setting.sign(drop, first)
    if drop.versioned:  # the version that was named is still there, and the later one stays
        event = await setting.served.publish_and_wait(
            drop.request(setting.served.deployment, first)
        )
        assert event["type"] == "upload.stored"
        assert setting.opened(key) == b"first"
        await setting.served.assert_rejected(setting.sign(drop, later), "already_exists")
    else:
        await setting.served.assert_rejected(sent, "source_changed")
        assert not setting.served.object_exists(f"acme/{key}")
    assert drop.read(key) == b"later"


@pytest.mark.parametrize("name", NAMES)
async def test_an_object_that_is_gone_is_refused(setting: Setting, name: str) -> None:
    drop, key = setting.drops[name], f"{name}/gone"
    named = drop.put(key, b"gone")
    if named.version is None:
        drop.remove(key)
    else:
        drop.client.delete_object(Bucket=drop.bucket, Key=named.key, VersionId=named.version)
    await setting.served.assert_rejected(setting.sign(drop, named), "source_missing")
    assert not setting.served.object_exists(f"acme/{key}")


@pytest.mark.parametrize("name", ["versioned", "near"])
async def test_an_older_version_does_not_come_back(setting: Setting, name: str) -> None:
    drop, key = setting.drops[name], f"{name}/twice"
    drop.put(key, b"older")
    named = drop.put(key, b"newer")
    event = await setting.served.publish_and_wait(drop.request(setting.served.deployment, named))
    assert event["type"] == "upload.stored"
    assert drop.read(key) is None
    rows = drop.client.list_object_versions(Bucket=drop.bucket, Prefix=f"in/{key}")
    assert len(rows["Versions"]) == len(rows["DeleteMarkers"]) == 1


async def test_a_request_names_what_it_may(setting: Setting) -> None:
    drop = setting.drops["conditional"]
    named = drop.put("named", b"named")
    other = setting.sign(drop, named, key="other")
    await setting.served.assert_rejected(other, "not_permitted", "maps this object to another")
    unknown = named.model_copy(update={"name": "lake"})
    await setting.served.assert_rejected(setting.sign(drop, unknown), "not_permitted", "lake")
    own_id = setting.sign(drop, named, upload_id="2f6c9a0e-1111-4111-8111-111111111111")
    await setting.served.assert_rejected(own_id, "malformed_request", "upload_id")
    sealed = {"intake_key": "main", "ciphertext": ""}
    both = setting.sign(drop, drop.put("both", b"both"), sealed_key=sealed)
    await setting.served.assert_rejected(both, "malformed_request", "sealed_key")
    assert drop.read("named") == b"named"


async def test_an_object_that_keyturn_encrypted_is_not_taken_for_plaintext(
    setting: Setting,
) -> None:
    drop = setting.drops["conditional"]
    for number, metadata in enumerate([{"enc-algo": "Cobblestone-256"}, {"enc-dek-user": "AAAA"}]):
        named = drop.put(f"encrypted/{number}", b"ciphertext", Metadata=metadata)
        await setting.served.assert_rejected(
            setting.sign(drop, named), "malformed_request", "it is encrypted"
        )


async def test_a_source_that_is_keyturns_bucket_stops_the_start(
    broker: Servers, ceph: S3Server
) -> None:
    """By another address of the same server, which no comparison of settings finds."""
    deployment = Deployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    drop = DropBucket(ceph)
    drop.bucket = deployment.bucket
    drop.fields["endpoint_url"] = ceph.endpoint_url.replace("127.0.0.1", "localhost")
    with pytest.raises(ServerError) as ended:
        async with run_worker_for(deployment, **sources_env(deployment, drop)):
            pass
    assert "source drop is the bucket of KEYTURN_S3_BUCKET by another name" in str(ended.value)


@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "silent"])
async def test_a_source_that_is_away_stops_nothing_else(
    broker: Servers, ceph: S3Server, *, is_silent: bool
) -> None:
    """It refuses connections, or accepts them and says nothing."""
    deployment = Deployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    drop = DropBucket(ceph)
    named = drop.put("later", b"later")
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1] if is_silent else 9
    drop.fields["endpoint_url"] = f"http://127.0.0.1:{port}"
    with silent:
        await _stops_nothing_else(deployment, drop, named)


async def _stops_nothing_else(
    deployment: Deployment, drop: DropBucket, named: SourceObject
) -> None:
    async with run_worker_for(deployment, **sources_env(deployment, drop)) as served:
        assert any("source not reached" in line for line in served.process.lines)
        sent = served.sign(drop.request(deployment, named))
        await served.publish(sent)
        await served.process.logged("source_unavailable")
        await served.assert_serves_next()
        assert json.loads(sent.body)["upload_id"] not in json.dumps(served.wire.events)
