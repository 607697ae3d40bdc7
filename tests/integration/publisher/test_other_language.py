"""The program of docs/howto/publish-other-language.md: published by the specification alone."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.documents import code_blocks
from tools import typescript
from tools.harness import stored_objects
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.harness.wire import SignedPublisher, open_wire

if TYPE_CHECKING:
    from tools.servers import S3Server

_ROOT = Path(__file__).parents[3]
_PROGRAM = _ROOT / "examples" / "node" / "publish.mjs"


def test_the_page_shows_the_program() -> None:
    page = (_ROOT / "docs" / "howto" / "publish-other-language.md").read_text()
    (shown,) = code_blocks(page, "js", example="publish from Node.js")
    assert shown == _PROGRAM.read_text()


@pytest.mark.servers
async def test_the_program_stores_a_file_and_recognizes_its_answer(
    vhost_url: str, ceph: S3Server, ceph_bucket: str, tmp_path: Path
) -> None:
    try:
        typescript.install(_PROGRAM.parent)
    except typescript.NpmError as exc:
        pytest.skip(f"npm cannot install what the program needs: {exc}")
    deployment = Deployment(vhost_url, ceph, ceph_bucket)

    async def publish(key: str, body: bytes) -> tuple[int | None, str]:
        (tmp_path / "file").write_bytes(body)
        process = await asyncio.create_subprocess_exec(
            *(typescript.NODE, _PROGRAM, "acme", key, tmp_path / "file"),
            env={"PATH": os.environ["PATH"], **deployment.publisher_env()},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode, output.decode()

    # Sizes around the ends of chunks, the last of which may be empty.
    bodies = {f"of {size}": os.urandom(size) for size in (0, 16384, 16385, 256 * 1024)}
    async with worker(deployment.worker_env()), open_wire(deployment) as wire:
        await SignedPublisher(deployment, wire).enroll("acme")
        for key, body in bodies.items():
            stored = f"stored: {key}, {len(body)} bytes, generation 1\n"
            assert await publish(key, body) == (0, stored)
            assert stored_objects.decrypt(deployment, "acme", key, "user") == body
        status, output = await publish("of 0", b"other")
    assert status == 1
    assert output.startswith("refused: already_exists: ")
