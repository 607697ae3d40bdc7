"""The shell of the pages (SPEC 16.2, 16.3), through the whole application or by itself."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from keyturn_workers.console.web import text

_NOW = datetime(2026, 11, 26, 12, 0, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("a&b<c>", "a&amp;b&lt;c&gt;"),
        ("a\u202eb", 'a<span class="code-point">U+202E</span>b'),
        ("a\x00", 'a<span class="code-point">U+0000</span>'),
        ("a\u200bb", 'a<span class="code-point">U+200B</span>b'),
        ("<\n>", '&lt;<span class="code-point">U+000A</span>&gt;'),
        ("\U000e0041", '<span class="code-point">U+E0041</span>'),
        (" a  b ", " a  b "),
        ("日本", "日本"),
    ],
)
def test_untrusted_text_hides_nothing(raw: str, shown: str) -> None:
    assert text.visible(raw) == f'<bdi class="text">{shown}</bdi>'


def test_long_text_says_that_it_was_cut() -> None:
    assert "ab" in text.visible("abcde", 2)
    assert "3 more characters" in text.visible("abcde", 2)
    assert text.plain("a\u202e" * 3, 2) == "aU+202E…"


@pytest.mark.parametrize(
    ("words", "shown"), [("", ""), ("add it to KEY_A", "Add it to KEY_A."), ("Wait.", "Wait.")]
)
def test_sentences(words: str, shown: str) -> None:
    assert text.sentence(words) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "—"), (0, "0"), (12345, "12,345"), (1234567.8, "1,234,568")]
)
def test_numbers(value: float | None, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "—"), (0, "0"), (0.5, "0.50"), (5.0, "5"), (12.34, "12.3"), (1234.5, "1,234")],
)
def test_rates(value: float | None, shown: str) -> None:
    assert text.rate(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "—"),
        (float("inf"), "—"),
        (0.2, "0 s"),
        (45, "45 s"),
        (200, "3 min 20 s"),
        (7200, "2 h"),
        (187_300, "2 d 4 h"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert text.duration(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.5, "now"), (3, "3 s ago"), (200, "3 min ago"), (-7200, "in 2 h"), (200_000, "2 d ago")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert text.ago(_NOW - timedelta(seconds=seconds), _NOW) == shown


def test_times_are_utc_with_seconds_and_name_another_day() -> None:
    assert text.clock_time(_NOW - timedelta(hours=1), _NOW) == "11:00:30"
    assert text.clock_time(_NOW - timedelta(days=1), _NOW) == "2026-11-25 12:00:30"
    assert text.iso(_NOW) == "2026-11-26T12:00:30Z"
