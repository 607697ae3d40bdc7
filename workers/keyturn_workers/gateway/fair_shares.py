"""How much of one gateway a single project may hold at once (SPEC 9.3). Pure.

    ConcurrencyLimit   requests under way
    StagingLedger      bytes in staging that are not stored yet

Each of them has a total for the whole process and a share of it that one project may hold.
A project beyond its share is refused (429) while every other one is served; only where the
total is used up are all refused (503). Nothing is kept of a project that holds nothing, so a
caller cannot make this grow.

Each gateway counts what it serves itself: a project that spreads its requests over several
gateways has a share of each.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from keyturn.errors import TooManyRequestsError

# A staged body counts as this many bytes at least, so that the total bounds their number too.
MIN_STAGED_BYTES: Final = 1024 * 1024


class GatewayBusyError(Exception):
    """What all projects have together is used up: a 503, with no code of SPEC 12."""


def share_of(total: int, share: float) -> int:
    """How much of a total one project may hold: at least 1."""
    return max(1, int(total * share))


class ConcurrencyLimit:
    """How many of something are under way, for each project and in all.

    Args:
        total: How many at once.
        share: The part of them that one project may hold, above 0 and at most 1.
        what: What is counted, in the plural, for the refusal's detail.
    """

    def __init__(self, total: int, share: float, what: str) -> None:
        self._total = total
        self._share = share_of(total, share)
        self._what = what
        self._held: dict[str, int] = {}
        self.in_use = 0

    @contextmanager
    def hold(self, project: str) -> Iterator[None]:
        """One of them for as long as the block runs.

        Raises:
            TooManyRequestsError: the project holds its share.
            GatewayBusyError: all are taken.
        """
        self.take(project)
        try:
            yield
        finally:
            self.release(project)

    def take(self, project: str) -> None:
        """One more for this project, until `release`; errors as `hold`."""
        held = self._held.get(project, 0)
        if self.in_use >= self._total:
            raise GatewayBusyError
        if held >= self._share:
            raise TooManyRequestsError(f"the project has {held} {self._what} under way")
        self._held[project] = held + 1
        self.in_use += 1

    def release(self, project: str) -> None:
        """One that was taken is over."""
        self.in_use -= 1
        if self._held[project] == 1:
            del self._held[project]
        else:
            self._held[project] -= 1

    def held(self, project: str) -> int:
        """How many this project holds."""
        return self._held.get(project, 0)


@dataclass(slots=True)
class _Staged:
    """One body of this gateway's; `since_s` is when it was complete, None while it comes in."""

    project: str
    counted_bytes: int
    since_s: float | None = None


class StagingLedger:
    """The bytes that each project has in staging.

    What a worker has stored or refused for good, it deletes from staging; so a listing of this
    publisher's part of it is the truth. It names no project: bodies that were there before this
    process began, or that another gateway staged, count towards the total alone.

    Args:
        total_bytes: How many bytes all projects may have there together.
        share: The part of them that one project may have, above 0 and at most 1. A project
            that has nothing there may always stage one body.
    """

    def __init__(self, total_bytes: int, share: float) -> None:
        self._total_bytes = total_bytes
        self._share_bytes = share_of(total_bytes, share)
        self._staged: dict[str, _Staged] = {}
        self._by_project: dict[str, int] = {}
        self._own_bytes = 0
        self._foreign_bytes = 0

    @property
    def used_bytes(self) -> int:
        """What is in staging, as far as is known, or was promised a place there."""
        return self._own_bytes + self._foreign_bytes

    def reserve(self, project: str, upload_id: str, size_bytes: int) -> None:
        """Make room for a body of at least this size; a larger one is reserved anew as it comes.

        Raises:
            TooManyRequestsError: the project has its share there.
            GatewayBusyError: there is no room at all.
        """
        before = self._staged.get(upload_id)
        counted = before.counted_bytes if before else 0
        more = max(size_bytes, MIN_STAGED_BYTES) - counted
        if more <= 0:
            return
        held = self._by_project.get(project, 0)
        if self.used_bytes + more > self._total_bytes:
            raise GatewayBusyError
        if held > counted and held + more > self._share_bytes:
            raise TooManyRequestsError(
                f"the project has {held} bytes in staging that are not stored yet"
            )
        self._staged[upload_id] = _Staged(project, counted + more)
        self._by_project[project] = held + more
        self._own_bytes += more

    def complete(self, upload_id: str, now_s: float) -> None:
        """The body may be in staging from now on, until a later listing does not show it."""
        if (staged := self._staged.get(upload_id)) is not None:
            staged.since_s = now_s

    def release(self, upload_id: str) -> None:
        """Nothing of the body is in staging."""
        staged = self._staged.pop(upload_id, None)
        if staged is None:
            return
        self._own_bytes -= staged.counted_bytes
        left = self._by_project[staged.project] - staged.counted_bytes
        if left:
            self._by_project[staged.project] = left
        else:
            del self._by_project[staged.project]

    def listed(self, began_s: float, found: Mapping[str, int]) -> None:
        """What a listing that was sent at `began_s` shows: sizes in bytes by upload id."""
        gone = [
            upload_id
            for upload_id, staged in self._staged.items()
            # One that was not complete when the listing was sent may be missing from it.
            if staged.since_s is not None and staged.since_s < began_s and upload_id not in found
        ]
        for upload_id in gone:
            self.release(upload_id)
        self._foreign_bytes = sum(
            max(size_bytes, MIN_STAGED_BYTES)
            for upload_id, size_bytes in found.items()
            if upload_id not in self._staged
        )
