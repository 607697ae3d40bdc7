"""Rotations that are refused: a code, a dead letter, and nothing changed (SPEC 8.1, 12)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import kek_info, new_api_key, to_base64, user_kek
from keyturn.identifiers import keyring_s3_key
from keyturn.topology import UNSIGNED_DEAD_QUEUE
from tools.harness import requests, stored_objects
from tools.harness.bucket import Bucket
from tools.harness.worker_under_test import OutgoingRequest, WorkerUnderTest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

WORKER_ENV = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}
Document = dict[str, Any]
PROJECT = "acme"
OLD = "2026-01-01T00:00:00Z"


def keyring(served: WorkerUnderTest, project: str = PROJECT) -> tuple[str, str]:
    """ETag and time of the last write of a project's keyring."""
    head = stored_objects.s3_client(served.deployment).head_object(
        Bucket=served.deployment.bucket, Key=keyring_s3_key(project)
    )
    return head["ETag"], str(head["LastModified"])


def rotation(
    served: WorkerUnderTest, api_key: str | None = None, *, project: str = PROJECT, **more: Any
) -> Document:
    return requests.rotation(served.deployment, project, api_key or new_api_key(), **more)


def sealed(
    served: WorkerUnderTest, document: Document, info: bytes, secret: bytes | None = None
) -> None:
    """Seal the request's KEK again, for something else or with another secret."""
    kek = user_kek(new_api_key(), PROJECT).reveal() if secret is None else secret
    ciphertext = served.deployment.intake.public_key.seal(kek, info)
    document["sealed_kek"] = {"intake_key": "main", "ciphertext": to_base64(ciphertext)}


def swept(served: WorkerUnderTest, project: str) -> set[str]:
    """The ids of the rotations and sweeps in a project's record."""
    s3_key = f".keyturn/sweeps/{project}.json"
    if not served.object_exists(s3_key):
        return set()
    record = Bucket(served.deployment).record(s3_key, project)
    return {origin["id"] for origin in record["origins"]}


async def refused(served: WorkerUnderTest, document: Document, code: str, detail: str = "") -> None:
    """Refused as SPEC 6.3 and 12 say; the keyring is unchanged, and no sweep was started."""
    project = document["project"] if document["project"] != "*" else PROJECT
    before = keyring(served, project)
    await served.assert_rejected(served.sign(document), code, detail)
    assert keyring(served, project) == before
    assert document["rotation_id"] not in swept(served, project)


SEALED_FOR: dict[str, Callable[[Document], bytes]] = {
    "another project": lambda d: kek_info("rotation", d["rotation_id"], "other"),
    "another request": lambda _: kek_info("rotation", requests.new_id(), PROJECT),
    "an enrollment": lambda d: kek_info("enroll", d["rotation_id"], PROJECT),
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("name", SEALED_FOR)
async def test_a_kek_sealed_for_something_else_is_refused(
    served: WorkerUnderTest, name: str
) -> None:
    """A sealed KEK is bound to its purpose, its request and its project."""
    document = rotation(served)
    sealed(served, document, SEALED_FOR[name](document))
    await refused(served, document, "bad_seal", "does not open for this request")


@pytest.mark.parametrize("size_bytes", [0, 31, 33])
async def test_a_kek_of_another_length_is_refused(served: WorkerUnderTest, size_bytes: int) -> None:
    document = rotation(served)
    info = kek_info("rotation", document["rotation_id"], PROJECT)
    sealed(served, document, info, os.urandom(size_bytes))
    await refused(served, document, "bad_seal", "not 32 bytes")


async def test_an_unknown_intake_key_is_refused(served: WorkerUnderTest) -> None:
    document = rotation(served)
    document["sealed_kek"]["intake_key"] = "retired"
    await refused(served, document, "unknown_intake_key", "retired")


CHANGES: dict[str, tuple[Document, str, str]] = {
    "generation as text": ({"expected_generation": "1"}, "malformed_request", "expected_"),
    "generation zero": ({"expected_generation": 0}, "malformed_request", "expected_"),
    "unknown field": ({"api_key": "x"}, "malformed_request", "api_key: "),
    "project of two": ({"project": "*"}, "malformed_request", "project: "),
    "sealed KEK as text": ({"sealed_kek": "AA=="}, "malformed_request", "sealed_kek: "),
    "not base64": (
        {"sealed_kek": {"intake_key": "main", "ciphertext": "%%%"}},
        "malformed_request",
        "sealed_kek.ciphertext: ",
    ),
    "of last winter": ({"requested_at": OLD}, "request_expired", ""),
    "another generation": ({"expected_generation": 7}, "generation_mismatch", "generation"),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_a_malformed_field_is_refused(served: WorkerUnderTest, name: str) -> None:
    change, code, detail = CHANGES[name]
    await refused(served, rotation(served) | change, code, detail)


async def test_the_current_kek_is_refused(served: WorkerUnderTest) -> None:
    await refused(served, rotation(served, served.deployment.api_key), "kek_reused")


async def test_a_rotation_signed_by_a_stranger_changes_nothing(served: WorkerUnderTest) -> None:
    """No event."""
    before = keyring(served)
    body = requests.encode(rotation(served))
    headers = requests.headers(body, served.deployment.event_key)
    await served.assert_rejected(
        OutgoingRequest("rotation.requested", body, dict(headers)), "bad_signature"
    )
    await served.assert_rejected(OutgoingRequest("rotation.requested", body, {}), "bad_signature")
    assert keyring(served) == before


@pytest.mark.parametrize("kind", ["rotation", "sweep", "sweep of all", "delete"])
async def test_a_rotation_that_is_not_granted_is_refused(
    served: WorkerUnderTest, kind: str
) -> None:
    """A publisher that may only upload, and only to another project."""
    before = keyring(served)
    documents: dict[str, Document] = {
        "rotation": rotation(served),
        "sweep": requests.sweep(PROJECT),
        "sweep of all": requests.sweep("*"),
        "delete": requests.delete(PROJECT, "k"),
    }
    signed = served.sign(documents[kind])
    headers = requests.headers(signed.body, served.deployment.narrow_key, publisher="narrow")
    assert signed.rejection is not None
    # In no project that is not the publisher's own (SPEC 6.3).
    rejection = signed.rejection | {"project": None}
    sent = OutgoingRequest(signed.routing_key, signed.body, dict(headers), rejection)
    await served.assert_rejected(sent, "not_permitted")
    assert keyring(served) == before
    assert not served.object_exists("acme/k")


async def test_a_rotation_under_another_routing_key_is_refused_without_an_event(
    served: WorkerUnderTest,
) -> None:
    """A genuine request that was moved."""
    document = rotation(served)
    sent = served.sign(document, routing_key="sweep.requested")
    refusal = OutgoingRequest(sent.routing_key, sent.body, sent.headers)
    before = keyring(served)
    await served.publish(refusal, message_id=document["rotation_id"])
    dead = await served.wire.take(UNSIGNED_DEAD_QUEUE)
    assert dead.headers["keyturn-code"] == "bad_signature"
    assert keyring(served) == before


async def test_outdated_rotations_are_refused(served: WorkerUnderTest) -> None:
    """An earlier KEK, an earlier generation, an earlier time. A sweep with its id is another."""
    await served.enroll("turned")
    too_early = rotation(served, project="turned")
    api_keys = [served.deployment.api_key, new_api_key()]
    first = rotation(served, api_keys[1], project="turned", expected_generation=1)
    accepted = await served.publish_and_wait(first)
    assert (accepted["type"], accepted["generation"]) == ("rotation.accepted", 2)
    ended = await served.wire.event(lambda event: event["type"] == "rotation.completed")
    assert (ended["rotation_id"], ended["clean"]) == (first["rotation_id"], True)
    # The clean sweep cleared the earlier key itself; its id is known for good.
    for api_key in api_keys:
        await refused(served, rotation(served, api_key, project="turned"), "kek_reused")
    late = rotation(served, project="turned", expected_generation=1)
    await refused(served, late, "generation_mismatch", "generation 2")
    await refused(served, too_early, "generation_mismatch", "later")
    sweep = requests.sweep("turned") | {"sweep_id": first["rotation_id"]}
    sent = served.sign(sweep)
    await served.publish(sent, message_id=sent.request_id)
    ended = await served.wire.event(lambda event: event["type"] == "sweep.completed")
    assert (ended["sweep_id"], ended["clean"]) == (first["rotation_id"], True)
