"""Which of two sweeps takes over the other (SPEC 8.6)."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from keyturn_workers.sweep.plan import SweepRequest
from keyturn_workers.sweep.takeover import covers, is_later

ONE = "2f6c9a0e-1111-4111-8111-111111111111"
TWO = "2f6c9a0e-2222-4222-8222-222222222222"
EARLIER = SweepRequest("sweep", TWO, "acme", "2026-11-24T10:00:00Z")
LATER = SweepRequest("rotation", ONE, "acme", "2026-11-24T10:00:00.5Z")


def test_the_time_of_the_request_decides_then_the_id() -> None:
    assert is_later(LATER, than=EARLIER)
    assert not is_later(EARLIER, than=LATER)
    # The same instant, spelt otherwise.
    same = replace(LATER, requested_at="2026-11-24T10:00:00.000000Z")
    assert is_later(EARLIER, than=same)
    assert not is_later(same, than=EARLIER)


def test_no_sweep_is_later_than_itself_and_the_order_has_no_cycle() -> None:
    asks = [
        replace(EARLIER, sweep_id=sweep_id, requested_at=at)
        for sweep_id in (ONE, TWO)
        for at in ("2026-11-24T10:00:00Z", "2026-11-24T10:00:01Z")
    ]
    assert not any(is_later(ask, than=ask) for ask in asks)
    for one, other, third in permutations(asks, 3):
        assert is_later(one, than=other) != is_later(other, than=one)
        if is_later(one, than=other) and is_later(other, than=third):
            assert is_later(one, than=third)


def test_a_later_sweep_with_the_same_options_takes_over_the_earlier_one() -> None:
    assert covers(LATER, EARLIER)
    assert not covers(EARLIER, LATER)


@pytest.mark.parametrize("option", ["encrypt_plaintext", "repair"])
def test_a_later_sweep_must_do_at_least_what_the_earlier_one_does(option: str) -> None:
    more: Any = {option: True}
    assert not covers(LATER, replace(EARLIER, **more))
    assert covers(replace(LATER, **more), EARLIER)
    assert covers(replace(LATER, **more), replace(EARLIER, **more))


def test_a_master_key_that_the_earlier_one_names_must_be_the_later_ones() -> None:
    named = replace(EARLIER, master_key="m2")
    assert not covers(LATER, named)
    assert not covers(replace(LATER, master_key="m1"), named)
    assert covers(replace(LATER, master_key="m2"), named)
    assert covers(replace(LATER, master_key="m2"), EARLIER)


def test_a_dry_run_takes_over_nothing_and_is_not_taken_over() -> None:
    assert not covers(replace(LATER, dry_run=True), EARLIER)
    assert not covers(LATER, replace(EARLIER, dry_run=True))
    assert not covers(replace(LATER, dry_run=True), replace(EARLIER, dry_run=True))


def test_sweeps_of_two_projects_are_each_others_own() -> None:
    assert not covers(LATER, replace(EARLIER, project="beta"))
