"""Dead letters for the pages: the index, whole letters, plans and jobs (SPEC 16.2).

    dead = DeadLetters(broker, model, publisher)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(dead.run())

Used from one event loop. Nothing here outlives the process, except for what was moved, and the
audit trail that says so.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused

from keyturn.publisher.connection import (
    Broker,
    connect_to_broker,
    describe_broker_failure,
    normalize_connection_errors,
)
from keyturn.topology import DEAD_QUEUES
from keyturn_workers.console.dead.audit_recorder import AuditPublisher, NotRecordedError, Recorder
from keyturn_workers.console.dead.index import DeadIndex
from keyturn_workers.console.dead.jobs import Job, Move, Plan, make_plan
from keyturn_workers.console.dead.letter_reader import LetterDetails, read_details, read_queue
from keyturn_workers.console.dead.letters import IndexedLetter
from keyturn_workers.console.dead.mover import LOST, Mover, Pace
from keyturn_workers.console.model import Model
from keyturn_workers.dead_letters.queue import DeadLetterError, UnknownQueueError

_PLANS_MAX: Final = 20
_PLAN_LIFE_S: Final = 900
_JOBS_MAX: Final = 200
_DETAILS_MAX: Final = 200
_DETAILS_FRESH_S: Final = 60
# A reading that takes long makes the next one later: the lock is free for most of the time.
_READING_SHARE: Final = 10
_READ_ANYWAY_S: Final = 900
_LOCK_TIMEOUT_S: Final = 30.0
_RETRY_S: Final = 5.0
_FINISH_S: Final = 15.0

_log = structlog.get_logger()


class PlanGoneError(LookupError):
    """The plan is too old, was prepared by another person, or by an earlier run."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How the index is being read.

    Attributes:
        queue: The queue that is being read; None if none is.
        problem: Why the last attempt failed.
        problem_at: When.
    """

    queue: str | None = None
    problem: str = ""
    problem_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class DetailsResult:
    """A whole letter, or why there is none: it is gone if there is no problem either."""

    details: LetterDetails | None
    problem: str
    at_s: float


class DeadLetters:
    """The dead letters of one deployment.

    Args:
        broker: The broker's address.
        model: Gets a summary, and notice of changes.
        publisher: Has the audit trail written.
        interval_s: The index is read at most so often, unless a person asks.
        check_s: How often the queues are counted.
    """

    def __init__(
        self,
        broker: Broker,
        model: Model,
        publisher: AuditPublisher,
        *,
        interval_s: float = 60.0,
        check_s: float = 5.0,
        pace: Pace | None = None,
    ) -> None:
        self._broker = broker
        self._model = model
        self._publisher = publisher
        self._interval_s = interval_s
        self._check_s = check_s
        self._pace = pace
        self._turn = asyncio.Lock()
        self._carrying_out = asyncio.Lock()
        self._read_now = asyncio.Event()
        self._next_s = 0.0
        self._read_at_s: dict[str, float] = {}
        self._plans: OrderedDict[str, tuple[Plan, Job | None]] = OrderedDict()
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._queued: asyncio.Queue[tuple[Plan, Job]] = asyncio.Queue()
        self._results: OrderedDict[tuple[str, int], DetailsResult] = OrderedDict()
        self._asked: dict[tuple[str, int], asyncio.Future[DetailsResult]] = {}
        self._ask = asyncio.Event()
        self.index = DeadIndex()
        self.reading = Reading()

    async def run(self) -> None:
        """Read the letters, and carry out jobs, forever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            tasks.create_task(self._serve_jobs())
            tasks.create_task(self._serve_details())

    # The index

    def read_again(self) -> None:
        """Read all queues now."""
        self._read_now.set()

    async def _watch(self) -> None:
        while True:
            try:
                with normalize_connection_errors():
                    async with await connect_to_broker(self._broker) as connection:
                        while True:
                            await self._read_due(connection)
                            await self._pause(self._check_s)
            except Exception as exc:  # noqa: BLE001  # one reading must not end the console
                self._set_reading(Reading(None, _problem(exc), datetime.now(UTC)))
            # Not cut short if a person asks: that stays set until the broker is back.
            await asyncio.sleep(_RETRY_S)

    async def _pause(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._read_now.wait()

    async def _read_due(self, connection: AbstractConnection) -> None:
        is_asked = self._read_now.is_set()
        # After an outage the queues are counted at once: until then pages say that it lasts.
        if not is_asked and not self.reading.problem and time.monotonic() < self._next_s:
            return
        due = [queue for queue in DEAD_QUEUES if is_asked or await self._is_due(connection, queue)]
        self._read_now.clear()
        self._confirm_empty(due)
        if not due:
            self._set_reading(Reading())
            return
        began = time.monotonic()
        missing: UnknownQueueError | None = None
        for queue in due:
            self._set_reading(Reading(queue))
            try:
                async with self._turn:
                    letters = await read_queue(self._broker, queue, _LOCK_TIMEOUT_S)
            except UnknownQueueError as exc:  # which says nothing about the others
                missing = missing or exc
                continue
            self._read_at_s[queue] = time.monotonic()
            self.index = self.index.with_queue(letters)
        took_s = time.monotonic() - began
        self._next_s = time.monotonic() + max(self._interval_s, _READING_SHARE * took_s)
        if (summary := self.index.summary()) is not None:
            self._model.set_dead(summary)
        if missing is not None:
            raise missing
        self._set_reading(Reading())
        _log.debug("dead letters read", letters=self.index.total, seconds=round(took_s, 2))

    def _confirm_empty(self, due: list[str]) -> None:
        # All others were counted just now. Those with as many letters as before may hold different
        # ones, but an empty queue is empty: it does not make the others look older than they are.
        at, known_at = datetime.now(UTC), self.index.as_of
        if known_at is None:
            return
        others = [queue for queue in self.index.queues.values() if queue.queue not in due]
        read_at = min((queue.as_of or at for queue in others if queue.count), default=at)
        if not due and (read_at - known_at).total_seconds() < self._interval_s:
            return
        empty = [queue.queue for queue in others if not queue.count]
        self.index = self.index.with_empty(empty, at)
        if not due and (summary := self.index.summary()) is not None:
            self._model.set_dead(summary)
            self._changed()

    async def _is_due(self, connection: AbstractConnection, queue: str) -> bool:
        known = self.index.queues[queue]
        if known.as_of is None:
            return True
        channel = await connection.channel()
        try:
            declared = await channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity:
            return True  # reading it says what is missing
        count = declared.declaration_result.message_count or 0
        await channel.close()
        is_old = time.monotonic() - self._read_at_s.get(queue, 0.0) > _READ_ANYWAY_S
        return count != known.count or (count > 0 and is_old)

    def _set_reading(self, reading: Reading) -> None:
        if reading != self.reading:
            self.reading = reading
            self._changed()

    def _changed(self) -> None:
        self._model.changes.publish("dead")

    # Whole letters

    async def details(self, queue: str, digest: int, wait_s: float) -> DetailsResult | None:
        """A whole letter, read from its queue; None if that takes longer than `wait_s`.

        It goes on being read, and the change is published when it is there.
        """
        key = (queue, digest)
        known = self._results.get(key)
        if known is not None and time.monotonic() - known.at_s < _DETAILS_FRESH_S:
            return known
        loop = asyncio.get_running_loop()
        waiting = self._asked.setdefault(key, loop.create_future())
        self._ask.set()
        try:
            async with asyncio.timeout(wait_s):
                return await asyncio.shield(waiting)
        except TimeoutError:
            return None

    async def _serve_details(self) -> None:
        while True:
            await self._ask.wait()
            self._ask.clear()
            for queue in sorted({queue for queue, _ in self._asked}):
                await self._read_details(queue)

    async def _read_details(self, queue: str) -> None:
        asked = {key: waiting for key, waiting in self._asked.items() if key[0] == queue}
        digests = frozenset(digest for _, digest in asked)
        found: dict[int, LetterDetails] = {}
        problem = ""
        try:
            async with self._turn:
                found = await read_details(self._broker, queue, digests, _LOCK_TIMEOUT_S)
        except Exception as exc:  # noqa: BLE001  # one reading must not end the console
            problem = _problem(exc)
        for key, waiting in asked.items():
            result = DetailsResult(found.get(key[1]), problem, time.monotonic())
            self._results[key] = result
            self._results.move_to_end(key)
            del self._asked[key]
            if not waiting.done():
                waiting.set_result(result)
        while len(self._results) > _DETAILS_MAX:
            self._results.popitem(last=False)
        self._changed()

    # Plans and jobs

    def prepare(
        self,
        person: str,
        move: Move,
        selected: Iterable[IndexedLetter],
        *,
        selection: str,
        back: str,
    ) -> Plan:
        """A plan that its person may confirm for a quarter of an hour."""
        plan = make_plan(
            secrets.token_urlsafe(16),
            person,
            move,
            selected,
            selection=selection,
            made_at=datetime.now(UTC),
            as_of=self.index.as_of,
            back=back,
        )
        self._plans[plan.plan_id] = (plan, None)
        while len(self._plans) > _PLANS_MAX:
            self._plans.popitem(last=False)
        return plan

    def plan(self, plan_id: str, person: str) -> tuple[Plan, Job | None]:
        """A plan, and its job if it was confirmed.

        Raises:
            PlanGoneError: there is no such plan of this person any more.
        """
        plan, job = self._plans.get(plan_id, (None, None))
        if plan is None or plan.person != person:
            raise PlanGoneError
        is_old = (datetime.now(UTC) - plan.made_at).total_seconds() > _PLAN_LIFE_S
        if is_old and job is None:
            raise PlanGoneError
        return plan, job

    def start(self, plan: Plan, reason: str | None) -> Job:
        """Carry out a plan in the background; a plan that was confirmed before is not repeated."""
        _, known = self._plans[plan.plan_id]
        if known is not None:
            return known
        job = Job(
            job_id=plan.plan_id,
            person=plan.person,
            move=plan.move,
            selection=plan.selection,
            reason=reason,
            wanted=plan.count,
            queues=tuple(plan.letters),
            requested_at=datetime.now(UTC),
        )
        self._plans[plan.plan_id] = (plan, job)
        self._jobs[job.job_id] = job
        while len(self._jobs) > _JOBS_MAX:
            oldest = next(iter(self._jobs))
            if not self._jobs[oldest].has_ended:
                break
            del self._jobs[oldest]
        self._queued.put_nowait((plan, job))
        self._changed()
        return job

    def jobs(self) -> tuple[Job, ...]:
        """All jobs of this run, newest first."""
        return tuple(reversed(self._jobs.values()))

    def job(self, job_id: str) -> Job | None:
        """One of them."""
        return self._jobs.get(job_id)

    def stop(self, job: Job) -> None:
        """Move no further letter of a job."""
        job.stop()
        self._changed()

    async def finish(self, timeout_s: float = _FINISH_S) -> None:
        """Stop all jobs, and wait until the batch that is under way is completed.

        Otherwise letters would be recorded that were not moved, or be moved twice.
        """
        for job in self._jobs.values():
            job.stop()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._carrying_out:
                pass

    async def _serve_jobs(self) -> None:
        while True:
            plan, job = await self._queued.get()
            async with self._carrying_out:
                if not job.has_ended:
                    await self._carry_out(plan, job)
            if plan.plan_id in self._plans:  # without its digests, which take memory
                self._plans[plan.plan_id] = (replace(plan, letters={}), job)

    async def _carry_out(self, plan: Plan, job: Job) -> None:
        job.state, job.started_at = "running", datetime.now(UTC)
        self._changed()
        recorder = Recorder(self._publisher, job.move, job.person, job.reason)
        mover = Mover(self._broker, recorder, job, self._turn, self._changed, self._pace)
        try:
            await mover.run(plan)
        except Exception as exc:  # noqa: BLE001  # one job must not end the console
            job.state, job.problem = "failed", _problem(exc)
        else:
            job.state = "stopped" if job.is_stopping and job.left else "done"
        job.ended_at = datetime.now(UTC)
        _log.info(
            "dead letters moved",
            move=job.move,
            state=job.state,
            done=job.done,
            kept=job.kept,
            gone=job.gone,
            left=job.left,
        )
        self._results.clear()
        self._changed()
        self.read_again()


def _problem(error: Exception) -> str:
    """Why something was not done, in words; what nothing expected is also logged."""
    match error:
        case DeadLetterError() | NotRecordedError():
            return str(error)
        case ChannelAccessRefused():
            return "the broker refuses it: see the permissions of the console's broker user"
        case _ if isinstance(error, LOST):
            return f"the broker cannot be reached ({describe_broker_failure(error)})"
    _log.error("dead letters not served", exc_info=error)
    return f"internal error ({type(error).__name__})"
