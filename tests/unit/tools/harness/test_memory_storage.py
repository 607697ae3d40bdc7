"""The in-memory storage: its content follows the rules of S3, and a test controls its failures."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.core.errors import ArchivedError, MissingError, PreconditionError, RefusedError
from keyturn_workers.core.storage_values import Capabilities, Headers, IfAbsent, IfMatch, Lease
from tools.harness.memory_bucket import (
    DEFAULT_CONTENT_TYPE,
    NULL_VERSION,
    Bucket,
    Stored,
    etag_of,
    new_version,
)
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.storage_port import Storage
    from keyturn_workers.core.storage_values import ObjectHead
    from keyturn_workers.storage.probe.protocol import ProbeStorage

NOW: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
HELD: Final = Headers({}, None, {"x-amz-object-lock-legal-hold": "ON"})
BOTH: Final = pytest.mark.parametrize("versioned", [False, True])


def _version(body: bytes = b"1", headers: Headers | None = None, at: datetime = NOW) -> Stored:
    return new_version(body, headers or Headers({}), etag_of(body), at)


def _bucket(*keys: str, versioned: bool = False) -> Bucket:
    bucket = Bucket(versioned=versioned)
    for key in keys:
        bucket.store(key, _version(key.encode()))
    return bucket


def _rows(bucket: Bucket) -> list[tuple[str, bool, bool]]:
    return [(row.key, row.is_latest, row.is_delete_marker) for row in bucket.versions()]


# Writes and deletes.


@BOTH
def test_the_latest_write_is_what_a_key_shows(*, versioned: bool) -> None:
    bucket = _bucket(versioned=versioned)
    for body in (b"1", b"2"):
        bucket.store("k", _version(body))
    assert bucket.get("k").body == b"2"
    assert len(_rows(bucket)) == (2 if versioned else 1)


def test_without_versioning_a_version_has_no_id() -> None:
    bucket = _bucket("k")
    assert bucket.get("k").version_id == NULL_VERSION
    assert bucket.get("k").head(NOW).version_id is None


def test_each_version_has_its_id_and_can_be_read_by_it() -> None:
    bucket = _bucket(versioned=True)
    for body in (b"1", b"2"):
        bucket.store("k", _version(body))
    ids = [row.version_id for row in bucket.versions()]
    assert len(set(ids)) == 2
    assert [bucket.get("k", each).body for each in ids] == [b"2", b"1"]
    assert bucket.get("k").head(NOW).version_id == ids[0]
    with pytest.raises(MissingError):
        bucket.get("k", "v999999")


@BOTH
def test_a_deleted_key_is_missing_and_not_listed(*, versioned: bool) -> None:
    bucket = _bucket("k", "l", versioned=versioned)
    bucket.delete("k", NOW)
    bucket.delete("none", NOW)
    with pytest.raises(MissingError):
        bucket.get("k")
    assert bucket.keys() == ["l"]


def test_a_delete_in_a_versioned_bucket_leaves_a_marker_and_the_versions() -> None:
    bucket = _bucket("k", versioned=True)
    bucket.delete("k", NOW)
    assert _rows(bucket) == [("k", True, True), ("k", False, False)]
    marker, version = bucket.versions()
    with pytest.raises(MissingError):
        bucket.get("k", marker.version_id)
    assert bucket.get("k", version.version_id).body == b"k"


def test_a_version_is_deleted_for_good() -> None:
    bucket = _bucket("k", versioned=True)
    bucket.delete("k", NOW)
    marker, version = bucket.versions()
    bucket.delete_version("k", "v999999", NOW)
    bucket.delete_version("k", marker.version_id, NOW)
    assert bucket.keys() == ["k"]
    bucket.delete_version("k", version.version_id, NOW)
    assert _rows(bucket) == []


def test_keys_and_versions_are_in_the_order_of_bytes() -> None:
    keys = ["a", "a/b", "a-1", "é", "\U0001f600", "\uffff"]
    bucket = _bucket(*keys)
    assert bucket.keys() == ["a", "a-1", "a/b", "é", "\uffff", "\U0001f600"]
    assert [row.key for row in bucket.versions()] == bucket.keys()


def test_tags_belong_to_the_latest_version() -> None:
    bucket = _bucket("k", versioned=True)
    bucket.change_tags("k", {"a": "1"})
    bucket.store("k", _version(b"2"))
    latest, earlier = bucket.versions()
    assert bucket.get("k", latest.version_id).tags == {}
    assert bucket.get("k", earlier.version_id).head(NOW).tag_count == 1


def test_where_versioning_is_suspended_a_write_replaces_the_version_null_alone() -> None:
    bucket = _bucket("k")
    bucket.versioning = "Enabled"
    bucket.store("k", _version(b"2"))
    bucket.versioning = "Suspended"

    def ids() -> list[str]:
        return [row.version_id for row in bucket.versions()]

    version, null = ids()
    assert (null, bucket.get("k").body) == (NULL_VERSION, b"2")
    bucket.store("k", _version(b"3"))
    assert (ids(), bucket.get("k").body) == ([NULL_VERSION, version], b"3")
    assert bucket.delete("k", NOW) == NULL_VERSION
    assert (ids(), bucket.keys()) == ([NULL_VERSION, version], [])
    bucket.delete_version("k", NULL_VERSION, NOW)
    assert bucket.get("k").body == b"2"


def test_a_lock_of_a_version_does_not_keep_the_version_null() -> None:
    bucket = Bucket(versioned=True)
    bucket.store("k", _version(b"1", HELD))
    bucket.versioning = "Suspended"
    bucket.store("k", _version(b"2", HELD))
    with pytest.raises(RefusedError):
        bucket.store("k", _version(b"3"))
    bucket.plant("k", _version(b"4"))
    assert [bucket.get("k", row.version_id).body for row in bucket.versions()] == [b"4", b"1"]


# Conditions.


@BOTH
def test_a_write_if_absent_needs_a_key_that_shows_nothing(*, versioned: bool) -> None:
    bucket = _bucket("k", versioned=versioned)
    bucket.check("other", IfAbsent())
    with pytest.raises(PreconditionError):
        bucket.check("k", IfAbsent())
    bucket.delete("k", NOW)
    bucket.check("k", IfAbsent())


def test_a_write_if_match_needs_that_body() -> None:
    bucket = _bucket("k")
    bucket.check("k", IfMatch(etag_of(b"k")))
    bucket.check("k", None)
    with pytest.raises(PreconditionError):
        bucket.check("k", IfMatch(etag_of(b"other")))
    with pytest.raises(MissingError):
        bucket.check("none", IfMatch(etag_of(b"k")))


# Locks and archives.


def test_a_lock_forbids_to_replace_or_delete_without_versioning() -> None:
    bucket = Bucket(versioned=False)
    bucket.store("k", _version(b"1", HELD))
    with pytest.raises(RefusedError):
        bucket.store("k", _version(b"2"))
    with pytest.raises(RefusedError):
        bucket.delete("k", NOW)
    assert bucket.get("k").body == b"1"
    assert bucket.get("k").head(NOW).locked


def test_with_versioning_a_lock_keeps_its_version() -> None:
    bucket = Bucket(versioned=True)
    bucket.store("k", _version(b"1", HELD))
    bucket.store("k", _version(b"2"))
    bucket.delete("k", NOW)
    *_, locked = bucket.versions()
    with pytest.raises(RefusedError):
        bucket.delete_version("k", locked.version_id, NOW)
    assert bucket.get("k", locked.version_id).body == b"1"


def test_a_retention_ends() -> None:
    until = (NOW + timedelta(days=1)).isoformat()
    retention = {
        "x-amz-object-lock-mode": "GOVERNANCE",
        "x-amz-object-lock-retain-until-date": until,
    }
    bucket = Bucket(versioned=False)
    bucket.store("k", _version(b"1", Headers({}, None, retention)))
    with pytest.raises(RefusedError):
        bucket.delete("k", NOW)
    bucket.delete("k", NOW + timedelta(days=2))
    assert bucket.keys() == []


@BOTH
def test_what_a_test_plants_or_purges_ignores_locks(*, versioned: bool) -> None:
    bucket = Bucket(versioned=versioned)
    bucket.plant("a/k", _version(b"1", HELD))
    bucket.plant("a/k", _version(b"2", HELD))
    assert bucket.get("a/k").body == b"2"
    bucket.store("b/k", _version())
    bucket.purge("a/")
    assert [row.key for row in bucket.versions()] == ["b/k"]


@pytest.mark.parametrize(
    ("storage_class", "archived"), [("GLACIER", True), ("DEEP_ARCHIVE", True), ("STANDARD", False)]
)
def test_an_archived_body_cannot_be_read(storage_class: str, *, archived: bool) -> None:
    stored = _version(b"1", Headers({}, None, {"x-amz-storage-class": storage_class}))
    assert stored.head(NOW).archived is archived
    if archived:
        with pytest.raises(ArchivedError):
            stored.readable_body()
    else:
        assert stored.readable_body() == b"1"


# What a write stores.


def test_names_of_metadata_are_stored_in_lower_case() -> None:
    stored = _version(headers=Headers({"Author": "kim"}))
    assert stored.headers == Headers({"author": "kim"}, DEFAULT_CONTENT_TYPE, {})


def test_a_head_shows_what_was_stored_and_the_moment_of_the_read() -> None:
    stored = _version(b"hello", Headers({"a": "1"}, "text/plain"))
    head = stored.head(NOW + timedelta(seconds=5))
    assert (head.size_bytes, head.etag, head.last_modified) == (5, etag_of(b"hello"), NOW)
    assert head.date == NOW + timedelta(seconds=5)
    assert head.headers == Headers({"a": "1"}, "text/plain")


def test_the_etag_of_a_single_put_is_the_md5_of_its_body() -> None:
    assert etag_of(b"") == "d41d8cd98f00b204e9800998ecf8427e"


# The controls of the storage (the shared suite tests its promises).


PLAIN = Headers({})
LOST = StorageUnavailableError("put: ServerDisconnectedError")


def lease_of(head: ObjectHead) -> Lease:
    return Lease(head.date, 15)


def test_it_implements_the_port_and_the_probes_protocol() -> None:
    """Checked by mypy; kept as a value so that the check stays."""
    storage: Storage = MemoryStorage()
    probed: ProbeStorage = MemoryStorage()
    assert storage.capabilities == probed.capabilities == Capabilities()


async def test_a_failure_before_the_effect_stores_nothing() -> None:
    """The write did not happen, and the next one does."""
    storage = MemoryStorage()
    storage.fail_next("put", LOST)
    with pytest.raises(StorageUnavailableError):
        await storage.put("a/k", b"1", PLAIN)
    assert storage.stored_keys() == []
    await storage.put("a/k", b"1", PLAIN)
    assert storage.calls["put"] == 2


async def test_a_failure_after_the_effect_has_stored() -> None:
    """The response was lost: a second write meets the first."""
    storage = MemoryStorage()
    storage.fail_next("put", LOST, after_effect=True, times=1)
    with pytest.raises(StorageUnavailableError):
        await storage.put("a/k", b"1", PLAIN, condition=IfAbsent())
    with pytest.raises(PreconditionError):
        await storage.put("a/k", b"1", PLAIN, condition=IfAbsent())
    assert (await storage.read("a/k"))[1] == b"1"


async def test_a_hook_runs_before_the_effect() -> None:
    """A race at a chosen point."""
    storage = MemoryStorage()
    etag = (await storage.put("a/k", b"1", PLAIN)).etag

    async def someone_else() -> None:
        storage.plant("a/k", b"2", PLAIN)

    storage.before_next("put", someone_else)
    with pytest.raises(PreconditionError):
        await storage.put("a/k", b"3", PLAIN, condition=IfMatch(etag))
    assert (await storage.read("a/k"))[1] == b"2"


async def test_leases_end_by_the_storages_clock() -> None:
    """Not by the test's."""
    storage = MemoryStorage()
    await storage.put("a/k", b"1", PLAIN)
    before = await storage.head("a/k")
    lease = Lease(before.date, 15)
    storage.advance(10)
    await storage.put("a/k", b"2", PLAIN, lease=lease)
    storage.advance(10)
    with pytest.raises(RefusedError):
        await storage.put("a/k", b"3", PLAIN, lease=lease)
    after = await storage.head("a/k")
    assert after.date - before.date >= timedelta(seconds=20)
    assert isinstance(after.last_modified, datetime)
    assert after.last_modified < after.date


async def test_planted_objects_keep_headers_and_tags() -> None:
    """As another writer would have stored them."""
    storage = MemoryStorage(capabilities=Capabilities(copy_keeps_tags=True))
    headers = Headers({"a": "1"}, "text/plain", {"x-amz-storage-class": "GLACIER"})
    storage.plant("a/tagged", b"1", headers, tags={"t": "1"})
    head = await storage.head("a/tagged")
    assert (head.archived, head.locked, head.tag_count, head.headers) == (False, False, 1, headers)
    await storage.copy_onto_itself("a/tagged", PLAIN, source_etag=head.etag, lease=lease_of(head))
    assert await storage.read_tags("a/tagged") == {"t": "1"}
    with pytest.raises(MissingError):
        await storage.read_tags("a/none")


async def test_an_archived_object_has_a_head_and_no_body() -> None:
    """And cannot be copied."""
    storage = MemoryStorage()
    storage.plant("a/k", b"1", PLAIN, archived=True)
    head = await storage.head("a/k")
    assert head.archived
    with pytest.raises(ArchivedError):
        await storage.read_start("a/k", 56)
    with pytest.raises(ArchivedError):
        await storage.copy_onto_itself("a/k", PLAIN, source_etag=head.etag, lease=lease_of(head))
    upload_id = await storage.create_multipart("a/k", PLAIN)
    with pytest.raises(ArchivedError):
        await storage.copy_part("a/k", upload_id, 1, first=0, last=0, source_etag=head.etag)


async def test_a_lock_forbids_overwrites_and_deletes() -> None:
    """Without versioning; an expired lock forbids nothing."""
    storage = MemoryStorage()
    storage.plant("a/k", b"1", PLAIN, locked=True)
    head = await storage.head("a/k")
    assert head.locked
    with pytest.raises(RefusedError):
        await storage.copy_onto_itself("a/k", PLAIN, source_etag=head.etag, lease=lease_of(head))
    with pytest.raises(RefusedError):
        await storage.put("a/k", b"2", PLAIN)
    with pytest.raises(RefusedError):
        await storage.delete("a/k")
    until = (head.date + timedelta(seconds=60)).isoformat()
    lock = {
        "x-amz-object-lock-mode": "COMPLIANCE",
        "x-amz-object-lock-retain-until-date": until,
    }
    storage.plant("a/k", b"1", Headers({}, None, lock))
    assert (await storage.head("a/k")).headers.restated == lock
    with pytest.raises(RefusedError):
        await storage.delete("a/k")
    storage.advance(61)
    assert (await storage.head("a/k")).headers.restated == {}
    await storage.delete("a/k")
    assert storage.stored_keys() == []


async def listed_versions(
    storage: MemoryStorage, after: str = ""
) -> list[tuple[str, bool, bool, int]]:
    return [
        (row.key, row.is_latest, row.is_delete_marker, row.size_bytes)
        async for row in storage.list_versions("a/", after=after)
    ]


async def test_each_write_adds_a_version() -> None:
    """A delete adds a marker, and each version can be removed."""
    storage = MemoryStorage(versioned=True)
    etag = (await storage.put("a/k", b"1", Headers({"n": "1"}), condition=IfAbsent())).etag
    head = await storage.head("a/k")
    await storage.copy_onto_itself(
        "a/k", Headers({"n": "2"}), source_etag=etag, lease=lease_of(head)
    )
    await storage.put("a/k", b"333", PLAIN, condition=IfMatch(etag))
    with pytest.raises(PreconditionError):
        await storage.put("a/k", b"4", PLAIN, condition=IfAbsent())
    await storage.delete("a/k")
    assert storage.stored_keys() == []
    assert [row async for row in storage.list("a/")] == []
    assert await listed_versions(storage) == [
        ("a/k", True, True, 0),
        ("a/k", False, False, 3),
        ("a/k", False, False, 1),
        ("a/k", False, False, 1),
    ]
    marker, _, copied, first = [row async for row in storage.list_versions("a/")]
    assert (await storage.read_start("a/k", 9, version_id=copied.version_id))[0].metadata == {
        "n": "2"
    }
    assert first.version_id == head.version_id
    with pytest.raises(MissingError):
        await storage.read_start("a/k", 9, version_id=marker.version_id)
    with pytest.raises(MissingError):
        await storage.read_start("a/k", 9)
    await storage.delete_version("a/k", marker.version_id)
    await storage.delete_version("a/k", marker.version_id)
    assert (await storage.read("a/k"))[1] == b"333"
    await storage.put("a/later", b"1", PLAIN)
    assert await listed_versions(storage, after="a/k") == [("a/later", True, False, 1)]


async def test_a_locked_version_cannot_be_removed() -> None:
    """A new version may be added, with the lock that it restates."""
    storage = MemoryStorage(versioned=True)
    storage.plant("a/k", b"1", PLAIN, locked=True)
    head = await storage.head("a/k")
    lease = lease_of(head)
    await storage.copy_onto_itself("a/k", head.headers, source_etag=head.etag, lease=lease)
    await storage.copy_onto_itself("a/k", PLAIN, source_etag=head.etag, lease=lease)
    free, restated, first = [row async for row in storage.list_versions("a/")]
    for locked in (restated, first):
        with pytest.raises(RefusedError):
            await storage.delete_version("a/k", locked.version_id)
    await storage.delete_version("a/k", free.version_id)
    assert (await storage.head("a/k")).locked
    await storage.delete("a/k")


async def test_each_version_has_its_own_tags() -> None:
    storage = MemoryStorage(versioned=True)
    await storage.put("a/k", b"1", PLAIN)
    await storage.write_tags("a/k", {"t": "1"})
    await storage.put("a/k", b"2", PLAIN)
    assert await storage.read_tags("a/k") == {}
    latest, tagged = [row async for row in storage.list_versions("a/")]
    assert (await storage.read_start("a/k", 1, version_id=tagged.version_id))[0].tag_count == 1
    await storage.delete_version("a/k", latest.version_id)
    assert await storage.read_tags("a/k") == {"t": "1"}


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("atomic", [False, True])
async def test_a_delete_during_a_copy_may_be_undone(*, atomic: bool, versioned: bool) -> None:
    """If copies are not atomic, as on Ceph, the deleted body comes back."""
    storage = MemoryStorage(versioned=versioned, atomic_copies=atomic)
    etag = (await storage.put("a/k", b"1", Headers({"n": "1"}))).etag
    lease = lease_of(await storage.head("a/k"))
    storage.before_next("mid_copy", lambda: storage.delete("a/k"))
    await storage.copy_onto_itself("a/k", Headers({"n": "2"}), source_etag=etag, lease=lease)
    assert storage.calls["delete"] == (0 if atomic else 1)
    head, body = await storage.read("a/k")
    assert (head.metadata, body) == ({"n": "2"}, b"1")


async def test_a_put_during_a_copy_may_be_lost() -> None:
    """Between concurrent tasks, if copies are not atomic."""
    storage = MemoryStorage(atomic_copies=False)
    etag = (await storage.put("a/k", b"1", PLAIN)).etag
    lease = lease_of(await storage.head("a/k"))
    await asyncio.gather(
        storage.copy_onto_itself("a/k", PLAIN, source_etag=etag, lease=lease),
        storage.put("a/k", b"2", PLAIN, condition=IfMatch(etag)),
    )
    assert (await storage.read("a/k"))[1] == b"1"


async def test_a_presigned_url_contains_its_key_and_its_end() -> None:
    """It leads nowhere."""
    storage = MemoryStorage()
    lease = Lease(datetime.fromisoformat("2026-11-24T10:00:00+00:00"), 60)
    assert await storage.presign_get("a/k", lease) == "memory:///a/k?until=2026-11-24T10:01:00Z"
