"""Without a notification: listings, `keyturn sources` and `keyturn import` (SPEC 17.4, 17.5)."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import to_base64
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import run_command
from tools.harness.sources import DropBucket, sources_env
from tools.harness.worker_under_test import run_worker_for
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.servers import S3Server

pytestmark = pytest.mark.servers


def ingest_env(deployment: Deployment, drop: DropBucket, **more: str) -> dict[str, str]:
    return {
        **sources_env(deployment, drop),
        "SOURCE_POLL_S": "1",
        "PUBLISHER_NAME": "api",
        "PUBLISHER_KEY": to_base64(deployment.publisher_seed),
        **more,
    }


def command_env(deployment: Deployment, drop: DropBucket) -> dict[str, str]:
    """The environment of an operator's commands."""
    return deployment.worker_env(**sources_env(deployment, drop)) | deployment.publisher_env()


async def run(deployment: Deployment, drop: DropBucket, *arguments: str) -> tuple[int, Any, str]:
    """The exit status of a command, the JSON that it printed, and its standard error."""
    ended = await run_command(command_env(deployment, drop), *arguments, "--json")
    return ended.status, json.loads(ended.output or "null"), ended.errors


async def eventually(look: Callable[[], Any], timeout_s: float = 60) -> Any:
    """What `look` returns once that is true."""
    async with asyncio.timeout(timeout_s):
        while not (found := await asyncio.to_thread(look)):  # noqa: ASYNC110  # a bucket's
            await asyncio.sleep(0.2)
        return found


async def test_a_listing_finds_what_no_notification_named(vhost_url: str, ceph: S3Server) -> None:
    deployment = Deployment(vhost_url, ceph, new_bucket(ceph))
    drop = DropBucket(ceph, versioned=True, fields={"watch": True, "delete": True})
    bodies = {f"before/{n}": os.urandom(n) for n in range(5)}
    for key, body in bodies.items():
        drop.put(key, body)
    for hostile in ("a//b", "bell\x07", "../x", "y" * 901):
        drop.put(hostile, b"plaintext")
    async with run_worker_for(deployment, **ingest_env(deployment, drop)) as running:
        drop.put("after", b"the start")
        bodies["after"] = b"the start"

        def are_stored() -> bool:
            keys = stored_objects.list_keys(deployment, "acme/")
            return keys == sorted(f"acme/{key}" for key in bodies)

        await eventually(are_stored)
        for key, body in bodies.items():
            assert stored_objects.decrypt(deployment, "acme", key, "user") == body
        left = {"in/a//b", "in/bell\x07", "in/../x", "in/" + "y" * 901}
        listing = drop.client.list_objects_v2
        await eventually(
            lambda: {row["Key"] for row in listing(Bucket=drop.bucket)["Contents"]} == left
        )

        async def row() -> Any:
            status, rows, err = await run(deployment, drop, "sources")
            assert status == 0, err
            return rows[0]

        async with asyncio.timeout(60):
            while (shown := await row())["objects"] != len(left):
                continue  # each look starts a process
        assert (shown["source"], shown["refused"], shown["waiting"]) == ("drop", 4, 0)
        status, refused, _ = await run(deployment, drop, "sources", "drop")
        assert status == 0
        assert {each["s3_key"] for each in refused} == left
        assert {each["code"] for each in refused} == {"malformed_request"}
        assert not [e for e in running.wire.events if e["type"] == "upload.rejected"]


async def test_an_import_that_was_killed_is_run_again(vhost_url: str, ceph: S3Server) -> None:
    deployment = Deployment(vhost_url, ceph, new_bucket(ceph))
    drop = DropBucket(ceph)
    bodies = {f"{n:03}.bin": os.urandom(1000 + n) for n in range(120)}
    for key, body in bodies.items():
        drop.put(key, body)
    async with run_worker_for(deployment, **sources_env(deployment, drop)) as running:
        status, plan, err = await run(deployment, drop, "import", "drop", "--dry-run")
        assert (status, plan["statuses"]) == (0, {"not requested": 120}), err
        assert not stored_objects.list_keys(deployment, "acme/")

        killed = asyncio.create_task(run(deployment, drop, "import", "drop"))
        known = len(running.wire.events)
        await running.wire.more(known + 20)
        assert killed.cancel()  # which kills the process
        await asyncio.wait([killed])
        assert killed.cancelled()
        first = {event["upload_id"] for event in running.wire.events[known:]}

        status, result, err = await run(deployment, drop, "import", "drop")
        assert (status, err) == (0, "")
        assert result["objects"] == 120
        assert result["bytes"] == sum(map(len, bodies.values()))
        assert result["refused"] == {}
        assert sum(result["statuses"].values()) == 120
        assert result["statuses"]["already there"] >= len(first) - 1

        keys = stored_objects.list_keys(deployment, "acme/")
        assert keys == [f"acme/{key}" for key in bodies]
        for key, body in list(bodies.items())[::23]:
            assert stored_objects.decrypt(deployment, "acme", key, "admin") == body
            assert drop.read(key) == body  # not deleted: the source does not say so

        drop.put("../no", b"x")
        drop.put("000.bin", b"another body")
        status, result, err = await run(deployment, drop, "import", "drop")
        assert status == 1
        assert result["refused"] == {"malformed_request": 1, "already_exists": 1}
        assert result["statuses"] == {"already there": 119}
        assert {each["s3_key"] for each in result["not_in"]} == {"in/../no", "in/000.bin"}
        assert "2 of 121 objects were not imported" in err


async def test_what_cannot_be_imported_is_said(vhost_url: str, ceph: S3Server) -> None:
    deployment = Deployment(vhost_url, ceph, new_bucket(ceph))
    drop = DropBucket(ceph, project="globex")
    drop.put("a", b"x")
    for command in (["import", "other"], ["sources", "other"]):
        status, _, err = await run(deployment, drop, *command)
        assert status == 1
        assert "unknown_source: KEYTURN_SOURCES has no source 'other'; it has: drop" in err
    status, result, _ = await run(deployment, drop, "import", "drop", "--dry-run")
    assert (status, result["refused"]) == (1, {"unknown_project": 1})
    status, _, err = await run(deployment, drop, "import", "drop")
    assert status == 1
    assert "no worker has declared" in err
