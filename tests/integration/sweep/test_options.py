"""The options of a sweep, and objects that it cannot rewrap (SPEC 6.6, 8.2, 8.6)."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import new_api_key, seal_tombstone, to_base64
from keyturn.identifiers import keyring_s3_key
from tests.integration.sweep.scene import Project, Scene, counts
from tools.harness import requests

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from tools.harness.bucket import HandmadeObject

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

MIB = 2**20


def bad_objects(project: Project) -> dict[str, HandmadeObject]:
    """An object of each kind that fails, by its code."""
    unknown, cut, other, stripped = (project.made(f"bad/{n}") for n in range(4))
    unknown.metadata["enc-algo"] = "ROT-13"
    cut.body = cut.body[:50]
    # A holder of the API key makes the user's view of the object differ.
    other.metadata["enc-dek-user"] = project.made(other.key).metadata["enc-dek-user"]
    del stripped.metadata["enc-algo"]
    moved = replace(project.made("k/000"), key="bad/4")
    swapped = replace(project.made("bad/5"), body=project.made("bad/5").body)
    tombstone = project.made("bad/6", b"")
    sealed = seal_tombstone(project.admin_kek(), project.name, "another", requests.now())
    tombstone.body = b""
    tombstone.metadata = {"enc-algo": "deleted", "enc-dek-admin": to_base64(sealed)}
    plain = replace(project.made("bad/7"), metadata={}, body=b"never allowed here")
    return {
        "unknown_algorithm": unknown,
        "corrupt_object of a body cut short": cut,
        "corrupt_object of wraps that differ": other,
        "corrupt_object of metadata stripped": stripped,
        "no_usable_wrap of an object moved": moved,
        "corrupt_object of another body": swapped,
        "no_usable_wrap of a forged tombstone": tombstone,
        "corrupt_object of plaintext": plain,
    }


async def bad_objects_hold_nothing_up(scene: Scene) -> None:
    """Each is reported with its code and left alone; without them the sweep is clean."""
    project = await scene.enrolled("bad")
    plaintexts = project.fill(20)
    # Made for the generation to come, under which alone two wraps can be seen to differ.
    document = project.rotation()
    bad = bad_objects(project)
    for made in bad.values():
        project.bucket.put_made("bad", made)
    for foreign in ("folder/", "a//b", "../up", "k/\x07", "x" * 901):
        project.bucket.put(f"bad/{foreign}", b"", {})
    before = {made.key: project.bucket.get(f"bad/{made.key}") for made in bad.values()}
    await scene.send(document)
    end = await scene.ended(document["rotation_id"])
    assert counts(end) == {
        "objects": 28,
        "rewrapped": 20,
        "current": 20,
        "foreign": 5,
        "failed": 8,
        "clean": False,
    }
    expected = {made.key: code.partition(" ")[0] for code, made in bad.items()}
    assert scene.failures("bad", document["rotation_id"]) == expected
    for key, (body, answer) in before.items():
        now, head = project.bucket.get(f"bad/{key}")
        assert (now, head["Metadata"]) == (body, answer["Metadata"])
        assert head["LastModified"] == answer["LastModified"]
    project.assert_opens_as(plaintexts)
    # The old KEK is kept: a repair may still need it.
    assert [entry["kek"] is None for entry in project.keyring()["history"]] == [False]
    for made in bad.values():
        project.bucket.delete(f"bad/{made.key}")
    after = await scene.swept("bad")
    assert counts(after) == {"objects": 20, "current": 20, "foreign": 5, "clean": True}
    assert [entry["kek"] for entry in project.keyring()["history"]] == [None]


async def a_repair(scene: Scene) -> None:
    """A wrap under an earlier KEK counts only if a repair is requested.

    A holder of a leaked API key could have made it (SPEC 8.2).
    """
    project = await scene.enrolled("repair")
    lost = project.made("lost", b"under the old key alone")
    lost.metadata["enc-dek-admin"] = to_base64(os.urandom(104))
    document = project.rotation()
    assert (await scene.first_event(document))["type"] == "rotation.accepted"
    project.bucket.put_made("repair", lost)
    project.bucket.put_made("repair", project.made("fine", b"fine", generation=1))
    end = await scene.ended(document["rotation_id"])
    assert counts(end) == {
        "objects": 2,
        "current": 1,
        "rewrapped": 1,
        "failed": 1,
        "clean": False,
    }
    assert scene.failures("repair", document["rotation_id"]) == {"lost": "no_usable_wrap"}
    end = await scene.swept("repair", repair=True)
    assert counts(end) == {"objects": 2, "current": 2, "rewrapped": 1, "clean": True}
    project.assert_opens_as({"lost": b"under the old key alone", "fine": b"fine"})
    assert project.keyring()["history"][0]["kek"] is None


async def wraps_that_disagree(scene: Scene) -> None:
    """Left alone until a repair is requested; names that Keyturn does not know are removed."""
    project = await scene.enrolled("disagree")
    plaintexts = project.fill(3)
    hidden = project.made("k/000").metadata["enc-dek-user"]
    document = project.rotation()
    damaged, unknown = project.made("damaged"), project.made("unknown")
    damaged.metadata["enc-dek-user"] = to_base64(os.urandom(104))
    unknown.metadata |= {"enc-dek-user-1": hidden, "enc-upload": hidden}
    sealed = seal_tombstone(project.admin_kek(), project.name, "deleted", requests.now())
    deleted = project.made("deleted")
    deleted.metadata = {
        "enc-algo": "deleted",
        "enc-dek-admin": to_base64(sealed),
        "enc-dek-user": hidden,
    }
    for made in (damaged, unknown, deleted):
        project.bucket.put_made("disagree", made)
    before = project.bucket.get("disagree/damaged")
    await scene.send(document)
    end = await scene.ended(document["rotation_id"])
    assert counts(end) == {
        "objects": 6,
        "current": 4,
        "rewrapped": 4,
        "deleted": 1,
        "failed": 1,
        "clean": False,
    }
    assert scene.failures("disagree", document["rotation_id"]) == {"damaged": "wraps_disagree"}
    assert project.bucket.get("disagree/damaged")[1]["Metadata"] == before[1]["Metadata"]
    kept = project.bucket.get("disagree/unknown")[1]["Metadata"]
    assert hidden not in kept.values()
    body, tombstone = project.bucket.get("disagree/deleted")
    assert (body, set(tombstone["Metadata"])) == (b"", {"enc-algo", "enc-dek-admin"})
    end = await scene.swept("disagree", repair=True)
    assert counts(end) == {
        "objects": 6,
        "current": 5,
        "rewrapped": 1,
        "deleted": 1,
        "clean": True,
    }
    project.assert_opens_as({**plaintexts, "damaged": b"hello", "unknown": b"hello"})


async def adopted(scene: Scene) -> None:
    """A keyring that was lost: enrolled again, above every existing generation, and swept."""
    project = await scene.enrolled("adopted")
    plaintexts = project.fill(10)
    await project.rotated()
    project.bucket.delete(keyring_s3_key("adopted"))
    other = requests.enroll(scene.deployment, "adopted")
    refused = await scene.first_event(other)
    assert (refused["type"], refused["code"]) == ("enroll.rejected", "keyring_rolled_back")
    await scene.dead("keyturn.control", other["request_id"])
    # The deployment's API key again: nothing shows the worker that it was one of this project.
    document = requests.enroll(scene.deployment, "adopted", adopt=True)
    enrolled = await scene.first_event(document)
    assert (enrolled["type"], enrolled["generation"]) == ("project.enrolled", 3)
    end = await scene.ended(document["request_id"])
    assert end["type"] == "sweep.completed"
    assert counts(end) == {"objects": 10, "current": 10, "rewrapped": 10, "clean": True}
    now = Project(scene, "adopted", [new_api_key(), *project.api_keys[1:], project.api_keys[0]])
    now.assert_opens_as(plaintexts)
    ring = now.keyring()
    assert (ring["generation"], ring["history"]) == (3, [])
    again = await scene.first_event(document)
    assert (again["type"], again["generation"]) == ("project.enrolled", 3)


async def a_lost_master_key(scene: Scene) -> None:
    """No process has it, and the keyring is gone: the project's key restores all wraps."""
    project = Project(scene, "orphaned", [new_api_key(), new_api_key(), scene.deployment.api_key])
    plaintexts = {f"k/{n}": f"plaintext {n}".encode() for n in range(9)}
    for key, plaintext in plaintexts.items():
        made = project.made(key, plaintext, master_key=("lost", os.urandom(32)))
        project.bucket.put_made(project.name, made)
    document = requests.enroll(scene.deployment, project.name, adopt=True)
    enrolled = await scene.first_event(document)
    assert enrolled["type"] == "project.enrolled", enrolled
    end = await scene.ended(document["request_id"])
    assert counts(end) == {"objects": 9, "current": 9, "rewrapped": 9, "clean": True}
    now = Project(scene, project.name, project.api_keys[-1:])
    now.assert_opens_as(plaintexts)


async def plaintext_encrypted(scene: Scene) -> None:
    """Encrypted in place, everything else kept; from then on plaintext is forbidden."""
    project = await scene.enrolled("plain", plaintext="allowed")
    bodies = {
        "empty": b"",
        "small": b"x",
        "chunk": os.urandom(16 * 1024),
        "large": os.urandom(6 * MIB + 1),
    }
    for key, body in bodies.items():
        project.bucket.put(
            f"plain/{key}",
            body,
            {"author": "kim"},
            ContentType="text/csv",
            CacheControl="no-store",
            ContentDisposition="inline",
            Tagging="team=legal",
        )
    project.put("sealed already", b"s")
    without = await scene.swept("plain")
    assert counts(without) == {"objects": 5, "current": 1, "plaintext": 4, "clean": True}
    assert project.keyring()["plaintext"] == "allowed"
    end = await scene.swept("plain", encrypt_plaintext=True)
    assert counts(end) == {"objects": 5, "current": 5, "encrypted": 4, "clean": True}
    project.assert_opens_as(bodies | {"sealed already": b"s"})
    for key in bodies:
        head = project.bucket.head(f"plain/{key}")
        kept = {name: v for name, v in head["Metadata"].items() if not name.startswith("enc-")}
        assert kept == {"author": "kim"}
        headers = (head["ContentType"], head["CacheControl"], head["ContentDisposition"])
        assert headers == ("text/csv", "no-store", "inline")
        tags = project.bucket.client.get_object_tagging(
            Bucket=scene.deployment.bucket, Key=f"plain/{key}"
        )["TagSet"]
        assert tags == [{"Key": "team", "Value": "legal"}]
    assert project.keyring()["plaintext"] == "forbidden"
    project.bucket.put("plain/late", b"not by Keyturn", {})
    late = await scene.swept("plain")
    assert counts(late) == {"objects": 6, "current": 5, "failed": 1, "clean": False}


async def labels_are_hints(scene: Scene) -> None:
    """Wrong labels are rewritten, whatever they say, and mislead no worker."""
    project = await scene.enrolled("labels")
    wrong = {
        "generation": {"enc-kek-user": "7:0123456789abcdef"},
        "id": {"enc-kek-user": "1:0123456789abcdef"},
        "master": {"enc-kek-admin": "nobody"},
        "none": {"enc-kek-admin": ""},
    }
    for key, labels in wrong.items():
        made = project.made(key, key.encode())
        made.metadata |= labels
        project.bucket.put_made("labels", made)
    end = await scene.swept("labels")
    assert counts(end) == {"objects": 4, "current": 4, "rewrapped": 4, "clean": True}
    project.assert_opens_as({key: key.encode() for key in wrong})
    right = project.made("x").metadata
    for key in wrong:
        metadata = project.bucket.head(f"labels/{key}")["Metadata"]
        for name in ("enc-kek-user", "enc-kek-admin"):
            assert metadata[name] == right[name]


async def refused(scene: Scene) -> None:
    """A sweep of a project that does not exist, and an id that names another sweep."""
    document = requests.sweep("nobody")
    event = await scene.first_event(document)
    assert (event["type"], event["code"]) == ("sweep.rejected", "unknown_project")
    letter = await scene.dead("keyturn.control", document["sweep_id"])
    assert json.loads(letter.body) == document
    project = await scene.enrolled("once")
    first = requests.sweep("once")
    await scene.send(first)
    await scene.ended(first["sweep_id"])
    for change in ({"repair": True}, {"encrypt_plaintext": True}):
        other: dict[str, Any] = {**first, **change}
        event = await scene.first_event(other)
        assert (event["type"], event["code"]) == ("sweep.rejected", "malformed_request")
        await scene.dead("keyturn.control", first["sweep_id"])
    again = await scene.first_event(first | {"requested_at": requests.now()})
    assert again["type"] == "sweep.completed"
    assert project.keyring()["generation"] == 1


SCENARIOS: dict[str, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    play.__name__: play
    for play in (
        bad_objects_hold_nothing_up,
        a_repair,
        wraps_that_disagree,
        adopted,
        a_lost_master_key,
        plaintext_encrypted,
        labels_are_hints,
        refused,
    )
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_sweep(running: dict[str, asyncio.Task[None]], scenario: str) -> None:
    """The scenario of that name; see its docstring."""
    await running[scenario]
