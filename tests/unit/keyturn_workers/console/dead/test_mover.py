"""Letters are moved as confirmed: recorded first, none lost, none that was not selected."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from keyturn_workers.console.dead import mover
from keyturn_workers.console.dead.audit_recorder import NotRecordedError, Recorder
from keyturn_workers.console.dead.jobs import Job, Plan, make_plan
from keyturn_workers.console.dead.letters import Compactor, digest_number
from keyturn_workers.console.dead.mover import Mover, Pace
from keyturn_workers.dead_letters import queue as queue_module
from keyturn_workers.dead_letters.letters import describe
from tests.unit.keyturn_workers.console.dead.letters import UPLOADS
from tests.unit.keyturn_workers.console.dead.publishers import FakePublisher
from tests.unit.keyturn_workers.console.dead.test_jobs import job as new_job
from tests.unit.keyturn_workers.dead_letters.letters import Letter, letter, upload
from tests.unit.keyturn_workers.dead_letters.memory_broker import MemoryBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractChannel

    from keyturn_workers.console.dead.jobs import Move

_PACE = Pace(yield_s=0, retry_s=0, retries=2)


class _Scene:
    """A broker with letters, and jobs on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broker = MemoryBroker()
        self.publisher = FakePublisher()
        self.turns = 0
        self.loses: list[int] = []
        monkeypatch.setattr(mover, "locked_channel", self._channel)

    @asynccontextmanager
    async def _channel(self, *_: Any) -> AsyncIterator[AbstractChannel]:
        self.turns += 1
        channel = self.broker.channel()
        try:
            yield channel
        finally:
            await channel.close()

    def fill(self, *letters: Letter) -> None:
        self.broker.fill(UPLOADS, *letters)

    def plan(self, move: Move, *letters: Letter) -> Plan:
        indexed = [Compactor().compact(each.message, UPLOADS) for each in letters]
        now = new_job().requested_at
        return make_plan(
            "id", "ada", move, indexed, selection="selected", made_at=now, as_of=now, back="/dead"
        )

    async def run(self, plan: Plan, job: Job | None = None) -> Job:
        job = job or Job(
            "id", "ada", plan.move, "", "why", plan.count, (UPLOADS,), plan.made_at, "running"
        )
        recorder = Recorder(self.publisher, plan.move, "ada", "why", timeout_s=1)
        mover = Mover("amqp://", recorder, job, asyncio.Lock(), lambda: None, _PACE)
        await mover.run(plan)
        return job

    def left(self) -> list[str | None]:
        return [each.message_id for each in self.broker.queues[UPLOADS]]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> _Scene:
    return _Scene(monkeypatch)


def _letters(count: int, code: str = "bad_seal") -> list[Letter]:
    return [letter(upload(), code) for _ in range(count)]


def _counts(job: Job) -> tuple[int, int, int, int]:
    return job.done, job.kept, job.gone, job.left


async def test_selected_letters_go_back_and_the_others_keep_their_order(scene: _Scene) -> None:
    letters = _letters(5)
    scene.fill(*letters)
    job = await scene.run(scene.plan("replay", letters[1], letters[3]))
    assert _counts(job) == (2, 0, 0, 0)
    assert [queue for queue, _ in scene.broker.sent] == ["keyturn.upload"] * 2
    assert [copy.body for _, copy in scene.broker.sent] == [letters[1].body, letters[3].body]
    assert scene.left() == [letters[at].message_id for at in (0, 2, 4)]
    (record,) = scene.publisher.records
    assert (record.action, len(record.letters)) == ("dead_letter.replayed", 2)


async def test_a_discard_publishes_nothing(scene: _Scene) -> None:
    letters = _letters(3)
    scene.fill(*letters)
    job = await scene.run(scene.plan("discard", *letters))
    assert (_counts(job), scene.broker.sent, scene.left()) == ((3, 0, 0, 0), [], [])
    assert scene.publisher.records[0].action == "dead_letter.discarded"


async def test_a_record_holds_so_many_letters_at_most_and_comes_first(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "AUDITED_LETTERS", 5)
    letters = _letters(11)
    scene.fill(*letters)
    moved: list[int] = []
    scene.publisher.on_record = lambda _: moved.append(sum(e.acknowledged for e in letters))
    job = await scene.run(scene.plan("discard", *letters))
    assert job.done == 11
    assert [len(record.letters) for record in scene.publisher.records] == [5, 5, 1]
    assert moved == [0, 5, 10]


async def test_without_a_record_nothing_is_moved(scene: _Scene) -> None:
    letters = _letters(3)
    scene.fill(*letters)
    scene.publisher.refusal = "not_permitted"
    with pytest.raises(NotRecordedError, match="not_permitted"):
        await scene.run(scene.plan("replay", *letters))
    assert scene.broker.sent == []
    assert scene.left() == [each.message_id for each in letters]


async def test_a_letter_that_the_broker_returns_stays_and_is_recorded_as_failed(
    scene: _Scene,
) -> None:
    letters = _letters(3)
    scene.fill(*letters)
    scene.broker.refuses.add(letters[1].message_id)
    job = await scene.run(scene.plan("replay", *letters))
    assert _counts(job) == (2, 1, 0, 0)
    assert scene.left() == [letters[1].message_id]
    assert [record.outcome for record in scene.publisher.records] == ["started", "failed"]
    assert len(scene.publisher.records[1].letters) == 1
    assert "the broker did not accept it" in job.failures[0].detail


async def test_a_letter_that_is_gone_is_reported(scene: _Scene) -> None:
    letters = _letters(3)
    scene.fill(letters[0], letters[2])
    assert _counts(await scene.run(scene.plan("replay", *letters))) == (2, 0, 1, 0)


async def test_a_letter_that_changed_is_left_alone(scene: _Scene) -> None:
    """Its code belongs to its digest: what was confirmed is another letter."""
    (before,) = _letters(1)
    after = Letter(before.body, before.headers | {"keyturn-code": "x"}, before.message_id)
    scene.fill(after)
    assert _counts(await scene.run(scene.plan("discard", before))) == (0, 0, 1, 0)
    assert scene.left() == [before.message_id]


async def test_of_two_letters_with_one_id_the_selected_one_is_moved(scene: _Scene) -> None:
    first = letter(upload(), "bad_seal")
    second = Letter(b"{}", first.headers, first.message_id)
    scene.fill(first, second)
    await scene.run(scene.plan("discard", second))
    assert (first.acknowledged, second.acknowledged) == (False, True)


async def test_as_many_copies_are_moved_as_were_confirmed(scene: _Scene) -> None:
    (sent,) = _letters(1)
    copies = [Letter(sent.body, sent.headers, sent.message_id) for _ in range(3)]
    scene.fill(*copies)
    assert (await scene.run(scene.plan("discard", *copies[:2]))).done == 2
    assert len(scene.left()) == 1


async def test_a_replayed_letter_that_dies_again_is_not_replayed_twice(scene: _Scene) -> None:
    letters = _letters(3)
    scene.fill(*letters)
    again = iter([Letter(e.body, e.headers, e.message_id) for e in letters])
    scene.broker.on_publish = lambda: scene.fill(next(again))
    assert _counts(await scene.run(scene.plan("replay", *letters))) == (3, 0, 0, 0)
    assert len(scene.left()) == 3
    assert scene.turns == 1


async def test_a_stopped_job_completes_its_batch_and_moves_no_more(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "AUDITED_LETTERS", 5)
    letters = _letters(12)
    scene.fill(*letters)
    plan = scene.plan("discard", *letters)
    job = Job("id", "ada", "discard", "", None, 12, (UPLOADS,), plan.made_at, "running")
    scene.publisher.on_record = lambda _: job.stop()
    await scene.run(plan, job)
    assert _counts(job) == (5, 0, 0, 7)
    assert len(scene.left()) == 7


async def test_bodies_are_held_for_a_bounded_number_of_letters(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "_HELD_MAX_BYTES", 4000)
    letters = _letters(20)
    scene.fill(*letters)
    assert (await scene.run(scene.plan("replay", *letters))).done == 20
    assert scene.turns > 2
    most = max(len(record.letters) for record in scene.publisher.records)
    assert most * len(letters[0].body) < 4000 + 2 * len(letters[0].body)


async def test_a_turn_that_takes_long_gives_others_theirs(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "AUDITED_LETTERS", 2)
    monkeypatch.setattr("keyturn_workers.dead_letters.queue._BATCH", 2)
    letters = _letters(6)
    scene.fill(*letters)
    plan = scene.plan("discard", *letters)
    job = Job("id", "ada", "discard", "", None, 6, (UPLOADS,), plan.made_at, "running")
    recorder = Recorder(scene.publisher, "discard", "ada", None)
    pace = Pace(turn_s=-1, yield_s=0)
    await Mover("amqp://", recorder, job, asyncio.Lock(), lambda: None, pace).run(plan)
    assert (job.done, scene.turns) == (6, 3)


async def test_a_lost_broker_is_tried_again_and_nothing_is_counted_twice(scene: _Scene) -> None:
    letters = _letters(4)
    scene.fill(*letters)
    lost = iter([False, True])

    def lose() -> None:
        if next(lost, False):
            raise ConnectionError

    scene.broker.on_publish = lose
    job = await scene.run(scene.plan("replay", *letters))
    assert (_counts(job), scene.turns, scene.left()) == ((4, 0, 0, 0), 2, [])
    sent = Counter(copy.message_id for _, copy in scene.broker.sent)
    assert set(sent) == {each.message_id for each in letters}


async def test_a_broker_that_stays_away_ends_the_job_and_no_letter_is_lost(scene: _Scene) -> None:
    letters = _letters(4)
    scene.fill(*letters)

    def lose() -> None:
        raise ConnectionError

    scene.broker.on_publish = lose
    with pytest.raises(ConnectionError):
        await scene.run(scene.plan("replay", *letters))
    assert scene.turns == 1 + _PACE.retries
    assert len(scene.left()) == 4
    assert scene.publisher.records[-1].outcome == "failed"


async def test_what_was_acknowledged_when_the_broker_was_lost_counts_once_it_is_gone(
    scene: _Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = _letters(2)
    scene.fill(*letters)
    calls: list[str] = []

    async def browse(channel: AbstractChannel, queue: str) -> Any:
        browser = await queue_module.browse(channel, queue)
        calls.append(queue)
        if len(calls) == 1:
            monkeypatch.setattr(browser, "requeue", _lost)
        return browser

    async def _lost(_left: int) -> None:
        raise ConnectionError

    monkeypatch.setattr(mover, "browse", browse)
    job = await scene.run(scene.plan("discard", *letters))
    assert (_counts(job), scene.turns) == ((2, 0, 0, 0), 2)


def test_digests_of_plans_are_those_of_letters() -> None:
    sent = letter(upload(), "bad_seal")
    kept = Compactor().compact(sent.message, UPLOADS)
    assert kept.digest == digest_number(describe(sent.message, UPLOADS).digest)
