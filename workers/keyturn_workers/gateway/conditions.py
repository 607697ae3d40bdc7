"""Conditional requests: RFC 9110, section 13, in its order. Pure.

If-Match, else If-Unmodified-Since      false: 412
If-None-Match, else If-Modified-Since   false: 304
If-Range                                false: the whole object in place of the range

For a method that changes the object, If-None-Match fails with 412 too, and If-Modified-Since has no
meaning.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Final, Literal

from starlette.datastructures import Headers

_TAG: Final = re.compile(r'(?P<weak>W/)?(?P<opaque>"[\x21\x23-\x7e\x80-\xff]*")')
_EXPECTATIONS: Final = ("if-match", "if-unmodified-since")
CONDITIONS: Final = (*_EXPECTATIONS, "if-none-match", "if-modified-since")

Outcome = Literal["serve", "not_modified", "failed"]


def has_conditions(headers: Headers) -> bool:
    """Whether the request is conditional on the object's ETag or time."""
    return any(name in headers for name in CONDITIONS)


def evaluate(headers: Headers, etag: str, last_modified: datetime) -> Outcome:
    """Evaluate the conditions for an object with this ETag (quoted, strong) and time."""
    if not _is_expected(headers, etag, last_modified):
        return "failed"
    if (known := headers.getlist("if-none-match")) != []:
        return "not_modified" if _matches(known, etag, weakly=True) else "serve"
    since = _parse_date(headers.get("if-modified-since"))
    if since is not None and _to_the_second(last_modified) <= since:
        return "not_modified"
    return "serve"


def allow_change(headers: Headers, etag: str | None, last_modified: datetime | None) -> bool:
    """Whether the conditions allow to change the object.

    Without an ETag (a tombstone, or an object that cannot be read) nothing is as expected.
    """
    if etag is None or last_modified is None:
        return not any(name in headers for name in _EXPECTATIONS)
    if not _is_expected(headers, etag, last_modified):
        return False
    return not _matches(headers.getlist("if-none-match"), etag, weakly=True)


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


def _is_expected(headers: Headers, etag: str, last_modified: datetime) -> bool:
    if (expected := headers.getlist("if-match")) != []:
        return _matches(expected, etag, weakly=False)
    since = _parse_date(headers.get("if-unmodified-since"))
    return since is None or _to_the_second(last_modified) <= since


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
