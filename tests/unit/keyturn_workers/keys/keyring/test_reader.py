"""Shared reads of keyrings: what matters is when a read began (SPEC 7.3, 8.4).

One listing takes the place of a thousand reads.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.errors import KmsUnavailableError, StorageUnavailableError, UnknownProjectError
from keyturn.identifiers import keyring_s3_key
from keyturn_workers.core.errors import MissingError
from keyturn_workers.core.storage_values import Capabilities, Headers, ObjectHead
from keyturn_workers.keys.keyring import cache as cache_module
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.master_keys.derived_keks import KekLimits
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tests.unit.keyturn_workers.keys.master_keys.fakes import MASTER, Clock, FakeProvider
from tools.harness.local_keys import build_keyring, operator_keys
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Iterable

    from keyturn_workers.core.keyring import Keyring


class _Bucket:
    """Answers reads on request only, with what was stored when each read began."""

    capabilities = Capabilities()

    def __init__(self, ring: Keyring | None) -> None:
        self.ring = ring
        self.began = 0
        self.failing: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()

    async def read(self, key: str, *, max_bytes: int) -> tuple[ObjectHead, bytes]:
        assert max_bytes == 2 * 1024**2  # a keyring that an attacker made huge is not read
        assert key == ".keyturn/keyrings/acme.json"
        self.began += 1
        seen, failing = self.ring, self.failing
        self.started.set()
        await self.gate.wait()
        if failing is not None:
            raise failing
        if seen is None:
            raise MissingError
        body = build_keyring(seen, MASTER_KEYS)
        now = datetime.now(UTC)
        return ObjectHead(len(body), "etag", now, now, Headers({})), body


def _reader(bucket: _Bucket, cache_s: float = 60) -> KeyringReader:
    return KeyringReader(bucket, operator_keys(MASTER_KEYS), lease_s=15, cache_s=cache_s)  # type: ignore[arg-type]


async def test_recent_reads_are_cached() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket)
    first = await reader.read_recent("acme")
    assert await reader.read_recent("acme") is first
    assert bucket.began == 1


async def test_without_a_cache_each_call_reads() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket, cache_s=0)
    await reader.read_recent("acme")
    await reader.read_recent("acme")
    assert bucket.began == 2


async def test_a_fresh_read_begins_after_the_call() -> None:
    """A read that is under way must not answer a later call."""
    bucket = _Bucket(keyring())
    assert bucket.ring is not None
    reader = _reader(bucket)
    bucket.gate.clear()
    early = asyncio.create_task(reader.read_fresh("acme"))
    await bucket.started.wait()
    bucket.ring = rotated(bucket.ring)
    late = asyncio.create_task(reader.read_fresh("acme"))
    await asyncio.sleep(0)
    bucket.gate.set()
    assert (await early).desired.generation == 1
    assert (await late).desired.generation == 2
    assert bucket.began == 2


async def test_many_calls_share_one_read() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket)
    bucket.gate.clear()
    first = asyncio.create_task(reader.read_fresh("acme"))
    await bucket.started.wait()
    many = [asyncio.create_task(reader.read_fresh("acme")) for _ in range(50)]
    await asyncio.sleep(0)
    bucket.gate.set()
    await asyncio.gather(first, *many)
    assert bucket.began == 2


async def test_a_canceled_caller_does_not_cancel_the_others() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket)
    bucket.gate.clear()
    leaving = asyncio.create_task(reader.read_fresh("acme"))
    await bucket.started.wait()
    staying = asyncio.create_task(reader.read_fresh("acme"))
    await asyncio.sleep(0)
    leaving.cancel()
    bucket.gate.set()
    assert (await staying).desired.generation == 1
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_no_keyring_is_an_unknown_project_and_is_not_cached() -> None:
    bucket = _Bucket(None)
    reader = _reader(bucket)
    with pytest.raises(UnknownProjectError):
        await reader.read_recent("acme")
    bucket.ring = keyring()
    assert (await reader.read_recent("acme")).desired.generation == 1


async def test_a_failed_read_fails_its_callers_and_the_next_one_reads_again() -> None:
    bucket = _Bucket(keyring())
    reader = _reader(bucket)
    bucket.failing = StorageUnavailableError("down")
    with pytest.raises(StorageUnavailableError):
        await reader.read_fresh("acme")
    bucket.failing = None
    assert (await reader.read_fresh("acme")).desired.generation == 1


# Listings in place of reads.

LEASE_S: Final = 15
CACHE_S: Final = 2.0


@dataclass
class Many:
    """A bucket with keyrings of many projects, and one reader of them."""

    projects: int
    page_keys: int = 1000
    shows_overwrites: bool = True
    names: list[str] = field(init=False)

    def __post_init__(self) -> None:
        capabilities = Capabilities(listings_show_overwrites=self.shows_overwrites)
        self.storage = MemoryStorage(capabilities=capabilities)
        self.storage.page_keys = self.page_keys
        self.names = [f"p{number:05}" for number in range(self.projects)]
        for project in self.names:
            self.write(replace(keyring(), project=project))
        clock = StorageClock(LEASE_S, self.storage.elapsed_s)
        self.reader = KeyringReader(
            self.storage, operator_keys(MASTER_KEYS), lease_s=LEASE_S, cache_s=CACHE_S, clock=clock
        )

    def write(self, ring: Keyring) -> None:
        self.storage.plant(
            keyring_s3_key(ring.project), build_keyring(ring, MASTER_KEYS), Headers({})
        )

    async def use(self, names: Iterable[str] | None = None) -> None:
        for project in self.names if names is None else names:
            snapshot = await self.reader.read_leased(project)
            assert snapshot.keyring.project == project
            assert snapshot.lease.expires_s == LEASE_S

    def pass_time(self, seconds: float = CACHE_S + 0.1) -> None:
        self.storage.advance(seconds)

    def requests(self) -> tuple[int, int]:
        """Reads and listings since the last call."""
        made = self.storage.calls["read"], self.storage.calls["list_page"]
        self.storage.calls.clear()
        return made


@pytest.mark.slow
async def test_a_thousand_projects_cost_one_listing_a_cache_period() -> None:
    on = Many(1000)
    random.Random(1).shuffle(on.names)  # noqa: S311  # no secret
    await on.use()
    assert on.requests()[0] == 1000
    for _ in range(3):
        on.pass_time()
        await on.use()
        assert on.requests() == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("active", [1000, 300])
async def test_more_projects_than_a_listing_shows_cost_one_for_each_page(active: int) -> None:
    """However many are in use; the first periods learn where listings begin."""
    on = Many(1000, page_keys=100)
    order = random.Random(2)  # noqa: S311  # no secret
    await on.use()
    on.requests()
    for period in range(8):
        on.pass_time()
        await on.use(order.sample(on.names, active))
        reads, listings = on.requests()
        if period > 3:
            assert reads + listings <= 11


async def test_one_project_is_read() -> None:
    on = Many(1000)
    for _ in range(3):
        await on.use(["p00007"])
        on.pass_time()
    assert on.requests() == (3, 0)


async def test_projects_too_far_apart_for_one_listing_are_read() -> None:
    on = Many(100, page_keys=10)
    apart = on.names[::20]
    for _ in range(4):
        await on.use(apart)
        on.pass_time()
    on.requests()
    await on.use(apart)
    assert on.requests() == (len(apart), 0)


async def test_without_reliable_listings_every_keyring_is_read() -> None:
    on = Many(10, shows_overwrites=False)
    await on.use()
    on.pass_time()
    await on.use()
    assert on.requests() == (20, 0)


async def test_a_rotated_keyring_is_read_again() -> None:
    on = Many(10)
    await on.use()
    on.write(replace(rotated(keyring()), project="p00003"))
    on.requests()
    on.pass_time()
    await on.use()
    assert on.requests() == (1, 1)
    assert (await on.reader.read_recent("p00003")).desired.generation == 2


async def test_a_keyring_that_a_listing_covers_and_does_not_show_is_dropped() -> None:
    on = Many(10)
    await on.use()
    await on.storage.purge(keyring_s3_key("p00003"))
    on.pass_time()
    await on.use(["p00001", "p00002"])
    assert on.reader.get_last("p00003") is None
    with pytest.raises(UnknownProjectError):
        await on.reader.read_recent("p00003")


async def test_a_listing_counts_from_its_sending() -> None:
    """Sent before a rotation and answered 20 s after it, it shows nothing recent."""
    on = Many(10)
    await on.use()
    before = on.storage.elapsed_s()
    original = on.storage.list_page

    async def slow(*args: Any, **kwargs: Any) -> Any:
        page = await original(*args, **kwargs)
        on.write(replace(rotated(keyring()), project="p00003"))
        on.storage.advance(20)
        return page

    on.storage.list_page = slow  # type: ignore[method-assign]
    on.pass_time()
    snapshot = await on.reader.read_recent("p00003")
    assert snapshot.desired.generation == 2
    assert snapshot.sent_s > before + 20
    stale = on.reader.get_last("p00004")
    assert stale is not None
    assert stale.sent_s < before + 5
    assert not stale.leased
    assert on.reader.get_cached("p00004") is None


async def test_a_listing_of_more_than_a_sixth_of_a_lease_gives_none() -> None:
    on = Many(10)
    on.reader._cache_s = 10
    await on.use()
    original = on.storage.list_page

    async def slow(*args: Any, **kwargs: Any) -> Any:
        page = await original(*args, **kwargs)
        on.storage.advance(2.6)
        return page

    on.storage.list_page = slow  # type: ignore[method-assign]
    on.pass_time(10.1)
    assert not (await on.reader.read_recent("p00003")).leased
    on.requests()
    assert (await on.reader.read_leased("p00003")).leased
    assert on.requests() == (1, 0)


async def test_a_listing_whose_date_contradicts_the_others_gives_no_lease() -> None:
    on = Many(10)
    await on.use()
    original = on.storage.list_page

    async def skewed(*args: Any, **kwargs: Any) -> Any:
        page = await original(*args, **kwargs)
        assert page.date is not None
        return replace(page, date=page.date.replace(year=2100))

    on.storage.list_page = skewed  # type: ignore[method-assign]
    on.pass_time()
    assert not (await on.reader.read_recent("p00003")).leased


async def test_concurrent_callers_share_one_listing() -> None:
    on = Many(50)
    await on.use()
    on.requests()
    on.pass_time()
    await asyncio.gather(*(on.reader.read_leased(project) for project in on.names))
    assert on.requests() == (0, 1)


async def test_after_a_failed_listing_the_keyrings_are_read() -> None:
    on = Many(3)
    await on.use()
    on.requests()
    on.pass_time()
    on.storage.fail_next("list_page", StorageUnavailableError("down"), times=3)
    await on.use()
    assert on.requests() == (3, 3)


@pytest.mark.parametrize(("projects", "requests"), [(1, (1, 0)), (10, (0, 1))])
async def test_a_keyring_in_use_is_renewed_before_its_cache_time_ends(
    projects: int, requests: tuple[int, int]
) -> None:
    """In the background: no caller waits."""
    on = Many(projects)
    await on.use()
    on.requests()
    on.pass_time(CACHE_S * 0.9)
    await on.use()
    for _ in range(20):
        await asyncio.sleep(0)
    assert on.requests() == requests
    on.pass_time(CACHE_S * 0.5)
    assert on.reader.get_cached(on.names[-1]) is not None


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By projects and by bytes; the least recently used go, those without a keyring first."""
    monkeypatch.setattr(cache_module, "_MAX_PROJECTS", 5)
    on = Many(10)
    await on.use()
    assert [on.reader.get_last(name) is not None for name in on.names] == [False] * 5 + [True] * 5
    for number in range(20):
        with pytest.raises(UnknownProjectError):
            await on.reader.read_recent(f"nobody-{number}")
    assert on.reader.get_cached("p00009") is not None
    assert sorted(on.reader._cache.projects) == [_project(name) for name in on.reader._cache.names]
    monkeypatch.setattr(cache_module, "_MAX_TOTAL_BYTES", 1)
    await on.use(["p00001"])
    assert [_project(name) for name in on.reader._cache.names] == ["p00001"]
    assert on.reader._cache.total_bytes == len((await on.storage.read(keyring_s3_key("p00001")))[1])


def _project(name: str) -> str:
    return name.removesuffix(".json")


# A master key that a provider holds.


class _OnProvider:
    """A reader whose one master key is held by a provider, with clocks that a test moves."""

    def __init__(self) -> None:
        self.storage = MemoryStorage(capabilities=Capabilities(listings_show_overwrites=True))
        self.storage.plant(
            keyring_s3_key("acme"), build_keyring(keyring(), {"m1": MASTER}), Headers({})
        )
        self.clock, self.provider = Clock(), FakeProvider()
        self.keys = OperatorKeys(
            {"m1": self.provider}, limits=KekLimits(100, 1000), clock_s=self.clock
        )
        clock = StorageClock(LEASE_S, self.storage.elapsed_s)
        self.reader = KeyringReader(
            self.storage, self.keys, lease_s=LEASE_S, cache_s=CACHE_S, clock=clock
        )


async def test_a_keyring_is_cached_no_longer_than_its_kek_lasts() -> None:
    """Otherwise uploads would go on under a KEK past its hard end, or after it was revoked."""
    on = _OnProvider()
    await on.reader.read_recent("acme")
    assert on.reader.get_cached("acme") is not None
    on.provider.failure = KmsUnavailableError("down")
    on.clock.now_s += 1000
    assert on.reader.get_cached("acme") is None
    assert on.reader.get_last("acme") is None
    with pytest.raises(KmsUnavailableError):
        await on.reader.read_recent("acme")


async def test_a_cached_keyring_in_use_keeps_its_kek_fresh() -> None:
    on = _OnProvider()
    await on.reader.read_recent("acme")
    calls = on.provider.total
    on.clock.now_s += 80
    assert on.reader.get_cached("acme") is not None
    for _ in range(10):
        await asyncio.sleep(0)
    assert on.provider.total == calls + 1


async def test_a_keyring_of_an_unknown_project_costs_the_provider_nothing() -> None:
    on = _OnProvider()
    with pytest.raises(UnknownProjectError):
        await on.reader.read_recent("made-up")
    assert on.provider.total == 0


async def test_reads_that_begin_now_end_a_kek_in_time_too() -> None:
    """Deletes and steps of sweeps only ever read so: the record is the same for months."""
    on = _OnProvider()
    await on.reader.read_fresh("acme")
    on.provider.failure = KmsUnavailableError("down")
    on.clock.now_s += 1000
    for _ in range(2):
        with pytest.raises(KmsUnavailableError):
            await on.reader.read_fresh("acme")


async def test_a_kek_that_is_forgotten_is_in_no_cached_keyring() -> None:
    on = _OnProvider()
    await on.reader.read_recent("acme")
    on.clock.now_s += 1000
    on.keys.purge()
    assert on.reader._cache.get("acme") is None
