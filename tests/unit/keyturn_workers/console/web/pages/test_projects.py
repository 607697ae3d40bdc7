"""*Projects*: filtered, sorted, in pages (SPEC 16.2)."""

from __future__ import annotations

import pytest

from tests.unit.keyturn_workers.console.web.shown import lived, shown
from tools.harness.console_data import LONG_PROJECT, empty_model, projects_report


def test_projects_come_in_pages() -> None:
    page = shown(lived(), "/projects")
    assert "1 to 100 of 240 projects" in page.text
    assert 'href="/projects?page=2"' in page.html
    last = shown(lived(), "/projects?page=3")
    assert "201 to 240 of 240 projects" in last.text
    assert "Page 3 of 3" in last.text


def test_a_filter_stays_in_its_fields_and_in_the_links() -> None:
    page = shown(lived(), "/projects?text=acme&state=ok&sort=generation&order=desc")
    assert 'value="acme"' in page.html
    assert '<option value="ok" selected>' in page.html
    assert "that match, 240 in all" in page.text
    assert 'aria-sort="descending"' in page.html
    assert 'href="/projects?text=acme&amp;state=ok&amp;sort=generation"' in page.html


def test_a_long_name_is_whole() -> None:
    assert LONG_PROJECT in shown(lived(), "/projects").text


@pytest.mark.parametrize(
    "query", ["text=%3Cscript%3Ealert(1)%3C/script%3E", "state=x&sort=y&page=z&order=%00"]
)
def test_a_hostile_address_is_harmless(query: str) -> None:
    assert "<script>alert" not in shown(lived(), f"/projects?{query}").html


def test_what_no_row_means() -> None:
    assert "No project matches" in shown(lived(), "/projects?text=nothing").text
    assert "The inventory has not been read yet" in shown(empty_model(), "/projects").text
    model = empty_model()
    model.apply_report(projects_report())
    assert "keyturn enroll" in shown(model, "/projects").text
