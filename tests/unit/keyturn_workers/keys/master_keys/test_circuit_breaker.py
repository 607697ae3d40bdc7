"""Whether a provider may be called: bounds, pauses after a failure, and one probe at a time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from keyturn.errors import KmsUnavailableError
from keyturn_workers.keys.master_keys.circuit_breaker import (
    CallLimits,
    CircuitBreaker,
    is_absence,
    is_any,
)
from keyturn_workers.keys.master_keys.port import Derivation, KmsRefusedError
from tests.unit.keyturn_workers.keys.master_keys.fakes import Clock, FakeProvider

if TYPE_CHECKING:
    from collections.abc import Callable

DOWN = KmsUnavailableError("down")
REFUSED = KmsRefusedError("the token expired")


class Bench:
    """A provider, its breaker, and a clock."""

    def __init__(
        self,
        failure: KmsUnavailableError | None = None,
        *,
        concurrency: int = 4,
        requests_per_s: int = 10_000,
        timeout_s: float = 5,
        opens: Callable[[KmsUnavailableError], bool] = is_any,
        holds: Callable[[], bool] = lambda: True,
    ) -> None:
        self.provider, self.clock = FakeProvider(failure=failure), Clock()
        self.observed: list[bool] = []
        self.breaker = CircuitBreaker(
            CallLimits(concurrency, requests_per_s, timeout_s),
            observe=lambda succeeded, _seconds: self.observed.append(succeeded),
            opens=opens,
            holds=holds,
            clock_s=self.clock,
        )

    async def derive(self, info: bytes = b"x") -> Derivation:
        return await self.breaker.call(lambda: self.provider.derive(info))

    async def fail(self) -> KmsUnavailableError:
        with pytest.raises(KmsUnavailableError) as caught:
            await self.derive()
        return caught.value

    async def begin(self, count: int) -> list[asyncio.Task[Derivation]]:
        """Calls that have got as far as they can."""
        calls = [asyncio.create_task(self.derive(b"%d" % n)) for n in range(count)]
        for _ in range(10):
            await asyncio.sleep(0)
        return calls


async def test_no_more_calls_run_at_once_than_allowed() -> None:
    bench = Bench(concurrency=3)
    await asyncio.gather(*(bench.derive(b"%d" % n) for n in range(50)))
    assert bench.provider.most_at_once == 3
    assert bench.provider.total == 50
    assert bench.observed == [True] * 50


@pytest.mark.slow
async def test_no_more_calls_begin_in_a_second_than_allowed() -> None:
    bench = Bench(concurrency=100, requests_per_s=20)
    began = time.monotonic()
    await asyncio.gather(*(bench.derive(b"%d" % n) for n in range(30)))
    # A burst of 20 at once, then 20 a second.
    assert time.monotonic() - began >= 0.4


async def test_a_provider_that_is_away_is_asked_by_one_probe_at_a_time() -> None:
    bench = Bench(DOWN)
    for _ in range(1000):
        assert (await bench.fail()).detail.startswith("down")
    assert bench.provider.total == 1
    bench.clock.now_s += 60
    results = await asyncio.gather(*(bench.derive() for _ in range(100)), return_exceptions=True)
    assert all(isinstance(result, KmsUnavailableError) for result in results)
    assert bench.provider.total == 2
    assert bench.observed == [False] * 2


async def test_those_who_come_during_the_probe_share_its_outcome() -> None:
    """They would otherwise be put off for minutes though the provider is back."""
    bench = Bench(DOWN)
    await bench.fail()
    bench.provider.failure, bench.provider.held = None, asyncio.Event()
    bench.clock.now_s += 60
    calls = await bench.begin(50)
    assert bench.provider.total == 2
    bench.provider.held.set()
    assert len(await asyncio.gather(*calls)) == 50


@pytest.mark.parametrize(
    ("failure", "pauses_s"),
    [
        (DOWN, [0.5, 1, 2, 4, 8, 15, 15, 15]),
        (REFUSED, [1, 2, 4, 8, 16, 32, 60, 60, 60]),
    ],
)
async def test_pauses_double_up_to_their_longest(
    failure: KmsUnavailableError, pauses_s: list[float]
) -> None:
    """10 minutes of a provider that is away cost it less than a hundred requests."""
    bench = Bench(failure)
    await bench.fail()
    for calls, pause_s in enumerate(pauses_s, 1):
        bench.clock.now_s += pause_s * 0.74  # they vary by a quarter
        assert "; next attempt in " in (await bench.fail()).detail
        assert bench.provider.total == calls
        bench.clock.now_s += pause_s * 0.52
        await bench.fail()
        assert bench.provider.total == calls + 1


async def test_a_provider_that_is_away_for_weeks_is_still_asked() -> None:
    bench = Bench(REFUSED)
    for _ in range(3000):  # 2.0 ** 3000 is no float
        await bench.fail()
        bench.clock.now_s += 75
    assert bench.provider.total == 3000


async def test_calls_that_fail_together_lengthen_the_pause_once() -> None:
    bench = Bench()
    bench.provider.held = asyncio.Event()
    calls = await bench.begin(4)
    bench.provider.failure = REFUSED
    bench.provider.held.set()
    await asyncio.gather(*calls, return_exceptions=True)
    bench.clock.now_s += 1.26
    await bench.fail()
    assert bench.provider.total == 5


async def test_a_provider_that_is_back_serves_everybody() -> None:
    bench = Bench(DOWN)
    await bench.fail()
    bench.provider.failure = None
    bench.clock.now_s += 60
    await bench.derive()
    assert not bench.breaker.is_away
    await asyncio.gather(*(bench.derive(b"%d" % n) for n in range(20)))
    assert bench.provider.total == 22
    bench.provider.failure = DOWN
    await bench.fail()
    bench.clock.now_s += 0.63  # the first pause again
    await bench.fail()
    assert bench.provider.total == 24


async def test_a_refusal_stays_a_refusal_and_is_no_absence() -> None:
    bench = Bench(REFUSED)
    for _ in range(2):
        assert isinstance(await bench.fail(), KmsRefusedError)
        assert not bench.breaker.is_away
    assert bench.provider.total == 1
    bench.provider.failure = DOWN
    bench.clock.now_s += 60
    assert not isinstance(await bench.fail(), KmsRefusedError)
    assert bench.breaker.is_away


async def test_a_new_credential_is_used_at_once_and_a_refused_one_is_not_repeated() -> None:
    bench = Bench()
    credential, used = "old", []

    async def send() -> None:
        used.append(now := credential)
        if now != "right":
            raise KmsRefusedError("refused", has_new_credential=lambda: credential != now)

    async def attempt() -> None:
        for _ in range(10):
            with pytest.raises(KmsRefusedError, match="refused"):
                await bench.breaker.call(send)

    await attempt()
    credential = "wrong"
    await attempt()
    assert used == ["old", "wrong"]
    credential = "right"
    await bench.breaker.call(send)


async def test_a_call_that_succeeds_later_than_another_failed_closes_the_circuit() -> None:
    bench = Bench()
    held = bench.provider.held = asyncio.Event()
    (slow,) = await bench.begin(1)
    bench.provider.held = None
    bench.provider.failure = REFUSED
    await bench.fail()
    bench.provider.failure = None
    held.set()
    await slow
    await bench.derive()


async def test_a_call_without_an_answer_ends() -> None:
    bench = Bench(timeout_s=0.05)
    bench.provider.held = asyncio.Event()
    assert (await bench.fail()).detail == "no response within 0.05 s"
    assert bench.breaker.is_away


async def test_a_probe_that_is_canceled_leaves_the_next_one_to_another() -> None:
    bench = Bench(DOWN)
    await bench.fail()
    bench.provider.failure, bench.provider.held = None, asyncio.Event()
    bench.clock.now_s += 60
    probe, waiting = await bench.begin(2)
    probe.cancel()
    bench.provider.held.set()
    await waiting


async def test_those_who_waited_for_a_slot_do_not_all_become_probes() -> None:
    bench = Bench(concurrency=4)
    bench.provider.held = asyncio.Event()
    calls = await bench.begin(50)
    assert bench.provider.total == 4
    bench.provider.failure = DOWN
    bench.provider.held.set()
    await asyncio.gather(calls[0], return_exceptions=True)
    assert bench.breaker.is_away
    bench.provider.held.clear()
    bench.clock.now_s += 60  # the next one may try again
    for _ in range(100):
        await asyncio.sleep(0)
    assert bench.provider.at_once == 1
    bench.provider.held.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(result, KmsUnavailableError) for result in results)
    assert bench.provider.total == 5


async def test_a_failure_that_does_not_open_the_circuit_is_a_response() -> None:
    """It ends what an absence began; and the caller still gets it."""
    bench = Bench(opens=is_absence)
    for failure, total in ((REFUSED, 1), (REFUSED, 2), (DOWN, 3), (DOWN, 3)):
        bench.provider.failure = failure
        await bench.fail()
        assert bench.provider.total == total
    bench.clock.now_s += 60
    bench.provider.failure = REFUSED
    await bench.fail()
    assert not bench.breaker.is_away
    assert bench.observed == [False] * 4
    await bench.fail()
    assert bench.provider.total == 5


async def test_an_open_circuit_admits_calls_while_it_does_not_hold() -> None:
    holds = True
    bench = Bench(DOWN, holds=lambda: holds)
    await bench.fail()
    with pytest.raises(KmsUnavailableError, match="next attempt in"):
        bench.breaker.check()
    holds = False
    bench.breaker.check()
    for total in (2, 3):
        await bench.fail()
        assert bench.provider.total == total
    holds = True
    await bench.fail()
    assert bench.provider.total == 3
