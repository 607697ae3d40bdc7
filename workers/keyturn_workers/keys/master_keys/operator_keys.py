"""The operator's keys: KEKs derived from master keys (SPEC 2.2, 11).

A process builds one `OperatorKeys` and passes it on. Each master key keeps its own KEKs
(`derived_keks`); this module brings together a project's KEKs under all master keys.

A KEK is used to seal only after two derivations agreed. A value that does not open under a cached
KEK is tried once under a fresh one (`open_with`, `fresh_record_kek`).
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final, TypeVar

from keyturn.crypto.keys import Secret
from keyturn.errors import (
    CorruptObjectError,
    KmsUnavailableError,
    NoUsableWrapError,
    UnknownMasterKeyError,
)
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.core.customer_keys import SecretNeededError
from keyturn_workers.keys.master_keys.circuit_breaker import CallLimits, CircuitBreaker, Observe
from keyturn_workers.keys.master_keys.derived_keks import DerivedKeks, KekLimits, OnDerived
from keyturn_workers.keys.master_keys.known_text import CheckMasterKey, KnownText
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.port import MasterKey
from keyturn_workers.process.background import repeat
from keyturn_workers.storage.clock import boottime_s

# A provider's KEK for a project not in memory is accepted only if the key was checked within this
# time: a key that is deleted and created again keeps its name, and a token may be replaced.
_CHECKED_S: Final = 10.0
# A master key in this process always derives the same KEKs.
_FOR_EVER: Final = {"cache_s": math.inf, "cache_max_s": math.inf, "fresh_s": math.inf}

_T = TypeVar("_T")


class OperatorKeys:
    """The KEKs of all projects under the master keys of this process.

    Args:
        master_keys: By id, in the order of the settings.
        limits: Cache times and the longest wait.
        calls: Limits on the calls to each master key's provider.
        seals: True if this process seals under KEKs: each is then derived twice at first.
        check: Checks that a master key is the one that the bucket knows by this id.
        on_derived: Called for each KEK that a provider derived.
        observe: Returns, for a provider's name, the function to call after each call to it.
        clock_s: Seconds since boot.
    """

    def __init__(
        self,
        master_keys: Mapping[str, MasterKey],
        *,
        limits: KekLimits | None = None,
        calls: CallLimits | None = None,
        seals: bool = True,
        check: CheckMasterKey | None = None,
        on_derived: OnDerived | None = None,
        observe: Callable[[str], Observe] | None = None,
        clock_s: Callable[[], float] = boottime_s,
    ) -> None:
        self._limits = limits = limits or KekLimits()
        self._when_forgotten: list[Callable[[str], None]] = []
        self._keys: dict[str, DerivedKeks] = {}
        for name, master_key in master_keys.items():
            is_local = isinstance(master_key, LocalMasterKey)
            breaker = None
            if not is_local:
                breaker = CircuitBreaker(
                    calls or CallLimits(),
                    observe=None if observe is None else observe(master_key.provider),
                    clock_s=clock_s,
                )
            self._keys[name] = DerivedKeks(
                name,
                master_key,
                breaker,
                KnownText(
                    name, check, valid_s=math.inf if is_local else _CHECKED_S, clock_s=clock_s
                ),
                replace(limits, **_FOR_EVER) if is_local else limits,
                seals=seals or is_local,
                on_derived=on_derived,
                on_forgotten=self._report_forgotten,
                clock_s=clock_s,
            )

    @classmethod
    def local(cls, master_keys: Mapping[str, Secret]) -> "OperatorKeys":
        """Use keys whose 32 bytes are in this process, without any check."""
        held = {name: LocalMasterKey(secret) for name, secret in master_keys.items()}
        return cls(held)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the master keys of this process, in the order of the settings."""
        return tuple(self._keys)

    def provider_of(self, master_key: str) -> str:
        """The provider of a master key of this process: `local`, `pkcs11`, `awskms` or `vault`."""
        return self._keys[master_key].provider

    @property
    def cached_keks(self) -> int:
        """The number of derived KEKs in memory."""
        return sum(len(keks) for keks in self._keys.values())

    async def admin_kek(self, master_key: str, project: str) -> Secret:
        """A project's admin KEK under one master key.

        Raises:
            UnknownMasterKeyError: this process lacks that master key, or has a wrong one.
            KmsUnavailableError: its provider gives no KEK now.
            StorageUnavailableError: the known text cannot be read now.
        """
        return await self._of(master_key).get("admin", project)

    async def record_kek(self, master_key: str, project: str) -> Secret:
        """The KEK of Keyturn's own records about a project; raises as `admin_kek`."""
        return await self._of(master_key).get("record", project)

    async def fresh_record_kek(self, master_key: str, project: str) -> Secret | None:
        """Derive a record KEK again; None if the cached one is fresh. Raises as `record_kek`."""
        keks = self._keys.get(master_key)
        if keks is None or not keks.is_stale("record", project):
            return None
        return await keks.derive_anew("record", project)

    async def admin_keks(self, project: str) -> AdminKeks:
        """A project's admin KEKs under all master keys of this process.

        Raises:
            StorageUnavailableError: a known text cannot be read now.
        """
        in_memory = self._in_memory(project)
        if not in_memory.unavailable:
            return in_memory
        results = await _gather(keks.get("admin", project) for keks in self._keys.values())
        return self._merge(project, dict(zip(self._keys, results, strict=True)))

    async def open_with(self, project: str, opening: Callable[[AdminKeks], _T]) -> _T:
        """Call `opening` with a project's admin KEKs, and return its result.

        The KEKs in memory are tried first: most objects open under the KEK of their project's
        keyring, and must not wait for the provider of another master key. If `opening` finds that
        nothing opens, and a KEK came from the cache, it is called again with fresh KEKs (SPEC 2.2).
        """
        in_memory = self._in_memory(project)
        if in_memory.unavailable:
            with suppress(
                NoUsableWrapError,
                CorruptObjectError,
                KmsUnavailableError,
                UnknownMasterKeyError,
                SecretNeededError,
            ):
                return opening(in_memory)
        try:
            return opening(await self.admin_keks(project))
        except (NoUsableWrapError, CorruptObjectError):
            stale = [name for name, keks in self._keys.items() if keks.is_stale("admin", project)]
            if not stale:
                raise
        return opening(await self._renew(project, stale))

    def touch(self, master_key: str, project: str) -> bool:
        """Return whether the project's admin KEK is in memory and may be used; keep it fresh.

        Never waits: a KEK that is due is derived again in the background.
        """
        keks = self._keys.get(master_key)
        return keks is not None and keks.use("admin", project) is not None

    async def check_all(self) -> dict[str, Exception | None]:
        """Check each master key against its known text; return its error, or None, by id."""
        results = await _gather(keks.check() for keks in self._keys.values())
        return {
            name: result if isinstance(result, Exception) else None
            for name, result in zip(self._keys, results, strict=True)
        }

    def purge(self) -> None:
        """Forget the KEKs that are not in use or too old."""
        for keks in self._keys.values():
            keks.purge()

    def when_forgotten(self, forget: Callable[[str], None]) -> None:
        """Call `forget` with the project of each admin KEK forgotten: copies must go too."""
        self._when_forgotten.append(forget)

    async def purge_periodically(self) -> None:
        """Purge forever, so that no KEK outlives its time in an idle process."""

        async def purge() -> None:
            self.purge()

        await repeat(purge, lambda: min(60.0, self._limits.cache_s / 4))

    async def aclose(self) -> None:
        """Close the providers' sessions and connections, and forget every KEK."""
        for keks in self._keys.values():
            await keks.aclose()

    def _of(self, master_key: str) -> DerivedKeks:
        keks = self._keys.get(master_key)
        if keks is None:
            raise UnknownMasterKeyError(master_key)
        return keks

    def _in_memory(self, project: str) -> AdminKeks:
        """The admin KEKs of a project that are in memory; the others count as unavailable."""
        found = {name: keks.use("admin", project) for name, keks in self._keys.items()}
        keks = {name: kek for name, kek in found.items() if kek is not None}
        missing = frozenset(found.keys() - keks.keys())
        return AdminKeks(project, keks, missing)

    async def _renew(self, project: str, stale: list[str]) -> AdminKeks:
        """Return a project's admin KEKs, the `stale` ones derived again; omit failed ones."""
        results = await _gather(self._keys[name].derive_anew("admin", project) for name in stale)
        renewed = self._merge(project, dict(zip(stale, results, strict=True)))
        known = await self.admin_keks(project)
        return known.without(unavailable=renewed.unavailable, wrong=renewed.wrong)

    def _merge(self, project: str, results: Mapping[str, Secret | Exception]) -> AdminKeks:
        """Sort results into KEKs, unavailable and wrong master keys; raise any other error."""
        keks: dict[str, Secret] = {}
        unavailable, wrong = set(), set()
        for name, result in results.items():
            match result:
                case Secret():
                    keks[name] = result
                case KmsUnavailableError():
                    unavailable.add(name)
                case UnknownMasterKeyError():
                    wrong.add(name)
                case _:
                    raise result
        return AdminKeks(project, keks, frozenset(unavailable), frozenset(wrong))

    def _report_forgotten(self, project: str) -> None:
        for forget in self._when_forgotten:
            forget(project)


async def _gather(calls: Iterable[Awaitable[_T]]) -> list[_T | Exception]:
    """Return each call's result or error. Raises only non-errors, such as a cancellation."""
    results: list[_T | Exception] = []
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, Exception):
            raise result
        results.append(result)
    return results
