"""Sealed records of sweeps: a removed one is work done again, a forged one is none (SPEC 5.1)."""

from __future__ import annotations

import asyncio

import pytest

from keyturn.crypto import Secret
from keyturn.errors import CorruptObjectError, UnknownMasterKeyError
from keyturn_workers.errors import MissingError
from keyturn_workers.sweep.plan import Failure, OpenPage, Plan
from keyturn_workers.sweep.record_store import RecordStore, gather_limited
from tests.unit.keyturn_workers.sweep.records import RESULT_PATH, Scene
from tools.harness.local_keys import operator_keys

FAILURE = Failure("k", "corrupt_object")


def _records(scene: Scene, *names: str) -> RecordStore:
    keys = {"m1": Secret(bytes(32)), "m2": Secret(b"2" * 32)}
    return RecordStore(scene.storage, operator_keys({name: keys[name] for name in names or keys}))


async def test_a_record_is_read_with_its_master_key_and_etag() -> None:
    scene = Scene()
    records = _records(scene)
    assert await records._create_record(RESULT_PATH, "acme", FAILURE, "m2")
    etag = (await scene.storage.head(RESULT_PATH)).etag
    assert await records._read_record(RESULT_PATH, "acme", Failure) == (FAILURE, "m2", etag)


async def test_of_two_records_at_one_path_the_first_stays() -> None:
    records = _records(Scene())
    assert await records._create_record(RESULT_PATH, "acme", FAILURE, "m1")
    assert not await records._create_record(RESULT_PATH, "acme", Failure("other", "x"), "m1")
    assert (await records._read_record(RESULT_PATH, "acme", Failure))[0] == FAILURE


async def test_a_record_of_another_kind_is_corrupt() -> None:
    """Its names and values may be an attacker's: an earlier record, put at another path."""
    records = _records(Scene())
    assert await records._create_record(RESULT_PATH, "acme", FAILURE, "m1")
    for kind in (OpenPage, Plan):
        with pytest.raises(CorruptObjectError):
            await records._read_record(RESULT_PATH, "acme", kind)


@pytest.mark.parametrize("place", [("x.json", "acme"), (RESULT_PATH, "other")])
async def test_a_record_of_another_place_is_corrupt(place: tuple[str, str]) -> None:
    scene = Scene()
    records = _records(scene)
    scene.plant(RESULT_PATH, await records._seal(*place, FAILURE, "m1"))
    with pytest.raises(CorruptObjectError):
        await records._read_record(RESULT_PATH, "acme", Failure)


async def test_no_record_is_none_and_a_forged_one_is_deleted() -> None:
    scene = Scene()
    records = _records(scene)
    with pytest.raises(MissingError):
        await records._read_record(RESULT_PATH, "acme", Failure)
    assert await records._read_or_delete_forged(RESULT_PATH, "acme", Failure) is None
    scene.plant(RESULT_PATH)
    assert await records._read_or_delete_forged(RESULT_PATH, "acme", Failure) is None
    assert scene.storage.stored_keys() == []


async def test_a_record_under_a_master_key_of_other_workers_is_not_deleted() -> None:
    scene = Scene()
    assert await _records(scene)._create_record(RESULT_PATH, "acme", FAILURE, "m2")
    with pytest.raises(UnknownMasterKeyError):
        await _records(scene, "m1")._read_or_delete_forged(RESULT_PATH, "acme", Failure)
    assert scene.storage.stored_keys() == [RESULT_PATH]


async def test_many_calls_are_made_a_few_at_a_time_and_answered_in_order() -> None:
    under_way = most = 0

    async def call(number: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(5):
            await asyncio.sleep(0)
        under_way -= 1
        return number

    assert await gather_limited(call(number) for number in range(50)) == list(range(50))
    assert most == 16
