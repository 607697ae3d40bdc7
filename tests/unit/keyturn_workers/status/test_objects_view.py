"""Every S3 key is in exactly one page, and its group is by what opens it (SPEC 8.1, 16.1)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from keyturn.errors import KmsUnavailableError, StorageUnavailableError
from keyturn_workers.sweep.record import Failure
from tests.unit.keyturn_workers.cli.status_bucket import done, record, round_id
from tests.unit.keyturn_workers.factories import MASTER_KEYS, deleted, keyring, rotated
from tests.unit.keyturn_workers.status.bucket import KEYS, Bucket
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

_FIRST = keyring()
_OTHER = keyring("other", master_key="m2")
_Group = tuple[str, int | None, str | None, str | None]


async def _census(bucket: Bucket, project: str = "*", **more: Any) -> Counter[_Group]:
    found: Counter[_Group] = Counter()
    after: dict[str, Any] = {}
    while True:
        page = await bucket.report("objects", project, **after, **more)
        assert page.code is None, page
        for row in page.objects or ():
            found[row.kind, row.generation, row.master_key, row.code] += row.count
        if page.next is None:
            return found
        assert after.get("after") != page.next
        after = {"after": page.next}


async def _filled(storage: MemoryStorage | None = None) -> Bucket:
    bucket = Bucket(storage or MemoryStorage())
    await bucket.enroll(rotated(_FIRST), _OTHER)
    await bucket.add(record(done(1)))
    failures = (Failure("k", "no_usable_wrap"),)
    await bucket.store.add_failures("acme", round_id(1), 0, failures, "m2")
    bucket.put(_FIRST, "a", "b")
    bucket.put(rotated(_FIRST), "c", generation=7, master_key="m2")
    bucket.put(_OTHER, "a")
    bucket.plant("other/gone", deleted(desired_state(_OTHER, MASTER_KEYS), "gone"), b"")
    bucket.plant("acme/plain", {})
    bucket.plant("acme/broken", {"enc-algo": "ROT13"})
    bucket.plant("No Project/a", {})
    bucket.plant(".keyturn/keyrings/forged.json", {})
    bucket.plant(".keyturn/staging/api/x", {})
    return bucket


_ALL: Counter[_Group] = Counter(
    {
        ("encrypted", None, "m1", None): 3,
        ("encrypted", None, "m2", None): 1,
        ("tombstone", None, "m2", None): 1,
        ("plaintext", None, None, None): 1,
        ("unreadable", None, None, "unknown_algorithm"): 1,
        ("unreadable", None, None, "corrupt_object"): 1,
        ("foreign", None, None, None): 1,
        ("keyring", None, "m1", None): 1,
        ("keyring", None, "m2", None): 1,
        ("sweep_record", None, "m1", None): 1,
        ("sweep_record", None, "m2", None): 1,
    }
)


@pytest.mark.parametrize("limit", [1, 2, 5, 1000])
async def test_everything_is_counted_once_by_what_opens_it(limit: int) -> None:
    assert await _census(await _filled(), limit=limit) == _ALL


async def test_of_one_project_the_generations_are_told_apart() -> None:
    assert await _census(await _filled(), "acme") == {
        ("encrypted", 1, "m1", None): 2,
        ("encrypted", 2, "m1", None): 1,
        ("plaintext", None, None, None): 1,
        ("unreadable", None, None, "unknown_algorithm"): 1,
    }


_RECORDS = ("keyring", "sweep_record")


@pytest.mark.parametrize("limit", [1, 2, 1000])
async def test_records_and_objects_are_counted_apart_where_that_is_wanted(limit: int) -> None:
    bucket = await _filled()
    records = await _census(bucket, limit=limit, filter={"records": True})
    objects = await _census(bucket, limit=limit, filter={"records": False})
    assert records + objects == _ALL
    assert {kind for kind, *_ in records} == {*_RECORDS, "unreadable"}
    assert not {kind for kind, *_ in objects} & {*_RECORDS}
    of_project = await _census(bucket, "acme", limit=limit, filter={"records": True})
    assert of_project == {
        ("keyring", None, "m1", None): 1,
        ("sweep_record", None, "m1", None): 1,
        ("sweep_record", None, "m2", None): 1,
    }


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
async def test_older_versions_are_counted_apart_however_the_pages_cut_a_key(limit: int) -> None:
    bucket = await _filled(MemoryStorage(versioned=True))
    for _ in range(5):
        bucket.put(_FIRST, "a")
    await bucket.storage.delete("other/a")
    bucket.replace(rotated(rotated(_FIRST)))
    found = await _census(bucket, limit=limit)
    changed: Counter[_Group] = Counter(
        {("noncurrent", None, "m1", None): 5, ("noncurrent", None, "m2", None): 1}
    )
    changed.subtract({("encrypted", None, "m2", None): 1})
    expected = _ALL.copy()
    expected.update(changed)
    assert found == +expected


async def test_a_version_that_is_gone_meanwhile_makes_its_key_begin_again() -> None:
    """Twice is better than never: a master key may be dropped on the word of this."""
    bucket = Bucket(MemoryStorage(versioned=True))
    for _ in range(4):
        bucket.put(_FIRST, "a")
    page = await bucket.report("objects", limit=2)
    versions = [each async for each in bucket.storage.list_versions("acme/a")]
    await bucket.storage.delete_version("acme/a", versions[1].version_id)
    page = await bucket.report("objects", limit=9, after=page.next)
    assert {row.kind: row.count for row in page.objects or ()} == {"encrypted": 1, "noncurrent": 2}


async def test_what_would_make_the_census_incomplete_is_a_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = await _filled()
    bucket.storage.fail_next("head", StorageUnavailableError("no answer"))
    assert (await bucket.report("objects")).code == "storage_unavailable"
    for after in ("x", ":", "abc:acme/a"):
        assert (await bucket.report("objects", after=after)).code == "malformed_request"

    async def away(*_: object) -> None:
        raise KmsUnavailableError("no answer")

    monkeypatch.setattr(type(KEYS), "record_kek", away)
    assert (await bucket.report("objects")).code == "kms_unavailable"


@pytest.mark.parametrize("versioned", [False, True])
async def test_a_position_outside_of_the_project_tells_nothing(versioned: bool) -> None:
    bucket = await _filled(MemoryStorage(versioned=versioned))
    for s3_key in ("other/a", ".keyturn/keyrings/other.json", "acme"):
        report = await bucket.report("objects", "acme", after=f"{'0' * 16}:{s3_key}")
        assert (report.code, report.objects) == ("malformed_request", None)
