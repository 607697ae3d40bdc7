"""Evidence in the bucket: built after the newest, found, restored, never replaced (SPEC 15.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.crypto import SigningKey
from keyturn.errors import StorageUnavailableError
from keyturn.evidence import MAX_EVIDENCE_BYTES, Evidence, parse, verify_chain
from keyturn.identifiers import evidence_prefix, evidence_s3_key
from keyturn_workers.storage import Headers
from keyturn_workers.sweep.plan import KeptEnvelope
from tests.unit.keyturn_workers.sweep.sweeping import (
    EVENT_KEY,
    OTHER_ID,
    REQUEST,
    SWEEP_ID,
    Sweeping,
)
from tests.unit.keyturn_workers.sweep.test_clean_end import PLAN

if TYPE_CHECKING:
    from keyturn_workers.keyring import Keyring
    from keyturn_workers.sweep import Plan

OLD_KEY = SigningKey.from_seed(bytes([1]) * 32)
NEW_KEY = SigningKey.from_seed(bytes([2]) * 32)
THIRD_ID = "2f6c9a0e-3333-4333-8333-333333333333"


def plan_of(sweep_id: str = SWEEP_ID, generation: int = 3) -> Plan:
    ask = replace(PLAN.ask, sweep_id=sweep_id)
    return replace(PLAN, ask=ask, state=replace(PLAN.state, generation=generation))


class Chain:
    """A project whose sweeps end one after the other, each by its own worker."""

    def __init__(self) -> None:
        self.on = Sweeping(keys=())
        self.ring: Keyring = self.on.ring
        self.chain: list[Evidence] = []

    async def build(self, plan: Plan, *keys: SigningKey) -> Evidence:
        log = self.on.evidence_log(*(keys or (EVENT_KEY,)))
        return parse(await log.build(plan, self.ring, late_writes_refused=True))

    async def end(self, plan: Plan, *keys: SigningKey, put: bool = True) -> Evidence:
        """The sweep ends; without `put` its worker dies just before that."""
        evidence = await self.build(plan, *keys)
        generation = max(self.ring.current.generation, plan.state.generation)
        current = replace(self.ring.current, generation=generation)
        self.ring = replace(self.ring, evidence=evidence.digest, current=current)
        self.chain.append(evidence)
        if put:
            await self.on.evidence_log(EVENT_KEY).publish(evidence)
        return evidence

    def verify(self, *keys: SigningKey) -> None:
        public = [key.verify_key() for key in keys or (EVENT_KEY,)]
        verify_chain([each.envelope for each in self.chain], public, newest=self.ring.evidence)

    @property
    def log(self) -> Any:
        return self.on.evidence_log(EVENT_KEY)

    def plant(self, s3_key: str, body: bytes = b"junk", **more: Any) -> None:
        self.on.storage.plant(s3_key, body, Headers({}), **more)

    async def stored(self, evidence: Evidence) -> bytes:
        return (await self.on.storage.read(place(evidence)))[1]


def place(evidence: Evidence) -> str:
    predicate = evidence.predicate
    return evidence_s3_key("acme", predicate.generation, predicate.sweep_id)


# Building.


async def test_each_evidence_follows_the_one_that_the_keyring_names() -> None:
    on = Chain()
    for sweep_id, generation in ((SWEEP_ID, 3), (OTHER_ID, 3), (SWEEP_ID, 12)):
        await on.end(plan_of(sweep_id, generation))
    on.verify()
    assert on.chain[0].predicate.previous is None
    assert on.on.storage.stored_keys()[:3] == [
        f"{evidence_prefix('acme')}12-{SWEEP_ID}.json",
        f"{evidence_prefix('acme')}3-{SWEEP_ID}.json",
        f"{evidence_prefix('acme')}3-{OTHER_ID}.json",
    ]


@pytest.mark.parametrize("held", [(NEW_KEY, OLD_KEY), (NEW_KEY,)])
async def test_the_key_that_another_follows_is_retired(held: tuple[SigningKey, ...]) -> None:
    on = Chain()
    await on.end(plan_of(SWEEP_ID), OLD_KEY)
    await on.end(plan_of(OTHER_ID), *held)
    newest = await on.end(plan_of(THIRD_ID), NEW_KEY)
    on.verify(OLD_KEY, NEW_KEY)
    (use,) = newest.predicate.event_keys
    assert (use.keyid, use.last, use.retired) == (OLD_KEY.id, on.chain[0].digest, True)


async def test_a_worker_that_holds_a_newer_key_than_the_first_signs_with_it() -> None:
    on = Chain()
    await on.end(plan_of(SWEEP_ID), OLD_KEY)
    await on.end(plan_of(OTHER_ID), NEW_KEY)
    assert (await on.end(plan_of(THIRD_ID), OLD_KEY, NEW_KEY)).key_id == NEW_KEY.id
    on.verify(OLD_KEY, NEW_KEY)


async def test_a_worker_whose_keys_are_all_retired_signs_nothing() -> None:
    on = Chain()
    await on.end(plan_of(SWEEP_ID), OLD_KEY)
    await on.end(plan_of(OTHER_ID), NEW_KEY)
    with pytest.raises(StorageUnavailableError, match="EVENT_KEY"):
        await on.build(plan_of(THIRD_ID), OLD_KEY)


async def test_a_worker_with_the_old_key_alone_never_retires_the_new_one() -> None:
    """While the event key is replaced, workers differ (SPEC 6.10).

    If the old key could sign once more, its worker would list the new one, which it does not hold,
    as retired: no worker that holds only the new one could end a sweep of the project any more.
    """
    on = Chain()
    await on.end(plan_of(SWEEP_ID), OLD_KEY)
    await on.end(plan_of(OTHER_ID), NEW_KEY, OLD_KEY)
    with pytest.raises(StorageUnavailableError, match="EVENT_KEY"):
        await on.build(plan_of(THIRD_ID), OLD_KEY)
    assert (await on.end(plan_of(THIRD_ID), OLD_KEY, NEW_KEY)).key_id == NEW_KEY.id
    assert (await on.end(plan_of(SWEEP_ID, 4), NEW_KEY)).key_id == NEW_KEY.id
    on.verify(OLD_KEY, NEW_KEY)


# The file of the one before.


async def test_a_file_that_a_worker_died_before_putting_is_restored_from_its_record() -> None:
    on = Chain()
    await on.on.start()
    lost = await on.end(plan_of(), put=False)
    stored = await on.on.stored()
    kept = replace(stored.plan, envelope=_kept(lost))
    assert await on.on.store.change(kept, stored.etag, stored.master_key)
    await on.end(plan_of(OTHER_ID))
    on.verify()
    assert await on.stored(lost) == lost.envelope


async def test_records_of_others_do_not_stand_in_the_way_of_it() -> None:
    on = Chain()
    await on.on.start()
    await on.on.start(replace(REQUEST, sweep_id=THIRD_ID))
    on.plant(f".keyturn/sweeps/{OTHER_ID}/acme/sweep.json")
    lost = await on.end(plan_of(), put=False)
    stored = await on.on.stored()
    kept = replace(stored.plan, envelope=_kept(lost))
    assert await on.on.store.change(kept, stored.etag, stored.master_key)
    await on.build(plan_of(OTHER_ID))
    assert await on.stored(lost) == lost.envelope


async def test_a_lost_file_leaves_a_gap_that_shows_and_stops_nothing() -> None:
    on = Chain()
    await on.end(plan_of())
    lost = await on.end(plan_of(OTHER_ID), put=False)
    after = await on.end(plan_of(THIRD_ID))
    assert after.predicate.previous == lost.digest
    assert place(lost) not in on.on.storage.stored_keys()


async def test_files_that_are_not_the_right_ones_are_passed_over() -> None:
    """By a bucket writer: junk, evidence under another name, evidence of another deployment."""
    on = Chain()
    first = await on.end(plan_of(), OLD_KEY)
    prefix = evidence_prefix("acme")
    foreign = on.on.evidence_log(EVENT_KEY)
    foreign._deployment = "other"
    body = await foreign.build(plan_of(OTHER_ID), on.on.ring, late_writes_refused=True)
    on.plant(f"{prefix}7-{OTHER_ID}.json", first.envelope)
    on.plant(f"{prefix}3-{OTHER_ID}.json", body)
    on.plant(f"{prefix}8-{OTHER_ID}.json", b" " * (MAX_EVIDENCE_BYTES + 1))
    on.plant(f"{prefix}9-{OTHER_ID}.json", archived=True)
    on.plant(f"{prefix}junk")
    ring = replace(on.ring, current=replace(on.ring.current, generation=12))
    assert [each.digest async for each in on.log._files(ring)] == [first.digest]
    (use,) = (await on.end(plan_of(THIRD_ID))).predicate.event_keys
    assert use.last == first.digest


async def test_the_newest_evidence_is_read_first_and_nothing_that_is_too_large() -> None:
    on = Chain()
    for number in range(1, 5):
        await on.end(plan_of(SWEEP_ID, number))
        on.on.storage.advance(1)
    await on.end(plan_of(OTHER_ID, 4))
    on.plant(f"{evidence_prefix('acme')}9-{SWEEP_ID}.json", b" " * (MAX_EVIDENCE_BYTES + 1))
    newest, lost = on.chain[-1], await on.build(plan_of(THIRD_ID, 4))
    reads: list[str] = []
    read = on.on.storage.read

    async def counted(key: str, **how: Any) -> Any:
        reads.append(key)
        return await read(key, **how)

    on.on.storage.read = counted  # type: ignore[method-assign]
    await on.build(plan_of(THIRD_ID, 4))
    assert reads == [place(newest)]
    reads.clear()
    assert not await on.log.is_chained(lost, on.ring)
    # Its own place, and the chain down to the generation before its own.
    assert reads == [place(lost), *(place(each) for each in (newest, *on.chain[-2:-4:-1]))]


# Putting.


@pytest.mark.parametrize("how", [{}, {"archived": True}])
async def test_what_is_in_the_place_of_evidence_is_replaced(how: dict[str, Any]) -> None:
    on = Chain()
    evidence = await on.end(plan_of(), put=False)
    on.plant(place(evidence), **how)
    await on.log.publish(evidence)
    assert await on.stored(evidence) == evidence.envelope


async def test_a_file_that_exists_is_not_written_again() -> None:
    on = Chain()
    evidence = await on.end(plan_of())
    on.on.storage.fail_next("put", AssertionError("it was written again"))
    await on.log.publish(evidence)


async def test_two_workers_put_the_same_file() -> None:
    on = Chain()
    evidence = await on.end(plan_of(), put=False)

    async def other() -> None:
        await on.log.publish(evidence)

    on.on.storage.before_next("put", other)
    await on.log.publish(evidence)
    assert await on.stored(evidence) == evidence.envelope


async def test_a_place_that_keeps_changing_is_tried_again_later() -> None:
    on = Chain()
    evidence = await on.end(plan_of(), put=False)

    async def changed() -> None:
        on.plant(place(evidence), on.on.storage.elapsed_s().hex().encode())

    for _ in range(20):
        on.on.storage.before_next("put", changed)
    with pytest.raises(StorageUnavailableError, match="kept changing"):
        await on.log.publish(evidence)


# What is in the chain.


async def test_evidence_is_in_the_chain_once_a_keyring_named_it() -> None:
    on = Chain()
    first = await on.end(plan_of())
    await on.end(plan_of(OTHER_ID))
    await on.end(plan_of(THIRD_ID, 4))
    for evidence in on.chain:
        assert await on.log.is_chained(evidence, on.ring)
    await on.on.storage.delete(place(first))
    assert await on.log.is_chained(first, on.ring)


async def test_evidence_of_an_earlier_project_of_the_same_name_is_not_its_own() -> None:
    """The bucket was emptied, the project enrolled again, and an old file put back."""
    on = Chain()
    first = await on.end(plan_of())
    assert await on.log.find_own(plan_of(), on.ring) == first
    plan = plan_of()
    again = replace(plan, state=replace(plan.state, kek_id="0" * 16))
    assert await on.log.find_own(again, replace(on.ring, evidence=None)) is None


async def test_evidence_that_lost_its_race_is_not_in_the_chain() -> None:
    on = Chain()
    lost = await on.build(plan_of())
    assert not await on.log.is_chained(lost, on.ring)
    await on.end(plan_of(OTHER_ID))
    await on.end(plan_of(THIRD_ID))
    assert not await on.log.is_chained(lost, on.ring)
    later = await on.build(plan_of(SWEEP_ID, 4))
    await on.end(plan_of(OTHER_ID, 4))
    assert not await on.log.is_chained(later, on.ring)


async def test_where_the_chain_has_a_gap_the_file_itself_says_so() -> None:
    on = Chain()
    first = await on.end(plan_of())
    await on.end(plan_of(OTHER_ID), put=False)
    await on.end(plan_of(THIRD_ID))
    assert await on.log.is_chained(first, on.ring)
    await on.on.storage.delete(place(first))
    assert not await on.log.is_chained(first, on.ring)


# A sweep whose record was removed, and that was requested again.


async def test_a_sweep_finds_its_own_evidence_in_the_chain() -> None:
    on = Chain()
    first = await on.end(plan_of(), OLD_KEY)
    assert await on.log.find_own(plan_of(), on.ring) == first
    await on.end(plan_of(OTHER_ID))
    assert await on.log.find_own(plan_of(), on.ring) == first
    assert await on.log.find_own(plan_of(SWEEP_ID, 4), on.ring) is None


async def test_where_the_chain_has_a_gap_a_sweep_knows_its_evidence_by_the_signature() -> None:
    on = Chain()
    first = await on.end(plan_of())
    await on.end(plan_of(OTHER_ID), put=False)
    await on.end(plan_of(THIRD_ID))
    assert await on.log.find_own(plan_of(), on.ring) == first


async def test_a_sweep_takes_nothing_that_was_planted_for_its_own() -> None:
    on = Chain()
    stranger = await on.build(plan_of(), OLD_KEY)
    elsewhere = await on.build(plan_of(OTHER_ID))
    s3_key = evidence_s3_key("acme", 3, SWEEP_ID)
    for body in (b"junk", stranger.envelope, elsewhere.envelope):
        on.plant(s3_key, body)
        assert await on.log.find_own(plan_of(), on.ring) is None


def _kept(evidence: Evidence) -> Any:

    return KeptEnvelope(evidence.envelope.decode(), PLAN.state)


async def test_names_of_generations_that_do_not_exist_yet_delay_no_end() -> None:
    on = Chain()
    await on.end(plan_of(SWEEP_ID))
    for number in range(50):
        name = f"{on.ring.current.generation + 1 + number}-{OTHER_ID}.json"
        on.plant(f"{evidence_prefix('acme')}{name}")
    reads: list[str] = []
    read = on.on.storage.read

    async def counted(key: str, **more: Any) -> Any:
        reads.append(key)
        return await read(key, **more)

    on.on.storage.read = counted  # type: ignore[method-assign]
    await on.build(plan_of(OTHER_ID))
    assert reads == [place(on.chain[0])]
