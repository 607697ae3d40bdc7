"""Waiters for the response to a request, which believe the stream as a publisher does.

A waiter keeps what it believed. The oracle checks whether that is what happened.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from keyturn.crypto import SigningKey, VerifyKey
from keyturn.identifiers import parse_time
from keyturn.messages import encode_batch
from keyturn.publisher.event_matcher import EventMatcher
from keyturn.publisher.event_stream import StreamRecord, Verifier
from keyturn.topology import REQUEST_ID_FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from keyturn.messages import Event

EVENT_KEY: Final = SigningKey.from_seed(bytes([9]) * 32)
_VERIFIER: Final = Verifier("test", [VerifyKey.from_bytes(EVENT_KEY.public_bytes)])

RESPONSES: Final = {
    "enroll.requested": {"project.enrolled", "enroll.rejected"},
    "upload.requested": {"upload.stored", "upload.rejected"},
    "rotation.requested": {"rotation.accepted", "rotation.rejected"},
    "sweep.requested": {"sweep.rejected"},
    "delete.requested": {"object.deleted", "delete.rejected"},
    "status.requested": {"status.reported", "status.rejected"},
    "dead_letters.requested": {"dead_letters.moved", "dead_letters.rejected"},
    "recover.requested": {"project.recovered", "recover.rejected"},
    "erase.requested": {"project.erased", "erase.rejected"},
}
ENDS: Final = {
    **RESPONSES,
    "rotation.requested": {"rotation.completed", "rotation.failed", "rotation.rejected"},
    "sweep.requested": {"sweep.completed", "sweep.failed", "sweep.rejected"},
}


@dataclass(frozen=True)
class Record:
    """One message of the stream of events, not yet believed: an event, or a batch of them."""

    body: bytes
    signature: str


@dataclass(frozen=True)
class SentRequest:
    """One request as it was signed; `secret` is its plaintext, or its KEK."""

    publisher: str
    document: dict[str, Any]
    body: bytes
    honest: bool
    secret: bytes | None = None

    @property
    def kind(self) -> str:
        return str(self.document["type"])

    @property
    def id(self) -> str:
        return str(self.document[REQUEST_ID_FIELDS[self.kind]])

    @property
    def project(self) -> str:
        return str(self.document["project"])

    @property
    def keys(self) -> frozenset[str]:
        """Of a delete, the keys that it names."""
        if self.kind != "delete.requested":
            return frozenset()
        return frozenset(self.document.get("keys") or [self.document["key"]])

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


@dataclass(eq=False)
class Waiter:
    """Waits for the end of one request; one that was restarted no longer has its bytes."""

    request: SentRequest
    restarted: bool = False
    believed: list[Event] = field(default_factory=list)

    def __str__(self) -> str:
        who = "a restarted waiter" if self.restarted else "the waiter"
        return f"{who} of {self.request.publisher}'s {self.request.kind}"

    @property
    def ended(self) -> bool:
        ends = [event for event in self.believed if event.type in ENDS[self.request.kind]]
        if not self.request.keys:
            return bool(ends)
        named = {getattr(event, "key", None) for event in ends}
        return None in named or named >= self.request.keys

    def receive(self, event: Event) -> bool:
        """Believe an event if it answers the request (SPEC 6.7); returns whether it does."""
        if self.ended or not self._is_meant_by(event):
            return False
        self.believed.append(event)
        return True

    def _is_meant_by(self, event: Event) -> bool:
        request = self.request
        is_response = event.type in RESPONSES[request.kind] | ENDS[request.kind]
        return is_response and self._matcher.matches(event)

    @property
    def _matcher(self) -> EventMatcher:
        """What the publisher's client requires of an event."""
        request = self.request
        return EventMatcher(
            request.publisher,
            request.project,
            request.kind,
            request.id,
            digest=None if self.restarted else request.digest,
            signed_at=None if self.restarted else parse_time(request.document["requested_at"]),
            keys=frozenset() if self.restarted else request.keys,
        )


def signed(event_type: str, bodies: Sequence[bytes]) -> Record:
    """Events as a worker publishes them: one alone, or a batch."""
    if len(bodies) == 1:
        return Record(bodies[0], EVENT_KEY.sign_event("test", bodies[0]))
    batch = encode_batch(event_type, bodies)
    return Record(batch, EVENT_KEY.sign_events("test", batch))


def verified(record: Record) -> tuple[Event, ...]:
    """The events that a publisher's client reads from it: none if the deployment signed none."""
    return _VERIFIER.events(StreamRecord(0, record.body, record.signature))
