"""`rotate`, `sweep` and `delete` with a real worker, and the bucket afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.cli.conftest import document
from tools.harness.process import worker

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
    async with worker(cli.deployment.worker_env(**_FAST)):
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
            assert (await cli.arun(*arguments)).exit_code == status

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
