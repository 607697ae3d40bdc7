"""`keyturn keys check`: each master key derives, and is the one that the bucket knows."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn.crypto import record_kek, to_base64
from keyturn_workers.cli.app import app
from keyturn_workers.master_keys.known_text import RESERVED_PROJECT, check_known_text
from tests.unit.keyturn_workers.cli.fake_kms import MASTER_KEY, PRK, URI, FakeKey
from tests.unit.keyturn_workers.cli.memory_bucket import use_bucket
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from typer.testing import Result

    from tests.unit.keyturn_workers.cli.fake_kms import FakeKms

KEYS = {"m1": to_base64(MASTER_KEY.reveal()), "m2": URI}
KEK = record_kek(MASTER_KEY.reveal(), RESERVED_PROJECT)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """A bucket that knows `m2` as the key of these tests."""
    made = MemoryStorage()
    asyncio.run(check_known_text(made, "m2", KEK, create=True))

    use_bucket(monkeypatch, "keys", made)
    return made


def _run(*arguments: str) -> Result:
    env = {"KEYTURN_MASTER_KEYS": json.dumps(KEYS), "KEYTURN_S3_BUCKET": "memory"}
    return CliRunner().invoke(app, ["keys", "check", *arguments], env=env)


@pytest.mark.usefixtures("storage")
def test_a_key_is_the_one_that_the_bucket_knows(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK)
    result = _run("m2", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    [row] = json.loads(result.stdout)
    median_ms, max_ms = row.pop("median_ms"), row.pop("max_ms")
    assert 0 < median_ms <= max_ms
    assert row == {
        "master_key": "m2",
        "provider": "vault",
        "derives": True,
        "known_text": "opens",
        "warnings": [],
        "error": None,
    }
    assert kms.keys[URI].derivations == 2 + 20


def test_without_ids_all_are_checked_and_nothing_is_written(
    kms: FakeKms, storage: MemoryStorage
) -> None:
    kms.keys[URI] = FakeKey(PRK)
    puts = storage.calls["put"]
    result = _run()
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[0] == ["master_key", "provider", "derives", "known_text", "median_ms", "max_ms"]
    assert rows[1][:5] == ["m1", "local", "yes", "none", "yet"]
    assert rows[2][:4] == ["m2", "vault", "yes", "opens"]
    assert storage.calls["put"] == puts == 1
    assert KEYS["m1"] not in result.output


@pytest.mark.usefixtures("storage")
def test_another_key_under_the_id_is_found(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(MASTER_KEY)  # not its PRK
    result = _run("m2")
    assert result.exit_code == 1
    assert "does not open" in result.stdout
    assert "m2: this id belongs to another key" in result.stderr


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize(
    ("key", "said"),
    [
        (FakeKey(PRK, failure="the token is expired"), "the token is expired"),
        (FakeKey(PRK, wrong=2), "two derivations of the same KEK differ"),
    ],
)
def test_a_key_that_does_not_derive_is_wrong(kms: FakeKms, key: FakeKey, said: str) -> None:
    kms.keys[URI] = key
    result = _run("--json")
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)
    assert first["error"] is None
    assert second["error"] == f"kms_unavailable: {said}"
    assert not second["derives"]


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"exportable": True}, "can be exported"),
        ({"automatic_rotation": True}, "rotates the key automatically"),
        ({"imported": True}, "was imported"),
        ({"warnings": ("expires soon",)}, "expires soon"),
    ],
)
def test_what_is_risky_is_a_warning(
    kms: FakeKms, description: dict[str, object], said: str
) -> None:
    kms.keys[URI] = FakeKey(PRK, description=description)
    result = _run("m2")
    assert result.exit_code == 0
    assert said in result.stderr
    assert said in json.loads(_run("m2", "--json").stdout)[0]["warnings"][0]


@pytest.mark.usefixtures("storage")
def test_a_key_that_may_only_derive_is_right(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, undescribed="access denied")
    result = _run("m2")
    assert result.exit_code == 0
    assert "m2: it derives, but its properties cannot be read: access denied" in result.stderr
    assert kms.keys[URI].derivations == 2 + 20  # nothing that was shown is asked for again


@pytest.mark.usefixtures("storage", "kms")
def test_an_unknown_id_is_refused() -> None:
    result = _run("m2", "m3")
    assert result.exit_code == 1
    assert "unknown_master_key: m3 is not in KEYTURN_MASTER_KEYS" in result.stderr
