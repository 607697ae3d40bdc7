"""The operator's keys: confirmed, refreshed ahead, ended in time, and never a stampede."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from keyturn.crypto import Secret, admin_kek, record_kek
from keyturn.errors import (
    KmsUnavailableError,
    NoUsableWrapError,
    StorageUnavailableError,
    UnknownMasterKeyError,
)
from keyturn_workers.core.admin_keks import AdminKeks
from keyturn_workers.keys.master_keys.circuit_breaker import CallLimits
from keyturn_workers.keys.master_keys.derived_keks import KekLimits, Use, decide_use
from keyturn_workers.keys.master_keys.known_text import RESERVED_PROJECT
from keyturn_workers.keys.master_keys.local import LocalMasterKey
from keyturn_workers.keys.master_keys.operator_keys import OperatorKeys
from keyturn_workers.keys.master_keys.port import KekDerived, KmsRefusedError
from tests.unit.keyturn_workers.factories import MASTER_KEYS
from tests.unit.keyturn_workers.keys.master_keys.fakes import MASTER, Clock, FakeProvider

LIMITS = KekLimits(cache_s=100, cache_max_s=1000, wait_s=60)
CALLS = CallLimits(concurrency=8, requests_per_s=100_000)
LOCAL = {name: LocalMasterKey(secret) for name, secret in MASTER_KEYS.items()}
ONE, TWO = Secret(b"1" * 32), Secret(b"2" * 32)
KEKS = AdminKeks("acme", {"m1": ONE, "m2": TWO}, frozenset({"m3"}))


class Bench:
    """One process with one provider's key, m1, and a clock."""

    def __init__(self, **more: Any) -> None:
        self.clock = Clock()
        self.provider = FakeProvider()
        options: dict[str, Any] = {"limits": LIMITS, "calls": CALLS, "clock_s": self.clock, **more}
        self.keys = OperatorKeys({"m1": self.provider}, **options)

    async def settle(self) -> None:
        """Let what runs in the background end."""
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("age_s", "use", "use_while_away"),
    [
        (0, Use.USE, Use.USE),
        (74, Use.USE, Use.USE),
        (75, Use.USE_AND_REFRESH, Use.USE_AND_REFRESH),
        (99, Use.USE_AND_REFRESH, Use.USE_AND_REFRESH),
        (100, Use.ASK_FIRST, Use.USE_AND_REFRESH),
        (999, Use.ASK_FIRST, Use.USE_AND_REFRESH),
        (1000, Use.NEVER, Use.NEVER),
    ],
)
def test_what_a_kek_may_be_used_for_depends_on_its_age(
    age_s: float, use: Use, use_while_away: Use
) -> None:
    assert decide_use(age_s, LIMITS, is_away=False) is use
    assert decide_use(age_s, LIMITS, is_away=True) is use_while_away


async def test_a_kek_is_what_hkdf_derives() -> None:
    keys = Bench().keys
    assert await keys.admin_kek("m1", "acme") == admin_kek(MASTER.reveal(), "acme")
    assert await keys.record_kek("m1", "acme") == record_kek(MASTER.reveal(), "acme")
    local = OperatorKeys.local({"m1": MASTER})
    assert await local.admin_kek("m1", "acme") == admin_kek(MASTER.reveal(), "acme")


async def test_a_kek_that_seals_is_derived_twice_and_then_kept() -> None:
    bench = Bench()
    for _ in range(10):
        await bench.keys.admin_kek("m1", "acme")
    assert bench.provider.total == 2


async def test_a_reader_derives_a_kek_once() -> None:
    bench = Bench(seals=False)
    for _ in range(10):
        await bench.keys.admin_kek("m1", "acme")
    assert bench.provider.total == 1


async def test_a_kek_whose_derivations_differ_seals_nothing() -> None:
    bench = Bench()
    bench.provider.wrong = 1
    with pytest.raises(KmsUnavailableError, match="differ"):
        await bench.keys.admin_kek("m1", "acme")
    assert bench.keys.cached_keks == 0
    assert await bench.keys.admin_kek("m1", "acme") == admin_kek(MASTER.reveal(), "acme")


async def test_callers_that_come_together_share_one_derivation() -> None:
    bench = Bench()
    await asyncio.gather(*(bench.keys.admin_kek("m1", "acme") for _ in range(500)))
    assert bench.provider.total == 2


async def test_a_caller_that_gives_up_takes_the_derivation_from_nobody() -> None:
    bench = Bench()
    bench.provider.held = asyncio.Event()
    first = asyncio.create_task(bench.keys.admin_kek("m1", "acme"))
    second = asyncio.create_task(bench.keys.admin_kek("m1", "acme"))
    await bench.settle()
    first.cancel()
    bench.provider.held.set()
    assert await second == admin_kek(MASTER.reveal(), "acme")


async def test_a_kek_in_use_is_derived_again_ahead_of_its_end() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "acme")
    bench.clock.now_s += 80
    assert bench.keys.touch("m1", "acme")
    await bench.settle()
    assert bench.provider.total == 3  # one more, that agrees with the one in memory
    bench.clock.now_s += 80
    assert bench.keys.touch("m1", "acme")


async def test_warm_projects_go_on_while_the_provider_is_away_and_cold_ones_wait() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure = KmsUnavailableError("down")
    bench.clock.now_s += 500
    assert await bench.keys.admin_kek("m1", "warm") == admin_kek(MASTER.reveal(), "warm")
    with pytest.raises(KmsUnavailableError):
        await bench.keys.admin_kek("m1", "cold")
    bench.provider.failure = None
    bench.clock.now_s += 60
    await bench.keys.admin_kek("m1", "cold")


async def test_no_kek_outlives_its_hard_end() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure = KmsUnavailableError("down")
    bench.clock.now_s += 1000
    with pytest.raises(KmsUnavailableError):
        await bench.keys.admin_kek("m1", "warm")


async def test_a_provider_that_refuses_ends_a_kek_at_its_cache_time() -> None:
    """Access that was revoked must end."""
    bench = Bench()
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure = KmsRefusedError("revoked")
    bench.clock.now_s += 99
    await bench.keys.admin_kek("m1", "warm")
    bench.clock.now_s += 1
    with pytest.raises(KmsRefusedError):
        await bench.keys.admin_kek("m1", "warm")


async def test_an_idle_process_forgets() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "acme")
    bench.clock.now_s += 99
    bench.keys.purge()
    assert bench.keys.cached_keks == 1
    bench.clock.now_s += 1
    bench.keys.purge()
    assert bench.keys.cached_keks == 0
    assert not bench.keys.touch("m1", "acme")


async def test_while_the_provider_is_away_the_purge_waits_for_the_hard_end() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "acme")
    bench.provider.failure = KmsUnavailableError("down")
    bench.clock.now_s += 150
    await bench.keys.admin_kek("m1", "acme")
    bench.keys.purge()
    assert bench.keys.cached_keks == 1
    bench.clock.now_s += 900
    bench.keys.purge()
    assert bench.keys.cached_keks == 0


@pytest.mark.slow
async def test_ten_thousand_cold_projects_do_not_stampede_a_provider_that_is_away() -> None:
    bench = Bench()
    bench.provider.failure = KmsUnavailableError("down")
    results = await asyncio.gather(
        *(bench.keys.admin_kek("m1", f"p{n}") for n in range(10_000)), return_exceptions=True
    )
    assert all(isinstance(result, KmsUnavailableError) for result in results)
    assert bench.provider.total <= 8  # its concurrency
    assert bench.provider.most_at_once <= 8


async def test_a_wait_has_an_end_and_the_derivation_goes_on() -> None:
    bench = Bench(limits=KekLimits(100, 1000, wait_s=0.01))
    bench.provider.held = asyncio.Event()
    with pytest.raises(KmsUnavailableError, match="no KEK within"):
        await bench.keys.admin_kek("m1", "acme")
    bench.provider.held.set()
    await bench.settle()
    assert await bench.keys.admin_kek("m1", "acme")
    assert bench.provider.total == 2


async def test_admin_keks_name_the_keys_that_are_away() -> None:
    bench = Bench()
    keys = OperatorKeys({"kms": bench.provider, **LOCAL}, clock_s=bench.clock)
    bench.provider.failure = KmsUnavailableError("down")
    keks = await keys.admin_keks("acme")
    assert (sorted(keks.keks), keks.unavailable) == (["m1", "m2"], frozenset({"kms"}))
    bench.provider.failure = None
    bench.clock.now_s += 60
    keks = await keys.admin_keks("acme")
    assert (list(keks.keks), keks.unavailable) == (["kms", "m1", "m2"], frozenset())


async def test_what_does_not_open_is_tried_once_under_fresh_keks() -> None:
    bench = Bench()
    tries: list[AdminKeks] = []

    def opening(keks: AdminKeks) -> None:
        tries.append(keks)
        raise NoUsableWrapError

    await bench.keys.admin_keks("acme")
    with pytest.raises(NoUsableWrapError):
        await bench.keys.open_with("acme", opening)
    assert len(tries) == 1  # they are fresh
    bench.clock.now_s += 61
    with pytest.raises(NoUsableWrapError):
        await bench.keys.open_with("acme", opening)
    assert len(tries) == 3
    with pytest.raises(NoUsableWrapError):
        await bench.keys.open_with("acme", opening)
    assert len(tries) == 4  # a corrupt object costs the provider at most one round a minute


async def test_a_record_kek_is_renewed_for_a_record_that_does_not_open() -> None:
    bench = Bench()
    await bench.keys.record_kek("m1", "acme")
    assert await bench.keys.fresh_record_kek("m1", "acme") is None
    bench.clock.now_s += 61
    assert await bench.keys.fresh_record_kek("m1", "acme") == record_kek(MASTER.reveal(), "acme")


async def test_a_local_key_is_never_derived_again() -> None:
    keys = OperatorKeys.local(MASTER_KEYS)
    first = await keys.admin_kek("m1", "acme")
    assert await keys.admin_kek("m1", "acme") is first
    assert await keys.fresh_record_kek("m1", "acme") is None
    keys.purge()
    assert keys.cached_keks == 1


async def test_an_unknown_id_is_an_unknown_master_key() -> None:
    with pytest.raises(UnknownMasterKeyError, match="m9"):
        await Bench().keys.admin_kek("m9", "acme")


async def test_a_key_that_is_not_the_one_of_its_id_is_not_used() -> None:
    checks: list[tuple[str, Secret]] = []

    async def check(name: str, kek: Secret) -> bool:
        checks.append((name, kek))
        raise UnknownMasterKeyError(name)

    bench = Bench(check=check)
    for _ in range(100):
        with pytest.raises(UnknownMasterKeyError):
            await bench.keys.admin_kek("m1", "acme")
    assert checks == [("m1", record_kek(MASTER.reveal(), RESERVED_PROJECT))]
    assert (await bench.keys.admin_keks("acme")).keks == {}
    bench.clock.now_s += 61
    with pytest.raises(UnknownMasterKeyError):
        await bench.keys.admin_kek("m1", "acme")
    assert len(checks) == 2


async def test_a_key_is_checked_once_and_before_its_first_use() -> None:
    checked: list[str] = []

    async def check(name: str, _kek: Secret) -> bool:
        checked.append(name)
        return True

    bench = Bench(check=check)
    await asyncio.gather(*(bench.keys.admin_kek("m1", f"p{n}") for n in range(10)))
    assert checked == ["m1"]
    assert await bench.keys.check_all() == {"m1": None}
    assert checked == ["m1"]


async def test_a_check_that_cannot_be_made_is_made_again() -> None:
    failures: list[Exception] = [StorageUnavailableError("down")]

    async def check(_name: str, _kek: Secret) -> bool:
        if failures:
            raise failures.pop()
        return True

    bench = OperatorKeys(LOCAL, check=check)
    with pytest.raises(StorageUnavailableError):
        await bench.admin_kek("m1", "acme")
    assert await bench.admin_kek("m1", "acme")


async def test_each_call_to_a_provider_is_told_and_no_local_one() -> None:
    told: list[KekDerived] = []

    async def on_derived(derived: KekDerived) -> None:
        told.append(derived)

    bench = Bench(on_derived=on_derived)
    await bench.keys.admin_kek("m1", "acme")
    assert told == [
        KekDerived("m1", "vault", "admin", "acme", "req-1"),
        KekDerived("m1", "vault", "admin", "acme", "req-2"),
    ]
    local = OperatorKeys(LOCAL, on_derived=on_derived)
    await local.admin_kek("m1", "acme")
    assert len(told) == 2


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyturn_workers.keys.master_keys.derived_keks._MAX_KEKS", 50)
    keys = OperatorKeys.local(MASTER_KEYS)
    for number in range(200):
        await keys.admin_keks(f"p{number}")
    assert keys.cached_keks == 50 * len(MASTER_KEYS)
    assert await keys.admin_kek("m1", "p0")  # derived again when it is needed


async def test_closing_forgets_everything_and_closes_the_providers() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "acme")
    await bench.keys.aclose()
    assert bench.provider.closed
    assert bench.keys.cached_keks == 0


async def test_it_prints_no_key() -> None:
    keys = OperatorKeys.local(MASTER_KEYS)
    derived = await keys.admin_kek("m1", "acme")
    for secret in (*MASTER_KEYS.values(), derived):
        assert repr(secret.reveal())[2:-1] not in repr(keys)
        assert secret.reveal().hex() not in repr(keys)


# What a provider that is away, or another key in its place, must not do.


async def test_what_does_not_open_takes_no_kek_from_a_warm_project_while_the_provider_is_away() -> (
    None
):
    """An attacker who can write the bucket could otherwise make any warm project a cold one."""
    bench = Bench()
    await bench.keys.admin_keks("acme")
    await bench.keys.record_kek("m1", "acme")
    bench.provider.failure = KmsUnavailableError("down")
    bench.clock.now_s += 61

    def opening(keks: AdminKeks) -> None:
        keks.check_complete()
        raise NoUsableWrapError

    for _ in range(3):
        with pytest.raises(KmsUnavailableError):
            await bench.keys.open_with("acme", opening)
        with pytest.raises(KmsUnavailableError):
            await bench.keys.fresh_record_kek("m1", "acme")
    assert await bench.keys.admin_kek("m1", "acme") == admin_kek(MASTER.reveal(), "acme")
    assert await bench.keys.record_kek("m1", "acme") == record_kek(MASTER.reveal(), "acme")


async def test_a_wrong_kek_in_memory_gives_way_to_a_fresh_one() -> None:
    bench = Bench(seals=False)
    bench.provider.wrong = 1
    assert (await bench.keys.admin_keks("acme")).keks["m1"] == Secret(b"w" * 32)
    bench.clock.now_s += 61
    right = admin_kek(MASTER.reveal(), "acme")

    def opening(keks: AdminKeks) -> Secret:
        if keks.keks["m1"] != right:
            raise NoUsableWrapError
        return keks.keks["m1"]

    assert await bench.keys.open_with("acme", opening) == right
    assert (await bench.keys.admin_keks("acme")).keks["m1"] == right


async def test_another_key_in_the_place_of_the_checked_one_derives_nothing_new() -> None:
    """A key that is deleted and created again under its name is another key."""

    async def check(_name: str, _kek: Secret) -> bool:
        return True

    bench = Bench(check=check)
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.master_key = Secret(b"o" * 32)
    bench.clock.now_s += 61
    with pytest.raises(UnknownMasterKeyError, match="has changed since it was checked"):
        await bench.keys.admin_kek("m1", "cold")
    assert await bench.keys.admin_kek("m1", "warm") == admin_kek(MASTER.reveal(), "warm")
    keks = await bench.keys.admin_keks("cold")
    assert (keks.keks, keks.wrong) == ({}, frozenset({"m1"}))
    with pytest.raises(UnknownMasterKeyError):
        keks.check_complete()
    with pytest.raises(UnknownMasterKeyError):  # and no genuine record is called forged
        await bench.keys.fresh_record_kek("m1", "warm") or await bench.keys.record_kek("m1", "warm")
    bench.provider.master_key = MASTER
    bench.clock.now_s += 61
    assert await bench.keys.admin_kek("m1", "cold") == admin_kek(MASTER.reveal(), "cold")


async def test_after_a_refusal_a_kek_does_not_come_back_when_the_provider_is_away() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure = KmsRefusedError("revoked")
    bench.clock.now_s += 100
    with pytest.raises(KmsRefusedError):
        await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure = KmsUnavailableError("cut off")
    bench.clock.now_s += 60
    with pytest.raises(KmsUnavailableError):
        await bench.keys.admin_kek("m1", "warm")
    assert bench.keys.cached_keks == 0


async def test_after_a_refusal_the_purge_does_not_wait_for_the_hard_end() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "idle")
    bench.provider.failure = KmsRefusedError("revoked")
    bench.clock.now_s += 100
    with pytest.raises(KmsRefusedError):
        await bench.keys.admin_kek("m1", "other")
    bench.keys.purge()
    assert bench.keys.cached_keks == 0


async def test_who_holds_copies_hears_of_each_kek_that_is_forgotten() -> None:
    bench = Bench()
    forgotten: list[str] = []
    bench.keys.when_forgotten(forgotten.append)
    await bench.keys.record_kek("m1", "other")
    await bench.keys.admin_kek("m1", "acme")
    bench.clock.now_s += 100
    bench.keys.purge()
    assert bench.keys.cached_keks == 0
    assert forgotten == ["acme"]


async def test_without_a_known_text_a_reader_checks_again() -> None:
    """What was there before the first worker started proves nothing about the key."""
    checked: list[Secret] = []

    async def check(_name: str, kek: Secret) -> bool:
        checked.append(kek)
        return len(checked) > 1

    bench = Bench(check=check, seals=False)
    bench.provider.master_key = Secret(b"o" * 32)
    await bench.keys.admin_kek("m1", "a")
    bench.provider.master_key = MASTER  # put right
    bench.clock.now_s += 11
    assert await bench.keys.admin_kek("m1", "b") == admin_kek(MASTER.reveal(), "b")
    assert checked[1] == record_kek(MASTER.reveal(), RESERVED_PROJECT)
    bench.clock.now_s += 11
    await bench.keys.admin_kek("m1", "c")
    assert len(checked) == 2


async def test_what_opens_under_a_kek_in_memory_waits_for_no_other_provider() -> None:
    """An old master key's provider that hangs would otherwise delay every object that is read."""
    bench, hung = Bench(), FakeProvider(held=asyncio.Event())
    keys = OperatorKeys({"m1": bench.provider, "old": hung}, limits=LIMITS, clock_s=bench.clock)
    right = await keys.admin_kek("m1", "acme")

    def opening(keks: AdminKeks) -> Secret:
        assert keks.unavailable == {"old"}
        return keks.require("m1")

    async with asyncio.timeout(1):
        assert await keys.open_with("acme", opening) == right
    assert hung.total == 0  # and it costs nothing


async def test_what_opens_under_none_in_memory_is_tried_under_all_others() -> None:
    bench, other = Bench(), FakeProvider()
    keys = OperatorKeys({"m1": bench.provider, "m2": other}, limits=LIMITS, clock_s=bench.clock)
    await keys.admin_kek("m1", "acme")

    def opening(keks: AdminKeks) -> Secret:
        if "m2" not in keks.keks:
            keks.check_complete()
            raise NoUsableWrapError
        return keks.keks["m2"]

    assert await keys.open_with("acme", opening) == admin_kek(MASTER.reveal(), "acme")


async def test_a_warm_project_does_not_wait_for_the_probe_of_a_provider_that_hangs() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure = KmsUnavailableError("down")
    bench.clock.now_s += 150
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure, bench.provider.held = None, asyncio.Event()
    bench.clock.now_s += 60
    async with asyncio.timeout(1):
        await bench.keys.admin_kek("m1", "warm")
        assert bench.keys.touch("m1", "warm")
    await bench.settle()
    assert bench.provider.at_once == 1  # the probe
    bench.provider.held.set()
    await bench.settle()
    bench.provider.failure = KmsRefusedError("revoked")
    bench.clock.now_s += 100
    with pytest.raises(KmsRefusedError):
        await bench.keys.admin_kek("m1", "warm")


async def test_a_provider_that_refuses_after_an_outage_ends_the_keks_that_outlived_it() -> None:
    bench = Bench()
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure = KmsUnavailableError("down")
    bench.clock.now_s += 150
    await bench.keys.admin_kek("m1", "warm")
    bench.provider.failure = KmsRefusedError("revoked")
    bench.clock.now_s += 60
    await bench.keys.admin_kek("m1", "warm")
    await bench.settle()
    with pytest.raises(KmsRefusedError):
        await bench.keys.admin_kek("m1", "warm")
    assert bench.keys.cached_keks == 0


async def test_one_wrong_answer_to_a_reader_makes_no_object_corrupt() -> None:
    bench = Bench(seals=False)
    right = admin_kek(MASTER.reveal(), "acme")
    tries = 0

    def opening(keks: AdminKeks) -> str:
        nonlocal tries
        tries += 1
        if keks.keks.get("m1") != right:
            raise NoUsableWrapError
        return "opened"

    bench.provider.wrong = 1
    await bench.keys.admin_kek("m1", "acme")
    assert await bench.keys.open_with("acme", opening) == "opened"
    calls, tries = bench.provider.total, 0

    def corrupt(_keks: AdminKeks) -> None:
        raise NoUsableWrapError

    for _ in range(5):
        with pytest.raises(NoUsableWrapError):
            await bench.keys.open_with("acme", corrupt)
    # The right one was derived once, and is confirmed now: a corrupt object costs no more calls.
    assert bench.provider.total == calls + 1


# A project's admin KEKs as a value.


def test_the_label_leads_and_each_key_comes_once() -> None:
    assert list(KEKS.in_order(first="m2")) == [("m2", TWO), ("m1", ONE)]
    assert list(KEKS.in_order()) == [("m1", ONE), ("m2", TWO)]
    assert list(KEKS.in_order(first="gone")) == [("m1", ONE), ("m2", TWO)]


def test_a_key_that_is_away_is_not_an_unknown_one() -> None:
    assert KEKS.require("m1") == ONE
    with pytest.raises(KmsUnavailableError, match="m3"):
        KEKS.require("m3")
    with pytest.raises(UnknownMasterKeyError, match="m9"):
        KEKS.require("m9")


def test_nothing_final_is_said_while_a_key_is_away() -> None:
    with pytest.raises(KmsUnavailableError, match="m3"):
        KEKS.check_complete()
    AdminKeks("acme", {"m1": ONE}).check_complete()


def test_admin_keks_print_no_key() -> None:
    assert "1111" not in repr(KEKS)
