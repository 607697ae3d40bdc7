"""Conditional requests: RFC 9110, section 13, in its order. Pure.

If-Match, else If-Unmodified-Since      false: 412
If-None-Match, else If-Modified-Since   false: 304
If-Range                                false: the whole object in place of the range
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Final, Literal

from starlette.datastructures import Headers

_TAG: Final = re.compile(r'(?P<weak>W/)?(?P<opaque>"[\x21\x23-\x7e\x80-\xff]*")')
CONDITIONS: Final = ("if-match", "if-unmodified-since", "if-none-match", "if-modified-since")

Outcome = Literal["serve", "not_modified", "failed"]


def has_conditions(headers: Headers) -> bool:
    """Whether the request is conditional on the object's ETag or time."""
    return any(name in headers for name in CONDITIONS)


def evaluate(headers: Headers, etag: str, last_modified: datetime) -> Outcome:
    """Evaluate the conditions for an object with this ETag (quoted, strong) and time."""
    if (expected := headers.getlist("if-match")) != []:
        if not _matches(expected, etag, weakly=False):
            return "failed"
    elif (since := _parse_date(headers.get("if-unmodified-since"))) is not None and (
        _to_the_second(last_modified) > since
    ):
        return "failed"
    if (known := headers.getlist("if-none-match")) != []:
        return "not_modified" if _matches(known, etag, weakly=True) else "serve"
    since = _parse_date(headers.get("if-modified-since"))
    if since is not None and _to_the_second(last_modified) <= since:
        return "not_modified"
    return "serve"


def if_range_matches(headers: Headers, etag: str, last_modified: datetime) -> bool:
    """Whether the range is for this version of the object (`If-Range`)."""
    validator = headers.get("if-range")
    if validator is None:
        return True
    if '"' in validator:
        return validator.strip() == etag  # a weak tag never matches
    # A time is a strong validator only if the object cannot have changed twice in that second.
    since = _parse_date(validator)
    return since == _to_the_second(last_modified) and datetime.now(UTC) - last_modified > timedelta(
        seconds=1
    )


def format_http_date(instant: datetime) -> str:
    """Return a time in the format of HTTP."""
    return format_datetime(instant.astimezone(UTC).replace(microsecond=0), usegmt=True)


def _matches(values: Sequence[str], etag: str, *, weakly: bool) -> bool:
    for value in values:
        if value.strip() == "*":
            return True
        for tag in _TAG.finditer(value):
            if tag["opaque"] == etag and (weakly or not tag["weak"]):
                return True
    return False


def _parse_date(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        parsed = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None  # ignored (RFC 9110, 13.1.3)
    return parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)


def _to_the_second(instant: datetime) -> datetime:
    return instant.replace(microsecond=0)
