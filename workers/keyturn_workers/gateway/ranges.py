"""Which bytes a reader asks for: `Range` of RFC 9110, section 14, as far as SPEC 9.2 goes. Pure.

One range of bytes is served. What is no range of bytes, is none that can be read, or is
several, is ignored, as RFC 9110 allows: the answer is then the whole object.
"""

import re
from dataclasses import dataclass
from typing import Final

# Longer numbers than any length has, and shorter than those that int() refuses.
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
        """How many bytes these are."""
        return self.end - self.first


@dataclass(frozen=True, slots=True)
class ByteRange:
    """`first-last`, `first-` (last is None) or, where `first` is None, the last `last` bytes."""

    first: int | None
    last: int | None

    def is_suffix_of_empty(self, size_bytes: int) -> bool:
        """Whether it asks for the last bytes of an empty object, which are all of it."""
        return self.first is None and bool(self.last) and size_bytes == 0

    def span(self, size_bytes: int) -> Span | None:
        """The bytes of an object of that size; None where none of them lies in it."""
        if self.first is None:
            length = min(self.last or 0, size_bytes)
            return Span(size_bytes - length, size_bytes) if length else None
        if self.first >= size_bytes:
            return None
        end = size_bytes if self.last is None else min(self.last + 1, size_bytes)
        return Span(self.first, end)


def parse_range(value: str) -> ByteRange | None:
    """What a `Range` header asks for, or None where it is to be ignored."""
    found = _SPEC.fullmatch(value.strip(" \t"))
    if found is None or not (found["first"] or found["last"]):
        return None
    first = int(found["first"]) if found["first"] else None
    last = int(found["last"]) if found["last"] else None
    if first is not None and last is not None and last < first:
        return None
    return ByteRange(first, last)
