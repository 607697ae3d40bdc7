"""The figures of the bench of traces: which side is held against which."""

from __future__ import annotations

from tools.bench.tracing import BEFORE, OFF, SAMPLED, rows
from tools.bench.uploads import Rate


def test_sampled_is_held_against_off_and_off_against_the_code_before() -> None:
    found = {
        OFF: [Rate(800, 1.00), Rate(800, 1.00), Rate(800, 1.02)],
        SAMPLED: [Rate(790, 1.02), Rate(790, 1.01), Rate(790, 1.02)],
        BEFORE: [Rate(800, 1.00), Rate(800, 0.95), Rate(800, 1.02)],
    }
    cpu = {row.figure: row for row in rows("ceph", found) if "CPU" in row.figure}
    sampled, off = cpu[f"4 KiB uploads, {SAMPLED}, CPU"], cpu[f"4 KiB uploads, {OFF}, CPU"]
    assert (sampled.against, off.against) == (OFF, BEFORE)
    assert sampled.met
    assert off.met


def test_too_dear_is_a_miss() -> None:
    found = {OFF: [Rate(800, 1.00)], SAMPLED: [Rate(800, 1.04)]}
    (row,) = [row for row in rows("ceph", found) if "CPU" in row.figure]
    assert row.met is False
