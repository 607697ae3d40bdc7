"""An object is opened with the right key, whatever kind it is of (SPEC 4, 5.4, 9)."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, HEADER_BYTES, SealError, new_dek, seal, v0_seal
from keyturn.errors import (
    ArchivedObjectError,
    BodyTooLargeError,
    CorruptObjectError,
    KeyringRolledBackError,
    MalformedRequestError,
    NotFoundError,
    NoUsableWrapError,
    StorageUnavailableError,
    TooManyRequestsError,
    UnauthorizedError,
    UnknownAlgorithmError,
    WrapsDisagreeError,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.core.wraps import wrap
from keyturn_workers.gateway import objects
from keyturn_workers.gateway.objects import (
    LegacyReader,
    PlaintextReader,
    StoredObject,
    content_modified_at,
    seal_errors_as_corrupt,
)
from keyturn_workers.gateway.request import Span
from keyturn_workers.gateway.shares import GatewayBusyError
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    sealed_object,
    v0_metadata,
    v0_ring,
)
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    KEY,
    NEW_API_KEY,
    TARGET,
    Bench,
    ring_of,
    turned_to,
)
from tools.harness.local_keys import build_keyring, desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.gateway.auth import Caller

# --- Which objects open, by which wrap, and which kinds are allowed (SPEC 4.5 to 4.7, 5.4, 9)


PLAINTEXT = os.urandom(100_000)
DEK = new_dek()
THIEFS_API_KEY = "kt_" + "t" * 40


async def test_a_user_wrap_of_a_dek_that_the_header_does_not_commit_to_is_corrupt() -> None:
    """The holder of the API key could forge one. The admin wrap must not hide it."""
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    lying = wrap(bench.desired, KEY, new_dek())
    bench.plant(enc(replace(wraps, user=lying.user)), body)
    await bench.open_fails(CorruptObjectError)


async def test_an_admin_wrap_of_another_dek_is_corrupt_if_it_is_used() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    lying = wrap(bench.desired, KEY, new_dek())
    bench.plant(enc(replace(wraps, admin=lying.admin)), body)
    assert await bench.read() == b"hello"  # the user wrap opens: the other is not looked at
    bench.plant(enc(replace(wraps, user=b"", admin=lying.admin)), body)
    await bench.open_fails(CorruptObjectError)


async def test_an_object_not_yet_swept_is_read_by_its_admin_wrap() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert b"".join([bytes(piece) async for piece in reader.read_all()]) == PLAINTEXT
    assert bench.storage.calls["read"] == 1  # an older object asks for no second look
    with pytest.raises(UnauthorizedError):
        await bench.authenticate(API_KEY)


async def test_the_admin_wrap_serves_no_object_of_another_keyring() -> None:
    """A thief put the keyring of generation 1 back and rotated it to a key of their own."""
    bench = Bench()
    first = bench.ring
    bench.write_keyring(turned_to(first, NEW_API_KEY))
    bench.plant_sealed(PLAINTEXT)
    bench.write_keyring(turned_to(first, THIEFS_API_KEY))
    await bench.open_fails(WrapsDisagreeError, THIEFS_API_KEY)
    bench.write_keyring(turned_to(bench.ring, THIEFS_API_KEY * 2))
    await bench.open_fails(WrapsDisagreeError, THIEFS_API_KEY * 2)


async def test_a_damaged_user_wrap_is_not_replaced_by_the_admin_wrap() -> None:
    bench = Bench(cache_s=0)
    wraps, body = sealed_object(bench.desired, KEY)
    bench.plant(enc(replace(wraps, user=b"")), body)
    await bench.open_fails(WrapsDisagreeError)
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    await bench.open_fails(WrapsDisagreeError, NEW_API_KEY)
    # Once a clean sweep cleared that KEK, nothing shows what the user wrap should be.
    cleared = tuple(replace(entry, kek=None) for entry in bench.ring.history)
    bench.write_keyring(replace(bench.ring, history=cleared))
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert b"".join([bytes(piece) async for piece in reader.read_all()]) == b"hello"


async def test_an_object_under_a_master_key_that_is_being_rotated_out_is_read() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    bench.write_keyring(replace(turned_to(bench.ring, NEW_API_KEY), master_key="m2"))
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert reader.size_bytes == len(PLAINTEXT)


async def test_wraps_that_open_under_no_available_key() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    bench.plant(enc(replace(wraps, user=b"x", admin=b"")), body)
    await bench.open_fails(NoUsableWrapError)


@pytest.mark.parametrize("change", [{"generation": 2}, {"algorithm": "AES-256-GCM"}])
async def test_a_relabeled_wrap_opens_nothing(change: dict[str, object]) -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    bench.plant(enc(replace(wraps, **change)), body)  # type: ignore[arg-type]
    await bench.open_fails(NoUsableWrapError)


async def test_an_object_of_another_key_or_project_does_not_open() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, "another/key")
    bench.plant(enc(wraps), body)
    await bench.open_fails(NoUsableWrapError)
    wraps, body = sealed_object(replace(bench.desired, project="other"), KEY)
    bench.plant(enc(wraps), body)
    await bench.open_fails(NoUsableWrapError)


async def test_another_objects_body_under_these_wraps_is_corrupt() -> None:
    bench = Bench()
    wraps, _ = sealed_object(bench.desired, KEY)
    _, other = sealed_object(bench.desired, KEY)
    for body in (other, b"", other[:30]):
        bench.plant(enc(wraps), body)
        await bench.open_fails(CorruptObjectError)


async def test_stripped_or_unknown_metadata_is_refused() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    for name in ("enc-algo", "enc-dek-user", "enc-dek-admin", "enc-kek-user"):
        metadata = enc(wraps)
        del metadata[name]
        bench.plant(metadata, body)
        await bench.open_fails(CorruptObjectError)
    bench.plant({**enc(wraps), "enc-algo": "ROT13"}, body)
    assert await bench.open_fails(UnknownAlgorithmError) == "ROT13"


async def test_a_tombstone_is_not_found_whatever_its_body() -> None:
    bench = Bench()
    bench.plant(deleted(bench.desired, KEY), b"")
    await bench.open_fails(NotFoundError)
    bench.plant(deleted(bench.desired, "another/key"), b"left over")
    await bench.open_fails(NotFoundError)


# An object that is newer than the keyring that was read.


@pytest.mark.parametrize("is_v0", [False, True], ids=["v1 body", "v0 body"])
async def test_an_object_newer_than_the_cached_keyring_refuses_the_old_key(*, is_v0: bool) -> None:
    """The project was rotated and the object rewrapped, all within the cache time.

    The user wrap of a v0 body opens by the KEK of its own generation, which the old snapshot lacks.
    """
    bench = Bench()
    await bench.authenticate()
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    if is_v0:
        bench.plant_swept_v0(PLAINTEXT, DEK, bench.desired)
    else:
        bench.plant_sealed(PLAINTEXT)
    await bench.open_fails(UnauthorizedError)
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert reader.size_bytes == len(PLAINTEXT)


async def test_an_object_newer_than_the_current_keyring_is_a_rollback() -> None:
    bench = Bench()
    before = bench.ring
    bench.write_keyring(turned_to(before, NEW_API_KEY))
    bench.plant_sealed(PLAINTEXT)
    bench.write_keyring(before)  # an old record, put back
    await bench.open_fails(KeyringRolledBackError)


async def test_a_forged_newer_label_proves_no_rollback() -> None:
    """The wrap is bound to its label: with a forged one it does not open."""
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    bench.plant(enc(replace(wraps, generation=9)), body)
    await bench.open_fails(NoUsableWrapError)


@pytest.mark.parametrize("start_bytes", [None, HEADER_BYTES])
async def test_missing_deleted_and_archived_objects_do_not_open(start_bytes: int | None) -> None:
    bench = Bench()
    for error in (NotFoundError, NotFoundError, ArchivedObjectError):
        with pytest.raises(error):
            async with bench.opened(start_bytes):
                pytest.fail("must not open")
        assert bench.storage.open_streams == 0
        if not bench.storage.stored_keys()[1:]:
            bench.plant(deleted(bench.desired, KEY), b"")
        else:
            bench.plant_sealed(archived=True)


async def test_what_one_read_shows_of_a_key() -> None:
    """The ETag and the time that readers of the object get, without opening it."""
    bench = Bench()
    caller = await bench.authenticate()
    assert await bench.opener.find_stored(caller, KEY) is None
    bench.plant_sealed()
    async with bench.opened() as reader:
        expected = StoredObject(reader.etag, content_modified_at(reader.head))
    assert await bench.opener.find_stored(caller, KEY) == expected
    bench.plant({}, b"plaintext")
    plaintext = await bench.opener.find_stored(caller, KEY)
    assert plaintext is not None
    assert plaintext.etag == f'"{(await bench.storage.head(TARGET)).etag}"'
    bench.plant_sealed(archived=True)
    assert await bench.opener.find_stored(caller, KEY) == StoredObject()
    bench.plant(deleted(bench.desired, KEY), b"")
    assert await bench.opener.find_stored(caller, KEY) == StoredObject(is_tombstone=True)


async def test_a_key_that_the_storage_takes_for_another_holds_nothing() -> None:
    """The other key's object is not read, and the key is refused before a body is taken."""
    bench = Bench()
    caller = await bench.authenticate()
    calls = bench.storage.calls.copy()
    bench.storage.capabilities = Capabilities(keys_are_paths=True)
    with pytest.raises(NotFoundError):
        async with bench.opener.open(caller, "a\\b", start_bytes=None):
            pass
    assert await bench.opener.find_stored(caller, "a\\b") is None
    with pytest.raises(MalformedRequestError):
        await bench.opener.require_unused_key(caller, "a\\b")
    assert bench.storage.calls == calls


@pytest.mark.parametrize("kind", ["plaintext", "v0"])
async def test_readers_hold_at_most_one_connection(kind: str) -> None:
    """Otherwise readers could use up the pool and wait for each other."""
    bench = Bench()
    bench.allow(plaintext=True, v0=True)
    if kind == "plaintext":
        bench.plant({}, PLAINTEXT)
    else:
        bench.plant_v0(PLAINTEXT, DEK, DEK)
    most = 0
    async with bench.opened() as reader:
        assert bench.storage.open_streams == 0
        async for _ in reader.read_all():
            most = max(most, bench.storage.open_streams)
    assert most <= 1


# --- What all readers of objects have in common (SPEC 3.1, 4.3)


async def test_the_modification_time_is_when_the_content_was_stored() -> None:
    storage = MemoryStorage()
    await storage.put("acme/k", b"", Headers({}))
    stored = (await storage.head("acme/k")).last_modified
    assert content_modified_at(await storage.head("acme/k")) == stored
    earlier = (stored - timedelta(days=1)).astimezone(UTC).replace(microsecond=0)
    moved = Headers({"enc-stored-at": f"{earlier:%Y-%m-%dT%H:%M:%SZ}"})
    await storage.put("acme/rewrapped", b"", moved)
    assert content_modified_at(await storage.head("acme/rewrapped")) == earlier
    assert isinstance(earlier, datetime)


def test_what_does_not_authenticate_is_corrupt() -> None:
    with pytest.raises(CorruptObjectError), seal_errors_as_corrupt():
        raise SealError("chunk 3")
    with pytest.raises(KeyError), seal_errors_as_corrupt():
        raise KeyError


# --- Objects of the earlier system, with their own wraps or with v1 wraps (SPEC 4.6, 9.3)


@pytest.mark.parametrize(
    ("user", "admin"), [(DEK, DEK), (DEK, None), (None, DEK)], ids=["both", "user", "admin"]
)
async def test_v0_objects_open_by_either_of_their_wraps(
    user: bytes | None, admin: bytes | None
) -> None:
    bench = Bench()
    bench.allow(v0=True)
    bench.plant_v0(PLAINTEXT, user, admin)
    async with bench.opened() as reader:
        assert isinstance(reader, LegacyReader)
        etag = (await bench.storage.head(TARGET)).etag
        assert (reader.etag, reader.size_bytes) == (f'"{etag}"', len(PLAINTEXT))
    assert await bench.read() == PLAINTEXT
    assert await bench.read(Span(7, 99_000)) == PLAINTEXT[7:99_000]
    assert bench.storage.open_streams == 0


async def test_v0_objects_open_only_where_v0_is_allowed() -> None:
    bench = Bench()
    bench.plant_v0(PLAINTEXT, DEK, DEK)
    await bench.open_fails(NoUsableWrapError)


async def test_v0_wraps_that_disagree_are_corrupt() -> None:
    bench = Bench()
    bench.allow(v0=True)
    bench.plant_v0(PLAINTEXT, DEK, new_dek())
    await bench.open_fails(CorruptObjectError)


async def test_v0_wraps_that_are_missing_open_nothing() -> None:
    bench = Bench()
    bench.allow(v0=True)
    bench.plant(v0_metadata(None, None), v0_seal(DEK, PLAINTEXT))
    await bench.open_fails(NoUsableWrapError)


_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "first": lambda body: bytes([body[0] ^ 1]) + body[1:],
    "middle": lambda body: body[:5000] + bytes([body[5000] ^ 1]) + body[5001:],
    "last": lambda body: body[:-1] + bytes([body[-1] ^ 1]),
    "cut": lambda body: body[:-1],
    "longer": lambda body: body + b"\0",
    "a nonce alone": lambda body: body[:12],
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("damage", _DAMAGE)
@pytest.mark.parametrize("in_thread", [True, False])
async def test_no_byte_of_a_damaged_v0_body_is_yielded(
    damage: str, *, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_IN_THREAD_BYTES", 0 if in_thread else 10**9)
    bench = Bench()
    bench.allow(v0=True)
    bench.plant(v0_metadata(DEK, DEK), _DAMAGE[damage](v0_seal(DEK, PLAINTEXT)))
    await bench.open_fails(CorruptObjectError)


async def test_a_v0_body_above_the_limit_is_not_read() -> None:
    bench = Bench(v0_max_bytes=1000)
    bench.allow(v0=True)
    bench.plant_v0(bytes(1000 - 28), DEK, DEK)
    assert await bench.read() == bytes(1000 - 28)
    bench.plant_v0(bytes(1000 - 27), DEK, DEK)
    bench.storage.streamed.clear()
    await bench.open_fails(BodyTooLargeError)
    assert len(bench.storage.streamed) == 1  # the look at a whole GET, and no other


async def test_the_number_of_open_v0_bodies_is_limited() -> None:
    bench = Bench()
    bench.allow(v0=True)
    bench.plant_v0(PLAINTEXT, DEK, DEK)
    leave, opened = asyncio.Event(), asyncio.Semaphore(0)

    async def reader() -> None:
        async with bench.opened() as reader:
            await reader.verify()
            opened.release()
            await leave.wait()

    readers = [asyncio.create_task(reader()) for _ in range(3)]
    await opened.acquire()
    await opened.acquire()
    for _ in range(50):
        await asyncio.sleep(0)
    assert opened.locked()  # the third waits
    leave.set()
    await asyncio.gather(*readers)


async def test_a_v0_body_replaced_during_a_read_is_detected() -> None:
    bench = Bench()
    bench.allow(v0=True)
    bench.plant_v0(PLAINTEXT, DEK, DEK)

    async def replaced() -> None:
        bench.plant_v0(PLAINTEXT, DEK, DEK)

    await bench.authenticate()
    bench.storage.before_next("stream", replaced)
    with pytest.raises(StorageUnavailableError):
        async with bench.opened(56) as reader:
            await reader.verify()


async def _caller_of_other(bench: Bench) -> Caller:
    """A caller of another project with such an object."""
    ring = v0_ring(ring_of(NEW_API_KEY, "other"))
    bench.storage.plant(keyring_s3_key("other"), build_keyring(ring, MASTER_KEYS), Headers({}))
    bench.storage.plant(
        object_s3_key("other", KEY), v0_seal(DEK, PLAINTEXT), Headers(v0_metadata(DEK, DEK))
    )
    return await bench.auth.authenticate("other", [f"Bearer {NEW_API_KEY}"])


async def test_slow_downloads_of_one_projects_v0_objects_leave_room_for_others() -> None:
    """Four of them made every other project's v0 reads fail with 503."""
    bench = Bench(v0_share=0.5, v0_wait_s=0.02)
    bench.allow(v0=True)
    bench.plant_v0(PLAINTEXT, DEK, DEK)
    caller = await _caller_of_other(bench)
    async with bench.opened() as slow, bench.opened() as more:
        await slow.verify()
        assert more.size_bytes == len(PLAINTEXT)  # it is not open
        with pytest.raises(TooManyRequestsError, match="reads of v0 objects"):
            await more.verify()
        async with bench.opener.open(caller, KEY, start_bytes=None) as theirs:
            assert b"".join([piece async for piece in theirs.read_all()]) == PLAINTEXT
    assert await bench.read() == PLAINTEXT


async def test_where_all_slots_are_in_use_everybody_is_refused() -> None:
    bench = Bench(v0_wait_s=0.02)
    bench.allow(v0=True)
    bench.plant_v0(PLAINTEXT, DEK, DEK)
    caller = await _caller_of_other(bench)
    async with bench.opened() as one, bench.opened() as two:
        await one.verify()
        await two.verify()
        async with bench.opener.open(caller, KEY, start_bytes=None) as theirs:
            with pytest.raises(GatewayBusyError):
                await theirs.verify()


# Swept: v1 wraps over a v0 body.


async def test_a_swept_v0_object_opens_where_v0_is_forbidden() -> None:
    bench = Bench()
    bench.plant_swept_v0(PLAINTEXT, DEK, bench.desired)
    assert await bench.read() == PLAINTEXT
    assert await bench.read(Span(1, 2)) == PLAINTEXT[1:2]


async def test_a_swept_v0_object_whose_wraps_disagree_is_corrupt() -> None:
    """The body commits to no key, so a user wrap of another DEK is an error."""
    bench = Bench()
    wraps = wrap(bench.desired, KEY, DEK, algorithm="AES-256-GCM")
    lying = wrap(bench.desired, KEY, new_dek(), algorithm="AES-256-GCM")
    body = v0_seal(DEK, PLAINTEXT)
    for changed in (replace(wraps, user=lying.user), replace(wraps, admin=lying.admin)):
        bench.plant(enc(changed), body)
        await bench.open_fails(CorruptObjectError)


async def test_a_swept_v0_object_needs_both_wraps() -> None:
    bench = Bench()
    wraps = wrap(bench.desired, KEY, DEK, algorithm="AES-256-GCM")
    body = v0_seal(DEK, PLAINTEXT)
    for changed, error in (
        (replace(wraps, user=b"x"), WrapsDisagreeError),
        (replace(wraps, admin=b"x"), NoUsableWrapError),
    ):
        bench.plant(enc(changed), body)
        await bench.open_fails(error)


async def test_a_swept_v0_object_opens_by_the_kek_of_its_own_generation() -> None:
    bench = Bench()
    bench.plant_swept_v0(PLAINTEXT, DEK, bench.desired)
    before = bench.ring
    bench.write_keyring(turned_to(before, NEW_API_KEY))
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert reader.size_bytes == len(PLAINTEXT)
    # Once a clean sweep cleared that KEK, nothing of that generation is left to open.
    cleared = replace(before.current, kek=None)
    bench = Bench(ring=replace(turned_to(before, NEW_API_KEY), history=(cleared,)))
    bench.plant_swept_v0(PLAINTEXT, DEK, desired_state(before, MASTER_KEYS))
    await bench.open_fails(NoUsableWrapError, NEW_API_KEY)


async def test_an_encrypted_body_with_v0_metadata_is_corrupt() -> None:
    bench = Bench()
    wraps = wrap(bench.desired, KEY, DEK, algorithm="AES-256-GCM")
    bench.plant(enc(wraps), seal(DEK, BODY_CONTEXT, PLAINTEXT))
    await bench.open_fails(CorruptObjectError)


async def test_repr_shows_no_plaintext() -> None:
    bench = Bench()
    bench.plant_swept_v0(b"a secret plaintext", DEK, bench.desired)
    async with bench.opened() as reader:
        assert "secret" not in repr(reader)


# --- Objects that are stored without encryption (SPEC 4.5, 9.3)


async def test_plaintext_is_read_only_where_it_is_allowed() -> None:
    bench = Bench()
    bench.plant({}, PLAINTEXT)
    await bench.open_fails(CorruptObjectError)
    bench = Bench()
    bench.allow(plaintext=True)
    bench.plant({"enc-upload": "x"}, PLAINTEXT)
    async with bench.opened(56) as reader:
        assert isinstance(reader, PlaintextReader)
        await reader.verify()
        etag = (await bench.storage.head(TARGET)).etag
        assert (reader.etag, reader.size_bytes) == (f'"{etag}"', len(PLAINTEXT))
    assert await bench.read() == PLAINTEXT
    assert await bench.read(Span(5, 70_001)) == PLAINTEXT[5:70_001]
    assert bench.storage.streamed[-1] == (5, 69_996, etag)
    bench.plant({"enc-dek-user": "eA=="}, PLAINTEXT)
    await bench.open_fails(CorruptObjectError)


async def test_empty_plaintext() -> None:
    bench = Bench()
    bench.allow(plaintext=True)
    bench.plant({}, b"")
    assert await bench.read() == b""


async def test_plaintext_replaced_or_deleted_during_a_read_is_never_mixed() -> None:
    for removed in (True, False):
        bench = Bench()
        bench.allow(plaintext=True)
        bench.plant({}, PLAINTEXT)
        async with bench.opened(56) as reader:
            if removed:
                await bench.storage.delete(TARGET)
            else:
                bench.plant({}, os.urandom(len(PLAINTEXT)))
            with pytest.raises(StorageUnavailableError):
                await anext(reader.read_range(Span(0, 10)))
