"""`keyturn verify` after a real rotation: the new key opens all, the old one nothing."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import from_base64, kek_id, new_dek, to_base64, user_kek, wrap_dek
from tests.integration.cli.conftest import Cli, cli_for, document
from tools.harness.deployment import Deployment
from tools.harness.process import worker
from tools.harness.stored_objects import read_object, s3_client
from tools.servers import new_bucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

    from tools.harness.stored_objects import StoredObject
    from tools.servers import S3Server, Servers

pytestmark = pytest.mark.servers

_FAST = {"LEASE_S": "2", "KEYRING_CACHE_S": "0.2"}
_NAMES = ("a", "b", "c", "d")
_REASON = ("--reason", "audit of 2026")
_TOUCHED = "touched"
"""The project whose objects a test changes for good."""


async def _ok(cli: Cli, *arguments: str) -> Result:
    result = await cli.arun(*arguments)
    assert result.exit_code == 0, result.stderr
    return result


async def _fails(cli: Cli, said: str, *arguments: str, status: int = 1) -> Result:
    result = await cli.arun(*arguments)
    assert result.exit_code == status, result.output
    assert said in result.stderr
    return result


@dataclass(frozen=True)
class Life:
    """Three projects with four objects each, and the files of their keys.

    One object of `acme` was deleted, and the project rotated; `other` was swept to another master
    key. No worker runs any more.

    Attributes:
        cli: Commands on this deployment.
        folder: Holds `PROJECT.key`, the first API key; `acme.new.key`; `PROJECT.kek`, an admin KEK
            of the first master key; `other.m2.kek`; and `trail`, the audit trail.
        before: The objects of `acme` before the rotation.
        rotated: The event that ended the rotation.
    """

    cli: Cli
    folder: Path
    before: dict[str, StoredObject]
    rotated: dict[str, Any]

    def file(self, name: str) -> str:
        return str(self.folder / name)

    def put(self, key: str, stored: StoredObject, **metadata: str) -> None:
        """Write an object as a bucket writer can, with changed metadata."""
        s3_client(self.cli.deployment).put_object(
            Bucket=self.cli.deployment.bucket,
            Key=key,
            Body=stored.body,
            Metadata={**stored.metadata, **metadata},
        )

    @contextmanager
    def changed(self, key: str, stored: StoredObject, **metadata: str) -> Iterator[None]:
        """An object of `acme` is another one for a while."""
        current = read_object(self.cli.deployment, "acme", key)
        self.put(f"acme/{key}", stored, **metadata)
        try:
            yield
        finally:
            self.put(f"acme/{key}", current)


@pytest.fixture(scope="module")
def life(broker: Servers, ceph: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Life:
    url = broker.amqp_url if broker.rabbitmq is None else broker.rabbitmq.next_vhost_url()
    more = {"m2": os.urandom(32)}
    cli = cli_for(Deployment(url, ceph, new_bucket(ceph), more_master_keys=more))
    return asyncio.run(_live(cli, tmp_path_factory.mktemp("life")))


async def _live(cli: Cli, folder: Path) -> Life:
    for name in _NAMES:
        (folder / name).write_bytes(name.encode() * 30_000)
    life = Life(cli, folder, {}, {})
    async with worker(cli.deployment.worker_env(**_FAST)):
        for project in ("acme", "other", _TOUCHED):
            key_file = life.file(f"{project}.key")
            await _ok(cli, "enroll", project, "--generate", "--save-to", key_file)
            await _ok(cli, "upload", project, *map(life.file, _NAMES))
            await _export_kek(life, project, f"{project}.kek")
        await _ok(cli, "delete", "acme", "d")
        before = {name: read_object(cli.deployment, "acme", name) for name in _NAMES}
        rotate = ("rotate", "acme", "--generate", "--save-to", life.file("acme.new.key"))
        sweep = document(await _ok(cli, "sweep", "other", "--master-key", "m2", "--json"))
        rotated = await _ok(cli, *rotate, "--watch", "--json")
        await _ok(cli, "status", sweep["sweep_id"], "--watch")
        await _export_kek(life, "other", "other.m2.kek")
        await _ok(cli, "audit", "export", life.file("trail"))
    return replace(life, before=before, rotated=document(rotated)["event"])


async def _export_kek(life: Life, project: str, name: str) -> None:
    arguments = ("keys", "export-project", project, "--out", life.file(name), *_REASON)
    await _ok(life.cli, *arguments)


async def test_what_each_key_opens_after_a_rotation(life: Life) -> None:
    cli, old, new = life.cli, life.file("acme.key"), life.file("acme.new.key")
    opened = await _ok(cli, "verify", "acme", "--api-key-file", new, "--json")
    counts = document(opened)["counts"]
    assert (counts["objects"], counts["opened"], counts["tombstones"]) == (4, 3, 1)
    named = document(opened)["key"]["kek_id"]
    assert named == kek_id(user_kek((life.folder / "acme.new.key").read_text().strip(), "acme"))

    shown = document(await _ok(cli, "evidence", "show", "acme", "--json"))
    assert (shown["digest"], shown["state"]) == (life.rotated["evidence"], "signature verified")
    assert (shown["kind"], shown["generation"], shown["objects"]) == ("rotation", 2, 4)
    newest = f"Newest evidence: {life.rotated['evidence']}"
    assert newest in (await _ok(cli, "status", "acme")).stdout

    await _fails(cli, "the key opens nothing", "verify", "acme", "--api-key-file", old)
    named = kek_id(user_kek((life.folder / "acme.key").read_text().strip(), "acme"))
    gone = ("verify", "acme", "--api-key-file", old, "--expect-gone", "--kek-id", named)
    assert (await _ok(cli, *gone)).stdout.splitlines()[-1] == "the key opens none of 3 wraps"
    await _fails(cli, "not verified that", "verify", "acme", "--api-key-file", new, "--expect-gone")


_HIDING_PLACES = ("as before", "algorithm", "deleted", "generation", "swapped", "beside")


def _hidden(
    place: str, old: StoredObject, current: StoredObject, key: str, api_key: str
) -> dict[str, str]:
    """The metadata with which a bucket writer who kept an old object writes it again."""
    labels = {name: current.metadata[name] for name in ("enc-kek-user", "enc-kek-admin")}
    user, admin = old.metadata["enc-dek-user"], old.metadata["enc-dek-admin"]
    match place:
        case "algorithm":
            return {**labels, "enc-algo": "AES-256-GCM"}
        case "deleted":
            return {**labels, "enc-algo": "deleted"}
        case "generation":
            wrap = wrap_dek(
                user_kek(api_key, "acme"), "user", algorithm="Cobblestone-256", project="acme",
                object_key=key, generation=40, dek=new_dek(),
            )  # fmt: skip
            return {"enc-dek-user": to_base64(wrap), "enc-kek-user": f"41:{'0' * 16}"}
        case "swapped":
            return {**labels, "enc-dek-user": admin, "enc-dek-admin": user}
        case "beside":
            return {**current.metadata, "enc-dek-user-1": user}
    return {}


async def test_the_hiding_places_of_an_old_wrap(life: Life) -> None:
    cli, old = life.cli, life.before["c"]
    gone = ("verify", "acme", "--api-key-file", life.file("acme.key"), "--expect-gone")
    present = ("verify", "acme", "--api-key-file", life.file("acme.new.key"))
    api_key = (life.folder / "acme.key").read_text().strip()
    current = read_object(cli.deployment, "acme", "c")
    for place in _HIDING_PLACES:
        with life.changed("c", old, **_hidden(place, old, current, "c", api_key)):
            result = await _fails(cli, "it opens 1 of 3 wraps; 0 other findings", *gone, "--json")
            (finding,) = document(result)["findings"]
            assert (finding["s3_key"], finding["state"]) == ("acme/c", "opened")
            await _fails(cli, "not verified: 1 of 4", *present)
        await _ok(cli, *present)


async def test_the_operators_view_by_one_projects_admin_kek(life: Life) -> None:
    cli, trail = life.cli, (life.folder / "trail").read_text()
    bodies = (json.loads(line)["body"] for line in trail.splitlines())
    records = [json.loads(from_base64(body)) for body in bodies]
    exported = [each for each in records if each["action"] == "project_kek.exported"]
    fields = ("project", "master_key", "outcome", "reason")
    assert [tuple(record[field] for field in fields) for record in exported] == [
        ("acme", "m1", "started", _REASON[1]),
        ("other", "m1", "started", _REASON[1]),
        (_TOUCHED, "m1", "started", _REASON[1]),
        ("other", "m2", "started", _REASON[1]),
    ]

    verify = ("verify", "acme", "--admin-kek-file")
    result = await _ok(cli, *verify, life.file("acme.kek"))
    assert result.stdout.splitlines() == [
        "admin key m1",
        "objects 4, opened 4, tombstones 1",
        "the key opens all of 4 wraps",
    ]
    other = life.file("other.kek")
    await _fails(cli, "that of other, not of acme", *verify, other, status=2)
    relabeled = life.folder / "relabeled.kek"
    relabeled.write_text((life.folder / "other.kek").read_text().replace('"other"', '"acme"'))
    await _fails(cli, "the key opens nothing", *verify, str(relabeled))


async def test_an_old_master_key_opens_nothing_after_a_sweep_to_another(life: Life) -> None:
    verify = ("verify", "other", "--admin-kek-file")
    gone = await _ok(life.cli, *verify, life.file("other.kek"), "--expect-gone")
    assert gone.stdout.splitlines()[-1] == "the key opens none of 4 wraps"
    opened = await _ok(life.cli, *verify, life.file("other.m2.kek"))
    assert opened.stdout.splitlines()[0] == "admin key m2"
    await _fails(life.cli, "the key opens nothing", *verify, life.file("other.kek"))


async def test_what_a_bucket_writer_changes_is_found(life: Life) -> None:
    deployment = life.cli.deployment
    a, b, c = (read_object(deployment, _TOUCHED, name) for name in ("a", "b", "c"))
    # A wrap of another object, a bit of the header's commitment, an object at another key.
    life.put(f"{_TOUCHED}/a", a, **{"enc-dek-user": b.metadata["enc-dek-user"]})
    flipped = bytes([*b.body[:30], b.body[30] ^ 1, *b.body[31:]])
    life.put(f"{_TOUCHED}/b", replace(b, body=flipped))
    life.put(f"{_TOUCHED}/moved", c)
    s3_client(deployment).put_object(
        Bucket=deployment.bucket, Key=f"{_TOUCHED}/planted", Body=b"plaintext"
    )

    verify = ("verify", _TOUCHED, "--json")
    key_file = ("--api-key-file", life.file(f"{_TOUCHED}.key"))
    found = document(await _fails(life.cli, "4 of 6 objects", *verify, *key_file))["findings"]
    assert [(row["s3_key"], row["state"], row["code"]) for row in found] == [
        (f"{_TOUCHED}/a", "closed", "no_usable_wrap"),
        (f"{_TOUCHED}/b", "failed", "corrupt_object"),
        (f"{_TOUCHED}/moved", "closed", "no_usable_wrap"),
        (f"{_TOUCHED}/planted", "unchecked", None),
    ]
    kek_file = ("--admin-kek-file", life.file(f"{_TOUCHED}.kek"))
    found = document(await _fails(life.cli, "3 of 6 objects", *verify, *kek_file))["findings"]
    assert [row["s3_key"] for row in found] == [
        f"{_TOUCHED}/{name}" for name in ("b", "moved", "planted")
    ]


async def test_old_wraps_in_what_a_rewrap_keeps(life: Life) -> None:
    """They keep a rotation from ending clean, until the operator has removed them."""
    cli, deployment, project = life.cli, life.cli.deployment, "copied"
    s3, bucket = s3_client(deployment), deployment.bucket
    key, new_key = life.file("copied.key"), life.file("copied.new.key")
    gone = ("verify", project, "--api-key-file", key, "--expect-gone", "--json")
    async with worker(deployment.worker_env(**_FAST)):
        await _ok(cli, "enroll", project, "--generate", "--save-to", key)
        await _ok(cli, "upload", project, *map(life.file, _NAMES))
        stored = {name: read_object(deployment, project, name) for name in _NAMES}
        wraps = {name: stored[name].metadata["enc-dek-user"] for name in _NAMES}
        life.put(f"{project}/a", stored["a"], note=wraps["a"])
        s3.put_object(
            Bucket=bucket,
            Key=f"{project}/b",
            Body=stored["b"].body,
            Metadata=stored["b"].metadata,
            ContentDisposition=f'attachment; filename="{wraps["b"]}"',
        )
        s3.put_object_tagging(
            Bucket=bucket,
            Key=f"{project}/c",
            Tagging={"TagSet": [{"Key": "note", "Value": wraps["c"]}]},
        )

        rotate = ("rotate", project, "--generate", "--save-to", new_key, "--watch", "--json")
        end = document(await cli.arun(*rotate))["event"]
        assert (end["clean"], end["failed"]) == (False, 3)
        shown = await cli.arun("status", end["rotation_id"])
        assert shown.stdout.count("hidden_wrap") == 3
        result = await _fails(cli, "it opens 3 of 4 wraps", *gone)
        places = [row["detail"].split()[0] for row in document(result)["findings"]]
        assert places == ["note", "content-disposition", "tag"]

        for name in "abc":
            now = read_object(deployment, project, name)
            metadata = {n: v for n, v in now.metadata.items() if n != "note"}
            life.put(f"{project}/{name}", replace(now, metadata=metadata))
        swept = document(await _ok(cli, "sweep", project, "--watch", "--json"))["event"]
        assert swept["clean"]
    assert document(await _ok(cli, *gone))["verified"]
