"""The keyring snapshot that a sweep works by."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import UnknownMasterKeyError
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.effective_snapshot import effective_snapshot
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.sweep.records import PLAN
from tools.harness.local_keys import build_keyring, operator_keys

if TYPE_CHECKING:
    from keyturn_workers.keyring import KeyringSnapshot


async def _snapshot() -> KeyringSnapshot:
    storage = MemoryStorage()
    storage.plant(keyring_s3_key("acme"), build_keyring(keyring(), MASTER_KEYS), Headers({}))
    return await KeyringReader(
        storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=0
    ).read_fresh("acme")


async def test_a_dry_run_counts_by_the_master_key_that_it_names() -> None:
    snapshot = await _snapshot()
    request = replace(PLAN.ask, master_key="m2", dry_run=True)
    effective = await effective_snapshot(request, snapshot, operator_keys(MASTER_KEYS))
    assert (effective.desired.master_key, effective.keyring.master_key) == ("m2", "m2")
    with pytest.raises(UnknownMasterKeyError):
        await effective_snapshot(
            replace(request, master_key="m9"), snapshot, operator_keys(MASTER_KEYS)
        )


@pytest.mark.parametrize(
    ("master_key", "dry_run"), [(None, True), ("m1", True), ("m2", False), (None, False)]
)
async def test_any_other_sweep_works_by_the_keyring_as_it_is(
    master_key: str | None, *, dry_run: bool
) -> None:
    snapshot = await _snapshot()
    request = replace(PLAN.ask, master_key=master_key, dry_run=dry_run)
    effective = await effective_snapshot(request, snapshot, operator_keys(MASTER_KEYS))
    assert effective is snapshot
