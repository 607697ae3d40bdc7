"""Commands of docs/howto, run as they are written: a key is gone, a leak, leaving (SPEC 15, 18)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from tests.integration.cli.conftest import Cli, cli_for
from tests.support.documents import code_blocks, run_shell
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.harness.process import gateway, worker
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_ROOT: Final = Path(__file__).parents[3]
_FAST: Final = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.2"}
_GATEWAY: Final = "http://127.0.0.1:8080"
OBJECTS: Final = {"README.md": b"# read me", "q3:final.pdf": os.urandom(200_000), "readme.md": b""}


@pytest.fixture
def cli(vhost_url: str, ceph: S3Server, ceph_bucket: str) -> Cli:
    return cli_for(Deployment(vhost_url, ceph, ceph_bucket))


def _blocks(page: str, language: str) -> str:
    return "\n".join(code_blocks((_ROOT / "docs" / "howto" / page).read_text(), language))


async def test_the_page_shows_that_a_key_is_gone(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (_ROOT / "docs" / "howto" / "show-a-key-is-gone.md").read_text()
    commands = "\n".join(code_blocks(page.partition("## With a customer key")[0], "sh"))
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
        status, output = await run_shell(commands, tmp_path, cli.env)
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


async def test_the_page_copies_a_project_and_deletes_the_old_one(cli: Cli, tmp_path: Path) -> None:
    commands = _blocks("after-a-leak.md", "sh")
    assert commands.count("keyturn ") == 5
    made, bucket = cli.deployment, Bucket(cli.deployment)
    (tmp_path / "acme.key").write_text(made.api_key)
    async with worker(made.worker_env(**_FAST)), gateway(made.gateway_env(**_FAST)) as served:
        enrolled = await cli.arun("enroll", "acme", NEW_API_KEY="", API_KEY=made.api_key)
        assert enrolled.exit_code == 0, enrolled.stderr
        for key, body in OBJECTS.items():
            bucket.put_made("acme", bucket.made("acme", key, body))
        env = {**cli.env, "KEYTURN_GATEWAY_URL": served.url}
        status, output = await run_shell(commands, tmp_path, env)
        assert status == 0, output
        for line in (
            "3 objects with 200.0 kB would be copied; the target has 0 of their keys already",
            "3 objects with 200.0 kB of acme are in acme2: 3 new, 0 already there",
            "the key opens all of 3 wraps",
        ):
            assert line in output, output
        listed = await cli.arun("ls", "acme", "--as-operator", "--json")
        assert listed.stdout.strip() == "[]"


@pytest.mark.usefixtures("curl")
async def test_leaving_takes_all_objects_along(
    cli: Cli, tmp_path: Path, moto: S3Server, moto_bucket: str
) -> None:
    made = cli.deployment
    (tmp_path / "acme.key").write_text(made.api_key)
    (tmp_path / "check.py").write_text(_blocks("leave.md", "python"))
    (tmp_path / "examples").mkdir()
    shutil.copy(_ROOT / "examples/open_by_spec.py", tmp_path / "examples")
    async with worker(made.worker_env(**_FAST)), gateway(made.gateway_env(**_FAST)) as served:
        enrolled = await cli.arun("enroll", "acme", NEW_API_KEY="", API_KEY=made.api_key)
        assert enrolled.exit_code == 0, enrolled.stderr
        bucket = Bucket(made)
        for key, body in OBJECTS.items():
            bucket.put_made("acme", bucket.made("acme", key, body))
        script = f"{_blocks('leave.md', 'sh')}\npython check.py"
        for written, here in {
            _GATEWAY: served.url,
            "http://127.0.0.1:9000": moto.endpoint_url,
            "s3://backup/": f"s3://{moto_bucket}/",
            "backup-writer": moto.access_key_id,
            "=secret": f"={moto.secret_access_key}",
        }.items():
            assert written in script
            script = script.replace(written, here)
        status, output = await run_shell(script, tmp_path, cli.env)
    assert status == 0, output
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
