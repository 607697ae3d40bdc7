"""Records in the audit trail what is about to be done to dead letters (SPEC 15.3, 16.1).

The console has no event key: a control worker writes the records, and says so in a signed event.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from keyturn.errors import KeyturnError, OutcomeUnknownError, WaitTimeoutError
from keyturn.messages import (
    STARTED,
    AuditAccepted,
    AuditedLetter,
    DeadLetterAction,
    Event,
    Rejected,
)
from keyturn.publisher.requests import new_id
from keyturn_workers.console.dead.jobs import Move

TIMEOUT_S: Final = 60.0
_ATTEMPTS: Final = 3
ACTIONS: Final[dict[Move, DeadLetterAction]] = {
    "replay": "dead_letter.replayed",
    "discard": "dead_letter.discarded",
}


class NotRecordedError(Exception):
    """The audit trail does not hold it, so it must not be done; the text is for the operator."""


class AuditPublisher(Protocol):
    """What is needed of `keyturn.publisher.Publisher`."""

    async def record_audit(
        self,
        action: DeadLetterAction,
        queue: str,
        letters: Sequence[AuditedLetter],
        *,
        actor: str,
        outcome: str = ...,
        reason: str | None = ...,
        request_id: str | None = ...,
    ) -> str:
        """Publish the request."""
        ...

    async def wait(self, request_id: str, *, timeout_s: float = ...) -> Event:
        """Its answer."""
        ...


@dataclass(frozen=True, slots=True)
class Recorder:
    """Records in the name of one person.

    Attributes:
        publisher: Signs the requests.
        actor: The person.
        reason: Why, in the person's words.
    """

    publisher: AuditPublisher
    move: Move
    actor: str
    reason: str | None
    timeout_s: float = TIMEOUT_S

    async def record(
        self, queue: str, letters: Sequence[AuditedLetter], outcome: str = STARTED
    ) -> None:
        """Return once the audit trail holds one record for each letter.

        Raises:
            NotRecordedError: it does not, or nobody knows.
        """
        try:
            event = await self._ask(queue, letters, outcome)
        except WaitTimeoutError as exc:
            raise NotRecordedError(
                f"no control worker wrote it to the audit trail within {self.timeout_s:g} s"
            ) from exc
        except KeyturnError as exc:
            raise NotRecordedError(f"the audit trail cannot be written: {exc}") from exc
        if isinstance(event, Rejected):
            raise NotRecordedError(
                f"the audit trail cannot be written: {event.code}: {event.detail}"
            )
        if not isinstance(event, AuditAccepted):
            raise NotRecordedError("the audit trail cannot be written: an unexpected answer")

    async def _ask(self, queue: str, letters: Sequence[AuditedLetter], outcome: str) -> Event:
        request_id = new_id()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                await self.publisher.record_audit(
                    ACTIONS[self.move],
                    queue,
                    letters,
                    actor=self.actor,
                    outcome=outcome,
                    reason=self.reason,
                    request_id=request_id,
                )
            except OutcomeUnknownError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                break
        return await self.publisher.wait(request_id, timeout_s=self.timeout_s)
