"""Pages of a report form a chain, whatever the order in which they come."""

from __future__ import annotations

from itertools import permutations

from keyturn_workers.console.model.paged_reports import PagedReport
from tests.unit.keyturn_workers.console.model.messages import at, report


def test_a_chain_is_complete_when_its_last_page_is_there() -> None:
    paged = PagedReport[str](100)
    paged.apply(report(1, "projects", digest="1" * 64, next="b"), ["a", "b"])
    assert (paged.chain().is_complete, paged.chain().next) == (False, "b")
    paged.apply(report(2, "projects", digest="2" * 64, after="b"), ["c"])
    chain = paged.chain()
    assert (chain.rows, chain.is_complete, chain.as_of) == (("a", "b", "c"), True, at(1))


def test_an_unchanged_page_is_true_until_then() -> None:
    paged = PagedReport[str](100)
    paged.apply(report(1, "projects", digest="1" * 64), ["a"])
    assert paged.apply(report(5, "projects", digest="1" * 64, unchanged=True), None)
    assert (paged.chain().rows, paged.chain().as_of) == (("a",), at(5))


def test_an_unchanged_page_that_is_not_held_says_nothing() -> None:
    paged = PagedReport[str](100)
    paged.apply(report(1, "projects", digest="1" * 64), ["a"])
    paged.apply(report(5, "projects", digest="2" * 64, unchanged=True), None)
    assert paged.chain().as_of == at(1)


def test_any_order_gives_the_same_chain() -> None:
    reports = [
        (report(1, "projects", digest="1" * 64, next="b"), ["a", "b"]),
        (report(2, "projects", digest="2" * 64, after="b"), ["c"]),
        (report(3, "projects", digest="1" * 64, next="b", unchanged=True), None),
        (report(4, "projects", digest="3" * 64, next="a"), ["a"]),
        (report(5, "projects", digest="4" * 64, after="a"), ["b", "c", "d"]),
    ]
    chains = set()
    for order in permutations(reports):
        paged = PagedReport[str](100)
        for each, rows in order:
            paged.apply(each, rows)
        chains.add(paged.chain())
    assert [chain.rows for chain in chains] == [("a", "b", "c", "d")]


def test_what_is_beyond_the_bound_is_left_out_and_said_so() -> None:
    paged = PagedReport[str](3)
    paged.apply(report(1, "projects", digest="1" * 64, next="b"), ["a", "b"])
    paged.apply(report(2, "projects", digest="2" * 64, after="b"), ["c", "d"])
    assert (paged.is_truncated, paged.chain().is_complete) == (True, False)


def test_a_page_that_could_not_be_read_changes_no_rows() -> None:
    paged = PagedReport[str](3)
    paged.apply(report(1, "projects", digest="1" * 64), ["a"])
    paged.apply(report(2, "projects", code="storage_unavailable", detail="away"), None)
    assert (paged.chain().rows, paged.chain().as_of) == (("a",), at(1))
    assert paged.problem == (at(2), "storage_unavailable", "away")


def test_pages_that_left_the_chain_are_dropped() -> None:
    paged = PagedReport[str](100)
    paged.apply(report(1, "projects", digest="1" * 64, next="b"), ["a", "b"])
    paged.apply(report(2, "projects", digest="2" * 64, after="b"), ["c"])
    paged.apply(report(3, "projects", digest="3" * 64), ["a", "b", "c"])
    assert paged.chain().is_complete
    assert paged.known("b") is None


def test_pages_that_no_longer_belong_do_not_fill_the_room() -> None:
    """With each project that is enrolled, the pages after its own begin elsewhere."""
    paged = PagedReport[str](8)
    paged.apply(report(0, "projects", digest="1" * 64, next="b"), ["a", "b"])
    for day in range(1, 20):
        now = 10 * day
        cursor = f"c{day:03}"
        paged.apply(report(now, "projects", digest="1" * 64, next="b", unchanged=True), None)
        changed = report(now + 1, "projects", digest=f"{day:064}", after="b", next=cursor)
        paged.apply(changed, [cursor, cursor])
        paged.apply(report(now + 2, "projects", digest="3" * 64, after=cursor), ["y", "z"])
        chain = paged.chain()
        assert (chain.is_complete, paged.is_truncated) == (True, False)
        assert chain.rows == ("a", "b", cursor, cursor, "y", "z")


def test_pages_of_a_chain_that_was_never_complete_make_room() -> None:
    paged = PagedReport[str](4)
    paged.apply(report(0, "projects", digest="1" * 64, next="b"), ["a", "b"])
    paged.apply(report(1, "projects", digest="2" * 64, after="stale", next="more"), ["c", "d"])
    paged.apply(report(2, "projects", digest="3" * 64, after="b"), ["e", "f"])
    assert (paged.chain().rows, paged.chain().is_complete) == (("a", "b", "e", "f"), True)
