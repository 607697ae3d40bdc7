"""Each command has one transport, whatever other settings there are (SPEC 14)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest
from dotenv import dotenv_values
from typer.testing import CliRunner

from keyturn.crypto import new_api_key
from keyturn.gateway.client import Client
from keyturn_workers.cli.app import GROUPS, app
from keyturn_workers.cli.errors import CommandError

if TYPE_CHECKING:
    from pathlib import Path

    from typer.testing import Result

_LOCAL: Final = {"init", "keygen", "keys", "broker-users"}
"""They make and check keys, some of which a provider holds; or print what the broker imports."""
_PROCESSES: Final = {"worker", "gateway", "console"}
_GATEWAY: Final = ("GATEWAY_URL", "API_KEY")
_BUCKET: Final = ("S3_BUCKET",)
_PUBLISHER: Final = (
    *("AMQP_URL", "PUBLISHER_NAME", "PUBLISHER_KEY"),
    *("INTAKE_PUBLIC_KEY", "EVENT_PUBLIC_KEY"),
)
_OPERATOR: Final = (*_BUCKET, "MASTER_KEYS")
_AUDITED: Final = ("AMQP_URL", "EVENT_KEY")
_READER_OF_TRAIL: Final = ("AMQP_URL", "EVENT_PUBLIC_KEY")
_AS_OPERATOR: Final = "--as-operator --reason why"


@dataclass(frozen=True)
class _Case:
    """A command, the server that it contacts first, and the settings that it needs or uses."""

    command: str
    contacts: str
    needs: tuple[str, ...]
    uses: tuple[str, ...] = ()


_CASES: Final = (
    _Case("upload acme file", "broker", _PUBLISHER),
    _Case("download acme k", "gateway", _GATEWAY),
    # The broker for the audit trail, before the bucket.
    _Case(f"download acme k {_AS_OPERATOR}", "broker", (*_OPERATOR, *_AUDITED)),
    _Case("ls acme", "gateway", _GATEWAY),
    _Case("ls acme --folders", "gateway", _GATEWAY),
    _Case("ls acme --as-operator", "bucket", _BUCKET),
    _Case("ls acme --as-operator --long --all", "bucket", _BUCKET),
    _Case("inspect acme k", "bucket", _BUCKET),
    _Case("link acme k", "gateway", _GATEWAY),
    _Case("link acme k --ciphertext", "gateway", _GATEWAY),
    _Case("link acme k --put --max-bytes 1", "gateway", _GATEWAY),
    _Case("delete acme k", "broker", _PUBLISHER),
    _Case("delete acme --prefix p --yes", "bucket", (*_PUBLISHER, *_BUCKET)),
    _Case("import drop", "bucket", (*_PUBLISHER, *_BUCKET), ("SOURCES",)),
    _Case("export acme out", "gateway", _GATEWAY),
    _Case(f"export acme out {_AS_OPERATOR}", "broker", (*_OPERATOR, *_AUDITED)),
    _Case("copy acme other", "bucket", (*_PUBLISHER, *_BUCKET, *_GATEWAY)),
    _Case(f"copy acme other {_AS_OPERATOR}", "bucket", (*_PUBLISHER, *_OPERATOR, "EVENT_KEY")),
    _Case("enroll acme", "broker", (*_PUBLISHER, "API_KEY")),
    _Case("rotate acme", "broker", (*_PUBLISHER, "NEW_API_KEY")),
    _Case("verify acme", "bucket", (*_BUCKET, "API_KEY")),
    _Case("evidence list acme", "bucket", _BUCKET),
    _Case("doctor", "bucket", _BUCKET),
    _Case("status", "bucket", _OPERATOR),
    _Case("sources", "bucket", _OPERATOR, ("SOURCES",)),
    _Case("sweep acme", "broker", _PUBLISHER),
    _Case("dead list", "broker", ("AMQP_URL",)),
    _Case("audit tail", "broker", _READER_OF_TRAIL),
    _Case("recover acme --accept-restored why", "broker", (*_OPERATOR, *_PUBLISHER)),
    _Case("erase acme --reason why --confirm acme", "broker", _PUBLISHER),
)


def _all_settings(folder: Path) -> dict[str, str]:
    """All settings of every transport, as `keyturn init` makes them."""
    made = CliRunner().invoke(app, ["init", "--dir", str(folder)])
    assert made.exit_code == 0, made.stderr
    found: dict[str, str] = {}
    for name in ("keyturn.env", "publisher.env"):
        found |= {n: v for n, v in dotenv_values(folder / name, interpolate=False).items() if v}
    source = {"bucket": "drop", "project": "acme", "key": "{name}"}
    return found | {
        "KEYTURN_GATEWAY_URL": "http://127.0.0.1:1",
        "KEYTURN_API_KEY": new_api_key(),
        "KEYTURN_NEW_API_KEY": new_api_key(),
        "KEYTURN_SOURCES": json.dumps({"drop": source}),
    }


@dataclass
class _Transports:
    """Stands for the servers; each refuses, and is noted.

    Attributes:
        settings: All settings of every transport.
        contacted: The servers, in the order of the attempts.
    """

    settings: dict[str, str]
    contacted: list[str] = field(default_factory=list)

    def refusing(self, name: str) -> Any:
        def refuse(*_: object, **__: object) -> Any:
            self.contacted.append(name)
            raise CommandError(f"{name} refused")

        return refuse

    def run(self, command: str, settings: dict[str, str]) -> Result:
        return CliRunner().invoke(app, command.split(), env=settings)


@pytest.fixture
def transports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Transports:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"x")
    made = _Transports(_all_settings(tmp_path / "settings"))
    monkeypatch.setattr(Client, "connect", made.refusing("gateway"))
    monkeypatch.setattr("aio_pika.connect", made.refusing("broker"))
    monkeypatch.setattr("keyturn_workers.storage.s3.open_storage", made.refusing("bucket"))
    return made


def _named(names: tuple[str, ...]) -> set[str]:
    return {f"KEYTURN_{name}" for name in names}


def test_every_command_is_in_the_table() -> None:
    commands = {name for group in GROUPS.values() for name in group}
    assert {case.command.split()[0] for case in _CASES} == commands - _LOCAL - _PROCESSES


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.command)
def test_a_command_contacts_one_server_with_its_own_settings_alone_or_with_all(
    case: _Case, transports: _Transports
) -> None:
    names = _named(case.needs + case.uses)
    own = {name: value for name, value in transports.settings.items() if name in names}
    assert own.keys() == names
    for settings in (own, transports.settings):
        transports.contacted.clear()
        result = transports.run(case.command, settings)
        assert result.exit_code == 1, result.output
        assert transports.contacted[:1] == [case.contacts]
        assert result.stderr.splitlines()[-1] == f"keyturn: {case.contacts} refused"


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.command)
def test_a_setting_that_is_missing_is_named_and_no_other_transport_is_used(
    case: _Case, transports: _Transports
) -> None:
    for name in _named(case.needs):
        settings = {n: value for n, value in transports.settings.items() if n != name}
        result = transports.run(case.command, settings)
        assert result.exit_code == 2, result.output
        assert name in result.stderr
    assert transports.contacted == []


@pytest.mark.parametrize("command", ["ls acme", "download acme k", "export acme out"])
def test_without_a_gateway_the_error_names_both_ways(command: str, transports: _Transports) -> None:
    settings = {n: v for n, v in transports.settings.items() if n != "KEYTURN_GATEWAY_URL"}
    assert transports.run(command, settings).stderr == (
        "keyturn: KEYTURN_GATEWAY_URL is missing: set it or use --gateway, or read the bucket with "
        "--as-operator\n"
    )
