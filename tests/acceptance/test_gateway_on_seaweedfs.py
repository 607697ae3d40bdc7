"""Through the gateway on SeaweedFS: put, read, list, rotate, delete (SPEC 9, 10).

Large bodies are staged in parts, as everywhere.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tools.harness.canaries import MARKER
from tools.harness.deployment import Deployment
from tools.harness.http import Client
from tools.harness.process import gateway
from tools.harness.scene import enrolled_scene, wait_for_end
from tools.harness.tenants import Tenant
from tools.harness.wire import open_wire
from tools.servers import new_bucket

if TYPE_CHECKING:
    from tools.harness.scene import Scene
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_WAIT = {"Prefer": "wait=60"}
_SETTINGS = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}
_SIZES = (0, 1, 16384, 300_000, 9_000_000)


async def test_an_object_lives_and_ends(seaweedfs: S3Server, vhost_url: str) -> None:
    """What was put is read, whole and in part, before and after a rotation, until its delete."""
    bucket = await asyncio.to_thread(new_bucket, seaweedfs)
    deployment = Deployment(vhost_url, seaweedfs, bucket)
    bodies = {f"of/{size}": (MARKER + os.urandom(size))[:size] for size in _SIZES}
    async with (
        enrolled_scene(deployment, "acme") as scene,
        scene.worker(**_SETTINGS) as worker,
        gateway(scene.deployment.gateway_env(KEYRING_CACHE_S="0.5")) as process,
        open_wire(scene.deployment) as wire,
    ):
        scene.logs.append(process.lines)
        client = Client(process, scene.deployment.api_key)
        for key, body in bodies.items():
            headers = {**_WAIT, "Content-Length": str(len(body))}
            answer = await client.request("acme", key, headers, method="PUT", body=body)
            assert answer.status == 201, answer.body
        again = await client.request("acme", "of/1", _WAIT, method="PUT", body=b"x")
        assert (again.status, again.code) == (409, "already_exists")
        await _check_reads(client, bodies)

        tenant = Tenant(scene.deployment, "acme")
        rotation = tenant.rotation()
        await scene.publish(wire, rotation)
        end = await wait_for_end(wire, rotation["rotation_id"], "rotation.completed")
        assert (end["clean"], end["objects"], end["current"]) == (True, len(_SIZES), len(_SIZES))
        old, client = client, replace(client, api_key=tenant.api_keys[-1])
        await asyncio.sleep(0.5)  # the gateway's cache of keyrings
        assert (await old.request("acme", "of/1")).status == 401
        await _check_reads(client, bodies)

        # Together: each waits for two leases.
        await asyncio.gather(*(_delete(client, key) for key in bodies))
        assert await _listed(client) == set()
        assert await worker.terminate() == 0
    await asyncio.to_thread(_check_deleted, scene, tenant, set(bodies))
    scene.check_nothing_left()
    scene.check_logs()


async def _check_reads(client: Client, bodies: dict[str, bytes]) -> None:
    assert await _listed(client) == set(bodies)
    for key, body in bodies.items():
        whole = await client.request("acme", key)
        assert (whole.status, whole.body) == (200, body)
        if len(body) > 2:
            part = await client.request("acme", key, {"Range": f"bytes=1-{len(body) - 2}"})
            assert (part.status, part.body) == (206, body[1:-1])


async def _delete(client: Client, key: str) -> None:
    answer = await client.request("acme", key, _WAIT, method="DELETE")
    assert answer.status == 204, answer.body
    assert (await client.request("acme", key)).status == 404


async def _listed(client: Client) -> set[str]:
    answer = await client.send("GET", "/v1/projects/acme/objects?prefix=of/")
    assert answer.status == 200, answer.body
    return {entry["key"] for entry in json.loads(answer.body)["objects"]}


def _check_deleted(scene: Scene, tenant: Tenant, keys: set[str]) -> None:
    """Of each object only its tombstone is left, in one version."""
    answer = tenant.client.list_object_versions(Bucket=scene.deployment.bucket, Prefix="acme/")
    left = [version["Key"] for version in answer["Versions"]]
    assert sorted(left) == sorted(f"acme/{key}" for key in keys)
    assert not answer.get("DeleteMarkers")
