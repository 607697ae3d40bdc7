"""Records of the audit trail, as processes sign and publish them (SPEC 15.3). Pure.

Each process numbers its records from 1, and each record holds the SHA-256 of the one before.
`keyturn.audit` finds missing, changed and moved records.

A record says who did what, when and why. It must never hold a key, a plaintext, a body, or a
credential: its fields are ids, names, digests and one line written by a person.
"""

import hashlib
from typing import Annotated, Final, Literal, Self

import orjson
from pydantic import Field, ValidationError, model_validator

from keyturn.errors import MalformedRequestError
from keyturn.messages.fields import (
    Actor,
    Code,
    Count,
    EventModel,
    Generation,
    Key,
    Project,
    QueueName,
    Reason,
    RequestDigest,
    RequestId,
    Rows,
    ShortName,
)
from keyturn.messages.json_text import load_json, problems
from keyturn.topology import AUDIT_RECORDED

AuditAction = Literal[
    "request.served",
    "request.refused",
    "kek.derived",
    "object.opened_as_operator",
    "dead_letter.replayed",
    "dead_letter.discarded",
    "project_kek.exported",
    "master_key.imported",
]
"""The actions that a record can be about."""

DONE: Final = "done"
"""The outcome of an act that precedes its record: a worker records before it acknowledges."""

STARTED: Final = "started"
"""The outcome of an act that follows its record: a command that dies is not repeated."""


class AuditLink(EventModel):
    """The link of a record to its chain: all that a reader needs to check it.

    Attributes:
        process: The id of one run of one process.
        counter: The number of the record among those of the process, from 1.
        previous: Hex SHA-256 of the body of the record before; None for the first.
    """

    type: Literal["audit.recorded"] = "audit.recorded"
    process: RequestId
    counter: Annotated[int, Field(ge=1)]
    previous: RequestDigest | None

    @model_validator(mode="after")
    def _check_first(self) -> Self:
        if (self.counter == 1) != (self.previous is None):
            raise ValueError("previous is null in the first record, and in no other")
        return self


class AuditRecorded(AuditLink):
    """One use of the operator's key or powers.

    Attributes:
        audit_id: The id of the record.
        role: What the process is, such as `worker control` or `download`.
        host: The machine's name.
        action: What was done.
        actor: Who did it: `user@host` of a command; of a request the person whom it names, by
            the word of its `publisher`, otherwise the publisher itself.
        publisher: Who signed the request, if there was one; of a dead letter the console that
            requested the record.
        request: Hex SHA-256 of the request's body as signed; of a dead letter its body's.
        request_type: The request's type.
        request_id: The request's id.
        project: The project; `*` for all; None where there is none, or none can be read.
        object_key: The object, below its project.
        object_count: Of a request for several objects, how many.
        first_object: If several records name them: which of them, from 1, is this record's first.
        object_keys: Which; at most 16 KiB of UTF-8.
        generation: Of a rotation that was served: the project's new one.
        queue: The dead-letter queue.
        master_key: The id of the master key that was used.
        kind: Which key was derived, such as `admin` or `record`.
        provider: What holds the master key.
        provider_request_id: The provider's own id of the call, to find it in the provider's log.
        outcome: `done`, `started`, or the code of the error.
        reason: Why, in the words of the person.
    """

    audit_id: RequestId
    role: Annotated[str, Field(pattern=r"^[a-z][a-z0-9 -]{0,63}$")]
    host: Actor
    action: AuditAction
    actor: Actor
    request_type: Annotated[str, Field(pattern=r"^[a-z_]{1,32}\.requested$")] | None = None
    request_id: RequestId | None = None
    project: Project | Literal["*"] | None = None
    object_key: Key | None = None
    object_count: Count | None = None
    first_object: Annotated[int, Field(ge=1)] | None = None
    object_keys: Rows[Key] | None = None
    generation: Generation | None = None
    queue: QueueName | None = None
    master_key: ShortName | None = None
    kind: ShortName | None = None
    provider: ShortName | None = None
    provider_request_id: Actor | None = None
    outcome: Code
    reason: Reason | None = None


AUDIT_MODELS: Final[dict[str, type[AuditRecorded]]] = {AUDIT_RECORDED: AuditRecorded}


def body_digest(body: bytes) -> str:
    """Return the digest by which the next record names this one."""
    return hashlib.sha256(body).hexdigest()


def encode_audit(record: AuditRecorded) -> bytes:
    """Return the bytes to sign and publish, without unset fields."""
    document = record.model_dump(mode="json", exclude_none=True)
    return orjson.dumps(document | {"previous": record.previous})


def parse_audit_link(body: bytes) -> AuditLink:
    """Parse a record's link to its chain, also if a later version knows more actions.

    Raises:
        MalformedRequestError: not a record of an audit trail.
    """
    document = load_json(body)
    if document.get("type") != AUDIT_RECORDED:
        raise MalformedRequestError(f"type must be {AUDIT_RECORDED}")
    try:
        return AuditLink.model_validate(document)
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None  # the cause repeats values


def parse_audit(body: bytes) -> AuditRecorded:
    """Parse a whole record. Unknown fields are ignored (SPEC 6.7).

    Raises:
        MalformedRequestError: not a record that this version knows.
    """
    try:
        return AuditRecorded.model_validate(load_json(body))
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None
