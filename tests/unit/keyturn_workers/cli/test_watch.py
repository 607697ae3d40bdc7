"""Following a sweep by its events, and showing its progress (SPEC 6.7, 8.6)."""

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
from keyturn_workers.status.progress import SweepProgress
from tests.unit.keyturn_workers.cli.fake_publisher import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from keyturn.messages import Event

_ID = "c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33"
_BEGIN = datetime(2026, 11, 24, 10, tzinfo=UTC)


def _progressed(after_s: float, project: str = "acme", **counts: Any) -> Event:
    at = format_time(_BEGIN + timedelta(seconds=after_s))
    return event("sweep.progressed", at, sweep_id=_ID, project=project, **counts)


def _after(*events: Event, expected: int | None = None) -> SweepProgress:
    progress = SweepProgress(expected)
    for each in events:
        progress.add_event(each)
    return progress


def test_lines_are_printed_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 100.0
    lines = watch.line_display(clock=lambda: now_s)
    progress = _after(_progressed(0, objects=5, rewrapped=4, failed=1))
    lines(progress, "acme")
    lines(progress, "acme")
    now_s += watch.LINE_INTERVAL_S
    lines(progress, "a\x1b[2J")
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("keyturn: acme: 5 objects, 4 rewrapped, 1 failed")
    assert second.startswith("keyturn: a\\x1b[2J: 5 objects")


def test_a_terminal_shows_a_bar_with_rate_and_time_left() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=160)
    progress = _after(
        _progressed(0, objects=100, current=100), _progressed(10, objects=600, current=600),
        expected=1200,
    )  # fmt: skip
    with watch.bar_display(console) as show:
        show(progress, "acme")
    for part in ("acme", "50%", "600 objects", "50 objects/s", "0:00:12 left"):
        assert part in shown.getvalue()


class _RecordingDisplay:
    """Records what it should show."""

    def __init__(self) -> None:
        self.states: list[tuple[str, int, int | None]] = []

    def __call__(self, progress: SweepProgress, state: str) -> None:
        self.states.append((state, progress.counts.objects, progress.total))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> _RecordingDisplay:
    display = _RecordingDisplay()

    class _OpenDisplay:
        def __init__(self, **_: object) -> None: ...

        def __enter__(self) -> _RecordingDisplay:
            return display

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(watch, "open_display", _OpenDisplay)
    return display


_END = event("rotation.completed", rotation_id=_ID, objects=3, current=3)


async def _events(*events: Event) -> AsyncGenerator[Event, None]:
    for each in events:
        yield each


async def test_watching_shows_every_event_and_returns_the_last(shown: _RecordingDisplay) -> None:
    accepted = event("rotation.accepted", rotation_id=_ID, generation=4)
    end = await watch.watch(_events(accepted, _progressed(1, objects=2), _END), as_json=False)
    assert end == _END
    assert [(state, objects) for state, objects, _ in shown.states] == [
        ("waiting for a worker", 0),
        ("generation 4", 0),
        ("acme", 2),
        ("acme", 3),
    ]


async def test_objects_are_counted_while_watching(shown: _RecordingDisplay) -> None:
    counted = asyncio.Event()

    async def count() -> int:
        counted.set()
        return 40

    async def slow() -> AsyncGenerator[Event, None]:
        await counted.wait()
        yield _progressed(1, objects=2)
        yield _END

    await watch.watch(slow(), as_json=False, count=count)
    assert shown.states[-1] == ("acme", 3, 40)


async def test_a_count_that_fails_or_hangs_is_ignored(shown: _RecordingDisplay) -> None:
    async def fails() -> int:
        raise StorageUnavailableError("no bucket")

    async def hangs() -> int:
        await asyncio.Event().wait()
        return 0

    for count in (fails, hangs):
        end = await watch.watch(_events(_END), as_json=False, count=count)
        assert end == _END
        assert shown.states[-1] == ("acme", 3, None)


async def test_with_json_nothing_is_shown_or_counted(capsys: pytest.CaptureFixture[str]) -> None:
    async def count() -> int:
        pytest.fail("the count is not shown")

    end = await watch.watch(_events(_END), as_json=True, count=count)
    assert end == _END
    assert capsys.readouterr() == ("", "")
