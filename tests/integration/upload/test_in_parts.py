"""Large bodies where the server's completion honors conditions: multipart (SPEC 7.2).

On moto, which does; Ceph's gateway does not, and gets one streamed put instead. Nothing
here depends on a race.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tools.harness import requests, stored_objects
from tools.harness.worker_under_test import WorkerUnderTest, run_worker, staging_s3_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import S3Server, Servers

PART_BYTES = 5 * 2**20
pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(broker: Servers, moto: S3Server) -> AsyncIterator[WorkerUnderTest]:
    """A worker of all roles on moto, with the smallest parts."""
    async with run_worker(broker, moto, PART_SIZE_BYTES=str(PART_BYTES)) as running:
        yield running


async def staged(
    served: WorkerUnderTest, data: bytes, damage: int = 0
) -> tuple[str, dict[str, object]]:
    """Send a staged upload whose last byte is changed by `damage`; its key and its event."""
    key = f"parts/{requests.new_id()}"
    sent = requests.upload(served.deployment, "acme", key, data, staged=True)
    body = sent.sealed_body[:-1] + bytes([sent.sealed_body[-1] ^ damage])
    served.stage(sent.upload_id, body)
    event = await served.publish_and_wait(sent.document)
    assert served.object_exists(staging_s3_key(sent.upload_id)) == (
        event["type"] == "upload.rejected"
    )
    return key, event


async def test_a_large_body_is_stored_in_parts(served: WorkerUnderTest) -> None:
    """Three parts, one object, no upload left open."""
    data = os.urandom(2 * PART_BYTES + 1000)
    key, event = await staged(served, data)
    assert (event["type"], event["size"]) == ("upload.stored", len(data))
    head = stored_objects.s3_client(served.deployment).head_object(
        Bucket=served.deployment.bucket, Key=f"acme/{key}"
    )
    assert head["ETag"].strip('"').endswith("-3")
    for role in ("user", "admin"):
        assert stored_objects.decrypt(served.deployment, "acme", key, role) == data
    assert stored_objects.list_multipart_uploads(served.deployment) == []


async def test_a_damaged_last_chunk_leaves_no_object_and_no_parts(served: WorkerUnderTest) -> None:
    """All parts but the last were put: none of them becomes an object, and none stays."""
    key, event = await staged(served, os.urandom(2 * PART_BYTES + 1000), damage=1)
    assert (event["type"], event["code"]) == ("upload.rejected", "bad_seal")
    dead = await served.wire.take("keyturn.upload.dead")
    assert dead.headers["keyturn-code"] == "bad_seal"
    assert not served.object_exists(f"acme/{key}")
    assert stored_objects.list_multipart_uploads(served.deployment) == []
    await served.assert_serves_next()


async def test_a_key_taken_before_the_completion_is_refused(served: WorkerUnderTest) -> None:
    """Another upload's object is there: refused, and the parts are gone."""
    first = os.urandom(PART_BYTES + 1000)
    key, _ = await staged(served, first)
    rival = requests.upload(served.deployment, "acme", key, first, staged=True)
    served.stage(rival.upload_id, rival.sealed_body)
    await served.assert_rejected(served.sign(rival.document), "already_exists")
    assert stored_objects.decrypt(served.deployment, "acme", key, "user") == first
    assert stored_objects.list_multipart_uploads(served.deployment) == []
