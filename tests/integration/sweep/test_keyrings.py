"""Keyrings and records that an attacker changed are reported, and wrap nothing (SPEC 13).

A keyring that was forged, or moved from another project, does not open. In the middle of a sweep
each stops it; once the keyring is back, the sweep's dead letter, sent again, carries it on. One
that was rolled back or removed is contradicted by its mark: a sweep that is under way waits, and a
new one is rejected.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import aio_pika
import pytest

from keyturn.crypto import Secret, kek_id, record_kek, seal_record, to_base64
from keyturn.identifiers import keyring_s3_key
from tests.integration.sweep.scene import Project, Scene, counts
from tools.harness import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.integration.sweep.scene import Document, Event

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

# Not one object of these tests may ever open by it.
ATTACKERS_KEK = Secret(bytes([7]) * 32)


def forged(project: Project) -> bytes:
    """A keyring that names the right master key, and holds the attacker's KEK."""
    now, s3_key = requests.now(), keyring_s3_key(project.name)
    sealed_part = {
        "generation": project.generation,
        "kek_id": kek_id(ATTACKERS_KEK),
        "kek": to_base64(ATTACKERS_KEK.reveal()),
        "rotation_id": requests.new_id(),
        "requested_at": now,
        "at": now,
        "plaintext": "allowed",
        "history": [],
    }
    kek = record_kek(os.urandom(32), project.name)
    sealed = seal_record(kek, s3_key, json.dumps(sealed_part).encode())
    record = {"v": 1, "project": project.name, "master_key": "m1", "sealed": to_base64(sealed)}
    return json.dumps(record).encode()


async def moved(project: Project) -> bytes:
    """Another project's own keyring, renamed where it names its project in the clear."""
    other = await project.scene.enrolled(f"{project.name}-b")
    return other.keyring_bytes().replace(other.name.encode(), project.name.encode())


def nothing_of_the_attackers(project: Project, keys: list[str]) -> None:
    for key in keys:
        for generation in (1, 2, 3):
            at = project.s3_key(key)
            assert project.bucket.unwrapped(ATTACKERS_KEK, "user", at, generation) is None


def replayed(letter: aio_pika.abc.AbstractIncomingMessage) -> aio_pika.Message:
    """A dead letter as the operator sends it again (SPEC 12)."""
    kept = {n: v for n, v in letter.headers.items() if n not in ("keyturn-code", "keyturn-detail")}
    return aio_pika.Message(letter.body, headers=kept, content_type=letter.content_type)


async def refused_by(scene: Scene, project: Project, record: bytes) -> None:
    """Rotation, sweep, delete and upload are each refused; nothing anywhere is written."""
    project.fill(8)
    project.put_keyring(record)
    before = project.bucket.heads(f"{project.name}/")
    documents: list[Document] = [
        project.rotation(),
        requests.sweep(project.name),
        requests.delete(project.name, "k/001"),
        requests.upload(scene.deployment, project.name, "new", b"x").document,
    ]
    # The upload last: the worker has read the record by then, and has no other in its cache.
    *control, upload = documents
    events = await asyncio.gather(*map(scene.first_event, control))
    events.append(await scene.first_event(upload))
    assert [event["type"] for event in events] == [
        "rotation.rejected",
        "sweep.rejected",
        "delete.rejected",
        "upload.rejected",
    ]
    assert {event["code"] for event in events} == {"corrupt_object"}
    for document, queue in zip(documents, ["control", "control", "control", "upload"], strict=True):
        name = next(
            n for n in ("rotation_id", "sweep_id", "request_id", "upload_id") if n in document
        )
        letter = await scene.dead(f"keyturn.{queue}", document[name])
        assert letter.headers["keyturn-code"] == "corrupt_object"
    assert project.bucket.heads(f"{project.name}/") == before
    assert project.keyring_bytes() == record


async def forged_before(scene: Scene) -> None:
    """Nothing is served by a forged keyring."""
    project = await scene.enrolled("forged")
    await refused_by(scene, project, forged(project))


async def moved_before(scene: Scene) -> None:
    """Nor by another project's, though every master key opens it where it belongs."""
    project = await scene.enrolled("moved")
    await refused_by(scene, project, await moved(project))


async def _stopped(scene: Scene, project: Project, touch: Callable[[], None], code: str) -> None:
    """A sweep that meets a changed keyring in its middle is reported, stopped, resumed."""
    plaintexts = project.fill(20)
    document = project.rotation()
    assert (await scene.first_event(document))["type"] == "rotation.accepted"
    right = project.keyring_bytes()
    touch()

    def failed(event: Event) -> bool:
        return event["type"] == "rotation.failed" and document["rotation_id"] in event.values()

    event = await scene.wire.event(failed)
    assert (event["code"], event["project"]) == (code, project.name)
    letter = await scene.dead("keyturn.plan", f'"project":"{project.name}"')
    assert letter.headers["keyturn-code"] == code
    nothing_of_the_attackers(project, list(plaintexts))
    end = scene.origin(project.name, document["rotation_id"])["end"]
    assert (end["code"], end["clean"]) == (code, False)
    project.put_keyring(right)
    await scene.wire.channel.default_exchange.publish(replayed(letter), "keyturn.plan")
    end = await scene.wire.event(
        lambda event: (
            event["type"] == "rotation.completed" and document["rotation_id"] in event.values()
        )
    )
    # An attempt that was cut off after its copies never reported them.
    assert counts(end) | {"rewrapped": 0} == {
        "objects": 20,
        "current": 20,
        "rewrapped": 0,
        "clean": True,
    }
    project.assert_opens_as(plaintexts)


async def forged_in_the_middle(scene: Scene) -> None:
    """A forged keyring ends the sweep with an event."""
    project = await scene.enrolled("forged-mid")
    await _stopped(scene, project, lambda: project.put_keyring(forged(project)), "corrupt_object")


async def moved_in_the_middle(scene: Scene) -> None:
    """So does one from another project."""
    project = await scene.enrolled("moved-mid")
    record = await moved(project)
    await _stopped(scene, project, lambda: project.put_keyring(record), "corrupt_object")


def put_offs(scene: Scene, project: Project) -> list[dict[str, Any]]:
    """The worker's log lines that this project waits for an operator."""
    rows = [json.loads(line) for line in scene.served.process.lines if "keyring_rolled" in line]
    return [
        row for row in rows if row["event"] == "retry scheduled" and row["project"] == project.name
    ]


async def _waiting(scene: Scene, project: Project, touch: Callable[[bytes], None]) -> None:
    """A sweep whose keyring is taken away waits, with an error in the log, and writes nothing.

    `touch` gets the keyring of before the rotation.
    """
    plaintexts = project.fill(20)
    before = project.keyring_bytes()
    document = project.rotation()
    assert (await scene.first_event(document))["type"] == "rotation.accepted"
    right = project.keyring_bytes()
    await scene.wire.event(
        lambda event: document["rotation_id"] in event.values() and event.get("rewrapped") == 20
    )
    touch(before)
    heads = project.bucket.heads(f"{project.name}/")
    await scene.served.process.logged(f'"project":"{project.name}","code":"keyring_rolled_back"')
    assert project.bucket.heads(f"{project.name}/") == heads
    project.put_keyring(right)
    end = await scene.ended(document["rotation_id"])
    assert counts(end) == {"objects": 20, "current": 20, "rewrapped": 20, "clean": True}
    assert {row["level"] for row in put_offs(scene, project)} == {"error"}
    project.assert_opens_as(plaintexts)


async def rolled_back_in_the_middle(scene: Scene) -> None:
    """Nothing falls back to the old key."""
    project = await scene.enrolled("rolled-mid")
    await _waiting(scene, project, project.put_keyring)


async def deleted_in_the_middle(scene: Scene) -> None:
    """A keyring that is gone is no unknown project: its mark says that there was one."""
    project = await scene.enrolled("deleted-mid")
    await _waiting(
        scene, project, lambda _before: project.bucket.delete(keyring_s3_key(project.name))
    )


async def rolled_back_before(scene: Scene) -> None:
    """A sweep by a keyring below its mark is rejected, and writes nothing."""
    project = await scene.enrolled("rolled")
    plaintexts = project.fill(10)
    before = project.keyring_bytes()
    await project.rotated()
    right, heads = project.keyring_bytes(), project.bucket.heads("rolled/")
    project.put_keyring(before)
    document = requests.sweep("rolled", repair=True)
    event = await scene.first_event(document)
    assert (event["type"], event["code"]) == ("sweep.rejected", "keyring_rolled_back")
    letter = await scene.dead("keyturn.control", document["sweep_id"])
    assert letter.headers["keyturn-code"] == "keyring_rolled_back"
    assert project.bucket.heads("rolled/") == heads
    project.put_keyring(right)
    await scene.wire.channel.default_exchange.publish(replayed(letter), "keyturn.control")
    end = await scene.wire.event(
        lambda event: event["type"] == "sweep.completed" and document["sweep_id"] in event.values()
    )
    assert counts(end) == {"objects": 10, "current": 10, "clean": True}
    project.assert_opens_as(plaintexts)


async def forged_records_of_a_sweep(scene: Scene) -> None:
    """Forged results prove nothing: the pages are processed all the same."""
    project = await scene.enrolled("records")
    plaintexts = project.fill(20)
    other = await scene.enrolled("records-b")
    await scene.swept("records-b")
    record = scene.bucket.get(".keyturn/sweeps/records-b.json")[0]
    document = project.rotation()
    await scene.send(document)
    await scene.wire.event(
        lambda event: document["rotation_id"] in event.values() and event.get("rewrapped") == 20
    )
    # The attempts that prove the pages wait for two leases. An attacker is faster.
    round_id = scene.bucket.record(".keyturn/sweeps/records.json", "records")["round"]["id"]
    for page in range(4):
        for attempt in range(1, 4):
            body = b"{}" if attempt % 2 else record.replace(other.name.encode(), b"records")
            name = f"{page:08}-{attempt:06}.json"
            scene.bucket.put(f".keyturn/sweeps/records/{round_id}/results/{name}", body, {})
    event = await scene.ended(document["rotation_id"])
    assert counts(event) == {"objects": 20, "current": 20, "rewrapped": 20, "clean": True}
    project.assert_opens_as(plaintexts)


SCENARIOS: dict[str, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    play.__name__: play
    for play in (
        deleted_in_the_middle,
        forged_before,
        moved_before,
        forged_in_the_middle,
        moved_in_the_middle,
        rolled_back_in_the_middle,
        rolled_back_before,
        forged_records_of_a_sweep,
    )
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_keyring(running: dict[str, asyncio.Task[None]], scenario: str) -> None:
    """The scenario of that name; see its docstring."""
    await running[scenario]
