"""The figures of the bench of traces: which side is held against which."""

from __future__ import annotations

import pytest

from tools.bench.processes import BenchError
from tools.bench.tracing import AGAIN, BEFORE, OFF, SAMPLED, Mark, cpu_ms, rows


def test_cpu_time_is_that_of_the_uploads_in_between() -> None:
    assert cpu_ms(Mark(100, 1.0), Mark(600, 1.5)) == 1.0
    with pytest.raises(BenchError):
        cpu_ms(Mark(100, 1.0), Mark(100, 1.5))


def test_sampled_is_held_against_off_and_off_against_the_code_before() -> None:
    found = {
        OFF: [1.00, 1.00, 1.02],
        AGAIN: [1.01, 1.00, 1.00],
        SAMPLED: [1.02, 1.01, 1.02],
        BEFORE: [1.00, 0.95, 1.02],
    }
    sampled, off, noise = rows("ceph", found)
    assert (sampled.against, off.against, noise.against) == (OFF, BEFORE, OFF)
    assert sampled.met
    assert off.met
    assert noise.met is None


def test_too_dear_is_a_miss() -> None:
    sampled, noise = rows("ceph", {OFF: [1.0], AGAIN: [1.0], SAMPLED: [1.04]})
    assert sampled.met is False
    assert noise.ratios is not None
