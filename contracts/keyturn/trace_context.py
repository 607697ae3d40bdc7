"""The trace context of a message: the header `traceparent` (SPEC 6.11). Pure; no I/O.

It is not signed: anyone with write access to the broker can put any value into it. So it only ever
becomes a *link* to another trace. It is never the parent of a span, and never decides whether one
is recorded. Anything but the form that this module writes is ignored.
"""

import re
from dataclasses import dataclass
from typing import Final, Self

# Version 00 of W3C Trace Context, which is 55 characters long. Later versions are not read.
_FORM: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})", re.ASCII)
_SAMPLED: Final = 1


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of another process.

    Attributes:
        trace_id: 16 bytes as a number, not 0.
        span_id: 8 bytes as a number, not 0.
        is_sampled: Whether that process says that it recorded the span.
    """

    trace_id: int
    span_id: int
    is_sampled: bool

    @classmethod
    def parse(cls, header: object) -> Self | None:
        """The context in a message's header; None if it has none, or one of another form."""
        match = _FORM.fullmatch(header) if isinstance(header, str) else None
        if match is None:
            return None
        trace_id, span_id, flags = (int(part, 16) for part in match.groups())
        if not (trace_id and span_id):
            return None
        return cls(trace_id, span_id, bool(flags & _SAMPLED))

    def header(self) -> str:
        """The header's value."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.is_sampled):02x}"
