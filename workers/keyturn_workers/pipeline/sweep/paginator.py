"""Divides a project's object keys into adjoining pages (SPEC 8.5).

The number of open pages is bounded, however many objects there are: further pages are added
as earlier ones are proven. Large projects are listed in parallel, by key ranges.
"""

import asyncio
from dataclasses import replace
from itertools import pairwise
from typing import Final

from keyturn.identifiers import object_s3_key
from keyturn_workers.core.storage_port import Storage
from keyturn_workers.core.sweep_proof import MAX_WIDTH
from keyturn_workers.core.sweep_record import KeyRange, OpenPage, Round

# The most pages that may be open at once, and that one step adds.
MAX_OPEN_PAGES: Final = MAX_WIDTH
PAGES_PER_STEP: Final = 64
# A project of at least this many pages is listed by key ranges.
_LARGE_PAGES: Final = 20
_MAX_RANGES: Final = 8
# Where a range may begin: common first characters of object keys, in the order of bytes.
_BORDERS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Paginator:
    """Divides the object keys of projects into pages of `page_keys` keys when they are added."""

    def __init__(self, storage: Storage, page_keys: int) -> None:
        self._storage = storage
        self._page_keys = page_keys

    async def key_ranges(self, project: str) -> tuple[KeyRange, ...]:
        """The ranges by which a project is listed: one, or several if it is large.

        Any borders are correct. The ones chosen are existing object keys, spread by the character
        after the common prefix of an early and a late key.
        """
        first = await self._keys_after(project, "", _LARGE_PAGES * self._page_keys)
        if len(first) < _LARGE_PAGES * self._page_keys:
            return (KeyRange(),)
        last = await self._key_near_end(project, first[-1])
        common = _common_prefix(first[0], last)
        order = self._storage.capabilities.order
        probes = [
            common + border for border in _BORDERS if order(first[-1]) < order(common + border)
        ]
        # Each probe is a listing of one key, once per sweep.
        listed = await asyncio.gather(*(self._keys_after(project, at, 1) for at in probes))
        borders = sorted({keys[0] for keys in listed if keys}, key=order)
        step = max(1, -(-len(borders) // (_MAX_RANGES - 1)))
        edges = ["", *borders[::step], ""]
        return tuple(KeyRange(through=start, end=end) for start, end in pairwise(edges))

    async def _key_near_end(self, project: str, after: str) -> str:
        """The first key behind the last border that has any key behind it."""
        order = self._storage.capabilities.order
        for border in reversed(_BORDERS):
            if keys := await self._keys_after(project, max(border, after, key=order), 1):
                return keys[0]
        return after

    async def extend(self, project: str, of: Round) -> Round:
        """The round with more pages, as many as may be open."""
        room = min(PAGES_PER_STEP, MAX_OPEN_PAGES - len(of.open_pages))
        if room <= 0 or of.is_fully_paginated:
            return of
        unfinished = [n for n, key_range in enumerate(of.ranges) if not key_range.planned]
        share = max(1, room // len(unfinished))
        listed = await asyncio.gather(
            *(self._pages(project, of.ranges[n], share) for n in unfinished[:room])
        )
        ranges, open_pages, number = list(of.ranges), list(of.open_pages), of.next_page
        keys = of.keys
        for n, (edges, count) in zip(unfinished, listed, strict=False):
            keys += count
            for last in edges:
                open_pages.append(OpenPage(page=number, after=ranges[n].through, last=last))
                number += 1
                ranges[n] = replace(ranges[n], through=last, planned=last == ranges[n].end)
        return replace(
            of, ranges=tuple(ranges), open_pages=tuple(open_pages), next_page=number, keys=keys
        )

    async def _pages(self, project: str, key_range: KeyRange, limit: int) -> tuple[list[str], int]:
        """The last keys of the range's next pages, and how many keys these have.

        The last page of a range ends at its end.
        """
        edges: list[str] = []
        last, count = "", 0
        after = object_s3_key(project, key_range.through) if key_range.through else ""
        order = self._storage.capabilities.order
        async for row in self._storage.list(f"{project}/", after=after):
            key = row.key.removeprefix(f"{project}/")
            if key_range.end and order(key) >= order(key_range.end):
                # The end key is in the range; it may have been deleted since.
                count += key == key_range.end
                return [*edges, key_range.end], len(edges) * self._page_keys + count
            if count == self._page_keys:
                # One more key follows, so the full page ends before it.
                edges.append(last)
                count = 0
                if len(edges) == limit:
                    return edges, limit * self._page_keys
            last = key
            count += 1
        return [*edges, key_range.end], len(edges) * self._page_keys + count

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
