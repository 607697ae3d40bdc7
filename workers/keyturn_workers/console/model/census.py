"""The census of objects by key, from the pages of the view `objects` (SPEC 16.1). Pure.

A census begins with a page without `after` and goes on where each page says. Pages of an earlier
one are never mixed with those of a later one: each page is newer than the one before it, and older
than the beginning of the next census. Pages are read by several workers, whose clocks differ a
little: one may seem to be a little older than the one before it. Once a census is complete, its
sums are kept and its pages are dropped.
"""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages import StatusReported
from keyturn_workers.console.model.rows import Census, ObjectGroup

MAX_PAGES: Final = 100_000
CLOCK_SLACK: Final = timedelta(seconds=5)
"""How far the clocks of two workers may be apart."""

_Group = tuple[str, int | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class _CountedPage:
    at: datetime
    next: str | None
    groups: tuple[tuple[_Group, int], ...]


class CensusBook:
    """The newest census, and the newest complete one.

    Attributes:
        is_running: Whether this console reads its pages now.
        is_truncated: Whether pages were left out, to bound the memory.
    """

    def __init__(self) -> None:
        self._pages: dict[str | None, list[_CountedPage]] = {}
        self._count = 0
        self._complete: Census | None = None
        self._newest: Census | None = None
        self._problem: tuple[datetime, str] | None = None
        self._groups: dict[_Group, _Group] = {}
        self.is_running = False
        self.is_truncated = False

    def apply(self, report: StatusReported) -> bool:
        """Take over a page; False if it says nothing new."""
        at = parse_time(report.at)
        if report.project != ALL_PROJECTS:  # of one project: it says nothing about the others
            return False
        if report.code is not None:
            return self._note_problem(at, report.code)
        if report.objects is None or self._is_over(at):
            return False
        if self._count >= MAX_PAGES:
            changed, self.is_truncated = not self.is_truncated, True
            return changed
        groups = tuple(
            (self._interned((g.kind, g.generation, g.master_key, g.code)), g.count)
            for g in report.objects
        )
        page = _CountedPage(at, report.next, groups)
        held = self._pages.setdefault(report.after, [])
        if any(each.at == at for each in held):
            return False
        held.append(page)
        held.sort(key=lambda each: each.at)
        self._count += 1
        self._newest = None
        if report.next is None or report.after is None or self._is_end_known():
            self._find_complete()
        return True

    def _note_problem(self, at: datetime, code: str) -> bool:
        problem = (at, code)
        if self._problem is not None and self._problem >= problem:
            return False
        self._problem, self._newest = problem, None
        return True

    def _is_over(self, at: datetime) -> bool:
        done = self._complete
        return done is not None and done.ended_at is not None and at <= done.ended_at

    def _is_end_known(self) -> bool:
        return any(page.next is None for pages in self._pages.values() for page in pages[-1:])

    def _interned(self, group: _Group) -> _Group:
        return self._groups.setdefault(group, group)

    def _starts(self) -> list[datetime]:
        return [page.at for page in self._pages.get(None, ())]

    def _run(self, start: datetime, until: datetime | None) -> Census:
        """The census that began then, as far as its pages are there."""
        sums: Counter[_Group] = Counter()
        # What is older than its beginning is an earlier census's, if there was one.
        is_first = start == self._starts()[0]
        oldest = start - CLOCK_SLACK if is_first else start
        after: str | None = None
        at = newest = start
        seen = 0
        while (
            page := self._page(after, max(oldest, at - CLOCK_SLACK), at, until)
        ) is not None and seen <= self._count:
            sums.update(dict(page.groups))
            after, at = page.next, page.at
            newest = max(newest, at)
            seen += 1
            if after is None:
                break
        ended = seen > 0 and after is None
        groups = tuple(
            ObjectGroup(*group, count)
            for group, count in sorted(sums.items(), key=lambda each: repr(each[0]))
        )
        return Census(
            started_at=start,
            ended_at=newest if ended else None,
            inspected=sum(sums.values()),
            groups=groups,
            next=after,
            as_of=newest,
        )

    def _page(
        self, after: str | None, oldest: datetime, at: datetime, until: datetime | None
    ) -> _CountedPage | None:
        """The first page there since `at`; else the newest one that is hardly older."""
        close: _CountedPage | None = None
        for page in self._pages.get(after, ()):
            if until is not None and page.at >= until:
                break
            if page.at >= at:
                return page
            if page.at >= oldest:
                close = page
        return close

    def _find_complete(self) -> None:
        starts = self._starts()
        for index in range(len(starts) - 1, -1, -1):
            until = starts[index + 1] if index + 1 < len(starts) else None
            found = self._run(starts[index], until)
            if found.ended_at is not None:
                self._complete = found
                self._drop_until(found.ended_at)
                return

    def _drop_until(self, at: datetime) -> None:
        kept = {
            after: [page for page in pages if page.at > at] for after, pages in self._pages.items()
        }
        self._pages = {after: pages for after, pages in kept.items() if pages}
        self._count = sum(map(len, self._pages.values()))
        self.is_truncated = False

    def newest(self) -> Census:
        """The newest census: also one that is not complete."""
        if self._newest is None:
            starts = self._starts()
            self._newest = self._run(starts[-1], None) if starts else self._complete or Census()
        census = self._newest
        problem = self._problem
        is_problem = problem is not None and (census.as_of is None or problem[0] > census.as_of)
        return Census(
            started_at=census.started_at,
            ended_at=census.ended_at,
            inspected=census.inspected,
            groups=census.groups,
            is_running=self.is_running,
            next=census.next,
            as_of=census.as_of,
            problem=problem[1] if problem is not None and is_problem else None,
            is_truncated=self.is_truncated,
        )

    @property
    def complete(self) -> Census | None:
        """The newest complete census; None if there is none."""
        return self._complete
