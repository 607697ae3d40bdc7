"""What the storage does to some requests that it should not: a false 404, a clock that is off.

A fault is chosen when a request arrives and holds for the whole of it, as with one of
several front ends behind one address.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.wire import Call

READS: Final = frozenset({"read", "read_start", "head", "stream"})
# A 404 with the storage's own code, or the page of a proxy, which has none.
Missing = Literal["NoSuchKey", ""]


@dataclass(eq=False)
class Fault:
    """What happens to requests that `where` accepts, `times` times (None: to all of them).

    Attributes:
        clock_s: By how many seconds the clock of the front end is off, for dates and leases.
        dated_early: Whether the response's date is that of the request's arrival, which may lie
            long before its effect.
        missing: The code of a 404 that is returned in place of an effect; None for no 404.
    """

    where: Callable[[Call], bool]
    times: int | None = None
    clock_s: float = 0.0
    dated_early: bool = False
    missing: Missing | None = None

    def meets(self, call: Call) -> bool:
        """Whether it happens to this request; counts it."""
        if self.times == 0 or not self.where(call):
            return False
        if self.times is not None:
            self.times -= 1
        return True


def reads_of(prefix: str) -> Callable[[Call], bool]:
    """Reads of what lies under a prefix."""
    return lambda call: call.op in READS and call.key.startswith(prefix)


def anything(_: Call) -> bool:
    return True
