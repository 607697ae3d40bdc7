"""The counts of a sweep (SPEC 8.6)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from keyturn_workers.sweep.counts import Counts

COUNTS = Counts(objects=6, rewrapped=2, current=3, plaintext=2, encrypted=1, deleted=1)


def test_counts_split_into_states_and_writes() -> None:
    assert COUNTS.without_writes() == replace(COUNTS, rewrapped=0, encrypted=0)
    assert COUNTS.writes() == Counts(rewrapped=2, encrypted=1)
    assert COUNTS.without_writes() + COUNTS.writes() == COUNTS


@pytest.mark.parametrize(
    ("change", "all_as_desired"),
    [
        ({}, True),
        ({"foreign": 1}, True),
        ({"objects": 7}, False),
        ({"failed": 1}, False),
        ({"noncurrent_stale": 1}, False),
    ],
)
def test_all_is_as_desired_if_every_object_is_and_nothing_failed(
    change: dict[str, int], *, all_as_desired: bool
) -> None:
    assert replace(COUNTS, **change).all_as_desired is all_as_desired
