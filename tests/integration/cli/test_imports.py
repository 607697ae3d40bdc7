"""Which packages a command imports on its way to real servers: none that it does not use."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tools.harness import requests
from tools.harness.worker_under_test import run_worker

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.servers import S3Server, Servers

pytestmark = pytest.mark.servers

_HEAVY = ("aiobotocore", "aiohttp", "boto3", "botocore", "fastapi", "faststream", "starlette")


async def _imports(env: Mapping[str, str], *arguments: str) -> set[str]:
    """Run a command, which must succeed: the heavy packages that it imported."""
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-X", "importtime", "-m", "keyturn_workers", *arguments],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    lines = (line for line in run.stderr.splitlines() if line.startswith("import time:"))
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}
    assert "keyturn_workers" in names
    return names.intersection(_HEAVY)


async def test_no_command_waits_for_a_package_that_it_does_not_use(
    broker: Servers, ceph: S3Server, tmp_path: Path
) -> None:
    """Botocore is for the credentials chain of AWS, and for staging a body that is not inline."""
    (tmp_path / "file").write_bytes(b"content")
    async with run_worker(broker, ceph, LEASE_S="2", KEYRING_CACHE_S="0.5") as running:
        upload = requests.upload(running.deployment, "acme", "k", b"hello")
        assert (await running.publish_and_wait(upload.document))["type"] == "upload.stored"
        env = {**running.deployment.worker_env(), **running.deployment.publisher_env()}
        expected: dict[tuple[str, ...], set[str]] = {
            ("--help",): set(),
            ("keygen", "api-key"): set(),
            ("ls", "acme", "--as-operator"): set(),
            ("status",): set(),
            ("status", "acme"): set(),
            ("inspect", "acme", "k"): set(),
            ("upload", "acme", str(tmp_path / "file"), "--key", "k2"): set(),
            ("rotate", "acme", "--generate", "--save-to", str(tmp_path / "key")): set(),
            ("delete", "acme", "k"): set(),
        }
        found = {arguments: await _imports(env, *arguments) for arguments in expected}
    assert found == expected
