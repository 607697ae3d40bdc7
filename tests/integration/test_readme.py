"""The README's example of a publishing service, run as it stands there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import reader, requests
from tests.support.deployment import Deployment
from tests.support.process import worker
from tests.support.wire import open_wire

if TYPE_CHECKING:
    from tests.servers import S3Server

_ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.servers


def _example() -> str:
    found = re.search(
        r"<!-- example: publish -->\n```python\n(.*?)```",
        (_ROOT / "README.md").read_text(),
        re.DOTALL,
    )
    assert found is not None
    return found[1]


async def test_the_publishing_example(
    vhost_url: str, ceph: S3Server, ceph_bucket: str, tmp_path: Path
) -> None:
    """It stores its object, which the project's key opens, and says so."""
    deployment = Deployment(vhost_url, ceph, ceph_bucket)
    script = tmp_path / "service.py"
    script.write_text(_example())
    async with worker(deployment.worker_env()), open_wire(deployment) as wire:
        body = requests.encode(requests.enroll(deployment, "acme"))
        await wire.publish(
            "enroll.requested", body, requests.headers(body, deployment.publisher_key)
        )
        await wire.event(lambda event: event["type"] == "project.enrolled")
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(script),
            cwd=_ROOT,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(_ROOT)} | deployment.publisher_env(),
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await process.communicate()
    assert process.returncode == 0
    assert told.decode() == "stored: reports/q3.txt, 17 bytes, generation 1\n"
    assert reader.opened(deployment, "acme", "reports/q3.txt", "user") == b"the third quarter"
    assert reader.shown(deployment, "acme", "reports/q3.txt").metadata["author"] == "kim"
