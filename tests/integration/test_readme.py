"""The documents' examples of publishing and reading services, run unchanged."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.documents import code_blocks
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import gateway, worker
from tools.harness.wire import SignedPublisher, open_wire

if TYPE_CHECKING:
    from tools.servers import S3Server

_ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.servers


def _example(document: str, name: str) -> str:
    (block,) = code_blocks((_ROOT / document).read_text(), "python", example=name)
    return block


async def _run(program: str, folder: Path, env: dict[str, str]) -> tuple[int | None, str]:
    """The exit status of a program, and what it printed."""
    script = folder / "service.py"
    script.write_text(program)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(script),
        cwd=_ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(_ROOT), **env},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_the_examples(
    vhost_url: str, ceph: S3Server, ceph_bucket: str, tmp_path: Path
) -> None:
    """The first stores its object, which the project's key opens; the second reads by HTTP."""
    deployment = Deployment(vhost_url, ceph, ceph_bucket)
    async with (
        worker(deployment.worker_env(LEASE_S="1", KEYRING_CACHE_S="0.2")),
        gateway(deployment.gateway_env()) as served,
        open_wire(deployment) as wire,
    ):
        await SignedPublisher(deployment, wire).enroll("acme")
        published = await _run(
            _example("README.md", "publish"), tmp_path, deployment.publisher_env()
        )
        assert published == (0, "stored: reports/q3.txt, 17 bytes, generation 1\n")
        reading = {"KEYTURN_GATEWAY_URL": served.url, "KEYTURN_API_KEY": deployment.api_key}
        read = await _run(_example("docs/howto/read.md", "read"), tmp_path, reading)
        assert read == (0, "stored\n18 bytes by kim\nthe fourth quarter\nb'fourth'\n")
        read_by_key = stored_objects.decrypt(deployment, "acme", "reports/q4.txt", "user")
        assert read_by_key == b"the fourth quarter"
        status, printed = await _run(_example("docs/howto/read.md", "share"), tmp_path, reading)
    assert (status, printed.splitlines()[::2]) == (0, ["reports/q4.txt: 18 bytes", "deleted"])
    assert f"{served.url}/v1/projects/acme/objects/reports/q4.txt?expires=" in printed
    assert (
        stored_objects.decrypt(deployment, "acme", "reports/q3.txt", "user") == b"the third quarter"
    )
    assert (
        stored_objects.read_object(deployment, "acme", "reports/q3.txt").metadata["author"] == "kim"
    )
