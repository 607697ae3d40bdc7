"""What the control worker publishes of a request, also if it comes again or too late (SPEC 6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from keyturn.crypto import IntakeKey, kek_info, to_base64
from keyturn.errors import (
    AlreadyEnrolledError,
    CodedError,
    GenerationMismatchError,
    KeyringRolledBackError,
    MalformedRequestError,
    MarksUnavailableError,
    StorageUnavailableError,
    TooManyRequestsError,
    UnknownProjectError,
)
from keyturn.identifiers import format_time, keyring_s3_key
from keyturn.messages import (
    DeadLettersRequested,
    DeleteRejected,
    DeleteRequested,
    EnrollRequested,
    ObjectDeleted,
    ProjectEnrolled,
    Request,
    RequestOrigin,
    RotationAccepted,
    RotationRequested,
    StatusReported,
    StatusRequested,
    SweepRequested,
    UploadRequested,
)
from keyturn.topology import CONTROL_QUEUE, CONTROL_REQUESTS
from keyturn_workers.core.sweep_options import SweepOptions
from keyturn_workers.core.sweep_transitions import MAX_OPEN_SWEEPS
from keyturn_workers.keys.keyring.marks import (
    KeyringContradictedError,
    KeyringRemovedError,
    KeyringUnknownError,
    Mark,
)
from keyturn_workers.pipeline.amqp.outcomes import DeferError
from keyturn_workers.pipeline.control.deletion import Deleter
from keyturn_workers.pipeline.control.enrollment import Enroller
from keyturn_workers.pipeline.control.request_handler import ControlHandler
from keyturn_workers.pipeline.control.rotation import Rotator
from keyturn_workers.reports.status.reader import Identity, StatusReader
from tests.unit.keyturn_workers.factories import MASTER_KEYS, keyring
from tests.unit.keyturn_workers.pipeline.sweep.records import (
    AT,
    LEASE_S,
    OTHER_ID,
    SWEEP_ID,
    origin,
)
from tests.unit.keyturn_workers.pipeline.sweep.sweeping import KEYS, ORIGIN, Sweeping
from tests.unit.keyturn_workers.pipeline.upload.bench import bench
from tests.unit.keyturn_workers.pipeline.upload.bench import request as upload_request
from tests.unit.keyturn_workers.witness import FakeWitness
from tools.harness.customer_keys import HeldCustomerKeys
from tools.harness.local_keys import operator_keys

if TYPE_CHECKING:
    from keyturn_workers.pipeline.amqp.outcomes import Handled

INTAKE: Final = IntakeKey.from_seed(bytes(32))
OTHER: Final = RequestOrigin("web", "1" * 64)


class Control:
    """A control worker, and the project `acme` at generation 2."""

    def __init__(self, witness: FakeWitness | None = None) -> None:
        self.on = Sweeping(witness=witness)
        self.customer_keys = HeldCustomerKeys()
        on, intake, held = self.on, {"main": INTAKE}, self.customer_keys
        keys = operator_keys(MASTER_KEYS)
        self.handler = ControlHandler(
            Enroller(on.storage, on.keyrings, KEYS, "m1", intake, on.starter, held),
            Rotator(on.storage, on.keyrings, keys, intake, on.starter, held),
            on.starter,
            Deleter(on.storage, on.keyrings, KEYS, LEASE_S),
            status_reader=StatusReader(on.storage, KEYS, Identity("test", "m1", ())),
        )

    async def serve(self, request: Request, sent: RequestOrigin = ORIGIN) -> Handled:
        return await self.handler.serve(request, sent, seen_before=False)

    async def find(self, request: Request, sent: RequestOrigin = ORIGIN) -> Handled | None:
        return await self.handler.find_completed(request, sent)


def _kek(kind: Literal["enroll", "rotation"], request_id: str, project: str) -> dict[str, str]:
    ciphertext = INTAKE.public_key.seal(bytes([7]) * 32, kek_info(kind, request_id, project))
    return {"intake_key": "main", "ciphertext": to_base64(ciphertext)}


def enroll(project: str = "bob", **more: Any) -> EnrollRequested:
    fields = {"request_id": SWEEP_ID, "project": project, "requested_at": AT, **more}
    return EnrollRequested.model_validate(
        {**fields, "sealed_kek": _kek("enroll", SWEEP_ID, project)}
    )


def rotation(**more: Any) -> RotationRequested:
    fields = {"rotation_id": SWEEP_ID, "project": "acme", "requested_at": AT, **more}
    return RotationRequested.model_validate(
        {**fields, "sealed_kek": _kek("rotation", SWEEP_ID, "acme")}
    )


def sweep(**more: Any) -> SweepRequested:
    return SweepRequested.model_validate(
        {"sweep_id": SWEEP_ID, "project": "acme", "requested_at": AT, **more}
    )


def delete(key: str | None = "a", **more: Any) -> DeleteRequested:
    return DeleteRequested.model_validate(
        {"request_id": SWEEP_ID, "project": "acme", "key": key, "requested_at": AT, **more}
    )


def test_it_serves_the_control_queue() -> None:
    handler = Control().handler
    assert (handler.queue, handler.served) == (CONTROL_QUEUE, CONTROL_REQUESTS)


async def test_an_upload_is_not_served_here() -> None:
    upload: UploadRequested = upload_request(bench())
    with pytest.raises(MalformedRequestError):
        await Control().serve(upload)
    assert await Control().find(upload) is None


# Records for a console.


async def test_a_worker_without_an_audit_trail_moves_no_dead_letters() -> None:
    request = DeadLettersRequested(
        request_id=SWEEP_ID,
        project="*",
        requested_at=AT,
        actor="Kim Doe",
        action="discard",
        queue="keyturn.upload.dead",
        code="bad_seal",
    )
    with pytest.raises(MalformedRequestError, match="not served here"):
        await Control().serve(request)
    assert await Control().find(request) is None  # an expired one is refused: it may be half done


# Enrollments.


async def test_an_enrollment_is_published_with_its_generation() -> None:
    control = Control()
    for _ in range(2):
        handled = await control.serve(enroll())
        assert isinstance(handled.event, ProjectEnrolled)
        assert (handled.event.project, handled.event.generation) == ("bob", 1)
        assert handled.logged == {"project": "bob", "request_id": SWEEP_ID, "generation": 1}
    with pytest.raises(AlreadyEnrolledError):
        await control.serve(enroll(), OTHER)


async def test_an_expired_enrollment_is_completed_only_if_it_was_made() -> None:
    control = Control()
    assert await control.find(enroll()) is None
    with pytest.raises(UnknownProjectError):
        await control.on.keyrings.read_fresh("bob")
    await control.serve(enroll())
    found = await control.find(enroll())
    assert found is not None
    assert isinstance(found.event, ProjectEnrolled)
    assert await control.find(enroll(), OTHER) is None


# Rotations.


async def test_a_rotation_is_published_with_its_generation_and_starts_its_sweep() -> None:
    control = Control()
    handled = await control.serve(rotation(expected_generation=2))
    assert isinstance(handled.event, RotationAccepted)
    assert (handled.event.rotation_id, handled.event.generation) == (SWEEP_ID, 3)
    assert handled.more == ()
    (added,) = (await control.on.record()).origins
    assert added.name == ("rotation", SWEEP_ID, "api", None)
    with pytest.raises(GenerationMismatchError):
        await control.serve(rotation(expected_generation=2), OTHER)


async def test_a_repeated_rotation_gets_the_end_that_was_published_before() -> None:
    control = Control()
    await control.serve(rotation())
    await control.on.finish(origin("rotation"))
    handled = await control.serve(rotation())
    assert isinstance(handled.event, RotationAccepted)
    (end,) = handled.more
    assert (end.type, end.project) == ("rotation.completed", "acme")


async def test_a_rotation_with_the_id_of_a_sweep_is_another_request() -> None:
    """Also if the sweep comes between the search for an earlier delivery and the new keyring."""
    control = Control()
    on = control.on

    async def take() -> None:
        await control.serve(sweep(repair=True), OTHER)

    on.storage.before_next("put", take)
    handled = await control.serve(rotation())
    assert isinstance(handled.event, RotationAccepted)
    assert handled.more == ()
    assert [each.kind for each in (await on.record()).origins] == ["sweep", "rotation"]
    ended = await on.finish(origin("rotation"))
    assert ended.status == "done"


async def test_an_expired_rotation_is_completed_only_if_it_was_made() -> None:
    control = Control()
    assert await control.find(rotation()) is None
    assert (await control.on.keyrings.read_fresh("acme")).desired.generation == 2
    await control.serve(rotation())
    found = await control.find(rotation())
    assert found is not None
    assert isinstance(found.event, RotationAccepted)


# Sweeps.


@pytest.mark.parametrize(
    "options",
    [{}, {"repair": True}, {"master_key": "m2"}, {"encrypt_plaintext": True}],
    ids=repr,
)
async def test_a_sweep_is_started_with_its_options_and_nothing_is_published_yet(
    options: dict[str, Any],
) -> None:
    control = Control()
    handled = await control.serve(sweep(**options))
    assert (handled.event, handled.more) == (None, ())
    (added,) = (await control.on.record()).origins
    assert added.name == ("sweep", SWEEP_ID, "api", None)
    assert added.requested_at == AT
    assert added.options == replace(SweepOptions(), **options)


async def test_the_open_sweeps_of_one_publisher_are_limited_and_its_rotations_are_not() -> None:
    """A refused sweep changes nothing, not even the master key of the keyring."""
    control = Control()
    ids = [f"2f6c9a0e-1111-4111-8111-{number:012}" for number in range(MAX_OPEN_SWEEPS + 1)]
    for sweep_id in ids[:-1]:
        await control.serve(sweep(sweep_id=sweep_id))
    for options in ({}, {"master_key": "m2"}):
        with pytest.raises(TooManyRequestsError):
            await control.serve(sweep(sweep_id=ids[-1], **options))
    assert (await control.on.keyring()).master_key == "m1"
    assert (await control.serve(sweep(sweep_id=ids[0]))).more == ()  # repeated
    await control.serve(sweep(sweep_id=ids[-1]), OTHER)
    assert isinstance((await control.serve(rotation())).event, RotationAccepted)
    assert len((await control.on.record()).origins) == MAX_OPEN_SWEEPS + 2


async def test_a_repeated_sweep_gets_the_end_that_was_published_before() -> None:
    control = Control()
    await control.serve(sweep())
    await control.on.finish()
    handled = await control.serve(sweep())
    assert [event.type for event in handled.more] == ["sweep.completed"]


@pytest.mark.parametrize(
    ("request_", "kind"), [(rotation(), "rotation"), (sweep(), "sweep")], ids=["rotation", "sweep"]
)
async def test_an_end_answers_a_repeat_before_the_record_says_that_it_was_published(
    request_: Request, kind: Literal["rotation", "sweep"]
) -> None:
    """Its event may have come before the sender of the repeat listened."""
    control = Control()
    store = control.on.store
    await control.serve(request_)
    ended = await control.on.finish(origin(kind))
    assert ended.end is not None
    unnoted = replace(ended, end=replace(ended.end, published=False))
    stored = await store.read("acme")
    record = replace(stored.record, origins=(unnoted,))
    assert await store.change(record, stored.etag, stored.master_key)
    handled = await control.serve(request_)
    assert [event.type for event in handled.more] == [f"{kind}.completed"]


async def test_an_expired_sweep_is_continued_only_if_it_exists() -> None:
    control = Control()
    assert await control.find(sweep()) is None
    assert control.on.messages.waiting == []
    await control.serve(sweep())
    control.on.messages.waiting.clear()
    assert await control.find(sweep()) is not None
    assert control.on.messages.steps() == [0]
    assert await control.find(sweep(repair=True)) is None  # another sweep's id


# Deletes.


async def test_a_delete_is_published_once_its_tombstone_stays() -> None:
    control = Control()
    for _ in range(2):
        with pytest.raises(DeferError):
            await control.serve(delete())
    control.on.storage.advance(2 * LEASE_S + 2)
    handled = await control.serve(delete())
    assert isinstance(handled.event, ObjectDeleted)
    assert (handled.event.key, handled.event.request_id) == ("a", SWEEP_ID)


async def test_an_expired_delete_is_completed_only_if_its_tombstone_is_there() -> None:
    control = Control()
    assert await control.find(delete()) is None
    assert "enc-algo" in (await control.on.storage.head("acme/a")).metadata
    with pytest.raises(DeferError):
        await control.serve(delete())
    with pytest.raises(DeferError):
        await control.find(delete())
    control.on.storage.advance(2 * LEASE_S + 2)
    found = await control.find(delete(request_id=OTHER_ID))
    assert found is not None
    assert isinstance(found.event, ObjectDeleted)


async def test_each_key_of_a_delete_has_its_outcome() -> None:
    control = Control()
    many = delete(key=None, keys=["a", "b/c", "new"])
    for _ in range(2):
        with pytest.raises(DeferError):
            await control.serve(many)
    control.on.storage.advance(2 * LEASE_S + 2)
    handled = await control.serve(many)
    assert handled.event is None
    events = [each for each in handled.more if isinstance(each, ObjectDeleted)]
    assert [(each.key, each.request_id) for each in events] == [
        (key, SWEEP_ID) for key in ("a", "b/c", "new")
    ]
    assert handled.logged["keys"] == 3


async def test_of_an_expired_delete_of_many_what_was_deleted_is_reported() -> None:
    control = Control()
    assert await control.find(delete(key=None, keys=["a", "b"])) is None
    with pytest.raises(DeferError):
        await control.serve(delete())
    control.on.storage.advance(2 * LEASE_S + 2)
    found = await control.find(delete(key=None, keys=["a", "b"]))
    assert found is not None
    first, second = found.more
    assert isinstance(first, ObjectDeleted)
    assert isinstance(second, DeleteRejected)
    assert (second.key, second.code) == ("b", "request_expired")


# Reports.


def status(**more: Any) -> StatusRequested:
    return StatusRequested.model_validate(
        {"request_id": SWEEP_ID, "project": "*", "view": "projects", "requested_at": AT, **more}
    )


async def test_a_report_answers_even_if_the_storage_is_away_and_is_not_retried() -> None:
    control = Control()
    handled = await control.serve(status())
    assert isinstance(handled.event, StatusReported)
    assert [row.project for row in handled.event.projects or ()] == ["acme"]
    control.on.storage.fail_next("list_entries", StorageUnavailableError("down"))
    handled = await control.serve(status(view="objects"))
    assert isinstance(handled.event, StatusReported)
    assert handled.event.code == "storage_unavailable"
    assert handled.logged["code"] == "storage_unavailable"


async def test_an_expired_request_for_a_report_was_never_completed() -> None:
    """Its refusal says so; a report that was read now would say so less clearly."""
    assert await Control().find(status()) is None


# Keyrings that a mark contradicts.


def _unknown(age: timedelta) -> KeyringUnknownError:
    at = format_time(datetime.now(UTC) - age)
    ring = keyring()
    ring = replace(ring, serial=1, current=replace(ring.current, at=at))
    return KeyringUnknownError("no mark", ring, Mark(1, bytes(32), 1))


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        pytest.param(KeyringContradictedError("rolled back"), True, id="rolled-back"),
        pytest.param(KeyringRemovedError("gone", Mark(1, bytes(32), 1)), True, id="removed"),
        # Far from the limit of a minute: they are made when the tests are collected.
        pytest.param(_unknown(timedelta(minutes=2)), True, id="no-mark"),
        pytest.param(_unknown(timedelta(hours=-1)), False, id="no-mark-yet"),
        pytest.param(KeyringRolledBackError("an object is above it"), False, id="object-above-it"),
        pytest.param(MarksUnavailableError("no broker"), False, id="marks-unavailable"),
        pytest.param(StorageUnavailableError("down"), False, id="storage-unavailable"),
    ],
)
def test_no_retry_waits_for_a_keyring_that_a_mark_contradicts(
    error: CodedError, *, is_final: bool
) -> None:
    """Only an operator can change that; but a mark may be on its way."""
    assert Control().handler.gives_up(error) is is_final


@pytest.mark.parametrize(
    "request_", [enroll("acme"), rotation(), sweep(), delete()], ids=lambda r: r.type
)
async def test_every_request_about_a_keyring_that_was_rolled_back_ends(request_: Request) -> None:
    """Nothing is written by it."""
    witness = FakeWitness()
    control = Control(witness)
    _, body = await control.on.storage.read(keyring_s3_key("acme"))
    witness.receive("acme", Mark(1, bytes(32), 3))
    with pytest.raises(KeyringContradictedError) as caught:
        await control.serve(request_)
    assert control.handler.gives_up(caught.value)
    assert (await control.on.storage.read(keyring_s3_key("acme")))[1] == body
    assert "enc-algo" in (await control.on.storage.head("acme/a")).metadata
    assert control.on.storage.calls["put"] == 0


# Anything.


@pytest.mark.parametrize(
    "request_", [enroll(), rotation(), sweep(), delete()], ids=lambda r: r.type
)
async def test_a_failure_that_may_pass_says_nothing_about_an_expired_request(
    request_: Request,
) -> None:
    control = Control()
    for name in ("read", "read_start"):
        control.on.storage.fail_next(name, StorageUnavailableError("down"), times=3)
    with pytest.raises(StorageUnavailableError):
        await control.find(request_)


async def test_a_refused_request_leaves_nothing_behind() -> None:
    control = Control()
    before = control.on.storage.calls.copy()
    await control.handler.after_refusal(delete(), ORIGIN, MalformedRequestError("x"))
    assert control.on.storage.calls == before
