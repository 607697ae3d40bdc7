"""The figures of the console's bench."""

from __future__ import annotations

import pytest

from tools.bench.console.pages import percentile


@pytest.mark.parametrize(
    ("per_cent", "expected"), [(0, 1.0), (50, 51.0), (99, 100.0), (100, 100.0)]
)
def test_a_percentile_is_a_value_that_was_measured(per_cent: float, expected: float) -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, per_cent) == expected
