"""Replays and discards dead letters for a person at a console (SPEC 16.1).

Delivery is at least once. A repeated request moves the rest of its letters: a message that was
replayed and died again died after the request, so its letter stays. A letter that is recorded
twice, because a worker died between record and acknowledgment, keeps its record id.
"""

from collections import Counter
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final
from uuid import UUID, uuid5

from keyturn.identifiers import format_time
from keyturn.messages.audit import AuditAction
from keyturn.messages.events import DeadLettersMoved
from keyturn.messages.requests import DeadLettersRequested
from keyturn.publisher.connection import Broker
from keyturn.request_origin import RequestOrigin
from keyturn_workers.keys.audit.trail import AuditTrail
from keyturn_workers.pipeline.amqp.outcomes import DeferError, Handled
from keyturn_workers.pipeline.amqp.publisher import confirmed
from keyturn_workers.process.wall_clock import utc_now
from keyturn_workers.reports.dead_letters.letters import DeadLetter, is_selected
from keyturn_workers.reports.dead_letters.move import Move, Moved, Problem, Record, move_letters
from keyturn_workers.reports.dead_letters.queue import (
    LockedError,
    UnreadableQueueError,
    open_letters,
)

_LOCK_TIMEOUT_S: Final = 5.0
_LOCKED_WAIT_S: Final = 5.0
_NAMESPACE: Final = UUID("3e9c5b1f-7d24-5a68-9f0b-4c8e2a6d1b57")


class DeadLetterMover:
    """Serves `dead_letters.requested`."""

    def __init__(
        self, broker: Broker, trail: AuditTrail, now: Callable[[], datetime] = utc_now
    ) -> None:
        self._broker = broker
        self._trail = trail
        self._now = now

    async def serve(self, request: DeadLettersRequested, origin: RequestOrigin) -> Handled:
        """Move the letters that the request selects.

        Raises:
            DeferError: another process is reading the letters.
            NotConfirmedError: the broker was lost.
        """
        move = Move(
            request.action,
            selects=partial(
                is_selected,
                code=request.code,
                letters=None if request.letters is None else frozenset(request.letters),
                # Its clock may be ahead: messages that die again meanwhile are not replayed again.
                before=min(request.requested_at_instant, self._now()),
            ),
            record=self._recorder(request, origin),
        )
        try:
            with confirmed():
                async with open_letters(self._broker, _LOCK_TIMEOUT_S) as opened:
                    moved = await move_letters(opened, request.queue, move)
        except LockedError as exc:
            raise DeferError(_LOCKED_WAIT_S) from exc
        except UnreadableQueueError as exc:
            moved = Moved(left=exc.depth, first_problem=Problem(None, str(exc)))
        problem = moved.first_problem
        event = DeadLettersMoved(
            request_id=request.request_id,
            project=request.project,
            at=format_time(self._now()),
            queue=request.queue,
            action=request.action,
            moved=moved.moved,
            left=moved.left,
            code=None if problem is None else problem.code,
            detail=None if problem is None else problem.detail,
        )
        logged = {
            "request_id": request.request_id,
            "action": request.action,
            "queue": request.queue,
            "moved": moved.moved,
            "left": moved.left,
        }
        return Handled(event, logged)

    def _recorder(self, request: DeadLettersRequested, origin: RequestOrigin) -> Record:
        copies: Counter[str] = Counter()

        async def record(action: AuditAction, letter: DeadLetter, outcome: str) -> None:
            name = f"{letter.digest}/{outcome}"
            copies[name] += 1
            await self._trail.record(
                action,
                actor=request.actor,
                outcome=outcome,
                audit_id=str(
                    uuid5(_NAMESPACE, f"{origin.publisher}/{origin.request}/{name}/{copies[name]}")
                ),
                publisher=origin.publisher,
                reason=request.reason,
                **letter.audit_fields(),
            )

        return record
