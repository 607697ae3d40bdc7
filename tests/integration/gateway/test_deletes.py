"""Deletes over HTTP, with a broker and a worker behind (SPEC 8.7, 9.3)."""

from __future__ import annotations

import json
import secrets
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from keyturn.gateway import Client
from tests.integration.gateway.conftest import reading
from tests.integration.gateway.scene import Live, Scene, plain
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.worker_under_test import fresh_amqp_url, run_worker_for
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tools.harness.http import Response
    from tools.servers import S3Server, Servers

pytestmark = [pytest.mark.servers, pytest.mark.asyncio(loop_scope="module")]

_MOST = 40
_WORKER = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
_GATEWAY = {"KEYRING_CACHE_S": "0.5", "GATEWAY_PROJECT_DELETES": str(_MOST)}
_WAIT = {"Prefer": "wait=30"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def publishers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of `KEYTURN_PUBLISHERS`."""
    return tmp_path_factory.mktemp("publishers") / "publishers.json"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live(broker: Servers, ceph: S3Server, publishers: Path) -> AsyncIterator[Live]:
    """A gateway, a broker and a worker whose publishers are in a file."""
    deployment = Deployment(await fresh_amqp_url(broker), ceph, new_bucket(ceph))
    _replace(publishers, deployment.worker_env()["KEYTURN_PUBLISHERS"])
    async with (
        run_worker_for(deployment, PUBLISHERS=str(publishers), **_WORKER) as served,
        reading(deployment, **_GATEWAY) as scene,
    ):
        yield Live(scene, served)


async def _delete(scene: Scene, key: str, *, project: str = "acme", **headers: str) -> Response:
    return await scene.client.request(project, key, headers, method="DELETE")


async def test_a_deleted_key_is_gone_for_good(live: Live) -> None:
    """204 once the tombstone is final; then 404, a new body is refused, and a delete repeated."""
    scene = live.scene
    scene.put("a/gone", plain(100))
    answer = await _delete(scene, "a/gone", **_WAIT)
    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["preference-applied"] == "wait=30"
    event = live.served.wire.events[-1]
    assert (event["type"], event["key"]) == ("object.deleted", "a/gone")
    got = await scene.client.request("acme", "a/gone")
    assert (got.status, got.code) == (404, "not_found")
    again = await scene.client.request("acme", "a/gone", _WAIT, method="PUT", body=b"x")
    assert (again.status, again.code) == (409, "deleted_key")
    assert (await _delete(scene, "a/gone", **_WAIT)).status == 204
    assert stored_objects.list_keys(scene.deployment, "acme/a/gone") == ["acme/a/gone"]


async def test_a_delete_that_is_not_waited_for(live: Live) -> None:
    live.scene.put("later", plain(100))
    answer = await _delete(live.scene, "later")
    assert answer.status == 202
    event = await live.served.wire.outcome(json.loads(answer.body)["request_id"])
    assert (event["type"], event["key"]) == ("object.deleted", "later")
    assert event["publisher"] == "gateway"


async def test_a_wait_that_is_shorter_than_two_leases(live: Live) -> None:
    live.scene.put("soon", plain(100))
    answer = await _delete(live.scene, "soon", Prefer="wait=1")
    assert (answer.status, answer.headers["preference-applied"]) == (202, "wait=1")
    event = await live.served.wire.outcome(json.loads(answer.body)["request_id"])
    assert (event["type"], event["key"]) == ("object.deleted", "soon")


async def test_a_key_that_never_had_an_object(live: Live) -> None:
    known = len(live.served.wire.events)
    answer = await _delete(live.scene, "never", **_WAIT)
    assert (answer.status, answer.code) == (404, "not_found")
    assert stored_objects.list_keys(live.scene.deployment, "acme/never") == []
    assert len(live.served.wire.events) == known


async def test_many_keys_are_deleted_by_one_request(live: Live) -> None:
    """By the Python client: each key has its outcome, and one without an object stays usable."""
    scene = live.scene
    keys = [f"lot/{number}" for number in range(10)]
    for key in keys:
        scene.put(key, plain(100))
    known = len(live.served.wire.events)
    async with Client.connect(scene.process.url, scene.deployment.api_key) as client:
        receipt = await client.delete_many("acme", [*keys, "lot/never"], wait_s=30)
        assert receipt.is_final
        assert sorted(receipt.deleted) == keys
        assert [(each.key, each.code) for each in receipt.rejected] == [("lot/never", "not_found")]
        assert [entry async for entry in client.list("acme", prefix="lot/")] == []
        assert (await client.upload("acme", "lot/never", b"x")).stored
    events = live.served.wire.events[known:]
    deleted = [event["key"] for event in events if event["type"] == "object.deleted"]
    assert sorted(deleted) == keys
    ids = {event["request_id"] for event in events if event["type"] == "object.deleted"}
    assert ids == {receipt.request_id}


async def test_a_gateway_without_the_grant(live: Live, publishers: Path) -> None:
    """The worker refuses, and the object stays."""
    granted = live.scene.deployment.worker_env()["KEYTURN_PUBLISHERS"]
    without: dict[str, Any] = json.loads(granted)
    without["gateway"]["may"].remove("delete.requested")
    live.scene.put("kept", plain(100))
    logged = len(live.served.process.lines)
    _replace(publishers, json.dumps(without))
    await live.served.process.logged("publishers changed", after=logged)
    answer = await _delete(live.scene, "kept", **_WAIT)
    assert (answer.status, answer.code) == (403, "not_permitted")
    assert "request_id" in answer.problem
    assert (await live.scene.client.request("acme", "kept")).body == plain(100)
    logged = len(live.served.process.lines)
    _replace(publishers, granted)
    await live.served.process.logged("publishers changed", after=logged)
    assert (await _delete(live.scene, "kept", **_WAIT)).status == 204


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


async def test_a_project_at_its_limit_leaves_others_alone(live: Live) -> None:
    """The last test of this deployment: a delete counts for half a minute."""
    await live.served.enroll("other")
    for project in ("acme", "other"):
        live.scene.put("many", plain(10), project=project)
    answers = [await _delete(live.scene, "many") for _ in range(_MOST + 1)]
    assert {answer.status for answer in answers} == {202, 429}
    assert (answers[-1].code, answers[-1].headers["retry-after"]) == ("too_many_requests", "1")
    assert (await _delete(live.scene, "many", project="other", **_WAIT)).status == 204


async def test_a_locked_version_is_reported(broker: Servers, ceph: S3Server) -> None:
    """The tombstone is in place, but the lock keeps the version with the body."""
    bucket = f"locked-{secrets.token_hex(8)}"
    deployment = Deployment(await fresh_amqp_url(broker), ceph, bucket)
    client = stored_objects.s3_client(deployment)
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    until = datetime.now(UTC) + timedelta(minutes=2)
    unsafe = {"ALLOW_UNSAFE_STORAGE": "true"}  # Ceph's versioned buckets ignore conditions
    async with (
        run_worker_for(deployment, **_WORKER, **unsafe),
        reading(deployment, **_GATEWAY) as scene,
    ):
        scene.put(
            "held",
            plain(100),
            ObjectLockMode="GOVERNANCE",
            ObjectLockRetainUntilDate=until,
        )
        answer = await _delete(scene, "held", **_WAIT)
        assert (answer.status, answer.code) == (409, "locked_object")
        assert (await scene.client.request("acme", "held")).status == 404
