"""`keyturn copy` on real servers: one project becomes another, under data keys of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import new_api_key
from keyturn.crypto.cobblestone import open_sealed
from keyturn.crypto.keys import user_kek
from keyturn.crypto.wraps import BODY_CONTEXT
from keyturn.errors import SealError
from tests.integration.cli.conftest import Cli, cli_for, document
from tools.harness.bucket import Bucket
from tools.harness.deployment import Deployment
from tools.harness.process import gateway, worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_FAST = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
_AS_OPERATOR = ("--as-operator", "--reason", "a test")
_LARGE = os.urandom(9 * 2**20 + 17)
OBJECTS = {
    "README.md": b"# read me",
    "empty": b"",
    "chunk": os.urandom(2 * 16384),
    "inline": os.urandom(256 * 1024),
    "staged": os.urandom(256 * 1024 + 1),
    "folder/größe: 100% + \u202e": b"1",
    "a/" * 200 + "deep": b"deep",
    "large.bin": _LARGE,
}


@dataclass(frozen=True)
class _Scene:
    """Two projects with an API key each, a worker, and a gateway."""

    cli: Cli
    bucket: Bucket
    url: str
    to_key: str

    def put(self, objects: dict[str, bytes], project: str = "acme") -> None:
        for key, body in objects.items():
            made = self.bucket.made(project, key, body)
            self.bucket.put_made(project, made, ContentType="text/x", Metadata={"topic": "q3"})

    async def copy(self, *options: str, api_key: str | None = None) -> Any:
        api_key = api_key or self.cli.deployment.api_key
        command = ("copy", "acme", "copied", *options)
        return await self.cli.arun(*command, GATEWAY_URL=self.url, API_KEY=api_key)

    async def read(self, key: str, api_key: str, project: str = "copied") -> Any:
        command = ("download", project, key, "-o", "-")
        return await self.cli.arun(*command, GATEWAY_URL=self.url, API_KEY=api_key)

    async def check(self, objects: dict[str, bytes]) -> None:
        """The target has these objects, each stored once, and opened by its own key alone."""
        assert set(self.bucket.keys("copied/")) == {f"copied/{key}" for key in objects}
        to_kek = user_kek(self.to_key, "copied")
        from_kek = user_kek(self.cli.deployment.api_key, "acme")
        old = user_kek(self.cli.deployment.api_key, "copied")
        for key, body in objects.items():
            stored, head = self.bucket.get(f"copied/{key}")
            assert self.bucket.opened(f"copied/{key}", to_kek, "user", 1) == body
            assert head["ContentType"] == "text/x"
            assert head["Metadata"]["topic"] == "q3"
            assert self.bucket.unwrapped(old, "user", f"copied/{key}", 1) is None
            dek = self.bucket.unwrapped(from_kek, "user", f"acme/{key}", 1)
            assert dek is not None
            with pytest.raises(SealError):
                open_sealed(dek, BODY_CONTEXT, stored)


@asynccontextmanager
async def _scene(cli: Cli, **env: str) -> AsyncIterator[_Scene]:
    made, to_key = cli.deployment, new_api_key()
    async with (
        worker(made.worker_env(**_FAST, **env)),
        gateway(made.gateway_env(**_FAST, **env)) as served,
    ):
        for project, api_key in (("acme", made.api_key), ("copied", to_key)):
            enrolled = await cli.arun("enroll", project, NEW_API_KEY="", API_KEY=api_key)
            assert enrolled.exit_code == 0, enrolled.stderr
        yield _Scene(cli, Bucket(made), served.url, to_key)


@pytest.fixture
def ceph_cli(vhost_url: str, ceph: S3Server, ceph_bucket: str) -> Cli:
    return cli_for(Deployment(vhost_url, ceph, ceph_bucket))


async def test_every_object_is_copied_once_under_a_new_data_key(ceph_cli: Cli) -> None:
    async with _scene(ceph_cli) as scene:
        scene.put(OBJECTS)
        counted = document(await scene.copy("--dry-run", "--json"))
        size_bytes = sum(map(len, OBJECTS.values()))
        assert counted == {"objects": len(OBJECTS), "bytes": size_bytes, "keys_in_target": 0}
        assert scene.bucket.keys("copied/") == []
        copied = await scene.copy()
        assert (copied.exit_code, copied.stderr) == (0, ""), copied.output
        assert copied.stdout.endswith(
            f"of acme are in copied: {len(OBJECTS)} new, 0 already there\n"
        )
        await scene.check(OBJECTS)
        assert (await scene.read("README.md", scene.to_key)).stdout == "# read me"
        assert (await scene.read("README.md", ceph_cli.deployment.api_key)).exit_code == 1

        # As the operator it is the same copy: nothing is stored again, even without a gateway.
        before = scene.bucket.heads("copied/")
        scene.put({"new": b"new"})
        again = await ceph_cli.arun("copy", "acme", "copied", *_AS_OPERATOR, "--json")
        assert again.exit_code == 0, again.output
        report = document(again)
        assert (report["copied"], report["already_there"]) == (1, len(OBJECTS))
        after = scene.bucket.heads("copied/")
        assert {key: after[key]["LastModified"] for key in before} == {
            key: head["LastModified"] for key, head in before.items()
        }
        await scene.check({**OBJECTS, "new": b"new"})


async def test_what_the_target_has_already_is_left_alone_and_listed(ceph_cli: Cli) -> None:
    async with _scene(ceph_cli) as scene:
        scene.put({"a": b"a", "b": b"b", "gone": b"gone"})
        deleted = await ceph_cli.arun("delete", "acme", "gone")
        assert deleted.exit_code == 0, deleted.output
        for key in ("b", "own"):
            uploaded = await ceph_cli.arun("upload", "copied", "-", "--key", key, stdin=b"own")
            assert uploaded.exit_code == 0, uploaded.output
        copied = await scene.copy("--compare", "--json")
        assert copied.exit_code == 1
        report = document(copied)
        assert (report["copied"], report["failed"]) == (1, {"already_exists": 1})
        assert [(row["key"], row["code"]) for row in report["failures"]] == [
            ("b", "already_exists")
        ]
        assert report["only_in_target"] == ["own"]
        assert copied.stderr == "keyturn: 1 of 2 objects failed: already_exists 1\n"
        assert (await scene.read("b", scene.to_key)).stdout == "own"
        # No request was made for it, so no letter says it again.
        assert document(await ceph_cli.arun("dead", "list", "--json")) == []


async def test_a_rotation_in_the_middle_copies_nothing_twice(ceph_cli: Cli) -> None:
    new_key = new_api_key()
    async with _scene(ceph_cli) as scene:
        scene.put({"a": b"a", "large": _LARGE})
        assert (await scene.copy()).exit_code == 0
        rotated = await ceph_cli.arun("rotate", "acme", "--watch", NEW_API_KEY=new_key)
        assert rotated.exit_code == 0, rotated.output
        scene.put({"b": b"b"})
        refused = await scene.copy()
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.startswith("keyturn: unauthorized")
        assert refused.stderr.count("\n") == 1
        report = document(await scene.copy("--json", api_key=new_key))
        assert (report["copied"], report["already_there"], report["failed"]) == (1, 2, {})


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("copy", "acme", "nobody"), "unknown_project"),
        (("copy", "nobody", "copied"), "unauthorized"),
        (("copy", "acme", "acme"), "a project cannot be copied to itself"),
    ],
)
async def test_what_cannot_be_copied_is_one_clear_error(
    ceph_cli: Cli, arguments: tuple[str, ...], problem: str
) -> None:
    async with _scene(ceph_cli) as scene:
        scene.put({"a": b"a"})
        api_key = ceph_cli.deployment.api_key
        refused = await ceph_cli.arun(*arguments, GATEWAY_URL=scene.url, API_KEY=api_key)
        assert refused.exit_code in (1, 2)
        assert problem in refused.stderr
        assert len(scene.bucket.keys("copied/") + scene.bucket.keys("nobody/")) == 0


async def test_without_an_upload_worker_nothing_is_half_stored(ceph_cli: Cli) -> None:
    async with _scene(ceph_cli) as scene:
        scene.put({"a": b"a", "large": _LARGE})
    # The queue is there, and nothing serves it any more.
    stopped = await ceph_cli.arun("copy", "acme", "copied", *_AS_OPERATOR, "--timeout-s", "2")
    assert stopped.exit_code == 1
    *_, note, error = stopped.stderr.splitlines()
    assert note == ("keyturn: not finished after 0 objects: run the same command again to continue")
    assert error.startswith("keyturn: no worker serves uploads: no event of ")
    assert Bucket(ceph_cli.deployment).keys("copied/") == []


async def test_a_copy_that_is_killed_continues_where_it_was(ceph_cli: Cli) -> None:
    objects = {f"{n:03}": os.urandom(n * 3000) for n in range(40)} | {"large": _LARGE}
    async with _scene(ceph_cli) as scene:
        scene.put(objects)
        env = {**os.environ, **ceph_cli.env}
        env |= {"KEYTURN_GATEWAY_URL": scene.url, "KEYTURN_API_KEY": ceph_cli.deployment.api_key}
        command = (sys.executable, "-m", "keyturn_workers", "copy", "acme", "copied")
        for number in (signal.SIGKILL, signal.SIGINT):
            process = await asyncio.create_subprocess_exec(
                *command, "--concurrency", "4", env=env, stderr=asyncio.subprocess.PIPE
            )
            # More than what an earlier process had in progress: so it is this one that stores.
            enough = len(scene.bucket.keys("copied/")) + 5
            while (  # noqa: ASYNC110  # a bucket has no event
                process.returncode is None and len(scene.bucket.keys("copied/")) < enough
            ):
                await asyncio.sleep(0.02)
            if process.returncode is None:
                process.send_signal(number)
            _, errors = await process.communicate()
            assert process.returncode in (-number, 130, 0), errors
            if process.returncode == 130:
                assert b"run the same command again to continue" in errors
        before_last = scene.bucket.heads("copied/")
        finished = await scene.copy("--json")
        assert finished.exit_code == 0, finished.output
        report = document(finished)
        assert report["copied"] + report["already_there"] == len(objects)
        assert report["already_there"] >= len(before_last)
        after = scene.bucket.heads("copied/")
        assert all(
            after[key]["LastModified"] == head["LastModified"] for key, head in before_last.items()
        )
        await scene.check(objects)
