"""Messages to bytes and back, and the rejection of a request (SPEC 6.3, 6.7). Pure."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import orjson
from pydantic import ValidationError

from keyturn.errors import CodedError, MalformedRequestError
from keyturn.identifiers import is_uuid
from keyturn.messages.events import EVENT_MODELS, Event, Rejected, RejectedModel
from keyturn.messages.fields import EventModel
from keyturn.messages.json_text import as_text, load_json, problems, readable_fields
from keyturn.messages.requests import REQUEST_MODELS, Request
from keyturn.request_origin import RequestOrigin
from keyturn.topology import REQUEST_ID_FIELDS, REQUESTS

EVENT_BATCH_MAX: Final = 64
"""The maximum number of events in a batch."""
EVENT_BATCH_MAX_BYTES: Final = 256 * 1024
"""The maximum size of a batch."""
_MAX_PROJECT_CHARACTERS: Final = 256


def id_field(message_type: str) -> str:
    """Return the field with the request's id, in a request or an event of this type."""
    if message_type in REQUEST_ID_FIELDS:
        return REQUEST_ID_FIELDS[message_type]
    return next(name for name in EVENT_MODELS[message_type].model_fields if name in _ID_FIELDS)


_ID_FIELDS: Final = frozenset(REQUEST_ID_FIELDS.values())


def request_id(message: Request | Event) -> str:
    """Return the id of a request, or of the request that an event answers."""
    value: str = getattr(message, id_field(message.type))
    return value


_EventT = TypeVar("_EventT", bound=EventModel)


def with_origin(event: _EventT, origin: RequestOrigin | None) -> _EventT:
    """Return a copy of the event that names its request; the event itself without an origin."""
    if origin is None:
        return event
    return event.model_copy(update={"publisher": origin.publisher, "request": origin.request})


def encode(message: Request | Event, *, traceparent: str = "") -> bytes:
    """Return the bytes to sign and send, without unset optional fields.

    `traceparent` links an event to the trace of its request (SPEC 6.11).
    """
    document = message.model_dump(mode="json", exclude_none=True)
    if isinstance(message, RejectedModel):
        document["project"] = message.project  # it may be null on purpose
    if traceparent:
        document["traceparent"] = traceparent
    return orjson.dumps(document)


def encode_batch(event_type: str, events: Sequence[bytes]) -> bytes:
    """Return a batch's bytes (SPEC 6.7): encoded events of one type and publisher."""
    return b'{"type":%b,"events":[%b]}' % (orjson.dumps(event_type), b",".join(events))


def parse_request(body: bytes) -> Request:
    """Parse and check the body of a request.

    Raises:
        MalformedRequestError: names the fields and rules that fail, never a value.
    """
    document = load_json(body)
    model = REQUEST_MODELS.get(as_text(document.get("type")) or "")
    if model is None:
        raise MalformedRequestError(f"type must be one of {', '.join(REQUESTS)}")
    try:
        return model.model_validate(document)  # type: ignore[return-value]  # one of Request
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None  # the cause repeats values


def parse_event(body: bytes) -> Event:
    """Parse and check the body of an event. Unknown fields are ignored (SPEC 6.7).

    Raises:
        MalformedRequestError: not an event that this version knows.
    """
    return _event_of(load_json(body))


@dataclass(frozen=True, slots=True)
class TracedEvent:
    """An event, and its `traceparent`, outside its own fields; empty without one."""

    event: Event
    traceparent: str


def parse_traced_event(body: bytes) -> TracedEvent:
    """Return an event with its `traceparent`; errors as `parse_event`."""
    document = load_json(body)
    return TracedEvent(_event_of(document), as_text(document.get("traceparent")) or "")


def parse_batch(body: bytes) -> tuple[TracedEvent, ...]:
    """Parse a batch of events (SPEC 6.7), and return those that this version can read, in order.

    Raises:
        MalformedRequestError: not a batch.
    """
    batch = load_json(body)
    events = batch.get("events")
    if batch.keys() != {"type", "events"} or not isinstance(events, list):
        raise MalformedRequestError("a batch has `type` and `events`, and nothing else")
    if not 1 <= len(events) <= EVENT_BATCH_MAX or len(body) > EVENT_BATCH_MAX_BYTES:
        raise MalformedRequestError("a batch has 1 to 64 events in at most 256 KiB")
    readable = list[TracedEvent]()
    for document in events:
        with suppress(MalformedRequestError):
            readable.append(_member_of(batch["type"], document))
    return tuple(readable)


def _member_of(batch_type: object, document: object) -> TracedEvent:
    if not isinstance(document, dict) or document.get("type") != batch_type:
        raise MalformedRequestError("not an event of the batch's type")
    return TracedEvent(_event_of(document), as_text(document.get("traceparent")) or "")


def _event_of(document: Mapping[str, Any]) -> Event:
    model = EVENT_MODELS.get(as_text(document.get("type")) or "")
    if model is None:
        raise MalformedRequestError("unknown type")  # it may be anything, so it is not repeated
    try:
        return model.model_validate(document)  # type: ignore[return-value]  # one of Event
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None


def identity(body: bytes) -> tuple[str, str, str | None] | None:
    """Return the type, the id and the project that a malformed request claims, if readable.

    A request with a readable type and id is answered by a rejection; `project` is as sent, or None.
    Only the signed bytes are read: anyone with write access to the broker can choose the routing
    key, and so make a rejection look like another type's (SPEC 6.3).
    """
    document = readable_fields(body)
    if document is None:
        return None
    message_type = as_text(document.get("type"))
    if message_type is None or message_type not in REQUEST_ID_FIELDS:
        return None
    claimed = as_text(document.get(REQUEST_ID_FIELDS[message_type]))
    if claimed is None or not is_uuid(claimed):
        return None
    project = as_text(document.get("project"))
    return (
        message_type,
        claimed,
        project if project is not None and _is_publishable(project) else None,
    )


def claimed_type(body: bytes) -> str | None:
    """Return the `type` that a request claims, well-formed or not; None if it is unreadable."""
    return as_text((readable_fields(body) or {}).get("type"))


def _is_publishable(text: str) -> bool:
    # Every reader gets the event: it must not carry megabytes of a malformed request.
    if len(text) > _MAX_PROJECT_CHARACTERS:
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return False  # a lone surrogate, which no event can carry
    return True


def rejection(
    message_type: str,
    claimed_id: str,
    project: str | None,
    error: CodedError,
    at: str,
    origin: RequestOrigin,
) -> Rejected:
    """Return the event that rejects a request.

    Args:
        message_type: The request's type.
        claimed_id: The request's id.
        project: The project as sent, or None if it must not be repeated.
        error: The reason; its code and detail become the event's.
        at: The time of the event (SPEC 1).
        origin: The publisher that signed the request, and the digest of its bytes.
    """
    model: Any = EVENT_MODELS[message_type.replace(".requested", ".rejected")]
    fields = {"project": project, "at": at, "code": error.code, "detail": error.detail}
    event: Rejected = model(**{id_field(message_type): claimed_id}, **fields)
    return with_origin(event, origin)
