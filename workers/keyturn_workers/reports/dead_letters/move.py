"""Replaying and discarding dead letters, in one pass over their queue (SPEC 12, 15.3, 16.1).

The audit trail has the record of each letter before it is moved. A replayed letter is acknowledged
once the broker has confirmed its copy. So a crash at any step leaves a letter twice at worst, and
never loses one. All other letters keep their order.

A letter whose copy was not confirmed, or that has no record, must never be acknowledged.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from aio_pika import Message
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import DeliveryError

from keyturn.errors import CodedError
from keyturn.messages.audit import STARTED, AuditAction
from keyturn.messages.fields import DeadLettersAction
from keyturn.publisher.connection import OnePublishPerId
from keyturn_workers.reports.dead_letters.letters import (
    DeadLetter,
    check_body_kept,
    describe,
    original,
    work_queue,
)
from keyturn_workers.reports.dead_letters.queue import (
    Letters,
    LinkBrowser,
    QueueBrowser,
    UnconvertibleError,
)

FAILED: Final = "failed"
"""The outcome of a move that failed without a code."""
_ACTIONS: Final[dict[DeadLettersAction, AuditAction]] = {
    "replay": "dead_letter.replayed",
    "discard": "dead_letter.discarded",
}
_CONFIRM_TIMEOUT_S: Final = 30.0
_AT_ONCE: Final = 256
_HELD_MAX_BYTES: Final = 32 * 1024 * 1024


Record = Callable[[AuditAction, DeadLetter, str], Awaitable[None]]
"""Records in the audit trail that a letter is about to be moved (`started`), or that this failed.
Returns once the broker has it on disk."""


Copy = Callable[[AbstractIncomingMessage, str], Awaitable[Message]]
"""Makes the copy of a letter that a replay sends to its work queue, from the letter and the name of
its dead-letter queue. A `CodedError` leaves the letter there."""


async def as_sent(message: AbstractIncomingMessage, dead: str) -> Message:
    """Return the copy of a letter that is replayed as it was sent.

    Raises:
        MalformedRequestError: its body was not kept.
    """
    del dead
    check_body_kept(message)
    return original(message)


def _unreported(letter: DeadLetter, problem: "Problem | None") -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Move:
    """The replay or discard of letters of one queue.

    At most `limit` of the letters that `selects` accepts are moved, the oldest first. `record`
    writes the record of a letter; `copy` makes the copies of a replay. `report` is called with each
    selected letter, and with the problem if the letter stays in its queue.
    """

    action: DeadLettersAction
    selects: Callable[[AbstractIncomingMessage], bool]
    record: Record
    copy: Copy = as_sent
    report: Callable[[DeadLetter, "Problem | None"], None] = _unreported
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """The reason a letter stays in its queue; `code` is None if the broker did not accept it."""

    code: str | None
    detail: str


@dataclass(slots=True)
class Moved:
    """The outcome for the selected letters of one queue.

    `left` are still in the queue; `first_problem` is the reason for the first of them.
    """

    moved: int = 0
    left: int = 0
    first_problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class _Selected:
    """A letter to be moved; with its `message` only if its body is needed."""

    letter: DeadLetter
    tag: int
    message: AbstractIncomingMessage | None


@dataclass(frozen=True, slots=True)
class _Copy:
    """The message to publish for a letter, and its queue; no message if the letter is discarded."""

    of: _Selected
    message: Message | None
    queue: str


async def move_letters(letters: Letters, queue: str, move: Move) -> Moved:
    """Move the selected letters of a queue.

    A replay holds letters in memory up to a bound. If more letters come together, the rest is
    moved in a further pass.

    Raises:
        UnknownQueueError: the queue does not exist.
        UnreadableQueueError: the queue can be read over neither protocol.
        AMQPException, OSError: the broker was lost.
    """
    moved = Moved()
    known: frozenset[str] = frozenset()
    while True:
        browser = await letters.browse(queue)
        one_pass = _Pass(letters.channel, browser, queue, move, moved, known)
        try:
            await one_pass.run()
        except UnconvertibleError as exc:
            known |= one_pass.left
            await letters.reopen(queue, exc.left)
            continue
        except Exception:
            if not letters.channel.is_closed:
                await one_pass.requeue()
            raise
        await one_pass.requeue()
        if not one_pass.is_cut:
            return moved
        known |= one_pass.left


@dataclass(slots=True)
class _Pass:
    """One reading of a queue.

    `known` has digests of letters that an earlier pass has left: they are not tried again. `left`
    has those that this pass leaves. If `is_cut`, selected letters were not held, and need a further
    pass.
    """

    channel: AbstractChannel
    browser: QueueBrowser | LinkBrowser
    queue: str
    move: Move
    moved: Moved
    known: frozenset[str]
    left: set[str] = field(default_factory=set)
    is_cut: bool = False
    _selected: int = 0
    _held_bytes: int = 0
    _one_per_id: OnePublishPerId = field(default_factory=OnePublishPerId)

    async def run(self) -> None:
        self._selected = self.moved.moved + self.moved.left
        async for batch in self.browser.batches(self._select):
            found = [selected for selected in batch if selected is not None]
            for start in range(0, len(found), _AT_ONCE):
                await self._move(found[start : start + _AT_ONCE])
            self._held_bytes = 0

    async def requeue(self) -> None:
        await self.browser.requeue()

    def _select(self, message: AbstractIncomingMessage) -> _Selected | None:
        if not self.move.selects(message):
            return None
        letter = describe(message, self.queue)
        if letter.digest in self.known or self._selected == self.move.limit:
            return None
        tag = message.delivery_tag or 0
        if self.move.action == "discard":
            self._selected += 1
            return _Selected(letter, tag, None)
        if self._held_bytes > _HELD_MAX_BYTES:
            self.is_cut = True
            return None
        self._held_bytes += len(message.body)
        self._selected += 1
        return _Selected(letter, tag, message)

    async def _move(self, part: Sequence[_Selected]) -> None:
        action = _ACTIONS[self.move.action]
        problems: dict[int, Problem] = {}
        copies = [copy for each in part if (copy := await self._copy(each, problems)) is not None]
        await asyncio.gather(
            *(self.move.record(action, copy.of.letter, STARTED) for copy in copies)
        )
        outcomes = await asyncio.gather(
            *(self._publish(copy) for copy in copies), return_exceptions=True
        )
        done = [c.of.tag for c, outcome in zip(copies, outcomes, strict=True) if outcome is None]
        await self.browser.ack(done)
        failed: list[DeadLetter] = []
        lost: BaseException | None = None
        for copy, outcome in zip(copies, outcomes, strict=True):
            if isinstance(outcome, DeliveryError | TimeoutError):
                detail = (
                    "the broker did not confirm it in time"
                    if isinstance(outcome, TimeoutError)
                    else "the broker did not accept it"
                )
                problems[copy.of.tag] = Problem(None, detail)
                failed.append(copy.of.letter)
            else:
                lost = lost or outcome
        if lost is not None:
            raise lost
        for letter in failed:
            await self.move.record(action, letter, FAILED)
        for selected in part:
            self._count(selected.letter, problems.get(selected.tag))

    async def _copy(self, selected: _Selected, problems: dict[int, Problem]) -> _Copy | None:
        if selected.message is None:
            return _Copy(selected, None, "")
        try:
            queue = work_queue(selected.message.body, self.queue)
            return _Copy(selected, await self.move.copy(selected.message, self.queue), queue)
        except CodedError as exc:
            problems[selected.tag] = Problem(exc.code, exc.detail)
            return None

    async def _publish(self, copy: _Copy) -> None:
        if copy.message is not None:
            async with self._one_per_id.turn(copy.message.message_id, _CONFIRM_TIMEOUT_S):
                await self.channel.default_exchange.publish(
                    copy.message, copy.queue, mandatory=True, timeout=_CONFIRM_TIMEOUT_S
                )

    def _count(self, letter: DeadLetter, problem: Problem | None) -> None:
        if problem is None:
            self.moved.moved += 1
        else:
            self.left.add(letter.digest)
            self.moved.left += 1
            self.moved.first_problem = self.moved.first_problem or problem
        self.move.report(letter, problem)
