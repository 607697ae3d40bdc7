"""Redelivered uploads, and objects that changed in between (SPEC 7.1, 7.2).

An upload is stored once, however often its message comes. The object at its key is reported as
stored only if its wraps verify: its id in the metadata proves nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import Secret, kek_id, user_kek
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.keyring import Generation
from tools.harness import requests, stored_objects
from tools.harness.local_keys import build_keyring, parse_keyring
from tools.harness.worker_under_test import WorkerUnderTest, staging_s3_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.core.keyring import Keyring
    from tools.harness.requests import Upload

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

Metadata = dict[str, str]
BOTH = pytest.mark.parametrize("staged", [False, True], ids=["inline", "staged"])


def upload(served: WorkerUnderTest, data: bytes, *, staged: bool, project: str = "acme") -> Upload:
    key = f"again/{requests.new_id()}"
    sent = requests.upload(served.deployment, project, key, data, staged=staged)
    if staged:
        served.stage(sent.upload_id, sent.sealed_body)
    return sent


def state(served: WorkerUnderTest, key: str, project: str = "acme") -> tuple[object, ...]:
    """Everything that would show a second put, or a rewrap."""
    head = stored_objects.s3_client(served.deployment).head_object(
        Bucket=served.deployment.bucket, Key=f"{project}/{key}"
    )
    return head["ETag"], head["LastModified"], head["Metadata"], head["ContentLength"]


@BOTH
async def test_an_upload_that_is_published_twice_is_stored_once(
    served: WorkerUnderTest, *, staged: bool
) -> None:
    """The second delivery has the same event; nothing is written again."""
    sent = upload(served, b"once", staged=staged)
    first = await served.publish_and_wait(sent.document)
    before = state(served, sent.document["key"])
    assert not served.object_exists(staging_s3_key(sent.upload_id))
    second = await served.publish_and_wait(sent.document)
    assert second | {"at": ""} == first | {"at": ""}
    assert state(served, sent.document["key"]) == before
    assert await served.wire.depth("keyturn.upload.dead") == 0


@BOTH
async def test_concurrent_deliveries_end_in_one_event(
    served: WorkerUnderTest, *, staged: bool
) -> None:
    """Deliveries that race each other all end in the same event; one of them stored it."""
    data = os.urandom(1_000_000 if staged else 1000)
    sent = upload(served, data, staged=staged)
    known = len(served.wire.events)
    message = served.sign(sent.document)
    await asyncio.gather(*(served.publish(message) for _ in range(8)))
    await served.wire.event(lambda _event: len(served.wire.events) >= known + 8)
    events = served.wire.events[known:]
    assert [event | {"at": ""} for event in events] == [events[0] | {"at": ""}] * 8
    assert events[0]["type"] == "upload.stored"
    assert stored_objects.decrypt(served.deployment, "acme", sent.document["key"], "user") == data
    assert await served.wire.depth("keyturn.upload.dead") == 0


@BOTH
async def test_of_two_uploads_of_a_key_one_is_stored(
    served: WorkerUnderTest, *, staged: bool
) -> None:
    """The other is refused, since the key is taken."""
    key = f"race/{requests.new_id()}"
    rivals = [
        requests.upload(served.deployment, "acme", key, name, staged=staged)
        for name in (b"one", b"two")
    ]
    for rival in rivals:
        if staged:
            served.stage(rival.upload_id, rival.sealed_body)
        await served.publish(served.sign(rival.document), message_id=rival.upload_id)
    events = [await served.wire.outcome(rival.upload_id) for rival in rivals]
    assert sorted(event["type"] for event in events) == ["upload.rejected", "upload.stored"]
    winner = (b"one", b"two")[events[1]["type"] == "upload.stored"]
    assert stored_objects.decrypt(served.deployment, "acme", key, "admin") == winner
    dead = await served.wire.take("keyturn.upload.dead")
    assert dead.headers["keyturn-code"] == "already_exists"


def change_metadata(
    served: WorkerUnderTest, key: str, change: Callable[[Metadata], Metadata]
) -> None:
    """Copy the object onto itself with other metadata, as a bucket writer can."""
    client = stored_objects.s3_client(served.deployment)
    bucket, s3_key = served.deployment.bucket, f"acme/{key}"
    metadata = change(client.head_object(Bucket=bucket, Key=s3_key)["Metadata"])
    client.copy_object(
        Bucket=bucket,
        Key=s3_key,
        CopySource={"Bucket": bucket, "Key": s3_key},
        Metadata=metadata,
        MetadataDirective="REPLACE",
    )


def flipped(metadata: Metadata, name: str) -> Metadata:
    value = metadata[name]
    other = "B" if value[40] == "A" else "A"
    return metadata | {name: value[:40] + other + value[41:]}


def without(metadata: Metadata, *names: str) -> Metadata:
    return {name: value for name, value in metadata.items() if name not in names}


# What a bucket writer did to the metadata of an upload's own object.
CHANGED: dict[str, Callable[[Metadata], Metadata]] = {
    "user wrap flipped": lambda m: flipped(m, "enc-dek-user"),
    "admin wrap flipped": lambda m: flipped(m, "enc-dek-admin"),
    "wraps swapped": lambda m: (
        m | {"enc-dek-user": m["enc-dek-admin"], "enc-dek-admin": m["enc-dek-user"]}
    ),
    "user wrap gone": lambda m: without(m, "enc-dek-user"),
    "admin wrap gone": lambda m: without(m, "enc-dek-admin"),
    "label gone": lambda m: without(m, "enc-kek-user"),
    "algorithm gone": lambda m: without(m, "enc-algo"),
    "algorithm unknown": lambda m: m | {"enc-algo": "ROT13"},
    "all but the id gone": lambda m: {"enc-upload": m["enc-upload"]},
}


@pytest.mark.parametrize("name", CHANGED)
async def test_an_own_object_that_does_not_verify_is_corrupt(
    served: WorkerUnderTest, name: str
) -> None:
    """It carries the upload's id and does not verify: corrupt, and the staged body stays."""
    sent = upload(served, b"mine", staged=True)
    await served.publish_and_wait(sent.document)
    served.stage(sent.upload_id, sent.sealed_body)
    key = sent.document["key"]
    change_metadata(served, key, CHANGED[name])
    before = state(served, key)
    message = served.sign(sent.document)
    await served.publish(message)
    dead = await served.wire.take("keyturn.upload.dead")
    assert dead.headers["keyturn-code"] == "corrupt_object"
    event = await served.wire.event(
        lambda event: (
            event["type"] == "upload.rejected" and event.get("upload_id") == sent.upload_id
        )
    )
    assert event["code"] == "corrupt_object"
    assert served.object_exists(staging_s3_key(sent.upload_id))
    assert state(served, key) == before
    await served.assert_serves_next()


# Labels are hints: a wrong one is rewritten, and never believed (SPEC 8.2).
RELABELED: dict[str, Metadata] = {
    "another generation": {"enc-kek-user": "2:0000000000000000"},
    "another KEK": {"enc-kek-user": "1:0000000000000000"},
    "another master key": {"enc-kek-admin": "m9"},
}


@pytest.mark.parametrize("name", RELABELED)
async def test_an_own_object_with_wrong_labels_is_stored_with_right_ones(
    served: WorkerUnderTest, name: str
) -> None:
    """Both wraps still open: published as stored, and the labels are corrected."""
    sent = upload(served, b"mine", staged=False)
    first = await served.publish_and_wait(sent.document)
    key = sent.document["key"]
    before = stored_objects.read_object(served.deployment, "acme", key)
    change_metadata(served, key, lambda m: m | RELABELED[name])
    second = await served.publish_and_wait(sent.document)
    assert second | {"at": ""} == first | {"at": ""}
    after = stored_objects.read_object(served.deployment, "acme", key)
    assert after.body == before.body
    for label in ("enc-kek-user", "enc-kek-admin"):
        assert after.metadata[label] == before.metadata[label]


async def test_wraps_of_another_object_are_corrupt(served: WorkerUnderTest) -> None:
    """Authentic wraps, of this project even, but of another key."""
    mine, other = (upload(served, b"x", staged=True) for _ in range(2))
    for sent in (mine, other):
        await served.publish_and_wait(sent.document)
    served.stage(mine.upload_id, mine.sealed_body)
    moved = stored_objects.read_object(served.deployment, "acme", other.document["key"]).metadata
    change_metadata(served, mine.document["key"], lambda m: moved | {"enc-upload": m["enc-upload"]})
    await served.publish(served.sign(mine.document))
    dead = await served.wire.take("keyturn.upload.dead")
    assert dead.headers["keyturn-code"] == "corrupt_object"
    assert served.object_exists(staging_s3_key(mine.upload_id))


@BOTH
async def test_another_body_under_own_metadata_is_corrupt(
    served: WorkerUnderTest, *, staged: bool
) -> None:
    """The header commits to no DEK in the wraps: it is not published as stored."""
    sent = upload(served, b"mine", staged=staged)
    await served.publish_and_wait(sent.document)
    stored = stored_objects.read_object(served.deployment, "acme", sent.document["key"])
    other = bytes([stored.body[40] ^ 1])
    body = stored.body[:40] + other + stored.body[41:]
    served.put(f"acme/{sent.document['key']}", body, stored.metadata)
    await served.publish(served.sign(sent.document))
    dead = await served.wire.take("keyturn.upload.dead")
    assert dead.headers["keyturn-code"] == "corrupt_object"


async def test_an_object_without_the_uploads_id_is_another_object(served: WorkerUnderTest) -> None:
    """Without the id it counts as another upload's."""
    sent = upload(served, b"mine", staged=False)
    await served.publish_and_wait(sent.document)
    change_metadata(served, sent.document["key"], lambda m: without(m, "enc-upload"))
    await served.publish(served.sign(sent.document))
    dead = await served.wire.take("keyturn.upload.dead")
    assert dead.headers["keyturn-code"] == "already_exists"


async def test_a_deleted_object_does_not_come_back(served: WorkerUnderTest) -> None:
    """A tombstone took its place."""
    sent = upload(served, b"mine", staged=True)
    await served.publish_and_wait(sent.document)
    served.stage(sent.upload_id, sent.sealed_body)
    key = sent.document["key"]
    served.put(f"acme/{key}", b"", {"enc-algo": "deleted", "enc-dek-admin": "AAAA"})
    await served.publish(served.sign(sent.document))
    dead = await served.wire.take("keyturn.upload.dead")
    assert dead.headers["keyturn-code"] == "deleted_key"
    assert stored_objects.read_object(served.deployment, "acme", key).body == b""


def read_keyring(served: WorkerUnderTest, project: str) -> Keyring:
    client, bucket = stored_objects.s3_client(served.deployment), served.deployment.bucket
    answer = client.get_object(Bucket=bucket, Key=keyring_s3_key(project))
    return parse_keyring(answer["Body"].read(), project, master_keys(served))


def put_keyring(served: WorkerUnderTest, ring: Keyring) -> None:
    served.put(keyring_s3_key(ring.project), build_keyring(ring, master_keys(served)))


def master_keys(served: WorkerUnderTest) -> dict[str, Secret]:
    return {"m1": Secret(served.deployment.master_key)}


def turn(served: WorkerUnderTest, project: str) -> str:
    """Rotate the project's keyring as a worker does; returns the new API key."""
    ring = read_keyring(served, project)
    api_key = f"{served.deployment.api_key}~{ring.current.generation}"
    kek, now = user_kek(api_key, project), requests.now()
    number = ring.current.generation + 1
    current = Generation(number, kek_id(kek), kek, requests.new_id(), now, now)
    history = (*ring.history, ring.current)
    put_keyring(served, replace(ring, serial=ring.serial + 1, current=current, history=history))
    return api_key


@BOTH
async def test_a_second_delivery_after_a_rotation_rewraps_the_object(
    served: WorkerUnderTest, *, staged: bool
) -> None:
    """The body is unchanged."""
    project = f"turned-{requests.new_id()[:8]}"
    await served.enroll(project)
    sent = upload(served, b"mine", staged=staged, project=project)
    key = sent.document["key"]
    assert (await served.publish_and_wait(sent.document))["generation"] == 1
    body = stored_objects.read_object(served.deployment, project, key).body
    api_key = turn(served, project)
    second = await served.publish_and_wait(sent.document)
    assert (second["type"], second["generation"]) == ("upload.stored", 2)
    stored = stored_objects.read_object(served.deployment, project, key)
    assert stored.metadata["enc-kek-user"].startswith("2:")
    assert stored.metadata["enc-upload"] == sent.upload_id
    assert stored.body == body
    opened = stored_objects.decrypt(served.deployment, project, key, "user", api_key=api_key)
    assert opened == stored_objects.decrypt(served.deployment, project, key, "admin") == b"mine"


async def test_an_object_above_its_keyring_stops_its_upload(served: WorkerUnderTest) -> None:
    """Its upload waits until an operator inspects the keyring (SPEC 5.4).

    No mark contradicts this keyring: it was restored, and newer objects were not.
    """
    project = "rolled"
    await served.enroll(project)
    earlier = read_keyring(served, project)
    turn(served, project)
    sent = upload(served, b"mine", staged=True, project=project)
    await served.publish_and_wait(sent.document)
    # The first delivery may have used the keyring of the enrollment, which is 2 seconds old.
    assert (await served.publish_and_wait(sent.document))["generation"] == 2
    put_keyring(served, replace(earlier, serial=earlier.serial + 2))
    served.stage(sent.upload_id, sent.sealed_body)
    await served.publish(served.sign(sent.document), message_id=sent.upload_id)
    waiting = await served.wire.take("keyturn.upload.retry.5s")
    assert waiting.headers["keyturn-attempt"] == "keyring_rolled_back:2"
    assert served.object_exists(staging_s3_key(sent.upload_id))


async def test_logs_contain_no_secret(served: WorkerUnderTest) -> None:
    """The worker's log of all the above contains ids and codes, and no key."""
    sent = upload(served, b"a plaintext of its own", staged=False)
    await served.publish_and_wait(sent.document)
    await served.process.logged(f'"upload_id":"{sent.upload_id}"')
    log = "\n".join(served.process.lines)
    assert all(isinstance(json.loads(line), dict) for line in served.process.lines)
    secrets = [
        served.deployment.api_key,
        "a plaintext of its own",
        sent.document["body"]["inline"],
        sent.document["sealed_key"]["ciphertext"],
        *served.deployment.worker_env().values(),
    ]
    public = {"json", "test", "m1", "us-east-1", served.deployment.bucket}
    assert [text for text in secrets if text not in public and text in log] == []
