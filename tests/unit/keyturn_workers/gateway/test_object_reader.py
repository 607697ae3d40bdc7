"""Which objects open, by which wrap, and what kinds are allowed (SPEC 4.5 to 4.7, 5.4, 9)."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, new_dek, seal, v0_seal
from keyturn.errors import (
    BodyTooLargeError,
    CodedError,
    CorruptObjectError,
    KeyringRolledBackError,
    NotFoundError,
    NoUsableWrapError,
    StorageUnavailableError,
    UnauthorizedError,
    UnknownAlgorithmError,
)
from keyturn_workers.gateway import object_opener as source_module
from keyturn_workers.gateway.object_reader import Legacy, Plaintext
from keyturn_workers.gateway.ranges import Span
from keyturn_workers.objects.wrap import wrap
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    deleted,
    enc,
    sealed_object,
    v0_metadata,
)
from tests.unit.keyturn_workers.gateway.bench import (
    API_KEY,
    KEY,
    NEW_API_KEY,
    TARGET,
    Bench,
    turned_to,
)

if TYPE_CHECKING:
    from collections.abc import Callable

PLAINTEXT = os.urandom(100_000)
DEK = new_dek()


async def _opened(bench: Bench, start_bytes: int | None, api_key: str) -> None:
    async with bench.opened(start_bytes, api_key) as reader:
        assert isinstance(reader, Legacy)  # which opens only once it has to
        await reader.verify()


async def _raises(bench: Bench, error: type[CodedError], api_key: str = API_KEY) -> str:
    """The error's detail, the same however the object is opened."""
    details = set()
    for start_bytes in (None, 56):
        with pytest.raises(error) as caught:
            await _opened(bench, start_bytes, api_key)
        details.add(caught.value.detail)
        assert bench.storage.open_streams == 0
    (detail,) = details
    return detail


# Wraps.


async def test_a_user_wrap_of_a_dek_that_the_header_does_not_commit_to_is_corrupt() -> None:
    """Whoever holds the API key could make one: the admin wrap must not hide it."""
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    lying = wrap(bench.desired, KEY, new_dek())
    bench.plant(enc(replace(wraps, user=lying.user)), body)
    await _raises(bench, CorruptObjectError)


async def test_an_admin_wrap_of_another_dek_is_corrupt_where_it_serves() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    lying = wrap(bench.desired, KEY, new_dek())
    bench.plant(enc(replace(wraps, admin=lying.admin)), body)
    assert await bench.read() == b"hello"  # the user wrap opens: the other is not looked at
    bench.plant(enc(replace(wraps, user=b"", admin=lying.admin)), body)
    await _raises(bench, CorruptObjectError)


async def test_an_object_not_yet_swept_is_read_by_its_admin_wrap() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert b"".join([bytes(piece) async for piece in reader.read_all()]) == PLAINTEXT
    assert bench.storage.calls["read"] == 1  # an older object asks for no second look
    with pytest.raises(UnauthorizedError):
        await bench.authenticate(API_KEY)


async def test_an_object_under_a_master_key_that_is_being_rotated_out_is_read() -> None:
    bench = Bench()
    bench.plant_sealed(PLAINTEXT)
    bench.write_keyring(replace(turned_to(bench.ring, NEW_API_KEY), master_key="m2"))
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert reader.size_bytes == len(PLAINTEXT)


async def test_wraps_that_open_under_no_key_at_hand() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    bench.plant(enc(replace(wraps, user=b"x", admin=b"")), body)
    await _raises(bench, NoUsableWrapError)


@pytest.mark.parametrize("change", [{"generation": 2}, {"algorithm": "AES-256-GCM"}])
async def test_a_relabelled_wrap_opens_nothing(change: dict[str, object]) -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    bench.plant(enc(replace(wraps, **change)), body)  # type: ignore[arg-type]
    await _raises(bench, NoUsableWrapError)


async def test_an_object_that_was_moved_or_is_another_projects_opens_nothing() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, "another/key")
    bench.plant(enc(wraps), body)
    await _raises(bench, NoUsableWrapError)
    wraps, body = sealed_object(replace(bench.desired, project="other"), KEY)
    bench.plant(enc(wraps), body)
    await _raises(bench, NoUsableWrapError)


async def test_another_objects_body_under_these_wraps_is_corrupt() -> None:
    bench = Bench()
    wraps, _ = sealed_object(bench.desired, KEY)
    _, other = sealed_object(bench.desired, KEY)
    for body in (other, b"", other[:30]):
        bench.plant(enc(wraps), body)
        await _raises(bench, CorruptObjectError)


async def test_metadata_that_is_stripped_or_strange() -> None:
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    for name in ("enc-algo", "enc-dek-user", "enc-dek-admin", "enc-kek-user"):
        metadata = enc(wraps)
        del metadata[name]
        bench.plant(metadata, body)
        await _raises(bench, CorruptObjectError)
    bench.plant({**enc(wraps), "enc-algo": "ROT13"}, body)
    assert await _raises(bench, UnknownAlgorithmError) == "ROT13"


async def test_a_tombstone_is_not_found_whatever_it_holds() -> None:
    bench = Bench()
    bench.plant(deleted(bench.desired, KEY), b"")
    await _raises(bench, NotFoundError)
    bench.plant(deleted(bench.desired, "another/key"), b"left over")
    await _raises(bench, NotFoundError)


# An object that is newer than the keyring that was read.


async def test_an_object_newer_than_the_keyring_in_the_cache_turns_its_old_key_away() -> None:
    """The keyring turned and the object followed, all within the cache's seconds."""
    bench = Bench()
    await bench.authenticate()
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    bench.plant_sealed(PLAINTEXT)
    await _raises(bench, UnauthorizedError)
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert reader.size_bytes == len(PLAINTEXT)


async def test_a_v0_body_newer_than_the_keyring_in_the_cache_turns_its_old_key_away_too() -> None:
    """Its user wrap opens by the KEK of its own generation, which the old reading lacks."""
    bench = Bench()
    await bench.authenticate()
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    bench.plant_swept_v0(PLAINTEXT, DEK, bench.desired)
    await _raises(bench, UnauthorizedError)
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert reader.size_bytes == len(PLAINTEXT)


async def test_an_object_newer_than_the_keyring_that_stands_is_a_rollback() -> None:
    bench = Bench()
    before = bench.ring
    bench.write_keyring(turned_to(before, NEW_API_KEY))
    bench.plant_sealed(PLAINTEXT)
    bench.write_keyring(before)  # an old record, put back
    await _raises(bench, KeyringRolledBackError)


async def test_a_newer_label_alone_is_no_proof() -> None:
    """The wrap is bound to its label: a forged one opens nothing, and stops nothing."""
    bench = Bench()
    wraps, body = sealed_object(bench.desired, KEY)
    bench.plant(enc(replace(wraps, generation=9)), body)
    await _raises(bench, NoUsableWrapError)


# Plaintext.


async def test_plaintext_stands_only_where_it_is_allowed() -> None:
    bench = Bench()
    bench.plant({}, PLAINTEXT)
    await _raises(bench, CorruptObjectError)
    bench = Bench()
    bench.allow(plaintext=True)
    bench.plant({"enc-upload": "x"}, PLAINTEXT)
    async with bench.opened(56) as reader:
        assert isinstance(reader, Plaintext)
        await reader.verify()
        etag = (await bench.storage.head(TARGET)).etag
        assert (reader.etag, reader.size_bytes) == (f'"{etag}"', len(PLAINTEXT))
    assert await bench.read() == PLAINTEXT
    assert await bench.read(Span(5, 70_001)) == PLAINTEXT[5:70_001]
    assert bench.storage.streamed[-1] == (5, 69_996, etag)
    bench.plant({"enc-dek-user": "eA=="}, PLAINTEXT)
    await _raises(bench, CorruptObjectError)


async def test_empty_plaintext() -> None:
    bench = Bench()
    bench.allow(plaintext=True)
    bench.plant({}, b"")
    assert await bench.read() == b""


async def test_plaintext_that_is_replaced_or_goes_meanwhile_is_never_mixed() -> None:
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


@pytest.mark.parametrize("kind", ["plaintext", "v0"])
async def test_what_is_read_anew_holds_one_connection_and_not_two(kind: str) -> None:
    """Or as many readers as the pool has places for would wait for each other."""
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


# Objects of the earlier system.


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
        assert isinstance(reader, Legacy)
        etag = (await bench.storage.head(TARGET)).etag
        assert (reader.etag, reader.size_bytes) == (f'"{etag}"', len(PLAINTEXT))
    assert await bench.read() == PLAINTEXT
    assert await bench.read(Span(7, 99_000)) == PLAINTEXT[7:99_000]
    assert bench.storage.open_streams == 0


async def test_v0_objects_open_nowhere_else() -> None:
    bench = Bench()
    bench.plant_v0(PLAINTEXT, DEK, DEK)
    await _raises(bench, NoUsableWrapError)


async def test_v0_wraps_that_disagree_are_corrupt() -> None:
    bench = Bench()
    bench.allow(v0=True)
    bench.plant_v0(PLAINTEXT, DEK, new_dek())
    await _raises(bench, CorruptObjectError)


async def test_v0_wraps_that_are_missing_open_nothing() -> None:
    bench = Bench()
    bench.allow(v0=True)
    bench.plant(v0_metadata(None, None), v0_seal(DEK, PLAINTEXT))
    await _raises(bench, NoUsableWrapError)


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
async def test_not_a_byte_of_a_damaged_v0_body_comes_out(
    damage: str, *, in_thread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "_IN_THREAD_BYTES", 0 if in_thread else 10**9)
    bench = Bench()
    bench.allow(v0=True)
    bench.plant(v0_metadata(DEK, DEK), _DAMAGE[damage](v0_seal(DEK, PLAINTEXT)))
    await _raises(bench, CorruptObjectError)


async def test_a_v0_body_above_the_limit_is_not_even_read() -> None:
    bench = Bench(v0_max_bytes=1000)
    bench.allow(v0=True)
    bench.plant_v0(bytes(1000 - 28), DEK, DEK)
    assert await bench.read() == bytes(1000 - 28)
    bench.plant_v0(bytes(1000 - 27), DEK, DEK)
    bench.storage.streamed.clear()
    await _raises(bench, BodyTooLargeError)
    assert len(bench.storage.streamed) == 1  # the look at a whole GET, and no other


async def test_v0_bodies_are_held_a_few_at_once() -> None:
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


async def test_a_v0_body_that_changes_meanwhile_is_told() -> None:
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


async def test_nobody_waits_long_for_a_place_among_v0_bodies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_module, "_V0_WAIT_S", 0.02)
    bench = Bench()
    bench.allow(v0=True)
    bench.plant_v0(PLAINTEXT, DEK, DEK)
    async with bench.opened() as one, bench.opened() as two, bench.opened() as three:
        await one.verify()
        await two.verify()
        assert three.size_bytes == len(PLAINTEXT)  # of what is not opened, too
        with pytest.raises(StorageUnavailableError):
            await three.verify()


async def test_empty_plaintext_is_read_too() -> None:
    bench = Bench()
    bench.allow(plaintext=True)
    bench.plant({}, b"")
    assert await bench.read() == b""


# Swept: v1 wraps over a v0 body.


async def test_a_swept_v0_object_opens_where_v0_is_forbidden_by_then() -> None:
    bench = Bench()
    bench.plant_swept_v0(PLAINTEXT, DEK, bench.desired)
    assert await bench.read() == PLAINTEXT
    assert await bench.read(Span(1, 2)) == PLAINTEXT[1:2]


async def test_one_whose_wraps_disagree_is_corrupt() -> None:
    """Its body commits to no key: a user's wrap of another DEK is told, not passed over."""
    bench = Bench()
    wraps = wrap(bench.desired, KEY, DEK, algorithm="AES-256-GCM")
    lying = wrap(bench.desired, KEY, new_dek(), algorithm="AES-256-GCM")
    body = v0_seal(DEK, PLAINTEXT)
    for changed in (replace(wraps, user=lying.user), replace(wraps, admin=lying.admin)):
        bench.plant(enc(changed), body)
        await _raises(bench, CorruptObjectError)


async def test_one_with_a_single_wrap_that_opens_is_not_believed() -> None:
    bench = Bench()
    wraps = wrap(bench.desired, KEY, DEK, algorithm="AES-256-GCM")
    body = v0_seal(DEK, PLAINTEXT)
    for changed in (replace(wraps, user=b"x"), replace(wraps, admin=b"x")):
        bench.plant(enc(changed), body)
        await _raises(bench, NoUsableWrapError)


async def test_one_not_yet_swept_again_opens_by_the_kek_of_its_own_generation() -> None:
    bench = Bench()
    bench.plant_swept_v0(PLAINTEXT, DEK, bench.desired)
    before = bench.ring
    bench.write_keyring(turned_to(before, NEW_API_KEY))
    async with bench.opened(api_key=NEW_API_KEY) as reader:
        assert reader.size_bytes == len(PLAINTEXT)
    # Once a clean sweep cleared that KEK, nothing of that generation is left to open.
    cleared = replace(before.current, kek=None)
    bench = Bench(ring=replace(turned_to(before, NEW_API_KEY), history=(cleared,)))
    bench.plant_swept_v0(PLAINTEXT, DEK, before.desired(MASTER_KEYS))
    await _raises(bench, NoUsableWrapError, NEW_API_KEY)


async def test_a_sealed_body_under_v0_labels_is_no_v0_body() -> None:
    bench = Bench()
    wraps = wrap(bench.desired, KEY, DEK, algorithm="AES-256-GCM")
    bench.plant(enc(wraps), seal(DEK, BODY_CONTEXT, PLAINTEXT))
    await _raises(bench, CorruptObjectError)


async def test_what_was_opened_whole_does_not_show() -> None:
    bench = Bench()
    bench.plant_swept_v0(b"a secret plaintext", DEK, bench.desired)
    async with bench.opened() as reader:
        assert "secret" not in repr(reader)
