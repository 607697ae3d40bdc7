"""The figures of the console's bench."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import pytest

from keyturn_workers.console.model import Feed, retention
from tests.unit.keyturn_workers.console.web.shown import shown
from tools.bench.console import memory
from tools.bench.console.pages import percentile
from tools.bench.console.processes import WatchedConsole
from tools.bench.console.uploads import EvenRate, FullQueue, Mark, Turns, Window, rows
from tools.bench.processes import BenchError
from tools.harness.console_client import Answer
from tools.harness.console_data import empty_model

if TYPE_CHECKING:
    from keyturn_workers.console.model import Model
    from tools.bench.console.processes import RunningConsole
    from tools.bench.processes import Running
    from tools.harness.console_client import ConsoleClient
    from tools.harness.wire import Wire


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


class _Worker:
    """A worker that has used two seconds."""

    def exact_cpu_s(self) -> float:
        return 2.0


class _Queue:
    """A broker whose queues all have this depth."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    async def depth(self, queue: str) -> int:
        del queue
        return self._depth


_RUNNING = cast("Running", _Worker())


async def test_what_left_a_full_queue_is_done() -> None:
    mark = await FullQueue(cast("Wire", _Queue(700)), _RUNNING, 1000).mark()
    assert (mark.uploads, mark.worker_s) == (300, 2.0)


async def test_a_window_needs_a_queue_that_is_not_nearly_empty() -> None:
    with pytest.raises(BenchError, match="filled too little"):
        await FullQueue(cast("Wire", _Queue(100)), _RUNNING, 1000).mark()


async def test_a_window_has_the_latencies_of_what_was_published_in_it() -> None:
    flow = EvenRate(_RUNNING, {"a": 0.9, "b": 1.0, "c": 2.0}, {"a": 1.1, "b": 1.25, "c": 2.1})
    assert await flow.latencies_ms(Mark(1.0, 0, 0.0), Mark(2.0, 2, 0.0)) == (250.0,)


def test_a_window_with_a_console_is_compared_with_those_around_it() -> None:
    alone = tuple(Window(count, 1.0, 0.1 * count) for count in (100, 300, 200))
    seen = tuple(Window(count, 1.0, 0.11 * count, console_s=0.01) for count in (190, 250))
    cpu, throughput, *_ = found = rows("uploads", "ceph", Turns(alone, seen))
    assert throughput.theirs is not None
    assert throughput.theirs.values == (200.0, 250.0)
    assert throughput.ratios is not None
    assert throughput.ratios.values == (0.95, 1.0)
    assert throughput.met is False
    assert cpu.ratios is not None
    assert cpu.ratios.median == pytest.approx(100 / 110)
    of_console = next(row for row in found if row.unit == "µs/event")
    assert of_console.ours.values == pytest.approx((1e4 / 190, 1e4 / 250))


def test_latencies_are_compared_where_they_were_measured() -> None:
    alone = tuple(Window(2, 1.0, 0.1, latencies_ms=(10.0, 10.0)) for _ in range(2))
    seen = (Window(2, 1.0, 0.1, latencies_ms=(12.5, 12.5)),)
    found = rows("uploads", "ceph", Turns(alone, seen))
    (p50,) = [row for row in found if row.figure.endswith("p50")]
    assert p50.ratios is not None
    assert p50.ratios.values == (0.8,)


class _Client:
    """Reads the pages of a model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    async def get(self, path: str) -> Answer:
        return Answer(200, path, {}, shown(self._model, path).html)


async def test_a_console_lags_behind_by_the_age_of_its_newest_event() -> None:
    model = empty_model()
    client = cast("ConsoleClient", _Client(model))
    watched = WatchedConsole(cast("RunningConsole", None), _RUNNING, client)
    model.set_feed(Feed("history", as_of=datetime.now(UTC)))
    assert await watched.lag_s() == math.inf
    model.set_feed(Feed("events", as_of=datetime.now(UTC) - timedelta(seconds=20)))
    assert 20 <= await watched.lag_s() < 25
