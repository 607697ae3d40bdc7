"""Uploads to projects with customer keys: what they ask for, and that they hold no place for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import customer_secret_id, new_customer_secret
from keyturn.errors import CodedError, CustomerKeyRefusedError
from keyturn.metadata import Wraps, parse
from keyturn_workers.core.wraps import try_wrap
from keyturn_workers.pipeline.upload.uploader import UploadResult
from tests.unit.keyturn_workers.factories import MASTER_KEYS, turned_to
from tests.unit.keyturn_workers.pipeline.upload.bench import (
    DATA,
    TARGET,
    WAYS,
    Bench,
    bench,
    request,
    unleased,
)
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import desired_state

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.core.keyring import Keyring

A: Final = new_customer_secret()
B: Final = new_customer_secret()
A_ID: Final = customer_secret_id(A)
B_ID: Final = customer_secret_id(B)
FIRST: Final = unleased()
WITH_A: Final = turned_to(FIRST, A, "a")
WITH_B: Final = turned_to(WITH_A, B, "b")


def with_key(ring: Keyring = WITH_A, way: str = "put") -> Bench:
    return bench(way, ring=ring, customer_keys=HeldCustomerKeys(A, B))


async def secret_id(on: Bench) -> str | None:
    """The secret that both wraps of the object need."""
    wraps = parse((await on.storage.head(TARGET)).metadata)
    assert isinstance(wraps, Wraps)
    desired = desired_state(on.ring, MASTER_KEYS)
    known = replace(on.ring.secrets, held=on.customer_keys.secrets)
    at = (on.ring.current.generation,)
    for role, kek in (("user", desired.user_kek), ("admin", desired.admin_kek)):
        names: Any = role
        assert try_wrap(wraps, names, "k", "acme", kek, at, known) is not None
        assert try_wrap(wraps, names, "k", "acme", kek, at, on.ring.secrets) is None
    return wraps.secret_id


@pytest.mark.parametrize("way", WAYS)
async def test_an_upload_wraps_under_the_secret_and_is_recognized_by_it(way: str) -> None:
    on = with_key(way=way)
    sent = request(on, way)
    assert await on.serve(sent) == UploadResult(len(DATA), 2)
    assert await secret_id(on) == A_ID
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 2)
    assert await on.uploader.find_completed(sent, "api") == UploadResult(len(DATA), 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["refused", "away"])
async def test_an_upload_without_the_secret_takes_no_place_and_reads_no_body(
    way: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = with_key(way=way)
    sent = request(on, way)
    getattr(on.customer_keys, where).add("kms/a")
    for place in ("stream_slots", "comparison_slots"):
        monkeypatch.setattr(on.context, place, None)
    for act in (
        on.serve(sent),
        on.serve(sent, seen_before=True),
        on.uploader.find_completed(sent, "api"),
    ):
        with pytest.raises(CodedError) as raised:
            await act
        assert raised.value.transient
        assert raised.value.code.startswith("customer_key_")
    assert on.storage.calls["put"] == on.storage.calls["put_stream"] == 0
    assert on.storage.calls["read_start"] == 0


def _turned_during(on: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotation to the key B once this request of the storage was served."""
    original: Callable[..., Awaitable[Any]] = getattr(on.storage, name)

    async def served(*arguments: Any, **more: Any) -> Any:
        answer = await original(*arguments, **more)
        if on.ring is not WITH_B:
            on.write_keyring(WITH_B)
        return answer

    monkeypatch.setattr(on.storage, name, served)


async def test_an_upload_that_meets_a_rotation_to_another_key_ends_under_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has stored its object under the former secret, and asks for the new one."""
    on = with_key()
    _turned_during(on, "put", monkeypatch)
    assert await on.serve(request(on)) == UploadResult(len(DATA), 3)
    assert await secret_id(on) == B_ID
    assert {A_ID, B_ID} == set(on.customer_keys.asked)


async def test_after_a_rotation_an_upload_asks_for_the_former_secret_of_its_object(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on = with_key()
    _turned_during(on, "put", monkeypatch)
    on.customer_keys.refused.add("kms/b")
    sent = request(on)
    with pytest.raises(CustomerKeyRefusedError):
        await on.serve(sent)
    on.customer_keys.refused = {"kms/a"}
    on.storage.advance(60)
    with pytest.raises(CustomerKeyRefusedError):
        await on.serve(sent, seen_before=True)
    on.customer_keys.refused.clear()
    on.customer_keys.asked.clear()
    assert await on.serve(sent, seen_before=True) == UploadResult(len(DATA), 3)
    assert on.customer_keys.asked == [B_ID, A_ID]
    assert await secret_id(on) == B_ID


async def test_no_slot_is_held_while_another_secret_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rotation during an upload: it gives up its place, and begins again with the new secret."""
    on = with_key(way="put_stream")
    free = []
    ask = on.customer_keys._ask

    def asked(customer_key: Any) -> Any:
        free.append(on.context.stream_slots._value)
        return ask(customer_key)

    monkeypatch.setattr(on.customer_keys, "_ask", asked)
    _turned_during(on, "put_stream", monkeypatch)
    async with asyncio.timeout(10):
        assert await on.serve(request(on, "put_stream")) == UploadResult(len(DATA), 3)
    assert set(free) == {2}
    assert len(free) > 1
