"""`keyturn keygen`: matching keys, as valid settings (SPEC 2, 11)."""

from __future__ import annotations

import json
import stat
from io import StringIO
from typing import TYPE_CHECKING

from dotenv import dotenv_values
from typer.testing import CliRunner

from keyturn.crypto import IntakeKey, IntakePublicKey, SigningKey, from_base64, user_kek
from keyturn_workers.cli.app import app

if TYPE_CHECKING:
    from pathlib import Path

runner = CliRunner()


def test_keygen_generates_matching_pairs() -> None:
    def generate(*arguments: str) -> dict[str, str]:
        result = runner.invoke(app, ["keygen", *arguments, "--json"])
        assert result.exit_code == 0
        parsed: dict[str, str] = json.loads(result.stdout)
        return parsed

    intake = generate("intake-key", "--id", "k2")
    name, _, public = intake["KEYTURN_INTAKE_PUBLIC_KEY"].partition(":")
    seed = from_base64(json.loads(intake["KEYTURN_INTAKE_KEYS"])[name])
    assert name == "k2"
    assert IntakePublicKey.from_bytes(from_base64(public)).public_bytes == (
        IntakeKey.from_seed(seed).public_bytes
    )
    event = generate("event-key")
    key = SigningKey.from_seed(from_base64(event["KEYTURN_EVENT_KEY"]))
    assert key.public_bytes == from_base64(event["KEYTURN_EVENT_PUBLIC_KEY"])
    publisher = generate("publisher-key", "--name", "billing")
    key = SigningKey.from_seed(from_base64(publisher["KEYTURN_PUBLISHER_KEY"]))
    grant = json.loads(publisher["KEYTURN_PUBLISHERS"])["billing"]
    assert [from_base64(each) for each in grant["keys"]] == [key.public_bytes]
    master = generate("master-key", "--id", "m2")
    assert json.loads(master["KEYTURN_MASTER_KEYS"]).keys() == {"m2"}
    assert master["KEYTURN_ACTIVE_MASTER_KEY"] == "m2"


def test_an_event_key_is_shown_with_the_id_that_logs_name_it_by() -> None:
    result = runner.invoke(app, ["keygen", "event-key"])
    assert result.exit_code == 0
    settings = dotenv_values(stream=StringIO(result.stdout))
    key = SigningKey.from_seed(from_base64(str(settings["KEYTURN_EVENT_KEY"])))
    comments = [line for line in result.stdout.splitlines() if line.startswith("#")]
    assert len(comments) == 2
    assert all(line.endswith(f"key id {key.id}") for line in comments)


def test_keygen_generates_a_valid_api_key() -> None:
    result = runner.invoke(app, ["keygen", "api-key"])
    assert result.exit_code == 0
    user_kek(result.stdout.strip(), "acme")


def test_keygen_writes_a_private_file_and_prints_no_secret(tmp_path: Path) -> None:
    target = tmp_path / "event.env"
    result = runner.invoke(app, ["keygen", "event-key", "-o", str(target)])
    assert result.exit_code == 0
    assert str(dotenv_values(target)["KEYTURN_EVENT_KEY"]) not in result.output
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    again = runner.invoke(app, ["keygen", "event-key", "-o", str(target)])
    assert again.exit_code == 1
    assert "already exists" in again.stderr
