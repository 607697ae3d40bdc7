"""`keyturn export` from real servers: through a gateway, and from the bucket as the operator."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import stamina
from rich.filesize import decimal

from keyturn.crypto import new_api_key
from keyturn_workers.offline.export import s3_prefix
from tests.integration.cli.conftest import Cli, document
from tools.harness.bucket import Bucket
from tools.harness.process import gateway, worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_FAST = {"LEASE_S": "1", "KEYRING_CACHE_S": "0.2"}
_AS_OPERATOR = ("--as-operator", "--reason", "a test")
_ROOT = Path(__file__).parents[3]
_LARGE = os.urandom(9 * 2**20)
OBJECTS = {
    "README.md": b"# read me",
    "readme.MD": b"another",
    "empty": b"",
    "chunk": os.urandom(2 * 16384),
    "folder": b"a key that others are below",
    "folder/größe: 100%": b"1",
    "x" * 300 + ".txt": b"long",
    "a/" * 200 + "deep": b"deep",
    "nul": b"a device",
    "..a/...": b"dots",
    "\u202egnp.exe": b"right to left",
    "keyturn-manifest.jsonl": b"not the manifest",
    "large.bin": _LARGE,
}


def _put(cli: Cli, objects: dict[str, bytes]) -> Bucket:
    bucket = Bucket(cli.deployment)
    for key, body in objects.items():
        made = bucket.made("acme", key, body)
        bucket.put_made("acme", made, ContentType="text/x", Metadata={"topic": "q3"})
    return bucket


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    _, *lines = map(json.loads, (folder / "keyturn-manifest.jsonl").read_text().splitlines())
    return {line["key"]: line for line in lines}


def _check_folder(folder: Path, objects: dict[str, bytes]) -> None:
    """Each file is in the manifest, and nothing else is there."""
    manifest = _manifest(folder)
    assert {key: (folder / line["path"]).read_bytes() for key, line in manifest.items()} == objects
    for key, line in manifest.items():
        assert line["sha256"] == hashlib.sha256(objects[key]).hexdigest()
        assert (line["size"], line["content_type"]) == (len(objects[key]), "text/x")
        assert line["metadata"] == {"topic": "q3"}
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert len(files) == len(objects) + 1
    assert len({str(path).casefold() for path in files}) == len(files)


async def test_through_a_gateway(cli: Cli, tmp_path: Path) -> None:
    made, target = cli.deployment, tmp_path / "out"
    async with worker(made.worker_env(**_FAST)), gateway(made.gateway_env(**_FAST)) as served:
        enrolled = await cli.arun("enroll", "acme", NEW_API_KEY="", API_KEY=made.api_key)
        assert enrolled.exit_code == 0, enrolled.stderr
        bucket = _put(cli, OBJECTS)
        caller = Cli(made, {"KEYTURN_GATEWAY_URL": served.url, "KEYTURN_API_KEY": made.api_key})
        exported = await caller.arun("export", "acme", str(target))
        assert (exported.exit_code, exported.stderr) == (0, ""), exported.stderr
        size_bytes = sum(map(len, OBJECTS.values()))
        assert exported.stdout == (
            f"{len(OBJECTS)} objects with {decimal(size_bytes)} in {target}: "
            f"{len(OBJECTS)} new, 0 already there\n"
        )
        _check_folder(target, OBJECTS)

        # A chunk of a large body was changed, and one object is new.
        broken = bucket.made("acme", "broken", _LARGE[: 2**21])
        broken.body = broken.body[:-50] + bytes([broken.body[-50] ^ 1]) + broken.body[-49:]
        bucket.put_made("acme", broken)
        _put(cli, {"new": b"new"})
        with stamina.set_testing(True, attempts=2):
            more = await caller.arun("export", "acme", str(target), "--json")
        assert more.exit_code == 1
        report = document(more)
        assert (report["exported"], report["already_there"]) == (1, len(OBJECTS))
        assert report["failed"] == {"incomplete_body": 1}
        assert [row["key"] for row in report["failures"]] == ["broken"]
        assert more.stderr == (
            f"keyturn: 1 of {len(OBJECTS) + 2} objects failed: incomplete_body 1\n"
        )
        _check_folder(target, {**OBJECTS, "new": b"new"})

        refused = await caller.arun("export", "acme", str(tmp_path / "no"), API_KEY=new_api_key())
        assert refused.exit_code == 1
        assert refused.stderr.startswith("keyturn: unauthorized")
        assert len(refused.stderr.splitlines()) == 1
        assert not (tmp_path / "no").exists()


def test_from_the_bucket(operator_cli: Cli, tmp_path: Path) -> None:
    bucket = _put(operator_cli, OBJECTS)
    bucket.put("acme/gone", b"", {"enc-algo": "deleted", "enc-dek-admin": "AAAA"})
    bucket.put("acme-2/other", b"of another project", {})
    target = tmp_path / "out"
    exported = operator_cli.run("export", "acme", str(target), *_AS_OPERATOR, "--json")
    assert exported.exit_code == 0, exported.stderr
    assert document(exported)["deleted"] == 1
    _check_folder(target, OBJECTS)

    bucket.put("acme/plain", b"not encrypted", {})
    bucket.put("acme//odd", b"", {})
    again = operator_cli.run("export", "acme", str(target), *_AS_OPERATOR)
    assert again.exit_code == 1
    # In a table, with the reason, before the line that counts.
    lines = again.stdout.splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [
        ["key", "code"],
        ["/odd", "foreign_object"],
        ["plain", "corrupt_object"],
    ]
    assert lines[-1].endswith(f": 0 new, {len(OBJECTS)} already there, 1 deleted")
    _check_folder(target, OBJECTS)


def test_what_the_operator_exports_is_recorded_before(operator_cli: Cli, tmp_path: Path) -> None:
    _put(operator_cli, {"a": b"1"})
    away = operator_cli.run(
        "export",
        "acme",
        str(tmp_path / "out"),
        *_AS_OPERATOR,
        AMQP_URL="amqp://nobody@127.0.0.1:1/",
    )
    assert away.exit_code == 1
    assert "the audit trail cannot be written, so nothing was done" in away.stderr
    assert not (tmp_path / "out").exists()
    assert operator_cli.run("export", "acme", str(tmp_path / "out"), *_AS_OPERATOR).exit_code == 0
    trail = tmp_path / "trail"
    assert operator_cli.run("audit", "export", str(trail)).exit_code == 0
    (line,) = trail.read_text().splitlines()
    record = json.loads(base64.b64decode(json.loads(line)["body"]))
    assert record["action"] == "object.opened_as_operator"
    assert (record["project"], record["outcome"], record["reason"]) == ("acme", "started", "a test")
    assert "object_key" not in record


def _to_s3(cli: Cli, server: S3Server, destination: str) -> Any:
    os.environ |= {
        "AWS_ACCESS_KEY_ID": server.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
    }
    arguments = ["export", "acme", destination, "--endpoint-url", server.endpoint_url]
    return cli.run(*arguments, *_AS_OPERATOR, "--json")


@pytest.mark.parametrize("to", ["moto", "ceph"])
def test_to_another_bucket(
    operator_cli: Cli,
    to: str,
    request: pytest.FixtureRequest,
    new_bucket: Callable[[S3Server], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_prefix, "SINGLE_PUT_MAX_BYTES", 4 * 2**20)
    monkeypatch.setattr(s3_prefix, "PART_BYTES", 5 * 2**20)
    server: S3Server = request.getfixturevalue(to)
    name = new_bucket(server)
    source = _put(operator_cli, OBJECTS)
    destination = f"s3://{name}/backup/acme"
    exported = _to_s3(operator_cli, server, destination)
    assert exported.exit_code == 0, exported.stderr
    there = Bucket(replace(operator_cli.deployment, s3=server, bucket=name))
    for key, body in OBJECTS.items():
        stored, answer = there.get(f"backup/acme/{key}")
        assert stored == body
        assert (answer["ContentType"], answer["Metadata"]) == ("text/x", {"topic": "q3"})
    assert "-" in there.head("backup/acme/large.bin")["ETag"]  # in parts
    parts = [key for key in there.keys("backup/acme/") if "/keyturn-manifest/" in key]
    lines = [json.loads(line) for key in parts for line in there.get(key)[0].splitlines()]
    digests = {line["key"]: line["sha256"] for line in lines if "key" in line}
    assert digests == {key: hashlib.sha256(body).hexdigest() for key, body in OBJECTS.items()}

    before = there.heads("backup/acme/README.md")
    source.put_made("acme", source.made("acme", "new", b"new"))
    report = document(_to_s3(operator_cli, server, destination))
    assert (report["exported"], report["already_there"]) == (1, len(OBJECTS))
    assert there.heads("backup/acme/README.md") == before

    there.delete("backup/acme/README.md")
    there.put("backup/acme/chunk", b"x" * len(OBJECTS["chunk"]), {})
    mended = _to_s3(operator_cli, server, destination)
    assert mended.exit_code == 0
    report = document(mended)
    assert (report["exported"], report["already_there"]) == (2, len(OBJECTS) - 1)
    for key in ("README.md", "chunk"):
        assert there.get(f"backup/acme/{key}")[0] == OBJECTS[key]

    taken = _to_s3(operator_cli, server, f"s3://{name}/backup")
    assert taken.exit_code == 1
    assert "and no keyturn-manifest/ to continue from" in taken.stderr
    source.put(".keyturn/keyrings/acme.json", b"{}", {})
    own = f"s3://{operator_cli.deployment.bucket}/plain"
    refused = _to_s3(operator_cli, operator_cli.deployment.s3, own)
    assert refused.exit_code == 1
    assert "the destination is a bucket of Keyturn" in refused.stderr


def test_wrong_arguments_write_nothing(operator_cli: Cli, tmp_path: Path) -> None:
    cases = {
        ("s3://",): "an S3 destination is s3://BUCKET/PREFIX",
        ("s3://bucket", "--endpoint-url", "ftp://x"): "and --endpoint-url http://",
        (f"s3://bucket/{'p' * 200}",): "a prefix has at most",
        (str(tmp_path / "out"), "--as-operator"): "--as-operator requires --reason",
    }
    for arguments, text in cases.items():
        result = operator_cli.run("export", "acme", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        assert text in result.stderr
    unknown = operator_cli.run("export", "acme", str(tmp_path / "out"), *_AS_OPERATOR)
    assert unknown.exit_code == 1
    assert unknown.stderr.startswith("keyturn: unknown_project: ")
    assert list(tmp_path.iterdir()) == []


async def test_a_killed_export_continues_and_shows_only_whole_files(
    cli: Cli, tmp_path: Path
) -> None:
    """Killed without notice, twice; no file is read again, and none is there by half."""
    objects = {f"{n:03}/{n}": os.urandom(300_000) for n in range(150)}
    _put(cli, objects)
    target = tmp_path / "out"
    env = {**os.environ, **cli.env}
    export = ("export", "acme", str(target), *_AS_OPERATOR)
    arguments = ["-m", "keyturn_workers", *export, "--concurrency", "2"]
    kept: dict[Path, tuple[int, int]] = {}
    for wanted in (20, 60):
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env=env, cwd=_ROOT, stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(60):
            while len(files := list(target.glob("[0-9]*/*"))) < wanted:
                assert process.returncode is None
                await asyncio.sleep(0.005)
        process.kill()
        await process.wait()
        for path in (files := list(target.glob("[0-9]*/*"))):
            key = path.relative_to(target).as_posix()
            assert path.read_bytes() == objects[key]
            status = path.stat()
            # An earlier run's file was not written again.
            assert kept.setdefault(path, (status.st_ino, status.st_mtime_ns)) == (
                status.st_ino,
                status.st_mtime_ns,
            )
        assert len(files) < len(objects)
    finished = await cli.arun(*export, "--json")
    assert finished.exit_code == 0, finished.stderr
    assert document(finished)["already_there"] == len(kept)
    _check_folder(target, objects)
