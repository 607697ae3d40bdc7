"""`keyturn keys`: `list`, `check`, `create`, `import` and `export-project`, which print no key."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import typer
from typer.testing import CliRunner

from keyturn.crypto import (
    Secret,
    admin_kek,
    composite_kek,
    new_customer_secret,
    record_kek,
    to_base64,
)
from keyturn.errors import KmsUnavailableError
from keyturn.project_keks import parse_project_keks
from keyturn_workers.cli.app import app
from keyturn_workers.cli.keys import concerns, derive_known_kek, describe_source, opened, parse_uri
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.key_uris import parse_key_uri
from keyturn_workers.keys.keyring.store import create_keyring
from keyturn_workers.keys.master_keys.known_text import RESERVED_PROJECT, check_known_text
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.port import KeyDescription
from keyturn_workers.process.settings import KmsSettings
from tests.unit.keyturn_workers.cli.fakes import (
    MASTER_KEY,
    OTHER_URI,
    PRK,
    URI,
    FakeAudit,
    FakeKey,
    FakeKms,
    use_bucket,
)
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

AWS = "awskms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd"
KEYS = {"m1": to_base64(MASTER_KEY.reveal()), "m2": URI}
KEK = record_kek(MASTER_KEY.reveal(), RESERVED_PROJECT)
IMPORTABLE = {"m1": to_base64(MASTER_KEY.reveal()), "m2": OTHER_URI, "m3": to_base64(bytes(32))}
LINE = f'"m1": "{URI}"\n'
REASON = ("--reason", "audit 2026, for kim@example.com")


# What each command reads, and nothing else: whoever runs it need not hold more.
NEEDS = {
    "list": ("MASTER_KEYS",),
    "check": ("MASTER_KEYS", "S3_BUCKET"),
    "create": (),
    "import": ("MASTER_KEYS", "AMQP_URL", "EVENT_KEY"),
    "export-project": ("MASTER_KEYS", "S3_BUCKET", "AMQP_URL", "EVENT_KEY"),
}


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> FakeAudit:
    made = FakeAudit()
    monkeypatch.setattr("keyturn_workers.cli.keys.command_audit", made)
    return made


def _run(command: str, *arguments: str, keys: dict[str, str] = KEYS, **env: str) -> Result:
    settings = {
        "MASTER_KEYS": json.dumps(keys),
        "S3_BUCKET": "memory",
        "AMQP_URL": "amqp://localhost/",
        "EVENT_KEY": to_base64(bytes(32)),
    }
    needed = {name: settings[name] for name in NEEDS[command]}
    named = {f"KEYTURN_{name}": value for name, value in (needed | env).items()}
    return CliRunner().invoke(app, ["keys", command, *arguments], env=named)


def _import(*arguments: str) -> Result:
    return _run("import", *arguments, keys=IMPORTABLE)


@pytest.mark.parametrize("text", [URI, AWS, "pkcs11:object=m1?pin-source=/run/pin"])
def test_a_uri_is_parsed(text: str) -> None:
    assert parse_uri(text) == parse_key_uri(text)


def test_a_pin_is_no_argument() -> None:
    with pytest.raises(typer.BadParameter, match="KEYTURN_PKCS11_PIN_FILE") as caught:
        parse_uri("pkcs11:object=m1?pin-value=12345")
    assert "12345" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "m1", "AAAA", "https://vault", "awskms:alias/x"])
def test_anything_else_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_uri(text)


async def test_the_kek_is_that_of_the_known_texts() -> None:
    kek = await derive_known_kek(LocalMasterKey(MASTER_KEY))
    assert kek == record_kek(MASTER_KEY.reveal(), "*known-text")


async def test_a_provider_that_contradicts_itself_is_not_believed(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, wrong=2)
    async with opened(parse_key_uri(URI), KmsSettings()) as key:
        with pytest.raises(KmsUnavailableError, match="differ"):
            await derive_known_kek(key)
    assert kms.keys[URI].closed == 1


def test_the_settings_say_where_a_key_is() -> None:
    assert describe_source(Secret(bytes(32))) == KeyDescription("local", "in the settings")
    assert describe_source(parse_key_uri(URI)) == KeyDescription("vault", URI, "1")
    assert describe_source(parse_key_uri(AWS)) == KeyDescription("awskms", AWS)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        (KeyDescription("vault", ""), []),
        (
            KeyDescription("vault", "", exportable=False, automatic_rotation=False, imported=False),
            [],
        ),
        (KeyDescription("vault", "", exportable=True), ["can be exported"]),
        (KeyDescription("vault", "", automatic_rotation=True), ["rotates the key automatically"]),
        (KeyDescription("vault", "", imported=True), ["was imported"]),
        (KeyDescription("vault", "", warnings=("expires",)), ["expires"]),
        (KeyDescription("local", "", exportable=True), ["anyone who can read"]),
    ],
)
def test_what_to_know_about_a_key(description: KeyDescription, said: list[str]) -> None:
    found = concerns(description)
    assert len(found) == len(said)
    for line, expected in zip(found, said, strict=True):
        assert expected in line


def test_each_key_is_a_row_and_none_is_shown(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, description={"automatic_rotation": False, "imported": True})
    result = _run("list", ACTIVE_MASTER_KEY="m2")
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert header.split()[:5] == [
        "master_key",
        "provider",
        "version",
        "active",
        "automatic_rotation",
    ]
    assert first.split() == ["m1", "local", "-", "no", "no", "-", "yes", "in", "the", "settings"]
    assert second.split() == ["m2", "vault", "1", "yes", "no", "yes", "yes", URI]
    assert "m2: the key was imported" in result.stderr
    assert KEYS["m1"] not in result.output
    assert kms.keys[URI].closed == 1


def test_json_has_everything(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, description={"exportable": True})
    result = _run("list", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)[1] == {
        "master_key": "m2",
        "provider": "vault",
        "location": URI,
        "version": "1",
        "active": None,
        "automatic_rotation": None,
        "exportable": True,
        "imported": None,
        "reachable": True,
        "warnings": ["the key can be exported from its provider"],
        "error": None,
    }


def test_a_provider_that_is_away_is_a_row(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, failure="the token is expired")
    kms.keys[OTHER_URI] = FakeKey(PRK)
    result = _run("list", keys={**KEYS, "m3": OTHER_URI})
    assert result.exit_code == 1
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [(row[0], row[6]) for row in rows] == [("m1", "yes"), ("m2", "no"), ("m3", "yes")]
    assert "m2: kms_unavailable: the token is expired" in result.stderr
    assert (
        json.loads(_run("list", "--json").stdout)[1]["error"]
        == "kms_unavailable: the token is expired"
    )


def test_a_key_that_may_only_derive_is_reachable(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, undescribed="access denied")
    result = _run("list")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].split()[-2] == "yes"
    assert "m2: it derives, but its properties cannot be read: access denied" in result.stderr


def test_a_pin_in_the_settings_is_not_shown(kms: FakeKms) -> None:
    result = _run("list", keys={"m1": "pkcs11:object=m1?pin-value=12345"})
    assert result.exit_code == 1
    assert not kms.keys
    assert "pkcs11:object=m1" in result.stdout
    assert "12345" not in result.output


def test_a_missing_setting_is_wrong_usage() -> None:
    result = CliRunner().invoke(app, ["keys", "list"])
    assert result.exit_code == 2
    assert "KEYTURN_MASTER_KEYS is missing" in result.stderr


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """A bucket that knows `m2` as the key of these tests."""
    made = MemoryStorage()
    asyncio.run(check_known_text(made, "m2", KEK, create=True))
    use_bucket(monkeypatch, "keys", made)
    return made


@pytest.mark.usefixtures("storage")
def test_a_key_is_the_one_that_the_bucket_knows(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK)
    result = _run("check", "m2", "--json")
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
    result = _run("check")
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
    result = _run("check", "m2")
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
    result = _run("check", "--json")
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
    result = _run("check", "m2")
    assert result.exit_code == 0
    assert said in result.stderr
    assert said in json.loads(_run("check", "m2", "--json").stdout)[0]["warnings"][0]


@pytest.mark.usefixtures("storage")
def test_a_key_that_may_only_derive_is_right(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, undescribed="access denied")
    result = _run("check", "m2")
    assert result.exit_code == 0
    assert "m2: it derives, but its properties cannot be read: access denied" in result.stderr
    assert kms.keys[URI].derivations == 2 + 20  # nothing that was shown is asked for again


@pytest.mark.usefixtures("storage", "kms")
def test_an_unknown_id_is_refused() -> None:
    result = _run("check", "m2", "m3")
    assert result.exit_code == 1
    assert "unknown_master_key: m3 is not in KEYTURN_MASTER_KEYS" in result.stderr


def test_the_next_steps_are_printed(kms: FakeKms) -> None:
    result = _run("create", URI)
    assert result.exit_code == 0
    assert kms.generated == 1
    assert kms.keys[URI].derivations == 2
    assert f'"m2": "{URI}"' in result.stdout
    for step in ("KEYTURN_MASTER_KEYS", "keys check m2", "ACTIVE_MASTER_KEY=m2", "sweep --all"):
        assert step in result.stdout


def test_an_existing_key_is_kept(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK)
    result = _run("create", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the key exists already" in result.stderr
    assert kms.keys[URI].prk == PRK


def test_a_key_that_does_not_derive_is_not_recommended(
    kms: FakeKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generated(*_: object) -> None:
        kms.keys[URI] = FakeKey(PRK, failure="access denied")

    monkeypatch.setattr("keyturn_workers.cli.keys.generate_master_key", generated)
    result = _run("create", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "created, but it cannot derive KEKs: access denied" in result.stderr


def test_aws_kms_chooses_the_name_itself() -> None:
    result = _run("create", "awskms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd")
    assert result.exit_code == 1
    assert "aws kms create-key" in result.stderr


def test_only_a_uri_can_be_created() -> None:
    assert _run("create", "m1").exit_code == 2


@pytest.mark.usefixtures("audit")
def test_the_line_to_change_is_printed_and_no_key(kms: FakeKms) -> None:
    result = _import("m1", URI)
    assert (result.exit_code, result.stdout) == (0, LINE)
    assert kms.keys[URI].prk == PRK
    assert "m1 now derives the same KEKs in the provider" in result.stderr
    assert not any(key in result.output for key in (IMPORTABLE["m1"], IMPORTABLE["m3"], "m3"))
    assert PRK.reveal().hex() not in result.output


def test_the_audit_trail_has_the_import_first(kms: FakeKms, audit: FakeAudit) -> None:
    assert _import("m1", URI, "--reason", "move to the HSM, OPS-7").exit_code == 0
    [record] = audit.records
    assert (record.action, record.outcome) == ("master_key.imported", "started")
    assert (record.master_key, record.provider) == ("m1", "vault")
    assert record.reason == "move to the HSM, OPS-7"
    assert audit.opened == [("keys import", "move to the HSM, OPS-7")]
    assert kms.imports == 1


def test_what_cannot_be_recorded_is_not_imported(kms: FakeKms, audit: FakeAudit) -> None:
    audit.is_away = True
    result = _import("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the audit trail cannot be written, so nothing was done" in result.stderr
    assert kms.imports == 0


def test_an_import_that_failed_is_recorded_too(kms: FakeKms, audit: FakeAudit) -> None:
    kms.garbles = True
    assert _import("m1", URI).exit_code == 1
    assert audit.outcomes == [
        ("master_key.imported", "started"),
        ("master_key.imported", "failed"),
    ]


@pytest.mark.usefixtures("audit")
def test_an_import_that_was_interrupted_can_be_repeated(kms: FakeKms) -> None:
    assert _import("m1", URI).exit_code == 0
    again = _import("m1", URI)
    assert (again.exit_code, again.stdout) == (0, LINE)
    assert kms.imports == 1


def test_another_key_at_that_place_is_refused_and_kept(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(Secret(bytes(32)))
    result = _import("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the provider's key differs from the local one" in result.stderr
    assert kms.imports == 0


@pytest.mark.usefixtures("audit")
def test_an_import_that_derives_something_else_is_refused(kms: FakeKms) -> None:
    kms.garbles = True
    result = _import("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the provider's key differs from the local one" in result.stderr


@pytest.mark.usefixtures("audit")
def test_a_provider_that_cannot_import_says_so(kms: FakeKms) -> None:
    kms.refusal = "a key of this kind cannot be imported"
    result = _import("m1", URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "a key of this kind cannot be imported (the key does not exist)" in result.stderr


@pytest.mark.usefixtures("audit")
def test_a_key_that_does_not_derive_after_the_import_is_not_recommended(
    kms: FakeKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def imported(source: object, settings: object, prk: Secret) -> None:
        del source, settings
        kms.keys[URI] = FakeKey(prk, failure="access denied")

    monkeypatch.setattr("keyturn_workers.cli.keys.import_master_key", imported)
    result = _import("m1", URI)
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
    result = _import(*arguments)
    assert (result.exit_code, result.stdout) == (status, "")
    assert said in result.stderr
    assert "12345" not in result.output
    assert kms.imports == 0


@pytest.fixture
def enrolled(monkeypatch: pytest.MonkeyPatch) -> MemoryStorage:
    """A bucket with the keyring of `acme`, under `m2`."""
    made = MemoryStorage()
    ring = keyring("acme", master_key="m2")
    assert asyncio.run(create_keyring(made, ring, operator_keys(MASTER_KEYS), lease_s=15))
    use_bucket(monkeypatch, "keys", made)
    return made


def _export(*arguments: str, held: tuple[str, ...] = ("m1", "m2")) -> Result:
    keys = {name: to_base64(MASTER_KEYS[name].reveal()) for name in held}
    return _run("export-project", *arguments, keys=keys)


@pytest.mark.usefixtures("audit", "enrolled")
def test_the_key_that_the_keyring_names_is_written_for_its_owner_alone(tmp_path: Path) -> None:
    out = tmp_path / "acme.kek"
    result = _export("acme", "--out", str(out), *REASON)
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"admin KEK of acme under m2 written to {out}" in result.stderr
    assert out.stat().st_mode & 0o777 == 0o600
    keks = parse_project_keks(out.read_text())
    assert keks.project == "acme"
    assert keks.admin_keks == {"m2": admin_kek(MASTER_KEYS["m2"].reveal(), "acme")}


@pytest.mark.usefixtures("audit", "enrolled")
def test_named_master_keys_need_no_keyring(tmp_path: Path) -> None:
    out = tmp_path / "other.kek"
    names = ("--master-key", "m1", "--master-key", "m2")
    result = _export("other", "--out", str(out), *REASON, *names)
    assert result.exit_code == 0
    assert parse_project_keks(out.read_text()).admin_keks == {
        name: admin_kek(MASTER_KEYS[name].reveal(), "other") for name in ("m1", "m2")
    }


@pytest.mark.usefixtures("audit")
def test_composites_are_written_with_the_customer_secrets_and_say_what_ends_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = new_customer_secret()
    customer_key = CustomerKey.of(KeyName("kms-eu", "a"), secret, "YQ==")
    plain = keyring("acme", master_key="m2")
    ring = replace(plain, current=replace(plain.current, customer_key=customer_key))
    storage = MemoryStorage()
    assert asyncio.run(create_keyring(storage, ring, operator_keys(MASTER_KEYS), lease_s=15))
    use_bucket(monkeypatch, "keys", storage)
    out, file = tmp_path / "acme.kek", tmp_path / "acme.secrets"
    result = _export("acme", "--out", str(out), *REASON)
    assert result.exit_code == 1
    assert f"customer_key_unavailable: the secret {customer_key.secret_id}" in result.stderr
    assert not out.exists()
    file.write_text(to_base64(secret.reveal()))
    given = ("--customer-secret-file", str(file))
    result = _export("acme", "--out", str(out), *REASON, *given)
    assert result.exit_code == 0
    assert "a rotation to a customer key, the same or another, ends that" in " ".join(
        result.stderr.split()
    )
    kek = admin_kek(MASTER_KEYS["m2"].reveal(), "acme")
    composite = composite_kek(kek, secret, "admin", "acme", customer_key.secret_id)
    keks = parse_project_keks(out.read_text())
    assert keks.admin_keks == {"m2": kek}
    assert keks.composites == {("m2", customer_key.secret_id): composite}


@pytest.mark.usefixtures("audit", "enrolled")
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
    result = _export(*arguments, "--out", str(out), *REASON, held=held)
    assert result.exit_code == 1
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("enrolled")
def test_each_exported_key_is_recorded_first(tmp_path: Path, audit: FakeAudit) -> None:
    names = ("--master-key", "m1", "--master-key", "m2")
    assert _export("acme", "--out", str(tmp_path / "kek"), *REASON, *names).exit_code == 0
    assert audit.outcomes == [("project_kek.exported", "started")] * 2
    assert [(r.project, r.master_key, r.reason) for r in audit.records] == [
        ("acme", "m1", REASON[1]),
        ("acme", "m2", REASON[1]),
    ]
    assert audit.opened == [("keys export-project", REASON[1])]


@pytest.mark.usefixtures("enrolled")
def test_what_cannot_be_recorded_is_not_exported(tmp_path: Path, audit: FakeAudit) -> None:
    audit.is_away = True
    result = _export("acme", "--out", str(tmp_path / "kek"), *REASON)
    assert result.exit_code == 1
    assert "the audit trail cannot be written" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("enrolled")
def test_an_existing_file_is_kept(tmp_path: Path, audit: FakeAudit) -> None:
    out = tmp_path / "acme.kek"
    out.write_text("another")
    result = _export("acme", "--out", str(out), *REASON)
    assert result.exit_code == 1
    assert "already exists" in result.stderr
    assert out.read_text() == "another"
    assert audit.opened == []


@pytest.mark.parametrize("reason", [(), ("--reason", " "), ("--reason", "a\nb"),
                                    ("--reason", "x" * 501)])  # fmt: skip
def test_a_reason_is_required(tmp_path: Path, reason: tuple[str, ...]) -> None:
    result = _export("acme", "--out", str(tmp_path / "kek"), *reason)
    assert result.exit_code == 2
    assert "reason" in result.stderr


def test_a_malformed_master_key_id_is_wrong_usage(tmp_path: Path) -> None:
    result = _export("acme", "--out", str(tmp_path / "kek"), *REASON, "--master-key", "M 1")
    assert result.exit_code == 2
