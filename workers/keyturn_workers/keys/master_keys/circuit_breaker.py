"""A circuit breaker decides if a provider may be called (SPEC 2.2, 2.6, 11).

Each master key has one; each customer key has one, each secret under it, and each store's address.

Thousands of projects can need a KEK in the same second, and each of their messages is retried on
its own schedule. They must not all call a provider that is away. So after a failure the circuit is
open: callers fail at once with the reason of that failure. After a pause one call goes through,
the probe; callers that come meanwhile wait for its outcome.

Repeating a refused credential cannot help: it only fills the provider's audit log and uses up its
rate limit. So the pauses after a refusal are longer, but a new credential ends them.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from aiolimiter import AsyncLimiter

from keyturn.errors import KmsUnavailableError
from keyturn_workers.keys.master_keys.port import KmsRefusedError

_T = TypeVar("_T")
# Pauses double from the first to the longest.
_PAUSES_S: Final = (0.5, 15.0)
_PAUSES_AFTER_REFUSAL_S: Final = (1.0, 60.0)

Observe = Callable[[bool, float], None]
"""Called after each call, with its success and its duration in seconds."""


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Limits on the calls to one provider: at once, per second, and in seconds for each.

    Without `timeout_s`, the call ends by itself. A call that takes longer than `slow_s` no longer
    counts as one of those at once.
    """

    concurrency: int = 16
    requests_per_s: int = 500
    timeout_s: float | None = 5
    slow_s: float | None = None


def is_any(_: KmsUnavailableError) -> bool:
    """Let any failure open a circuit."""
    return True


def is_absence(failure: KmsUnavailableError) -> bool:
    """Let a circuit open where the provider did not respond: one that refuses is not away."""
    return not isinstance(failure, KmsRefusedError)


class CircuitBreaker:
    """Admits calls to one provider, within `limits` while it responds.

    A failure that does not satisfy `opens` counts as a response. An open circuit admits calls
    while `holds` returns False.
    """

    def __init__(
        self,
        limits: CallLimits,
        *,
        observe: Observe | None = None,
        opens: Callable[[KmsUnavailableError], bool] = is_any,
        holds: Callable[[], bool] = lambda: True,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opens = opens
        self._holds = holds
        self._timeout_s = limits.timeout_s
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._slow_s = limits.slow_s
        self._rate = AsyncLimiter(limits.requests_per_s, 1)
        self._observe = observe
        self._clock_s = clock_s
        # None while the circuit is closed.
        self._failure: KmsUnavailableError | None = None
        self._pause_s = 0.0
        self._probe_at_s = 0.0
        self.paused_at_s = 0.0
        """When the newest pause began."""
        # Set when the probe ends.
        self._probe: asyncio.Event | None = None

    @property
    def is_away(self) -> bool:
        """True if the provider did not respond to the last call. One that refuses is not away."""
        return self._failure is not None and is_absence(self._failure)

    @property
    def is_open(self) -> bool:
        """True if an earlier failure pauses calls, except for a probe after each pause."""
        return self._current() is not None

    def check(self) -> None:
        """Check that a call would not fail at once, because of an earlier failure.

        Raises:
            KmsUnavailableError: as `call`.
        """
        failure = self._current()
        if failure is not None:
            self._check_pause(failure)

    async def call(self, send: Callable[[], Awaitable[_T]]) -> _T:
        """Await `send` within the limits, and return its result.

        Raises:
            KmsUnavailableError: `send` raised it, took too long, or was not called because of an
                earlier failure; it is then raised again with the same type and text.
        """
        while True:
            while (failure := self._current()) is not None:
                self._check_pause(failure)
                if self._probe is None:
                    return await self._run_probe(send)
                await self._probe.wait()
            async with self._slot():
                if self._current() is None:
                    await self._rate.acquire()
                if self._current() is None:
                    return await self._send(send)
            # The provider failed meanwhile: the callers that waited must not all be probes.

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        await self._slots.acquire()
        with ExitStack() as slot:
            slot.callback(self._slots.release)
            if self._slow_s is not None:
                # Whichever comes first closes it; closing it again does nothing.
                timer = asyncio.get_running_loop().call_later(self._slow_s, slot.close)
                slot.callback(timer.cancel)
            yield

    def _current(self) -> KmsUnavailableError | None:
        """The failure for which the circuit is open."""
        return self._failure if self._holds() else None

    def _check_pause(self, failure: KmsUnavailableError) -> None:
        left_s = self._probe_at_s - self._clock_s()
        if left_s <= 0 or (isinstance(failure, KmsRefusedError) and failure.has_new_credential()):
            return
        raise type(failure)(f"{failure.detail}; next attempt in {max(left_s, 1):.0f} s")

    async def _run_probe(self, send: Callable[[], Awaitable[_T]]) -> _T:
        self._probe = asyncio.Event()
        try:
            return await self._send(send)
        finally:
            self._probe.set()
            self._probe = None

    async def _send(self, send: Callable[[], Awaitable[_T]]) -> _T:
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await send()
        except TimeoutError:
            failure = KmsUnavailableError(f"no response within {self._timeout_s:g} s")
            self._open(failure)
            raise failure from None
        except KmsUnavailableError as exc:
            if self._opens(exc):
                self._open(exc)
            else:
                self._close()
                self._report(succeeded=False, seconds=0.0)
            raise
        self._close()
        self._report(succeeded=True, seconds=time.perf_counter() - began_s)
        return answer

    def _close(self) -> None:
        self._failure, self._pause_s = None, 0.0

    def _open(self, failure: KmsUnavailableError) -> None:
        now_s = self._clock_s()
        # Calls under way together fail together: they lengthen the pause only once.
        if self._failure is None or now_s >= self._probe_at_s:
            is_refusal = isinstance(failure, KmsRefusedError)
            first_s, longest_s = _PAUSES_AFTER_REFUSAL_S if is_refusal else _PAUSES_S
            self._pause_s = min(max(2 * self._pause_s, first_s), longest_s)
            jitter = random.uniform(0.75, 1.25)  # noqa: S311  # no secret
            self._probe_at_s = now_s + self._pause_s * jitter
            self.paused_at_s = now_s
        self._failure = failure
        self._report(succeeded=False, seconds=0.0)

    def _report(self, *, succeeded: bool, seconds: float) -> None:
        if self._observe is not None:
            self._observe(succeeded, seconds)
