"""Noncurrent versions of a page's objects (SPEC 8.5)."""

from __future__ import annotations

from keyturn_workers.errors import MissingError, RefusedError
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.plan import Failure
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import rotated
from tests.unit.keyturn_workers.sweep.page import Page


async def test_a_listed_version_that_is_not_found_has_failed() -> None:
    page = Page(MemoryStorage(versioned=True))
    page.plant("a")
    page.write_keyring(rotated(page.ring))
    page.plant("a")
    reads = 0

    async def only_the_version() -> None:
        nonlocal reads
        reads += 1
        if reads == 2:  # the first is of the object itself
            page.storage.fail_next("read_start", MissingError("read: NoSuchVersion"))

    page.storage.before_next("read_start", only_the_version)
    page.storage.before_next("read_start", only_the_version)
    result = await page.process()
    assert reads == 2
    assert result.failures == (Failure("a", "not_found"),)
    assert (result.counts.objects, result.counts.failed) == (1, 1)
    again = await page.process()
    assert (again.failures, again.changed, again.counts.noncurrent_stale) == ((), 1, 0)


async def test_a_superseded_version_is_removed() -> None:
    page = Page(MemoryStorage(versioned=True))
    page.plant("a", "a")
    result = await page.process()
    assert (result.changed, result.counts.noncurrent_stale) == (1, 0)
    assert (await page.process()).changed == 0


async def test_a_version_of_another_program_is_counted_and_kept() -> None:
    page = Page(MemoryStorage(versioned=True))
    page.storage.plant("acme/a", b"plaintext", Headers({}))
    page.plant("a")
    result = await page.process()
    assert (result.changed, result.counts.noncurrent_stale) == (0, 1)
    assert not result.counts.all_as_desired


async def test_a_locked_version_is_counted_and_has_failed() -> None:
    page = Page(MemoryStorage(versioned=True))
    page.plant("a", "a")
    page.storage.fail_next("delete_version", RefusedError("AccessDenied"))
    result = await page.process()
    assert result.failures == (Failure("a", "locked_object"),)
    assert (result.changed, result.counts.noncurrent_stale) == (0, 1)
