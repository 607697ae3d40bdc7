"""A set of offsets knows each one, in any order, as few ranges."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from keyturn_workers.console.model import offsets
from keyturn_workers.console.model.offsets import OffsetSet

if TYPE_CHECKING:
    import pytest


def test_an_offset_is_new_once() -> None:
    held = OffsetSet()
    order = [*range(200)]
    random.Random(1).shuffle(order)  # noqa: S311 - an order
    assert all(held.add(each) for each in order)
    assert not any(held.add(each) for each in order)
    assert held.ranges == ((0, 200),)


def test_two_readers_make_two_ranges_until_they_meet() -> None:
    held = OffsetSet()
    for each in (*range(100, 110), *range(90, 95)):
        held.add(each)
    assert held.ranges == ((90, 95), (100, 110))
    for each in range(95, 100):
        held.add(each)
    assert [*held.ranges] == [(90, 110)]


def test_ranges_are_bounded_and_the_smallest_gap_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(offsets, "MAX_RANGES", 3)
    held = OffsetSet()
    for each in (0, 10, 12, 30):
        held.add(each)
    assert held.ranges == ((0, 1), (10, 13), (30, 31))
