"""How far a sweep is, how fast, and how much time is left (SPEC 6.7, 8.6). Pure.

Times are those of the events, not of their arrival: a reader that joins late reads an hour
of events in a moment.
"""

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from keyturn.counts import Counts
from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages import COUNT_FIELDS, CountedEvent, Event

_WINDOW: Final = timedelta(seconds=60)
_MIN_SAMPLES: Final = 2  # a rate needs two


class SweepProgress:
    """The counts so far, summed over projects, with the rate and the time left.

    A sweep inspects each object, changes it if needed, and inspects it again as proof. Each
    of the two inspections is half of the work.

    Attributes:
        counts: The sums of the counts of SPEC 8.6.
        expected: How many keys a listing returned, if there was one.
    """

    def __init__(self, expected: int | None = None) -> None:
        self.counts = Counts()
        self.expected = expected
        self._by_project: dict[str, Counts] = {}
        self._started_at: datetime | None = None
        self._recent: deque[tuple[datetime, float]] = deque()

    def add_event(self, event: Event) -> None:
        """Record an event of the sweep."""
        at = parse_time(event.at)
        self._started_at = self._started_at or at
        if isinstance(event, CountedEvent):
            counts = Counts(**{name: getattr(event, name) for name in COUNT_FIELDS})
            self.add(at, str(event.project), counts)

    def add(self, at: datetime, project: str, counts: Counts) -> None:
        """Record a project's counts at this time; `*` replaces those of all projects."""
        if project == ALL_PROJECTS:
            self._by_project.clear()
        self._by_project[project] = counts
        self.counts = sum(self._by_project.values(), Counts())
        self._recent.append((at, self.done))
        while len(self._recent) > _MIN_SAMPLES and at - self._recent[0][0] > _WINDOW:
            self._recent.popleft()

    @property
    def done(self) -> float:
        """Objects done; one that still needs its proof counts as half."""
        counts = self.counts
        proven = counts.current + counts.plaintext + counts.deleted + counts.failed
        return (counts.objects + proven) / 2

    @property
    def total(self) -> int | None:
        """How many objects there are in all; None if unknown."""
        if self.expected is None:
            return None
        return max(self.expected - self.counts.foreign, self.counts.objects)

    @property
    def rate_per_s(self) -> float | None:
        """Objects done a second during the last minute; None if unknown."""
        if not self._recent:
            return None
        (begin, before), (end, after) = self._recent[0], self._recent[-1]
        seconds = (end - begin).total_seconds()
        return (after - before) / seconds if seconds > 0 and after > before else None

    @property
    def left(self) -> timedelta | None:
        """The time left; None if unknown."""
        if self.total is None or self.rate_per_s is None:
            return None
        return timedelta(seconds=round((self.total - self.done) / self.rate_per_s))

    def elapsed(self, now: datetime) -> timedelta:
        """The time since the first event, in whole seconds."""
        return timedelta(seconds=max(0, int((now - (self._started_at or now)).total_seconds())))

    def parts(self, now: datetime) -> Iterator[str]:
        """The parts of a one-line summary."""
        yield f"{self.counts.objects} objects"
        yield f"{self.counts.rewrapped} rewrapped"
        for name in ("encrypted", "failed"):
            if count := getattr(self.counts, name):
                yield f"{count} {name}"
        if self.rate_per_s is not None:
            yield f"{self.rate_per_s:.0f} objects/s"
        yield f"{self.elapsed(now)} elapsed"
        if self.left is not None:
            yield f"{self.left} left"
