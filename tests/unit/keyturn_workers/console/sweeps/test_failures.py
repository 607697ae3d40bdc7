"""The failures of a sweep can be filtered and taken away, whatever their names hold."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

from keyturn_workers.console.model.rows import FailureRow, SweepRow, SweepView
from keyturn_workers.console.sweeps import failures

_ROWS = (
    FailureRow(project="acme", key="Reports/q3.pdf", code="corrupt_object"),
    FailureRow(project="acme", key="a\nb\t<script>\u202e", code="no_usable_wrap"),
    FailureRow(project="zoo", key="=HYPERLINK(1)", code="corrupt_object"),
    FailureRow(project="zoo", key=None, code="unknown_master_key"),
)

_VIEW = SweepView(SweepRow(sweep_id="id", project="acme"))


def test_a_filter_matches_code_and_text() -> None:
    assert failures.matching(_ROWS, "", "") == _ROWS
    assert failures.matching(_ROWS, "corrupt_object", "") == (_ROWS[0], _ROWS[2])
    assert failures.matching(_ROWS, "", "REPORTS") == (_ROWS[0],)
    assert failures.matching(_ROWS, "corrupt_object", "zoo") == (_ROWS[2],)


def test_pages_are_counted_and_a_page_too_far_is_the_last() -> None:
    many = [
        FailureRow(project="acme", key=f"k{number}", code="locked_object") for number in range(250)
    ]
    view = replace(_VIEW, failures=tuple(many))
    page = failures.page_of(view, "", "", 9)
    assert (page.page, page.pages, page.matching, page.total) == (3, 3, 250, 250)
    assert [row.key for row in page.rows] == [f"k{number}" for number in range(200, 250)]
    empty = failures.page_of(view, "", "nothing", 1)
    assert (empty.rows, empty.pages, empty.matching) == ((), 1, 0)


def test_each_code_is_counted_over_all_with_its_help() -> None:
    codes = failures.by_code(_ROWS)
    assert next((name, number) for name, number, _ in codes) == ("corrupt_object", 2)
    assert all(help_.meaning for _, _, help_ in codes)


def test_text_has_a_line_for_each_failure_even_with_line_breaks_in_names() -> None:
    lines = failures.as_text(_ROWS).splitlines()
    assert lines[0] == "corrupt_object\tacme\tReports/q3.pdf"
    assert lines[1] == "no_usable_wrap\tacme\ta\\nb\\t<script>\\u202e"
    assert lines[3] == "unknown_master_key\tzoo\t"
    assert len(lines) == len(_ROWS)


def test_csv_holds_no_formula_and_is_read_back() -> None:
    rows = list(csv.reader(io.StringIO(failures.as_csv(_ROWS))))
    assert rows[0] == ["project", "key", "code"]
    assert rows[2] == ["acme", "a\nb\t<script>\u202e", "no_usable_wrap"]
    assert rows[3] == ["zoo", "'=HYPERLINK(1)", "corrupt_object"]
    assert rows[4] == ["zoo", "", "unknown_master_key"]
    wide = [FailureRow(project="zoo", key=f"{sign}1", code="locked_object") for sign in "＝＋－＠"]  # noqa: RUF001
    assert [row[1][0] for row in csv.reader(io.StringIO(failures.as_csv(wide)))][1:] == ["'"] * 4
