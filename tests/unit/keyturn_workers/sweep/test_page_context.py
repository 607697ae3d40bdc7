"""One attempt at a page: what it inspects, and which failures are one object's (SPEC 8.2, 8.5)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.errors import (
    ArchivedObjectError,
    CorruptObjectError,
    KeyringRolledBackError,
    KmsUnavailableError,
    MarksUnavailableError,
    NotFoundError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn_workers.errors import MissingError, RefusedError
from keyturn_workers.keyring import KeyringReader
from keyturn_workers.objects.plan_action import NoOp, Rewrap
from keyturn_workers.storage import Headers, StorageClock
from keyturn_workers.sweep.page_context import (
    NoLeaseError,
    PageContext,
    PlannedObject,
    Tally,
    gather_all,
    not_found,
)
from keyturn_workers.sweep.plan import Failure, State
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tests.unit.keyturn_workers.sweep.page import KEYS, Page
from tests.unit.keyturn_workers.sweep.records import PAGE, PLAN
from tools.harness.local_keys import operator_keys

if TYPE_CHECKING:
    from collections.abc import Coroutine


@dataclass
class Attempt:
    """An attempt at the page of a project that has one object, `a`."""

    page: Page = field(default_factory=Page)
    cache_s: float = 0
    slots: int = 4
    ask: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.page.plant("a")
        clock = StorageClock(15, self.page.storage.elapsed_s)
        keyrings = KeyringReader(
            self.page.storage,
            operator_keys(MASTER_KEYS),
            lease_s=15,
            cache_s=self.cache_s,
            clock=clock,
        )
        plan = replace(PLAN, ask=replace(PLAN.ask, **self.ask))
        self.context = PageContext(
            self.page.storage, keyrings, KEYS, asyncio.Semaphore(self.slots), plan, PAGE
        )

    async def begin(self) -> PageContext:
        self.context.state = State.of(await self.context.fresh_keyring())
        return self.context

    def slow_reads(self, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        """The next `times` keyring reads take too long for a lease."""
        storage, left = self.page.storage, [times]
        read = storage.read

        async def slow(key: str, **more: Any) -> Any:
            answer = await read(key, **more)
            if left[0]:
                left[0] -= 1
                storage.advance(2.6)
            return answer

        monkeypatch.setattr(storage, "read", slow)


# Keyring reads.


async def test_a_fresh_read_without_a_lease_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Attempt()
    on.slow_reads(monkeypatch, 1)
    assert (await on.context.fresh_keyring()).leased
    assert on.page.storage.calls["read"] == 2


async def test_two_reads_without_a_lease_end_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    on = Attempt()
    on.slow_reads(monkeypatch, 20)
    with pytest.raises(NoLeaseError):
        await on.context.fresh_keyring()
    with pytest.raises(NoLeaseError):
        await on.context.recent_keyring()


async def test_a_recent_read_is_shared_and_a_fresh_one_is_not() -> None:
    on = Attempt(cache_s=60)
    for _ in range(3):
        await on.context.recent_keyring()
    assert on.page.storage.calls["read"] == 1
    await on.context.fresh_keyring()
    assert on.page.storage.calls["read"] == 2


async def test_a_dry_run_counts_by_the_master_key_that_it_names() -> None:
    on = Attempt(ask={"dry_run": True, "master_key": "m2"})
    assert (await on.context.fresh_keyring()).desired.master_key == "m2"
    assert isinstance((await (await on.begin()).inspect("a")).action, Rewrap)


# Objects.


async def test_an_inspected_object_comes_with_what_it_was_planned_by() -> None:
    context = await Attempt().begin()
    planned = await context.inspect("a")
    assert (planned.key, planned.action, planned.writes) == ("a", NoOp("current"), False)
    assert planned.snapshot.desired.generation == 1
    assert not context.tally.state_changed


async def test_a_rotation_during_the_attempt_is_noted() -> None:
    """What it saw is no proof of one state."""
    on = Attempt()
    context = await on.begin()
    on.page.write_keyring(rotated(on.page.ring))
    assert (await context.inspect("a")).writes
    assert context.tally.state_changed


async def test_an_archived_object_is_inspected_by_its_head() -> None:
    """Plaintext that is allowed needs nothing; wraps cannot be checked against the body."""
    on = Attempt(page=Page(ring=keyring(plaintext=True)))
    head, body = await on.page.storage.read("acme/a")
    on.page.storage.plant("acme/a", body, head.headers, archived=True)
    on.page.storage.plant("acme/plain", b"hello", Headers({}), archived=True)
    context = await on.begin()
    planned = await context.inspect("plain")
    assert (planned.action, planned.view.header) == (NoOp("plaintext"), b"")
    with pytest.raises(ArchivedObjectError):
        await context.inspect("a")


async def test_a_listed_object_that_is_not_found_is_an_error() -> None:
    on = Attempt()
    on.page.storage.fail_next("read_start", MissingError("NoSuchKey"))
    context = await on.begin()
    with pytest.raises(NotFoundError, match="listed"):
        await context.inspect("a")


async def test_an_object_above_a_recent_keyring_is_planned_by_a_fresh_one() -> None:
    """The recent one may be older than the object: only a later one is an accusation."""
    on = Attempt(cache_s=60)
    context = await on.begin()
    on.page.write_keyring(rotated(on.page.ring))
    on.page.plant("a")
    planned = await context.inspect("a")
    assert (planned.action, planned.snapshot.desired.generation) == (NoOp("current"), 2)


async def test_an_object_above_a_fresh_keyring_is_a_rollback() -> None:
    on = Attempt(cache_s=60)
    before = on.page.ring
    on.page.write_keyring(rotated(before))
    on.page.plant("a")
    on.page.write_keyring(before)
    context = await on.begin()
    with pytest.raises(KeyringRolledBackError):
        await context.inspect("a")


# Failures.


async def _fail(error: Exception) -> PlannedObject | None:
    raise error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CorruptObjectError("x"), "corrupt_object"),
        (not_found(), "not_found"),
        (StorageUnavailableError("503"), "storage_unavailable"),
        (RefusedError("AccessDenied"), "storage_unavailable"),
    ],
)
async def test_a_failure_of_one_object_is_noted(error: Exception, code: str) -> None:
    context = await Attempt().begin()
    assert await context.guarded("a", _fail(error)) is None
    assert context.tally.failures == [Failure("a", code)]
    assert context.tally.objects == 1


@pytest.mark.parametrize(
    "error",
    [
        KeyringRolledBackError("x"),
        UnknownMasterKeyError("m9"),
        KmsUnavailableError("down"),
        MarksUnavailableError("not current"),
        NoLeaseError(),
        ValueError(),
    ],
)
async def test_a_failure_of_the_whole_page_is_raised(error: Exception) -> None:
    context = await Attempt().begin()
    with pytest.raises(type(error)):
        await context.guarded("a", _fail(error))
    assert context.tally.failures == []


async def test_a_failure_of_an_older_version_counts_no_object() -> None:
    context = await Attempt().begin()
    context.note_failure("a", CorruptObjectError("x"), current=False)
    assert (context.tally.objects, context.tally.counts().failed) == (0, 1)


async def test_only_so_many_objects_are_worked_on_at_once() -> None:
    context = Attempt(slots=2).context
    under_way: list[int] = []
    go_on = asyncio.Event()

    async def work(number: int) -> None:
        under_way.append(number)
        await go_on.wait()

    works = [asyncio.create_task(context.guarded("a", work(number))) for number in range(4)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert under_way == [0, 1]
    go_on.set()
    await asyncio.gather(*works)
    assert under_way == [0, 1, 2, 3]


def test_an_object_that_failed_twice_counts_once() -> None:
    failures = [Failure("a", "locked_object"), Failure("a", "not_found"), Failure("b", "not_found")]
    tally = Tally(objects=5, rewrapped=2, failures=failures)
    tally.unchanged.update(current=2, plaintext=1, deleted=3)
    counts = tally.counts()
    assert (counts.objects, counts.failed, counts.rewrapped) == (5, 2, 2)
    assert (counts.current, counts.plaintext, counts.deleted) == (2, 1, 3)


# Concurrent work.


async def test_results_are_in_the_order_of_the_work() -> None:
    async def later(number: int) -> int:
        for _ in range(5 - number):
            await asyncio.sleep(0)
        return number

    assert await gather_all(later(number) for number in range(5)) == [0, 1, 2, 3, 4]


async def test_the_first_failure_cancels_the_rest_and_is_raised_as_it_is() -> None:
    canceled: Final = asyncio.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            canceled.set()
            raise

    async def fail() -> None:
        raise NoLeaseError

    works: list[Coroutine[Any, Any, None]] = [forever(), fail()]
    with pytest.raises(NoLeaseError):
        await gather_all(works)
    assert canceled.is_set()
