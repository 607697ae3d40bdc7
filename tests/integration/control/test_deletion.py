"""Deletes: a tombstone that stays, published once nothing can undo it (SPEC 8.7)."""

from __future__ import annotations

import asyncio
import hashlib
import json
from datetime import timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import admin_kek, seal_tombstone, to_base64
from keyturn.identifiers import parse_time
from keyturn.topology import BODY_DROPPED_HEADER
from tools.harness import requests
from tools.harness.bucket import Bucket

if TYPE_CHECKING:
    from tools.harness.worker_under_test import WorkerUnderTest

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

LEASE_S = 2
WORKER_ENV = {"LEASE_S": str(LEASE_S), "KEYRING_CACHE_S": "0.5"}
TWO_LEASES = timedelta(seconds=2 * LEASE_S)


@pytest.fixture
def bucket(served: WorkerUnderTest) -> Bucket:
    """The deployment's bucket, by boto3."""
    return Bucket(served.deployment)


def written_at(bucket: Bucket, key: str) -> Any:
    return bucket.head(f"acme/{key}")["LastModified"]


def is_deleted(served: WorkerUnderTest, bucket: Bucket, key: str) -> None:
    """A tombstone has the time of the delete alone: no body, wrap or caller's metadata."""
    deleted_at = bucket.deleted_at(f"acme/{key}", served.deployment.master_key)
    assert abs(parse_time(deleted_at) - written_at(bucket, key)) < timedelta(seconds=30)


async def deleted(served: WorkerUnderTest, key: str) -> dict[str, Any]:
    """Request a delete, and wait until it is published."""
    return await _end(served, requests.delete("acme", key))


async def _end(served: WorkerUnderTest, document: dict[str, Any]) -> dict[str, Any]:
    known = len(served.wire.events)
    sent = served.sign(document)
    await served.publish(sent, message_id=sent.request_id)
    return await served.wire.event(
        lambda event: sent.request_id in event.values() and event not in served.wire.events[:known]
    )


async def _tombstone_stands(bucket: Bucket, key: str) -> None:
    async with asyncio.timeout(30):
        while True:
            metadata = bucket.head(f"acme/{key}")["Metadata"]
            if metadata["enc-algo"] == "deleted":
                return
            await asyncio.sleep(0.05)  # a bucket sends no events


async def test_a_delete_is_published_after_two_leases(
    served: WorkerUnderTest, bucket: Bucket
) -> None:
    """An object, a key that held nothing, one of another program's plaintext, a forged tombstone.

    By the storage's own clock, no sooner than two leases after the tombstone was put.
    """
    bucket.put_made("acme", bucket.made("acme", "object"))
    bucket.put("acme/plain", b"somebody's", {"author": "kim"})
    kek = admin_kek(served.deployment.master_key, "acme")
    elsewhere = to_base64(seal_tombstone(kek, "acme", "another key", requests.now()))
    bucket.put("acme/forged", b"", {"enc-algo": "deleted", "enc-dek-admin": elsewhere})
    keys = ["object", "nothing", "plain", "forged", "reports/ü q3.pdf"]
    events = await asyncio.gather(*(deleted(served, key) for key in keys))
    for key, event in zip(keys, events, strict=True):
        assert (event["type"], event["project"], event["key"]) == ("object.deleted", "acme", key)
        is_deleted(served, bucket, key)
        answer = bucket.client.head_object(Bucket=served.deployment.bucket, Key=f"acme/{key}")
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        assert now - answer["LastModified"] > TWO_LEASES
        assert parse_time(event["at"]) - answer["LastModified"] > TWO_LEASES
    assert await served.wire.depth("keyturn.control.dead") == 0


async def test_a_thousand_keys_are_deleted_by_one_request(
    served: WorkerUnderTest, bucket: Bucket
) -> None:
    """Each has its event, no sooner than two leases after its own tombstone was put."""
    keys = [f"many/{number}" for number in range(1000)]
    for key in keys[:20]:
        bucket.put_made("acme", bucket.made("acme", key))
    document = requests.delete("acme", "", keys=keys)
    del document["key"]
    known = len(served.wire.events)
    sent = served.sign(document)
    await served.publish(sent, message_id=sent.request_id)
    async with asyncio.timeout(60):
        while len(events := served.wire.events[known:]) < len(keys):
            await served.wire.more(len(served.wire.events))
    assert sorted(event["key"] for event in events) == sorted(keys)
    assert {(event["type"], event["request_id"]) for event in events} == {
        ("object.deleted", sent.request_id)
    }
    published_at = min(parse_time(event["at"]) for event in events)
    for key in (*keys[:20], keys[-1]):
        is_deleted(served, bucket, key)
        assert published_at - written_at(bucket, key) > TWO_LEASES
    assert await served.wire.depth("keyturn.control.dead") == 0


async def test_a_repeated_delete_is_published_at_once(
    served: WorkerUnderTest, bucket: Bucket
) -> None:
    """The same request and another one, from the existing tombstone."""
    bucket.put_made("acme", bucket.made("acme", "again"))
    document = requests.delete("acme", "again")
    first = await _end(served, document)
    before = bucket.head("acme/again")
    second = await _end(served, document)
    assert second | {"at": ""} == first | {"at": ""}
    other = await deleted(served, "again")
    assert other["type"] == "object.deleted"
    assert bucket.head("acme/again") == before


async def test_an_object_brought_back_by_a_copy_is_deleted_again(
    served: WorkerUnderTest, bucket: Bucket
) -> None:
    """A copy under way brings the object back: it is deleted again before the event."""
    made = bucket.made("acme", "undead", b"back again")
    bucket.put_made("acme", made)
    end = asyncio.create_task(deleted(served, "undead"))
    await _tombstone_stands(bucket, "undead")
    bucket.put_made("acme", made)
    back_at = written_at(bucket, "undead")
    event = await end
    is_deleted(served, bucket, "undead")
    assert written_at(bucket, "undead") >= back_at
    assert parse_time(event["at"]) - written_at(bucket, "undead") > TWO_LEASES


async def test_a_deleted_key_takes_no_upload(served: WorkerUnderTest, bucket: Bucket) -> None:
    """An upload to a deleted key is refused, however late; its staged body is deleted."""
    document = requests.upload(served.deployment, "acme", "gone", b"once").document
    assert (await served.publish_and_wait(document))["type"] == "upload.stored"
    assert (await deleted(served, "gone"))["type"] == "object.deleted"
    for late in (document, requests.upload(served.deployment, "acme", "gone", b"x").document):
        event = await served.publish_and_wait(late)
        assert (event["type"], event["code"]) == ("upload.rejected", "deleted_key")
        dead = await served.wire.take("keyturn.upload.dead")
        digest = hashlib.sha256(requests.encode(late)).hexdigest()
        assert dead.headers[BODY_DROPPED_HEADER] == digest
        kept = json.loads(dead.body)
        assert (kept["upload_id"], kept["key"]) == (late["upload_id"], "gone")
        assert kept["body"]["sha256"] == digest
    is_deleted(served, bucket, "gone")


BAD_KEYS = ["", "a/", "a/../b", "a\n"]


@pytest.mark.parametrize("key", BAD_KEYS)
async def test_only_keys_of_objects_can_be_deleted(
    served: WorkerUnderTest, bucket: Bucket, key: str
) -> None:
    """Neither records nor folders can be deleted."""
    before = bucket.keys("")
    sent = served.sign(requests.delete("acme", key))
    dead = await served.assert_rejected(sent, "malformed_request", "key: ")
    assert dead.body == sent.body
    assert [at for at in bucket.keys("") if not at.startswith("acme/good/")] == [
        at for at in before if not at.startswith("acme/good/")
    ]


async def test_a_delete_signed_by_a_stranger_changes_nothing(
    served: WorkerUnderTest, bucket: Bucket
) -> None:
    bucket.put_made("acme", bucket.made("acme", "kept"))
    before = bucket.head("acme/kept")
    signed = served.sign(requests.delete("acme", "kept"))
    signed.headers["keyturn-publisher"] = "nobody"
    told_to_nobody = type(signed)(signed.routing_key, signed.body, signed.headers)
    await served.assert_rejected(told_to_nobody, "bad_signature")
    assert bucket.head("acme/kept") == before
