"""A console that moves dead letters, each one recorded before (SPEC 15.3, 16.1)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from keyturn.topology import WORKER_HEADERS, dead_letter_name
from tests.protocol.report_laws import Action

if TYPE_CHECKING:
    from keyturn.messages import Event
    from tests.protocol.broker import QueuedMessage
    from tests.protocol.waiters import Waiter
    from tests.protocol.world import World

ACTOR: Final = "Kim Doe"


@dataclass(frozen=True)
class _Move:
    letter: QueuedMessage
    action: Action


class Console:
    """Replays and discards dead letters, once their records are accepted."""

    def __init__(self, world: World, publisher: str = "api") -> None:
        self._world = world
        self._publisher = publisher
        self._pending: dict[str, _Move] = {}

    def move(self, letter: QueuedMessage, *, discard: bool, request_id: str | None = None) -> str:
        """Have it recorded that a letter is replayed or discarded, and do it then."""
        move = self._begin(letter, discard=discard)
        request_id = self._request(move, request_id)
        self._pending[request_id] = move
        return request_id

    def _begin(self, letter: QueuedMessage, *, discard: bool) -> _Move:
        action = "dead_letter.discarded" if discard else "dead_letter.replayed"
        digest = hashlib.sha256(letter.body).hexdigest()
        queue = dead_letter_name(letter.queue)
        return _Move(letter, Action(self._publisher, ACTOR, action, queue, digest))

    def _request(self, move: _Move, request_id: str | None) -> str:
        return self._world.audit(
            [move.action.letter],
            publisher=self._publisher,
            action=move.action.action,
            queue=move.action.queue,
            request_id=request_id,
        )

    def believed(self, waiter: Waiter, event: Event) -> None:
        """One of its waiters believed an event."""
        if waiter.restarted or waiter.request.publisher != self._publisher:
            return
        move = self._pending.pop(waiter.request.id, None)
        if move is not None and event.type == "audit.accepted":
            self._do(move)

    def _do(self, move: _Move) -> None:
        self._world.oracle.reports.moved(move.action)
        kept = [each for each in self._world.dead if each[0] is not move.letter]
        if len(kept) == len(self._world.dead):
            return  # it was moved before
        self._world.dead[:] = kept
        if move.action.action == "dead_letter.replayed":
            without_notes = dict.fromkeys(WORKER_HEADERS)
            queue = move.letter.queue
            self._world.broker_writer.copy(move.letter, routing_key=queue, headers=without_notes)
