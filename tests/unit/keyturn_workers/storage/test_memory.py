"""The bucket in memory: what tests do to it (its promises are in the shared suite)."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import ArchivedError, MissingError, PreconditionError, RefusedError
from keyturn_workers.storage import Capabilities, Headers, IfAbsent, IfMatch, Lease, Storage
from keyturn_workers.testing.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.storage import ObjectHead
    from keyturn_workers.storage.probe.protocol import ProbeStorage

PLAIN = Headers({})
LOST = StorageUnavailableError("put: ServerDisconnectedError")


def lease_of(head: ObjectHead) -> Lease:
    return Lease(head.date, 15)


def test_it_is_a_storage() -> None:
    """Checked by mypy; kept as a value so that the check stays."""
    storage: Storage = MemoryStorage()
    probed: ProbeStorage = MemoryStorage()
    assert storage.capabilities == probed.capabilities == Capabilities()


async def test_fails_before_the_effect() -> None:
    """The write did not happen, and the next one does."""
    storage = MemoryStorage()
    storage.fail_next("put", LOST)
    with pytest.raises(StorageUnavailableError):
        await storage.put("a/k", b"1", PLAIN)
    assert storage.stored_keys() == []
    await storage.put("a/k", b"1", PLAIN)
    assert storage.calls["put"] == 2


async def test_fails_after_the_effect() -> None:
    """The write happened, and its answer was lost: a second one meets the first."""
    storage = MemoryStorage()
    storage.fail_next("put", LOST, after_effect=True, times=1)
    with pytest.raises(StorageUnavailableError):
        await storage.put("a/k", b"1", PLAIN, condition=IfAbsent())
    with pytest.raises(PreconditionError):
        await storage.put("a/k", b"1", PLAIN, condition=IfAbsent())
    assert (await storage.read("a/k"))[1] == b"1"


async def test_something_else_happens_first() -> None:
    """A race, at the point where a test wants it."""
    storage = MemoryStorage()
    etag = (await storage.put("a/k", b"1", PLAIN)).etag

    async def someone_else() -> None:
        storage.plant("a/k", b"2", PLAIN)

    storage.before_next("put", someone_else)
    with pytest.raises(PreconditionError):
        await storage.put("a/k", b"3", PLAIN, condition=IfMatch(etag))
    assert (await storage.read("a/k"))[1] == b"2"


async def test_its_clock() -> None:
    """A lease ends when the storage's clock has passed it, not the test's."""
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


async def test_planted() -> None:
    """Objects as others left them: tagged, archived, locked."""
    storage = MemoryStorage(capabilities=Capabilities(copy_keeps_tags=True))
    said = Headers({"a": "1"}, "text/plain", {"x-amz-storage-class": "GLACIER"})
    storage.plant("a/tagged", b"1", said, tags={"t": "1"})
    head = await storage.head("a/tagged")
    assert (head.archived, head.locked, head.tag_count, head.headers) == (False, False, 1, said)
    await storage.copy_onto_itself("a/tagged", PLAIN, source_etag=head.etag, lease=lease_of(head))
    assert await storage.read_tags("a/tagged") == {"t": "1"}
    with pytest.raises(MissingError):
        await storage.read_tags("a/none")


async def test_archived() -> None:
    """Its head is told, its bytes are not, and nothing copies it."""
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


async def test_locked_without_versions() -> None:
    """Nothing goes over it or takes it away; a lock that is over forbids nothing."""
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


async def shown(storage: MemoryStorage, after: str = "") -> list[tuple[str, bool, bool, int]]:
    return [
        (row.key, row.is_latest, row.is_delete_marker, row.size_bytes)
        async for row in storage.list_versions("a/", after=after)
    ]


async def test_versions() -> None:
    """Every way of writing adds one, a delete leaves a marker, and each can be removed."""
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
    assert await shown(storage) == [
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
    assert await shown(storage, after="a/k") == [("a/later", True, False, 1)]


async def test_locked_with_versions() -> None:
    """A new version may come on top, with the lock that it restates; the old one stays."""
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


async def test_tags_of_versions() -> None:
    """Each version has its own."""
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
async def test_a_delete_in_the_middle_of_a_copy(*, atomic: bool, versioned: bool) -> None:
    """FACTS: on a server whose copies are not atomic the deleted body comes back."""
    storage = MemoryStorage(versioned=versioned, atomic_copies=atomic)
    etag = (await storage.put("a/k", b"1", Headers({"n": "1"}))).etag
    lease = lease_of(await storage.head("a/k"))
    storage.before_next("mid_copy", lambda: storage.delete("a/k"))
    await storage.copy_onto_itself("a/k", Headers({"n": "2"}), source_etag=etag, lease=lease)
    assert storage.calls["delete"] == (0 if atomic else 1)
    head, body = await storage.read("a/k")
    assert (head.metadata, body) == ({"n": "2"}, b"1")


async def test_a_put_in_the_middle_of_a_copy() -> None:
    """The new body is lost, without any condition and among tasks of their own."""
    storage = MemoryStorage(atomic_copies=False)
    etag = (await storage.put("a/k", b"1", PLAIN)).etag
    lease = lease_of(await storage.head("a/k"))
    await asyncio.gather(
        storage.copy_onto_itself("a/k", PLAIN, source_etag=etag, lease=lease),
        storage.put("a/k", b"2", PLAIN, condition=IfMatch(etag)),
    )
    assert (await storage.read("a/k"))[1] == b"1"


async def test_a_presigned_url_names_its_object_and_its_end() -> None:
    """It leads nowhere, but tells what it was made of."""
    storage = MemoryStorage()
    lease = Lease(datetime.fromisoformat("2026-11-24T10:00:00+00:00"), 60)
    assert await storage.presign_get("a/k", lease) == "memory:///a/k?until=2026-11-24T10:01:00Z"
