"""docs/howto/leave.md: its commands as they are written, and the bytes that they leave."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.integration.cli.conftest import Cli, cli_for
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.harness.process import gateway, worker
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_ROOT: Final = Path(__file__).parents[3]
_PAGE: Final = (_ROOT / "docs/howto/leave.md").read_text()
_FAST: Final = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
_GATEWAY: Final = "http://127.0.0.1:8080"
OBJECTS: Final = {"README.md": b"# read me", "q3:final.pdf": os.urandom(200_000), "readme.md": b""}


@pytest.fixture
def cli(vhost_url: str, ceph: S3Server, ceph_bucket: str) -> Cli:
    return cli_for(Deployment(vhost_url, ceph, ceph_bucket))


def _blocks(language: str) -> str:
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```$", _PAGE, re.DOTALL | re.MULTILINE))


async def test_the_page(cli: Cli, tmp_path: Path, moto: S3Server, moto_bucket: str) -> None:
    made = cli.deployment
    (tmp_path / "acme.key").write_text(made.api_key)
    (tmp_path / "check.py").write_text(_blocks("python"))
    (tmp_path / "examples").mkdir()
    shutil.copy(_ROOT / "examples/open_by_spec.py", tmp_path / "examples")
    async with worker(made.worker_env(**_FAST)), gateway(made.gateway_env(**_FAST)) as served:
        enrolled = await cli.arun("enroll", "acme", NEW_API_KEY="", API_KEY=made.api_key)
        assert enrolled.exit_code == 0, enrolled.stderr
        bucket = Bucket(made)
        for key, body in OBJECTS.items():
            bucket.put_made("acme", bucket.made("acme", key, body))
        script = f"{_blocks('sh')}\npython check.py"
        for written, here in {
            _GATEWAY: served.url,
            "http://127.0.0.1:9000": moto.endpoint_url,
            "s3://backup/": f"s3://{moto_bucket}/",
            "backup-writer": moto.access_key_id,
            "=secret": f"={moto.secret_access_key}",
        }.items():
            assert written in script
            script = script.replace(written, here)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            cwd=tmp_path,
            env={"PATH": path, **cli.env},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    for folder in ("acme-files", "acme-by-operator"):
        files = [path for path in (tmp_path / folder).iterdir() if path.suffix != ".jsonl"]
        assert sorted(path.read_bytes() for path in files) == sorted(OBJECTS.values())
        assert (tmp_path / folder / "q3%3Afinal.pdf").read_bytes() == OBJECTS["q3:final.pdf"]
    assert (tmp_path / "opened.md").read_bytes() == OBJECTS["README.md"]
    client = sync_client(moto)
    for key, body in OBJECTS.items():
        stored = client.get_object(Bucket=moto_bucket, Key=f"acme/{key}")
        assert stored["Body"].read() == body
    client.close()
