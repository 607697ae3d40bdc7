"""Who may ask for what: the checks of SPEC 6.3 in their order. Pure; no I/O.

Signature, form, permission, age: the first that fails decides the code.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from contracts.errors import (
    BadSealError,
    BadSignatureError,
    MalformedRequestError,
    NotPermittedError,
    RequestExpiredError,
    UnknownIntakeKeyError,
)
from contracts.messages import Request, SealedSecret, parse_request
from contracts.sealing import IntakeKey, SealError, SignatureError, b64_decode
from contracts.topology import PUBLISHER_HEADER, REQUESTS, SIGNATURE_HEADER
from workers.settings import Grant

MAX_AHEAD: Final = timedelta(minutes=5)
_SECRET_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Rules:
    """What admission needs of the settings."""

    deployment: str
    publishers: Mapping[str, Grant]
    max_age: timedelta


def verify(body: bytes, headers: Mapping[str, Any], rules: Rules) -> str:
    """The name of the publisher who signed these bytes.

    Raises:
        BadSignatureError: unknown publisher, or signed by none of its keys for this
            deployment. Nothing in the message is anybody's word then.
    """
    name, signature = headers.get(PUBLISHER_HEADER), headers.get(SIGNATURE_HEADER)
    grant = rules.publishers.get(name) if isinstance(name, str) else None
    if not isinstance(name, str) or grant is None:
        raise BadSignatureError("unknown publisher")
    if not isinstance(signature, str):
        raise BadSignatureError("not signed")
    for key in grant.keys:
        try:
            key.verify_request(rules.deployment, name, body, signature)
        except SignatureError:
            continue
        return name
    raise BadSignatureError("no key of this publisher signed these bytes for this deployment")


def admit(
    body: bytes,
    publisher: str,
    rules: Rules,
    *,
    served: tuple[str, ...],
    routed_as: str,
    now: datetime,
) -> Request:
    """The request in these bytes, where its publisher may send it now.

    `served` are the types that the queue carries; `routed_as` is the delivery's routing key.

    Raises:
        MalformedRequestError, NotPermittedError, RequestExpiredError
    """
    request = parse_request(body)
    if request.type not in served or (routed_as in REQUESTS and routed_as != request.type):
        raise MalformedRequestError("type is not the routing key that it was published with")
    if not rules.publishers[publisher].allows(request.type, request.project):
        raise NotPermittedError(f"{publisher} may not send {request.type} for this project")
    age = now - request.requested_at_instant
    if age > rules.max_age:
        raise RequestExpiredError("requested_at is too long ago")
    if age < -MAX_AHEAD:
        raise RequestExpiredError("requested_at lies in the future")
    return request


def open_secret(sealed: SealedSecret, info: bytes, intake_keys: Mapping[str, IntakeKey]) -> bytes:
    """The 32 bytes that a publisher sealed to an intake key.

    Raises:
        UnknownIntakeKeyError: this worker does not hold that intake key.
        BadSealError: does not open for this request, or opens to another length.
    """
    key = intake_keys.get(sealed.intake_key)
    if key is None:
        raise UnknownIntakeKeyError(sealed.intake_key)
    try:
        secret = key.open(b64_decode(sealed.ciphertext), info)
    except SealError as exc:
        raise BadSealError("the sealed secret does not open for this request") from exc
    if len(secret) != _SECRET_BYTES:
        raise BadSealError("the sealed secret is not 32 bytes")
    return secret
