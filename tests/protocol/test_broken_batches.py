"""Batches of events, and acknowledgments that cover several deliveries, with a guard taken out.

Each story holds with the workers' own classes, and is caught without the guard (SPEC 6.2, 6.7).
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest

from keyturn.crypto import SigningKey
from keyturn.crypto.signatures import EventVerifier
from keyturn.messages import load_json, parse_traced_event, request_id
from keyturn.publisher.event_stream import Verifier
from keyturn_workers.pipeline.amqp.acks import Acks, ChannelAcks
from keyturn_workers.pipeline.amqp.event_batches import EventBatches, NotConfirmedError, Send
from tests.protocol.process import Options, Parts
from tests.protocol.stories import begin, stop_at, violations, without
from tests.protocol.waiters import verified

if TYPE_CHECKING:
    from collections.abc import Callable

    from keyturn.messages import Event, TracedEvent
    from tests.protocol.wire import Call
    from tests.protocol.world import World

# All uploads come to one process, and what is held holds others back for as long as a story takes.
TOGETHER: Final = Options(processes=1, hold_s=60, acks_hold_s=60)
PUBLISH: Final = "publish upload.stored"
WAITS: Final = "the waiter of api's upload.requested waits forever"


def _caught(
    story: Callable[[World], None], parts: Parts | None = None, options: Options = TOGETHER
) -> list[str]:
    return violations(story, parts, options)


# Batches of events.


def a_batch_on_its_way(world: World, *held: Call) -> Call:
    """One event is published, and behind it two gathered; the publish of these is held."""
    if not held:
        begin(world)
    world.upload("acme", "a", b"x")
    assert world.run(
        until=lambda: _publishes(world), hold=lambda call: call in (*held, *_publishes(world))
    )
    (first,) = _publishes(world)
    for number in range(2):
        world.upload("acme", f"b{number}", b"y")
    without(world, first, *held, seconds=1)
    assert _publishes(world) == [first]
    world.step(first)
    (batch,) = _publishes(world)
    return batch


def _publishes(world: World) -> list[Call]:
    return [call for call in world.calls if call.op == PUBLISH]


def a_batch_that_is_confirmed(world: World) -> None:
    world.step(a_batch_on_its_way(world))
    assert b'"events":[' in world.stream[-1].body
    world.run()


def a_worker_that_dies_before_its_batch_arrives(world: World) -> None:
    batch = a_batch_on_its_way(world)
    world.crash(batch.sender, arriving=lambda _: False)


def a_worker_that_dies_while_an_event_gathers(world: World) -> None:
    begin(world)
    world.upload("acme", "a", b"x")
    first = stop_at(world, PUBLISH)
    world.upload("acme", "b", b"y")
    without(world, first, seconds=1)
    world.crash(first.sender, arriving=lambda _: False)


def a_batch_that_the_broker_loses(world: World) -> None:
    world.network.drop(a_batch_on_its_way(world))
    world.run()


class _ReturnsOnceGathered(EventBatches):
    """Says that an event is published as soon as it is in a batch."""

    async def publish(self, event_type: str, publisher: str, body: bytes) -> None:
        publishing = asyncio.ensure_future(super().publish(event_type, publisher, body))
        publishing.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.sleep(0)


class _ReturnsOnceSent(EventBatches):
    """Says that events are published once their batch is on its way."""

    def __init__(self, send: Send, *, hold_s: float) -> None:
        self._sent: dict[bytes, asyncio.Event] = defaultdict(asyncio.Event)

        async def sending(event_type: str, publisher: str, bodies: tuple[bytes, ...]) -> None:
            for body in bodies:
                self._sent[body].set()
            await send(event_type, publisher, bodies)

        super().__init__(sending, hold_s=hold_s)

    async def publish(self, event_type: str, publisher: str, body: bytes) -> None:
        publishing = asyncio.ensure_future(super().publish(event_type, publisher, body))
        publishing.add_done_callback(lambda done: done.cancelled() or done.exception())
        await self._sent[body].wait()


class _ConfirmsWhatWasLost(EventBatches):
    """Says that events are published once their batch has ended in any way."""

    async def publish(self, event_type: str, publisher: str, body: bytes) -> None:
        with suppress(NotConfirmedError):
            await super().publish(event_type, publisher, body)


@pytest.mark.parametrize(
    ("story", "broken"),
    [
        (a_worker_that_dies_while_an_event_gathers, _ReturnsOnceGathered),
        (a_worker_that_dies_before_its_batch_arrives, _ReturnsOnceSent),
        (a_batch_that_the_broker_loses, _ConfirmsWhatWasLost),
    ],
    ids=lambda part: part.__name__.lstrip("_"),
)
def test_a_request_is_acknowledged_once_its_batch_is_confirmed(
    story: Callable[[World], None], broken: type[EventBatches]
) -> None:
    assert _caught(story) == []
    assert WAITS in _caught(story, Parts(batches=broken))


def test_the_failure_of_a_batch_is_not_that_of_the_next() -> None:
    """A batch that is lost comes to its end by the redelivery of each request in it."""

    def story(world: World) -> None:
        batch = a_batch_on_its_way(world)
        later = world.upload("acme", "c", b"z")
        without(world, batch, seconds=1)
        world.network.drop(batch)
        world.step(stop_at(world, PUBLISH))
        assert [request_id(event) for event in verified(world.stream[-1])] == [later]
        world.run()

    assert _caught(story) == []


def test_a_publish_that_takes_long_holds_no_others_back() -> None:
    def story(world: World) -> None:
        begin(world)
        world.upload("acme", "a", b"x")
        held = stop_at(world, PUBLISH)
        later = world.upload("acme", "b", b"y")
        without(world, held, seconds=1)
        if not world.ended(later):
            world.oracle.violated("an event waits for another")
        world.run()

    assert _caught(story, options=Options(processes=1)) == []
    assert _caught(story) == ["an event waits for another"]


# Readers of batches.

_events = Verifier.events


def _first_alone(self: Verifier, record: Any) -> tuple[Event, ...]:
    return _events(self, record)[:1]


def test_every_event_of_a_batch_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _caught(a_batch_that_is_confirmed) == []
    monkeypatch.setattr(Verifier, "events", _first_alone)
    assert WAITS in _caught(a_batch_that_is_confirmed)


def a_batch_with_an_event_of_a_newer_version(world: World) -> None:
    begin(world)
    world.upload("acme", "a", b"x")
    first = stop_at(world, PUBLISH)
    newer = b'{"type":"upload.stored","upload_id":["of","many","parts"]}'
    publish = world.processes[0].publisher.batches.publish
    world.loop.create_task(publish("upload.stored", "api", newer))
    world.upload("acme", "b", b"y")
    without(world, first, seconds=1)
    world.run()
    assert newer in world.stream[-1].body


def _all_or_nothing(body: bytes) -> tuple[TracedEvent, ...]:
    """`parse_batch` of a reader that believes nothing of a batch which it cannot read fully."""
    events = load_json(body)["events"]
    return tuple(parse_traced_event(json.dumps(event).encode()) for event in events)


def test_an_event_that_cannot_be_read_hides_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _caught(a_batch_with_an_event_of_a_newer_version) == []
    monkeypatch.setattr("keyturn.publisher.event_stream.parse_batch", _all_or_nothing)
    assert WAITS in _caught(a_batch_with_an_event_of_a_newer_version)


def _as_one_event(self: SigningKey, deployment: str, body: bytes) -> str:
    return self.sign_event(deployment, body)


def test_a_batch_is_signed_under_a_label_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _caught(a_batch_that_is_confirmed) == []
    monkeypatch.setattr(SigningKey, "sign_events", _as_one_event)
    assert WAITS in _caught(a_batch_that_is_confirmed)


def records_in_other_forms(world: World) -> None:
    """A broker writer cuts events out of batches, shortens these, and puts events into one."""
    a_batch_that_is_confirmed(world)
    for record in list(world.stream):
        for place in range(len(verified(record))):
            world.broker_writer.repack(record, place)


def _whatever_the_signature(*_: Any) -> bool:
    return True


@pytest.mark.parametrize("checked", ["is_signed", "is_batch_signed"])
def test_a_signature_covers_one_form_of_a_message(
    checked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _caught(records_in_other_forms) == []
    monkeypatch.setattr(EventVerifier, checked, _whatever_the_signature)
    found = _caught(records_in_other_forms)
    assert any("is read from what no worker signed" in what for what in found)


# Acknowledgments.


def a_worker_that_dies_at_an_upload_before_others(world: World) -> None:
    """The first upload is at its put while a batch of others is confirmed."""
    begin(world)
    world.upload("acme", "slow", b"x")
    put = stop_at(world, "put", "acme/slow")
    world.step(a_batch_on_its_way(world, put))
    world.crash(put.sender, arriving=lambda _: False)


def an_upload_that_ends_behind_a_later_one(world: World) -> None:
    put, _ = _a_later_upload_is_done(world)
    world.advance(TOGETHER.acks_hold_s)
    world.step(put)
    world.run()
    assert put.sender.deliveries == []


def a_connection_that_is_lost_before_an_acknowledgment(world: World) -> None:
    put, _ = _a_later_upload_is_done(world)
    assert len(put.sender.deliveries) == 2
    world.disconnect(put.sender)
    world.run()


def a_worker_that_stops_before_an_acknowledgment(world: World) -> None:
    put, _ = _a_later_upload_is_done(world)
    world.stop(put.sender, hold=lambda call: call is put, seconds=10)


def _a_later_upload_is_done(world: World) -> tuple[Call, str]:
    begin(world)
    world.upload("acme", "a", b"x")
    put = stop_at(world, "put", "acme/a")
    later = world.upload("acme", "b", b"y")
    without(world, put, seconds=1)
    assert world.ended(later)
    return put, later


def _up_to_the_last_that_is_ready(self: ChannelAcks) -> list[int]:
    return sorted(self._ready)


def _up_to_the_last_that_is_settled(self: ChannelAcks) -> list[int]:
    """Says again what was acknowledged singly."""
    tag = self._through + 1
    if tag not in self._ready:
        return []
    prefix = [tag]
    last = self._gone.beyond(tag + 1) - 1
    if last > tag:
        self._ready[last] = 0.0
        prefix.append(last)
    return prefix


class _OneForAllChannels(Acks):
    """Takes the tags of a channel that was lost for those of the next."""

    def _of(self, message: Any) -> Any:
        acks = super()._of(message) if self._current is None else self._current
        if acks is not None:
            acks.channel = message.channel
        return acks


class _NeverFlushed(Acks):
    async def flush(self) -> None:
        """Leaves what waits to the broker."""


def test_no_acknowledgment_covers_what_is_still_served(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _caught(a_worker_that_dies_at_an_upload_before_others) == []
    monkeypatch.setattr(ChannelAcks, "_prefix", _up_to_the_last_that_is_ready)
    assert WAITS in _caught(a_worker_that_dies_at_an_upload_before_others)


def test_what_was_acknowledged_is_not_named_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _caught(an_upload_that_ends_behind_a_later_one) == []
    monkeypatch.setattr(ChannelAcks, "_prefix", _up_to_the_last_that_is_settled)
    found = _caught(an_upload_that_ends_behind_a_later_one)
    assert any("the broker closed a channel" in what for what in found)


def test_tags_are_those_of_one_channel() -> None:
    assert _caught(a_connection_that_is_lost_before_an_acknowledgment) == []
    broken = Parts(acks=_OneForAllChannels)
    found = _caught(a_connection_that_is_lost_before_an_acknowledgment, broken)
    assert any("the broker closed a channel" in what for what in found)


def test_a_worker_that_stops_acknowledges_what_it_served() -> None:
    assert _caught(a_worker_that_stops_before_an_acknowledgment) == []
    found = _caught(a_worker_that_stops_before_an_acknowledgment, Parts(acks=_NeverFlushed))
    assert found == ["a process stopped, and had not acknowledged what it had served"]
