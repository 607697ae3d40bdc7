"""Requests, as publishers send them and workers check them (SPEC 6.3 to 6.6, 15.3). Pure."""

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from keyturn.identifiers import ALL_PROJECTS, parse_time
from keyturn.messages.fields import (
    Actor,
    Base64,
    CallerMetadata,
    Code,
    ContentType,
    Count,
    DeadLetterQueue,
    DeadLettersAction,
    DeletedKeys,
    Generation,
    Key,
    Project,
    Reason,
    RequestDigest,
    RequestId,
    ShortName,
    StoreKey,
    StrictModel,
    Time,
)
from keyturn.messages.status import (
    ALL_ONLY_VIEWS,
    STATUS_FILTERS,
    STATUS_LIMIT,
    STATUS_MAX_LIMIT,
    STATUS_ORDERS,
    STATUS_STATES,
    Cursor,
    StatusFilter,
    StatusView,
)
from keyturn.upload_ids import source_upload_id

INLINE_MAX_BYTES: Final = 256 * 1024
"""Plaintext bytes above which a body is staged in the bucket."""
NAMED_LETTERS: Final = 500
"""The maximum of single dead letters in a request. By code, it moves any number."""
UNKNOWN_CODE: Final = "unknown"
"""The code for dead letters without a valid code."""
_STAGED_MAX_BYTES: Final = 2**53 - 1  # the largest integer of every JSON implementation
_S3_KEY_MAX_BYTES: Final = 1024
# Values that a header can carry back to the source.
_ETAG_PATTERN: Final = r"^[\x21\x23-\x7e]{1,256}$"
_VERSION_PATTERN: Final = r"^[\x21-\x7e]{1,1024}$"


def _s3_key(text: str) -> str:
    if len(text.encode("utf-8", "replace")) > _S3_KEY_MAX_BYTES or "\0" in text:
        raise ValueError(f"an S3 key has at most {_S3_KEY_MAX_BYTES} bytes, and no zero byte")
    return text


class SealedSecret(StrictModel):
    """A secret sealed to an intake key: HPKE's `enc ‖ ciphertext` (SPEC 3.2)."""

    intake_key: ShortName
    ciphertext: Base64


class SealedKey(SealedSecret):
    """An upload's transport key: sealed to the intake key, or under a session (SPEC 3.2).

    `session` is the session's secret as sealed to the intake key, HPKE's `enc ‖ ciphertext`;
    `ciphertext` is then the transport key sealed under that secret.
    """

    session: Base64 | None = None


class InlineBody(StrictModel):
    """A body of at most 256 KiB of plaintext, sealed with the transport key."""

    inline: Base64


class Staged(StrictModel):
    """The size in bytes of the sealed body in staging."""

    size: Annotated[int, Field(ge=1, le=_STAGED_MAX_BYTES)]


class StagedBody(StrictModel):
    """A body stored at `.keyturn/staging/{publisher}/{upload_id}` beforehand."""

    staged: Staged


class SourceObject(StrictModel):
    """An object in the bucket of a source, as a HEAD describes it (SPEC 17).

    Attributes:
        name: The source's name.
        key: The S3 key in its bucket, prefix included.
        etag: Without quotes.
        version: The version's id; none if the bucket keeps no versions.
        size: In bytes.
    """

    name: ShortName
    key: Annotated[str, Field(min_length=1, max_length=_S3_KEY_MAX_BYTES), AfterValidator(_s3_key)]
    etag: Annotated[str, Field(pattern=_ETAG_PATTERN)]
    version: Annotated[str, Field(pattern=_VERSION_PATTERN)] | None = None
    size: Annotated[int, Field(ge=0, le=_STAGED_MAX_BYTES)]

    def upload_id(self, deployment: str) -> str:
        """Return the id of this object's upload (SPEC 17.2)."""
        return source_upload_id(deployment, self.name, self.key, self.etag, self.version or "")


class SourceBody(StrictModel):
    """The body is an object of a source, which the worker reads there."""

    source: SourceObject


class RequestModel(StrictModel):
    """The common fields of all requests."""

    requested_at: Time

    @property
    def requested_at_instant(self) -> datetime:
        """`requested_at` as an instant in UTC."""
        return parse_time(self.requested_at)

    @property
    def leaves_letter(self) -> bool:
        """Whether a refusal leaves a dead letter (SPEC 6.9)."""
        return True


class ControlRequestModel(RequestModel):
    """The common fields of requests to the control workers.

    `actor` is the person for whom the publisher asks, by the publisher's claim (SPEC 15.3).
    """

    actor: Actor | None = None


class UploadRequested(RequestModel):
    """Encrypt this body and store it (SPEC 6.4).

    `sealed_key` opens an inline or a staged body. The body of a source is not sealed and has none.
    With `letter: false`, only for the body of a source, a refusal leaves no dead letter: the object
    is still in the source, and its publisher keeps account of the refusal.
    """

    type: Literal["upload.requested"] = "upload.requested"
    upload_id: RequestId
    project: Project
    key: Key
    content_type: ContentType | None = None
    metadata: CallerMetadata | None = None
    sealed_key: SealedKey | None = None
    letter: Literal[False] | None = None
    body: InlineBody | StagedBody | SourceBody

    @property
    def leaves_letter(self) -> bool:
        """False if its publisher wants none: the body is still in the source."""
        return self.letter is None

    @model_validator(mode="after")
    def _check_letter(self) -> Self:
        if self.letter is False and not isinstance(self.body, SourceBody):
            raise ValueError("letter: false is only allowed with the body of a source")
        return self

    @model_validator(mode="after")
    def _check_sealed_key(self) -> Self:
        if isinstance(self.body, SourceBody):
            if self.sealed_key is not None:
                raise ValueError("sealed_key: not allowed with the body of a source")
        elif self.sealed_key is None:
            raise ValueError("sealed_key: required with an inline or a staged body")
        return self


class RequestedCustomerKey(StrictModel):
    """The customer key that a project shall have (SPEC 2.6): a key in a store of the settings."""

    store: ShortName
    key: StoreKey


class EnrollRequested(ControlRequestModel):
    """Give a project its keyring (SPEC 6.5)."""

    type: Literal["enroll.requested"] = "enroll.requested"
    request_id: RequestId
    project: Project
    sealed_kek: SealedSecret
    plaintext: Literal["allowed"] | None = None
    adopt: bool = False
    customer_key: RequestedCustomerKey | None = None

    @model_validator(mode="after")
    def _check_plaintext(self) -> Self:
        if self.customer_key is not None and self.plaintext is not None:
            raise ValueError("a project with a customer_key cannot allow plaintext")
        return self


class RotationRequested(ControlRequestModel):
    """Replace a project's user KEK, give it a customer key with a new secret, or both (SPEC 6.5).

    The new generation keeps from the one before what the request does not have.
    """

    type: Literal["rotation.requested"] = "rotation.requested"
    rotation_id: RequestId
    project: Project
    expected_generation: Generation | None = None
    sealed_kek: SealedSecret | None = None
    customer_key: RequestedCustomerKey | None = None

    @model_validator(mode="after")
    def _check_change(self) -> Self:
        if self.sealed_kek is None and self.customer_key is None:
            raise ValueError("sealed_kek or customer_key is required")
        return self


class SweepRequested(ControlRequestModel):
    """Bring the objects of one project, or of all, to the desired state (SPEC 6.6)."""

    type: Literal["sweep.requested"] = "sweep.requested"
    sweep_id: RequestId
    project: Project | Literal["*"]
    master_key: ShortName | None = None
    encrypt_plaintext: bool = False
    repair: bool = False


class DeleteRequested(ControlRequestModel):
    """Replace one object, or up to 1,000, by tombstones (SPEC 6.6, 8.7).

    Attributes:
        key: The object.
        keys: Or several, each of which gets its own outcome; no key occurs twice.
    """

    type: Literal["delete.requested"] = "delete.requested"
    request_id: RequestId
    project: Project
    key: Key | None = None
    keys: DeletedKeys | None = None

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        if (self.key is None) == (self.keys is None):
            raise ValueError("either key or keys is required, not both")
        return self

    @property
    def object_keys(self) -> tuple[str, ...]:
        """The objects to delete."""
        return self.keys or ((self.key,) if self.key is not None else ())


class StatusRequested(ControlRequestModel):
    """Report one page of what the records and the objects say (SPEC 16.1).

    Attributes:
        project: One project, or `*` for all, which needs the grant for all.
        view: What to report.
        sweep_id: For `sweep` and `failures`.
        filter: Which rows; the view decides which fields it may have.
        order: A column of the view, descending with a leading `-`; ties are ordered by name.
        page: Which page, from 1.
        limit: At most so many rows; for `objects`, so many S3 keys are inspected.
        after: Where a page of `objects` begins: `next` of the page before.
    """

    type: Literal["status.requested"] = "status.requested"
    request_id: RequestId
    project: Project | Literal["*"]
    view: StatusView
    sweep_id: RequestId | None = None
    filter: StatusFilter | None = None
    order: Annotated[str, Field(max_length=64)] | None = None
    page: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    limit: Annotated[int, Field(ge=1, le=STATUS_MAX_LIMIT)] = STATUS_LIMIT
    after: Cursor | None = None

    @model_validator(mode="after")
    def _check_sweep(self) -> Self:
        if (self.view in ("sweep", "failures")) != (self.sweep_id is not None):
            raise ValueError(
                "the views sweep and failures need a sweep_id, and no other view has one"
            )
        if self.view == "evidence" and self.project == ALL_PROJECTS:
            raise ValueError("the view evidence needs one project")
        if self.view in ALL_ONLY_VIEWS and self.project != ALL_PROJECTS:
            raise ValueError(f"the view {self.view} covers all projects")
        if self.after is not None and self.view != "objects":
            raise ValueError("only the view objects accepts after")
        return self

    @model_validator(mode="after")
    def _check_query(self) -> Self:
        allowed = set(STATUS_FILTERS.get(self.view, ()))
        chosen = StatusFilter() if self.filter is None else self.filter
        unknown = sorted(chosen.model_dump(exclude_none=True).keys() - allowed)
        if unknown:
            raise ValueError(f"the view {self.view} has no filter {', '.join(unknown)}")
        if chosen.state is not None and chosen.state not in STATUS_STATES[self.view]:
            raise ValueError(f"state must be one of {', '.join(STATUS_STATES[self.view])}")
        orders = STATUS_ORDERS.get(self.view, ())
        if self.order is not None and self.order.removeprefix("-") not in orders:
            raise ValueError(f"order must be one of {', '.join(orders) or 'none'}")
        return self


class DeadLettersRequested(ControlRequestModel):
    """Replay or discard dead letters of one queue (SPEC 6.9, 16.1).

    It concerns letters that died before `requested_at`: one that is replayed and dies again is not
    replayed when the request is redelivered.

    Attributes:
        project: `*`: dead letters belong to no project.
        actor: The person, whom the audit trail names.
        queue: The dead-letter queue.
        code: All letters with this code; `unknown` for those without one.
        letters: Or single letters: the hex SHA-256 of their bodies.
        reason: Why, in the words of the person.
    """

    type: Literal["dead_letters.requested"] = "dead_letters.requested"
    request_id: RequestId
    project: Literal["*"]
    actor: Actor
    action: DeadLettersAction
    queue: DeadLetterQueue
    code: Code | None = None
    letters: (
        Annotated[
            tuple[RequestDigest, ...],
            Field(strict=False, min_length=1, max_length=NAMED_LETTERS),
        ]
        | None
    ) = None
    reason: Reason | None = None

    @model_validator(mode="after")
    def _check_selection(self) -> Self:
        if (self.code is None) == (self.letters is None):
            raise ValueError("either code or letters is required, not both")
        return self


class RecoverRequested(ControlRequestModel):
    """Accept a keyring that a mark contradicts, or that has none, as it is now (SPEC 5.5, 6.6).

    It names both halves of what the operator was shown, so that it changes nothing else.

    Attributes:
        reason: Why, in the words of the person.
        serial: That of the project's highest mark; none if there is no mark.
        mark: Hex digest that this mark names.
        digest: Hex SHA-256 of the keyring's record as found.
    """

    type: Literal["recover.requested"] = "recover.requested"
    request_id: RequestId
    project: Project
    reason: Reason
    serial: Count | None = None
    mark: RequestDigest | None = None
    digest: RequestDigest

    @model_validator(mode="after")
    def _check_mark(self) -> Self:
        if (self.serial is None) != (self.mark is None):
            raise ValueError("serial and mark must be given together")
        return self


class EraseRequested(ControlRequestModel):
    """Erase a project: record for ever that nobody gets its customer secrets (SPEC 6.6, 8.8).

    Attributes:
        reason: Why, in the words of the person.
    """

    type: Literal["erase.requested"] = "erase.requested"
    request_id: RequestId
    project: Project
    reason: Reason


Request = (
    UploadRequested
    | EnrollRequested
    | RotationRequested
    | SweepRequested
    | DeleteRequested
    | StatusRequested
    | DeadLettersRequested
    | RecoverRequested
    | EraseRequested
)
REQUEST_MODELS: Final[dict[str, type[RequestModel]]] = {
    "upload.requested": UploadRequested,
    "enroll.requested": EnrollRequested,
    "rotation.requested": RotationRequested,
    "sweep.requested": SweepRequested,
    "delete.requested": DeleteRequested,
    "status.requested": StatusRequested,
    "dead_letters.requested": DeadLettersRequested,
    "recover.requested": RecoverRequested,
    "erase.requested": EraseRequested,
}
