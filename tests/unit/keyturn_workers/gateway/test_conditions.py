"""Conditional requests: RFC 9110, section 13 (SPEC 9.2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from keyturn_workers.gateway.request import (
    Outcome,
    allow_change,
    evaluate_conditions,
    format_http_date,
    has_conditions,
    if_range_matches,
)

ETAG = '"abc"'
MODIFIED = datetime(2026, 11, 24, 10, 0, 0, 700_000, tzinfo=UTC)
AT = "Tue, 24 Nov 2026 10:00:00 GMT"
BEFORE = "Tue, 24 Nov 2026 09:59:59 GMT"
AFTER = "Tue, 24 Nov 2026 10:00:01 GMT"


def _headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode("latin-1")) for name, value in pairs])


def _verdict(*pairs: tuple[str, str]) -> Outcome:
    return evaluate_conditions(_headers(*pairs), ETAG, MODIFIED)


@pytest.mark.parametrize(
    ("value", "strong", "weak"),
    [
        ('"abc"', True, True),
        (' "abc"\t', True, True),
        ("*", True, True),
        (" * ", True, True),
        ('W/"abc"', False, True),
        ('"x", "abc"', True, True),
        ('"x","abc","y"', True, True),
        ('"x" , W/"abc"', False, True),
        (', ,"abc",', True, True),
        ('"x"', False, False),
        ('"ABC"', False, False),
        ("abc", False, False),
        ('"abc', False, False),
        ('abc"', False, False),
        ('"a,b"', False, False),
        ('"x,"abc', False, False),
        ("", False, False),
        ('""', False, False),
        ('"*"', False, False),
        ('"abc" "x"', True, True),  # no list, but it says which one
    ],
)
def test_tags_are_compared_strongly_for_if_match_and_weakly_for_if_none_match(
    value: str, *, strong: bool, weak: bool
) -> None:
    assert _verdict(("if-match", value)) == ("serve" if strong else "failed")
    assert _verdict(("if-none-match", value)) == ("not_modified" if weak else "serve")


def test_a_list_may_span_several_header_lines() -> None:
    assert _verdict(("if-match", '"x"'), ("if-match", ETAG)) == "serve"
    assert _verdict(("if-none-match", '"x"'), ("if-none-match", ETAG)) == "not_modified"


@pytest.mark.parametrize(
    ("date", "unmodified_since", "modified_since"),
    [
        (AT, "serve", "not_modified"),  # times of HTTP have no parts of a second
        (AFTER, "serve", "not_modified"),
        (BEFORE, "failed", "serve"),
        # The two obsolete forms that RFC 9110, 5.6.7 has every recipient take.
        ("Tuesday, 24-Nov-26 10:00:00 GMT", "serve", "not_modified"),
        ("Tue Nov 24 10:00:00 2026", "serve", "not_modified"),
        ("Tuesday, 24-Nov-26 09:59:59 GMT", "failed", "serve"),
        ("Tue Nov 24 09:59:59 2026", "failed", "serve"),
        # No times: ignored.
        ("yesterday", "serve", "serve"),
        ("", "serve", "serve"),
        ("2026-11-24T10:00:00Z", "serve", "serve"),
        ("Tue, 24 Nov 99999999999999999999 10:00:00 GMT", "serve", "serve"),
        ("Tue, 24 Nov 2026 10:00:00 +99999999999999999", "serve", "serve"),
        ("Tue, 24 Nov 2026 25:00:00 GMT", "serve", "serve"),
    ],
)
def test_times(date: str, unmodified_since: Outcome, modified_since: Outcome) -> None:
    assert _verdict(("if-unmodified-since", date)) == unmodified_since
    assert _verdict(("if-modified-since", date)) == modified_since


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        # 13.2.2: a tag is worth more than a time, and what fails comes before what holds.
        ([("if-match", ETAG), ("if-unmodified-since", BEFORE)], "serve"),
        ([("if-match", '"x"'), ("if-unmodified-since", AFTER)], "failed"),
        ([("if-none-match", '"x"'), ("if-modified-since", AFTER)], "serve"),
        ([("if-none-match", ETAG), ("if-modified-since", BEFORE)], "not_modified"),
        ([("if-match", '"x"'), ("if-none-match", ETAG)], "failed"),
        ([("if-match", ETAG), ("if-none-match", ETAG)], "not_modified"),
        ([("if-match", ETAG), ("if-modified-since", AT)], "not_modified"),
        ([("if-unmodified-since", BEFORE), ("if-none-match", ETAG)], "failed"),
        ([("if-unmodified-since", AT), ("if-modified-since", AT)], "not_modified"),
        ([("if-none-match", "*")], "not_modified"),
        ([], "serve"),
    ],
)
def test_precedence(pairs: list[tuple[str, str]], expected: Outcome) -> None:
    assert _verdict(*pairs) == expected
    assert has_conditions(_headers(*pairs)) == bool(pairs)


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        (ETAG, True),
        (f" {ETAG} ", True),
        ('W/"abc"', False),  # 13.1.5: strong comparison alone
        ('"x"', False),
        ('"x", "abc"', False),  # one tag, no list
        ("*", False),
        (AT, True),
        (BEFORE, False),
        (AFTER, False),  # a time must be the very one
        ("no time", False),
        ("", False),
        ("Tue, 24 Nov 99999999999999999999 10:00:00 GMT", False),
    ],
)
def test_if_range(value: str, *, holds: bool) -> None:
    long_ago = MODIFIED - timedelta(days=365)
    date = value.replace("Tue, 24 Nov 2026", f"{long_ago:%a, %d %b %Y}")
    assert if_range_matches(_headers(("if-range", date)), ETAG, long_ago) is holds
    assert if_range_matches(_headers(), ETAG, long_ago)
    assert not has_conditions(_headers(("if-range", value)))


def test_a_time_is_not_a_strong_validator_of_a_new_object() -> None:
    """Written twice within a second, two bodies share their time (RFC 9110, 8.8.2.2)."""
    now = datetime.now(UTC)
    assert not if_range_matches(_headers(("if-range", format_http_date(now))), ETAG, now)
    assert if_range_matches(_headers(("if-range", ETAG)), ETAG, now)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_formatted_time_parses_to_itself(instant: datetime) -> None:
    date = format_http_date(instant)
    assert (
        evaluate_conditions(_headers(("if-modified-since", date)), ETAG, instant) == "not_modified"
    )
    assert evaluate_conditions(_headers(("if-unmodified-since", date)), ETAG, instant) == "serve"


def test_a_time_is_formatted_in_gmt_to_the_second() -> None:
    assert format_http_date(MODIFIED) == AT


_ASCII = st.text(st.characters(max_codepoint=255), max_size=40)


@given(
    st.sampled_from(["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"]),
    _ASCII | st.text(',:" 0123456789+-TueNovGMTW/*', max_size=40),
)
def test_any_header_value_has_an_outcome(name: str, value: str) -> None:
    headers = _headers((name, value))
    assert evaluate_conditions(headers, ETAG, MODIFIED) in ("serve", "not_modified", "failed")
    if_range_matches(_headers(("if-range", value)), ETAG, MODIFIED)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("if-match", ETAG, True),
        ("if-match", "*", True),
        ("if-match", '"x"', False),
        ("if-match", f"W/{ETAG}", False),
        ("if-unmodified-since", AT, True),
        ("if-unmodified-since", BEFORE, False),
        ("if-none-match", ETAG, False),
        ("if-none-match", "*", False),
        ("if-none-match", '"x"', True),
        ("if-modified-since", AFTER, True),  # it has a meaning for GET and HEAD alone
    ],
)
def test_a_change_has_its_conditions(name: str, value: str, *, allowed: bool) -> None:
    assert allow_change(_headers((name, value)), ETAG, MODIFIED) is allowed


def test_without_an_etag_nothing_is_as_expected() -> None:
    for name, value in (("if-match", "*"), ("if-match", ETAG), ("if-unmodified-since", AFTER)):
        assert not allow_change(_headers((name, value)), None, None)
    assert allow_change(_headers(("if-none-match", "*")), None, None)
    assert allow_change(_headers(), None, None)
