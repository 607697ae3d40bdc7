"""One line for each thing that was checked, and their number at the end."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class CheckFailedError(Exception):
    """What must hold does not; the text says what was seen."""


class Report:
    """Prints each check as it ends; `passed` and `failed` are their numbers."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = time.monotonic()
        self.passed = 0
        self.failed = 0

    @contextmanager
    def check(self, what: str) -> Iterator[list[str]]:
        """Check something in a block; what the block appends is printed beside it."""
        started = time.monotonic()
        details: list[str] = []
        try:
            yield details
        except Exception:
            self.failed += 1
            print(f"FAILED  {what}", flush=True)
            raise
        self.passed += 1
        seconds = time.monotonic() - started
        more = f": {', '.join(details)}" if details else ""
        print(f"ok {seconds:5.1f} s  {what}{more}", flush=True)

    def close(self) -> None:
        """Print the totals."""
        seconds = time.monotonic() - self._started
        print(f"{self._name} took {seconds:.0f} s", flush=True)
        print(f"{self._name}: {self.passed} passed, {self.failed} failed", flush=True)


def require(condition: object, seen: str) -> None:
    """Fail the check with what was seen, unless the condition holds.

    Raises:
        CheckFailedError: it does not.
    """
    if not condition:
        raise CheckFailedError(seen)
