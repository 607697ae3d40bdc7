"""`rotate`, `sweep`, `delete` and `recover` with a real broker and worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.identifiers import keyring_s3_key
from tests.integration.cli.conftest import document
from tools.harness.http import Client
from tools.harness.process import gateway, worker
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.cli.conftest import Cli

pytestmark = pytest.mark.servers

_FAST = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.2"}


async def test_rotate_sweep_and_delete(cli: Cli, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode() * 5000)
    paths = [str(tmp_path / name) for name in ("a", "b", "c")]
    async with (
        worker(cli.deployment.worker_env(**_FAST)),
        gateway(cli.deployment.gateway_env(KEYRING_CACHE_S="0.2")) as served,
    ):
        enrolled = await cli.arun("enroll", "acme", "--generate", "--save-to", str(old))
        assert enrolled.exit_code == 0, enrolled.stderr
        uploaded = await cli.arun("upload", "acme", *paths)
        assert uploaded.exit_code == 0, uploaded.stderr

        rotate = ("rotate", "acme", "--generate", "--save-to", str(new))
        wrong = await cli.arun("rotate", "acme", "--api-key-file", str(old))
        assert wrong.exit_code == 1
        assert wrong.stderr.startswith("keyturn: kek_reused")
        late = await cli.arun(
            "rotate", "acme", "--expected-generation", "7", NEW_API_KEY=cli.deployment.api_key
        )
        assert late.stderr.startswith("keyturn: generation_mismatch")
        turned = await cli.arun(*rotate, "--watch", "--json")
        assert turned.exit_code == 0, turned.stderr
        event = document(turned)["event"]
        assert (event["type"], event["clean"]) == ("rotation.completed", True)
        assert (event["objects"], event["rewrapped"], event["current"]) == (3, 3, 3)
        for key, status in ((new, 0), (old, 1)):
            arguments = ("download", "acme", "a", "-o", "-", "--api-key-file", str(key))
            read = await cli.arun(*arguments, GATEWAY_URL=served.url)
            assert read.exit_code == status, read.stderr

        deleted = await cli.arun("delete", "acme", "a", "never-there", "--json")
        assert deleted.exit_code == 0, deleted.stderr
        assert [row["status"] for row in document(deleted)] == ["deleted", "deleted"]
        gone = await cli.arun(
            "download", "acme", "a", "-o", "-", "--as-operator", "--reason", "a test"
        )
        assert gone.exit_code == 1
        assert gone.stderr.startswith("keyturn: not_found")
        again = await cli.arun("upload", "acme", paths[0])
        assert again.stderr.startswith("keyturn: deleted_key")
        swept = await cli.arun("sweep", "--all", "--watch", "--json")
        assert swept.exit_code == 0, swept.stderr
        event = document(swept)["event"]
        assert (event["project"], event["rewrapped"]) == ("*", 0)
        assert (event["objects"], event["deleted"]) == (4, 2)
        rest = await cli.arun("delete", "acme", "--prefix", "", "--yes", "--json")
        assert rest.exit_code == 0, rest.stderr
        assert (document(rest)["deleted"], document(rest)["failed"]) == (2, [])


# Restored keyrings, and a lost broker.


_ACCEPT = ("--accept-restored", "ticket 4711: restored from a backup")


async def test_a_restored_keyring_is_refused_shown_and_recovered(cli: Cli, tmp_path: Path) -> None:
    s3, bucket = sync_client(cli.deployment.s3), cli.deployment.bucket
    s3_key = keyring_s3_key("acme")
    keys = [tmp_path / name for name in ("first", "second", "third")]
    async with (
        worker(cli.deployment.worker_env(**_FAST)),
        gateway(cli.deployment.gateway_env(KEYRING_CACHE_S="0")) as process,
    ):

        def client(key: Path) -> Client:
            return Client(process, key.read_text().strip())

        async def status(key: Path) -> int:
            """What the gateway answers to this key; 404 is the absence of an object."""
            return (await client(key).request("acme", "x")).status

        for project in ("acme", "bob"):
            path = str(keys[0]) if project == "acme" else str(tmp_path / "bob")
            enrolled = await cli.arun("enroll", project, "--generate", "--save-to", path)
            assert enrolled.exit_code == 0, enrolled.stderr
        current = await cli.arun("recover", "acme", *_ACCEPT)
        assert current.exit_code == 1
        assert "nothing to recover" in current.stderr
        backup = s3.get_object(Bucket=bucket, Key=s3_key)["Body"].read()
        rotated = await cli.arun("rotate", "acme", "--generate", "--save-to", str(keys[1]))
        assert rotated.exit_code == 0, rotated.stderr
        assert [await status(key) for key in keys[:2]] == [401, 404]
        s3.put_object(Bucket=bucket, Key=s3_key, Body=backup)
        assert [await status(key) for key in keys[:2]] == [503, 503]

        refused = await cli.arun("rotate", "acme", "--generate", "--save-to", str(keys[2]))
        assert refused.exit_code == 1
        assert "keyring_rolled_back" in refused.stderr

        state = document(await cli.arun("status", "--no-objects", "--json"))
        assert [(row["project"], row["state"]) for row in state["act_now"]] == [
            ("acme", "rolled_back")
        ]
        shown = await cli.arun("recover", "*", *_ACCEPT)
        assert shown.exit_code == 0, shown.stderr
        assert "rolled_back" in shown.stdout
        assert "bob" not in shown.stdout
        assert [await status(key) for key in keys[:2]] == [404, 401]
        again = await cli.arun("recover", "*", *_ACCEPT, "--json")
        assert again.exit_code == 0
        assert document(again) == []
        final = tmp_path / "final"
        rotated = await cli.arun("rotate", "acme", "--generate", "--save-to", str(final))
        assert rotated.exit_code == 0, rotated.stderr


async def test_a_removed_keyring_is_not_recovered(cli: Cli, tmp_path: Path) -> None:
    s3, bucket = sync_client(cli.deployment.s3), cli.deployment.bucket
    async with worker(cli.deployment.worker_env(**_FAST)):
        await cli.arun("enroll", "acme", "--generate", "--save-to", str(tmp_path / "key"))
        s3.delete_object(Bucket=bucket, Key=keyring_s3_key("acme"))
        removed = await cli.arun("recover", "acme", *_ACCEPT)
    assert removed.exit_code == 1
    assert "enroll acme --adopt" in removed.stderr
