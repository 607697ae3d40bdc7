"""Planning: a project's keys as pages that touch each other (SPEC 8.5).

Only so many pages live at once, whatever the number of objects: further ones are planned
as earlier ones are proven. Large projects are listed in parallel, by key ranges.
"""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Final

from keyturn.identifiers import object_s3_key
from keyturn_workers.storage import Storage
from keyturn_workers.sweep.plan import KeyRange, OpenPage, Plan
from keyturn_workers.sweep.progress import MAX_WIDTH

# Pages that may be unproven at once, and how many one step plans at most.
MAX_LIVE: Final = MAX_WIDTH
_PAGES_A_STEP: Final = 64
# A project of at least so many pages is listed by key ranges.
_LARGE_PAGES: Final = 20
_MAX_RANGES: Final = 8
# Where a range may begin: what keys often begin with, in the order of bytes.
_BORDERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Planner:
    """Plans the pages of a project's keys."""

    def __init__(self, storage: Storage, page_keys: int) -> None:
        self._storage = storage
        self._page_keys = page_keys

    async def key_ranges(self, project: str) -> tuple[KeyRange, ...]:
        """The ranges by which a project's keys are listed: one, or several of a large project.

        Any borders would do; these are keys that stand there, spread over what comes behind
        the prefix that the first and the last of some keys have in common.
        """
        first = await self._keys_after(project, "", _LARGE_PAGES * self._page_keys)
        if len(first) < _LARGE_PAGES * self._page_keys:
            return (KeyRange(),)
        last = await self._some_last(project, first[-1])
        common = _common_prefix(first[0], last)
        probes = [common + border for border in _BORDERS if first[-1] < common + border]
        # One listing of one key each, once a sweep.
        found = await asyncio.gather(*(self._keys_after(project, at, 1) for at in probes))
        borders = sorted({keys[0] for keys in found if keys}, key=str.encode)
        step = max(1, -(-len(borders) // (_MAX_RANGES - 1)))
        edges = ["", *borders[::step], ""]
        return tuple(KeyRange(through=start, end=end) for start, end in pairwise(edges))

    async def _some_last(self, project: str, after: str) -> str:
        """A key near the end: what stands behind the last border that has anything behind it."""
        for border in reversed(_BORDERS):
            if keys := await self._keys_after(project, max(border, after, key=str.encode), 1):
                return keys[0]
        return after

    async def extend(self, plan: Plan) -> Plan:
        """The plan with further pages, as many as may live."""
        room = min(_PAGES_A_STEP, MAX_LIVE - len(plan.live))
        if room <= 0 or plan.everything_planned:
            return plan
        open_ranges = [n for n, keys in enumerate(plan.ranges) if not keys.planned]
        share = max(1, room // len(open_ranges))
        listed = await asyncio.gather(
            *(self._pages(plan.ask.project, plan.ranges[n], share) for n in open_ranges[:room])
        )
        ranges, live, number = list(plan.ranges), list(plan.live), plan.next_page
        for n, edges in zip(open_ranges, listed, strict=False):
            for last in edges:
                live.append(OpenPage(page=number, after=ranges[n].through, last=last))
                number += 1
                ranges[n] = replace(ranges[n], through=last, planned=last == ranges[n].end)
        return replace(plan, ranges=tuple(ranges), live=tuple(live), next_page=number)

    async def _pages(self, project: str, keys: KeyRange, limit: int) -> list[str]:
        """The last keys of the range's next pages; that of the range's last page is its end."""
        edges: list[str] = []
        last, count = "", 0
        async for row in self._storage.list(
            f"{project}/", after=object_s3_key(project, keys.through) if keys.through else ""
        ):
            key = row.key.removeprefix(f"{project}/")
            if keys.end and key.encode() >= keys.end.encode():
                return [*edges, keys.end]
            if count == self._page_keys:
                # One more key follows: the page that is full ends before it.
                edges.append(last)
                count = 0
                if len(edges) == limit:
                    return edges
            last = key
            count += 1
        return [*edges, keys.end]

    async def _keys_after(self, project: str, after: str, limit: int) -> list[str]:
        prefix = f"{project}/"
        start = object_s3_key(project, after) if after else ""
        return [
            row.key.removeprefix(prefix)
            async for row in self._storage.list(prefix, after=start, limit=limit)
        ]


def _common_prefix(first: str, last: str) -> str:
    length = 0
    for one, other in zip(first, last, strict=False):
        if one != other:
            break
        length += 1
    return first[:length]
