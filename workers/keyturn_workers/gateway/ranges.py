"""Parses the `Range` header: RFC 9110, section 14, as far as SPEC 9.2 supports it. Pure.

One range of bytes is served. Other units, malformed ranges and several ranges are ignored, as
RFC 9110 allows: the response is then the whole object.
"""

import re
from dataclasses import dataclass
from typing import Final

# More digits than any length has, and fewer than int() refuses.
_SPEC: Final = re.compile(
    r"bytes=[ \t]*(?P<first>[0-9]{0,40})-(?P<last>[0-9]{0,40})[ \t]*", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `first` up to, not including, `end`."""

    first: int
    end: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`first-last`, `first-` (last is None) or, where `first` is None, the last `last` bytes."""

    first: int | None
    last: int | None

    def is_suffix_of_empty(self, size_bytes: int) -> bool:
        """Whether it is a suffix of an empty object, which is the whole object."""
        return self.first is None and bool(self.last) and size_bytes == 0

    def span(self, size_bytes: int) -> Span | None:
        """Return the bytes of an object of that size; None if the range lies outside it."""
        if self.first is None:
            length = min(self.last or 0, size_bytes)
            return Span(size_bytes - length, size_bytes) if length else None
        if self.first >= size_bytes:
            return None
        end = size_bytes if self.last is None else min(self.last + 1, size_bytes)
        return Span(self.first, end)


def parse_range(value: str) -> ByteRange | None:
    """Return the range of a `Range` header, or None if it must be ignored."""
    match = _SPEC.fullmatch(value.strip(" \t"))
    if match is None or not (match["first"] or match["last"]):
        return None
    first = int(match["first"]) if match["first"] else None
    last = int(match["last"]) if match["last"] else None
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)
