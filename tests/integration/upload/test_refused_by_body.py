"""Uploads that are refused for their body, or for an existing object (SPEC 6.4, 7, 12).

Whatever is refused leaves its target as it was, and its staged body where it is, so that
the dead letter can be replayed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import (
    HEADER_BYTES,
    SEALED_CHUNK_BYTES,
    Secret,
    admin_kek,
    from_base64,
    kek_id,
    kek_info,
    seal,
    seal_tombstone,
    sealed_size,
    to_base64,
    transport_context,
    upload_info,
    user_kek,
)
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.keyring import Generation, Keyring
from tools.harness import requests, stored_objects
from tools.harness.local_keys import build_keyring
from tools.harness.worker_under_test import WorkerUnderTest, staging_s3_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.harness.requests import Upload

MAX_BYTES = 4_000_000
WORKER_ENV = {"UPLOAD_MAX_BYTES": str(MAX_BYTES)}
pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

BIG = 3_000_000
BAD_SEAL = "bad_seal"
MISSING = "staged_body_missing"


def upload(served: WorkerUnderTest, data: bytes = b"hello", *, staged: bool = False) -> Upload:
    key = f"body/{requests.new_id()}"
    return requests.upload(served.deployment, "acme", key, data, staged=staged)


async def refused(served: WorkerUnderTest, sent: Upload, code: str, detail: str = "") -> None:
    """Refused, and there is no object at its target."""
    await served.assert_rejected(served.sign(sent.document), code, detail)
    target = f"{sent.document['project']}/{sent.document['key']}"
    assert not served.object_exists(target)
    assert stored_objects.list_multipart_uploads(served.deployment) == []


def resealed(
    served: WorkerUnderTest, sent: Upload, info: bytes, secret: bytes | None = None
) -> str:
    """The transport key of this upload, or another secret, sealed for something else."""
    secret = sent.transport_key if secret is None else secret
    return to_base64(served.deployment.intake.public_key.seal(secret, info))


SEALED_FOR: dict[str, Callable[[str, str], bytes]] = {
    "another upload": lambda _id, key: upload_info(requests.new_id(), "acme", key),
    "another project": lambda upload_id, key: upload_info(upload_id, "other", key),
    "another key": lambda upload_id, key: upload_info(upload_id, "acme", key + "x"),
    "an enrollment": lambda upload_id, _key: kek_info("enroll", upload_id, "acme"),
    "nothing": lambda _id, _key: b"",
}


@pytest.mark.parametrize("name", SEALED_FOR)
async def test_a_key_sealed_for_something_else_is_refused(
    served: WorkerUnderTest, name: str
) -> None:
    """A sealed key is bound to the upload, the project and the key that it was sealed for."""
    sent = upload(served)
    info = SEALED_FOR[name](sent.upload_id, sent.document["key"])
    sent.document["sealed_key"]["ciphertext"] = resealed(served, sent, info)
    await refused(served, sent, BAD_SEAL, "does not open for this request")


@pytest.mark.parametrize("size_bytes", [0, 31, 33])
async def test_a_key_of_another_length_is_refused(served: WorkerUnderTest, size_bytes: int) -> None:
    sent = upload(served)
    info = upload_info(sent.upload_id, "acme", sent.document["key"])
    secret = os.urandom(size_bytes)
    sent.document["sealed_key"]["ciphertext"] = resealed(served, sent, info, secret)
    await refused(served, sent, BAD_SEAL, "not 32 bytes")


@pytest.mark.parametrize("ciphertext", [b"", b"short", bytes(1168)])
async def test_a_key_that_is_no_ciphertext_is_refused(
    served: WorkerUnderTest, ciphertext: bytes
) -> None:
    sent = upload(served)
    sent.document["sealed_key"]["ciphertext"] = to_base64(ciphertext)
    await refused(served, sent, BAD_SEAL)


async def test_an_unknown_intake_key_is_refused(served: WorkerUnderTest) -> None:
    sent = upload(served)
    sent.document["sealed_key"]["intake_key"] = "retired"
    await refused(served, sent, "unknown_intake_key", "retired")


async def test_a_session_and_a_key_under_one_are_bound_to_publisher_and_upload(
    served: WorkerUnderTest,
) -> None:
    sent = upload(served)
    requests.put_under_a_session(served.deployment, sent)
    assert (await served.publish_and_wait(sent.document))["type"] == "upload.stored"
    copied = upload(served)
    copied.document["sealed_key"] = sent.document["sealed_key"]
    await refused(served, copied, BAD_SEAL, "under its session")
    foreign = upload(served)
    requests.put_under_a_session(served.deployment, foreign, "narrow")
    await refused(served, foreign, BAD_SEAL, "does not open for this request")


@pytest.mark.parametrize("field", ["session", "ciphertext"])
async def test_a_damaged_session_or_key_under_one_is_refused(
    served: WorkerUnderTest, field: str
) -> None:
    sent = upload(served)
    requests.put_under_a_session(served.deployment, sent)
    sealed = sent.document["sealed_key"]
    sealed[field] = to_base64(flipped(from_base64(sealed[field]), -1))
    await refused(served, sent, BAD_SEAL)


def for_another_upload(sent: Upload) -> bytes:
    """The right key, the right bytes, another upload's context."""
    return seal(sent.transport_key, transport_context(requests.new_id()), b"hello")


def flipped(body: bytes, at: int) -> bytes:
    changed = bytearray(body)
    changed[at] ^= 1
    return bytes(changed)


INLINE: dict[str, Callable[[Upload], bytes]] = {
    "sealed for another upload": for_another_upload,
    "sealed with another key": lambda sent: seal(
        bytes(32), transport_context(sent.upload_id), b"hello"
    ),
    "salt damaged": lambda sent: flipped(sent.sealed_body, 0),
    "commitment damaged": lambda sent: flipped(sent.sealed_body, 30),
    "tag damaged": lambda sent: flipped(sent.sealed_body, -1),
    "cut short": lambda sent: sent.sealed_body[:-1],
    "shorter than its header": lambda sent: sent.sealed_body[:40],
    "nothing": lambda _sent: b"",
    "not sealed": lambda _sent: b"hello" * 40,
}


@pytest.mark.parametrize("name", INLINE)
async def test_an_inline_body_that_does_not_open_is_refused(
    served: WorkerUnderTest, name: str
) -> None:
    sent = upload(served)
    sent.document["body"]["inline"] = to_base64(INLINE[name](sent))
    await refused(served, sent, BAD_SEAL, "does not open for this upload")


async def test_an_inline_body_above_the_limit_is_refused(served: WorkerUnderTest) -> None:
    """256 KiB of plaintext go inline, one byte more does not."""
    event = await served.publish_and_wait(upload(served, bytes(256 * 1024)).document)
    assert (event["type"], event["size"]) == ("upload.stored", 256 * 1024)
    await refused(served, upload(served, bytes(256 * 1024 + 1)), "body_too_large", "262144 bytes")


def swapped(sent: Upload) -> bytes:
    """The same chunks, each of them authentic, the first two in the wrong order."""
    first, second = HEADER_BYTES, HEADER_BYTES + SEALED_CHUNK_BYTES
    rest = second + SEALED_CHUNK_BYTES
    body = sent.sealed_body
    return body[:first] + body[second:rest] + body[first:second] + body[rest:]


# What is in staging for a body of this size, and the name of the case.
STAGED: dict[str, tuple[int, Callable[[Upload], bytes | None], str]] = {
    "missing": (BIG, lambda _sent: None, MISSING),
    "shorter than said": (BIG, lambda sent: sent.sealed_body[:-1], MISSING),
    "longer than said": (BIG, lambda sent: sent.sealed_body + b"\0", MISSING),
    "nothing where something was said": (5, lambda _sent: b"", MISSING),
    "sealed for another upload": (5, for_another_upload, BAD_SEAL),
    "header damaged": (BIG, lambda sent: flipped(sent.sealed_body, 55), BAD_SEAL),
    "first chunk damaged": (BIG, lambda sent: flipped(sent.sealed_body, 56), BAD_SEAL),
    "last chunk damaged": (BIG, lambda sent: flipped(sent.sealed_body, -1), BAD_SEAL),
    "small and damaged": (5, lambda sent: flipped(sent.sealed_body, -1), BAD_SEAL),
    "two chunks swapped": (BIG, swapped, BAD_SEAL),
}


@pytest.mark.parametrize("name", STAGED)
async def test_a_staged_body_that_does_not_open_is_refused(
    served: WorkerUnderTest, name: str
) -> None:
    """Not a byte of a damaged body becomes an object; the staged body stays."""
    size_bytes, change, code = STAGED[name]
    sent = upload(served, os.urandom(size_bytes), staged=True)
    body = change(sent)
    if body is not None:
        served.stage(sent.upload_id, body)
    await refused(served, sent, code)
    assert served.object_exists(staging_s3_key(sent.upload_id)) == (body is not None)


async def test_a_replay_stores_a_staged_body_that_was_missing(served: WorkerUnderTest) -> None:
    """The dead letter of a missing body is served once the body is in staging."""
    sent = upload(served, b"late" * 100_000, staged=True)
    dead = await served.assert_rejected(served.sign(sent.document), MISSING)
    served.stage(sent.upload_id, sent.sealed_body)
    headers = {n: v for n, v in dead.headers.items() if not n.startswith("keyturn-code")}
    known = len(served.wire.events)
    await served.wire.publish("upload.requested", dead.body, headers)
    event = await served.wire.event(lambda event: event in served.wire.events[known:])
    assert event["type"] == "upload.stored"
    key = sent.document["key"]
    assert stored_objects.decrypt(served.deployment, "acme", key, "user") == b"late" * 100_000


async def test_a_body_in_another_publishers_staging_is_missing(served: WorkerUnderTest) -> None:
    """A publisher's request never reaches into another publisher's staging."""
    sent = upload(served, staged=True)
    served.stage(sent.upload_id, sent.sealed_body, publisher="narrow")
    await refused(served, sent, MISSING)


async def test_a_staged_body_above_the_limit_is_refused_unread(served: WorkerUnderTest) -> None:
    """Refused by its size alone, before a byte of it is read."""
    sent = upload(served, bytes(MAX_BYTES), staged=True)
    assert len(sent.sealed_body) > MAX_BYTES
    served.stage(sent.upload_id, sent.sealed_body)
    await refused(served, sent, "body_too_large", f"at most {MAX_BYTES} bytes")


@pytest.mark.parametrize("size_bytes", [1, 71, sealed_size(16384) - 16, sealed_size(16384) - 1])
async def test_a_size_that_no_sealed_body_has_is_refused(
    served: WorkerUnderTest, size_bytes: int
) -> None:
    """A size that no sealed body has."""
    sent = upload(served, staged=True)
    sent.document["body"]["staged"]["size"] = size_bytes
    served.stage(sent.upload_id, bytes(size_bytes))
    await refused(served, sent, BAD_SEAL, "no sealed body has this size")


def tombstone(served: WorkerUnderTest, key: str) -> dict[str, str]:
    kek = admin_kek(served.deployment.master_key, "acme")
    sealed = seal_tombstone(kek, "acme", key, requests.now())
    return {"enc-algo": "deleted", "enc-dek-admin": to_base64(sealed)}


OCCUPIED: dict[str, tuple[Callable[[WorkerUnderTest, str], dict[str, str]], str]] = {
    "a tombstone": (tombstone, "deleted_key"),
    "plaintext": (lambda _s, _key: {}, "already_exists"),
    "an unknown algorithm": (lambda _s, _key: {"enc-algo": "ROT13"}, "already_exists"),
}


@pytest.mark.parametrize("staged", [False, True], ids=["inline", "staged"])
@pytest.mark.parametrize("name", OCCUPIED)
async def test_a_taken_key_is_refused(served: WorkerUnderTest, name: str, *, staged: bool) -> None:
    """A key never takes a second body."""
    metadata, code = OCCUPIED[name]
    sent = upload(served, staged=staged)
    key = sent.document["key"]
    served.put(f"acme/{key}", b"first", metadata(served, key))
    if staged:
        served.stage(sent.upload_id, sent.sealed_body)
    await served.assert_rejected(served.sign(sent.document), code, key)
    assert stored_objects.read_object(served.deployment, "acme", key).body == b"first"
    # Under a tombstone it can never be stored: its staged body goes at once (SPEC 6.9).
    assert served.object_exists(staging_s3_key(sent.upload_id)) == (
        staged and code != "deleted_key"
    )


@pytest.mark.parametrize("staged", [False, True], ids=["inline", "staged"])
async def test_a_key_of_another_upload_is_refused(served: WorkerUnderTest, *, staged: bool) -> None:
    """The first upload of a key stays what it was."""
    first, second = upload(served, b"first"), upload(served, b"second", staged=staged)
    assert (await served.publish_and_wait(first.document))["type"] == "upload.stored"
    before = stored_objects.read_object(served.deployment, "acme", first.document["key"])
    second = requests.upload(
        served.deployment, "acme", first.document["key"], b"second", staged=staged
    )
    if staged:
        served.stage(second.upload_id, second.sealed_body)
    await served.assert_rejected(served.sign(second.document), "already_exists")
    assert stored_objects.read_object(served.deployment, "acme", first.document["key"]) == before


def keyring(served: WorkerUnderTest, project: str, *, master_key: bytes | None = None) -> bytes:
    """A keyring's record, by the worker's own master key or by another under its name."""
    kek = user_kek(served.deployment.api_key, project)
    now = requests.now()
    current = Generation(1, kek_id(kek), kek, requests.new_id(), now, now)
    held = Secret(master_key or served.deployment.master_key)
    ring = Keyring(project, "m1", current, RequestOrigin("api", "0" * 64), lease_s=15)
    return build_keyring(ring, {"m1": held})


KEYRINGS: dict[str, Callable[[WorkerUnderTest, str], bytes]] = {
    "forged": lambda s, project: keyring(s, project, master_key=bytes(32)),
    "moved": lambda s, _project: keyring(s, "elsewhere"),
    "moved and relabeled": lambda s, project: keyring(s, "elsewhere").replace(
        b'"elsewhere"', f'"{project}"'.encode()
    ),
    "no JSON": lambda _s, _project: b"{}",
    "empty": lambda _s, _project: b"",
    "of another version": lambda s, project: keyring(s, project).replace(b'"v": 1', b'"v": 2'),
    "damaged": lambda s, project: keyring(s, project).replace(b'"sealed": "', b'"sealed": "AAAA'),
}


@pytest.mark.parametrize("name", KEYRINGS)
async def test_a_forged_keyring_wraps_nothing(served: WorkerUnderTest, name: str) -> None:
    """Nothing is wrapped under a keyring that does not open as this project's."""
    project = f"forged-{requests.new_id()[:8]}"
    served.put(keyring_s3_key(project), KEYRINGS[name](served, project))
    sent = requests.upload(served.deployment, project, "k", b"secret")
    await served.assert_rejected(served.sign(sent.document), "corrupt_object", "keyring")
    assert stored_objects.list_keys(served.deployment, f"{project}/") == []


async def test_a_genuine_keyring_wraps(served: WorkerUnderTest) -> None:
    """So the records above are refused for what was changed in them."""
    project = f"honest-{requests.new_id()[:8]}"
    served.put(keyring_s3_key(project), keyring(served, project))
    await served.assert_serves_next(project)
