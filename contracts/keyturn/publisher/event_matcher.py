"""The events that belong to a request (SPEC 6.7). Pure; no I/O.

An id alone identifies nothing: any publisher may send a request under any id, for its own project
or with other bytes, and the deployment signs its outcome. So an event belongs to a request only if
publisher, project, id and type are the request's, and an answer only if it names the request's
exact bytes. Otherwise another tenant's sweep would end the wait for a rotation, and the rejection
of an earlier attempt would answer a later one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Final, Literal, Self

from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages.codec import request_id
from keyturn.messages.events import (
    DeleteRejected,
    Event,
    ObjectDeleted,
    Rejected,
    RotationAccepted,
    SweepProgressed,
)
from keyturn.messages.requests import DeleteRequested, Request
from keyturn.request_origin import RequestOrigin

RequestType = Literal[
    "enroll.requested",
    "upload.requested",
    "rotation.requested",
    "sweep.requested",
    "delete.requested",
    "status.requested",
    "dead_letters.requested",
    "recover.requested",
    "erase.requested",
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
        "erase.requested": frozenset({"project.erased", "erase.rejected"}),
    }
)
# Progress and ends of a sweep, no matter which of the requests for it they name.
_SWEEP_REPORTS: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "rotation.requested": frozenset(
            {"sweep.progressed", "rotation.completed", "rotation.failed"}
        ),
        "sweep.requested": frozenset({"sweep.progressed", "sweep.completed", "sweep.failed"}),
    }
)


def is_answer(event: Event) -> bool:
    """Return whether the event is the outcome of its request, if only that it was accepted."""
    return not isinstance(event, SweepProgressed)


def is_end(event: Event) -> bool:
    """Return whether it is the last event of its request."""
    return not isinstance(event, (SweepProgressed, RotationAccepted))


@dataclass(frozen=True, slots=True)
class EventMatcher:
    """The fields by which an event belongs to one request.

    Args:
        publisher: The publisher that signed the request; None for an operator, who follows a sweep
            no matter who requested it.
        project: The request's project, or `*` for a sweep of all.
        request_type: The request's type, which gives the types of its events.
        request_id: The request's id.
        digest: Hex SHA-256 of the request's bytes; None for a reader that no longer has them, and
            then accepts the answer to any attempt.
        signed_at: The request's `requested_at`; None if the digest is.
        keys: The keys that a delete names, each with its own outcome; empty for a reader that no
            longer knows them.

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
        """Return the matcher of a request that was signed as `body`."""
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
        """Return whether this event, whose signature was checked, belongs to the request."""
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
            # A request without permission is rejected without naming the project.
            return event.project is None
        return self.project == ALL_PROJECTS and isinstance(event, SweepProgressed)

    def _is_of_key(self, event: Event) -> bool:
        key = event.key if isinstance(event, ObjectDeleted | DeleteRejected) else None
        return key is None or not self.keys or key in self.keys

    def _is_reported_by(self, event: Event) -> bool:
        if self.signed_at is None or event.request == self.digest:
            return True
        # Each attempt gets its own end. An end for another attempt from before this one was signed
        # may belong to an earlier run, which this attempt restarts.
        return not is_end(event) or parse_time(event.at) >= self.signed_at
