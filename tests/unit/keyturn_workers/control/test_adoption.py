"""Adoption starts above the highest generation of any object (SPEC 5.4, 8.6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import object_s3_key
from keyturn_workers.control.enrollment import find_highest_generation
from keyturn_workers.errors import MissingError
from keyturn_workers.storage import Headers
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    generation,
    keyring,
    sealed_object,
)
from tools.harness.local_keys import desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

KEYS = operator_keys(MASTER_KEYS)


def _plant(storage: MemoryStorage, key: str, number: int) -> None:
    ring = replace(keyring(), current=generation(number))
    wraps, body = sealed_object(desired_state(ring, MASTER_KEYS), key)
    storage.plant(object_s3_key("acme", key), body, Headers(enc(wraps)))


async def test_an_object_with_an_invalid_key_counts() -> None:
    storage = MemoryStorage()
    _plant(storage, "a", 3)
    _plant(storage, "reports//q3.txt", 7)
    assert await find_highest_generation(storage, "acme", KEYS) == 7


async def test_an_object_that_is_listed_but_not_found_is_not_skipped() -> None:
    """It could be the one at the highest generation: a retry lists again."""
    storage = MemoryStorage()
    _plant(storage, "a", 3)
    storage.fail_next("head", MissingError("head: NoSuchKey"))
    with pytest.raises(StorageUnavailableError):
        await find_highest_generation(storage, "acme", KEYS)
    assert await find_highest_generation(storage, "acme", KEYS) == 3


async def test_an_object_without_a_wrap_that_opens_counts_as_generation_0() -> None:
    storage = MemoryStorage()
    assert await find_highest_generation(storage, "acme", KEYS) is None
    _plant(storage, "a", 3)
    only_m2 = operator_keys({"m2": MASTER_KEYS["m2"]})
    assert await find_highest_generation(storage, "acme", only_m2) == 0
    for key, metadata in {
        "plain": {},
        "deleted": deleted(desired_state(keyring(), MASTER_KEYS), "deleted"),
        "unknown": {"enc-algo": "ROT13"},
    }.items():
        storage = MemoryStorage()
        storage.plant(object_s3_key("acme", key), b"", Headers(metadata))
        assert await find_highest_generation(storage, "acme", KEYS) == 0
