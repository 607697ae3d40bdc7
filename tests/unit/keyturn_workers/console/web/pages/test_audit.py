"""*Audit*: filtered, with what is wrong with the trail (SPEC 15.3, 16.2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from keyturn.errors import PublisherError
from keyturn_workers.console.model import Feed
from keyturn_workers.console.web.pages.audit import moment_of
from tests.unit.keyturn_workers.console.web.shown import lived, shown
from tools.harness.console_data import HOSTILE_KEY, empty_model, filled_model, report_record
from tools.harness.console_preview import client, preview_app


def test_records_are_shown_newest_first_with_gaps() -> None:
    page = shown(lived(), "/audit?page=1")
    assert "1 to 100 of 260 records" in page.text
    assert (
        "The audit trail has gaps or altered records record 118 of this process is missing"
        in page.text
    )
    assert "Problem record 118 of this process is missing" in page.text
    assert HOSTILE_KEY not in page.html


@pytest.mark.parametrize(
    ("query", "all_have"),
    [
        ("actor=grace", "grace"),
        ("project=globex", "globex"),
        ("outcome=not_ok", "not_permitted"),
        ("action=object.opened_as_operator", "Object opened with a master key"),
        ("text=4711", "ticket 4711"),
    ],
)
def test_records_are_filtered(query: str, all_have: str) -> None:
    rows = shown(lived(), f"/audit?{query}").rows
    assert rows
    assert all(all_have in row for row in rows)


def test_records_are_filtered_by_time() -> None:
    page = shown(lived(), "/audit?since=2026-11-26T09:00&until=2026-11-26T09:20")
    assert "5 records that match, 260 in all" in page.text
    assert "Not a time" in shown(lived(), "/audit?since=tomorrow").text


def test_requests_for_reports_are_shown_only_if_they_are_asked_for() -> None:
    model = empty_model()
    model.apply_audit(report_record(), 1)
    page = shown(model, "/audit")
    assert "All of them are automatic status requests." in page.text
    (row,) = shown(model, "/audit?reports=yes").rows
    assert "status.requested" in row


def test_older_records_are_read_on_demand() -> None:
    model = filled_model()
    model.set_audit_has_older(has_older=True)
    assert 'href="/audit?actor=ada&amp;older=1"' in shown(model, "/audit?actor=ada").html
    app = preview_app(model)
    answer = client(app).get("/audit?actor=ada&older=1", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/audit?actor=ada")
    assert app.state.console.feeds.asked == ["audit"]


def test_a_trail_that_cannot_be_read_is_an_error_page() -> None:
    app = preview_app(lived())
    app.state.console.feeds.error = PublisherError("no broker")
    answer = client(app).get("/audit?older=1")
    assert answer.status_code == 503
    assert "The audit trail cannot be read now." in answer.text


def test_without_records_it_says_what_is_needed() -> None:
    model = empty_model()
    model.set_feed(Feed("audit", is_connected=True))
    assert "keyturn.audit" in shown(model, "/audit").text
    assert "No record matches" in shown(lived(), "/audit?text=nothing").text


def test_a_trail_that_is_not_read_is_not_called_empty() -> None:
    model = empty_model()
    model.set_feed(Feed("audit", is_connected=False))
    text = shown(model, "/audit").text
    assert "The audit trail cannot be read now" in text
    assert "No audit records yet" not in text


@pytest.mark.parametrize(
    ("typed", "at"),
    [
        ("2026-11-26", datetime(2026, 11, 26, tzinfo=UTC)),
        (" 2026-11-26 08:30 ", datetime(2026, 11, 26, 8, 30, tzinfo=UTC)),
        ("2026-11-26T09:30:00+01:00", datetime(2026, 11, 26, 8, 30, tzinfo=UTC)),
        ("2h", datetime(2026, 11, 26, 10, 0, tzinfo=UTC)),
        ("30 min", datetime(2026, 11, 26, 11, 30, tzinfo=UTC)),
        ("", None),
        ("tomorrow", None),
        ("0001-01-01T00:00+23:59", None),
        ("9999-12-31T23:59-23:59", None),
        ("999999999d", None),
        ("99999d", None),
    ],
)
def test_moments_as_people_type_them(typed: str, at: datetime | None) -> None:
    now = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
    assert moment_of(typed, now) == (at if typed != "99999d" else now - timedelta(days=99999))
