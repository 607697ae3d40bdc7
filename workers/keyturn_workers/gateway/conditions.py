"""Conditional requests: RFC 9110, section 13, in its order. Pure.

If-Match, else If-Unmodified-Since      fails: 412
If-None-Match, else If-Modified-Since   fails: 304
If-Range                                fails: the whole object in place of the range
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
    """Whether the answer depends on what the object is, beyond its being there."""
    return any(name in headers for name in CONDITIONS)


def evaluate(headers: Headers, etag: str, last_modified: datetime) -> Outcome:
    """What the conditions say of an object with this ETag (quoted, strong) and time."""
    if (wanted := headers.getlist("if-match")) != []:
        if not _holds(wanted, etag, weakly=False):
            return "failed"
    elif (since := _time(headers.get("if-unmodified-since"))) is not None and (
        _to_the_second(last_modified) > since
    ):
        return "failed"
    if (known := headers.getlist("if-none-match")) != []:
        return "not_modified" if _holds(known, etag, weakly=True) else "serve"
    since = _time(headers.get("if-modified-since"))
    if since is not None and _to_the_second(last_modified) <= since:
        return "not_modified"
    return "serve"


def if_range_matches(headers: Headers, etag: str, last_modified: datetime) -> bool:
    """Whether a range is of the object that the reader has in mind (`If-Range`)."""
    wanted = headers.get("if-range")
    if wanted is None:
        return True
    if '"' in wanted:
        return wanted.strip() == etag  # a weak tag never holds here
    # A time is a strong validator only where the object cannot have changed twice in it.
    since = _time(wanted)
    return since == _to_the_second(last_modified) and datetime.now(UTC) - last_modified > timedelta(
        seconds=1
    )


def format_http_date(instant: datetime) -> str:
    """A time as HTTP writes it."""
    return format_datetime(instant.astimezone(UTC).replace(microsecond=0), usegmt=True)


def _holds(values: Sequence[str], etag: str, *, weakly: bool) -> bool:
    for value in values:
        if value.strip() == "*":
            return True
        for found in _TAG.finditer(value):
            if found["opaque"] == etag and (weakly or not found["weak"]):
                return True
    return False


def _time(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        told = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None  # no date is none that was said (RFC 9110, 13.1.3)
    return told if told.tzinfo is not None else told.replace(tzinfo=UTC)


def _to_the_second(instant: datetime) -> datetime:
    return instant.replace(microsecond=0)
