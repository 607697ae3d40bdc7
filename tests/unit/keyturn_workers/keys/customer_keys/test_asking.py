"""What stores say of customer keys that an erasure asks about (SPEC 8.8)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import CustomerKeyRefusedError, KmsUnavailableError
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.core.erasure import KeyState
from keyturn_workers.keys.customer_keys.secrets import IN_GATEWAYS
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.keys.customer_keys.fakes import Bench

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring

A = KeyName("bao", "a")


async def _locked(on: Bench, name: KeyName = A) -> Keyring:
    ring = keyring()
    made = await on.keys.create("acme", name)
    return replace(ring, current=replace(ring.current, customer_key=made))


async def _state(on: Bench, ring: Keyring) -> KeyState:
    ((secret_id, state),) = (await on.keys.ask(ring)).items()
    assert secret_id == ring.current.secret_id
    return state


@pytest.mark.parametrize("state", [KeyState.DISABLED, KeyState.PENDING_DELETION, KeyState.MISSING])
async def test_an_answer_about_the_key_counts_while_the_store_answers_anything_else(
    state: KeyState,
) -> None:
    on = Bench()
    ring = await _locked(on)
    on.store.failures["a"] = KmsRefusedError("gone", key_state=state)
    assert await _state(on, ring) is state
    on.store.is_mute = True
    assert await _state(on, ring) is KeyState.UNDECIDED


@pytest.mark.parametrize(
    "failure",
    [KmsRefusedError("denied"), KmsUnavailableError("no response")],
    ids=["denied", "away"],
)
async def test_anything_else_says_nothing_of_the_key(failure: KmsUnavailableError) -> None:
    on = Bench()
    ring = await _locked(on)
    on.store.failures["a"] = failure
    assert await _state(on, ring) is KeyState.UNDECIDED


async def test_a_secret_is_given_only_if_it_is_the_right_one() -> None:
    on = Bench()
    ring = await _locked(on)
    assert await _state(on, ring) is KeyState.GIVEN
    on.store.wrong.add("a")
    assert await _state(on, ring) is KeyState.UNDECIDED


async def test_what_is_in_memory_answers_nothing() -> None:
    on = Bench()
    ring = await _locked(on)
    await on.keys.unlock(ring)
    on.store.failures["a"] = KmsRefusedError("gone", key_state=KeyState.DISABLED)
    assert await _state(on, ring) is KeyState.DISABLED


async def test_a_store_that_the_settings_lack_decides_nothing() -> None:
    on = Bench()
    ring = await _locked(on)
    key = ring.current.customer_key
    assert key is not None
    for name in (KeyName("elsewhere", "a"), KeyName("bao", "not-given")):
        other = replace(ring.current, customer_key=replace(key, name=name))
        assert await _state(on, replace(ring, current=other)) is KeyState.UNDECIDED


@pytest.mark.parametrize("is_wrong", [False, True])
async def test_a_refusal_ends_a_secret_that_is_in_memory(*, is_wrong: bool) -> None:
    on = Bench()
    ring = await _locked(on)
    await on.keys.unlock(ring)
    if is_wrong:
        on.store.wrong.add("a")
    else:
        on.store.failures["a"] = KmsRefusedError("gone", key_state=KeyState.DISABLED)
    await _state(on, ring)
    with pytest.raises(CustomerKeyRefusedError):
        await on.keys.unlock(ring)


async def test_a_refusal_ends_a_secret_that_was_asked_for_before() -> None:
    """The store gave it, and its response comes later."""
    on = Bench(IN_GATEWAYS)
    ring = await _locked(on)
    given = on.store.held["a"] = asyncio.Event()
    on.store.came.clear()
    asking = asyncio.create_task(on.keys.unlock(ring))
    await on.store.came.wait()
    await asyncio.sleep(0.01)  # it is held
    del on.store.held["a"]
    on.clock.now_s += 1
    on.store.failures["a"] = KmsRefusedError("gone", key_state=KeyState.DISABLED)
    await _state(on, ring)
    on.store.failures.clear()
    given.set()
    with pytest.raises(CustomerKeyRefusedError):
        await asking
