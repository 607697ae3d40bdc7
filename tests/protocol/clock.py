"""Time that passes only when a test says so: one clock for loop, storage and workers."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple, cast

from tests.protocol.wire import CURRENT

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from datetime import tzinfo

    import pytest

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

EPOCH: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
# Whatever asks the machine for its time of day.
_MODULES: Final = (
    "keyturn_workers.keys.keyring.mark_stream",
    "keyturn_workers.process.wall_clock",
    "keyturn_workers.pipeline.control.deletion",
    "keyturn_workers.pipeline.control.enrollment",
    "keyturn_workers.pipeline.control.request_handler",
    "keyturn_workers.pipeline.control.rotation",
    "keyturn_workers.storage.clock",
    "keyturn_workers.pipeline.sweep.steps",
    "keyturn_workers.pipeline.sweep.all_projects",
    "keyturn_workers.pipeline.sweep.messages",
    "keyturn_workers.pipeline.sweep.starter",
    "keyturn_workers.pipeline.upload.request_handler",
)


class Clock:
    """Seconds since `EPOCH`."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @property
    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.seconds)

    def rule(self, patch: pytest.MonkeyPatch) -> None:
        """Let the workers' modules ask this clock."""
        clock = self

        class Virtual(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> Any:
                assert tz is UTC
                delivery = CURRENT.get()
                off_s = 0.0 if delivery is None else delivery.process.clock_s
                return clock.now + timedelta(seconds=off_s)

        for name in _MODULES:
            patch.setattr(import_module(name), "datetime", Virtual)
        storage_clock = import_module("keyturn_workers.storage.clock")
        boottime = SimpleNamespace(clock_gettime=lambda _: clock.seconds, CLOCK_BOOTTIME=None)
        patch.setattr(storage_clock, "time", boottime)
        breakers = import_module("keyturn_workers.keys.master_keys.circuit_breaker")
        patch.setattr(breakers, "random", SimpleNamespace(uniform=lambda *_: 1.0))


class Loop(asyncio.SelectorEventLoop):
    """An event loop that is run from outside, and never waits for real."""

    def __init__(self, clock: Clock) -> None:
        self._virtual = clock
        super().__init__()

    def time(self) -> float:
        return self._virtual.seconds

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """Run it on the loop: a test that runs until nothing moves would not wait for a thread."""
        del executor

        async def run() -> _T:
            return func(*args)

        return self.create_task(run())

    def run_until_idle(self) -> None:
        """Let tasks run until each of them waits for something that only a test brings about."""
        inner = cast("Any", self)
        while inner._ready or self._next_timer() <= self.time():
            self.call_soon(self.stop)
            self.run_forever()

    def next_timer(self) -> float | None:
        """The second at which the next sleeping task wakes up."""
        at = self._next_timer()
        return None if at == float("inf") else at

    def _next_timer(self) -> float:
        waiting = (timer for timer in cast("Any", self)._scheduled if not timer.cancelled())
        return min((float(timer.when()) for timer in waiting), default=float("inf"))
