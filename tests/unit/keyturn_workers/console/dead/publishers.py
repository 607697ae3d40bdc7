"""A publisher that has the audit trail written, without a broker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from keyturn.errors import WaitTimeoutError
from keyturn.messages import AuditAccepted, AuditedLetter, AuditRejected, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from keyturn.messages import DeadLetterAction

_AT = "2026-11-26T10:00:00.000000Z"


@dataclass(frozen=True)
class Record:
    """What was asked to be recorded."""

    action: DeadLetterAction
    queue: str
    letters: list[AuditedLetter]
    actor: str
    outcome: str
    reason: str | None


@dataclass
class FakePublisher:
    """Accepts everything, unless it is set up not to.

    Attributes:
        errors: Raised by the next attempts.
        is_silent: Nobody answers.
        refusal: The code with which everything is refused.
        records: What was recorded.
        attempts: The ids of all requests, repeated ones too.
        on_record: Called with the number of records so far.
    """

    errors: list[Exception] = field(default_factory=list)
    is_silent: bool = False
    refusal: str = ""
    records: list[Record] = field(default_factory=list)
    attempts: list[str] = field(default_factory=list)
    on_record: Callable[[int], None] = lambda _: None

    async def record_audit(
        self,
        action: DeadLetterAction,
        queue: str,
        letters: Sequence[AuditedLetter],
        *,
        actor: str,
        outcome: str = "started",
        reason: str | None = None,
        request_id: str | None = None,
    ) -> str:
        assert request_id is not None
        self.attempts.append(request_id)
        if self.errors:
            raise self.errors.pop(0)
        self.on_record(len(self.records))
        self.records.append(Record(action, queue, list(letters), actor, outcome, reason))
        return request_id

    async def wait(self, request_id: str, *, timeout_s: float = 60.0) -> Event:
        assert timeout_s
        if self.is_silent:
            raise WaitTimeoutError("nothing was published in time")
        if self.refusal:
            return AuditRejected(
                request_id=request_id, project="*", at=_AT, code=self.refusal, detail="may not"
            )
        return AuditAccepted(request_id=request_id, project="*", at=_AT)
