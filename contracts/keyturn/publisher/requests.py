"""Building requests: checked, sealed, signed (SPEC 6.3 to 6.6, 16.1). Pure but for random bytes.

The models of the workers check names and metadata, before a secret is derived or a byte of a body
is read. It must never put a secret or a value into an error.
"""

import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, ParamSpec, TypeVar

from pydantic import ValidationError

from keyturn.api_key import ApiKey, secret_text
from keyturn.crypto.base64 import to_base64 as to_b64
from keyturn.crypto.intake import KekPurpose, kek_info, upload_info
from keyturn.crypto.keys import Secret, user_kek
from keyturn.crypto.wraps import transport_context
from keyturn.errors import MalformedRequestError
from keyturn.identifiers import format_time
from keyturn.messages.codec import encode, request_id
from keyturn.messages.json_text import problems
from keyturn.messages.requests import (
    EnrollRequested,
    InlineBody,
    Request,
    RequestedCustomerKey,
    RotationRequested,
    SealedKey,
    SealedSecret,
    StagedBody,
    UploadRequested,
)
from keyturn.publisher.sessions import SealingSession
from keyturn.settings import PublisherSettings
from keyturn.topology import PUBLISHER_HEADER, SIGNATURE_HEADER

TRANSPORT_KEY_BYTES: Final = 32
# A placeholder while the fields are checked, before any secret is made.
_UNSEALED_KEY: Final = SealedKey(intake_key="none", ciphertext="")
_NO_BODY: Final = InlineBody(inline="")
_UNSEALED_KEK: Final = SealedSecret(intake_key="none", ciphertext="")
_Fields = ParamSpec("_Fields")
_Model = TypeVar("_Model")


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A request ready to be sent. The same bytes sent twice get the same answer."""

    request_id: str
    type: str
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class UploadDraft:
    """An upload with checked names; its sealed key and its body are missing."""

    request: UploadRequested
    sealed_key: SealedKey
    transport_key: Secret

    @property
    def context(self) -> bytes:
        """The context under which the body is sealed in transit (SPEC 6.4)."""
        return transport_context(self.request.upload_id)

    def with_body(self, body: InlineBody | StagedBody) -> UploadRequested:
        """Return the whole request."""
        return self.request.model_copy(update={"sealed_key": self.sealed_key, "body": body})


def new_id() -> str:
    """Return a fresh id for a request."""
    return str(uuid.uuid4())


def now() -> str:
    """Return `requested_at` of a request that is made now."""
    return format_time(datetime.now(UTC))


def sign(settings: PublisherSettings, request: Request) -> SignedRequest:
    """Encode a request and sign its bytes (SPEC 6.3)."""
    body = encode(request)
    publisher = settings.publisher_name
    signature = settings.publisher_key.sign_request(settings.deployment, publisher, body)
    headers = {PUBLISHER_HEADER: publisher, SIGNATURE_HEADER: signature}
    return SignedRequest(request_id(request), request.type, body, headers)


def signed_now(request: UploadRequested) -> UploadRequested:
    """Return the same upload as a new attempt: `sign` gives it other bytes, so its own answer."""
    return request.model_copy(update={"requested_at": now()})


def draft_upload(
    session: SealingSession,
    project: str,
    object_key: str,
    *,
    content_type: str | None,
    metadata: Mapping[str, str] | None,
    upload_id: str,
) -> UploadDraft:
    """Return an upload with a fresh transport key, sealed under the publisher's session.

    Raises:
        MalformedRequestError: a name, the content type or the metadata is not allowed.
    """
    checked = build(
        UploadRequested,
        requested_at=now(),
        upload_id=upload_id,
        project=project,
        key=object_key,
        content_type=content_type,
        metadata=dict(metadata) if metadata else None,
        sealed_key=_UNSEALED_KEY,
        body=_NO_BODY,
    )
    transport_key = Secret(os.urandom(TRANSPORT_KEY_BYTES))
    sealed = session.seal(transport_key, upload_info(upload_id, project, object_key))
    return UploadDraft(checked, sealed, transport_key)


def build_enroll(
    settings: PublisherSettings,
    project: str,
    *,
    api_key: ApiKey,
    plaintext: bool,
    adopt: bool,
    customer_key: str | None = None,
    actor: str | None = None,
    request_id: str,
) -> EnrollRequested:
    """Return an enrollment. The user KEK is derived here, and leaves only sealed to the workers.

    Raises:
        MalformedRequestError: a name or the API key does not have the form of SPEC 1, or the
            customer key is malformed or given together with plaintext.
    """
    checked = build(
        EnrollRequested,
        requested_at=now(),
        request_id=request_id,
        project=project,
        sealed_kek=_UNSEALED_KEK,
        plaintext="allowed" if plaintext else None,
        adopt=adopt,
        customer_key=None if customer_key is None else parse_customer_key(customer_key),
        actor=actor,
    )
    sealed = _sealed_kek(settings, api_key, "enroll", request_id, project)
    return checked.model_copy(update={"sealed_kek": sealed})


def build_rotation(
    settings: PublisherSettings,
    project: str,
    *,
    api_key: ApiKey | None,
    customer_key: str | None = None,
    expected_generation: int | None,
    actor: str | None = None,
    rotation_id: str,
) -> RotationRequested:
    """Return a rotation to the KEK of a new API key, to a customer key, or to both.

    The KEK is derived and sealed as in an enrollment.

    Raises:
        MalformedRequestError: a name or the API key does not have the form of SPEC 1, the customer
            key is malformed, or neither is given.
    """
    checked = build(
        RotationRequested,
        requested_at=now(),
        rotation_id=rotation_id,
        project=project,
        expected_generation=expected_generation,
        sealed_kek=None if api_key is None else _UNSEALED_KEK,
        customer_key=None if customer_key is None else parse_customer_key(customer_key),
        actor=actor,
    )
    if api_key is None:
        return checked
    sealed = _sealed_kek(settings, api_key, "rotation", rotation_id, project)
    return checked.model_copy(update={"sealed_kek": sealed})


def parse_customer_key(text: str) -> RequestedCustomerKey:
    """Return the customer key in `STORE/KEY`: the store's name up to the first `/`, then the key.

    Raises:
        MalformedRequestError: it has another form.
    """
    store, slash, key = text.partition("/")
    if not slash:
        raise MalformedRequestError("customer_key: must be STORE/KEY")
    return build(RequestedCustomerKey, store=store, key=key)


def _sealed_kek(
    settings: PublisherSettings,
    api_key: ApiKey,
    purpose: KekPurpose,
    request_id: str,
    project: str,
) -> SealedSecret:
    """Return the user KEK of an API key, sealed to the workers for this request only."""
    try:
        kek = user_kek(secret_text(api_key), project, settings.pepper.get_secret_value())
    except ValueError as exc:  # its text names the rule, never the key
        raise MalformedRequestError(str(exc)) from exc
    return _seal(settings, kek, kek_info(purpose, request_id, project))


def build(
    model: Callable[_Fields, _Model], *args: _Fields.args, **fields: _Fields.kwargs
) -> _Model:
    """Return a checked request.

    Raises:
        MalformedRequestError: names the fields that a worker would reject, never a value.
    """
    try:
        return model(*args, **fields)
    except ValidationError as exc:
        raise MalformedRequestError(problems(exc)) from None  # the cause repeats values


def _seal(settings: PublisherSettings, secret: Secret, info: bytes) -> SealedSecret:
    intake = settings.intake_public_key
    ciphertext = to_b64(intake.key.seal(secret.reveal(), info))
    return SealedSecret(intake_key=intake.id, ciphertext=ciphertext)
