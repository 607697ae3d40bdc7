"""Samples are thinned, in any order alike."""

from __future__ import annotations

import random

from keyturn_workers.console.model.samples import MAX_SAMPLES, Samples
from tests.unit.keyturn_workers.console.model.messages import at


def test_thinning_does_not_depend_on_the_order() -> None:
    moments = [(at(0.7 * n), float(n), n) for n in range(3 * MAX_SAMPLES)]
    in_order, shuffled = Samples(), Samples()
    for moment in moments:
        in_order.add(*moment)
    random.Random(2).shuffle(moments)  # noqa: S311 - an order
    for moment in moments + moments[:50]:
        shuffled.add(*moment)
    assert in_order.rows() == shuffled.rows()
    assert MAX_SAMPLES / 4 < len(in_order) <= MAX_SAMPLES
    assert in_order.rows()[-1].rewrapped == 3 * MAX_SAMPLES - 1


def test_the_rate_is_that_of_the_last_minute() -> None:
    samples = Samples()
    for seconds in range(0, 200, 10):
        samples.add(at(seconds), seconds * (1.0 if seconds < 130 else 3.0), 0)
    assert samples.rate_per_s() == 3.0


def test_there_is_no_rate_of_one_sample_or_without_progress() -> None:
    samples = Samples()
    samples.add(at(0), 5.0, 0)
    assert samples.rate_per_s() is None
    samples.add(at(10), 5.0, 0)
    assert samples.rate_per_s() is None


def test_the_owner_learns_how_many_there_are() -> None:
    number = 0

    def count(change: int) -> None:
        nonlocal number
        number += change

    samples = Samples(count)
    for seconds in range(100):
        samples.add(at(seconds), float(seconds), 0)
    samples.thin(10)
    assert number == len(samples) <= 10


def test_the_last_progress_is_the_first_sample_with_the_last_values() -> None:
    samples = Samples()
    assert samples.moved_at() is None
    for seconds, done in ((0, 1.0), (10, 5.0), (20, 5.0), (30, 5.0)):
        samples.add(at(seconds), done, 0)
    assert samples.moved_at() == at(10)
