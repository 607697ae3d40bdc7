"""The steps of a sweep of one project: planned, proven, taken over, ended (SPEC 8.4 to 8.6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.errors import (
    CorruptObjectError,
    KeyringRolledBackError,
    NotFoundError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.evidence import Evidence, in_chain_order, parse, verify_chain
from keyturn.identifiers import (
    EVIDENCE_PREFIX,
    evidence_prefix,
    evidence_s3_key,
    keyring_s3_key,
)
from keyturn_workers.errors import RefusedError
from keyturn_workers.keyring import KeyringContradictedError
from keyturn_workers.storage import Capabilities, Headers
from keyturn_workers.sweep import progress, record_paths
from keyturn_workers.sweep.counts import Counts
from keyturn_workers.sweep.messages import SweepStep
from keyturn_workers.sweep.plan import PartResult
from keyturn_workers.testing.memory_storage import MemoryStorage
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring, rotated
from tests.unit.keyturn_workers.sweep.records import RESULT
from tests.unit.keyturn_workers.sweep.sweeping import (
    EVENT_KEY,
    LEASE_S,
    OTHER_ID,
    REQUEST,
    SWEEP_ID,
    Sweeping,
)
from tests.unit.keyturn_workers.sweep.test_clean_end import PLAN as EVIDENCE_PLAN
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.local_keys import parse_keyring

if TYPE_CHECKING:
    from keyturn_workers.sweep import Plan

LATER = replace(REQUEST, sweep_id=OTHER_ID, requested_at="2026-11-24T10:00:01Z")
ROTATION = replace(REQUEST, kind="rotation")


def _step(number: int, sweep_id: str = SWEEP_ID) -> SweepStep:
    return SweepStep(sweep_id=sweep_id, project="acme", step=number)


def _event(on: Sweeping, event_type: str) -> Any:
    (event,) = [each for each in on.messages.published if cast("Any", each).type == event_type]
    return event


# From the request to the end.


async def test_a_sweep_rewraps_every_object_and_ends_clean() -> None:
    on = Sweeping()
    await on.start()
    plan = await on.finish()
    assert (plan.status, plan.clean) == ("done", True)
    assert plan.counts == Counts(objects=3, current=3, rewrapped=3)
    end = _event(on, "sweep.completed")
    assert (end.sweep_id, end.clean, end.objects, end.request) == (SWEEP_ID, True, 3, "0" * 64)


async def test_a_clean_end_retires_the_earlier_keys() -> None:
    on = Sweeping()
    await on.start()
    assert on.ring.history[0].kek is not None
    await on.finish()
    after = (await on.keyrings.read_fresh("acme")).keyring
    assert [entry.kek for entry in after.history] == [None]


async def test_a_clean_end_leaves_one_version_of_the_keyring() -> None:
    on = Sweeping(MemoryStorage(versioned=True))
    await on.start()
    await on.finish()
    versions = [row async for row in on.storage.list_versions(keyring_s3_key("acme"))]
    assert len(versions) == 1


async def test_an_older_keyring_that_a_lock_keeps_does_not_keep_the_sweep_from_its_end() -> None:
    on = Sweeping(MemoryStorage(versioned=True), keys=())
    on.storage.fail_next("delete_version", RefusedError("AccessDenied"))
    await on.start()
    assert (await on.finish()).clean
    versions = [row async for row in on.storage.list_versions(keyring_s3_key("acme"))]
    assert len(versions) > 1


async def test_nothing_but_the_record_is_left_of_an_ended_sweep() -> None:
    """No step reads the result of a stalled worker, and the end deletes it all the same."""
    on = Sweeping()
    await on.start()
    plan = await on.deliver_until(lambda plan: bool(plan.live))
    assert await on.store.add_result(replace(plan, round=9), plan.live[0], RESULT, "m1")
    await on.finish()
    left = [key for key in on.storage.stored_keys() if key.startswith(".keyturn/sweeps/")]
    assert left == [record_paths.plan_path(SWEEP_ID, "acme")]


async def test_nothing_is_proven_before_two_leases_have_passed() -> None:
    """Until then a stalled worker can set an object back."""
    on = Sweeping()
    await on.start()
    plan = await on.finish()
    assert plan.ended_at is not None
    assert (plan.ended_at - plan.turned_at).total_seconds() > 2 * LEASE_S


async def test_an_object_that_cannot_be_rewrapped_is_recorded_and_keeps_the_keys() -> None:
    on = Sweeping()
    on.storage.plant("acme/b", b"no body of ours", (await on.storage.head("acme/b")).headers)
    await on.start()
    plan = await on.finish()
    assert (plan.status, plan.clean, plan.counts.failed) == ("done", False, 1)
    failures = [failure async for failure in on.store.failures(plan)]
    assert [(failure.key, failure.code) for failure in failures] == [("b", "corrupt_object")]
    after = (await on.keyrings.read_fresh("acme")).keyring
    assert after.history[0].kek is not None


async def test_a_dry_run_counts_and_writes_nothing() -> None:
    on = Sweeping()
    before = {key: (await on.storage.head(key)).metadata for key in ("acme/a", "acme/b")}
    await on.start(replace(REQUEST, dry_run=True))
    plan = await on.finish()
    assert (plan.counts.objects, plan.late_writes_refused) == (3, None)
    assert {key: (await on.storage.head(key)).metadata for key in before} == before
    assert (await on.keyrings.read_fresh("acme")).keyring.history[0].kek is not None


async def test_a_named_master_key_is_that_of_all_wraps_at_the_end() -> None:
    on = Sweeping()
    await on.start(replace(REQUEST, master_key="m2"))
    assert (await on.finish()).clean
    for key in on.keys:
        assert (await on.storage.head(f"acme/{key}")).metadata["enc-kek-admin"] == "m2"


async def test_plaintext_is_forbidden_and_proven_once_more_before_the_end() -> None:
    """An upload may have stored plaintext behind the attempt at its page."""
    on = Sweeping(ring=keyring(plaintext=True))
    on.storage.plant("acme/plain", b"hello", Headers({}))
    await on.start(replace(REQUEST, encrypt_plaintext=True))
    plan = await on.finish()
    assert (plan.clean, plan.round, plan.counts.encrypted) == (True, 1, 1)
    assert not (await on.keyrings.read_fresh("acme")).keyring.plaintext_allowed
    assert "enc-algo" in (await on.storage.head("acme/plain")).metadata


@pytest.mark.parametrize("refuses", [False, True])
async def test_the_end_says_whether_the_storage_refuses_late_writes(*, refuses: bool) -> None:
    on = Sweeping(MemoryStorage(capabilities=Capabilities(late_writes_refused=refuses)))
    await on.start()
    await on.finish()
    assert _event(on, "sweep.completed").late_writes_refused is refuses


# Messages come twice, late, or not at all.


async def test_a_message_of_another_step_changes_nothing() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    before = await on.stored()
    for number in (0, before.plan.step + 1, before.plan.step + 5):
        await on.handler.run_step(_step(number), again=False)
    assert await on.stored() == before


async def test_a_repeated_step_sends_again_what_its_worker_may_not_have_sent() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    plan = await on.plan()
    on.messages.waiting.clear()
    await on.handler.run_step(_step(plan.step - 1), again=True)
    assert on.messages.steps() == [plan.step]
    assert [page.page for page in on.messages.pages()] == [page.page for page in plan.live]


async def test_a_page_with_a_result_is_not_sent_again() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    plan = await on.plan()
    await on.handler.process_page(on.messages.pages()[0])
    on.messages.waiting.clear()
    await on.handler.run_step(_step(plan.step - 1), again=True)
    assert [page.page for page in on.messages.pages()] == [1]


async def test_a_step_that_another_worker_makes_first_is_not_made_twice() -> None:
    on = Sweeping()
    await on.start()
    _, hint = on.messages.take()
    assert isinstance(hint, SweepStep)

    async def other() -> None:
        await on.handler.run_step(hint, again=False)

    on.storage.before_next("put", other)
    await on.handler.run_step(hint, again=False)
    assert (await on.plan()).step == 1
    assert on.messages.steps() == [1]
    assert len(on.messages.pages()) == 2


async def test_a_sweep_that_lost_its_messages_resumes() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    on.messages.waiting.clear()
    before = await on.plan()
    await on.handler.resume(SWEEP_ID, "acme")
    assert on.messages.steps() == [before.step + 2]
    assert (await on.finish()).clean


async def test_there_is_no_step_without_a_record() -> None:
    with pytest.raises(NotFoundError):
        await Sweeping().handler.run_step(_step(0), again=False)


async def test_idle_steps_come_later_and_later() -> None:
    on = Sweeping()
    await on.start()
    waits = []
    for _ in range(100):
        plan = await on.plan()
        if plan.idle > 70:
            break
        due_s, hint = on.messages.take()
        if isinstance(hint, SweepStep):  # pages are lost
            waits.append(round(due_s - on.storage.elapsed_s()))
            on.storage.advance(max(0.0, due_s - on.storage.elapsed_s()))
            await on.handler.run_step(hint, again=False)
    assert waits[1] < 5 < waits[20] < waits[65]


# The state moves.


async def test_a_rotation_during_a_sweep_begins_a_new_round() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver_until(lambda plan: plan.counts.rewrapped == 3)
    on.write_keyring(rotated(on.ring))
    plan = await on.finish()
    assert (plan.round, plan.state.generation, plan.clean) == (1, 3, True)
    assert plan.counts == Counts(objects=3, current=3, rewrapped=6)


async def test_a_rotation_just_before_the_end_is_proven_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every page is proven; the keyring is read once more before the sweep ends."""
    on = Sweeping(keys=())

    async def rotate(*_: object) -> None:
        if on.ring.current.generation == 2:
            on.write_keyring(rotated(on.ring))

    # The last thing that a step does before it reads the keyring again.
    monkeypatch.setattr("keyturn_workers.sweep.project_sweep.restore_noted_tags", rotate)
    await on.start()
    plan = await on.finish()
    assert (plan.round, plan.state.generation, plan.clean) == (1, 3, True)


async def test_a_keyring_that_was_rolled_back_stops_the_sweep() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    on.write_keyring(replace(keyring(), current=on.ring.history[0]))
    with pytest.raises(KeyringRolledBackError):
        await on.handler.run_step(_step(1), again=False)
    assert (await on.plan()).step == 1


@pytest.mark.parametrize("error", [CorruptObjectError, UnknownProjectError])
async def test_a_keyring_that_is_forged_or_gone_stops_the_sweep(error: type[Exception]) -> None:
    on = Sweeping()
    await on.start()
    if error is CorruptObjectError:
        on.storage.plant(keyring_s3_key("acme"), b"{}", Headers({}))
    else:
        await on.storage.delete(keyring_s3_key("acme"))
    with pytest.raises(error):
        await on.handler.run_step(_step(0), again=False)


async def test_a_failed_sweep_continues_when_its_message_is_replayed() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    await on.handler.record_failure(_step(1), StorageUnavailableError("down"))
    assert (await on.plan()).status == "failed"
    assert on.messages.types() == ["sweep.failed"]
    on.messages.waiting.clear()
    await on.handler.run_step(_step(1), again=False)
    assert (await on.plan()).status == "running"
    assert (await on.finish()).clean


# One lease.


async def test_a_worker_with_a_longer_lease_lengthens_the_sweeps_before_it_writes() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    before = await on.plan()
    assert await on.process(60).extend_lease(await on.stored())
    plan = await on.plan()
    assert (plan.lease_s, plan.round, plan.step) == (60, before.round + 1, before.step + 2)
    assert (await on.keyrings.read_fresh("acme")).keyring.lease_s == 60
    assert not await on.process(60).extend_lease(await on.stored())


@pytest.mark.parametrize("lease_s", [LEASE_S, LEASE_S - 5])
async def test_a_worker_with_no_longer_lease_changes_nothing(lease_s: int) -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    before = await on.stored()
    assert not await on.process(lease_s).extend_lease(before)
    assert await on.stored() == before


async def test_a_dry_run_has_no_lease_to_lengthen() -> None:
    on = Sweeping()
    await on.start(replace(REQUEST, dry_run=True))
    assert not await on.process(60).extend_lease(await on.stored())


async def test_a_lease_is_not_lengthened_by_a_keyring_that_changed_meanwhile() -> None:
    on = Sweeping()
    await on.start()

    async def rotate() -> None:
        on.write_keyring(rotated(on.ring))

    on.storage.before_next("put", rotate)
    with pytest.raises(StorageUnavailableError, match="lease"):
        await on.process(60).extend_lease(await on.stored())
    assert (await on.plan()).lease_s == LEASE_S


async def test_a_keyring_that_names_a_longer_lease_is_marked_before_a_page_is_processed() -> None:
    """Otherwise the next worker could find it unmarked, and its project rolled back."""
    witness = FakeWitness()
    on = Sweeping(witness=witness)
    await on.start()
    await on.deliver()
    assert await on.process(60).extend_lease(await on.stored())
    _, body = await on.storage.read(keyring_s3_key("acme"))
    assert witness.table.find("acme") == mark_of(body)
    assert mark_of(body).serial == 1


async def test_a_sweep_waits_while_its_keyring_is_rolled_back() -> None:
    witness = FakeWitness()
    on = Sweeping(witness=witness)
    await on.start()
    _, older = await on.storage.read(keyring_s3_key("acme"))
    on.write_keyring(replace(rotated(on.ring), serial=1))
    await on.keyrings.read_fresh("acme")
    _, newest = await on.storage.read(keyring_s3_key("acme"))
    on.storage.plant(keyring_s3_key("acme"), older, Headers({}))
    writes = on.storage.calls["copy_onto_itself"]
    with pytest.raises(KeyringContradictedError):
        await on.finish()
    assert on.storage.calls["copy_onto_itself"] == writes
    on.storage.plant(keyring_s3_key("acme"), newest, Headers({}))
    on.messages.waiting.clear()
    await on.handler.run_step(_step((await on.plan()).step), again=True)
    assert (await on.finish()).clean


# Takeovers.


async def _taken_over(on: Sweeping) -> Plan:
    """The first sweep, once a later one of the project has taken it over."""
    await on.start(ROTATION)
    await on.start(LATER)
    return await on.deliver_until(lambda plan: plan.successor is not None)


async def test_an_earlier_sweep_waits_for_the_later_one_and_copies_its_end() -> None:
    on = Sweeping()
    assert (await _taken_over(on)).successor == OTHER_ID
    earlier = await on.finish()
    later = await on.plan(OTHER_ID)
    assert (earlier.clean, earlier.counts, earlier.ended_at) == (
        True,
        later.counts,
        later.ended_at,
    )
    assert sorted(set(on.messages.types())) == [
        "rotation.completed",
        "sweep.completed",
        "sweep.progressed",
    ]


async def test_an_earlier_sweep_copies_a_failure_as_well() -> None:
    on = Sweeping()
    await _taken_over(on)
    step = (await on.plan(OTHER_ID)).step
    await on.handler.record_failure(_step(step, OTHER_ID), StorageUnavailableError("down"))
    earlier = await on.finish()
    assert (earlier.status, earlier.code) == ("failed", "storage_unavailable")
    assert "rotation.failed" in on.messages.types()


async def test_without_its_successor_an_earlier_sweep_continues_by_itself() -> None:
    on = Sweeping()
    await _taken_over(on)
    await on.store.remove(OTHER_ID, "acme")
    await on.store.unmark_running(OTHER_ID, "acme")
    on.messages.waiting = [each for each in on.messages.waiting if each[1].sweep_id == SWEEP_ID]
    earlier = await on.finish()
    assert (earlier.successor, earlier.clean) == (None, True)


async def test_the_end_of_a_sweep_that_never_took_it_over_is_not_copied() -> None:
    """It was marked by a worker that stalled until that sweep had ended: for another state."""
    on = Sweeping()
    await on.start(LATER)
    await on.finish(OTHER_ID)
    on.write_keyring(rotated((await on.keyrings.read_fresh("acme")).keyring))
    await on.start(ROTATION)
    stored = await on.stored()
    assert await on.store.change(replace(stored.plan, successor=OTHER_ID), stored.etag, "m1")
    earlier = await on.finish()
    assert (earlier.successor, earlier.state.generation, earlier.clean) == (None, 3, True)
    assert earlier.counts.rewrapped == 3


# A part of a sweep of all projects.


async def test_a_part_ends_by_a_result_and_not_by_an_end_of_its_own() -> None:
    """The sweep of all publishes the end."""
    on = Sweeping()
    await on.start(replace(REQUEST, of_all=True))
    plan = await on.finish()
    result = await on.store.read_part_result(SWEEP_ID, "acme")
    assert result == PartResult(plan.counts, clean=True)
    assert set(on.messages.types()) == {"sweep.progressed"}


@pytest.mark.parametrize(
    ("of_all", "pause_s", "events"), [(False, 2, 3), (True, 2, 1), (True, 121, 3)]
)
async def test_the_progress_of_a_part_is_published_now_and_then(
    *, of_all: bool, pause_s: float, events: int
) -> None:
    """There may be thousands of parts."""
    on = Sweeping(page_keys=1)
    await on.start(replace(REQUEST, of_all=of_all))
    await on.handler.run_step(_step(0), again=False)
    for page in on.messages.pages():
        await on.handler.process_page(page)
        await on.handler.run_step(_step((await on.plan()).step), again=False)
        on.storage.advance(pause_s)
    assert on.messages.types() == ["sweep.progressed"] * events


async def test_a_record_under_the_keyrings_master_key_follows_it() -> None:
    on = Sweeping()
    await on.start()
    assert (await on.stored()).master_key == "m1"
    on.write_keyring(replace(on.ring, master_key="m2"))
    await on.finish()
    assert (await on.stored()).master_key == "m2"


# Evidence of a clean end.


class Crash(BaseException):
    """The worker dies."""


class CrashingStorage(MemoryStorage):
    """Loses its worker at one of the puts of a clean end, which begins by looking for evidence."""

    crash_at: int | None = None
    after_effect = False
    _puts: int | None = None

    async def read(self, key: str, **how: Any) -> Any:
        if key.startswith(EVIDENCE_PREFIX) and self._puts is None:
            self._puts = 0
        return await super().read(key, **how)

    async def put(self, key: str, *args: Any, **how: Any) -> Any:
        at, self._puts = self._puts, self._puts if self._puts is None else self._puts + 1
        crashes = at is not None and at == self.crash_at
        if crashes and not self.after_effect:
            raise Crash
        result = await super().put(key, *args, **how)
        if crashes:
            raise Crash
        return result


async def _deliver_again(on: Sweeping, sweep_id: str = SWEEP_ID) -> Plan:
    """The broker delivers the step again that a worker did not acknowledge."""
    step = (await on.plan(sweep_id)).step
    await on.handler.run_step(_step(step, sweep_id), again=True)
    return await on.finish(sweep_id)


async def _chain(on: Sweeping) -> tuple[Evidence, ...]:
    """The evidence of the project, verified up to the one that the keyring names."""
    files = [
        (await on.storage.read(key))[1]
        for key in on.storage.stored_keys()
        if key.startswith(evidence_prefix("acme"))
    ]
    newest = (await on.keyrings.read_fresh("acme")).keyring.evidence
    public = [EVENT_KEY.verify_key()]
    if newest is None:
        assert files == []
        return ()
    return verify_chain(in_chain_order(files), public, deployment="test", newest=newest)


async def test_a_clean_end_leaves_evidence_that_its_event_names() -> None:
    on = Sweeping()
    await on.start(ROTATION)
    plan = await on.finish()
    (evidence,) = await _chain(on)
    end, predicate = _event(on, "rotation.completed"), evidence.predicate
    assert (end.evidence, plan.evidence) == (evidence.digest, evidence.digest)
    assert (predicate.kind, predicate.sweep_id, predicate.generation) == ("rotation", SWEEP_ID, 2)
    assert (predicate.publisher, predicate.request) == ("api", "0" * 64)
    assert predicate.counts.model_dump() == {**plan.counts.to_json(), "clean": True}
    assert (predicate.pages, predicate.lease_s) == (2, LEASE_S)
    assert plan.proven_from is not None
    assert plan.proven_from > plan.turned_at + timedelta(seconds=2 * LEASE_S)
    assert evidence_s3_key("acme", 2, SWEEP_ID) in on.storage.stored_keys()


async def test_each_clean_end_follows_the_one_before() -> None:
    on = Sweeping()
    for sweep_id in (SWEEP_ID, OTHER_ID):
        await on.start(replace(REQUEST, sweep_id=sweep_id))
        await on.finish(sweep_id)
    assert [each.predicate.sweep_id for each in await _chain(on)] == [SWEEP_ID, OTHER_ID]


async def test_a_part_of_a_sweep_of_all_leaves_evidence_too() -> None:
    on = Sweeping()
    await on.start(replace(REQUEST, of_all=True))
    plan = await on.finish()
    assert [each.digest for each in await _chain(on)] == [plan.evidence]


async def test_a_dry_run_and_an_end_that_is_not_clean_leave_none() -> None:
    on = Sweeping()
    on.storage.plant("acme/b", b"no body of ours", (await on.storage.head("acme/b")).headers)
    await on.start()
    assert (await on.finish()).evidence is None
    await on.storage.delete("acme/b")
    await on.start(replace(REQUEST, sweep_id=OTHER_ID, dry_run=True))
    dry_run = await on.finish(OTHER_ID)
    assert (dry_run.clean, dry_run.evidence) == (True, None)
    assert await _chain(on) == ()
    ends = [each for each in on.messages.published if cast("Any", each).type == "sweep.completed"]
    assert [cast("Any", each).evidence for each in ends] == [None, None]


@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize("crash_at", range(5))
async def test_a_clean_end_continues_wherever_its_worker_died(
    crash_at: int, *, after_effect: bool
) -> None:
    """In turn: record, keyring, file, record, and the record once the end is published."""
    storage = CrashingStorage()
    storage.crash_at, storage.after_effect = crash_at, after_effect
    on = Sweeping(storage)
    await on.start()
    with pytest.raises(Crash):
        await on.finish()
    plan = await _deliver_again(on)
    (evidence,) = await _chain(on)
    assert (plan.clean, plan.counts.rewrapped, plan.evidence) == (True, 3, evidence.digest)
    after = (await on.keyrings.read_fresh("acme")).keyring
    assert not after.has_old_keks


async def _other_end(on: Sweeping, *, put: bool = True) -> str:
    """Another sweep of the project ends now; returns the digest of its evidence."""
    ring = (await on.keyrings.read_fresh("acme")).keyring
    log = on.evidence_log(EVENT_KEY)
    other = replace(EVIDENCE_PLAN, ask=replace(EVIDENCE_PLAN.ask, sweep_id=OTHER_ID))
    other = replace(other, state=replace(other.state, generation=ring.current.generation))
    evidence = parse(await log.build(other, ring, late_writes_refused=True))
    on.write_keyring(replace(ring, evidence=evidence.digest))
    if put:
        await log.publish(evidence)
    return evidence.digest


async def test_evidence_that_loses_a_race_is_made_anew_after_another_proof() -> None:
    """Another sweep ends between the record's put and the keyring's."""
    storage = CrashingStorage()
    storage.crash_at = 1
    on = Sweeping(storage)
    await on.start()
    with pytest.raises(Crash):
        await on.finish()
    first = (await on.plan()).envelope
    other = await _other_end(on)
    await on.handler.run_step(_step((await on.plan()).step), again=True)
    assert (await on.plan()).envelope is None
    plan = await _deliver_again(on)
    chain = await _chain(on)
    assert [each.digest for each in chain] == [other, plan.evidence]
    assert plan.envelope is not None
    assert first is not None
    assert plan.envelope.text != first.text
    assert plan.round == 1


async def test_an_end_that_the_keyring_named_is_made_though_another_one_followed() -> None:
    """Its worker died before it put the file, and the state moved on."""
    storage = CrashingStorage()
    storage.crash_at = 2
    on = Sweeping(storage)
    await on.start()
    with pytest.raises(Crash):
        await on.finish()
    named = (await on.keyrings.read_fresh("acme")).keyring.evidence
    on.write_keyring(rotated((await on.keyrings.read_fresh("acme")).keyring))
    other = await _other_end(on)
    plan = await _deliver_again(on)
    assert [each.digest for each in await _chain(on)] == [named, other]
    assert (plan.evidence, plan.state.generation, plan.clean) == (named, 2, True)


async def test_an_end_waits_for_no_proof_once_the_keyring_names_its_evidence() -> None:
    """A worker with a longer lease joins in between, and begins a new round."""
    storage = CrashingStorage()
    storage.crash_at, storage.after_effect = 1, True
    on = Sweeping(storage)
    await on.start()
    with pytest.raises(Crash):
        await on.finish()
    named = (await on.keyrings.read_fresh("acme")).keyring.evidence
    assert await on.process(60).extend_lease(await on.stored())
    assert (await on.plan()).round == 1
    plan = await _deliver_again(on)
    assert (plan.evidence, plan.counts.objects, plan.counts.rewrapped) == (named, 3, 3)


async def test_pages_that_a_worker_of_0_6_proved_are_proven_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It recorded no dates of them."""
    dated = progress._with_proof_dates

    def by_an_old_worker(plan: Plan, dates: Any) -> Plan:
        return dated(plan, dates[:-1] if plan.round == 0 else dates)

    monkeypatch.setattr(progress, "_with_proof_dates", by_an_old_worker)
    on = Sweeping()
    await on.start()
    plan = await on.finish()
    (evidence,) = await _chain(on)
    assert (plan.round, evidence.predicate.pages) == (1, 2)


async def test_a_sweep_that_lost_its_record_ends_with_the_evidence_that_it_left() -> None:
    on = Sweeping()
    await on.start(ROTATION)
    first = await on.finish()
    await on.store.remove(SWEEP_ID, "acme")
    await on.start(ROTATION)
    again = await on.finish()
    assert (again.clean, again.evidence) == (True, first.evidence)
    assert [each.digest for each in await _chain(on)] == [first.evidence]


@pytest.mark.parametrize("rotated_back", [False, True], ids=["ended", "old-keys-came-back"])
async def test_no_end_is_published_before_the_keyring_that_names_its_evidence_is_marked(
    *, rotated_back: bool
) -> None:
    """Also by the branch that finds the evidence of an earlier end, and retires keys."""
    witness = FakeWitness()
    on = Sweeping(witness=witness)
    await on.start(ROTATION)
    await on.finish()
    if rotated_back:
        ring = (await on.keyrings.read_fresh("acme")).keyring
        on.write_keyring(replace(ring, serial=ring.serial + 1, history=on.ring.history))
        await on.store.remove(SWEEP_ID, "acme")
        await on.start(ROTATION)
        await on.finish()
    _, body = await on.storage.read(keyring_s3_key("acme"))
    history = parse_keyring(body, "acme", MASTER_KEYS).history
    assert [entry.kek for entry in history] == [None]
    assert witness.table.find("acme") == mark_of(body)


async def test_a_step_that_another_worker_makes_while_it_ends_is_left_to_that_one() -> None:
    storage = CrashingStorage()
    storage.crash_at, storage.after_effect = 0, True
    on = Sweeping(storage)
    await on.start()
    with pytest.raises(Crash):
        await on.finish()
    step = (await on.plan()).step

    async def other() -> None:
        await on.handler.run_step(_step(step), again=True)

    on.storage.before_next("put", other)
    await on.handler.run_step(_step(step), again=True)
    assert (await on.plan()).told
    assert len(await _chain(on)) == 1
    assert on.messages.types().count("sweep.completed") == 1


async def test_an_end_whose_sweep_is_taken_over_meanwhile_is_left_to_the_later_one() -> None:
    """Between the put of its record and the next read of it."""
    on = Sweeping(CrashingStorage())

    async def taken_over() -> None:
        stored = await on.stored()
        taken = replace(stored.plan, successor=OTHER_ID, step=stored.plan.step + 2)
        assert await on.store.change(taken, stored.etag, stored.master_key)

    async def once_it_is_put() -> None:
        on.storage.before_next("read", taken_over)

    await on.start()
    stored_read = on.storage.read

    async def read(key: str, **how: Any) -> Any:
        if key.startswith(EVIDENCE_PREFIX):
            on.storage.before_next("put", once_it_is_put)
        return await stored_read(key, **how)

    on.storage.read = read  # type: ignore[method-assign]
    plan = await on.deliver_until(lambda plan: plan.successor is not None)
    assert (plan.status, plan.envelope is not None) == ("running", True)
    assert (await on.keyrings.read_fresh("acme")).keyring.evidence is None


async def test_a_sweep_that_was_taken_over_names_the_evidence_of_the_later_one() -> None:
    on = Sweeping()
    await _taken_over(on)
    earlier = await on.finish()
    (evidence,) = await _chain(on)
    assert (earlier.evidence, evidence.predicate.sweep_id) == (evidence.digest, OTHER_ID)
