"""A project with one page, as the tests of page attempts use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn_workers.keyring import Keyring, KeyringReader
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.page_worker import PageWorker
from keyturn_workers.sweep.plan import OpenPage, Plan, Result, State, SweepRequest
from keyturn_workers.sweep.sweep_store import SweepStore
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import MASTER_KEYS, enc, keyring, sealed_object
from tools.harness.local_keys import build_keyring, desired_state, operator_keys

if TYPE_CHECKING:
    from collections.abc import Mapping

SWEEP_ID: Final = "2f6c9a0e-1111-4111-8111-111111111111"
KEYS: Final = operator_keys(MASTER_KEYS)


@dataclass
class Page:
    """A project with one page, of all its keys."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    ring: Keyring = field(default_factory=keyring)
    dry_run: bool = False
    repair: bool = False

    def __post_init__(self) -> None:
        self.keyrings = KeyringReader(
            self.storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=0
        )
        self.write_keyring(self.ring)

    def write_keyring(self, ring: Keyring) -> None:
        self.ring = ring
        self.storage.plant(keyring_s3_key("acme"), build_keyring(ring, MASTER_KEYS), Headers({}))

    def plant(self, *keys: str) -> None:
        """An object at each key, as the keyring desires it now."""
        for key in keys:
            wraps, body = sealed_object(desired_state(self.ring, MASTER_KEYS), key)
            self.storage.plant(object_s3_key("acme", key), body, Headers(enc(wraps)))

    def plant_plain(self, key: str) -> None:
        """What another program put there."""
        self.storage.plant(object_s3_key("acme", key), b"", Headers({"author": "kim"}))

    async def relabel(self, key: str, own: Mapping[str, str], *, locked: bool = False) -> None:
        """The object with other metadata of ours, as a bucket writer puts it."""
        head, body = await self.storage.read(object_s3_key("acme", key))
        headers = Headers({**head.metadata, **own})
        self.storage.plant(object_s3_key("acme", key), body, headers, locked=locked)

    async def process(self) -> Result:
        store = SweepStore(self.storage, operator_keys(MASTER_KEYS))
        worker = PageWorker(
            self.storage, self.keyrings, KEYS, store, concurrency=4, copy_limit_bytes=2**30
        )
        now = datetime.now(UTC)
        state = State.of(await self.keyrings.read_fresh("acme"))
        request = SweepRequest(
            "sweep", SWEEP_ID, "acme", "", dry_run=self.dry_run, repair=self.repair
        )
        return await worker.process(
            Plan(request, state, now, now), OpenPage(page=0, after="", last="")
        )
