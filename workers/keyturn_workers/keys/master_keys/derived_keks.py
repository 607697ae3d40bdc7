"""Cache the KEKs derived from one master key (SPEC 2.2, 11).

A KEK in use is derived again before `KMS_CACHE_S`. While the provider does not respond, the KEK is
kept for up to `KMS_CACHE_MAX_S`. If the provider refuses, the KEK ends at `KMS_CACHE_S`: revoked
access must end.
"""

import asyncio
import enum
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import structlog

from keyturn.crypto.keys import Secret, admin_kek_info, record_kek_info
from keyturn.errors import KmsUnavailableError
from keyturn_workers.keys.master_keys.circuit_breaker import CircuitBreaker
from keyturn_workers.keys.master_keys.known_text import RESERVED_PROJECT, KnownText
from keyturn_workers.keys.master_keys.port import KekDerived, KmsRefusedError, MasterKey
from keyturn_workers.process.background import SharedTasks

Kind = Literal["admin", "record"]

_INFO: Final[dict[Kind, Callable[[str], bytes]]] = {
    "admin": admin_kek_info,
    "record": record_kek_info,
}
_MAX_KEKS: Final = 100_000
# Parts of the cache time: after the first a KEK in use is derived again; the second is the pause
# after a failure.
_REFRESH_AT: Final = 0.75
_REFRESH_PAUSE: Final = 1 / 60

_T = TypeVar("_T")
_Name = tuple[Kind, str]

_log = structlog.get_logger()


OnDerived = Callable[[KekDerived], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class KekLimits:
    """Cache times of derived KEKs, and the longest wait for one, in seconds.

    Attributes:
        cache_s: `KMS_CACHE_S`.
        cache_max_s: `KMS_CACHE_MAX_S`.
        wait_s: The longest wait for a KEK that is not in memory.
        fresh_s: A KEK this young is fresh: a new derivation would open nothing more.
    """

    cache_s: float = 3600
    cache_max_s: float = 86400
    wait_s: float = 5
    fresh_s: float = 60


class Use(enum.Enum):
    """The permitted use of a cached KEK at its age."""

    USE = enum.auto()
    USE_AND_REFRESH = enum.auto()
    ASK_FIRST = enum.auto()
    """Ask the provider; if it does not respond, use the KEK."""
    NEVER = enum.auto()


def decide_use(age_s: float, limits: KekLimits, *, is_away: bool) -> Use:
    """Decide about a KEK of this age. `is_away`: as `CircuitBreaker.is_away`. Pure."""
    if age_s < limits.cache_s * _REFRESH_AT:
        return Use.USE
    if age_s >= limits.cache_max_s:
        return Use.NEVER
    # While the provider is known to be away, no caller waits for probes.
    if age_s < limits.cache_s or is_away:
        return Use.USE_AND_REFRESH
    return Use.ASK_FIRST


@dataclass(slots=True)
class _CachedKek:
    kek: Secret
    derived_s: float
    tried_s: float
    confirmed: bool
    """True if two derivations agreed. A reader derives a KEK once, and again if nothing opens."""


class DerivedKeks:
    """The KEKs of one master key, whose id is `name`.

    `breaker` admits the calls to its provider; it is None if the key is in this process. If the
    process `seals` under KEKs, each is derived twice at first. `on_derived` is called for each KEK
    that the provider derived, and `on_forgotten` with the project of each admin KEK that leaves the
    cache.
    """

    def __init__(
        self,
        name: str,
        master_key: MasterKey,
        breaker: CircuitBreaker | None,
        known_text: KnownText,
        limits: KekLimits,
        *,
        seals: bool,
        on_derived: OnDerived | None,
        on_forgotten: Callable[[str], None],
        clock_s: Callable[[], float],
    ) -> None:
        self._name = name
        self._master_key = master_key
        self._breaker = breaker
        self._known_text = known_text
        self._limits = limits
        self._seals = seals
        self._on_derived = on_derived
        self._on_forgotten = on_forgotten
        self._clock_s = clock_s
        self._tasks = SharedTasks()
        self._keks: OrderedDict[_Name, _CachedKek] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keks)

    @property
    def provider(self) -> str:
        """The provider's name."""
        return self._master_key.provider

    def use(self, kind: Kind, project: str) -> Secret | None:
        """Return the KEK if it is in memory and may be used now; None otherwise.

        Never waits: a KEK that is due is derived again in the background.
        """
        name: _Name = (kind, project)
        cached = self._keks.get(name)
        if cached is None:
            return None
        use = self._use_of(cached)
        if use not in (Use.USE, Use.USE_AND_REFRESH):
            return None
        if use is Use.USE_AND_REFRESH:
            self._refresh(name, cached)
        self._keks.move_to_end(name)
        return cached.kek

    async def get(self, kind: Kind, project: str) -> Secret:
        """Return the KEK, from memory or from the provider.

        Raises:
            UnknownMasterKeyError: the provider's key is not the right one for the id.
            KmsUnavailableError: the provider gives no KEK now.
            StorageUnavailableError: the known text cannot be read now.
        """
        name: _Name = (kind, project)
        kek = self.use(kind, project)
        if kek is not None:
            return kek
        try:
            await self.check()
            return await self._run(name, lambda: self._derive(name, replaces=False))
        except KmsRefusedError:
            # The KEK is not used again, even if the provider does not respond the next time.
            self._forget(name)
            raise
        except KmsUnavailableError:
            cached = self._keks.get(name)
            if cached is None or self._use_of(cached) is Use.NEVER:
                raise
            return cached.kek

    def is_stale(self, kind: Kind, project: str) -> bool:
        """Return whether a new derivation could give a KEK other than the cached one."""
        cached = self._keks.get((kind, project))
        if cached is None:
            return False
        return not cached.confirmed or self._clock_s() - cached.derived_s >= self._limits.fresh_s

    async def derive_anew(self, kind: Kind, project: str) -> Secret:
        """Derive a KEK again, and replace the cached one; raises as `get`.

        The cached KEK stays until then: a record that does not open under it may be forged, and
        while a provider is away, everything that does open under the KEK still must.
        """
        name: _Name = (kind, project)
        await self.check()
        return await self._run(name, lambda: self._derive(name, replaces=True))

    async def check(self) -> None:
        """Check the master key against its known text, unless that was just done."""
        if not self._known_text.is_confirmed():
            await self._run("known text", lambda: self._known_text.confirm(self._derive_text))

    def purge(self) -> None:
        """Forget the KEKs that are not in use or too old."""
        for name, cached in tuple(self._keks.items()):
            if self._use_of(cached) in (Use.ASK_FIRST, Use.NEVER):
                self._forget(name)

    async def aclose(self) -> None:
        """Forget every KEK, and close the provider's sessions and connections."""
        await self._tasks.aclose()
        self._keks.clear()
        await self._master_key.aclose()

    def _use_of(self, cached: _CachedKek) -> Use:
        age_s = self._clock_s() - cached.derived_s
        is_away = self._breaker is not None and self._breaker.is_away
        return decide_use(age_s, self._limits, is_away=is_away)

    def _refresh(self, name: _Name, cached: _CachedKek) -> None:
        # Not at each use: a provider that is away is called only now and then.
        now_s = self._clock_s()
        if now_s - cached.tried_s >= self._limits.cache_s * _REFRESH_PAUSE:
            cached.tried_s = now_s
            self._tasks.start(name, lambda: self._derive(name, replaces=False))

    async def _run(self, name: object, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """Wait for the shared task with this name.

        Raises:
            KmsUnavailableError: it took too long; it continues.
        """
        wait_s = self._limits.wait_s
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(self._tasks.start(name, work))
        except TimeoutError:
            raise KmsUnavailableError(
                f"no KEK within {wait_s:g} s: too many calls wait, or the provider is slow"
            ) from None

    async def _derive_text(self) -> Secret:
        name: _Name = ("record", RESERVED_PROJECT)
        return await self._tasks.start(name, lambda: self._derive(name, replaces=True))

    async def _derive(self, name: _Name, *, replaces: bool) -> Secret:
        """Derive a KEK and cache it.

        `replaces`: it may differ from the cached KEK, which opened nothing.
        """
        began_s = self._clock_s()
        kek = await self._call(name)
        cached = self._keks.get(name)
        is_known = cached is not None and cached.kek == kek
        if cached is not None and not is_known and not replaces:
            raise _contradiction(self._name, name[1])
        if not is_known and self._seals and await self._call(name) != kek:
            raise _contradiction(self._name, name[1])
        if cached is not None and not is_known:
            self._forget(name)
        confirmed = self._seals or is_known
        self._keks[name] = _CachedKek(kek, began_s, began_s, confirmed)
        self._keks.move_to_end(name)
        while len(self._keks) > _MAX_KEKS:
            self._forget(next(iter(self._keks)))
        return kek

    async def _call(self, name: _Name) -> Secret:
        kind, project = name
        info = _INFO[kind](project)
        if self._breaker is None:
            return (await self._master_key.derive(info)).kek
        derivation = await self._breaker.call(lambda: self._master_key.derive(info))
        if self._on_derived is not None:
            provider = self._master_key.provider
            await self._on_derived(
                KekDerived(self._name, provider, kind, project, derivation.request_id)
            )
        return derivation.kek

    def _forget(self, name: _Name) -> None:
        # There are no copies of record KEKs to drop.
        if self._keks.pop(name, None) is not None and name[0] == "admin":
            self._on_forgotten(name[1])


def _contradiction(master_key: str, project: str) -> KmsUnavailableError:
    _log.error("two derivations of a KEK differ", master_key=master_key, project=project)
    return KmsUnavailableError(f"two derivations under {master_key} differ")
