"""Lookups of keyrings: as they are now, and few requests whatever callers ask (SPEC 9.1)."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError, UnauthorizedError
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.errors import RefusedError as StorageRefusedError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.gateway import keyring_lookups
from keyturn_workers.gateway.keyring_lookups import RESERVED_READS_PER_S, _KeyringFilter, _Tokens
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.gateway.bench import API_KEY, NEW_API_KEY, Bench, ring_of, turned_to
from tools.harness.local_keys import build_keyring

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from keyturn_workers.core.storage_values import ObjectSummary

_WRONG = "Bearer kt_" + "w" * 43


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench whose reads for anyone are used up: lookups use listings."""
    monkeypatch.setattr(keyring_lookups, "_LISTING_MIN_PAUSE_S", 0.01)
    bench = Bench()
    bench.lookups._tokens = _Tokens(0.0, 0)
    return bench


@pytest.fixture
def drained(spent: Bench) -> Bench:
    """A bench whose reads for projects that exist are used up too."""
    spent.lookups._reserved_tokens = _Tokens(0.0, 0)
    return spent


def _enroll(bench: Bench, project: str, api_key: str = API_KEY) -> None:
    ring = ring_of(api_key, project)
    bench.storage.plant(keyring_s3_key(project), build_keyring(ring, MASTER_KEYS), Headers({}))


async def _refused(bench: Bench, project: str, authorization: str = _WRONG) -> None:
    with pytest.raises(UnauthorizedError):
        await bench.auth.authenticate(project, [authorization])


@pytest.mark.slow
async def test_made_up_projects_cost_a_few_requests_not_one_each() -> None:
    """Each cost a read of the storage, at 1,200 requests a second."""
    bench = Bench()
    for batch in range(5):
        await asyncio.gather(
            *(_refused(bench, f"made-up-{batch}-{number}") for number in range(120))
        )
    assert bench.storage.calls["read"] <= 40 + 20 * 10  # the burst, and what a slow run refills
    assert bench.storage.calls["list"] <= 10


@pytest.mark.slow
async def test_wrong_keys_of_existing_projects_cost_a_few_reads(drained: Bench) -> None:
    for number in range(50):
        _enroll(drained, f"project-{number}")
        await drained.auth.authenticate(f"project-{number}", [f"Bearer {API_KEY}"])
    drained.lookups._reserved_tokens = _Tokens(0.0, 30)
    drained.storage.calls.clear()
    for _ in range(3):
        await asyncio.gather(*(_refused(drained, f"project-{n % 50}") for n in range(500)))
    # The ETags in the listing say that each keyring is still the one that is known.
    assert drained.storage.calls["read"] == 30
    assert drained.storage.calls["list"] <= 5
    assert set(drained.storage.calls) == {"list", "read"}


@asynccontextmanager
async def _listings_that_take_long(bench: Bench) -> AsyncIterator[asyncio.Event]:
    """As with many projects: a listing is sent, and ends at the end of the block."""
    real, sent, ends = bench.storage.list, asyncio.Event(), asyncio.Event()

    async def stalls(prefix: str, **more: Any) -> AsyncIterator[ObjectSummary]:
        rows = [row async for row in real(prefix, **more)]
        sent.set()
        await ends.wait()
        for row in rows:
            yield row

    bench.storage.list = stalls  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        ends.set()


async def test_wrong_keys_delay_no_project_that_exists(spent: Bench) -> None:
    """At 70,000 projects a listing takes five seconds, and everybody's lookup failed with 503."""
    await spent.authenticate()
    _enroll(spent, "listed")  # this process never read it: a listing showed it
    await _refused(spent, "zzz")
    async with _listings_that_take_long(spent) as listing:
        names = ["acme", *(f"made-up-{number}" for number in range(200))]
        flood = [asyncio.create_task(_refused(spent, name)) for name in names * 2]
        await listing.wait()
        spent.write_keyring(turned_to(spent.ring, NEW_API_KEY))
        async with asyncio.timeout(5):
            assert await spent.auth.authenticate("listed", [f"Bearer {API_KEY}"])
            assert await spent.authenticate(NEW_API_KEY)
    await asyncio.gather(*flood)


async def test_no_refusal_shows_by_its_time_that_a_project_exists(spent: Bench) -> None:
    await spent.authenticate()
    spent.storage.calls.clear()
    async with _listings_that_take_long(spent) as listing:
        refusals = {
            name: asyncio.create_task(_refused(spent, name)) for name in ("acme", "made-up")
        }
        await listing.wait()
        for _ in range(50):
            await asyncio.sleep(0)
        assert spent.storage.calls["read"] == 1  # it has shown that the key is wrong
        assert not any(refusal.done() for refusal in refusals.values())
    await asyncio.gather(*refusals.values())


async def test_wrong_keys_of_one_project_use_up_no_reads_of_others(
    spent: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring_lookups, "_RESERVED_PAUSE_S", 3600.0)
    await spent.authenticate()
    _enroll(spent, "listed")
    await _refused(spent, "zzz")
    spent.lookups._reserved_tokens = _Tokens(0.0, 2)
    spent.storage.calls.clear()
    for _ in range(20):
        await _refused(spent, "acme")
    assert spent.storage.calls["read"] == 1
    async with _listings_that_take_long(spent), asyncio.timeout(5):
        assert await spent.auth.authenticate("listed", [f"Bearer {API_KEY}"])


def test_tokens_come_back_at_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    tokens = _Tokens(RESERVED_READS_PER_S, 2)
    assert [tokens.take() for _ in range(3)] == [True, True, False]
    now += 1.01 / RESERVED_READS_PER_S
    assert [tokens.take() for _ in range(2)] == [True, False]
    now += 3600
    assert [tokens.take() for _ in range(3)] == [True, True, False]


def test_the_filter_knows_all_keyrings_and_takes_few_other_names_for_one() -> None:
    known = _KeyringFilter()
    for number in range(100_000):
        known.add(keyring_s3_key(f"project-{number}"))
    assert all(keyring_s3_key(f"project-{number}") in known for number in range(100_000))
    wrong = sum(keyring_s3_key(f"made-up-{number}") in known for number in range(100_000))
    assert wrong < 100  # about 14 are expected


async def test_the_right_key_is_accepted_however_many_wrong_ones_arrive(drained: Bench) -> None:
    """For a project that this process never read, and for one rotated a moment ago."""
    await drained.authenticate()
    drained.write_keyring(turned_to(drained.ring, NEW_API_KEY))
    _enroll(drained, "first-timer")
    flood = [asyncio.create_task(_refused(drained, f"made-up-{number}")) for number in range(500)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await drained.auth.authenticate("first-timer", [f"Bearer {API_KEY}"])
        assert await drained.authenticate(NEW_API_KEY)
        await _refused(drained, "acme", f"Bearer {API_KEY}")
    await asyncio.gather(*flood)


async def test_a_caller_with_a_cached_keyring_waits_for_no_lookup(spent: Bench) -> None:
    await spent.authenticate()
    real, answered = spent.storage.list, asyncio.Event()

    async def stalls(prefix: str, **more: Any) -> AsyncIterator[ObjectSummary]:
        await answered.wait()
        async for row in real(prefix, **more):
            yield row

    spent.storage.list = stalls  # type: ignore[method-assign]
    flood = [asyncio.create_task(_refused(spent, f"made-up-{number}")) for number in range(500)]
    await asyncio.sleep(0)
    await spent.authenticate()
    assert not any(each.done() for each in flood)
    answered.set()
    await asyncio.gather(*flood)


async def test_a_listing_sent_before_a_request_does_not_decide_about_it(
    spent: Bench,
) -> None:
    """Its project may have been enrolled since."""
    real = spent.storage.list
    sent, answered = asyncio.Event(), asyncio.Event()

    async def stalls(prefix: str, **more: Any) -> AsyncIterator[ObjectSummary]:
        rows = [row async for row in real(prefix, **more)]
        sent.set()
        await answered.wait()
        for row in rows:
            yield row

    spent.storage.list = stalls  # type: ignore[method-assign]
    early = asyncio.create_task(_refused(spent, "late"))
    await sent.wait()
    _enroll(spent, "late")
    late = asyncio.create_task(spent.auth.authenticate("late", [f"Bearer {API_KEY}"]))
    await asyncio.sleep(0)
    answered.set()
    await early
    assert (await late).project == "late"


async def test_a_lookup_that_takes_too_long_is_transient(
    spent: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a refusal: the key may be the current one."""
    monkeypatch.setattr(keyring_lookups, "LOOKUP_TIMEOUT_S", 0.02)
    spent.lookups._list_at = float("inf")
    with pytest.raises(StorageUnavailableError):
        await spent.auth.authenticate("acme", [_WRONG])


@pytest.mark.parametrize("error", [StorageUnavailableError("down"), StorageRefusedError("denied")])
async def test_a_failed_listing_refuses_no_caller(spent: Bench, error: Exception) -> None:
    spent.storage.fail_next("list", error)
    with pytest.raises(StorageUnavailableError):
        await spent.auth.authenticate("acme", [f"Bearer {API_KEY}"])
    assert await spent.authenticate()


async def test_callers_of_one_project_share_a_lookup(spent: Bench) -> None:
    results = await asyncio.gather(*(spent.authenticate() for _ in range(50)))
    assert len(results) == 50
    assert spent.storage.calls == {"list": 1, "read": 1}


async def test_the_right_key_joins_a_read_in_progress() -> None:
    """With two rotations at once, the later caller is not refused by the earlier read."""
    bench = Bench()
    real = bench.storage.read
    sent, answered = asyncio.Event(), asyncio.Event()

    async def stalls(key: str, **how: int) -> Any:
        shown = await real(key, **how)
        sent.set()
        await answered.wait()
        return shown

    bench.storage.read = stalls  # type: ignore[method-assign]
    early = asyncio.create_task(bench.authenticate())
    await sent.wait()
    bench.write_keyring(turned_to(bench.ring, NEW_API_KEY))
    late = asyncio.create_task(bench.authenticate())
    await asyncio.sleep(0)
    answered.set()
    for task in (early, late):
        assert (await task).snapshot.keyring.current.generation == 1
    assert bench.storage.calls == {"read": 1}
    assert bench.lookups._in_progress == {}
