"""What listings of the keyrings say: which cached ones are still what they were (SPEC 8.4). Pure.

A listing shows up to 1,000 keyrings by their ETags. Kept by where they begin, listings cover
the keyrings in segments: the next listing of a segment begins where the last one did, so that
each keyring is covered by one of them however many there are.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key

# How many cached keyrings may come before the wanted one in a listing that begins anew: a page
# holds 1,000, and others may lie between.
_BEFORE: Final = 900


def name_of(project: str) -> str:
    """A keyring's name in listings: these are in the order of names, not of projects."""
    return keyring_s3_key(project).removeprefix(KEYRINGS_PREFIX)


@dataclass(frozen=True, slots=True)
class Listing:
    """One answer to a listing of the keyrings.

    Attributes:
        after: it shows the names behind this one.
        last: the last name that it covers; None where it goes on to the end.
        etags: the ETag of each keyring's record, by name.
        date: the answer's `Date`.
        sent_s: when it was sent, by the process's own clock: what it says held then.
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
        """Whether it would show a keyring of this name."""
        return self.after < name and (self.last is None or name <= self.last)


class Listings:
    """The newest listing of each segment, in the order of their beginnings."""

    def __init__(self) -> None:
        self._listings: list[Listing] = []
        self._starts: list[str] = []

    def __len__(self) -> int:
        return len(self._listings)

    def covering(self, name: str) -> Listing | None:
        """The listing in whose segment a name lies."""
        at = bisect_left(self._starts, name) - 1
        if at < 0 or not self._listings[at].covers(name):
            return None
        return self._listings[at]

    def add(self, listing: Listing) -> None:
        """Take in a new listing, in place of those that begin within it."""
        begin = bisect_left(self._starts, listing.after)
        end = len(self._starts)
        if listing.last is not None:
            end = bisect_left(self._starts, listing.last)
        end = max(end, bisect_right(self._starts, listing.after))
        self._listings[begin:end] = [listing]
        self._starts[begin:end] = [listing.after]

    def start_for(self, name: str, names: list[str]) -> str:
        """Behind which name to begin a listing that is to show this one.

        That of its segment; where it lies in none, just before the first cached keyring that
        lies in none either, so that one listing serves as many as it can.

        Args:
            name: the keyring wanted, one of `names`.
            names: of all cached keyrings, in order.
        """
        listing = self.covering(name)
        if listing is not None:
            return listing.after
        at = bisect_left(self._starts, name) - 1
        covered = "" if at < 0 else self._listings[at].last or ""
        wanted = bisect_left(names, name)
        first = max(bisect_right(names, covered), wanted - _BEFORE)
        # Without its last letter a name sorts just before itself.
        return max(covered, names[first][:-1])
