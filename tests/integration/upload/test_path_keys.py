"""Keys on a server that keeps objects as files in folders: SeaweedFS (SPEC 1, 7.2, 8.7, 12).

There, one name is an object or a folder, two keys may be one, and some names are not listed. A
request that the bucket cannot carry out is refused once, and changes no other key's object.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tools.harness import requests, stored_objects
from tools.harness.worker_under_test import run_worker, staging_s3_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.harness.worker_under_test import WorkerUnderTest
    from tools.servers import S3Server, Servers

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

PERMANENT = "malformed_request"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(broker: Servers, seaweedfs: S3Server) -> AsyncIterator[WorkerUnderTest]:
    """A worker of all roles on SeaweedFS. Its parts are small, so that a large body has two."""
    env = {"PART_SIZE_BYTES": str(5 * 2**20), "LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
    async with run_worker(broker, seaweedfs, **env) as running:
        yield running


async def uploaded(served: WorkerUnderTest, key: str, data: bytes = b"data") -> None:
    """Upload to a key, and check that it is stored."""
    sent = requests.upload(served.deployment, "acme", key, data)
    event = await served.publish_and_wait(sent.document)
    assert event["type"] == "upload.stored", event


async def refused(served: WorkerUnderTest, key: str, detail: str, *, size_bytes: int = 4) -> None:
    """An upload to a key is refused once, and its request and body are kept."""
    staged = size_bytes > 2**18
    sent = requests.upload(served.deployment, "acme", key, bytes(size_bytes), staged=staged)
    if staged:
        served.stage(sent.upload_id, sent.sealed_body)
    await served.assert_rejected(
        served.sign(sent.document), PERMANENT, detail, message_id=sent.upload_id
    )
    if staged:
        assert served.object_exists(staging_s3_key(sent.upload_id))


def opens_as(served: WorkerUnderTest, key: str, data: bytes = b"data") -> None:
    """The key's object opens with both keys."""
    for role in ("user", "admin"):
        assert stored_objects.decrypt(served.deployment, "acme", key, role) == data


@pytest.mark.parametrize("size_bytes", [4, 300_000, 6 * 2**20], ids=["put", "stream", "parts"])
async def test_a_key_that_is_a_folder(served: WorkerUnderTest, size_bytes: int) -> None:
    """The server says that it exists, and shows nothing: that is not put off forever."""
    name = f"folder-{size_bytes}"
    await uploaded(served, f"{name}/child")
    await refused(served, name, "begin with this key and a slash", size_bytes=size_bytes)
    opens_as(served, f"{name}/child")


async def test_a_key_below_an_object(served: WorkerUnderTest) -> None:
    """The other way round, both are stored."""
    await uploaded(served, "file", b"above")
    await uploaded(served, "file/child", b"below")
    opens_as(served, "file", b"above")
    opens_as(served, "file/child", b"below")


async def test_a_long_name(served: WorkerUnderTest) -> None:
    """A name between two slashes has at most 246 bytes there."""
    await uploaded(served, f"long/{'x' * 246}")
    await refused(served, f"long/{'x' * 247}", "246 bytes")
    document = requests.delete("acme", f"long/{'x' * 247}")
    await served.assert_rejected(served.sign(document), PERMANENT, "246 bytes")


async def test_a_backslash(served: WorkerUnderTest) -> None:
    """It is a slash there: neither an upload nor a delete may mean another key's object."""
    await uploaded(served, "back/slash")
    await refused(served, "back\\slash", "treats a backslash as a slash")
    await refused(served, "back\\free", "treats a backslash as a slash")
    document = requests.delete("acme", "back\\slash")
    await served.assert_rejected(served.sign(document), PERMANENT, "treats a backslash as a slash")
    opens_as(served, "back/slash")


@pytest.mark.parametrize("key", ["a.versions/b", ".uploads/b", "c/.uploads/d"])
async def test_a_name_that_is_not_listed(served: WorkerUnderTest, key: str) -> None:
    """An object there would be missed by every sweep, and proven away."""
    await refused(served, key, "reserves names")
    document = requests.delete("acme", key)
    await served.assert_rejected(served.sign(document), PERMANENT, "reserves names")


EMPTY: dict[str, dict[str, Any]] = {
    "of another program": {},
    "of another upload": {"enc-upload": requests.new_id()},
}


@pytest.mark.parametrize("left", EMPTY)
async def test_an_empty_object_of_a_put_that_was_cut(served: WorkerUnderTest, left: str) -> None:
    """What another program left there is an object: it is never replaced."""
    key = f"empty/{left}"
    served.put(f"acme/{key}", b"", EMPTY[left])
    sent = requests.upload(served.deployment, "acme", key, b"data")
    await served.assert_rejected(
        served.sign(sent.document), "already_exists", "another object", message_id=sent.upload_id
    )
    assert served.object_exists(f"acme/{key}")


async def test_its_own_empty_object(served: WorkerUnderTest) -> None:
    """An upload whose own put was cut is not reported as stored, and its body is kept."""
    sent = requests.upload(served.deployment, "acme", "empty/own", b"data")
    event = await served.publish_and_wait(sent.document)
    assert event["type"] == "upload.stored"
    head = stored_objects.s3_client(served.deployment).head_object(
        Bucket=served.deployment.bucket, Key="acme/empty/own"
    )
    served.put("acme/empty/own", b"", head["Metadata"])
    event = await served.publish_and_wait(sent.document)
    assert (event["type"], event["code"]) == ("upload.rejected", "corrupt_object")
    assert "is empty" in event["detail"]
    dead = await served.wire.take("keyturn.upload.dead")
    assert dead.body == served.sign(sent.document).body


async def test_a_delete_above_other_keys(served: WorkerUnderTest) -> None:
    """There, a ranged read of a tombstone with keys below it is 404; it is not gone."""
    await served.enroll("above")
    for key in ("d", "d/child", "d-1"):
        sent = requests.upload(served.deployment, "above", key, b"data")
        assert (await served.publish_and_wait(sent.document))["type"] == "upload.stored"
    event = await served.publish_and_wait(requests.delete("above", "d"))
    assert event["type"] == "object.deleted", event
    document = requests.sweep("above")
    sent_sweep = served.sign(document)
    await served.publish(sent_sweep, message_id=sent_sweep.request_id)
    end = await served.wire.event(
        lambda event: (
            event.get("sweep_id") == document["sweep_id"] and event["type"] == "sweep.completed"
        )
    )
    counted = {name: end[name] for name in ("objects", "current", "deleted", "failed", "clean")}
    assert counted == {"objects": 3, "current": 2, "deleted": 1, "failed": 0, "clean": True}
