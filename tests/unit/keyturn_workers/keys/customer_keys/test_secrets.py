"""How long a customer secret is kept, who waits for it, and whom a failing key costs (SPEC 2.6)."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from keyturn.errors import (
    CustomerKeyRefusedError,
    CustomerKeyUnavailableError,
    KmsUnavailableError,
    NotPermittedError,
)
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.keys.customer_keys import store_calls
from keyturn_workers.keys.customer_keys.secrets import IN_GATEWAYS, IN_WORKERS, WaitPolicy
from keyturn_workers.keys.master_keys.port import KmsRefusedError
from tests.unit.keyturn_workers.factories import keyring as plain_keyring
from tests.unit.keyturn_workers.keys.customer_keys.fakes import Bench, turned

if TYPE_CHECKING:
    from keyturn_workers.core.customer_keys import CustomerSecrets

DOWN: Final = KmsUnavailableError("down")
REFUSED: Final = KmsRefusedError("the key is disabled")
CACHE_S: Final = 300
ERRORS: Final = (CustomerKeyRefusedError, CustomerKeyUnavailableError)


async def _opens(bench: Bench, *rings: object) -> list[str]:
    """What becomes of each keyring: `ok`, or the code."""
    found = []
    for ring in rings:
        try:
            await bench.keys.unlock(ring)  # type: ignore[arg-type]  # a short signature
            found.append("ok")
        except ERRORS as exc:
            found.append(exc.code)
    return found


# How long a secret is kept.


async def test_a_project_without_a_customer_key_costs_nothing() -> None:
    bench = Bench()
    assert (await bench.keys.unlock(plain_keyring())).held == {}
    assert await bench.keys.open_with(plain_keyring(), _returns) == {}
    assert not bench.store.calls


async def _returns(secrets: CustomerSecrets) -> dict[str, object]:
    return dict(secrets.held)


async def test_a_secret_is_asked_for_once_and_then_in_memory() -> None:
    bench = Bench()
    ring = bench.keyring()
    for _ in range(3):
        secrets = await bench.keys.unlock(ring)
        secrets.require(ring.current.generation)
    assert bench.store.calls == {"a": 1}
    assert bench.observed == [("bao", "ok")]
    assert bench.keys.held == 1


async def test_a_secret_ends_at_its_age_from_the_sending_of_its_call() -> None:
    bench = Bench()
    ring = bench.keyring()
    held = bench.store.held["a"] = asyncio.Event()
    asking = asyncio.create_task(bench.keys.unlock(ring))
    await bench.store.came.wait()
    bench.clock.now_s += 4  # the answer takes its time
    held.set()
    await asking
    bench.store.failures["a"] = DOWN
    bench.clock.now_s += CACHE_S - 4 - 0.01
    assert await _opens(bench, ring) == ["ok"]
    bench.clock.now_s += 0.01
    assert await _opens(bench, ring) == ["customer_key_unavailable"]


async def test_an_idle_process_forgets_too() -> None:
    bench = Bench()
    await _opens(bench, bench.keyring())
    bench.clock.now_s += CACHE_S - 0.01
    bench.keys.purge()
    assert bench.keys.held == 1
    bench.clock.now_s += 0.01
    bench.keys.purge()
    assert bench.keys.held == 0


async def test_the_purge_goes_on_by_itself() -> None:
    bench = Bench()
    await _opens(bench, bench.keyring())
    bench.clock.now_s += CACHE_S
    purging = asyncio.create_task(bench.keys.purge_periodically())
    await bench.settle()
    purging.cancel()
    assert bench.keys.held == 0


async def test_in_use_it_is_asked_for_again_at_a_quarter_of_its_age() -> None:
    bench = Bench()
    ring = bench.keyring()
    for expected, step_s in ((1, 0), (1, 74.9), (2, 0.1), (2, 74.9), (3, 0.1)):
        bench.clock.now_s += step_s
        assert await _opens(bench, ring) == ["ok"]
        await bench.settle()
        assert bench.store.calls == {"a": expected}
    bench.clock.now_s += CACHE_S / 2
    await bench.settle()
    assert bench.store.calls == {"a": 3}  # unused, it is not asked for


async def test_use_does_not_wait_for_the_call_that_renews() -> None:
    bench = Bench()
    ring = bench.keyring()
    await _opens(bench, ring)
    bench.store.held["a"] = asyncio.Event()
    bench.clock.now_s += 80
    assert await _opens(bench, ring) == ["ok"]
    await bench.settle()
    assert bench.store.calls == {"a": 2}
    await bench.keys.aclose()


async def test_a_refusal_ends_it_at_once() -> None:
    bench = Bench()
    ring = bench.keyring()
    await _opens(bench, ring)
    bench.store.failures["a"] = REFUSED
    bench.clock.now_s += CACHE_S / 4
    assert await _opens(bench, ring) == ["ok"]  # asks in the background
    await bench.settle()
    assert bench.keys.held == 0
    assert await _opens(bench, ring) == ["customer_key_refused"]
    assert bench.observed[-1] == ("bao", "refused")


async def test_a_store_that_is_away_does_not_end_it_before_its_age() -> None:
    bench = Bench()
    ring = bench.keyring()
    await _opens(bench, ring)
    bench.store.failures["a"] = DOWN
    for _ in range(29):
        bench.clock.now_s += 10
        assert await _opens(bench, ring) == ["ok"]
        await bench.settle()
    bench.clock.now_s += 10
    assert await _opens(bench, ring) == ["customer_key_unavailable"]
    del bench.store.failures["a"]
    bench.clock.now_s += 20  # the longest pause
    assert await _opens(bench, ring) == ["ok"]


@pytest.mark.parametrize("purges", [False, True])
@pytest.mark.parametrize(("waited_s", "expected"), [(4.99, "ok"), (5, "customer_key_unavailable")])
async def test_its_time_also_ends_while_a_caller_waits_for_the_store(
    waited_s: float, expected: str, *, purges: bool
) -> None:
    """No use is more than 300 s after sending: not 305, by the longest wait of a gateway."""
    bench = Bench(IN_GATEWAYS)
    ring = bench.keyring()
    await bench.keys.unlock(ring)
    bench.clock.now_s += CACHE_S - 5
    bench.store.failures["a"] = DOWN
    held = bench.store.held["a"] = asyncio.Event()
    asking = asyncio.create_task(_opens(bench, ring))
    await bench.settle()
    bench.clock.now_s += waited_s
    if purges:
        bench.keys.purge()
    held.set()
    assert await asking == [expected]


async def test_the_wait_for_a_former_secret_lengthens_no_other_ones_time() -> None:
    bench = Bench(IN_GATEWAYS)
    ring = bench.keyring("a", "b")
    await bench.keys.unlock(ring)
    bench.store.failures["b"] = DOWN
    used: list[set[str]] = []

    async def opening(secrets: CustomerSecrets) -> None:
        used.append(set(secrets.held))
        secrets.require(2)

    for at_s in (*range(70, 300, 5), 298):  # in use, so nothing waits for the store that is away
        bench.clock.now_s = 1000 + at_s
        await bench.keys.unlock(ring)
        await bench.settle()
    held = bench.store.held["a"] = asyncio.Event()
    opened = asyncio.create_task(bench.keys.open_with(ring, opening))
    await bench.settle()
    bench.clock.now_s = 1000 + CACHE_S
    held.set()
    await opened
    assert used == [{_id(ring, 3)}, {_id(ring, 2)}]


async def test_another_secret_than_the_expected_one_is_a_refusal() -> None:
    bench = Bench()
    ring = bench.keyring()
    bench.store.wrong.add("a")
    assert await _opens(bench, ring) == ["customer_key_refused"]
    assert bench.keys.held == 0


# Who waits.


async def test_all_that_need_the_same_secret_share_one_call() -> None:
    bench = Bench(IN_GATEWAYS)
    ring = bench.keyring()
    held = bench.store.held["a"] = asyncio.Event()
    callers = [asyncio.create_task(bench.keys.unlock(ring)) for _ in range(8)]
    await bench.settle()
    callers[0].cancel()  # none of them can end it for the others
    held.set()
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert all(not isinstance(result, BaseException) for result in results[1:])
    assert bench.store.calls == {"a": 1}


async def test_in_a_worker_a_caller_waits_a_moment_and_the_call_goes_on() -> None:
    bench = Bench(WaitPolicy(wait_s=0.01, shuns_slow=True))
    ring = bench.keyring()
    held = bench.store.held["a"] = asyncio.Event()
    assert await _opens(bench, ring) == ["customer_key_unavailable"]
    held.set()
    await bench.settle()
    assert await _opens(bench, ring) == ["ok"]
    assert bench.store.calls == {"a": 1}


async def test_in_a_worker_no_one_waits_at_an_address_that_is_slow() -> None:
    bench = Bench(WaitPolicy(wait_s=0.25, shuns_slow=True))
    slow, other = bench.keyring("a"), bench.keyring("b", project="globex")
    held = bench.store.held["a"] = asyncio.Event()
    waiting = asyncio.create_task(_opens(bench, slow))
    await bench.store.came.wait()
    bench.clock.now_s += 0.25
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    assert await _opens(bench, other) == ["customer_key_unavailable"]
    assert loop.time() - began_s < 0.2
    await bench.settle()
    assert await _opens(bench, other) == ["ok"]  # its call was sent all the same
    held.set()
    await waiting


async def test_the_policies_are_those_of_the_specification() -> None:
    assert WaitPolicy(wait_s=0.25, callers=None, shuns_slow=True) == IN_WORKERS
    assert WaitPolicy(wait_s=5, callers=8, shuns_slow=False) == IN_GATEWAYS


async def test_at_a_gateway_the_ninth_caller_of_a_project_does_not_wait() -> None:
    bench = Bench(IN_GATEWAYS)
    ring, other = bench.keyring("a"), bench.keyring("b", project="globex")
    held = bench.store.held["a"] = asyncio.Event()
    callers = [asyncio.create_task(bench.keys.unlock(ring)) for _ in range(8)]
    await bench.settle()
    with pytest.raises(CustomerKeyUnavailableError, match="8 requests of the project wait"):
        await bench.keys.unlock(ring)
    assert await _opens(bench, other) == ["ok"]
    held.set()
    await asyncio.gather(*callers)
    assert await _opens(bench, ring) == ["ok"]


async def test_a_caller_has_one_time_for_all_the_secrets_that_it_needs() -> None:
    bench = Bench(WaitPolicy(wait_s=0.05))
    ring = bench.keyring("a", "b")
    bench.store.held["a"] = asyncio.Event()

    async def opening(secrets: CustomerSecrets) -> None:
        await asyncio.sleep(0.1)  # other work does not count
        secrets.require(2)

    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with pytest.raises(CustomerKeyUnavailableError, match=r"within 0\.05 s"):
        await bench.keys.open_with(ring, opening)
    assert loop.time() - began_s >= 0.2
    await bench.keys.aclose()


# Whom a failing key costs.


@pytest.mark.parametrize("failure", [DOWN, REFUSED])
async def test_a_key_that_fails_costs_no_other_key(failure: KmsUnavailableError) -> None:
    bench = Bench()
    bench.store.failures["a"] = failure
    bad = [bench.keyring("a", project=f"p-{n}") for n in range(20)]
    assert "ok" not in await _opens(bench, *bad)
    good = [bench.keyring(f"k-{n}", project="globex") for n in range(20)]
    assert await _opens(bench, *good) == ["ok"] * 20


async def test_a_secret_that_is_refused_costs_no_other_secret_of_its_key() -> None:
    """The key's policy may admit one project and not another."""
    bench = Bench()
    good, bad = bench.keyring("a"), bench.keyring("a", project="globex")
    bench.store.failures["a"] = REFUSED
    assert await _opens(bench, bad) == ["customer_key_refused"]
    del bench.store.failures["a"]
    assert await _opens(bench, good, bad) == ["ok", "customer_key_refused"]  # in its pause
    bench.clock.now_s += 2
    assert await _opens(bench, bad) == ["ok"]


async def test_a_key_that_is_away_is_asked_by_one_of_its_secrets_at_a_time() -> None:
    bench = Bench()
    bench.store.failures["a"] = DOWN
    rings = [bench.keyring("a", project=f"p-{n}") for n in range(20)]
    assert set(await _opens(bench, *rings)) == {"customer_key_unavailable"}
    assert bench.store.calls == {"a": 1}


async def test_an_address_where_no_key_answers_is_asked_once_for_each_key_in_a_pause() -> None:
    bench = Bench()
    rings = [bench.keyring(f"k-{n}", project="globex") for n in range(10)]
    bench.store.failures = {f"k-{n}": DOWN for n in range(10)}
    await _opens(bench, *rings)
    assert bench.store.calls.total() == 10  # each key once: the others might answer
    bench.clock.now_s += 1
    for _ in range(3):
        await _opens(bench, *rings)
    assert bench.store.calls.total() == 20
    bench.store.failures = {}
    bench.clock.now_s += 20
    assert await _opens(bench, *rings) == ["ok"] * 10


async def test_keys_that_stay_silent_do_not_hide_that_another_one_answers_again() -> None:
    """All of them were away for a moment. Their probes come before its own, each time."""
    bench = Bench()
    silent = [bench.keyring(f"k-{n}", project="globex") for n in range(20)]
    well = bench.keyring("a")
    bench.store.failures = dict.fromkeys(["a", *(f"k-{n}" for n in range(20))], DOWN)
    assert "ok" not in await _opens(bench, *silent, well)
    del bench.store.failures["a"]
    bench.clock.now_s += 1
    assert await _opens(bench, *silent, well) == ["customer_key_unavailable"] * 20 + ["ok"]


async def test_a_new_key_is_tried_at_an_address_where_the_others_are_silent() -> None:
    bench = Bench()
    bench.store.failures["a"] = DOWN
    assert await _opens(bench, bench.keyring("a")) == ["customer_key_unavailable"]
    assert await _opens(bench, bench.keyring("b")) == ["ok"]


async def test_keys_that_are_not_used_do_not_keep_an_address_open() -> None:
    bench = Bench()
    await _opens(bench, bench.keyring("a"))
    bench.clock.now_s += 1000
    bench.keys.purge()
    bench.store.failures["b"] = DOWN
    ring = bench.keyring("b")
    await _opens(bench, ring)
    bench.store.failures = {}
    assert await _opens(bench, ring) == ["customer_key_unavailable"]  # in the pause


async def test_a_key_has_four_calls_at_once_and_an_address_sixteen() -> None:
    bench = Bench(WaitPolicy(wait_s=1))
    for keys, most in ((["a"], 4), ([f"k-{n}" for n in range(8)], 16)):
        bench.store.most_at_once = 0
        held = asyncio.Event()
        bench.store.held = dict.fromkeys(keys, held)
        rings = [bench.keyring(key, project=f"p-{n}") for n in range(10) for key in keys]
        callers = [asyncio.create_task(bench.keys.unlock(ring)) for ring in rings]
        await bench.settle()
        assert bench.store.most_at_once == most
        held.set()
        await asyncio.gather(*callers)


async def test_slow_keys_do_not_fill_their_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four keys that hang have all of its sixteen calls, but only for a moment."""
    quick = replace(store_calls._AT_ADDRESS, slow_s=0.01)
    monkeypatch.setattr(store_calls, "_AT_ADDRESS", quick)
    bench = Bench(IN_GATEWAYS)
    held = asyncio.Event()
    bench.store.held = {f"k-{n}": held for n in range(4)}
    slow = [bench.keyring(key, project=f"p-{n}") for key in bench.store.held for n in range(5)]
    callers = [asyncio.create_task(bench.keys.unlock(ring)) for ring in slow]
    await bench.settle()
    assert bench.store.at_once == 16
    async with asyncio.timeout(4):
        assert await _opens(bench, bench.keyring("a")) == ["ok"]
    assert bench.store.at_once == 16  # they have four calls each for as long as they hang
    held.set()
    await asyncio.gather(*callers)
    assert bench.store.calls.total() == 21


async def test_the_time_of_a_call_begins_when_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while it waits for a place at its address."""
    monkeypatch.setattr(store_calls, "TIMEOUT_S", 0.01)
    monkeypatch.setattr(store_calls, "_AT_ADDRESS", replace(store_calls._AT_ADDRESS, slow_s=None))
    bench = Bench(IN_GATEWAYS)
    bench.store.held = {f"k-{n}": asyncio.Event() for n in range(4)}
    slow = [bench.keyring(key, project=f"p-{n}") for key in bench.store.held for n in range(4)]
    callers = [asyncio.create_task(_opens(bench, ring)) for ring in (*slow, bench.keyring("a"))]
    found = await asyncio.gather(*callers)
    assert bench.store.most_at_once == 16
    assert found == [["customer_key_unavailable"]] * 16 + [["ok"]]


async def test_a_call_without_an_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_calls, "TIMEOUT_S", 0.01)
    bench = Bench(IN_GATEWAYS)
    bench.store.held["a"] = asyncio.Event()
    with pytest.raises(CustomerKeyUnavailableError, match=r"bao/a: no response within 0\.01 s"):
        await bench.keys.unlock(bench.keyring())
    assert bench.observed == [("bao", "unavailable")]


# Former secrets.


async def test_a_former_secret_is_asked_for_only_where_it_is_needed() -> None:
    bench = Bench()
    ring = bench.keyring("a", "b")
    assert (await bench.keys.unlock(ring)).held.keys() == {_id(ring, 3)}
    assert bench.store.calls == {"b": 1}

    async def opening(secrets: CustomerSecrets) -> int:
        secrets.require(2)
        return len(secrets.held)

    assert await bench.keys.open_with(ring, opening) == 2
    assert bench.store.calls == {"a": 1, "b": 1}
    # In memory it is given at once, and asked for again only by what needs it.
    assert len((await bench.keys.unlock(ring)).held) == 2
    bench.clock.now_s += 80
    assert len((await bench.keys.unlock(ring)).held) == 1
    await bench.settle()
    assert bench.store.calls == {"a": 1, "b": 2}
    assert await bench.keys.open_with(ring, opening) == 2
    await bench.settle()
    assert bench.store.calls == {"a": 2, "b": 2}


@pytest.mark.parametrize(
    ("failure", "code"),
    [(REFUSED, "customer_key_refused"), (DOWN, "customer_key_unavailable")],
)
async def test_where_a_former_secret_fails_only_what_needs_it_does(
    failure: KmsUnavailableError, code: str
) -> None:
    bench = Bench()
    ring = bench.keyring("a", "b")
    bench.store.failures["a"] = failure

    async def old(secrets: CustomerSecrets) -> None:
        secrets.require(2)

    async def new(secrets: CustomerSecrets) -> None:
        secrets.require(3)

    with pytest.raises(ERRORS) as caught:
        await bench.keys.open_with(ring, old)
    assert caught.value.code == code
    await bench.keys.open_with(ring, new)


async def test_without_the_current_secret_nothing_is_opened() -> None:
    bench = Bench()
    bench.store.failures["b"] = REFUSED

    async def opening(_: CustomerSecrets) -> None:
        raise AssertionError("unreachable: it was called")

    with pytest.raises(CustomerKeyRefusedError):
        await bench.keys.open_with(bench.keyring("a", "b"), opening)


async def test_a_secret_that_the_keyring_lacks_is_not_asked_for_for_ever() -> None:
    bench = Bench()
    ring = bench.keyring("a")
    calls = []

    async def opening(secrets: CustomerSecrets) -> None:
        calls.append(secrets)
        replace(secrets, held={}).require(2)

    with pytest.raises(CustomerKeyUnavailableError):
        await bench.keys.open_with(ring, opening)
    assert len(calls) == 1


def _id(ring: object, generation: int) -> str:
    return ring.customer_keys[generation].secret_id  # type: ignore[attr-defined, no-any-return]  # a keyring


# The settings.


async def test_what_the_settings_do_not_give_waits_and_is_never_called() -> None:
    bench = Bench()
    rings = {
        "has no store gone": turned(
            plain_keyring(), 2, customer_key=bench.customer_key(store="gone")
        ),
        "does not give acme the key bao/other": bench.keyring("other"),
        "does not give another the key bao/a": bench.keyring("a", project="another"),
    }
    for text, ring in rings.items():
        with pytest.raises(CustomerKeyUnavailableError, match=text):
            await bench.keys.unlock(ring)
    assert not bench.store.calls


@pytest.mark.parametrize(
    ("project", "store", "key", "problem"),
    [
        ("acme", "bao", "other", "does not give acme the key bao/other"),
        ("acme", "bao", "k-/../x", "does not give acme the key bao/k-/../x"),
        ("acme", "bao2", "a", "has no store bao2 for acme; the project's stores: bao"),
        # What other projects have is not shown: not even that it exists.
        (
            "acme",
            "bao-of-globex",
            "a",
            "no store bao-of-globex for acme; the project's stores: bao",
        ),
        (
            "globex",
            "bao2",
            "a",
            "no store bao2 for globex; the project's stores: bao, bao-of-globex",
        ),
        ("another", "bao", "a", "has no store bao for another; the project's stores: none"),
    ],
)
async def test_a_request_for_another_store_or_key_is_not_permitted(
    project: str, store: str, key: str, problem: str
) -> None:
    bench = Bench()
    with pytest.raises(NotPermittedError) as caught:
        await bench.keys.create(project, KeyName(store, key))
    assert caught.value.detail.startswith("KEYTURN_CUSTOMER_KEY_STORES ")
    assert caught.value.detail.endswith(problem)
    assert not bench.store.calls


# New secrets.


async def test_a_new_secret_is_decrypted_before_it_is_returned() -> None:
    bench = Bench()
    made = await bench.keys.create("acme", KeyName("bao", "a"))
    assert bench.store.calls == {"a": 2}
    assert made.wrapped is not None
    assert made.is_secret(bench.store.secrets[made.wrapped])
    place = bench.store.places[made.wrapped]
    assert (place.deployment, place.project, place.secret_id) == ("rig", "acme", made.secret_id)
    ring = turned(plain_keyring(), 2, customer_key=made)
    assert await _opens(bench, ring) == ["ok"]


async def test_requests_at_the_same_time_get_a_new_secret_each() -> None:
    """Two generations with one secret would be one rotation to a customer key too few."""
    bench = Bench()
    name = KeyName("bao", "a")
    made = await asyncio.gather(*(bench.keys.create("acme", name) for _ in range(3)))
    assert len({each.secret_id for each in made}) == 3


async def test_a_new_secret_does_not_wait_for_another_customers_slow_key() -> None:
    """In a Region of AWS KMS, all customers' keys have one address."""
    bench = Bench()
    bench.store.held["a"] = asyncio.Event()
    slow = asyncio.create_task(bench.keys.create("acme", KeyName("bao", "a")))
    await bench.store.came.wait()
    bench.clock.now_s += 1
    made = await bench.keys.create("globex", KeyName("bao", "b"))
    assert bench.store.calls == {"a": 1, "b": 2}
    assert made.name == KeyName("bao", "b")
    bench.store.held["a"].set()
    await slow


@pytest.mark.parametrize("ends", ["ok", "customer_key_refused", "unused"])
async def test_while_its_key_is_slow_a_new_secret_is_found_at_the_next_attempt(ends: str) -> None:
    bench = Bench()
    name = KeyName("bao", "a")
    busy = bench.store.held["a"] = asyncio.Event()
    waiting = asyncio.create_task(_opens(bench, bench.keyring("a", project="globex")))
    await bench.store.came.wait()
    bench.clock.now_s += 0.25
    for _ in range(2):
        with pytest.raises(CustomerKeyUnavailableError, match="bao/a: it is slow"):
            await bench.keys.create("acme", name)
    if ends == "customer_key_refused":
        bench.store.failures["a"] = REFUSED
    busy.set()
    await bench.settle()
    await waiting
    calls = bench.store.calls["a"]
    if ends == "ok":
        made = await bench.keys.create("acme", name)
        assert bench.store.calls["a"] == calls == 3
        assert (await bench.keys.create("acme", name)).secret_id != made.secret_id
    elif ends == "unused":
        bench.clock.now_s += 120
        bench.keys.purge()
        await bench.keys.create("acme", name)
        assert bench.store.calls["a"] == calls + 2
    else:
        with pytest.raises(CustomerKeyRefusedError):
            await bench.keys.create("acme", name)
        bench.store.failures.clear()
        await bench.keys.create("acme", name)


@pytest.mark.parametrize("way", ["refused", "away", "wrong", "hanging"])
async def test_a_secret_that_does_not_come_back_is_not_returned(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    kind = CustomerKeyRefusedError if way in ("refused", "wrong") else CustomerKeyUnavailableError
    if way == "wrong":
        bench.store.wrong.add("a")
    elif way == "hanging":
        monkeypatch.setattr("keyturn_workers.keys.customer_keys.secrets.TIMEOUT_S", 0.01)
        bench.store.held["a"] = asyncio.Event()
    else:
        bench.store.failures["a"] = REFUSED if way == "refused" else DOWN
    with pytest.raises(kind):
        await bench.keys.create("acme", KeyName("bao", "a"))
    await bench.keys.aclose()


async def test_the_end_of_the_process_forgets_and_closes() -> None:
    bench = Bench()
    await _opens(bench, bench.keyring())
    bench.store.held["b"] = asyncio.Event()
    waiting = asyncio.create_task(bench.keys.unlock(bench.keyring("b")))
    await bench.settle()
    await bench.keys.aclose()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting
    assert bench.keys.held == 0
    assert bench.store.at_once == 0
    assert bench.store.closed


async def test_after_a_quiet_spell_a_refusal_counts_before_the_first_use() -> None:
    on = Bench(IN_GATEWAYS)
    ring = on.keyring()
    await on.keys.unlock(ring)
    on.store.failures["a"] = KmsRefusedError("disabled")
    on.clock.now_s += 250
    with pytest.raises(CustomerKeyRefusedError):
        await on.keys.unlock(ring)


async def test_after_a_quiet_spell_a_store_that_is_away_takes_nothing() -> None:
    on = Bench(IN_GATEWAYS)
    ring = on.keyring()
    await on.keys.unlock(ring)
    on.store.failures["a"] = KmsUnavailableError("no response")
    on.clock.now_s += 250
    assert (await on.keys.unlock(ring)).held
