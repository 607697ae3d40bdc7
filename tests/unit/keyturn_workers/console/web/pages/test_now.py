"""*Now*: what needs a person, totals and charts (SPEC 16.2)."""

from __future__ import annotations

from datetime import timedelta

import pytest
from markupsafe import escape

from tests.unit.keyturn_workers.console.web.shown import lived, shown
from tools.harness.console_data import NOW, Scale, empty_model, filled_model, lose_broker


def test_each_thing_that_needs_a_person_has_its_remedy_and_its_page() -> None:
    model = filled_model(Scale(uploads=0))
    lose_broker(model, NOW - timedelta(minutes=3))
    page = shown(model, "/")
    items = model.attention()
    assert items
    for item in items:
        assert f'href="{escape(item.link)}"' in page.html
        assert item.title in page.text
        assert item.remedy in page.text


def test_totals_are_shown_with_the_time_of_the_newest_message() -> None:
    page = shown(lived(), "/")
    assert "Projects 240 all of them" in page.text
    assert "as of 09:30:10 2 s ago" in page.text


def test_charts_show_the_span_that_is_asked_for() -> None:
    day = shown(lived(), "/?hours=24")
    assert "Uploads stored per minute, from 09:30 to 09:" in day.html
    assert "in the last 24 h" in day.text
    assert "bad_seal" in day.text


@pytest.mark.parametrize("hours", ["0", "7", "x", ""])
def test_another_span_is_the_default(hours: str) -> None:
    page = shown(lived(), f"/?hours={hours}")
    assert 'href="/" aria-current="true">1 h</a>' in page.html


def test_without_any_data_it_says_what_happens() -> None:
    page = shown(empty_model(), "/")
    assert "7 of 7 sources disconnected" in page.text
    assert "None in this period" in page.text


def test_a_lost_broker_is_said_on_each_page_with_the_reason() -> None:
    model = filled_model(Scale(uploads=0))
    lose_broker(model, NOW - timedelta(minutes=3))
    problem = model.feed("events").problem
    assert problem
    for path in ("/", "/audit"):
        text = shown(model, path).text
        assert f"7 of 7 sources disconnected {problem[0].upper()}{problem[1:]}." in text
