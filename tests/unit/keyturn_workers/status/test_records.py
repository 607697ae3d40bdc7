"""Every record is opened, and what does not open is an error and no exception (SPEC 5, 8.5)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import CodedError, StorageUnavailableError
from keyturn_workers.errors import ArchivedError
from keyturn_workers.keyring import Keyring, create_keyring
from keyturn_workers.status import records
from keyturn_workers.status.records import Opened, SweepRecord, list_records, open_record
from keyturn_workers.storage import Headers
from keyturn_workers.sweep import SweepStore
from keyturn_workers.sweep.record import Failure
from tests.unit.keyturn_workers.cli.status_bucket import all_record, done, origin, record, round_id
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tools.harness.local_keys import operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.status.records import Record

_KEYS = operator_keys(MASTER_KEYS)
_ACME = ".keyturn/keyrings/acme.json"


@pytest.fixture
async def storage() -> MemoryStorage:
    bucket = MemoryStorage()
    for ring in (keyring(), keyring("other", master_key="m2")):
        await create_keyring(bucket, ring, _KEYS, lease_s=15)
    store = SweepStore(bucket, _KEYS)
    await store.create(record(done(1)), "m1")
    await store.create(all_record(origin(2)), "m2")
    await store.add_failures("acme", round_id(1), 0, (Failure("k", "no_usable_wrap"),), "m1")
    bucket.plant(".keyturn/sweeps/acme-2.json", b"x", Headers({}))
    bucket.plant(".keyturn/keyrings/No Project.json", b"x", Headers({}))
    return bucket


async def _listed(storage: MemoryStorage, project: str = "*", limit: int = 1000) -> list[Record]:
    found: list[Record] = []
    after: str | None = ""
    while after is not None:
        records, after = await list_records(storage, project, after, limit)
        found += records
    return found


async def _open_first(storage: MemoryStorage, known: str = "m1 m2") -> Any:
    keys = operator_keys({name: MASTER_KEYS[name] for name in known.split()})
    first = next(each for each in await _listed(storage) if each.listed.key == _ACME)
    return await open_record(storage, keys, first)


async def test_listed_records_have_the_project_that_they_are_sealed_for(
    storage: MemoryStorage,
) -> None:
    for limit in (1, 2, 1000):
        assert [each.project for each in await _listed(storage, limit=limit)] == [
            *("acme", "other"),
            *("*", "acme-2", "acme", "acme"),
        ]
    names = [each.listed.key for each in await _listed(storage, "acme")]
    assert names == [
        _ACME,
        ".keyturn/sweeps/acme.json",
        f".keyturn/sweeps/acme/{round_id(1)}/failures/00000000.json",
    ]


async def test_a_key_without_a_records_name_is_not_listed(storage: MemoryStorage) -> None:
    listed = await _listed(storage)
    for name in ("keyrings/No Project.json", "keyrings/acme", "sweeps/acme/x/failures/0.json"):
        storage.plant(f".keyturn/{name}", b"nothing", Headers({}))
    assert await _listed(storage) == listed


async def test_each_record_opens_as_what_it_is(storage: MemoryStorage) -> None:
    found = [await open_record(storage, _KEYS, each) for each in await _listed(storage)]
    opened = [each for each in found if isinstance(each, Opened)]
    contents = [each.content for each in opened]
    assert [type(content) for content in contents] == [Keyring, Keyring] + [SweepRecord] * 3
    assert [content.master_key for content in contents] == ["m1", "m2", "m2", "m1", "m1"]
    of_sweeps = [each.record for each in contents if isinstance(each, SweepRecord)]
    assert of_sweeps == [all_record(origin(2)), record(done(1)), None]
    assert opened[0].etag == (await storage.head(_ACME)).etag


async def test_a_relabeled_record_does_not_open(storage: MemoryStorage) -> None:
    _, body = await storage.read(_ACME)
    forged = json.dumps(json.loads(body) | {"master_key": "m2"}).encode()
    storage.plant(_ACME, forged, Headers({}))
    assert (await _open_first(storage)).code == "corrupt_object"


async def test_a_record_of_an_unknown_master_key_names_it(storage: MemoryStorage) -> None:
    error = await _open_first(storage, known="m2")
    assert (error.code, error.detail) == ("unknown_master_key", "m1")


async def test_a_huge_record_is_not_read(
    storage: MemoryStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "MAX_BYTES", 100)
    reads = storage.calls["read"]
    error = await _open_first(storage)
    assert isinstance(error, CodedError)
    assert error.detail == "too large for a record"
    assert storage.calls["read"] == reads


async def test_an_archived_record_is_an_error_and_a_lost_one_is_none(
    storage: MemoryStorage,
) -> None:
    storage.fail_next("read", ArchivedError("InvalidObjectState"))
    assert (await _open_first(storage)).code == "archived_object"

    async def remove() -> None:
        await storage.delete(_ACME)

    storage.before_next("read", remove)
    assert await _open_first(storage) is None


async def test_an_outage_of_the_storage_is_no_matter_of_the_record(storage: MemoryStorage) -> None:
    storage.fail_next("read", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        await _open_first(storage)
