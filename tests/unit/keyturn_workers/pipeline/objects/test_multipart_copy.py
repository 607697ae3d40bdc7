"""A large object is copied onto itself in parts, completely or not at all (SPEC 8.2, 8.4, 8.7)."""

from __future__ import annotations

import asyncio
import os
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyturn.errors import LockedObjectError, StorageUnavailableError
from keyturn.metadata import Tombstone, parse
from keyturn_workers.core.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.pipeline.objects.apply import part_ranges
from tests.unit.keyturn_workers.scene import TARGET, Scene
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MIB = 1024**2
GIB = 1024**3
# Parts of a copy have at least 5 MiB: three parts.
LARGE = os.urandom(11 * MIB)
CONDITIONAL = Capabilities(conditional_completion=True)


async def due(storage: MemoryStorage | None = None, *, locked: bool = False) -> Scene:
    """A large object one generation behind, above the copy limit."""
    on = Scene(storage or MemoryStorage(), copy_limit_bytes=1)
    on.plant_sealed(LARGE, locked=locked)
    await on.rotate()
    return on


@pytest.mark.parametrize(
    "capabilities", [Capabilities(), CONDITIONAL], ids=["plain", "conditional"]
)
async def test_a_large_object_is_copied_in_parts(capabilities: Capabilities) -> None:
    on = await due(MemoryStorage(capabilities=capabilities))
    before = await on.body()
    await on.reconcile()
    assert await on.body() == before
    assert await on.is_current()
    await on.check_the_rest()
    assert (on.storage.calls["copy_part"], on.storage.calls["copy_onto_itself"]) == (3, 0)
    assert await on.open_uploads() == []


async def test_an_object_at_the_limit_is_one_copy() -> None:
    on = await due()
    on = Scene(on.storage, on.ring, copy_limit_bytes=len(await on.body()))
    await on.reconcile()
    assert (on.storage.calls["create_multipart"], on.storage.calls["copy_onto_itself"]) == (0, 1)
    assert await on.is_current()


async def test_a_copy_that_outlasts_its_lease_completes_under_a_new_one() -> None:
    """Only the completion is fenced, by a keyring read right before it."""
    on = await due()
    on.storage.before_next("copy_part", on.late)
    await on.reconcile()
    assert await on.is_current()


async def check_refused(
    on: Scene,
    operation: str,
    hook: Callable[[], Awaitable[object]],
    error: type[Exception] | tuple[type[Exception], ...],
) -> None:
    """It ends in that error, and leaves neither parts nor a changed body behind."""
    before = await on.body()
    on.storage.before_next(operation, hook)
    with pytest.raises(error):
        await on.reconcile()
    assert await on.open_uploads() == []
    assert await on.body() in (before, b"")


async def test_a_completion_after_its_lease_is_refused() -> None:
    on = await due()
    await check_refused(on, "complete_multipart", on.late, RefusedError)
    assert not await on.is_current()


@pytest.mark.parametrize("operation", ["create_multipart", "copy_part"])
async def test_a_rotation_during_the_copy_refuses_the_completion(operation: str) -> None:
    """The wraps are outdated: the copy is aborted, and planned again."""
    on = await due()
    await check_refused(on, operation, on.rotate, PreconditionError)
    assert on.storage.calls["complete_multipart"] == 0
    await on.reconcile()
    assert await on.is_current()


async def test_a_new_master_key_during_the_copy_refuses_the_completion() -> None:
    on = await due()
    await check_refused(on, "copy_part", on.change_master_key, PreconditionError)


@pytest.mark.parametrize("operation", ["create_multipart", "copy_part", "head"])
@pytest.mark.parametrize(
    "capabilities", [Capabilities(), CONDITIONAL], ids=["plain", "conditional"]
)
async def test_an_object_deleted_during_the_copy_stays_deleted(
    operation: str, capabilities: Capabilities
) -> None:
    """Its parts would bring it back on a server without conditional completion."""
    on = await due(MemoryStorage(capabilities=capabilities))
    await check_refused(on, operation, on.delete, PreconditionError)
    assert isinstance(parse((await on.storage.head(TARGET)).metadata), Tombstone)
    assert on.storage.calls["complete_multipart"] == 0


async def test_a_conditional_completion_does_not_bring_back_a_deleted_object() -> None:
    on = await due(MemoryStorage(capabilities=CONDITIONAL))
    await check_refused(on, "complete_multipart", on.delete, PreconditionError)
    assert isinstance(parse((await on.storage.head(TARGET)).metadata), Tombstone)


async def test_the_object_is_rechecked_after_the_keyring_read_that_fences_the_completion() -> None:
    """If it stalls after the check, the completion is late: a delete waits for one lease only."""
    on = await due()

    async def stall_then_delete() -> None:
        await on.late()
        await on.delete()

    on.storage.before_next("complete_multipart", stall_then_delete)
    with pytest.raises(RefusedError):
        await on.reconcile()
    assert isinstance(parse((await on.storage.head(TARGET)).metadata), Tombstone)


async def test_an_object_that_vanishes_during_the_copy_is_missing() -> None:
    on = await due()

    async def remove() -> None:
        await on.storage.delete(TARGET)

    on.storage.before_next("head", remove)
    with pytest.raises(MissingError):
        await on.reconcile()
    assert await on.open_uploads() == []


async def test_an_object_rewrapped_by_another_worker_is_not_copied_again() -> None:
    """Nothing is left to do, so it is not copied a second time."""
    on = await due()
    other = Scene(on.storage, on.ring)

    async def overtake() -> None:
        await other.reconcile()

    on.storage.before_next("head", overtake)
    with pytest.raises(PreconditionError):
        await on.reconcile()
    assert on.storage.calls["complete_multipart"] == 0
    assert await on.is_current()


@pytest.mark.parametrize("operation", ["copy_part", "complete_multipart", "head", "read"])
async def test_a_failure_leaves_no_parts(operation: str) -> None:
    on = await due()
    view, action, snapshot = await on.plan_action()
    on.storage.fail_next(operation, StorageUnavailableError("down"))
    with pytest.raises(StorageUnavailableError):
        await on.executor.execute("acme", "reports/q3.pdf", view, action, snapshot)
    assert await on.open_uploads() == []
    assert await on.body() != b""


async def test_a_failed_abort_hides_no_error() -> None:
    on = await due()
    on.storage.fail_next("copy_part", StorageUnavailableError("down"))
    on.storage.fail_next("abort_multipart", StorageUnavailableError("down too"))
    with pytest.raises(StorageUnavailableError, match=r"down$"):
        await on.reconcile()


async def test_a_canceled_copy_leaves_no_parts() -> None:
    """A worker that shuts down leaves no parts, and no part in flight."""
    on = await due()
    reached, never = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        reached.set()
        await never.wait()

    on.storage.before_next("copy_part", hang)
    task = asyncio.create_task(on.reconcile())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await on.open_uploads() == []


async def test_a_locked_object_is_not_copied_in_parts() -> None:
    """Not every server keeps the lock that a multipart upload was created with."""
    on = await due(locked=True)
    with pytest.raises(LockedObjectError):
        await on.reconcile()
    assert await on.open_uploads() == []


@pytest.mark.slow
async def test_parts_are_copied_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Scene(copy_limit_bytes=1)
    on.plant_sealed(bytes(60 * MIB))
    await on.rotate()
    under_way: list[int] = []
    most = 0
    copy_part = on.storage.copy_part

    async def counted(key: str, upload_id: str, number: int, **span: object) -> object:
        nonlocal most
        under_way.append(number)
        most = max(most, len(under_way))
        try:
            return await copy_part(key, upload_id, number, **span)  # type: ignore[arg-type]
        finally:
            under_way.remove(number)

    monkeypatch.setattr(on.storage, "copy_part", counted)
    await on.reconcile()
    assert on.storage.calls["copy_part"] == 13
    assert most == 4


@pytest.mark.parametrize(
    ("size_bytes", "limit_bytes", "parts", "first_part_bytes"),
    [
        (11 * MIB, 1, 3, 5 * MIB),
        (10 * MIB, 5 * MIB, 2, 5 * MIB),
        (10 * MIB + 1, 5 * MIB, 3, 5 * MIB),
        (6 * GIB, 5 * GIB, 6, GIB),
        (6 * GIB - 1, 5 * GIB, 6, GIB),
        (5 * 1024 * GIB, 5 * GIB, 5120, GIB),
        (100 * GIB, 6 * MIB, 10_000, 100 * GIB // 10_000 + 1),
    ],
)
def test_parts_have_allowed_sizes(
    size_bytes: int, limit_bytes: int, parts: int, first_part_bytes: int
) -> None:
    """As large as one copy allows: 5 MiB to 1 GiB, at most 10,000 of them."""
    ranges = part_ranges(size_bytes, limit_bytes)
    assert len(ranges) == parts
    assert ranges[0] == (0, first_part_bytes - 1)


@given(st.integers(1, 6 * 1024 * GIB), st.integers(1, 6 * GIB))
def test_parts_cover_the_object_once(size_bytes: int, limit_bytes: int) -> None:
    ranges = part_ranges(size_bytes, limit_bytes)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size_bytes - 1
    assert all(next_first == last + 1 for (_, last), (next_first, _) in pairwise(ranges))
    assert len(ranges) <= 10_000
