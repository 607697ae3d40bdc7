"""A versioned bucket on SeaweedFS: what the README promises, and what it costs (SPEC 8.5, 8.7, 15).

The objects are uploaded by the worker. Requests to them are counted between it and the server.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests.integration.sweep.scene import WORKER_ENV, Project, Scene, counts
from tools.bench.rotation.delay_proxy import Seen, forwarding
from tools.harness import requests
from tools.harness.deployment import Deployment
from tools.harness.worker_under_test import fresh_amqp_url, run_worker_for
from tools.servers import new_bucket
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.bench.rotation.delay_proxy import Way
    from tools.servers import S3Server, Servers

pytestmark = [
    pytest.mark.servers,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

OBJECTS = 30
PROJECT = "versioned"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def counted(
    broker: Servers, seaweedfs: S3Server
) -> AsyncIterator[tuple[Scene, Project, Way]]:
    """A worker on a bucket that keeps versions, a project with objects, and what goes through."""
    deployment = Deployment(await fresh_amqp_url(broker), seaweedfs, new_bucket(seaweedfs))
    with closing(sync_client(seaweedfs)) as client:
        client.put_bucket_versioning(
            Bucket=deployment.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
    at = urlsplit(seaweedfs.endpoint_url)
    assert at.hostname is not None
    assert at.port is not None
    under = f"/{deployment.bucket}/{PROJECT}/"
    async with forwarding(at.hostname, at.port, delay_s=0, under=under) as (port, way):
        env = {**WORKER_ENV, "S3_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
        async with run_worker_for(deployment, **env) as running:
            scene = Scene(running)
            project = await scene.enrolled(PROJECT)
            first, *others = plaintexts().items()
            # Before those below it: afterwards the server takes it for existing.
            await project.upload(*first)
            await asyncio.gather(*(project.upload(key, data) for key, data in others))
            yield scene, project, way


def plaintexts() -> dict[str, bytes]:
    """In a folder, with its name, and with names that begin like it and sort before it.

    Pages have seven keys, so they end at each of these.
    """
    below = [f"report/{n:02}.pdf" for n in range(1, OBJECTS, 2)]
    beside = [f"report-{n:02}" for n in range(2, OBJECTS, 2)]
    return {name: name.encode() for name in ("report", *below, *beside)}


def versions(project: Project, prefix: str = "") -> list[dict[str, Any]]:
    """All versions and delete markers of the project's objects."""
    pages = project.bucket.client.get_paginator("list_object_versions")
    found: list[dict[str, Any]] = []
    for page in pages.paginate(
        Bucket=project.bucket.deployment.bucket, Prefix=f"{project.name}/{prefix}"
    ):
        rows: list[Any] = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        found += rows
    return found


def of_key(project: Project, key: str) -> list[dict[str, Any]]:
    """The versions of one object."""
    return [row for row in versions(project, key) if row["Key"] == f"{project.name}/{key}"]


def evidence(project: Project) -> dict[str, Any]:
    """The predicate of the project's newest evidence."""
    bucket = project.bucket.deployment.bucket
    listed = project.bucket.client.list_objects_v2(
        Bucket=bucket, Prefix=f".keyturn/evidence/{project.name}/"
    )
    newest = max(listed["Contents"], key=lambda row: row["LastModified"])
    envelope = json.loads(project.bucket.get(newest["Key"])[0])
    predicate: dict[str, Any] = json.loads(b64decode(envelope["payload"]))["predicate"]
    return predicate


async def test_a_rotation_leaves_no_version_that_the_old_key_opens(
    counted: tuple[Scene, Project, Way],
) -> None:
    """Of each object one version is left. Evidence says so, and the requests are counted."""
    _, project, way = counted
    vars(way.seen).update(vars(Seen()))
    end = await project.rotated()
    assert counts(end) == {
        "objects": OBJECTS,
        "rewrapped": OBJECTS,
        "current": OBJECTS,
        "clean": True,
    }
    seen = way.seen
    assert Counter(row["Key"].partition("/")[2] for row in versions(project)) == Counter(
        plaintexts().keys()
    )
    project.assert_opens_as(plaintexts())
    assert {
        name: evidence(project)["counts"][name] for name in ("objects", "noncurrent_stale")
    } == {
        "objects": OBJECTS,
        "noncurrent_stale": 0,
    }
    # It is read three times: before its copy, after it, and for the proof. The version that the
    # copy superseded is read and removed. A page is done once more where a lease ended.
    assert 6 <= seen.under / OBJECTS <= 9


async def test_a_delete_leaves_the_tombstone_alone(
    counted: tuple[Scene, Project, Way],
) -> None:
    """No older version of it is left, and those of names that begin like it stay."""
    scene, project, _ = counted
    keys = ("report", "report-02")
    for key in keys:
        project.put(key, b"another version of it")
        assert len(of_key(project, key)) == 2
    deletes = (scene.first_event(requests.delete(PROJECT, key)) for key in keys)
    for event in await asyncio.gather(*deletes):
        assert event["type"] == "object.deleted", event
    for key in keys:
        assert [(row["Size"], row["IsLatest"]) for row in of_key(project, key)] == [(0, True)]
        scene.bucket.deleted_at(f"{PROJECT}/{key}", scene.deployment.master_key)
    assert len(versions(project, "report/")) == OBJECTS // 2
