"""The bucket in memory: what tests do to it (its promises are in the shared suite)."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from contracts.errors import StorageUnavailableError
from workers.errors import MissingError, PreconditionError, RefusedError
from workers.storage import Differences, Headers, IfAbsent, IfMatch, Lease, Storage
from workers.storage.memory import MemoryStorage

if TYPE_CHECKING:
    from workers.storage.probed import Probed

PLAIN = Headers({})
LOST = StorageUnavailableError("put: ServerDisconnectedError")


def test_it_is_a_storage() -> None:
    """Checked by mypy; kept as a value so that the check stays."""
    storage: Storage = MemoryStorage()
    probed: Probed = MemoryStorage()
    assert storage.differences == probed.differences == Differences()


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
    etag = await storage.put("a/k", b"1", PLAIN)

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
    storage = MemoryStorage(differences=Differences(copy_keeps_tags=True))
    said = Headers({"a": "1"}, "text/plain", {"x-amz-storage-class": "GLACIER"})
    storage.plant("a/k", b"1", said, tags={"t": "1"}, archived=True, locked=True)
    head = await storage.head("a/k")
    assert (head.archived, head.locked, head.tag_count) == (True, True, 1)
    assert head.headers == said
    await storage.copy_onto_itself("a/k", PLAIN, source_etag=head.etag, lease=Lease(head.date, 15))
    assert await storage.read_tags("a/k") == {"t": "1"}
    with pytest.raises(MissingError):
        await storage.read_tags("a/none")
