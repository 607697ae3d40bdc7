"""Record the requests of publishers that a worker served or refused (SPEC 15.3).

Only requests that a known publisher signed are recorded: with a flood of others, an attacker who
can write to the broker could push the records out of the stream. The others are logged, counted
and kept among the unsigned dead letters (SPEC 6.9).

A served `dead_letters.requested` gets no record of its own: the records of its letters name its
publisher and its person.
"""

import time
from collections.abc import Callable, Iterator
from math import inf
from typing import Any, Final

from keyturn.errors import CodedError, MalformedRequestError
from keyturn.identifiers import is_project
from keyturn.messages.codec import identity, parse_request, request_id
from keyturn.messages.events import Event, RotationAccepted
from keyturn.messages.requests import (
    DeadLettersRequested,
    DeleteRequested,
    EraseRequested,
    RecoverRequested,
    Request,
    StatusRequested,
    UploadRequested,
)
from keyturn.request_origin import RequestOrigin
from keyturn_workers.keys.audit.trail import AuditTrail

REFRESHES_RECORDED_EVERY_S: Final = 3600.0
"""The period in which one request for a report that names no person is recorded."""
NAMED_KEYS_MAX_BYTES: Final = 16 * 1024
"""UTF-8 bytes of the object keys in one record; a request with more has several records."""


class RequestRecorder:
    """Records requests that were served or refused.

    A console refreshes its views all day. If each of its requests for reports were recorded, they
    would push the actions of people out of the stream. So of the requests that name no person,
    each process records one an hour for each publisher and view. A person's requests are all
    recorded. `clock` is monotonic, in seconds.
    """

    def __init__(self, trail: AuditTrail, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._trail = trail
        self._clock = clock
        # Bounded: the publishers are in the settings, and there are few views.
        self._refreshed_at: dict[tuple[str, str], float] = {}

    async def served(
        self, request: Request, origin: RequestOrigin, event: Event | None = None
    ) -> None:
        """Record a served request. Call this after the effect and before the acknowledgment.

        `event` is the answer.
        """
        if isinstance(request, DeadLettersRequested):
            return
        if isinstance(request, StatusRequested) and not self._is_due(request, origin.publisher):
            return
        generation = event.generation if isinstance(event, RotationAccepted) else None
        for fields in _of_request(request):
            fields["generation"] = generation
            await self._trail.record("request.served", **_of_origin(origin, request), **fields)

    def _is_due(self, request: StatusRequested, publisher: str) -> bool:
        if request.actor is not None:
            return True
        refresh, now = (publisher, request.view), self._clock()
        if now - self._refreshed_at.get(refresh, -inf) < REFRESHES_RECORDED_EVERY_S:
            return False
        self._refreshed_at[refresh] = now
        return True

    async def refused(self, body: bytes, publisher: str, error: CodedError) -> None:
        """Record a request that was refused for good; `body` is as signed, perhaps malformed."""
        origin = RequestOrigin.of(publisher, body)
        try:
            request = parse_request(body)
        except MalformedRequestError:
            records = [_of_origin(origin, None) | _of_malformed(body)]
        else:
            records = [_of_origin(origin, request) | fields for fields in _of_request(request)]
        for fields in records:
            await self._trail.record("request.refused", outcome=error.code, **fields)


def _of_origin(origin: RequestOrigin, request: Request | None) -> dict[str, Any]:
    # Only the publisher vouches for a person's name, so the publisher is named too.
    person = None if request is None or isinstance(request, UploadRequested) else request.actor
    return {
        "actor": person or origin.publisher,
        "publisher": origin.publisher,
        "request": origin.request,
    }


def _of_request(request: Request) -> list[dict[str, Any]]:
    """The fields of each record of a request; several records only if it has many object keys."""
    fields: dict[str, Any] = {
        "request_type": request.type,
        "request_id": request_id(request),
        "project": request.project,
    }
    match request:
        case UploadRequested():
            fields["object_key"] = request.key
        case DeleteRequested(keys=None):
            fields["object_key"] = request.key
        case DeleteRequested():
            return [fields | part for part in _of_keys(request.object_keys)]
        case RecoverRequested() | EraseRequested():
            fields["reason"] = request.reason
    return [fields]


def _of_keys(keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The number of objects that a request names, and their keys, in parts that fit a record."""
    start = named_bytes = 0
    for end, key in enumerate(keys):
        key_bytes = len(key.encode())
        if end > start and named_bytes + key_bytes > NAMED_KEYS_MAX_BYTES:
            yield _part(keys, start, end)
            start, named_bytes = end, 0
        named_bytes += key_bytes
    yield _part(keys, start, len(keys))


def _part(keys: tuple[str, ...], start: int, end: int) -> dict[str, Any]:
    named = keys[start:end]
    number = None if len(named) == len(keys) else start + 1
    return {"object_count": len(keys), "first_object": number, "object_keys": named}


def _of_malformed(body: bytes) -> dict[str, Any]:
    claimed = identity(body)
    if claimed is None:
        return {}
    request_type, claimed_id, project = claimed
    fields = {"request_type": request_type, "request_id": claimed_id}
    return fields | ({"project": project} if project and is_project(project) else {})
