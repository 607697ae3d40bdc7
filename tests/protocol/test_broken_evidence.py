"""Evidence of clean ends with a guard taken out: each is caught, the real ones hold (SPEC 15.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.evidence import Evidence, parse
from keyturn.identifiers import EVIDENCE_PREFIX, evidence_s3_key
from keyturn_workers.keyring import sealed_records, with_evidence
from keyturn_workers.sweep.clean_end import end_with
from keyturn_workers.sweep.evidence_log import EvidenceLog
from keyturn_workers.sweep.plan import KeptEnvelope, State
from keyturn_workers.sweep.project_sweep import ProjectSweep
from keyturn_workers.sweep.takeover import copy_end
from tests.protocol.process import Parts
from tests.protocol.stories import begin, hint, stop_at, violations, without

if TYPE_CHECKING:
    from keyturn_workers.keyring import Keyring, KeyringSnapshot
    from keyturn_workers.sweep.plan import OpenPage, Plan
    from keyturn_workers.sweep.sweep_store import StoredPlan
    from tests.protocol.broker import QueuedMessage
    from tests.protocol.wire import Call
    from tests.protocol.world import World

_KEYRING: Final = ".keyturn/keyrings/acme.json"
_RECORDS: Final = ".keyturn/sweeps/"


def _clean_end(world: World) -> None:
    """Let everything proceed until a sweep looks for evidence of its own: its end begins."""
    stop_at(world, "read", EVIDENCE_PREFIX)


def _named(world: World) -> list[str]:
    return world.oracle.evidence.chains["acme"]


# A worker that dies at any of the writes.

MOMENTS: Final = {
    "the record": _RECORDS,
    "the keyring": _KEYRING,
    "the file": EVIDENCE_PREFIX,
    "the record's end": _RECORDS,
}


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_a_clean_end_continues_if_its_worker_dies_at(moment: str, *, arrives: bool) -> None:
    def story(world: World) -> None:
        begin(world, "a", "b")
        rotation = world.rotate("acme")
        _clean_end(world)
        call = _at(world, moment)
        world.crash(call.sender, arriving=lambda _: arrives)
        world.run()
        (end,) = world.ended(rotation)
        assert end.evidence == _named(world)[-1]  # type: ignore[union-attr]

    assert violations(story) == []


def _at(world: World, moment: str) -> Call:
    for name, prefix in MOMENTS.items():
        call = stop_at(world, "put", prefix)
        if name == moment:
            return call
        world.step(call)
    raise AssertionError(moment)


# Two sweeps of a project that end at once.


def two_sweeps_that_end_at_once(world: World) -> None:
    """The later one does less, so it does not take the earlier one over."""
    begin(world, "a")
    repair = world.sweep("acme", repair=True)
    _clean_end(world)
    put = stop_at(world, "put", _KEYRING)
    world.advance(1)
    sweep = world.sweep("acme")
    assert without(world, put, until=lambda: world.ended(sweep))
    world.run()
    assert world.ended(repair)
    ends: list[Any] = [*world.ended(sweep), *world.ended(repair)]
    assert [end.evidence for end in ends] == _named(world)[-2:]


class _KeepsPrevious(ProjectSweep):
    """Names the evidence that it made first in whatever keyring there is."""

    async def _resume_clean_end(
        self,
        stored: StoredPlan[Plan],
        plan: Plan,
        kept: KeptEnvelope,
        proven: tuple[OpenPage, ...],
    ) -> bool | None:
        evidence = parse(kept.text.encode())
        for _ in range(9):
            snapshot = await self._keyrings.read_fresh(plan.ask.project)
            if await self._evidence.is_chained(evidence, snapshot.keyring):
                await self._evidence.publish(evidence)
                ended = end_with(plan, kept, evidence)
                return await self._end(stored, ended, snapshot, proven, clean=True)
            await self._change(snapshot, with_evidence(snapshot.keyring, evidence.digest))
        raise StorageUnavailableError


def test_evidence_that_lost_a_race_is_made_anew() -> None:
    story = two_sweeps_that_end_at_once
    assert violations(story) == []
    found = violations(story, Parts(project_sweep=_KeepsPrevious), settle=False)
    assert any("the chain of acme forks" in what for what in found), found


# The order of writes.


def a_rotation_that_ends(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    world.run()


class _KeepsNothing(ProjectSweep):
    """Names evidence in the keyring that is nowhere else."""

    async def _begin_clean_end(
        self,
        stored: StoredPlan[Plan],
        plan: Plan,
        snapshot: KeyringSnapshot,
        proven: tuple[OpenPage, ...],
    ) -> bool:
        evidence = parse(
            await self._evidence.build(plan, snapshot.keyring, late_writes_refused=True)
        )
        kept = KeptEnvelope(evidence.envelope.decode(), State.of(snapshot))
        await self._change(snapshot, with_evidence(snapshot.keyring, evidence.digest))
        snapshot = await self._keyrings.read_fresh(plan.ask.project)
        await self._evidence.publish(evidence)
        return await self._end(stored, end_with(plan, kept, evidence), snapshot, proven, clean=True)


def test_evidence_is_kept_in_the_record_before_the_keyring_names_it() -> None:
    assert violations(a_rotation_that_ends) == []
    found = violations(a_rotation_that_ends, Parts(project_sweep=_KeepsNothing), settle=False)
    assert "the keyring of acme names evidence that no record keeps" in found


class _PutsFirst(EvidenceLog):
    """Puts the file as soon as it is made."""

    async def build(self, plan: Plan, keyring: Keyring, *, late_writes_refused: bool) -> bytes:
        envelope = await super().build(plan, keyring, late_writes_refused=late_writes_refused)
        await self.publish(parse(envelope))
        return envelope


def test_a_file_appears_once_the_keyring_names_it() -> None:
    found = violations(a_rotation_that_ends, Parts(evidence_log=_PutsFirst), settle=False)
    assert "evidence of acme was put before its keyring named it" in found


class _PutsNothing(EvidenceLog):
    async def publish(self, evidence: Evidence) -> None:
        pass


def test_an_end_is_published_once_its_file_exists() -> None:
    found = violations(a_rotation_that_ends, Parts(evidence_log=_PutsNothing), settle=False)
    assert any("while a file of its chain is missing" in what for what in found), found


# The file of the evidence before.


def a_sweep_that_ends_after_one_whose_worker_died(world: World) -> None:
    """The first one's worker died before it put the file, and its message is late."""
    begin(world, "a")
    repair = world.sweep("acme", repair=True)
    _clean_end(world)
    put = stop_at(world, "put", EVIDENCE_PREFIX)
    world.crash(put.sender, arriving=lambda _: False)
    assert len(_named(world)) == 1
    world.advance(1)
    sweep = world.sweep("acme")

    def of_the_first(queued: QueuedMessage) -> bool:
        return hint(queued).get("sweep_id") == repair

    assert world.run(until=lambda: world.ended(sweep), keep=of_the_first)
    world.run()
    assert world.ended(repair)


class _RestoresNothing(EvidenceLog):
    async def _find_kept(self, project: str, wanted: str) -> Evidence | None:
        del project, wanted
        return None


def test_the_file_of_the_evidence_before_is_restored_first() -> None:
    story = a_sweep_that_ends_after_one_whose_worker_died
    assert violations(story) == []
    found = violations(story, Parts(evidence_log=_RestoresNothing), settle=False)
    assert any("while a file of its chain is missing" in what for what in found), found


def an_end_whose_worker_died_before_the_file(world: World) -> None:
    begin(world, "a")
    rotation = world.rotate("acme")
    _clean_end(world)
    put = stop_at(world, "put", EVIDENCE_PREFIX)
    world.crash(put.sender, arriving=lambda _: False)
    world.run()
    assert len(world.ended(rotation)) == 1


class _ForgetsWhatItKept(ProjectSweep):
    """Makes evidence anew each time that a message of the step arrives."""

    async def _step(self, stored: StoredPlan[Plan]) -> bool:
        return await super()._step(replace(stored, plan=replace(stored.plan, envelope=None)))


def test_an_end_that_the_keyring_named_is_not_made_twice() -> None:
    story = an_end_whose_worker_died_before_the_file
    assert violations(story) == []
    found = violations(story, Parts(project_sweep=_ForgetsWhatItKept), settle=False)
    assert any("while a file of its chain is missing" in what for what in found), found


# What a bucket writer puts in the place of evidence.


def something_else_in_the_place_of_evidence(world: World) -> None:
    begin(world, "a")
    rotation = world.rotate("acme")
    _clean_end(world)
    s3_key = evidence_s3_key("acme", 2, rotation)
    any_object = world.server.current_objects()["acme/a"]
    world.server.plant(s3_key, b"junk", any_object.headers)
    world.run()


class _CreatesOnly(EvidenceLog):
    async def publish(self, evidence: Evidence) -> None:
        predicate = evidence.predicate
        s3_key = evidence_s3_key("acme", predicate.generation, predicate.sweep_id)
        await sealed_records.create(self._storage, s3_key, evidence.envelope)


def test_what_is_in_the_place_of_evidence_is_replaced() -> None:
    story = something_else_in_the_place_of_evidence
    assert violations(story) == []
    found = violations(story, Parts(evidence_log=_CreatesOnly), settle=False)
    assert any("while a file of its chain is missing" in what for what in found), found


# A sweep whose record was removed, and that is requested again.


def a_rotation_whose_record_is_removed_before_its_end_is_published(world: World) -> None:
    begin(world, "a")
    rotation = world.rotate("acme")
    world.step(stop_at(world, "put", EVIDENCE_PREFIX))
    world.bucket_writer.remove(f"{_RECORDS}{rotation}/")
    world.send_again(rotation)
    world.run()


async def _none(*_: object) -> None:
    return None


def test_evidence_in_the_chain_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    story = a_rotation_whose_record_is_removed_before_its_end_is_published
    assert violations(story) == []
    monkeypatch.setattr(EvidenceLog, "find_own", _none)
    found = violations(story, settle=False)
    assert "evidence of acme in the chain was replaced" in found, found


# An end that is copied.


def a_sweep_that_is_taken_over(world: World) -> None:
    begin(world, "a")
    first = world.rotate("acme")
    world.run(until=lambda: world.oracle.plan(first, "acme"), keep=hint)
    second = world.rotate("acme")
    world.run()
    ends: list[Any] = [*world.ended(first), *world.ended(second)]
    assert {end.evidence for end in ends} <= {_named(world)[-1], None}


def test_an_end_that_is_copied_names_the_evidence_of_the_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(a_sweep_that_is_taken_over) == []
    monkeypatch.setattr(
        "keyturn_workers.sweep.project_sweep.copy_end",
        lambda plan, later: replace(copy_end(plan, later), evidence=None),
    )
    found = violations(a_sweep_that_is_taken_over, settle=False)
    assert any("names no evidence in the chain" in what for what in found), found
