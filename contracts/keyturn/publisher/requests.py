"""Building requests: checked, sealed, signed (SPEC 6.3 to 6.6, 16.1). Pure but for random bytes.

Names and metadata are checked by the same models as in the workers, before a secret is
derived or a byte of a body is read.
It must never put a secret or a value into an error.
"""

import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from pydantic import BaseModel, SecretStr, ValidationError

from keyturn.crypto import (
    KekPurpose,
    Secret,
    kek_info,
    transport_context,
    upload_info,
    user_kek,
    v0_user_kek,
)
from keyturn.crypto import to_base64 as to_b64
from keyturn.errors import MalformedRequestError
from keyturn.identifiers import ALL_PROJECTS, format_time
from keyturn.messages import (
    AuditedLetter,
    AuditRequested,
    DeadLetterAction,
    DeadLettersAction,
    DeadLettersRequested,
    DeleteRequested,
    EnrollRequested,
    InlineBody,
    RecoverRequested,
    Request,
    RotationRequested,
    SealedSecret,
    StagedBody,
    StatusFilter,
    StatusRequested,
    StatusView,
    SweepRequested,
    UploadRequested,
    encode,
    problems,
    request_id,
)
from keyturn.settings import PublisherSettings
from keyturn.topology import PUBLISHER_HEADER, SIGNATURE_HEADER

TRANSPORT_KEY_BYTES: Final = 32
ApiKey = str | SecretStr
_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request ready to be sent. The same bytes sent twice get the same answer."""

    request_id: str
    type: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UploadDraft:
    """An upload whose names are checked; only its body is missing."""

    request: UploadRequested
    transport_key: Secret

    @property
    def context(self) -> bytes:
        """The context under which the body is sealed in transit (SPEC 6.4)."""
        return transport_context(self.request.upload_id)

    def with_body(self, body: InlineBody | StagedBody) -> UploadRequested:
        """The whole request."""
        return self.request.model_copy(update={"body": body})


def new_id() -> str:
    """A fresh id for a request."""
    return str(uuid.uuid4())


def sign(settings: PublisherSettings, request: Request) -> SignedRequest:
    """Encode a request and sign its bytes (SPEC 6.3)."""
    body = encode(request)
    publisher = settings.publisher_name
    signature = settings.publisher_key.sign_request(settings.deployment, publisher, body)
    headers = {PUBLISHER_HEADER: publisher, SIGNATURE_HEADER: signature}
    return SignedRequest(request_id(request), request.type, body, headers)


def signed_now(request: UploadRequested) -> UploadRequested:
    """The same upload as a new attempt: `sign` gives it other bytes, and so its own answer."""
    return request.model_copy(update={"requested_at": format_time(datetime.now(UTC))})


def draft_upload(
    settings: PublisherSettings,
    project: str,
    object_key: str,
    *,
    content_type: str | None,
    metadata: Mapping[str, str] | None,
    upload_id: str,
) -> UploadDraft:
    """An upload with a fresh transport key sealed to the workers.

    Raises:
        MalformedRequestError: a name, the content type or the metadata is not allowed.
    """
    checked = _checked(
        UploadRequested,
        upload_id=upload_id,
        project=project,
        key=object_key,
        requested_at=format_time(datetime.now(UTC)),
        content_type=content_type,
        metadata=dict(metadata) if metadata else None,
        sealed_key=_placeholder(settings),
        body=InlineBody(inline=""),
    )
    transport_key = Secret(os.urandom(TRANSPORT_KEY_BYTES))
    sealed = _seal(settings, transport_key, upload_info(upload_id, project, object_key))
    return UploadDraft(checked.model_copy(update={"sealed_key": sealed}), transport_key)


def build_enroll(
    settings: PublisherSettings,
    project: str,
    *,
    api_key: ApiKey,
    plaintext: bool,
    v0: bool,
    v0_api_key: ApiKey | None,
    adopt: bool,
    actor: str | None = None,
    request_id: str,
) -> EnrollRequested:
    """An enrollment. The user KEK is derived here, and leaves only sealed to the workers.

    Raises:
        MalformedRequestError: a name or an API key does not have the form of SPEC 1.
    """
    checked = _checked(
        EnrollRequested,
        request_id=request_id,
        project=project,
        requested_at=format_time(datetime.now(UTC)),
        sealed_kek=_placeholder(settings),
        plaintext="allowed" if plaintext else None,
        v0="allowed" if v0 or v0_api_key is not None else None,
        adopt=adopt,
        actor=actor,
    )

    update = {"sealed_kek": _sealed_kek(settings, api_key, "enroll", request_id, project)}
    if v0_api_key is not None:
        update["sealed_v0_kek"] = _sealed_kek(settings, v0_api_key, "v0", request_id, project)
    return checked.model_copy(update=update)


def build_rotation(
    settings: PublisherSettings,
    project: str,
    *,
    api_key: ApiKey,
    expected_generation: int | None,
    actor: str | None = None,
    rotation_id: str,
) -> RotationRequested:
    """A rotation to the KEK of a new API key, derived and sealed as in an enrollment.

    Raises:
        MalformedRequestError: a name or the API key does not have the form of SPEC 1.
    """
    checked = _checked(
        RotationRequested,
        rotation_id=rotation_id,
        project=project,
        requested_at=format_time(datetime.now(UTC)),
        expected_generation=expected_generation,
        sealed_kek=_placeholder(settings),
        actor=actor,
    )
    sealed = _sealed_kek(settings, api_key, "rotation", rotation_id, project)
    return checked.model_copy(update={"sealed_kek": sealed})


def build_sweep(
    project: str,
    *,
    master_key: str | None,
    encrypt_plaintext: bool,
    repair: bool,
    actor: str | None = None,
    sweep_id: str,
) -> SweepRequested:
    """A sweep of one project, or of all (`*`).

    Raises:
        MalformedRequestError: a name does not have the form of SPEC 1.
    """
    return _checked(
        SweepRequested,
        sweep_id=sweep_id,
        project=project,
        requested_at=format_time(datetime.now(UTC)),
        master_key=master_key,
        encrypt_plaintext=encrypt_plaintext,
        repair=repair,
        actor=actor,
    )


def build_delete(
    project: str, object_key: str, *, actor: str | None = None, request_id: str
) -> DeleteRequested:
    """A delete of one object.

    Raises:
        MalformedRequestError: a name does not have the form of SPEC 1.
    """
    return _checked(
        DeleteRequested,
        request_id=request_id,
        project=project,
        key=object_key,
        requested_at=format_time(datetime.now(UTC)),
        actor=actor,
    )


def build_status(
    view: StatusView,
    project: str,
    *,
    sweep_id: str | None,
    filter: StatusFilter | None,  # noqa: A002 - as the message names it
    order: str | None,
    page: int | None,
    limit: int,
    after: str | None,
    known: str | None,
    actor: str | None,
    request_id: str,
) -> StatusRequested:
    """A request for one page of a report.

    Raises:
        MalformedRequestError: a name does not have the form of SPEC 1, or the view needs others.
    """
    return _checked(
        StatusRequested,
        request_id=request_id,
        project=project,
        requested_at=format_time(datetime.now(UTC)),
        view=view,
        sweep_id=sweep_id,
        filter=filter,
        order=order,
        page=page,
        limit=limit,
        after=after,
        known=known,
        actor=actor,
    )


def build_audit(
    action: DeadLetterAction,
    queue: str,
    letters: Sequence[AuditedLetter],
    *,
    actor: str,
    outcome: str,
    reason: str | None,
    request_id: str,
) -> AuditRequested:
    """A request to record what a person does to dead letters.

    Raises:
        MalformedRequestError: no letters or too many, or a name, outcome or reason that a record
            cannot hold.
    """
    return _checked(
        AuditRequested,
        request_id=request_id,
        project=ALL_PROJECTS,
        requested_at=format_time(datetime.now(UTC)),
        action=action,
        queue=queue,
        letters=tuple(letters),
        outcome=outcome,
        reason=reason,
        actor=actor,
    )


def build_dead_letters(
    action: DeadLettersAction,
    queue: str,
    *,
    code: str | None,
    letters: Sequence[str] | None,
    actor: str,
    reason: str | None,
    request_id: str,
) -> DeadLettersRequested:
    """A request to replay or discard dead letters.

    Raises:
        MalformedRequestError: neither or both of `code` and `letters` are given, too many letters,
            or no such queue.
    """
    return _checked(
        DeadLettersRequested,
        request_id=request_id,
        project=ALL_PROJECTS,
        requested_at=format_time(datetime.now(UTC)),
        action=action,
        queue=queue,
        code=code,
        letters=None if letters is None else tuple(letters),
        reason=reason,
        actor=actor,
    )


def build_recovery(
    project: str,
    *,
    digest: str,
    serial: int | None,
    mark: str | None,
    reason: str,
    actor: str | None,
    request_id: str,
) -> RecoverRequested:
    """A request to accept a project's keyring as it was found.

    Raises:
        MalformedRequestError: a name, a digest or the reason does not have its form.
    """
    return _checked(
        RecoverRequested,
        request_id=request_id,
        project=project,
        requested_at=format_time(datetime.now(UTC)),
        reason=reason,
        serial=serial,
        mark=mark,
        digest=digest,
        actor=actor,
    )


def _sealed_kek(
    settings: PublisherSettings,
    api_key: ApiKey,
    purpose: KekPurpose,
    request_id: str,
    project: str,
) -> SealedSecret:
    """The user KEK of an API key, sealed to the workers for this request only."""
    text = _text(api_key)
    try:
        if purpose == "v0":
            kek = v0_user_kek(text, settings.v0_pepper.get_secret_value())
        else:
            kek = user_kek(text, project, settings.pepper.get_secret_value())
    except ValueError as exc:  # its text names the rule, never the key
        raise MalformedRequestError(str(exc)) from exc
    return _seal(settings, kek, kek_info(purpose, request_id, project))


def _checked(model: type[_Model], **fields: Any) -> _Model:
    try:
        return model(**fields)
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None  # the cause repeats values


def _seal(settings: PublisherSettings, secret: Secret, info: bytes) -> SealedSecret:
    intake = settings.intake_public_key
    ciphertext = to_b64(intake.key.seal(secret.reveal(), info))
    return SealedSecret(intake_key=intake.id, ciphertext=ciphertext)


def _placeholder(settings: PublisherSettings) -> SealedSecret:
    return SealedSecret(intake_key=settings.intake_public_key.id, ciphertext="")


def _text(secret: ApiKey) -> str:
    return secret.get_secret_value() if isinstance(secret, SecretStr) else secret
