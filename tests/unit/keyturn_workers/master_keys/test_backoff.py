"""A refused credential is tried again after 1, 2, 4 … 60 seconds, by one call each time."""

from __future__ import annotations

import pytest

from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.backoff import RefusalBackoff
from keyturn_workers.master_keys.port import KmsRefusedError


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def _refuse(backoff: RefusalBackoff) -> None:
    backoff.refused(backoff.admit(), KmsRefusedError("the PIN is wrong"))


def test_without_a_refusal_every_call_is_admitted(clock: Clock) -> None:
    backoff = RefusalBackoff(clock)
    for _ in range(100):
        backoff.admit()


def test_the_delay_doubles_up_to_a_minute(clock: Clock) -> None:
    backoff = RefusalBackoff(clock)
    for delay_s in (1, 2, 4, 8, 16, 32, 60, 60, 60):
        _refuse(backoff)
        clock.now += delay_s - 0.01
        with pytest.raises(KmsRefusedError, match="the PIN is wrong; next attempt in"):
            backoff.admit()
        clock.now += 0.01


def test_a_provider_that_refuses_for_weeks_is_still_asked(clock: Clock) -> None:
    backoff = RefusalBackoff(clock)
    for _ in range(3000):  # 2.0 ** 3000 is no float
        _refuse(backoff)
        clock.now += 60
    backoff.admit()


def test_calls_that_were_sent_together_count_as_one_refusal(clock: Clock) -> None:
    backoff = RefusalBackoff(clock)
    admitted = [backoff.admit() for _ in range(16)]
    for number in admitted:
        backoff.refused(number, KmsRefusedError("expired"))
    clock.now += 1
    backoff.admit()


def test_after_the_delay_one_call_tries_and_the_others_fail(clock: Clock) -> None:
    backoff = RefusalBackoff(clock)
    _refuse(backoff)
    clock.now += 1
    backoff.admit()
    with pytest.raises(KmsUnavailableError):
        backoff.admit()
    clock.now += 1  # it never reported: another one tries
    backoff.admit()


def test_an_accepted_call_ends_the_delays(clock: Clock) -> None:
    backoff = RefusalBackoff(clock)
    _refuse(backoff)
    clock.now += 1
    _refuse(backoff)
    clock.now += 2
    backoff.admit()
    backoff.accepted()
    backoff.admit()
    _refuse(backoff)
    clock.now += 1
    backoff.admit()
