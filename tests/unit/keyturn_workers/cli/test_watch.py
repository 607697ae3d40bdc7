"""Progress by events: how far, how fast, how long; and where it is shown (SPEC 6.7, 8.6)."""

from __future__ import annotations

import asyncio
import io
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import format_time
from keyturn_workers.cli import watch
from keyturn_workers.cli.progress import Pace
from tests.unit.keyturn_workers.cli.publishing import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from keyturn.messages import Event

_ID = "c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33"
_BEGIN = datetime(2026, 11, 24, 10, tzinfo=UTC)


def _progress(after_s: float, project: str = "acme", **counts: Any) -> Event:
    at = format_time(_BEGIN + timedelta(seconds=after_s))
    return event("sweep.progressed", at, sweep_id=_ID, project=project, **counts)


def _pace(*events: Event, expected: int | None = None) -> Pace:
    pace = Pace()
    for told in events:
        pace.take(told)
    pace.expected = expected
    return pace


def test_an_object_is_half_done_until_it_is_proven() -> None:
    assert _pace(_progress(0, objects=10, rewrapped=10)).done == 5
    assert _pace(_progress(0, objects=10, rewrapped=10, current=10)).done == 10
    assert _pace(_progress(0, objects=10, plaintext=3, deleted=2, failed=5)).done == 10


def test_rate_and_time_left_go_by_the_times_of_the_events() -> None:
    """Whoever picks it up again reads an hour of events in a moment."""
    pace = _pace(
        _progress(0, objects=100, current=100), _progress(10, objects=600, current=600),
        expected=1100,
    )  # fmt: skip
    assert pace.rate_per_s == 50
    assert pace.left == timedelta(seconds=10)
    assert pace.elapsed(_BEGIN + timedelta(seconds=10)) == timedelta(seconds=10)


def test_only_the_last_minute_counts_for_the_rate() -> None:
    told = [_progress(s, objects=s * 10, current=s * 10) for s in range(0, 3600, 10)]
    told += [_progress(3600 + s, objects=36000 + s, current=36000 + s) for s in range(0, 90, 10)]
    assert _pace(*told).rate_per_s == 1


def test_without_a_listing_or_movement_no_time_left_is_claimed() -> None:
    moving = (_progress(0, objects=1, current=1), _progress(1, objects=2, current=2))
    assert _pace(*moving).left is None
    assert _pace(*moving).total is None
    assert _pace(expected=5).left is None
    assert _pace(moving[0], moving[0], expected=5).left is None
    back = (_progress(0, objects=9, current=9), _progress(1, objects=1))  # planned anew
    assert _pace(*back, expected=9).rate_per_s is None


def test_foreign_names_are_not_waited_for_and_new_objects_are_counted() -> None:
    assert _pace(_progress(0, objects=3, foreign=2), expected=10).total == 8
    assert _pace(_progress(0, objects=30), expected=10).total == 30


def test_projects_of_a_sweep_of_all_add_up_until_its_end_tells_the_sums() -> None:
    pace = _pace(
        _progress(0, "a", objects=5), _progress(1, "b", objects=7), _progress(2, "a", objects=6)
    )
    assert pace.counts["objects"] == 13
    pace.take(event("sweep.completed", sweep_id=_ID, project="*", objects=14))
    assert pace.counts["objects"] == 14


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 100.0
    lines = watch.Lines(clock=lambda: now_s)
    pace = _pace(_progress(0, objects=5, rewrapped=4, failed=1))
    lines.show(pace, "acme")
    lines.show(pace, "acme")
    now_s += watch.LINE_EVERY_S
    lines.show(pace, "a\x1b[2J")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("keyturn: acme: 5 objects, 4 rewrapped, 1 failed")
    assert second.startswith("keyturn: a\\x1b[2J: 5 objects")


def test_a_terminal_gets_a_bar_with_rate_and_time_left() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=160)
    pace = _pace(
        _progress(0, objects=100, current=100), _progress(10, objects=600, current=600),
        expected=1200,
    )  # fmt: skip
    with watch.bar(console) as display:
        display.show(pace, "acme")
        display._progress.refresh()
    for part in ("acme", "50%", "600 objects", "50 objects/s", "0:00:12 left"):
        assert part in shown.getvalue()


class _Told:
    """What was shown."""

    def __init__(self) -> None:
        self.states: list[tuple[str, int, int | None]] = []

    def show(self, pace: Pace, state: str) -> None:
        self.states.append((state, pace.counts["objects"], pace.total))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> _Told:
    display = _Told()

    class _Shown:
        def __init__(self, **_: object) -> None: ...

        def __enter__(self) -> _Told:
            return display

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(watch, "shown_on", _Shown)
    return display


_END = event("rotation.completed", rotation_id=_ID, objects=3, current=3)


async def _events(*events: Event) -> AsyncGenerator[Event, None]:
    for each in events:
        yield each


async def test_watching_shows_every_event_and_gives_the_last(told: _Told) -> None:
    accepted = event("rotation.accepted", rotation_id=_ID, generation=4)
    end = await watch.watch(_events(accepted, _progress(1, objects=2), _END), as_json=False)
    assert end == _END
    assert [(state, objects) for state, objects, _ in told.states] == [
        ("waiting for a worker", 0),
        ("generation 4", 0),
        ("acme", 2),
        ("acme", 3),
    ]


async def test_objects_are_counted_beside_the_watching(told: _Told) -> None:
    counted = asyncio.Event()

    async def count() -> int:
        counted.set()
        return 40

    async def slow() -> AsyncGenerator[Event, None]:
        await counted.wait()
        yield _progress(1, objects=2)
        yield _END

    await watch.watch(slow(), as_json=False, count=count)
    assert told.states[-1] == ("acme", 3, 40)


async def test_a_count_that_fails_or_hangs_changes_nothing(told: _Told) -> None:
    async def fails() -> int:
        raise StorageUnavailableError("no bucket")

    async def hangs() -> int:
        await asyncio.Event().wait()
        return 0

    for count in (fails, hangs):
        end = await watch.watch(_events(_END), as_json=False, count=count)
        assert end == _END
        assert told.states[-1] == ("acme", 3, None)


async def test_with_json_nothing_is_shown_or_counted(capsys: pytest.CaptureFixture[str]) -> None:
    async def count() -> int:
        pytest.fail("nobody would see it")

    end = await watch.watch(_events(_END), as_json=True, count=count)
    assert end == _END
    assert capsys.readouterr() == ("", "")
