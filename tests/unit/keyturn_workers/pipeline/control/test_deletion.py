"""A delete waits for two of the longest lease, by a clock that is known (SPEC 8.4, 8.7)."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from keyturn.errors import KmsUnavailableError, MalformedRequestError, StorageUnavailableError
from keyturn.identifiers import keyring_s3_key, object_s3_key
from keyturn.messages import DeleteRequested
from keyturn_workers.core.errors import RefusedError, UnstorableKeyError
from keyturn_workers.core.storage_values import Capabilities, Headers, ObjectHead
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.amqp.outcomes import DeferError
from keyturn_workers.pipeline.control.deletion import Deleter
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import AT, MASTER_KEYS, keyring
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

_LEASE_S = 15
_DAY_S = 86_400.0
_REQUEST = DeleteRequested.model_validate(
    {
        "request_id": "2f6c9a0e-1111-4111-8111-111111111111",
        "project": "acme",
        "key": "k",
        "requested_at": AT,
    }
)


class _Storage(MemoryStorage):
    """A bucket with a keyring; a test can let a front end whose clock is off serve a request."""

    def __init__(self, lease_s: int = 15) -> None:
        super().__init__()
        ring = build_keyring(replace(keyring(), lease_s=lease_s), MASTER_KEYS)
        self.off_s: dict[str, list[float]] = {}
        self._off = timedelta()
        self.dated_ahead = timedelta()
        self.plant(keyring_s3_key("acme"), ring, Headers({}))

    @property
    def now(self) -> datetime:
        return super().now + self._off

    async def read_start(
        self, key: str, length_bytes: int, *, version_id: str | None = None
    ) -> tuple[ObjectHead, bytes]:
        head, body = await super().read_start(key, length_bytes, version_id=version_id)
        return replace(head, last_modified=head.last_modified + self.dated_ahead), body

    async def _hook(self, operation: str) -> None:
        await super()._hook(operation)
        off_s = self.off_s.get(operation) or [0.0]
        self._off = timedelta(seconds=off_s.pop(0))


def _deleter(storage: _Storage) -> Deleter:
    """One of a process that has just started."""
    keyrings = KeyringReader(
        storage,
        operator_keys(MASTER_KEYS),
        lease_s=_LEASE_S,
        cache_s=2,
        clock=StorageClock(_LEASE_S, storage.elapsed_s),
    )
    return Deleter(storage, keyrings, operator_keys(MASTER_KEYS), _LEASE_S)


async def _deferred_s(deleter: Deleter) -> float:
    with pytest.raises(DeferError) as raised:
        await deleter.delete(_REQUEST)
    return raised.value.wait_s


@pytest.mark.parametrize(("named_s", "counts_s"), [(5, 15), (60, 60)])
async def test_a_delete_waits_two_of_the_longest_lease_that_the_keyring_names(
    named_s: int, counts_s: int
) -> None:
    """A worker with that lease may still have a copy under way."""
    storage = _Storage(named_s)
    deleter = _deleter(storage)
    with pytest.raises(DeferError):
        await deleter.delete(_REQUEST)
    storage.advance(2 * counts_s - 1)
    for ask in (deleter.delete, deleter.find_deleted):
        with pytest.raises(DeferError):
            await ask(_REQUEST)
    storage.advance(2)
    await deleter.delete(_REQUEST)
    assert await deleter.find_deleted(_REQUEST)


async def test_a_front_end_a_day_ahead_makes_no_tombstone_final() -> None:
    storage = _Storage()
    deleter = _deleter(storage)
    await _deferred_s(deleter)
    storage.advance(_LEASE_S)
    for off_s in (_DAY_S, -_DAY_S):
        storage.off_s["read_start"] = [off_s]
        assert await _deferred_s(deleter) <= 2 * _LEASE_S + 1
    storage.advance(_LEASE_S + 2)
    await deleter.delete(_REQUEST)


async def test_a_process_that_has_just_started_makes_no_tombstone_final() -> None:
    """The first front end that it reaches may be wrong."""
    storage = _Storage()
    await _deferred_s(_deleter(storage))
    storage.advance(100)
    started = _deleter(storage)
    assert await _deferred_s(started) == _LEASE_S
    storage.advance(2 * _LEASE_S)
    await started.delete(_REQUEST)


async def test_a_tombstone_that_a_slow_front_end_dated_is_put_again() -> None:
    storage = _Storage()
    storage.off_s["put"] = [-3600.0]
    deleter = _deleter(storage)
    await _deferred_s(deleter)
    assert storage.calls["put"] == 2
    assert abs((await storage.head(object_s3_key("acme", "k"))).last_modified - storage.now) < (
        timedelta(seconds=_LEASE_S)
    )


async def test_a_tombstone_dated_ahead_is_put_again_once_the_clock_is_known() -> None:
    """A fast front end was the first that its worker reached."""
    storage = _Storage()
    deleter = _deleter(storage)
    storage.off_s = {each: [_DAY_S] * 9 for each in ("read", "read_start", "put")}
    await _deferred_s(deleter)
    storage.off_s = {}
    puts = storage.calls["put"]
    started = _deleter(storage)
    assert await _deferred_s(started) <= 2 * _LEASE_S + 1
    assert storage.calls["put"] == puts
    storage.advance(2 * _LEASE_S + 1)
    with pytest.raises(DeferError):
        await started.find_deleted(_REQUEST)
    assert storage.calls["put"] == puts + 1
    storage.advance(2 * _LEASE_S + 2)
    await started.delete(_REQUEST)
    assert storage.calls["put"] == puts + 1


async def test_a_storage_that_dates_all_objects_ahead_delays_a_delete_but_does_not_prevent_it() -> (
    None
):
    """Its objects are dated by another clock than its responses."""
    storage = _Storage()
    storage.dated_ahead = timedelta(seconds=100)
    deleter = _deleter(storage)
    await _deferred_s(deleter)
    for _ in range(3):
        storage.advance(2 * _LEASE_S + 1)
        await _deferred_s(deleter)
    assert storage.calls["put"] == 2
    storage.advance(2 * _LEASE_S + 100)
    await deleter.delete(_REQUEST)


async def test_a_fast_front_end_puts_no_tombstone() -> None:
    """Then no delete waits for a moment of tomorrow."""
    storage = _Storage()
    storage.off_s["put"] = [_DAY_S]
    deleter = _deleter(storage)
    assert await _deferred_s(deleter) <= 2 * _LEASE_S + 1
    assert storage.calls["put"] == 2


async def test_a_delete_of_a_key_that_the_storage_cannot_hold_is_refused() -> None:
    """Nothing can have been stored there, and no tombstone either."""
    storage = _Storage()
    storage.fail_next("put", UnstorableKeyError("too long"))
    with pytest.raises(MalformedRequestError, match="too long"):
        await _deleter(storage).delete(_REQUEST)


async def test_a_delete_of_an_alias_leaves_the_other_keys_object_alone() -> None:
    storage = _Storage()
    storage.capabilities = Capabilities(keys_are_paths=True)
    with pytest.raises(MalformedRequestError, match="backslash"):
        await _deleter(storage).delete(_REQUEST.model_copy(update={"key": "a\\b"}))
    assert not storage.calls


# Many keys in one request.


def _many(*keys: str) -> DeleteRequested:
    fields = _REQUEST.model_dump() | {"key": None, "keys": keys}
    return DeleteRequested.model_validate(fields)


async def _deferred_many_s(deleter: Deleter, request: DeleteRequested) -> float:
    with pytest.raises(DeferError) as raised:
        await deleter.delete_many(request, 0)
    return raised.value.wait_s


async def test_many_keys_wait_their_two_leases_once_and_together() -> None:
    storage = _Storage()
    deleter = _deleter(storage)
    keys = [f"folder/{number}" for number in range(100)]
    assert await _deferred_many_s(deleter, _many(*keys)) <= 2 * _LEASE_S + 1
    storage.advance(2 * _LEASE_S + 2)
    assert await deleter.delete_many(_many(*keys), 0) == dict.fromkeys(keys)
    assert storage.calls["put"] == len(keys)
    assert await deleter.find_deleted_many(_many(*keys)) == dict.fromkeys(keys)


async def test_one_young_tombstone_delays_the_others_and_no_other_is_put_again() -> None:
    storage = _Storage()
    deleter = _deleter(storage)
    await _deferred_many_s(deleter, _many("a", "b"))
    storage.advance(_LEASE_S)
    await _deferred_many_s(deleter, _many("late"))
    storage.advance(_LEASE_S + 2)
    assert await deleter.delete_many(_many("a", "b"), 0) == {"a": None, "b": None}
    assert 1 < await _deferred_many_s(deleter, _many("a", "b", "late")) <= _LEASE_S + 1
    assert storage.calls["put"] == 3


async def test_a_key_that_cannot_be_deleted_is_refused_alone() -> None:
    storage = _Storage()
    storage.capabilities = Capabilities(keys_are_paths=True)
    deleter = _deleter(storage)
    await _deferred_many_s(deleter, _many("a", "b\\c"))
    storage.advance(2 * _LEASE_S + 2)
    outcomes = await deleter.delete_many(_many("a", "b\\c"), 0)
    assert outcomes["a"] is None
    assert isinstance(outcomes["b\\c"], MalformedRequestError)


async def test_a_key_that_fails_five_times_is_refused_alone() -> None:
    """Until then the request is tried again, and what is deleted is not put again."""
    storage = _Storage()
    deleter = _deleter(storage)
    await _deferred_many_s(deleter, _many("a"))
    storage.advance(2 * _LEASE_S + 2)
    for attempts in range(4):
        storage.fail_next("put", StorageUnavailableError("503"))
        with pytest.raises(StorageUnavailableError):
            await deleter.delete_many(_many("a", "b"), attempts)
    storage.fail_next("put", StorageUnavailableError("503"))
    outcomes = await deleter.delete_many(_many("a", "b"), 4)
    assert outcomes["a"] is None
    assert isinstance(outcomes["b"], StorageUnavailableError)


async def test_a_key_that_the_storage_refuses_to_read_is_refused_alone() -> None:
    """A policy denies one key: the others must not wait for it for ever."""
    storage = _Storage()
    deleter = _deleter(storage)
    await _deferred_many_s(deleter, _many("a", "b"))
    storage.advance(2 * _LEASE_S + 1)
    for attempts in range(4):
        storage.fail_next("read_start", RefusedError("GET: AccessDenied"))
        with pytest.raises(StorageUnavailableError, match="AccessDenied"):
            await deleter.delete_many(_many("a", "b"), attempts)
    storage.fail_next("read_start", RefusedError("GET: AccessDenied"))
    outcomes = await deleter.delete_many(_many("a", "b"), 4)
    assert isinstance(outcomes["a"], StorageUnavailableError)
    assert outcomes["b"] is None


@pytest.mark.parametrize("operation", ["read_start", "versioning"])
async def test_a_delete_that_the_storage_refuses_is_tried_again(operation: str) -> None:
    storage = _Storage()
    deleter = _deleter(storage)
    await _deferred_s(deleter)
    for ask in (deleter.delete, deleter.find_deleted):
        storage.fail_next(operation, RefusedError("AccessDenied"))
        with pytest.raises(StorageUnavailableError, match="AccessDenied"):
            await ask(_REQUEST)


@pytest.mark.parametrize(
    ("operation", "error", "attempts"),
    [
        pytest.param("read", StorageUnavailableError("503"), 4, id="the keyring is not read"),
        pytest.param("put", KmsUnavailableError("away"), 9, id="a master key is not available"),
    ],
)
async def test_no_key_is_refused_for_a_transient_failure(
    operation: str, error: Exception, attempts: int
) -> None:
    storage = _Storage()
    deleter = _deleter(storage)
    storage.fail_next(operation, error)
    with pytest.raises(type(error)):
        await deleter.delete_many(_many("a"), attempts)


async def test_large_deletes_leave_places_to_other_requests() -> None:
    """Others come again a moment later, and no attempt is counted."""
    storage = _Storage()
    deleter = _deleter(storage)
    requests = [deleter.delete_many(_many(f"k{number}"), 0) for number in range(6)]
    ended = await asyncio.gather(*requests, return_exceptions=True)
    waits_s = sorted(each.wait_s for each in ended if isinstance(each, DeferError))
    assert waits_s[:2] == [1, 1]
    assert len(waits_s) == 6
    assert storage.calls["put"] == 4
    assert waits_s[2] > 1
