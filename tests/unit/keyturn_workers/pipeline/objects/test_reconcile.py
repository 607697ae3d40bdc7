"""One object reaches the desired state, whatever changes meanwhile (SPEC 7.3, 8.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import (
    ArchivedObjectError,
    CodedError,
    CorruptObjectError,
    DeletedKeyError,
    KeyringRolledBackError,
    LockedObjectError,
    NoUsableWrapError,
    StorageUnavailableError,
    UnknownAlgorithmError,
    WrapsDisagreeError,
)
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.pipeline.objects.apply import reconcile_object
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    OPERATOR_KEYS,
    deleted,
    enc,
    rotated,
    sealed_object,
)
from tests.unit.keyturn_workers.scene import KEY, TAGS, TARGET, UPLOAD_ID, Scene
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.keyring_snapshot import KeyringSnapshot

MIB = 1024**2
KEEPS_TAGS = Capabilities(copy_keeps_tags=True)


async def run(on: Scene) -> KeyringSnapshot:
    return await reconcile_object(
        "acme",
        KEY,
        on.storage,
        on.keyrings,
        OPERATOR_KEYS,
        copy_limit_bytes=on.copy_limit_bytes,
    )


async def behind(storage: MemoryStorage | None = None, size: int = 5, limit: int = 10**9) -> Scene:
    on = Scene(storage or MemoryStorage(capabilities=KEEPS_TAGS), copy_limit_bytes=limit)
    on.plant_sealed(bytes(size))
    await on.rotate()
    return on


async def test_the_snapshot_returned_is_the_state_of_the_object() -> None:
    on = await behind()
    assert (await run(on)).desired.generation == 2
    assert await on.is_current()
    await on.check_the_rest()


async def test_names_that_keyturn_does_not_know_are_left_out() -> None:
    on = Scene(MemoryStorage(capabilities=KEEPS_TAGS))
    wraps, body = sealed_object(desired_state(on.ring, MASTER_KEYS), KEY)
    own = enc(wraps, UPLOAD_ID)
    for more in ({"enc-dek-user-1": own["enc-dek-user"]}, {"enc-upload-tag": own["enc-dek-user"]}):
        on.plant({**own, **more}, body)
        await run(on)
        metadata = (await on.storage.head(TARGET)).metadata
        assert not more.items() & metadata.items()
        assert await on.is_current()
        await on.check_the_rest()


async def test_a_current_object_is_only_read() -> None:
    on = Scene()
    on.plant_sealed()
    assert (await run(on)).desired.generation == 1
    assert on.storage.calls["copy_onto_itself"] == 0


async def test_the_keyring_is_read_again_after_the_copy() -> None:
    """The keyring was rotated during the copy, so the copy is outdated and made again."""
    on = await behind()
    on.storage.before_next("copy_onto_itself", on.rotate)
    assert (await run(on)).desired.generation == 3
    assert await on.is_current()
    assert on.storage.calls["copy_onto_itself"] == 2


async def test_a_late_copy_is_done_again_under_a_new_lease() -> None:
    on = await behind()
    on.storage.before_next("copy_onto_itself", on.late)
    await run(on)
    assert await on.is_current()
    assert on.storage.calls["copy_onto_itself"] == 2


async def test_an_object_whose_tags_a_copy_keeps_is_rewrapped() -> None:
    on = await behind(MemoryStorage(capabilities=KEEPS_TAGS))
    await run(on)
    assert await on.is_current()
    assert await on.storage.read_tags(TARGET) == TAGS
    assert on.storage.calls["write_tags"] == 0


@pytest.mark.parametrize(
    ("keeps_tags", "limit"), [(False, 10**9), (False, 1), (True, 1)], ids=["", "in parts", "both"]
)
async def test_an_object_whose_tags_its_rewrap_drops_is_left_to_a_sweep(
    limit: int, *, keeps_tags: bool
) -> None:
    """Only a sweep notes the tags where they outlive its worker."""
    storage = MemoryStorage(capabilities=Capabilities(copy_keeps_tags=keeps_tags))
    on = await behind(storage, 6 * MIB, limit)
    with pytest.raises(StorageUnavailableError, match="a sweep does that"):
        await run(on)
    assert not await on.is_current()
    assert await on.storage.read_tags(TARGET) == TAGS
    assert on.storage.calls["write_tags"] == 0
    assert await on.open_uploads() == []


async def test_an_object_without_tags_costs_no_request_for_them() -> None:
    on = Scene()
    on.plant_sealed(tags={})
    await on.rotate()
    await run(on)
    assert (on.storage.calls["read_tags"], on.storage.calls["write_tags"]) == (0, 0)


async def test_a_large_object_rotated_during_the_copy_is_copied_again() -> None:
    on = await behind(size=6 * MIB, limit=1)
    await on.storage.write_tags(TARGET, {})
    on.storage.before_next("copy_part", on.rotate)
    assert (await run(on)).desired.generation == 3
    assert await on.is_current()
    assert await on.open_uploads() == []


async def test_it_gives_up_if_the_storage_always_refuses() -> None:
    on = await behind()
    on.storage.fail_next("copy_onto_itself", RefusedError("no"), times=20)
    with pytest.raises(StorageUnavailableError, match="kept changing"):
        await run(on)
    assert on.storage.calls["copy_onto_itself"] == 8


async def test_a_missing_object_is_reported() -> None:
    with pytest.raises(StorageUnavailableError, match="gone"):
        await run(Scene())


async def test_an_object_deleted_before_the_copy_stays_deleted() -> None:
    on = await behind()
    on.storage.before_next("copy_onto_itself", on.delete)
    with pytest.raises(DeletedKeyError):
        await run(on)


async def test_an_object_that_cannot_be_opened_is_left_alone() -> None:
    on = Scene()
    wraps, body = sealed_object(desired_state(on.ring, MASTER_KEYS), KEY)
    other, _ = sealed_object(desired_state(on.ring, MASTER_KEYS), KEY)
    later, _ = sealed_object(desired_state(rotated(on.ring), MASTER_KEYS), KEY)
    broken = replace(wraps, user=b"", admin=b"")
    cases: list[tuple[dict[str, str], type[CodedError]]] = [
        ({}, CorruptObjectError),
        ({"enc-algo": "Cobblestone-256"}, CorruptObjectError),
        (enc(replace(wraps, user=other.user)), CorruptObjectError),
        (enc(replace(wraps, user=b"")), WrapsDisagreeError),
        (enc(other), CorruptObjectError),
        (enc(later), KeyringRolledBackError),
        (enc(broken), NoUsableWrapError),
        ({**enc(wraps), "enc-algo": "ROT13"}, UnknownAlgorithmError),
        (deleted(desired_state(on.ring, MASTER_KEYS), KEY), DeletedKeyError),
    ]
    for own, error in cases:
        on.plant(own, body)
        before = (await on.storage.head(TARGET)).headers
        with pytest.raises(error):
            await run(on)
        assert (await on.storage.head(TARGET)).headers == before


async def test_locked_and_archived_objects_are_refused() -> None:
    on = Scene(MemoryStorage(capabilities=KEEPS_TAGS))
    on.plant_sealed(locked=True)
    await on.rotate()
    with pytest.raises(LockedObjectError):
        await run(on)
    on.plant_sealed(archived=True)
    with pytest.raises(ArchivedObjectError):
        await run(on)
