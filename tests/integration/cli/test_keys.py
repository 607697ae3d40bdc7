"""`keyturn keys` and `init --master-key` with SoftHSM, OpenBao and moto's AWS KMS (SPEC 14)."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from dotenv import dotenv_values

from keyturn.crypto import from_base64, record_kek, to_base64
from keyturn.settings import S3Settings
from keyturn_workers.cli.bucket import open_bucket
from keyturn_workers.keys.master_keys.known_text import RESERVED_PROJECT, check_known_text
from tests.integration.cli.conftest import document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from typer.testing import Result

    from tests.integration.cli.conftest import Cli
    from tools.servers import MotoKms, OpenBao, SoftHsm

pytestmark = pytest.mark.servers
MASTER_KEY = bytes(range(32))
LOCAL = to_base64(MASTER_KEY)


@dataclass(frozen=True)
class Place:
    """A provider: how to use it, and names of keys that do not exist there yet."""

    provider: str
    env: dict[str, str]
    free_uri: Callable[[], str]
    """Of a key that can be imported; AWS KMS wants it to exist without key material."""
    stop: Callable[[], None]
    start: Callable[[], object]


def _name() -> str:
    return f"keyturn-{secrets.token_hex(4)}"


@pytest.fixture
def softhsm_place(softhsm: SoftHsm) -> Place:
    return Place("pkcs11", softhsm.env, lambda: softhsm.uri(_name()), softhsm.stop, softhsm.start)


@pytest.fixture
def openbao_place(openbao: OpenBao) -> Place:
    env = openbao.environment()
    return Place("vault", env, lambda: openbao.uri(_name()), openbao.stop, openbao.start)


@pytest.fixture
def aws_place(aws_kms: MotoKms) -> Place:
    free_uri = lambda: aws_kms.new_key(Origin="EXTERNAL")  # noqa: E731  # one of three
    return Place("awskms", aws_kms.env, free_uri, aws_kms.stop, aws_kms.start)


@pytest.fixture(params=["softhsm", "openbao", "aws"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each provider, one after the other."""
    made: Place = request.getfixturevalue(f"{request.param}_place")
    return made


@pytest.fixture(params=["softhsm", "openbao"])
def generating(request: pytest.FixtureRequest) -> Place:
    """Each provider that generates keys under a given name."""
    made: Place = request.getfixturevalue(f"{request.param}_place")
    return made


@pytest.fixture(autouse=True)
def aws_environment() -> Iterator[None]:
    """The standard AWS chain of a test is what its place says."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def _run(cli: Cli, place: Place, keys: dict[str, str], *arguments: str) -> Result:
    env = {**cli.env, **place.env, "KEYTURN_MASTER_KEYS": json.dumps(keys)}
    return type(cli)(cli.deployment, env).run(*arguments)


async def _create_known_text(env: dict[str, str]) -> None:
    """As the first worker with the local key does."""
    s3 = {name.removeprefix("KEYTURN_").lower(): value for name, value in env.items()
          if name.startswith("KEYTURN_S3_")}  # fmt: skip
    async with open_bucket(S3Settings.model_validate(s3)) as storage:
        kek = record_kek(MASTER_KEY, RESERVED_PROJECT)
        await check_known_text(storage, "m1", kek, create=True)


def _audit_records(cli: Cli, file: Path) -> list[dict[str, Any]]:
    exported = cli.run("audit", "export", str(file))
    assert exported.exit_code == 0, exported.stderr
    lines = [json.loads(line) for line in file.read_bytes().splitlines()]
    return [json.loads(from_base64(line["body"])) for line in lines]


def test_a_master_key_moves_into_a_provider_under_its_id(
    cli: Cli, place: Place, tmp_path: Path
) -> None:
    asyncio.run(_create_known_text(cli.env))
    uri = place.free_uri()
    imported = _run(cli, place, {"m1": LOCAL}, "keys", "import", "m1", uri)
    assert (imported.exit_code, imported.stdout) == (0, f'"m1": "{uri}"\n'), imported.stderr
    again = _run(cli, place, {"m1": LOCAL}, "keys", "import", "m1", uri)
    assert (again.exit_code, again.stdout) == (0, imported.stdout)
    checked = _run(cli, place, {"m1": uri}, "keys", "check", "--json")
    assert checked.exit_code == 0, checked.stderr
    [row] = document(checked)
    assert (row["provider"], row["derives"], row["known_text"]) == (place.provider, True, "opens")
    assert "the key was imported: copies may still exist where it was generated" in row["warnings"]
    assert 0 < row["median_ms"] <= row["max_ms"]
    assert LOCAL not in imported.output + checked.output
    [record] = _audit_records(cli, tmp_path / "audit")
    assert (record["action"], record["master_key"]) == ("master_key.imported", "m1")
    assert record["provider"] == place.provider


def test_another_key_under_the_id_is_found(cli: Cli, place: Place) -> None:
    asyncio.run(_create_known_text(cli.env))
    uri = place.free_uri()
    other = {"m1": to_base64(bytes(32))}
    assert _run(cli, place, other, "keys", "import", "m1", uri).exit_code == 0
    checked = _run(cli, place, {"m1": uri}, "keys", "check")
    assert checked.exit_code == 1
    assert "this id belongs to another key" in checked.stderr
    # What is there is never replaced.
    refused = _run(cli, place, {"m1": LOCAL}, "keys", "import", "m1", uri)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "the provider's key differs from the local one" in refused.stderr


def test_a_key_is_generated_inside(cli: Cli, generating: Place) -> None:
    uri = generating.free_uri()
    created = _run(cli, generating, {"m1": LOCAL}, "keys", "create", uri)
    assert created.exit_code == 0, created.stderr
    assert f'"m2": "{uri}"' in created.stdout
    again = _run(cli, generating, {"m1": LOCAL}, "keys", "create", uri)
    assert again.exit_code == 1
    listed = _run(cli, generating, {"m1": LOCAL, "m2": uri}, "keys", "list", "--json")
    assert listed.exit_code == 0, listed.stderr
    local, held = document(listed)
    assert local["active"]
    assert (held["provider"], held["location"]) == (generating.provider, uri)
    assert (held["reachable"], held["exportable"], held["automatic_rotation"]) == (
        True,
        False,
        False,
    )
    assert not held["imported"]


def test_aws_generates_keys_under_names_of_its_own(cli: Cli, aws_place: Place) -> None:
    refused = _run(cli, aws_place, {"m1": LOCAL}, "keys", "create", aws_place.free_uri())
    assert refused.exit_code == 1
    assert "aws kms create-key" in refused.stderr


def test_a_provider_that_is_away_is_a_row(cli: Cli, generating: Place) -> None:
    uri = generating.free_uri()
    assert _run(cli, generating, {"m1": LOCAL}, "keys", "create", uri).exit_code == 0
    generating.stop()
    try:
        listed = _run(cli, generating, {"m1": LOCAL, "m2": uri}, "keys", "list", "--json")
    finally:
        generating.start()
    assert listed.exit_code == 1
    local, held = document(listed)
    assert (local["reachable"], held["reachable"]) == (True, False)
    assert held["location"] == uri
    assert held["error"].startswith("kms_unavailable: ")


def test_aws_kms_that_is_away_is_a_row(cli: Cli, aws_place: Place, aws_kms: MotoKms) -> None:
    keys = {"m1": LOCAL, "m2": aws_kms.uri}
    aws_place.stop()
    try:
        listed = _run(cli, aws_place, keys, "keys", "list", "--json")
    finally:
        aws_place.start()
    assert listed.exit_code == 1
    assert "cannot be reached" in document(listed)[1]["error"]
    assert _run(cli, aws_place, keys, "keys", "list").exit_code == 0


def _init(cli: Cli, place: Place, folder: Path, uri: str) -> dict[str, str]:
    arguments = ("init", "--dir", str(folder), "--master-key", uri)
    done = type(cli)(cli.deployment, {**cli.deployment.s3_env(), **place.env}).run(*arguments)
    assert done.exit_code == 0, done.stderr
    written = dotenv_values(folder / "keyturn.env")
    return {name: value for name, value in written.items() if value is not None}


def test_init_generates_the_key_and_writes_how_to_use_it(
    cli: Cli, generating: Place, tmp_path: Path
) -> None:
    uri = generating.free_uri()
    written = _init(cli, generating, tmp_path, uri)
    assert json.loads(written["KEYTURN_MASTER_KEYS"]) == {"main": uri}
    # Of the environment, only what is no setting of Keyturn.
    other = {n: v for n, v in generating.env.items() if not n.startswith("KEYTURN_")}
    checked = type(cli)(cli.deployment, {**written, **other}).run("keys", "check", "--json")
    assert checked.exit_code == 0, checked.stderr
    assert document(checked)[0]["derives"]


def test_init_with_an_existing_key_of_aws(
    cli: Cli, aws_place: Place, aws_kms: MotoKms, tmp_path: Path
) -> None:
    written = _init(cli, aws_place, tmp_path, aws_kms.uri)
    assert json.loads(written["KEYTURN_MASTER_KEYS"]) == {"main": aws_kms.uri}
    assert written["KEYTURN_AWS_KMS_ENDPOINT_URL"] == aws_kms.endpoint_url
    assert not any(name.startswith("AWS_") for name in written)
