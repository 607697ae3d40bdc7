"""Summarizes samples of a drain by tenths: rates, memory and CPU time (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

TENTHS = 10


@dataclass(frozen=True)
class Sample:
    """One moment: seconds, queued messages, and each worker's CPU seconds and memory."""

    at_s: float
    depth: int
    cpu_s: tuple[float, ...]
    rss_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Tenth:
    """One tenth of a drain: objects per second, and each worker's memory at its end."""

    per_s: float
    rss_bytes: tuple[int, ...]


@dataclass(frozen=True)
class DrainSummary:
    """A complete drain, from the first sample to the one with an empty queue."""

    objects: int
    wall_s: float
    cpu_s: float
    tenths: tuple[Tenth, ...]
    start_bytes: tuple[int, ...]

    @property
    def per_s(self) -> float:
        """Objects per second."""
        return self.objects / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds of all workers per object."""
        return 1000 * self.cpu_s / self.objects

    @property
    def steady(self) -> float:
        """The last tenth's rate relative to the first one's."""
        return self.tenths[-1].per_s / self.tenths[0].per_s

    @property
    def growth(self) -> float:
        """The largest growth of a worker's memory in the second half.

        During the first 10,000 uploads or so a worker's heap grows, because the garbage collector
        runs rarely.
        """
        first, *later = (tenth.rss_bytes for tenth in self.tenths[TENTHS // 2 - 1 :])
        return max(rss / before for each in later for rss, before in zip(each, first, strict=True))


def summarize(samples: Sequence[Sample]) -> DrainSummary:
    """Summarize the samples of a drain; the queue must be empty in the last one.

    Raises:
        ValueError: there are too few samples of a drain.
    """
    if len(samples) <= TENTHS or samples[-1].depth != 0 or samples[0].depth <= 0:
        raise ValueError("too few samples of a drain")
    first, last = samples[0], samples[-1]
    edges = [first]
    for number in range(1, TENTHS + 1):
        left = first.depth * (TENTHS - number) // TENTHS
        edges.append(next(sample for sample in samples if sample.depth <= left))
    if any(a.at_s >= b.at_s for a, b in pairwise(edges)):
        raise ValueError("the queue was drained faster than it was sampled")
    return DrainSummary(
        objects=first.depth,
        wall_s=last.at_s - first.at_s,
        cpu_s=sum(last.cpu_s) - sum(first.cpu_s),
        tenths=tuple(
            Tenth((a.depth - b.depth) / (b.at_s - a.at_s), b.rss_bytes) for a, b in pairwise(edges)
        ),
        start_bytes=first.rss_bytes,
    )
