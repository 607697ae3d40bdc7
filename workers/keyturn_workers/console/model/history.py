"""How much happened in each minute, for charts (SPEC 16.2). Pure.

The counts come from the event stream, so that a console that restarts shows the same.
"""

from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from keyturn.identifiers import parse_time
from keyturn.messages import (
    Event,
    Rejected,
    UploadStored,
)

MINUTE_S: Final = 60
_SLACK: Final = 64
"""Minutes that are dropped at once."""
_AHEAD_MINUTES: Final = 5
_MINUTE_CHARACTERS: Final = len("2026-11-24T10:00")
_MAX_CODES: Final = 64
OTHER_CODES: Final = "other"


_NAMES: Final = {
    "object.deleted": "deleted",
    "rotation.accepted": "rotations",
    "project.enrolled": "enrolled",
}


class History:
    """Counts by minute.

    | series | counts |
    | --- | --- |
    | `stored` | `upload.stored` |
    | `stored_bytes` | the plaintext bytes of those |
    | `rejected` | refusals of any request; `rejected:CODE` those with one code |
    | `rewrapped` | objects that sweeps wrapped anew; `Model` adds it |
    | `deleted` | `object.deleted` |
    | `rotations` | `rotation.accepted` |
    | `enrolled` | `project.enrolled` |

    Args:
        length: How much to keep.
        now: The clock.
    """

    def __init__(self, length: timedelta, now: Callable[[], datetime]) -> None:
        self._length_minutes = int(length.total_seconds()) // MINUTE_S
        self._now = now
        self._minutes: dict[str, dict[int, int]] = defaultdict(dict)

    def add(self, event: Event) -> None:
        """Count an event; the caller sees to it that each one counts once."""
        if isinstance(event, UploadStored):
            self._count(event.at, "stored")
            self._count(event.at, "stored_bytes", event.size)
        elif isinstance(event, Rejected):
            self._count(event.at, "rejected")
            self._count(event.at, self._rejected(event.code))
        elif (name := _NAMES.get(event.type)) is not None:
            self._count(event.at, name)

    def _rejected(self, code: str) -> str:
        name = f"rejected:{code}"
        # Codes are a closed set; a bound all the same.
        if name not in self._minutes and len(self._minutes) > _MAX_CODES:
            return f"rejected:{OTHER_CODES}"
        return name

    def _count(self, at: str, name: str, number: int = 1) -> None:
        minute, now = _minute_of(at[:_MINUTE_CHARACTERS]), int(self._now().timestamp()) // MINUTE_S
        if not now - self._length_minutes < minute <= now + _AHEAD_MINUTES:
            return
        minutes = self._minutes[name]
        minutes[minute] = minutes.get(minute, 0) + number
        if len(minutes) > self._length_minutes + _SLACK:
            oldest = now - self._length_minutes
            self._minutes[name] = {each: n for each, n in minutes.items() if each >= oldest}

    def codes(self, since: datetime) -> dict[str, int]:
        """How many refusals there were since then, by code, the most frequent first."""
        first = int(since.timestamp()) // MINUTE_S
        sums = {
            name.removeprefix("rejected:"): sum(n for each, n in minutes.items() if each >= first)
            for name, minutes in self._minutes.items()
            if name.startswith("rejected:")
        }
        return dict(sorted(((k, n) for k, n in sums.items() if n), key=lambda kn: (-kn[1], kn[0])))

    def total(self, name: str, since: datetime) -> int:
        """The sum of a series since then."""
        first = int(since.timestamp()) // MINUTE_S
        return sum(n for each, n in self._minutes.get(name, {}).items() if each >= first)

    def series(self, name: str, since: datetime, buckets: int) -> list[tuple[datetime, float]]:
        """A series from `since` until now.

        Args:
            name: One of those of the class.
            since: Where it begins.
            buckets: How many points at most; each is at least one minute.

        Returns:
            The beginning of each bucket, and the mean number in one of its minutes.
        """
        return spread(self._minutes.get(name, {}), since, self._now(), buckets)

    @property
    def size(self) -> int:
        """How many counts are kept."""
        return sum(map(len, self._minutes.values()))


def spread(
    minutes: dict[int, int], since: datetime, until: datetime, buckets: int
) -> list[tuple[datetime, float]]:
    """Counts by minute as a series of at most `buckets` points: means in one minute."""
    first = int(since.timestamp()) // MINUTE_S
    last = max(first, int(until.timestamp()) // MINUTE_S)
    width = max(1, -(-(last - first + 1) // max(1, buckets)))
    sums = [0] * -(-(last - first + 1) // width)
    for minute, number in minutes.items():
        if first <= minute <= last:
            sums[(minute - first) // width] += number
    return [
        (
            datetime.fromtimestamp((first + index * width) * MINUTE_S, UTC),
            number / min(width, last - first - index * width + 1),
        )
        for index, number in enumerate(sums)
    ]


@lru_cache(maxsize=256)
def _minute_of(text: str) -> int:
    """The minute of a time of SPEC 1, cut after its minutes."""
    return int(parse_time(f"{text}:00Z").timestamp()) // MINUTE_S
