"""`keyturn verify` after a real rotation: the new key opens all, the old one nothing."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import from_base64, kek_id, new_dek, to_base64, user_kek, wrap_dek
from tests.integration.cli.conftest import Cli, cli_for, document
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.harness.stored_objects import read_object, s3_client

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from tools.harness.stored_objects import StoredObject
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

_FAST = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.2"}
_NAMES = ("a", "b", "c", "d")
_REASON = ("--reason", "audit of 2026")


@pytest.fixture
def cli(vhost_url: str, ceph: S3Server, ceph_bucket: str) -> Cli:
    return cli_for(Deployment(vhost_url, ceph, ceph_bucket))


async def _ok(cli: Cli, *arguments: str) -> Result:
    result = await cli.arun(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


async def _fails(cli: Cli, said: str, *arguments: str, status: int = 1) -> Result:
    result = await cli.arun(*arguments)
    assert result.exit_code == status, result.output
    assert said in result.stderr
    return result


async def _enroll_and_upload(cli: Cli, folder: Path) -> None:
    """Two projects with the same objects; the key of each is in a file of its name."""
    for name in _NAMES:
        (folder / name).write_bytes(name.encode() * 30_000)
    paths = [str(folder / name) for name in _NAMES]
    for project in ("acme", "other"):
        key_file = str(folder / f"{project}.key")
        await _ok(cli, "enroll", project, "--generate", "--save-to", key_file)
        await _ok(cli, "upload", project, *paths)
    await _ok(cli, "delete", "acme", "d")


def _put(cli: Cli, key: str, stored: StoredObject, **metadata: str) -> None:
    """Write an object as a bucket writer can, with changed metadata."""
    s3_client(cli.deployment).put_object(
        Bucket=cli.deployment.bucket,
        Key=f"acme/{key}",
        Body=stored.body,
        Metadata={**stored.metadata, **metadata},
    )


async def test_what_each_key_opens_after_a_rotation(cli: Cli, tmp_path: Path) -> None:
    old, new = str(tmp_path / "acme.key"), str(tmp_path / "new.key")
    async with worker(cli.deployment.worker_env(**_FAST)):
        await _enroll_and_upload(cli, tmp_path)
        before = {name: read_object(cli.deployment, "acme", name) for name in _NAMES}
        opened = await _ok(cli, "verify", "acme", "--api-key-file", old, "--json")
        named = document(opened)["key"]["kek_id"]
        assert named == kek_id(user_kek((tmp_path / "acme.key").read_text().strip(), "acme"))
        rotate = ("rotate", "acme", "--generate", "--save-to", new, "--watch", "--json")
        event = document(await _ok(cli, *rotate))["event"]

    shown = document(await _ok(cli, "evidence", "show", "acme", "--json"))
    assert (shown["digest"], shown["state"]) == (event["evidence"], "signature verified")
    assert (shown["kind"], shown["generation"], shown["objects"]) == ("rotation", 2, 4)
    assert f"Newest evidence: {event['evidence']}" in (await _ok(cli, "status", "acme")).stdout
    counts = document(await _ok(cli, "verify", "acme", "--api-key-file", new, "--json"))["counts"]
    assert (counts["objects"], counts["opened"], counts["tombstones"]) == (4, 3, 1)
    await _fails(cli, "the key opens nothing", "verify", "acme", "--api-key-file", old)
    gone = ("verify", "acme", "--api-key-file", old, "--expect-gone", "--kek-id", named)
    assert (await _ok(cli, *gone)).stdout.splitlines()[-1] == "the key opens none of 3 wraps"
    await _fails(cli, "not verified that", "verify", "acme", "--api-key-file", new, "--expect-gone")

    _put(cli, "c", before["c"])  # the object as it was before the rotation
    shown = document(await _fails(cli, "it opens 1", *gone, "--json"))["findings"]
    assert [(row["s3_key"], row["state"]) for row in shown] == [("acme/c", "opened")]


_HIDING_PLACES = ("algorithm", "deleted", "generation", "swapped", "beside")


def _hide(cli: Cli, place: str, old: StoredObject, current: StoredObject, api_key: str) -> None:
    """Write an object as a bucket writer can, who kept it as it was before the rotation."""
    labels = {name: current.metadata[name] for name in ("enc-kek-user", "enc-kek-admin")}
    user, admin = old.metadata["enc-dek-user"], old.metadata["enc-dek-admin"]
    match place:
        case "algorithm":
            changed = {**labels, "enc-algo": "AES-256-GCM"}
        case "deleted":
            changed = {**labels, "enc-algo": "deleted"}
        case "generation":
            wrap = wrap_dek(
                user_kek(api_key, "acme"), "user", algorithm="Cobblestone-256", project="acme",
                object_key=place, generation=40, dek=new_dek(),
            )  # fmt: skip
            changed = {"enc-dek-user": to_base64(wrap), "enc-kek-user": f"41:{'0' * 16}"}
        case "swapped":
            changed = {**labels, "enc-dek-user": admin, "enc-dek-admin": user}
        case "beside":
            changed = {**current.metadata, "enc-dek-user-1": user}
    _put(cli, place, old, **changed)


async def test_the_five_hiding_places_of_an_old_wrap(cli: Cli, tmp_path: Path) -> None:
    old, new = str(tmp_path / "acme.key"), str(tmp_path / "new.key")
    paths = [str(tmp_path / name) for name in (*_HIDING_PLACES, "kept")]
    async with worker(cli.deployment.worker_env(**_FAST)):
        await _ok(cli, "enroll", "acme", "--generate", "--save-to", old)
        for name in (*_HIDING_PLACES, "kept"):
            (tmp_path / name).write_text(name)
        await _ok(cli, "upload", "acme", *paths, "--wait")
        before = {name: read_object(cli.deployment, "acme", name) for name in _HIDING_PLACES}
        await _ok(cli, "rotate", "acme", "--generate", "--save-to", new, "--watch")
    gone = ("verify", "acme", "--api-key-file", old, "--expect-gone")
    assert (await _ok(cli, *gone)).stdout.splitlines()[-1] == "the key opens none of 6 wraps"
    api_key = (tmp_path / "acme.key").read_text().strip()
    for place in _HIDING_PLACES:
        current = read_object(cli.deployment, "acme", place)
        _hide(cli, place, before[place], current, api_key)
        result = await _fails(cli, "it opens 1 of 6 wraps; 0 other findings", *gone, "--json")
        (finding,) = document(result)["findings"]
        assert (finding["s3_key"], finding["state"]) == (f"acme/{place}", "opened")
        present = ("verify", "acme", "--api-key-file", new)
        await _fails(cli, "not verified: 1 of 6", *present)
        _put(cli, place, current)
        await _ok(cli, *present)


async def test_the_operators_view_by_one_projects_admin_kek(cli: Cli, tmp_path: Path) -> None:
    async with worker(cli.deployment.worker_env(**_FAST)):
        await _enroll_and_upload(cli, tmp_path)
        files = {}
        for project in ("acme", "other"):
            files[project] = str(tmp_path / f"{project}.kek")
            await _ok(cli, "keys", "export-project", project, "--out", files[project], *_REASON)
        trail = tmp_path / "trail.jsonl"
        await _ok(cli, "audit", "export", str(trail))
    bodies = (json.loads(line)["body"] for line in trail.read_text().splitlines())
    records = [json.loads(from_base64(body)) for body in bodies]
    exported = [each for each in records if each["action"] == "project_kek.exported"]
    fields = ("project", "master_key", "outcome", "reason")
    assert [tuple(record[field] for field in fields) for record in exported] == [
        (project, "m1", "started", _REASON[1]) for project in ("acme", "other")
    ]

    verify = ("verify", "acme", "--admin-kek-file")
    result = await _ok(cli, *verify, files["acme"])
    assert result.stdout.splitlines() == [
        "admin key m1",
        "objects 4, opened 4, tombstones 1",
        "the key opens all of 4 wraps",
    ]
    await _fails(cli, "that of other, not of acme", *verify, files["other"], status=2)
    relabeled = tmp_path / "relabeled.kek"
    relabeled.write_text((tmp_path / "other.kek").read_text().replace('"other"', '"acme"'))
    await _fails(cli, "the key opens nothing", *verify, str(relabeled))


async def test_an_old_master_key_opens_nothing_after_a_sweep_to_another(
    vhost_url: str, ceph: S3Server, ceph_bucket: str, tmp_path: Path
) -> None:
    more = {"m2": os.urandom(32)}
    cli = cli_for(Deployment(vhost_url, ceph, ceph_bucket, more_master_keys=more))
    old, new = str(tmp_path / "m1.kek"), str(tmp_path / "m2.kek")
    async with worker(cli.deployment.worker_env(**_FAST)):
        await _enroll_and_upload(cli, tmp_path)
        await _ok(cli, "keys", "export-project", "acme", "--out", old, *_REASON)
        await _ok(cli, "sweep", "acme", "--master-key", "m2", "--watch")
        await _ok(cli, "keys", "export-project", "acme", "--out", new, *_REASON)

    gone = await _ok(cli, "verify", "acme", "--admin-kek-file", old, "--expect-gone")
    assert gone.stdout.splitlines()[-1] == "the key opens none of 4 wraps"
    opened = await _ok(cli, "verify", "acme", "--admin-kek-file", new)
    assert opened.stdout.splitlines()[0] == "admin key m2"
    await _fails(cli, "the key opens nothing", "verify", "acme", "--admin-kek-file", old)


async def test_what_a_bucket_writer_changes_is_found(cli: Cli, tmp_path: Path) -> None:
    async with worker(cli.deployment.worker_env(**_FAST)):
        await _enroll_and_upload(cli, tmp_path)
        await _ok(cli, "keys", "export-project", "acme", "--out", str(tmp_path / "kek"), *_REASON)
    a, b, c = (read_object(cli.deployment, "acme", name) for name in ("a", "b", "c"))
    _put(cli, "a", a, **{"enc-dek-user": b.metadata["enc-dek-user"]})  # a wrap of another object
    flipped = bytes([*b.body[:30], b.body[30] ^ 1, *b.body[31:]])
    _put(cli, "b", type(b)(flipped, b.metadata, b.content_type))  # in the header's commitment
    _put(cli, "moved", c)  # an object at another key
    s3_client(cli.deployment).put_object(
        Bucket=cli.deployment.bucket, Key="acme/planted", Body=b"plaintext"
    )

    arguments = ("--api-key-file", str(tmp_path / "acme.key"))
    result = await _fails(cli, "4 of 6 objects", "verify", "acme", *arguments, "--json")
    assert [(row["s3_key"], row["state"], row["code"]) for row in document(result)["findings"]] == [
        ("acme/a", "closed", "no_usable_wrap"),
        ("acme/b", "failed", "corrupt_object"),
        ("acme/moved", "closed", "no_usable_wrap"),
        ("acme/planted", "unchecked", None),
    ]
    arguments = ("--admin-kek-file", str(tmp_path / "kek"))
    result = await _fails(cli, "3 of 6 objects", "verify", "acme", *arguments, "--json")
    assert [row["s3_key"] for row in document(result)["findings"]] == [
        "acme/b", "acme/moved", "acme/planted"]  # fmt: skip
