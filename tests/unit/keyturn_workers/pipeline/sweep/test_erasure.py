"""The erasure of a project, from its request to its end (SPEC 8.8)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, cast

import pytest

from keyturn.crypto import SigningKey
from keyturn.errors import CustomerKeyUnavailableError, ProjectErasedError
from keyturn.evidence import (
    MAX_EVIDENCE_BYTES,
    ErasedKey,
    ErasurePredicate,
    Statement,
    digest,
    parse,
    sign,
    verify_chain,
)
from keyturn.identifiers import evidence_s3_key, format_time, parse_time
from keyturn_workers.core.customer_keys import KeyName
from keyturn_workers.core.erasure import HOLDS_FOR, KeyState
from keyturn_workers.core.keyring import forbid_plaintext, rotate, with_evidence
from keyturn_workers.core.keyring_record import customer_key_to_json
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from tests.unit.keyturn_workers.factories import keyring
from tests.unit.keyturn_workers.pipeline.sweep.records import SWEEP_ID, origin
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import EVENT_KEY, ORIGIN, Sweeping

if TYPE_CHECKING:
    from keyturn_workers.core.keyring import Keyring
    from keyturn_workers.core.sweep_record import Origin
    from keyturn_workers.keys.keyring.marks import StoredKeyring

FIRST: Final = KeyName("kms", "first")
SECOND: Final = KeyName("kms", "second")
ERASE_ID: Final = "e7a5e000-0000-4000-8000-000000000001"
AGAIN_ID: Final = "e7a5e000-0000-4000-8000-000000000002"
OTHER_KEY: Final = SigningKey.from_seed(bytes(32))
GONE: Final = (KeyState.DISABLED, KeyState.PENDING_DELETION, KeyState.MISSING)


class Erasing(Sweeping):
    """A project without objects, enrolled with a customer key."""

    async def enrolled(self, *names: KeyName) -> Erasing:
        """The same with these keys, each by a rotation after the one before; none has ended."""
        ring = keyring()
        first = await self.customer_keys.create("acme", names[0])
        ring = replace(ring, current=replace(ring.current, customer_key=first))
        for number, name in enumerate(names[1:], start=2):
            ring = await self.rotated(ring, number, name)
        self.write_keyring(ring)
        return self

    async def rotated(self, ring: Keyring, number: int, name: KeyName) -> Keyring:
        return rotate(
            ring,
            customer_key=await self.customer_keys.create("acme", name),
            rotation_id=f"00000000-0000-4000-8000-{number:012}",
            requested_at=ring.current.requested_at,
            at=ring.current.at,
            origin=ORIGIN,
        )

    def say(self, name: KeyName, state: KeyState) -> None:
        self.customer_keys.states[str(name)] = state

    def erasure(self, origin_id: str = ERASE_ID, *, after_s: float = 0) -> Origin:
        """A request to erase the project, signed now."""
        now = self.clock_now() + timedelta(seconds=after_s)
        return origin(
            "erase", origin_id, requested_at=format_time(now), added_at=now, reason="the end"
        )

    def clock_now(self) -> Any:
        return self.storage.now

    async def erase(self, origin_id: str = ERASE_ID) -> Origin:
        erasure = self.erasure(origin_id)
        await self.start(erasure)
        return await self.finish(erasure)

    async def record_of_keyring(self) -> StoredKeyring:
        return await self.keyrings.read_record("acme")

    async def begun(self) -> Origin:
        """An erasure for which the project waits; then its store is away."""
        self.say(FIRST, KeyState.DISABLED)
        erasure = self.erasure()
        await self.start(erasure)
        await self.deliver()
        self.customer_keys.states.clear()
        self.customer_keys.away.add(str(FIRST))
        assert (await self.record_of_keyring()).keyring.erasure is not None
        return erasure

    def events(self) -> list[Any]:
        return [cast("Any", event) for event in self.messages.published]


@pytest.fixture
async def on() -> Erasing:
    return await Erasing(keys=()).enrolled(FIRST)


@pytest.mark.parametrize("state", GONE)
async def test_a_project_whose_key_is_gone_is_erased_with_evidence(
    on: Erasing, state: KeyState
) -> None:
    before = on.ring
    on.say(FIRST, state)
    ended = await on.erase()
    (event,) = on.events()
    assert (event.type, event.request_id, event.generation) == ("project.erased", ERASE_ID, 1)
    ring = (await on.record_of_keyring()).keyring
    assert ring.is_erased
    assert ring.current.kek is None
    assert ring.customer_keys == before.customer_keys
    assert ended.end is not None
    assert ring.evidence == event.evidence == ended.end.evidence
    _, envelope = await on.storage.read(evidence_s3_key("acme", 1, ERASE_ID))
    (evidence,) = verify_chain([envelope], [EVENT_KEY.verify_key()], newest=event.evidence)
    predicate = evidence.predicate
    assert isinstance(predicate, ErasurePredicate)
    (key,) = predicate.keys
    customer_key = before.customer_keys[1]
    assert (key.store, key.key, key.secret_id) == ("kms", "first", customer_key.secret_id)
    assert (key.wrapped, key.answer, key.generations) == (customer_key.wrapped, state.value, [1])
    assert (predicate.proven_by, predicate.reason) == (None, "the end")


async def test_a_secret_that_is_given_refuses_the_erasure(on: Erasing) -> None:
    before = (await on.keyring()).current
    ended = await on.erase()
    (event,) = on.events()
    assert (event.type, event.code) == ("erase.rejected", "generation_mismatch")
    assert "kms/first still gives its secret" in event.detail
    ring = await on.keyring()
    assert (ring.erasure, ring.current) == (None, before)
    assert ended.end is not None
    assert ended.end.failed_at_step is None  # no replay of a message reopens it


@pytest.mark.parametrize("how", ["refused", "away"])
async def test_an_access_that_is_denied_is_never_taken_for_a_key_that_is_gone(
    on: Erasing, how: str
) -> None:
    getattr(on.customer_keys, how).add(str(FIRST))
    began_s = on.storage.elapsed_s()
    await on.erase()
    (event,) = on.events()
    assert (event.type, event.code) == ("erase.rejected", "generation_mismatch")
    assert "a denied access says nothing" in event.detail
    assert 300 < on.storage.elapsed_s() - began_s < 340
    assert (await on.keyring()).erasure is None


async def test_every_key_that_a_wrap_may_need_is_asked_for() -> None:
    on = await Erasing(keys=()).enrolled(FIRST, SECOND)
    on.say(FIRST, KeyState.DISABLED)
    await on.erase()
    assert on.events()[-1].type == "erase.rejected"
    on.say(SECOND, KeyState.MISSING)
    on.storage.advance(1)
    await on.erase(AGAIN_ID)
    assert on.events()[-1].type == "project.erased"
    ring = (await on.record_of_keyring()).keyring
    assert ring.erasure is not None
    assert sorted(ring.erasure.states.values()) == [KeyState.DISABLED, KeyState.MISSING]


async def _without_a_customer_key(on: Erasing) -> str:
    on.write_keyring(keyring())
    return "the project has no customer key"


async def _before_a_clean_end(on: Erasing) -> str:
    on.write_keyring(await on.rotated(forbid_plaintext(keyring()), 2, FIRST))
    return "wraps of generation 1 need no customer key"


async def _after_an_adoption(on: Erasing) -> str:
    on.write_keyring(replace(on.ring, unproven=True))
    return "took objects over"


async def _of_too_many_keys(on: Erasing) -> str:
    await on.enrolled(*(KeyName("kms", f"key-{number}") for number in range(9)))
    return "wraps of 9 generations may exist"


@pytest.mark.parametrize(
    "make", [_without_a_customer_key, _before_a_clean_end, _after_an_adoption, _of_too_many_keys]
)
async def test_an_erasure_that_would_prove_too_little_is_refused(on: Erasing, make: Any) -> None:
    detail = await make(on)
    on.say(FIRST, KeyState.MISSING)
    await on.erase()
    (event,) = on.events()
    assert (event.type, event.code) == ("erase.rejected", "generation_mismatch")
    assert detail in event.detail
    assert not (await on.keyring()).is_erased


@pytest.mark.parametrize("how", ["given", "refused", "away"])
async def test_no_project_waits_for_an_erasure_while_its_keys_are_not_gone(
    on: Erasing, how: str
) -> None:
    getattr(on.customer_keys, how, set[str]()).add(str(FIRST))
    erasure = on.erasure()
    await on.start(erasure)
    while not on.events():
        await on.deliver()
        assert (await on.keyring()).erasure is None  # read as uploads and gateways do
    assert on.events()[-1].type == "erase.rejected"


async def test_everything_waits_while_stores_are_asked_but_not_for_ever(on: Erasing) -> None:
    await on.begun()
    with pytest.raises(CustomerKeyUnavailableError, match="whether the project is erased"):
        await on.keyrings.read_fresh("acme")
    on.storage.advance(HOLDS_FOR.total_seconds() + 1)
    assert (await on.keyring()).erasure is not None


async def test_a_refused_erasure_does_not_come_back_with_an_earlier_record(on: Erasing) -> None:
    erasure = on.erasure()
    await on.start(erasure)
    kept = await on.stored()
    hints = list(on.messages.waiting)
    await on.finish(erasure)
    on.say(FIRST, KeyState.DISABLED)  # for a maintenance, later
    stored = await on.stored()
    await on.store.change(kept.record, stored.etag, "m1")
    on.messages.waiting[:] = hints
    await on.finish(erasure)
    assert [event.type for event in on.events()] == ["erase.rejected"] * 2
    assert "was refused: ask again by a new request" in on.events()[-1].detail
    assert not (await on.keyring()).is_erased


async def test_an_erasure_older_than_a_rotation_is_refused(on: Erasing) -> None:
    on.say(FIRST, KeyState.DISABLED)
    erasure = on.erasure(after_s=-3600)
    later = replace(on.ring.current, requested_at=format_time(on.clock_now()))
    on.write_keyring(replace(on.ring, current=later))
    await on.start(erasure)
    await on.finish(erasure)
    assert "a rotation requested later was accepted already" in on.events()[-1].detail


@pytest.mark.parametrize("late_s", [0, 3600, 86_400])
async def test_a_key_that_is_enabled_before_the_end_is_asked_for_again(
    on: Erasing, monkeypatch: pytest.MonkeyPatch, late_s: int
) -> None:
    """Even if the keyring was read when it was disabled, or by a clock that is late."""
    on.say(FIRST, KeyState.DISABLED)
    erasure = on.erasure()
    await on.start(erasure)

    async def keep(stored: Any, clean_end: Any) -> bool:
        del stored, clean_end
        return True  # the worker dies after it kept the evidence

    reconciler = cast("Any", on.handler)._reconciler
    finish, reconciler._finish_clean_end = reconciler._finish_clean_end, keep
    await on.deliver_until(lambda record: record.clean_end is not None)
    reconciler._finish_clean_end = finish
    on.customer_keys.states.clear()
    on.storage.advance(3600)
    read = on.keyrings.read_record

    async def read_late(project: str) -> StoredKeyring:
        stored = await read(project)
        return replace(stored, read_at=stored.read_at - timedelta(seconds=late_s))

    monkeypatch.setattr(on.keyrings, "read_record", read_late)
    assert await on.handler.resume("acme")
    await on.finish(erasure)
    assert on.events()[-1].type == "erase.rejected"
    assert not (await on.keyring()).is_erased


async def _nobody_continues_it(on: Erasing, ring: Keyring) -> str:
    del ring
    on.storage.advance(HOLDS_FOR.total_seconds())
    return "the project was in use again"


async def _it_is_recovered(on: Erasing, ring: Keyring) -> str:
    on.write_keyring(replace(ring, unproven=True))
    return "its keyring was recovered"


async def _a_later_one_was_refused(on: Erasing, ring: Keyring) -> str:
    on.write_keyring(replace(ring, erasure_refused_at=format_time(on.clock_now())))
    return "or one requested later, was refused"


@pytest.mark.parametrize(
    "change", [_nobody_continues_it, _it_is_recovered, _a_later_one_was_refused]
)
async def test_an_erasure_that_resumes_is_checked_again(on: Erasing, change: Any) -> None:
    erasure = await on.begun()
    detail = await change(on, (await on.record_of_keyring()).keyring)
    on.say(FIRST, KeyState.DISABLED)
    await on.finish(erasure)
    (event,) = on.events()
    assert (event.type, event.code) == ("erase.rejected", "generation_mismatch")
    assert detail in event.detail
    assert (await on.keyring()).erasure is None


async def test_an_erasure_ends_for_as_long_as_the_project_waits(on: Erasing) -> None:
    erasure = await on.begun()
    on.storage.advance(HOLDS_FOR.total_seconds() - 120)
    on.say(FIRST, KeyState.DISABLED)
    await on.finish(erasure)
    assert on.events()[-1].type == "project.erased"


async def test_a_new_request_asks_again_and_adds_evidence_of_new_answers(on: Erasing) -> None:
    on.write_keyring(with_evidence(on.ring, "b" * 64))
    on.say(FIRST, KeyState.DISABLED)
    await on.erase()
    on.storage.advance(1)
    await on.erase(AGAIN_ID)
    first, same = on.events()
    assert same.evidence == first.evidence
    on.say(FIRST, KeyState.MISSING)
    on.storage.advance(1)
    third = "e7a5e000-0000-4000-8000-000000000003"
    await on.erase(third)
    assert on.events()[-1].evidence != first.evidence
    _, envelope = await on.storage.read(evidence_s3_key("acme", 1, third))
    predicate = parse(envelope).predicate
    assert isinstance(predicate, ErasurePredicate)
    assert predicate.previous == first.evidence
    assert predicate.proven_by == "b" * 64
    assert [key.answer for key in predicate.keys] == ["missing"]


def _statement(on: Erasing, **changes: Any) -> Statement:
    """Of an erasure by the request; a sweep with that id would do as well."""
    predicate = ErasurePredicate(
        request_id=ERASE_ID,
        publisher="ops",
        request="a" * 64,
        reason="the end",
        generation=1,
        keys=[
            ErasedKey(
                **customer_key_to_json(on.ring.customer_keys[1]),
                generations=[1],
                answer="missing",
                answered_at=format_time(on.clock_now()),
            )
        ],
        proven_by=None,
        not_shown=[],
        version="1",
        event_keys=[],
        previous=None,
    )
    fields = {"deployment": "test", "project": "acme", "predicate": predicate}
    return Statement(**{**fields, **changes})


def _forged(on: Erasing) -> bytes:
    """A bucket writer knows the id of a key, and does not have it."""
    envelope = sign(_statement(on), OTHER_KEY)
    return envelope.replace(OTHER_KEY.id.encode(), EVENT_KEY.id.encode())


@pytest.mark.parametrize(
    ("make", "is_genuine"),
    [
        (lambda _: b"junk", False),
        (lambda _: b"a" * (MAX_EVIDENCE_BYTES + 1), False),
        (_forged, False),
        (lambda on: sign(_statement(on), OTHER_KEY), False),
        (lambda on: sign(_statement(on, project="beta"), EVENT_KEY), False),
        (lambda on: sign(_statement(on, deployment="prod"), EVENT_KEY), False),
        (lambda on: sign(_statement(on), EVENT_KEY), True),
    ],
    ids=["junk", "large", "forged", "other key", "other project", "other deployment", "genuine"],
)
async def test_only_genuine_evidence_with_its_id_refuses_an_erasure(
    on: Erasing, make: Any, *, is_genuine: bool
) -> None:
    on.say(FIRST, KeyState.DISABLED)
    path, planted = evidence_s3_key("acme", 1, ERASE_ID), make(on)
    on.storage.plant(path, planted, Headers({}))
    await on.erase()
    (event,) = on.events()
    _, body = await on.storage.read(path)
    if is_genuine:
        assert (event.type, event.code) == ("erase.rejected", "generation_mismatch")
        assert body == planted
    else:
        assert event.type == "project.erased"
        assert event.evidence == digest(body)


@pytest.mark.parametrize("how", ["in the chain", "perhaps in its gap", "archived"])
async def test_evidence_that_cannot_be_verified_is_not_replaced(on: Erasing, how: str) -> None:
    """The chain shows what is genuine; where it has a gap, nothing that may be is replaced."""
    retired = sign(_statement(on), OTHER_KEY)
    before = "c" * 64 if how == "perhaps in its gap" else digest(retired)
    predicate = _statement(on).predicate.model_copy(
        update={"request_id": AGAIN_ID, "previous": before}
    )
    newest = sign(_statement(on, predicate=predicate), EVENT_KEY)
    path = evidence_s3_key("acme", 1, ERASE_ID)
    on.storage.plant(path, retired, Headers({}), archived=how == "archived")
    on.storage.plant(evidence_s3_key("acme", 1, AGAIN_ID), newest, Headers({}))
    on.write_keyring(with_evidence(on.ring, digest(newest)))
    etag = (await on.storage.head(path)).etag
    on.say(FIRST, KeyState.DISABLED)
    await on.erase()
    assert on.events()[-1].type == "erase.rejected"
    assert (await on.storage.head(path)).etag == etag


async def test_archived_junk_refuses_no_erasure(on: Erasing) -> None:
    on.say(FIRST, KeyState.DISABLED)
    on.storage.plant(evidence_s3_key("acme", 1, ERASE_ID), b"junk", Headers({}), archived=True)
    await on.erase()
    assert on.events()[-1].type == "project.erased"


async def test_what_is_open_when_a_project_is_erased_ends(on: Erasing) -> None:
    sweep, part = origin(), origin("part", SWEEP_ID, walk_id=AGAIN_ID)
    await on.start(sweep)
    await on.start(part)
    on.say(FIRST, KeyState.DISABLED)
    await on.erase()
    ended = await on.finish(sweep)
    assert ended.end is not None
    assert ended.end.code == "project_erased"
    end = await on.store.read_part_end(AGAIN_ID, "acme")
    assert end is not None
    assert (end.clean, end.code, end.late_writes_refused) == (True, "", True)


async def test_an_erased_project_is_only_sealed_anew(on: Erasing) -> None:
    on.say(FIRST, KeyState.DISABLED)
    await on.erase()
    with pytest.raises(ProjectErasedError):
        await on.start(origin())
    options = SweepOptions(master_key="m2")
    part = origin("part", SWEEP_ID, walk_id=AGAIN_ID, options=options)
    await on.start(part)
    await on.deliver_until(lambda record: all(each.end for each in record.origins))
    ring = (await on.record_of_keyring()).keyring
    assert (ring.master_key, ring.is_erased) == ("m2", True)


async def test_the_record_of_a_lost_request_holds_nothing_up(on: Erasing) -> None:
    await on.begun()
    ring = (await on.record_of_keyring()).keyring
    assert ring.erasure is not None
    stored = await on.stored()
    await on.store.change(replace(stored.record, origins=()), stored.etag, "m1")
    on.messages.waiting.clear()
    on.customer_keys.away.clear()
    on.say(FIRST, KeyState.MISSING)
    on.storage.advance(1)
    began_s = on.storage.elapsed_s()
    await on.erase(AGAIN_ID)
    assert on.events()[-1].type == "project.erased"
    assert on.storage.elapsed_s() - began_s > 290
    assert parse_time(ring.erasure.began_at) < on.clock_now()
