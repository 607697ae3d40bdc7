"""The index follows the queues without being in the way; plans become jobs once."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from aio_pika.exceptions import AMQPConnectionError

from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.dead import letter_reader, mover, service
from keyturn_workers.console.dead.mover import Pace
from keyturn_workers.console.dead.service import DeadLetters, PlanGoneError
from keyturn_workers.console.model import Model
from keyturn_workers.dead_letters.queue import LockedError, UnknownQueueError
from tests.unit.keyturn_workers.console.dead.letters import UPLOADS
from tests.unit.keyturn_workers.console.dead.publishers import FakePublisher
from tests.unit.keyturn_workers.dead_letters.letters import letter, upload
from tests.unit.keyturn_workers.dead_letters.memory_broker import MemoryBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel

    from keyturn_workers.console.dead.jobs import Job, Plan


class _Scene:
    """A broker in memory, and the console's dead letters on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.broker = MemoryBroker()
        for queue in DEAD_QUEUES:
            self.broker.fill(queue)
        self.reads = 0
        self.error: Exception | None = None
        self.publisher = FakePublisher()
        self.model = Model("console")
        self.dead = DeadLetters(
            "amqp://", self.model, self.publisher, check_s=0.01, pace=Pace(yield_s=0), **options
        )
        for module in (letter_reader, mover):
            monkeypatch.setattr(module, "locked_channel", self._locked)
        monkeypatch.setattr(service, "connect_to_broker", self._connect)
        monkeypatch.setattr(service, "_RETRY_S", 0.01)

    @asynccontextmanager
    async def _locked(self, *_: Any) -> AsyncIterator[AbstractChannel]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        channel = self.broker.channel()
        yield channel
        await channel.close()

    async def _connect(self, _url: str) -> Any:
        async def channel() -> AbstractChannel:
            return self.broker.channel()

        @asynccontextmanager
        async def connection() -> AsyncIterator[Any]:
            yield SimpleNamespace(channel=channel)

        return connection()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[DeadLetters]:
        """The dead letters after their first reading."""
        task = asyncio.create_task(self.dead.run())
        try:
            await _until(lambda: self.dead.index.as_of is not None or self.error is not None)
            yield self.dead
        finally:
            task.cancel()
            await asyncio.wait({task})

    def plan(self) -> Plan:
        return self.dead.prepare(
            "ada", "discard", self.dead.index.letters, selection="all", back="/dead"
        )


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> _Scene:
    return _Scene(monkeypatch)


async def _until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # conditions of several kinds
            await asyncio.sleep(0.001)


async def _ended(job: Job) -> Job:
    await _until(lambda: job.has_ended)
    return job


async def test_all_queues_are_read_and_the_model_gets_a_summary(scene: _Scene) -> None:
    scene.broker.fill(UPLOADS, letter(upload()), letter(upload(), "bad_seal"))
    async with scene.running() as dead:
        await _until(lambda: scene.model.dead() is not None)
        summary = scene.model.dead()
        assert summary is not None
        assert (summary.total, summary.is_complete) == (2, True)
        assert {(c.queue, c.code, c.count) for c in summary.counts} == {
            (UPLOADS, "request_expired", 1),
            (UPLOADS, "bad_seal", 1),
        }
        assert dead.reading.queue is None


async def test_what_does_not_change_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = _Scene(monkeypatch, interval_s=0)
    scene.broker.fill(UPLOADS, letter(upload()))
    async with scene.running():
        reads = scene.reads
        await asyncio.sleep(0.1)
        assert scene.reads == reads == len(DEAD_QUEUES)


async def test_a_queue_whose_count_changed_is_read_again_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = _Scene(monkeypatch, interval_s=0)
    async with scene.running() as dead:
        reads = scene.reads
        scene.broker.fill(UPLOADS, letter(upload()))
        await _until(lambda: dead.index.total == 1)
        assert scene.reads == reads + 1


async def test_an_outage_that_is_over_is_no_problem_any_more(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.broker.fill(UPLOADS, letter(upload()))
    async with scene.running() as dead:
        await _until(lambda: not dead.reading.queue)
        channel = scene.broker.channel

        def away() -> AbstractChannel:
            raise AMQPConnectionError

        monkeypatch.setattr(scene.broker, "channel", away)
        dead.read_again()
        await _until(lambda: bool(dead.reading.problem))
        monkeypatch.setattr(scene.broker, "channel", channel)
        await _until(lambda: not dead.reading.problem)
        assert dead.index.total == 1


async def test_an_empty_queue_does_not_make_new_letters_look_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = _Scene(monkeypatch, interval_s=0.05)
    async with scene.running() as dead:
        began = datetime.now(UTC)
        await _until(lambda: dead.index.as_of is not None and dead.index.as_of > began)
        arrived = datetime.now(UTC)
        scene.broker.fill(UPLOADS, letter(upload()))
        await _until(lambda: dead.index.total == 1)
        assert dead.index.as_of is not None
        assert dead.index.as_of > arrived


async def test_it_is_read_at_most_once_a_minute_by_itself_and_at_once_if_asked(
    scene: _Scene,
) -> None:
    async with scene.running() as dead:
        reads = scene.reads
        scene.broker.fill(UPLOADS, letter(upload()))
        await asyncio.sleep(0.1)
        assert (scene.reads, dead.index.total) == (reads, 0)
        dead.read_again()
        await _until(lambda: dead.index.total == 1)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (LockedError("another command is reading"), "another command is reading"),
        (AMQPConnectionError("away"), "the broker cannot be reached"),
    ],
)
async def test_a_failed_reading_says_why_and_is_tried_again(
    scene: _Scene, error: Exception, words: str
) -> None:
    scene.error = error
    async with scene.running() as dead:
        await _until(lambda: words in dead.reading.problem)
        scene.error = None
        await _until(lambda: dead.index.as_of is not None)
        await _until(lambda: not dead.reading.problem)


async def test_a_person_who_asks_while_the_broker_is_away_causes_no_storm(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects = 0

    async def connect(_url: str) -> Any:
        nonlocal connects
        connects += 1
        await asyncio.sleep(0)
        raise AMQPConnectionError

    monkeypatch.setattr(service, "connect_to_broker", connect)
    monkeypatch.setattr(service, "_RETRY_S", 0.05)
    scene.dead.read_again()
    task = asyncio.create_task(scene.dead.run())
    await asyncio.sleep(0.2)
    task.cancel()
    await asyncio.wait({task})
    assert 1 <= connects <= 5


async def test_a_queue_that_does_not_exist_keeps_no_other_from_being_read(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_queue, missing = letter_reader.read_queue, DEAD_QUEUES[0]

    async def read(amqp_url: str, queue: str, lock_timeout_s: float) -> Any:
        if queue == missing:
            raise UnknownQueueError(f"{queue} does not exist")
        return await read_queue(amqp_url, queue, lock_timeout_s)

    monkeypatch.setattr(service, "read_queue", read)
    task = asyncio.create_task(scene.dead.run())
    try:
        await _until(lambda: "does not exist" in scene.dead.reading.problem)
        others = [scene.dead.index.queues[queue].as_of for queue in DEAD_QUEUES[1:]]
        assert None not in others
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_while_letters_are_read_the_previous_index_is_shown(scene: _Scene) -> None:
    scene.broker.fill(UPLOADS, letter(upload()))
    async with scene.running() as dead:
        scene.error = LockedError("locked")
        dead.read_again()
        await _until(lambda: dead.reading.problem)
        assert dead.index.total == 1


async def test_a_whole_letter_is_read_once_for_all_who_look_at_it(scene: _Scene) -> None:
    scene.broker.fill(UPLOADS, letter(upload()))
    async with scene.running() as dead:
        digest = dead.index.letters[0].digest
        reads = scene.reads
        results = await asyncio.gather(*(dead.details(UPLOADS, digest, 5) for _ in range(3)))
        assert all(result is not None and result.details is not None for result in results)
        assert await dead.details(UPLOADS, digest, 5) is results[0]
        assert scene.reads == reads + 1


async def test_a_letter_that_is_gone_or_cannot_be_read_is_said_to_be_so(scene: _Scene) -> None:
    async with scene.running() as dead:
        gone = await dead.details(UPLOADS, 1, 5)
        assert gone is not None
        assert (gone.details, gone.problem) == (None, "")
        scene.error = LockedError("locked")
        locked = await dead.details(UPLOADS, 2, 5)
        assert locked is not None
        assert (locked.details, locked.problem) == (None, "locked")
        scene.error = AMQPConnectionError("away")
        away = await dead.details(UPLOADS, 3, 5)
        assert away is not None
        assert "cannot be reached" in away.problem


async def test_a_page_does_not_wait_long_for_a_letter(scene: _Scene) -> None:
    assert await scene.dead.details(UPLOADS, 1, 0.01) is None


async def test_a_plan_is_carried_out_once_and_the_index_follows(scene: _Scene) -> None:
    scene.broker.fill(UPLOADS, *(letter(upload()) for _ in range(3)))
    async with scene.running() as dead:
        plan = scene.plan()
        job = dead.start(plan, "old")
        assert dead.start(plan, "again") is job
        assert dead.plan(plan.plan_id, "ada")[1] is job
        await _ended(job)
        assert (job.state, job.done, job.left) == ("done", 3, 0)
        assert scene.publisher.records[0].reason == "old"
        await _until(lambda: dead.index.total == 0)
        assert dead.jobs() == (job,)
        assert dead.job(job.job_id) is job


async def test_a_plan_is_its_persons_and_ends_after_a_while(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = scene.plan()
    assert scene.dead.plan(plan.plan_id, "ada") == (plan, None)
    with pytest.raises(PlanGoneError):
        scene.dead.plan(plan.plan_id, "vera")
    with pytest.raises(PlanGoneError):
        scene.dead.plan("another", "ada")
    later = datetime.now(UTC) + timedelta(seconds=901)
    monkeypatch.setattr(service, "datetime", SimpleNamespace(now=lambda _: later))
    with pytest.raises(PlanGoneError):
        scene.dead.plan(plan.plan_id, "ada")


async def test_only_a_few_plans_are_held(scene: _Scene) -> None:
    plans = [scene.plan() for _ in range(25)]
    with pytest.raises(PlanGoneError):
        scene.dead.plan(plans[0].plan_id, "ada")
    assert scene.dead.plan(plans[-1].plan_id, "ada")[0] is plans[-1]


async def test_a_job_that_fails_says_why_and_others_go_on(scene: _Scene) -> None:
    scene.broker.fill(UPLOADS, letter(upload()))
    async with scene.running() as dead:
        scene.publisher.refusal = "not_permitted"
        failed = await _ended(dead.start(scene.plan(), None))
        assert (failed.state, failed.left) == ("failed", 1)
        assert "not_permitted" in failed.problem
        scene.publisher.refusal = ""
        assert (await _ended(dead.start(scene.plan(), None))).state == "done"


@pytest.mark.slow
async def test_an_error_that_nothing_expected_ends_one_job_alone(scene: _Scene) -> None:
    scene.broker.fill(UPLOADS, letter(upload()))
    async with scene.running() as dead:
        scene.error = LookupError("unexpected")
        failed = await _ended(dead.start(scene.plan(), None))
        assert (failed.state, failed.problem) == ("failed", "internal error (LookupError)")


async def test_a_console_that_ends_completes_the_batch_that_is_under_way(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "AUDITED_LETTERS", 2)
    scene.broker.fill(UPLOADS, *(letter(upload()) for _ in range(5)))
    gate, recording = asyncio.Event(), asyncio.Event()
    wait = scene.publisher.wait

    async def gated(request_id: str, *, timeout_s: float = 60) -> Any:
        recording.set()
        await gate.wait()
        return await wait(request_id, timeout_s=timeout_s)

    monkeypatch.setattr(scene.publisher, "wait", gated)
    async with scene.running() as dead:
        job, waiting = dead.start(scene.plan(), None), dead.start(scene.plan(), None)
        await recording.wait()
        ending = asyncio.create_task(dead.finish())
        await _until(lambda: waiting.has_ended)
        assert not ending.done()
        gate.set()
        await ending
        assert (job.state, job.done, job.left) == ("stopped", 2, 3)
        assert len(scene.broker.queues[UPLOADS]) == 3


async def test_a_job_that_is_stopped_before_it_begins_moves_nothing(scene: _Scene) -> None:
    scene.broker.fill(UPLOADS, letter(upload()))
    async with scene.running() as dead:
        first, second = dead.start(scene.plan(), None), dead.start(scene.plan(), None)
        dead.stop(second)
        await _ended(first)
        assert (second.state, second.done) == ("stopped", 0)
