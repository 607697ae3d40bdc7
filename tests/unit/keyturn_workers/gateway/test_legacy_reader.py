"""Objects of the earlier system, with their own wraps or with v1 wraps (SPEC 4.6, 9.3)."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, new_dek, seal, v0_seal
from keyturn.errors import (
    BodyTooLargeError,
    CorruptObjectError,
    NoUsableWrapError,
    StorageUnavailableError,
    TooManyRequestsError,
    WrapsDisagreeError,
)
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn_workers.gateway import objects
from keyturn_workers.gateway.objects import LegacyReader
from keyturn_workers.gateway.request import Span
from keyturn_workers.gateway.shares import GatewayBusyError
from keyturn_workers.objects.wraps import wrap
from keyturn_workers.storage import Headers
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    enc,
    v0_metadata,
    v0_ring,
)
from tests.unit.keyturn_workers.gateway.bench import (
    KEY,
    NEW_API_KEY,
    TARGET,
    Bench,
    ring_of,
    turned_to,
)
from tools.harness.local_keys import build_keyring, desired_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn_workers.gateway.auth import Caller

PLAINTEXT = os.urandom(100_000)
DEK = new_dek()


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
