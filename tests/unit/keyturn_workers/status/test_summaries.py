"""A row is kept only for the ETag that a listing shows, and never if it has a code (SPEC 16.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.messages import ProjectStatus
from keyturn_workers.status import summaries as summaries_module
from keyturn_workers.status.records import list_records
from keyturn_workers.status.summaries import EtagCache, Summaries, read_batches
from keyturn_workers.sweep.record import Failure
from tests.unit.keyturn_workers.cli.status_bucket import done, origin, record, round_id, sweep_id
from tests.unit.keyturn_workers.factories import keyring, rotated
from tests.unit.keyturn_workers.status.bucket import AT_ONCE, KEYS, Bucket

if TYPE_CHECKING:
    from keyturn_workers.status.records import Record
    from keyturn_workers.status.summaries import Summary


def test_a_value_is_of_one_etag_and_the_least_used_ones_go() -> None:
    cache: EtagCache[int] = EtagCache(2)
    cache.put("a", "1", 10)
    cache.put("b", "1", 20)
    assert (cache.get("a", "1"), cache.get("a", "2"), cache.get("c", "1")) == (10, None, None)
    cache.put("c", "1", 30)
    assert [cache.get(name, "1") for name in "abc"] == [10, None, 30]
    cache.put("a", "2", 11)
    assert (cache.get("a", "1"), cache.get("a", "2")) == (None, 11)
    cache.put("d", "1", 40, size=2)
    assert [cache.get(name, "1") for name in "acd"] == [None, None, 40]
    cache.put("d", "2", 41)
    cache.put("a", "3", 12)
    assert (cache.get("a", "3"), cache.get("d", "2")) == (12, 41)


async def _records(bucket: Bucket) -> list[Record]:
    return [record async for record in list_records(bucket.storage, None)]


def _generations(rows: list[Summary | None]) -> list[int | None]:
    return [row.generation if isinstance(row, ProjectStatus) else None for row in rows]


async def test_only_what_has_changed_is_read_again() -> None:
    bucket, rings = Bucket(), [keyring(f"p{n:03}") for n in range(20)]
    await bucket.enroll(*rings)
    await bucket.add(record(done(1), origin(2)))
    summaries = Summaries(bucket.storage, KEYS, AT_ONCE)
    rows = await summaries.read_all(await _records(bucket))
    assert _generations(rows) == [1] * 20 + [None]
    assert isinstance(rows[-1], tuple)
    assert [row.sweep_id for row in rows[-1]] == [sweep_id(1), sweep_id(2)]
    reads = bucket.storage.calls["read"]
    bucket.replace(rotated(rings[7]))
    rows = await summaries.read_all(await _records(bucket))
    assert _generations(rows) == [1] * 7 + [2] + [1] * 12 + [None]
    assert bucket.storage.calls["read"] == reads + 1


async def test_what_changes_between_the_listing_and_the_read_is_kept_by_what_was_read() -> None:
    """The next listing shows the new ETag, or again another one; never a row that it denies."""
    bucket, ring = Bucket(), keyring()
    await bucket.enroll(ring)
    summaries = Summaries(bucket.storage, KEYS, AT_ONCE)
    stale = await _records(bucket)

    async def rotate() -> None:
        bucket.replace(rotated(ring))

    bucket.storage.before_next("read", rotate)
    assert _generations(await summaries.read_all(stale)) == [2]
    assert _generations(await summaries.read_all(stale)) == [2]  # read again: the ETag differs
    assert bucket.storage.calls["read"] == 2
    assert _generations(await summaries.read_all(await _records(bucket))) == [2]
    assert bucket.storage.calls["read"] == 2


async def test_what_does_not_open_is_tried_again_each_time() -> None:
    bucket = Bucket()
    await bucket.enroll(keyring())
    bucket.plant(".keyturn/keyrings/forged.json", {})
    bucket.plant(".keyturn/sweeps/forged.json", {})
    summaries = Summaries(bucket.storage, KEYS, AT_ONCE)
    for reads in (3, 5):
        rows = await summaries.read_all(await _records(bucket))
        projects = [row for row in rows if isinstance(row, ProjectStatus)]
        assert [row.code for row in projects] == [None, "corrupt_object"]
        assert rows[2:] == [()]  # nothing says which sweeps it had
        assert bucket.storage.calls["read"] == reads


async def test_few_bytes_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries_module, "_MAX_BYTES_AT_ONCE", 1000)
    bucket = Bucket()
    await bucket.enroll(*(keyring(f"p{n}") for n in range(5)))
    records = await _records(bucket)
    assert 500 < records[0].listed.size_bytes < 1000
    batches = list(read_batches(range(5), records))
    assert batches == [[0], [1], [2], [3], [4]]
    small = [replace(each, listed=replace(each.listed, size_bytes=9)) for each in records]
    assert list(read_batches([1, 4], small)) == [[1, 4]]
    assert [len(batch) for batch in read_batches(range(20), small * 4)] == [8, 8, 4]


async def test_a_record_in_the_folder_of_a_round_has_no_row() -> None:
    bucket = Bucket()
    failed = (Failure("k", "no_usable_wrap"),)
    await bucket.store.add_failures("acme", round_id(1), 0, failed, "m1")
    failures = next(each for each in await _records(bucket) if "failures" in each.listed.key)
    with pytest.raises(TypeError):
        await Summaries(bucket.storage, KEYS, AT_ONCE).read(failures)
