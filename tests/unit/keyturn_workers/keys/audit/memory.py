"""A stream of audit records in memory, and a broker that can be away."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from keyturn.audit import AuditChains
from keyturn.crypto import EventVerifier, SigningKey, VerifyKey
from keyturn.errors import BrokerUnavailableError, OutcomeUnknownError
from keyturn.messages import AuditRecorded, parse_audit
from keyturn_workers.keys.audit.trail import AuditProcess, AuditTrail

if TYPE_CHECKING:
    from keyturn.audit import Finding

EVENT_KEY = SigningKey.from_seed(b"e" * 32)
PROCESS = AuditProcess(
    "5e8a1c70-36d4-4f0b-8b9e-7c2d1f4a6e95", "worker control", "control-1", "keyturn@control-1"
)


@dataclass
class Stream:
    """Takes what is published, unless it is away.

    Attributes:
        bodies: The records in the order in which they arrived.
        is_away: Nothing arrives.
        refuses: The counters of records that do not arrive the first time.
        loses_confirmations: As many records arrive, but their publishers do not learn of it.
        gate: Set while publishes may go on.
        at_once: The most publishes that were under way at once.
    """

    bodies: list[bytes] = field(default_factory=list)
    is_away: bool = False
    refuses: set[int] = field(default_factory=set)
    loses_confirmations: int = 0
    attempts: int = 0
    at_once: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    _under_way: int = 0
    _tried: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.gate.set()

    async def publish(self, audit_id: str, body: bytes) -> None:
        assert parse_audit(body).audit_id == audit_id
        self.attempts += 1
        self._under_way += 1
        async with self._tried:
            self._tried.notify_all()
        self.at_once = max(self.at_once, self._under_way)
        try:
            await asyncio.sleep(0)  # as long as it takes others to begin
            await self.gate.wait()
            if self.is_away:
                raise BrokerUnavailableError("the broker cannot be reached (TestError)")
            if (counter := parse_audit(body).counter) in self.refuses:
                self.refuses.discard(counter)
                raise OutcomeUnknownError("the broker could not promise to keep the message")
            self.bodies.append(body)
            if self.loses_confirmations:
                self.loses_confirmations -= 1
                raise OutcomeUnknownError("the connection was lost before the broker confirmed")
        finally:
            self._under_way -= 1

    async def tried(self, times: int) -> None:
        """Wait for so many publishes, successful or not."""
        async with self._tried:
            await self._tried.wait_for(lambda: self.attempts >= times)

    @property
    def records(self) -> list[AuditRecorded]:
        return [parse_audit(body) for body in self.bodies]

    def findings(self) -> list[Finding]:
        """What a reader of the whole stream finds."""
        keys = [VerifyKey.from_bytes(EVENT_KEY.public_bytes)]
        chains = AuditChains(EventVerifier("test", keys), is_whole=True)
        signed = ((body, EVENT_KEY.sign_event("test", body)) for body in self.bodies)
        return [finding for record in signed for finding in chains.add(*record).findings]


@dataclass
class Clock:
    """A clock that a test sets."""

    now: datetime = datetime(2026, 11, 24, 10, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def trail_to(stream: Stream, **options: Any) -> AuditTrail:
    return AuditTrail(PROCESS, stream.publish, **options)
