"""Encryption switched off: plaintext if the keyring allows it, else encrypted (SPEC 7.4)."""

from __future__ import annotations

import os

import pytest

from tools.harness import requests, stored_objects
from tools.harness.worker_under_test import WorkerUnderTest, staging_s3_key

WORKER_ENV = {"ENCRYPTION_ENABLED": "false"}
pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

BODIES = pytest.mark.parametrize(
    ("size_bytes", "staged"),
    [(0, False), (5, False), (0, True), (3_000_000, True)],
    ids=["inline-empty", "inline", "staged-empty", "staged"],
)


@BODIES
async def test_plaintext_is_stored_where_the_keyring_allows_it(
    served: WorkerUnderTest, size_bytes: int, *, staged: bool
) -> None:
    """The unchanged body, with the upload id as the only `enc-` field; stored once."""
    project = f"plain-{requests.new_id()[:8]}"
    await served.enroll(project, plaintext="allowed")
    data = os.urandom(size_bytes)
    sent = requests.upload(served.deployment, project, "k", data, staged=staged)
    sent.document |= {"content_type": "text/plain", "metadata": {"author": "kim"}}
    if staged:
        served.stage(sent.upload_id, sent.sealed_body)
    event = await served.publish_and_wait(sent.document)
    assert (event["type"], event["size"], event["generation"]) == ("upload.stored", size_bytes, 1)
    shown = stored_objects.read_object(served.deployment, project, "k")
    assert shown == stored_objects.StoredObject(
        data, {"author": "kim", "enc-upload": sent.upload_id}, "text/plain"
    )
    assert not served.object_exists(staging_s3_key(sent.upload_id))
    again = await served.publish_and_wait(sent.document)
    assert again | {"at": ""} == event | {"at": ""}


@BODIES
async def test_a_project_that_forbids_plaintext_is_encrypted(
    served: WorkerUnderTest, size_bytes: int, *, staged: bool
) -> None:
    """Even with encryption switched off."""
    data = os.urandom(size_bytes)
    key = f"sealed/{requests.new_id()}"
    sent = requests.upload(served.deployment, "acme", key, data, staged=staged)
    if staged:
        served.stage(sent.upload_id, sent.sealed_body)
    assert (await served.publish_and_wait(sent.document))["type"] == "upload.stored"
    assert (
        stored_objects.read_object(served.deployment, "acme", key).metadata["enc-algo"]
        == "Cobblestone-256"
    )
    for role in ("user", "admin"):
        assert stored_objects.decrypt(served.deployment, "acme", key, role) == data


async def test_a_damaged_body_is_not_stored_as_plaintext(served: WorkerUnderTest) -> None:
    """A body that does not open is not stored as plaintext either."""
    await served.enroll("plain", plaintext="allowed")
    sent = requests.upload(served.deployment, "plain", "k", os.urandom(2_000_000), staged=True)
    served.stage(sent.upload_id, sent.sealed_body[:-1] + bytes([sent.sealed_body[-1] ^ 1]))
    await served.assert_rejected(served.sign(sent.document), "bad_seal")
    assert stored_objects.list_keys(served.deployment, "plain/") == []
