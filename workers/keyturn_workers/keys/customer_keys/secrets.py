"""The customer secrets that this process has in memory (SPEC 2.6).

A secret is forgotten `CUSTOMER_KEY_CACHE_S` after *sending* the call that gave it: whatever happens
then, access ends that long after the store last agreed to it. In use it is asked for again at a
quarter of that age, in the background. A refusal ends it at once; a store that is away does not.

Callers that need the same secret share one call, which outlives them: what a worker put off finds
the secret in memory at its next attempt.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from keyturn.crypto.keys import Secret, customer_secret_id, new_customer_secret
from keyturn.errors import (
    CodedError,
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    KmsUnavailableError,
    NotPermittedError,
)
from keyturn_workers.core.customer_keys import (
    CustomerKey,
    CustomerSecrets,
    KeyName,
    SecretNeededError,
)
from keyturn_workers.core.erasure import KeyState
from keyturn_workers.core.keyring import Keyring
from keyturn_workers.keys.customer_keys.port import Place, Store
from keyturn_workers.keys.customer_keys.store_calls import SLOW_S, TIMEOUT_S, Observe, StoreCalls
from keyturn_workers.keys.master_keys.circuit_breaker import CallLimits, CircuitBreaker
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from keyturn_workers.process.background import SharedTasks, repeat
from keyturn_workers.storage.clock import boottime_s

# Parts of the cache time: after the first a secret in use is asked for again; the second is the
# pause between two attempts.
_REFRESH_AT: Final = 1 / 4
_REFRESH_PAUSE: Final = 1 / 60
_PURGE_S: Final = 1.0
# All the stores of an erasure together: a step of a sweep waits for them.
_ASKING_S: Final = 2 * TIMEOUT_S
# Longer than the longest pause after a refusal, and than that between two attempts of a request.
_UNUSED_AFTER_S: Final = 120.0

_T = TypeVar("_T")
_Name = tuple[str, CustomerKey]  # a project, and a customer key of it


@dataclass(frozen=True, slots=True)
class WaitPolicy:
    """How long callers wait for a store, where a secret is not in memory.

    Attributes:
        wait_s: The longest wait of one caller.
        callers: The callers of one project that may wait at once; None for any number.
        shuns_slow: True if no caller waits while the store's address has a call that is older than
            `wait_s`.
    """

    wait_s: float
    callers: int | None = None
    shuns_slow: bool = False


IN_WORKERS: Final = WaitPolicy(wait_s=SLOW_S, shuns_slow=True)
"""A delivery holds places that other projects need: it is put off instead."""
IN_GATEWAYS: Final = WaitPolicy(wait_s=5, callers=8)
IN_COMMANDS: Final = WaitPolicy(wait_s=TIMEOUT_S)


@dataclass(slots=True)
class _Entry:
    """A secret, or why it is not there: `breaker` pauses calls after a refusal.

    `refused_s` is when the store last refused it to an erasure.
    """

    breaker: CircuitBreaker
    asked_s: float
    secret: Secret | None = None
    sent_s: float = 0.0
    refused_s: float = 0.0


@dataclass(slots=True)
class _Caller:
    """A caller, and for how long it may still wait."""

    project: str
    left_s: float


class CachedCustomerKeys:
    """The `CustomerKeys` of a worker or a gateway.

    Args:
        stores: By their names in the settings.
        deployment: The deployment's name, to which stores bind each secret.
        policy: `IN_WORKERS` or `IN_GATEWAYS`.
        cache_s: `CUSTOMER_KEY_CACHE_S`.
        observe: Called after each call to a store.
        clock_s: Seconds since boot.
    """

    def __init__(
        self,
        stores: Mapping[str, Store],
        deployment: str,
        policy: WaitPolicy,
        *,
        cache_s: float = 300,
        observe: Observe | None = None,
        clock_s: Callable[[], float] = boottime_s,
    ) -> None:
        self._calls = StoreCalls(stores, observe, clock_s)
        self._deployment = deployment
        self._policy = policy
        self._cache_s = cache_s
        self._clock_s = clock_s
        self._entries: dict[_Name, _Entry] = {}
        # New secrets until a request takes them, and when each was asked for.
        self._new: dict[tuple[str, KeyName], tuple[asyncio.Task[CustomerKey], float]] = {}
        self._tasks = SharedTasks()
        self._waiting: Counter[str] = Counter()

    @property
    def held(self) -> int:
        """The number of customer secrets in memory."""
        return sum(entry.secret is not None for entry in self._entries.values())

    async def unlock(self, keyring: Keyring) -> CustomerSecrets:
        """See `CustomerKeys.unlock`."""
        return await self._unlock(keyring, _Caller(keyring.project, self._policy.wait_s))

    async def open_with(
        self, keyring: Keyring, opening: Callable[[CustomerSecrets], Awaitable[_T]]
    ) -> _T:
        """See `CustomerKeys.open_with`."""
        caller = _Caller(keyring.project, self._policy.wait_s)
        secrets = await self._unlock(keyring, caller)
        while True:
            try:
                return await opening(secrets)
            except SecretNeededError as needed:
                key = needed.customer_key
                if key.secret_id in secrets.held.keys() | secrets.failed.keys():
                    raise
                secrets = await self._with_former(secrets, key, caller)

    async def create(self, project: str, name: KeyName) -> CustomerKey:
        """See `CustomerKeys.create`."""
        stores = self._calls.stores_of(project)
        if name.store not in stores:
            # The same for a store of others: a publisher does not learn whom the operator serves.
            raise NotPermittedError(
                f"KEYTURN_CUSTOMER_KEY_STORES has no store {name.store} for {project}; the "
                f"project's stores: {', '.join(stores) or 'none'}"
            )
        if not self._calls.gives(project, name):
            raise NotPermittedError(
                f"KEYTURN_CUSTOMER_KEY_STORES does not give {project} the key {name}"
            )
        return await self._take_new((project, name))

    async def _take_new(self, wanted: tuple[str, KeyName]) -> CustomerKey:
        """Return a new secret of a key, which no other caller gets.

        A request that is put off finds the one that was asked for in the meantime at its next
        attempt.
        """
        project, name = wanted
        if wanted not in self._new:
            creating = self._tasks.start(wanted, lambda: self._create(project, name))
            self._new[wanted] = creating, self._clock_s()
        mine, policy = self._new[wanted], self._policy
        creating = mine[0]
        slow = policy.shuns_slow and self._calls.is_slow(name, policy.wait_s, key_alone=True)
        if slow and not creating.done():
            raise CustomerKeyUnavailableError(f"{name}: it is slow")
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):  # it encrypts, and decrypts
                made = await asyncio.shield(creating)
        except TimeoutError:
            raise CustomerKeyUnavailableError(
                f"{name}: no secret within {2 * TIMEOUT_S:g} s"
            ) from None
        except Exception:
            if self._new.get(wanted) is mine:
                del self._new[wanted]
            raise
        if self._new.get(wanted) is not mine:  # another caller waited for it, too
            return await self._take_new(wanted)
        del self._new[wanted]
        return made

    async def ask(self, keyring: Keyring) -> Mapping[str, KeyState]:
        """See `CustomerKeys.ask`."""
        keys = {key.secret_id: key for key in keyring.customer_keys.values()}
        asking = (self._state(keyring.project, key) for key in keys.values())
        try:
            async with asyncio.timeout(_ASKING_S):
                return dict(zip(keys, await asyncio.gather(*asking), strict=True))
        except TimeoutError:
            return dict.fromkeys(keys, KeyState.UNDECIDED)

    def purge(self) -> None:
        """Forget the secrets that are too old, and what is not in use."""
        now_s = self._clock_s()
        for name, entry in tuple(self._entries.items()):
            if now_s - entry.sent_s >= self._cache_s:
                entry.secret = None
            if entry.secret is None and now_s - entry.asked_s >= _UNUSED_AFTER_S:
                del self._entries[name]
        for wanted, (creating, asked_s) in tuple(self._new.items()):
            if creating.done() and now_s - asked_s >= _UNUSED_AFTER_S:
                del self._new[wanted]
        self._calls.purge()

    async def purge_periodically(self) -> None:
        """Purge forever, so that no secret outlives its time in an idle process."""

        async def purge() -> None:
            self.purge()

        await repeat(purge, lambda: _PURGE_S)

    async def aclose(self) -> None:
        """Forget every secret, and close the stores' connections."""
        await self._tasks.aclose()
        self._entries.clear()
        await self._calls.aclose()

    async def _unlock(self, keyring: Keyring, caller: _Caller) -> CustomerSecrets:
        secrets = keyring.secrets
        held: dict[str, Secret] = {}
        current = secrets.keys.get(keyring.current.generation)
        if current is not None:
            held[current.secret_id] = await self._get(current, caller)
        # Former secrets are not asked for again because the current one is in use. So an older one
        # counts as missing until an object needs it: `_get` then asks for it again.
        for key in secrets.keys.values():
            former = self._entries.get((keyring.project, key))
            if former is not None and former.secret is not None and not self._is_due(former):
                held.setdefault(key.secret_id, former.secret)
        return replace(secrets, held=held)

    async def _with_former(
        self, secrets: CustomerSecrets, key: CustomerKey, caller: _Caller
    ) -> CustomerSecrets:
        """Ask for a former secret; only the object that needs it fails if it is not given."""
        held: dict[str, Secret] = {}
        failed: dict[str, CodedError] = dict(secrets.failed)
        try:
            held[key.secret_id] = await self._get(key, caller)
        except (CustomerKeyRefusedError, CustomerKeyUnavailableError) as exc:
            failed[key.secret_id] = exc
        # The others' time may have ended during the wait.
        for other in secrets.keys.values():
            secret = self._find((caller.project, other))
            if secret is not None and other.secret_id in secrets.held:
                held.setdefault(other.secret_id, secret)
        return replace(secrets, held=held, failed=failed)

    async def _get(self, key: CustomerKey, caller: _Caller) -> Secret:
        name = (caller.project, key)
        secret = self._use(name)
        if secret is not None and not self._is_overdue(name):
            return secret
        try:
            return await self._wait_for(name, caller)
        except CustomerKeyUnavailableError:
            # A store that is away takes nothing before its time, which the wait may have reached.
            secret = self._use(name)
            if secret is None:
                raise
            return secret

    async def _wait_for(self, name: _Name, caller: _Caller) -> Secret:
        key = name[1]
        if not self._calls.gives(caller.project, key.name):
            raise CustomerKeyUnavailableError(
                f"KEYTURN_CUSTOMER_KEY_STORES of this process does not give {caller.project} the "
                f"key {key.name}"
            )
        asking = self._tasks.start(name, lambda: self._ask(name))
        policy, waiting = self._policy, self._waiting
        if policy.shuns_slow and self._calls.is_slow(key.name, policy.wait_s):
            raise CustomerKeyUnavailableError(f"{key.name}: its store is slow")
        if policy.callers is not None and waiting[caller.project] >= policy.callers:
            raise CustomerKeyUnavailableError(
                f"{key.name}: {policy.callers} requests of the project wait for it already"
            )
        began_s = asyncio.get_running_loop().time()
        waiting[caller.project] += 1
        try:
            async with asyncio.timeout(caller.left_s):
                return await asyncio.shield(asking)
        except TimeoutError:
            raise CustomerKeyUnavailableError(
                f"{key.name}: no secret within {policy.wait_s:g} s"
            ) from None
        finally:
            waiting[caller.project] -= 1
            if not waiting[caller.project]:
                del waiting[caller.project]
            caller.left_s -= asyncio.get_running_loop().time() - began_s

    def _use(self, name: _Name) -> Secret | None:
        """Return the secret if it is in memory; ask for it again in the background if it is due."""
        secret = self._find(name)
        if secret is None:
            return None
        entry = self._entries[name]
        since_s = self._clock_s() - entry.asked_s
        if self._is_due(entry) and since_s >= self._cache_s * _REFRESH_PAUSE:
            self._tasks.start(name, lambda: self._ask(name))
        return secret

    def _find(self, name: _Name) -> Secret | None:
        """Return the secret if it is in memory."""
        entry = self._entries.get(name)
        if entry is None or self._clock_s() - entry.sent_s >= self._cache_s:
            return None
        return entry.secret

    def _is_overdue(self, name: _Name) -> bool:
        """Return True after a quiet spell: the store may have refused for long.

        Once it was asked, callers do not wait for its answer again and again.
        """
        entry = self._entries[name]
        pause_s = self._cache_s * _REFRESH_PAUSE
        return (
            self._clock_s() - entry.sent_s >= self._cache_s * _REFRESH_AT + 2 * pause_s
            and self._clock_s() - entry.asked_s >= pause_s
        )

    def _is_due(self, entry: _Entry) -> bool:
        return self._clock_s() - entry.sent_s >= self._cache_s * _REFRESH_AT

    async def _ask(self, name: _Name) -> Secret:
        """Ask a store for a secret, and keep it."""
        project, key = name
        entry = self._entries.get(name)
        if entry is None:
            breaker = CircuitBreaker(
                CallLimits(timeout_s=None), opens=_is_refusal, clock_s=self._clock_s
            )
            entry = self._entries[name] = _Entry(breaker, 0.0)
        entry.asked_s = sent_s = self._clock_s()
        place = Place(self._deployment, project, key.secret_id)

        async def send(store: Store) -> Secret:
            nonlocal sent_s
            sent_s = self._clock_s()
            return await _decrypt(store, key, place)

        try:
            secret = await entry.breaker.call(lambda: self._calls.call(key.name, send))
        except KmsUnavailableError as exc:
            if _is_refusal(exc):
                entry.secret = None
            raise _failure(key.name, exc) from exc
        if sent_s < entry.refused_s:  # the response came late
            raise CustomerKeyRefusedError(f"{key.name}: it was refused meanwhile")
        entry.secret, entry.sent_s = secret, sent_s
        self._entries[name] = entry
        return secret

    async def _state(self, project: str, key: CustomerKey) -> KeyState:
        place, state = Place(self._deployment, project, key.secret_id), None

        async def send(store: Store) -> KeyState:
            await _decrypt(store, key, place)
            return KeyState.GIVEN

        try:
            if self._calls.gives(project, key.name):
                return await self._calls.call(key.name, send)
        except KmsRefusedError as exc:
            state = exc.key_state
            entry = self._entries.get((project, key))
            if entry is not None:
                # The project may still be in use.
                entry.secret, entry.refused_s = None, self._clock_s()
        except (KmsUnavailableError, CustomerKeyUnavailableError):
            pass
        if state is None:
            return KeyState.UNDECIDED
        try:
            await self._calls.call(key.name, lambda store: store.check_answers(key.name.key))
        except KmsUnavailableError:
            return KeyState.UNDECIDED
        return state

    async def _create(self, project: str, name: KeyName) -> CustomerKey:
        secret = new_customer_secret()
        place = Place(self._deployment, project, customer_secret_id(secret))
        try:
            wrapped = await self._calls.call(
                name, lambda store: store.encrypt(name.key, place, secret)
            )
            again = await self._calls.call(
                name, lambda store: store.decrypt(name.key, place, wrapped)
            )
        except KmsUnavailableError as exc:
            raise _failure(name, exc) from exc
        made = CustomerKey.of(name, secret, wrapped)
        if not made.is_secret(again):
            raise CustomerKeyRefusedError(f"{name}: it gives another secret than it encrypted")
        return made


async def _decrypt(store: Store, key: CustomerKey, place: Place) -> Secret:
    secret = await store.decrypt(key.name.key, place, key.wrapped or "")
    if not key.is_secret(secret):
        raise KmsRefusedError("the store gave another secret than it encrypted")
    return secret


def _is_refusal(failure: KmsUnavailableError) -> bool:
    return isinstance(failure, KmsRefusedError)


def _failure(
    name: KeyName, failure: KmsUnavailableError
) -> CustomerKeyRefusedError | CustomerKeyUnavailableError:
    kind = CustomerKeyRefusedError if _is_refusal(failure) else CustomerKeyUnavailableError
    return kind(f"{name}: {failure.detail}")
