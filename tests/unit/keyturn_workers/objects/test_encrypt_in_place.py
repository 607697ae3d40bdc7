"""The two actions that read a body: check a v0 body, encrypt plaintext in place (SPEC 8.2)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.crypto import BODY_CONTEXT, Secret, new_dek, open_sealed, sealed_size
from keyturn.errors import BodyTooLargeError, CorruptObjectError
from keyturn.metadata import Plaintext, Tombstone, parse
from keyturn_workers.errors import MissingError, PreconditionError, RefusedError
from keyturn_workers.objects.apply import (
    PUT_MAX_BYTES,
    ObjectWrite,
    check_fits_one_put,
    check_v0_body,
    encrypt_plaintext,
)
from keyturn_workers.storage import Headers
from tests.unit.keyturn_workers.scene import (
    ENCRYPT,
    KEY,
    TARGET,
    Scene,
    in_plaintext,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

DEK = new_dek()
BODIES = pytest.mark.parametrize(
    "body", [b"hello", bytes(2_500_000)], ids=["one piece", "several pieces"]
)


# A v0 body.


async def _check(on: Scene, dek: bytes) -> None:
    await check_v0_body(on.storage, TARGET, (await on.read_view()).head, Secret(dek))


@pytest.mark.parametrize("size", [0, 5, 3_000_000])
async def test_a_v0_body_opens_under_its_own_dek_alone(size: int) -> None:
    on = Scene()
    on.plant_v0(DEK, size=size)
    await _check(on, DEK)
    with pytest.raises(CorruptObjectError):
        await _check(on, new_dek())


@pytest.mark.parametrize("cut", [1, 16, 10_000])
async def test_a_v0_body_that_was_cut_does_not_open(cut: int) -> None:
    on = Scene()
    body = on.plant_v0(DEK, size=20_000)
    head = await on.storage.head(TARGET)
    on.storage.plant(TARGET, body[:-cut], head.headers)
    with pytest.raises(CorruptObjectError):
        await _check(on, DEK)


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


async def test_a_v0_body_that_does_not_open_gets_no_wraps() -> None:
    """The body does not commit to its key: the wraps alone prove nothing."""
    on = Scene()
    on.plant_v0(new_dek(), body_dek=new_dek())
    before = await on.storage.head(TARGET)
    with pytest.raises(CorruptObjectError):
        await on.reconcile()
    assert (await on.storage.head(TARGET)).metadata == before.metadata
    assert on.storage.calls["copy_onto_itself"] == 0


async def test_a_v0_body_replaced_before_it_is_checked_is_left_alone() -> None:
    on = Scene()
    on.plant_v0(new_dek())
    on.storage.before_next("stream", on.delete)
    with pytest.raises(PreconditionError):
        await on.reconcile()


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
