"""An object is opened with the right key, whatever kind it is of (SPEC 4, 5.4, 9)."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from keyturn.crypto import HEADER_BYTES, SealError, new_dek
from keyturn.errors import (
    ArchivedObjectError,
    CorruptObjectError,
    KeyringRolledBackError,
    MalformedRequestError,
    NotFoundError,
    NoUsableWrapError,
    StorageUnavailableError,
    UnauthorizedError,
    UnknownAlgorithmError,
    WrapsDisagreeError,
)
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.core.wraps import wrap
from keyturn_workers.gateway.objects import (
    PlaintextReader,
    StoredObject,
    content_modified_at,
    seal_errors_as_corrupt,
)
from keyturn_workers.gateway.request import Span
from tests.unit.keyturn_workers.factories import deleted, enc, sealed_object
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    KEY,
    NEW_API_KEY,
    TARGET,
    Bench,
    turned_to,
)
from tools.harness.memory_storage import MemoryStorage

# --- Which objects open, by which wrap, and which kinds are allowed (SPEC 4.5, 4.6, 5.4, 9)


PLAINTEXT = os.urandom(100_000)
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


async def test_a_relabeled_wrap_opens_nothing() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    bench.plant(enc(replace(wraps, generation=2)), body)
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


async def test_an_object_newer_than_the_cached_keyring_refuses_the_old_key() -> None:
    """The project was rotated and the object rewrapped, all within the cache time."""
    bench = Bench()
    await bench.authenticate()
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
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


async def test_readers_of_plaintext_hold_at_most_one_connection() -> None:
    """Otherwise readers could use up the pool and wait for each other."""
    bench = Bench()
    bench.allow_plaintext()
    bench.plant({}, PLAINTEXT)
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


# --- Objects that are stored without encryption (SPEC 4.5, 9.3)


async def test_plaintext_is_read_only_where_it_is_allowed() -> None:
    bench = Bench()
    bench.plant({}, PLAINTEXT)
    await bench.open_fails(CorruptObjectError)
    bench = Bench()
    bench.allow_plaintext()
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
    bench.allow_plaintext()
    bench.plant({}, b"")
    assert await bench.read() == b""


async def test_plaintext_replaced_or_deleted_during_a_read_is_never_mixed() -> None:
    for removed in (True, False):
        bench = Bench()
        bench.allow_plaintext()
        bench.plant({}, PLAINTEXT)
        async with bench.opened(56) as reader:
            if removed:
                await bench.storage.delete(TARGET)
            else:
                bench.plant({}, os.urandom(len(PLAINTEXT)))
            with pytest.raises(StorageUnavailableError):
                await anext(reader.read_range(Span(0, 10)))
