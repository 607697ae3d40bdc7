"""`keyturn verify`: which key is used, what is printed, and the exit status (SPEC 15.2)."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyturn.crypto import (
    BODY_CONTEXT,
    admin_kek,
    composite_kek,
    customer_secret_id,
    kek_id,
    new_api_key,
    new_customer_secret,
    new_dek,
    seal,
    to_base64,
    user_kek,
)
from keyturn.project_keks import ProjectKeks, build_project_keks
from keyturn_workers.cli.app import app
from keyturn_workers.core.customer_keys import CustomerKey, KeyName
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.wraps import wrap
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tests.unit.keyturn_workers.factories import (
    AT,
    MASTER_KEYS,
    deleted,
    enc,
    generation,
    keyring,
    sealed_object,
)
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from keyturn.crypto import Secret
    from keyturn_workers.core.keyring import Keyring

OLD, NEW = new_api_key(), new_api_key()
PEPPER = "the pepper"


def _ring(api_key: str, number: int) -> Keyring:
    kek = user_kek(api_key, "acme", PEPPER)
    return replace(keyring(), current=generation(number, kek=kek))


def _kek_file(folder: Path, project: str = "acme", master_key: str = "m1") -> Path:
    kek = admin_kek(MASTER_KEYS[master_key].reveal(), project)
    file = folder / f"{project}.kek"
    file.write_text(build_project_keks(ProjectKeks(project, AT, {master_key: kek})))
    return file


@dataclass
class Bench:
    storage: MemoryStorage = field(default_factory=MemoryStorage)

    def put(self, api_key: str, number: int, key: str, **labels: Any) -> None:
        wraps, body = sealed_object(desired_state(_ring(api_key, number), MASTER_KEYS), key)
        self.storage.plant(f"acme/{key}", body, Headers(enc(replace(wraps, **labels))))

    def put_locked(self, api_key: str, key: str, secret: Secret) -> None:
        """Put an object whose wraps also need a customer secret."""
        customer_key = CustomerKey.of(KeyName("kms-eu", "a"), secret, "YQ==")
        ring = _ring(api_key, 2)
        ring = replace(ring, current=replace(ring.current, customer_key=customer_key))
        secrets = replace(ring.secrets, held={customer_key.secret_id: secret})
        dek = new_dek()
        wraps = wrap(desired_state(ring, MASTER_KEYS), key, dek, secrets)
        self.storage.plant(f"acme/{key}", seal(dek, BODY_CONTEXT, b"x"), Headers(enc(wraps)))

    def put_evidence(self, predicate: dict[str, Any] | None) -> None:
        payload = to_base64(json.dumps({"predicate": predicate}).encode())
        body = json.dumps({"payload": payload}).encode()
        self.storage.plant(".keyturn/evidence/acme/2-x.json", body, Headers({}))

    def metadata(self, key: str) -> dict[str, str]:
        head = asyncio.run(self.storage.head(f"acme/{key}"))
        return dict(head.metadata)

    def relabel(self, key: str, metadata: dict[str, str]) -> None:
        _, body = asyncio.run(self.storage.read(f"acme/{key}"))
        self.storage.plant(f"acme/{key}", body, Headers(metadata))

    def run(self, *arguments: str, project: str = "acme", **env: str) -> Result:
        named = {"S3_BUCKET": "memory", "PEPPER": PEPPER} | env
        settings = {f"KEYTURN_{name}": value for name, value in named.items()}
        return CliRunner().invoke(app, ["verify", project, *arguments], env=settings)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bucket whose project was rotated from `OLD` to `NEW`."""
    bench = Bench()

    use_bucket(monkeypatch, "verify", bench.storage)
    for key in ("a", "b"):
        bench.put(NEW, 2, key)
    bench.put_evidence({"generation": 2})
    return bench


def test_the_current_api_key_opens_all(bucket: Bench) -> None:
    result = bucket.run(API_KEY=NEW)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"user key {kek_id(user_kek(NEW, 'acme', PEPPER))}",
        "objects 2, opened 2",
        "the key opens all of 2 wraps",
    ]


def test_nothing_is_written(bucket: Bench) -> None:
    bucket.run(API_KEY=NEW)
    bucket.run(API_KEY=OLD)
    assert set(bucket.storage.calls) == {"versioning", "list", "read_start"}


def test_what_does_not_open_is_shown_and_controls_no_terminal(bucket: Bench) -> None:
    bucket.put(OLD, 1, "forgotten")
    bucket.put(NEW, 2, "\x1b[2J")
    result = bucket.run(API_KEY=NEW)
    assert result.exit_code == 1
    assert [line.split()[:5] for line in result.stdout.splitlines()[1:3]] == [
        [r"acme/\x1b[2J", "-", "foreign", "failed", "foreign_object"],
        ["acme/forgotten", "-", "encrypted", "closed", "no_usable_wrap"],
    ]
    assert result.stderr == (
        "keyturn: not verified: 2 of 4 objects do not open, or are not encrypted\n"
    )


def test_an_old_api_key_opens_nothing(bucket: Bench) -> None:
    result = bucket.run(API_KEY=OLD)
    assert result.exit_code == 1
    assert "the key opens nothing; it may be an old key" in result.stderr
    result = bucket.run("--expect-gone", API_KEY=OLD)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "the key opens none of 2 wraps"


@pytest.mark.parametrize("label", [1, 2], ids=["its own label", "a forged label"])
def test_a_single_wrap_under_the_old_key_shows_that_it_is_not_gone(
    bucket: Bench, label: int
) -> None:
    bucket.put(OLD, 1, "forgotten", generation=label)
    result = bucket.run("--expect-gone", API_KEY=OLD)
    assert result.exit_code == 1
    assert "acme/forgotten" in result.stdout
    assert "not verified that the key is gone" in result.stderr


def _hide(bucket: Bench, place: str) -> None:
    """Do what a bucket writer can, who kept the wraps of generation 1."""
    bucket.put(NEW, 2, "k")
    current = bucket.metadata("k")
    bucket.put(OLD, 1, "k")
    old = bucket.metadata("k")
    labels = {name: current[name] for name in ("enc-kek-user", "enc-kek-admin")}
    match place:
        case "enc-algo relabeled AES-256-GCM":
            bucket.relabel("k", {**old, **labels, "enc-algo": "AES-256-GCM"})
        case "enc-algo relabeled deleted":
            bucket.relabel("k", {**old, **labels, "enc-algo": "deleted"})
        case "made at generation 40 and labeled 41":
            bucket.put(OLD, 40, "k", generation=41)
        case "the two wraps swapped":
            user, admin = old["enc-dek-user"], old["enc-dek-admin"]
            bucket.relabel("k", {**old, **labels, "enc-dek-user": admin, "enc-dek-admin": user})
        case "beside the current ones as enc-dek-user-1":
            bucket.relabel("k", {**current, "enc-dek-user-1": old["enc-dek-user"]})


HIDING_PLACES = (
    "enc-algo relabeled AES-256-GCM",
    "enc-algo relabeled deleted",
    "made at generation 40 and labeled 41",
    "the two wraps swapped",
    "beside the current ones as enc-dek-user-1",
)


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_no_hiding_place_makes_an_old_key_seem_gone(bucket: Bench, place: str) -> None:
    assert bucket.run("--expect-gone", API_KEY=OLD).exit_code == 0
    _hide(bucket, place)
    result = bucket.run("--expect-gone", "--json", API_KEY=OLD)
    assert result.exit_code == 1
    assert "not verified that the key is gone: it opens 1 of 3 wraps; 0 other" in result.stderr
    (finding,) = json.loads(result.stdout)["findings"]
    assert (finding["s3_key"], finding["state"]) == ("acme/k", "opened")
    # And a holder of the current key sees that something is wrong.
    result = bucket.run("--json", API_KEY=NEW)
    assert result.exit_code == 1
    assert [row["s3_key"] for row in json.loads(result.stdout)["findings"]] == ["acme/k"]


@pytest.mark.parametrize("place", HIDING_PLACES)
def test_no_hiding_place_makes_an_old_master_key_seem_gone(
    bucket: Bench, tmp_path: Path, place: str
) -> None:
    """The same by its admin KEK; here all of the bucket is under it."""
    _hide(bucket, place)
    file = _kek_file(tmp_path)
    result = bucket.run("--expect-gone", "--json", "--admin-kek-file", str(file))
    assert result.exit_code == 1
    opened = [row for row in json.loads(result.stdout)["findings"] if row["state"] == "opened"]
    assert "acme/k" in [row["s3_key"] for row in opened]


def test_a_noncurrent_version_is_searched_too(
    bucket: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.storage = MemoryStorage(versioned=True)
    use_bucket(monkeypatch, "verify", bucket.storage)
    _hide(bucket, "the two wraps swapped")
    bucket.put(NEW, 2, "k")
    result = bucket.run("--expect-gone", "--json", API_KEY=OLD)
    findings = json.loads(result.stdout)["findings"]
    assert findings
    assert all(row["version"] for row in findings)
    assert any("enc-dek-admin opens as the user wrap" in row["detail"] for row in findings)


def test_further_generations_are_given(bucket: Bench) -> None:
    """A wrap that was made far from its label."""
    bucket.put(OLD, 100, "k", generation=500)
    assert bucket.run("--expect-gone", API_KEY=OLD).exit_code == 0
    for given in (("--generation", "100"), ("--generation", "7", "--generation", "100")):
        result = bucket.run("--expect-gone", *given, API_KEY=OLD)
        assert result.exit_code == 1
        assert "it opens 1 of 3 wraps" in result.stderr


def test_the_key_in_use_is_not_gone(bucket: Bench) -> None:
    result = bucket.run("--expect-gone", API_KEY=NEW)
    assert result.exit_code == 1
    assert "it opens 2 of 2 wraps; 0 other findings" in result.stderr


def test_a_project_without_objects_shows_nothing(bucket: Bench) -> None:
    for arguments in ((), ("--expect-gone",)):
        result = bucket.run(*arguments, project="acmee", API_KEY=OLD)
        assert result.exit_code == 1
        assert "nothing was verified: the project has no objects" in result.stderr


def test_another_pepper_is_noticed_by_the_kek_id(bucket: Bench) -> None:
    """With a wrong pepper every key seems to be gone."""
    named = kek_id(user_kek(NEW, "acme", PEPPER))
    arguments = ("--expect-gone", "--kek-id", named)
    assert bucket.run("--expect-gone", API_KEY=NEW, PEPPER="other").exit_code == 0
    result = bucket.run(*arguments, API_KEY=NEW, PEPPER="other")
    assert result.exit_code == 1
    assert "wrong key or wrong pepper" in result.stderr
    assert bucket.run("--kek-id", named, API_KEY=NEW).exit_code == 0


def test_an_admin_kek_opens_all_and_is_read_from_file_or_environment(
    bucket: Bench, tmp_path: Path
) -> None:
    desired = desired_state(_ring(NEW, 2), MASTER_KEYS)
    bucket.storage.plant("acme/gone", b"", Headers(deleted(desired, "gone")))
    file = _kek_file(tmp_path)
    for result in (
        bucket.run("--admin-kek-file", str(file)),
        bucket.run(PROJECT_KEK=file.read_text(), API_KEY=OLD),
    ):
        assert result.exit_code == 0, result.stderr
        assert result.stdout.splitlines() == [
            "admin key m1",
            "objects 3, opened 3, tombstones 1",
            "the key opens all of 3 wraps",
        ]


def test_a_named_api_key_file_goes_before_the_environment(bucket: Bench, tmp_path: Path) -> None:
    file = tmp_path / "acme.key"
    file.write_text(NEW + "\n")
    kek = _kek_file(tmp_path).read_text()
    result = bucket.run("--api-key-file", str(file), PROJECT_KEK=kek, API_KEY=OLD)
    assert result.exit_code == 0
    assert result.stdout.startswith("user key ")


def test_another_projects_admin_kek_is_refused(bucket: Bench, tmp_path: Path) -> None:
    file = _kek_file(tmp_path, "other")
    for result in (
        bucket.run("--admin-kek-file", str(file)),
        bucket.run(PROJECT_KEK=file.read_text()),
    ):
        assert result.exit_code == 2
        assert "the admin KEK is that of other, not of acme" in result.stderr
    relabeled = file.with_name("relabeled")
    relabeled.write_text(file.read_text().replace('"other"', '"acme"'))
    assert bucket.run("--admin-kek-file", str(relabeled)).exit_code == 1


def test_an_old_master_keys_kek_opens_nothing(bucket: Bench, tmp_path: Path) -> None:
    file = _kek_file(tmp_path, master_key="m2")
    result = bucket.run("--admin-kek-file", str(file), "--expect-gone")
    assert result.exit_code == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "said"),
    [
        (("--api-key-file", "x", "--admin-kek-file", "y"), {}, "cannot be used together"),
        (("--admin-kek-file", "missing"), {}, "missing: No such file"),
        ((), {"PROJECT_KEK": "{}"}, "KEYTURN_PROJECT_KEK is malformed: not a file written by"),
        ((), {"API_KEY": "short"}, "an API key is 32 to 512 characters"),
        ((), {}, "no API key"),
        (("--limit", "0"), {"API_KEY": NEW}, "--limit"),
        (("--generation", "0"), {"API_KEY": NEW}, "--generation"),
        (("--expect-gone", "--customer-secret-id", "5F"), {"API_KEY": NEW}, "16 hex digits"),
        (("--customer-secret-id", "0" * 16), {"API_KEY": NEW}, "only with --expect-gone"),
    ],
)
def test_wrong_usage(
    bucket: Bench, arguments: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    result = bucket.run(*arguments, **env)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_malformed_kek_file_names_the_rule_and_no_key(bucket: Bench, tmp_path: Path) -> None:
    file = _kek_file(tmp_path)
    text = file.read_text()
    file.write_text(text.replace('="', '"'))
    result = bucket.run("--admin-kek-file", str(file))
    assert result.exit_code == 2
    assert "not standard base64" in result.stderr
    secret = json.loads(text)["admin_keks"][0]["kek"]
    assert secret[:20] not in result.stderr
    assert bucket.run("--admin-kek-file", str(_kek_file(tmp_path)), "--kek-id", "0").exit_code == 2


def test_json_holds_all_of_it_and_no_key(bucket: Bench) -> None:
    bucket.put(OLD, 1, "forgotten")
    bucket.storage.plant("acme/plain", b"x", Headers({}))
    result = bucket.run("--json", "--limit", "1", API_KEY=NEW)
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["key"] == {"role": "user", "kek_id": kek_id(user_kek(NEW, "acme", PEPPER))}
    assert document["started_at"] <= document["ended_at"]
    assert (document["project"], document["bucket"]) == ("acme", "memory")
    assert (document["expectation"], document["verified"]) == ("opens", False)
    counts = document["counts"]
    assert [counts[name] for name in ("objects", "opened", "closed", "plaintext")] == [4, 2, 1, 1]
    assert [row["s3_key"] for row in document["findings"]] == ["acme/forgotten"]
    assert document["findings_omitted"] == 1
    assert NEW not in result.output


def test_omitted_findings_are_announced(bucket: Bench) -> None:
    result = bucket.run("--limit", "1", API_KEY=OLD)
    assert "1 more finding; raise --limit" in result.stderr


def test_a_table_shows_20_findings_and_json_all(bucket: Bench) -> None:
    for number in range(30):
        bucket.put(OLD, 1, f"forgotten-{number}")
    result = bucket.run(API_KEY=NEW)
    assert result.stdout.count("forgotten-") == 20
    assert "10 more findings; raise --limit" in result.stderr
    assert len(json.loads(bucket.run("--json", API_KEY=NEW).stdout)["findings"]) == 30


def test_plaintext_fails_unless_it_is_allowed(bucket: Bench) -> None:
    bucket.storage.plant("acme/plain", b"x", Headers({}))
    assert bucket.run(API_KEY=NEW).exit_code == 1
    assert bucket.run("--allow-plaintext", API_KEY=NEW).exit_code == 0


# A project with a customer key: without its secret, no key opens a wrap, and none is gone.


SECRET, FORMER = new_customer_secret(), new_customer_secret()
SECRET_ID, FORMER_ID = customer_secret_id(SECRET), customer_secret_id(FORMER)


def _secrets(folder: Path, *secrets: Secret) -> tuple[str, str]:
    file = folder / "acme.secrets"
    file.write_text("".join(to_base64(secret.reveal()) + "\n" for secret in secrets))
    return "--customer-secret-file", str(file)


def test_a_wrap_opens_with_the_customer_secret(bucket: Bench, tmp_path: Path) -> None:
    bucket.put_locked(NEW, "locked", SECRET)
    result = bucket.run("--wide", API_KEY=NEW)
    assert "1 of 3 objects do not open" in result.stderr
    assert f"it needs a customer secret, by its label {SECRET_ID}" in result.stdout
    for secrets in ((SECRET,), (FORMER, SECRET)):
        result = bucket.run(*_secrets(tmp_path, *secrets), API_KEY=NEW)
        assert (result.exit_code, result.stderr) == (0, "")
    assert bucket.run(*_secrets(tmp_path, FORMER), API_KEY=NEW).exit_code == 1


def test_an_admin_kek_opens_with_a_secret_or_as_a_composite(bucket: Bench, tmp_path: Path) -> None:
    bucket.put_locked(NEW, "locked", SECRET)
    file = _kek_file(tmp_path)
    given = ("--admin-kek-file", str(file))
    assert bucket.run(*given).exit_code == 1
    assert bucket.run(*given, *_secrets(tmp_path, SECRET)).exit_code == 0
    kek = admin_kek(MASTER_KEYS["m1"].reveal(), "acme")
    composite = composite_kek(kek, SECRET, "admin", "acme", SECRET_ID)
    keks = ProjectKeks("acme", AT, {"m1": kek}, {("m1", SECRET_ID): composite})
    file.write_text(build_project_keks(keks))
    assert bucket.run(*given).exit_code == 0
    result = bucket.run(*given, "--expect-gone")
    assert "it opens 3 of 3 wraps" in result.stderr


@pytest.mark.parametrize("shown_by", ["evidence", "label", "option"])
def test_a_key_is_not_gone_while_a_secret_is_missing(
    bucket: Bench, tmp_path: Path, shown_by: str
) -> None:
    arguments = ["--expect-gone"]
    match shown_by:
        case "evidence":
            bucket.put_evidence({"customer_key": {"secret_id": SECRET_ID}})
        case "label":
            bucket.put_locked(NEW, "locked", SECRET)
        case _:
            arguments += ["--customer-secret-id", SECRET_ID]
    for given in ((), _secrets(tmp_path, FORMER)):
        result = bucket.run(*arguments, *given, API_KEY=OLD)
        assert result.exit_code == 1
        assert "undecided: with a customer secret that was not given" in result.stderr
        assert SECRET_ID in result.stderr
    document = json.loads(bucket.run(*arguments, "--json", API_KEY=OLD).stdout)
    assert (document["verified"], document["missing_customer_secrets"]) == (False, [SECRET_ID])
    result = bucket.run(*arguments, *_secrets(tmp_path, SECRET, FORMER), API_KEY=OLD)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("label", [SECRET_ID, FORMER_ID, None], ids=["its own", "another", "none"])
def test_a_wrap_of_an_old_key_and_a_secret_is_found_whatever_its_label(
    bucket: Bench, tmp_path: Path, label: str | None
) -> None:
    bucket.put_locked(OLD, "locked", SECRET)
    metadata = bucket.metadata("locked")
    label_text = ":".join(metadata["enc-kek-user"].split(":")[:2] + ([label] if label else []))
    bucket.relabel("locked", {**metadata, "enc-kek-user": label_text})
    secrets = _secrets(tmp_path, SECRET, FORMER)
    result = bucket.run("--expect-gone", *secrets, API_KEY=OLD)
    assert result.exit_code == 1
    assert "it opens 1 of 3 wraps" in result.stderr


def test_evidence_without_a_customer_key_needs_no_secret(bucket: Bench) -> None:
    assert bucket.run("--expect-gone", API_KEY=OLD).exit_code == 0


@pytest.mark.parametrize("evidence", ["none", "not all"])
def test_no_key_is_gone_while_no_evidence_names_every_secret(
    bucket: Bench, tmp_path: Path, evidence: str
) -> None:
    """A bucket writer can remove the label that says that a wrap needs a secret."""
    bucket.put_locked(OLD, "locked", SECRET)
    metadata = bucket.metadata("locked")
    label = ":".join(metadata["enc-kek-user"].split(":")[:2])
    bucket.relabel("locked", {**metadata, "enc-kek-user": label})
    if evidence == "none":
        asyncio.run(bucket.storage.delete(".keyturn/evidence/acme/2-x.json"))
    else:
        bucket.put_evidence({"generation": 2, "omitted_customer_keys": 1})
    for given in ((), _secrets(tmp_path, FORMER)):
        result = bucket.run("--expect-gone", *given, API_KEY=OLD)
        assert result.exit_code == 1
        assert "no evidence in the bucket says which customer keys" in result.stderr
    named: tuple[str, ...] = ("--customer-secret-id", SECRET_ID)
    assert SECRET_ID in bucket.run("--expect-gone", *named, API_KEY=OLD).stderr
    named = (*named, *_secrets(tmp_path, SECRET))
    assert "it opens 1 of 3 wraps" in bucket.run("--expect-gone", *named, API_KEY=OLD).stderr
    asyncio.run(bucket.storage.delete("acme/locked"))
    assert bucket.run("--expect-gone", "--no-customer-key", API_KEY=OLD).exit_code == 0


@pytest.mark.parametrize("predicate", [None, {"customer_key": {}}, {"customer_key": 7}])
def test_evidence_that_cannot_be_read_shows_no_gone_key(
    bucket: Bench, predicate: dict[str, Any] | None
) -> None:
    bucket.put_evidence(predicate)
    result = bucket.run("--expect-gone", API_KEY=OLD)
    assert result.exit_code == 1
    assert "which customer keys the project had is not known" in result.stderr
    assert bucket.run(API_KEY=NEW).exit_code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no customer secret"),
        ("AAAA\n", "line 1: not the base64 of 32 bytes"),
        (to_base64(bytes(32)) + "\n\nsesame\n", "line 3: not the base64 of 32 bytes"),
    ],
)
def test_a_malformed_file_of_secrets_is_refused(
    bucket: Bench, tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "secrets"
    file.write_text(text)
    result = bucket.run("--customer-secret-file", str(file), API_KEY=NEW)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "sesame" not in result.stderr
