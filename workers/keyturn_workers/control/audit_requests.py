"""Records what a person does to dead letters through a console (SPEC 15.3, 16.1).

A console has no event key, so it cannot write to the audit trail itself. It requests the records,
and acts on the letters only after `audit.accepted`.

Delivery is at least once, and an attacker who can write to the broker can repeat a signed request.
A process recognizes what it has recorded before, as far as it remembers. Of one that it does not
recognize, the records have the ids of the first time, so that a reader recognizes them.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Final
from uuid import UUID, uuid5

from keyturn.identifiers import format_time
from keyturn.messages import AuditAccepted, AuditRequested, RequestOrigin
from keyturn_workers.amqp.failures import utc_now
from keyturn_workers.amqp.request_consumer import Handled
from keyturn_workers.audit import AuditTrail

REMEMBERED: Final = 10_000
"""Requests that one process recognizes."""
_NAMESPACE: Final = UUID("3e9c5b1f-7d24-5a68-9f0b-4c8e2a6d1b57")


class AuditRequests:
    """Serves `audit.requested`.

    Args:
        trail: Where the records go.
        now: The time.
        remembered: How many requests are recognized when they come again.
    """

    def __init__(
        self,
        trail: AuditTrail,
        now: Callable[[], datetime] = utc_now,
        remembered: int = REMEMBERED,
    ) -> None:
        self._trail = trail
        self._now = now
        self._remembered = remembered
        self._recorded: OrderedDict[RequestOrigin, None] = OrderedDict()

    async def serve(self, request: AuditRequested, origin: RequestOrigin) -> Handled:
        """Record each letter; returns once the broker has all records on disk."""
        if origin not in self._recorded:
            await self._record(request, origin)
            # Not before: what a canceled attempt left unrecorded is recorded by the next one.
            self._remember(origin)
        event = AuditAccepted(
            request_id=request.request_id, project=request.project, at=format_time(self._now())
        )
        logged = {
            "request_id": request.request_id,
            "action": request.action,
            "queue": request.queue,
            "letters": len(request.letters),
        }
        return Handled(event, logged)

    async def _record(self, request: AuditRequested, origin: RequestOrigin) -> None:
        await asyncio.gather(
            *(
                self._trail.record(
                    request.action,
                    actor=request.actor,
                    outcome=request.outcome,
                    audit_id=_record_id(origin, number),
                    publisher=origin.publisher,
                    queue=request.queue,
                    reason=request.reason,
                    **letter.model_dump(),
                )
                for number, letter in enumerate(request.letters)
            )
        )

    def _remember(self, origin: RequestOrigin) -> None:
        self._recorded[origin] = None
        if len(self._recorded) > self._remembered:
            self._recorded.popitem(last=False)


def _record_id(origin: RequestOrigin, number: int) -> str:
    """The id of one letter's record: the same each time that the request is served."""
    return str(uuid5(_NAMESPACE, f"{origin.publisher}/{origin.request}/{number}"))
