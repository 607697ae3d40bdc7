"""A scenario: objects of the earlier system brought under v1 wraps by a sweep (SPEC 4.6, 8.2)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from keyturn.crypto import kek_info, to_base64, v0_admin_kek, v0_open, v0_seal, v0_user_kek
from tests.integration.sweep.scene import Project, Scene, counts
from tools.harness import requests

if TYPE_CHECKING:
    from keyturn.crypto import Secret
    from tests.integration.sweep.scene import Document

MASTER_KEY = "the earlier system's master key"
API_KEY = "sk-of-the-earlier-system"
MORE_ENV = {"V0_MASTER_KEY": MASTER_KEY}
ADMIN_KEK, USER_KEK = v0_admin_kek(MASTER_KEY), v0_user_kek(API_KEY, "")


def v0_wrap(kek: Secret, dek: bytes) -> str:
    return to_base64(v0_seal(kek.reveal(), dek))


def put_v0(
    project: Project,
    key: str,
    dek: bytes,
    *,
    user: bytes | None,
    admin: bytes | None,
    plaintext: bytes,
) -> bytes:
    """Put an object as the earlier system did; `None` for a wrap that is not there."""
    body = v0_seal(dek, plaintext)
    metadata = {"enc-algo": "AES-256-GCM", "author": "kim"}
    if user is not None:
        metadata["enc-dek-user"] = v0_wrap(USER_KEK, user)
    # One that is missing may also be empty.
    metadata["enc-dek-admin"] = "" if admin is None else v0_wrap(ADMIN_KEK, admin)
    project.bucket.put(project.s3_key(key), body, metadata, ContentType="text/plain")
    return body


def enrollment(scene: Scene, project: str) -> Document:
    document = requests.enroll(scene.deployment, project, v0="allowed", adopt=True)
    info = kek_info("v0", document["request_id"], project)
    ciphertext = scene.deployment.intake.public_key.seal(USER_KEK.reveal(), info)
    return document | {"sealed_v0_kek": {"intake_key": "main", "ciphertext": to_base64(ciphertext)}}


def opens(project: Project, key: str, plaintext: bytes) -> None:
    """By both wraps of v1, with the body as it was."""
    s3_key, generation = project.s3_key(key), project.generation
    keks = {"user": project.user_kek(generation), "admin": project.admin_kek()}
    body, answer = project.bucket.get(s3_key)
    for role in ("user", "admin"):
        dek = project.bucket.unwrapped(keks[role], role, s3_key, generation)
        assert dek is not None
        assert v0_open(dek, body) == plaintext
    metadata = answer["Metadata"]
    assert (metadata["enc-algo"], metadata["author"]) == ("AES-256-GCM", "kim")
    assert metadata["enc-kek-user"].startswith(f"{generation}:")
    assert "enc-upload" not in metadata
    assert answer["ContentType"] == "text/plain"


async def migration(scene: Scene) -> None:
    """Adopted, swept, then rotated; what cannot be trusted is reported and left alone."""
    project = Project(scene, "old")
    plaintexts = {key: os.urandom(50_000) for key in ("both", "user", "admin", "x/empty")}
    plaintexts["x/empty"] = b""
    bodies = {}
    for key, plaintext in plaintexts.items():
        dek = os.urandom(32)
        user = None if key == "admin" else dek
        admin = None if key == "user" else dek
        bodies[key] = put_v0(project, key, dek, user=user, admin=admin, plaintext=plaintext)
    one, other = os.urandom(32), os.urandom(32)
    put_v0(project, "bad/differ", one, user=one, admin=other, plaintext=b"x")
    # Both wraps agree, and the body is another's: only opening it shows that.
    put_v0(project, "bad/body", one, user=other, admin=other, plaintext=b"x" * 20_000)
    put_v0(project, "bad/none", one, user=None, admin=None, plaintext=b"x")
    document = enrollment(scene, "old")
    event = await scene.first_event(document)
    assert (event["type"], event["generation"]) == ("project.enrolled", 1)
    end = await scene.ended(document["request_id"])
    assert counts(end) == {
        "objects": 7,
        "current": 4,
        "rewrapped": 4,
        "failed": 3,
        "clean": False,
    }
    failed = scene.failures("old", document["request_id"])
    assert failed == {
        "bad/differ": "corrupt_object",
        "bad/body": "corrupt_object",
        "bad/none": "no_usable_wrap",
    }
    for key, plaintext in plaintexts.items():
        opens(project, key, plaintext)
        assert scene.bucket.get(f"old/{key}")[0] == bodies[key]
    assert (project.keyring()["v0"], project.keyring()["v0_kek"]) == (
        "allowed",
        to_base64(USER_KEK.reveal()),
    )
    for key in failed:
        scene.bucket.delete(f"old/{key}")
    end = await project.rotated()
    assert counts(end) == {"objects": 4, "current": 4, "rewrapped": 4, "clean": True}
    for key, plaintext in plaintexts.items():
        opens(project, key, plaintext)
        assert scene.bucket.get(f"old/{key}")[0] == bodies[key]
        assert scene.bucket.unwrapped(project.user_kek(1), "user", f"old/{key}", 1) is None
    assert (project.keyring()["v0"], project.keyring()["v0_kek"]) == ("forbidden", None)
    # From now on wraps that are bound to nothing are honored no more.
    put_v0(project, "late", one, user=one, admin=one, plaintext=b"x")
    before = scene.bucket.head("old/late")
    end = await scene.swept("old")
    assert counts(end) == {"objects": 5, "current": 4, "failed": 1, "clean": False}
    assert scene.bucket.head("old/late") == before
