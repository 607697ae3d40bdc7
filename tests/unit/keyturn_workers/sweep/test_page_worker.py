"""One attempt at a page: objects that are listed and not found, foreign names (SPEC 8.6).

A listed object whose read answers 404 has failed until a later listing no longer shows it,
and so has a foreign name with metadata of ours: `clean` must never be reported with an object
that an old key opens.
"""

from __future__ import annotations

from typing import Final

import pytest

from keyturn.crypto import HEADER_BYTES
from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import ArchivedError, MissingError, RefusedError
from keyturn_workers.objects.plan_action import ObjectView, Options, Rewrap, plan_action
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.plan import Failure
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import ADMIN_KEKS, MASTER_KEYS, deleted, enc, rotated
from tests.unit.keyturn_workers.sweep.page import Page
from tools.harness.local_keys import desired_state

GONE: Final = MissingError("read: NoSuchKey")
FOREIGN: Final = ("reports//q3.txt", "folder/", "../up", "/", "k/\x07", "x" * 901)


async def test_a_listed_object_that_is_not_found_has_failed() -> None:
    """One answer 404: what it hides may still open under an old key."""
    page = Page()
    page.plant("a", "b")
    page.storage.fail_next("read_start", GONE)
    result = await page.process()
    assert result.failures == (Failure("a", "not_found"),)
    assert (result.counts.objects, result.counts.current, result.counts.failed) == (2, 1, 1)
    assert not result.counts.all_as_desired
    again = await page.process()
    assert (again.failures, again.counts.current) == ((), 2)


async def test_an_object_that_a_later_listing_no_longer_shows_is_gone() -> None:
    """Removed past Keyturn between the listing and the read: the next attempt proves the page."""
    page = Page()
    page.plant("a", "b")

    async def removed() -> None:
        await page.storage.delete("acme/a")

    page.storage.before_next("read_start", removed)
    assert (await page.process()).failures == (Failure("a", "not_found"),)
    again = await page.process()
    assert (again.failures, again.counts.objects, again.counts.failed) == ((), 1, 0)


async def test_an_object_that_is_not_found_after_a_lost_race_has_failed() -> None:
    """The copy and the read after it answer 404 while the listing shows the object."""
    page = Page()
    page.plant("a")
    page.write_keyring(rotated(page.ring))
    page.storage.fail_next("copy_onto_itself", GONE)

    async def not_found() -> None:
        page.storage.fail_next("read_start", GONE)

    page.storage.before_next("copy_onto_itself", not_found)
    result = await page.process()
    assert result.failures == (Failure("a", "not_found"),)
    assert (await page.process()).counts.rewrapped == 1


async def test_a_dry_run_counts_what_is_not_found_as_failed() -> None:
    page = Page(dry_run=True)
    page.plant("a")
    page.storage.fail_next("read_start", GONE)
    assert (await page.process()).counts.failed == 1


@pytest.mark.parametrize("key", FOREIGN)
async def test_a_foreign_name_with_metadata_of_ours_has_failed(key: str) -> None:
    """No rewrap can be bound to its name: an old key still opens it."""
    page = Page()
    page.plant("a", key)
    result = await page.process()
    assert result.failures == (Failure(key, "foreign_object"),)
    assert (result.counts.objects, result.counts.failed, result.counts.foreign) == (2, 1, 0)
    assert not result.counts.all_as_desired


@pytest.mark.parametrize("key", FOREIGN)
async def test_a_foreign_name_of_another_program_is_counted(key: str) -> None:
    page = Page()
    page.plant("a")
    page.plant_plain(key)
    result = await page.process()
    assert (result.failures, result.counts.foreign, result.counts.objects) == ((), 1, 1)
    assert result.counts.all_as_desired


async def test_an_older_version_of_a_foreign_name_has_failed_too() -> None:
    page = Page(MemoryStorage(versioned=True))
    page.plant("a//b", "c//d", "e//f")
    page.plant_plain("a//b")
    await page.storage.delete("acme/c//d")
    page.plant_plain("g//h")
    page.plant_plain("g//h")
    result = await page.process()
    codes = {failure.key: failure.code for failure in result.failures}
    assert codes == dict.fromkeys(("a//b", "c//d", "e//f"), "foreign_object")
    assert (result.counts.failed, result.counts.foreign, result.counts.objects) == (3, 2, 1)
    assert result.changed == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GONE, "not_found"),
        (ArchivedError("InvalidObjectState"), "archived_object"),
        (RefusedError("AccessDenied"), "storage_unavailable"),
        (StorageUnavailableError("503"), "storage_unavailable"),
    ],
)
@pytest.mark.parametrize("versioned", [False, True], ids=["the object", "an older version"])
async def test_a_foreign_name_that_cannot_be_inspected_has_failed(
    error: Exception, code: str, *, versioned: bool
) -> None:
    page = Page(MemoryStorage(versioned=versioned))
    page.plant_plain("a//b")
    if versioned:
        page.plant_plain("a//b")
    page.storage.fail_next("read_start" if versioned else "head", error)
    result = await page.process()
    assert result.failures == (Failure("a//b", code),)
    assert result.counts.failed == 1


# Wraps that disagree, and names that Keyturn does not know (SPEC 4.3, 8.2).


async def test_an_object_whose_user_wrap_is_damaged_has_failed_until_it_is_repaired() -> None:
    page = Page()
    page.plant("a", "b")
    await page.relabel("a", {"enc-dek-user": "AAAA"})
    result = await page.process()
    assert result.failures == (Failure("a", "wraps_disagree"),)
    assert (result.counts.failed, result.counts.current, result.changed) == (1, 1, 0)
    page.repair = True
    result = await page.process()
    assert (result.failures, result.counts.rewrapped) == ((), 1)
    assert (await page.process()).counts.current == 2


async def test_an_object_with_an_unknown_name_is_written_without_it() -> None:
    page = Page()
    page.plant("a")
    await page.relabel("a", {"enc-dek-user-1": "AAAA"})
    assert (await page.process()).counts.rewrapped == 1
    assert "enc-dek-user-1" not in (await page.storage.head("acme/a")).metadata
    again = await page.process()
    assert (again.counts.current, again.changed) == (1, 0)


async def test_an_unknown_name_that_cannot_be_removed_is_a_failure() -> None:
    page = Page()
    page.plant("a")
    await page.relabel("a", {"enc-dek-user-1": "AAAA"}, locked=True)
    page.storage.fail_next("copy_onto_itself", RefusedError("locked"), times=20)
    result = await page.process()
    assert result.failures == (Failure("a", "locked_object"),)
    assert not result.counts.all_as_desired


async def test_an_older_version_with_an_unknown_name_is_stale() -> None:
    """It could hold a wrap that an earlier key opens, and is removed like any other."""
    page = Page(MemoryStorage(versioned=True))
    page.plant("a")
    await page.relabel("a", {"enc-dek-user-1": "AAAA"})
    page.dry_run = True
    assert (await page.process()).counts.noncurrent_stale == 0  # the older one is as desired
    page.dry_run = False
    await page.process()
    await page.process()
    versions = [row async for row in page.storage.list_versions("acme/")]
    assert [(row.key, row.is_latest) for row in versions] == [("acme/a", True)]


async def test_a_tombstone_that_hides_an_object_is_put_again_without_it() -> None:
    """A user wrap and the body that it opens, under the seal of a delete that was published."""
    page = Page()
    page.plant("a")
    hidden = (await page.storage.head("acme/a")).metadata["enc-dek-user"]
    tombstone = deleted(desired_state(page.ring, MASTER_KEYS), "a")
    page.storage.plant("acme/a", b"a body", Headers({**tombstone, "enc-dek-user": hidden}))
    result = await page.process()
    assert (result.failures, result.changed) == ((), 1)
    head, body = await page.storage.read("acme/a")
    assert (set(head.metadata), body) == ({"enc-algo", "enc-dek-admin"}, b"")
    again = await page.process()
    assert (again.counts.deleted, again.changed) == (1, 0)


async def test_tags_that_another_sweep_is_about_to_put_back_are_not_lost() -> None:
    """Its copy dropped them after this attempt had planned one of its own."""
    page = Page()
    page.plant("a")
    old = await page.storage.read("acme/a")
    page.storage.plant("acme/a", old[1], old[0].headers, tags={"team": "legal"})
    page.write_keyring(rotated(page.ring))

    async def copied() -> None:
        view = ObjectView(old[0], old[1][:HEADER_BYTES])
        snapshot = await page.keyrings.read_fresh("acme")
        desired = snapshot.desired
        action = plan_action(view, "a", snapshot.keyring, desired, ADMIN_KEKS, Options())
        assert isinstance(action, Rewrap)
        page.storage.plant("acme/a", old[1], Headers(enc(action.wraps)))

    async def put_back() -> None:
        await page.storage.write_tags("acme/a", {"team": "legal"})

    page.storage.before_next("read_tags", copied)
    page.storage.before_next("copy_onto_itself", put_back)
    result = await page.process()
    assert (result.counts.current, result.changed, result.failures) == (1, 0, ())
    assert page.storage.calls["copy_onto_itself"] == 0
