"""Replaying and discarding dead letters in the background (SPEC 12, 15.3, 16.2).

Letters are read afresh under the lock, and matched by the digests of the plan. Of each batch the
audit trail has its records before a letter is moved; a replayed one is acknowledged once the broker
has confirmed its copy. So a crash in between leaves a letter twice at worst, and never loses one.

Each turn reads a whole queue, so that what is not moved keeps its place, and then lets workers and
commands have their turn.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, AMQPException, DeliveryError

from keyturn.errors import MalformedRequestError
from keyturn.messages import AUDITED_LETTERS, AuditedLetter
from keyturn.publisher.connection import Broker, describe_broker_failure
from keyturn_workers.console.dead.audit_recorder import NotRecordedError, Recorder
from keyturn_workers.console.dead.jobs import Failure, Job, Plan
from keyturn_workers.console.dead.letter_reader import locked_channel
from keyturn_workers.console.dead.letters import digest_number
from keyturn_workers.dead_letters.letters import (
    check_body_kept,
    describe,
    digest_of,
    original,
    work_queue,
)
from keyturn_workers.dead_letters.queue import browse

LOST: Final = (AMQPException, OSError, TimeoutError, *CONNECTION_EXCEPTIONS)
"""What a lost broker raises."""
_FAILED: Final = "failed"
_LOCK_TIMEOUT_S: Final = 120.0
_CONFIRM_TIMEOUT_S: Final = 30.0
_HELD_MAX_BYTES: Final = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things take.

    Attributes:
        turn_s: How long letters are moved before the lock is released.
        yield_s: How long it is then left to others.
        retry_s: The pause after a lost connection; it doubles.
        retries: Turns in a row that may lose their connection.
    """

    turn_s: float = 20.0
    yield_s: float = 1.0
    retry_s: float = 1.0
    retries: int = 5


@dataclass(slots=True)
class _Turn:
    """One reading of a queue, and what is moved by it.

    Attributes:
        wanted: Digests that may still be claimed, and how many copies.
        moved: Digests that were moved, which the queue may not have acknowledged yet.
        acknowledged: How many letters that is.
        started: Records of letters that were not moved, of the batch that was under way.
        is_cut: Letters were left for another turn.
        problem: Why nothing more is moved.
    """

    job: Job
    queue: str
    wanted: Counter[int]
    ends_at: float
    moved: Counter[int] = field(default_factory=Counter)
    acknowledged: int = 0
    held_bytes: int = 0
    started: list[AuditedLetter] = field(default_factory=list)
    is_cut: bool = False
    problem: NotRecordedError | None = None

    def claim(self, message: AbstractIncomingMessage) -> AbstractIncomingMessage | None:
        """The letter if it is to be moved now. Of any other nothing is held."""
        if self.problem is not None or self.job.is_stopping or not self.wanted:
            return None
        digest = digest_number(digest_of(message))
        if digest not in self.wanted:
            return None
        is_late = self.acknowledged and asyncio.get_running_loop().time() > self.ends_at
        if is_late or self.held_bytes > _HELD_MAX_BYTES:
            self.is_cut = True
            return None
        self.wanted[digest] -= 1
        if not self.wanted[digest]:
            del self.wanted[digest]
        self.held_bytes += len(message.body)
        return message


@dataclass(frozen=True, slots=True)
class _Claimed:
    """A letter that is to be moved, with its record and, for a replay, its copy and queue."""

    message: AbstractIncomingMessage
    record: AuditedLetter
    digest: int
    copy: Message | None = None
    target: str = ""


class Mover:
    """Carries out one job.

    Args:
        broker: The broker's address.
        recorder: Writes the audit trail.
        job: Its counts go up.
        turn: Held while letters are read, so that the index is not read meanwhile.
        on_progress: Called after each batch.
    """

    def __init__(
        self,
        broker: Broker,
        recorder: Recorder,
        job: Job,
        turn: asyncio.Lock,
        on_progress: Callable[[], None],
        pace: Pace | None = None,
    ) -> None:
        self._broker = broker
        self._recorder = recorder
        self._job = job
        self._turn = turn
        self._on_progress = on_progress
        self._pace = pace or Pace()

    async def run(self, plan: Plan) -> None:
        """Move the letters of a plan, queue by queue.

        Raises:
            NotRecordedError: the audit trail cannot be written.
            DeadLetterError: the lock was not free, or a queue does not exist.
            AMQPException, OSError: the broker was lost, and did not come back.
        """
        for queue, letters in plan.letters.items():
            if not self._job.is_stopping:
                await self._move_queue(queue, Counter(letters))

    async def _move_queue(self, queue: str, pending: Counter[int]) -> None:
        # Acknowledged on connections that were lost: such a letter is moved, or found again.
        uncertain: Counter[int] = Counter()
        lost = 0
        while pending and not self._job.is_stopping:
            turn = _Turn(self._job, queue, Counter(pending), self._now() + self._pace.turn_s)
            try:
                async with self._turn:
                    await self._take(turn, pending)
            except LOST as exc:
                lost += 1
                uncertain |= turn.moved
                self._job.done -= turn.moved.total()
                if lost > self._pace.retries:
                    await self._give_up(turn, uncertain)
                    raise
                await self._wait_for_broker(exc, lost)
                continue
            lost = 0
            pending -= turn.moved
            if turn.problem is not None:
                raise turn.problem
            if not turn.is_cut:
                break
            await asyncio.sleep(self._pace.yield_s)
        if not self._job.is_stopping:
            moved = (pending & uncertain).total()
            self._job.done += moved
            self._job.gone += pending.total() - moved

    async def _take(self, turn: _Turn, pending: Counter[int]) -> None:
        async with locked_channel(self._broker, _LOCK_TIMEOUT_S) as channel:
            self._job.problem = ""
            browser = await browse(channel, turn.queue)
            async for batch in browser.batches(turn.claim):
                held = [message for message in batch if message is not None]
                for start in range(0, len(held), AUDITED_LETTERS):
                    part = held[start : start + AUDITED_LETTERS]
                    if turn.problem is None and not self._job.is_stopping:
                        await self._move(turn, channel, part, pending)
                        self._on_progress()
                turn.held_bytes = 0
            await browser.requeue(browser.received - turn.acknowledged)

    async def _move(
        self,
        turn: _Turn,
        channel: AbstractChannel,
        part: Sequence[AbstractIncomingMessage],
        pending: Counter[int],
    ) -> None:
        claimed = []
        for message in part:
            try:
                claimed.append(self._claimed(message, turn.queue))
            except MalformedRequestError as exc:
                self._keep(turn, message, exc.code, exc.detail, pending)
        if not claimed:
            return
        try:
            await self._recorder.record(turn.queue, [letter.record for letter in claimed])
        except NotRecordedError as exc:
            turn.problem = exc
            return
        turn.started = [letter.record for letter in claimed]
        refused = await self._send(turn, channel, claimed, pending)
        left = {id(letter) for letter in refused}
        for letter in claimed:
            if id(letter) not in left:
                await letter.message.ack()
                turn.moved[letter.digest] += 1
                turn.acknowledged += 1
                self._job.done += 1
        turn.started = []
        if refused:
            await self._record_failure(turn, [letter.record for letter in refused])

    def _claimed(self, message: AbstractIncomingMessage, queue: str) -> _Claimed:
        fields: dict[str, Any] = describe(message, queue).audit_fields()
        del fields["queue"]
        digest = digest_number(digest_of(message))
        record = AuditedLetter(**fields)
        if self._job.move == "discard":
            return _Claimed(message, record, digest)
        check_body_kept(message)
        target = work_queue(message.body, queue)
        return _Claimed(message, record, digest, original(message), target)

    async def _send(
        self,
        turn: _Turn,
        channel: AbstractChannel,
        claimed: Sequence[_Claimed],
        pending: Counter[int],
    ) -> list[_Claimed]:
        """Publish the copies of a replay; the letters whose copies were not accepted."""
        outcomes = await asyncio.gather(
            *(_publish(channel, letter) for letter in claimed), return_exceptions=True
        )
        refused = []
        for letter, outcome in zip(claimed, outcomes, strict=True):
            if outcome is None:
                continue
            if isinstance(outcome, LOST) and not isinstance(outcome, DeliveryError | TimeoutError):
                raise outcome
            if not isinstance(outcome, Exception):
                raise outcome
            detail = f"the broker did not accept it ({type(outcome).__name__})"
            self._keep(turn, letter.message, "", detail, pending)
            refused.append(letter)
        return refused

    def _keep(
        self,
        turn: _Turn,
        message: AbstractIncomingMessage,
        code: str,
        detail: str,
        pending: Counter[int],
    ) -> None:
        digest = digest_number(digest_of(message))
        pending -= Counter({digest: 1})
        name = (message.message_id or "")[:64]
        self._job.fail(Failure(turn.queue, digest, name, code, detail))

    async def _record_failure(self, turn: _Turn, records: Sequence[AuditedLetter]) -> None:
        try:
            await self._recorder.record(turn.queue, records, outcome=_FAILED)
        except NotRecordedError as exc:
            turn.problem = exc

    async def _give_up(self, turn: _Turn, uncertain: Counter[int]) -> None:
        """The broker does not come back: what was recorded as started is recorded as failed."""
        self._job.uncertain += uncertain.total()
        if turn.started:
            await self._record_failure(turn, turn.started)

    async def _wait_for_broker(self, error: BaseException, lost: int) -> None:
        problem = describe_broker_failure(error)
        self._job.problem = f"the broker was lost ({problem}); trying again"
        self._on_progress()
        await asyncio.sleep(self._pace.retry_s * 2.0 ** (lost - 1))

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _publish(channel: AbstractChannel, letter: _Claimed) -> None:
    if letter.copy is not None:
        await channel.default_exchange.publish(
            letter.copy, letter.target, mandatory=True, timeout=_CONFIRM_TIMEOUT_S
        )
