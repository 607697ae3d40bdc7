"""`keyturn init --master-key`: the files name a key that is held elsewhere, and have none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from dotenv import dotenv_values
from typer.testing import CliRunner

from keyturn_workers.cli.app import app
from keyturn_workers.key_uris import VaultUri
from keyturn_workers.settings import GatewaySettings, WorkerSettings
from tests.unit.keyturn_workers.cli.fake_kms import PRK, URI, FakeKey

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

    from tests.unit.keyturn_workers.cli.fake_kms import FakeKms


def _init(folder: Path, uri: str = URI, **env: str) -> Result:
    more = {f"KEYTURN_{name}": value for name, value in env.items()}
    return CliRunner().invoke(app, ["init", "--dir", str(folder), "--master-key", uri], env=more)


def _env(path: Path) -> dict[str, str]:
    return {name: value for name, value in dotenv_values(path).items() if value is not None}


def test_workers_and_gateway_name_the_key(
    kms: FakeKms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kms.keys[URI] = FakeKey(PRK)
    assert _init(tmp_path, VAULT_TOKEN_FILE="/run/token").exit_code == 0
    assert kms.generated == 0
    for name, settings in (("keyturn.env", WorkerSettings), ("gateway.env", GatewaySettings)):
        with monkeypatch.context() as patch:
            for variable, value in _env(tmp_path / name).items():
                patch.setenv(variable, value)
            read = settings.read()
        assert isinstance(read, WorkerSettings | GatewaySettings)
        held = read.master_keys["main"]
        assert isinstance(held, VaultUri)
        assert held.location == URI
        assert str(read.vault_token_file) == "/run/token"
    assert "KEYTURN_ACTIVE_MASTER_KEY" not in _env(tmp_path / "gateway.env")


def test_a_key_that_does_not_exist_is_generated(kms: FakeKms, tmp_path: Path) -> None:
    result = _init(tmp_path)
    assert result.exit_code == 0
    assert kms.generated == 1
    assert f"generated {URI}" in result.stderr


def test_the_settings_of_other_providers_stay_out(kms: FakeKms, tmp_path: Path) -> None:
    kms.keys[URI] = FakeKey(PRK)
    env = {
        "VAULT_ROLE_ID": "role",
        "VAULT_SECRET_ID": "given as a value",
        "KMS_TIMEOUT_S": "3",
        "PKCS11_PIN": "12345",
        "AWS_KMS_ENDPOINT_URL": "http://127.0.0.1:4566",
    }
    assert _init(tmp_path, **env).exit_code == 0
    for name in ("keyturn.env", "gateway.env"):
        written = _env(tmp_path / name)
        assert written["KEYTURN_VAULT_ROLE_ID"] == "role"
        assert written["KEYTURN_VAULT_SECRET_ID"] == "given as a value"
        assert written["KEYTURN_KMS_TIMEOUT_S"] == "3.0"
        assert not {"KEYTURN_PKCS11_PIN", "KEYTURN_AWS_KMS_ENDPOINT_URL"} & written.keys()
    for name in ("publisher.env", "storage.env"):
        assert not any(
            variable.startswith(("KEYTURN_VAULT", "KEYTURN_KMS", "KEYTURN_MASTER"))
            for variable in _env(tmp_path / name)
        )


@pytest.mark.parametrize(
    ("uri", "status", "said"),
    [
        (URI, 1, "access denied; the key exists already"),
        ("m1", 2, "a master key must be the base64"),
        ("pkcs11:object=m1?pin-value=12345", 2, "KEYTURN_PKCS11_PIN_FILE"),
    ],
)
def test_a_key_that_does_not_derive_writes_no_file(
    kms: FakeKms, tmp_path: Path, uri: str, status: int, said: str
) -> None:
    kms.keys[URI] = FakeKey(PRK, failure="access denied")
    result = _init(tmp_path / "new", uri)
    assert result.exit_code == status
    assert said in result.stderr
    assert not (tmp_path / "new").exists()


def test_existing_files_are_found_before_a_key_is_generated(kms: FakeKms, tmp_path: Path) -> None:
    (tmp_path / "storage.env").write_text("precious")
    assert _init(tmp_path).exit_code == 1
    assert kms.generated == 0


def test_the_json_is_that_of_the_settings(kms: FakeKms, tmp_path: Path) -> None:
    kms.keys[URI] = FakeKey(PRK)
    _init(tmp_path)
    assert json.loads(_env(tmp_path / "keyturn.env")["KEYTURN_MASTER_KEYS"]) == {"main": URI}
