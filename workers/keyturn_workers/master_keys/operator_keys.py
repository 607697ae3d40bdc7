"""The operator's keys: KEKs derived from master keys, wherever these are held (SPEC 2.2, 11).

A process builds one `OperatorKeys` and passes it on. It keeps each derived KEK in memory, derives
it again ahead of `KMS_CACHE_S` while it is in use, and no longer than `KMS_CACHE_MAX_S` if the
provider does not answer. A provider that answers, and refuses, ends a KEK at `KMS_CACHE_S`: access
that was revoked must end.

A KEK is used to seal only after two derivations agreed. What does not open under a cached one is
tried once under a fresh one (`open_with`, `fresh_record_kek`).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import structlog

from keyturn.crypto import Secret, admin_kek_info, record_kek_info
from keyturn.errors import (
    CorruptObjectError,
    KmsUnavailableError,
    NoUsableWrapError,
    UnknownMasterKeyError,
)
from keyturn_workers.master_keys.admin_keks import AdminKeks
from keyturn_workers.master_keys.limits import LimitedMasterKey
from keyturn_workers.master_keys.local import LocalMasterKey
from keyturn_workers.master_keys.port import KmsRefusedError, MasterKey
from keyturn_workers.storage.clock import boottime_s

Kind = Literal["admin", "record"]
CheckMasterKey = Callable[[str, Secret], Awaitable[bool]]
"""Given an id and the record KEK of the reserved project; raises if it is another key.

False if there is nothing to compare it with yet."""

_MAX_KEKS: Final = 100_000
# A KEK in use is derived again at this part of its cache time.
_REFRESH_AT: Final = 0.75
# A KEK that was derived this recently is fresh: what does not open under it never will.
_FRESH_S: Final = 60.0
# A master key that is not the one of its id is checked again after this time.
_WRONG_S: Final = 60.0
# What a provider derives for a project not in memory counts only if its key was checked within this
# time: a key that is deleted and created again keeps its name, and a token may be replaced.
_CONFIRMED_S: Final = 10.0
_INFO: Final[dict[Kind, Callable[[str], bytes]]] = {
    "admin": admin_kek_info,
    "record": record_kek_info,
}

_T = TypeVar("_T")
_Name = tuple[str, Kind, str]

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class KekDerived:
    """A KEK that a provider derived, for the audit trail and the metrics."""

    master_key: str
    provider: str
    kind: Kind
    project: str
    request_id: str | None


OnDerived = Callable[[KekDerived], Awaitable[None]]


@dataclass(slots=True)
class _CachedKek:
    kek: Secret
    derived_s: float
    tried_s: float
    confirmed: bool
    """Whether two derivations agreed. A reader derives a KEK once, and again if nothing opens."""


@dataclass(frozen=True, slots=True)
class KekLimits:
    """How long derived KEKs are kept, and how long a caller waits for one, in seconds."""

    cache_s: float = 3600
    cache_max_s: float = 86400
    wait_s: float = 5


class OperatorKeys:
    """The KEKs of all projects under the master keys of this process.

    Args:
        master_keys: By id, in the order of the settings.
        v0_admin_kek: The earlier system's admin KEK; None if it is not held.
        limits: Cache times and the longest wait.
        seals: Whether this process seals under KEKs: each is then derived twice at first.
        reserved_project: The project of the known text that `check` opens.
        check: Checks that a master key is the one that the bucket knows by this id.
        on_derived: Called for each KEK that a provider derived.
        clock_s: Seconds since boot.
    """

    def __init__(
        self,
        master_keys: Mapping[str, MasterKey],
        *,
        v0_admin_kek: Secret | None = None,
        limits: KekLimits | None = None,
        seals: bool = True,
        reserved_project: str = "",
        check: CheckMasterKey | None = None,
        on_derived: OnDerived | None = None,
        clock_s: Callable[[], float] = boottime_s,
    ) -> None:
        self.v0_admin_kek = v0_admin_kek
        self._master_keys = dict(master_keys)
        self._limits = limits or KekLimits()
        self._seals = seals
        self._reserved_project = reserved_project
        self._check = check
        self._on_derived = on_derived
        self._clock_s = clock_s
        self._keks: OrderedDict[_Name, _CachedKek] = OrderedDict()
        self._running: dict[_Name, asyncio.Task[Secret]] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}
        # When each master key was checked last, and the KEK that opened its known text.
        self._checked: dict[str, float] = {}
        self._confirmed: dict[str, Secret] = {}
        self._when_forgotten: list[Callable[[str], None]] = []
        # Ids under which this process has another key than the bucket knows, until when.
        self._wrong: dict[str, tuple[UnknownMasterKeyError, float]] = {}
        self._admin_sets: dict[str, AdminKeks] = {}

    @classmethod
    def local(
        cls, master_keys: Mapping[str, Secret], *, v0_admin_kek: Secret | None = None
    ) -> "OperatorKeys":
        """Keys of which this process holds the 32 bytes each, without any check."""
        held = {name: LocalMasterKey(secret) for name, secret in master_keys.items()}
        return cls(held, v0_admin_kek=v0_admin_kek)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the master keys of this process, in the order of the settings."""
        return tuple(self._master_keys)

    def provider_of(self, master_key: str) -> str:
        """What holds a master key of this process: `local`, `pkcs11`, `awskms` or `vault`."""
        return self._master_keys[master_key].provider

    @property
    def cached_keks(self) -> int:
        """How many derived KEKs are in memory."""
        return len(self._keks)

    async def admin_kek(self, master_key: str, project: str) -> Secret:
        """A project's admin KEK under one master key.

        Raises:
            UnknownMasterKeyError: this process lacks that master key, or has another one by its id.
            KmsUnavailableError: its provider gives no KEK now.
            StorageUnavailableError: the known text cannot be read now.
        """
        return await self._kek(master_key, "admin", project)

    async def record_kek(self, master_key: str, project: str) -> Secret:
        """The KEK of Keyturn's own records about a project; errors as `admin_kek`."""
        return await self._kek(master_key, "record", project)

    async def admin_keks(self, project: str) -> AdminKeks:
        """A project's admin KEKs under all master keys of this process.

        Raises:
            StorageUnavailableError: a known text cannot be read now.
        """
        known = self._known_set(project)
        if known is not None:
            return known
        keks: dict[str, Secret] = {}
        unavailable: set[str] = set()
        wrong: set[str] = set()
        results = await asyncio.gather(
            *(self.admin_kek(name, project) for name in self._master_keys), return_exceptions=True
        )
        for name, result in zip(self._master_keys, results, strict=True):
            match result:
                case Secret():
                    keks[name] = result
                case KmsUnavailableError():
                    unavailable.add(name)
                case UnknownMasterKeyError():
                    wrong.add(name)
                case _:
                    raise result
        found = AdminKeks(
            project, keks, frozenset(unavailable), self.v0_admin_kek, wrong=frozenset(wrong)
        )
        if not unavailable and not wrong:
            if len(self._admin_sets) >= _MAX_KEKS:
                self._admin_sets.clear()
            self._admin_sets[project] = found
        return found

    def _known_set(self, project: str) -> AdminKeks | None:
        known = self._admin_sets.get(project)
        if known is not None and all(self.touch(name, project) for name in known.keks):
            return known
        return None

    def _in_memory(self, project: str) -> AdminKeks:
        """The admin KEKs of a project that are in memory; the others count as unavailable."""
        keks: dict[str, Secret] = {}
        for master_key in self._master_keys:
            name: _Name = (master_key, "admin", project)
            cached = self._keks.get(name)
            if cached is not None and self._use(name, cached):
                keks[master_key] = cached.kek
        missing = frozenset(self._master_keys.keys() - keks.keys())
        return AdminKeks(project, keks, missing, self.v0_admin_kek)

    async def open_with(self, project: str, opening: Callable[[AdminKeks], _T]) -> _T:
        """Return what `opening` makes of a project's admin KEKs.

        Those in memory are tried first: most of what there is opens under the KEK of its project's
        keyring, and must not wait for the provider of another master key. If it finds that nothing
        opens, and a KEK came from the cache, it is tried once more under fresh ones (SPEC 2.2).
        """
        if self._known_set(project) is None:
            with suppress(
                NoUsableWrapError, CorruptObjectError, KmsUnavailableError, UnknownMasterKeyError
            ):
                return opening(self._in_memory(project))
        try:
            return opening(await self.admin_keks(project))
        except (NoUsableWrapError, CorruptObjectError):
            renewed = await self._renew(project)
            if renewed is None:
                raise
        return opening(renewed)

    async def fresh_record_kek(self, master_key: str, project: str) -> Secret | None:
        """The record KEK by a new derivation; None if the cached one is fresh. As `record_kek`."""
        name: _Name = (master_key, "record", project)
        return await self._derive_anew(name) if self._is_stale(name) else None

    def touch(self, master_key: str, project: str) -> bool:
        """Whether the project's admin KEK is in memory and may be used; keeps it fresh.

        Never waits: a KEK that is due is derived again in the background.
        """
        name: _Name = (master_key, "admin", project)
        cached = self._keks.get(name)
        if cached is None:
            # A local one was evicted: it is derived again when it is needed.
            return isinstance(self._master_keys.get(master_key), LocalMasterKey)
        return self._use(name, cached)

    async def check_all(self) -> dict[str, Exception | None]:
        """Check each master key against its known text; the error of each that fails, by id."""
        results = await asyncio.gather(
            *(self._ensure_checked(name) for name in self._master_keys), return_exceptions=True
        )
        errors: dict[str, Exception | None] = {}
        for name, result in zip(self._master_keys, results, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, Exception):
                raise result
            errors[name] = result
        return errors

    def purge(self) -> None:
        """Forget the KEKs that are not in use, and those that are too old."""
        now_s = self._clock_s()
        for name, cached in tuple(self._keks.items()):
            if self._is_local(name[0]):
                continue
            age_s = now_s - cached.derived_s
            away = self._is_away(name[0])
            if age_s >= self._limits.cache_max_s or (age_s >= self._limits.cache_s and not away):
                self._forget(name)

    def when_forgotten(self, forget: Callable[[str], None]) -> None:
        """Call this with the project of each admin KEK that is forgotten: copies must go too."""
        self._when_forgotten.append(forget)

    async def purge_periodically(self) -> None:
        """Purge for ever, so that no KEK outlives its time in a process that does nothing."""
        while True:
            await asyncio.sleep(min(60.0, self._limits.cache_s / 4))
            self.purge()

    async def aclose(self) -> None:
        """Close the providers' sessions and connections, and forget every KEK."""
        tasks = [*self._running.values(), *self._checks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._keks.clear()
        self._admin_sets.clear()
        self._confirmed.clear()
        for master_key in self._master_keys.values():
            await master_key.aclose()

    # One KEK.

    async def _kek(self, master_key: str, kind: Kind, project: str) -> Secret:
        name: _Name = (master_key, kind, project)
        cached = self._keks.get(name)
        if cached is not None and self._use(name, cached):
            return cached.kek
        if master_key not in self._master_keys:
            raise UnknownMasterKeyError(master_key)
        held = self._master_keys[master_key]
        if isinstance(held, LocalMasterKey):
            await self._ensure_checked(master_key)
            return self._derive_now(name, held)
        try:
            await self._ensure_checked(master_key)
            return await self._wait_for(self._start(name))
        except KmsUnavailableError as exc:
            # Ahead of its hard end a KEK is better than none, unless the provider refused: then it
            # is not used again, even if the provider does not answer the next time.
            if isinstance(exc, KmsRefusedError):
                self._forget(name)
            cached = self._keks.get(name)
            if cached is None or self._is_over(name, cached):
                raise
            return cached.kek

    def _use(self, name: _Name, cached: _CachedKek) -> bool:
        """Whether a cached KEK may be used now; derives it again in the background when due."""
        if self._is_local(name[0]):
            return True
        age_s = self._clock_s() - cached.derived_s
        if age_s >= self._limits.cache_s and (
            self._is_over(name, cached) or not self._is_away(name[0])
        ):
            return False  # the provider is asked first, and then decides
        # While it is known to be away no caller waits for the calls that find out if it is back.
        if age_s >= self._limits.cache_s * _REFRESH_AT and self._may_try(cached):
            self._start(name)
        self._keks.move_to_end(name)
        return True

    def _may_try(self, cached: _CachedKek) -> bool:
        """Not at each use: a provider that is away is asked once in a while."""
        now_s = self._clock_s()
        if now_s - cached.tried_s < self._limits.cache_s / 60:
            return False
        cached.tried_s = now_s
        return True

    def _is_over(self, name: _Name, cached: _CachedKek) -> bool:
        age_s = self._clock_s() - cached.derived_s
        return not self._is_local(name[0]) and age_s >= self._limits.cache_max_s

    def _is_away(self, master_key: str) -> bool:
        """Whether the provider did not answer last. One that refuses is not away."""
        held = self._master_keys[master_key]
        return isinstance(held, LimitedMasterKey) and held.is_away and not held.is_refused

    def _is_local(self, master_key: str) -> bool:
        return isinstance(self._master_keys[master_key], LocalMasterKey)

    def _is_stale(self, name: _Name) -> bool:
        """Whether a new derivation could give another KEK than the cached one."""
        cached = self._keks.get(name)
        if cached is None or self._is_local(name[0]):
            return False
        return not cached.confirmed or self._clock_s() - cached.derived_s >= _FRESH_S

    async def _renew(self, project: str) -> AdminKeks | None:
        """The admin KEKs of a project, cached ones derived again; None if they are fresh.

        Those in memory stay until others are there: what does not open may be forged, and a
        provider that is away must not take the KEKs of all that does open.
        """
        names: list[_Name] = [(name, "admin", project) for name in self._master_keys]
        stale = [name for name in names if self._is_stale(name)]
        if not stale:
            return None
        results = await asyncio.gather(
            *(self._derive_anew(name) for name in stale), return_exceptions=True
        )
        failed: dict[type, set[str]] = {KmsUnavailableError: set(), UnknownMasterKeyError: set()}
        for name, result in zip(stale, results, strict=True):
            if isinstance(result, KmsUnavailableError):
                failed[KmsUnavailableError].add(name[0])
            elif isinstance(result, UnknownMasterKeyError):
                failed[UnknownMasterKeyError].add(name[0])
            elif isinstance(result, BaseException):
                raise result
        known = await self.admin_keks(project)
        return known.without(
            unavailable=failed[KmsUnavailableError], wrong=failed[UnknownMasterKeyError]
        )

    async def _derive_anew(self, name: _Name) -> Secret:
        """A KEK by a new derivation, which takes the place of the cached one; as `_kek`."""
        await self._ensure_checked(name[0])
        return await self._wait_for(self._start(name, replaces=True))

    def _start(self, name: _Name, *, replaces: bool = False) -> "asyncio.Task[Secret]":
        """The derivation under way; all who need this KEK share it, and none can cancel it."""
        task = self._running.get(name)
        if task is None:
            task = self._running[name] = _share(self._derive(name, replaces=replaces))
            task.add_done_callback(lambda _: self._running.pop(name, None))
        return task

    async def _wait_for(self, task: "asyncio.Task[_T]") -> _T:
        try:
            async with asyncio.timeout(self._limits.wait_s):
                return await asyncio.shield(task)
        except TimeoutError:
            raise KmsUnavailableError(
                f"no KEK within {self._limits.wait_s:g} s: too many are waiting, or the provider "
                "is slow"
            ) from None

    def _derive_now(self, name: _Name, held: LocalMasterKey) -> Secret:
        info = _INFO[name[1]](name[2])
        kek, second = held.derive_now(info), held.derive_now(info)
        if kek != second:
            raise self._contradiction(name)
        now_s = self._clock_s()
        self._store(name, _CachedKek(kek, now_s, now_s, confirmed=True))
        return kek

    async def _derive(self, name: _Name, *, replaces: bool) -> Secret:
        """Derive a KEK, and put it into the cache.

        Args:
            name: Which KEK.
            replaces: Whether it may differ from the cached one, which opened nothing.
        """
        info = _INFO[name[1]](name[2])
        began_s = self._clock_s()
        kek = await self._derive_once(name, info)
        cached = self._keks.get(name)
        if cached is not None and cached.kek != kek and not replaces:
            raise self._contradiction(name)
        if (cached is None or cached.kek != kek) and self._seals:
            second = await self._derive_once(name, info)
            if kek != second:
                raise self._contradiction(name)
        confirmed = self._seals or (cached is not None and cached.kek == kek)
        self._store(name, _CachedKek(kek, began_s, began_s, confirmed))
        return kek

    async def _derive_once(self, name: _Name, info: bytes) -> Secret:
        master_key, kind, project = name
        held = self._master_keys[master_key]
        derivation = await held.derive(info)
        if self._on_derived is not None and not self._is_local(master_key):
            await self._on_derived(
                KekDerived(master_key, held.provider, kind, project, derivation.request_id)
            )
        return derivation.kek

    def _contradiction(self, name: _Name) -> KmsUnavailableError:
        _log.error("two derivations of a KEK differ", master_key=name[0], project=name[2])
        return KmsUnavailableError(f"two derivations under {name[0]} differ")

    def _store(self, name: _Name, cached: _CachedKek) -> None:
        before = self._keks.get(name)
        if before is not None and before.kek != cached.kek:
            self._forget(name)
        self._keks[name] = cached
        self._keks.move_to_end(name)
        while len(self._keks) > _MAX_KEKS:
            self._forget(next(iter(self._keks)))

    def _forget(self, name: _Name) -> None:
        self._keks.pop(name, None)
        self._admin_sets.pop(name[2], None)
        # Record KEKs are used least, and so evicted first; no copies of them are held.
        if name[1] == "admin" and not self._is_local(name[0]):
            for forget in self._when_forgotten:
                forget(name[2])

    # The known texts.

    async def _ensure_checked(self, master_key: str) -> None:
        if self._check is None or self._is_confirmed(master_key):
            return
        wrong = self._wrong.get(master_key)
        if wrong is not None and self._clock_s() < wrong[1]:
            raise UnknownMasterKeyError(wrong[0].detail)
        task = self._checks.get(master_key)
        if task is None:
            task = self._checks[master_key] = _share(self._check_one(master_key, self._check))
            task.add_done_callback(lambda _: self._checks.pop(master_key, None))
        await self._wait_for(task)

    def _is_confirmed(self, master_key: str) -> bool:
        checked_s = self._checked.get(master_key)
        if checked_s is None:
            return False
        return self._is_local(master_key) or self._clock_s() - checked_s < _CONFIRMED_S

    async def _check_one(self, master_key: str, check: CheckMasterKey) -> None:
        name: _Name = (master_key, "record", self._reserved_project)
        began_s = self._clock_s()
        try:
            held = self._master_keys[master_key]
            if isinstance(held, LocalMasterKey):
                kek = self._derive_now(name, held)
            else:
                kek = await self._start(name, replaces=True)
            if master_key in self._confirmed:
                _check_same(master_key, kek, self._confirmed[master_key])
            elif await check(master_key, kek):
                self._confirmed[master_key] = kek
        except UnknownMasterKeyError as exc:
            self._keks.pop(name, None)
            self._checked.pop(master_key, None)
            self._wrong[master_key] = exc, self._clock_s() + _WRONG_S
            _log.error("master key not used", master_key=master_key, detail=exc.detail)
            raise
        self._checked[master_key] = began_s


def _check_same(master_key: str, kek: Secret, confirmed: Secret) -> None:
    if kek != confirmed:
        raise UnknownMasterKeyError(
            f"{master_key} (the provider's key has changed since it was checked)"
        )


def _share(work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
    """Start work that outlives any one of its waiters; its error is always retrieved."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
