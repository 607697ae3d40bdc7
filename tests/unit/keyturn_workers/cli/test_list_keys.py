"""`keyturn keys list`: where each master key is held, and whether its provider answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from keyturn.crypto import to_base64
from keyturn_workers.cli.app import app
from tests.unit.keyturn_workers.cli.fake_kms import MASTER_KEY, OTHER_URI, PRK, URI, FakeKey

if TYPE_CHECKING:
    from typer.testing import Result

    from tests.unit.keyturn_workers.cli.fake_kms import FakeKms

KEYS = {"m1": to_base64(MASTER_KEY.reveal()), "m2": URI}


def _run(*arguments: str, keys: dict[str, str] = KEYS, **env: str) -> Result:
    settings = {"KEYTURN_MASTER_KEYS": json.dumps(keys)}
    more = {f"KEYTURN_{name}": value for name, value in env.items()}
    return CliRunner().invoke(app, ["keys", "list", *arguments], env=settings | more)


def test_each_key_is_a_row_and_none_is_shown(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, description={"automatic_rotation": False, "imported": True})
    result = _run(ACTIVE_MASTER_KEY="m2")
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
    result = _run("--json")
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
    result = _run(keys={**KEYS, "m3": OTHER_URI})
    assert result.exit_code == 1
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    assert [(row[0], row[6]) for row in rows] == [("m1", "yes"), ("m2", "no"), ("m3", "yes")]
    assert "m2: kms_unavailable: the token is expired" in result.stderr
    assert json.loads(_run("--json").stdout)[1]["error"] == "kms_unavailable: the token is expired"


def test_a_key_that_may_only_derive_is_reachable(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK, undescribed="access denied")
    result = _run()
    assert result.exit_code == 0
    assert result.stdout.splitlines()[2].split()[-2] == "yes"
    assert "m2: it derives, but its properties cannot be read: access denied" in result.stderr


def test_a_pin_in_the_settings_is_not_shown(kms: FakeKms) -> None:
    result = _run(keys={"m1": "pkcs11:object=m1?pin-value=12345"})
    assert result.exit_code == 1
    assert not kms.keys
    assert "pkcs11:object=m1" in result.stdout
    assert "12345" not in result.output


def test_a_missing_setting_is_wrong_usage() -> None:
    result = CliRunner().invoke(app, ["keys", "list"])
    assert result.exit_code == 2
    assert "KEYTURN_MASTER_KEYS is missing" in result.stderr
