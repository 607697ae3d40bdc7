"""One attempt at a page: what it inspects, writes, counts and fails by (SPEC 8.2, 8.5, 8.6).

A listed object whose read answers 404 has failed until a later listing no longer shows it,
and so has a foreign name with metadata of ours: `clean` must never be reported with an object
that an old key opens.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
from structlog.testing import capture_logs

from keyturn.crypto import HEADER_BYTES, SealError, new_dek, to_base64
from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    KmsUnavailableError,
    MarksUnavailableError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn.identifiers import object_s3_key
from keyturn_workers.core.errors import ArchivedError, MissingError, RefusedError
from keyturn_workers.core.keyring import with_master_key
from keyturn_workers.core.plan_action import ObjectView, Rewrap, plan_action
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import Failure, OpenPage, State
from keyturn_workers.core.wraps import wrap
from keyturn_workers.pipeline.sweep.page import CannotProveYetError, restore_noted_tags
from keyturn_workers.pipeline.sweep.page_object_keys import Row, list_batches
from tests.unit.keyturn_workers.factories import (
    ADMIN_KEKS,
    MASTER_KEYS,
    enc,
    keyring,
    rotated,
    sealed_object,
)
from tests.unit.keyturn_workers.hiding import PLACES, SPELLINGS, hide
from tests.unit.keyturn_workers.pipeline.sweep.records import OTHER_ID, ROUND_ID
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import Page
from tools.harness.local_keys import desired_state, operator_keys
from tools.harness.memory_storage import MemoryStorage

GONE: Final = MissingError("read: NoSuchKey")
FOREIGN: Final = ("reports//q3.txt", "folder/", "../up", "/", "k/\x07", "x" * 901)
PAGE: Final = OpenPage(0, "", "")
TAGS: Final = {"team": "legal"}


# Keyring reads.


def slow_reads(page: Page, patch: pytest.MonkeyPatch, times: int) -> None:
    """The next `times` keyring reads take too long for a lease."""
    storage, left = page.storage, [times]
    read = storage.read

    async def slow(key: str, **more: Any) -> Any:
        answer = await read(key, **more)
        if left[0]:
            left[0] -= 1
            storage.advance(2.6)
        return answer

    patch.setattr(storage, "read", slow)


async def test_a_keyring_read_without_a_lease_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = Page()
    page.plant("a")
    record, reads = await page.record(), page.storage.calls["read"]
    slow_reads(page, monkeypatch, 1)
    assert (await page.worker.process(record, page.round, PAGE)).counts.current == 1
    # Two to begin with, and one for the object.
    assert page.storage.calls["read"] == reads + 3


async def test_two_reads_without_a_lease_end_the_attempt_and_no_object_is_at_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = Page()
    page.plant("a")
    record = await page.record()
    slow_reads(page, monkeypatch, 20)
    with pytest.raises(StorageUnavailableError, match="lease"):
        await page.worker.process(record, page.round, PAGE)


async def test_a_recent_read_is_shared_by_objects_and_each_attempt_begins_with_its_own() -> None:
    page = Page(cache_s=60)
    page.plant("a", "b", "c")
    record, reads = await page.record(), page.storage.calls["read"]
    for _ in range(2):
        await page.worker.process(record, page.round, PAGE)
    assert page.storage.calls["read"] == reads + 2


@pytest.mark.parametrize(
    ("attempts", "is_late", "fails"), [(1, True, True), (0, True, False), (1, False, False)]
)
async def test_a_page_that_only_needs_a_proof_is_left_to_a_worker_that_can_prove(
    attempts: int, *, is_late: bool, fails: bool
) -> None:
    """This one has not known the storage's clock for two leases."""
    page = Page()
    page.plant("a")
    read_at = (await page.keyrings.read_fresh("acme")).read_at
    shift = timedelta(minutes=1 if is_late else -1)
    record = replace(await page.record(), changed_at=read_at - shift)
    tried = replace(PAGE, attempts=attempts)
    if fails:
        with pytest.raises(CannotProveYetError) as caught:
            await page.worker.process(record, page.round, tried)
        assert caught.value.wait_s > 0
        page.storage.advance(60)
        await page.keyrings.read_fresh("acme")
        page.storage.advance(60)
    result = await page.worker.process(record, page.round, tried)
    assert (result.counts.current, result.proves) == (1, fails)


# The state.


async def test_a_result_says_which_state_it_observed_and_when() -> None:
    page = Page()
    page.plant("a")
    before = await page.keyrings.read_fresh("acme")
    result = await page.process()
    assert (result.after, result.last, result.state) == ("", "", State.of(before.keyring))
    assert (result.changed, result.failures, result.counts.current) == (0, (), 1)
    assert result.observed_at >= before.read_at


async def test_a_rotation_during_the_attempt_is_noted() -> None:
    """What it saw is no proof of one state."""
    page = Page()
    page.plant("a")

    async def rotate() -> None:
        page.write_keyring(rotated(page.ring))

    page.storage.before_next("read_start", rotate)
    result = await page.process()
    assert (result.state, result.counts.rewrapped) == (None, 1)


async def test_an_object_above_a_recent_keyring_is_planned_by_a_fresh_one() -> None:
    """The recent one may be older than the object: only a later one is an accusation."""
    page = Page(cache_s=60)
    page.plant("a")

    async def rotate() -> None:
        page.write_keyring(rotated(page.ring))
        page.plant("a")

    page.storage.before_next("read_start", rotate)
    result = await page.process()
    assert (result.counts.current, result.failures, result.state) == (1, (), None)


async def test_nothing_is_written_before_the_whole_batch_was_inspected() -> None:
    """A rollback that its last object shows must not have wrapped the first one."""
    page = Page()
    page.plant("a")
    page.write_keyring(rotated(page.ring))
    now = page.ring
    page.write_keyring(rotated(now))
    page.plant("b")
    page.write_keyring(now)
    with pytest.raises(KeyringRolledBackError):
        await page.process()
    assert page.storage.calls["copy_onto_itself"] == 0


# Objects, and which failures are only theirs.


async def test_an_archived_object_is_inspected_by_its_head() -> None:
    """Plaintext that is allowed needs nothing; wraps cannot be checked against the body."""
    page = Page(ring=keyring(plaintext=True))
    page.plant("a")
    head, body = await page.storage.read("acme/a")
    page.storage.plant("acme/a", body, head.headers, archived=True)
    page.storage.plant("acme/plain", b"hello", Headers({}), archived=True)
    result = await page.process()
    assert result.counts.plaintext == 1
    assert result.failures == (Failure("a", "archived_object"),)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CorruptObjectError("x"), "corrupt_object"),
        (StorageUnavailableError("503"), "storage_unavailable"),
        (RefusedError("AccessDenied"), "storage_unavailable"),
    ],
)
async def test_a_failure_of_one_object_is_noted(error: Exception, code: str) -> None:
    page = Page()
    page.plant("a", "b")
    page.storage.fail_next("read_start", error)
    result = await page.process()
    assert result.failures == (Failure("a", code),)
    assert (result.counts.objects, result.counts.failed, result.counts.current) == (2, 1, 1)


@pytest.mark.parametrize(
    "error",
    [
        KeyringRolledBackError("x"),
        UnknownMasterKeyError("m9"),
        KmsUnavailableError("down"),
        MarksUnavailableError("not current"),
        ValueError(),
    ],
    ids=repr,
)
async def test_a_failure_of_the_whole_page_is_raised(error: Exception) -> None:
    page = Page()
    page.plant("a", "b")
    page.storage.fail_next("read_start", error, times=2)
    with pytest.raises(type(error)):
        await page.process()


async def test_objects_that_still_wait_for_a_slot_are_given_up_without_a_warning() -> None:
    page = Page()
    page.plant(*"abcdefghij")
    page.storage.fail_next("read_start", MarksUnavailableError("not current"))
    with suppress(MarksUnavailableError):
        await page.process()
    gc.collect()  # warns of coroutines that were never awaited


async def test_only_so_many_objects_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page()
    page.plant(*"abcdefghij")
    read_start, under_way, most = page.storage.read_start, [0], [0]

    async def counted(*args: Any, **more: Any) -> Any:
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        await asyncio.sleep(0)
        try:
            return await read_start(*args, **more)
        finally:
            under_way[0] -= 1

    monkeypatch.setattr(page.storage, "read_start", counted)
    assert (await page.process()).counts.current == 10
    assert most == [4]


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


# Wraps that are hidden in what a rewrap keeps.


async def _hide(page: Page, place: str, value: str, key: str = "a") -> None:
    """A bucket writer adds a value to an object."""
    s3_key = object_s3_key("acme", key)
    head, body = await page.storage.read(s3_key)
    metadata, restated, content_type, tags = hide(place, value)
    headers = Headers({**head.metadata, **metadata}, content_type, restated)
    page.storage.plant(s3_key, body, headers, tags=tags)


async def _old_user_wrap(page: Page, key: str = "a") -> str:
    return str((await page.storage.head(object_s3_key("acme", key))).metadata["enc-dek-user"])


@pytest.mark.parametrize(
    ("place", "spelling"),
    [(place, "as it is") for place in PLACES] + [("metadata", spelling) for spelling in SPELLINGS],
)
async def test_an_object_with_a_hidden_wrap_of_an_earlier_key_has_failed(
    place: str, spelling: str
) -> None:
    """The rewrap carries the value along: the earlier key would still open the object."""
    page = Page()
    page.plant("a", "b")
    await _hide(page, place, SPELLINGS[spelling](await _old_user_wrap(page)))
    page.write_keyring(rotated(page.ring))
    assert (await page.process()).counts.rewrapped == 2
    with capture_logs() as logs:
        result = await page.process()
    assert result.failures == (Failure("a", "hidden_wrap"),)
    assert (result.counts.current, result.counts.failed) == (1, 1)
    [logged] = [entry for entry in logs if entry["event"] == "object failed"]
    assert "remove that value" in logged["detail"]


async def test_an_object_with_a_hidden_wrap_of_another_master_key_has_failed() -> None:
    page = Page()
    page.plant("a")
    head = await page.storage.head("acme/a")
    await _hide(page, "metadata", head.metadata["enc-dek-admin"])
    page.write_keyring(with_master_key(page.ring, "m2"))
    await page.process()
    assert (await page.process()).failures == (Failure("a", "hidden_wrap"),)


@pytest.mark.parametrize("name", ["note", "enc-upload"])
async def test_a_wrap_in_any_metadata_of_an_object_that_says_to_be_plaintext_is_found(
    name: str,
) -> None:
    """Nothing vouches for what such an object says: its body may be one that the wrap opens."""
    page = Page(ring=keyring(plaintext=True))
    page.plant_plain("a")
    old = wrap(desired_state(page.ring, MASTER_KEYS), "a", new_dek())
    await page.relabel("a", {name: to_base64(old.user)})
    page.write_keyring(rotated(page.ring))
    assert (await page.process()).failures == (Failure("a", "hidden_wrap"),)


@pytest.mark.parametrize("place", PLACES)
async def test_a_value_that_only_looks_like_a_wrap_keeps_no_sweep_from_its_end(place: str) -> None:
    """It is a caller's own, or one under the current key, and nothing could end the failure."""
    page = Page()
    page.plant("a")
    await _hide(page, place, to_base64(hashlib.shake_256(b"").digest(104)))
    page.write_keyring(rotated(page.ring))
    await page.process()
    result = await page.process()
    assert (result.failures, result.counts.current) == ((), 1)


@pytest.mark.parametrize("place", ["metadata", "tag"])
async def test_an_object_without_long_values_waits_for_no_key(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider of an earlier master key may be away for good."""
    page = Page()
    page.plant("a")
    await _hide(page, place, "x" * 79)
    page.write_keyring(rotated(page.ring))
    monkeypatch.delattr("keyturn_workers.pipeline.sweep.page.retired_keys")
    await page.process()
    assert (await page.process()).counts.current == 1


async def test_tags_are_not_read_while_no_key_is_retired() -> None:
    page = Page()
    page.plant("a")
    await _hide(page, "tag", "legal")
    page.master_keys = operator_keys({"m1": MASTER_KEYS["m1"]})
    assert (await page.process()).counts.current == 1
    assert page.storage.calls["read_tags"] == 0
    page.write_keyring(rotated(page.ring))
    await page.process()
    read = page.storage.calls["read_tags"]
    assert (await page.process()).counts.current == 1
    assert page.storage.calls["read_tags"] == read + 1


async def test_a_page_waits_for_no_search_and_too_many_long_values_fail_their_object_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bucket writer's long value must not stall the process beyond its lease."""
    page = Page()
    for _ in range(40):
        page.write_keyring(rotated(page.ring))
    page.plant("a", "b")
    await _hide(page, "metadata", to_base64(hashlib.shake_256(b"a").digest(1400)), "a")
    await _hide(page, "metadata", to_base64(hashlib.shake_256(b"b").digest(104)), "b")
    threads, attempts = set[int](), Counter[str]()

    def unwrap(*_: object, object_key: str, **__: object) -> None:
        threads.add(threading.get_ident())
        attempts[object_key] += 1
        raise SealError

    monkeypatch.setattr("keyturn_workers.pipeline.objects.hidden_wraps.unwrap_dek", unwrap)
    with capture_logs() as logs:
        result = await page.process()
    assert result.failures == (Failure("a", "hidden_wrap"),)
    assert (result.counts.current, result.counts.failed) == (1, 1)
    [logged] = [entry for entry in logs if entry["event"] == "object failed"]
    assert "too many long values" in logged["detail"]
    assert threads
    assert threading.get_ident() not in threads
    assert 0 < attempts["b"] < attempts["a"] <= 2**16


async def test_a_version_that_is_removed_anyway_is_not_searched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = Page(MemoryStorage(versioned=True))
    page.write_keyring(rotated(page.ring))
    page.plant("a")
    await _hide(page, "metadata", "x" * 80)
    page.plant("a")
    monkeypatch.delattr("keyturn_workers.pipeline.sweep.page.retired_keys")
    assert (await page.process()).changed == 2
    assert (await page.process()).counts.all_as_desired


async def test_a_hidden_wrap_in_an_older_version_that_stays_is_named() -> None:
    """A version of plaintext is counted and never removed: someone must know where to look."""
    page = Page(MemoryStorage(versioned=True), keyring(plaintext=True))
    page.plant("a")
    wrap = await _old_user_wrap(page)
    [row] = [row async for row in page.storage.list_versions("acme/")]
    await page.storage.delete_version("acme/a", row.version_id)
    page.plant_plain("a")
    await _hide(page, "metadata", wrap)
    [_, hidden] = sorted(
        [row async for row in page.storage.list_versions("acme/")], key=lambda row: row.is_latest
    )
    page.plant_plain("a")
    page.write_keyring(rotated(page.ring))
    with capture_logs() as logs:
        result = await page.process()
    assert result.failures == (Failure("a", "hidden_wrap"),)
    assert (result.counts.objects, result.counts.noncurrent_stale) == (1, 1)
    [logged] = [entry for entry in logs if entry["event"] == "object failed"]
    assert (logged["key"], logged["version"]) == ("a", hidden.version_id)


# Foreign names.


@pytest.mark.parametrize("is_ours", [True, False], ids=["ours", "of another program"])
@pytest.mark.parametrize("key", FOREIGN)
async def test_a_foreign_name_has_failed_if_it_has_metadata_of_ours(
    key: str, *, is_ours: bool
) -> None:
    """No rewrap can be bound to its name: an old key still opens it."""
    page = Page()
    page.plant("a")
    (page.plant if is_ours else page.plant_plain)(key)
    result = await page.process()
    assert result.failures == (Failure(key, "foreign_object"),) * is_ours
    counts = (result.counts.objects, result.counts.failed, result.counts.foreign)
    assert counts == ((2, 1, 0) if is_ours else (1, 0, 1))
    assert result.counts.all_as_desired is not is_ours


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
    await page.process()
    await page.process()
    versions = [row async for row in page.storage.list_versions("acme/")]
    assert [(row.key, row.is_latest) for row in versions] == [("acme/a", True)]


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
        action = plan_action(view, "a", snapshot.keyring, desired, ADMIN_KEKS, SweepOptions())
        assert isinstance(action, Rewrap)
        page.storage.plant("acme/a", old[1], Headers(enc(action.wraps)))

    async def put_back() -> None:
        await page.storage.write_tags("acme/a", {"team": "legal"})

    page.storage.before_next("read_tags", copied)
    page.storage.before_next("copy_onto_itself", put_back)
    result = await page.process()
    assert (result.counts.current, result.changed, result.failures) == (1, 0, ())
    assert page.storage.calls["copy_onto_itself"] == 0


# Tags.


async def test_tags_are_noted_before_a_copy_drops_them_and_put_back_after_it() -> None:
    page = Page()
    page.plant("a")
    head, body = await page.storage.read("acme/a")
    page.storage.plant("acme/a", body, head.headers, tags=TAGS)
    page.write_keyring(rotated(page.ring))
    page.storage.fail_next("write_tags", ConnectionError("the worker dies"))
    with pytest.raises(ConnectionError):
        await page.process()
    assert await page.storage.read_tags("acme/a") == {}
    # The next attempt at this page finds the note. It is kept until nothing is left to do.
    assert ((await page.process()).changed, await page.storage.read_tags("acme/a")) == (1, TAGS)
    assert len(await notes(page)) == 1
    assert ((await page.process()).changed, await notes(page)) == (0, [])


@pytest.mark.parametrize("met", [None, RefusedError("AccessDenied")], ids=["replaced", "late"])
async def test_tags_that_came_after_the_plan_are_noted_before_the_next_attempt_to_copy(
    met: Exception | None,
) -> None:
    """Another writer put the object again, with tags. The copy that was planned without is lost."""
    page = Page()
    old = desired_state(page.ring, MASTER_KEYS)
    page.plant("a")
    page.write_keyring(rotated(page.ring))

    async def put_again() -> None:
        wraps, body = sealed_object(old, "a")
        page.storage.plant("acme/a", body, Headers(enc(wraps)), tags=TAGS)

    page.storage.before_next("copy_onto_itself", put_again)
    if met is not None:
        page.storage.fail_next("copy_onto_itself", met)
    page.storage.fail_next("write_tags", ConnectionError("the worker dies"))
    with pytest.raises(ConnectionError):
        await page.process()
    assert await page.storage.read_tags("acme/a") == {}
    assert len(await notes(page)) == 1
    assert ((await page.process()).changed, await page.storage.read_tags("acme/a")) == (1, TAGS)


async def notes(page: Page) -> list[str]:
    return [path async for path, _ in page.store.tag_notes("acme")]


@pytest.mark.parametrize(
    ("round_id", "number"), [(OTHER_ID, 0), (ROUND_ID, 1)], ids=["round", "page"]
)
async def test_an_attempt_leaves_the_notes_of_others_alone(round_id: str, number: int) -> None:
    page = Page()
    page.plant("a")
    await page.store.add_tag_note("acme", round_id, replace(PAGE, page=number), {"a": TAGS}, "m1")
    assert (await page.process()).changed == 0
    assert await page.storage.read_tags("acme/a") == {}
    assert len(await notes(page)) == 1


@pytest.mark.parametrize(
    ("metadata", "tags", "after"),
    [
        ({}, {}, TAGS),
        ({}, {"team": "sales"}, {"team": "sales"}),
        ({"enc-algo": "deleted"}, {}, {}),
    ],
    ids=["lost", "replaced", "deleted"],
)
async def test_noted_tags_of_every_round_are_put_back_where_they_were_lost(
    metadata: dict[str, str], tags: dict[str, str], after: dict[str, str]
) -> None:
    page = Page()
    page.storage.plant("acme/a", b"", Headers(metadata), tags=tags)
    for round_id in (ROUND_ID, OTHER_ID):
        noted = {"a": TAGS, "gone": TAGS}
        await page.store.add_tag_note("acme", round_id, PAGE, noted, "m1")
    assert await restore_noted_tags(page.storage, page.store, "acme") == await notes(page)
    assert await page.storage.read_tags("acme/a") == after


# Noncurrent versions.


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


async def test_while_versioning_is_suspended_an_attempt_keeps_the_copy_that_it_made() -> None:
    """The listing shows an older version `null`, which the copy then replaces."""
    page = Page()
    page.plant("a", "b")
    page.storage.set_versioning("Enabled")
    page.plant("a")
    page.storage.set_versioning("Suspended")
    page.write_keyring(rotated(page.ring))
    result = await page.process()
    assert (result.counts.rewrapped, result.changed, result.failures) == (2, 2, ())
    # The version that the copy superseded is removed by the next attempt.
    assert [(await page.process()).changed for _ in range(2)] == [1, 0]
    rows = [row async for row in page.storage.list_versions("acme/")]
    assert [(row.key, row.version_id, row.is_latest) for row in rows] == [
        ("acme/a", "null", True),
        ("acme/b", "null", True),
    ]
    assert (await page.process()).counts.current == 2


async def test_while_versioning_is_suspended_an_older_null_is_counted_until_it_is_replaced() -> (
    None
):
    """It may have become the object since the listing. An old key opens it, so no end is clean."""
    page = Page()
    page.plant("a")
    page.storage.set_versioning("Enabled")
    page.write_keyring(rotated(page.ring))
    page.plant("a")
    page.storage.set_versioning("Suspended")
    result = await page.process()
    assert (result.counts.current, result.counts.noncurrent_stale, result.changed) == (1, 1, 0)
    assert not result.counts.all_as_desired
    page.storage.set_versioning("Enabled")
    assert (await page.process()).changed == 1
    assert (await page.process()).counts.all_as_desired


async def test_locked_versions_are_counted_and_their_object_has_failed_once() -> None:
    page = Page(MemoryStorage(versioned=True))
    page.plant("a", "a", "a")
    page.storage.fail_next("delete_version", RefusedError("AccessDenied"), times=2)
    result = await page.process()
    assert result.failures == (Failure("a", "locked_object"),) * 2
    assert (result.changed, result.counts.noncurrent_stale, result.counts.failed) == (0, 2, 1)


async def _rows(
    storage: MemoryStorage, after: str, last: str, *, versioned: bool, size: int = 2
) -> list[Row]:
    rows: list[Row] = []
    async for batch in list_batches(storage, "acme", after, last, versioned=versioned, size=size):
        assert 0 < len(batch) <= size
        rows += batch
    return rows


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize(
    ("after", "last", "keys"),
    [("", "", "abcde"), ("a", "d", "bcd"), ("e", "", ""), ("c", "", "de")],
)
async def test_a_page_begins_after_its_first_edge_and_includes_the_last(
    after: str, last: str, keys: str, *, versioned: bool
) -> None:
    storage = MemoryStorage(versioned=versioned)
    for key in "abcde":
        storage.plant(f"acme/{key}", b"", Headers({}))
    storage.plant("acme-2/z", b"", Headers({}))
    rows = await _rows(storage, after, last, versioned=versioned)
    assert [row.key for row in rows] == list(keys)
    assert all(row.exists and not row.noncurrent for row in rows)


async def test_each_key_comes_with_its_noncurrent_versions() -> None:
    storage = MemoryStorage(versioned=True)
    for key in ("a", "a", "a", "b"):
        storage.plant(f"acme/{key}", b"", Headers({}))
    await storage.delete("acme/b")
    one, other = await _rows(storage, "", "", versioned=True)
    assert (one.key, one.exists, len(one.noncurrent)) == ("a", True, 2)
    # The delete marker is the newest version, and no version to remove.
    assert (other.key, other.exists, len(other.noncurrent)) == ("b", False, 1)
