"""Erasures with a guard taken out: each is caught, and the real ones hold (SPEC 8.8)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from keyturn.counts import Counts
from keyturn.identifiers import (
    EVIDENCE_PREFIX,
    evidence_prefix,
    evidence_s3_key,
    keyring_s3_key,
)
from keyturn_workers.core.erasure import Erasure, KeyState
from keyturn_workers.core.keyring import retire_old_keys
from keyturn_workers.core.keyring_erasure import check_erasable, erase, judge_erasure
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_record import End
from keyturn_workers.keys.customer_keys.secrets import CachedCustomerKeys
from keyturn_workers.keys.keyring.marks import KeyringErasedError
from keyturn_workers.keys.keyring.reader import KeyringReader
from keyturn_workers.pipeline.sweep import eraser, reconciler
from keyturn_workers.pipeline.sweep.eraser import Eraser
from keyturn_workers.pipeline.sweep.evidence import EvidenceLog
from tests.protocol.customer_keys import GIVEN, named
from tests.protocol.erasure_laws import GONE, HOLDS_FOR_S
from tests.protocol.process import Options, Parts
from tests.protocol.stories import begin, hint, stop_at, violations, without
from tests.protocol.test_broken_customer_keys import REFUSES_LATE, lock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from keyturn.errors import CodedError
    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.keyring_snapshot import KeyringSnapshot
    from keyturn_workers.core.sweep_record import Origin, ProjectRecord
    from keyturn_workers.keys.keyring.marks import StoredKeyring
    from tests.protocol.customer_keys import Mood
    from tests.protocol.wire import Call
    from tests.protocol.world import World

KEY, OTHER_KEY = GIVEN["acme"]
_KEYRING: Final = keyring_s3_key("acme")
_RECORD: Final = ".keyturn/sweeps/acme.json"
_HOUR_S: Final = 3600


def begin_locked(world: World, *keys: str) -> None:
    """A project that was enrolled with its customer key."""
    begin(world, *keys, customer_key=named(KEY))


def expect(world: World, request_id: str, *answers: str) -> None:
    """The request has these answers: types of events, or codes of refusals."""
    ends: list[Any] = world.ended(request_id)
    found = [getattr(end, "code", end.type) for end in ends]
    if not found or not set(found) <= set(answers):
        world.oracle.violated(f"{request_id} ended with {found}, not {answers}")


ERASED: Final = "project.erased"
REFUSED: Final = "generation_mismatch"


def _erase_under(world: World, mood: Mood) -> None:
    world.stores.moods[KEY] = mood
    erasure = world.erase("acme")
    world.run()
    expect(world, erasure, ERASED)
    late = [world.upload("acme", "late", b"late"), world.sweep("acme"), world.rotate("acme")]
    late += [world.delete("acme", "a"), world.enroll("acme", adopt=True)]
    world.run()
    for each in late:
        expect(world, each, "project_erased")


@pytest.mark.parametrize("mood", GONE)
def test_a_project_whose_key_is_gone_is_erased(mood: Mood) -> None:
    def story(world: World) -> None:
        begin_locked(world, "a", "b")
        _erase_under(world, mood)

    assert violations(story) == []


def an_erasure_after_a_proof(world: World) -> None:
    begin(world, "a")
    lock(world)
    lock(world, OTHER_KEY)
    world.stores.moods[OTHER_KEY] = "missing"
    erasure = world.erase("acme")
    world.run()
    expect(world, erasure, ERASED)


def test_evidence_of_an_erasure_names_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(an_erasure_after_a_proof, options=REFUSES_LATE) == []

    def proven_by_nothing(keyring: Keyring, erasure: Erasure) -> Keyring:
        return replace(keyring, erasure=replace(erasure, proven_by=None))

    monkeypatch.setattr(eraser, "begin_erasure", proven_by_nothing)
    found = violations(an_erasure_after_a_proof, options=REFUSES_LATE, settle=False)
    assert "the evidence of the erasure of acme does not name the proof" in found


def two_secrets_of_which_one_is_given(world: World) -> None:
    """The rotation to the second one has not ended."""
    begin_locked(world, "a")
    rotation = world.rotate("acme", customer_key=named(OTHER_KEY))
    world.run(until=lambda: world.ended(rotation) or world.oracle.origin(rotation, "acme"))
    world.stores.moods[OTHER_KEY] = "disabled"
    erasure = world.erase("acme")
    world.run(until=lambda: world.ended(erasure))
    expect(world, erasure, REFUSED)


def test_every_secret_that_a_wrap_may_need_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(two_secrets_of_which_one_is_given) == []

    def of_the_newest(keyring: Keyring, states: Mapping[str, KeyState], now: datetime) -> Any:
        newest = dict.fromkeys(states, KeyState.DISABLED)
        newest[str(keyring.current.secret_id)] = states[str(keyring.current.secret_id)]
        return judge_erasure(keyring, newest, now)

    monkeypatch.setattr(eraser, "judge_erasure", of_the_newest)
    found = violations(two_secrets_of_which_one_is_given, settle=False)
    assert "acme was erased, and no store said that its key is disabled" in found


def stores_that_are_asked_again(world: World) -> None:
    """Each time by a new request: its key stays as it is, is deleted, and is restored."""
    begin_locked(world, "a")
    evidence: list[str] = []
    for mood, answer in (
        ("disabled", ERASED),
        ("disabled", ERASED),
        ("missing", ERASED),
        ("gives", REFUSED),
    ):
        world.stores.moods[KEY] = cast("Mood", mood)
        erasure = world.erase("acme")
        world.run()
        expect(world, erasure, answer)
        evidence += [getattr(end, "evidence", "none") for end in world.ended(erasure)]
    if len(dict.fromkeys(evidence)) != 3 or evidence[0] != evidence[1]:
        world.oracle.violated(f"other answers have no evidence of their own: {evidence}")


def test_other_answers_have_evidence_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(stores_that_are_asked_again) == []
    monkeypatch.setattr(EvidenceLog, "build_erasure", _of_the_first(EvidenceLog.build_erasure))
    found = violations(stores_that_are_asked_again, settle=False)
    assert "the evidence of the erasure of acme does not name the proof" in found


def _of_the_first(build: Any) -> Any:
    async def built(log: Any, record: Any, origin: Any, keyring: Keyring, erasure: Erasure) -> Any:
        """Takes the newest evidence for the proof, though it is of an erasure."""
        erasure = replace(erasure, proven_by=keyring.evidence)
        return await build(log, record, origin, keyring, erasure)

    return built


# A worker that dies at any of the writes.

MOMENTS: Final = {
    "the record": _RECORD,
    "the keyring that waits": _KEYRING,
    "the next step": _RECORD,
    "the kept evidence": _RECORD,
    "the erased keyring": _KEYRING,
    "the file": EVIDENCE_PREFIX,
    "the record's end": _RECORD,
    "the published end": _RECORD,
}


@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_an_erasure_continues_if_its_worker_dies_at(moment: str, *, arrives: bool) -> None:
    def story(world: World) -> None:
        begin_locked(world, "a")
        world.stores.moods[KEY] = "disabled"
        erasure = world.erase("acme")
        call = _at(world, moment)
        world.crash(call.sender, arriving=lambda _: arrives)
        world.run()
        expect(world, erasure, ERASED)

    assert violations(story) == []


def _at(world: World, moment: str) -> Call:
    for name, prefix in MOMENTS.items():
        call = stop_at(world, "put", prefix)
        if name == moment:
            return call
        world.step(call)
    raise AssertionError(moment)


# What is no answer of a store about a key.


def _refused_under(mood: Mood) -> Any:
    def story(world: World) -> None:
        begin_locked(world, "a")
        world.stores.moods[KEY] = mood
        erasure = world.erase("acme")
        world.run()
        expect(world, erasure, REFUSED)
        world.stores.mend()
        upload = world.upload("acme", "b", b"b")
        world.run()
        expect(world, upload, "upload.stored")

    return story


class _TakesADenialForAnAnswer(CachedCustomerKeys):
    async def _state(self, project: str, key: Any) -> KeyState:
        state = await super()._state(project, key)
        return KeyState.DISABLED if state is KeyState.UNDECIDED else state


class _BelievesWhoeverAnswers(CachedCustomerKeys):
    """Does not ask whether its credentials are known to the store."""

    def __init__(self, stores: Mapping[str, Any], *args: Any, **how: Any) -> None:
        super().__init__(stores, *args, **how)

        async def believe(_: str) -> None:
            pass

        for store in stores.values():
            store.check_answers = believe


@pytest.mark.parametrize(
    ("mood", "broken"),
    [
        ("refuses", _TakesADenialForAnAnswer),
        ("away", _TakesADenialForAnAnswer),
        ("lies", _TakesADenialForAnAnswer),
        ("pretends", _BelievesWhoeverAnswers),
    ],
)
def test_a_denied_access_erases_nothing(mood: Mood, broken: type[CachedCustomerKeys]) -> None:
    assert violations(_refused_under(mood)) == []
    found = violations(_refused_under(mood), Parts(customer_keys=broken), settle=False)
    assert "acme was erased, and no store said that its key is disabled" in found


# Answers that are old.


def _kept_evidence(world: World) -> tuple[str, Call]:
    """A worker has kept the evidence, and reads the keyring once more."""
    begin_locked(world, "a")
    world.stores.moods[KEY] = "disabled"
    erasure = world.erase("acme")
    world.step(_at(world, "the kept evidence"))
    return erasure, stop_at(world, "read", _KEYRING)


def a_worker_that_dies_before_the_end(world: World) -> None:
    erasure, read = _kept_evidence(world)
    world.crash(read.sender)
    world.stores.mend()
    world.advance(_HOUR_S)
    world.run()
    expect(world, erasure, REFUSED)


def a_worker_that_stalls_before_the_end(world: World) -> None:
    """It has read the keyring, and does not know for how long it was stalled."""
    erasure, read = _kept_evidence(world)
    world.step(read, respond=False)
    read.sender.stalled = True
    world.stores.mend()
    world.advance(_HOUR_S)
    read.sender.stalled = False
    world.run()
    expect(world, erasure, REFUSED)


def a_front_end_that_is_late_by_a_day(world: World) -> None:
    erasure, read = _kept_evidence(world)
    world.crash(read.sender)
    world.stores.mend()
    world.advance(_HOUR_S)

    def reads(call: Call) -> bool:
        return (call.op, call.key) == ("read", _KEYRING)

    world.server.front_end(-24 * _HOUR_S, reads, times=2)
    world.run()
    expect(world, erasure, REFUSED)


OLD: Final = (
    a_worker_that_dies_before_the_end,
    a_worker_that_stalls_before_the_end,
    a_front_end_that_is_late_by_a_day,
)


@pytest.mark.parametrize("story", OLD)
def test_no_project_is_erased_by_answers_that_are_old(
    monkeypatch: pytest.MonkeyPatch, story: Any
) -> None:
    assert violations(story) == []
    monkeypatch.setattr(reconciler, "_is_fresh", lambda *_: True)
    found = violations(story, settle=False)
    assert "acme was erased by what a store had said long before" in found


def a_key_that_is_enabled_while_another_is_asked_for(world: World) -> None:
    """Each key is gone at some time, but not both."""
    begin_locked(world, "a")
    rotation = world.rotate("acme", customer_key=named(OTHER_KEY))
    world.run(until=lambda: world.oracle.origin(rotation, "acme"))
    world.advance(1)
    world.stores.moods.update({KEY: "disabled", OTHER_KEY: "disabled"})
    erasure = world.erase("acme")
    world.step(stop_at(world, "put", _KEYRING))
    world.stores.moods[OTHER_KEY] = "away"
    world.run(seconds=30)
    world.stores.moods.update({KEY: "gives", OTHER_KEY: "disabled"})
    world.run(until=lambda: not world.holds() or world.ended(erasure))
    expect(world, erasure, REFUSED)


class _KeepsWhatIsGone(CachedCustomerKeys):
    """Takes a key that was gone for one that is."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        self._gone: dict[str, KeyState] = {}

    async def ask(self, keyring: Keyring) -> Mapping[str, KeyState]:
        states = await super().ask(keyring)
        if keyring.erasure is None:
            return states
        self._gone |= {each: state for each, state in states.items() if state.is_gone}
        return {**states, **self._gone}


def test_all_keys_are_gone_at_the_same_time() -> None:
    story, options = a_key_that_is_enabled_while_another_is_asked_for, Options(processes=1)
    assert violations(story, options=options) == []
    broken = Parts(customer_keys=_KeepsWhatIsGone)
    found = violations(story, broken, options, settle=False)
    assert "acme was erased by a worker to which its key was given again" in found


# A refusal.


def _refused(world: World) -> str:
    """The key gives; it is disabled later, for another reason."""
    begin_locked(world, "a")
    erasure = world.erase("acme")
    world.run()
    expect(world, erasure, REFUSED)
    world.stores.moods[KEY] = "disabled"
    return erasure


def a_record_that_is_set_back(world: World) -> None:
    """To one in which the erasure was open."""
    _refused(world)
    world.bucket_writer.set_back("acme", 0)
    world.advance(1000)
    world.scan_sweeps(world.processes[0])
    world.run()


def a_record_that_is_removed(world: World) -> None:
    erasure = _refused(world)
    world.bucket_writer.remove(_RECORD)
    world.replay(erasure)
    world.run()


def an_older_request_that_arrives_later(world: World) -> None:
    begin_locked(world, "a")
    older = world.erase("acme")
    late = world.queue[-1]
    world.advance(1)
    newer = world.erase("acme")
    world.run(keep=lambda queued: queued is late)
    expect(world, newer, REFUSED)
    world.stores.moods[KEY] = "disabled"
    world.run()
    expect(world, older, REFUSED)


@pytest.mark.parametrize(
    "story",
    [a_record_that_is_set_back, a_record_that_is_removed, an_older_request_that_arrives_later],
)
def test_a_refused_erasure_stays_refused(monkeypatch: pytest.MonkeyPatch, story: Any) -> None:
    assert violations(story) == []

    def only_in_the_record(keyring: Keyring, requested_at: str) -> Keyring:
        del requested_at
        return replace(keyring, erasure=None)

    monkeypatch.setattr(eraser, "refuse_erasure", only_in_the_record)
    found = violations(story, settle=False)
    assert "acme was erased by a request that was refused, or an older one" in found


# The keyring and its evidence.


def an_erasure(world: World) -> None:
    begin_locked(world, "a")
    world.stores.moods[KEY] = "disabled"
    world.erase("acme")
    world.run(until=lambda: not world.holds() or world.events_of_type("project.erased"))


class _ErasesFirst(Eraser):
    """Makes the evidence of a keyring that is erased already."""

    async def advance(self, record: ProjectRecord, origin: Origin, stored: StoredKeyring) -> Any:
        if stored.keyring.erasure is not None and not stored.keyring.is_erased:
            states = await self._customer_keys.ask(stored.keyring)
            judged = judge_erasure(stored.keyring, states, stored.read_at)
            assert judged is not None
            await self._change(stored, erase(stored.keyring, judged))
            stored = await self._context.keyrings.read_record("acme")
        return await super().advance(record, origin, stored)


NAMES_NONE: Final = "the keyring of acme is erased, and names no evidence of that"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("with_evidence", lambda keyring, _: keyring, NAMES_NONE),
        ("Eraser", _ErasesFirst, NAMES_NONE),
        (
            "erase",
            lambda keyring, _: retire_old_keys(keyring),
            "the keyring of acme names evidence of an erasure, and is not erased",
        ),
    ],
)
def test_a_keyring_is_erased_by_the_put_that_names_its_evidence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: Any, expected: str
) -> None:
    monkeypatch.setattr(reconciler, name, value)
    assert expected in violations(an_erasure, settle=False)


def an_erased_keyring_that_is_put_back(world: World) -> None:
    """As it was before, and then it is removed, and recovered."""
    begin_locked(world, "a")
    before = world.bucket_writer.states("acme") - 1
    world.stores.moods[KEY] = "disabled"
    erasure = world.erase("acme")
    world.run()
    expect(world, erasure, ERASED)
    world.stores.mend()
    world.bucket_writer.roll_back("acme", before)
    world.advance(3)
    recovery = world.recover("acme")
    world.run()
    expect(world, recovery, "project_erased")
    world.bucket_writer.remove_keyring("acme")
    world.advance(3)
    enrollments = [world.enroll("acme"), world.enroll("acme", adopt=True)]
    world.run()
    for enrollment in enrollments:
        # Without `adopt`, objects that exist come first.
        expect(world, enrollment, "project_erased", "already_enrolled")


def test_an_erased_project_is_erased_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(an_erased_keyring_that_is_put_back) == []
    marks = "keyturn_workers.keys.keyring.marks.Mark.erased"
    monkeypatch.setattr(marks, property(lambda _: False, lambda *_: None), raising=False)
    found = violations(an_erased_keyring_that_is_put_back, settle=False)
    assert "acme was erased, and is not any more" in found


class _ServesTheLastOne(KeyringReader):
    """Serves uploads by what it knew of a keyring before it was erased."""

    _last: KeyringSnapshot | None = None

    async def read_fresh(self, project: str) -> KeyringSnapshot:
        self._last = await super().read_fresh(project)
        return self._last

    async def read_recent(self, project: str) -> KeyringSnapshot:
        try:
            return await super().read_recent(project)
        except KeyringErasedError:
            assert self._last is not None
            return replace(self._last, read_at=self.clock.now(), sent_s=self.clock.local_s())


def test_nothing_is_stored_for_an_erased_project() -> None:
    def story(world: World) -> None:
        an_erasure(world)
        world.stores.mend()
        upload = world.upload("acme", "late", b"late")
        world.run(until=lambda: not world.holds() or world.ended(upload))

    assert violations(story) == []
    found = violations(story, Parts(keyrings=_ServesTheLastOne), settle=False)
    assert any(what.endswith("was written, and acme is erased") for what in found), found


# What waits.


def _waiting(world: World) -> str:
    """A project waits for its erasure, whose next step is not made."""
    begin_locked(world, "a")
    world.stores.moods[KEY] = "disabled"
    erasure = world.erase("acme")
    world.step(_at(world, "the keyring that waits"))
    world.run(keep=hint, seconds=1)
    return erasure


def an_erasure_that_nobody_continues(world: World) -> None:
    """Its record and its messages are lost."""
    _waiting(world)
    world.bucket_writer.remove(_RECORD)
    world.drop_messages(hint)
    world.stores.mend()
    upload = world.upload("acme", "b", b"b")
    world.run(seconds=HOLDS_FOR_S + 600, keep=hint)
    expect(world, upload, "upload.stored")


def test_a_project_waits_for_its_erasure_no_longer_than_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(an_erasure_that_nobody_continues) == []
    monkeypatch.setattr(Erasure, "holds_at", lambda *_: True)
    found = violations(an_erasure_that_nobody_continues, settle=False)
    assert "acme waits for its erasure for too long" in found


class _AsksLate(CachedCustomerKeys):
    """Asks no store before the project waits."""

    async def ask(self, keyring: Keyring) -> Mapping[str, KeyState]:
        if keyring.erasure is None:
            return {key.secret_id: KeyState.MISSING for key in keyring.customer_keys.values()}
        return await super().ask(keyring)


@pytest.mark.parametrize("mood", ["gives", "refuses", "away"])
def test_no_project_waits_for_an_erasure_before_its_stores_were_asked(mood: Mood) -> None:
    assert violations(_refused_under(mood)) == []
    found = violations(_refused_under(mood), Parts(customer_keys=_AsksLate), settle=False)
    assert "acme waits for its erasure before stores said that it may" in found


# An erasure that resumes late.


def an_erasure_that_resumes_late(world: World) -> None:
    """No step was made while the project was in use again; then its key is disabled once more."""
    erasure = _waiting(world)
    world.stores.mend()
    world.advance(HOLDS_FOR_S + 60)
    upload = world.upload("acme", "b", b"b")
    world.run(until=lambda: world.ended(upload), keep=hint)
    world.stores.moods[KEY] = "disabled"
    world.run()
    expect(world, upload, "upload.stored")
    expect(world, erasure, REFUSED)


def an_erasure_that_resumes_after_a_proof(world: World) -> None:
    """Its record is lost, a sweep ends clean, and the request is replayed."""
    erasure = _waiting(world)
    world.bucket_writer.remove(_RECORD)
    world.drop_messages(hint)
    world.stores.mend()
    world.advance(HOLDS_FOR_S + 60)
    sweep = world.sweep("acme")
    world.run(until=lambda: world.ended(sweep))
    world.stores.moods[KEY] = "disabled"
    world.replay(erasure)
    world.run()
    expect(world, erasure, REFUSED)


@pytest.mark.parametrize(
    ("story", "expected"),
    [
        (an_erasure_that_resumes_late, "acme was erased when it did not wait any more"),
        (
            an_erasure_that_resumes_after_a_proof,
            "the evidence of the erasure of acme does not name the proof",
        ),
    ],
)
def test_a_project_that_waits_no_longer_is_not_erased(
    monkeypatch: pytest.MonkeyPatch, story: Any, expected: str
) -> None:
    assert violations(story) == []
    monkeypatch.setattr(eraser, "check_held", lambda *_: None)
    assert expected in violations(story, settle=False)


def an_erasure_that_a_recovery_overtakes(world: World) -> None:
    """The marks are lost while the project waits, and an operator accepts its keyring."""
    erasure = _waiting(world)
    world.lose_broker()
    recovery = world.recover("acme")
    world.run(until=lambda: world.ended(recovery), keep=hint)
    world.run()
    expect(world, erasure, REFUSED)


def test_what_may_be_erased_is_checked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(an_erasure_that_a_recovery_overtakes) == []

    def at_the_beginning(keyring: Keyring) -> None:
        if keyring.erasure is None:
            check_erasable(keyring)

    monkeypatch.setattr(eraser, "check_erasable", at_the_beginning)
    found = violations(an_erasure_that_a_recovery_overtakes, settle=False)
    assert "acme was erased, and nothing proves what its objects need" in found


# The place of its evidence.


def an_erasure_with_the_id_of_a_proof(world: World) -> None:
    """A publisher chooses the id of its request; ids of rounds are published."""
    begin_locked(world, "a")
    sweep = world.sweep("acme")
    world.run()
    (s3_key,) = [key for key in world.server.current_objects() if key.startswith(EVIDENCE_PREFIX)]
    expect(world, sweep, "sweep.completed")
    world.stores.moods[KEY] = "disabled"
    round_id = s3_key.removeprefix(evidence_prefix("acme")).removeprefix("1-").removesuffix(".json")
    erasure = world.erase("acme", request_id=round_id)
    world.run(until=lambda: not world.holds() or world.ended(erasure))
    expect(world, erasure, REFUSED)


def an_erasure_whose_place_has_junk(world: World) -> None:
    begin_locked(world, "a")
    world.stores.moods[KEY] = "disabled"
    erasure = world.erase("acme")
    world.server.plant(evidence_s3_key("acme", 1, erasure), b"junk", Headers({}))
    world.run()
    expect(world, erasure, ERASED)


@pytest.mark.parametrize(
    ("story", "broken", "expected"),
    [
        (
            an_erasure_with_the_id_of_a_proof,
            False,
            "evidence of acme in the chain was replaced",
        ),
        (an_erasure_whose_place_has_junk, True, "ended with ['generation_mismatch']"),
    ],
)
def test_only_genuine_evidence_keeps_its_place(
    monkeypatch: pytest.MonkeyPatch, story: Any, expected: str, *, broken: bool
) -> None:
    assert violations(story) == []

    async def believe(*_: Any) -> bool:
        return broken

    monkeypatch.setattr(EvidenceLog, "_may_be_genuine", believe)
    assert any(expected in what for what in violations(story, settle=False))


# Sweeps.


def a_sweep_of_all_with_an_erased_project(world: World) -> None:
    begin_locked(world, "a")
    world.enroll("beta")
    world.stores.moods[KEY] = "disabled"
    world.erase("acme")
    world.run()
    sweep = world.sweep("*", master_key="m2")
    world.run()
    ends: list[Any] = world.ended(sweep)
    if not ends or not getattr(ends[-1], "clean", False):
        world.oracle.violated(f"a sweep of all was not clean: {ends}")
    if world.oracle.projects["acme"].states[-1].master_key != "m2":
        world.oracle.violated("the keyring of an erased project was not sealed anew")


def _all_fail(record: ProjectRecord, error: CodedError, now: datetime) -> ProjectRecord:
    failed = End(now, clean=False, counts=Counts(failed=1), code=error.code, detail=error.detail)
    origins = tuple(replace(each, end=failed) if each.is_open else each for each in record.origins)
    return replace(record, origins=origins, round=None)


def test_a_part_of_an_erased_project_ends_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_sweep_of_all_with_an_erased_project) == []
    monkeypatch.setattr(reconciler, "end_erased", _all_fail)
    found = violations(a_sweep_of_all_with_an_erased_project, settle=False)
    assert "a part of a sweep failed, because acme is erased" in found


def requests_that_an_erasure_overtakes(world: World) -> None:
    """Uploads and a rotation are under way, at every moment of theirs, when it begins."""
    begin_locked(world, "a")
    uploads = [world.upload("acme", f"b{number}", b"b" * 300) for number in range(4)]
    put = stop_at(world, "put", "acme/")
    rotation = world.rotate("acme")
    without(world, put, until=lambda: world.oracle.origin(rotation, "acme"), keep=hint)
    world.advance(1)
    world.stores.moods[KEY] = "disabled"
    erasure = world.erase("acme")
    without(world, put, until=lambda: world.ended(erasure))
    expect(world, erasure, ERASED)
    world.run()
    for upload in uploads:
        expect(world, upload, "upload.stored", "project_erased")
    expect(world, rotation, "project_erased")


def test_an_erasure_ends_what_is_under_way() -> None:
    assert violations(requests_that_an_erasure_overtakes) == []
