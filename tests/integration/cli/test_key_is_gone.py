"""The commands of docs/howto/show-a-key-is-gone.md, run as they are written (SPEC 15.1, 15.2)."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.integration.cli.conftest import Cli, cli_for
from tools.harness.deployment import Deployment
from tools.harness.process import worker

if TYPE_CHECKING:
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_PAGE: Final = Path(__file__).parents[3] / "docs" / "howto" / "show-a-key-is-gone.md"
_FAST: Final = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.2"}


@pytest.fixture
def cli(vhost_url: str, ceph: S3Server, ceph_bucket: str) -> Cli:
    return cli_for(Deployment(vhost_url, ceph, ceph_bucket))


def _commands() -> str:
    return "\n".join(re.findall(r"^```sh\n(.*?)^```$", _PAGE.read_text(), re.DOTALL | re.MULTILINE))


async def _bash(cli: Cli, folder: Path, script: str) -> tuple[int | None, str]:
    """The exit status of a script that ends at its first failure, and all that it printed."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        "bash",
        *("-eu", "-o", "pipefail", "-c", script),
        cwd=folder,
        env={"PATH": path, **cli.env},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_the_page(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = _commands()
    assert commands.count("keyturn ") == 10
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    async with worker(cli.deployment.worker_env(**_FAST)):
        for arguments in (
            ("enroll", "acme", "--generate", "--save-to", "acme.key"),
            ("upload", "acme", "a", "b", "c"),
            ("delete", "acme", "c"),
        ):
            prepared = await cli.arun(*arguments)
            assert prepared.exit_code == 0, prepared.stderr
        status, output = await _bash(cli, tmp_path, commands)
    assert status == 0, output
    for line in (
        "the key opens all of 2 wraps",
        "It proves:",
        "the key opens none of 2 wraps",
        "the key opens all of 3 wraps",
    ):
        assert line in output.splitlines(), output
    assert "That this is the newest evidence" not in output
    assert (tmp_path / "acme.kek").stat().st_mode & 0o777 == 0o600

    # And every claim of the page can fail.
    for claim, said in (
        (
            ("verify", "acme", "--api-key-file", "acme.new.key", "--expect-gone"),
            "not verified that",
        ),
        (("verify", "acme", "--api-key-file", "acme.key"), "the key opens nothing"),
        (("evidence", "verify", "evidence", "--newest", "0" * 64), "evidence refused (cut)"),
    ):
        refused = await cli.arun(*claim)
        assert (refused.exit_code, said in refused.output) == (1, True), refused.output
    evidence = max((tmp_path / "evidence").iterdir())
    evidence.write_bytes(evidence.read_bytes().replace(b'"sig":"', b'"sig":"AAAA', 1))
    refused = await cli.arun("evidence", "verify", "evidence")
    assert (refused.exit_code, "evidence refused" in refused.output) == (1, True), refused.output
