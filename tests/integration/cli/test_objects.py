"""`ls`, `inspect` and `download` on a real bucket, with objects made from the formats."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, Secret, kek_id, new_dek, seal, user_kek
from keyturn.messages import RequestOrigin
from keyturn_workers.core.keyring import Generation, Keyring
from keyturn_workers.core.wraps import build_object_metadata, wrap
from tests.integration.cli.conftest import document
from tools.harness.local_keys import build_keyring, desired_state
from tools.servers.s3 import sync_client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.cli.conftest import Cli

pytestmark = pytest.mark.servers
_AT = "2026-11-24T10:00:00.000000Z"
_ID = "2f6c9a0e-0000-4000-8000-000000000001"
_AS_OPERATOR = ("--as-operator", "--reason", "a test")
_LS = ("ls", "acme", "--as-operator")


def _put(cli: Cli, s3_key: str, body: bytes, metadata: dict[str, str] | None = None) -> None:
    client = sync_client(cli.deployment.s3)
    try:
        client.put_object(
            Bucket=cli.deployment.bucket,
            Key=s3_key,
            Body=body,
            Metadata=metadata or {},
            ContentType="text/plain",
        )
    finally:
        client.close()


def _masters(cli: Cli) -> dict[str, Secret]:
    return {"m1": Secret(cli.deployment.master_key)}


def _keyring(cli: Cli, *, plaintext: bool = False) -> Keyring:
    kek = user_kek(cli.deployment.api_key, "acme")
    current = Generation(1, kek_id(kek), kek, _ID, _AT, _AT)
    origin = RequestOrigin("api", "0" * 64)
    return Keyring("acme", "m1", current, origin, lease_s=15, plaintext_allowed=plaintext)


def _store(cli: Cli, key: str, plaintext: bytes) -> bytes:
    """Put an object as a worker would; gives its body."""
    dek = new_dek()
    wraps = wrap(desired_state(_keyring(cli), _masters(cli)), key, dek)
    body = seal(dek, BODY_CONTEXT, plaintext)
    caller = {"author": "=?utf-8?b?w6k=?=", "topic": "q3"}
    _put(cli, f"acme/{key}", body, build_object_metadata(wraps, upload_id=_ID, caller_wire=caller))
    return body


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("size", [0, 5, 3 * 2**20 + 7])
def test_download_writes_the_stored_plaintext(operator_cli: Cli, tmp_path: Path, size: int) -> None:
    plaintext = os.urandom(size)
    _store(operator_cli, "a/b.bin", plaintext)
    target = tmp_path / "out.bin"
    result = operator_cli.run("download", "acme", "a/b.bin", "-o", str(target), *_AS_OPERATOR)
    assert result.exit_code == 0, result.stderr
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(plaintext).digest()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert _files(tmp_path) == ["out.bin"]


def test_download_to_standard_output_is_the_plaintext_alone(operator_cli: Cli) -> None:
    _store(operator_cli, "k", b"hello\n")
    result = operator_cli.run("download", "acme", "k", "-o", "-", *_AS_OPERATOR)
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (0, b"hello\n", "")


@pytest.mark.parametrize("damage", ["flip", "cut", "metadata"])
def test_a_corrupt_object_exits_1_and_leaves_no_file(
    operator_cli: Cli, tmp_path: Path, damage: str
) -> None:
    plaintext = os.urandom(2 * 2**20)
    body = bytearray(_store(operator_cli, "k", plaintext))
    wraps = wrap(desired_state(_keyring(operator_cli), _masters(operator_cli)), "k", new_dek())
    client = sync_client(operator_cli.deployment.s3)
    metadata = client.head_object(Bucket=operator_cli.deployment.bucket, Key="acme/k")["Metadata"]
    client.close()
    if damage == "flip":
        body[-100] ^= 1
    elif damage == "cut":
        del body[-100:]
    else:
        metadata = build_object_metadata(wraps, upload_id=_ID, caller_wire={})
    _put(operator_cli, "acme/k", bytes(body), metadata)
    result = operator_cli.run("download", "acme", "k", "-o", str(tmp_path / "out"), *_AS_OPERATOR)
    assert result.exit_code == 1
    assert result.stderr.startswith("keyturn: corrupt_object: ")
    assert result.stderr.count("\n") == 1
    assert _files(tmp_path) == []
    piped = operator_cli.run("download", "acme", "k", "-o", "-", *_AS_OPERATOR)
    assert piped.exit_code == 1
    assert plaintext.startswith(piped.stdout_bytes)
    assert len(piped.stdout_bytes) < len(plaintext)


def test_download_replaces_a_file_only_with_force_and_only_completely(
    operator_cli: Cli, tmp_path: Path
) -> None:
    _store(operator_cli, "k", b"new")
    target = tmp_path / "out"
    target.write_bytes(b"old")
    arguments = ["download", "acme", "k", "-o", str(target), *_AS_OPERATOR]
    assert operator_cli.run(*arguments).exit_code == 1
    assert target.read_bytes() == b"old"
    missing = operator_cli.run("download", "acme", "none", *arguments[3:], "--force")
    assert (missing.exit_code, missing.stderr) == (1, "keyturn: not_found: none\n")
    assert target.read_bytes() == b"old"
    assert operator_cli.run(*arguments, "--force").exit_code == 0
    assert target.read_bytes() == b"new"


def test_the_operator_reads_plaintext_where_the_keyring_allows_it(operator_cli: Cli) -> None:
    record = build_keyring(_keyring(operator_cli, plaintext=True), _masters(operator_cli))
    _put(operator_cli, "acme/p", b"as it is")
    arguments = ["download", "acme", "p", "-o", "-", *_AS_OPERATOR]
    refused = operator_cli.run(*arguments)
    assert (refused.exit_code, refused.stdout_bytes) == (1, b"")
    _put(operator_cli, ".keyturn/keyrings/acme.json", record)
    assert operator_cli.run(*arguments).stdout_bytes == b"as it is"


def test_inspect_shows_metadata_and_no_wrap(bucket_cli: Cli) -> None:
    body = _store(bucket_cli, "k", b"hello")
    ring = _keyring(bucket_cli)
    result = bucket_cli.run("inspect", "acme", "k", "--json")
    assert result.exit_code == 0
    report = document(result)
    stored_at, changed_at = report.pop("stored_at"), report.pop("changed_at")
    assert stored_at == changed_at  # nothing has rewrapped it
    assert changed_at.endswith("Z")
    etag = report.pop("etag")
    assert etag == hashlib.md5(body).hexdigest()  # noqa: S324  # what S3 calls a body
    assert report == {
        "project": "acme",
        "key": "k",
        "kind": "encrypted",
        "algorithm": "Cobblestone-256",
        "plaintext_bytes": 5,
        "stored_bytes": len(body),
        "generation": 1,
        "kek_id": ring.current.kek_id,
        "master_key": "m1",
        "wrap_bytes_user": 104,
        "wrap_bytes_admin": 104,
        "commitment": body[24:HEADER_BYTES].hex(),
        "content_type": "text/plain",
        "upload_id": _ID,
        "tags": 0,
        "metadata": {"author": "é", "topic": "q3"},
    }
    table = bucket_cli.run("inspect", "acme", "k")
    assert "metadata: author" in table.stdout
    assert "\x1b" not in table.stdout


def test_a_rotation_moves_the_time_of_a_change_and_not_that_of_the_content(
    bucket_cli: Cli,
) -> None:
    stored_at = "2026-11-02T03:04:05.600000Z"  # as the first rewrap records it
    _put(bucket_cli, "acme/k", b"x" * 73, {"enc-algo": "ROT13", "enc-stored-at": stored_at})
    report = document(bucket_cli.run("inspect", "acme", "k", "--json"))
    assert report["stored_at"] == "2026-11-02T03:04:05Z"
    (row,) = document(bucket_cli.run(*_LS, "--json"))
    assert row["changed_at"] == report["changed_at"] > report["stored_at"]


@pytest.mark.parametrize("options", [[], ["--long"], ["--folders"], ["--json"]])
def test_ls_of_a_project_that_is_not_enrolled_is_an_error(
    bucket_cli: Cli, options: list[str]
) -> None:
    unknown = bucket_cli.run("ls", "nosuch", "--as-operator", *options)
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert unknown.stderr == (
        "keyturn: unknown_project: nosuch is not enrolled; to enroll it: keyturn enroll nosuch\n"
    )
    _put(bucket_cli, "nosuch/object", b"x")
    assert bucket_cli.run("ls", "nosuch", "--as-operator", *options).exit_code == 0


def test_ls_of_an_enrolled_project_without_objects_is_empty(bucket_cli: Cli) -> None:
    record = build_keyring(_keyring(bucket_cli), _masters(bucket_cli))
    _put(bucket_cli, ".keyturn/keyrings/acme.json", record)
    empty = bucket_cli.run(*_LS, "--json")
    assert (empty.exit_code, document(empty)) == (0, [])


def test_ls_lists_one_project_in_order_up_to_the_limit(bucket_cli: Cli) -> None:
    for key in ("b", "a/2", "a/1"):
        _store(bucket_cli, key, b"hello")
    _put(bucket_cli, "acme-2/other", b"")
    rows = document(bucket_cli.run(*_LS, "--json"))
    assert [row["key"] for row in rows] == ["a/1", "a/2", "b"]
    assert {row["plaintext_bytes"] for row in rows} == {5}
    rows = document(bucket_cli.run(*_LS, "a/", "--json", "--long"))
    assert [(r["key"], r["plaintext_bytes"], r["master_key"]) for r in rows] == [
        ("a/1", 5, "m1"),
        ("a/2", 5, "m1"),
    ]
    some = bucket_cli.run(*_LS, "--limit", "2")
    assert [line.split()[0] for line in some.stdout.splitlines()] == ["key", "a/1", "a/2"]
    assert "raise --limit (now 2)" in some.stderr
    exact = bucket_cli.run(*_LS, "--limit", "3")
    assert exact.stderr == ""


def test_an_object_key_cannot_control_the_terminal(bucket_cli: Cli) -> None:
    _put(bucket_cli, "acme/\x1b[2Jx", b"")
    for arguments in (_LS, (*_LS, "--json")):
        result = bucket_cli.run(*arguments)
        assert result.exit_code == 0, result.stderr
        assert "\x1b" not in result.output


def test_an_unreachable_storage_is_one_line(bucket_cli: Cli) -> None:
    result = bucket_cli.run(*_LS, S3_ENDPOINT_URL="http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("keyturn: storage_unavailable: ")
    assert result.stderr.count("\n") == 1
