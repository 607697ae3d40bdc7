"""Listings of the keyrings: which cached ones are unchanged (SPEC 8.4). Pure.

A listing shows the ETags of up to 1,000 keyrings. Listings are kept by where they begin and cover
the keyrings in segments. The next listing of a segment begins where the last one did, so that one
of them covers each keyring, however many there are.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key

# How many cached keyrings may precede the requested one in a new listing: a page holds 1,000, and
# keyrings that are not cached may lie between.
_MAX_PRECEDING: Final = 900


def name_of(project: str) -> str:
    """A keyring's name in listings, which are ordered by these names, not by projects."""
    return keyring_s3_key(project).removeprefix(KEYRINGS_PREFIX)


@dataclass(frozen=True, slots=True)
class Listing:
    """One page of a listing of the keyrings.

    Attributes:
        after: it shows the names after this one.
        last: the last name that it covers; None if it reaches the end.
        etags: the ETag of each keyring's record, by name.
        date: the response's `Date`.
        sent_s: when it was sent, by the process's own clock; what it shows was true then.
        leased: whether it gives leases, as a read would.
        proves: whether its date may prove, as that of a read would.
    """

    after: str
    last: str | None
    etags: Mapping[str, str]
    date: datetime
    sent_s: float
    leased: bool
    proves: bool

    def covers(self, name: str) -> bool:
        """Whether it would show a keyring with this name."""
        return self.after < name and (self.last is None or name <= self.last)


class Listings:
    """The newest listing of each segment, ordered by where they begin."""

    def __init__(self) -> None:
        self._listings: list[Listing] = []
        self._starts: list[str] = []

    def __len__(self) -> int:
        return len(self._listings)

    def covering(self, name: str) -> Listing | None:
        """The listing whose segment contains a name."""
        at = bisect_left(self._starts, name) - 1
        if at < 0 or not self._listings[at].covers(name):
            return None
        return self._listings[at]

    def add(self, listing: Listing) -> None:
        """Add a listing; it replaces those that begin within it."""
        begin = bisect_left(self._starts, listing.after)
        end = len(self._starts)
        if listing.last is not None:
            end = bisect_left(self._starts, listing.last)
        end = max(end, bisect_right(self._starts, listing.after))
        self._listings[begin:end] = [listing]
        self._starts[begin:end] = [listing.after]

    def start_for(self, name: str, names: list[str]) -> str:
        """The name after which to begin a listing that must show a keyring.

        The start of its segment. If no segment contains it, just before the first cached keyring
        that no segment contains either, so that one listing serves as many as possible.

        Args:
            name: of the requested keyring; one of `names`.
            names: of all cached keyrings, in order.
        """
        listing = self.covering(name)
        if listing is not None:
            return listing.after
        at = bisect_left(self._starts, name) - 1
        covered = "" if at < 0 else self._listings[at].last or ""
        position = bisect_left(names, name)
        first = max(bisect_right(names, covered), position - _MAX_PRECEDING)
        # A name without its last letter sorts just before the name.
        return max(covered, names[first][:-1])
