"""A new master key, for one project and for all (SPEC 8.1), on Ceph's gateway.

Afterwards a worker that never heard of the old one serves everything, which is the proof
that an operator may drop it.
"""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from keyturn.crypto import to_base64
from keyturn.identifiers import EVIDENCE_PREFIX, KEYS_PREFIX
from tests.integration.sweep.scene import WORKER_ENV, Project, Scene, counts
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.harness.worker_under_test import WorkerUnderTest, fresh_amqp_url, run_worker_for
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

NEW = ("m2", os.urandom(32))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(broker: Servers, ceph: S3Server) -> AsyncIterator[Scene]:
    """A worker that holds both keys; enrollments still go under the old one."""
    url, bucket = await fresh_amqp_url(broker), new_bucket(ceph)
    deployment = Deployment(url, ceph, bucket, more_master_keys=dict([NEW]))
    async with run_worker_for(deployment, **WORKER_ENV) as running:
        yield Scene(running)


def under_the_new_one(scene: Scene, project: Project, plaintexts: dict[str, bytes]) -> None:
    """Objects and keyring open by it, and nothing of the project names the old one."""
    project.assert_opens_as(plaintexts, master_key=NEW[1])
    assert project.keyring(NEW)["generation"] == project.generation
    old = project.admin_kek()
    for key in plaintexts:
        at = project.s3_key(key)
        for generation in range(1, project.generation + 1):
            assert scene.bucket.unwrapped(old, "admin", at, generation) is None
        assert project.bucket.head(at)["Metadata"]["enc-kek-admin"] == NEW[0]


def names_the_old_one(scene: Scene) -> list[str]:
    """Everything in the bucket that names the old master key, by its S3 key."""
    found = []
    for s3_key in scene.bucket.keys(""):
        if s3_key.startswith((KEYS_PREFIX, EVIDENCE_PREFIX)):
            continue  # the known text of a master key opens nothing; evidence is sealed under none
        body, answer = scene.bucket.get(s3_key)
        if s3_key.startswith(".keyturn/"):
            named = body and json.loads(body)["master_key"]
        else:
            named = answer["Metadata"].get("enc-kek-admin")
        if named == "m1":
            found.append(s3_key)
    return found


async def one_project(scene: Scene) -> None:
    """Its keyring first, then its objects and tombstones; the others are not touched."""
    changed, other = await scene.enrolled("changed"), await scene.enrolled("other")
    plaintexts, others = changed.fill(20), other.fill(3)
    deleted = await scene.first_event(requests.delete("changed", "gone"))
    assert deleted["type"] == "object.deleted"
    time = scene.bucket.deleted_at("changed/gone", scene.deployment.master_key)
    before = {key: scene.bucket.get(f"changed/{key}")[0] for key in plaintexts}
    ring = changed.keyring()
    end = await scene.swept("changed", master_key="m2")
    assert counts(end) == {
        "objects": 21,
        "current": 20,
        "rewrapped": 20,
        "deleted": 1,
        "clean": True,
    }
    # One change for the master key, and one for the end.
    serial = ring["serial"] + 2
    assert changed.keyring(NEW) == ring | {"evidence": end["evidence"], "serial": serial}
    under_the_new_one(scene, changed, plaintexts)
    assert {key: scene.bucket.get(f"changed/{key}")[0] for key in plaintexts} == before
    assert scene.bucket.deleted_at("changed/gone", NEW[1]) == time
    other.assert_opens_as(others)
    assert other.keyring()["generation"] == 1


async def both_kinds_at_once(scene: Scene) -> None:
    """A user rotation and a master key rotation of one project end in the one right state."""
    project = await scene.enrolled("both")
    plaintexts = project.fill(20)
    rotation, sweep = project.rotation(), requests.sweep("both", master_key="m2")
    await asyncio.gather(scene.send(rotation), scene.send(sweep))
    ends = [await scene.ended(rotation["rotation_id"]), await scene.ended(sweep["sweep_id"])]
    for end in ends:
        assert counts(end) | {"rewrapped": 0} == {
            "objects": 20,
            "current": 20,
            "rewrapped": 0,
            "clean": True,
        }
    under_the_new_one(scene, project, plaintexts)
    assert [entry["kek"] for entry in project.keyring(NEW)["history"]] == [None]


SCENARIOS: dict[str, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    play.__name__: play for play in (one_project, both_kinds_at_once)
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_master_key(running: dict[str, asyncio.Task[None]], scenario: str) -> None:
    """The scenario of that name; see its docstring."""
    await running[scenario]


async def test_all_projects_while_some_are_enrolled(scene: Scene) -> None:
    """Every keyring and object, whenever it was created; then the old key can be dropped.

    It comes last here, since it re-seals whatever the scenarios left.
    """
    projects = [await scene.enrolled(f"p{n}") for n in range(4)]
    plaintexts = {project.name: project.fill(9) for project in projects}
    # A finished sweep leaves a record, which must not keep the old key alive.
    await asyncio.gather(scene.first_event(requests.delete("p0", "gone")), projects[3].rotated())
    document = requests.sweep("*", master_key="m2")
    await scene.send(document)

    def began(event: dict[str, object]) -> bool:
        return event["type"] == "sweep.progressed" and document["sweep_id"] in event.values()

    await scene.wire.event(began)
    late = [await scene.enrolled(f"late{n}") for n in range(3)]
    for project in late:
        plaintexts[project.name] = {"up": project.name.encode()}
        await project.upload("up", project.name.encode())
    end = await scene.ended(document["sweep_id"])
    assert (end["type"], end["project"]) == ("sweep.completed", "*")
    heads = [scene.bucket.head(at) for at in scene.bucket.keys("") if at[0] != "."]
    deleted = sum(head["Metadata"]["enc-algo"] == "deleted" for head in heads)
    assert counts(end) | {"rewrapped": 0} == {
        "objects": len(heads),
        "current": len(heads) - deleted,
        "rewrapped": 0,
        "deleted": deleted,
        "clean": True,
    }
    # One that came late may have met the new key at once.
    assert end["rewrapped"] >= 9 * len(projects)
    for project in (*projects, *late):
        under_the_new_one(scene, project, plaintexts[project.name])
    assert names_the_old_one(scene) == []
    again = await scene.first_event(document)
    assert again | {"at": ""} == end | {"at": ""}
    await scene.served.process.terminate()
    await _served_without_the_old_one(scene, projects[3], plaintexts["p3"])


async def _served_without_the_old_one(
    scene: Scene, project: Project, plaintexts: dict[str, bytes]
) -> None:
    env = scene.deployment.worker_env(
        **WORKER_ENV, MASTER_KEYS=json.dumps({"m2": to_base64(NEW[1])}), ACTIVE_MASTER_KEY="m2"
    )
    async with worker(env) as process:
        now = Scene(WorkerUnderTest(scene.deployment, process, scene.wire))
        project.scene = now
        await project.upload("later", b"by the new one alone")
        swept = requests.sweep("*")
        await now.send(swept)
        end = await project.rotated()
        assert counts(end) | {"objects": 10, "current": 10} == {
            "objects": 10,
            "current": 10,
            "rewrapped": 10,
            "clean": True,
        }
        under_the_new_one(now, project, plaintexts | {"later": b"by the new one alone"})
        assert (await now.ended(swept["sweep_id"]))["clean"]
