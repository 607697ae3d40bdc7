"""A moment is a time, a day, or how long ago (SPEC 14)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import typer

from keyturn_workers.cli.arguments import parse_duration_s, parse_moment


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-24", datetime(2026, 11, 24, tzinfo=UTC)),
        ("2026-11-24T10:00:00Z", datetime(2026, 11, 24, 10, tzinfo=UTC)),
        ("2026-11-24T10:00:00.5Z", datetime(2026, 11, 24, 10, 0, 0, 500_000, tzinfo=UTC)),
    ],
)
def test_a_time_or_a_day(text: str, moment: datetime) -> None:
    assert parse_moment(text) == moment


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("90s", timedelta(seconds=90)),
        ("5m", timedelta(minutes=5)),
        ("1h", timedelta(hours=1)),
        ("7d", timedelta(days=7)),
    ],
)
def test_how_long_ago(text: str, ago: timedelta) -> None:
    before = datetime.now(UTC)
    assert before - ago <= parse_moment(text) <= datetime.now(UTC) - ago


@pytest.mark.parametrize(
    "text", ["", "h", "-1h", "1 h", "1w", "2026-13-01", "2026-11-24T10:00", "now", "9999999h"]
)
def test_anything_else_is_wrong_usage(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="how long ago"):
        parse_moment(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800), ("0", 0)],
)
def test_a_duration_is_seconds_or_has_a_unit(text: str, seconds: int) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1.5h", "1w", "1h30m", "1 h", "9" * 10, "\u0661"])
def test_another_text_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="must be seconds"):
        parse_duration_s(text)
