"""`keyturn keys export-project`: one project's admin KEK, in a file for its owner alone."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn.crypto import admin_kek, to_base64
from keyturn.project_keks import parse_project_keks
from keyturn_workers.cli.app import app
from keyturn_workers.keyring import create_keyring
from tests.unit.keyturn_workers.cli.fakes import FakeAudit, use_bucket
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

REASON = ("--reason", "audit 2026, for kim@example.com")


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """A bucket with the keyring of `acme`, under `m2`."""
    made = MemoryStorage()
    ring = keyring("acme", master_key="m2")
    assert asyncio.run(create_keyring(made, ring, operator_keys(MASTER_KEYS), lease_s=15))

    use_bucket(monkeypatch, "keys", made)
    return made


@pytest.fixture(autouse=True)
def audit(monkeypatch: pytest.MonkeyPatch) -> FakeAudit:
    made = FakeAudit()
    monkeypatch.setattr("keyturn_workers.cli.keys.command_audit", made)
    return made


def _run(*arguments: str, held: tuple[str, ...] = ("m1", "m2")) -> Result:
    master_keys = {name: to_base64(MASTER_KEYS[name].reveal()) for name in held}
    env = {
        "KEYTURN_MASTER_KEYS": json.dumps(master_keys),
        "KEYTURN_S3_BUCKET": "memory",
        "KEYTURN_AMQP_URL": "amqp://localhost/",
        "KEYTURN_EVENT_KEY": to_base64(bytes(32)),
    }
    return CliRunner().invoke(app, ["keys", "export-project", *arguments], env=env)


@pytest.mark.usefixtures("storage")
def test_the_key_that_the_keyring_names_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    out = tmp_path / "acme.kek"
    result = _run("acme", "--out", str(out), *REASON)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"admin KEK of acme under m2 written to {out}" in result.stderr
    assert out.stat().st_mode & 0o777 == 0o600
    keks = parse_project_keks(out.read_text())
    assert keks.project == "acme"
    assert keks.admin_keks == {"m2": admin_kek(MASTER_KEYS["m2"].reveal(), "acme")}


@pytest.mark.usefixtures("storage")
def test_named_master_keys_need_no_keyring(tmp_path: Path) -> None:
    out = tmp_path / "other.kek"
    names = ("--master-key", "m1", "--master-key", "m2")
    result = _run("other", "--out", str(out), *REASON, *names)
    assert result.exit_code == 0
    assert parse_project_keks(out.read_text()).admin_keks == {
        name: admin_kek(MASTER_KEYS[name].reveal(), "other") for name in ("m1", "m2")
    }


@pytest.mark.usefixtures("storage")
@pytest.mark.parametrize(
    ("arguments", "held", "said"),
    [
        (("other",), ("m1", "m2"), "unknown_project: the project has no keyring"),
        (("acme",), ("m1",), "unknown_master_key"),
        (("acme", "--master-key", "m3"), ("m1",), "unknown_master_key: m3 is not in"),
    ],
)
def test_a_refusal_writes_nothing(
    tmp_path: Path, arguments: tuple[str, ...], held: tuple[str, ...], said: str
) -> None:
    out = tmp_path / "kek"
    result = _run(*arguments, "--out", str(out), *REASON, held=held)
    assert result.exit_code == 1
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("storage")
def test_each_exported_key_is_recorded_first(tmp_path: Path, audit: FakeAudit) -> None:
    names = ("--master-key", "m1", "--master-key", "m2")
    assert _run("acme", "--out", str(tmp_path / "kek"), *REASON, *names).exit_code == 0
    assert audit.outcomes == [("project_kek.exported", "started")] * 2
    assert [(r.project, r.master_key, r.reason) for r in audit.records] == [
        ("acme", "m1", REASON[1]),
        ("acme", "m2", REASON[1]),
    ]
    assert audit.opened == [("keys export-project", REASON[1])]


@pytest.mark.usefixtures("storage")
def test_what_cannot_be_recorded_is_not_exported(tmp_path: Path, audit: FakeAudit) -> None:
    audit.is_away = True
    result = _run("acme", "--out", str(tmp_path / "kek"), *REASON)
    assert result.exit_code == 1
    assert "the audit trail cannot be written" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("storage")
def test_an_existing_file_is_kept(tmp_path: Path, audit: FakeAudit) -> None:
    out = tmp_path / "acme.kek"
    out.write_text("another")
    result = _run("acme", "--out", str(out), *REASON)
    assert result.exit_code == 1
    assert "already exists" in result.stderr
    assert out.read_text() == "another"
    assert audit.opened == []


@pytest.mark.parametrize("reason", [(), ("--reason", " "), ("--reason", "a\nb"),
                                    ("--reason", "x" * 501)])  # fmt: skip
def test_a_reason_is_required(tmp_path: Path, reason: tuple[str, ...]) -> None:
    result = _run("acme", "--out", str(tmp_path / "kek"), *reason)
    assert result.exit_code == 2
    assert "reason" in result.stderr


def test_a_malformed_master_key_id_is_wrong_usage(tmp_path: Path) -> None:
    result = _run("acme", "--out", str(tmp_path / "kek"), *REASON, "--master-key", "M 1")
    assert result.exit_code == 2
