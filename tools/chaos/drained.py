"""What a drain of the profile `load` shows, and what of it fails a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from tools.bench.figures import Row, Spread

if TYPE_CHECKING:
    from collections.abc import Sequence

_GRACEFUL: Final = ("drain", "restart", "deploy")
_TENTHS: Final = 10


class DrainError(Exception):
    """A drain was not completed, or not as promised."""


@dataclass(frozen=True)
class Sample:
    """One moment: seconds, queued messages, and each worker's memory."""

    at_s: float
    depth: int
    rss_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pace:
    """An undisturbed drain by tenths of its objects: rates, and growth of memory.

    `growth` is a worker's largest, in the second half: during the first 10,000 uploads or so its
    heap grows, because the garbage collector runs rarely.
    """

    tenths_per_s: tuple[float, ...]
    growth: float

    @property
    def steady(self) -> float:
        """The last tenth's rate relative to the first one's."""
        return self.tenths_per_s[-1] / self.tenths_per_s[0]


def paced(samples: Sequence[Sample]) -> Pace:
    """Summarize the samples of an undisturbed drain; the queue must be empty in the last one.

    Raises:
        ValueError: there are too few samples of a drain.
    """
    if len(samples) <= _TENTHS or samples[-1].depth != 0 or samples[0].depth <= 0:
        raise ValueError("too few samples of a drain")
    first = samples[0]
    left = [first.depth * (_TENTHS - tenth) // _TENTHS for tenth in range(1, _TENTHS + 1)]
    edges = [first, *(next(each for each in samples if each.depth <= depth) for depth in left)]
    if any(a.at_s >= b.at_s for a, b in pairwise(edges)):
        raise ValueError("the queue was drained faster than it was sampled")
    half, *later = (edge.rss_bytes for edge in edges[_TENTHS // 2 :])
    return Pace(
        tenths_per_s=tuple((a.depth - b.depth) / (b.at_s - a.at_s) for a, b in pairwise(edges)),
        growth=max(
            (now / then for each in later for now, then in zip(each, half, strict=True)), default=1
        ),
    )


@dataclass(frozen=True)
class Outcome:
    """What became of all uploads of a run, read from the broker and the bucket.

    `stored` counts objects, `reported` uploads with a signed event, `reported_again` further events
    of an upload, `other_events` events other than `upload.stored`.
    """

    uploads: int
    stored: int
    reported: int
    reported_again: int
    other_events: int
    waiting: int
    dead: int

    @property
    def is_complete(self) -> bool:
        """Whether every upload is stored and reported, and no message is left or dead."""
        done = (self.stored, self.reported, self.other_events, self.waiting, self.dead)
        return done == (self.uploads, self.uploads, 0, 0, 0)


@dataclass(frozen=True)
class Drained:
    """The result of one drain.

    `times` counts disruptions while the queue was not empty. Where there were some, `created`
    counts the successful puts, `created_again` those whose target had been put before,
    `unanswered` those whose client was gone before the response, and `served_again` the
    redeliveries that a worker served; `pace` is of an undisturbed drain, if it was long enough.
    """

    part: str
    workers: int
    wall_s: float
    outcome: Outcome
    peak_mib: float
    per_s: float = 0.0
    cpu_ms: float = 0.0
    publisher_cpu_ms: float = 0.0
    served_again: int = 0
    times: int = 0
    created: int = 0
    created_again: int = 0
    unanswered: int = 0
    pace: Pace | None = None

    def check(self) -> None:
        """Check that no upload was lost, stored twice or, without a crash, reported twice.

        Raises:
            DrainError: one was.
        """
        graceful, uploads = self.part in _GRACEFUL, self.outcome.uploads
        # A broker stop cancels the handlers, which then never see their puts' responses.
        put = self.created + (0 if graceful else self.unanswered)
        problems = {
            "not every upload was completed": not self.outcome.is_complete,
            "the puts do not match the uploads": self.part != "drain"
            and not self.created <= uploads <= put,
            "an upload was stored twice": self.created_again > 0,
            "an upload was reported twice": graceful and self.outcome.reported_again > 0,
            "a put was interrupted": graceful and self.unanswered > 0,
        }
        for problem, is_so in problems.items():
            if is_so:
                raise DrainError(f"{self.part}: {problem}: {asdict(self)}")

    def rows(self, server: str) -> list[Row]:
        """Its figures, with the targets of SPEC 7."""
        ended, graceful = self.outcome, self.part in _GRACEFUL
        once = 0 if graceful else None
        name = f"{self.part}, {ended.uploads:,} uploads, {self.workers} workers"
        figures: list[tuple[str, str, float, float | None, float | None]] = [
            ("rate", "objects/s", self.per_s, None, None),
            ("peak memory of a worker", "MiB", self.peak_mib, None, None),
        ]
        if self.pace is not None:
            figures += [
                ("last tenth against first", "times", self.pace.steady, 0.8, None),
                ("memory in the second half", "times", self.pace.growth, None, 1.1),
                ("CPU of all workers", "ms/object", self.cpu_ms, None, None),
                ("CPU of the publisher", "ms/object", self.publisher_cpu_ms, None, None),
            ]
        if self.part != "drain":
            figures += [
                ("disruptions under load", "", self.times, None, None),
                ("successful puts", "", self.created, None, None),
                ("puts of an existing target", "", self.created_again, None, 0),
                ("puts without a waiting client", "", self.unanswered, None, once),
                ("served after an earlier delivery", "", self.served_again, None, None),
            ]
        figures += [
            ("uploads without an object", "", ended.uploads - ended.stored, None, 0),
            ("uploads without an event", "", ended.uploads - ended.reported, None, 0),
            ("events beyond an upload's first", "", ended.reported_again, None, once),
            ("dead letters", "", ended.dead, None, 0),
        ]
        return [
            Row(f"{name}: {figure}", server, unit, Spread((value,)), at_least=least, at_most=most)
            for figure, unit, value, least, most in figures
        ]


def pace_of(samples: Sequence[Sample]) -> Pace | None:
    """The pace of a drain, if it was long enough to tell."""
    try:
        return paced(samples)
    except ValueError:
        return None


def steady_per_s(served: list[dict[str, Any]]) -> float:
    """Objects a second, without the first and the last fifth, which are fewer at once."""
    moments = sorted(datetime.fromisoformat(line["timestamp"]) for line in served)
    first, last = len(moments) // 5, len(moments) - 1 - len(moments) // 5
    return (last - first) / (moments[last] - moments[first]).total_seconds()
