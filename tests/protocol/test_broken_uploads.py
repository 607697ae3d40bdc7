"""Uploads and messages with a guard taken out: each is caught, and the real ones hold (SPEC 7)."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.topology import ATTEMPT_HEADER
from keyturn_workers.core.storage_values import Capabilities
from keyturn_workers.keys.sweep_records import record_path
from keyturn_workers.pipeline.amqp.requests import RequestSettlement
from keyturn_workers.pipeline.sweep.handler import HintSettlement
from keyturn_workers.pipeline.upload.attempt import Upload
from keyturn_workers.pipeline.upload.body import open_transport_key
from keyturn_workers.pipeline.upload.existing import ExistingUpload
from keyturn_workers.pipeline.upload.sessions import OpenedSessions
from keyturn_workers.pipeline.upload.uploader import Uploader, UploadResult
from tests.protocol.process import Options, Parts
from tests.protocol.stories import begin, hint, stop_at, stop_within, violations, without

if TYPE_CHECKING:
    from keyturn.crypto import IntakeKey, Secret
    from tests.protocol.broker import Delivery, QueuedMessage
    from tests.protocol.wire import Call
    from tests.protocol.world import World

IN_PARTS: Final = Options(capabilities=Capabilities(conditional_completion=True))


def a_put_that_outlasts_a_rotation(world: World) -> None:
    begin(world, "a")
    world.upload("acme", "late", b"x" * 300, staged=True)
    put = stop_within(world, "put_stream", "acme/late")
    rotation = world.rotate("acme")
    without(world, put)
    assert world.ended(rotation)
    world.run()


class _NoReread(Uploader):
    """Reports what it stored by the keyring that it began with."""

    async def _store(self, upload: Any, condition: Any) -> UploadResult:
        transport_key = open_transport_key(self._context, upload)
        stored = await self._put(upload, transport_key, condition)
        if isinstance(stored, ExistingUpload):
            return await self._finish_existing(upload, stored)
        return UploadResult(stored.size_bytes, stored.snapshot.desired.generation)


def test_the_keyring_is_read_again_after_a_put() -> None:
    assert violations(a_put_that_outlasts_a_rotation) == []
    found = violations(a_put_that_outlasts_a_rotation, Parts(uploader=_NoReread))
    assert any("acme/late is wrapped under (1," in what for what in found)


def uploads_under_sessions_of_two_processes(world: World) -> None:
    begin(world)
    uploads = [world.upload("acme", f"k{number}", b"x") for number in range(12)]
    world.run()
    if not all(world.ended(upload) for upload in uploads):
        world.oracle.violated("an upload did not end")
    if world.events_of_type("upload.rejected"):
        world.oracle.violated("a publisher's own session was refused")


class _NewestOnly(OpenedSessions):
    """Takes the session that it opened last for that of each later upload."""

    def _session(self, intake_key: IntakeKey, sealed: bytes, publisher: str) -> Secret:
        opened = self._opened.get(intake_key)
        if opened is not None and opened[publisher]:
            return next(reversed(opened[publisher].values()))
        return super()._session(intake_key, sealed, publisher)


def test_a_session_is_known_by_its_bytes() -> None:
    assert violations(uploads_under_sessions_of_two_processes) == []
    found = violations(uploads_under_sessions_of_two_processes, Parts(sessions=_NewestOnly))
    assert "a publisher's own session was refused" in found


def an_upload_signed_by_another_publisher_too(world: World) -> None:
    """`second` reads what `api` sent, and signs its session and key as its own."""
    begin(world)
    upload = next(
        sent
        for number in range(3)
        if "session"
        in world.requests[sent := world.upload("acme", f"k{number}", b"x")]["sealed_key"]
    )
    world.run()
    world.send(json.dumps(world.requests[upload]).encode(), "second", "upload.requested")
    world.run()
    if not any(event.code == "bad_seal" for event in world.events_of_type("upload.rejected")):
        world.oracle.violated("a stolen session was opened")


class _OfAnyone(OpenedSessions):
    """Knows sessions by their bytes alone."""

    def _session(self, intake_key: IntakeKey, sealed: bytes, publisher: str) -> Secret:
        del publisher
        return super()._session(intake_key, sealed, "api")


def test_a_session_is_its_publishers() -> None:
    assert violations(an_upload_signed_by_another_publisher_too) == []
    found = violations(an_upload_signed_by_another_publisher_too, Parts(sessions=_OfAnyone))
    assert "a stolen session was opened" in found


def an_upload_whose_worker_dies_at_its_put(world: World) -> None:
    begin(world)
    world.upload("acme", "a", b"x")
    put = stop_at(world, "put", "acme/a")
    world.crash(put.sender, arriving=lambda _: False)


async def _acknowledge(message: Any) -> None:
    await message.channel.basic_ack(message.delivery_tag)


class _AcknowledgesFirst(RequestSettlement):
    async def consume_scope(self, call_next: Any, msg: Any) -> None:
        await _acknowledge(msg.raw_message)
        await super().consume_scope(call_next, msg)
        raise asyncio.CancelledError  # a handler that is canceled settles nothing


class _AcknowledgesHintsFirst(HintSettlement):
    async def consume_scope(self, call_next: Any, msg: Any) -> None:
        await _acknowledge(msg.raw_message)
        await super().consume_scope(call_next, msg)
        raise asyncio.CancelledError


def test_a_request_is_acknowledged_after_its_effect() -> None:
    assert violations(an_upload_whose_worker_dies_at_its_put) == []
    broken = Parts(settlement=_AcknowledgesFirst)
    found = violations(an_upload_whose_worker_dies_at_its_put, broken)
    assert "the waiter of api's upload.requested waits forever" in found


@pytest.mark.parametrize("record", ["acme.json", "results"])
def test_a_hint_is_acknowledged_after_its_effect(record: str) -> None:
    def story(world: World) -> None:
        begin(world, "a")
        world.rotate("acme")
        # The request's own put of the record comes first: the sweep's begins behind it.
        world.run(until=lambda: world.events_of_type("rotation.accepted"))
        put = stop_at(world, "put", ".keyturn/sweeps/acme")
        while record not in put.key:
            world.step(put)
            put = stop_at(world, "put", ".keyturn/sweeps/acme")
        world.crash(put.sender, arriving=lambda _: False)
        # A lost page is sent again after a quarter of an hour, which is not waited for.
        world.run(seconds=120)
        if not world.events_of_type("rotation.completed"):
            world.oracle.violated("the sweep stalls")

    assert violations(story) == []
    found = violations(story, Parts(hint_settlement=_AcknowledgesHintsFirst))
    assert found == ["the sweep stalls"]


@pytest.mark.parametrize("project", ["acme", "*"])
@pytest.mark.parametrize("nth", range(4))
def test_a_step_continues_from_a_record_that_arrived_late(project: str, nth: int) -> None:
    """A worker dies while its step's record is on the way; that arrives just before the next try's.

    The next try then finds the step made, but its maker can no longer send what follows.
    """

    def story(world: World) -> None:
        begin(world, "a")
        sweep = world.sweep(project)
        world.run(until=lambda: any(hint(queued) for queued in world.ready()))
        record = record_path(project)
        late = stop_at(world, "put", record)
        for _ in range(nth):
            world.step(late)
            late = stop_at(world, "put", record)
        world.crash(late.sender)

        def next_try() -> bool:
            puts = [call for call in world.calls if (call.op, call.key) == ("put", record)]
            return puts[1:] != []

        assert world.run(until=next_try, hold=lambda call: call is late)
        world.step(late)
        # Lost messages are recovered after a quarter of an hour; this story does not wait for that.
        world.run(seconds=120)
        if not world.ended(sweep):
            world.oracle.violated("the sweep stalls")

    assert violations(story) == []


def an_upload_that_arrives_after_a_delete(world: World) -> None:
    begin(world, "a")
    world.delete("acme", "a")
    world.run()
    world.upload("acme", "a", b"again")
    world.run()


class _Overwrites(Uploader):
    """Puts over any object, a tombstone too."""

    async def _store(self, upload: Any, condition: Any) -> UploadResult:
        del condition
        nothing: Any = None
        return await super()._store(upload, nothing)


def test_a_tombstone_refuses_every_later_upload() -> None:
    assert violations(an_upload_that_arrives_after_a_delete) == []
    found = violations(an_upload_that_arrives_after_a_delete, Parts(uploader=_Overwrites))
    assert "acme/a came back after its delete was published" in found


def a_rotation_whose_worker_dies_after_it_rotated_the_keyring(world: World) -> None:
    begin(world, "a")
    world.rotate("acme")
    put = stop_at(world, "put", ".keyturn/keyrings/")
    world.step(put, respond=False)
    world.crash(put.sender)
    world.run()


def test_the_keyring_remembers_its_last_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_rotation_whose_worker_dies_after_it_rotated_the_keyring) == []
    monkeypatch.setattr(
        "keyturn_workers.pipeline.control.rotation.find_generation", lambda *_: None
    )
    found = violations(a_rotation_whose_worker_dies_after_it_rotated_the_keyring)
    assert any("rotation.rejected believed" in what and "had its effect" in what for what in found)


def copies_of_a_retry(world: World) -> None:
    """A retry of a large upload is there twice, and each copy is slow whenever the other begins.

    The copy that began first then sends the rest of its parts. If it fails, it comes back as a
    retry of its own, and the other one is the first.
    """
    begin(world)
    upload = world.upload("acme", "a", b"x" * 300, staged=True)
    world.network.lose(stop_at(world, "upload_part", "acme/a"))
    assert world.run(until=lambda: _retries(world))
    world.duplicate(_retries(world)[0])
    for _ in range(8):
        world.run(until=lambda: len(_uploading(world)) > 1 or world.ended(upload), hold=_is_part)
        _finish_one(world, _uploading(world)[0])
        if world.ended(upload):
            world.run()
            if world.server.open_uploads():
                world.oracle.violated("parts are left at a key whose upload was published")
            return
    world.oracle.violated("the copies of a retry keep each other from being stored")


def _retries(world: World) -> list[QueuedMessage]:
    return [each for each in world.queue if ATTEMPT_HEADER in each.headers]


def _finish_one(world: World, delivery: Delivery) -> None:
    """Let one delivery send its parts; the others' parts are held."""
    world.run(
        until=lambda: not delivery.is_unacked,
        hold=lambda call: _is_part(call) and call.delivery is not delivery,
    )


def _is_part(call: Call) -> bool:
    return call.op == "upload_part"


def _uploading(world: World) -> list[Delivery]:
    """The deliveries that are sending parts, in the order in which they began to."""
    senders = [call.delivery for call in world.calls if _is_part(call) and not call.is_ghost]
    return [each for each in dict.fromkeys(senders) if each is not None]


class _AbortsFirst(Uploader):
    """Aborts what earlier deliveries may have left before it makes its own attempt."""

    async def serve(self, request: Any, publisher: str, *, seen_before: bool) -> UploadResult:
        if seen_before:
            await self._abort_leftovers(Upload(request, publisher))
        return await super().serve(request, publisher, seen_before=seen_before)


def test_a_copy_of_a_retry_aborts_no_parts_of_another() -> None:
    assert violations(copies_of_a_retry, options=IN_PARTS) == []
    found = violations(copies_of_a_retry, Parts(uploader=_AbortsFirst), IN_PARTS)
    assert "the copies of a retry keep each other from being stored" in found
    assert "parts of acme/a were aborted by another delivery before it was stored" in found
