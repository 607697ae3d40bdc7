"""This machine's clock."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The time by this machine's clock, in UTC."""
    return datetime.now(UTC)
