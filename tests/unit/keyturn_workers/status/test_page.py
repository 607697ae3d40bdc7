"""A page is cut where its rows are too many or too large; its digest is of them (SPEC 16.1)."""

from __future__ import annotations

from keyturn.messages import ProjectStatus
from keyturn_workers.status.page import Entry, Page, cut, digest


def _row(number: int) -> ProjectStatus:
    return ProjectStatus(project=f"p{number}", generation=number)


def _entries(count: int) -> list[Entry[ProjectStatus]]:
    return [Entry(f"at-{number}", _row(number)) for number in range(1, count + 1)]


def test_a_page_that_fits_goes_on_where_the_reading_ended() -> None:
    rows = tuple(map(_row, (1, 2, 3)))
    assert cut(_entries(3), "further", 3) == Page(rows, "further")
    assert cut(_entries(3), None, 10) == Page(rows, None)
    assert cut([], None, 10) == Page((), None)


def test_a_page_is_cut_at_its_limit_of_rows_and_the_next_begins_there() -> None:
    page = cut(_entries(3), "further", 2)
    assert (len(page.rows), page.next) == (2, "at-2")


def test_a_page_is_cut_at_its_bytes_but_has_a_row_however_large() -> None:
    page = cut(_entries(9), None, 9, max_bytes=90)
    assert (len(page.rows), page.next) == (2, "at-2")
    assert len(cut(_entries(9), None, 9, max_bytes=1).rows) == 1


def test_what_has_no_row_is_passed() -> None:
    nothing: Entry[ProjectStatus] = Entry("b", None)
    entries = [Entry("a", _row(1)), nothing, Entry("c", _row(2))]
    assert cut(entries, None, 1) == Page((_row(1),), "b")
    assert cut(entries, "c", 2) == Page((_row(1), _row(2)), "c")


def test_the_digest_is_of_the_rows_in_their_order() -> None:
    assert digest([_row(1), _row(2)]) == digest([_row(1), _row(2)])
    assert len({digest(rows) for rows in ([], [_row(1)], [_row(2)], [_row(1), _row(2)])}) == 4
    assert digest([_row(1), _row(2)]) != digest([_row(2), _row(1)])
