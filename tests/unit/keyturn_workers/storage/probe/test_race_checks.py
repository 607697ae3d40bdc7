"""Of concurrent writers exactly one may succeed, and its body must be the one stored (SPEC 10)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn_workers.errors import PreconditionError
from keyturn_workers.storage import Capabilities
from keyturn_workers.storage.probe.race_checks import (
    COMPLETION_ROUNDS,
    ROUNDS,
    WRITERS,
    concurrent_completions,
    concurrent_creates,
    concurrent_replaces,
)
from tests.unit.keyturn_workers.storage.probe.broken_storages import (
    EVERYTHING,
    ChecksThenStores,
    IgnoresIfAbsent,
    IgnoresIfMatch,
    OverwritesOnFailure,
)
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn_workers.storage import Condition, Headers, Lease, WriteResult
    from keyturn_workers.storage.probe.protocol import Outcome

    Check = Callable[[Any, str], Awaitable[Outcome]]


@pytest.mark.parametrize(
    ("check", "rounds"),
    [
        (concurrent_creates, ROUNDS),
        (concurrent_replaces, ROUNDS),
        (concurrent_completions, COMPLETION_ROUNDS),
    ],
)
async def test_one_writer_in_each_round_is_what_a_storage_promises(
    check: Check, rounds: int
) -> None:
    outcome = await check(MemoryStorage(capabilities=EVERYTHING), "probe")
    assert outcome.ok
    assert outcome.detail == f"one of {WRITERS} stored, {rounds} rounds"


@pytest.mark.parametrize(
    ("check", "storage", "detail"),
    [
        (concurrent_creates, IgnoresIfAbsent, f"{WRITERS} of {WRITERS} writers succeeded"),
        (concurrent_creates, ChecksThenStores, f"{WRITERS} of {WRITERS} writers succeeded"),
        (concurrent_creates, OverwritesOnFailure, "the stored body is not the winner's"),
        (concurrent_replaces, IgnoresIfMatch, f"{WRITERS} of {WRITERS} writers succeeded"),
        (concurrent_replaces, ChecksThenStores, f"{WRITERS} of {WRITERS} writers succeeded"),
        (concurrent_replaces, OverwritesOnFailure, "the stored body is not the winner's"),
        (
            concurrent_completions,
            lambda: MemoryStorage(capabilities=Capabilities()),
            f"{WRITERS} of {WRITERS} writers succeeded",
        ),
    ],
)
async def test_a_race_that_two_win_or_a_loser_overwrites_is_found(
    check: Check, storage: Callable[[], MemoryStorage], detail: str
) -> None:
    outcome = await check(storage(), "probe")
    assert (outcome.ok, outcome.detail) == (False, detail)


class Refusing(MemoryStorage):
    """Fails the first `failures` creates."""

    def __init__(self, failures: int, code: str = "InternalError") -> None:
        super().__init__(capabilities=EVERYTHING)
        self.failures = failures
        self.code = code

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        if self.failures:
            self.failures -= 1
            raise StorageUnavailableError(f"put: {self.code}")
        return await super().put(key, body, headers, condition=condition, lease=lease)


async def test_a_round_in_which_every_writer_failed_decides_nothing() -> None:
    """It is repeated; a storage that hardly ever decides fails the check."""
    assert (await concurrent_creates(Refusing(3 * WRITERS), "probe")).ok
    outcome = await concurrent_creates(Refusing(9 * WRITERS), "probe")
    assert (outcome.ok, outcome.detail) == (False, "hardly any writer succeeded")
    assert outcome.undecided


class RefusingAll(MemoryStorage):
    """Refuses every conditional put, as if the condition did not hold."""

    async def put(
        self,
        key: str,
        body: bytes,
        headers: Headers,
        *,
        condition: Condition | None = None,
        lease: Lease | None = None,
    ) -> WriteResult:
        if condition is not None:
            raise PreconditionError("put: PreconditionFailed")
        return await super().put(key, body, headers, lease=lease)


@pytest.mark.parametrize("storage", [lambda: Refusing(99 * WRITERS, "NotImplemented"), RefusingAll])
async def test_a_storage_that_refuses_every_writer_fails_the_check(
    storage: Callable[[], MemoryStorage],
) -> None:
    """Another attempt would fail in the same way."""
    outcome = await concurrent_creates(storage(), "probe")
    assert (outcome.ok, outcome.detail) == (False, "hardly any writer succeeded")
    assert not outcome.undecided
