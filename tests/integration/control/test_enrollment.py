"""Enrollments: repeated, refused or waiting, on real servers (SPEC 5.4, 6.5)."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import Secret, admin_kek, kek_id, kek_info, to_base64, user_kek
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.keyring import Generation, Keyring
from tools.harness import requests, stored_objects
from tools.harness.bucket import Bucket
from tools.harness.local_keys import build_keyring
from tools.harness.worker_under_test import OutgoingRequest, WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

WORKER_ENV = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}

Document = dict[str, Any]
MALFORMED = "malformed_request"


def new_project() -> str:
    return f"p-{requests.new_id()[:8]}"


def keyring(served: WorkerUnderTest, project: str) -> tuple[str, str, bytes]:
    """The record's ETag, time of its last write, and bytes."""
    answer = stored_objects.s3_client(served.deployment).get_object(
        Bucket=served.deployment.bucket, Key=keyring_s3_key(project)
    )
    return answer["ETag"], str(answer["LastModified"]), answer["Body"].read()


async def refused(served: WorkerUnderTest, document: Document, code: str, detail: str = "") -> None:
    """Refused, and there is no keyring afterwards."""
    await served.assert_rejected(served.sign(document), code, detail)
    assert not served.object_exists(keyring_s3_key(document["project"]))


async def test_an_enrollment_creates_a_keyring_that_shows_no_key(served: WorkerUnderTest) -> None:
    """A keyring that shows no key, and an upload under it."""
    project = new_project()
    event = await served.enroll(project)
    assert event["generation"] == 1
    kek = user_kek(served.deployment.api_key, project).reveal()
    _, _, record = keyring(served, project)
    assert to_base64(kek).encode() not in record
    await served.assert_serves_next(project)


async def test_a_repeated_enrollment_writes_nothing(served: WorkerUnderTest) -> None:
    """Its event repeats the generation."""
    document = requests.enroll(served.deployment, new_project())
    first = await served.publish_and_wait(document)
    before = keyring(served, document["project"])
    second = await served.publish_and_wait(document)
    assert second | {"at": ""} == first | {"at": ""}
    assert second["generation"] == 1
    assert keyring(served, document["project"]) == before


async def test_a_repeated_enrollment_after_a_rotation_reports_its_own_generation(
    served: WorkerUnderTest,
) -> None:
    """Not the current generation."""
    project, now = new_project(), requests.now()
    document = requests.enroll(served.deployment, project)
    entries = []
    for number in (1, 2):
        kek = user_kek(f"{served.deployment.api_key}{'' if number == 1 else number}", project)
        request_id = document["request_id"] if number == 1 else requests.new_id()
        entries.append(Generation(number, kek_id(kek), kek, request_id, now, now))
    ring = Keyring(
        project, "m1", entries[1], RequestOrigin("api", "0" * 64), lease_s=15, history=(entries[0],)
    )
    served.put(
        keyring_s3_key(project), build_keyring(ring, {"m1": Secret(served.deployment.master_key)})
    )
    event = await served.publish_and_wait(document)
    assert (event["type"], event["generation"]) == ("project.enrolled", 1)


@pytest.mark.parametrize("adopt", [False, True])
async def test_a_second_enrollment_is_refused(served: WorkerUnderTest, *, adopt: bool) -> None:
    """A second enrollment changes nothing, with the same key or another."""
    project = new_project()
    await served.enroll(project)
    before = keyring(served, project)
    other = requests.enroll(served.deployment, project, adopt=adopt, plaintext="allowed")
    await served.assert_rejected(served.sign(other), "already_enrolled", project)
    assert keyring(served, project) == before


async def test_of_concurrent_enrollments_one_creates_the_keyring(served: WorkerUnderTest) -> None:
    """The others are refused."""
    project = new_project()
    rivals = [requests.enroll(served.deployment, project) for _ in range(8)]
    await asyncio.gather(*(served.publish(served.sign(rival)) for rival in rivals))
    events = [await served.wire.outcome(rival["request_id"]) for rival in rivals]
    assert sorted(event["type"] for event in events) == [
        *["enroll.rejected"] * 7,
        "project.enrolled",
    ]
    for _ in range(7):
        dead = await served.wire.take("keyturn.control.dead")
        assert dead.headers["keyturn-code"] == "already_enrolled"
    await served.assert_serves_next(project)


async def test_objects_without_a_keyring_refuse_an_enrollment(served: WorkerUnderTest) -> None:
    """The objects may be wrapped under a key that a new keyring would orphan."""
    project = new_project()
    served.put(f"{project}/old", b"older than Keyturn")
    document = requests.enroll(served.deployment, project)
    await refused(served, document, "already_enrolled", "without a keyring")


async def test_an_adopting_enrollment_takes_over_objects(served: WorkerUnderTest) -> None:
    """If requested explicitly, it enrolls above every generation whose wrap opens, and sweeps.

    Generations that only a label claims raise nothing.
    """
    project, bucket = new_project(), Bucket(served.deployment)
    for generation in (2, 5):
        made = bucket.made(project, f"k{generation}", generation=generation)
        bucket.put_made(project, made)
    lying = bucket.made(project, "lying", generation=3)
    lying.metadata["enc-kek-user"] = lying.metadata["enc-kek-user"].replace("3:", "900:")
    bucket.put_made(project, lying)
    document = requests.enroll(served.deployment, project, adopt=True)
    event = await served.publish_and_wait(document)
    assert (event["type"], event["generation"]) == ("project.enrolled", 6)
    swept = await served.wire.event(
        lambda event: (
            event["type"] == "sweep.completed" and event["sweep_id"] == document["request_id"]
        )
    )
    # The object with the lying label opens at no generation that can be known.
    assert [swept[name] for name in ("objects", "current", "failed", "clean")] == [3, 2, 1, False]
    kek = admin_kek(served.deployment.master_key, project)
    for key in ("k2", "k5"):
        assert bucket.opened(f"{project}/{key}", kek, "admin", 6) == b"hello"


async def test_objects_of_a_similar_project_do_not_matter(served: WorkerUnderTest) -> None:
    """Another project whose id begins the same way."""
    project = new_project()
    served.put(f"{project}-2/old", b"another project's")
    await served.enroll(project)


def sealed(
    served: WorkerUnderTest, document: Document, info: bytes, secret: bytes | None = None
) -> str:
    kek = user_kek(served.deployment.api_key, document["project"]).reveal()
    return to_base64(
        served.deployment.intake.public_key.seal(kek if secret is None else secret, info)
    )


SEALED_FOR: dict[str, Callable[[Document], bytes]] = {
    "another project": lambda d: kek_info("enroll", d["request_id"], "other"),
    "another request": lambda d: kek_info("enroll", requests.new_id(), d["project"]),
    "a rotation": lambda d: kek_info("rotation", d["request_id"], d["project"]),
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("name", SEALED_FOR)
async def test_a_kek_sealed_for_something_else_is_refused(
    served: WorkerUnderTest, name: str
) -> None:
    """A sealed KEK is bound to its purpose, its request and its project."""
    document = requests.enroll(served.deployment, new_project())
    document["sealed_kek"]["ciphertext"] = sealed(served, document, SEALED_FOR[name](document))
    await refused(served, document, "bad_seal", "does not open for this request")


@pytest.mark.parametrize("size_bytes", [0, 31, 33])
async def test_a_kek_of_another_length_is_refused(served: WorkerUnderTest, size_bytes: int) -> None:
    document = requests.enroll(served.deployment, new_project())
    info = kek_info("enroll", document["request_id"], document["project"])
    secret = os.urandom(size_bytes)
    document["sealed_kek"]["ciphertext"] = sealed(served, document, info, secret)
    await refused(served, document, "bad_seal", "not 32 bytes")


async def test_an_unknown_intake_key_is_refused(served: WorkerUnderTest) -> None:
    document = requests.enroll(served.deployment, new_project())
    document["sealed_kek"]["intake_key"] = "retired"
    await refused(served, document, "unknown_intake_key", "retired")


CHANGES: dict[str, tuple[Document, str]] = {
    "plaintext forbidden aloud": ({"plaintext": "forbidden"}, "plaintext: "),
    "adopt as text": ({"adopt": "true"}, "adopt: "),
    "adopt as a number": ({"adopt": 1}, "adopt: "),
    "unknown field": ({"api_key": "x"}, "api_key: "),
    "sealed KEK as text": ({"sealed_kek": "AA=="}, "sealed_kek: "),
    "sealed KEK not base64": (
        {"sealed_kek": {"intake_key": "main", "ciphertext": "%%%"}},
        "sealed_kek.ciphertext: ",
    ),
    "of last month": ({"requested_at": "2026-01-01T00:00:00Z"}, ""),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_malformed_field_is_refused(served: WorkerUnderTest, name: str) -> None:
    change, detail = CHANGES[name]
    document = requests.enroll(served.deployment, new_project()) | change
    code = "request_expired" if name == "of last month" else MALFORMED
    await refused(served, document, code, detail)


async def test_an_unreadable_id_is_refused_without_an_event(served: WorkerUnderTest) -> None:
    """There is no id to answer."""
    document = requests.enroll(served.deployment, new_project()) | {"request_id": "1"}
    body = requests.encode(document)
    headers = requests.headers(body, served.deployment.publisher_key)
    await served.assert_rejected(
        OutgoingRequest("enroll.requested", body, dict(headers)), MALFORMED, "request_id: "
    )


async def test_an_enrollment_signed_by_a_stranger_changes_nothing(served: WorkerUnderTest) -> None:
    """No keyring, no event."""
    document = requests.enroll(served.deployment, new_project())
    body = requests.encode(document)
    headers = requests.headers(body, served.deployment.event_key)
    await served.assert_rejected(
        OutgoingRequest("enroll.requested", body, dict(headers)), "bad_signature"
    )
    assert not served.object_exists(keyring_s3_key(document["project"]))


@pytest.mark.parametrize("record", [b"", b"{}", b'{"v": 1, "project": "x", "sealed": "AAAA"}'])
async def test_a_forged_keyring_is_never_overwritten(
    served: WorkerUnderTest, record: bytes
) -> None:
    """Whatever is at the keyring's S3 key is never overwritten."""
    project = new_project()
    served.put(keyring_s3_key(project), record)
    document = requests.enroll(served.deployment, project)
    await served.assert_rejected(served.sign(document), "corrupt_object", "keyring")
    assert keyring(served, project)[2] == record


async def test_an_enrollment_waits_for_an_unknown_master_key(served: WorkerUnderTest) -> None:
    """Another worker may have it."""
    project, now = new_project(), requests.now()
    kek = user_kek(served.deployment.api_key, project)
    current = Generation(1, kek_id(kek), kek, requests.new_id(), now, now)
    ring = Keyring(project, "m9", current, RequestOrigin("api", "0" * 64), lease_s=15)
    served.put(keyring_s3_key(project), build_keyring(ring, {"m9": Secret(bytes(32))}))
    sent = served.sign(requests.enroll(served.deployment, project))
    await served.publish(sent, message_id=sent.request_id)
    waiting = await served.wire.take("keyturn.control.retry.5s")
    assert waiting.headers["keyturn-attempt"] == "unknown_master_key:2"
    assert waiting.headers.items() >= sent.headers.items()
    assert waiting.body == sent.body
    await served.assert_serves_next()
