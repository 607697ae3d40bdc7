"""Versioned buckets: older versions hold older wraps, and must not outlive them (SPEC 8.5, 8.7).

On moto, whose versioned buckets honor the conditions that Ceph's ignore there. Where versioning is
suspended, on Ceph.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import pytest
import pytest_asyncio

from tests.integration.sweep.scene import WORKER_ENV, Project, Scene, counts
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.harness.worker_under_test import fresh_amqp_url, run_worker_for
from tools.servers import new_bucket

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(broker: Servers, moto: S3Server) -> AsyncIterator[Scene]:
    """A worker on a bucket that keeps versions."""
    deployment = Deployment(await fresh_amqp_url(broker), moto, new_bucket(moto, versioned=True))
    async with run_worker_for(deployment, **WORKER_ENV) as running:
        yield Scene(running)


def versions(project: Project) -> Counter[str]:
    """How many versions each key of the project has; delete markers apart."""
    answer = project.bucket.client.list_object_versions(
        Bucket=project.bucket.deployment.bucket, Prefix=f"{project.name}/"
    )
    rows: list[Any] = answer.get("Versions", [])
    return Counter(row["Key"].partition("/")[2] for row in rows)


async def superseded(scene: Scene) -> None:
    """A rotation leaves one version of each object, and none that the old key opens."""
    project = await scene.enrolled("superseded")
    plaintexts = project.fill(10)
    project.put("k/000", b"plaintext 0")  # a second version of the same, under the same key
    assert versions(project)["k/000"] == 2
    end = await project.rotated()
    assert counts(end) == {"objects": 10, "current": 10, "rewrapped": 10, "clean": True}
    assert versions(project) == Counter(plaintexts.keys())
    project.assert_opens_as(plaintexts)


async def deleted(scene: Scene) -> None:
    """A delete leaves the tombstone alone: no version holds the body or a wrap of it."""
    project = await scene.enrolled("deleted")
    project.fill(3)
    project.put("k/001")
    assert versions(project)["k/001"] == 2
    event = await scene.first_event(requests.delete("deleted", "k/001"))
    assert event["type"] == "object.deleted"
    assert versions(project) == {"k/000": 1, "k/001": 1, "k/002": 1}
    scene.bucket.deleted_at("deleted/k/001", scene.deployment.master_key)


async def under_a_delete_marker(scene: Scene) -> None:
    """Keyturn leaves no delete marker; what is under another program's is reported, not removed."""
    project = await scene.enrolled("marked")
    project.fill(4)
    project.bucket.delete("marked/k/002")
    end = await project.rotated()
    assert counts(end) == {
        "objects": 3,
        "current": 3,
        "rewrapped": 3,
        "noncurrent_stale": 1,
        "clean": False,
    }
    assert versions(project) == {f"k/{n:03}": 1 for n in range(4)}
    assert project.keyring()["history"][0]["kek"] is not None


async def history_in_plaintext(scene: Scene) -> None:
    """Plaintext that was encrypted: its history is kept, and the sweep is not clean."""
    project = await scene.enrolled("history", plaintext="allowed")
    project.bucket.put("history/plain", b"first", {})
    end = await scene.swept("history", encrypt_plaintext=True)
    assert counts(end) == {
        "objects": 1,
        "current": 1,
        "encrypted": 1,
        "noncurrent_stale": 1,
        "clean": False,
    }
    assert versions(project) == {"plain": 2}
    assert project.keyring()["plaintext"] == "allowed"


SCENARIOS: dict[str, Callable[[Scene], Coroutine[Any, Any, None]]] = {
    play.__name__: play
    for play in (
        superseded,
        deleted,
        under_a_delete_marker,
        history_in_plaintext,
    )
}


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_versioned(running: dict[str, asyncio.Task[None]], scenario: str) -> None:
    """The scenario of that name; see its docstring."""
    await running[scenario]


async def test_while_versioning_is_suspended_a_rotation_keeps_what_it_wrote(
    broker: Servers, ceph: S3Server
) -> None:
    """A copy replaces the version `null`, which the listing before it showed as an older one."""
    deployment = Deployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    unsafe = {"ALLOW_UNSAFE_STORAGE": "true"}  # Ceph's versioned buckets ignore conditions
    async with run_worker_for(deployment, **WORKER_ENV, **unsafe) as running:
        scene = Scene(running)
        project = await scene.enrolled("suspended")
        project.fill(3)
        set_versioning(project, "Enabled")
        plaintexts = project.fill(3)
        set_versioning(project, "Suspended")
        assert versions(project) == dict.fromkeys(plaintexts, 2)
        end = await project.rotated()
        assert counts(end) == {"objects": 3, "current": 3, "rewrapped": 3, "clean": True}
        assert versions(project) == Counter(plaintexts.keys())
        project.assert_opens_as(plaintexts)


def set_versioning(project: Project, status: Literal["Enabled", "Suspended"]) -> None:
    project.bucket.client.put_bucket_versioning(
        Bucket=project.bucket.deployment.bucket, VersioningConfiguration={"Status": status}
    )
