"""Times and durations as people write them (SPEC 14)."""

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import typer

from keyturn.identifiers import parse_time

_AGO: Final = re.compile(r"(\d{1,6})(s|m|h|d)", re.ASCII)
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DURATION: Final = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
MOMENT_FORM: Final = "a time (2026-11-24T10:00:00Z), a day (2026-11-24), or how long ago (90m, 7d)"

DURATION_FORM: Final = "seconds (90), or with a unit (90s, 15m, 12h, 7d)"


def parse_moment(text: str) -> datetime:
    """The moment that `text` names, in UTC.

    Raises:
        typer.BadParameter: it names none.
    """
    if match := _AGO.fullmatch(text):
        return datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
    try:
        return parse_time(f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text)
    except ValueError:
        raise typer.BadParameter(f"must be {MOMENT_FORM}") from None


def parse_duration_s(text: str) -> int:
    """The seconds that `text` names.

    Raises:
        typer.BadParameter: it names none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"must be {DURATION_FORM}")
    unit = _UNITS[match[2] or "s"]
    return int(timedelta(**{unit: int(match[1])}).total_seconds())
