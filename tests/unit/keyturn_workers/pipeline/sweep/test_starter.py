"""A request becomes an origin once, however often it is delivered (SPEC 8.1, 8.5)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import (
    CorruptObjectError,
    MalformedRequestError,
    StorageUnavailableError,
    TooManyRequestsError,
    UnknownMasterKeyError,
    UnknownProjectError,
)
from keyturn.identifiers import keyring_s3_key
from keyturn.messages import RequestOrigin
from keyturn_workers.core.errors import PreconditionError
from keyturn_workers.core.storage_values import Headers
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_record import ALL, State, to_json
from keyturn_workers.keys.keyring import sealed_records
from keyturn_workers.keys.keyring.marks import KeyringContradictedError, Mark
from keyturn_workers.keys.sweep_records import UnknownRecordError, record_path
from keyturn_workers.pipeline.sweep.messages import SweepStep
from keyturn_workers.pipeline.sweep.starter import new_origin
from tests.unit.keyturn_workers.factories import OPERATOR_KEYS, rotated
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    AT,
    LEASE_S,
    OTHER_ID,
    ROUND_ID,
    SWEEP,
    SWEEP_ID,
    ended,
    origin,
    record,
)
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import Sweeping
from tests.unit.keyturn_workers.witness import FakeWitness
from tools.harness.memory_storage import MemoryStorage

if TYPE_CHECKING:
    from keyturn_workers.core.sweep_record import Origin

OTHER = origin(origin_id=OTHER_ID)
TO_M2 = origin(options=SweepOptions(master_key="m2"))


async def _put(on: Sweeping, *origins: Origin) -> None:
    """A record with these origins, as if they had been added before."""
    state = State.of((await on.keyrings.read_fresh("acme")).keyring)
    assert await on.store.create(record(*origins, state=state), "m1")


def test_an_origin_says_who_asked_and_for_what() -> None:
    made = new_origin("sweep", SWEEP_ID, AT, RequestOrigin("api", "0" * 64, "ada"))
    assert made == replace(SWEEP, added_at=made.added_at, actor="ada")


# The record, then the step.


async def test_a_new_project_has_a_record_of_its_state_and_a_first_step() -> None:
    on = Sweeping()
    assert await on.start() == SWEEP
    made, snapshot = await on.record(), await on.keyrings.read_fresh("acme")
    assert (made.state, made.step, made.origins) == (State.of(snapshot.keyring), 0, (SWEEP,))
    assert (made.lease_s, made.is_dated, made.round) == (LEASE_S, False, None)
    assert (await on.stored()).master_key == "m1"
    assert on.messages.steps() == [0]


async def test_the_longer_lease_of_the_keyring_counts() -> None:
    on = Sweeping()
    on.write_keyring(replace(on.ring, lease_s=60))
    await on.start()
    made = await on.record()
    assert (made.lease_s, made.stepped_lease_s) == (60, LEASE_S)


async def test_without_a_record_no_step_is_sent() -> None:
    on = Sweeping()
    on.storage.fail_next("put", StorageUnavailableError("down"))
    with pytest.raises(StorageUnavailableError):
        await on.start()
    assert await on.store.find("acme") is None
    assert on.messages.steps() == []


async def test_a_repeated_request_sends_the_step_that_the_record_waits_for() -> None:
    on = Sweeping()
    await on.start()
    await on.deliver()
    before = await on.stored()
    on.messages.waiting.clear()
    await on.start(replace(SWEEP, requested_at="2026-11-25T00:00:00Z"))
    assert await on.stored() == before
    assert on.messages.steps() == [before.record.step]


async def test_an_origin_that_was_answered_is_not_started_again() -> None:
    """The caller publishes its end to this request alone."""
    on = Sweeping()
    await _put(on, ended(SWEEP))
    started = await on.start(replace(SWEEP, digests=("1" * 64,)))
    assert started == ended(SWEEP)
    assert on.messages.waiting == []


async def test_an_origin_that_is_added_while_a_step_is_made_is_not_lost() -> None:
    on = Sweeping()
    await on.start()
    hint = on.messages.take()[1]
    assert isinstance(hint, SweepStep)

    async def step() -> None:
        await on.handler.run_step(hint, again=False)

    on.storage.before_next("put", step)
    await on.start(OTHER)
    made = await on.record()
    assert (made.step, made.origins) == (1, (SWEEP, OTHER))


async def test_two_first_requests_share_one_record() -> None:
    on = Sweeping()

    async def other() -> None:
        await on.start(OTHER)

    on.storage.before_next("put", other)
    await on.start()
    assert (await on.record()).origins == (OTHER, SWEEP)


@pytest.mark.parametrize("project", ["acme", ALL])
async def test_a_record_that_keeps_changing_is_tried_again_later(project: str) -> None:
    on = Sweeping()
    await on.start(SWEEP, project)

    # Another worker changes the record first, each time.
    on.storage.fail_next("put", PreconditionError("412"), times=20)
    with pytest.raises(StorageUnavailableError, match="kept changing"):
        await on.start(OTHER, project)


# What is refused.


@pytest.mark.parametrize("project", ["acme", ALL])
async def test_an_id_names_one_sweep_of_its_publisher(project: str) -> None:
    on = Sweeping()
    await on.start(SWEEP, project)
    other = replace(SWEEP, options=SweepOptions(repair=True))
    with pytest.raises(MalformedRequestError):
        await on.start(other, project)
    with pytest.raises(MalformedRequestError):
        await on.starter.find(project, other)


@pytest.mark.parametrize("project", ["acme", ALL])
async def test_a_publisher_with_too_many_open_sweeps_changes_nothing(project: str) -> None:
    on = Sweeping()
    for number in range(16):
        await on.starter.start(
            project, origin(origin_id=f"{SWEEP_ID[:-2]}{number:02}"), limited=True
        )
    before = await on.store.find(project)
    with pytest.raises(TooManyRequestsError):
        await on.starter.start(project, replace(TO_M2, id=OTHER_ID), limited=True)
    assert (await on.keyring()).master_key == "m1"
    assert await on.store.find(project) == before
    # A repeated one, another publisher's, and one without this limit are added.
    first = origin(origin_id=f"{SWEEP_ID[:-2]}00")
    assert await on.starter.start(project, first, limited=True) == first
    await on.starter.start(project, origin(publisher="web"), limited=True)
    await on.starter.start(project, OTHER)


async def test_an_origin_is_found_and_nothing_is_started() -> None:
    on = Sweeping()
    assert await on.starter.find("acme", SWEEP) is None
    await on.start()
    on.messages.waiting.clear()
    assert await on.starter.find("acme", replace(SWEEP, requested_at="")) == SWEEP
    assert await on.starter.find("acme", OTHER) is None
    assert on.messages.waiting == []


@pytest.mark.parametrize("has_record", [False, True])
@pytest.mark.parametrize("kind", ["sweep", "part"])
@pytest.mark.parametrize(
    "error", [CorruptObjectError, UnknownProjectError, KeyringContradictedError]
)
async def test_without_a_keyring_that_can_be_used_nothing_is_added(
    error: type[Exception], kind: Any, *, has_record: bool
) -> None:
    """A part would wait for a week; a request is refused at once."""
    witness = FakeWitness() if error is KeyringContradictedError else None
    on = Sweeping(witness=witness)
    if has_record:
        await _put(on, ended(OTHER))
    if witness is not None:
        witness.receive("acme", Mark(7, bytes(32), 2))
    elif error is CorruptObjectError:
        on.storage.plant(keyring_s3_key("acme"), b"{}", Headers({}))
    else:
        await on.storage.delete(keyring_s3_key("acme"))
    with pytest.raises(error):
        await on.start(origin(kind, walk_id=ROUND_ID))
    found = await on.store.find("acme")
    assert found is None if not has_record else found is not None
    assert found is None or found.origins == (ended(OTHER),)
    assert on.messages.waiting == []


# Records that an attacker, or another release, has put there.


async def test_a_forged_record_is_replaced() -> None:
    on = Sweeping()
    on.storage.plant(record_path("acme"), b"{}", Headers({}))
    assert await on.starter.find("acme", SWEEP) is None
    await on.start()
    assert (await on.record()).origins == (SWEEP,)


async def test_a_record_of_another_kind_is_left_alone_and_so_is_the_keyring() -> None:
    on = Sweeping()
    path = record_path("acme")
    body = await sealed_records.build(path, "acme", "m1", to_json(SWEEP), OPERATOR_KEYS)
    on.storage.plant(path, body, Headers({}))
    with pytest.raises(UnknownRecordError):
        await on.start(TO_M2)
    assert (await on.storage.read(path))[1] == body
    assert (await on.keyring()).master_key == "m1"


# A master key that the request names.


async def test_the_keyring_is_resealed_under_a_named_master_key_first() -> None:
    on = Sweeping()
    await on.start(TO_M2)
    assert (await on.keyring()).master_key == "m2"
    assert ((await on.record()).state.master_key, (await on.stored()).master_key) == ("m2", "m2")


async def test_a_rotation_while_the_keyring_is_resealed_is_kept() -> None:
    on = Sweeping()

    async def rotate() -> None:
        on.write_keyring(rotated(on.ring))

    on.storage.before_next("put", rotate)
    await on.start(TO_M2)
    after = await on.keyring()
    assert (after.current.generation, after.master_key) == (3, "m2")


async def test_a_master_key_that_this_worker_lacks_changes_nothing() -> None:
    on = Sweeping()
    for project in ("acme", ALL):
        with pytest.raises(UnknownMasterKeyError):
            await on.start(replace(TO_M2, options=SweepOptions(master_key="m9")), project)
        assert await on.store.find(project) is None


@pytest.mark.parametrize("moment", ["the keyring was read", "the record was read"])
async def test_a_delivery_that_stalls_does_not_either(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another delivery of it is served, and overtaken, meanwhile.

    The keyring is read before the record, and re-sealed only as it was read.
    """
    on = Sweeping()
    read, stalled = MemoryStorage.read, list[str]()

    async def others() -> None:
        stalled.append(moment)
        await on.start(TO_M2)
        await on.start(replace(OTHER, options=SweepOptions(master_key="m1")))

    async def stalls(storage: MemoryStorage, key: str, **more: Any) -> Any:
        if key != record_path("acme") or stalled:
            return await read(storage, key, **more)
        if moment == "the keyring was read":
            await others()
            return await read(storage, key, **more)
        try:
            return await read(storage, key, **more)
        finally:
            await others()

    monkeypatch.setattr(MemoryStorage, "read", stalls)
    await on.start(TO_M2)
    assert stalled == [moment]
    assert (await on.keyring()).master_key == "m1"
    assert [each.id for each in (await on.record()).origins] == [SWEEP_ID, OTHER_ID]


# All projects.


async def test_a_sweep_of_all_projects_needs_no_keyring_of_its_own() -> None:
    on = Sweeping()
    await on.storage.delete(keyring_s3_key("acme"))
    await on.start(SWEEP, ALL)
    stored = await on.store.read_all()
    assert (stored.record.origins, stored.master_key) == ((SWEEP,), "m1")  # the active one
    await on.start(replace(OTHER, options=SweepOptions(master_key="m2")), ALL)
    stored = await on.store.read_all()
    assert [each.id for each in stored.record.origins] == [SWEEP_ID, OTHER_ID]
    assert on.messages.steps() == [0, 0]


async def test_the_record_of_all_is_under_the_master_key_that_its_first_request_names() -> None:
    on = Sweeping()
    await on.start(TO_M2, ALL)
    assert (await on.store.read_all()).master_key == "m2"


async def test_parts_of_one_walk_are_added_together() -> None:
    on = Sweeping()
    parts = tuple(origin("part", each, "api", walk_id=ROUND_ID) for each in (SWEEP_ID, OTHER_ID))
    assert await on.starter.start("acme", *parts) == parts[0]
    assert (await on.record()).origins == parts
    assert on.messages.steps() == [0]
