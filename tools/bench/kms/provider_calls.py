"""Calls to a provider: as workers count them, and what they come to for a million objects.

A process derives a KEK when it first needs it, twice where it seals under it. While the KEK is in
use, it is derived once more each time it reaches `REFRESH_AT` of `KMS_CACHE_S` (SPEC 11).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tools.bench.figures import Row, Spread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

REFRESH_AT: Final = 0.75
CACHE_S: Final = 3600
"""The default of `KMS_CACHE_S`."""
DAY_S: Final = 86_400
_MILLION: Final = 1_000_000
_FAMILY: Final = "keyturn_kms_derivations"
_SETTLED_S: Final = 0.5
_PROJECTS_PER_S: Final = 50
_LEAST_CACHE_S: Final = 30


@dataclass(frozen=True)
class CallCounter:
    """What one worker says about its calls."""

    session: aiohttp.ClientSession
    url: str

    async def total(self) -> int:
        """All calls so far, those that failed among them."""
        async with self.session.get(self.url) as response:
            response.raise_for_status()
            return count_calls(await response.text())

    async def settled(self) -> int:
        """All calls, once no more are made: KEKs are derived again in the background."""
        before, total = -1, await self.total()
        while before != total:
            await asyncio.sleep(_SETTLED_S)
            before, total = total, await self.total()
        return total


@asynccontextmanager
async def counter(port: int) -> AsyncIterator[CallCounter]:
    """The counter of the worker whose metrics are on this port."""
    async with aiohttp.ClientSession() as session:
        yield CallCounter(session, f"http://127.0.0.1:{port}/metrics")


def count_calls(metrics: str) -> int:
    """The calls to all providers in the text of a scrape."""
    return int(
        sum(
            sample.value
            for family in text_string_to_metric_families(metrics)
            if family.name == _FAMILY
            for sample in family.samples
            if sample.name == f"{_FAMILY}_total"
        )
    )


def refresh_cache_s(projects: int) -> int:
    """A `KMS_CACHE_S` that leaves time for two passes over the projects in its last quarter."""
    return max(_LEAST_CACHE_S, projects * 4 // _PROJECTS_PER_S)


def per_million(
    *, first: float, refresh: float, projects: int, uploads_per_s: float, cache_s: int = CACHE_S
) -> float:
    """Calls of one worker for 10^6 uploads that are spread evenly over projects.

    Args:
        first: Calls per project until a process knows it.
        refresh: Calls per project each time its KEKs are due.
        projects: How many, all in use for the whole time.
        uploads_per_s: How fast the worker stores them.
        cache_s: `KMS_CACHE_S`.
    """
    lasts_s = _MILLION / uploads_per_s
    refreshes = int(lasts_s // (REFRESH_AT * cache_s))
    return projects * (first + refreshes * refresh)


def rows(
    provider: str,
    *,
    projects: int,
    cold: Sequence[int],
    warm: Sequence[int],
    refresh: int,
    warm_per_s: float,
) -> list[Row]:
    """What was counted, and what 10^6 uploads come to by it.

    Args:
        provider: Its name.
        projects: Of each pass, with one upload each.
        cold: Calls of each pass that knew no project.
        warm: Calls of each pass that knew all.
        refresh: Calls of the pass in which every KEK was due.
        warm_per_s: The measured rate of uploads with a warm cache.
    """
    first = [calls / projects for calls in cold]
    again = refresh / projects
    middle = Spread(tuple(first)).median

    def million(uploads_per_s: float) -> Spread:
        calls = per_million(
            first=middle, refresh=again, projects=projects, uploads_per_s=uploads_per_s
        )
        return Spread((calls,))

    figure = f"provider calls per 10^6 uploads, {projects:,} projects, extrapolated"
    return [
        Row("provider calls per project, cold", provider, "calls", Spread(tuple(first))),
        Row(
            "provider calls per upload, warm",
            provider,
            "calls",
            Spread(tuple(calls / projects for calls in warm)),
        ),
        Row("provider calls per project, KEKs due", provider, "calls", Spread((again,))),
        Row(f"{figure}, at the warm rate", provider, "calls", million(warm_per_s)),
        Row(f"{figure}, in one day", provider, "calls", million(_MILLION / DAY_S)),
    ]
