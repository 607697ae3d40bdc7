"""When a store of customer keys is called, and how often at once (SPEC 2.6).

One customer's key must not cost another's. So each key has its own bounds and its own circuit
breaker, and an address's breaker counts only while none of the keys that are in use there answers;
even then each key has a call in each of its pauses.
A slow call gives its place at the address back, so that slow keys do not take all of them.
A refusal is an answer about one secret: it pauses neither its key nor its address.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import structlog

from keyturn.errors import CustomerKeyUnavailableError, KmsUnavailableError
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.keys.customer_keys.port import Store
from keyturn_workers.keys.master_keys.circuit_breaker import (
    CallLimits,
    CircuitBreaker,
    is_absence,
)

TIMEOUT_S: Final = 5.0
"""The longest that one call may take, from when it is sent."""
SLOW_S: Final = 0.25
"""A call that takes longer than this is slow."""
# No key may occupy all the calls that its address allows at once.
_AT_ADDRESS: Final = CallLimits(concurrency=16, requests_per_s=500, timeout_s=None, slow_s=SLOW_S)
MAX_CONNECTIONS: Final = round(_AT_ADDRESS.concurrency * (1 + TIMEOUT_S / SLOW_S))
"""To one address: no call waits for a connection, even if all calls hang."""
_PER_KEY: Final = CallLimits(concurrency=4, requests_per_s=100, timeout_s=None)
# A key in use is asked at least every 900 s: a quarter of the longest CUSTOMER_KEY_CACHE_S.
_UNUSED_AFTER_S: Final = 1000.0

Outcome = Literal["ok", "refused", "unavailable"]
Observe = Callable[[str, Outcome, float], None]
"""Called after each call, with the store's name, the outcome and the duration in seconds."""

_T = TypeVar("_T")

_log = structlog.get_logger()


@dataclass(slots=True)
class _Key:
    breaker: CircuitBreaker
    asked_s: float
    sent_s: float = -math.inf


@dataclass(slots=True)
class _Address:
    breaker: CircuitBreaker = field(init=False)
    clock_s: Callable[[], float]
    keys: dict[KeyName, _Key] = field(default_factory=dict)
    sent_s: dict[tuple[KeyName, object], float] = field(default_factory=dict)
    """When each call under way was sent."""

    def __post_init__(self) -> None:
        self.breaker = CircuitBreaker(
            _AT_ADDRESS,
            opens=is_absence,
            holds=lambda: all(key.breaker.is_away for key in self.keys.values()),
            clock_s=self.clock_s,
        )

    def key(self, name: KeyName) -> _Key:
        key = self.keys.get(name)
        if key is None:
            breaker = CircuitBreaker(_PER_KEY, opens=is_absence, clock_s=self.clock_s)
            key = self.keys[name] = _Key(breaker, self.clock_s())
        key.asked_s = self.clock_s()
        return key


class StoreCalls:
    """The calls of this process to the stores in its settings."""

    def __init__(
        self, stores: Mapping[str, Store], observe: Observe | None, clock_s: Callable[[], float]
    ) -> None:
        self._stores = stores
        self._observe = observe
        self._clock_s = clock_s
        self._addresses: dict[str, _Address] = {}

    def stores_of(self, project: str) -> list[str]:
        """The names of the stores whose keys the settings give the project."""
        return sorted(name for name, each in self._stores.items() if each.settings.admits(project))

    def gives(self, project: str, name: KeyName) -> bool:
        """Return True if the settings give the project this key.

        Raises:
            CustomerKeyUnavailableError: they lack the store.
        """
        store = self._stores.get(name.store)
        if store is None:
            raise CustomerKeyUnavailableError(
                f"KEYTURN_CUSTOMER_KEY_STORES of this process has no store {name.store}"
            )
        return store.settings.gives(project, name.key)

    def is_slow(self, name: KeyName, after_s: float, *, key_alone: bool = False) -> bool:
        """Return True if its address, or the key alone, has a call that has taken this long."""
        address = self._addresses.get(self._stores[name.store].address(name.key))
        sent_by_s = self._clock_s() - after_s
        return address is not None and any(
            sent_s <= sent_by_s and (key == name or not key_alone)
            for (key, _), sent_s in address.sent_s.items()
        )

    async def call(self, name: KeyName, send: Callable[[Store], Awaitable[_T]]) -> _T:
        """Await `send` with the key's store, within the limits, and return its result.

        Raises:
            KmsUnavailableError: `send` raised it or took too long, or an earlier failure pauses
                the key or its address. A `KmsRefusedError` if the store answered and refuses.
        """
        store = self._stores[name.store]
        where = store.address(name.key)
        address = self._addresses.get(where)
        if address is None:
            address = self._addresses[where] = _Address(self._clock_s)
        key = address.key(name)

        async def send_now() -> _T:
            key.sent_s = self._clock_s()
            return await self._send(name, store, address, send)

        if address.breaker.is_open and key.sent_s < address.breaker.paused_at_s:
            # Each key has a call in each pause of its address: otherwise the probes of keys that
            # stay silent would hide that this one answers.
            return await key.breaker.call(send_now)
        # Before the key's breaker: otherwise the pause of the address would lengthen its own.
        address.breaker.check()
        return await key.breaker.call(lambda: address.breaker.call(send_now))

    def purge(self) -> None:
        """Forget the keys that are not in use: their silence would not count as an address's."""
        now_s = self._clock_s()
        for where, address in tuple(self._addresses.items()):
            for name, key in tuple(address.keys.items()):
                if now_s - key.asked_s >= _UNUSED_AFTER_S:
                    del address.keys[name]
            if not address.keys:
                del self._addresses[where]

    async def aclose(self) -> None:
        """Close the connections."""
        for store in self._stores.values():
            await store.aclose()

    async def _send(
        self,
        name: KeyName,
        store: Store,
        address: _Address,
        send: Callable[[Store], Awaitable[_T]],
    ) -> _T:
        call = name, object()
        address.sent_s[call] = self._clock_s()
        began_s = time.perf_counter()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                answer = await send(store)
        except TimeoutError:
            failure = KmsUnavailableError(f"no response within {TIMEOUT_S:g} s")
            raise self._failed(name, failure) from None
        except KmsUnavailableError as exc:
            raise self._failed(name, exc) from None
        finally:
            del address.sent_s[call]
        self._report(name, "ok", time.perf_counter() - began_s)
        return answer

    def _failed(self, name: KeyName, failure: KmsUnavailableError) -> KmsUnavailableError:
        outcome: Outcome = "unavailable" if is_absence(failure) else "refused"
        _log.warning(
            "customer key not available",
            store=name.store,
            key=name.key,
            outcome=outcome,
            problem=failure.detail,
        )
        self._report(name, outcome, 0.0)
        return failure

    def _report(self, name: KeyName, outcome: Outcome, took_s: float) -> None:
        if self._observe is not None:
            self._observe(name.store, outcome, took_s)
