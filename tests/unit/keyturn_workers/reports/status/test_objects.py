"""Objects are grouped by what opens them, and each S3 key is counted once (SPEC 8.1, 16.1)."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import new_customer_secret
from keyturn.errors import KmsUnavailableError, StorageUnavailableError
from keyturn_workers.core.errors import ArchivedError
from keyturn_workers.core.sweep_record import Failure
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.reports.status.key_usage import (
    ObjectGroup,
    ObjectInspector,
    find_keyring,
    list_objects,
)
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    keyring,
    rotated,
    turned_to,
)
from tests.unit.keyturn_workers.reports.status.bucket import KEYS, Bucket, done, record, round_id
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn.crypto import Secret
    from keyturn_workers.core.keyring import Keyring
    from tests.unit.keyturn_workers.reports.status.bucket import Objects

_FIRST = keyring()
_OTHER = keyring("other", master_key="m2")
_Group = tuple[str, int | None, str | None, str | None]
_RING = rotated(_FIRST)


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
    await bucket.enroll(_RING, _OTHER)
    await bucket.add(record(done(1)))
    failures = (Failure("k", "no_usable_wrap"),)
    await bucket.store.add_failures("acme", round_id(1), 0, failures, "m2")
    bucket.put(_FIRST, "a", "b")
    bucket.put(_RING, "c", generation=7, master_key="m2")
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


class _Asked:
    """The keyring of a project, and how often it was asked for."""

    def __init__(self, ring: Keyring | None = None) -> None:
        self.ring = ring
        self.times = 0

    async def __call__(self, project: str) -> Keyring | None:
        del project
        self.times += 1
        return self.ring


def _inspector(bucket: Objects, keys: OperatorKeys, asked: _Asked) -> ObjectInspector:
    return ObjectInspector(bucket.storage, keys, bucket.customer_keys, asked)


async def test_a_true_label_needs_no_keyring_and_a_wrong_one_does() -> None:
    bucket, asked = Bucket(), _Asked(_RING)
    bucket.put(_RING, "a")
    bucket.put(_RING, "wrong", generation=7, master_key="m2")
    inspector = _inspector(bucket, KEYS, asked)
    group = ObjectGroup("acme", "encrypted", 2, "m1")
    assert await inspector.inspect("acme/a", None) == group
    assert asked.times == 0
    assert await inspector.inspect("acme/wrong", None) == group
    assert asked.times == 1


async def test_what_opens_at_no_known_generation_is_unreadable() -> None:
    bucket = Bucket()
    bucket.put(_RING, "wrong", generation=7)
    for ring in (None, keyring()):
        inspector = _inspector(bucket, KEYS, _Asked(ring))
        found = await inspector.inspect("acme/wrong", None)
        assert found == ObjectGroup("acme", "unreadable", code="no_usable_wrap")


async def test_foreign_names_and_what_is_gone() -> None:
    inspector = _inspector(Bucket(), KEYS, _Asked())
    assert await inspector.inspect("acme//odd", None) == ObjectGroup("acme", "foreign")
    assert await inspector.inspect("No Project/a", None) == ObjectGroup("", "foreign")
    assert await inspector.inspect("acme/gone", None) is None


async def test_an_older_version_that_is_archived_cannot_be_read() -> None:
    bucket = Bucket()
    bucket.put(_RING, "a")
    bucket.storage.fail_next("read_start", ArchivedError("InvalidObjectState"))
    inspector = _inspector(bucket, KEYS, _Asked())
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
        await _inspector(bucket, keys, _Asked(_RING)).inspect("acme/a", None)


_A, _B = new_customer_secret(), new_customer_secret()
_WITH_A = turned_to(_FIRST, _A, "a")
_WITH_B = turned_to(_WITH_A, _B, "b")
_OLD: _Group = ("encrypted", 2, "m1", None)
_NEW: _Group = ("encrypted", 3, "m1", None)


_REFUSED: _Group = ("unreadable", None, None, "customer_key_refused")
_AWAY: _Group = ("unreadable", None, None, "customer_key_unavailable")
_NOTHING: _Group = ("unreadable", None, None, "no_usable_wrap")


@pytest.mark.parametrize(
    ("refused", "away", "of_a", "of_b", "of_forged"),
    [
        ((), (), _OLD, _NEW, _NOTHING),
        (("kms/a",), (), _REFUSED, _NEW, _NOTHING),
        (("kms/b",), (), _REFUSED, _REFUSED, _REFUSED),
        ((), ("kms/a",), _AWAY, _NEW, _NOTHING),
    ],
)
async def test_what_a_customer_key_hides_is_counted_and_no_tombstone_or_other_project(
    refused: tuple[str, ...], away: tuple[str, ...], of_a: _Group, of_b: _Group, of_forged: _Group
) -> None:
    """It would open under some master key: none may be dropped on the word of this."""
    bucket = Bucket(customer_keys=HeldCustomerKeys(_A, _B))
    bucket.put(_FIRST, "plain")
    bucket.put(_WITH_A, "a")
    bucket.put(_WITH_B, "b")
    tombstone = deleted(desired_state(_WITH_B, MASTER_KEYS), "gone")
    bucket.plant("acme/gone", tombstone, b"")
    bucket.plant("acme/forged", tombstone, b"")
    bucket.put(_OTHER, "a")
    await bucket.enroll(_WITH_B, _OTHER)
    bucket.customer_keys.refused |= set(refused)
    bucket.customer_keys.away |= set(away)
    expected: Counter[_Group] = Counter(
        {("encrypted", 1, "m1", None): 1, ("tombstone", None, "m1", None): 1}
    )
    expected.update([of_a, of_b, of_forged])
    assert await _census(bucket, "acme", filter={"records": False}) == expected
    of_other = await _census(bucket, "other", filter={"records": False})
    assert of_other == {("encrypted", 1, "m2", None): 1}


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


async def test_the_keyring_is_known_if_it_opens() -> None:
    bucket = Bucket()
    await bucket.enroll(_RING)
    bucket.plant(".keyturn/keyrings/forged.json", {})
    found = await find_keyring(bucket.storage, KEYS, "acme")
    assert found is not None
    assert found.current.generation == 2
    assert await find_keyring(bucket.storage, KEYS, "forged") is None
    assert await find_keyring(bucket.storage, KEYS, "unknown") is None
    bucket.storage.fail_next("read", StorageUnavailableError("no answer"))
    with pytest.raises(StorageUnavailableError):
        await find_keyring(bucket.storage, KEYS, "acme")
