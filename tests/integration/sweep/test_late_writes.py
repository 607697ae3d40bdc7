"""A sweep worker that stalls before its copies: the storage itself refuses them (SPEC 8.4)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import Secret, kek_id, new_api_key, user_kek
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.keyring import Generation, Keyring, rotate
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import OpenPage, ProjectRecord, Round, State
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.sweep_records import SweepStore
from keyturn_workers.pipeline.sweep.page import PageWorker
from tests.integration.storage.conftest import opened
from tools.harness import requests
from tools.harness.bucket import Bucket
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.deployment import Deployment
from tools.harness.local_keys import build_keyring, operator_keys

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from keyturn_workers.core.storage_values import Headers, Lease
    from keyturn_workers.storage.s3 import S3Storage
    from tools.servers import S3Server

pytestmark = pytest.mark.servers

LEASE_S = 1
KEYS = [f"k{n}" for n in range(5)]


class Stalling:
    """A storage whose first copies are sent only once their lease is over, by its own clock."""

    def __init__(self, storage: S3Storage, meanwhile: Callable[[], Awaitable[None]]) -> None:
        self._storage = storage
        self._meanwhile = meanwhile
        self._stalled: set[str] = set()
        self.refused = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    async def _until(self, key: str, over: datetime) -> None:
        while (await self._storage.head(key)).date <= over:  # noqa: ASYNC110  # a server's clock
            await asyncio.sleep(0.1)

    async def copy_onto_itself(
        self, key: str, headers: Headers, *, source_etag: str, lease: Lease
    ) -> None:
        """As the storage does, but late the first time."""
        if key not in self._stalled:
            self._stalled.add(key)
            await self._meanwhile()
            await self._until(key, lease.read_at + timedelta(seconds=lease.expires_s))
        try:
            await self._storage.copy_onto_itself(key, headers, source_etag=source_etag, lease=lease)
        except RefusedError:
            self.refused += 1
            raise


async def test_late_copies_of_a_stalled_worker_are_refused(
    ceph: S3Server, ceph_bucket: str
) -> None:
    """Each late copy is refused, and repeated by a keyring that was rotated meanwhile."""
    deployment = Deployment("", ceph, ceph_bucket)
    bucket, master_keys = Bucket(deployment), {"m1": Secret(deployment.master_key)}
    api_keys = [deployment.api_key, new_api_key(), new_api_key()]
    keks = [user_kek(api_key, "acme") for api_key in api_keys]
    now = requests.now()
    first = Generation(1, kek_id(keks[0]), keks[0], requests.new_id(), now, now)
    ring = Keyring("acme", "m1", first, RequestOrigin("api", "0" * 64), lease_s=15)
    for key in KEYS:
        bucket.put_made("acme", bucket.made("acme", key, key.encode()))

    def rotate_keyring(before: Keyring, kek: Secret) -> Keyring:
        after = rotate(
            before,
            kek=kek,
            rotation_id=requests.new_id(),
            requested_at=now,
            at=now,
            origin=RequestOrigin("api", "0" * 64),
        )
        bucket.put(keyring_s3_key("acme"), build_keyring(after, master_keys), {})
        return after

    second = rotate_keyring(ring, keks[1])
    later: list[Keyring] = []

    async def rotate_once() -> None:
        if not later:
            later.append(rotate_keyring(second, keks[2]))

    async with opened(ceph, ceph_bucket) as storage:
        stalling: Any = Stalling(storage, rotate_once)
        keyrings = KeyringReader(storage, operator_keys(master_keys), lease_s=LEASE_S, cache_s=0.5)
        worker = PageWorker(
            stalling,
            keyrings,
            operator_keys(master_keys),
            HeldCustomerKeys(),
            SweepStore(storage, operator_keys(master_keys)),
            concurrency=8,
            copy_limit_bytes=2**30,
        )
        observed = await keyrings.read_fresh("acme")
        record = ProjectRecord(
            "acme",
            State.of(observed.keyring),
            observed.lease.read_at,
            lease_s=LEASE_S,
            stepped_lease_s=LEASE_S,
        )
        of, page = Round(requests.new_id(), SweepOptions(), ()), OpenPage(page=0, after="", last="")
        result = await worker.process(record, of, page)
        later_state = State.of((await keyrings.read_fresh("acme")).keyring)
        again = await worker.process(replace(record, state=later_state), of, page)
    assert stalling.refused == len(KEYS)
    assert (result.changed, result.failures) == (len(KEYS), ())
    # It saw two states, so it proves neither.
    assert result.state is None
    assert (again.changed, again.counts.current) == (0, len(KEYS))
    for key in KEYS:
        at = object_s3_key("acme", key)
        assert bucket.opened(at, keks[2], "user", 3) == key.encode()
        assert bucket.unwrapped(keks[1], "user", at, 2) is None
