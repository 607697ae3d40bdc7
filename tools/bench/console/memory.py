"""What the console's model holds and takes: a day's worth of events, and 10,000 projects (SPEC 16).

Events are folded directly, without a broker. First everything that is bounded is filled to its
bound; then a day of events follows, and the memory of the process must stay as it is. Another row
says for how long reading signed events keeps the console from anything else.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from keyturn.crypto import SigningKey
from keyturn.identifiers import format_time
from keyturn.messages import (
    ProjectStatus,
    RotationAccepted,
    RotationCompleted,
    StatusReported,
    SweepProgressed,
    UploadStored,
    encode,
)
from keyturn.publisher.event_stream import StreamRecord, Verifier
from keyturn_workers.console.feeds.event_feed import EventFolder
from keyturn_workers.console.feeds.pacing import Pacer
from keyturn_workers.console.model import Model, ProjectQuery
from keyturn_workers.console.model.retention import MOST
from tools.bench.console.pages import percentile
from tools.bench.figures import Row, Spread

if TYPE_CHECKING:
    from keyturn.messages import Event

_GROWTH_MIB: Final = 16.0
_QUERY_MS: Final = 20.0
_PAUSE_MS: Final = 20.0
_MINUTES: Final = 1440
_ROTATIONS_AN_HOUR: Final = 60
_REPORTED_AT_ONCE: Final = 500
_SIGNED: Final = 4000
_QUERIES: Final = (
    ProjectQuery(),
    ProjectQuery(text="p0 9", page=3),
    ProjectQuery(sort="last_proof_at", descending=True),
    ProjectQuery(sort="key_since", state="never_proven", page=50),
    ProjectQuery(text="77", sort="generation", state="ok"),
)


@dataclass
class _Day:
    """A model whose clock the measurement moves.

    Attributes:
        offset: Of the next event.
        rotation: The number of the next rotation.
    """

    projects: int
    start: datetime = datetime(2026, 11, 26, tzinfo=UTC)
    now: datetime = field(init=False)
    model: Model = field(init=False)
    offset: int = 0
    rotation: int = 0

    def __post_init__(self) -> None:
        self.now = self.start
        self.model = Model("console", now=lambda: self.now)

    def apply(self, event: Event) -> None:
        self.model.apply_event(event, self.offset)
        self.offset += 1

    def rotate(self, at: datetime) -> None:
        """A rotation of one project with its progress, seven events."""
        project = f"p{self.rotation % self.projects:05}"
        rotation_id = str(UUID(int=self.rotation))
        self.rotation += 1
        self.apply(
            RotationAccepted(
                at=format_time(at), rotation_id=rotation_id, project=project, generation=2
            )
        )
        for second in range(1, 6):
            self.apply(
                SweepProgressed(
                    at=format_time(at + timedelta(seconds=second)),
                    sweep_id=rotation_id,
                    project=project,
                    clean=False,
                    **_counts(second * 10),
                )
            )
        self.apply(
            RotationCompleted(
                at=format_time(at + timedelta(seconds=6)),
                rotation_id=rotation_id,
                project=project,
                clean=True,
                late_writes_refused=True,
                evidence="ab" * 32,
                **_counts(60),
            )
        )

    def minute(self, number: int, uploads: int) -> None:
        """One minute of the day."""
        at = self.start + timedelta(minutes=number)
        self.now = at + timedelta(seconds=59)
        stored = _stored(at)
        for _ in range(uploads):
            self.apply(stored)
        if number % (60 // _ROTATIONS_AN_HOUR) == 0:
            self.rotate(at)
        self.model.expire()


def _counts(objects: int) -> dict[str, Any]:
    names = ("plaintext", "encrypted", "deleted", "foreign", "failed", "noncurrent_stale")
    return {"objects": objects, "rewrapped": objects, "current": objects} | dict.fromkeys(names, 0)


def _stored(at: datetime) -> UploadStored:
    return UploadStored(
        at=format_time(at),
        publisher="shop",
        request="ab" * 32,
        upload_id=str(UUID(int=1)),
        project="p00000",
        key="a.txt",
        size=1000,
        generation=1,
    )


def measure(*, events: int, projects: int) -> list[Row]:
    """The rows.

    Args:
        events: Of the day.
        projects: How many there are.
    """
    day = _Day(projects)
    _report_projects(day)
    _fill(day)
    before = _resident_mib()
    began = time.perf_counter()
    first = day.offset
    for number in range(_MINUTES, 2 * _MINUTES):
        day.minute(number, events // _MINUTES)
    spent_us = 1e6 * (time.perf_counter() - began) / (day.offset - first)
    after = _resident_mib()
    size = f"{projects:,} projects, {MOST['sweep']:,} sweeps"
    return [
        Row(f"console, memory at {size}", "-", "MiB", Spread((after,))),
        Row(
            f"console, growth over a day of {day.offset - first:,} events",
            "-",
            "MiB",
            Spread((max(0.0, after - before),)),
            at_most=_GROWTH_MIB,
        ),
        Row("console, folding one event", "-", "µs", Spread((spent_us,))),
        _queries(day),
        asyncio.run(_pauses()),
    ]


def _report_projects(day: _Day) -> None:
    names = [f"p{number:05}" for number in range(day.projects)]
    for first in range(0, len(names), _REPORTED_AT_ONCE):
        last = first + _REPORTED_AT_ONCE
        rows = tuple(
            ProjectStatus(
                project=name,
                generation=1,
                kek_id="0123456789abcdef",
                master_key="main",
                plaintext=False,
                v0=False,
                earlier_keks=0,
                enrolled_at=format_time(day.start - timedelta(days=number % 700)),
            )
            for number, name in enumerate(names[first:last])
        )
        day.model.apply_report(
            StatusReported(
                at=format_time(day.start),
                publisher="console",
                request_id=str(UUID(int=first)),
                project="*",
                view="projects",
                after=None if first == 0 else names[first],
                next=None if last >= len(names) else names[last],
                projects=rows,
            )
        )


def _fill(day: _Day) -> None:
    """As many sweeps and as much history as are kept."""
    for number in range(_MINUTES):
        day.minute(number, 1)
    while day.rotation < MOST["sweep"] + 100:
        day.rotate(day.now)


def _resident_mib() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _queries(day: _Day) -> Row:
    """Filter, sort and page while projects change."""
    times = []
    day.model.renew(day.projects)
    for query in _QUERIES:
        day.model.projects(query)  # makes the order that is kept from then on
        for _ in range(20):
            day.rotate(day.now)
            began = time.perf_counter()
            day.model.projects(query)
            times.append(1000 * (time.perf_counter() - began))
    return Row(
        f"console, one page of {day.projects:,} projects, filtered and sorted, p99",
        "-",
        "ms",
        Spread((percentile(times, 99),)),
        at_most=_QUERY_MS,
    )


async def _pauses() -> Row:
    """For how long other work waits while signed events are verified and folded."""
    key = SigningKey.from_seed(bytes(32))
    now = datetime.now(UTC)
    body = encode(_stored(now))
    signature = key.sign_event("bench", body)
    fold = EventFolder(Verifier("bench", (key.verify_key(),)), Model("console"))
    pauses: list[float] = []

    async def others() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0)
            pauses.append(1000 * (time.perf_counter() - began))

    ticking, pacer = asyncio.create_task(others()), Pacer()
    for offset in range(_SIGNED):
        fold(StreamRecord(offset, body, signature, key.id))
        await pacer.breathe()
    ticking.cancel()
    longest = [pause for pause in pauses if pause > 1]
    return Row(
        f"console, pause of other work while {_SIGNED:,} signed events are read, p99",
        "-",
        "ms",
        Spread((percentile(longest or [0.0], 99),)),
        at_most=_PAUSE_MS,
    )
