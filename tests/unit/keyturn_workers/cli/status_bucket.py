"""An in-memory bucket for tests of `keyturn status`."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from typer.testing import CliRunner

from keyturn.counts import Counts
from keyturn.crypto import to_base64
from keyturn_workers.cli.app import app
from keyturn_workers.keyring import create_keyring
from keyturn_workers.storage import Headers
from keyturn_workers.sweep import AllRecord, Options, Origin, ProjectRecord, SweepStore
from keyturn_workers.sweep.record import End, Round, State, Walk
from tests.unit.keyturn_workers.cli.fakes import use_bucket
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, deleted, enc, sealed_object
from tools.harness.local_keys import desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    import pytest
    from typer.testing import Result

    from keyturn_workers.keyring import Keyring

BEGIN = datetime(2026, 11, 24, 10, tzinfo=UTC)
ROUND_ID = "00000000-0000-4000-9000-000000000000"
WALK_ID = "00000000-0000-4000-a000-000000000000"
STATE = State(3, "0" * 16, "m1", plaintext=False, serial=7)


@dataclass
class Bench:
    """The bucket, and the command to run on it."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
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

    def put(self, ring: Keyring, *keys: str, **labels: Any) -> None:
        """Add objects wrapped under the keyring; `labels` forge their metadata."""
        for key in keys:
            wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key)
            self.plant(f"{ring.project}/{key}", enc(replace(wraps, **labels)), body)

    def delete(self, ring: Keyring, key: str) -> None:
        self.plant(f"{ring.project}/{key}", deleted(desired_state(ring, MASTER_KEYS), key), b"")

    def plant(self, s3_key: str, metadata: dict[str, str], body: bytes = b"x" * 80) -> None:
        self.storage.plant(s3_key, body, Headers(metadata))

    def add(self, *records: ProjectRecord | AllRecord, master_key: str = "m1") -> None:
        for each in records:
            assert asyncio.run(self.store.create(each, master_key))


def bench(monkeypatch: pytest.MonkeyPatch, storage: MemoryStorage | None = None) -> Bench:
    made = Bench(storage or MemoryStorage())

    use_bucket(monkeypatch, "status", made.storage)
    return made


def sweep_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def origin(number: int, **more: Any) -> Origin:
    """A request; `number` minutes after the first one."""
    fields: dict[str, Any] = {
        "kind": "sweep",
        "id": sweep_id(number),
        "publisher": "api",
        "requested_at": AT,
        "digests": ("0" * 64,),
        "added_at": BEGIN + timedelta(minutes=number),
    }
    return Origin(**fields | more)


def part(number: int, **more: Any) -> Origin:
    """A project's part of a sweep of all that a walk added."""
    return origin(number, kind="part", walk_id=WALK_ID, **more)


def done(number: int, *, clean: bool = True, **more: Any) -> Origin:
    """A request that ended; failures of one that is not clean are in the folder of its round."""
    counts = Counts(objects=5, current=5 if clean else 3, failed=0 if clean else 2)
    at = BEGIN + timedelta(minutes=number, seconds=30)
    end = End(at, clean, counts, round_id=round_id(number), state=STATE, published=True)
    return origin(number, end=end, **more)


def failed(number: int, code: str, detail: str = "", **more: Any) -> Origin:
    """A request that a step gave up."""
    at = BEGIN + timedelta(minutes=number, seconds=30)
    end = End(at, clean=False, counts=Counts(), code=code, detail=detail, published=True)
    return origin(number, end=end, **more)


def round_id(number: int) -> str:
    return f"00000000-0000-4000-b000-{number:012}"


def record(
    *origins: Origin,
    project: str = "acme",
    round_fields: dict[str, Any] | None = None,
    **more: Any,
) -> ProjectRecord:
    """The record of a project. Its round serves the open origins."""
    names = tuple(each.name for each in origins if each.is_open)
    current = Round(ROUND_ID, Options(), names, **round_fields or {}) if names else None
    fields = {"round": current, "lease_s": 15, "stepped_lease_s": 15} | more
    return ProjectRecord(project, STATE, BEGIN, origins=origins, **fields)


def all_record(*origins: Origin, **walk_fields: Any) -> AllRecord:
    """The record of the sweeps of all projects. Its walk serves the open origins."""
    names = tuple(each.name for each in origins if each.is_open)
    walk = Walk(WALK_ID, Options(), names, **walk_fields) if names else None
    return AllRecord(origins=origins, round=walk)
