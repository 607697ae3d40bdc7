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
from keyturn.progress import Progress
from keyturn_workers.cli import watch
from keyturn_workers.cli.watch import Followed
from tests.unit.keyturn_workers.cli.fakes import event

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from keyturn.messages import Event

_ID = "c4d9b7aa-1f0e-4a57-b1d2-93e86a7f4c33"
_BEGIN = datetime(2026, 11, 24, 10, tzinfo=UTC)


def _progressed(after_s: float, project: str = "acme", **counts: Any) -> Event:
    at = format_time(_BEGIN + timedelta(seconds=after_s))
    return event("sweep.progressed", at, sweep_id=_ID, project=project, **counts)


def _followed(*events: Event, expected: int | None = None) -> Followed:
    followed = Followed()
    followed.expected = expected
    for each in events:
        followed.add(each)
    return followed


def _at(after_s: float) -> str:
    return format_time(_BEGIN + timedelta(seconds=after_s))


@pytest.mark.parametrize(
    ("progress", "expected", "text"),
    [
        ({"phase": "rewrapping", "done": 40}, None, "rewrapping 40, 4 rewrapped"),
        ({"phase": "rewrapping", "done": 40}, 91, "rewrapping 40 of 91, 4 rewrapped"),
        ({"phase": "rewrapping", "done": 40, "total": 90}, 99, "rewrapping 40 of 90, 4 rewrapped"),
        (
            {"phase": "proving", "done": 46, "total": 91, "proof_possible_at": _at(32.4)},
            None,
            "proved 46 of 91; waiting 13 s, so that no late write can slip past, 4 rewrapped",
        ),
        (
            {"phase": "proving", "done": 46, "total": 91, "proof_possible_at": _at(10)},
            None,
            "proving 46 of 91, 4 rewrapped",
        ),
        (None, None, "5 objects, 4 rewrapped"),
    ],
)
def test_the_summary_names_the_phase_how_many_of_how_many_and_why_it_waits(
    progress: dict[str, Any] | None, expected: int | None, text: str
) -> None:
    event = _progressed(0, objects=5, rewrapped=4, progress=progress)
    followed, now = _followed(event, expected=expected), _BEGIN + timedelta(seconds=20)
    assert ", ".join(followed.parts(now)) == text
    assert followed.elapsed(now) == timedelta(seconds=20)


@pytest.mark.parametrize(
    ("progress", "fraction"),
    [
        ({"phase": "waiting"}, None),
        ({"phase": "rewrapping", "done": 40}, None),
        ({"phase": "rewrapping", "done": 45, "total": 90}, 0.25),
        ({"phase": "proving", "done": 0, "total": 90}, 0.5),
        ({"phase": "proving", "done": 90, "total": 90}, 1),
        ({"phase": "proving", "done": 0, "total": 0}, 1),
        ({"phase": "ended"}, 1),
    ],
)
def test_one_bar_is_filled_by_rewrapping_and_then_by_proving(
    progress: dict[str, Any], fraction: float | None
) -> None:
    assert Progress.model_validate(progress).fraction == fraction


def test_of_a_sweep_of_all_the_counts_are_sums_until_the_end_names_them() -> None:
    ended = {"phase": "ended", "done": 5}
    events = [_progressed(n, f"p{n}", objects=5, progress=ended) for n in range(3)]
    followed = _followed(*events)
    assert (followed.progress, followed.counts.objects) == (None, 15)
    followed.add(event("sweep.completed", sweep_id=_ID, project="*", objects=16))
    assert followed.counts.objects == 16


def test_lines_are_printed_at_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 100.0
    lines = watch.line_display(clock=lambda: now_s)
    followed = _followed(_progressed(0, objects=5, rewrapped=4, failed=1))
    lines(followed)
    lines(followed)
    now_s += watch.LINE_INTERVAL_S
    followed.state = "a\x1b[2J"
    lines(followed)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("keyturn: acme: 5 objects, 4 rewrapped, 1 failed")
    assert second.startswith("keyturn: a\\x1b[2J: 5 objects")


def test_a_terminal_shows_one_bar_that_never_goes_back() -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=160)
    progress = {"phase": "proving", "done": 600, "total": 1200}
    with watch.bar_display(console) as show:
        show(_followed(_progressed(10, objects=1200, current=600, progress=progress)))
    for part in ("75%", "proving 600 of 1200", "0 rewrapped"):
        assert part in shown.getvalue()


def test_the_reason_of_a_wait_is_not_cut_on_a_terminal_of_80_columns() -> None:
    shown = io.StringIO()
    progress = {
        "phase": "proving",
        "done": 0,
        "total": 1200,
        "proof_possible_at": format_time(datetime.now(UTC) + timedelta(seconds=30)),
    }
    with watch.bar_display(Console(file=shown, force_terminal=True, width=80)) as show:
        show(_followed(_progressed(10, "a-project-name", objects=1200, progress=progress)))
    words = " ".join(shown.getvalue().split())
    assert "all rewrapped; waiting 30 s, so that no late" in words
    assert "write can slip past, 0 rewrapped" in words


class _RecordingDisplay:
    """Records what it should show."""

    def __init__(self) -> None:
        self.states: list[tuple[str, int, int | None]] = []
        self.called: Callable[[], object] = lambda: None

    def __call__(self, followed: Followed) -> None:
        self.states.append((followed.state, followed.counts.objects, followed.expected))
        self.called()


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
        ("generation 4", 0),
        ("acme", 2),
        ("acme", 3),
    ]


async def test_an_accepted_rotation_does_not_wait_for_a_worker(
    capsys: pytest.CaptureFixture[str],
) -> None:
    accepted = event("rotation.accepted", rotation_id=_ID, generation=4)

    async def silent() -> AsyncGenerator[Event, None]:
        await asyncio.sleep(0)
        yield _END

    await watch.watch(silent(), as_json=False, known=accepted)
    assert capsys.readouterr().err.startswith("keyturn: generation 4: 0 objects, 0 rewrapped")


@pytest.mark.parametrize(("moved_s", "said"), [(1, 0), (15, 1)])
async def test_a_wait_that_begins_again_is_explained_once(
    capsys: pytest.CaptureFixture[str], moved_s: int, said: int
) -> None:
    waits = [
        _progressed(n, progress={"phase": "proving", "proof_possible_at": _at(30 + n * moved_s)})
        for n in range(3)
    ]
    await watch.watch(_events(*waits, _END), as_json=False)
    assert capsys.readouterr().err.count("the wait for late writes begins again") == said


async def test_between_two_events_the_display_is_renewed(
    shown: _RecordingDisplay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earliest end comes closer, although nothing happens for two leases."""
    monkeypatch.setattr(watch, "_TICK_S", 0.001)

    renewed = asyncio.Event()
    shown.called = lambda: renewed.set() if len(shown.states) > 5 else None

    async def slow() -> AsyncGenerator[Event, None]:
        yield _progressed(1, objects=2)
        await renewed.wait()
        yield _END

    await watch.watch(slow(), as_json=False)
    assert shown.states[-1] == ("acme", 3, None)


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
