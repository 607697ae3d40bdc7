"""Rotations, sweeps and deletes from the publisher's side, on a real broker (SPEC 6.5 to 6.7)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from keyturn import topology
from keyturn.crypto import SigningKey, from_base64, kek_info, user_kek
from keyturn.errors import MalformedRequestError
from keyturn.messages import (
    COUNT_FIELDS,
    DeleteRequested,
    Event,
    RotationAccepted,
    RotationCompleted,
    RotationFailed,
    RotationRejected,
    RotationRequested,
    SweepProgressed,
    SweepRequested,
)
from keyturn.publisher import Publisher
from tests.integration.publisher.side import INTAKE, WorkerSide, answer, answer_elsewhere, verified

if TYPE_CHECKING:
    from keyturn.settings import PublisherSettings

AT = "2026-11-24T10:00:00Z"
API_KEY = "kt_" + "n" * 43
ROTATION: Any = {"project": "acme", "request_type": "rotation.requested"}
COUNTS: dict[str, Any] = dict.fromkeys(COUNT_FIELDS, 0) | {"clean": True}


def _accepted(rotation_id: str) -> RotationAccepted:
    return RotationAccepted(rotation_id=rotation_id, project="acme", generation=2, at=AT)


def _progressed(sweep_id: str, objects: int, project: str = "acme") -> SweepProgressed:
    counts = COUNTS | {"objects": objects}
    return SweepProgressed(sweep_id=sweep_id, project=project, at=AT, **counts)


def _completed(rotation_id: str) -> RotationCompleted:
    return RotationCompleted(rotation_id=rotation_id, project="acme", at=AT, **COUNTS)


def _failed(rotation_id: str, project: str) -> RotationFailed:
    return RotationFailed(
        rotation_id=rotation_id, project=project, code="keyring_rolled_back", detail="", at=AT
    )


def _refused(rotation_id: str) -> RotationRejected:
    return RotationRejected(
        rotation_id=rotation_id, project="acme", code="kek_reused", detail="", at=AT
    )


async def _all(
    publisher: Publisher, request_id: str, since: datetime | None = None, **of: Any
) -> list[Event]:
    events = publisher.progress(request_id, since=since, **of)
    async with asyncio.timeout(20), aclosing(events) as received:
        return [event async for event in received]


async def test_a_rotation_reaches_the_control_queue_sealed(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        rotation_id = await publisher.rotate("acme", api_key=API_KEY, expected_generation=3)
        again = await publisher.rotate("acme", api_key=API_KEY, rotation_id=rotation_id)
    assert again == rotation_id
    message = await worker.take(topology.CONTROL_QUEUE)
    assert message.message_id == rotation_id
    assert API_KEY.encode() not in message.body
    request = verified(message)
    assert isinstance(request, RotationRequested)
    assert request.expected_generation == 3
    assert request.sealed_kek is not None
    info = kek_info("rotation", rotation_id, "acme")
    assert request.sealed_kek is not None
    kek = INTAKE.open(from_base64(request.sealed_kek.ciphertext), info)
    assert kek == user_kek(API_KEY, "acme", "pepper").reveal()


async def test_sweeps_and_deletes_reach_the_control_queue(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        sweep_id = await publisher.sweep("*", master_key="2027", repair=True)
        request_id = await publisher.delete("acme", "reports/q3.pdf")
        with pytest.raises(MalformedRequestError, match="key"):
            await publisher.delete("acme", "../q3.pdf")
    sweep = verified(await worker.take(topology.CONTROL_QUEUE))
    assert isinstance(sweep, SweepRequested)
    assert (sweep.sweep_id, sweep.project, sweep.master_key) == (sweep_id, "*", "2027")
    assert (sweep.repair, sweep.encrypt_plaintext) == (True, False)
    delete = verified(await worker.take(topology.CONTROL_QUEUE))
    assert isinstance(delete, DeleteRequested)
    assert (delete.request_id, delete.key) == (request_id, "reports/q3.pdf")
    assert await worker.count(topology.CONTROL_QUEUE) == 0


async def test_progress_gives_every_event_of_one_request_and_ends(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        rotation_id = await publisher.rotate("acme", api_key=API_KEY)
        other_id = await publisher.rotate("other", api_key=API_KEY)
        events: list[Event] = [
            _accepted(rotation_id),
            *(_progressed(rotation_id, n) for n in range(300)),
            _completed(rotation_id),
        ]
        published = [answer(publisher, event) for event in events]
        reading = asyncio.create_task(_all(publisher, rotation_id))
        for event in published:
            await worker.publish(event)
            await worker.publish(answer(publisher, _progressed(other_id, 7, "other")))
        forged = SigningKey.from_seed(b"f" * 32)
        failed = answer(publisher, _failed(other_id, "other"))
        await worker.publish(failed, key=forged)
        await worker.publish(failed)
        assert await reading == published
        # No client followed it while it ran: the stream still has all of it.
        assert await _all(publisher, rotation_id) == published
        *progress, last = await _all(publisher, other_id)
        assert (len(progress), last) == (302, failed)


async def test_progress_of_anothers_rotation_is_picked_up_again(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    since = datetime.now(UTC)
    async with Publisher.open(settings) as publisher:
        rotation_id = await publisher.rotate("acme", api_key=API_KEY)
        accepted = answer(publisher, _accepted(rotation_id))
        await worker.publish(accepted)
        await worker.publish(answer(publisher, _progressed(rotation_id, 1)))
        async with aclosing(publisher.progress(rotation_id)) as progress:
            assert await anext(progress) == accepted
    completed = answer(publisher, _completed(rotation_id))
    # Another publisher's, of the same project even: its own rotation, refused or not, and over.
    for foreign in (_refused(rotation_id), _accepted(rotation_id), _completed(rotation_id)):
        await worker.publish(answer_elsewhere(foreign, publisher="mallory"))
    # A later try of this one, by yet another process: what was begun goes on.
    await worker.publish(answer_elsewhere(_refused(rotation_id)))
    await worker.publish(completed)
    async with Publisher.open(settings) as other:
        events = await _all(other, rotation_id, since, **ROTATION)
        assert [event.type for event in events] == [
            "rotation.accepted",
            "sweep.progressed",
            "rotation.completed",
        ]
        end = await other.wait_completed(rotation_id, since=since, timeout_s=20, **ROTATION)
        assert end == completed
        assert await other.wait(rotation_id, since=since, timeout_s=20, **ROTATION) == accepted


async def test_a_repeated_rotation_is_answered_and_waited_for_again(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        rotation_id = await publisher.rotate("acme", api_key=API_KEY)
        refused = answer(publisher, _refused(rotation_id))
        await worker.publish(refused)
        assert await publisher.wait(rotation_id, timeout_s=20) == refused
        await publisher.rotate("acme", api_key=API_KEY, rotation_id=rotation_id)
        reading = asyncio.create_task(_all(publisher, rotation_id))
        end = asyncio.create_task(publisher.wait_completed(rotation_id, timeout_s=20))
        await worker.publish(refused)  # published again by an attacker
        accepted, completed = (
            answer(publisher, event) for event in (_accepted(rotation_id), _completed(rotation_id))
        )
        await worker.publish(accepted)
        await worker.publish(completed)
        assert await end == completed
        assert await reading == [accepted, completed]
