"""`keyturn keys import`: the same KEKs from another place, or no advice to use it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from keyturn.crypto import Secret, to_base64
from keyturn_workers.cli.app import app
from tests.unit.keyturn_workers.cli.fake_audit import FakeAudit
from tests.unit.keyturn_workers.cli.fake_kms import MASTER_KEY, OTHER_URI, PRK, URI, FakeKey

if TYPE_CHECKING:
    from typer.testing import Result

    from tests.unit.keyturn_workers.cli.fake_kms import FakeKms

KEYS = {"m1": to_base64(MASTER_KEY.reveal()), "m2": OTHER_URI, "m3": to_base64(bytes(32))}
LINE = f'"m1": "{URI}"\n'


@pytest.fixture(autouse=True)
def audit(monkeypatch: pytest.MonkeyPatch) -> FakeAudit:
    made = FakeAudit()
    monkeypatch.setattr("keyturn_workers.cli.keys.command_audit", made)
    return made


def _run(*arguments: str) -> Result:
    env = {
        "KEYTURN_MASTER_KEYS": json.dumps(KEYS),
        "KEYTURN_AMQP_URL": "amqp://localhost/",
        "KEYTURN_EVENT_KEY": to_base64(bytes(32)),
    }
    return CliRunner().invoke(app, ["keys", "import", *arguments], env=env)


def test_the_line_to_change_is_printed_and_no_key(kms: FakeKms) -> None:
    result = _run("m1", URI)
    assert (result.exit_code, result.stdout) == (0, LINE)
    assert kms.keys[URI].prk == PRK
    assert "m1 now derives the same KEKs in the provider" in result.stderr
    assert not any(key in result.output for key in (KEYS["m1"], KEYS["m3"], "m3"))
    assert PRK.reveal().hex() not in result.output


def test_the_audit_trail_has_the_import_first(kms: FakeKms, audit: FakeAudit) -> None:
    assert _run("m1", URI, "--reason", "move to the HSM, OPS-7").exit_code == 0
    [record] = audit.records
    assert (record.action, record.outcome) == ("master_key.imported", "started")
    assert (record.master_key, record.provider) == ("m1", "vault")
    assert record.reason == "move to the HSM, OPS-7"
    assert audit.opened == [("keys import", "move to the HSM, OPS-7")]
    assert kms.imports == 1


def test_what_cannot_be_recorded_is_not_imported(kms: FakeKms, audit: FakeAudit) -> None:
    audit.is_away = True
    result = _run("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the audit trail cannot be written, so nothing was done" in result.stderr
    assert kms.imports == 0


def test_an_import_that_failed_is_recorded_too(kms: FakeKms, audit: FakeAudit) -> None:
    kms.garbles = True
    assert _run("m1", URI).exit_code == 1
    assert audit.outcomes == [
        ("master_key.imported", "started"),
        ("master_key.imported", "failed"),
    ]


def test_an_import_that_was_interrupted_can_be_repeated(kms: FakeKms) -> None:
    assert _run("m1", URI).exit_code == 0
    again = _run("m1", URI)
    assert (again.exit_code, again.stdout) == (0, LINE)
    assert kms.imports == 1


def test_another_key_at_that_place_is_refused_and_kept(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(Secret(bytes(32)))
    result = _run("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the provider's key differs from the local one" in result.stderr
    assert kms.imports == 0


def test_an_import_that_derives_something_else_is_refused(kms: FakeKms) -> None:
    kms.garbles = True
    result = _run("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the provider's key differs from the local one" in result.stderr


def test_a_provider_that_cannot_import_says_so(kms: FakeKms) -> None:
    kms.refusal = "a key of this kind cannot be imported"
    result = _run("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "a key of this kind cannot be imported (the key does not exist)" in result.stderr


def test_a_key_that_does_not_derive_after_the_import_is_not_recommended(
    kms: FakeKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def imported(source: object, settings: object, prk: Secret) -> None:
        del source, settings
        kms.keys[URI] = FakeKey(prk, failure="access denied")

    monkeypatch.setattr("keyturn_workers.cli.keys.import_master_key", imported)
    result = _run("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "imported, but do not use it yet: access denied" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("m4", URI), 1, "unknown_master_key: m4 is not in KEYTURN_MASTER_KEYS"),
        (("m2", URI), 1, "the value of m2 is not in the settings"),
        (("m1", "nowhere"), 2, "a master key must be the base64 of 32 bytes"),
        (("m1", "pkcs11:object=m1?pin-value=12345"), 2, "KEYTURN_PKCS11_PIN_FILE"),
    ],
)
def test_what_cannot_be_imported_contacts_nothing(
    kms: FakeKms, arguments: tuple[str, str], status: int, said: str
) -> None:
    result = _run(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert said in result.stderr
    assert "12345" not in result.output
    assert kms.imports == 0
