"""Admission, retries and ages with a guard taken out: each is caught (SPEC 6.3).

Each story runs twice: what is published is what happened, and without the guard a publisher
believes what did not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from keyturn.topology import ATTEMPT_HEADER, CONTROL_QUEUE, NOT_BEFORE_HEADER, UPLOAD_QUEUE
from keyturn_workers.core.authorization import Arrival, rejection_of
from keyturn_workers.core.grants import Grant
from keyturn_workers.pipeline.amqp import requests
from keyturn_workers.pipeline.amqp.failures import Retry, RetryNotes
from keyturn_workers.pipeline.upload.request_handler import UploadHandler
from tests.protocol.clock import EPOCH
from tests.protocol.hostile import HostilePublisher
from tests.protocol.stories import begin, stop_at, violations

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.protocol.world import World

_DAY_S = 86_400


_BELIEVED_ALL_THE_SAME = (
    "upload.rejected believed by the waiter of api's upload.requested, and it had its effect"
)
_REFUSED_AND_DONE = "a refusal was believed of what was done"


def _settle(world: World) -> None:
    """Let everything end; then no waiter may believe that a stored upload was refused."""
    world.settle()
    stored = {event.request for event in world.events_of_type("upload.stored")}
    for waiter in world.waiters:
        kinds = {event.type for event in waiter.believed}
        if "upload.rejected" in kinds and waiter.request.digest in stored:
            world.oracle.violated(_REFUSED_AND_DONE)


def a_genuine_upload_copied_to_another_queue(world: World) -> None:
    """The original is served; its copy on another queue is refused without an event."""
    begin(world)
    world.upload("acme", "a", b"x", publisher="api")
    world.broker_writer.copy(
        world.all_messages[-1], queue=CONTROL_QUEUE, routing_key="delete.requested"
    )


def a_copy_with_a_forged_attempt(world: World) -> None:
    """Refused for good at once, and then the original is stored."""
    begin(world)
    world.upload("nowhere", "a", b"x", publisher="api")
    forged = {ATTEMPT_HEADER: "unknown_project:3"}
    world.broker_writer.copy(world.all_messages[-1], headers=forged)
    world.run(seconds=0.5)
    world.enroll("nowhere")
    _settle(world)


def retries_that_are_moved_early(world: World) -> None:
    """An attacker moves copies of what waits to its queue, again and again."""
    begin(world)
    world.upload("nowhere", "a", b"x", publisher="api")
    for _ in range(5):
        world.run(seconds=0.1)
        waiting = [queued for queued in world.queue if NOT_BEFORE_HEADER in queued.headers]
        for queued in waiting:
            world.broker_writer.copy(queued)
    world.run(seconds=0.1)
    world.enroll("nowhere")
    _settle(world)


def a_redelivery_past_its_age(world: World) -> None:
    """Stored, its event lost with the worker, and given again a week later."""
    begin(world)
    world.upload("acme", "a", b"x", publisher="api")
    publishing = stop_at(world, "publish upload.stored")
    world.crash(publishing.sender, arriving=lambda _: False)
    world.advance(8 * _DAY_S)
    _settle(world)


def _read_unsigned(
    notes: RetryNotes, queue: str, publisher: str, body: bytes, headers: Any
) -> Retry | None:
    """As before 0.5: only by the header."""
    del notes, queue, publisher, body
    found = re.fullmatch(r"([a-z_]+):([0-9]+)", str(headers.get(ATTEMPT_HEADER)))
    return None if found is None else Retry(found[1], int(found[2]), EPOCH)


async def _finds_nothing(*_: object) -> None:
    """Instead of checking what was served."""


@pytest.mark.parametrize(
    ("story", "owner", "name", "broken", "caught"),
    [
        (
            a_genuine_upload_copied_to_another_queue,
            Arrival,
            "accepts",
            lambda *_: True,
            "upload.rejected was published for a message on the wrong queue",
        ),
        (a_copy_with_a_forged_attempt, RetryNotes, "read", _read_unsigned, _REFUSED_AND_DONE),
        (retries_that_are_moved_early, Retry, "early_s", lambda *_: 0, _REFUSED_AND_DONE),
        (
            a_redelivery_past_its_age,
            UploadHandler,
            "find_completed",
            _finds_nothing,
            _BELIEVED_ALL_THE_SAME,
        ),
    ],
    ids=["routing", "mac", "not before", "age"],
)
def test_no_refusal_is_published_of_a_request_that_was_served(
    story: Callable[[World], None],
    owner: Any,
    name: str,
    broken: Any,
    caught: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert violations(story) == []
    monkeypatch.setattr(owner, name, broken)
    assert caught in violations(story)


def a_malformed_body_in_anothers_project(world: World) -> None:
    """Signed by a publisher that may do nothing there."""
    begin(world)
    rotation = world.rotate("acme", publisher="api")
    hostile = HostilePublisher(world, "other")
    hostile.malformed(rotation, "rotation.requested", "acme")
    world.run()
    refused: list[Any] = world.events_of_type("rotation.rejected")
    assert [event.publisher for event in refused] == ["other"]
    if any(event.project is not None for event in refused):
        world.oracle.violated("a refusal in a project that is not its publisher's")


def test_a_refusal_names_no_project_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_malformed_body_in_anothers_project) == []

    def by_what_is_claimed(body: bytes, signer: Any, error: Any, at: str) -> Any:
        every = frozenset("*")
        signer = type(signer)(signer.name, Grant(signer.grant.keys, every, every))
        return rejection_of(body, signer, error, at)

    monkeypatch.setattr(requests, "rejection_of", by_what_is_claimed)
    found = violations(a_malformed_body_in_anothers_project)
    assert "a refusal in a project that is not its publisher's" in found


def a_retry_moved_to_another_publishers_identical_bytes(world: World) -> None:
    """The MAC is bound to the publisher: signed by another, the same bytes are a first try."""
    begin(world)
    upload = world.upload("nowhere", "a", b"x", publisher="api")
    world.run(seconds=7)
    noted = next(queued for queued in world.queue if NOT_BEFORE_HEADER in queued.headers)
    notes = {name: noted.headers[name] for name in noted.headers if name != "keyturn-publisher"}
    signed = {name: notes.pop(name) for name in list(notes) if name == "keyturn-signature"}
    assert signed
    copies = len(world.all_messages)
    world.send(noted.body, "second", "upload.requested")
    queued: Any = world.all_messages[copies]
    queued.headers.update(notes)
    assert queued.queue == UPLOAD_QUEUE
    assert upload
    process = world.processes[0]
    read = process.publisher.retry_of(queued, UPLOAD_QUEUE, "second")
    if read is not None:
        world.oracle.violated("the note of another publisher counts")
    world.run(seconds=1)
    world.enroll("nowhere")


def test_a_retry_note_counts_for_its_publisher_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert violations(a_retry_moved_to_another_publishers_identical_bytes) == []
    monkeypatch.setattr(RetryNotes, "read", _read_unsigned)
    found = violations(a_retry_moved_to_another_publishers_identical_bytes)
    assert "the note of another publisher counts" in found
