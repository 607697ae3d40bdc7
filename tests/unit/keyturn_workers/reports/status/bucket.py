"""An in-memory bucket with objects, keyrings and sweeps, for tests of reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from keyturn.counts import Counts
from keyturn.crypto import SigningKey
from keyturn.messages import StatusRequested
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import (
    AllRecord,
    End,
    Origin,
    ProjectRecord,
    Round,
    State,
    Walk,
)
from keyturn_workers.keys.keyring.store import create_keyring
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.reports.status.reader import Identity, StatusReader
from keyturn_workers.reports.status.records import Pace
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, deleted, enc, sealed_object
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import build_keyring, desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.messages import StatusReported, StatusView
    from keyturn_workers.core.keyring import Keyring

REQUEST_ID = "2f6c9a0e-3333-4333-8333-333333333333"
DEPLOYMENT = "test"
EVENT_KEY = SigningKey.from_seed(bytes(range(32)))
AT_ONCE = Pace(lambda: 0)
BEGIN = datetime(2026, 11, 24, 10, tzinfo=UTC)
ROUND_ID = "00000000-0000-4000-9000-000000000000"
WALK_ID = "00000000-0000-4000-a000-000000000000"
STATE = State(3, "0" * 16, "m1", plaintext=False, serial=7)
KEYS = operator_keys(MASTER_KEYS)


@dataclass
class Objects:
    """A bucket with objects of projects."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    customer_keys: HeldCustomerKeys = field(default_factory=HeldCustomerKeys, kw_only=True)

    def put(self, ring: Keyring, *keys: str, **labels: Any) -> None:
        """Add objects wrapped under the keyring; `labels` forge their metadata."""
        secrets = replace(ring.secrets, held=self.customer_keys.secrets)
        for key in keys:
            wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key, secrets=secrets)
            self.plant(f"{ring.project}/{key}", enc(replace(wraps, **labels)), body)

    def delete(self, ring: Keyring, key: str) -> None:
        self.plant(f"{ring.project}/{key}", deleted(desired_state(ring, MASTER_KEYS), key), b"")

    def plant(self, s3_key: str, metadata: dict[str, str], body: bytes = b"x" * 80) -> None:
        self.storage.plant(s3_key, body, Headers(metadata))


@dataclass
class Bucket(Objects):
    """The bucket, and a reader of it."""

    known: tuple[str, ...] = ("m1", "m2")

    def __post_init__(self) -> None:
        self.store = SweepStore(self.storage, KEYS)
        self.reader = self.new_reader()

    def new_reader(self, **more: Any) -> StatusReader:
        """A reader of another process, which remembers nothing."""
        keys = operator_keys({name: MASTER_KEYS[name] for name in self.known})
        identity = Identity(DEPLOYMENT, "m1", [EVENT_KEY.verify_key()])
        return StatusReader(self.storage, keys, identity, customer_keys=self.customer_keys, **more)

    async def report(self, view: StatusView, project: str = "*", **more: Any) -> StatusReported:
        return await self.reader.report(request(view, project, **more))

    async def enroll(self, *rings: Keyring) -> None:
        for ring in rings:
            assert await create_keyring(self.storage, ring, KEYS, lease_s=15)

    def replace(self, ring: Keyring) -> None:
        s3_key = f".keyturn/keyrings/{ring.project}.json"
        self.plant(s3_key, {}, build_keyring(ring, MASTER_KEYS))

    async def add(self, *records: ProjectRecord | AllRecord) -> None:
        for each in records:
            assert await self.store.create(each, "m1")


def request(view: StatusView, project: str = "*", **more: Any) -> StatusRequested:
    fields = {"request_id": REQUEST_ID, "project": project, "view": view, "requested_at": AT}
    return StatusRequested.model_validate(fields | more)


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
    current = Round(ROUND_ID, SweepOptions(), names, **round_fields or {}) if names else None
    fields = {"round": current, "lease_s": 15, "stepped_lease_s": 15} | more
    return ProjectRecord(project, STATE, BEGIN, origins=origins, **fields)


def all_record(*origins: Origin, **walk_fields: Any) -> AllRecord:
    """The record of the sweeps of all projects. Its walk serves the open origins."""
    names = tuple(each.name for each in origins if each.is_open)
    walk = Walk(WALK_ID, SweepOptions(), names, **walk_fields) if names else None
    return AllRecord(origins=origins, round=walk)
