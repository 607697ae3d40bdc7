"""Sweeps of projects with customer keys: who waits, who fails, and what a clean end shows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import pytest

from keyturn.crypto import (
    Secret,
    composite_kek,
    customer_secret_id,
    new_customer_secret,
    new_dek,
    to_base64,
    wrap_dek,
)
from keyturn.errors import CustomerKeyRefusedError, CustomerKeyUnavailableError
from keyturn.evidence import parse as parse_evidence
from keyturn.identifiers import evidence_prefix, object_s3_key
from keyturn.metadata import COBBLESTONE, Wraps, parse
from keyturn.progress import Progress, describe
from keyturn_workers.core.customer_keys import NO_SECRETS
from keyturn_workers.core.keyring import retire_old_keys
from keyturn_workers.core.lost_keyring import lost_generations
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.core.sweep_progress import progress_of
from keyturn_workers.core.sweep_record import Failure
from keyturn_workers.core.sweep_transitions import (
    PART_KEY_WAIT,
    begin_round,
    find_origin,
    open_origins,
    with_key_wait,
)
from keyturn_workers.core.wraps import try_wrap
from keyturn_workers.pipeline.sweep.page import _SECRETS_FOR_S
from tests.unit.keyturn_workers.factories import (
    MASTER_KEYS,
    keyring,
    rotated,
    turned_to,
)
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    LATER_ID,
    NOW,
    OTHER_ID,
    ROUND_ID,
    SWEEP,
    SWEEP_ID,
    origin,
    record,
)
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import MAX_WAIT, Page, Sweeping
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import desired_state
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from keyturn.crypto import Role
    from keyturn_workers.core.customer_keys import CustomerSecrets
    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.sweep_record import Origin

_T = TypeVar("_T")

A: Final = new_customer_secret()
B: Final = new_customer_secret()
A_ID: Final = customer_secret_id(A)
B_ID: Final = customer_secret_id(B)
FIRST: Final = keyring()
WITH_A: Final = turned_to(FIRST, A, "a")
WITH_B: Final = turned_to(WITH_A, B, "b")
REFUSED: Final = CustomerKeyRefusedError.code
UNAVAILABLE: Final = CustomerKeyUnavailableError.code


def held() -> HeldCustomerKeys:
    return HeldCustomerKeys(A, B)


def sweeping(ring: Keyring, turn: Callable[[Keyring], Keyring], **more: Any) -> Sweeping:
    return Sweeping(ring=ring, customer_keys=held(), turn=turn, **more)


def to_a(**more: Any) -> Sweeping:
    """Objects without a customer key, and a rotation to one."""
    return sweeping(FIRST, lambda ring: turned_to(ring, A, "a"), **more)


def to_b(**more: Any) -> Sweeping:
    """Objects under one customer key, and a rotation to another one."""
    return sweeping(WITH_A, lambda ring: turned_to(ring, B, "b"), **more)


async def wraps_of(on: Sweeping | Page, key: str) -> Wraps:
    wraps = parse((await on.storage.head(object_s3_key("acme", key))).metadata)
    assert isinstance(wraps, Wraps)
    return wraps


# From a request to its end.


def _refusing() -> MemoryStorage:
    return MemoryStorage(capabilities=Capabilities(late_writes_refused=True))


@pytest.mark.parametrize(
    ("on", "asked", "secret_id", "kept", "former"),
    [
        (to_a(storage=_refusing()), {A_ID}, A_ID, {A_ID}, []),
        (to_b(storage=_refusing()), {A_ID, B_ID}, B_ID, {B_ID}, [A_ID]),
        (to_b(), {A_ID, B_ID}, B_ID, {A_ID, B_ID}, []),
    ],
    ids=["to a first key", "to another key", "and the storage accepts late writes"],
)
async def test_a_clean_end_shows_that_every_wrap_needs_the_new_secret(
    on: Sweeping, asked: set[str], secret_id: str, kept: set[str], former: list[str]
) -> None:
    """A former secret is asked for only where objects need it, and cleared with the former keys.

    Not where a late copy may still arrive, whose wraps need that secret.
    """
    ended = await _finished(on)
    assert ended.end is not None
    assert (ended.end.clean, ended.end.counts.rewrapped) == (True, 3)
    assert set(on.customer_keys.asked) == asked
    ring = await on.keyring()
    assert not ring.has_old_keks
    assert {key.secret_id for key in ring.customer_keys.values()} == kept
    (listed,) = [row.key async for row in on.storage.list(evidence_prefix("acme"))]
    proof = parse_evidence((await on.storage.read(listed))[1]).proof
    assert [key.secret_id for key in proof.former_customer_keys] == former
    desired = desired_state(ring, MASTER_KEYS)
    held_only = replace(ring.secrets, held=on.customer_keys.secrets)
    for key in on.keys:
        wraps = await wraps_of(on, key)
        assert wraps.secret_id == secret_id
        for secrets, opens in ((NO_SECRETS, False), (ring.secrets, False), (held_only, True)):
            opened = try_wrap(
                wraps, "admin", key, "acme", desired.admin_kek, (wraps.generation,), secrets
            )
            assert (opened is not None) is opens


async def _finished(on: Sweeping) -> Origin:
    rotation = on.rotation()
    await on.start(rotation)
    return await on.finish(rotation)


async def test_a_sweep_says_that_it_waits_and_goes_on_once_the_key_is_back() -> None:
    on = to_a()
    on.customer_keys.refused.add("kms/a")
    rotation = on.rotation()
    await on.start(rotation)
    waiting = await on.deliver_until(lambda found: found.idle_steps > 1)
    assert progress_of(waiting, rotation).waits_for_key == REFUSED
    assert not on.messages.pages()
    on.customer_keys.refused.clear()
    ended = await on.finish(rotation)
    assert ended.end is not None
    assert ended.end.clean
    told = [each.progress for each in _progressed(on) if each.progress is not None]
    assert [each.waits_for_key for each in told if each.phase != "proving"][:2] == [REFUSED, None]
    text = describe(Progress(phase="rewrapping", done=1, waits_for_key=REFUSED), on.storage.now)
    assert text == "rewrapping 1, waiting for the customer key (customer_key_refused)"


def _progressed(on: Sweeping) -> list[Any]:
    published = cast("list[Any]", on.messages.published)
    return [each for each in published if each.type == "sweep.progressed"]


async def test_objects_that_need_a_refused_former_secret_fail_alone() -> None:
    on = to_b()
    on.plant("new")  # at the state that the rotation asks for
    on.customer_keys.refused.add("kms/a")
    ended = await _finished(on)
    assert ended.end is not None
    assert (ended.end.clean, ended.end.counts.current, ended.end.counts.failed) == (False, 1, 3)
    found = [
        (each.key, each.code)
        async for s3_key in on.store.failure_records("acme", str(ended.end.round_id))
        for each in await on.store.read_failures("acme", s3_key)
    ]
    assert sorted(found) == [(key, REFUSED) for key in on.keys]
    assert (await on.keyring()).customer_keys.keys() == {2, 3}
    on.customer_keys.refused.clear()
    await on.start(SWEEP)
    again = await on.finish(SWEEP)
    assert again.end is not None
    assert again.end.clean


async def test_what_waits_for_longer_than_a_request_lives_has_failed() -> None:
    on = to_a()
    on.customer_keys.away.add("kms/a")
    rotation = replace(on.rotation(), added_at=on.storage.now)
    await on.start(rotation)
    await on.deliver_until(lambda found: found.key_wait is not None)
    on.storage.advance(MAX_WAIT.total_seconds() - 60)
    await on.deliver()
    assert open_origins(await on.record())
    on.storage.advance(120)
    ended = await on.finish(rotation)
    assert ended.end is not None
    assert (ended.end.code, ended.status) == (UNAVAILABLE, "failed")
    assert on.messages.types()[-1] == "rotation.failed"
    on.customer_keys.away.clear()
    await on.start(rotation)
    repeated = await on.finish(rotation)
    assert repeated.end is not None
    assert repeated.end.clean


async def test_a_part_of_a_sweep_of_all_fails_within_minutes_and_the_others_go_on() -> None:
    on = to_a()
    on.customer_keys.refused.add("kms/a")
    part = replace(origin("part", OTHER_ID), walk_id=LATER_ID, added_at=on.storage.now)
    await on.start(part)
    await on.start(SWEEP)
    begun = on.storage.elapsed_s()
    left = await on.deliver_until(lambda found: find_origin(found, part.name) is None)
    assert on.storage.elapsed_s() - begun < 300
    assert [each.name for each in open_origins(left)] == [SWEEP.name]
    end = await on.store.read_part_end(LATER_ID, "acme")
    assert end is not None
    assert (end.code, end.clean, end.counts.failed) == (REFUSED, False, 1)
    on.customer_keys.refused.clear()
    swept = await on.finish()
    assert swept.end is not None
    assert swept.end.clean


# The record, step by step.

_PROBLEM: Final = CustomerKeyRefusedError("disabled")
_PART: Final = replace(origin("part", OTHER_ID), walk_id=LATER_ID)
_LATE: Final = replace(origin("sweep", LATER_ID), added_at=NOW + timedelta(days=6))


@pytest.mark.parametrize(
    ("waited", "still_open"),
    [
        (timedelta(0), {SWEEP_ID, OTHER_ID, LATER_ID}),
        (PART_KEY_WAIT, {SWEEP_ID, OTHER_ID, LATER_ID}),
        (PART_KEY_WAIT + timedelta(seconds=1), {SWEEP_ID, LATER_ID}),
        (MAX_WAIT, {SWEEP_ID, LATER_ID}),
        (MAX_WAIT + timedelta(seconds=1), {LATER_ID}),
        (MAX_WAIT + timedelta(days=7), set()),
    ],
)
def test_each_request_waits_for_a_time_of_its_own(waited: timedelta, still_open: set[str]) -> None:
    begun = begin_round(record(SWEEP, _PART), ROUND_ID)
    begun = replace(begun, origins=(*begun.origins, _LATE))
    first = with_key_wait(begun, _PROBLEM, NOW, MAX_WAIT)
    after = with_key_wait(first, _PROBLEM, NOW + waited, MAX_WAIT)
    assert {each.id for each in open_origins(after)} == still_open
    assert (after.round is not None) is (SWEEP_ID in still_open)
    assert (after.key_wait is not None) is bool(still_open)
    for each in after.origins:
        assert each.end is None or (each.end.code, each.end.failed_at_step) == (REFUSED, 3)


def test_a_wait_ends_with_the_secret_and_begins_anew() -> None:
    first = with_key_wait(record(SWEEP), _PROBLEM, NOW, MAX_WAIT)
    back = with_key_wait(first, None, NOW + timedelta(days=6), MAX_WAIT)
    assert back.key_wait is None
    again = with_key_wait(back, _PROBLEM, NOW + timedelta(days=8), MAX_WAIT)
    assert open_origins(again)
    # A clock that went back does not make the wait longer.
    earlier = with_key_wait(again, _PROBLEM, NOW, MAX_WAIT)
    assert earlier.key_wait is not None
    assert earlier.key_wait.since == NOW


# Pages.


@pytest.mark.parametrize(("where", "code"), [("refused", REFUSED), ("away", UNAVAILABLE)])
async def test_a_page_without_the_current_secret_reads_no_object(where: str, code: str) -> None:
    page = Page(ring=WITH_A, customer_keys=held())
    page.plant("a")
    getattr(page.customer_keys, where).add("kms/a")
    with pytest.raises((CustomerKeyRefusedError, CustomerKeyUnavailableError)) as raised:
        await page.process()
    assert raised.value.code == code
    assert page.storage.calls["read_start"] == 0


async def test_a_former_secret_is_asked_for_once_for_a_page() -> None:
    page = Page(ring=WITH_A, customer_keys=held())
    keys = [f"{number:02}" for number in range(20)]
    page.plant(*keys)
    page.write_keyring(WITH_B)
    page.plant("new")
    result = await page.process()
    assert (result.counts.rewrapped, result.failures) == (20, ())
    assert page.customer_keys.asked.count(A_ID) == 1
    page.customer_keys.asked.clear()
    assert (await page.process()).counts.current == 21
    assert page.customer_keys.asked == [B_ID]


async def test_a_page_keeps_each_former_secret_that_its_objects_needed() -> None:
    third = new_customer_secret()
    page = Page(ring=WITH_A, customer_keys=HeldCustomerKeys(A, B, third))
    page.plant("a", "b")
    page.write_keyring(WITH_B)
    page.plant("c", "d")
    page.write_keyring(turned_to(WITH_B, third, "c"))
    async with asyncio.timeout(10):
        result = await page.process()
    assert (result.counts.rewrapped, result.failures) == (4, ())
    asked = page.customer_keys.asked
    assert [asked.count(each) for each in (A_ID, B_ID)] == [1, 1]


@pytest.mark.parametrize("is_refused", [True, False], ids=["refused", "given again"])
async def test_a_page_uses_no_secret_that_the_process_had_to_forget(*, is_refused: bool) -> None:
    page = Page(ring=WITH_A, customer_keys=held(), concurrency=1)
    page.plant("a", "b")
    page.write_keyring(WITH_B)

    async def wait() -> None:
        page.storage.advance(_SECRETS_FOR_S)
        page.customer_keys.refused |= {"kms/b"} if is_refused else set()
        page.customer_keys.asked.clear()

    page.storage.before_next("copy_onto_itself", wait)
    if is_refused:
        with pytest.raises(CustomerKeyRefusedError):
            await page.process()
        assert page.storage.calls["copy_onto_itself"] == 1
    else:
        assert (await page.process()).counts.rewrapped == 2
    assert set(page.customer_keys.asked) == {B_ID}


@dataclass
class _Slow(HeldCustomerKeys):
    """A store that gives a former secret only once it may."""

    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        super().__init__(A, B)

    async def open_with(
        self, keyring: Keyring, opening: Callable[[CustomerSecrets], Awaitable[_T]]
    ) -> _T:
        await self.may_answer.wait()
        return await super().open_with(keyring, opening)


async def test_no_slot_is_held_while_a_store_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = _Slow()
    page = Page(ring=WITH_A, customer_keys=slow, concurrency=1)
    page.plant("a")
    page.write_keyring(WITH_B)
    page.plant("b")
    read_start = page.storage.read_start

    async def answered(key: str, *arguments: Any, **more: Any) -> Any:
        if key == object_s3_key("acme", "b"):
            slow.may_answer.set()
        return await read_start(key, *arguments, **more)

    monkeypatch.setattr(page.storage, "read_start", answered)
    async with asyncio.timeout(10):
        result = await page.process()
    assert (result.counts.rewrapped, result.counts.objects) == (1, 2)


@pytest.mark.parametrize("refused", [False, True])
async def test_a_page_that_meets_a_rotation_to_a_customer_key_asks_for_it(
    monkeypatch: pytest.MonkeyPatch, *, refused: bool
) -> None:
    """What the page knows is of an earlier keyring; nothing is written by that."""
    page = Page(customer_keys=held())
    page.plant("a", "b")
    read_start = page.storage.read_start

    async def answered(*arguments: Any, **more: Any) -> Any:
        if page.ring.current.generation == 1:
            page.write_keyring(turned_to(page.ring, A, "a"))
        return await read_start(*arguments, **more)

    monkeypatch.setattr(page.storage, "read_start", answered)
    if refused:
        page.customer_keys.refused.add("kms/a")
        with pytest.raises(CustomerKeyRefusedError):
            await page.process()
        assert (await wraps_of(page, "a")).generation == 1
        return
    result = await page.process()
    assert (result.state, result.counts.rewrapped) == (None, 2)
    assert (await wraps_of(page, "a")).secret_id == A_ID


@pytest.mark.parametrize("superseded", [True, False])
async def test_an_older_version_under_a_refused_secret_is_removed_or_named(
    *, superseded: bool
) -> None:
    page = Page(MemoryStorage(versioned=True), WITH_A, customer_keys=held())
    page.plant("a")
    page.write_keyring(WITH_B)
    if superseded:
        page.plant("a")
    else:
        await page.storage.delete(object_s3_key("acme", "a"))
    page.customer_keys.refused.add("kms/a")
    result = await page.process()
    failures = () if superseded else (Failure("a", REFUSED),)
    assert (result.failures, result.counts.noncurrent_stale) == (failures, len(failures))
    assert result.changed == int(superseded)


# Wraps that are hidden in what a rewrap keeps.


def _wrap(role: Role, generation: int, kek: Secret, secret: Secret | None) -> str:
    if secret is not None:
        kek = composite_kek(kek, secret, role, "acme", customer_secret_id(secret))
    wrapped = wrap_dek(
        kek,
        role,
        algorithm=COBBLESTONE,
        project="acme",
        object_key="a",
        generation=generation,
        dek=new_dek(),
    )
    return to_base64(wrapped)


_ADMIN: Final = desired_state(WITH_B, MASTER_KEYS).admin_kek
_OTHER_ADMIN: Final = desired_state(replace(WITH_B, master_key="m2"), MASTER_KEYS).admin_kek
_USER: Final = desired_state(WITH_B, MASTER_KEYS).user_kek
_CLEARED: Final = turned_to(retire_old_keys(WITH_A), B, "b")
# The keyring of generations 1 and 2 was removed, and only its customer key is known.
_THIRD: Final = replace(WITH_A.current, generation=3)
_ADOPTED: Final = replace(
    WITH_A,
    current=_THIRD,
    history=lost_generations(WITH_A.customer_keys, _THIRD, None),
    unproven=True,
)
_ADOPTED_TO_B: Final = replace(
    _ADOPTED, current=replace(_THIRD, customer_key=WITH_B.current.customer_key)
)


@pytest.mark.parametrize(
    ("ring", "hidden", "is_found"),
    [
        (WITH_A, _wrap("admin", 1, _ADMIN, None), True),
        (WITH_A, _wrap("user", 1, _USER, None), True),
        (WITH_A, _wrap("admin", 2, _OTHER_ADMIN, A), True),
        (WITH_A, _wrap("admin", 2, _ADMIN, A), False),  # as every object has it
        (WITH_B, _wrap("admin", 1, _ADMIN, None), True),
        (WITH_B, _wrap("admin", 2, _ADMIN, A), True),
        (WITH_B, _wrap("user", 2, _USER, A), True),
        (WITH_B, _wrap("admin", 3, _ADMIN, B), False),
        (WITH_B, _wrap("admin", 2, _ADMIN, new_customer_secret()), False),
        (_CLEARED, _wrap("user", 1, _USER, None), True),
        (_CLEARED, _wrap("admin", 1, _ADMIN, None), True),
        (retire_old_keys(WITH_A), _wrap("admin", 1, _ADMIN, None), False),  # put there afterwards
        (rotated(FIRST), _wrap("admin", 1, _ADMIN, None), False),  # it needs no customer key
        (_ADOPTED, _wrap("admin", 1, _ADMIN, None), True),
        (_ADOPTED, _wrap("user", 1, _USER, None), True),
        (_ADOPTED, _wrap("admin", 2, _ADMIN, A), False),
        (_ADOPTED_TO_B, _wrap("user", 2, _USER, A), True),
        (_ADOPTED_TO_B, _wrap("admin", 2, _ADMIN, A), True),
        (retire_old_keys(_ADOPTED), _wrap("admin", 1, _ADMIN, None), False),
    ],
)
async def test_a_hidden_wrap_without_the_secret_that_all_must_need_has_failed(
    ring: Keyring, hidden: str, *, is_found: bool
) -> None:
    result = await _searched(ring, hidden)
    assert result == ((Failure("a", "hidden_wrap"),) if is_found else ())


async def _searched(
    ring: Keyring, hidden: str, *, refused: bool = False, away: bool = False
) -> tuple[Failure, ...]:
    page = Page(ring=ring, customer_keys=held())
    page.plant("a")
    head, body = await page.storage.read("acme/a")
    page.storage.plant("acme/a", body, Headers({**head.metadata, "note": hidden}))
    page.customer_keys.refused |= {"kms/a"} if refused else set()
    page.customer_keys.away |= {"kms/a"} if away else set()
    return (await page.process()).failures


async def test_the_search_does_without_a_refused_former_secret_and_waits_for_one_that_is_away() -> (
    None
):
    hidden = _wrap("admin", 1, _ADMIN, None)
    harmless = _wrap("admin", 3, _ADMIN, B)
    assert await _searched(WITH_B, hidden, refused=True) == (Failure("a", "hidden_wrap"),)
    assert await _searched(WITH_B, harmless, refused=True) == ()
    assert await _searched(WITH_B, harmless, away=True) == (Failure("a", UNAVAILABLE),)
    assert await _searched(WITH_B, "short", away=True) == ()
    page = Page(ring=WITH_B, customer_keys=held())
    page.plant("a")
    await page.process()
    assert A_ID not in page.customer_keys.asked
