"""The steps of one project: planned, proven, begun again, ended (SPEC 8.4 to 8.6)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest

from keyturn.counts import Counts
from keyturn.errors import (
    CorruptObjectError,
    StorageUnavailableError,
    UnknownProjectError,
)
from keyturn.evidence import (
    MAX_EVIDENCE_BYTES,
    Evidence,
    in_chain_order,
    parse,
    verify_chain,
)
from keyturn.identifiers import (
    SWEEPS_PREFIX,
    evidence_prefix,
    format_time,
    keyring_s3_key,
    parse_time,
)
from keyturn_workers.core.errors import RefusedError
from keyturn_workers.core.keyring import with_master_key
from keyturn_workers.core.storage_values import Capabilities, Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import End, Origin, PartEnd, ProjectRecord
from keyturn_workers.core.sweep_transitions import find_origin, open_origins
from keyturn_workers.pipeline.sweep.messages import Hint, SweepPage, SweepStep
from keyturn_workers.storage.clock import StorageClock
from tests.unit.keyturn_workers.factories import keyring, rotated
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    LATER_ID,
    LEASE_S,
    OTHER_ID,
    PAGE,
    RESULT,
    ROUND_ID,
    SWEEP,
    SWEEP_ID,
    origin,
)
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import EVENT_KEY, Sweeping
from tests.unit.keyturn_workers.witness import FakeWitness, mark_of
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from collections.abc import Callable

OTHER = origin(origin_id=OTHER_ID)
PART = origin("part", walk_id=ROUND_ID)


def _step(number: int) -> SweepStep:
    return SweepStep(project="acme", step=number)


def _events(on: Sweeping, event_type: str) -> list[Any]:
    return [each for each in on.messages.published if cast("Any", each).type == event_type]


def _round_id(of: ProjectRecord) -> str | None:
    return None if of.round is None else of.round.id


def _named_round(of: ProjectRecord) -> str:
    """The round of the newest evidence."""
    return parse(str(of.evidence).encode()).proof.sweep_id


async def _end(on: Sweeping, of: Origin = SWEEP) -> End:
    """Handle messages until an origin has its end."""
    end = (await on.finish(of)).end
    assert end is not None
    return end


async def _damage(on: Sweeping, key: str = "b") -> None:
    head = await on.storage.head(f"acme/{key}")
    on.storage.plant(f"acme/{key}", b"no body of ours", head.headers)


# From the request to the end.


async def test_a_sweep_rewraps_every_object_and_ends_clean() -> None:
    on = Sweeping()
    await on.start()
    assert on.ring.history[0].kek is not None
    end = await _end(on)
    assert (end.clean, end.counts) == (True, Counts(objects=3, current=3, rewrapped=3))
    assert end.state is not None
    assert end.state.kek_id == on.ring.current.kek_id
    (event,) = _events(on, "sweep.completed")
    assert (event.sweep_id, event.clean, event.objects, event.request) == (
        SWEEP_ID,
        True,
        3,
        "0" * 64,
    )
    (evidence,) = await _chain(on)
    assert (evidence.digest, event.evidence) == (end.evidence, end.evidence)
    assert evidence.proof.sweep_id == end.round_id == _named_round(await on.record())
    assert evidence.proof.counts.model_dump() == {**end.counts.to_json(), "clean": True}
    # The earlier keys are retired.
    assert [entry.kek for entry in (await on.keyring()).history] == [None]


async def test_pages_that_were_never_sent_are_sent_again_though_another_step_was_made() -> None:
    on = Sweeping()
    await on.start()
    _, first = on.messages.take()
    assert isinstance(first, SweepStep)
    await on.handler.run_step(first, again=False)
    assert on.messages.pages()
    # The worker lost the broker before it had sent anything. Then a second request adds an origin,
    # and another worker makes the step that this asks for.
    on.messages.waiting.clear()
    on.storage.advance(2)
    await on.start(OTHER)
    await on.deliver()
    assert not on.messages.pages()
    await on.handler.run_step(first, again=True)
    assert on.messages.pages()
    assert (await _end(on)).clean


async def test_the_next_round_begins_though_a_worker_died_once_the_first_one_had_ended() -> None:
    """After the put of the end, and before it sent the next step: no round shows it then."""
    on = Sweeping()
    await on.start()
    await on.deliver()
    await on.start(OTHER)  # a round has begun: this one waits for the next
    await on.finish()
    after = await on.record()
    assert after.round is None
    assert [each.name for each in open_origins(after)] == [OTHER.name]
    on.messages.waiting.clear()
    await on.handler.run_step(_step(after.step - 1), again=True)
    assert on.messages.steps() == [after.step]
    assert (await _end(on, OTHER)).clean


async def test_after_its_end_a_record_rests_and_no_result_is_left() -> None:
    """Not even that of a stalled worker, which no step reads."""
    on = Sweeping()
    await on.start()
    before = await on.deliver_until(lambda record: record.round is not None)
    stalled = replace(PAGE, attempts=7)
    assert await on.store.add_result("acme", str(_round_id(before)), stalled, RESULT, "m1")
    await _end(on)
    done = await on.record()
    assert (done.round, done.clean_end, on.messages.steps()) == (None, None, [])
    left = [key for key in on.storage.stored_keys() if key.startswith(SWEEPS_PREFIX)]
    assert left == [f"{SWEEPS_PREFIX}acme.json"]


@pytest.mark.parametrize("error", [None, RefusedError("AccessDenied")], ids=["deleted", "locked"])
async def test_a_clean_end_leaves_one_version_of_the_keyring_unless_a_lock_keeps_more(
    error: Exception | None,
) -> None:
    on = Sweeping(MemoryStorage(versioned=True), keys=())
    if error is not None:
        on.storage.fail_next("delete_version", error)
    await on.start()
    assert (await _end(on)).clean
    versions = [row async for row in on.storage.list_versions(keyring_s3_key("acme"))]
    assert (len(versions) == 1) is (error is None)


async def test_an_object_that_cannot_be_rewrapped_is_recorded_and_keeps_the_keys() -> None:
    on = Sweeping()
    await _damage(on)
    await on.start()
    end = await _end(on)
    assert (end.clean, end.code, end.counts.failed, end.evidence) == (False, "", 1, None)
    assert end.round_id is not None
    assert end.state == (await on.record()).state
    (path,) = [path async for path in on.store.failure_records("acme", end.round_id)]
    (failure,) = await on.store.read_failures("acme", path)
    assert (failure.key, failure.code) == ("b", "corrupt_object")
    assert (await on.keyring()).history[0].kek is not None
    assert await _chain(on) == ()


async def test_plaintext_is_forbidden_and_proven_once_more_before_the_end() -> None:
    """An upload may have stored plaintext behind the attempt at its page."""
    on = Sweeping(ring=keyring(plaintext=True))
    on.storage.plant("acme/plain", b"hello", Headers({}))
    await on.start(origin(options=SweepOptions(encrypt_plaintext=True)))
    rounds = list[str | None]()

    def noted(record: ProjectRecord) -> bool:
        rounds.append(_round_id(record))
        return record.origins[0].is_answered

    await on.deliver_until(noted)
    end = await _end(on)
    assert (end.clean, end.counts.encrypted) == (True, 1)
    assert len(set(rounds) - {None}) == 2
    assert not (await on.keyring()).plaintext_allowed
    assert "enc-algo" in (await on.storage.head("acme/plain")).metadata


async def test_idle_steps_come_later_and_later() -> None:
    on = Sweeping()
    await on.start()
    waits = []
    for _ in range(100):
        if (await on.record()).idle_steps > 70:
            break
        due_s, hint = on.messages.take()
        if isinstance(hint, SweepStep):  # pages are lost
            waits.append(round(due_s - on.storage.elapsed_s()))
            on.storage.advance(max(0.0, due_s - on.storage.elapsed_s()))
            await on.handler.run_step(hint, again=False)
    assert waits[1] < 5 < waits[20] < waits[65]


# Which origins a round answers.


async def test_a_second_round_needs_no_new_wait_and_counts_only_its_own_writes() -> None:
    """The state has not changed since: two leases have passed already."""
    on = Sweeping()
    await on.start()
    first = await _end(on)
    before = await on.record()
    await on.start(OTHER)
    second = await _end(on, OTHER)
    assert (await on.record()).changed_at == before.changed_at
    assert (second.at - first.at).total_seconds() < 2 * LEASE_S
    assert second.counts == Counts(objects=3, current=3)


async def test_a_record_whose_requests_were_all_overtaken_rests() -> None:
    on = Sweeping()
    await on.start(origin(options=SweepOptions(master_key="m2")))
    on.messages.waiting.clear()
    on.write_keyring(with_master_key(await on.keyring(), "m1"))
    await on.handler.run_step(_step(0), again=False)
    after = await on.record()
    assert (open_origins(after), after.round, on.messages.waiting) == ((), None, [])
    assert on.messages.types() == ["sweep.failed"]


# The state moves.


async def test_a_state_that_came_back_begins_the_round_again() -> None:
    """Objects may have followed the other one in between."""
    on = Sweeping()
    await on.start()
    before = await on.deliver_until(lambda record: record.written.rewrapped == 3)
    on.write_keyring(replace(on.ring, serial=on.ring.serial + 2))
    end, after = await _end(on), await on.record()
    assert end.round_id != _round_id(before)
    assert end.at > after.proof_after > before.proof_after


@pytest.mark.parametrize("damaged", [False, True])
async def test_a_rotation_just_before_the_end_is_proven_too(
    monkeypatch: pytest.MonkeyPatch, *, damaged: bool
) -> None:
    """Every page is proven; the keyring is read once more before the round ends."""
    on = Sweeping()
    if damaged:
        await _damage(on)

    async def rotate(*_: object) -> list[str]:
        if on.ring.current.generation == 2:
            on.write_keyring(rotated(on.ring))
        return []

    # The last thing that a step does before it reads the keyring again.
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.reconciler.restore_noted_tags", rotate)
    await on.start()
    end = await _end(on)
    assert (end.clean, end.counts.rewrapped) == (not damaged, 4 if damaged else 6)
    assert end.state is not None
    assert end.state.generation == 3


async def test_a_keyring_that_was_restored_is_proven_as_it_is() -> None:
    """Only an operator can restore one: otherwise a mark contradicts it."""
    on = Sweeping(keys=())
    rotation = on.rotation()
    await on.start(rotation)
    await on.start()
    await on.deliver()
    on.write_keyring(replace(keyring(), current=on.ring.history[0]))
    assert (await _end(on)).clean
    assert (await on.record()).state.generation == 1
    (event,) = _events(on, "rotation.failed")
    assert (event.rotation_id, event.code) == (rotation.id, "generation_mismatch")


@pytest.mark.parametrize("error", [CorruptObjectError, UnknownProjectError])
async def test_a_keyring_that_is_forged_or_gone_stops_the_steps(error: type[Exception]) -> None:
    on = Sweeping()
    await on.start()
    if error is CorruptObjectError:
        on.storage.plant(keyring_s3_key("acme"), b"{}", Headers({}))
    else:
        await on.storage.delete(keyring_s3_key("acme"))
    with pytest.raises(error):
        await on.handler.run_step(_step(0), again=False)


# One lease.


async def test_a_worker_with_a_longer_lease_lengthens_the_records_before_it_writes() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    before = await on.record()
    assert await on.process(60).extend_lease(await on.stored())
    after = await on.record()
    assert (after.lease_s, after.step) == (60, before.step + 1)
    assert _round_id(after) != _round_id(before)
    assert (await on.keyring()).lease_s == 60
    assert not await on.process(60).extend_lease(await on.stored())


@pytest.mark.parametrize("lease_s", [LEASE_S, LEASE_S - 5])
async def test_a_worker_with_no_longer_lease_changes_nothing(lease_s: int) -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    before = await on.stored()
    assert not await on.process(lease_s).extend_lease(before)
    assert await on.stored() == before


async def test_a_lease_is_not_lengthened_by_a_keyring_that_changed_meanwhile() -> None:
    on = Sweeping()
    await on.start()

    async def rotate() -> None:
        on.write_keyring(rotated(on.ring))

    on.storage.before_next("put", rotate)
    with pytest.raises(StorageUnavailableError, match="lease"):
        await on.process(60).extend_lease(await on.stored())
    assert (await on.record()).lease_s == LEASE_S


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


# Progress, and parts of a sweep of all.


@pytest.mark.parametrize(
    ("asked", "pause_s", "events"), [(SWEEP, 2, 3), (PART, 2, 1), (PART, 121, 3)]
)
async def test_the_progress_of_a_part_is_published_now_and_then(
    asked: Origin, pause_s: float, events: int
) -> None:
    """There may be thousands of parts."""
    on = Sweeping(page_keys=1)
    await on.start(asked)
    await on.handler.run_step(_step(0), again=False)
    for page in on.messages.pages():
        await on.handler.process_page(page)
        await on.handler.run_step(_step((await on.record()).step), again=False)
        on.storage.advance(pause_s)
    assert on.messages.types() == ["sweep.progressed"] * events


async def test_progress_names_the_phase_and_the_record_the_moments_that_it_passed() -> None:
    on = Sweeping(page_keys=2)
    await on.start()
    await on.handler.run_step(_step(0), again=False)
    # The event that accepts a rotation may not have been published yet.
    assert on.messages.published == []
    first, second = on.messages.pages()
    await on.handler.process_page(first)
    await on.handler.run_step(_step(1), again=False)
    await on.handler.process_page(second)
    await on.handler.run_step(_step(2), again=False)
    record = await on.record()
    phases = [cast("Any", event).progress for event in on.messages.published]
    assert [(each.phase, each.done, each.total) for each in phases] == [
        ("rewrapping", 2, 3),
        ("proving", 0, 3),
    ]
    assert phases[1].proof_possible_at == format_time(record.proof_after)
    assert phases[0].first_rewrap_at == phases[1].first_rewrap_at is not None
    assert phases[1].all_rewrapped_at is not None
    end = (await on.finish()).end
    assert end is not None
    assert end.clean
    assert end.first_rewrap_at == parse_time(phases[1].first_rewrap_at)
    assert end.all_rewrapped_at is not None
    assert end.proof_possible_at is not None
    assert end.all_rewrapped_at < end.proof_possible_at < end.at


async def test_a_proof_that_waits_for_longer_is_published() -> None:
    """The worker has just started: it dates the state again once it knows the storage's clock."""
    on = Sweeping(page_keys=3)
    await on.start()
    end = (await on.finish()).end
    phases = [cast("Any", event).progress for event in _events(on, "sweep.progressed")]
    proving = [each.proof_possible_at for each in phases if each.phase == "proving"]
    assert len(proving) == 2
    assert proving[0] < proving[1]
    assert end is not None
    assert end.proof_possible_at is not None
    assert proving[1] == format_time(end.proof_possible_at)


async def test_only_the_origins_of_the_round_hear_of_its_progress() -> None:
    on = Sweeping()
    await on.start()
    await on.start(replace(OTHER, publisher="web"))
    await on.deliver()
    await on.start(origin(origin_id=LATER_ID))
    await on.deliver_until(lambda record: record.written.rewrapped == 3)
    notified = {(each.publisher, each.sweep_id) for each in _events(on, "sweep.progressed")}
    assert notified == {("api", SWEEP_ID), ("web", OTHER_ID)}


async def test_a_part_leaves_an_end_for_its_walk_and_evidence() -> None:
    on = Sweeping()
    await on.start(PART)
    done = await on.deliver_until(lambda record: not record.origins)
    end = await on.store.read_part_end(ROUND_ID, "acme")
    counts = Counts(objects=3, current=3, rewrapped=3)
    round_id = _named_round(done)
    assert end == PartEnd(counts, clean=True, round_id=round_id, late_writes_refused=False)
    assert set(on.messages.types()) == {"sweep.progressed"}
    (evidence,) = await _chain(on)
    assert (evidence.proof.kind, done.evidence) == ("sweep", evidence.envelope.decode())


@pytest.mark.parametrize("seen_by", [SweepPage, SweepStep, None], ids=["page", "step", "nobody"])
@pytest.mark.parametrize("begins_again", [False, True])
async def test_a_contradiction_that_one_worker_sees_weakens_the_end(
    monkeypatch: pytest.MonkeyPatch, seen_by: type[Hint] | None, *, begins_again: bool
) -> None:
    """Of the first page or step alone. No other worker of the round sees it."""
    sees = False
    monkeypatch.setattr(StorageClock, "is_contradicted", property(lambda _: sees))
    capabilities = Capabilities(late_writes_refused=True)
    on = Sweeping(storage=MemoryStorage(capabilities=capabilities))
    await on.start()
    for kind in (SweepStep, SweepPage):
        sees = kind is seen_by
        assert isinstance(await on.deliver(), kind)
    sees = False
    await on.deliver_until(lambda record: record.written.rewrapped > 0)
    if begins_again:
        on.write_keyring(rotated(on.ring))
    end = await _end(on)
    (evidence,) = await _chain(on)
    assert (end.clean, end.late_writes_refused) == (True, seen_by is None)
    assert evidence.proof.late_writes_refused is end.late_writes_refused


@pytest.mark.parametrize("seen_by", [SweepPage, SweepStep, None], ids=["page", "step", "nobody"])
@pytest.mark.parametrize("ended_by", ["a longer lease", "a failure"])
async def test_a_contradiction_is_not_forgotten_with_its_round(
    monkeypatch: pytest.MonkeyPatch, seen_by: type[Hint] | None, ended_by: str
) -> None:
    """No step has read the result of the page."""
    sees = False
    monkeypatch.setattr(StorageClock, "is_contradicted", property(lambda _: sees))
    on = Sweeping(storage=MemoryStorage(capabilities=Capabilities(late_writes_refused=True)))
    await on.start()
    for kind in (SweepStep, SweepPage):
        sees = kind is seen_by
        assert isinstance(await on.deliver(), kind)
    sees = False
    if ended_by == "a failure":
        step = (await on.record()).step
        await on.handler.record_failure(_step(step), StorageUnavailableError("down"))
        on.messages.waiting.clear()
        await on.handler.run_step(_step(step), again=False)
    else:
        assert await on.process(60).extend_lease(await on.stored())
        on.storage.advance(1000)  # until workers with the shorter lease continue
    end = await _end(on)
    assert (end.clean, end.late_writes_refused) == (True, seen_by is None)
    await on.start(OTHER)
    assert (await _end(on, OTHER)).late_writes_refused


# Evidence of a clean end.


class Crash(BaseException):
    """The worker dies."""


class EndingStorage(MemoryStorage):
    """Knows when a clean end begins, which looks for tag notes first.

    Its worker dies at one of the puts that follow: record, keyring, file, record, record.
    """

    crash_at: int | None = None
    after_effect = False
    at_end: Callable[[], None] | None = None
    _puts: int | None = None

    def list(self, prefix: str, **how: Any) -> Any:
        if prefix == f"{SWEEPS_PREFIX}acme/" and self._puts is None:
            self._puts = 0
            if self.at_end is not None:
                self.at_end()
        return super().list(prefix, **how)

    async def put(self, key: str, *args: Any, **how: Any) -> Any:
        at, self._puts = self._puts, self._puts if self._puts is None else self._puts + 1
        crashes = at is not None and at == self.crash_at
        if crashes and not self.after_effect:
            raise Crash
        result = await super().put(key, *args, **how)
        if crashes:
            raise Crash
        return result


async def _crashed(crash_at: int, *, after_effect: bool = False) -> Sweeping:
    """A project whose worker died at this put of its clean end."""
    storage = EndingStorage()
    storage.crash_at, storage.after_effect = crash_at, after_effect
    on = Sweeping(storage)
    await on.start()
    with pytest.raises(Crash):
        await on.finish()
    return on


async def _deliver_again(on: Sweeping) -> None:
    """The broker delivers the step again that a worker did not acknowledge."""
    await on.handler.run_step(_step((await on.record()).step), again=True)


async def _chain(on: Sweeping) -> tuple[Evidence, ...]:
    """The evidence of the project, verified up to the one that the keyring names."""
    files = [
        (await on.storage.read(key))[1]
        for key in on.storage.stored_keys()
        if key.startswith(evidence_prefix("acme"))
    ]
    newest = (await on.keyring()).evidence
    if newest is None:
        assert files == []
        return ()
    public = [EVENT_KEY.verify_key()]
    return verify_chain(in_chain_order(files), public, deployment="test", newest=newest)


@pytest.mark.parametrize("dies", [False, True])
async def test_tags_of_a_replaced_round_are_back_before_their_object_is_proven(
    *, dies: bool
) -> None:
    """Such a tag holds an old wrap. The worker may die right after it has put the tag back."""
    storage = EndingStorage()
    storage.crash_at = 0 if dies else None
    on = Sweeping(storage)
    tags = {"team": (await storage.head("acme/a")).metadata["enc-dek-user"]}
    await on.start()
    await on.store.add_tag_note("acme", OTHER_ID, PAGE, {"a": tags}, "m1")
    if dies:
        with pytest.raises(Crash):
            await on.finish()
        await _deliver_again(on)
    end = await _end(on)
    assert (end.clean, end.counts.failed) == (False, 1)
    assert await storage.read_tags("acme/a") == tags
    assert [note async for note in on.store.tag_notes("acme")] == []


async def test_an_end_waits_for_no_proof_once_the_keyring_names_its_evidence() -> None:
    """A worker with a longer lease joins in between, and begins a new round."""
    on = await _crashed(1, after_effect=True)
    named = (await on.keyring()).evidence
    assert await on.process(60).extend_lease(await on.stored())
    await _deliver_again(on)
    end = await _end(on)
    assert (end.evidence, end.counts) == (named, Counts(objects=3, current=3, rewrapped=3))


async def test_an_end_whose_step_gave_up_is_finished_and_answers_nobody() -> None:
    """The keyring may name its evidence. What is taken up again is proven anew."""
    on = await _crashed(1, after_effect=True)
    step = (await on.record()).step
    await on.handler.record_failure(_step(step), StorageUnavailableError("down"))
    on.messages.waiting.clear()
    await on.handler.run_step(_step(step), again=False)
    assert (await on.record()).clean_end is None
    end = await _end(on)
    first, second = await _chain(on)
    assert first.proof.sweep_id != second.proof.sweep_id == end.round_id


async def test_a_step_that_another_worker_makes_while_it_ends_is_left_to_that_one() -> None:
    on = await _crashed(0, after_effect=True)
    step = (await on.record()).step

    async def other() -> None:
        await on.handler.run_step(_step(step), again=True)

    on.storage.before_next("put", other)
    await on.handler.run_step(_step(step), again=True)
    assert (await on.record()).origins[0].is_answered
    assert len(await _chain(on)) == 1
    assert on.messages.types().count("sweep.completed") == 1


async def test_an_end_whose_record_is_resumed_meanwhile_is_left_to_that_step() -> None:
    """Between the put of its record and the next read of it."""
    storage = EndingStorage()
    on = Sweeping(storage)

    async def resume() -> None:
        assert await on.handler.resume("acme")

    async def once_it_is_put() -> None:
        storage.before_next("read", resume)

    storage.at_end = lambda: storage.before_next("put", once_it_is_put)
    await on.start()
    before = await on.deliver_until(lambda record: record.clean_end is not None)
    assert (await on.keyring()).evidence is None
    assert on.messages.steps() == [before.step]
    assert (await _end(on)).clean
    assert len(await _chain(on)) == 1


async def test_an_end_whose_evidence_cannot_be_read_is_made_again() -> None:
    on = await _crashed(0, after_effect=True)
    stored = await on.stored()
    assert stored.record.clean_end is not None
    too_large = replace(stored.record.clean_end, envelope=" " * (MAX_EVIDENCE_BYTES + 1))
    changed = replace(stored.record, clean_end=too_large)
    assert await on.store.change(changed, stored.etag, stored.master_key)
    await _deliver_again(on)
    assert (await _end(on)).clean
    assert len(await _chain(on)) == 1


async def test_a_clean_end_answers_only_the_origins_it_was_made_for() -> None:
    """One that comes while it is made waits for the next round."""
    on = await _crashed(0, after_effect=True)
    await on.start(OTHER)
    await _deliver_again(on)
    assert (await _end(on)).clean
    assert find_origin(await on.record(), OTHER.name) == replace(
        OTHER, written_before=Counts(rewrapped=3)
    )
    assert (await _end(on, OTHER)).counts.rewrapped == 0
