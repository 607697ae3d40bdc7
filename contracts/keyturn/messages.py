"""Requests and events as strict, frozen models (SPEC 6). Pure; no I/O.

`parse_request` turns the bytes of a delivery into a request or one clear refusal. Its
errors name fields and rules and never repeat a value: a value may be a secret that was
put into the wrong field.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar

import orjson
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from keyturn import metadata as object_metadata
from keyturn.crypto import validate_base64
from keyturn.errors import CodedError, MalformedRequestError
from keyturn.identifiers import (
    PROJECT_PATTERN,
    SHORT_NAME_PATTERN,
    TIME_PATTERN,
    UUID_PATTERN,
    check_object_key,
    is_uuid,
    parse_time,
)
from keyturn.topology import REQUEST_ID_FIELDS, REQUESTS

INLINE_MAX_BYTES: Final = 256 * 1024
_CODE_PATTERN: Final = r"^[a-z0-9_]{1,64}$"
_STAGED_MAX_BYTES: Final = 2**53 - 1  # what every JSON implementation can count to
_TOLD_MAX_CHARACTERS: Final = 256
_MAX_PROBLEMS: Final = 3


def _check_time(text: str) -> str:
    parse_time(text)
    return text


def _check_content_type(text: str) -> str:
    _as_value_error(object_metadata.check_content_type, text)
    return text


def _check_caller(caller: dict[str, str]) -> dict[str, str]:
    _as_value_error(object_metadata.encode_caller_metadata, caller)
    return caller


def _as_value_error(check: Callable[[Any], object], value: object) -> None:
    try:
        check(value)
    except MalformedRequestError as exc:
        raise ValueError(exc.detail) from exc


Project = Annotated[str, Field(pattern=PROJECT_PATTERN)]
ShortName = Annotated[str, Field(pattern=SHORT_NAME_PATTERN)]
RequestId = Annotated[str, Field(pattern=UUID_PATTERN)]
Time = Annotated[str, Field(pattern=TIME_PATTERN), AfterValidator(_check_time)]
Key = Annotated[
    str,
    Field(min_length=1, description="1-900 bytes of UTF-8; see SPEC 1 for what it must not hold"),
    AfterValidator(check_object_key),
]
Base64 = Annotated[
    str,
    Field(json_schema_extra={"contentEncoding": "base64"}),
    AfterValidator(validate_base64),
]
ContentType = Annotated[
    str, Field(pattern=r"^[\x20-\x7e]{0,1024}$"), AfterValidator(_check_content_type)
]
CallerMetadata = Annotated[
    dict[Annotated[str, Field(pattern=r"^[a-z0-9-]+$")], str],
    Field(description="At most 1 KiB of names and values on the wire; no name begins with enc-"),
    AfterValidator(_check_caller),
]
RequestDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Generation = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class RequestOrigin:
    """Who signed a request, and which bytes: what its events name (SPEC 6.7).

    `request` is the SHA-256 of the request's body as signed, in 64 hex digits.
    """

    publisher: str
    request: str

    @classmethod
    def of(cls, publisher: str, body: bytes) -> "RequestOrigin":
        """The origin of a request with these bytes."""
        return cls(publisher, hashlib.sha256(body).hexdigest())


class SealedSecret(_Strict):
    """A secret sealed to an intake key: HPKE's `enc ‖ ciphertext` (SPEC 3.2)."""

    intake_key: ShortName
    ciphertext: Base64


class InlineBody(_Strict):
    """A body of at most 256 KiB of plaintext, sealed with the transport key."""

    inline: Base64


class Staged(_Strict):
    """The size in bytes of the sealed body that stands in staging."""

    size: Annotated[int, Field(ge=1, le=_STAGED_MAX_BYTES)]


class StagedBody(_Strict):
    """A body put at `.keyturn/staging/{publisher}/{upload_id}` beforehand."""

    staged: Staged


class _Request(_Strict):
    requested_at: Time

    @property
    def requested_at_instant(self) -> datetime:
        """`requested_at` as an instant in UTC."""
        return parse_time(self.requested_at)


class UploadRequested(_Request):
    """Encrypt this body and store it (SPEC 6.4)."""

    type: Literal["upload.requested"] = "upload.requested"
    upload_id: RequestId
    project: Project
    key: Key
    content_type: ContentType | None = None
    metadata: CallerMetadata | None = None
    sealed_key: SealedSecret
    body: InlineBody | StagedBody


class EnrollRequested(_Request):
    """Give a project its keyring (SPEC 6.5)."""

    type: Literal["enroll.requested"] = "enroll.requested"
    request_id: RequestId
    project: Project
    sealed_kek: SealedSecret
    plaintext: Literal["allowed"] | None = None
    v0: Literal["allowed"] | None = None
    sealed_v0_kek: SealedSecret | None = None
    adopt: bool = False


class RotationRequested(_Request):
    """Turn a project's user KEK (SPEC 6.5)."""

    type: Literal["rotation.requested"] = "rotation.requested"
    rotation_id: RequestId
    project: Project
    expected_generation: Generation | None = None
    sealed_kek: SealedSecret


class SweepRequested(_Request):
    """Bring the objects of one project, or of all, to the desired state (SPEC 6.6)."""

    type: Literal["sweep.requested"] = "sweep.requested"
    sweep_id: RequestId
    project: Project | Literal["*"]
    master_key: ShortName | None = None
    encrypt_plaintext: bool = False
    repair: bool = False
    dry_run: bool = False


class DeleteRequested(_Request):
    """Leave a tombstone in an object's place (SPEC 6.6, 8.7)."""

    type: Literal["delete.requested"] = "delete.requested"
    request_id: RequestId
    project: Project
    key: Key


Request = UploadRequested | EnrollRequested | RotationRequested | SweepRequested | DeleteRequested
REQUEST_MODELS: Final[dict[str, type[_Request]]] = {
    "upload.requested": UploadRequested,
    "enroll.requested": EnrollRequested,
    "rotation.requested": RotationRequested,
    "sweep.requested": SweepRequested,
    "delete.requested": DeleteRequested,
}


class _Event(BaseModel):
    # Readers ignore fields that they do not know (SPEC 6.7).
    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", hide_input_in_errors=True)

    at: Time
    # The request's origin; absent where no request began it, and from workers before 0.5.
    publisher: ShortName | None = None
    request: RequestDigest | None = None

    @property
    def origin(self) -> RequestOrigin | None:
        """Who signed the request that this event belongs to, and which bytes."""
        if self.publisher is None or self.request is None:
            return None
        return RequestOrigin(self.publisher, self.request)


class _Rejected(_Event):
    # As sent: what was refused may not even have a well-formed project.
    project: str | None
    code: Annotated[str, Field(pattern=_CODE_PATTERN)]
    detail: str


class _Failed(_Event):
    project: Project | Literal["*"]
    code: Annotated[str, Field(pattern=_CODE_PATTERN)]
    detail: str


class _Completed(_Event):
    # What the proof rests on: whether this storage refuses writes after their lease (SPEC 8.4).
    late_writes_refused: bool | None = None


class CountedEvent(_Event):
    """An event of a sweep, with the counts of SPEC 8.6.

    `objects` counts all keys of the last look but `foreign`; `rewrapped` and `encrypted` add
    up over the whole sweep; the others are of the last look. `clean` is the verdict at the end;
    in progress nothing is proven yet, and it is false.
    """

    objects: Count
    rewrapped: Count
    current: Count
    plaintext: Count
    encrypted: Count
    deleted: Count
    foreign: Count
    failed: Count
    noncurrent_stale: Count
    clean: bool


COUNT_FIELDS: Final = tuple(name for name in CountedEvent.__annotations__ if name != "clean")
"""The counts of SPEC 8.6, in its order."""


class ProjectEnrolled(_Event):
    """The project's keyring stands."""

    type: Literal["project.enrolled"] = "project.enrolled"
    request_id: RequestId
    project: Project
    generation: Generation


class EnrollRejected(_Rejected):
    """The enrolment was refused."""

    type: Literal["enroll.rejected"] = "enroll.rejected"
    request_id: RequestId


class UploadStored(_Event):
    """The object stands, under wraps of this generation; `size` is in bytes of plaintext."""

    type: Literal["upload.stored"] = "upload.stored"
    upload_id: RequestId
    project: Project
    key: Key
    size: Count
    generation: Generation


class UploadRejected(_Rejected):
    """The upload was refused."""

    type: Literal["upload.rejected"] = "upload.rejected"
    upload_id: RequestId


class RotationAccepted(_Event):
    """The keyring has turned to this generation; the sweep begins (SPEC 8.1)."""

    type: Literal["rotation.accepted"] = "rotation.accepted"
    rotation_id: RequestId
    project: Project
    generation: Generation


class RotationFailed(_Failed):
    """The rotation was accepted, and its sweep cannot end; an operator must look (SPEC 6.7)."""

    type: Literal["rotation.failed"] = "rotation.failed"
    rotation_id: RequestId


class RotationCompleted(CountedEvent, _Completed):
    """The rotation's sweep has ended (SPEC 8.1); only `clean` says that no old wrap is left."""

    type: Literal["rotation.completed"] = "rotation.completed"
    rotation_id: RequestId
    project: Project


class RotationRejected(_Rejected):
    """The rotation was refused."""

    type: Literal["rotation.rejected"] = "rotation.rejected"
    rotation_id: RequestId


class SweepProgressed(CountedEvent):
    """How far a sweep of one project is; a rotation's has its `rotation_id` as `sweep_id`."""

    type: Literal["sweep.progressed"] = "sweep.progressed"
    sweep_id: RequestId
    project: Project


class SweepFailed(_Failed):
    """The sweep was begun and cannot end; an operator must look (SPEC 6.7)."""

    type: Literal["sweep.failed"] = "sweep.failed"
    sweep_id: RequestId


class SweepCompleted(CountedEvent, _Completed):
    """The sweep of one project, or with `*` of all, has ended; then the counts are sums."""

    type: Literal["sweep.completed"] = "sweep.completed"
    sweep_id: RequestId
    project: Project | Literal["*"]


class SweepRejected(_Rejected):
    """The sweep was refused."""

    type: Literal["sweep.rejected"] = "sweep.rejected"
    sweep_id: RequestId


class ObjectDeleted(_Event):
    """A tombstone stands in the object's place (SPEC 8.7)."""

    type: Literal["object.deleted"] = "object.deleted"
    request_id: RequestId
    project: Project
    key: Key


class DeleteRejected(_Rejected):
    """The delete was refused."""

    type: Literal["delete.rejected"] = "delete.rejected"
    request_id: RequestId


Event = (
    ProjectEnrolled
    | EnrollRejected
    | UploadStored
    | UploadRejected
    | RotationAccepted
    | RotationRejected
    | RotationCompleted
    | RotationFailed
    | SweepProgressed
    | SweepCompleted
    | SweepFailed
    | SweepRejected
    | ObjectDeleted
    | DeleteRejected
)
Failed = RotationFailed | SweepFailed
Rejected = EnrollRejected | UploadRejected | RotationRejected | SweepRejected | DeleteRejected
EVENT_MODELS: Final[dict[str, type[_Event]]] = {
    "project.enrolled": ProjectEnrolled,
    "enroll.rejected": EnrollRejected,
    "upload.stored": UploadStored,
    "upload.rejected": UploadRejected,
    "rotation.accepted": RotationAccepted,
    "rotation.rejected": RotationRejected,
    "rotation.completed": RotationCompleted,
    "rotation.failed": RotationFailed,
    "sweep.progressed": SweepProgressed,
    "sweep.completed": SweepCompleted,
    "sweep.failed": SweepFailed,
    "sweep.rejected": SweepRejected,
    "object.deleted": ObjectDeleted,
    "delete.rejected": DeleteRejected,
}
_EVENT_ADAPTER: Final[TypeAdapter[Event]] = TypeAdapter(
    Annotated[Event, Field(discriminator="type")]
)


def id_field(message_type: str) -> str:
    """The field that holds the request's id, in a request or an event of this type."""
    if message_type in REQUEST_ID_FIELDS:
        return REQUEST_ID_FIELDS[message_type]
    return next(name for name in EVENT_MODELS[message_type].model_fields if name in _ID_FIELDS)


_ID_FIELDS: Final = frozenset(REQUEST_ID_FIELDS.values())


def request_id(message: Request | Event) -> str:
    """The id of a request, or of the request that an event answers."""
    value: str = getattr(message, id_field(message.type))
    return value


_EventT = TypeVar("_EventT", bound=_Event)


def with_origin(event: _EventT, origin: RequestOrigin | None) -> _EventT:
    """The event as the answer to the request of this origin."""
    if origin is None:
        return event
    return event.model_copy(update={"publisher": origin.publisher, "request": origin.request})


def encode(message: Request | Event) -> bytes:
    """The bytes that are signed and sent. Optional fields that are not set are left out."""
    document = message.model_dump(mode="json", exclude_none=True)
    if isinstance(message, _Rejected):
        document["project"] = message.project  # it may be null on purpose
    return orjson.dumps(document)


def parse_request(body: bytes) -> Request:
    """The request that these bytes are.

    Raises:
        MalformedRequestError: names the fields and rules that fail, never a value.
    """
    document = load_json(body)
    model = REQUEST_MODELS.get(_text(document.get("type")) or "")
    if model is None:
        raise MalformedRequestError(f"type must be one of {', '.join(REQUESTS)}")
    try:
        return model.model_validate(document)  # type: ignore[return-value]  # one of Request
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None  # the cause repeats values


def parse_event(body: bytes) -> Event:
    """The event that these bytes are.

    Raises:
        MalformedRequestError: not an event that this version knows.
    """
    try:
        return _EVENT_ADAPTER.validate_python(load_json(body))
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None


def identity(body: bytes) -> tuple[str, str, str | None] | None:
    """The type, the id and the project that a refused request claims, where all can be read.

    A refusal answers a request whose type and id can be read; `project` is as sent. Nothing
    but the signed bytes is read: by a routing key, which anybody who may write to the broker
    chooses, a refusal could be published as another type's (SPEC 6.3).
    """
    document = _readable(body)
    if document is None:
        return None
    message_type = _text(document.get("type"))
    if message_type is None or message_type not in REQUEST_ID_FIELDS:
        return None
    claimed = _text(document.get(REQUEST_ID_FIELDS[message_type]))
    if claimed is None or not is_uuid(claimed):
        return None
    project = _text(document.get("project"))
    return message_type, claimed, project if project is not None and _is_tellable(project) else None


def claimed_type(body: bytes) -> str | None:
    """The `type` that a request claims, well-formed or not; None where none can be read."""
    return _text((_readable(body) or {}).get("type"))


def _readable(body: bytes) -> dict[str, Any] | None:
    """The names of a JSON object that stand in it once, whatever else is wrong with it."""
    try:
        # No field that is read here is a number, and one of thousands of digits does not convert.
        document = json.loads(
            body.decode(), object_pairs_hook=_unambiguous, parse_int=_unread, parse_float=_unread
        )
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A name that stands twice cannot be read.
    names = Counter(name for name, _ in pairs)
    return {name: value for name, value in pairs if names[name] == 1}


def _unread(number: str) -> None:
    del number


def _is_tellable(text: str) -> bool:
    # An event goes to every reader: it carries no megabytes of somebody's mistake.
    if len(text) > _TOLD_MAX_CHARACTERS:
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
    origin: RequestOrigin | None = None,
) -> Rejected:
    """The event that answers a request with a refusal; `origin` is the request's."""
    model: Any = EVENT_MODELS[message_type.replace(".requested", ".rejected")]
    fields = {"project": project, "at": at, "code": error.code, "detail": error.detail}
    event: Rejected = model(**{id_field(message_type): claimed_id}, **fields)
    return with_origin(event, origin)


def load_json(body: bytes) -> dict[str, Any]:
    """One JSON object, as strict as SPEC's opening asks: UTF-8, no name twice, no NaN.

    Raises:
        MalformedRequestError: anything else.
    """
    try:
        document = json.loads(
            body.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as exc:
        reason = str(exc) if isinstance(exc, _JsonError) else "the body is not a JSON object"
        raise MalformedRequestError(reason) from None  # the cause repeats the body
    if not isinstance(document, dict):
        raise MalformedRequestError("the body is not a JSON object")
    return document


class _JsonError(ValueError):
    """A rule of ours that JSON itself does not have."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _JsonError("a name stands twice in one object")
    for pair in pairs:
        for text in pair:
            if isinstance(text, str) and not text.isascii():
                text.encode()  # a lone surrogate is no text: it raises a ValueError
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise _JsonError(f"{name} is not JSON")


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def problems(error: ValidationError) -> str:
    """The fields and rules that fail, in one line and without a value."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    told = [
        f"{_path(problem['loc'])}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in found[:_MAX_PROBLEMS]
    ]
    more = len(found) - len(told)
    return "; ".join(told) + (f"; and {more} more" if more else "")


def _path(loc: tuple[int | str, ...]) -> str:
    # A name of the sender's own (a metadata name, an unknown field) is cut short.
    return ".".join(ascii(str(part))[1:-1][:40] for part in loc)
