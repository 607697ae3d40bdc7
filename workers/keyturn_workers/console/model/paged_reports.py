"""Reports that come in pages: the newest of each, and what they say together (SPEC 16.1). Pure.

A page begins where the one before says (`next`), so that pages form a chain from the first one.
A report that says that a page is unchanged moves that page's time, if the console holds the page
that it names by its digest.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Generic, TypeVar

from keyturn.identifiers import parse_time
from keyturn.messages import StatusReported

T = TypeVar("T")
MAX_PAGES: Final = 2000


@dataclass(frozen=True, slots=True)
class HeldPage(Generic[T]):
    """One page.

    Attributes:
        after: Where it begins; None for the first one.
        next: Where the next one begins; None on the last one.
        digest: Names its rows.
        read_at: When its rows were reported.
        at: When it was last known to be so.
    """

    after: str | None
    next: str | None
    digest: str | None
    rows: tuple[T, ...]
    read_at: datetime
    at: datetime


@dataclass(frozen=True, slots=True)
class Chain(Generic[T]):
    """The pages that follow one another from the first one.

    Attributes:
        is_complete: Whether the last one is there.
        next: Where the first page begins that is missing; None also if none was read.
        as_of: When the oldest of them was known to be so.
    """

    pages: tuple[HeldPage[T], ...] = ()
    is_complete: bool = False
    next: str | None = None
    as_of: datetime | None = None

    @property
    def rows(self) -> tuple[T, ...]:
        """The rows of all pages."""
        return tuple(row for page in self.pages for row in page.rows)


@dataclass(frozen=True, slots=True)
class _Unchanged:
    at: datetime
    digest: str | None
    next: str | None


class PagedReport(Generic[T]):
    """What one view with the same arguments reported.

    Args:
        max_rows: How many rows to keep at most.

    Attributes:
        problem: When, and with which code and detail, a page could not be read.
        is_truncated: Whether pages were left out for the bound.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._pages: dict[str | None, HeldPage[T]] = {}
        self._unchanged: dict[str | None, _Unchanged] = {}
        self._chain: Chain[T] | None = None
        self.problem: tuple[datetime, str, str] | None = None
        self.is_truncated = False

    def apply(self, report: StatusReported, rows: Sequence[T] | None) -> bool:
        """Take a report over; False if nothing changed.

        Args:
            report: The report.
            rows: Its rows; None where it has none.
        """
        at = parse_time(report.at)
        if report.code is not None:
            problem = (at, report.code, report.detail or "")
            if self.problem is not None and self.problem >= problem:
                return False
            self.problem = problem
            return True
        if report.unchanged or rows is None:
            return self._apply_unchanged(report, at)
        held = self._pages.get(report.after)
        page = HeldPage(report.after, report.next, report.digest, tuple(rows), at, at)
        if held is not None and (held.read_at, held.digest or "") >= (at, page.digest or ""):
            return False
        if held is None and not self._make_room(page):
            changed, self.is_truncated = not self.is_truncated, True
            return changed
        self._pages[report.after] = page
        self._chain = None
        return True

    def _apply_unchanged(self, report: StatusReported, at: datetime) -> bool:
        held = self._unchanged.get(report.after)
        if held is not None and (held.at, held.digest or "") >= (at, report.digest or ""):
            return False
        if held is None and len(self._unchanged) >= MAX_PAGES:
            return False
        self._unchanged[report.after] = _Unchanged(at, report.digest, report.next)
        self._chain = None
        return report.after in self._pages

    def _make_room(self, page: HeldPage[T]) -> bool:
        """Whether there is room, if need be after the oldest pages outside the chain are dropped.

        Each insertion moves the beginnings of all later pages, so that stale ones accumulate.
        """
        if self._has_room(page):
            return True
        kept = {each.after for each in self.chain().pages}
        kept.add(self.chain().next)
        stale = sorted(
            (each for each in self._pages.values() if each.after not in kept),
            key=lambda each: (each.at, each.after or ""),
        )
        for each in stale:
            if each.at >= page.at:
                break
            del self._pages[each.after]
            if self._has_room(page):
                return True
        return False

    def _has_room(self, page: HeldPage[T]) -> bool:
        held = sum(len(each.rows) for each in self._pages.values())
        return len(self._pages) < MAX_PAGES and held + len(page.rows) <= self._max_rows

    def page(self, after: str | None) -> HeldPage[T] | None:
        """The page that begins there."""
        page, same = self._pages.get(after), self._unchanged.get(after)
        if page is None or same is None or page.digest != same.digest or same.at < page.at:
            return page
        return replace(page, at=same.at, next=same.next)

    def chain(self) -> Chain[T]:
        """What the pages say together; pages that no longer belong to it are dropped."""
        if self._chain is None:
            self._chain = self._follow()
            if self._chain.is_complete:
                self.is_truncated = False
                self._drop_others(self._chain)
        return self._chain

    def _follow(self) -> Chain[T]:
        pages: list[HeldPage[T]] = []
        after: str | None = None
        seen: set[str | None] = set()
        while after not in seen and (page := self.page(after)) is not None:
            seen.add(after)
            pages.append(page)
            after = page.next
            if after is None:
                break
        as_of = min((page.at for page in pages), default=None)
        return Chain(tuple(pages), bool(pages) and after is None, after, as_of)

    def _drop_others(self, chain: Chain[T]) -> None:
        kept = {page.after for page in chain.pages}
        # Not when its rows were read: a page that never changes would keep all the others.
        oldest = min(page.at for page in chain.pages)

        def is_old(after: str | None, at: datetime) -> bool:
            return after not in kept and at < oldest

        for after in [after for after, page in self._pages.items() if is_old(after, page.at)]:
            del self._pages[after]
        for after in [after for after, same in self._unchanged.items() if is_old(after, same.at)]:
            del self._unchanged[after]

    def known(self, after: str | None) -> str | None:
        """The digest of the page that begins there, to name in the next request for it."""
        page = self._pages.get(after)
        return None if page is None else page.digest

    @property
    def as_of(self) -> datetime | None:
        """When the newest page was known to be so; None if there is none."""
        pages = (self.page(after) for after in self._pages)
        return max((page.at for page in pages if page is not None), default=None)
