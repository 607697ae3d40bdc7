"""`keyturn recover` with a real broker and worker: restored keyrings, and a lost broker."""

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
