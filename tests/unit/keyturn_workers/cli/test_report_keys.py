"""The operator's keys of a command that shows no plaintext and no key."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import to_base64
from keyturn_workers.cli import keys
from keyturn_workers.cli.errors import CommandError
from keyturn_workers.cli.keys import open_report_keys
from keyturn_workers.settings import OperatorSettings
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.master_keys.fakes import FakeProvider
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LOCAL = f'{{"m1": "{to_base64(MASTER_KEYS["m1"].reveal())}"}}'
HELD = '{"m1": "vault:https://vault.example.com/transit/m1?version=1"}'


class _Audit:
    """Notes what is recorded; refuses to open if it has a failure."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.roles: list[str] = []
        self.derived: list[Any] = []

    @asynccontextmanager
    async def open(self, _settings: object, role: str) -> AsyncIterator[_Audit]:
        if self.failure is not None:
            raise self.failure
        self.roles.append(role)
        yield self

    async def kek_derived(self, derived: object) -> None:
        self.derived.append(derived)


def _settings(monkeypatch: pytest.MonkeyPatch, master_keys: str, audit: _Audit) -> OperatorSettings:
    settings = {
        "MASTER_KEYS": master_keys,
        "S3_BUCKET": "memory",
        "AMQP_URL": "amqp://127.0.0.1:1/",
        "EVENT_KEY": to_base64(bytes(32)),
        "VAULT_TOKEN": "t",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"KEYTURN_{name}", value)
    monkeypatch.setattr(keys, "command_audit", audit.open)
    monkeypatch.setattr(
        "keyturn_workers.master_keys.providers.open_master_key", lambda *_: FakeProvider()
    )
    return OperatorSettings.read()


async def test_keks_that_a_provider_derives_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    audit = _Audit()
    settings = _settings(monkeypatch, HELD, audit)
    async with open_report_keys(settings, MemoryStorage(), "status") as keys:
        await keys.admin_kek("m1", "acme")
    assert audit.roles == ["status"]
    # That of the known text, and the project's.
    assert [each.kind for each in audit.derived] == ["record", "admin"]


@pytest.mark.parametrize("missing", ["broker", "KEYTURN_EVENT_KEY"])
async def test_without_the_trail_it_runs_and_says_so(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = _Audit(CommandError("the broker is away") if missing == "broker" else None)
    settings = _settings(monkeypatch, HELD, audit)
    if missing != "broker":
        monkeypatch.delenv(missing)
    async with open_report_keys(settings, MemoryStorage(), "status") as keys:
        assert await keys.admin_kek("m1", "acme")
    shown = capsys.readouterr().err
    assert "not recorded in the audit trail" in shown
    assert ("the broker is away" if missing == "broker" else missing) in shown


async def test_local_keys_need_no_trail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = _Audit(CommandError("the broker is away"))
    settings = _settings(monkeypatch, LOCAL, audit)
    async with open_report_keys(settings, MemoryStorage(), "status"):
        pass
    assert capsys.readouterr().err == ""
