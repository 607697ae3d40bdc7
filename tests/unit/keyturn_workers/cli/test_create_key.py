"""`keyturn keys create`: a key inside its provider, and how to use it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from keyturn_workers.cli.app import app
from tests.unit.keyturn_workers.cli.fake_kms import PRK, URI, FakeKey

if TYPE_CHECKING:
    import pytest
    from typer.testing import Result

    from tests.unit.keyturn_workers.cli.fake_kms import FakeKms


def _run(uri: str) -> Result:
    return CliRunner().invoke(app, ["keys", "create", uri])


def test_the_next_steps_are_printed(kms: FakeKms) -> None:
    result = _run(URI)
    assert result.exit_code == 0
    assert kms.generated == 1
    assert kms.keys[URI].derivations == 2
    assert f'"m2": "{URI}"' in result.stdout
    for step in ("KEYTURN_MASTER_KEYS", "keys check m2", "ACTIVE_MASTER_KEY=m2", "sweep --all"):
        assert step in result.stdout


def test_an_existing_key_is_kept(kms: FakeKms) -> None:
    kms.keys[URI] = FakeKey(PRK)
    result = _run(URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the key exists already" in result.stderr
    assert kms.keys[URI].prk == PRK


def test_a_key_that_does_not_derive_is_not_recommended(
    kms: FakeKms, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def generated(*_: object) -> None:
        kms.keys[URI] = FakeKey(PRK, failure="access denied")

    monkeypatch.setattr("keyturn_workers.cli.keys.generate_master_key", generated)
    result = _run(URI)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "created, but it cannot derive KEKs: access denied" in result.stderr


def test_aws_kms_chooses_the_name_itself() -> None:
    result = _run("awskms:arn:aws:kms:eu-central-1:111122223333:key/1234abcd")
    assert result.exit_code == 1
    assert "aws kms create-key" in result.stderr


def test_anything_else_is_wrong_usage() -> None:
    assert _run("m1").exit_code == 2
