"""Evidence of clean ends with a guard taken out: each is caught, the real ones hold (SPEC 15.1)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest

from keyturn.evidence import Evidence, parse
from keyturn.identifiers import EVIDENCE_PREFIX, evidence_s3_key
from keyturn_workers.core.keyring import with_evidence
from keyturn_workers.core.sweep_record import End
from keyturn_workers.core.sweep_transitions import end_round, served_origins
from keyturn_workers.keys.keyring import sealed_records
from keyturn_workers.pipeline.sweep.evidence import EvidenceLog
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from tests.protocol.process import Parts
from tests.protocol.stories import begin, hint, stop_at, violations, without

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
    from keyturn_workers.core.sweep_record import CleanEnd, Origin, ProjectRecord, Round
    from keyturn_workers.keys.sweep_records import StoredRecord
    from tests.protocol.wire import Call
    from tests.protocol.world import World

_KEYRING: Final = ".keyturn/keyrings/acme.json"
_RECORD: Final = ".keyturn/sweeps/acme.json"
_FOLDERS: Final = ".keyturn/sweeps/acme/"


def _clean_end(world: World) -> None:
    """Let everything proceed until a round looks for tags to put back: its end begins."""

    def begins(call: Call) -> bool:
        return (call.op, call.key) == ("list", _FOLDERS)

    assert world.run(until=lambda: any(map(begins, world.calls)), hold=begins)


def _named(world: World) -> list[str]:
    return world.oracle.evidence.chains["acme"]


# A worker that dies at any of the writes.

MOMENTS: Final = {
    "the record": _RECORD,
    "the keyring": _KEYRING,
    "the file": EVIDENCE_PREFIX,
    "the record's end": _RECORD,
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


# A clean end whose put of the keyring loses a race.


def a_rotation_that_is_faster_than_a_clean_end(world: World) -> None:
    begin(world, "a")
    sweep = world.sweep("acme", repair=True)
    _clean_end(world)
    put = stop_at(world, "put", _KEYRING)
    rotation = world.rotate("acme")
    assert without(world, put, until=lambda: world.events_of_type("rotation.accepted"))
    world.run()
    ends: list[Any] = [*world.ended(sweep), *world.ended(rotation)]
    assert [end.evidence for end in ends] == _named(world)[-2:]


class _KeepsPrevious(Reconciler):
    """Names the evidence that it made first in whatever keyring there is."""

    async def _finish_clean_end(
        self, stored: StoredRecord[ProjectRecord], clean_end: CleanEnd
    ) -> bool | None:
        evidence = parse(clean_end.envelope.encode())
        snapshot = await self._keyrings.read_fresh(stored.record.project)
        await self._change(snapshot, with_evidence(snapshot.keyring, evidence.digest))
        return await super()._finish_clean_end(stored, clean_end)


def test_evidence_that_lost_a_race_is_made_anew() -> None:
    story = a_rotation_that_is_faster_than_a_clean_end
    assert violations(story) == []
    found = violations(story, Parts(reconciler=_KeepsPrevious), settle=False)
    assert "the keyring of acme names evidence of another state" in found, found


# The order of writes.


def a_rotation_that_ends(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    world.run()


class _KeepsNothing(Reconciler):
    """Names evidence in the keyring that is nowhere else."""

    async def _begin_clean_end(
        self,
        stored: StoredRecord[ProjectRecord],
        record: ProjectRecord,
        current: Round,
        snapshot: KeyringSnapshot,
    ) -> bool:
        origins = served_origins(record, current, snapshot.keyring)
        evidence = parse(
            await self._evidence.build(
                record, current, origins, snapshot.keyring, late_writes_refused=True
            )
        )
        await self._change(snapshot, with_evidence(snapshot.keyring, evidence.digest))
        await self._keyrings.read_fresh(record.project)
        end = End(
            snapshot.read_at,
            clean=True,
            counts=current.counts,
            round_id=current.id,
            late_writes_refused=True,
            evidence=evidence.digest,
        )
        ended = end_round(record, [each.name for each in origins], end, record.written)
        return await self._end(stored, ended, end, snapshot.desired.master_key)


def test_evidence_is_kept_in_the_record_before_the_keyring_names_it() -> None:
    assert violations(a_rotation_that_ends) == []
    found = violations(a_rotation_that_ends, Parts(reconciler=_KeepsNothing), settle=False)
    assert "the keyring of acme names evidence that no record keeps" in found


class _PutsFirst(EvidenceLog):
    """Puts the file as soon as it is made."""

    async def build(
        self,
        record: ProjectRecord,
        of: Round,
        origins: Sequence[Origin],
        keyring: Keyring,
        *,
        late_writes_refused: bool,
    ) -> bytes:
        envelope = await super().build(
            record, of, origins, keyring, late_writes_refused=late_writes_refused
        )
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


def a_sweep_after_one_whose_file_was_removed(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    world.run()
    world.bucket_writer.remove(EVIDENCE_PREFIX)
    sweep = world.sweep("acme")
    world.run()
    assert world.ended(sweep)


class _RestoresNothing(EvidenceLog):
    async def _find_newest(self, keyring: Keyring, kept: str | None) -> Evidence | None:
        del kept
        return await super()._find_newest(keyring, None)


def test_the_file_of_the_evidence_before_is_restored_first() -> None:
    story = a_sweep_after_one_whose_file_was_removed
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


class _ForgetsWhatItKept(Reconciler):
    """Makes evidence anew each time that a message of the step arrives."""

    async def _step(self, stored: StoredRecord[ProjectRecord]) -> bool:
        record = replace(stored.record, clean_end=None)
        return await super()._step(replace(stored, record=record))


def test_an_end_that_the_keyring_named_is_not_made_twice() -> None:
    story = an_end_whose_worker_died_before_the_file
    assert violations(story) == []
    found = violations(story, Parts(reconciler=_ForgetsWhatItKept), settle=False)
    assert any("while a file of its chain is missing" in what for what in found), found


# What a bucket writer puts in the place of evidence.


def something_else_in_the_place_of_evidence(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    _clean_end(world)
    s3_key = evidence_s3_key("acme", 2, world.oracle.round("acme")["id"])
    any_object = world.server.current_objects()["acme/a"]
    world.server.plant(s3_key, b"junk", any_object.headers)
    world.run()


class _CreatesOnly(EvidenceLog):
    async def publish(self, evidence: Evidence) -> None:
        predicate = evidence.proof
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
    world.bucket_writer.remove(_RECORD)
    world.send_again(rotation)
    world.run()


def test_evidence_in_the_chain_is_never_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    story = a_rotation_whose_record_is_removed_before_its_end_is_published
    assert violations(story) == []
    monkeypatch.setattr("keyturn_workers.pipeline.sweep.reconciler.uuid4", lambda: UUID(int=1))
    found = violations(story, settle=False)
    assert "evidence of acme in the chain was replaced" in found, found


# Several requests that one round answers.


def two_rotations_in_one_round(world: World) -> None:
    begin(world, "a")
    first = world.rotate("acme")
    world.run(until=lambda: world.oracle.origin(first, "acme"), keep=hint)
    second = world.rotate("acme")
    world.run()
    ends: list[Any] = [*world.ended(first), *world.ended(second)]
    assert {end.evidence for end in ends} <= {_named(world)[-1], None}


class _NamesTheFirst(EvidenceLog):
    async def build(
        self,
        record: ProjectRecord,
        of: Round,
        origins: Sequence[Origin],
        keyring: Keyring,
        *,
        late_writes_refused: bool,
    ) -> bytes:
        return await super().build(
            record, of, origins[:1], keyring, late_writes_refused=late_writes_refused
        )


def test_evidence_names_each_request_that_it_answers() -> None:
    assert violations(two_rotations_in_one_round) == []
    found = violations(two_rotations_in_one_round, Parts(evidence_log=_NamesTheFirst), settle=False)
    assert "evidence of acme does not name a request whose end names it" in found, found
