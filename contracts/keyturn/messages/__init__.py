"""Requests and events as strict, frozen models (SPEC 6). Pure; no I/O.

| module | holds |
| --- | --- |
| `requests` | `UploadRequested` and the four other requests; `Request` |
| `events` | `UploadStored`, `RotationCompleted` and all others; `Event`, `Rejected`, `Failed` |
| `fields` | the types of fields, and `RequestOrigin` |
| `codec` | `encode`, `parse_request`, `parse_event`, and the refusal that answers a request |
| `json_text` | strict JSON |

`parse_request` turns the bytes of a delivery into a request, or raises one clear refusal. Its
errors name fields and rules and never repeat a value: a value may be a secret that was put into
the wrong field.
"""

from keyturn.messages.codec import (
    claimed_type,
    encode,
    id_field,
    identity,
    parse_event,
    parse_request,
    rejection,
    request_id,
    with_origin,
)
from keyturn.messages.events import (
    COUNT_FIELDS,
    EVENT_MODELS,
    CountedEvent,
    DeleteRejected,
    EnrollRejected,
    Event,
    Failed,
    ObjectDeleted,
    ProjectEnrolled,
    Rejected,
    RotationAccepted,
    RotationCompleted,
    RotationFailed,
    RotationRejected,
    SweepCompleted,
    SweepFailed,
    SweepProgressed,
    SweepRejected,
    UploadRejected,
    UploadStored,
)
from keyturn.messages.fields import (
    Base64,
    CallerMetadata,
    ContentType,
    Count,
    Generation,
    Key,
    Project,
    RequestDigest,
    RequestId,
    RequestOrigin,
    ShortName,
    Time,
)
from keyturn.messages.json_text import load_json, problems
from keyturn.messages.requests import (
    INLINE_MAX_BYTES,
    REQUEST_MODELS,
    DeleteRequested,
    EnrollRequested,
    InlineBody,
    Request,
    RotationRequested,
    SealedSecret,
    Staged,
    StagedBody,
    SweepRequested,
    UploadRequested,
)

__all__ = [
    "COUNT_FIELDS",
    "EVENT_MODELS",
    "INLINE_MAX_BYTES",
    "REQUEST_MODELS",
    "Base64",
    "CallerMetadata",
    "ContentType",
    "Count",
    "CountedEvent",
    "DeleteRejected",
    "DeleteRequested",
    "EnrollRejected",
    "EnrollRequested",
    "Event",
    "Failed",
    "Generation",
    "InlineBody",
    "Key",
    "ObjectDeleted",
    "Project",
    "ProjectEnrolled",
    "Rejected",
    "Request",
    "RequestDigest",
    "RequestId",
    "RequestOrigin",
    "RotationAccepted",
    "RotationCompleted",
    "RotationFailed",
    "RotationRejected",
    "RotationRequested",
    "SealedSecret",
    "ShortName",
    "Staged",
    "StagedBody",
    "SweepCompleted",
    "SweepFailed",
    "SweepProgressed",
    "SweepRejected",
    "SweepRequested",
    "Time",
    "UploadRejected",
    "UploadRequested",
    "UploadStored",
    "claimed_type",
    "encode",
    "id_field",
    "identity",
    "load_json",
    "parse_event",
    "parse_request",
    "problems",
    "rejection",
    "request_id",
    "with_origin",
]
