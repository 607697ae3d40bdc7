"""An in-memory bucket for tests of `keyturn status`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from keyturn.crypto import to_base64
from keyturn_workers.cli.app import app
from keyturn_workers.keys.keyring.store import create_keyring
from keyturn_workers.keys.sweep_records import SweepStore
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.reports.status.bucket import Objects
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    import pytest
    from typer.testing import Result

    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.sweep_record import AllRecord, ProjectRecord


@dataclass
class Bench(Objects):
    """The bucket, and the command to run on it."""

    master_keys: tuple[str, ...] = ("m1", "m2")

    @property
    def store(self) -> SweepStore:
        return SweepStore(self.storage, operator_keys(MASTER_KEYS))

    def run(self, *arguments: str, **env: str) -> Result:
        master_keys = {name: to_base64(MASTER_KEYS[name].reveal()) for name in self.master_keys}
        named = {f"KEYTURN_{name}": value for name, value in env.items()}
        settings = {"KEYTURN_MASTER_KEYS": json.dumps(master_keys), "KEYTURN_S3_BUCKET": "memory"}
        return CliRunner().invoke(app, ["status", *arguments], env=settings | named)

    def json(self, *arguments: str, exit_code: int = 0, **env: str) -> Any:
        """The output of the command with `--json`."""
        result = self.run(*arguments, "--json", **env)
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    def enroll(self, ring: Keyring) -> None:
        assert asyncio.run(
            create_keyring(self.storage, ring, operator_keys(MASTER_KEYS), lease_s=15)
        )

    def add(self, *records: ProjectRecord | AllRecord, master_key: str = "m1") -> None:
        for each in records:
            assert asyncio.run(self.store.create(each, master_key))


def bench(monkeypatch: pytest.MonkeyPatch, storage: MemoryStorage | None = None) -> Bench:
    made = Bench(storage or MemoryStorage())
    for module in ("status", "sweep_status"):
        use_bucket(monkeypatch, module, made.storage)
    return made
