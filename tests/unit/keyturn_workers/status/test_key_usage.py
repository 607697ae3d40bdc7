"""Objects are grouped by what opens them, and the keyring is asked only if needed (SPEC 8.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn.errors import KmsUnavailableError, StorageUnavailableError
from keyturn_workers.errors import ArchivedError
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.operator_keys import OperatorKeys
from keyturn_workers.status.key_usage import (
    ObjectGroup,
    ObjectInspector,
    list_objects,
    read_generations,
)
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tests.unit.keyturn_workers.status.bucket import KEYS, Bucket
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyturn.crypto import Secret

_RING = rotated(keyring())


class _Asked:
    """The generations of a project, and how often they were asked for."""

    def __init__(self, *generations: int) -> None:
        self.generations = generations
        self.times = 0

    async def __call__(self, project: str) -> Sequence[int]:
        del project
        self.times += 1
        return self.generations


async def test_a_true_label_needs_no_keyring_and_a_wrong_one_does() -> None:
    bucket, asked = Bucket(), _Asked(2, 1)
    bucket.put(_RING, "a")
    bucket.put(_RING, "wrong", generation=7, master_key="m2")
    inspector = ObjectInspector(bucket.storage, KEYS, asked)
    group = ObjectGroup("acme", "encrypted", 2, "m1")
    assert await inspector.inspect("acme/a", None) == group
    assert asked.times == 0
    assert await inspector.inspect("acme/wrong", None) == group
    assert asked.times == 1


async def test_what_opens_at_no_known_generation_is_unreadable() -> None:
    bucket = Bucket()
    bucket.put(_RING, "wrong", generation=7)
    for generations in ((), (1, 5)):
        inspector = ObjectInspector(bucket.storage, KEYS, _Asked(*generations))
        found = await inspector.inspect("acme/wrong", None)
        assert found == ObjectGroup("acme", "unreadable", code="no_usable_wrap")


async def test_foreign_names_and_what_is_gone() -> None:
    inspector = ObjectInspector(MemoryStorage(), KEYS, _Asked())
    assert await inspector.inspect("acme//odd", None) == ObjectGroup("acme", "foreign")
    assert await inspector.inspect("No Project/a", None) == ObjectGroup("", "foreign")
    assert await inspector.inspect("acme/gone", None) is None


async def test_an_older_version_that_is_archived_cannot_be_read() -> None:
    bucket = Bucket()
    bucket.put(_RING, "a")
    bucket.storage.fail_next("read_start", ArchivedError("InvalidObjectState"))
    inspector = ObjectInspector(bucket.storage, KEYS, _Asked())
    found = await inspector.inspect("acme/a", "1")
    assert found == ObjectGroup("acme", "unreadable", code="archived_object")


async def test_a_provider_that_is_away_makes_the_census_incomplete() -> None:
    async def check(name: str, kek: Secret) -> bool:
        del kek
        if name == "m1":
            raise KmsUnavailableError("no answer")
        return True

    bucket = Bucket()
    bucket.put(_RING, "a")
    held = {name: LocalMasterKey(secret) for name, secret in MASTER_KEYS.items()}
    keys = OperatorKeys(held, check=check)
    with pytest.raises(KmsUnavailableError):
        await ObjectInspector(bucket.storage, keys, _Asked(2)).inspect("acme/a", None)


async def test_all_but_our_own_is_listed_with_older_versions_and_no_markers() -> None:
    for versioned, expected in ((False, ["b/y"]), (True, ["a/x", "b/y", "b/y"])):
        storage = MemoryStorage(versioned=versioned)
        bucket = Bucket(storage)
        for s3_key in ("a/x", "b/y", "b/y", ".keyturn/keyrings/acme.json"):
            bucket.plant(s3_key, {})
        await storage.delete("a/x")
        listed = [each async for each in list_objects(storage, "")]
        assert [s3_key for s3_key, _ in listed] == expected
        assert [version is None for _, version in listed][-1] is not versioned


async def test_the_generations_are_those_of_the_keyring_if_it_opens() -> None:
    bucket = Bucket()
    await bucket.enroll(_RING)
    bucket.plant(".keyturn/keyrings/forged.json", {})
    assert await read_generations(bucket.storage, KEYS, "acme") == (2, 1)
    assert await read_generations(bucket.storage, KEYS, "forged") == ()
    assert await read_generations(bucket.storage, KEYS, "unknown") == ()
    bucket.storage.fail_next("read", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        await read_generations(bucket.storage, KEYS, "acme")
