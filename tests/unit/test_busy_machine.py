"""On a busy machine, a test's example may take longer than Hypothesis allows by default."""

from __future__ import annotations

import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@settings(max_examples=1)
@given(st.just(0.25))
def test_a_slow_example_does_not_fail(delay_s: float) -> None:
    time.sleep(delay_s)


def test_examples_that_are_slow_to_make_do_not_fail() -> None:
    assert HealthCheck.too_slow in settings().suppress_health_check
