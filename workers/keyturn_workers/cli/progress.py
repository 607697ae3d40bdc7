"""How far a sweep is, how fast, and how long it may take, by its events (SPEC 6.7, 8.6). Pure.

Times are those of the events, not of their arrival: whoever picks a sweep up again reads
an hour of events in a moment.
"""

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from keyturn.identifiers import parse_time
from keyturn.messages import COUNT_FIELDS, CountedEvent, Event

_WINDOW: Final = timedelta(seconds=60)
_FEWEST: Final = 2  # between which there is a rate
_SETTLED: Final = ("current", "plaintext", "deleted", "failed")


class Pace:
    """The counts so far, summed over projects, and what follows from them.

    An object is looked at, perhaps changed, and looked at again as proof. Each look is half
    of what is to be done for it.

    Attributes:
        counts: The sums of the counts of SPEC 8.6.
        expected: How many keys a listing found, where one was made.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = dict.fromkeys(COUNT_FIELDS, 0)
        self.expected: int | None = None
        self._projects: dict[str, CountedEvent] = {}
        self._first: datetime | None = None
        self._recent: deque[tuple[datetime, float]] = deque()

    def take(self, event: Event) -> None:
        """Note one event of the sweep."""
        at = parse_time(event.at)
        self._first = self._first or at
        if not isinstance(event, CountedEvent):
            return
        if event.project == "*":  # the end: sums of all projects
            self._projects.clear()
        self._projects[str(event.project)] = event
        self.counts = {
            name: sum(getattr(told, name) for told in self._projects.values())
            for name in COUNT_FIELDS
        }
        self._recent.append((at, self.done))
        while len(self._recent) > _FEWEST and at - self._recent[0][0] > _WINDOW:
            self._recent.popleft()

    @property
    def done(self) -> float:
        """Objects done; one that waits for its proof counts as half a one."""
        settled = sum(self.counts[name] for name in _SETTLED)
        return (self.counts["objects"] + settled) / 2

    @property
    def total(self) -> int | None:
        """How many objects there are to do, where that is known."""
        if self.expected is None:
            return None
        return max(self.expected - self.counts["foreign"], self.counts["objects"])

    @property
    def rate_per_s(self) -> float | None:
        """Objects done a second, of late; None where nothing can be said yet."""
        if not self._recent:
            return None
        (begin, before), (end, after) = self._recent[0], self._recent[-1]
        seconds = (end - begin).total_seconds()
        return (after - before) / seconds if seconds > 0 and after > before else None

    @property
    def left(self) -> timedelta | None:
        """How long it may take from here on; None where nothing can be said."""
        if self.total is None or self.rate_per_s is None:
            return None
        return timedelta(seconds=round((self.total - self.done) / self.rate_per_s))

    def elapsed(self, now: datetime) -> timedelta:
        """How long it has been under way, to the second."""
        return timedelta(seconds=max(0, int((now - (self._first or now)).total_seconds())))

    def parts(self, now: datetime) -> Iterator[str]:
        """What a person wants to know of it, in short."""
        yield f"{self.counts['objects']} objects"
        for name in ("rewrapped", "encrypted", "failed"):
            if self.counts[name] or name == "rewrapped":
                yield f"{self.counts[name]} {name}"
        if self.rate_per_s is not None:
            yield f"{self.rate_per_s:.0f} objects/s"
        yield f"{self.elapsed(now)} elapsed"
        if self.left is not None:
            yield f"{self.left} left"
