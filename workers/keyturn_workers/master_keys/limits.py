"""Bounds on the calls to a provider: at once, per second, and while it is away (SPEC 2.2, 11).

Thousands of projects can need a KEK in the same second, and each of their messages is tried again
on its own schedule. A provider that is away must not be asked by each of them: after a failure, and
until one probe has succeeded, callers fail at once with the reason of that failure. Those who come
while the probe runs wait for its outcome.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final

from aiolimiter import AsyncLimiter

from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.port import (
    Derivation,
    KeyDescription,
    KmsRefusedError,
    MasterKey,
)

_MIN_PAUSE_S: Final = 0.5
_MAX_PAUSE_S: Final = 15.0


class LimitedMasterKey:
    """A master key whose calls are bounded.

    Args:
        master_key: The key itself.
        concurrency: Calls at once.
        requests_per_s: Calls a second.
        timeout_s: For one call.
        observe: Called after each call, with whether it derived a KEK and the seconds that it took.
        clock: Seconds that only grow; for tests.
    """

    def __init__(
        self,
        master_key: MasterKey,
        *,
        concurrency: int,
        requests_per_s: int,
        timeout_s: float,
        observe: Callable[[bool, float], None] = lambda _derived, _seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._master_key = master_key
        self._slots = asyncio.Semaphore(concurrency)
        self._rate = AsyncLimiter(requests_per_s, 1)
        self._timeout_s = timeout_s
        self._observe = observe
        self._clock = clock
        self._failure: KmsUnavailableError | None = None
        self._pause_s = 0.0
        self._probe_at_s = 0.0
        # Set when the one call ends that finds out whether the provider is back.
        self._probe: asyncio.Event | None = None

    @property
    def provider(self) -> str:
        """The provider's name."""
        return self._master_key.provider

    @property
    def is_away(self) -> bool:
        """Whether the last call failed, and none has succeeded since."""
        return self._failure is not None

    @property
    def is_refused(self) -> bool:
        """Whether the provider answered the last call, and refused it."""
        return isinstance(self._failure, KmsRefusedError)

    async def derive(self, info: bytes) -> Derivation:
        """As `MasterKey.derive`, within the bounds."""
        while True:
            while self._failure is not None:
                self._check_not_away()
                if self._probe is None:
                    return await self._run_probe(info)
                await self._probe.wait()  # its outcome is that of all who come meanwhile
            async with self._slots:
                if self._failure is None:
                    await self._rate.acquire()
                if self._failure is None:
                    return await self._call(info)
            # The provider has gone meanwhile: those who waited here must not all be probes.

    async def _run_probe(self, info: bytes) -> Derivation:
        self._probe = asyncio.Event()
        try:
            return await self._call(info)
        finally:
            self._probe.set()
            self._probe = None

    async def _call(self, info: bytes) -> Derivation:
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                derivation = await self._master_key.derive(info)
        except TimeoutError:
            failure = KmsUnavailableError(f"no answer within {self._timeout_s:g} s")
            self._note(failure)
            raise failure from None
        except KmsUnavailableError as exc:
            self._note(exc)
            raise
        self._failure, self._pause_s = None, 0.0
        self._observe(True, time.perf_counter() - began_s)  # noqa: FBT003
        return derivation

    async def describe(self) -> KeyDescription:
        """As `MasterKey.describe`; for people, so without bounds but the timeout."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._master_key.describe()
        except TimeoutError:
            raise KmsUnavailableError(f"no answer within {self._timeout_s:g} s") from None

    async def aclose(self) -> None:
        """Close the key's connections."""
        await self._master_key.aclose()

    def _check_not_away(self) -> None:
        if self._failure is not None and self._clock() < self._probe_at_s:
            raise type(self._failure)(self._failure.detail)

    def _note(self, failure: KmsUnavailableError) -> None:
        # Calls that were under way together fail together: they lengthen the pause once.
        if self._failure is None or self._clock() >= self._probe_at_s:
            self._pause()
        self._failure = failure
        self._observe(False, 0.0)  # noqa: FBT003

    def _pause(self) -> None:
        self._pause_s = min(max(2 * self._pause_s, _MIN_PAUSE_S), _MAX_PAUSE_S)
        jitter = random.uniform(0.75, 1.25)  # noqa: S311  # no secret
        self._probe_at_s = self._clock() + self._pause_s * jitter
