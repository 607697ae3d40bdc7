"""The storage's clock, bounded by its responses (SPEC 8.4)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from structlog.testing import capture_logs

from keyturn.errors import StorageUnavailableError
from keyturn_workers.storage.clock import (
    DISTRUSTED,
    INTERVAL_S,
    DateTrust,
    StorageClock,
    boottime_s,
    keep_clock_known,
)

LEASE_S: Final = 15
EPOCH: Final = datetime(2026, 11, 24, 10, tzinfo=UTC)
DAY_S: Final = 86_400.0
AN_HOUR_S: Final = 3600.0
LEASE_ONLY: Final = DateTrust(agrees=True, proves=False)
PROOF: Final = DateTrust(agrees=True, proves=True)


@dataclass
class Machine:
    """A process and its storage, whose clock is `ahead_s` seconds ahead."""

    now_s: float = 1000.0
    ahead_s: float = 0.0
    clock: StorageClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = StorageClock(LEASE_S, lambda: self.now_s)

    def date(self, ahead_s: float | None = None) -> datetime:
        ahead = self.ahead_s if ahead_s is None else ahead_s
        return (EPOCH + timedelta(seconds=self.now_s + ahead)).replace(microsecond=0)

    def response(self, ahead_s: float | None = None, took_s: float = 0.1) -> DateTrust:
        """One response, dated in the middle of the time that it took."""
        sent_s = self.now_s
        self.now_s += took_s / 2
        date = self.date(ahead_s)
        self.now_s += took_s / 2
        return self.clock.observe(date, sent_s, self.now_s)

    def responses(self, seconds: float, *ahead_s: float) -> list[DateTrust]:
        """Answers, one a second, in turn from front ends whose clocks are so far ahead."""
        given = []
        for number in range(int(seconds)):
            given.append(self.response(ahead_s[number % len(ahead_s)] if ahead_s else None))
            self.now_s += 0.9
        return given


def test_a_young_reference_gives_leases_and_no_proofs() -> None:
    on = Machine()
    given = on.responses(60)
    assert given[:29] == [LEASE_ONLY] * 29
    assert given[31:] == [PROOF] * 29


@pytest.mark.parametrize("ahead_s", [DAY_S, 16, -16, -DAY_S])
def test_a_few_responses_that_contradict_the_others_give_nothing(ahead_s: float) -> None:
    """A `Date` a day ahead on a few responses: neither they nor the others are hurt."""
    on = Machine()
    on.responses(60)
    assert on.responses(5, ahead_s) == [DISTRUSTED] * 5
    assert on.responses(60) == [PROOF] * 60


@pytest.mark.parametrize("ahead_s", [3600, -3600, 16, -16])
def test_a_clock_that_is_set_stops_nothing_for_ever(ahead_s: float) -> None:
    """Forward or backward: no lease for two leases, then leases, then proofs."""
    on = Machine()
    on.responses(60)
    on.ahead_s = ahead_s
    given = on.responses(90)
    assert given[:30] == [DISTRUSTED] * 30
    assert given[31:60] == [LEASE_ONLY] * 29
    assert given[62:] == [PROOF] * 28


@pytest.mark.parametrize("ahead_s", [16, -16])
def test_one_of_two_front_ends_never_becomes_the_reference(ahead_s: float) -> None:
    on = Machine()
    on.responses(60)
    given = on.responses(300, 0, ahead_s)
    assert given[0::2] == [PROOF] * 150
    assert given[1::2] == [DISTRUSTED] * 150


@pytest.mark.parametrize("ahead_s", [3600, -3600, 16, -16])
def test_a_contradiction_is_known_for_ten_minutes(ahead_s: float) -> None:
    """Also once the others agree again, or once the new clock has become the reference."""
    on = Machine()
    on.responses(60)
    seen = [on.clock.is_contradicted]
    on.response(ahead_s)
    on.responses(590)
    seen.append(on.clock.is_contradicted)
    on.responses(15)
    seen.append(on.clock.is_contradicted)
    on.ahead_s = ahead_s
    on.responses(300)
    seen.append(on.clock.is_contradicted)
    assert seen == [False, True, False, True]


@pytest.mark.parametrize("ahead_s", [2, -2])
def test_a_sixth_of_a_lease_is_tolerated(ahead_s: float) -> None:
    on = Machine()
    on.responses(60)
    assert on.responses(60, 0, ahead_s) == [PROOF] * 60
    assert not on.clock.is_contradicted


def test_what_is_tolerated_does_not_add_up() -> None:
    """Answers that drift by a little each cannot carry the reference away with them."""
    on = Machine()
    on.responses(60)
    assert not all(on.response(ahead_s=step / 2).agrees for step in range(1, 20))
    assert on.response() == PROOF


def test_a_response_under_way_for_long_bounds_little() -> None:
    """A `Date` from the beginning of a slow response contradicts nothing."""
    on = Machine()
    on.responses(60)
    sent_s, date = on.now_s, on.date()
    on.now_s += 120
    assert on.clock.observe(date, sent_s, on.now_s).agrees
    assert on.response() == PROOF


def test_a_suspended_process_comes_back_to_the_same_clock() -> None:
    """CLOCK_BOOTTIME went on meanwhile: the responses agree with those of before."""
    on = Machine()
    on.responses(60)
    on.now_s += 500
    assert on.response() == PROOF


def test_responses_of_more_than_ten_minutes_ago_are_no_reference() -> None:
    on = Machine()
    on.responses(60)
    on.now_s += 700
    on.ahead_s = 3600
    assert on.response() == LEASE_ONLY


@pytest.mark.parametrize("ahead_s", [5, -5])
def test_what_is_left_of_a_reference_is_as_tight_as_its_best_response(ahead_s: float) -> None:
    """Not as loose as its slowest: that one bounds little."""
    on = Machine()
    on.responses(60)
    on.now_s += 300
    on.response()
    on.now_s += 20
    on.response(took_s=8)
    on.now_s += 300  # the first minute is no reference any more
    assert on.response(ahead_s) == DISTRUSTED
    assert on.response() == PROOF


@pytest.mark.parametrize(("agreeing", "contradicting"), [(40, 20), (21, 1)])
def test_a_majority_is_twice_as_many_and_twenty_more(agreeing: int, contradicting: int) -> None:
    on = Machine()
    on.responses(60)
    given = [on.response(AN_HOUR_S) for _ in range(agreeing - 2)]
    assert [on.response() for _ in range(contradicting)] == [PROOF] * contradicting
    on.now_s += 2 * LEASE_S
    given.append(on.response(AN_HOUR_S))
    assert given == [DISTRUSTED] * (agreeing - 1)
    assert on.response(AN_HOUR_S) == LEASE_ONLY


def test_a_contradiction_is_logged_once_a_minute_and_a_change_once() -> None:
    on = Machine()
    on.responses(60)
    with capture_logs() as logs:
        for seconds in (1, 60, 1):
            on.responses(1, AN_HOUR_S)
            on.responses(seconds)
        on.responses(90, -AN_HOUR_S)
    contradicts, changed = "storage clock contradicts earlier responses", "storage clock changed"
    logged = [(log["event"], round(log["by_s"], -2)) for log in logs]
    assert logged == [
        (contradicts, AN_HOUR_S),
        (contradicts, AN_HOUR_S),
        (changed, -AN_HOUR_S),
    ]


def test_contradictions_that_contradict_each_other_are_no_new_reference() -> None:
    on = Machine()
    on.responses(60)
    assert on.responses(120, 100, 200) == [DISTRUSTED] * 120


@pytest.mark.parametrize("ahead_s", [360, -360, 16, -16])
@pytest.mark.parametrize("others", [2, 4, 9])
def test_a_wrong_front_end_that_is_met_first_does_not_remain_the_reference(
    ahead_s: float, others: int
) -> None:
    """Each of its responses put off the others forever."""
    on = Machine()
    right = [0.0] * others
    given = on.responses(180, ahead_s, *right)
    assert given[1 : others + 1] == [DISTRUSTED] * others
    after = on.responses(60, *right, ahead_s)
    assert [response for response in after if response != DISTRUSTED] == [
        PROOF for number in range(60) if number % (others + 1) < others
    ]


def test_of_three_clocks_the_one_of_most_front_ends_becomes_the_reference() -> None:
    on = Machine()
    on.responses(180, 360, 0, 0, 0, 0, -360)
    assert on.responses(60, 0, -360, 360) == [PROOF, DISTRUSTED, DISTRUSTED] * 20


@pytest.mark.parametrize("ahead_s", [360, -360])
def test_a_minority_that_is_met_later_never_becomes_the_reference(ahead_s: float) -> None:
    on = Machine()
    on.responses(60)
    given = on.responses(3600, ahead_s, ahead_s, 0, 0, 0)
    assert given == [DISTRUSTED, DISTRUSTED, PROOF, PROOF, PROOF] * 720


def test_it_is_known_by_a_reference_of_two_leases_and_a_response_that_agrees() -> None:
    on = Machine()
    known = [on.clock.is_known]
    for seconds, ahead_s in ((29, 0), (5, 0), (1, 360), (1, 0)):
        on.responses(seconds, ahead_s)
        known.append(on.clock.is_known)
    assert known == [False, False, True, False, True]


def test_a_response_without_a_date_gives_nothing() -> None:
    on = Machine()
    on.responses(60)
    assert on.clock.observe(None, on.now_s, on.now_s) == DISTRUSTED
    assert on.response() == PROOF


def test_now_is_the_storages_time() -> None:
    on = Machine(ahead_s=3600)
    assert abs(on.clock.now() - datetime.now(UTC)) < timedelta(seconds=5)  # none is known yet
    on.responses(60)
    on.responses(5, DAY_S)
    assert abs(on.clock.now() - on.date()) <= timedelta(seconds=1)


def test_the_own_clock_counts_suspensions() -> None:
    before_s = boottime_s()
    assert StorageClock(LEASE_S).local_s is boottime_s
    assert boottime_s() >= before_s > 0


@pytest.mark.parametrize("fails", [False, True], ids=["answers", "fails every second time"])
async def test_an_idle_worker_proves_at_once(
    monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    machine, requests = Machine(), 0

    async def observe() -> None:
        nonlocal requests
        requests += 1
        if fails and requests % 2:
            raise StorageUnavailableError("503")
        machine.response(took_s=0)

    async def sleep(seconds: float) -> None:
        machine.now_s += seconds
        if requests > AN_HOUR_S // INTERVAL_S:
            raise asyncio.CancelledError

    monkeypatch.setattr("keyturn_workers.process.background.asyncio.sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await keep_clock_known(observe)
    assert machine.response().proves


def test_without_it_an_idle_worker_would_prove_nothing_for_two_leases() -> None:
    machine = Machine()
    machine.response()
    machine.now_s += AN_HOUR_S
    assert not machine.response().proves
