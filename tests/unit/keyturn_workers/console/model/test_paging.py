"""Pages of a table, and the text that filters it."""

from __future__ import annotations

import pytest

from keyturn_workers.console.model.paging import matches, page_of


@pytest.mark.parametrize(
    ("page", "size", "rows", "number"),
    [(1, 2, (0, 1), 1), (3, 2, (4,), 3), (9, 2, (4,), 3), (0, 0, (0,), 1)],
)
def test_a_page_that_does_not_exist_is_the_nearest(
    page: int, size: int, rows: tuple[int, ...], number: int
) -> None:
    found = page_of([0, 1, 2, 3, 4], page, size, total=5, as_of=None, is_complete=True)
    assert (found.rows, found.page) == (rows, number)


def test_each_word_must_occur_somewhere() -> None:
    assert matches("ACME failed", ("acme", None, "sweep-failed"))
    assert not matches("acme other", ("acme", "sweep"))
    assert matches("  ", (None,))
