"""Executing planned actions: written under a lease, everything else unchanged (SPEC 8.2, 8.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import BODY_CONTEXT, new_dek, open_sealed, open_tombstone, sealed_size
from keyturn.errors import (
    ArchivedObjectError,
    BodyTooLargeError,
    LockedObjectError,
    StorageUnavailableError,
)
from keyturn.identifiers import format_time
from keyturn.metadata import METADATA_MAX_BYTES, Plaintext, Tombstone, parse, size_bytes
from keyturn_workers.core.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.core.keyring import forbid_plaintext, retire_old_keys
from keyturn_workers.core.plan_action import Encrypt, NoOp, ResealTombstone, Rewrap
from keyturn_workers.core.storage_values import Capabilities, Headers, Lease
from keyturn_workers.core.wraps import verify_upload
from keyturn_workers.pipeline.objects.apply import (
    PUT_MAX_BYTES,
    ActionExecutor,
    ObjectWrite,
    check_fits_one_put,
    check_unchanged,
    encrypt_plaintext,
    is_lock_refusal,
    recheck_state,
    tags_at_risk,
)
from tests.unit.keyturn_workers.factories import (
    ADMIN_KEKS,
    AT,
    MASTER_KEYS,
    deleted,
    enc,
    keyring,
    rotated,
    sealed_object,
)
from tests.unit.keyturn_workers.scene import (
    ENCRYPT,
    KEY,
    RESTATED,
    TAGS,
    TARGET,
    UPLOAD_ID,
    Scene,
    in_plaintext,
)
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from datetime import datetime

    from keyturn_workers.core.plan_action import PlannedAction

DEK = new_dek()
BODIES = pytest.mark.parametrize(
    "body", [b"hello", bytes(2_500_000)], ids=["one piece", "several pieces"]
)

KEEPS_TAGS = Capabilities(copy_keeps_tags=True)


async def opened(on: Scene) -> bytes:
    """The plaintext; both wraps match the desired state."""
    _, body = await on.storage.read(TARGET)
    examined = verify_upload(await on.wraps(), body[:56], KEY, on.ring, ADMIN_KEKS)
    assert examined.current
    return open_sealed(examined.dek, BODY_CONTEXT, body)


def sealed() -> Scene:
    on = Scene()
    on.plant_sealed()
    return on


# New wraps.


@pytest.mark.parametrize("move", [Scene.rotate, Scene.change_master_key], ids=["user", "master"])
async def test_a_rewrap_changes_only_the_wraps(move: Callable[[Scene], Awaitable[None]]) -> None:
    on = sealed()
    before, etag = await on.body(), (await on.storage.head(TARGET)).etag
    await move(on)
    assert isinstance(await on.reconcile(), Rewrap)
    assert await on.is_current()
    assert await on.body() == before
    assert (await on.storage.head(TARGET)).etag == etag
    await on.check_the_rest()
    writes = ("put", "put_stream", "create_multipart", "stream")
    assert [on.storage.calls[name] for name in writes] == [0, 0, 0, 0]


async def test_a_current_object_is_not_written() -> None:
    on = sealed()
    assert await on.reconcile() == NoOp("current")
    assert on.storage.calls["copy_onto_itself"] == 0


async def test_a_rewrap_costs_one_read_and_one_copy() -> None:
    on = sealed()
    await on.rotate()
    before = on.storage.calls.copy()
    await on.reconcile()
    assert on.storage.calls - before == {"read_start": 1, "read": 1, "copy_onto_itself": 1}


# Plaintext.


@pytest.mark.parametrize("body", [b"hello", b"", bytes(2_500_000)], ids=["small", "empty", "large"])
async def test_plaintext_is_encrypted_in_place(body: bytes) -> None:
    on = in_plaintext(body)
    assert await on.reconcile(ENCRYPT) == Encrypt()
    assert await opened(on) == body
    await on.check_the_rest()
    # An empty body is put at once: streamed, it could outlast its lease.
    assert on.storage.calls["put_stream"] == bool(body)


async def test_each_attempt_to_encrypt_has_its_own_dek() -> None:
    on = in_plaintext()
    view, action, snapshot = await on.plan_action(ENCRYPT)
    headers = []
    for _ in range(2):
        on.plant({}, b"hello")
        await on.executor.execute("acme", KEY, view, action, snapshot)
        headers.append((await on.body())[:56])
    assert headers[0] != headers[1]


async def test_empty_plaintext_deleted_meanwhile_stays_deleted() -> None:
    """A tombstone has the ETag of an empty body: the put's condition alone would pass."""
    on = in_plaintext(b"")
    view, action, snapshot = await on.plan_action(ENCRYPT)
    await on.delete()
    with pytest.raises(PreconditionError):
        await on.executor.execute("acme", KEY, view, action, snapshot)
    assert isinstance(parse((await on.storage.head(TARGET)).metadata), Tombstone)


async def test_empty_plaintext_is_rechecked_after_its_lease_began() -> None:
    """If it stalls after the check, the storage refuses it: a delete waits for one lease only."""
    on = in_plaintext(b"")
    on.storage.before_next("head", on.late)
    with pytest.raises(RefusedError):
        await on.reconcile(ENCRYPT)
    assert isinstance(parse((await on.storage.head(TARGET)).metadata), Plaintext)


# Tombstones.


async def test_a_tombstone_keeps_its_time_when_it_is_resealed() -> None:
    on = Scene()
    on.plant(deleted(desired_state(on.ring, MASTER_KEYS), KEY), b"")
    await on.change_master_key()
    assert isinstance(await on.reconcile(), ResealTombstone)
    head = await on.storage.head(TARGET)
    tombstone = parse(head.metadata)
    assert isinstance(tombstone, Tombstone)
    kek = desired_state(on.ring, MASTER_KEYS).admin_kek
    assert open_tombstone(kek, "acme", KEY, tombstone.sealed) == AT
    assert set(head.metadata) == {"enc-algo", "enc-dek-admin"}
    assert head.size_bytes == 0
    assert (await on.plan_action())[1] == NoOp("deleted")


# What refuses a write.

KINDS = ["rewrap", "encrypt", "reseal"]
WRITES = {
    "rewrap": "copy_onto_itself",
    "encrypt": "put_stream",
    "reseal": "put",
}


async def due(kind: str, storage: MemoryStorage | None = None, **more: Any) -> Scene:
    """An object for which this action is planned."""
    on = Scene(storage or MemoryStorage(), ring=keyring(plaintext=True))
    match kind:
        case "rewrap":
            on.plant_sealed(**more)
            await on.rotate()
        case "encrypt":
            on.plant({}, b"hello", **more)
        case "reseal":
            on.plant(deleted(desired_state(on.ring, MASTER_KEYS), KEY), b"", **more)
            await on.change_master_key()
    return on


ALL_KINDS = pytest.mark.parametrize("kind", KINDS)


@ALL_KINDS
async def test_a_late_write_is_refused_by_the_storage(kind: str) -> None:
    """Nothing is written; the caller reads keyring and object again."""
    on = await due(kind)
    before = await on.storage.read(TARGET)
    on.storage.before_next(WRITES[kind], on.late)
    with pytest.raises(RefusedError):
        await on.reconcile(ENCRYPT)
    after = await on.storage.read(TARGET)
    assert (after[1], after[0].headers) == (before[1], before[0].headers)
    await on.reconcile(ENCRYPT)


@ALL_KINDS
async def test_a_refusal_by_a_lock_is_a_locked_object(kind: str) -> None:
    on = await due(kind, locked=True)
    with pytest.raises(LockedObjectError):
        await on.reconcile(ENCRYPT)


async def test_a_late_write_to_a_locked_object_is_no_lock_refusal() -> None:
    on = await due("rewrap", locked=True)
    on.storage.before_next("copy_onto_itself", on.late)
    with pytest.raises(RefusedError):
        await on.reconcile()


async def test_a_rewrap_keeps_the_lock_if_new_versions_are_allowed() -> None:
    on = await due("rewrap", MemoryStorage(versioned=True), locked=True)
    await on.reconcile()
    head = await on.storage.head(TARGET)
    assert head.locked
    assert head.headers.restated["x-amz-object-lock-legal-hold"] == "ON"
    assert await on.is_current()


async def test_a_refusal_by_an_archive_is_an_archived_object() -> None:
    on = sealed()
    await on.rotate()
    view, action, snapshot = await on.plan_action()
    body = await on.body()
    on.storage.plant(TARGET, body, view.head.headers, archived=True)
    with pytest.raises(ArchivedObjectError):
        await on.executor.execute("acme", KEY, view, action, snapshot)


@ALL_KINDS
async def test_a_missing_object_is_reported(kind: str) -> None:
    on = await due(kind)

    async def remove() -> None:
        await on.storage.delete(TARGET)

    on.storage.before_next(WRITES[kind], remove)
    with pytest.raises(MissingError):
        await on.reconcile(ENCRYPT)


@pytest.mark.parametrize("kind", ["rewrap", "encrypt"])
async def test_an_object_deleted_before_the_write_stays_deleted(kind: str) -> None:
    on = await due(kind)
    on.storage.before_next(WRITES[kind], on.delete)
    with pytest.raises(PreconditionError):
        await on.reconcile(ENCRYPT)
    assert isinstance(parse((await on.storage.head(TARGET)).metadata), Tombstone)


@ALL_KINDS
async def test_a_write_with_a_lost_response_is_current(kind: str) -> None:
    """The write took effect, and the next plan shows it."""
    on = await due(kind)
    on.storage.fail_next(WRITES[kind], StorageUnavailableError("lost"), after_effect=True)
    with pytest.raises(StorageUnavailableError):
        await on.reconcile(ENCRYPT)
    assert isinstance(await on.reconcile(ENCRYPT), NoOp)


# Tags.


@pytest.mark.parametrize(
    ("kind", "capabilities", "limit", "at_risk"),
    [
        ("rewrap", Capabilities(), 10**9, True),
        ("rewrap", KEEPS_TAGS, 10**9, False),
        ("rewrap", KEEPS_TAGS, 1, True),
        ("encrypt", KEEPS_TAGS, 10**9, True),
        ("reseal", KEEPS_TAGS, 10**9, True),
    ],
)
async def test_tags_are_at_risk_exactly_where_the_write_drops_them(
    kind: str, capabilities: Capabilities, limit: int, *, at_risk: bool
) -> None:
    """Exactly if the write drops them, and never for an object without tags."""
    on = await due(kind, MemoryStorage(capabilities=capabilities))
    view, action, snapshot = await on.plan_action(ENCRYPT)
    assert tags_at_risk(on.storage, view, action, limit) is at_risk
    if limit > 1:
        await on.executor.execute("acme", KEY, view, action, snapshot)
        kept = await on.storage.read_tags(TARGET) == TAGS
        assert kept is not at_risk
    untagged = replace(view, head=replace(view.head, tag_count=0))
    assert not tags_at_risk(on.storage, untagged, action, limit)


async def test_no_op_risks_no_tags() -> None:
    on = sealed()
    view, action, _ = await on.plan_action()
    assert not tags_at_risk(on.storage, view, action, 1)


@pytest.mark.parametrize("kind", ["current", "plaintext", "deleted"])
async def test_no_op_does_nothing(kind: Any) -> None:
    on = sealed()
    view, _, snapshot = await on.plan_action()
    action: PlannedAction = NoOp(kind)
    before = on.storage.calls.copy()
    await on.executor.execute("acme", KEY, view, action, snapshot)
    assert on.storage.calls == before


# When the object was stored, and by which upload (SPEC 4.3).

TAG = "AAECAwQFBgcICQoLDA0ODw=="


def tagged(**more: str) -> Scene:
    """An encrypted object with its upload tag and these `enc-` fields."""
    on = Scene()
    wraps, body = sealed_object(desired_state(on.ring, MASTER_KEYS), KEY)
    on.plant({**enc(wraps, UPLOAD_ID), "enc-upload-tag": TAG, **more}, body)
    return on


async def stored(on: Scene) -> tuple[str | None, str | None]:
    """The object's stored time and upload tag."""
    metadata = (await on.storage.head(TARGET)).metadata
    return metadata.get("enc-stored-at"), metadata.get("enc-upload-tag")


async def rewrapped(on: Scene) -> datetime:
    """Rewrap a minute later; returns the storage's `Last-Modified` from before."""
    before = (await on.storage.head(TARGET)).last_modified
    on.storage.advance(60)
    await on.rotate()
    assert isinstance(await on.reconcile(), Rewrap)
    assert (await on.storage.head(TARGET)).last_modified > before
    return before


async def test_the_first_rewrap_saves_the_stored_time() -> None:
    on = tagged()
    before = await rewrapped(on)
    assert await stored(on) == (format_time(before), TAG)


async def test_later_rewraps_keep_the_stored_time() -> None:
    on = tagged()
    before = await rewrapped(on)
    await rewrapped(on)
    await rewrapped(on)
    assert await stored(on) == (format_time(before), TAG)
    await on.check_the_rest()


@pytest.mark.parametrize(
    "value", ["yesterday", "2026-11-24", "9999-01-01T00:00:00.000000Z", "2026-11-24T10:00:00+01:00"]
)
async def test_a_malformed_or_future_stored_at_is_replaced(value: str) -> None:
    """It is not authenticated: a bucket writer may have put it there."""
    on = tagged(**{"enc-stored-at": value})
    before = await rewrapped(on)
    assert (await stored(on))[0] == format_time(before)


async def test_the_stored_time_is_left_out_if_the_metadata_would_be_too_large() -> None:
    """It is informational; the rewrap and the tag are not."""
    on = tagged()
    head = await on.storage.head(TARGET)
    used = size_bytes(head.metadata)
    filler = {"filler": "x" * (METADATA_MAX_BYTES - used - len("filler"))}
    headers = Headers({**head.metadata, **filler}, head.headers.content_type, RESTATED)
    on.storage.plant(TARGET, await on.body(), headers, tags=TAGS)
    await rewrapped(on)
    assert await stored(on) == (None, TAG)
    assert await on.is_current()


async def test_a_large_object_keeps_both_through_a_copy_in_parts() -> None:
    on = tagged()
    on.executor = ActionExecutor(on.storage, on.keyrings, 1)
    before = await rewrapped(on)
    assert await stored(on) == (format_time(before), TAG)


async def test_plaintext_that_is_encrypted_keeps_its_time_and_no_tag() -> None:
    """A sweep knows no upload, so there is no tag."""
    on = in_plaintext()
    before = (await on.storage.head(TARGET)).last_modified
    on.storage.advance(60)
    assert isinstance(await on.reconcile(ENCRYPT), Encrypt)
    assert await stored(on) == (format_time(before), None)
    assert (await on.storage.head(TARGET)).metadata["enc-upload"] == UPLOAD_ID


async def test_an_unchanged_state_gives_a_new_lease() -> None:
    on = Scene()
    before = await on.keyrings.read_fresh("acme")
    on.storage.advance(5)
    after = await recheck_state(on.keyrings, before)
    assert after.desired.same_state(before.desired)
    assert after.lease.read_at > before.lease.read_at


@pytest.mark.parametrize("move", [Scene.rotate, Scene.change_master_key], ids=["user", "master"])
async def test_a_state_that_moved_refuses_the_write(
    move: Callable[[Scene], Awaitable[None]],
) -> None:
    on = Scene()
    before = await on.keyrings.read_fresh("acme")
    await move(on)
    with pytest.raises(PreconditionError):
        await recheck_state(on.keyrings, before)


async def test_plaintext_that_was_forbidden_is_another_state() -> None:
    on = Scene(ring=keyring(plaintext=True))
    before = await on.keyrings.read_fresh("acme")
    on.write_keyring(forbid_plaintext(on.ring))
    with pytest.raises(PreconditionError):
        await recheck_state(on.keyrings, before)


async def test_earlier_keys_that_are_retired_change_no_state() -> None:
    on = Scene(ring=rotated(keyring()))
    before = await on.keyrings.read_fresh("acme")
    on.write_keyring(retire_old_keys(on.ring))
    await recheck_state(on.keyrings, before)


async def test_an_object_as_it_was_read_is_unchanged() -> None:
    on = Scene()
    on.plant({}, b"")
    await check_unchanged(on.storage, TARGET, (await on.read_view()).head)


async def test_an_object_with_other_metadata_has_changed() -> None:
    """A tombstone has the ETag of an empty body: the ETag by itself would not show it."""
    on = Scene()
    on.plant({}, b"")
    head = (await on.read_view()).head
    await on.delete()
    assert (await on.storage.head(TARGET)).etag == head.etag
    with pytest.raises(PreconditionError):
        await check_unchanged(on.storage, TARGET, head)


async def test_an_object_with_another_body_has_changed() -> None:
    on = Scene()
    on.plant({}, b"one")
    head = (await on.read_view()).head
    on.plant({}, b"two")
    with pytest.raises(PreconditionError):
        await check_unchanged(on.storage, TARGET, head)


async def test_an_object_that_is_gone_is_missing() -> None:
    on = Scene()
    on.plant({}, b"")
    head = (await on.read_view()).head
    await on.storage.delete(TARGET)
    with pytest.raises(MissingError):
        await check_unchanged(on.storage, TARGET, head)


@pytest.mark.parametrize(
    ("locked", "late_s", "by_the_lock"),
    [(True, 0, True), (True, 10, True), (True, 20, False), (False, 0, False)],
)
async def test_a_refusal_within_the_lease_is_by_the_lock(
    *, locked: bool, late_s: int, by_the_lock: bool
) -> None:
    """The storage answers both with the same 403: its clock shows which it was."""
    on = Scene()
    on.plant({}, b"", locked=locked)
    head = (await on.read_view()).head
    lease = Lease(on.storage.now, 15)
    on.storage.advance(late_s)
    assert await is_lock_refusal(on.storage, TARGET, head, lease) is by_the_lock


# Plaintext.


async def _write(on: Scene) -> ObjectWrite:
    snapshot = await on.keyrings.read_fresh("acme")
    head = (await on.read_view()).head
    return ObjectWrite(TARGET, head, Headers({"written": "yes"}), snapshot)


async def _encrypt(on: Scene, write: ObjectWrite) -> None:
    await encrypt_plaintext(on.storage, on.keyrings, write, DEK)


@pytest.mark.parametrize("body", [b"", b"hello", bytes(2_500_000)], ids=len)
async def test_plaintext_is_replaced_by_its_sealed_body(body: bytes) -> None:
    on = in_plaintext(body)
    await _encrypt(on, await _write(on))
    head, sealed = await on.storage.read(TARGET, max_bytes=10**7)
    assert open_sealed(DEK, BODY_CONTEXT, sealed) == body
    assert head.metadata == {"written": "yes"}


async def test_an_empty_body_is_put_at_once() -> None:
    """Streamed, it could outlast its lease and bring back a deleted object."""
    on = in_plaintext(b"")
    await _encrypt(on, await _write(on))
    assert (on.storage.calls["put"], on.storage.calls["put_stream"]) == (1, 0)


@pytest.mark.parametrize("body", [b"", b"hello"], ids=len)
async def test_a_put_after_its_lease_is_refused(body: bytes) -> None:
    on = in_plaintext(body)
    write = await _write(on)
    await on.late()
    with pytest.raises(RefusedError):
        await _encrypt(on, write)
    assert await on.body() == body


@BODIES
@pytest.mark.parametrize("move", [Scene.rotate, Scene.change_master_key], ids=["user", "master"])
async def test_a_state_that_moves_while_the_body_is_sent_refuses_the_put(
    body: bytes, move: Callable[[Scene], Awaitable[None]]
) -> None:
    """The lease bounds when a put begins, not when it ends."""
    on = in_plaintext(body)
    write = await _write(on)
    on.storage.before_next("read", lambda: move(on))  # the recheck's read of the keyring
    with pytest.raises(PreconditionError):
        await _encrypt(on, write)
    assert await on.body() == body


async def test_plaintext_that_is_gone_is_missing() -> None:
    on = in_plaintext()
    write = await _write(on)
    await on.storage.delete(TARGET)
    with pytest.raises(MissingError):
        await _encrypt(on, write)


async def test_one_put_holds_so_much_and_no_more() -> None:
    on = in_plaintext()
    head = (await on.read_view()).head
    fits = PUT_MAX_BYTES - (sealed_size(PUT_MAX_BYTES) - PUT_MAX_BYTES)
    assert check_fits_one_put(replace(head, size_bytes=fits)) <= PUT_MAX_BYTES
    with pytest.raises(BodyTooLargeError):
        check_fits_one_put(replace(head, size_bytes=PUT_MAX_BYTES))


# As actions of a sweep.


@pytest.mark.parametrize("body", [b"hello", bytes(2_500_000)], ids=["small", "large"])
async def test_no_body_lands_under_outdated_wraps(body: bytes) -> None:
    """The lease bounds when a put begins; the rotation comes while the body is sent."""
    on = in_plaintext(body)
    on.storage.before_next("stream", on.rotate)
    with pytest.raises(PreconditionError):
        await on.reconcile(ENCRYPT)
    assert await on.body() == body
    assert isinstance(parse((await on.storage.head(TARGET)).metadata), Plaintext)


@pytest.mark.parametrize("operation", ["stream", "put_stream"])
async def test_plaintext_replaced_meanwhile_is_left_alone(operation: str) -> None:
    on = in_plaintext()

    async def change() -> None:
        on.plant({}, b"other")

    on.storage.before_next(operation, change)
    with pytest.raises(PreconditionError):
        await on.reconcile(ENCRYPT)
    assert await on.body() == b"other"


async def test_plaintext_deleted_meanwhile_stays_deleted() -> None:
    on = in_plaintext()
    on.storage.before_next("put_stream", on.delete)
    with pytest.raises(PreconditionError):
        await on.reconcile(ENCRYPT)
    assert isinstance(parse((await on.storage.head(TARGET)).metadata), Tombstone)


async def test_plaintext_above_one_put_is_too_large() -> None:
    on = in_plaintext()
    view, action, snapshot = await on.plan_action(ENCRYPT)
    large = replace(view, head=replace(view.head, size_bytes=5 * 1024**3))
    with pytest.raises(BodyTooLargeError):
        await on.executor.execute("acme", KEY, large, action, snapshot)
    assert on.storage.calls["stream"] == 0
    assert await on.body() == b"hello"
