"""The controls of the in-memory storage (the shared suite tests its promises)."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import ArchivedError, MissingError, PreconditionError, RefusedError
from keyturn_workers.storage import Capabilities, Headers, IfAbsent, IfMatch, Lease, Storage
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.storage import ObjectHead
    from keyturn_workers.storage.probe.protocol import ProbeStorage

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
