"""Writing keyrings: leases that they name, older versions that are deleted (SPEC 5.1, 8.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.identifiers import keyring_s3_key
from keyturn_workers.keyring import (
    KeyringReader,
    create_keyring,
    delete_older_versions,
    replace_keyring,
    retire_old_keys,
    with_evidence,
    with_master_key,
)
from keyturn_workers.keyring.model import with_lease
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tools.harness.local_keys import operator_keys, parse_keyring
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.keyring.model import Keyring


async def versions(storage: MemoryStorage) -> int:
    return len([1 async for _ in storage.list_versions(keyring_s3_key("acme"))])


@pytest.mark.parametrize(("versioned", "left"), [(True, 1), (False, 1)])
async def test_only_the_latest_version_remains(*, versioned: bool, left: int) -> None:
    storage = MemoryStorage(versioned=versioned)
    ring = with_lease(keyring(), 15)
    assert await create_keyring(storage, ring, operator_keys(MASTER_KEYS), lease_s=15)
    assert await create_keyring(storage, keyring("acme-2"), operator_keys(MASTER_KEYS), lease_s=15)
    keyrings = KeyringReader(storage, operator_keys(MASTER_KEYS), lease_s=15, cache_s=0)
    for _ in range(3):
        ring = rotated(ring)
        snapshot = await keyrings.read_fresh("acme")
        assert await replace_keyring(
            storage, ring, snapshot.etag, operator_keys(MASTER_KEYS), lease_s=15
        )
    assert await versions(storage) == (4 if versioned else 1)
    await delete_older_versions(storage, "acme")
    assert await versions(storage) == left
    assert (await keyrings.read_fresh("acme")).keyring == replace(ring, serial=1)


async def test_a_written_keyring_names_the_longest_lease_of_all_that_wrote_it() -> None:
    storage = MemoryStorage()

    async def read() -> tuple[Keyring, str]:
        head, body = await storage.read(keyring_s3_key("acme"))
        return parse_keyring(body, "acme", MASTER_KEYS), head.etag

    assert await create_keyring(storage, keyring(), operator_keys(MASTER_KEYS), lease_s=15)
    ring, etag = await read()
    assert ring.lease_s == 15
    assert await replace_keyring(storage, ring, etag, operator_keys(MASTER_KEYS), lease_s=60)
    ring, etag = await read()
    assert ring.lease_s == 60
    # A worker with a shorter lease does not lower it.
    assert await replace_keyring(storage, ring, etag, operator_keys(MASTER_KEYS), lease_s=6)
    assert (await read())[0].lease_s == 60


async def test_each_change_of_a_keyring_counts() -> None:
    """Whatever changes; and nothing else counts: a put that was refused changes nothing."""
    storage, keys = MemoryStorage(), operator_keys(MASTER_KEYS)
    keyrings = KeyringReader(storage, keys, lease_s=15, cache_s=0)
    assert await create_keyring(storage, keyring(), keys, lease_s=15)
    assert not await create_keyring(storage, keyring(), keys, lease_s=15)
    changes: list[Callable[[Keyring], Keyring]] = [
        rotated,
        retire_old_keys,
        lambda ring: ring,
        lambda ring: replace(ring, plaintext_allowed=not ring.plaintext_allowed),
        lambda ring: with_evidence(ring, "e" * 64),
        lambda ring: with_master_key(ring, "m2"),
    ]
    for serial, change in enumerate(changes, start=1):
        snapshot = await keyrings.read_fresh("acme")
        assert snapshot.keyring.serial == serial
        changed = change(snapshot.keyring)
        assert not await replace_keyring(storage, changed, "other-etag", keys, lease_s=15)
        assert await replace_keyring(storage, changed, snapshot.etag, keys, lease_s=15)
    assert (await keyrings.read_fresh("acme")).keyring.serial == 1 + len(changes)


async def test_the_first_keyring_after_a_removed_one_begins_above_its_serial() -> None:
    storage, keys = MemoryStorage(), operator_keys(MASTER_KEYS)
    assert await create_keyring(storage, replace(keyring(), serial=7), keys, lease_s=15)
    _, body = await storage.read(keyring_s3_key("acme"))
    assert parse_keyring(body, "acme", MASTER_KEYS).serial == 8
