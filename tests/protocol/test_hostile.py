"""The world's own: what the hostile can do, what the storage does wrong, and who waits for what."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.errors import StorageUnavailableError
from keyturn.identifiers import format_time
from keyturn.messages import encode, parse_event
from keyturn.topology import ATTEMPT_HEADER, CONTROL_QUEUE, UPLOAD_QUEUE
from keyturn_workers.core.errors import MissingError, RequestFailedError, StorageResponseError
from tests.protocol.hostile import HostilePublisher
from tests.protocol.stories import begin, stop_within, without
from tests.protocol.waiters import Record, signed, verified
from tests.protocol.world import World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.protocol.waiters import Waiter


@pytest.fixture
def world() -> Iterator[World]:
    """A project with an object."""
    with World() as made:
        begin(made, "a")
        yield made


def _waiters(world: World, request_id: str) -> list[Waiter]:
    return [waiter for waiter in world.waiters if waiter.request.id == request_id]


def test_each_honest_request_has_a_waiter_and_one_that_was_restarted(world: World) -> None:
    rotation = world.rotate("acme", publisher="second")
    waiters = _waiters(world, rotation)
    assert [waiter.restarted for waiter in waiters] == [False, True]
    assert not any(waiter.ended for waiter in waiters)
    world.run()
    for waiter in waiters:
        believed = [event.type for event in waiter.believed]
        assert believed == ["rotation.accepted", "rotation.completed"]
    world.settle()
    assert world.oracle.violations == []
    assert all(waiter.ended for waiter in world.waiters)


def test_a_repeated_request_has_waiters_of_its_own(world: World) -> None:
    upload = world.upload("nowhere", "k", b"x", staged=True)
    world.run()
    world.enroll("nowhere")
    world.run()
    world.send_again(upload)
    world.run()
    ends = [waiter.believed[-1].type for waiter in _waiters(world, upload)]
    assert ends == ["upload.rejected"] * 2 + ["upload.stored"] * 2


def test_a_publisher_acts_in_its_projects_alone(world: World) -> None:
    refused = world.upload("acme", "b", b"x", publisher="other")
    world.run()
    end: Any = world.ended(refused)[0]
    assert (end.type, end.code) == ("upload.rejected", "not_permitted")


def test_a_broker_writer_copies_any_message_that_was_ever_queued(world: World) -> None:
    first = next(queued for queued in world.all_messages if queued.queue == UPLOAD_QUEUE)
    copy = world.broker_writer.copy(
        first,
        queue=CONTROL_QUEUE,
        routing_key="rotation.requested",
        headers={ATTEMPT_HEADER: "unknown_project:3", "keyturn-signature": None},
    )
    assert (copy.body, copy.queue) == (first.body, CONTROL_QUEUE)
    assert copy.headers == {"keyturn-publisher": "api", ATTEMPT_HEADER: "unknown_project:3"}
    world.run()
    assert [error.code for queued, error in world.dead if queued is copy] == ["bad_signature"]


def test_no_event_reports_what_was_not_signed(world: World) -> None:
    before = len(world.stream)
    world.broker_writer.junk(UPLOAD_QUEUE, b"\xff")
    world.broker_writer.junk(CONTROL_QUEUE, b"{}", **{"keyturn-publisher": "api"})
    document = next(
        a.document for a in world.sent_requests.values() if a.kind == "upload.requested"
    )
    world.broker_writer.unsigned({**document, "key": "forged"}, UPLOAD_QUEUE)
    world.broker_writer.step("acme", 3)
    world.broker_writer.page("acme", document["upload_id"], 0, 0)
    world.run()
    assert len(world.stream) == before
    assert "acme/forged" not in world.server.current_objects()
    assert [error.code for _, error in world.dead] == ["bad_signature"] * 3


def test_an_event_published_again_is_believed_and_a_forged_one_is_not(world: World) -> None:
    record = world.stream[-1]
    assert len(verified(record)) == 1
    world.broker_writer.publish_again(record)
    assert world.stream[-1] is record
    upload = world.upload("acme", "b", b"x")
    stored = parse_event(record.body).model_copy(update={"upload_id": upload, "key": "b"})
    world.broker_writer.forge(stored)
    assert verified(world.stream[-1]) == ()
    assert not any(waiter.believed for waiter in _waiters(world, upload))


def test_a_hostile_publisher_signs_requests_with_ids_of_others(world: World) -> None:
    rotation = world.rotate("acme")
    hostile = HostilePublisher(world, "other")
    hostile.reuse(rotation, "sweep", "beta")
    hostile.reuse(rotation, "upload", "beta", key="k", plaintext=b"x")
    hostile.malformed(rotation, "rotation.requested", "acme")
    signed_by = [queued.headers["keyturn-publisher"] for queued in world.all_messages[-3:]]
    assert signed_by == ["other"] * 3
    assert len(_waiters(world, rotation)) == 2
    assert world.requests[rotation]["type"] == "rotation.requested"
    world.run()
    assert "malformed_request" in {error.code for _, error in world.dead}


@pytest.mark.parametrize("code", ["NoSuchKey", ""])
def test_an_object_that_exists_is_answered_with_404(world: World, code: Any) -> None:
    fault = world.server.hide("acme/a", code=code, times=1)
    read = world.processes[0].wire.read_start

    async def caught() -> str:
        try:
            await read("acme/a", 10)
        except (StorageResponseError, StorageUnavailableError) as exc:
            return type(exc).__name__
        return "read"

    def answered() -> str:
        task = world.loop.create_task(caught())
        world.loop.run_until_idle()
        world.run()
        return task.result()

    names = {MissingError.__name__, RequestFailedError.__name__}
    assert answered() in ({MissingError.__name__} if code else names)
    assert fault.times == 0
    assert answered() == "read"


def test_a_front_end_has_a_clock_of_its_own(world: World) -> None:
    async def head() -> Any:
        return await world.processes[0].wire.head("acme/a")

    def date() -> float:
        task = world.loop.create_task(head())
        world.loop.run_until_idle()
        began = world.clock.now
        world.run()
        return float(round((task.result().date - began).total_seconds()))

    slow = world.server.front_end(-16, lambda call: call.op == "head", times=1)
    assert date() == pytest.approx(-16, abs=1)
    assert date() == pytest.approx(0, abs=1)
    assert slow.times == 0
    world.server.advance(86_400)
    assert date() == pytest.approx(86_400, abs=1)


def test_a_response_may_be_dated_before_its_effect(world: World) -> None:
    world.server.front_end(where=lambda call: call.op == "put_stream", dated_early=True)
    began = world.clock.now.replace(microsecond=0)
    world.upload("acme", "b", b"x" * 100, staged=True)
    put = stop_within(world, "put_stream", "acme/b")
    without(world, put, seconds=5)
    world.advance(5)
    world.step(put)
    modified = world.server.current_objects()["acme/b"].last_modified
    assert modified - began < timedelta(seconds=2)


def test_a_worker_has_a_clock_of_its_own(world: World) -> None:
    for process in world.processes:
        process.clock_s = -60
    upload = world.upload("acme", "b", b"x")
    world.run(seconds=1)
    end: Any = world.ended(upload)[0]
    # Its own date is the only one that it has for an event.
    assert format_time(world.clock.now - timedelta(seconds=58)) > end.at


def test_a_bucket_writer_removes_and_relabels_objects(world: World) -> None:
    world.bucket_writer.relabel("acme/a", enc_upload="another")
    assert world.server.current_objects()["acme/a"].headers.metadata["enc-upload"] == "another"
    world.bucket_writer.remove("acme/")
    assert "acme/a" not in world.server.current_objects()


def test_a_message_in_another_form_is_not_believed(world: World) -> None:
    """A broker writer cuts events out of a batch, drops one of it, and puts an event into one."""
    events = [verified(record) for record in world.stream]
    stored = [encode(event) for (event,) in events if event.type == "upload.stored"]
    batch = signed("upload.stored", stored * 2)
    assert len(verified(batch)) == 2
    made = len(world.stream)
    for record in (world.stream[-1], batch):
        world.broker_writer.repack(record)
    assert len(world.stream) == made + 1 + 3
    assert [verified(record) for record in world.stream] == [*events, (), (), (), ()]
    assert world.holds()


def test_a_record_of_the_stream_is_believed_by_its_signature_alone(world: World) -> None:
    record = world.stream[-1]
    assert verified(Record(record.body.replace(b"acme", b"beta"), record.signature)) == ()
