"""A census is the sum of its pages, and never mixes two."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING

from keyturn_workers.console.model import census
from keyturn_workers.console.model.census import CensusBook
from tests.unit.keyturn_workers.console.model.messages import at, objects_report, report

if TYPE_CHECKING:
    import pytest


def test_a_census_is_complete_with_its_last_page() -> None:
    book = CensusBook()
    book.apply(objects_report(1, ("encrypted", "main", 3), next="b"))
    assert (book.newest().ended_at, book.newest().next, book.complete) == (None, "b", None)
    book.apply(objects_report(2, ("encrypted", "main", 2), ("tombstone", "old", 1), after="b"))
    done = book.newest()
    assert (done.is_complete, done.inspected, done.started_at) == (True, 6, at(1))
    assert {(group.kind, group.count) for group in done.groups} == {
        ("encrypted", 5),
        ("tombstone", 1),
    }


def test_a_later_census_does_not_mix_with_an_earlier_one() -> None:
    pages = [
        objects_report(1, ("encrypted", "main", 3), next="b"),
        objects_report(2, ("encrypted", "main", 2), after="b"),
        objects_report(10, ("encrypted", "main", 7), next="b"),
    ]
    for order in permutations(pages):
        book = CensusBook()
        for page in (*order, order[0]):
            book.apply(page)
        assert (book.newest().inspected, book.newest().is_complete) == (7, False)
        assert book.complete is not None
        assert book.complete.inspected == 5


def test_pages_of_a_complete_census_are_dropped() -> None:
    book = CensusBook()
    for number in range(50):
        after, end = (f"{number:03}" if number else None), f"{number + 1:03}"
        book.apply(
            objects_report(
                number, ("encrypted", "main", 1), after=after, next=end if number < 49 else None
            )
        )
    assert (book.newest().inspected, book._count) == (50, 0)


def test_a_page_that_could_not_be_read_is_a_problem_until_one_can() -> None:
    book = CensusBook()
    book.apply(objects_report(1, ("encrypted", "main", 3), next="b"))
    book.apply(report(2, "objects", code="storage_unavailable", detail="away"))
    assert book.newest().problem == "storage_unavailable"
    book.apply(objects_report(3, ("encrypted", "main", 3), after="b"))
    assert book.newest().problem is None


def test_pages_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(census, "MAX_PAGES", 2)
    book = CensusBook()
    for number in range(3):
        book.apply(
            objects_report(
                number,
                ("encrypted", "main", 1),
                after=f"{number}" if number else None,
                next=f"{number + 1}",
            )
        )
    assert (book.newest().inspected, book.newest().is_truncated) == (2, True)


def test_workers_whose_clocks_differ_read_one_census() -> None:
    pages = [
        objects_report(5, ("encrypted", "main", 3), next="b"),
        objects_report(3, ("encrypted", "main", 2), after="b", next="c"),
        objects_report(4, ("encrypted", "main", 1), after="c"),
    ]
    for order in permutations(pages):
        book = CensusBook()
        for page in order:
            book.apply(page)
        assert book.complete is not None
        assert (book.complete.inspected, book.complete.started_at) == (6, at(5))
        assert book.newest().is_complete


def test_pages_of_one_project_are_no_census() -> None:
    book = CensusBook()
    assert not book.apply(objects_report(1, ("encrypted", "main", 3), project="acme"))
    assert book.complete is None
