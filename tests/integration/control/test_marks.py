"""A keyring that a bucket writer rolled back serves no request (SPEC 5.5), end to end.

He keeps what the bucket held when his API key was valid, and puts it back after a rotation. The
marks on the broker contradict it, to every worker, and to one that starts only afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from keyturn import topology
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.pipeline.amqp.declarations import declare
from tests.integration.sweep.scene import WORKER_ENV, Project, Scene
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.harness.marks import mark_keyrings
from tools.harness.process import worker
from tools.harness.scene import CRASHING
from tools.harness.wire import open_wire
from tools.harness.worker_under_test import WorkerUnderTest, fresh_amqp_url
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.integration.sweep.scene import Document
    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

NEW_MASTER_KEY = ("m2", os.urandom(32))
# What was read before a theft serves no upload after it.
ENV = WORKER_ENV | {"KEYRING_CACHE_S": "0"}


async def new_deployment(broker: Servers, ceph: S3Server) -> Deployment:
    url, bucket = await fresh_amqp_url(broker), new_bucket(ceph)
    return Deployment(url, ceph, bucket, more_master_keys=dict([NEW_MASTER_KEY]))


@asynccontextmanager
async def serving(deployment: Deployment, **env: str) -> AsyncIterator[Scene]:
    """A worker that starts now; `env` are further settings of it."""
    async with (
        worker(deployment.worker_env(**ENV, **env)) as process,
        open_wire(deployment) as wire,
    ):
        yield Scene(WorkerUnderTest(deployment, process, wire))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(broker: Servers, ceph: S3Server) -> AsyncIterator[Scene]:
    """A worker for the module."""
    async with serving(await new_deployment(broker, ceph)) as scene:
        yield scene


def upload_of(project: Project, key: str = "waiting") -> Document:
    return requests.upload(project.scene.deployment, project.name, key, b"secret").document


async def check_waits(
    project: Project, document: Document, code: str = "keyring_rolled_back"
) -> None:
    """The upload is put off, and nothing is stored."""
    process, text = project.scene.served.process, f'"request_id":"{document["upload_id"]}"'
    row = json.loads(line := await process.logged(text))
    while row.get("code") == "marks_unavailable" != code:  # a busy machine: not read yet
        after = process.lines.index(line) + 1
        row = json.loads(line := await process.logged(text, after=after))
    assert (row["event"], row["code"]) == ("retry scheduled", code)
    assert row["level"] == ("error" if code == "keyring_rolled_back" else "warning")
    assert project.s3_key(document["key"]) not in project.bucket.keys(project.name)


async def check_stored(project: Project, document: Document) -> None:
    """The upload that waited is stored under the newest key."""
    event = await project.scene.wire.outcome(document["upload_id"])
    assert (event["type"], event["generation"]) == ("upload.stored", project.generation)


async def check_refused(project: Project, document: Document) -> dict[str, Any]:
    """The request ends with an event and a dead letter, and changes nothing."""
    keyring = keyring_bytes(project)
    heads = project.bucket.heads(f"{project.name}/")
    event = await project.scene.first_event(document)
    assert event["type"] == document["type"].replace(".requested", ".rejected"), event
    assert event["code"] == "keyring_rolled_back"
    await project.scene.dead("keyturn.control", next(iter(_ids(document))))
    assert keyring_bytes(project) == keyring
    assert project.bucket.heads(f"{project.name}/") == heads
    return event


def _ids(document: Document) -> list[str]:
    names = ("rotation_id", "sweep_id", "request_id")
    return [document[name] for name in names if name in document]


def keyring_bytes(project: Project) -> bytes | None:
    s3_key = keyring_s3_key(project.name)
    return project.keyring_bytes() if s3_key in project.bucket.keys(s3_key) else None


def rotation_to_another_key(project: Project) -> Document:
    """A rotation that is expected to be refused: the project's newest key stays what it is."""
    document = project.rotation()
    project.api_keys.pop()
    return document


async def test_a_thief_who_puts_an_old_keyring_back_gets_nothing(
    broker: Servers, ceph: S3Server
) -> None:
    """Neither from the worker that rotated, nor from one that starts afterwards."""
    deployment = await new_deployment(broker, ceph)
    async with serving(deployment) as scene:
        project = await scene.enrolled("robbed")
        stolen = project.keyring_bytes()
        plaintexts = project.fill(8)
        await project.upload("uploaded", b"by a worker")
        assert (await project.rotated())["clean"]
        newest = project.keyring_bytes()
        project.put_keyring(stolen)
        waiting = upload_of(project)
        await scene.send(waiting)
        await check_waits(project, waiting)
        for document in (
            rotation_to_another_key(project),
            requests.sweep(project.name, repair=True),
            requests.delete(project.name, "k/001"),
        ):
            await check_refused(project, document)
        assert await scene.served.process.terminate() == 0
    async with serving(deployment) as scene:
        project.scene = scene
        await check_refused(project, rotation_to_another_key(project))
        later = upload_of(project, "later")
        await scene.send(later)
        await check_waits(project, later)
        project.assert_opens_as(plaintexts)
        project.put_keyring(newest)
        for document in (waiting, later):
            await check_stored(project, document)
        project.assert_opens_as({**plaintexts, "waiting": b"secret", "later": b"secret"})


async def test_a_keyring_rolled_back_within_a_generation_after_a_master_key_sweep(
    scene: Scene,
) -> None:
    """The old master key may be lost, which is why it was swept away."""
    project = await scene.enrolled("swept")
    plaintexts = project.fill(4)
    older = project.keyring_bytes()
    assert (await scene.swept(project.name, master_key=NEW_MASTER_KEY[0]))["clean"]
    newest = project.keyring_bytes()
    project.put_keyring(older)
    waiting = upload_of(project)
    await scene.send(waiting)
    await check_waits(project, waiting)
    await check_refused(project, requests.sweep(project.name))
    project.put_keyring(newest)
    await check_stored(project, waiting)
    project.assert_opens_as(plaintexts, master_key=NEW_MASTER_KEY[1])


async def test_a_keyring_rolled_back_to_where_plaintext_was_allowed(
    broker: Servers, ceph: S3Server
) -> None:
    """A sweep has forbidden it; a worker without encryption stores it where it is allowed."""
    deployment = await new_deployment(broker, ceph)
    async with serving(deployment, ENCRYPTION_ENABLED="false") as scene:
        project = await scene.enrolled("plain", plaintext="allowed")
        older = project.keyring_bytes()
        await project.upload("before", b"secret")
        assert project.bucket.get(project.s3_key("before"))[0] == b"secret"
        assert (await scene.swept(project.name, encrypt_plaintext=True))["clean"]
        newest = project.keyring_bytes()
        assert project.keyring()["plaintext"] == "forbidden"
        project.put_keyring(older)
        waiting = upload_of(project)
        await scene.send(waiting)
        await check_waits(project, waiting)
        await check_refused(project, requests.sweep(project.name))
        project.put_keyring(newest)
        await check_stored(project, waiting)
        project.assert_opens_as({"before": b"secret", "waiting": b"secret"})


async def test_a_removed_keyring_can_be_replaced_by_adoption_alone(scene: Scene) -> None:
    """It begins above everything that a thief may have a keyring of."""
    project = await scene.enrolled("removed")
    stolen = project.keyring_bytes()
    assert (await project.rotated())["clean"]
    serial = project.keyring()["serial"]
    project.bucket.delete(keyring_s3_key(project.name))
    waiting = upload_of(project)
    await scene.send(waiting)
    await check_waits(project, waiting)
    await check_refused(project, requests.enroll(scene.deployment, project.name))
    await check_refused(project, rotation_to_another_key(project))
    adopting = requests.enroll(scene.deployment, project.name, adopt=True)
    event = await scene.first_event(adopting)
    assert (event["type"], event["generation"]) == ("project.enrolled", 3)
    assert project.keyring()["serial"] > serial
    project.put_keyring(stolen)
    await check_refused(project, rotation_to_another_key(project))


@pytest.mark.parametrize("kind", ["enroll", "rotation"])
async def test_a_worker_killed_between_put_and_mark_leaves_no_gap(
    broker: Servers, ceph: S3Server, kind: str
) -> None:
    """The next process that reads its keyring marks it. Then the one before is contradicted."""
    deployment = await new_deployment(broker, ceph)
    name = f"killed-{kind}"
    async with serving(deployment) as scene:
        project = await scene.enrolled(name) if kind == "rotation" else Project(scene, name)
        older = keyring_bytes(project)
        assert await scene.served.process.terminate() == 0
    document = requests.enroll(deployment, name) if older is None else project.rotation()
    env = deployment.worker_env(**ENV)
    at = ("--point", "keyring-put-after")
    async with (
        worker(env, "control", module=CRASHING, arguments=at) as dying,
        open_wire(deployment) as wire,
    ):
        project.scene = Scene(WorkerUnderTest(deployment, dying, wire))
        await project.scene.send(document)
        assert await dying.ended() == -signal.SIGKILL
        newest = keyring_bytes(project)
        assert newest not in (None, older)
    async with serving(deployment) as scene:
        project.scene = scene
        event = await scene.wire.outcome(_ids(document)[0])
        assert event["type"] in ("project.enrolled", "rotation.accepted"), event
        await project.upload("after", b"stored")
        if older is not None:
            await scene.ended(_ids(document)[0])
            project.put_keyring(older)
        else:
            project.bucket.delete(keyring_s3_key(name))
        await check_refused(project, rotation_to_another_key(project))


async def test_another_broker_knows_no_keyring(broker: Servers, ceph: S3Server) -> None:
    """A lost broker is noticed: nothing says any longer which keyring is the newest."""
    deployment = await new_deployment(broker, ceph)
    async with serving(deployment) as scene:
        project = await scene.enrolled("kept")
        assert await scene.served.process.terminate() == 0
    other = replace(deployment, amqp_url=await fresh_amqp_url(broker))
    async with serving(other) as scene:
        project = Project(scene, "kept")
        waiting = upload_of(project)
        await scene.send(waiting)
        await check_waits(project, waiting)
        # Enrolled long ago: no worker is about to mark it.
        long_ago = Project(scene, "long-ago")
        scene.bucket.put_keyring(long_ago.name, serial=3)
        await check_refused(long_ago, rotation_to_another_key(long_ago))
        # Of a release that knew no serial: it is trusted once.
        earlier = Project(scene, "earlier")
        scene.bucket.put_keyring(earlier.name)
        await earlier.upload("first", b"use")
        scene.bucket.put_keyring(earlier.name, plaintext="allowed")
        await check_refused(earlier, rotation_to_another_key(earlier))
        await mark_keyrings(other, project.name)
        await check_stored(project, waiting)


async def test_a_stream_that_is_replaced_while_a_worker_runs_stops_it(
    broker: Servers, ceph: S3Server
) -> None:
    """An empty stream contradicts nothing; the worker knows what the one before had."""
    deployment = await new_deployment(broker, ceph)
    async with serving(deployment) as scene:
        project = await scene.enrolled("replaced")
        stolen = project.keyring_bytes()
        assert (await project.rotated())["clean"]
        newest = project.keyring_bytes()
        await scene.wire.channel.queue_delete(topology.MARKS_STREAM)
        await declare(deployment.amqp_url, deployment.publishers())
        project.put_keyring(stolen)
        await scene.served.process.logged("the stream of marks was replaced")
        waiting = upload_of(project)
        await scene.send(waiting)
        await check_waits(project, waiting, "marks_unavailable")
        rotation = project.rotation()
        await scene.send(rotation)
        await scene.served.process.logged(f'"request_id":"{rotation["rotation_id"]}"')
        assert project.keyring_bytes() == stolen
        assert scene.events(rotation["rotation_id"]) == []
        # His keyring's own mark, kept from before, is below what the worker knows.
        await mark_keyrings(deployment, project.name)
        again = upload_of(project, "again")
        await scene.send(again)
        await check_waits(project, again, "marks_unavailable")
        project.put_keyring(newest)
        await mark_keyrings(deployment, project.name)
        # All of it was only put off.
        ids = (waiting["upload_id"], again["upload_id"], rotation["rotation_id"])
        events = await asyncio.gather(*(scene.wire.outcome(each) for each in ids))
        types = [event["type"] for event in events]
        assert types == ["upload.stored", "upload.stored", "rotation.accepted"]
        assert {event["generation"] for event in events} <= {2, 3}
