"""Keyrings that are rolled back, and marks that come late or twice, without a guard (SPEC 5.5).

The attacker writes to the bucket. What it puts there are earlier states of its own.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import SigningKey
from keyturn.errors import MalformedRequestError
from keyturn.evidence import parse
from keyturn.identifiers import KEYRINGS_PREFIX, keyring_s3_key
from keyturn.messages import KeyringMarked, parse_mark
from keyturn_workers.core.keyring import Keyring, retire_old_keys, with_evidence
from keyturn_workers.core.sweep_record import State
from keyturn_workers.keys.keyring import mark_stream
from keyturn_workers.keys.keyring.mark_stream import MarkStream
from keyturn_workers.keys.keyring.marks import Finding, KeyringUnknownError, Mark, MarkTable
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.keys.keyring.store import parse_keyring
from keyturn_workers.pipeline.control.enrollment import Enroller
from keyturn_workers.pipeline.control.recovery import Recoverer
from keyturn_workers.pipeline.control.rotation import RotationResult, Rotator
from keyturn_workers.pipeline.sweep.all_projects import AllProjectsSweep
from keyturn_workers.pipeline.sweep.reconciler import Reconciler
from tests.protocol.marks import PUBLISH
from tests.protocol.process import CACHE_S, LEASE_S, Options, Parts
from tests.protocol.stories import BelievesAll, begin, stop_at, violations, without

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyturn.crypto import VerifyKey
    from keyturn.messages import RequestOrigin, RotationRequested
    from keyturn.publisher.event_stream import StreamRecord
    from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
    from keyturn_workers.core.sweep_record import CleanEnd, Origin, ProjectRecord
    from keyturn_workers.keys.keyring.marks import Witness
    from keyturn_workers.keys.sweep_records import StoredRecord
    from tests.protocol.process import Process
    from tests.protocol.wire import Call
    from tests.protocol.world import World

ROLLED_BACK: Final = "keyring_rolled_back"
UNENCRYPTED: Final = Options(unencrypted=frozenset(range(3)))
ONE: Final = Options(processes=1)


# What is rolled back.


def _restart_all(world: World) -> None:
    """Fresh processes, which remember nothing."""
    for process in list(world.processes):
        world.crash(process)


def _refused(world: World, *requests: str) -> None:
    """Each of these was refused because the keyring was rolled back."""
    for request in requests:
        codes = [getattr(end, "code", None) for end in world.ended(request)]
        if codes != [ROLLED_BACK]:
            world.oracle.violated("a request was not refused on a keyring that was rolled back")


def _upload_meanwhile(world: World, key: str = "late") -> None:
    """An upload on a rolled-back keyring is stored once the newest one is put back."""
    upload = world.upload("acme", key, b"x" * 300)
    world.run(seconds=30)
    assert not world.ended(upload) or not world.holds()
    world.bucket_writer.put_right("acme")
    world.run()
    assert world.ended(upload)


def rolled_back_and_rotated(world: World, *, fresh: bool = False) -> None:
    """The holder of an API key that was rotated away puts the old keyring back."""
    begin(world, "a")
    world.rotate("acme")
    world.run()
    world.bucket_writer.roll_back("acme")
    if fresh:
        _restart_all(world)
    world.advance(CACHE_S + 1)
    rotation = world.rotate("acme")
    world.run(seconds=30)
    _refused(world, rotation)
    _upload_meanwhile(world)


def rolled_back_and_rotated_in_a_fresh_process(world: World) -> None:
    rolled_back_and_rotated(world, fresh=True)


def rolled_back_after_a_master_key_was_rotated(world: World) -> None:
    """Within one generation."""
    begin(world, "a")
    world.sweep("acme", master_key="m2")
    before = world.bucket_writer.states("acme") - 1
    world.run()
    world.bucket_writer.roll_back("acme", before)
    world.advance(CACHE_S + 1)
    _upload_meanwhile(world)


def rolled_back_after_plaintext_was_forbidden(world: World) -> None:
    """Within one generation."""
    begin(world, "a", plaintext="allowed")
    world.sweep("acme", encrypt_plaintext=True)
    world.run()
    world.bucket_writer.roll_back("acme")
    world.advance(CACHE_S + 1)
    _upload_meanwhile(world)


def rolled_back_while_it_is_swept(world: World) -> None:
    """No sweep proves anything by it."""
    begin(world, "a")
    world.sweep("acme", master_key="m2")
    before = world.bucket_writer.states("acme") - 1
    world.run()
    sweep = world.sweep("acme")
    stop_at(world, "read", KEYRINGS_PREFIX)
    world.bucket_writer.roll_back("acme", before)
    world.run(seconds=60)
    if any(getattr(end, "clean", False) for end in world.ended(sweep)):
        world.oracle.violated("a sweep was clean by a keyring that was rolled back")
    world.bucket_writer.put_right("acme")
    world.run()


def objects_hidden_until_history_is_cleared(world: World) -> None:
    """No object shows that it was rolled back; after two rotations no history shows it either."""
    begin(world, "a")
    world.rotate("acme")
    world.run()
    newest = world.bucket_writer.states("acme", "a") - 1
    world.bucket_writer.hide("acme/a")
    world.bucket_writer.roll_back("acme")
    world.advance(CACHE_S + 1)
    rotations = [world.rotate("acme")]
    world.run(seconds=60)
    rotations.append(world.rotate("acme"))
    world.run(seconds=60)
    _refused(world, *rotations)
    world.bucket_writer.show("acme/a", newest)
    world.bucket_writer.put_right("acme")
    world.run()


@pytest.mark.parametrize(
    ("story", "options"),
    [
        (rolled_back_and_rotated, ONE),
        (rolled_back_and_rotated, None),
        (rolled_back_and_rotated_in_a_fresh_process, None),
        (rolled_back_after_a_master_key_was_rotated, None),
        (rolled_back_after_plaintext_was_forbidden, UNENCRYPTED),
        (rolled_back_while_it_is_swept, None),
        (objects_hidden_until_history_is_cleared, None),
    ],
)
def test_nothing_rests_on_a_keyring_that_was_rolled_back(
    story: Callable[[World], None], options: Options | None
) -> None:
    assert violations(story, options=options) == []
    assert violations(story, Parts(keyrings=BelievesAll), options, settle=False)


def removed_and_adopted(world: World) -> None:
    """With the objects that would show its generation."""
    begin(world, "a")
    world.rotate("acme")
    world.run()
    newest = world.bucket_writer.states("acme", "a") - 1
    world.bucket_writer.hide("acme/a")
    world.bucket_writer.remove_keyring("acme")
    world.advance(CACHE_S + 1)
    enrollments = [world.enroll("acme"), world.enroll("acme", adopt=True)]
    world.run(seconds=60)
    refused, adopted = (world.ended(each)[0] for each in enrollments)
    assert getattr(refused, "code", None) == ROLLED_BACK
    if getattr(adopted, "generation", 0) <= 2:
        world.oracle.violated(f"{adopted.type}, below the mark of a keyring that was removed")
    world.bucket_writer.show("acme/a", newest)
    world.run()


class _BeginsAtOne(Enroller):
    """Begins at the generation that the objects show."""

    async def _find_removed(self, request: Any) -> None:
        del request


def test_a_removed_keyring_is_adopted_above_its_mark() -> None:
    assert violations(removed_and_adopted) == []
    found = violations(removed_and_adopted, Parts(enroller=_BeginsAtOne), settle=False)
    assert any("below the mark of a keyring" in what for what in found), found


def removed_while_all_projects_are_swept(world: World) -> None:
    """So that no listing shows it, and put back afterwards."""
    begin(world, "a")
    world.enroll("beta")
    world.run()
    sweep = world.sweep("*", master_key="m2")
    world.bucket_writer.remove_keyring("acme")
    world.run(seconds=60)
    world.bucket_writer.put_right("acme")
    world.run()
    (end,) = world.ended(sweep)
    if getattr(end, "clean", True):
        world.oracle.violated("a sweep of all was clean without a project that has a mark")


class _SweepsWhatIsListed(AllProjectsSweep):
    """Passes over projects that only have a mark."""

    async def _find_missed(self, requests: tuple[Origin, ...], project: str) -> None:
        del requests, project


def test_a_sweep_of_all_misses_no_project_that_has_a_mark() -> None:
    assert violations(removed_while_all_projects_are_swept) == []
    parts = Parts(all_projects=_SweepsWhatIsListed)
    found = violations(removed_while_all_projects_are_swept, parts, settle=False)
    assert "a sweep of all was clean without a project that has a mark" in found


# When a mark is published, and what it allows.


def a_worker_that_dies_before_its_mark(world: World) -> None:
    begin(world, "a")
    rotation = world.rotate("acme")
    mark = stop_at(world, PUBLISH)
    without(world, mark, until=lambda: world.events_of_type("rotation.accepted"), seconds=1)
    world.crash(mark.sender, arriving=lambda _: False)
    world.run()
    assert [event.type for event in world.ended(rotation)] == ["rotation.completed"]


class _AnswersBeforeItsMark(KeyringReader):
    """Publishes marks in the background."""

    async def _is_marked(self, keyring: Keyring, read: Mark, since: int) -> bool:
        assert self._witness is not None
        finding = self._witness.table.compare(keyring.project, read, since)
        if finding is Finding.UNMARKED:
            self._marking = asyncio.create_task(self._witness.publish(keyring, read))
            return True
        return await super()._is_marked(keyring, read, since)


def test_no_request_is_answered_before_its_mark() -> None:
    assert violations(a_worker_that_dies_before_its_mark) == []
    parts = Parts(keyrings=_AnswersBeforeItsMark)
    found = violations(a_worker_that_dies_before_its_mark, parts, settle=False)
    assert any("accepted, and had not rotated" in what for what in found), found


@pytest.mark.parametrize("enrolls", [True, False], ids=["enrollment", "rotation"])
@pytest.mark.parametrize(
    "moment", ["before the put", "after the put", "before the mark", "in it", "after it"]
)
def test_a_worker_that_dies_between_put_and_mark_delays_its_request(
    moment: str, *, enrolls: bool
) -> None:
    def story(world: World) -> None:
        if enrolls:
            request = world.enroll("acme")
        else:
            begin(world, "a")
            request = world.rotate("acme")
        op, key = (PUBLISH, "acme") if "put" not in moment else ("put", KEYRINGS_PREFIX)
        call = stop_at(world, op, key)
        if moment in ("after the put", "after it"):
            world.step(call)
        elif moment == "in it":
            world.step(call, respond=False)
        world.crash(call.sender, arriving=lambda _: False)
        world.run()
        end = "project.enrolled" if enrolls else "rotation.completed"
        assert [event.type for event in world.ended(request)] == [end]
        world.upload("acme", "b", b"b")
        world.run()

    assert violations(story) == []


class _OwnsNothing(KeyringReader):
    """Treats a first keyring without a mark as any other one."""

    async def read_own(self, project: str, origin: RequestOrigin) -> KeyringSnapshot:
        del origin
        return await self.read_fresh(project)


def a_first_keyring_without_a_mark(world: World) -> None:
    enrollment = world.enroll("acme")
    put = stop_at(world, "put", KEYRINGS_PREFIX)
    world.crash(put.sender)
    world.run(seconds=3600)
    if [event.type for event in world.ended(enrollment)] != ["project.enrolled"]:
        world.oracle.violated("an enrollment was not answered")


def test_the_request_that_put_a_first_keyring_marks_it() -> None:
    assert violations(a_first_keyring_without_a_mark) == []
    parts = Parts(keyrings=_OwnsNothing)
    found = violations(a_first_keyring_without_a_mark, parts, settle=False)
    assert "an enrollment was not answered" in found


class _EndsBeforeItsMark(Reconciler):
    """Puts the file of evidence as soon as its put of the keyring has succeeded."""

    async def _finish_clean_end(
        self, stored: StoredRecord[ProjectRecord], clean_end: CleanEnd
    ) -> bool | None:
        evidence = parse(clean_end.envelope.encode())
        snapshot = await self._keyrings.read_fresh(stored.record.project)
        after = with_evidence(retire_old_keys(snapshot.keyring), evidence.digest)
        if State.of(snapshot.keyring) == clean_end.state and await self._change(snapshot, after):
            await self._evidence.publish(evidence)
        return await super()._finish_clean_end(stored, clean_end)


def test_evidence_is_published_after_the_mark_of_its_keyring() -> None:
    def a_rotation_that_ends(world: World) -> None:
        begin(world, "a")
        world.rotate("acme")
        world.run()

    assert violations(a_rotation_that_ends) == []
    parts = Parts(reconciler=_EndsBeforeItsMark)
    found = violations(a_rotation_that_ends, parts, settle=False)
    assert "evidence of acme was put before its keyring named it" in found


# Two branches with one serial.


def _two_branches(world: World) -> tuple[str, Call, int]:
    """A rotation whose mark is under way, the mark, and its keyring; another one was marked first.

    The bucket writer rolls the keyring back between the put and the mark of the first one.
    """
    begin(world, "a")
    before = world.bucket_writer.states("acme") - 1
    slow = world.rotate("acme")
    mark = stop_at(world, PUBLISH)
    own = world.bucket_writer.states("acme") - 1
    world.bucket_writer.roll_back("acme", before)
    world.rotate("acme")
    accepted = lambda: world.events_of_type("rotation.accepted")  # noqa: E731
    assert without(world, mark, until=accepted, seconds=5)
    return slow, mark, own


def a_branch_that_is_marked_second(world: World) -> None:
    """Its worker waits for its mark, and then finds which keyring counts."""
    slow, _, _ = _two_branches(world)
    world.run()
    assert world.ended(slow)


class _ReadsNothingBack(KeyringReader):
    """Uses a keyring as soon as its mark is published."""

    async def _is_marked(self, keyring: Keyring, read: Mark, since: int) -> bool:
        assert self._witness is not None
        finding = self._witness.table.compare(keyring.project, read, since)
        if finding is Finding.UNMARKED:
            await self._witness.publish(keyring, read)
            return True
        return await super()._is_marked(keyring, read, since)


def test_a_keyring_is_used_after_its_mark_was_read_back() -> None:
    assert violations(a_branch_that_is_marked_second) == []
    parts = Parts(keyrings=_ReadsNothingBack)
    found = violations(a_branch_that_is_marked_second, parts, settle=False)
    assert any("accepted, and had not rotated" in what for what in found), found


def a_branch_that_is_put_back(world: World) -> None:
    """Its mark is on the stream too, behind that of the other one."""
    slow, mark, own = _two_branches(world)
    world.step(mark)
    world.crash(mark.sender)
    world.bucket_writer.roll_back("acme", own)
    world.run(seconds=60)
    _refused(world, slow)
    world.bucket_writer.put_right("acme")
    world.run()


def _receive_last(self: MarkTable, project: str, mark: Mark, **more: Any) -> bool:
    """The last mark of a serial counts."""
    known = self.find(project)
    if known is not None and mark.serial == known.serial:
        del self._marks[project]
    return _RECEIVE(self, project, mark, **more)


_RECEIVE: Final = MarkTable.receive


def test_of_marks_with_one_serial_the_first_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_branch_that_is_put_back) == []
    monkeypatch.setattr(MarkTable, "receive", _receive_last)
    assert violations(a_branch_that_is_put_back, settle=False)


def two_rotations_at_once(world: World) -> None:
    """Each has read the keyring when the other one puts it."""
    begin(world, "a")
    rotations = [world.rotate("acme"), world.rotate("acme")]
    put = stop_at(world, "put", KEYRINGS_PREFIX)
    assert without(world, put, until=lambda: world.events_of_type("rotation.accepted"))
    world.run()
    assert all(world.ended(rotation) for rotation in rotations)


def a_read_in_flight_while_a_rotation_lands(world: World) -> None:
    """It shows the keyring as it was when it began."""
    begin(world, "a")
    world.rotate("acme")
    read = stop_at(world, "read", KEYRINGS_PREFIX)
    world.step(read, respond=False)
    world.rotate("acme")
    accepted = lambda: world.events_of_type("rotation.accepted")  # noqa: E731
    assert without(world, read, until=accepted, seconds=60)
    world.run()


@pytest.mark.parametrize("story", [two_rotations_at_once, a_read_in_flight_while_a_rotation_lands])
def test_a_read_is_compared_with_marks_from_before_it_began(
    story: Callable[[World], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert violations(story) == []
    if story is two_rotations_at_once:
        return  # its reads begin late enough
    compare = MarkTable.compare

    def with_any(self: MarkTable, project: str, read: Mark, since: float) -> Finding:
        del since
        return compare(self, project, read, inf)  # type: ignore[arg-type]

    monkeypatch.setattr(MarkTable, "compare", with_any)
    found = violations(story, settle=False)
    assert any("a false alarm about the keyring of acme" in what for what in found), found


# Readers that do not know the newest marks.


def _deliver_upload(world: World, process: Process) -> str:
    """A process gets an upload; all others stall for a while, so that none comes to its help."""
    upload = world.upload("acme", "late", b"x" * 300)
    for each in world.processes:
        each.stalled = each is not process
    world.run(seconds=40)
    for each in world.processes:
        each.stalled = False
    world.marks.mend()
    world.bucket_writer.put_right("acme")
    world.run()
    return upload


def a_reader_that_lags(world: World) -> None:
    """The broker delivers no marks to it any more."""
    begin(world, "a")
    process = world.processes[0]
    world.marks.delay(process)
    process.stalled = True
    world.rotate("acme")
    world.run()
    world.bucket_writer.roll_back("acme")
    assert world.ended(_deliver_upload(world, process))


def a_reader_that_is_cut_off(world: World) -> None:
    """It cannot reach the broker of the marks."""
    begin(world, "a")
    process = world.processes[0]
    world.marks.cut.add(process.number)
    process.stalled = True
    world.rotate("acme")
    world.run()
    world.bucket_writer.roll_back("acme")
    assert world.ended(_deliver_upload(world, process))


def a_fresh_reader_that_has_read_half_of_the_stream(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    world.run()
    world.bucket_writer.roll_back("acme")
    world.marks.delivered[0] = 2  # the first message, and the first mark
    world.crash(world.processes[0])
    world.advance(LEASE_S)
    assert world.ended(_deliver_upload(world, world.processes[0]))


class _AlwaysCurrent(MarkStream):
    """Uses the marks that it has, and waits for no others."""

    async def become_current(self) -> None:
        pass

    def check_current(self, project: str) -> None:
        del project


@pytest.mark.parametrize(
    "story",
    [
        a_reader_that_lags,
        a_reader_that_is_cut_off,
        a_fresh_reader_that_has_read_half_of_the_stream,
    ],
)
def test_a_reader_that_is_not_current_stores_nothing(story: Callable[[World], None]) -> None:
    assert violations(story) == []
    found = violations(story, Parts(mark_stream=_AlwaysCurrent), settle=False)
    assert any("acme/late was wrapped" in what for what in found), found


# What a broker writer, or a lost broker, can do.


def an_old_mark_published_again(world: World) -> None:
    begin(world, "a")
    old = world.marks.of("acme")[0]
    world.rotate("acme")
    world.run()
    world.marks.junk(old.body)
    world.marks.add_again(old)
    world.bucket_writer.roll_back("acme")
    world.advance(CACHE_S + 1)
    _upload_meanwhile(world)


class _TakesAny(MarkStream):
    """The last mark counts, whatever its serial."""

    def _receive(self, record: StreamRecord) -> None:
        with suppress(MalformedRequestError):
            self.table._marks.pop(parse_mark(record.body).project, None)
        super()._receive(record)


def test_no_mark_lowers_a_serial() -> None:
    assert violations(an_old_mark_published_again) == []
    found = violations(an_old_mark_published_again, Parts(mark_stream=_TakesAny), settle=False)
    assert any("acme/late was wrapped" in what for what in found), found


def a_stream_in_the_place_of_the_one_before(world: World) -> None:
    """It is lost, and the bucket writer has kept an old mark, which the broker takes again."""
    begin(world, "a")
    old = world.marks.of("acme")[0]
    world.rotate("acme")
    world.run()
    lost = world.marks.records
    world.marks.lose()
    world.marks.add_again(old)
    world.bucket_writer.roll_back("acme")
    world.advance(LEASE_S + 1)
    upload = world.upload("acme", "late", b"x" * 300)
    world.run(seconds=30)
    assert not world.ended(upload) or not world.holds()
    for record in lost[1:]:
        world.marks.add_again(record)
    world.bucket_writer.put_right("acme")
    world.run()


def test_a_stream_that_was_replaced_lowers_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_stream_in_the_place_of_the_one_before) == []

    def forgets(self: MarkTable) -> None:
        self._marks.clear()

    monkeypatch.setattr(MarkTable, "begin_again", forgets)
    found = violations(a_stream_in_the_place_of_the_one_before, settle=False)
    assert any("acme/late was wrapped" in what for what in found), found


def a_broker_that_is_lost(world: World) -> None:
    """With all marks, and with the memory of all processes."""
    begin(world, "a")
    world.rotate("acme")
    world.run()
    world.lose_broker()
    world.bucket_writer.roll_back("acme")
    world.advance(120)
    rotation, upload = world.rotate("acme"), world.upload("acme", "late", b"x" * 300)
    world.run(seconds=60)
    _refused(world, rotation)
    if world.ended(upload):
        world.oracle.violated("an upload was stored by a keyring without a mark")
    world.bucket_writer.put_right("acme")
    recovery = world.recover("acme")
    world.run()
    recovered = [event.type for event in world.ended(recovery)] == ["project.recovered"]
    assert recovered or not world.holds()
    assert world.ended(upload)


def a_rotation_that_is_sent_again_after_the_broker_was_lost(world: World) -> None:
    """By a broker writer, who kept it. The keyring that it put was put back, and has no mark."""
    begin(world, "a")
    world.rotate("acme")
    world.run(until=lambda: world.events_of_type("rotation.accepted"))
    rotated = world.bucket_writer.states("acme") - 1
    world.run()
    world.rotate("acme")
    world.run()
    world.lose_broker()
    world.bucket_writer.roll_back("acme", rotated)
    world.advance(120)
    for queued in list(world.all_messages):
        if b"rotation.requested" in queued.body:
            world.broker_writer.copy(queued)
    world.run(seconds=60)
    upload = world.upload("acme", "late", b"x" * 300)
    world.run(seconds=60)
    if world.ended(upload):
        world.oracle.violated("an upload was stored by a keyring without a mark")
    world.bucket_writer.put_right("acme")
    world.recover("acme")
    world.run()


class _MarksItsOwn(Rotator):
    """Takes a keyring that a request put for one that lacks its mark, as an enrollment does."""

    async def rotate(self, request: RotationRequested, origin: RequestOrigin) -> RotationResult:
        try:
            return await super().rotate(request, origin)
        except KeyringUnknownError as exc:
            if exc.keyring.origin == origin:
                assert self._keyrings._witness is not None
                await self._keyrings._witness.publish(exc.keyring, exc.mark)
            raise


def test_only_a_first_keyring_is_marked_by_the_request_that_put_it() -> None:
    story = a_rotation_that_is_sent_again_after_the_broker_was_lost
    assert violations(story) == []
    found = violations(story, Parts(rotator=_MarksItsOwn), settle=False)
    assert "an upload was stored by a keyring without a mark" in found


class _TrustsFirstUse(KeyringReader):
    """Marks any keyring that has no mark."""

    async def _is_marked(self, keyring: Keyring, read: Mark, since: int) -> bool:
        assert self._witness is not None
        if self._witness.table.find(keyring.project) is None:
            await self._witness.publish(keyring, read)
            return False
        return await super()._is_marked(keyring, read, since)


def test_a_lost_broker_is_noticed() -> None:
    assert violations(a_broker_that_is_lost) == []
    found = violations(a_broker_that_is_lost, Parts(keyrings=_TrustsFirstUse), settle=False)
    assert "an upload was stored by a keyring without a mark" in found


# Restored keyrings that an operator accepts.


def a_keyring_restored_from_a_backup(world: World) -> None:
    """From before a sweep to another master key. A worker dies in the midst of the recovery."""
    begin(world, "a")
    world.sweep("acme", master_key="m2")
    before = world.bucket_writer.states("acme") - 1
    world.run()
    world.bucket_writer.roll_back("acme", before)
    recovery = world.recover("acme")
    mark = stop_at(world, PUBLISH)
    world.crash(mark.sender, arriving=lambda _: False)
    world.run()
    assert [event.type for event in world.ended(recovery)] == ["project.recovered"]
    upload = world.upload("acme", "b", b"b")
    world.run()
    assert world.ended(upload)


def an_old_recovery_that_is_sent_again(world: World) -> None:
    """By a broker writer, after the keyring was rotated, and rolled back to what was accepted."""
    a_keyring_restored_from_a_backup(world)
    recovered = world.bucket_writer.states("acme") - 1
    world.rotate("acme")
    world.run()
    world.bucket_writer.roll_back("acme", recovered)
    for queued in list(world.all_messages):
        if b"recover.requested" in queued.body:
            world.broker_writer.copy(queued)
    world.run(seconds=60)
    world.bucket_writer.put_right("acme")
    world.run()


class _AcceptsAny(Recoverer):
    """Accepts what it finds, whatever the request names."""

    def _check(self, record: Any, request: Any) -> None:
        del record, request


def test_a_recovery_accepts_what_its_operator_was_shown() -> None:
    assert violations(a_keyring_restored_from_a_backup) == []
    assert violations(an_old_recovery_that_is_sent_again) == []
    parts = Parts(recoverer=_AcceptsAny)
    found = violations(an_old_recovery_that_is_sent_again, parts, settle=False)
    assert any("recovered against a mark" in what for what in found), found


# The thief of an event key, who also writes to the broker.

_PAST_BOUNDS: Final[tuple[dict[str, object], ...]] = (
    {"serial": 2**63 - 1},
    {"serial": 9, "generation": 2**64},
    {"serial": 9, "at": "1969-12-31T23:59:59Z"},
)


def marks_that_no_worker_writes(world: World) -> None:
    """They raise no serial, and end no worker's reading of marks, also after a restart."""
    begin(world, "a")
    for change in _PAST_BOUNDS:
        world.marks.forge("acme", change)
    _restart_all(world)
    world.advance(LEASE_S + 1)
    rotation, upload = world.rotate("acme"), world.upload("acme", "late", b"x" * 300)
    world.run(seconds=60)
    if not (world.ended(rotation) and world.ended(upload)):
        world.oracle.violated("marks that no worker writes kept requests from being served")


def _parse_without_bounds(body: bytes) -> KeyringMarked:
    document = json.loads(body)
    if document["type"] != "keyring.marked":
        raise MalformedRequestError("another message")
    return KeyringMarked.model_construct(**document)


def test_a_mark_out_of_bounds_counts_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(marks_that_no_worker_writes) == []
    monkeypatch.setattr(mark_stream, "parse_mark", _parse_without_bounds)
    found = violations(marks_that_no_worker_writes, settle=False)
    assert "marks that no worker writes kept requests from being served" in found


def a_recovery_above_a_mark_that_leaves_no_room(world: World) -> None:
    """It would put a keyring that could change once more."""
    begin(world, "a")
    world.marks.forge("acme", {"serial": 2**48 - 2})
    world.oracle.marks.touched.add("acme")
    record = world.server.current_objects()[keyring_s3_key("acme")].body
    recovery = world.recover("acme")
    world.run(seconds=60)
    _refused(world, recovery)
    if world.server.current_objects()[keyring_s3_key("acme")].body != record:
        world.oracle.violated("a keyring was put above a mark that leaves no room")
    world.lose_broker()
    world.advance(120)
    recovery = world.recover("acme")
    world.run(seconds=60)
    rotations = [world.rotate("acme") for _ in range(2)]
    world.run()
    if not all(map(world.ended, (recovery, *rotations))):
        world.oracle.violated("a recovered keyring cannot change")


def test_no_keyring_is_put_above_a_mark_that_leaves_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    story = a_recovery_above_a_mark_that_leaves_no_room
    assert violations(story) == []
    monkeypatch.setattr("keyturn_workers.pipeline.control.recovery.check_has_room", lambda *_: None)
    found = violations(story, settle=False)
    assert "a keyring was put above a mark that leaves no room" in found


_EARLIER: Final = SigningKey.from_seed(bytes([8]) * 32)


class _TwoEventKeys(MarkStream):
    """As after a rotation of the event key, until the earlier one is removed."""

    def __init__(
        self, broker: Any, deployment: str, verify_keys: Sequence[VerifyKey], **more: Any
    ) -> None:
        super().__init__(broker, deployment, [*verify_keys, _EARLIER.verify_key()], **more)


def a_mark_that_the_thief_of_an_earlier_event_key_signed(world: World) -> None:
    """The sweep of all projects gives it no signature by the current key."""
    begin(world, "a")
    world.oracle.marks.touched.add("acme")
    world.marks.forge("acme", {"serial": 2**40}, _EARLIER)
    world.sweep("*")
    world.run(seconds=60)
    world.parts = replace(world.parts, mark_stream=MarkStream)
    _restart_all(world)
    world.advance(LEASE_S + 1)
    upload = world.upload("acme", "late", b"x" * 300)
    world.run()
    assert world.ended(upload) or not world.holds()


class _SignsAnyAnew(KeyringReader):
    """Signs whatever mark an earlier event key signed."""

    async def _sign_mark_anew(self, witness: Witness, project: str) -> None:
        body = (await self._storage.read(keyring_s3_key(project)))[1]
        mark = witness.table.find(project)
        assert mark is not None
        await witness.publish(await parse_keyring(body, project, self._keys), mark)


def test_only_a_mark_that_its_keyring_matches_is_signed_anew() -> None:
    story = a_mark_that_the_thief_of_an_earlier_event_key_signed
    assert violations(story, Parts(mark_stream=_TwoEventKeys)) == []
    parts = Parts(mark_stream=_TwoEventKeys, keyrings=_SignsAnyAnew)
    found = violations(story, parts, settle=False)
    assert "a mark of acme names a keyring that was never put" in found
