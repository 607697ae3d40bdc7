"""Lists of failures are bounded in length and in number."""

from __future__ import annotations

from keyturn_workers.console.model.failures import MAX_LISTS, FailureBook
from keyturn_workers.console.model.rows import FailureRow, SweepRef
from tests.unit.keyturn_workers.console.model.messages import failures_report, uid


def test_a_list_is_that_of_one_sweep() -> None:
    book = FailureBook()
    book.apply(failures_report(1, "a", "b"))
    held = book.of(SweepRef("acme", uid(4)))
    assert held is not None
    assert held.chain().rows[0] == FailureRow("acme", "a", "corrupt_object")
    assert book.of(SweepRef("acme", uid(5))) is None


def test_the_lists_that_were_read_longest_ago_are_dropped() -> None:
    book = FailureBook()
    for number in range(MAX_LISTS + 3):
        book.apply(failures_report(number, "a", sweep=number))
    assert book.of(SweepRef("acme", uid(2))) is None
    assert book.of(SweepRef("acme", uid(3))) is not None
