"""An in-memory bucket with keyrings and sweeps, for tests of reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from keyturn.crypto import SigningKey
from keyturn.messages import StatusRequested
from keyturn_workers.keyring import create_keyring
from keyturn_workers.status.reader import Identity, StatusReader
from keyturn_workers.status.records import Pace
from keyturn_workers.storage import Headers
from keyturn_workers.sweep import SweepStore
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, enc, sealed_object
from tools.harness.local_keys import build_keyring, desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.messages import StatusReported, StatusView
    from keyturn_workers.keyring import Keyring
    from keyturn_workers.sweep import AllRecord, ProjectRecord

REQUEST_ID = "2f6c9a0e-3333-4333-8333-333333333333"
DEPLOYMENT = "test"
EVENT_KEY = SigningKey.from_seed(bytes(range(32)))
AT_ONCE = Pace(lambda: 0)
KEYS = operator_keys(MASTER_KEYS)


@dataclass
class Bucket:
    """The bucket, and a reader of it."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    known: tuple[str, ...] = ("m1", "m2")

    def __post_init__(self) -> None:
        self.store = SweepStore(self.storage, KEYS)
        self.reader = self.new_reader()

    def new_reader(self, **more: Any) -> StatusReader:
        """A reader of another process, which remembers nothing."""
        keys = operator_keys({name: MASTER_KEYS[name] for name in self.known})
        identity = Identity(DEPLOYMENT, "m1", [EVENT_KEY.verify_key()])
        return StatusReader(self.storage, keys, identity, **more)

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

    def put(self, ring: Keyring, *keys: str, **labels: Any) -> None:
        """Add objects wrapped under the keyring; `labels` forge their metadata."""
        for key in keys:
            wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key)
            self.plant(f"{ring.project}/{key}", enc(replace(wraps, **labels)), body)

    def plant(self, s3_key: str, metadata: dict[str, str], body: bytes = b"x" * 80) -> None:
        self.storage.plant(s3_key, body, Headers(metadata))


def request(view: StatusView, project: str = "*", **more: Any) -> StatusRequested:
    fields = {"request_id": REQUEST_ID, "project": project, "view": view, "requested_at": AT}
    return StatusRequested.model_validate(fields | more)
