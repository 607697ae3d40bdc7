"""Credentials that a provider refused are not tried again and again."""

from __future__ import annotations

import pytest

from keyturn.crypto import Secret
from keyturn_workers.master_keys.port import KmsRefusedError
from keyturn_workers.master_keys.refusals import Refusals
from tests.unit.keyturn_workers.master_keys.fake_vault import Clock

OLD, NEW = Secret(b"old"), Secret(b"new")


def _passes(refusals: Refusals, credential: Secret) -> bool:
    try:
        refusals.check(credential)
    except KmsRefusedError:
        return False
    return True


def _attempts(refusals: Refusals, clock: Clock, seconds: int) -> list[float]:
    """When an impatient caller may try, within so many seconds."""
    began, found = clock.now, []
    while clock.now < began + seconds:
        if _passes(refusals, OLD):
            found.append(clock.now - began)
            refusals.add(OLD, "refused")
        clock.now += 0.5
    return found


def test_delays_double_up_to_a_minute() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    refusals.add(OLD, "refused")
    assert _attempts(refusals, clock, 250) == [1, 3, 7, 15, 31, 63, 123, 183, 243]


def test_of_many_calls_after_a_delay_one_is_let_through() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    refusals.add(OLD, "refused")
    clock.now += 1
    assert [_passes(refusals, OLD) for _ in range(3)] == [True, False, False]


def test_many_refusals_at_once_are_one() -> None:
    clock = Clock()
    refusals = Refusals(clock)
    for _ in range(16):
        refusals.add(OLD, "refused")
    clock.now += 1
    assert _passes(refusals, OLD)


def test_another_credential_is_let_through_at_once() -> None:
    refusals = Refusals(Clock())
    refusals.add(OLD, "refused")
    assert refusals.blocks(OLD)
    assert not refusals.blocks(NEW)
    assert _passes(refusals, NEW)
    assert not refusals.any


def test_the_error_is_the_reason_and_no_credential() -> None:
    refusals = Refusals(Clock())
    assert refusals.add(OLD, "expired").detail == "expired"
    assert refusals.error().detail == "expired"
    with pytest.raises(KmsRefusedError, match=r"^kms_unavailable: expired; next attempt in 1 s$"):
        refusals.check(OLD)


def test_what_was_accepted_is_forgotten() -> None:
    refusals = Refusals(Clock())
    refusals.add(OLD, "refused")
    refusals.clear()
    assert _passes(refusals, OLD)
