"""Listings of the keyrings, as values (SPEC 8.4)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from keyturn_workers.keyring.cache import Listing, Listings, name_of

if TYPE_CHECKING:
    from collections.abc import Iterator


NOW: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)


def listing(after: str, last: str | None, sent_s: float = 0) -> Listing:
    return Listing(after, last, {}, NOW, sent_s, leased=True, proves=False)


def spans(listings: Listings, names: str) -> Iterator[str]:
    """The beginning of the segment of each name, or a dash."""
    for name in names:
        found = listings.covering(name)
        yield "-" if found is None else found.after or "^"


def test_a_listing_covers_from_its_start_to_its_last_key() -> None:
    listings = Listings()
    listings.add(listing("c", "f"))
    assert "".join(spans(listings, "abcdefgh")) == "---ccc--"
    listings.add(listing("", "b"))
    assert "".join(spans(listings, "abcdefgh")) == "^^-ccc--"
    listings.add(listing("f", None))
    assert "".join(spans(listings, "abcdefgh")) == "^^-cccff"


def test_a_newer_listing_takes_the_place_of_those_that_begin_within_it() -> None:
    listings = Listings()
    for after, last in (("a", "c"), ("c", "e"), ("e", "g")):
        listings.add(listing(after, last))
    listings.add(listing("b", "d"))
    assert "".join(spans(listings, "bcdefg")) == "abb-ee"
    listings.add(listing("a", None))
    assert "".join(spans(listings, "bcdefg")) == "aaaaaa"
    assert len(listings) == 1


def test_a_listing_begins_where_the_one_before_did() -> None:
    listings = Listings()
    names = [name_of(f"p{number}") for number in range(9)]
    assert listings.start_for(names[5], names) == "p0.jso" < names[0]
    listings.add(listing("", names[3]))
    assert listings.start_for(names[2], names) == ""
    assert listings.start_for(names[5], names) == "p4.jso" > names[3]


def test_names_are_in_the_order_of_the_storage() -> None:
    """`acme-1.json` comes before `acme.json` there, though `acme` before `acme-1`."""
    assert sorted(map(name_of, ["acme", "acme-1", "acme1"])) == [
        "acme-1.json",
        "acme.json",
        "acme1.json",
    ]
