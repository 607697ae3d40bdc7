"""Rechecks around a write: the desired state, the object, and why it was refused (SPEC 8.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from keyturn_workers.errors import MissingError, PreconditionError
from keyturn_workers.keyring import forbid_plaintext, retire_old_keys
from keyturn_workers.objects.apply import check_unchanged, is_lock_refusal, recheck_state
from keyturn_workers.storage import Lease
from tests.unit.keyturn_workers.factories import keyring, rotated
from tests.unit.keyturn_workers.scene import TARGET, Scene

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


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
