"""Rotations from their request to their proof (SPEC 8.1 to 8.6), on Ceph's gateway."""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import SealError
from tests.integration.sweep.scene import Project, Scene, counts, types
from tools.harness import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

MIB = 2**20
MORE_ENV = {"COPY_LIMIT_BYTES": str(5 * MIB)}
CONTENT: dict[str, Any] = {
    "ContentType": "application/pdf",
    "CacheControl": "max-age=60",
    "ContentDisposition": 'attachment; filename="q3.pdf"',
    "ContentEncoding": "identity",
    "ContentLanguage": "de",
    "WebsiteRedirectLocation": "/elsewhere",
}


def unchanged(project: Project, prefix: str = "") -> dict[str, tuple[str, str, str]]:
    """What a rotation must leave as it is: ETag, hash of the body, id of the upload."""
    found = {}
    for s3_key in project.bucket.keys(f"{project.name}/{prefix}"):
        body, answer = project.bucket.get(s3_key)
        upload_id = answer["Metadata"].get("enc-upload", "")
        found[s3_key] = (answer["ETag"], hashlib.sha256(body).hexdigest(), upload_id)
    return found


async def from_request_to_proof(scene: Scene) -> None:
    """Accepted, its progress published, completed; every wrap is new and no byte of a body is.

    Uploads after the rotation are under the new key at once, and need no rewrap.
    """
    project = await scene.enrolled("proof")
    plaintexts = project.fill(30)
    plaintexts["uploaded"] = b"by a worker"
    await project.upload("uploaded", b"by a worker")
    before = unchanged(project)
    document = project.rotation(expected_generation=1)
    accepted = await scene.first_event(document)
    assert (accepted["type"], accepted["generation"]) == ("rotation.accepted", 2)
    stored = await project.upload("after the rotation", b"new")
    assert stored["generation"] == 2
    completed = await scene.ended(document["rotation_id"])
    assert counts(completed) == {"objects": 32, "current": 32, "rewrapped": 31, "clean": True}
    assert (completed["type"], completed["project"]) == ("rotation.completed", "proof")
    published = types(scene.events(document["rotation_id"]))
    assert published.pop("sweep.progressed") >= 1
    assert published == {"rotation.accepted": 1, "rotation.completed": 1}
    after = unchanged(project)
    after.pop(project.s3_key("after the rotation"))
    assert after == before
    project.assert_opens_as(plaintexts | {"after the rotation": b"new"})
    ring = project.keyring()
    assert (ring["generation"], ring["rotation_id"]) == (2, document["rotation_id"])
    assert [(entry["generation"], entry["kek"]) for entry in ring["history"]] == [(1, None)]


async def two_in_quick_succession(scene: Scene) -> None:
    """The one that is overtaken completes when its sweep is clean at the later generation."""
    project = await scene.enrolled("quick")
    plaintexts = project.fill(10)
    rotations = [project.rotation(), project.rotation()]
    accepted = [await scene.first_event(document) for document in rotations]
    assert [event["generation"] for event in accepted] == [2, 3]
    ends = [await scene.ended(document["rotation_id"]) for document in rotations]
    for end in ends:
        assert counts(end) | {"rewrapped": 0} == {
            "objects": 10,
            "current": 10,
            "rewrapped": 0,
            "clean": True,
        }
    # Each object is written once or twice, and both ends count what was written since they were
    # requested. Of an attempt that is under way as the state changes, no number is certain.
    assert max(end["rewrapped"] for end in ends) <= 20
    project.assert_opens_as(plaintexts)
    ring = project.keyring()
    assert ring["generation"] == 3
    assert [entry["kek"] for entry in ring["history"]] == [None, None]


async def the_same_again(scene: Scene) -> None:
    """A known id is answered again, with its generation and its end; nothing is written."""
    project = await scene.enrolled("again")
    project.fill(3)
    first = project.rotation()
    await scene.first_event(first)
    first_end = await scene.ended(first["rotation_id"])
    await project.rotated()
    ring, heads = project.keyring_bytes(), project.bucket.heads("again/")
    event = await scene.first_event(first)
    assert (event["type"], event["generation"]) == ("rotation.accepted", 2)
    again = await scene.ended(first["rotation_id"], nth=2)
    assert again | {"at": ""} == first_end | {"at": ""}
    assert (project.keyring_bytes(), project.bucket.heads("again/")) == (ring, heads)


async def all_else_as_before(scene: Scene) -> None:
    """Tags, content headers, the caller's metadata and the redirect, also of a copy in parts."""
    project = await scene.enrolled("restated")
    bodies = {"small": os.urandom(100), "large": os.urandom(12 * MIB), "ü/empty": b""}
    caller = {"author": "kim", "note": "=?utf-8?b?w7w=?="}
    for key, plaintext in bodies.items():
        project.put(key, plaintext, Metadata=caller, Tagging="team=legal%2Fde&year=2026", **CONTENT)
    project.put("untagged", b"x", Metadata=caller, **CONTENT)
    bodies["untagged"] = b"x"
    before = {key: _all_else(project, key) for key in bodies}
    assert before["small"]["tags"] == {"team": "legal/de", "year": "2026"}
    assert before["small"]["WebsiteRedirectLocation"] == "/elsewhere"
    end = await project.rotated()
    assert counts(end) == {"objects": 4, "current": 4, "rewrapped": 4, "clean": True}
    assert {key: _all_else(project, key) for key in bodies} == before
    project.assert_opens_as(bodies)
    assert (
        scene.bucket.client.list_multipart_uploads(Bucket=scene.deployment.bucket).get(
            "Uploads", []
        )
        == []
    )


def _all_else(project: Project, key: str) -> dict[str, Any]:
    head = project.bucket.head(project.s3_key(key))
    wrapped = ("enc-dek-user", "enc-dek-admin", "enc-kek-user", "enc-kek-admin", "enc-stored-at")
    head["Metadata"] = {n: v for n, v in head["Metadata"].items() if n not in wrapped}
    # A copy in parts cannot keep an ETag (FACTS: nor does a plain one on every server).
    head = {n: v for n, v in head.items() if n not in ("LastModified", "ETag")}
    tags = project.bucket.client.get_object_tagging(
        Bucket=project.bucket.deployment.bucket, Key=project.s3_key(key)
    )["TagSet"]
    body, _ = project.bucket.get(project.s3_key(key))
    return head | {
        "tags": {tag["Key"]: tag["Value"] for tag in tags},
        "body": hashlib.sha256(body).hexdigest(),
    }


async def a_delete_meanwhile(scene: Scene) -> None:
    """What is deleted while copies are under way stays deleted, and is counted so."""
    project = await scene.enrolled("meanwhile")
    plaintexts = project.fill(15)
    document = project.rotation()
    await scene.first_event(document)
    gone = ["k/002", "k/009", "k/014"]
    deletes = [requests.delete("meanwhile", key) for key in gone]
    deleted = await asyncio.gather(*(scene.first_event(delete) for delete in deletes))
    assert [event["type"] for event in deleted] == ["object.deleted"] * 3
    end = await scene.ended(document["rotation_id"])
    assert end["clean"]
    again = await scene.swept("meanwhile")
    assert counts(again) == {"objects": 15, "current": 12, "deleted": 3, "clean": True}
    for key in gone:
        scene.bucket.deleted_at(project.s3_key(key), scene.deployment.master_key)
        del plaintexts[key]
    project.assert_opens_as(plaintexts)


async def uploads_meanwhile(scene: Scene) -> None:
    """Uploads during, before and after the rotation: none is left under the old key."""
    project = await scene.enrolled("busy")
    plaintexts = {f"up/{n:02}": os.urandom(10) for n in range(40)}
    document = project.rotation()
    pending = list(plaintexts.items())
    uploads = [asyncio.create_task(project.upload(*row)) for row in pending[:20]]
    accepted = await scene.first_event(document)
    uploads += [asyncio.create_task(project.upload(*row)) for row in pending[20:]]
    stored = await asyncio.gather(*uploads)
    assert accepted["type"] == "rotation.accepted"
    assert {event["generation"] for event in stored} <= {1, 2}
    assert {event["generation"] for event in stored[20:]} == {2}
    end = await scene.ended(document["rotation_id"])
    assert counts(end) | {"rewrapped": 0, "objects": 0} == {
        "current": end["objects"],
        "rewrapped": 0,
        "objects": 0,
        "clean": True,
    }
    project.assert_opens_as(plaintexts)


async def nothing_to_rewrap(scene: Scene) -> None:
    """A project without objects: proven all the same."""
    project = await scene.enrolled("empty")
    end = await project.rotated()
    assert counts(end) == {"clean": True}
    assert project.keyring()["history"][0]["kek"] is None


async def an_old_label_opens_nothing(scene: Scene) -> None:
    """After the sweep the old API key opens no wrap, at whatever generation it is tried."""
    project = await scene.enrolled("leaked")
    project.put("k", b"secret")
    await project.rotated()
    for generation in (1, 2, 3):
        with pytest.raises(SealError):
            scene.bucket.opened("leaked/k", project.user_kek(1), "user", generation)


SCENARIOS: dict[str, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    play.__name__: play
    for play in (
        from_request_to_proof,
        two_in_quick_succession,
        the_same_again,
        all_else_as_before,
        a_delete_meanwhile,
        uploads_meanwhile,
        nothing_to_rewrap,
        an_old_label_opens_nothing,
    )
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_rotation(running: dict[str, asyncio.Task[None]], scenario: str) -> None:
    """The scenario of that name; see its docstring."""
    await running[scenario]
