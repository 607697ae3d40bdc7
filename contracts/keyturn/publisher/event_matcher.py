"""Which events belong to a request (SPEC 6.7). Pure; no I/O.

An id alone identifies nothing: any publisher may send a request under any id, for its own
project or with other bytes, and the deployment signs its outcome. So an event belongs to a
request only if publisher, project, id and type are those of the request, and an answer only if
it names the request's exact bytes. Otherwise another tenant's sweep would end the wait for a
rotation, and the refusal of an earlier attempt would answer a later one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal, Self

from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages import (
    DeleteRejected,
    DeleteRequested,
    Event,
    ObjectDeleted,
    Rejected,
    Request,
    RequestOrigin,
    RotationAccepted,
    SweepProgressed,
    request_id,
)

RequestType = Literal[
    "enroll.requested",
    "upload.requested",
    "rotation.requested",
    "sweep.requested",
    "delete.requested",
    "status.requested",
    "dead_letters.requested",
    "recover.requested",
]

_ANSWERS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "enroll.requested": frozenset({"project.enrolled", "enroll.rejected"}),
        "upload.requested": frozenset({"upload.stored", "upload.rejected"}),
        "rotation.requested": frozenset({"rotation.accepted", "rotation.rejected"}),
        "sweep.requested": frozenset({"sweep.rejected"}),
        "delete.requested": frozenset({"object.deleted", "delete.rejected"}),
        "status.requested": frozenset({"status.reported", "status.rejected"}),
        "dead_letters.requested": frozenset({"dead_letters.moved", "dead_letters.rejected"}),
        "recover.requested": frozenset({"project.recovered", "recover.rejected"}),
    }
)
# Progress and ends: of the sweep, whichever of the requests for it they name.
_SWEEP_REPORTS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "rotation.requested": frozenset(
            {"sweep.progressed", "rotation.completed", "rotation.failed"}
        ),
        "sweep.requested": frozenset({"sweep.progressed", "sweep.completed", "sweep.failed"}),
    }
)


def is_answer(event: Event) -> bool:
    """Whether the event states the outcome of its request, if only that it was accepted."""
    return not isinstance(event, SweepProgressed)


def is_end(event: Event) -> bool:
    """Whether no more events follow for its request."""
    return not isinstance(event, (SweepProgressed, RotationAccepted))


@dataclass(frozen=True, slots=True)
class EventMatcher:
    """What an event must name to belong to one request.

    Args:
        publisher: Who signed the request; None for an operator, who follows a
            sweep no matter who requested it.
        project: The request's project, or `*` for a sweep of all.
        request_type: The request's type, which gives the types of its events.
        request_id: The request's id.
        digest: Hex SHA-256 of the request's bytes; None for a reader that does not have
            them any more, which then accepts the answer to any attempt.
        signed_at: The request's `requested_at`; None where the digest is.
        keys: Of a delete, the keys that it names, each of which has its own outcome; empty for a
            reader that does not know them any more.

    Raises:
        ValueError: `request_type` is not the type of a request.
    """

    publisher: str | None
    project: str
    request_type: str
    request_id: str
    digest: str | None = None
    signed_at: datetime | None = None
    keys: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.request_type not in _ANSWERS:
            raise ValueError(f"request_type must be one of {', '.join(_ANSWERS)}")

    @classmethod
    def of(cls, publisher: str, request: Request, body: bytes) -> Self:
        """The matcher of a request that was signed as `body`."""
        return cls(
            publisher,
            request.project,
            request.type,
            request_id(request),
            RequestOrigin.of(publisher, body).request,
            request.requested_at_instant,
            frozenset(request.object_keys if isinstance(request, DeleteRequested) else ()),
        )

    def matches(self, event: Event) -> bool:
        """Whether this event, whose signature was checked, belongs to the request."""
        if request_id(event) != self.request_id or not self._is_of_project(event):
            return False
        if event.origin is None or self.publisher not in (None, event.publisher):
            return False
        if event.type in _ANSWERS[self.request_type]:
            return self.digest in (None, event.request) and self._is_of_key(event)
        if event.type in _SWEEP_REPORTS.get(self.request_type, ()):
            return self._is_reported_by(event)
        return False

    def _is_of_project(self, event: Event) -> bool:
        if event.project == self.project:
            return True
        if isinstance(event, Rejected):
            # A request without permission is refused without naming the project.
            return event.project is None
        return self.project == ALL_PROJECTS and isinstance(event, SweepProgressed)

    def _is_of_key(self, event: Event) -> bool:
        key = event.key if isinstance(event, ObjectDeleted | DeleteRejected) else None
        return key is None or not self.keys or key in self.keys

    def _is_reported_by(self, event: Event) -> bool:
        if self.signed_at is None or event.request == self.digest:
            return True
        # Each attempt gets its own end. One for another attempt from before this one was signed
        # may be that of an earlier run, which this attempt restarts.
        return not is_end(event) or parse_time(event.at) >= self.signed_at
