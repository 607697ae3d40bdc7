"""A project with one page, as the tests of page attempts use it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn_workers.keyring import Keyring, KeyringReader
from keyturn_workers.storage import Headers, StorageClock
from keyturn_workers.sweep import Options, ProjectRecord, SweepStore
from keyturn_workers.sweep.page import PageWorker
from keyturn_workers.sweep.record import OpenPage, Result, Round, State
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    OPERATOR_KEYS,
    enc,
    keyring,
    sealed_object,
)
from tests.unit.keyturn_workers.sweep.records import LEASE_S, SWEEP, round_of
from tools.harness.local_keys import build_keyring, desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class Page:
    """A project with one page, of all its keys."""

    storage: MemoryStorage = field(default_factory=MemoryStorage)
    ring: Keyring = field(default_factory=keyring)
    repair: bool = False
    cache_s: float = 0

    def __post_init__(self) -> None:
        self.clock = StorageClock(LEASE_S, self.storage.elapsed_s)
        self.keyrings = KeyringReader(
            self.storage, OPERATOR_KEYS, lease_s=LEASE_S, cache_s=self.cache_s, clock=self.clock
        )
        self.store = SweepStore(self.storage, OPERATOR_KEYS)
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

    async def record(self) -> ProjectRecord:
        """The record of the project, which proves the state that its keyring shows now."""
        state, now = State.of(await self.keyrings.read_fresh("acme")), datetime.now(UTC)
        return ProjectRecord("acme", state, now, LEASE_S, LEASE_S, origins=(SWEEP,))

    @property
    def round(self) -> Round:
        return round_of(options=Options(repair=self.repair))

    @property
    def worker(self) -> PageWorker:
        return PageWorker(
            self.storage,
            self.keyrings,
            OPERATOR_KEYS,
            self.store,
            concurrency=4,
            copy_limit_bytes=2**30,
        )

    async def process(self) -> Result:
        """Make an attempt at the page."""
        return await self.worker.process(await self.record(), self.round, OpenPage(0, "", ""))
