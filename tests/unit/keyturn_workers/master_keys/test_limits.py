"""Bounds on the calls to a provider."""

from __future__ import annotations

import asyncio
import time

import pytest

from keyturn.errors import KmsUnavailableError
from keyturn_workers.master_keys.limits import LimitedMasterKey
from keyturn_workers.master_keys.port import KmsRefusedError
from tests.unit.keyturn_workers.master_keys.fakes import Clock, FakeProvider


def limited(
    provider: FakeProvider,
    clock: Clock | None = None,
    *,
    concurrency: int = 4,
    requests_per_s: int = 10_000,
    timeout_s: float = 5,
) -> LimitedMasterKey:
    return LimitedMasterKey(
        provider,
        concurrency=concurrency,
        requests_per_s=requests_per_s,
        timeout_s=timeout_s,
        clock=clock or Clock(),
    )


async def test_no_more_calls_run_at_once_than_allowed() -> None:
    provider = FakeProvider()
    key = limited(provider, concurrency=3)
    await asyncio.gather(*(key.derive(b"%d" % n) for n in range(50)))
    assert provider.most_at_once == 3
    assert provider.total == 50


@pytest.mark.slow
async def test_no_more_calls_begin_in_a_second_than_allowed() -> None:
    provider = FakeProvider()
    key = limited(provider, concurrency=100, requests_per_s=20)
    began = time.monotonic()
    await asyncio.gather(*(key.derive(b"%d" % n) for n in range(30)))
    # A burst of 20 at once, then 20 a second.
    assert time.monotonic() - began >= 0.4


async def test_a_provider_that_is_away_is_asked_by_one_probe_at_a_time() -> None:
    provider, clock = FakeProvider(failure=KmsUnavailableError("down")), Clock()
    key = limited(provider, clock)
    for _ in range(1000):
        with pytest.raises(KmsUnavailableError, match="down"):
            await key.derive(b"x")
    assert provider.total == 1
    assert key.is_away
    clock.now_s += 60
    results = await asyncio.gather(*(key.derive(b"x") for _ in range(100)), return_exceptions=True)
    assert all(isinstance(result, KmsUnavailableError) for result in results)
    assert provider.total == 2


async def test_those_who_come_during_the_probe_share_its_outcome() -> None:
    """They would otherwise be put off for minutes though the provider is back."""
    provider, clock = FakeProvider(failure=KmsUnavailableError("down")), Clock()
    key = limited(provider, clock)
    with pytest.raises(KmsUnavailableError):
        await key.derive(b"x")
    provider.failure, provider.held = None, asyncio.Event()
    clock.now_s += 60
    calls = [asyncio.create_task(key.derive(b"%d" % n)) for n in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert provider.total == 2
    provider.held.set()
    assert len(await asyncio.gather(*calls)) == 50


async def test_pauses_grow_up_to_a_quarter_of_a_minute() -> None:
    """10 minutes of a provider that is away cost it less than a hundred requests."""
    provider, clock = FakeProvider(failure=KmsUnavailableError("down")), Clock()
    key = limited(provider, clock)
    for _ in range(6000):
        clock.now_s += 0.1
        with pytest.raises(KmsUnavailableError):
            await key.derive(b"x")
    assert 20 <= provider.total <= 100


async def test_a_provider_that_is_back_serves_everybody() -> None:
    provider, clock = FakeProvider(failure=KmsUnavailableError("down")), Clock()
    key = limited(provider, clock)
    with pytest.raises(KmsUnavailableError):
        await key.derive(b"x")
    provider.failure = None
    clock.now_s += 60
    await key.derive(b"x")
    assert not key.is_away
    await asyncio.gather(*(key.derive(b"%d" % n) for n in range(20)))
    assert provider.total == 22


async def test_a_refusal_stays_a_refusal_for_those_who_fail_at_once() -> None:
    provider = FakeProvider(failure=KmsRefusedError("the token expired"))
    key = limited(provider)
    for _ in range(2):
        with pytest.raises(KmsRefusedError, match="the token expired"):
            await key.derive(b"x")
    assert provider.total == 1


async def test_a_call_without_an_answer_ends() -> None:
    provider = FakeProvider(held=asyncio.Event())
    key = limited(provider, timeout_s=0.05)
    with pytest.raises(KmsUnavailableError, match=r"no answer within 0\.05 s"):
        await key.derive(b"x")
    assert key.is_away


async def test_it_closes_and_describes_the_key_itself() -> None:
    provider = FakeProvider()
    key = limited(provider)
    assert (await key.describe()).provider == key.provider == "vault"
    await key.aclose()
    assert provider.closed


async def test_those_who_waited_for_a_slot_do_not_all_become_probes() -> None:
    provider, clock = FakeProvider(), Clock()
    key = limited(provider, clock, concurrency=4)
    provider.held = asyncio.Event()
    calls = [asyncio.create_task(key.derive(b"%d" % n)) for n in range(50)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert provider.total == 4
    provider.failure = KmsUnavailableError("down")
    provider.held.set()
    await asyncio.gather(calls[0], return_exceptions=True)
    assert key.is_away
    provider.held.clear()
    clock.now_s += 60  # the next one may try again
    for _ in range(100):
        await asyncio.sleep(0)
    assert provider.at_once == 1
    provider.held.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, KmsUnavailableError) for result in results)
    assert provider.total == 5


async def test_it_says_whether_the_provider_refuses_or_is_only_away() -> None:
    provider, clock = FakeProvider(failure=KmsRefusedError("revoked")), Clock()
    key = limited(provider, clock)
    assert not key.is_refused
    for failure, is_refused in ((provider.failure, True), (KmsUnavailableError("down"), False)):
        provider.failure = failure
        with pytest.raises(KmsUnavailableError):
            await key.derive(b"x")
        assert key.is_refused == is_refused
        clock.now_s += 60
