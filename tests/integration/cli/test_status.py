"""`keyturn status` on real servers while a worker rotates: one rotation, then the overview."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import new_api_key, to_base64
from tests.integration.cli.conftest import Cli, cli_for, document
from tools.harness import requests, stored_objects
from tools.harness.process import worker
from tools.harness.worker_under_test import run_worker

if TYPE_CHECKING:
    from tools.harness.process import WorkerProcess
    from tools.harness.worker_under_test import WorkerUnderTest
    from tools.servers import S3Server, Servers

pytestmark = pytest.mark.servers

_OBJECTS = 5


async def _watched(
    cli: Cli, process: WorkerProcess, *arguments: str, **env: str
) -> tuple[int, dict[str, Any]]:
    """Send a request and watch it by its id: the exit status and the report."""
    response = document(await cli.arun(*arguments, "--json", stdin=None, **env))
    request_id = response.get("rotation_id") or response["sweep_id"]
    await process.logged(request_id)  # once a worker has served it, it has a record
    result = await cli.arun("status", request_id, "--watch", "--json")
    return result.exit_code, document(result)


def _census(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    names = ("kind", "generation", "master_key", "code", "objects")
    return [tuple(row[name] for name in names) for row in report["objects"]]


def _key_usage(report: dict[str, Any], master_key: str) -> dict[str, Any]:
    row: dict[str, Any] = next(r for r in report["master_keys"] if r["master_key"] == master_key)
    return row


async def _fill(running: WorkerUnderTest) -> None:
    for number in range(_OBJECTS):
        upload = requests.upload(running.deployment, "acme", f"k{number}", b"hello")
        assert (await running.publish_and_wait(upload.document))["type"] == "upload.stored"


async def test_a_new_master_key_makes_the_old_one_safe_to_drop(
    broker: Servers, ceph: S3Server
) -> None:
    held = {"m2": to_base64(os.urandom(32))}
    env = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.5"}
    async with run_worker(broker, ceph, **env) as running:
        await _fill(running)
        cli = cli_for(running.deployment)
        code, report = await _watched(
            cli, running.process, "rotate", "acme", NEW_API_KEY=new_api_key()
        )
        assert (code, report["status"], report["clean"]) == (0, "done", True)
        assert (report["counts"]["rewrapped"], report["failures"]) == (_OBJECTS, [])
        report = document(await cli.arun("status", "acme", "--json"))
        assert _census(report) == [("encrypted", 2, "m1", None, _OBJECTS)]
        assert report["keyrings"][0]["earlier_keks"] == 0
        assert not _key_usage(report, "m1")["may_be_dropped"]
        deployment, bucket = running.deployment, running.deployment.bucket
        await running.process.terminate()
    held["m1"] = to_base64(deployment.master_key)
    env |= {"MASTER_KEYS": json.dumps(held), "ACTIVE_MASTER_KEY": "m2"}
    cli = Cli(deployment, cli.env | {f"KEYTURN_{name}": value for name, value in env.items()})
    async with worker(deployment.worker_env(**env)) as process:
        code, report = await _watched(cli, process, "sweep", "--all", "--master-key", "m2")
        assert (code, report["status"], report["clean"]) == (0, "done", True)
    client = stored_objects.s3_client(deployment)
    client.put_object(Bucket=bucket, Key="acme/odd", Body=b"", Metadata={"enc-algo": "ROT13"})
    report = document(await cli.arun("status", "--json"))
    assert _census(report) == [
        ("encrypted", 2, "m2", None, _OBJECTS),
        ("unreadable", None, None, "unknown_algorithm", 1),
    ]
    assert not _key_usage(report, "m1")["may_be_dropped"]
    client.delete_object(Bucket=bucket, Key="acme/odd")
    report = document(await cli.arun("status", "--json"))
    assert _key_usage(report, "m1")["told"] == "m1: safe to drop: no object and no record uses it"
    assert not _key_usage(report, "m2")["may_be_dropped"]
