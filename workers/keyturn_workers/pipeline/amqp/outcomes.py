"""The outcomes of a delivery's handler: returned or raised (SPEC 6.2, 6.9)."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from keyturn.messages.events import Event


class DeferError(Exception):
    """Redeliver the message after `wait_s` seconds without counting an attempt.

    The message waits at the broker: the worker may die meanwhile.
    """

    def __init__(self, wait_s: float) -> None:
        super().__init__(f"in {wait_s:.0f} s")
        self.wait_s = wait_s


class ReturnedError(Exception):
    """The delivery could not be settled: it goes back to its queue."""


@dataclass(frozen=True, slots=True)
class Handled:
    """A served request: the events to publish, the fields to log, and a final action.

    `event` is None if nothing is published yet; `more` are published after it, all at once, and
    `after` is called once all of them are confirmed.
    """

    event: Event | None
    logged: dict[str, Any]
    after: Callable[[], Awaitable[None]] | None = None
    more: tuple[Event, ...] = ()
