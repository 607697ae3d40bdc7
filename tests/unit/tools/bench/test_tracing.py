"""The figures of the bench of traces: which side is compared with which."""

from __future__ import annotations

import gc
import sys

import pytest

from tools.bench.instruction_counter import InstructionCounter
from tools.bench.processes import BenchError
from tools.bench.tracing import (
    AGAIN,
    ALL,
    BEFORE,
    NONE,
    OFF,
    SAMPLED,
    Mark,
    cpu_ms,
    instruction_row,
    rows,
)


def test_cpu_time_is_that_of_the_uploads_in_between() -> None:
    assert cpu_ms(Mark(100, 1.0), Mark(600, 1.5)) == 1.0
    with pytest.raises(BenchError):
        cpu_ms(Mark(100, 1.0), Mark(100, 1.5))


def test_sampled_is_compared_with_off_and_off_with_the_code_before() -> None:
    found = {
        OFF: [1.00, 1.00, 1.02],
        AGAIN: [1.01, 1.00, 1.00],
        SAMPLED: [1.02, 1.01, 1.02],
        BEFORE: [1.00, 0.95, 1.02],
    }
    sampled, off, noise = rows("ceph", found)
    assert (sampled.against, off.against, noise.against) == (f"{OFF}, two workers", BEFORE, OFF)
    assert sampled.met
    assert off.met
    assert noise.met is None


def test_too_dear_is_a_miss() -> None:
    sampled, noise = rows("ceph", {OFF: [1.0], AGAIN: [1.0], SAMPLED: [1.04]})
    assert sampled.met is False
    assert noise.ratios is not None


def test_sampled_is_held_against_the_mean_of_both_workers_without_traces() -> None:
    sampled, _ = rows("ceph", {OFF: [1.0], AGAIN: [1.1], SAMPLED: [1.05]})
    assert sampled.ratios is not None
    assert sampled.ratios.median == pytest.approx(1.0)


def test_instructions_of_one_per_cent_are_computed() -> None:
    row = instruction_row("ceph", {OFF: [1000.0], NONE: [1010.0], ALL: [2000.0]})
    assert row.ours.median == pytest.approx(0.99 * 1010 + 0.01 * 2000)
    assert row.theirs is not None
    assert row.theirs.median == 1000
    assert row.met is None  # not CPU time, so it has no aim


def test_the_counter_is_repeatable_and_counts_only_while_active() -> None:
    def work(times: int) -> None:
        for _ in range(times):
            pass

    counter, counts = InstructionCounter(), []
    before = sys.gettrace()
    gc.disable()  # a callback of it would be counted
    try:
        for times in (10, 10, 20):
            counter.begin()
            work(times)
            counter.end()
            work(times)
            counts.append(counter.count)
    finally:
        sys.settrace(before)
        gc.enable()
    assert counts[0] == counts[1]
    assert 0 < counts[0] < counts[2] < 2 * counts[0]
