"""A worker's mover of dead letters over those of a world, each one recorded before (SPEC 16.1).

The queue with its lock is left out: `reports.dead_letters` has tests of its own. Authority,
records, redelivery and answers are the workers' own.
"""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from keyturn.identifiers import format_time
from keyturn.messages import STARTED, DeadLettersMoved
from keyturn.topology import WORKER_HEADERS
from keyturn_workers.pipeline.amqp.outcomes import Handled
from keyturn_workers.pipeline.control.dead_letters import DeadLetterMover
from keyturn_workers.reports.dead_letters.letters import describe
from tests.protocol.report_laws import ACTIONS, Action

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from keyturn.messages import DeadLettersRequested, RequestOrigin
    from keyturn_workers.keys.audit.trail import AuditTrail
    from keyturn_workers.reports.dead_letters.move import Record
    from tests.protocol.broker import QueuedMessage
    from tests.protocol.world import World

ACTOR: Final = "Kim Doe"


class LetterMover(DeadLetterMover):
    """Replays and discards dead letters of a world, once each is on record."""

    def __init__(self, world: World, trail: AuditTrail, now: Callable[[], datetime]) -> None:
        super().__init__(cast("Any", None), trail, now)
        self._world = world

    async def serve(self, request: DeadLettersRequested, origin: RequestOrigin) -> Handled:
        """Move those of the chosen letters that are still there."""
        record = self._recorder(request, origin)
        moved = 0
        for letter in self._world.chosen_letters.get(request.request_id, ()):
            if self._is_dead(letter):
                await self.move(letter, request, origin, record)
                moved += 1
        event = DeadLettersMoved(
            request_id=request.request_id,
            project=request.project,
            at=format_time(self._now()),
            queue=request.queue,
            action=request.action,
            moved=moved,
            left=0,
        )
        return Handled(event, {"request_id": request.request_id})

    async def move(
        self,
        letter: QueuedMessage,
        request: DeadLettersRequested,
        origin: RequestOrigin,
        record: Record,
    ) -> None:
        """Record a letter, and move it then."""
        await self.record(letter, request, record)
        self.do(letter, request, origin)

    async def record(
        self, letter: QueuedMessage, request: DeadLettersRequested, record: Record
    ) -> None:
        """Return once the letter is on record."""
        delivery: Any = SimpleNamespace(body=letter.body, headers=letter.headers, message_id=None)
        await record(ACTIONS[request.action], describe(delivery, request.queue), STARTED)

    def do(
        self, letter: QueuedMessage, request: DeadLettersRequested, origin: RequestOrigin
    ) -> None:
        """Take a letter from the dead ones; a replayed one is on its work queue again."""
        if not self._is_dead(letter):
            return  # it was moved by another delivery of the request
        digest = hashlib.sha256(letter.body).hexdigest()
        action = ACTIONS[request.action]
        self._world.oracle.reports.moved(
            Action(origin.publisher, request.actor, action, request.queue, digest)
        )
        self._world.dead[:] = [each for each in self._world.dead if each[0] is not letter]
        if request.action == "replay":
            without_notes = dict.fromkeys(WORKER_HEADERS)
            queue = letter.queue
            self._world.broker_writer.copy(letter, routing_key=queue, headers=without_notes)

    def _is_dead(self, letter: QueuedMessage) -> bool:
        return any(each[0] is letter for each in self._world.dead)
