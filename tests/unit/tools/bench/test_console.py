"""The figures of the console's bench."""

from __future__ import annotations

import pytest

from keyturn_workers.console.model import retention
from tools.bench.console import memory
from tools.bench.console.pages import percentile


@pytest.mark.parametrize(
    ("per_cent", "expected"), [(0, 1.0), (50, 51.0), (99, 100.0), (100, 100.0)]
)
def test_a_percentile_is_a_value_that_was_measured(per_cent: float, expected: float) -> None:
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, per_cent) == expected


@pytest.mark.slow
def test_a_day_of_events_is_folded_into_a_model_that_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retention, "MOST", {"sweep": 40, "part": 40, "rejected": 9})
    monkeypatch.setattr(memory, "MOST", retention.MOST)
    monkeypatch.setattr(memory, "_MINUTES", 60)
    monkeypatch.setattr(memory, "_SIGNED", 100)
    rows = {row.figure.partition(" ")[2]: row for row in memory.measure(events=300, projects=20)}
    growth = next(row for figure, row in rows.items() if "growth" in figure)
    assert growth.met
    assert "719 events" in growth.figure or "720 events" in growth.figure
