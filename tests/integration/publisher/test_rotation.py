"""Rotations, sweeps and deletes from the publisher's side, on a real broker (SPEC 6.5 to 6.7)."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from contracts import topology
from contracts.errors import MalformedRequestError
from contracts.messages import (
    COUNT_FIELDS,
    DeleteRequested,
    Event,
    ObjectDeleted,
    RotationAccepted,
    RotationCompleted,
    RotationRejected,
    RotationRequested,
    SweepCompleted,
    SweepProgressed,
    SweepRequested,
)
from contracts.publisher import NotDeliveredError, Publisher, WaitTimeoutError
from contracts.sealing import SigningKey, b64_decode, kek_info, user_kek
from tests.integration.publisher.side import INTAKE, WorkerSide, verified

if TYPE_CHECKING:
    from contracts.settings import PublisherSettings

AT = "2026-11-24T10:00:00Z"
API_KEY = "kt_" + "n" * 43
COUNTS: dict[str, Any] = dict.fromkeys(COUNT_FIELDS, 0) | {"clean": True}


def _accepted(rotation_id: str) -> RotationAccepted:
    return RotationAccepted(rotation_id=rotation_id, project="acme", generation=2, at=AT)


def _progressed(sweep_id: str, objects: int, project: str = "acme") -> SweepProgressed:
    counts = COUNTS | {"objects": objects}
    return SweepProgressed(sweep_id=sweep_id, project=project, at=AT, **counts)


def _completed(rotation_id: str) -> RotationCompleted:
    return RotationCompleted(rotation_id=rotation_id, project="acme", at=AT, **COUNTS)


def _refused(rotation_id: str) -> RotationRejected:
    return RotationRejected(
        rotation_id=rotation_id, project="acme", code="kek_reused", detail="", at=AT
    )


async def _all(publisher: Publisher, request_id: str, since: datetime | None = None) -> list[Event]:
    async with asyncio.timeout(20), aclosing(publisher.progress(request_id, since=since)) as told:
        return [event async for event in told]


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
    info = kek_info("rotation", rotation_id, "acme")
    kek = INTAKE.open(b64_decode(request.sealed_kek.ciphertext), info)
    assert kek == user_kek(API_KEY, "acme", "pepper").reveal()


async def test_sweeps_and_deletes_reach_the_control_queue(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        sweep_id = await publisher.sweep("*", master_key="2027", dry_run=True)
        request_id = await publisher.delete("acme", "reports/q3.pdf")
        with pytest.raises(MalformedRequestError, match="key"):
            await publisher.delete("acme", "../q3.pdf")
    sweep = verified(await worker.take(topology.CONTROL_QUEUE))
    assert isinstance(sweep, SweepRequested)
    assert (sweep.sweep_id, sweep.project, sweep.master_key) == (sweep_id, "*", "2027")
    assert (sweep.dry_run, sweep.repair, sweep.encrypt_plaintext) == (True, False, False)
    delete = verified(await worker.take(topology.CONTROL_QUEUE))
    assert isinstance(delete, DeleteRequested)
    assert (delete.request_id, delete.key) == (request_id, "reports/q3.pdf")
    assert await worker.count(topology.CONTROL_QUEUE) == 0


async def test_without_a_control_worker_nothing_is_taken(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    await worker.delete(topology.CONTROL_QUEUE)
    async with Publisher.open(settings) as publisher:
        with pytest.raises(NotDeliveredError):
            await publisher.rotate("acme", api_key=API_KEY)
        with pytest.raises(NotDeliveredError):
            await publisher.sweep("acme")
        with pytest.raises(NotDeliveredError):
            await publisher.delete("acme", "a")


async def test_acceptance_and_end_are_waited_for_apart(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        rotation_id = await publisher.rotate("acme", api_key=API_KEY)
        end = asyncio.create_task(publisher.wait_completed(rotation_id, timeout_s=20))
        await worker.tell(_accepted(rotation_id))
        await worker.tell(_progressed(rotation_id, 5))
        assert await publisher.wait(rotation_id, timeout_s=20) == _accepted(rotation_id)
        with pytest.raises(WaitTimeoutError):
            await publisher.wait_completed(rotation_id, timeout_s=0.3)
        assert not end.done()
        await worker.tell(_completed(rotation_id))
        assert await end == _completed(rotation_id)
        assert await publisher.wait(rotation_id, timeout_s=20) == _accepted(rotation_id)


async def test_a_sweep_and_a_delete_are_answered_by_their_end(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        sweep_id = await publisher.sweep("*")
        answer = asyncio.create_task(publisher.wait(sweep_id, timeout_s=20))
        await worker.tell(_progressed(sweep_id, 5))
        request_id = await publisher.delete("acme", "a")
        deleted = ObjectDeleted(request_id=request_id, project="acme", key="a", at=AT)
        await worker.tell(deleted)
        # One reader, in order: the progress has been read by now.
        assert await publisher.wait(request_id, timeout_s=20) == deleted
        assert not answer.done()
        told = SweepCompleted(sweep_id=sweep_id, project="*", at=AT, **COUNTS)
        await worker.tell(told)
        assert await answer == told
        assert await publisher.wait_completed(sweep_id, timeout_s=20) == told


async def test_progress_gives_every_event_of_one_request_and_ends(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        rotation_id = await publisher.rotate("acme", api_key=API_KEY)
        other_id = await publisher.rotate("other", api_key=API_KEY)
        told: list[Event] = [
            _accepted(rotation_id),
            *(_progressed(rotation_id, n) for n in range(300)),
            _completed(rotation_id),
        ]
        reading = asyncio.create_task(_all(publisher, rotation_id))
        for event in told:
            await worker.tell(event)
            await worker.tell(_progressed(other_id, 7))
        forged = SigningKey.from_seed(b"f" * 32)
        await worker.tell(_refused(other_id), key=forged)
        await worker.tell(_refused(other_id))
        assert await reading == told
        # Nobody looked while it ran: the stream still tells all of it.
        assert await _all(publisher, rotation_id) == told
        assert (await _all(publisher, other_id))[-1] == _refused(other_id)


async def test_progress_of_anothers_rotation_is_picked_up_again(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    since = datetime.now(UTC)
    async with Publisher.open(settings) as publisher:
        rotation_id = await publisher.rotate("acme", api_key=API_KEY)
        await worker.tell(_accepted(rotation_id))
        await worker.tell(_progressed(rotation_id, 1))
        async with aclosing(publisher.progress(rotation_id)) as told:
            assert await anext(told) == _accepted(rotation_id)
    await worker.tell(_completed(rotation_id))
    async with Publisher.open(settings) as other:
        events = await _all(other, rotation_id, since)
        assert [event.type for event in events] == [
            "rotation.accepted",
            "sweep.progressed",
            "rotation.completed",
        ]
        end = await other.wait_completed(rotation_id, since=since, timeout_s=20)
        assert end == _completed(rotation_id)
        accepted = await other.wait(rotation_id, since=since, timeout_s=20)
        assert accepted == _accepted(rotation_id)


async def test_a_repeated_rotation_is_told_anew_and_waited_for_anew(
    settings: PublisherSettings, worker: WorkerSide
) -> None:
    async with Publisher.open(settings) as publisher:
        rotation_id = await publisher.rotate("acme", api_key=API_KEY)
        await worker.tell(_refused(rotation_id))
        assert await publisher.wait(rotation_id, timeout_s=20) == _refused(rotation_id)
        await publisher.rotate("acme", api_key=API_KEY, rotation_id=rotation_id)
        reading = asyncio.create_task(_all(publisher, rotation_id))
        end = asyncio.create_task(publisher.wait_completed(rotation_id, timeout_s=20))
        await worker.tell(_accepted(rotation_id))
        await worker.tell(_completed(rotation_id))
        assert await end == _completed(rotation_id)
        assert await reading == [_accepted(rotation_id), _completed(rotation_id)]
